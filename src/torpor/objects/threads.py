"""A thread: its registers behind the 64-bit mask of R-B5, and what the kernel keeps for each thread by itself."""

from __future__ import annotations

import os
import struct
import sys
from itertools import pairwise

from torpor.errors import Obstacle
from torpor.image.fields import array, choice, i32, in_range, ref, structs, text, u32, u64
from torpor.image.record import Record
from torpor.linux import libc, procfs, ptrace, sched
from torpor.objects.processes import (
    PID_MAX,
    PR_GET_PDEATHSIG,
    PR_GET_SECUREBITS,
    PR_GET_TID_ADDRESS,
    PR_GET_TIMERSLACK,
    all_ids,
)
from torpor.objects.signals import Queued, pending_faults, unpack_siginfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from torpor.arch.contract import Arch
    from torpor.linux.procfs import Status
    from torpor.tasks.freeze import FrozenThread
    from torpor.tasks.remote import Remote

    Calls = list[tuple[str | int, ...]]

FIFO, RR = 1, 2
SS_ONSTACK, SS_DISABLE, SS_AUTODISARM = 1, 2, 1 << 31
NR_CPUS = 8192
"""No kernel is built for more processors."""
_POLICIES = {0: "OTHER", 1: "FIFO", 2: "RR", 3: "BATCH", 5: "IDLE", 6: "DEADLINE", 7: "EXT"}


def _four(ids: list[int]) -> str | None:
    """four, none of them 2^32-1, which is no id"""
    return f"are {len(ids)} ids instead of 4" if len(ids) != 4 else all_ids(ids)


def _processors(numbers: list[int]) -> str | None:
    """ascending, below 8192"""
    good = all(a < b for a, b in pairwise(numbers)) and (not numbers or numbers[-1] < NR_CPUS)
    return None if good else "are not ascending, or above any processor's"


class Thread(Record, type=0x0210):
    """A thread. The register records that `registers` announces follow it, in the order of their bits."""

    process: int = ref("its process", to="Process")
    tid: int = u32("its id in its own pid namespace", check=in_range(1, PID_MAX - 1))
    name: str = text("its name (PR_SET_NAME)", max=15)
    registers: int = u64("which register records follow (R-B5)")
    blocked: int = u64("signal mask, bit n-1 for signal n")
    pending: list[Queued] = structs(Queued, "pending signals of this thread, in order", max=1 << 16, default=[])
    clear_child_tid: int = u64("address that is cleared when it ends (set_tid_address(2))", default=0)
    robust_list: int = u64("head of its robust futexes (set_robust_list(2))", default=0)
    robust_length: int = u64("length of that head, bytes", default=0)
    rseq: int = u64("address of its rseq area, 0 when not registered", default=0)
    rseq_length: int = u32("length of that area, bytes", default=0)
    rseq_signature: int = u32("signature in front of its abort handlers", default=0)
    stack: int = u64("alternate signal stack (sigaltstack(2))", default=0)
    stack_length: int = u64("its length, bytes", default=0)
    stack_flags: int = u32("SS_*: 2 none, 1 in use, bit 31 auto-disarm", default=SS_DISABLE)
    death_signal: int = u32("PR_SET_PDEATHSIG", check=in_range(0, 64), default=0)
    timer_slack: int = u64("ns (PR_SET_TIMERSLACK)", default=0)
    uids: list[int] = array(32, "real, effective, saved and file system user id", max=4, check=_four)
    gids: list[int] = array(32, "real, effective, saved and file system group id", max=4, check=_four)
    inheritable: int = u64("capabilities it passes on")
    permitted: int = u64("capabilities it may use")
    effective: int = u64("capabilities it uses")
    bounding: int = u64("capabilities it can ever gain")
    ambient: int = u64("capabilities that survive execve")
    securebits: int = u32("SECBIT_*", default=0)
    no_new_privs: int = choice(32, {0: "no", 1: "yes"}, "PR_SET_NO_NEW_PRIVS", default=0)
    policy: int = choice(32, _POLICIES, "scheduling policy (sched(7))", default=0)
    nice: int = i32("nice value", check=in_range(-20, 19), default=0)
    priority: int = u32("priority of a real-time policy", check=in_range(0, 99), default=0)
    affinity: list[int] = array(32, "processors it may run on", max=NR_CPUS, check=_processors, default=[])
    call: int = i32("number of the call it was in when that can only be resumed with the time that was left, or -1", default=-1)
    left: int = u64("ns that were left of that call, 2^62 when it has no relative limit", check=in_range(0, 1 << 62), default=0)


_STACK = {4: struct.Struct("=III"), 8: struct.Struct("=QI4xQ")}
"""By word size: stack_t (sigaltstack(2)), with address, flags, length."""


class Inside:
    """What only the thread itself can tell."""

    __slots__ = ("clear_child_tid", "death_signal", "robust", "securebits", "stack", "timer_slack")

    def __init__(self) -> None:
        self.clear_child_tid = self.death_signal = self.securebits = self.timer_slack = 0
        self.stack = (0, SS_DISABLE, 0)
        self.robust = (0, 0)


def ask(remote: Remote) -> Generator[Calls, list[int], Inside]:
    """Ask the thread about itself (a conversation of `objects.asking`)."""
    arch = remote.arch
    word = arch.word
    at = remote.room(128)
    results = yield [
        ("prctl", PR_GET_TID_ADDRESS, at),
        ("sigaltstack", 0, at + 8),
        ("prctl", PR_GET_PDEATHSIG, at + 40),
        ("prctl", PR_GET_SECUREBITS),
        ("prctl", PR_GET_TIMERSLACK),
        # get_robust_list(2) from a tracer of another word size answers for that size only
        ("get_robust_list", 0, at + 48, at + 56),
    ]
    data = remote.take(at, 64)
    found = Inside()
    if results[0] == 0:
        found.clear_child_tid = int.from_bytes(data[: libc.WORD], sys.byteorder) & ((1 << 8 * word) - 1)
    found.stack = _STACK[word].unpack_from(data, 8)
    (found.death_signal,) = struct.unpack_from("=I", data, 40)
    found.securebits, found.timer_slack = max(results[3], 0), max(results[4], 0)
    if results[5] == 0:
        found.robust = (arch.unwords(data[48 : 48 + word])[0], arch.unwords(data[56 : 56 + word])[0])
    return found


class Captured:
    """A stopped thread as the kernel shows it: quick to take in the pause, described after it.

    `general` are the registers that it goes on with, `registers` what its architecture has captured of the others.
    """

    __slots__ = ("affinity", "arch", "attributes", "general", "inside", "mask", "own_tid", "pending", "registers", "rseq", "status")

    def __init__(self, thread: FrozenThread, inside: Inside, registers: object) -> None:
        tid = thread.tid
        self.arch, self.own_tid, self.mask, self.status = thread.process.arch, thread.own_tid, thread.mask, thread.status
        self.inside, self.general, self.registers = inside, dict(thread.regs), registers
        self.attributes = sched.sched_getattr(tid)
        self.rseq = ptrace.rseq_configuration(tid)
        self.pending = ptrace.pending_signals(tid, shared=False) if thread.status.pending else []
        self.affinity = os.sched_getaffinity(tid)


def describe(thread: Captured, process: int) -> Thread:
    """The record of a thread, still without the mask of its register records."""
    status, attributes, inside = thread.status, thread.attributes, thread.inside
    rseq, rseq_length, rseq_signature = thread.rseq
    stack, stack_flags, stack_length = inside.stack
    return Thread(
        process=process,
        tid=thread.own_tid,
        name=status.name.decode("utf-8", "surrogateescape"),
        registers=0,
        blocked=thread.mask,
        pending=[unpack_siginfo(info, thread.arch) for info in thread.pending],
        clear_child_tid=inside.clear_child_tid,
        robust_list=inside.robust[0],
        robust_length=inside.robust[1],
        rseq=rseq,
        rseq_length=rseq_length,
        rseq_signature=rseq_signature,
        stack=stack,
        stack_length=stack_length,
        stack_flags=stack_flags,
        death_signal=inside.death_signal,
        timer_slack=inside.timer_slack,
        uids=list(status.uids),
        gids=list(status.gids),
        inheritable=status.cap_inheritable,
        permitted=status.cap_permitted,
        effective=status.cap_effective,
        bounding=status.cap_bounding,
        ambient=status.cap_ambient,
        securebits=inside.securebits,
        no_new_privs=int(status.no_new_privs),
        policy=attributes.policy,
        nice=attributes.nice,
        priority=attributes.priority,
        affinity=sorted(thread.affinity),
    )


# --- restart

PR_SET_NAME = 15
PR_SET_PDEATHSIG, PR_SET_TIMERSLACK, PR_SET_SECUREBITS, PR_SET_KEEPCAPS = 1, 29, 28, 8
PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP, PR_CAP_AMBIENT = 38, 24, 47
CAP_AMBIENT_RAISE, CAP_AMBIENT_CLEAR_ALL = 2, 4
CAP_VERSION_3 = 0x20080522


CAP_SETPCAP = 8
SECUREBITS = 0xFFF
"""Up to SECBIT_EXEC_DENY_INTERACTIVE_LOCKED (6.14)."""
_ALTERNATE_STACK_MIN = 2048
"""The least MINSIGSTKSZ of all architectures (asm/signal.h)."""
_RSEQ_MIN, _RSEQ_ALIGNMENT = 32, 32


def faults(record: Thread, arch: Arch, writable: Callable[[int, int], bool]) -> Iterator[str]:
    """What in the record of a thread no thread can have (R-D1). `writable`: whether a range is memory that may be written."""
    for name in ("clear_child_tid", "robust_list", "rseq", "stack"):
        if getattr(record, name) >= arch.user_limit:
            yield f"{name} is outside of user space"
    if record.robust_list and record.robust_length != 3 * arch.word:  # struct robust_list_head
        yield f"the head of its robust list has {record.robust_length} bytes"
    yield from pending_faults(record.pending)
    if record.effective & ~record.permitted or record.ambient & ~(record.permitted & record.inheritable):
        yield "it uses or passes on capabilities that it is not permitted"
    if record.securebits & ~SECUREBITS:
        yield f"its securebits are unknown: {record.securebits:#x}"
    if record.stack_flags & ~(SS_ONSTACK | SS_DISABLE | SS_AUTODISARM):
        yield f"the flags of its alternate stack are unknown: {record.stack_flags:#x}"
    elif not (record.stack_flags & SS_DISABLE and record.stack_length < 1 << 8 * arch.word) and not (
        _ALTERNATE_STACK_MIN <= record.stack_length <= arch.user_limit
    ):
        yield f"an alternate stack cannot be of {record.stack_length} bytes"  # kernel/signal.c, do_sigaltstack()
    if record.rseq:
        # kernel/rseq.c: it is looked at when it is registered, and written whenever the thread has been preempted.
        if record.rseq % _RSEQ_ALIGNMENT or record.rseq_length < _RSEQ_MIN:
            yield "its rseq area is not aligned or too short"
        elif not writable(record.rseq, record.rseq_length):
            yield "its rseq area does not lie in memory that can be written"
    if (record.policy in (FIFO, RR)) != (record.priority > 0):  # sched(7)
        yield f"its scheduling policy {record.policy} does not go with priority {record.priority}"
    if record.call != -1 and (reason := arch.call_fault(record.call, record.left)):
        yield reason


CAP_SETGID, CAP_SETUID = 6, 7


def lacking(record: Thread, groups: Sequence[int], own: Status) -> Iterator[str]:
    """What root with the credentials `own` cannot give to a thread: root of a container may have fewer rights than it had."""
    may = own.cap_effective
    if missing := record.permitted & ~own.cap_permitted:
        yield f"it had capabilities that torpor has not itself ({missing:#x})"
    if missing := record.inheritable & ~(own.cap_inheritable | own.cap_bounding):
        yield f"it could pass on capabilities that torpor has not itself ({missing:#x})"
    changed = record.inheritable & ~own.cap_permitted or own.cap_bounding & ~record.bounding or record.securebits
    if changed and not may >> CAP_SETPCAP & 1:
        yield "its capabilities and securebits can be set only with CAP_SETPCAP, which torpor has not"
    if record.uids[:3] != list(own.uids[:3]) and not may >> CAP_SETUID & 1:
        yield "its user ids can be set only with CAP_SETUID, which torpor has not"
    if (record.gids[:3] != list(own.gids[:3]) or sorted(groups) != sorted(own.groups)) and not may >> CAP_SETGID & 1:
        yield "its group ids can be set only with CAP_SETGID, which torpor has not"


def attach_calls(record: Thread, remote: Remote) -> Calls:
    """The calls that give a new thread what belongs to it, up to its credentials."""
    arch = remote.arch
    name = remote.put(record.name.encode("utf-8", "surrogateescape") + b"\0")
    calls: Calls = [("set_tid_address", record.clear_child_tid), ("prctl", PR_SET_NAME, name)]
    if record.robust_list:
        calls.append(("set_robust_list", record.robust_list, record.robust_length))
    if record.rseq:
        calls.append(("rseq", record.rseq, record.rseq_length, 0, record.rseq_signature))
    # SS_ONSTACK is the kernel's answer to "are you on it now?"; it follows from the stack pointer.
    flags = record.stack_flags & ~SS_ONSTACK
    calls.append(("sigaltstack", remote.put(_STACK[arch.word].pack(record.stack, flags, record.stack_length)), 0))
    if record.timer_slack:
        calls.append(("prctl", PR_SET_TIMERSLACK, record.timer_slack))
    return calls


def credential_calls(record: Thread, groups: Sequence[int], remote: Remote, own_groups: bool) -> Calls:
    """The calls that give a thread its ids and capabilities, and nothing it had not: the last calls it makes.

    `own_groups`: the thread has the supplementary groups already, or may not change them (a user namespace).
    """
    tid = remote.thread.tid
    now = procfs.status(remote.thread.process.pid, tid)
    calls: Calls = []
    everything = now.cap_permitted
    if record.inheritable & ~now.cap_inheritable:
        # While they are in the bounding set: afterwards they cannot be made inheritable any more (security/commoncap.c).
        calls.append(_capset(remote, everything, everything, record.inheritable))
    for capability in range(64):
        if now.cap_bounding & ~record.bounding & 1 << capability:
            calls.append(("prctl", PR_CAPBSET_DROP, capability))
    if not own_groups and sorted(now.groups) != sorted(groups):
        calls.append(("setgroups", len(groups), remote.put(struct.pack(f"={len(groups)}I", *groups))))
    if list(now.gids[:3]) != record.gids[:3]:
        calls.append(("setresgid", *record.gids[:3]))
    if list(now.uids[:3]) != record.uids[:3]:
        calls += [("prctl", PR_SET_KEEPCAPS, 1), ("setresuid", *record.uids[:3])]
        calls.append(_capset(remote, everything, everything, record.inheritable))
        calls.append(("prctl", PR_SET_KEEPCAPS, 0))
    if record.ambient != now.cap_ambient:
        calls.append(("prctl", PR_CAP_AMBIENT, CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
        for capability in range(64):
            if record.ambient >> capability & 1:
                calls.append(("prctl", PR_CAP_AMBIENT, CAP_AMBIENT_RAISE, capability, 0, 0))
    if record.securebits:
        calls.append(("prctl", PR_SET_SECUREBITS, record.securebits))
    if record.no_new_privs:
        calls.append(("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    calls.append(_capset(remote, record.effective, record.permitted, record.inheritable))
    if record.death_signal:
        calls.append(("prctl", PR_SET_PDEATHSIG, record.death_signal))
    return calls


def _capset(remote: Remote, effective: int, permitted: int, inheritable: int) -> tuple[str | int, ...]:
    header = remote.put(struct.pack("=Ii", CAP_VERSION_3, 0))
    low = [value & 0xFFFFFFFF for value in (effective, permitted, inheritable)]
    high = [value >> 32 for value in (effective, permitted, inheritable)]
    return "capset", header, remote.put(struct.pack("=6I", *low, *high))


def schedule(record: Thread, tid: int, processors: Iterable[int]) -> Iterator[Obstacle]:
    """Give a thread its policy, nice value and processors, from outside; yields what the kernel did not allow.

    `processors`: where it may run if there are none of its own.
    """
    now = sched.sched_getattr(tid)
    if (now.policy, now.nice, now.priority) != (record.policy, record.nice, record.priority):
        now.policy, now.nice, now.priority = record.policy, record.nice, record.priority
        now.runtime = now.deadline = now.period = 0  # what was read would pin the thread's slice (6.12)
        try:
            sched.sched_setattr(tid, now)
        except OSError as error:
            yield Obstacle("scheduling", f"policy {record.policy}, nice {record.nice} is not allowed here ({error.strerror})",
                           "it goes on with the policy of torpor restart", pid=record.tid)  # fmt: skip
    try:
        sched.set_affinity(tid, record.affinity or processors)
    except OSError:
        yield Obstacle("affinity", "none of its processors is there", "it may run on all of them", pid=record.tid)
        sched.set_affinity(tid, processors)

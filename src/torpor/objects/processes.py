"""A process (thread group): its place in the tree, and what its threads have in common.

`describe` takes it from /proc; `ask` gets from the task itself what /proc does not show. Limits are restored by the task itself,
never by prlimit(2) from outside: that would need CAP_SYS_RESOURCE as soon as the user ids differ.
"""

from __future__ import annotations

import os
import struct

from torpor.errors import Obstacle
from torpor.image.fields import array, choice, i32, ident, in_range, one_of, ref, structs, u32, u64
from torpor.image.format import ARCHITECTURES
from torpor.image.record import Record, Struct
from torpor.linux import procfs
from torpor.objects import signals
from torpor.objects.signals import Queued

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Generator, Iterator

    from torpor.arch.contract import Arch
    from torpor.tasks.freeze import FrozenProcess
    from torpor.tasks.remote import Remote

    Calls = list[tuple[str | int, ...]]

ALIVE, ZOMBIE = 0, 1
EPERM = 1
INFINITY = (1 << 64) - 1
PID_MAX = 1 << 22
NO_ID = (1 << 32) - 1
"""(uid_t)-1, which says "leave it" where an id is expected (credentials(7))."""
GROUPS_MAX = 8000
"""As many groups as fit into a task's work area in one piece."""
_PID = in_range(1, PID_MAX - 1)  # kernel/pid.c, alloc_pid(): below the limit

PR_GET_PDEATHSIG, PR_SET_PDEATHSIG = 2, 1
PR_GET_DUMPABLE, PR_SET_DUMPABLE = 3, 4
PR_SET_NAME = 15
PR_GET_SECUREBITS, PR_SET_SECUREBITS = 27, 28
PR_GET_TIMERSLACK, PR_SET_TIMERSLACK = 30, 29
PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 36, 37
PR_SET_NO_NEW_PRIVS = 38
PR_GET_TID_ADDRESS = 40
PR_SET_THP_DISABLE, PR_GET_THP_DISABLE = 41, 42


class Limit(Struct):
    """A resource limit (getrlimit(2)); 2^64-1 is none."""

    resource: int = u32("RLIMIT_*", check=in_range(0, 15))
    soft: int = u64("soft limit, at most the hard one")
    hard: int = u64("hard limit")

    def validate(self) -> str | None:
        return f"the soft limit {self.soft} is above the hard one, {self.hard}" if self.soft > self.hard else None


def _ascending(limits: list[Limit]) -> str | None:
    """ascending"""
    numbers = [limit.resource for limit in limits]
    return None if numbers == sorted(set(numbers)) else f"{numbers} are not ascending"


def all_ids(ids: list[int]) -> str | None:
    """none is 2^32-1, which is no id"""
    return "has an id of 2^32-1, which is none" if NO_ID in ids else None


class Process(Record, type=0x0200):
    """A process of the tree, parents before children. Its threads follow as Thread records."""

    id: int = ident("the process")
    parent: int = ref("its parent; none for the root of the tree", to="Process", optional=True)
    pid: int = u32("its id in its own pid namespace", check=_PID)
    pgid: int = u32("process group, 0 when outside of that namespace", check=in_range(0, PID_MAX))
    sid: int = u32("session, 0 when outside of that namespace", check=in_range(0, PID_MAX))
    exit_signal: int = u32("what its end sends to its parent", check=in_range(0, 64))
    state: int = choice(32, {ALIVE: "alive", ZOMBIE: "zombie"}, "a zombie has ended, and waits for its parent to ask")
    exit_status: int = u32("wait status of a zombie", check=in_range(0, 0xFFFF), default=0)
    arch: int = choice(32, ARCHITECTURES, "what kind of task it is")
    mm: int = ref("address space; none for a zombie", to="Mm", optional=True, default=0)
    files: int = ref("descriptor table", to="FdTable", optional=True, default=0)
    fs: int = ref("place in the file system", to="Fs", optional=True, default=0)
    handlers: int = ref("signal actions", to="Handlers", optional=True, default=0)
    stopped_by: int = u32("signal of the job-control stop it is in, 0 when it runs", check=one_of(0, 19, 20, 21, 22), default=0)
    personality: int = u32("personality(2)", check=in_range(0, NO_ID - 1), default=0)
    components: int = u64("register components that it has asked for (x86: ARCH_REQ_XCOMP_PERM)", default=0)
    dumpable: int = choice(32, {0: "no", 1: "yes", 2: "root only"}, "PR_GET_DUMPABLE", default=1)
    subreaper: int = choice(32, {0: "no", 1: "yes"}, "PR_GET_CHILD_SUBREAPER", default=0)
    thp_disable: int = choice(32, {0: "no", 1: "yes"}, "PR_GET_THP_DISABLE", default=0)
    oom_score_adj: int = i32("/proc/PID/oom_score_adj", check=in_range(-1000, 1000), default=0)
    limits: list[Limit] = structs(Limit, "resource limits", max=16, check=_ascending, default=[])
    pending: list[Queued] = structs(Queued, "pending signals of the whole process, in order", max=1 << 16, default=[])
    groups: list[int] = array(32, "supplementary groups", max=65536, check=all_ids, default=[])


class Inside:
    """What only the process itself can tell."""

    __slots__ = ("brk", "components", "dumpable", "subreaper", "thp_disable")

    def __init__(self, brk: int, components: int, dumpable: int, subreaper: int, thp_disable: int) -> None:
        self.brk, self.components = brk, components
        self.dumpable, self.subreaper, self.thp_disable = dumpable, subreaper, thp_disable


def ask(remote: Remote) -> Generator[Calls, list[int], Inside]:
    """Ask the process about itself (a conversation of `objects.asking`)."""
    at = remote.room(16)
    results = yield [
        ("brk", 0),
        ("prctl", PR_GET_DUMPABLE),
        ("prctl", PR_GET_CHILD_SUBREAPER, at),
        ("prctl", PR_GET_THP_DISABLE, 0, 0, 0, 0),
        *remote.arch.ask_components(at + 8),
    ]
    subreaper, components = struct.unpack("=I4xQ", remote.take(at, 16))
    mask = (1 << 8 * remote.arch.word) - 1
    components &= remote.arch.requestable
    return Inside(results[0] & mask, components, max(results[1], 0), subreaper, max(results[3], 0))


def describe(process: FrozenProcess, number: int, parent: int) -> Process:
    """The record of a process, still without what `Inside` and the other kinds add."""
    status, stat = process.status, process.stat
    record = Process(
        id=number,
        parent=parent,
        pid=status.ns_tgid[-1],
        pgid=status.ns_pgid[-1],
        sid=status.ns_sid[-1],
        exit_signal=max(stat.exit_signal, 0),
        state=ZOMBIE if process.zombie else ALIVE,
        exit_status=stat.exit_code & 0xFFFF if process.zombie else 0,
        arch=(process.parent or process).arch.image_id if process.zombie else process.arch.image_id,
    )
    if not process.zombie:
        record.stopped_by = process.leader.stopped_by
        record.personality = procfs.personality(process.pid)
        record.oom_score_adj = procfs.oom_score_adj(process.pid)
        record.limits = _limits(tuple(procfs.limits(process.pid)))
        record.groups = list(status.groups)
    return record


def _limits(found: tuple[tuple[int, int], ...]) -> list[Limit]:
    """The records of resource limits; those of the processes of a tree are alike, as a rule."""
    global _latest
    latest = _latest
    if found != latest[0]:
        latest = _latest = found, [Limit(resource=index, soft=soft, hard=hard) for index, (soft, hard) in enumerate(found)]
    return list(latest[1])


_latest: tuple[tuple[tuple[int, int], ...], list[Limit]] = ((), [])


# --- restart

SIGKILL = 9
_HARMLESS_SIGNALS = (17, 18, 19, 20, 21, 22, 23, 28)
"""CHLD CONT STOP TSTP TTIN TTOU URG WINCH: no default action of theirs ends a process (signal(7))."""


def faults(record: Process) -> Iterator[str]:
    """What in the record of a process no process can have (R-D1)."""
    yield from signals.pending_faults(record.pending)
    if record.state == ZOMBIE:
        code, core, signal = record.exit_status >> 8, record.exit_status & 0x80, record.exit_status & 0x7F
        if (code or signal > signals.COUNT or signal in _HARMLESS_SIGNALS) if signal else core:
            yield f"{record.exit_status:#x} is not the wait status of a process that has ended"
        if record.exit_signal == SIGKILL:
            yield "its end would have killed its parent"


def check(record: Process, tids: Container[int]) -> Iterator[Obstacle]:
    """What in the record of a process, whose threads are `tids`, cannot be given back here."""
    if record.pid == 1 or 1 in tids:
        yield Obstacle("process id", "it was process 1 of its namespace, which it cannot be again", pid=record.pid)
    if len(record.groups) > GROUPS_MAX:
        yield Obstacle("groups", f"it has {len(record.groups)} supplementary groups, more than {GROUPS_MAX}", pid=record.pid)


def set_limits(record: Process, remote: Remote) -> Iterator[Obstacle]:
    """Have a process set its limits; yields what is left out: hard limits that this user, or the kernel, does not allow.

    The kernel answers EPERM without CAP_SYS_RESOURCE towards the first user namespace, and above fs.nr_open (kernel/sys.c).
    """
    now = procfs.limits(remote.thread.process.pid)
    wanted = [limit for limit in record.limits if (limit.soft, limit.hard) != now[limit.resource]]

    def call(resource: int, soft: int, hard: int) -> tuple[str | int, ...]:
        return "prlimit64", 0, resource, remote.put(struct.pack("=QQ", soft, hard)), 0

    results = remote.batch([call(limit.resource, limit.soft, limit.hard) for limit in wanted])
    for limit, result in zip(wanted, results, strict=True):
        if result == -EPERM:
            hard = now[limit.resource][1]
            yield Obstacle(
                f"limit {limit.resource} (RLIMIT_*)",
                f"its hard value {limit.hard} is above what may be set here, {hard}",
                "raise the limit before the restart if the program needs it",
                pid=record.pid,
            )
            result, *_ = remote.batch([call(limit.resource, min(limit.soft, hard), hard)])
        if result < 0:
            raise OSError(-result, f"prlimit64 in process {record.pid}: {os.strerror(-result)}")


def attribute_calls(record: Process, arch: Arch) -> Calls:
    """The calls that give a process the small things that only it can set."""
    calls: Calls = []
    if record.subreaper:
        calls.append(("prctl", PR_SET_CHILD_SUBREAPER, 1))
    if record.thp_disable:
        calls.append(("prctl", PR_SET_THP_DISABLE, 1, 0, 0, 0))
    calls.append(("personality", record.personality))
    return calls + arch.request_components(record.components)


def set_oom_score(record: Process, pid: int) -> Iterator[Obstacle]:
    """Write /proc/PID/oom_score_adj; yields what the kernel did not allow (lowering it needs CAP_SYS_RESOURCE)."""
    if procfs.oom_score_adj(pid) != record.oom_score_adj:
        try:
            with open(f"/proc/{pid}/oom_score_adj", "w") as file:
                file.write(str(record.oom_score_adj))
        except OSError as error:
            yield Obstacle("oom_score_adj", f"{record.oom_score_adj} is not allowed here ({error.strerror})", pid=record.pid)

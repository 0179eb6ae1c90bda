"""What the registers of a stopped thread must be when it goes on, so that the program never knows that it was stopped.

Most interrupted calls ask the kernel to be restarted, and the kernel does it, if only the registers are left alone. Two cases need
a hand: calls that end in EINTR at *any* stop, signal or not (signal(7), "Interruption of system calls ... by stop signals"), and
restartable sequences, which must be aborted before the thread runs anything else (rseq(2)).
"""

from __future__ import annotations

import os
import struct

from torpor.arch.contract import EINTR, ERESTARTNOHAND
from torpor.linux import procfs, ptrace
from torpor.tasks import sleeping
from torpor.tasks.retry import slot_of, taken_out

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from torpor.arch.contract import Arch, Registers, Seen
    from torpor.tasks.freeze import FrozenThread

ENDED_BY_ANY_STOP = frozenset(
    "epoll_wait epoll_pwait epoll_pwait2 rt_sigtimedwait rt_sigtimedwait_time32 semop semtimedop semtimedop_time32 msgrcv msgsnd "
    "ipc io_getevents io_getevents_time32 io_pgetevents read write recv recvfrom recvmsg recvmmsg recvmmsg_time32 send sendto "
    "sendmsg accept accept4 connect".split()
)
"""Reads, writes and socket calls are among them when the socket has a timeout (SO_RCVTIMEO, SO_SNDTIMEO)."""


def hasten(kind: Arch, tid: int, seen: Seen | None) -> None:
    """The first word to a thread that has just stopped: a call that our stop has ended with EINTR is to be restarted.

    Until then the death of torpor would show, so nothing else is asked before. It is one register, -ERESTARTNOHAND in place
    of -EINTR, and the kernel does the rest when the thread is let go, by whomever: EINTR if there is a handler to run.
    """
    kind.registers.restart_ended(tid, _numbers(kind), seen)


def settle(thread: FrozenThread) -> None:
    """Put into `thread.regs`, and into the thread, what it is to go on with, whoever lets it go."""
    found, kind, padding = thread.regs, thread.process.arch, thread.process.padding
    slot = slot_of(thread, padding) if padding else 0
    if slot:
        thread.regs = taken_out(thread, slot)
        thread.was_in_slot = True
    number = _ended_by_stop(kind, thread.regs)
    # A signal that comes now would have ended the call anyway.
    if number >= 0 and not deliverable(thread):
        thread.regs = kind.again(thread.regs)
        thread.issued_again = number
    elif slot and found[kind.ip] == slot and (noted := sleeping.noted(thread, padding)):
        thread.issued_again = noted[0]  # it has not come to its call since the last stop
    _abort_sequence(thread)
    if thread.regs is not found or (kind.forgets_argument and kind.pending_call(thread.regs) is not None):
        kind.registers.write_general(thread.tid, thread.regs)


def _ended_by_stop(kind: Arch, regs: Registers) -> int:
    """The number of the call that any stop ends with EINTR, and has ended, or -1."""
    call = kind.pending_call(regs)
    return call[0] if call and call[1] in (EINTR, ERESTARTNOHAND) and call[0] in _numbers(kind) else -1


_known_numbers: dict[str, AbstractSet[int]] = {}


def _numbers(kind: Arch) -> AbstractSet[int]:
    """The numbers of ENDED_BY_ANY_STOP; looked up once, for microseconds count here."""
    if kind.name not in _known_numbers:
        _known_numbers[kind.name] = {kind.syscalls[name] for name in ENDED_BY_ANY_STOP if name in kind.syscalls}
    return _known_numbers[kind.name]


def deliverable(thread: FrozenThread) -> int:
    """The waiting signals that would run a handler in this thread as soon as it goes on, bit n-1 for signal n."""
    status = thread.status
    return (status.pending | status.shd_pending) & ~thread.mask & status.caught


def release(thread: FrozenThread) -> None:
    """The last word to a thread whose kernel `rewinds`: where a handler is to run now, its interrupted call ends as it would have.

    The kernel has decided that when it stopped the thread, and forgets it when torpor has calls made.
    """
    kind, restarting = thread.process.arch, thread.process.restarting
    if restarting is None or (thread.issued_again < 0 and kind.pending_call(thread.regs) is None):
        return
    thread.status = procfs.status(thread.process.pid, thread.tid)
    if first := deliverable(thread):
        first &= -first
        kind.registers.write_general(
            thread.tid, kind.handled(thread.regs, bool(first & restarting), again=thread.issued_again >= 0)
        )


def _abort_sequence(thread: FrozenThread) -> None:
    """Move a thread that was stopped inside an rseq critical section to its abort handler.

    The kernel would do so itself, but it forgets the section as soon as the thread runs code outside of it, as our calls are;
    the thread would then finish a sequence that nobody guards any more.
    """
    address, _, _ = ptrace.rseq_configuration(thread.tid)
    if not address:
        return
    arch, mem = thread.process.arch, thread.process.mem
    try:
        (section,) = struct.unpack("=Q", os.pread(mem, 8, address + 8))
        if not section:
            return
        _, _, start, length, abort = struct.unpack("=IIQQQ", os.pread(mem, 32, section))
    except (OSError, struct.error):
        return
    if start <= thread.regs[arch.ip] < start + length:
        thread.regs = thread.regs | {arch.ip: abort}
        os.pwrite(mem, bytes(8), address + 8)

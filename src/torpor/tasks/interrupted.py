"""What the registers of a stopped thread must be when it goes on, so that the program never knows that it was stopped.

Most interrupted calls ask the kernel to be restarted, and the kernel does it, if only the registers are left alone. Two cases need
a hand: calls that end in EINTR at *any* stop, signal or not (signal(7), "Interruption of system calls ... by stop signals"), and
restartable sequences, which must be aborted before the thread runs anything else (rseq(2)).
"""

from __future__ import annotations

import os
import struct

from torpor.arch.contract import EINTR
from torpor.linux import ptrace
from torpor.tasks.retry import taken_out

TYPE_CHECKING = False
if TYPE_CHECKING:
    from torpor.tasks.freeze import FrozenThread

ENDED_BY_ANY_STOP = frozenset(
    "epoll_wait epoll_pwait epoll_pwait2 rt_sigtimedwait rt_sigtimedwait_time32 semop semtimedop msgrcv msgsnd ipc "
    "io_getevents io_getevents_time32 io_pgetevents read write recvfrom recvmsg recvmmsg recvmmsg_time32 sendto sendmsg "
    "accept accept4 connect".split()
)
"""Reads, writes and socket calls are among them when the socket has a timeout (SO_RCVTIMEO, SO_SNDTIMEO)."""


def settle(thread: FrozenThread) -> None:
    """Put into `thread.regs`, and into the thread, what it is to go on with, whoever lets it go."""
    found = thread.regs
    if thread.process.padding:
        thread.regs = taken_out(thread, thread.process.padding)
    _issue_again(thread)
    _abort_sequence(thread)
    if thread.regs is not found:
        thread.process.arch.registers.write_general(thread.tid, thread.regs)


def _issue_again(thread: FrozenThread) -> None:
    """A call that our stop has ended with EINTR is issued again, unless a signal would have ended it anyway."""
    arch = thread.process.arch
    call = arch.pending_call(thread.regs)
    if call is None or call[1] != EINTR:
        return
    names = {arch.syscalls.get(name) for name in ENDED_BY_ANY_STOP}
    if call[0] in names and not deliverable(thread):
        thread.regs = arch.again(thread.regs)
        thread.issued_again = call[0]


def deliverable(thread: FrozenThread) -> bool:
    """Whether a signal is waiting that would run a handler in this thread as soon as it goes on."""
    status = thread.status
    return bool((status.pending | status.shd_pending) & ~thread.mask & status.caught)


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

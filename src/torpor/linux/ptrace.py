"""ptrace(2): one function per request that torpor makes.

All of them need the calling *thread* to be the tracer and, but for SEIZE and INTERRUPT, the tracee to be stopped; a
tracee that is gone or not stopped gives ESRCH (`ProcessLookupError`).
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys

from torpor.linux import libc
from torpor.linux.libc import IoVec

TYPE_CHECKING = False

CONT, DETACH, SYSCALL = 7, 17, 24
SETOPTIONS, GETEVENTMSG, GETSIGINFO = 0x4200, 0x4201, 0x4202
GETREGSET, SETREGSET, SEIZE, INTERRUPT, LISTEN = 0x4204, 0x4205, 0x4206, 0x4207, 0x4208
PEEKSIGINFO, GETSIGMASK, SETSIGMASK = 0x4209, 0x420A, 0x420B
GET_RSEQ_CONFIGURATION = 0x420F

O_TRACESYSGOOD, O_TRACEFORK, O_TRACEVFORK, O_TRACECLONE, O_TRACEEXEC = 1, 2, 4, 8, 16
O_EXITKILL = 0x100000
SYSCALL_STOP = 5 | 0x80
"""The signal of a stop at a system call's entry or exit, with O_TRACESYSGOOD."""

EVENT_FORK, EVENT_VFORK, EVENT_CLONE, EVENT_EXEC, EVENT_STOP = 1, 2, 3, 4, 128

PEEKSIGINFO_SHARED = 1
SIGINFO_SIZE = 128
WALL, WNOTHREAD = 0x40000000, 0x20000000

_ptrace = libc.function("ptrace", ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


def _request(request: int, tid: int, addr: int | None = None, data: int | None = None) -> int:
    result: int = _ptrace(request, tid, addr, data)
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, f"ptrace({request:#x}, {tid}): {os.strerror(error)}")
    return result


def seize(tid: int, options: int = 0) -> None:
    """Become the tracer of `tid` without stopping it. EPERM: not ours, or traced by someone else already."""
    _request(SEIZE, tid, None, options)


def interrupt(tid: int) -> None:
    """Ask a seized task to stop; it reports EVENT_STOP at its next return to user space."""
    _request(INTERRUPT, tid)


def cont(tid: int, signal: int = 0) -> None:
    """Let a stopped task run on, delivering `signal` if the stop was a signal-delivery stop."""
    _request(CONT, tid, None, signal)


def cont_to_syscall(tid: int, signal: int = 0) -> None:
    """Let a stopped task run to its next entry to or exit from a system call (PTRACE_SYSCALL)."""
    _request(SYSCALL, tid, None, signal)


def listen(tid: int) -> None:
    """Leave a task in group-stop stopped, but let it report SIGCONT (PTRACE_LISTEN)."""
    _request(LISTEN, tid)


def detach(tid: int, signal: int = 0) -> None:
    """Stop being the tracer; the task goes on (or back into the group-stop its process is in)."""
    _request(DETACH, tid, None, signal)


def set_options(tid: int, options: int) -> None:
    """Replace the PTRACE_O_* options of a stopped task."""
    _request(SETOPTIONS, tid, None, options)


def event_message(tid: int) -> int:
    """The value that belongs to the last event stop: the new task's id for fork, vfork and clone."""
    value = ctypes.c_ulong()
    _request(GETEVENTMSG, tid, None, ctypes.addressof(value))
    return value.value


_buffer = ctypes.create_string_buffer(65536)
_iov = IoVec()


def get_regset(tid: int, note: int) -> bytes:
    """The register set `note` (NT_*, elf.h) of a stopped task, as long as the kernel says it is.

    EINVAL or ENODEV: this task or this CPU has no such set.
    """
    _iov.base, _iov.length = ctypes.addressof(_buffer), len(_buffer)
    _request(GETREGSET, tid, note, ctypes.addressof(_iov))
    return ctypes.string_at(_buffer, _iov.length)


def set_regset(tid: int, note: int, data: bytes) -> None:
    """Write the register set `note`. Not all-or-nothing: after an error the set may be half written."""
    block = ctypes.create_string_buffer(data, len(data))
    iov = IoVec(ctypes.addressof(block), len(data))
    _request(SETREGSET, tid, note, ctypes.addressof(iov))


def _as_longs(mask: int) -> int:
    """As the kernel has it: longs, that of signal 1 first (asm/signal.h). Those of 32 bits look swapped if the big end is first."""
    if libc.WIDE_KERNEL or sys.byteorder == "little":
        return mask
    return (mask & 0xFFFFFFFF) << 32 | mask >> 32


def get_signal_mask(tid: int) -> int:
    """The blocked signals of a stopped task, bit n-1 for signal n."""
    mask = ctypes.c_uint64()
    _request(GETSIGMASK, tid, 8, ctypes.addressof(mask))
    return _as_longs(mask.value)


def set_signal_mask(tid: int, mask: int) -> None:
    """Replace the blocked signals of a stopped task (SIGKILL and SIGSTOP are left out by the kernel)."""
    value = ctypes.c_uint64(_as_longs(mask))
    _request(SETSIGMASK, tid, 8, ctypes.addressof(value))


class _PeekArgs(ctypes.Structure):
    _fields_ = (("off", ctypes.c_uint64), ("flags", ctypes.c_uint32), ("nr", ctypes.c_int32))


def pending_signals(tid: int, *, shared: bool) -> list[bytes]:
    """The siginfo (128 bytes each, in the tracer's own layout) of every queued signal of a stopped task, in order.

    `shared`: the queue of the thread group instead of the thread's own.
    """
    found: list[bytes] = []
    batch = 32
    block = ctypes.create_string_buffer(SIGINFO_SIZE * batch)
    while True:
        args = _PeekArgs(len(found), PEEKSIGINFO_SHARED if shared else 0, batch)
        count = _request(PEEKSIGINFO, tid, ctypes.addressof(args), ctypes.addressof(block))
        found += [block.raw[i * SIGINFO_SIZE : (i + 1) * SIGINFO_SIZE] for i in range(count)]
        if count < batch:
            return found


def signal_info(tid: int) -> bytes:
    """The siginfo (128 bytes) of the signal whose delivery has stopped the task; EINVAL in a group-stop."""
    block = ctypes.create_string_buffer(SIGINFO_SIZE)
    _request(GETSIGINFO, tid, None, ctypes.addressof(block))
    return block.raw


class RseqConfiguration(ctypes.Structure):
    """struct ptrace_rseq_configuration (linux/ptrace.h): where a thread has registered its rseq area, if anywhere."""

    _fields_ = (
        ("address", ctypes.c_uint64),
        ("size", ctypes.c_uint32),
        ("signature", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("_pad", ctypes.c_uint32),
    )
    if TYPE_CHECKING:
        address: int
        size: int
        signature: int
        flags: int


def rseq_configuration(tid: int) -> tuple[int, int, int]:
    """(address, size in bytes, signature) of a stopped thread's rseq area; address 0 when it has none.

    Kernels without rseq, or before 5.13, know nothing: (0, 0, 0).
    """
    conf = RseqConfiguration()
    try:
        _request(GET_RSEQ_CONFIGURATION, tid, ctypes.sizeof(conf), ctypes.addressof(conf))
    except OSError as error:
        if error.errno in (errno.EIO, errno.EINVAL):
            return 0, 0, 0
        raise
    return conf.address, conf.size, conf.signature


LOOKS = 200 if len(os.sched_getaffinity(0)) > 1 else 1
"""How often to look before it pays to sleep: on another processor a task stops within some 30 us, and to be woken takes as long."""


def wait(tid: int, *, block: bool = True) -> int | None:
    """The next wait status of the traced task `tid`, or None when `block` is false and nothing has happened for some 0.1 ms.

    ECHILD (`ChildProcessError`): it is neither our tracee nor our child any more.
    """
    for _ in range(LOOKS):
        pid, status = os.waitpid(tid, WALL | os.WNOHANG)
        if pid:
            return status
    return os.waitpid(tid, WALL)[1] if block else None


def news(tid: int) -> bool:
    """Whether a traced task has a wait status for us, which is then taken."""
    try:
        return os.waitpid(tid, WALL | os.WNOHANG)[0] == tid
    except ChildProcessError:
        return False


def traced(tid: int) -> bool:
    """Whether the task `tid` is the caller's tracee or child; whatever there is to be told of it can still be waited for."""
    try:
        os.waitid(os.P_PID, tid, WALL | os.WEXITED | os.WSTOPPED | os.WNOWAIT | os.WNOHANG)
        return True
    except ChildProcessError:
        return False


def wait_gone(tid: int) -> None:
    """Wait until the traced task `tid` has ended and been reaped."""
    while True:
        try:
            status = wait(tid)
        except ChildProcessError:
            return
        if status is None or not os.WIFSTOPPED(status):
            return

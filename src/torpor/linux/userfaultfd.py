"""Pages of a task that come when they are touched: userfaultfd(2), ioctl_userfaultfd(2).

A userfaultfd belongs to the address space of the task that has made it; whoever has the descriptor serves it. A thread that
touches a page which is not there, in a range that is registered, sleeps until the page has been put there, in a system call as
well. What changes the address space meanwhile is told as an event, and the thread that does it waits until that has been read;
from the change until then nothing can be put anywhere (`changing`).

Sources: Documentation/admin-guide/mm/userfaultfd.rst, linux/userfaultfd.h, fs/userfaultfd.c, mm/userfaultfd.c. The structures are
made of u64 on every architecture.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

from torpor.linux import libc
from torpor.linux.libc import PAGE

PAGEFAULT, FORK, REMAP, REMOVE, UNMAP = 0x12, 0x13, 0x14, 0x15, 0x16
"""What a message is about."""

FEATURES = {1: "EVENT_FORK", 2: "EVENT_REMAP", 3: "EVENT_REMOVE", 6: "EVENT_UNMAP", 8: "THREAD_ID"}
"""Bit -> name of what is asked for: all that can happen to an address space, and which thread has touched a page (Linux 4.14)."""
FLAGS = os.O_CLOEXEC | os.O_NONBLOCK

_API_VERSION, _MISSING = 0xAA, 1
_API = libc.ioctl_both("\xaa", 0x3F, 24)
_REGISTER = libc.ioctl_both("\xaa", 0, 32)
_WAKE = libc.ioctl_read("\xaa", 2, 16)
_COPY = libc.ioctl_both("\xaa", 3, 40)
_ZEROPAGE = libc.ioctl_both("\xaa", 4, 32)
_ioctl = libc.function("ioctl", ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, restype=ctypes.c_int)

_MESSAGE = struct.Struct("=B7x3Q")
_AT_ONCE = 64


class Message:
    """What has happened: PAGEFAULT at `a` of the thread `thread`, FORK of a child whose descriptor is `a`, REMAP of `c` bytes
    from `a` to `b`, REMOVE (madvise(2)) or UNMAP of `a` to `b`.
    """

    __slots__ = ("a", "b", "c", "kind", "thread")

    def __init__(self, kind: int, a: int, b: int = 0, c: int = 0, thread: int = 0) -> None:
        self.kind, self.a, self.b, self.c, self.thread = kind, a, b, c, thread

    def __repr__(self) -> str:
        return f"Message({self.kind:#x}, {self.a:#x}, {self.b:#x}, {self.c:#x})"


def create() -> int:
    """A userfaultfd for this process. PermissionError: it may not serve what the kernel itself touches; ENOSYS: there are none."""
    return libc.call("userfaultfd", FLAGS)


def enable(fd: int) -> None:
    """Ask for FEATURES, before anything else. EPERM: not without CAP_SYS_PTRACE; EINVAL: the kernel does not have all of them."""
    wanted = sum(1 << bit for bit in FEATURES)
    _call(fd, _API, (ctypes.c_uint64 * 3)(_API_VERSION, wanted, 0), "UFFDIO_API")


def offered(fd: int) -> int:
    """The mask of features that this kernel has; the descriptor is of no use for anything else."""
    argument = (ctypes.c_uint64 * 3)(_API_VERSION, 0, 0)
    _call(fd, _API, argument, "UFFDIO_API")
    return argument[1]


def register(fd: int, start: int, length: int) -> None:
    """Have the pages that are missing in the range asked for. Raises OSError: EINVAL, EBUSY for memory for which that cannot be."""
    _call(fd, _REGISTER, (ctypes.c_uint64 * 4)(start, length, _MISSING, 0), "UFFDIO_REGISTER")


def copy(fd: int, target: int, source: int, length: int) -> tuple[int, int]:
    """Put `length` bytes of this process's memory at `source` there as pages at `target`, and wake who waits for them.

    (bytes done, errno or 0). When some are done and not all, the errno is EAGAIN: go on behind them. When none is: EAGAIN, the
    address space is being changed; EEXIST, the first page is there; ENOENT, the range is not registered, or not of one mapping;
    ESRCH, the address space is gone.
    """
    argument = (ctypes.c_int64 * 5)(target, source, length, 0, 0)
    if _ioctl(fd, _COPY, ctypes.addressof(argument)) == 0:
        return length, 0
    return max(argument[4], 0), ctypes.get_errno()


def zero(fd: int, target: int, length: int) -> tuple[int, int]:
    """The same with pages of zeros."""
    argument = (ctypes.c_int64 * 4)(target, length, 0, 0)
    if _ioctl(fd, _ZEROPAGE, ctypes.addressof(argument)) == 0:
        return length, 0
    return max(argument[3], 0), ctypes.get_errno()


def wake(fd: int, start: int, length: int) -> None:
    """Let those who wait for a page in the range look again."""
    _ioctl(fd, _WAKE, ctypes.addressof((ctypes.c_uint64 * 2)(start, length)))


def wake_all(fd: int) -> None:
    """Let everyone who waits for a page look again, and so ask again."""
    start = 1 << 20
    for bits in range(62, 28, -1):  # a range that goes beyond the end of the address space is refused
        for size in (3 << bits - 1, 1 << bits):
            if _ioctl(fd, _WAKE, ctypes.addressof((ctypes.c_uint64 * 2)(start, size - 2 * start))) == 0:
                return


def changing(fd: int) -> bool:
    """Whether a change is under way whose event has not been read yet, or not even been sent.

    A copy of nothing is an error, EINVAL; but that is looked at after whether anything may be copied at all.
    """
    return copy(fd, 0, 0, 0)[1] == errno.EAGAIN


def gone(fd: int) -> bool:
    """Whether the address space has ended."""
    return copy(fd, 1 << 20, 0, PAGE)[1] == errno.ESRCH  # from address 0 nothing can be copied


def read(fd: int) -> list[Message]:
    """What has happened, in the order in which it was sent; empty when nothing has."""
    try:
        data = os.read(fd, _AT_ONCE * _MESSAGE.size)
    except BlockingIOError:
        return []
    return [_message(*fields) for fields in _MESSAGE.iter_unpack(data)]


def _message(kind: int, a: int, b: int, c: int) -> Message:
    if kind == PAGEFAULT:  # flags, address, and the thread in the first four bytes of the last
        return Message(kind, b, thread=_low(c))
    if kind == FORK:
        return Message(kind, _low(a))
    return Message(kind, a, b, c)


def _low(value: int) -> int:
    """The first four of eight bytes as they lie in memory."""
    return int.from_bytes(value.to_bytes(8, sys.byteorder)[:4], sys.byteorder)


def _call(fd: int, number: int, argument: ctypes.Array[ctypes.c_uint64], name: str) -> None:
    if _ioctl(fd, number, ctypes.addressof(argument)) == -1:
        raise libc.failure(name)

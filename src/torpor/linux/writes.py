"""Which pages of a process have been written: userfaultfd(2) with WP_ASYNC, and PAGEMAP_SCAN (both Linux 6.7).

The descriptor of the process's userfaultfd lives here, not there. A range that is registered and armed is write-protected; the
first write to a page lifts that, within the kernel, and the process loses a microsecond. PAGEMAP_SCAN tells which pages are not
protected, and protects them again in the same step. When the last descriptor is closed all is as it was.

What a process moves (mremap(2)) or maps anew is not registered, which `since` tells by EPERM. Nor are its neighbours, where a
moved mapping becomes one with them: there pages are left that look protected and are not, until `begin` takes the range up again.

Sources: ioctl_userfaultfd(2), Documentation/admin-guide/mm/pagemap.rst, fs/proc/task_mmu.c.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct

from torpor.linux import libc, pagemap
from torpor.linux.libc import PAGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

USER_MODE_ONLY = 1
FLAGS = os.O_CLOEXEC | USER_MODE_ONLY
"""For userfaultfd(2). USER_MODE_ONLY asks for less, and so needs no right; writes of the kernel's are seen all the same."""

_API = libc.ioctl_both("\xaa", 0x3F, 24)
_REGISTER = libc.ioctl_both("\xaa", 0, 32)
_UNREGISTER = libc.ioctl_read("\xaa", 1, 16)
_WRITEPROTECT = libc.ioctl_both("\xaa", 6, 24)
_VERSION, _WP_ASYNC, _MODE_WP, _PROTECT = 0xAA, 1 << 15, 2, 1

_AT_ONCE = 64 << 20
"""Bytes whose protection is taken back at a time: 1 ms, in which the process can have no page and no mapping."""

_told: bool | None = None


def enable(fd: int) -> None:
    """Begin: before anything else. Raises OSError (EINVAL) when the kernel is older than 6.7."""
    fcntl.ioctl(fd, _API, bytearray(struct.pack("=QQQ", _VERSION, _WP_ASYNC, 0)))


def begin(fd: int, pagemap_fd: int, start: int, end: int) -> None:
    """Watch a range, from now on.

    EINVAL: not this kind of memory; EBUSY: another userfaultfd has it; ESRCH or ENOMEM (`gone`): the address space has ended.
    """
    fcntl.ioctl(fd, _REGISTER, bytearray(struct.pack("=QQQQ", start, end - start, _MODE_WP, 0)))
    for low, length in pagemap.protected_runs(pagemap_fd, start, end):
        fcntl.ioctl(fd, _WRITEPROTECT, bytearray(struct.pack("=QQQ", low, length, _PROTECT)))
    for _ in since(pagemap_fd, start, end):
        pass


def end(fd: int, start: int, end: int) -> None:
    """Watch a range no longer. (To close the descriptor does it as well, for everything at once, and the process waits for it.)"""
    for low in range(start, end, _AT_ONCE):
        try:
            fcntl.ioctl(fd, _UNREGISTER, bytearray(struct.pack("=QQ", low, min(_AT_ONCE, end - low))))
        except OSError as error:
            if gone(error):
                return
            # Else there is nothing here any more, or nothing that was watched.


def since(pagemap_fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The runs (address, bytes) of pages that have been written since the last time, ascending. From now on they count anew.

    To be read to its end. PermissionError: something of the range is not registered.
    """
    return pagemap.written_runs(pagemap_fd, start, end)


def size(pagemap_fd: int, start: int, end: int) -> int:
    """How many bytes `since` would tell of; they do not count anew. PermissionError as there."""
    return sum(length for _, length in pagemap.written_runs(pagemap_fd, start, end, protect=False))


def can_be_told() -> bool:
    """Whether this kernel can tell. Tried out once, on memory of our own."""
    global _told
    if _told is None:
        _told = pagemap.has_scan() and _try_out()
    return _told and not pagemap.FORCE_FALLBACK


def _try_out() -> bool:
    try:
        fd = libc.call("userfaultfd", FLAGS)
    except OSError:
        return False
    pages = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enable(fd)
        with mmap.mmap(-1, 2 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as place:
            place[0] = place[PAGE] = 1
            anchor = ctypes.c_char.from_buffer(place)
            start = ctypes.addressof(anchor)
            begin(fd, pages, start, start + 2 * PAGE)
            place[0] = 2
            seen = list(since(pages, start, start + 2 * PAGE))
            del anchor
            return seen == [(start, PAGE)]
    except OSError:
        return False
    finally:
        os.close(pages)
        os.close(fd)


def gone(error: OSError) -> bool:
    """Whether an error of `begin` says that the address space has ended."""
    return error.errno in (errno.ESRCH, errno.ENOMEM)

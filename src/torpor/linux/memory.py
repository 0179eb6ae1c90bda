"""A task's memory from outside: process_vm_readv(2), process_vm_writev(2) and /proc/PID/mem.

process_vm_* is the fast way (one copy, many pages) and obeys the mapping's protection; /proc/PID/mem reads and writes
through it (FOLL_FORCE), as a debugger does, so it reaches PROT_NONE ranges and read-only code.
"""

from __future__ import annotations

import ctypes
import os

from torpor.linux import libc
from torpor.linux.libc import PAGE, IoVec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_vm_args = (ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong)
_readv = libc.function("process_vm_readv", *_vm_args, restype=ctypes.c_ssize_t)
_writev = libc.function("process_vm_writev", *_vm_args, restype=ctypes.c_ssize_t)

_memcmp = libc.function("memcmp", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, restype=ctypes.c_int)

IOV_MAX = 1024


def read(pid: int, address: int, length: int) -> bytes:
    """`length` bytes at `address`. Raises OSError (EFAULT when not all of it is mapped and readable)."""
    buffer = ctypes.create_string_buffer(length)
    read_into(pid, [(address, length)], ctypes.addressof(buffer), length)
    return buffer.raw


def read_into(pid: int, runs: list[tuple[int, int]], target: int, length: int) -> None:
    """Gather `runs` of (address, bytes), `length` bytes in all, into this process's memory at the address `target`.

    At most IOV_MAX runs. Raises OSError; EFAULT when anything of it cannot be read.
    """
    local = IoVec(target, length)
    remote = (IoVec * len(runs))(*[IoVec(*run) for run in runs])
    got: int = _readv(pid, ctypes.addressof(local), 1, ctypes.addressof(remote), len(runs), 0)
    if got == -1:
        raise libc.failure(f"process_vm_readv({pid}, {runs[0][0]:#x})")
    if got != length:
        raise OSError(14, f"process_vm_readv({pid}, {runs[0][0]:#x}): {got} of {length} bytes")


def scatter(pid: int, pieces: list[tuple[int, int, int]]) -> None:
    """Copy `pieces` of (address here, address in process `pid`, bytes), at most IOV_MAX of them, to where it may write itself.

    Raises OSError.
    """
    length = sum(size for _, _, size in pieces)
    local = (IoVec * len(pieces))(*[IoVec(here, size) for here, _, size in pieces])
    remote = (IoVec * len(pieces))(*[IoVec(there, size) for _, there, size in pieces])
    got: int = _writev(pid, ctypes.addressof(local), len(pieces), ctypes.addressof(remote), len(pieces), 0)
    if got == -1:
        raise libc.failure(f"process_vm_writev({pid}, {pieces[0][1]:#x})")
    if got != length:
        raise OSError(14, f"process_vm_writev({pid}, {pieces[0][1]:#x}): {got} of {length} bytes")


def differing(a: memoryview, b: memoryview) -> Iterator[tuple[int, int]]:
    """The runs (offset, bytes) of pages in which two equally long, writable views differ, ascending and never adjacent."""
    here, there = (ctypes.addressof(ctypes.c_char.from_buffer(view)) for view in (a, b))
    low = high = 0
    parts = [(0, len(a))]
    while parts:
        at, length = parts.pop()
        if _memcmp(here + at, there + at, length) == 0:
            continue
        if length > PAGE:
            half = length // 2 + PAGE - 1 & -PAGE
            parts += [(at + half, length - half), (at, half)]
            continue
        if at > high or high == low:
            if high > low:
                yield low, high - low
            low = at
        high = at + length
    if high > low:
        yield low, high - low


def open_mem(pid: int) -> int:
    """A descriptor of /proc/PID/mem for os.pread and os.pwrite, which go through page protection."""
    return os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)


_mmap = libc.function(
    "mmap", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long, restype=ctypes.c_void_p
)
_munmap = libc.function("munmap", ctypes.c_void_p, ctypes.c_size_t, restype=ctypes.c_int)
_PROT_READ_WRITE, _MAP_PRIVATE_ANONYMOUS = 3, 0x22
_LOW = range(0x10000000, 0x70000000, 0x2000000)


class Room:
    """Anonymous memory of this process, at an address that a 32-bit program could have as well if there is such a one free.

    (UFFDIO_COPY takes nothing from an address that the target could not have; mm/userfaultfd.c, validate_unaligned_range().)
    """

    __slots__ = ("address", "view")

    def __init__(self, length: int) -> None:
        """`length` in bytes. Raises OSError."""
        for hint in _LOW:
            address = _mmap(hint, length or 1, _PROT_READ_WRITE, _MAP_PRIVATE_ANONYMOUS, -1, 0)
            if address is None or address == ctypes.c_void_p(-1).value:
                raise libc.failure(f"mmap of {length} bytes")
            if address + length <= 1 << 31 or hint == _LOW[-1]:
                break
            _munmap(address, length or 1)
        self.address: int = address
        self.view = memoryview((ctypes.c_char * length).from_address(address)).cast("B")

    def free(self) -> None:
        """Give it back; nobody may use it any more."""
        _munmap(self.address, len(self.view) or 1)

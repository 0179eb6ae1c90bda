"""Which pages of a task hold data of their own: PAGEMAP_SCAN (6.7) and /proc/PID/pagemap.

    fd = pagemap.open(pid)
    for address, length in pagemap.present_runs(fd, start, end, file_backed_private=False): ...

`present_runs()` yields what must be saved of a mapping: pages that are in memory or in swap, and for a private file
mapping only those that were copied by a write. Beware of *shared* mappings: a page of shared memory or of a file that
another process has written, or that was unmapped or swapped out here, is not in this task's page tables: what such a
mapping holds is known to its file (lseek SEEK_DATA), not to pagemap.

The two ways give the same pages but for these:
- PAGEMAP_SCAN leaves the kernel's zero page out (a page read but never written). pagemap tells it from data only by its
  physical number, so the fallback yields it as well: it reads as zeros. The huge zero page is yielded before 6.17, too.
- Guard regions (MADV_GUARD_INSTALL, 6.13; glibc uses them for thread stacks) hold nothing and cannot be read
  (EFAULT). Both ways leave them out from 6.15 on, which says which ones they are (`guard_runs()`); 6.13 and 6.14 call
  them swapped.
- A page without content that a userfaultfd has write-protected (WP_UNPOPULATED) counts as swapped in both; it reads
  as zeros.

Empty space: PAGEMAP_SCAN steps over page tables that are not there, a TiB of PROT_NONE costs it microseconds. pagemap
has 8 bytes for each page, there or not: 2 GiB of zeros for that TiB. So for ranges beyond `SPARSE` bytes the fallback
first asks smaps, once, which mappings in it have any page in memory or swap, and reads for those only. A mapping that
is huge, and sparsely populated (the 16 TiB shadow of AddressSanitizer), still costs the fallback 1.5 s per TiB.

The tasks should be stopped: a list of pages is old when they run. A process that has ended gives
ProcessLookupError.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sys

from torpor.linux import procfs
from torpor.linux.libc import PAGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Runs = list[tuple[int, int]]

FORCE_FALLBACK = False
"""Set by tests: behave as on a kernel without PAGEMAP_SCAN."""

SPARSE = 16 << 30
"""Bytes. A range longer than this is worth a look into smaps before its pagemap is read (which takes 1 ms per GiB)."""

_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg), the same number under all of the kernel's ioctl encodings
_IS_FILE, _IS_PRESENT, _IS_SWAPPED, _IS_PFNZERO, _IS_GUARD = 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 8
_IS_WRITTEN, _WP_MATCHING, _CHECK_WPASYNC = 1 << 1, 1, 2
_VECTOR = 512  # regions per call; the kernel gathers no more than that at a time itself

# One pagemap entry (Documentation/admin-guide/mm/pagemap.rst): present, swapped, file or shared, guard; and the PFN.
ENTRY = 8
"""Bytes of an entry of pagemap, which is for a page."""
_PRESENT, _SWAPPED, _FILE, _GUARD = 1 << 63, 1 << 62, 1 << 61, 1 << 58
_PFN = (1 << 55) - 1
_CHUNK = 1 << 20  # bytes of pagemap read at a time: 512 MiB of 4 KiB pages

_TOP = 7 if sys.byteorder == "little" else 0  # the byte of an entry with bits 56 to 63
_SIXTH = 6 if sys.byteorder == "little" else 1  # the one with bits 48 to 55


def _table(present: int, absent: int) -> bytes:
    """A translation of an entry's top byte: `present` where any bit of it is set and none of `absent` is, else 0."""
    return bytes(int(bool(byte << 56 & present) and not byte << 56 & absent) for byte in range(256))


_ANY_TABLE = _table(_PRESENT | _SWAPPED, _GUARD)
_OWN_TABLE = _table(_PRESENT | _SWAPPED, _GUARD | _FILE)
_GUARD_TABLE = _table(_GUARD, 0)


class _ScanArg(ctypes.Structure):
    """struct pm_scan_arg (linux/fs.h): 96 bytes of u64."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "size", "flags", "start", "end", "walk_end", "vec", "vec_len", "max_pages", "category_inverted",
            "category_mask", "category_anyof_mask", "return_mask",
        )
    )  # fmt: skip


_guard_category: int | None = None
_has_scan: bool | None = None


def open(pid: int) -> int:
    """A descriptor of /proc/PID/pagemap. It stays with this address space, also past an execve(2) of the task."""
    return os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)


def has_scan() -> bool:
    """Whether the kernel has PAGEMAP_SCAN. Asked once, of this process's own memory."""
    global _has_scan, _guard_category
    if FORCE_FALLBACK:
        return False
    if _has_scan is None:
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _has_scan, _guard_category = False, 0
            for guard in (_IS_GUARD, 0):
                arg = _ScanArg(size=ctypes.sizeof(_ScanArg), end=PAGE, category_inverted=guard, category_mask=guard)
                arg.category_anyof_mask = arg.return_mask = _IS_PRESENT
                try:
                    fcntl.ioctl(fd, _SCAN, arg)
                except OSError:
                    continue
                _has_scan, _guard_category = True, guard
                break
        finally:
            os.close(fd)
    return _has_scan


def present_runs(
    pagemap_fd: int, start: int, end: int, *, file_backed_private: bool = False, guards: Runs | None = None
) -> Iterator[tuple[int, int]]:
    """The runs (address, bytes) between `start` and `end` of pages that hold data of their own: ascending, never
    adjacent.

    `file_backed_private`: leave out pages that are still the file's. `guards` is given the runs of guard pages, as `guard_runs`
    tells them, which are found on the way.
    """
    if has_scan():
        unwanted = _IS_PFNZERO | (_IS_FILE if file_backed_private else 0)
        wanted = _IS_PRESENT | _IS_SWAPPED
        if guards is None:
            unwanted |= _guard_category or 0
        else:
            wanted |= _guard_category or 0
        yield from _scan(pagemap_fd, start, end, unwanted, unwanted, wanted, guards=guards if _guard_category else None)
        return
    if guards is not None:
        guards += guard_runs(pagemap_fd, start, end)
    table = _OWN_TABLE if file_backed_private else _ANY_TABLE
    for low, high in _populated(pagemap_fd, start, end):
        yield from _read_runs(pagemap_fd, low, high, table)


def guard_runs(pagemap_fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The runs (address, bytes) of guard pages (MADV_GUARD_INSTALL). Kernels before 6.15 tell of none.

    The fallback reads all of pagemap for it, 1.5 ms per GiB: no size in smaps tells where guard pages are.
    """
    if has_scan():
        if _guard_category:
            yield from _scan(pagemap_fd, start, end, 0, _IS_GUARD, 0)
        return
    yield from _read_runs(pagemap_fd, start, end, _GUARD_TABLE)


def written_runs(pagemap_fd: int, start: int, end: int, *, protect: bool = True) -> Iterator[tuple[int, int]]:
    """The runs (address, bytes) of pages in memory or in swap that are not write-protected by a userfaultfd.

    They are from now on, if they are to `protect`. EPERM: something of the range is not registered with one that lifts the
    protection by itself (writes.py).
    """
    flags = _CHECK_WPASYNC | (_WP_MATCHING if protect else 0)
    yield from _scan(pagemap_fd, start, end, 0, _IS_WRITTEN, _IS_PRESENT | _IS_SWAPPED, flags)


def protected_runs(pagemap_fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The runs (address, bytes) of pages in memory or in swap that have the mark of a userfaultfd's write protection."""
    yield from _scan(pagemap_fd, start, end, _IS_WRITTEN, _IS_WRITTEN, _IS_PRESENT | _IS_SWAPPED)


def _scan(
    fd: int, start: int, end: int, inverted: int, mask: int, anyof: int, flags: int = 0, guards: Runs | None = None
) -> Iterator[tuple[int, int]]:
    """The runs of pages that match; those of guard pages go to `guards`, if that is given."""
    regions = (ctypes.c_uint64 * (3 * _VECTOR))()  # struct page_region: start, end, categories
    arg = _ScanArg(
        size=ctypes.sizeof(_ScanArg), start=start, end=end, vec=ctypes.addressof(regions), vec_len=_VECTOR,
        category_inverted=inverted, category_mask=mask, category_anyof_mask=anyof, flags=flags,
    )  # fmt: skip
    if guards is not None:
        arg.return_mask = _IS_GUARD
    # Of no other category: then regions end only where the pages do, not where present becomes swapped.
    low = high = start
    while arg.start < end:
        count = fcntl.ioctl(fd, _SCAN, arg)
        found = regions[: 3 * count]
        for i in range(0, 3 * count, 3):
            if guards is not None and found[i + 2]:
                first, length = guards.pop() if guards and sum(guards[-1]) == found[i] else (found[i], 0)
                guards.append((first, length + found[i + 1] - found[i]))
                continue
            if found[i] != high:
                if high > low:
                    yield low, high - low
                low = found[i]
            high = found[i + 1]
        # The walk stops early when the vector is full; where it got to is walk_end, not the last region's end.
        arg.start = arg.walk_end
    if high > low:
        yield low, high - low


def _populated(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of a range that are worth reading: all of it, or, when it is huge, the mappings with pages in them."""
    if end - start <= SPARSE:
        yield start, end
        return
    link = os.readlink(f"/proc/self/fd/{fd}")
    try:
        mappings = procfs.smaps(int(link.split("/")[-2]))
    except (OSError, ValueError):  # not ours to read, or /proc is mounted elsewhere
        yield start, end
        return
    for mapping in mappings:
        # Rss does not count huge pages of hugetlbfs ("ht").
        low, high = max(start, mapping.start), min(end, mapping.end)
        if low < high and (mapping.rss_kb or mapping.swap_kb or "ht" in mapping.flags):
            yield low, high


def _entries(fd: int, start: int, end: int) -> bytes:
    data = os.pread(fd, (end - start) // PAGE * 8, start // PAGE * 8)
    if not data:
        raise ProcessLookupError(errno.ESRCH, f"pagemap: the process of {start:#x}-{end:#x} has ended")
    return data


def _read_runs(fd: int, start: int, end: int, table: bytes) -> Iterator[tuple[int, int]]:
    low = high = at = start
    while at < end:
        data = _entries(fd, at, min(end, at + _CHUNK // 8 * PAGE))
        # Everything asked about is in each entry's top byte: slicing, translating and finding all run in C.
        marks = data[_TOP::8].translate(table)
        first = marks.find(1)
        while first >= 0:
            last = marks.find(0, first)
            if last < 0:
                last = len(marks)
            if at + first * PAGE != high:
                if high > low:
                    yield low, high - low
                low = at + first * PAGE
            high = at + last * PAGE
            first = marks.find(1, last)
        at += len(data) // 8 * PAGE
    if high > low:
        yield low, high - low


def pfns(pagemap_fd: int, start: int, end: int) -> bytes | None:
    """The raw pagemap entries of a range, 8 bytes a page in the machine's byte order, for same_frames().

    None when the kernel hides the physical page numbers: whoever opened `pagemap_fd` had no CAP_SYS_ADMIN.
    """
    pieces: list[bytes] = []
    at = start
    while at < end:
        data = _entries(pagemap_fd, at, min(end, at + _CHUNK // 8 * PAGE))
        first = data[_TOP::8].translate(_PRESENT_TABLE).find(1)
        if first >= 0 and not int.from_bytes(data[8 * first : 8 * first + 8], sys.byteorder) & _PFN:
            return None
        pieces.append(data)
        at += len(data) // 8 * PAGE
    return b"".join(pieces)


_PRESENT_TABLE = _table(_PRESENT, 0)
# Two entries are compared after everything but the PFN has been taken out of them: the top byte becomes 0x80 for a
# present page, and something that never equals the other side for any other.
_KEEP_LEFT = bytes(0x80 if byte & 0x80 else 1 for byte in range(256))
_KEEP_RIGHT = bytes(0x80 if byte & 0x80 else 2 for byte in range(256))
_KEEP_SIXTH = bytes(byte & 0x7F for byte in range(256))  # bit 55 is soft-dirty
_BLOCK = 512  # entries compared at once


def same_frames(a: bytes, b: bytes) -> Iterator[tuple[int, int]]:
    """The runs (first page's index, pages) where two results of pfns() show one and the same physical page, in both.

    That is what a fork leaves: pages of parent and child that neither has written since. Zero pages are among them.
    Nothing of both processes may run in between. 3 ms per GiB of equal memory at most, 80 where equal and different
    pages alternate.
    """
    if len(a) != len(b):
        raise ValueError(f"same_frames: {len(a) // 8} and {len(b) // 8} pages")
    if a and a == b and a[_TOP::8].translate(_PRESENT_TABLE).find(0) < 0:
        yield 0, len(a) // 8
        return
    left, right = bytearray(a), bytearray(b)
    for side, keep in ((left, _KEEP_LEFT), (right, _KEEP_RIGHT)):
        side[_TOP::8] = side[_TOP::8].translate(keep)
        side[_SIXTH::8] = side[_SIXTH::8].translate(_KEEP_SIXTH)
    pages = len(left) // 8
    first = -1  # of the run that is open
    for at in range(0, pages, _BLOCK):
        until = min(at + _BLOCK, pages)
        mine, other = left[8 * at : 8 * until], right[8 * at : 8 * until]
        if mine == other:
            if first < 0:
                first = at
            continue
        equal = [x == y for x, y in zip(memoryview(mine).cast("Q"), memoryview(other).cast("Q"), strict=True)]
        marks = bytes(equal)
        position = 0
        while position < len(marks):
            if first < 0:
                position = marks.find(1, position)
                if position < 0:
                    break
                first = at + position
            last = marks.find(0, position)
            if last < 0:
                break
            if at + last > first:
                yield first, at + last - first
            first, position = -1, last
    if first >= 0:
        yield first, pages - first

"""Pages that fork left shared between parent and child: written once, and shared again after a restart.

Two ways were weighed: to write every process's pages and to merge equal ones afterwards (KSM, or a table of hashes), or to make the
child by fork from its finished parent and to change in it only what differs. The second won: it is how the pages came to be shared,
it costs nothing to keep, and what parents and children share by CLONE_FILES and CLONE_FS comes with it.

Whether a page is shared is seen by its frame number, where the kernel shows it (root), else by its contents.
"""

from __future__ import annotations

import os
from bisect import bisect_right

from torpor.linux import pagemap
from torpor.linux.libc import PAGE
from torpor.objects.memory import LOCKED, LOCKONFAULT, attributes, has_file, special

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torpor.linux.procfs import Mapping

    Runs = list[tuple[Mapping, int, int]]

_WINDOW = 1 << 20
_TOGETHER = 4 << 20
"""Bytes of address space within which small runs of pages are looked at together: to ask the kernel takes as long as 1 MiB."""
_REMEMBERED = 256 << 20
"""Bytes of pages of a process up to which it is remembered where they are: 8 bytes for each page."""


class Heritage:
    """What a child still has from its parent: `own` are the runs of pages it has not, `dropped` those that only the parent has."""

    __slots__ = ("dropped", "own", "shared")

    def __init__(self, own: Runs, dropped: list[tuple[int, int]], shared: int) -> None:
        self.own, self.dropped, self.shared = own, dropped, shared


def key(mapping: Mapping) -> tuple[object, ...]:
    """Equal for mappings of parent and child that fork has left alike: just those that a restart takes for alike (memory.fill)."""
    file = (mapping.path, mapping.inode, mapping.offset) if has_file(mapping) else ()
    return mapping.start, mapping.end, mapping.perms, file, attributes(mapping) & ~(LOCKED | LOCKONFAULT)


class Layout:
    """What counts of a process's mappings when it is compared with its relatives: it can be made before the stop."""

    __slots__ = ("_kernel", "_keys", "_survivors")

    def __init__(self, mappings: Sequence[Mapping]) -> None:
        keys = [(m, key(m)) for m in mappings]
        self._keys = {found for _, found in keys}
        self._kernel = [(m.path, m.start, m.end) for m in mappings if special(m)]
        self._survivors = [
            (found, (m.start, m.end)) for m, found in keys if not m.shared and not special(m) and m.flags.isdisjoint(("dc", "wf"))
        ]

    def related(self, parent: Layout) -> bool:
        """Whether the process can have been forked from the parent without an execve since: the kernel's mappings are the same."""
        return self._kernel == parent._kernel

    def kept(self, parent: Layout) -> set[tuple[int, int]]:
        """(start, end) of the private mappings that survive a fork and are alike in the parent."""
        return {place for found, place in self._survivors if found in parent._keys}


class Parent:
    """A process that its children are compared with, and `runs`, its pages."""

    __slots__ = ("_frames", "pid", "runs")

    def __init__(self, pid: int, runs: Runs) -> None:
        self.pid, self.runs = pid, runs
        few = sum(length for _, _, length in runs) <= _REMEMBERED
        self._frames: dict[tuple[int, int], bytes | None] | None = {} if few else None

    def frames(self, fd: int, start: int, end: int) -> bytes | None:
        """Its pagemap.pfns, remembered, for it can have many children. `fd`: its pagemap."""
        if self._frames is None:
            return pagemap.pfns(fd, start, end)
        if (start, end) not in self._frames:
            self._frames[start, end] = pagemap.pfns(fd, start, end)
        return self._frames[start, end]


class _Both:
    """The pages of a parent and of the process `child`, one window after the other; `runs` are to be looked at, ascending.

    `mems`: the /proc/PID/mem of parent and child.
    """

    __slots__ = ("_end", "_left", "_mems", "_pagemaps", "_parent", "_right", "_start", "_windows")

    def __init__(self, parent: Parent, child: int, runs: Sequence[tuple[int, int]], mems: tuple[int, int]) -> None:
        self._parent, self._mems, self._windows = parent, mems, _windows(runs)
        self._start = self._end = 0
        self._left: bytes | None = None
        self._right: bytes | None = None
        self._pagemaps = pagemap.open(parent.pid), pagemap.open(child)

    def close(self) -> None:
        for fd in self._pagemaps:
            os.close(fd)

    def same(self, address: int, length: int) -> Iterator[tuple[int, int]]:
        """The runs (address, bytes) of pages that both share, in a part of one of the runs; the parts come in ascending order."""
        while address >= self._end:
            self._start, self._end = next(self._windows)
            self._left = self._parent.frames(self._pagemaps[0], self._start, self._end)
            self._right = pagemap.pfns(self._pagemaps[1], self._start, self._end)
        if self._left is None or self._right is None:  # the kernel hides frame numbers (no CAP_SYS_ADMIN)
            yield from _same_by_contents(self._mems, address, length)
            return
        low, high = ((at - self._start) // PAGE * pagemap.ENTRY for at in (address, address + length))
        for first, count in pagemap.same_frames(self._left[low:high], self._right[low:high]):
            yield address + first * PAGE, count * PAGE


def _windows(runs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """(start, end) of what is looked at together: a large run, or small ones that lie close to each other."""
    low = high = 0
    for address, length in runs:
        if high and address + length - low > _TOGETHER:
            yield low, high
            high = 0
        low, high = low if high else address, address + length
    if high:
        yield low, high


def compare(parent: Parent, child: int, child_runs: Runs, alike: set[tuple[int, int]], mems: tuple[int, int]) -> Heritage:
    """What of the pages of process `child` is still the parent's. `alike`: the mappings that both have (`Layout.kept`).

    `mems`: the /proc/PID/mem of parent and child.
    """
    theirs = [(address, length) for m, address, length in parent.runs if (m.start, m.end) in alike]
    mine = [(address, length) for m, address, length in child_runs if (m.start, m.end) in alike]
    whole = set(theirs)
    own: Runs = []
    shared = 0
    both = _Both(parent, child, mine, mems)
    try:
        for mapping, address, length in child_runs:
            if (mapping.start, mapping.end) not in alike:
                own.append((mapping, address, length))
                continue
            run, at = (address, length), address
            for start, size in [run] if run in whole else _overlaps(address, length, theirs):
                for first, count in both.same(start, size):
                    if first > at:
                        own.append((mapping, at, first - at))
                    at = first + count
                    shared += count
            if at < address + length:
                own.append((mapping, at, address + length - at))
    finally:
        both.close()
    return Heritage(own, list(_without(theirs, mine)) if mine != theirs else [], shared)


def _overlaps(address: int, length: int, runs: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The parts of `address`, `length` that lie in one of the ascending `runs`."""
    index = max(0, bisect_right(runs, (address, 1 << 63)) - 1)
    end = address + length
    while index < len(runs) and runs[index][0] < end:
        start = max(address, runs[index][0])
        stop = min(end, runs[index][0] + runs[index][1])
        if start < stop:
            yield start, stop - start
        index += 1


def _without(runs: list[tuple[int, int]], others: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What of the ascending `runs` is in none of the ascending `others`."""
    for address, length in runs:
        at = address
        for start, size in _overlaps(address, length, others):
            if start > at:
                yield at, start - at
            at = start + size
        if at < address + length:
            yield at, address + length - at


def _same_by_contents(mems: tuple[int, int], address: int, length: int) -> Iterator[tuple[int, int]]:
    """The runs of pages that hold the same bytes in both processes, and are shared no less for having been read."""
    for at in range(address, address + length, _WINDOW):
        size = min(_WINDOW, address + length - at)
        try:
            left, right = (memoryview(os.pread(mem, size, at)) for mem in mems)
        except OSError:  # not readable: kept apart
            continue
        if left == right:
            yield at, len(left)
        else:
            for page in range(0, min(len(left), len(right)), PAGE):
                if left[page : page + PAGE] == right[page : page + PAGE]:
                    yield at + page, PAGE

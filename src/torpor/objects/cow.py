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
    from collections.abc import Container, Iterator, Sequence

    from torpor.linux.procfs import Mapping

    Runs = list[tuple[Mapping, int, int]]

_WINDOW = 1 << 20
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


def related(parent: Sequence[Mapping], child: Sequence[Mapping]) -> bool:
    """Whether the child can have been forked from the parent without an execve since: the kernel's mappings are the same."""
    places = [[(m.path, m.start, m.end) for m in mappings if special(m)] for mappings in (parent, child)]
    return places[0] == places[1]


def kept(theirs: Container[tuple[object, ...]], child: Sequence[Mapping]) -> set[tuple[int, int]]:
    """(start, end) of the private mappings of a child that survive a fork and are alike in its parent, whose keys are `theirs`."""
    return {(m.start, m.end) for m in child if not m.shared and not special(m) and not m.flags & {"dc", "wf"} and key(m) in theirs}


class Parent:
    """A process and what its children are compared with: `runs`, its pages, and the `keys` of its mappings."""

    __slots__ = ("_frames", "keys", "pid", "runs")

    def __init__(self, pid: int, mappings: Sequence[Mapping], runs: Runs) -> None:
        self.pid, self.runs = pid, runs
        self.keys = {key(mapping) for mapping in mappings}
        few = sum(length for _, _, length in runs) <= _REMEMBERED
        self._frames: dict[tuple[int, int], bytes | None] | None = {} if few else None

    def frames(self, fd: int, start: int, length: int) -> bytes | None:
        """Its pagemap.pfns, remembered, for it can have many children. `fd`: its pagemap."""
        if self._frames is None:
            return pagemap.pfns(fd, start, start + length)
        if (start, length) not in self._frames:
            self._frames[start, length] = pagemap.pfns(fd, start, start + length)
        return self._frames[start, length]


def compare(parent: Parent, child: int, child_runs: Runs, alike: set[tuple[int, int]], mems: tuple[int, int]) -> Heritage:
    """What of the pages of process `child` is still the parent's. `alike`: the mappings that both have (`kept`).

    `mems`: the /proc/PID/mem of parent and child.
    """
    theirs = [(address, length) for m, address, length in parent.runs if (m.start, m.end) in alike]
    whole = set(theirs)
    own: Runs = []
    shared = 0
    mine: list[tuple[int, int]] = []
    pagemaps = pagemap.open(parent.pid), pagemap.open(child)
    try:
        for mapping, address, length in child_runs:
            run = address, length
            if (mapping.start, mapping.end) not in alike:
                own.append((mapping, address, length))
                continue
            mine.append(run)
            at = address
            for start, size in [run] if run in whole else _overlaps(address, length, theirs):
                for first, count in _same(parent, pagemaps, mems, start, size):
                    if first > at:
                        own.append((mapping, at, first - at))
                    at = first + count
                    shared += count
            if at < address + length:
                own.append((mapping, at, address + length - at))
    finally:
        for fd in pagemaps:
            os.close(fd)
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


def _same(
    parent: Parent, pagemaps: tuple[int, int], mems: tuple[int, int], address: int, length: int
) -> Iterator[tuple[int, int]]:
    """The runs (address, bytes) of pages that two processes share."""
    left, right = parent.frames(pagemaps[0], address, length), pagemap.pfns(pagemaps[1], address, address + length)
    if left is None or right is None:  # the kernel hides frame numbers (no CAP_SYS_ADMIN)
        yield from _same_by_contents(mems, address, length)
        return
    for first, count in pagemap.same_frames(left, right):
        yield address + first * PAGE, count * PAGE


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

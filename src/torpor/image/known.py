"""Memory of a process that has been saved already: in an earlier image (parent.py), or in the one being written (ahead.py)."""

from __future__ import annotations

from bisect import bisect_right

from .format import laid_out, parts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from .chain import Source

    Ranges = list[tuple[int, int]]
    Place = tuple[int, int, "Source | Saved | None", int]


class Saved:
    """A chunk of the image that is being written, by its number."""

    __slots__ = ("chunk",)
    image = None
    """Not an earlier one."""

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk


class Known:
    """The memory of a process at an earlier instant."""

    def __init__(self, places: Iterable[Place], zeros: Iterable[tuple[int, int]] = ()) -> None:
        """`places`: what lies where (first address, end, chunk, offset in its data); `zeros`: ranges (first address, end) of zeros.

        Nothing is in two of them.
        """
        self.places = sorted(places, key=lambda run: run[0])
        """The first of these, ascending."""
        self._starts = [run[0] for run in self.places]
        self.covered = _joined(sorted([*((start, end) for start, end, _, _ in self.places), *zeros]))
        """The ranges (first address, end) that it has, ascending."""

    def changed(self, written: Iterable[tuple[int, int]]) -> Ranges:
        """What has been `written` (address, bytes) since, and what is not covered: ranges (first address, end), ascending."""
        return _joined(sorted([*uncovered(self.covered), *((start, start + length) for start, length in written)]))

    def split(self, ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, Source | Saved | None, int]]:
        """The ascending `ranges` (address, bytes) in parts (address, bytes, where it lies or None, offset in the chunk's data)."""
        runs, count, index = self.places, len(self.places), -1
        for start, length in ranges:
            end = start + length
            if index < 0:
                index = max(bisect_right(self._starts, start) - 1, 0)
            while index < count and runs[index][1] <= start:
                index += 1
            at = index
            while start < end:
                low, high, source, offset = runs[at] if at < count else (end, end, None, 0)
                if start < low:
                    stop = min(low, end)
                    yield start, stop - start, None, 0
                    start = stop
                if start < end:
                    stop = min(high, end)
                    yield start, stop - start, source, offset + start - low
                    start, at = stop, at + 1


class Drafted:
    """What has been saved of a process's memory while it ran, or before (`earlier`), as far as it is still so."""

    def __init__(self, owner: int, earlier: Known | None = None) -> None:
        self.owner = owner
        """The id of its record."""
        self._earlier = earlier or Known(())
        self._gone: Ranges = []
        """What of `earlier` is so no longer. (That may lie in many thousand places: they are not touched before the end.)"""
        self._places: list[Place] = []
        """What has been saved since. Chunk None: zeros, which are in no chunk."""
        self._covered: Ranges | None = None

    def note(self, chunk: int, read: Sequence[tuple[int, int]], kept: Sequence[tuple[int, int]]) -> None:
        """Of the runs (address, bytes) that were `read` those `kept` are the data of chunk `chunk`; the others are zeros."""
        saved, self._covered = Saved(chunk), None
        self._places += [(start, start + length, saved, at) for start, length, at in laid_out(kept)]
        if kept is not read:
            ranges = [(start, start + length) for start, length in kept]
            self._places += [
                (start, start + size, None, 0)
                for address, length in read
                for start, size, is_kept in parts(address, length, ranges)
                if not is_kept
            ]

    def forget(self, written: Iterable[tuple[int, int]]) -> None:
        """What lies in the runs (address, bytes) is so no longer."""
        if ranges := _ranges(written):
            self._covered = None
            self._gone = _joined(sorted([*self._gone, *ranges]))
            self._places = [
                (start, start + size, source, offset + start - first)
                for first, end, source, offset in self._places
                for start, size, is_written in parts(first, end - first, ranges)
                if not is_written
            ]

    def within(self, written: Iterable[tuple[int, int]]) -> int:
        """How many bytes `forget` would forget."""
        runs = (part for start, end in _ranges(written) for part in parts(start, end - start, self.covered))
        return sum(size for _, size, is_covered in runs if is_covered)

    @property
    def covered(self) -> Ranges:
        """The ranges (first address, end) that are saved, ascending."""
        if self._covered is None:
            kept = [(start, start + size) for start, size in self._kept()]
            self._covered = _joined(sorted([*kept, *((start, end) for start, end, _, _ in self._places)]))
        return self._covered

    def _kept(self) -> Iterator[tuple[int, int]]:
        """The runs (address, bytes) of `earlier` that are still so, ascending."""
        for start, end in self._earlier.covered:
            for address, size, is_gone in parts(start, end - start, self._gone):
                if not is_gone:
                    yield address, size

    def known(self, *, zeros: bool = True) -> Known:
        """All of it, with or without what was `zeros`."""
        kept = [(at, at + size, source, offset) for at, size, source, offset in self._earlier.split(self._kept()) if source]
        nothing = ((start, end) for start, end, source, _ in self._places if zeros and not source)
        return Known([*kept, *(place for place in self._places if place[2])], nothing)


def _ranges(runs: Iterable[tuple[int, int]]) -> Ranges:
    """Runs (address, bytes) in any order as ascending ranges (first address, end)."""
    return _joined(sorted((start, start + length) for start, length in runs))


def _joined(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Ascending ranges (first address, end), those that touch as one."""
    found: Ranges = []
    for start, end in ranges:
        if found and start <= found[-1][1]:
            if end > found[-1][1]:
                found[-1] = found[-1][0], end
        else:
            found.append((start, end))
    return found


def uncovered(covered: Ranges) -> Ranges:
    """What is in none of the ascending ranges (first address, end)."""
    ends, starts = [0, *(end for _, end in covered)], [*(start for start, _ in covered), 1 << 64]
    return [(end, start) for end, start in zip(ends, starts, strict=True) if end < start]

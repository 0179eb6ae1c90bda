"""Which memory may come while the program runs already (`restart --lazy`), and what of the image must be there before.

Late are the large private anonymous mappings: each has its pages in the image, and userfaultfd takes them. What is small is
there sooner than its first page could be asked for; shared memory and files have other owners than this address space, locked
memory is asked for by mlock(2) at once, pages that fork left shared are shared by being there, and what a fork wipes must not come.
"""

from __future__ import annotations

from bisect import bisect_right

from torpor.image.chain import Source
from torpor.image.format import Pages, parts
from torpor.objects.memory import ANONYMOUS, DONTFORK, GROWSDOWN, LOCKED, LOCKONFAULT, SHARED, WIPEONFORK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torpor.image.reader import Image, Needed
    from torpor.objects.plan import ProcessPlan

    Ranges = list[tuple[int, int]]

LEAST = 1 << 20
"""Bytes of pages from which it is worth while that those of a mapping come late."""
_NOW = SHARED | GROWSDOWN | LOCKED | LOCKONFAULT | DONTFORK | WIPEONFORK


class Late:
    """What comes when. `ranges`: for each address space that has any, whole mappings (start, end) that come late, ascending;
    `later`: where their pages lie; `now`: where all others lie.
    """

    __slots__ = ("_image", "later", "now", "ranges")

    def __init__(self, root: ProcessPlan, image: Image, places: Mapping[int, list[Source]]) -> None:
        """`places`: where the pages of each address space lie."""
        self._image = image
        self.ranges: dict[int, Ranges] = {}
        self.later: dict[int, list[Source]] = {}
        self.now = dict(places)
        for process in root.family():
            if process.alive and not process.mm.base and not any(child.alive and child.mm.base for child in process.children):
                ident = process.mm.id
                pages = self.now.get(ident, [])
                if ranges := _of_process(process, pages):
                    self.ranges[ident] = ranges
                    self.now[ident], self.later[ident] = _divided(pages, ranges)

    def following(self) -> int:
        """Bytes that come late."""
        return sum(length for pages in self.later.values() for source in pages for _, length, _ in source.runs)

    def needed_now(self) -> list[Needed]:
        """The chunks of which something is needed before the program runs."""
        found: list[Needed] = [(self._image, record, at) for record, at in self._image.chunks if not isinstance(record, Pages)]
        seen = set()
        for pages in self.now.values():
            for source in pages:
                if (id(source.image), source.chunk) not in seen:
                    seen.add((id(source.image), source.chunk))
                    found.append((source.image, source.record, source.offset))
        return found


def _divided(pages: Sequence[Source], ranges: Ranges) -> tuple[list[Source], list[Source]]:
    """What of the pages lies in none of the ranges, and what does."""
    divided: tuple[list[Source], list[Source]] = [], []
    for source in pages:
        runs: tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]] = [], []
        for start, length, offset in source.runs:
            for at, part, within in parts(start, length, ranges):
                runs[within].append((at, part, offset + at - start))
        for those, found in zip(runs, divided, strict=True):
            if those:
                found.append(Source(source.image, source.chunk, those))
    return divided


def _of_process(process: ProcessPlan, pages: Sequence[Source]) -> Ranges:
    places = [m for m in process.mm.mappings if m.kind == ANONYMOUS and not m.attributes & _NOW]
    if process.arch.framed_slots:
        # Frames are put on the stacks from outside (tasks/retry.py), by a way that does not wait for a page.
        stacks = [thread.registers[0] for thread in process.threads]
        pointers = [process.arch.registers.general_dict(record)[process.arch.sp] for record in stacks]
        places = [m for m in places if not any(m.start <= pointer < m.end for pointer in pointers)]
    starts = [m.start for m in places]
    sizes = [0] * len(places)
    for source in pages:
        for start, length, _ in source.runs:
            index = bisect_right(starts, start) - 1
            if index >= 0 and start < places[index].end:
                sizes[index] += length
    return [(m.start, m.end) for m, size in zip(places, sizes, strict=True) if size >= LEAST]

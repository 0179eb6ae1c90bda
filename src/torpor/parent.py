"""What an earlier image holds of a program's memory, and which of it is still so: for an image with `--parent`.

Which pages a process has written since is known exactly where it was watched (tasks/tracking.py). Else each page is compared with
what the earlier image has. (The other way would be a hash of each page in every image: it costs a second per GiB in the first
image already, and a page that is equal by its hash only is a page lost.)
"""

from __future__ import annotations

import os
from bisect import bisect_right

from torpor.errors import Obstacle, Unsupported, UsageError
from torpor.image.chain import open_parents, sources
from torpor.image.format import ParentImage
from torpor.image.reader import Image
from torpor.linux.libc import PAGE
from torpor.objects.processes import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torpor.image.chain import Source
    from torpor.objects.saving import Saving


class Parent:
    """An earlier image, opened, with those that it needs itself."""

    def __init__(self, path: str | os.PathLike[str], output: str | os.PathLike[str] | int) -> None:
        """Raises what Image.open and open_parents do; UsageError if `output` would replace it, Unsupported for other pages."""
        path = os.fspath(path)
        self._to = "" if isinstance(output, int) or os.fspath(output) == "-" else os.path.abspath(output)
        if self._to and os.path.exists(self._to) and os.path.samefile(path, self._to):
            raise UsageError(Obstacle(path, "the new image cannot replace its parent", "name another file with -o"))
        self.image = Image.open(path)
        try:
            open_parents(self.image)
            if self.image.header.page_size != PAGE:
                reason = f"its pages are of {self.image.header.page_size} bytes, and here of {PAGE}"
                raise Unsupported(Obstacle(path, reason, "take a checkpoint without --parent"))
            found = sources(self.image)
            self.known = {process.pid: Known(found[process.mm]) for process in self.image.of(Process) if process.mm in found}
            """By the id that a process knows itself by, what it holds of its memory."""
        except BaseException:
            self.image.close()
            raise
        self._ids: dict[Image, int] = {}

    def close(self) -> None:
        """Close the files."""
        self.image.close()

    def id_of(self, image: Image, saving: Saving) -> int:
        """The id of one of these images in the new one, in which it is named from now on."""
        if image not in self._ids:
            place = os.path.abspath(image.name)
            beside = os.path.dirname(place) == os.path.dirname(self._to)
            record = ParentImage(
                id=saving.new_id(),
                name=os.path.basename(place) if beside else place,
                size=image.trailer.size,
                crc=image.trailer.crc,
                realtime=image.header.realtime,
            )
            self._ids[image] = saving.add(record)
        return self._ids[image]


class Known:
    """The memory of a process at an earlier instant."""

    def __init__(self, found: Sequence[Source]) -> None:
        """`found`: where all of it lies."""
        self._runs = sorted(
            ((start, start + length, source, offset) for source in found for start, length, offset in source.runs),
            key=lambda run: run[0],
        )
        self._starts = [run[0] for run in self._runs]
        self.covered = _joined((start, end) for start, end, _, _ in self._runs)
        """The ranges (first address, end) that it has, ascending."""

    def changed(self, written: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """What has been `written` (address, bytes) since, and what is not covered: ranges (first address, end), ascending."""
        ends = [0, *(end for _, end in self.covered)]
        starts = [*(start for start, _ in self.covered), 1 << 64]
        uncovered = [(end, start) for end, start in zip(ends, starts, strict=True) if end < start]
        return _joined(sorted([*uncovered, *((start, start + length) for start, length in written)]))

    def split(self, ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, Source | None, int]]:
        """The ascending `ranges` (address, bytes) in parts (address, bytes, where it lies or None, offset in the chunk's data)."""
        runs, count, index = self._runs, len(self._runs), -1
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


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ascending ranges (first address, end), those that touch as one."""
    found: list[tuple[int, int]] = []
    for start, end in ranges:
        if found and start <= found[-1][1]:
            if end > found[-1][1]:
                found[-1] = found[-1][0], end
        else:
            found.append((start, end))
    return found

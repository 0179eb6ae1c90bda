"""What an earlier image holds of a program's memory, and which of it is still so: for an image with `--parent`.

Which pages a process has written since is known exactly where it was watched (tasks/tracking.py). Else each page is compared with
what the earlier image has. (The other way would be a hash of each page in every image: it costs a second per GiB in the first
image already, and a page that is equal by its hash only is a page lost.)
"""

from __future__ import annotations

import os

from torpor.errors import Obstacle, Unsupported, UsageError
from torpor.image.chain import open_parents, sources
from torpor.image.format import ParentImage
from torpor.image.known import Known
from torpor.image.reader import Image
from torpor.linux.libc import PAGE
from torpor.objects.processes import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

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
            self.known = {process.pid: _known(found[process.mm]) for process in self.image.of(Process) if process.mm in found}
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


def _known(found: Iterable[Source]) -> Known:
    """What an address space has, all of which lies in `found`."""
    return Known((start, start + length, source, offset) for source in found for start, length, offset in source.runs)

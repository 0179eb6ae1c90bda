"""An image read from end to end, every byte of it checked.

Needs no right and nothing of the machine that the image is from. Whether the program could go on *here* is what a restart looks at.
"""

from __future__ import annotations

from torpor import arch
from torpor.image.chain import open_parents
from torpor.image.reader import Image
from torpor.objects import plan
from torpor.objects.processes import Process
from torpor.objects.threads import Thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    Progress = Callable[[int, int], None]


class Verified:
    """What a whole image is: its `name`, how many `processes` and `threads`, bytes of `data`, when (`realtime`, ns since 1970)
    and where it was taken."""

    __slots__ = ("data", "host", "machine", "name", "processes", "realtime", "release", "threads")

    def __init__(self, image: Image) -> None:
        header = image.header
        self.name, self.data, self.realtime = image.name, image.trailer.data, header.realtime
        self.processes, self.threads = len(image.of(Process)), len(image.of(Thread))
        self.host, self.release, self.machine = header.host, header.release, header.machine

    def facts(self) -> dict[str, int | str]:
        """All of it by name."""
        return {name: getattr(self, name) for name in self.__slots__}


def verify(source: str | os.PathLike[str] | int, progress: Progress | None = None) -> Verified:
    """Check the image `source` ("-": standard input; a number: a descriptor). `progress` is called with the bytes done and in all.

    Raises BadImage, NoPermission or TorporError.
    """
    with Image.open(source) as image:
        # The tree of a processor family that this version does not know cannot be put together; the rest is checked.
        if all(arch.by_image_id(process.arch) for process in image.of(Process)):
            plan.read(image)
        open_parents(image)
        image.verify_data(progress)
        return Verified(image)

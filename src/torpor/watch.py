"""Images of a program that goes on, one after the other, each with no more in it than what has changed (`torpor watch`).

Each needs those before it. What becomes of them, two ways: to put the oldest into the next one, when it is its turn to go, rewrites
all the others, which name it. So the newest is the one that is now and then made whole, in place and in one step, when the files it
needs hold more than twice what it would; the next ones need only it, and the old files go when nobody names them any more.
"""

from __future__ import annotations

import os
import time

from torpor.checkpoint import checkpoint
from torpor.errors import NoPermission, Obstacle, TorporError, UsageError
from torpor.image.chain import open_parents, place_of, sources
from torpor.image.format import ParentImage
from torpor.image.reader import Image
from torpor.linux import pidfd
from torpor.linux.signals import Held
from torpor.merge import merge
from torpor.tasks.tracking import Tracking

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SUFFIX = ".torpor"
GENERATIONS = 64
"""Files that an image may need before it is made whole in any case."""


class Watch:
    """Images of process `pid` in the directory `directory`, of which the newest `keep` can be restarted at any time.

    `tell` is called with a line for each image, and for each failure that the next try may overcome. The program is not
    held: it is watched from outside, and goes on when this process ends, however that is.
    """

    def __init__(self, pid: int, directory: str, keep: int, compress: str, tell: Callable[[str], None]) -> None:
        if keep < 1:
            raise UsageError(Obstacle("torpor watch", f"it keeps at least one image, not {keep}"))
        self._pid, self._directory, self._keep, self._compress, self._tell = pid, directory, keep, compress, tell
        self._tracking = Tracking()
        self._images: list[str] = []
        """The names of the images, oldest first."""
        try:
            os.makedirs(directory, exist_ok=True)
            self._program = pidfd.open(pid)
        except ProcessLookupError:
            raise TorporError(Obstacle("process", "there is none", "see ps(1)", pid=pid)) from None
        except OSError as error:
            kind = NoPermission if isinstance(error, PermissionError) else TorporError
            raise kind(Obstacle(directory, f"cannot be used: {error.strerror}", "name another directory")) from None

    def close(self) -> None:
        """Leave the program alone. The images stay."""
        self._tracking.close()
        os.close(self._program)

    def take(self) -> None:
        """Take one image. Raises TorporError: there is no new one, and those before are as they were."""
        path = self._new_path()
        parent = self._path(self._images[-1]) if self._images else None
        begun = time.monotonic()
        try:
            why = checkpoint(self._pid, path, parent=parent, compress=self._compress, tracking=self._tracking)
        except BaseException:
            self._tracking.close()  # what it has told is in no image
            raise
        with Held():  # who ends us now is not to find files that nobody needs
            self._images.append(os.path.basename(path))
            size, took = os.stat(path).st_size, time.monotonic() - begun
            self._tell(f"{path}: {size / 1e6:.1f} MB in {took:.2f} s" + (f"; the program stood still: {why}" if why else ""))
            self._tidy()

    def ended(self, seconds: float) -> bool:
        """Wait for `seconds`, or until the program has ended; whether it has."""
        import select

        poll = select.poll()
        poll.register(self._program, select.POLLIN)
        return bool(poll.poll(max(0.0, seconds) * 1000))

    # -- the files

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def _new_path(self) -> str:
        """A name that sorts behind all others: when it was taken, in UTC."""
        while True:
            name = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime()) + f".{self._pid}{SUFFIX}"
            if not os.path.exists(self._path(name)):
                return self._path(name)
            time.sleep(0.05)

    def _tidy(self) -> None:
        """Make the newest image whole if it needs too much, and remove what is neither to be kept nor needed."""
        newest = self._path(self._images[-1])
        if self._is_heavy(newest):
            merge(newest, newest)
            self._tell(f"{newest}: merged, {os.stat(newest).st_size / 1e6:.1f} MB")
        kept = self._images[-self._keep :]
        needed = set(kept)
        for name in kept:
            needed.update(self._needed_by(name))
        for name in self._images:
            if name not in needed:
                os.unlink(self._path(name))
        self._images = [name for name in self._images if name in needed]

    def _needed_by(self, name: str) -> Iterator[str]:
        with Image.open(self._path(name)) as image:
            for parent in image.of(ParentImage):
                yield os.path.basename(place_of(image, parent))

    def _is_heavy(self, path: str) -> bool:
        """Whether the files that an image needs hold more than twice of what is needed of them."""
        with Image.open(path) as image:
            open_parents(image)
            held = image.trailer.data + sum(parent.trailer.data for parent in image.parents.values())
            needed = 0
            for pieces in sources(image).values():
                for piece in pieces:
                    part = sum(length for _, length, _ in piece.runs)
                    needed += part * piece.record.stored // piece.record.length
            return len(image.parents) > GENERATIONS or held > 2 * needed + image.trailer.data

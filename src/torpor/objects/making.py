"""What the object kinds share while a tree is restarted: the image, the files that have been made, what must be closed in the
end."""

from __future__ import annotations

import os

from torpor.image.format import FileData
from torpor.linux import libc
from torpor.linux.libc import O_LARGEFILE
from torpor.objects import nodes
from torpor.objects.nodes import FileNode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from torpor.image.reader import Image
    from torpor.image.record import Record

    R = TypeVar("R", bound=Record)
    T = TypeVar("T")


O_PATH = 0o10000000
AT_FDCWD = -100


class Making:
    """One restart. Every descriptor made through it is closed by `close`, whatever happens."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self._made: dict[int, Any] = {}
        self._open: set[int] = set()
        self.narrow: Callable[[str, int], int] | None = None
        """Opens a path in a 32-bit process and gives us the descriptor; None where the tree has no such process."""

    def record(self, number: int, cls: type[R]) -> R:
        """The record of that id (the reader has checked that it exists and is of a class that may be meant)."""
        return self.image.by_id(number, cls)

    def node(self, number: int) -> FileNode:
        """The file of that id."""
        return self.image.by_id(number, FileNode)

    def once(self, number: int, make: Callable[[], T]) -> T:
        """What `make` has made for the record `number`, made now if it has not been."""
        if number not in self._made:
            self._made[number] = make()
        made: T = self._made[number]
        return made

    def keep(self, fd: int) -> int:
        """Have `close` close the descriptor `fd`."""
        self._open.add(fd)
        return fd

    def give(self, fd: int) -> int:
        """Leave the descriptor `fd` to the caller after all."""
        self._open.discard(fd)
        return fd

    def open(self, path: str, flags: int) -> int:
        """Open `path` as the program had it open; a descriptor of our own. Raises OSError.

        A 64-bit process cannot open without O_LARGEFILE, so what a 32-bit one had open without it is opened by such a one:
        ourselves perhaps, but then by the system call, for Python asks for large files.
        """
        if libc.WORD == 4:
            return libc.call("openat", AT_FDCWD, os.fsencode(path), flags | os.O_CLOEXEC | os.O_NOCTTY, 0)
        if flags & (O_LARGEFILE | O_PATH) or self.narrow is None:
            return os.open(path, flags | os.O_CLOEXEC | os.O_NOCTTY)
        return self.narrow(path, flags | os.O_NOCTTY)

    def contents(self, node: FileNode) -> int:
        """A descriptor, open for reading and writing, of a new file with the contents that the image has for `node`."""
        return self.once(node.id, lambda: self.keep(self._fill(node)))

    def _fill(self, node: FileNode) -> int:
        fd = nodes.create(node)
        try:
            for record, offset in self.image.chunks:
                if isinstance(record, FileData) and record.owner == node.id:
                    at = offset
                    for start, length in record.runs:
                        _copy(self.image.fd, at, fd, start, length)
                        at += length
            nodes.seal(node, fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def close(self) -> None:
        """Close everything that was made."""
        for fd in self._open:
            os.close(fd)
        self._open.clear()


def _copy(source: int, at: int, target: int, to: int, length: int) -> None:
    while length:
        data = os.pread(source, min(length, nodes.CHUNK), at)
        if not data:
            raise OSError(5, "the image became shorter while it was read")
        written = os.pwrite(target, data, to)
        at, to, length = at + written, to + written, length - written

"""Where the bytes of an image come from: always a file in the end, because data is read from it in any order.

A pipe is copied to an unnamed temporary file (in $TMPDIR, else /var/tmp, which is meant for large files). The first
bytes are looked at before, so that an endless stream that is no image does not fill the disk.
"""

from __future__ import annotations

import errno
import os
import stat

from torpor.errors import BadImage, Obstacle, TorporError

from .failure import failure
from .format import MAGIC

PIECE = 1 << 20  # bytes copied at a time


def open_input(source: str | os.PathLike[str] | int) -> tuple[int, str, bool]:
    """A descriptor of a regular file with the image, its name for messages, and whether the reader has to close it.

    `source` is a path, "-" for standard input, or a descriptor.
    """
    if isinstance(source, int):
        fd, name, owned = source, f"descriptor {source}", False
    elif os.fspath(source) == "-":
        fd, name, owned = 0, "standard input", False
    else:
        name, owned = os.fspath(source), True
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise failure(name, "read the image", error) from error
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode):
            return fd, name, owned
        if stat.S_ISDIR(mode):
            raise TorporError(Obstacle(name, "cannot read the image: it is a directory", "name a file in it"))
        spool = copy_stream(fd, name)
    except OSError as error:
        if owned:
            os.close(fd)
        raise failure(name, "read the image", error) from error
    except TorporError:
        if owned:
            os.close(fd)
        raise
    if owned:
        os.close(fd)
    return spool, name, True


def check_magic(start: bytes, name: str) -> None:
    """BadImage unless `start`, the first bytes of the input, is the magic number of an image."""
    if start == MAGIC:
        return
    if not start:
        raise BadImage(Obstacle(name, "is empty, so it is no image", "check that the checkpoint succeeded"))
    if MAGIC.startswith(start):
        raise BadImage(Obstacle(name, f"is an image cut short after {len(start)} bytes", "copy the image again"))
    raise BadImage(Obstacle(name, "is not an image: it does not start as one", "name the file of a checkpoint"))


def copy_stream(fd: int, name: str) -> int:
    """A descriptor of an unnamed file with everything that `fd` delivers."""
    start = b""
    while len(start) < len(MAGIC) and (piece := os.read(fd, len(MAGIC) - len(start))):
        start += piece
    check_magic(start, name)
    spool, place = temporary_file()
    try:
        buffer = bytearray(PIECE)
        view = memoryview(buffer)
        write_all(spool, memoryview(start))
        while got := os.readv(fd, [buffer]):
            write_all(spool, view[:got])
    except OSError as error:
        os.close(spool)
        raise failure(f"{name}, copied to {place}", "keep the image", error) from error
    return spool


def write_all(fd: int, view: memoryview) -> None:
    """Write all of `view`, however little of it a call takes."""
    while view:
        view = view[os.write(fd, view) :]


def temporary_file() -> tuple[int, str]:
    """A new file without a name, open for reading and writing, and the directory it takes its room from."""
    places = [place for place in (os.environ.get("TMPDIR"), "/var/tmp", "/tmp") if place]
    for place in places:
        try:
            return unnamed_in(place), place
        except OSError:
            continue
    listed = ", ".join(places)
    raise TorporError(Obstacle("standard input", f"cannot be copied to any of {listed}", "set TMPDIR to a directory"))


def unnamed_in(directory: str) -> int:
    """A new file in `directory` that disappears with its last descriptor."""
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    path = os.path.join(directory, f".torpor-{os.getpid()}.torpor.part")
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    os.unlink(path)
    return fd

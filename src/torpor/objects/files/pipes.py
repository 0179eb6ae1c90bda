"""Pipes and FIFOs, with what is in them (pipe(7)).

The contents are read by tee(2) into a pipe of our own, which consumes nothing and keeps the packets of packet mode apart.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat

from torpor.errors import Obstacle, TorporError
from torpor.image.fields import blob, choice, ident, in_range, ref, structs, text, u32
from torpor.image.record import Record, Struct
from torpor.linux import clone, libc, procfs
from torpor.linux.libc import O_LARGEFILE, PAGE
from torpor.objects.files.seen import Seen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torpor.objects.making import Making
    from torpor.objects.saving import Saving

F_SETPIPE_SZ, F_GETPIPE_SZ = 1031, 1032
_PIPE_FLAGS = os.O_NONBLOCK | os.O_DIRECT | O_LARGEFILE | os.O_APPEND | os.O_NOATIME
SPLICE_F_NONBLOCK = 2


_tee = libc.function("tee", ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint, restype=ctypes.c_ssize_t)


class Piece(Struct):
    """What one read(2) returned: in packet mode, one packet."""

    data: bytes = blob("the bytes", max=1 << 20)


class Pipe(Record, type=0x0311):
    """A pipe or FIFO and what is in it. Its open ends are PipeEnd records."""

    id: int = ident("the pipe")
    capacity: int = u32("F_GETPIPE_SZ, bytes", check=in_range(4096, 1 << 31))
    packets: int = choice(32, {0: "stream", 1: "packets"}, "whether the pieces are packets (O_DIRECT)")
    path: str = text("path of a FIFO; '' for a pipe", max=4096, default="")
    pieces: list[Piece] = structs(Piece, "contents, oldest first", max=65536)


class PipeEnd(Record, type=0x0312):
    """An open file description of a pipe or FIFO."""

    id: int = ident("the open file description")
    pipe: int = ref("the pipe", to="Pipe")
    flags: int = u32("O_RDONLY, O_WRONLY or O_RDWR, with O_NONBLOCK and O_DIRECT")


def claims(seen: Seen) -> bool:
    """Whether a descriptor is of this kind."""
    return stat.S_ISFIFO(seen.stat.st_mode)


def obstacle(seen: Seen) -> Obstacle | None:
    """Nothing about one end alone; `outside` looks at all of them together."""
    return None


def outside(ends: Iterable[Seen], everyone: dict[int, list[str]], belongs: Callable[[int], bool]) -> list[Obstacle]:
    """The pipes of which an end is held by a process outside the tree.

    `ends`: every pipe descriptor of the tree; `everyone`: for each process outside of it that we may look into, the links of
    its descriptors; `belongs` says of one that turns up whether it is part of the tree after all (born a moment ago).
    """
    mine: dict[str, Seen] = {}
    for end in ends:
        mine.setdefault(end.link, end)
    found = []
    for pid, links in everyone.items():
        shared = sorted(set(links) & mine.keys())
        if shared and belongs(pid):
            continue
        for link in shared:
            end = mine.pop(link)
            found.append(
                Obstacle(
                    end.name,
                    f"its other end is held by process {pid}, which is not part of the tree",
                    f"checkpoint a process that has both as descendants (the shell that started them), or end {pid}",
                    pid=end.pid,
                )
            )
    return found


def save(seen: Seen, saving: Saving) -> int:
    """Write the description and, before it, its pipe. Returns its id."""
    key = ("pipe", seen.stat.st_dev, seen.stat.st_ino)
    pipe = saving.known(key)
    if not pipe:
        end = seen.dup()
        capacity = fcntl.fcntl(end, F_GETPIPE_SZ)
        packets, pieces = read_contents(seen.open_path, capacity)
        path = seen.link if seen.link.startswith("/") else ""
        record = Pipe(id=saving.new_id(), capacity=capacity, packets=packets, path=path, pieces=pieces)
        pipe = saving.add(record, key)
    return saving.add(PipeEnd(id=saving.new_id(), pipe=pipe, flags=seen.flags & (3 | _PIPE_FLAGS)))


def read_contents(path: str, capacity: int) -> tuple[int, list[Piece]]:
    """(packet mode?, what is in the pipe that `path` opens), without taking anything out. Raises OSError."""
    source = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        # Room for every buffer of the source, or tee would stop half way and nobody could tell.
        copy_out, copy_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.fcntl(copy_in, F_SETPIPE_SZ, capacity)
            if _tee(source, copy_in, capacity, SPLICE_F_NONBLOCK) < 0:
                error = libc.failure("tee")
                if error.errno != 11:
                    raise error
                return 0, []
            pieces = []
            while True:
                try:
                    data = os.read(copy_out, 1 << 20)
                except BlockingIOError:
                    break
                pieces.append(Piece(data=data))
            # A stream comes out in one read unless it is longer than the buffer; packets come one by one.
            return int(len(pieces) > 1), pieces
        finally:
            os.close(copy_out)
            os.close(copy_in)
    finally:
        os.close(source)


_LARGEST = 1 << 28
"""Bytes of which the kernel still gets the table of pages in one piece (fs/pipe.c, pipe_resize_ring())."""


def faults(record: PipeEnd, making: Making) -> Iterator[str]:
    """What no pipe can be (R-D1)."""
    pipe = making.record(record.pipe, Pipe)
    if record.flags & ~(3 | _PIPE_FLAGS) or record.flags & 3 == 3:
        yield f"the flags {record.flags:#o} are not those of a pipe's end"
    if pipe.capacity & pipe.capacity - 1:
        yield f"a pipe has {pipe.capacity} bytes of capacity, which is not a power of 2"
    if pipe.path and not pipe.path.startswith("/"):
        yield f"the path of a FIFO, {pipe.path!r}, is not absolute"
    lengths = [len(piece.data) for piece in pipe.pieces]
    # A packet takes pages of its own, what is in a stream is put together.
    pages = sum(-(-length // PAGE) for length in lengths) if pipe.packets else -(-sum(lengths) // PAGE)
    if pages * PAGE > pipe.capacity:
        yield f"more is said to be in a pipe than its {pipe.capacity} bytes of capacity"


def check(record: PipeEnd, making: Making) -> Obstacle | None:
    """What stands in the way of making it again, or None."""
    pipe = making.record(record.pipe, Pipe)
    if pipe.path and not (os.path.exists(pipe.path) and stat.S_ISFIFO(os.stat(pipe.path).st_mode)):
        return Obstacle(f"FIFO {pipe.path!r}", "it is not here", "make it again: mkfifo")
    if pipe.path and not os.access(pipe.path, os.R_OK | os.W_OK):
        return Obstacle(f"FIFO {pipe.path!r}", "this user may not read and write it", "change its permissions")
    if pipe.capacity > _LARGEST or (pipe.capacity > _usual() and not _may_exceed()):
        return Obstacle("pipe", f"its {pipe.capacity} bytes of capacity are more than a pipe of this user can have here",
                        "sysctl fs.pipe-max-size=..., or be root")  # fmt: skip
    return None


def _usual() -> int:
    """The bytes that an ordinary user can give to a pipe; some 1 MiB."""
    return procfs.sysctl("fs/pipe-max-size", 1 << 20)


def _may_exceed() -> bool:
    return bool(clone.capget()[0] >> clone.CAP_SYS_RESOURCE & 1)


def make(record: PipeEnd, making: Making) -> int:
    """Open an end of the pipe; a descriptor of our own. Raises OSError.

    pipe(2) gives ends without O_LARGEFILE, open(2) of /proc/self/fd with it: an end is made as it was made then.
    """
    made = making.once(record.pipe, lambda: _Made(making.record(record.pipe, Pipe), making))
    end = record.flags & 3
    if not record.flags & O_LARGEFILE and end in made.fresh:
        fd = making.give(made.fresh.pop(end))
        fcntl.fcntl(fd, fcntl.F_SETFL, record.flags)
        return fd
    return os.open(f"/proc/self/fd/{made.both}", record.flags | os.O_CLOEXEC)


class _Made:
    """A pipe with its contents: `both` is open for both directions, `fresh` has the ends that pipe(2) gave, until they are used."""

    __slots__ = ("both", "fresh")

    def __init__(self, pipe: Pipe, making: Making) -> None:
        self.fresh: dict[int, int] = {}
        if pipe.path:
            self.both = making.keep(os.open(pipe.path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
        else:
            out, into = os.pipe2(os.O_CLOEXEC)
            self.fresh = {os.O_RDONLY: making.keep(out), os.O_WRONLY: making.keep(into)}
            self.both = making.keep(os.open(f"/proc/self/fd/{into}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
        if fcntl.fcntl(self.both, F_GETPIPE_SZ) != pipe.capacity:
            fcntl.fcntl(self.both, F_SETPIPE_SZ, pipe.capacity)
        if pipe.packets:
            fcntl.fcntl(self.both, fcntl.F_SETFL, os.O_NONBLOCK | os.O_DIRECT)
        for piece in pipe.pieces:
            if piece.data and os.write(self.both, piece.data) != len(piece.data):
                raise TorporError(Obstacle("pipe", "what was in it does not fit into a pipe here"))

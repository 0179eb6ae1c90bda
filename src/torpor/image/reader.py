"""Reading an image: everything is checked before anything is used (R-D1, R-D2).

with Image.open("job.img") as image:
    image.verify_data()
    for memory in image.of(Memory): ...
"""

from __future__ import annotations

import os
import zlib

from torpor.errors import BadImage, Obstacle, TorporError

from .failure import failure
from .format import CompressedPages, EarlierPages, Header, Trailer
from .input import open_input
from .scan import DAMAGED, Scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Self, TypeVar

    from .format import DataRecord
    from .record import Record

    R = TypeVar("R", bound=Record)
    Chunk = tuple[DataRecord, int]
    Needed = tuple["Image", DataRecord, int]

PIECE = 1 << 20  # bytes of data that are read and hashed at a time
TWO_THREADS = 8 << 20  # bytes of data from which a second thread pays


class Image:
    """An image that has been checked from end to end, but for the hashes of its data (`verify_data`).

    `header` and `trailer` are the first and the last record, `records` all between them, in order; `chunks` has the
    data records among these with the file offset of their data; `fd` is the file, to be read with pread. `parents` has, by id,
    the images in which data of `EarlierPages` lies, itself as 0, once they have been opened (chain.py); `directory` is where they
    are looked for.
    """

    header: Header
    trailer: Trailer

    def __init__(self, fd: int, name: str, store: bool) -> None:
        """Read the image in the regular file `fd`. Callers use `Image.open`."""
        self.fd, self.name = fd, name
        self._owned = self._kept = False
        self.directory = ""
        self.parents: dict[int, Image] = {}
        self.records: list[Record] = []
        self.chunks: list[Chunk] = []
        self._by_id: dict[int, Record] = {}
        self._by_class: dict[type[Record], list[Record]] = {}
        for record, offset in Scanner(fd, name, os.fstat(fd).st_size, store):
            if isinstance(record, Header):
                self.header = record
            elif isinstance(record, Trailer):
                self.trailer = record
            else:
                self._keep(record, offset)

    def _keep(self, record: Record, offset: int) -> None:
        self.records.append(record)
        self._by_class.setdefault(type(record), []).append(record)
        if record.ident:
            self._by_id[getattr(record, record.ident)] = record
        if offset:
            self.chunks.append((record, offset))  # type: ignore[arg-type]

    @classmethod
    def open(cls, source: str | os.PathLike[str] | int, *, store: bool = False) -> Self:
        """Open and check an image: a path, "-" (standard input) or a descriptor, which stays the caller's.

        `store`: it is of interest only as a store of data for a later image, and has no `records` but its chunks.
        A pipe is copied to an unnamed temporary file first. Raises BadImage, NoPermission or TorporError.
        """
        fd, name, owned = open_input(source)
        try:
            image = cls(fd, name, store)
        except BaseException as error:
            if owned:
                os.close(fd)
            if isinstance(error, OSError):
                raise failure(name, "read the image", error) from error
            raise
        image._owned = owned
        if not isinstance(source, int) and os.fspath(source) != "-":
            image.directory = os.path.dirname(os.fspath(source))
        return image

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if not self._kept:
            self.close()

    def keep_open(self) -> None:
        """Leave it open at the end of the `with`: who reads on calls `close`."""
        self._kept = True

    def close(self) -> None:
        """Close the file, unless it belongs to the caller, and the parents. The records stay."""
        self.close_parents()
        if self._owned:
            os.close(self.fd)
        self.fd, self._owned = -1, False

    def close_parents(self) -> None:
        """Close the parents, if they are open."""
        for parent in self.parents.values():
            if parent is not self:
                parent.close()
        self.parents.clear()

    def of(self, cls: type[R]) -> list[R]:
        """All records of class `cls` and its subclasses, in order; Header and Trailer are not among them."""
        matching = [records for known, records in self._by_class.items() if issubclass(known, cls)]
        if len(matching) > 1:  # their order among each other is that of the image
            return [record for record in self.records if isinstance(record, cls)]
        return list(matching[0]) if matching else []  # type: ignore[arg-type]

    def by_id(self, ident: int, cls: type[R]) -> R:
        """The record with the id `ident`. BadImage if there is none, or if it is no `cls` (Record admits any)."""
        found = self._by_id.get(ident)
        if not isinstance(found, cls):
            what = "no record" if found is None else f"a {type(found).__name__}"
            raise BadImage(Obstacle(self.name, f"#{ident} is {what} instead of a {cls.__name__}", DAMAGED))
        return found

    def fill(self, view: memoryview, offset: int) -> None:
        """Read the file from `offset` into all of `view`. BadImage if it has become shorter, TorporError on EIO."""
        try:
            while view:
                got = os.preadv(self.fd, [view], offset)
                if not got:
                    reason = f"cut short: the file ends at byte {offset}, and was longer when it was opened"
                    raise BadImage(Obstacle(self.name, reason, DAMAGED))
                view, offset = view[got:], offset + got
        except OSError as error:
            raise failure(self.name, "read the image", error) from error

    def stored(self, record: DataRecord, offset: int, room: memoryview | None = None) -> memoryview:
        """All data of a chunk as it lies in the file, writable. BadImage if it has been altered, TorporError on EIO.

        In the beginning of `room`, if that is given.
        """
        stored = memoryview(bytearray(record.stored)) if room is None else room[: record.stored]
        self._fill_checked(record, offset, (stored[at : at + PIECE] for at in range(0, record.stored, PIECE)))
        return stored

    def data(self, record: DataRecord, offset: int, room: memoryview | None = None) -> memoryview:
        """The same, decompressed. Unsupported: there is no library for that."""
        if not isinstance(record, CompressedPages):
            return self.stored(record, offset, room)
        stored = self.stored(record, offset)
        from . import compression

        try:
            data = compression.decompress(bytes(stored), record.length)
            if room is None:
                return memoryview(bytearray(data))
            room[: record.length] = data
            return room[: record.length]
        except ValueError as error:
            raise BadImage(Obstacle(self._where(record, offset), f"cannot be decompressed: {error}", DAMAGED)) from None

    def needed_chunks(self) -> list[Needed]:
        """Every chunk that the program's data lies in: (image, record, offset), those of the opened parents included."""
        found = [(self, record, offset) for record, offset in self.chunks]
        elsewhere = [pages for pages in self.of(EarlierPages) if self.parents.get(pages.image, self) is not self]
        earlier = {(pages.image, chunk) for pages in elsewhere for chunk in pages.chunks}
        for ident, chunk in sorted(earlier):
            parent = self.parents[ident]
            found.append((parent, *parent.chunks[chunk]))
        return found

    def verify_data(self, progress: Callable[[int, int], None] | None = None, wanted: list[Needed] | None = None) -> None:
        """Hash all data, or what is `wanted` of it, on two threads. BadImage for the first chunk that is not what was written.

        `progress` is called on the calling thread, with the bytes done and the bytes in all.
        """
        needed = self.needed_chunks() if wanted is None else wanted
        longest = max((record.stored for _, record, _ in needed), default=0)
        total = sum(record.stored for _, record, _ in needed)
        chunks = iter(enumerate(needed))  # shared: each thread takes the next chunk that nobody has
        errors: list[tuple[int, TorporError]] = []
        done = [0, 0]

        def work(me: int) -> None:
            piece = memoryview(bytearray(min(PIECE, longest)))  # touching more of it than is needed takes time
            for index, (image, record, offset) in chunks:
                try:
                    room = (piece[: record.stored - at] for at in range(0, record.stored, len(piece)))
                    image._fill_checked(record, offset, room)
                except TorporError as error:
                    errors.append((index, error))
                done[me] += record.stored
                if progress and me == 0:
                    progress(sum(done), total)

        if len(needed) > 1 and total >= TWO_THREADS:
            import threading  # only now: with what it brings it takes as long as to hash some MiB

            second = threading.Thread(target=work, args=(1,))
            second.start()
            try:
                work(0)
            finally:
                for _ in chunks:  # what is left after a Ctrl-C is not worth waiting for
                    pass
                second.join()
        else:
            work(0)
        if errors:
            raise min(errors, key=lambda error: error[0])[1]
        if progress:
            progress(total, total)

    def _fill_checked(self, record: DataRecord, offset: int, pieces: Iterable[memoryview]) -> None:
        """Read the data of a chunk into one piece after the other. BadImage if its hash is not what it was."""
        crc = 0
        for piece in pieces:
            self.fill(piece, offset)
            offset += len(piece)
            crc = zlib.crc32(piece, crc)  # while the processor's cache has it; without the GIL, as the read is
        if crc != record.hash:
            reason = "altered: the hash of the data differs"
            raise BadImage(Obstacle(self._where(record, offset - record.stored), reason, DAMAGED))

    def _where(self, record: DataRecord, offset: int) -> str:
        return f"{self.name}: {type(record).__name__} of #{record.owner} at byte {offset}"

"""One walk over an image, from the magic number to the trailer, that lets no byte pass unchecked (R-D1).

Only the raw data is skipped: its hash is checked when somebody wants it. Lengths are compared with the size of the
file before memory is taken for them, and nothing recurses.
"""

from __future__ import annotations

import os
import zlib

from torpor.errors import BadImage, Obstacle

from .checks import Refusal
from .format import (
    FRAME,
    HEAD,
    MAGIC,
    MAJOR,
    MAX_PAYLOAD,
    MINOR,
    REVISION,
    TAIL,
    CompressedPages,
    DataRecord,
    FileData,
    Header,
    Pages,
    Trailer,
)
from .input import check_magic
from .record import References, class_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .record import Record

WINDOW = 1 << 16  # bytes read at a time
BEHIND_DATA = 1 << 12  # bytes read where data was stepped over: as a rule some hundred are wanted, and then comes data again

STORE: tuple[type[Record], ...] = (Header, Trailer, Pages, CompressedPages, FileData)

DAMAGED = "copy the image again, or take a new checkpoint"
STRANGE = "read it with the torpor that wrote it, or take a new checkpoint"


class Damage(Refusal):
    """Bytes that are not those that were written; any other Refusal is about their meaning."""

    def __init__(self, reason: str) -> None:
        super().__init__("", reason)


class Window:
    """A part of the file in memory, so that small records do not cost a system call each."""

    __slots__ = ("_fd", "_size", "_start", "_view")

    def __init__(self, fd: int, size: int) -> None:
        self._fd, self._size = fd, size
        self._start, self._view = 0, memoryview(b"")

    def view(self, at: int, length: int) -> memoryview:
        """`length` bytes at `at`. Damage if the file ends before them."""
        skip = at - self._start
        if skip < 0 or skip + length > len(self._view):
            left = max(self._size - at, 0)
            if length > left:
                raise Damage(f"cut short: {length} bytes should follow byte {at}, and there are only {left}")
            usual = WINDOW if skip <= len(self._view) else BEHIND_DATA
            self._view = memoryview(os.pread(self._fd, min(max(length, usual), left), at))
            self._start, skip = at, 0
            if len(self._view) < length:
                raise Damage("cut short: the file has become smaller while it was read")
        return self._view[skip : skip + length]


class Scanner:
    """Iterates over `(record, offset of its data)`, Header first and Trailer last; the offset is 0 without data.

    Records of an unknown type that need not be understood are left out; with `store` all that say nothing of where data lies are,
    once they have been found unaltered. Raises BadImage, or OSError.
    """

    def __init__(self, fd: int, name: str, size: int, store: bool = False) -> None:
        self._name, self._size, self._store = name, size, store
        self._window = Window(fd, size)
        self._references = References()
        self._at = 0  # behind everything read so far
        self._records = self._chunks = self._data = self._crc = 0
        self._page_size = 0

    def __iter__(self) -> Iterator[tuple[Record, int]]:
        check_magic(bytes(self._window.view(0, min(len(MAGIC), self._size))), self._name)
        self._at = len(MAGIC)
        record: Record | None = None
        while not isinstance(record, Trailer):
            start = self._at
            try:
                record, offset = self._next()
            except Refusal as refusal:
                where = f"{self._name}: record {self._records} at byte {start}"
                remedy = DAMAGED if isinstance(refusal, Damage) else STRANGE
                raise BadImage(Obstacle(where, str(refusal), remedy)) from None
            self._records += 1
            if record:
                yield record, offset

    def _next(self) -> tuple[Record | None, int]:
        """The next record and the offset of its data; None for one that may be skipped."""
        type_word, payload, crc = self._frame()
        cls = _of_a_store(type_word) if self._store else class_of(type_word)
        if (cls is Header) != (self._records == 0):
            raise Refusal("", "the first record must be a Header, and no other may be one")
        if cls is Header:
            self._check_revision(payload)
        record, offset = None, 0
        if cls:
            try:
                record = cls.take(payload, 0, len(payload))
                if not self._store:
                    self._references.admit(record)
                if isinstance(record, DataRecord):
                    offset = self._skip_data(record)
            except Damage:
                raise
            except Refusal as refusal:
                raise refusal.within(cls.__name__) from None
        if isinstance(record, Header):
            self._page_size = record.page_size
        elif isinstance(record, Trailer):
            self._check_trailer(record)
        self._crc = zlib.crc32(crc, self._crc)
        return record, offset

    def _frame(self) -> tuple[int, memoryview, memoryview]:
        """The type word, the payload and the CRC word of the record at hand, which is whole and unaltered."""
        if self._at == self._size:
            raise Damage("cut short: the file ends without a trailer")
        type_word, length = HEAD.unpack(self._window.view(self._at, HEAD.size))
        if length % 8 or length > MAX_PAYLOAD:
            raise Damage(f"altered: a record of {length} bytes cannot be")
        whole = self._window.view(self._at, FRAME + length)
        body, tail = whole[: -TAIL.size], whole[-TAIL.size :]
        crc, zero = TAIL.unpack(tail)
        if zlib.crc32(body) != crc or zero:
            raise Damage("altered: the checksum of the record differs")
        self._at += len(whole)
        return type_word, body[HEAD.size :], tail[:4]

    def _check_revision(self, payload: memoryview) -> None:
        """A newer major revision may have changed everything but the two numbers that say so."""
        major, minor = REVISION.unpack_from(payload) if len(payload) >= REVISION.size else (0, 0)
        if major > MAJOR:
            raise BadImage(
                Obstacle(
                    self._name,
                    f"its format revision {major}.{minor} is newer than {MAJOR}.{MINOR}, the one that is known here",
                    "restart it with a newer torpor",
                )
            )

    def _skip_data(self, record: DataRecord) -> int:
        """Step over the data of `record` and the zeros on either side of it; returns its offset."""
        before = self._at
        start, after = record.geometry(before, self._page_size)
        end = start + record.stored
        if after > self._size:
            raise Damage(f"cut short: data should lie at byte {start} to {end}, and the file ends at {self._size}")
        for at, length in ((before, start - before), (end, after - end)):
            if length and bytes(self._window.view(at, length)) != bytes(length):
                raise Damage(f"altered: the padding at byte {at} is not zero")
        self._at = after
        self._chunks += 1
        self._data += record.stored
        return start

    def _check_trailer(self, trailer: Trailer) -> None:
        """The trailer must agree with what was seen on the way to it."""
        counted = {"records": self._records, "chunks": self._chunks, "data": self._data, "size": self._at}
        for what, count in counted.items():
            if getattr(trailer, what) != count:
                raise Damage(f"altered: the trailer says {what} = {getattr(trailer, what)}, and there are {count}")
        if trailer.crc != self._crc:
            raise Damage("altered: the checksum over all records differs")
        if self._size > self._at:
            raise Damage(f"altered: {self._size - self._at} bytes follow the trailer")


def _of_a_store(type_word: int) -> type[Record] | None:
    """The class of a record that says where data lies, or where the image begins and ends; None for any other."""
    return next((cls for cls in STORE if cls.type_word == type_word), None)

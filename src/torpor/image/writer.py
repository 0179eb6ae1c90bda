"""Writing an image: one forward pass, to a file or into a pipe.

    with ImageWriter.open("job.img") as image:
        image.add(Header(...))
        image.add(memory)
        image.add_data(Pages(owner=memory.id, runs=[...]), buffers)
        image.finish()

Without `finish`, or after an exception, there is no image: no file has appeared, and what went into a pipe has no
trailer, so that no reader takes it for one (R-B4).
"""

from __future__ import annotations

import zlib

from .checks import Refusal
from .format import FRAME, MAGIC, CompressedPages, DataRecord, Header, Trailer, frame
from .output import open_output
from .record import References

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from .output import Buffer, Output
    from .record import Record

GATHER = 1 << 18  # bytes of records to collect before they are written
WAITING = 4096  # records that wait at most
CRC_BYTES = 4  # of each record, in what the Trailer's is made of


def hash_of(buffers: Sequence[Buffer]) -> int:
    """The hash of data in these pieces, as a DataRecord has it."""
    found = 0
    for buffer in buffers:
        found = zlib.crc32(buffer, found)
    return found


class ImageWriter:
    """An image being written. Errors: TorporError or NoPermission when the bytes cannot be written, ValueError when
    the records make no image (a value out of range, a reference to nothing): that would be a bug of the caller."""

    def __init__(self, output: Output, *, later: bool = False) -> None:
        self._output, self._later = output, later
        self.before_packing: Callable[[], None] | None = None
        """Called before records that have waited are packed: they may still be changed then."""
        self._waiting: list[Record] = []
        self._pending = bytearray(MAGIC)
        self._at = len(MAGIC)  # in the file, behind everything added so far
        self._records = self._chunks = self._data = 0
        self._crcs = bytearray()
        self._amended = b""
        """The Header that is to stand where another one has been written."""
        self._page_size = self._header_length = 0
        self._references = References()

    @classmethod
    def open(cls, target: str | os.PathLike[str] | int, *, later: bool = False) -> Self:
        """Begin an image at a path, "-" (standard output) or a descriptor, which stays the caller's.

        `later`: records are looked at and packed only when data follows them, or the end.
        """
        return cls(open_output(target), later=later)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give up the image unless it is finished."""
        self._output.abort()

    def add(self, record: Record) -> None:
        """Add a record. The first one is the Header; what a record refers to comes before it."""
        if isinstance(record, DataRecord | Trailer):
            raise Refusal("", f"{type(record).__name__} is not for add()")
        self._waiting.append(record)
        if not self._later or len(self._waiting) == WAITING:
            self._catch_up()

    @property
    def can_amend(self) -> bool:
        """Whether what has been written can be written anew: not in a pipe."""
        return self._output.can_rewrite

    def amend(self, header: Header) -> None:
        """Put `header` in the place of the one that was added first: it tells of an instant that has only come now.

        The same texts: it must be as long. Only where that can be had (`can_amend`).
        """
        self._catch_up()
        framed, crc = frame(header)
        if not self._records or not self.can_amend or len(framed) != self._header_length:
            raise Refusal("", "this Header cannot take the place of the first record")
        self._amended = framed
        self._crcs[:CRC_BYTES] = crc.to_bytes(CRC_BYTES, "little")

    def add_data(self, record: DataRecord, buffers: Sequence[Buffer], *, hashed: int | None = None) -> int:
        """Add a record with its raw data, which is written straight from `buffers`; they may be reused afterwards.

        `record.hash` and, unless the data is compressed, `record.length` are filled in here. The runs must have as many bytes.
        `hashed`: the hash (`hash_of`), if it is known. Returns where the data lies in the file.
        """
        self._catch_up()
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        size = sum(map(len, views))
        if isinstance(record, CompressedPages):
            record.compressed = size
        else:
            record.length = size
        record.hash = hash_of(views) if hashed is None else hashed
        self._append(record)
        try:
            start, after = record.geometry(self._at, self._page_size)
        except Refusal as refusal:
            raise refusal.within(type(record).__name__) from None
        self._pending += bytes(start - self._at)
        pending, self._pending = self._pending, bytearray(after - start - record.stored)
        self._at = after
        self._chunks += 1
        self._data += record.stored
        self._output.write([pending, *views])
        return start

    def holds(self, offset: int, buffers: Sequence[Buffer]) -> bool:
        """Whether these bytes lie at `offset` of what has been written. False, too, where nothing can be read again: in a pipe."""
        return self._output.holds(offset, buffers)

    @property
    def chunks(self) -> int:
        """The data records written so far."""
        return self._chunks

    def finish(self) -> None:
        """Complete the image; only now does a file appear under its name."""
        self._catch_up()
        if not self._records:
            raise Refusal("", "an image without a Header")
        self._append(
            Trailer(
                records=self._records,
                chunks=self._chunks,
                data=self._data,
                size=self._at + FRAME + Trailer.fixed_size,
                crc=zlib.crc32(self._crcs),
            )
        )
        self._flush()
        if self._amended:
            self._output.rewrite(len(MAGIC), self._amended)
        self._output.commit()

    def _catch_up(self) -> None:
        """Append the records that wait."""
        waiting, self._waiting = self._waiting, []
        if waiting and self.before_packing:
            self.before_packing()
        for record in waiting:
            self._append(record)

    def _append(self, record: Record) -> None:
        if isinstance(record, Header) != (self._records == 0):
            raise Refusal("", f"{type(record).__name__} as record {self._records}: only the first is a Header")
        try:
            framed, crc = frame(record)
            self._references.admit(record)
        except Refusal as refusal:
            raise refusal.within(type(record).__name__) from None
        if isinstance(record, Header):
            self._page_size, self._header_length = record.page_size, len(framed)
        self._pending += framed
        self._at += len(framed)
        self._records += 1
        self._crcs += crc.to_bytes(CRC_BYTES, "little")
        if len(self._pending) >= GATHER:
            self._flush()

    def _flush(self) -> None:
        pending, self._pending = self._pending, bytearray()
        self._output.write([pending])

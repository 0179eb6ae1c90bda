"""The image's own records, and how records and raw data lie in the file.

    magic, 8 bytes
    Header
    any records; raw data behind each record that announces it
    Trailer

A record is `u32 type, u32 payload length, payload, u32 crc32, u32 zero`; the CRC covers everything before it. The
payload is a multiple of 8 bytes long, so every record is aligned to 8.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_right

from .checks import Refusal
from .fields import (
    address,
    array,
    choice,
    flags,
    i64,
    ident,
    in_range,
    non_empty,
    one_of,
    pairs,
    ref,
    structs,
    text,
    u16,
    u32,
    u64,
)
from .record import Record, Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import ClassVar

# As in PNG: a byte that no text has, the name, and a newline that a text-mode transfer would change.
MAGIC = b"\x89TORPOR\n"

# A reader refuses a newer major revision. A newer minor one only added fields at the end, or optional records.
MAJOR, MINOR = 1, 0
REVISION = struct.Struct("<HH")  # the first fields of the Header, for ever

HEAD = struct.Struct("<II")  # type word, payload length
TAIL = struct.Struct("<II")  # crc32, zero
FRAME = HEAD.size + TAIL.size  # bytes that a record takes besides its payload

MAX_PAYLOAD = 64 << 20  # bytes; 65,530 mappings, the most that a process has by default, take a fifth of it
MAX_CHUNK = 16 << 20  # bytes of raw data behind one record: what a reader has to hold at a time
MAX_RUNS = MAX_CHUNK // 4096
MAX_PLACES = 1 << 16  # runs of pages in one record that says where they lie

ARCHITECTURES = {
    1: "x86-32",
    2: "x86-64",
    3: "arm",
    4: "aarch64",
    5: "ppc32",
    6: "ppc64",
    7: "ppc64le",
    8: "s390x",
    9: "riscv64",
}

CRC32 = 1
HASHES = {CRC32: "crc32"}

ZSTD = 1
METHODS = {ZSTD: "zstd"}


class Constant(Struct):
    """A number that may differ between kernels."""

    name: str = text("such as `TASK_COMM_LEN`", max=64, check=non_empty)
    value: int = i64("what it was where the image was taken")


# 73 years: no machine has run for longer, and a time namespace takes no more than twice that (kernel/time/namespace.c).
_RUNNING = in_range(0, 1 << 61)


class Header(Record, type=0x0001):
    """The first record: what the image is, and where and when it was taken (R-B1)."""

    major: int = u16("format revision: a reader refuses a newer one", check=in_range(1, MAJOR), default=MAJOR)
    minor: int = u16("format revision: a newer one can be read all the same", default=MINOR)
    arch: int = choice(32, ARCHITECTURES, "architecture of the kernel; a thread may be of its 32-bit sibling")
    page_size: int = u32("bytes", check=one_of(4096, 8192, 16384, 32768, 65536))
    flags: int = flags(32, {}, "for the image as a whole", default=0)
    realtime: int = i64("wall clock at the instant of the stop, ns since 1970")
    monotonic: int = u64("CLOCK_MONOTONIC at that instant, ns", check=_RUNNING)
    boottime: int = u64("CLOCK_BOOTTIME at that instant, ns", check=_RUNNING)
    release: str = text("kernel release, as `uname -r` prints it", max=256)
    version: str = text("kernel version, as `uname -v` prints it", max=256)
    machine: str = text("machine, as `uname -m` prints it", max=256)
    host: str = text("host name", max=256)
    boot_id: str = text("the kernel's random/boot_id: pids and clocks of one boot can be compared", max=64)
    torpor: str = text("version of torpor that wrote the image", max=64)
    constants: list[Constant] = structs(Constant, "the constants of that kernel, once per image", max=256)


class DataRun(Struct):
    """A piece of the raw data and where it belongs."""

    start: int = address("address, or offset in a file: where the piece belongs")
    length: int = u64("bytes", check=in_range(1, MAX_CHUNK))


class DataRecord(Record):
    """A record with raw data behind it: a chunk of at most 16 MiB, hashed as a whole."""

    # Whether the data consists of whole pages, and whether it lies at a multiple of the page size in the file; else at one of 8.
    pages: ClassVar[bool] = False
    aligned: ClassVar[bool] = False

    owner: int = ref("the object that the data belongs to")
    algorithm: int = choice(32, HASHES, "of `hash`", default=CRC32)
    hash: int = u64("of the data as it lies in the file, without padding", default=0)
    length: int = u64("bytes of data, before it was compressed", check=in_range(0, MAX_CHUNK), default=0)
    runs: list[tuple[int, int]] = pairs(
        DataRun, "where the data belongs, ascending, in the order of the data", max=MAX_RUNS, check=non_empty
    )

    @property
    def stored(self) -> int:
        """The bytes that the data takes in the file, without padding."""
        return self.length

    def validate(self) -> str | None:
        free = total = 0
        for start, length in self.runs:
            if start < free:
                index = self.runs.index((start, length))
                return f"runs[{index}] starts at {start:#x}, before the end of the run before it, {free:#x}"
            free = start + length
            total += length
        if free > 1 << 64:
            return f"runs[{len(self.runs) - 1}] ends at {free:#x}, behind the last address"
        if total != self.length:
            return f"the runs have {total} bytes, the data {self.length}"
        return None

    def geometry(self, at: int, page_size: int) -> tuple[int, int]:
        """Where the data of a record that ends at `at` starts in the file, and where the next record does.

        Refusal if the runs are not of whole pages where they should be.
        """
        unit = page_size if self.pages else 1
        for index, (start, length) in enumerate(self.runs):
            if (start | length) % unit:
                raise Refusal(f"runs[{index}]", f"{start:#x}+{length:#x} is not of whole pages of {page_size} bytes")
        start = at + -at % (page_size if self.aligned else 8)
        return start, start + self.stored + -self.stored % 8


class Pages(DataRecord, type=0x0002):
    """Pages of memory. The data lies page-aligned in the file, to be read straight into place or mapped."""

    pages = aligned = True


class FileData(DataRecord, type=0x0003):
    """Bytes that a file, a pipe or a queue held."""


_COMPRESSED = in_range(1, MAX_CHUNK)  # what would not become shorter is not compressed


class CompressedPages(Pages, type=0x0007):
    """Pages of memory, compressed."""

    aligned = False

    compressed: int = u64("bytes of data in the file", check=_COMPRESSED)
    method: int = choice(32, METHODS, "how it is compressed", default=ZSTD)

    @property
    def stored(self) -> int:
        """See DataRecord.stored."""
        return self.compressed


class ParentImage(Record, type=0x0005):
    """An earlier image of the same program, in which some of the data of this one lies."""

    id: int = ident("the image")
    name: str = text("its file: absolute, or from where this image lies", max=4096, check=non_empty)
    size: int = u64("of its file, bytes: as its Trailer has it")
    crc: int = u32("over all its records: as its Trailer has it")
    realtime: int = i64("when it was taken: as its Header has it")


class Draft(Record, type=0x0008):
    """Memory that was saved while the program ran. Of its pages those count that `EarlierPages` name: the rest has changed."""

    id: int = ident("the draft")


class EarlierPages(Record, type=0x0009):  # 0x0006 had a record for each chunk
    """Pages of memory whose data has come before: earlier in this image, or in an earlier one."""

    owner: int = ref("the address space that the pages belong to", to="Mm")
    image: int = ref("where the data lies, if not in this image", to="ParentImage", optional=True)
    starts: list[int] = array(64, "addresses of the runs of pages, ascending", max=MAX_PLACES, check=non_empty)
    lengths: list[int] = array(64, "bytes of each run", max=MAX_PLACES)
    chunks: list[int] = array(64, "behind which of the data records there each run lies, the first one being 0", max=MAX_PLACES)
    offsets: list[int] = array(64, "where each run begins, in bytes from the start of the chunk's data", max=MAX_PLACES)

    # Not structs, as in DataRecord: there can be thousands for each chunk, and this is read and written ten times as quickly.

    def by_chunk(self) -> list[tuple[int, list[tuple[int, int, int]]]]:
        """Parts of chunks: of each its number, and (address, bytes, bytes from the start of the chunk's data) of the runs in it.

        Both addresses and offsets ascend: pages that lie in the same data are in different parts.
        """
        found: list[tuple[int, list[tuple[int, int, int]]]] = []
        latest: dict[int, tuple[list[tuple[int, int, int]], int]] = {}  # chunk -> its last part, and where that ends
        for start, length, chunk, offset in zip(self.starts, self.lengths, self.chunks, self.offsets, strict=True):
            runs, end = latest.get(chunk, (None, 0))
            if runs is None or offset < end:
                runs = []
                found.append((chunk, runs))
            runs.append((start, length, offset))
            latest[chunk] = runs, offset + length
        return found

    def validate(self) -> str | None:
        counts = [len(self.starts), len(self.lengths), len(self.chunks), len(self.offsets)]
        if len(set(counts)) > 1:
            return "{} starts, {} lengths, {} chunks and {} offsets".format(*counts)
        free = 0
        for start, length in zip(self.starts, self.lengths, strict=True):
            if start < free:
                return f"a run starts at {start:#x}, before the end of the run before it, {free:#x}"
            if not length:
                return f"the run at {start:#x} is empty"
            free = start + length
        return None if free <= 1 << 64 else f"the last run ends at {free:#x}, behind the last address"


class Trailer(Record, type=0x0004):
    """The last record: what the whole consists of. Nothing follows it."""

    records: int = u64("records before this one, the Header included")
    chunks: int = u64("how many of them have raw data")
    data: int = u64("bytes of data in the file, without padding")
    size: int = u64("bytes of the whole file")
    crc: int = u32("crc32 of the CRCs of all records before this one, in order, each as 4 bytes little-endian")


def frame(record: Record) -> tuple[bytes, int]:
    """`record` as it lies in the file, and its CRC. ValueError if a value is not admitted or the whole is too long."""
    payload = record.pack()
    if len(payload) > MAX_PAYLOAD:
        raise Refusal("", f"{type(record).__name__} has {len(payload)} bytes, more than {MAX_PAYLOAD}")
    framed = HEAD.pack(record.type_word, len(payload)) + payload
    crc = zlib.crc32(framed)
    return framed + TAIL.pack(crc, 0), crc


def laid_out(runs: Iterable[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """The runs (address, bytes) with where each begins, in bytes, when they lie one behind the other."""
    found, at = [], 0
    for start, length in runs:
        found.append((start, length, at))
        at += length
    return found


def parts(start: int, length: int, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, bool]]:
    """What of a run of pages is in the ranges `ranges` and what is not: (address, bytes, whether it is)."""
    end = start + length
    for index in range(max(bisect_right(ranges, (start, 1 << 64)) - 1, 0), len(ranges)):
        low, high = ranges[index]
        if low >= end:
            break
        if start < low:
            yield start, low - start, False
            start = low
        if start < high:
            stop = min(end, high)
            yield start, stop - start, True
            start = stop
    if start < end:
        yield start, end - start, False

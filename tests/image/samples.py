"""Records for the tests of the image, and images made by hand: with every checksum right and anything else wrong."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from torpor.image.fields import (
    address,
    aligned,
    array,
    blob,
    choice,
    flags,
    i32,
    i64,
    ident,
    in_range,
    raw,
    ref,
    structs,
    text,
    u8,
    u16,
    u32,
    u64,
)
from torpor.image.format import CRC32, Constant, FileData, Header, Pages
from torpor.image.record import MUST_UNDERSTAND, Record, Struct
from torpor.image.writer import ImageWriter


class SampleElement(Struct):
    """An element of fixed length."""

    start: int = address("where it starts")
    kind: int = u8("what it is")
    owner: int = ref("whose it is", to="SampleObject", optional=True, default=0)


class SampleNamed(Struct):
    """An element whose length varies."""

    name: str = text("its name", max=50)
    sizes: list[int] = array(16, "sizes", max=5, default=())


class SampleObject(Record, type=0x7F000001):
    """An object that others refer to."""

    id: int = ident("the object")
    size: int = u32("bytes", check=in_range(1, 1 << 20))


class SampleEverything(Record, type=0x7F000002):
    """A field of every kind."""

    id: int = ident("this one")
    owner: int = ref("the object", to=("SampleObject", "SampleEverything"))
    other: int = ref("another", optional=True)
    a: int = u8("8 bits")
    b: int = u16("16 bits")
    c: int = u32("32 bits")
    d: int = i32("32 bits, signed")
    e: int = u64("64 bits")
    f: int = i64("64 bits, signed")
    g: int = address("pages", check=aligned(4096))
    h: int = flags(16, {0: "READ", 1: "WRITE", 15: "LAST"}, "how it is used")
    i: int = choice(8, {1: "one", 2: "two"}, "which of them")
    j: bytes = raw(5, "five bytes")
    k: bytes = blob("some bytes", max=100)
    l: str = text("some text", max=100)
    m: list[int] = array(32, "numbers", max=20)
    n: list[int] = array(64, "signed numbers", max=20, signed=True)
    o: list[SampleElement] = structs(SampleElement, "of fixed length", max=10)
    p: list[SampleNamed] = structs(SampleNamed, "of any length", max=10)
    z: int = u8("behind all of them")


class SampleSkippable(Record, type=0x7F000003, optional=True):
    """A record that a reader may leave out."""

    note: str = text("a note", max=100)


def header(page_size: int = 4096) -> Header:
    """The Header of no machine in particular."""
    return Header(
        arch=2,
        page_size=page_size,
        realtime=1_700_000_000_000_000_000,
        monotonic=123,
        boottime=456,
        release="6.1.0",
        version="#1 SMP",
        machine="x86_64",
        host="somewhere",
        boot_id="00000000-0000-0000-0000-000000000000",
        torpor="0.1.0",
        constants=[Constant(name="TASK_COMM_LEN", value=16)],
    )


def pages(owner: int, *runs: tuple[int, int]) -> Pages:
    """A record for the pages of these (start, length)."""
    return Pages(owner=owner, runs=list(runs))


def file_data(owner: int, *runs: tuple[int, int]) -> FileData:
    """A record for the bytes of these (start, length)."""
    return FileData(owner=owner, runs=list(runs))


def write_small(path: Path) -> bytes:
    """Write an image with a bit of everything to `path`; returns its bytes."""
    with ImageWriter.open(path) as image:
        image.add(header())
        image.add(SampleObject(id=1, size=4096))
        image.add_data(pages(1, (0x1000, 4096)), [b"page" * 1024])
        image.add(SampleSkippable(note="hello"))
        image.add_data(file_data(1, (7, 5), (100, 6)), [b"hello", b"world!"])
        image.finish()
    return path.read_bytes()


# --- By hand, from docs/image-format.md -----------------------------------------------------------------------------

MAGIC = b"\x89TORPOR\n"
DATA = {0x80000002: 4096, 0x80000003: 8, 0x80000007: 8}  # what the data behind a record of this type is aligned to


def record(type_word: int, payload: bytes) -> bytes:
    """A record with its length and its CRC."""
    body = struct.pack("<II", type_word, len(payload)) + payload
    return body + struct.pack("<II", zlib.crc32(body), 0)


def of(sample: Record) -> bytes:
    """`sample` as a record in the file, checked by nothing but its own class."""
    return record(sample.type_word, sample.pack())


def data_record(type_word: int, owner: int, runs: list[tuple[int, int]], data: bytes) -> bytes:
    """A data record whose runs may be anything."""
    payload = struct.pack("<QI4xQQII", owner, CRC32, zlib.crc32(data), len(data), len(runs), 16)
    return record(type_word, payload + b"".join(struct.pack("<QQ", *run) for run in runs))


def by_hand(*parts: bytes, with_header: bool = True) -> bytes:
    """A whole image of these records; a part behind a data record is its data, padded here on both sides."""
    image = MAGIC
    records = chunks = data = crc = alignment = 0
    for part in ((of(header()),) if with_header else ()) + parts:
        if alignment:
            image += bytes(-len(image) % alignment) + part + bytes(-len(part) % 8)
            chunks, data, alignment = chunks + 1, data + len(part), 0
        else:
            image += part
            records += 1
            crc = zlib.crc32(part[-8:-4], crc)
            alignment = DATA.get(int.from_bytes(part[:4], "little"), 0)
    trailer = struct.pack("<QQQQI4x", records, chunks, data, len(image) + 56, crc)
    return image + record(4 | MUST_UNDERSTAND, trailer)

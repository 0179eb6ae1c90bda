"""Images as a whole: what is written is read again, and anything else is answered with a sentence."""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.image import samples
from tests.image.samples import (
    SampleObject,
    SampleSkippable,
    by_hand,
    data_record,
    file_data,
    header,
    pages,
    write_small,
)
from torpor.errors import BadImage, TorporError
from torpor.image.format import MAX_CHUNK, DataRecord, FileData, Header, Pages, Trailer
from torpor.image.reader import Image
from torpor.image.record import MUST_UNDERSTAND, Record
from torpor.image.writer import ImageWriter

OBJECT = samples.of(SampleObject(id=1, size=1))


def refusal(path: Path, content: bytes | bytearray) -> str:
    """The sentence with which an image of this `content` is refused."""
    path.write_bytes(content)
    with pytest.raises(BadImage) as error, Image.open(path) as image:
        image.verify_data()
    assert str(error.value).startswith(str(path)), "the sentence names the file"
    return str(error.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "job.img"


# --- Round trips ----------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_again(path: Path) -> None:
    write_small(path)
    with Image.open(path) as image:
        assert image.header == header()
        assert [type(record) for record in image.records] == [SampleObject, Pages, SampleSkippable, FileData]
        assert image.of(SampleObject) == [SampleObject(id=1, size=4096)]
        assert image.by_id(1, SampleObject) is image.records[0]
        assert [(type(record), record.length) for record, _ in image.chunks] == [(Pages, 4096), (FileData, 11)]
        assert [os.pread(image.fd, record.length, at) for record, at in image.chunks] == [
            b"page" * 1024,
            b"helloworld!",
        ]
        assert image.trailer.size == path.stat().st_size
        seen: list[tuple[int, int]] = []
        image.verify_data(lambda done, total: seen.append((done, total)))
        assert seen[-1] == (4107, 4107)


def test_records_are_found_by_class_base_class_and_id(path: Path) -> None:
    write_small(path)
    with Image.open(path) as image:
        assert image.of(DataRecord) == [record for record, _ in image.chunks]
        assert image.of(Record) == image.records
        assert image.of(Trailer) == []
        assert image.by_id(1, Record) == SampleObject(id=1, size=4096)
        with pytest.raises(BadImage, match="#1 is a SampleObject instead of a Pages"):
            image.by_id(1, Pages)
        with pytest.raises(BadImage, match="#2 is no record instead of a SampleObject"):
            image.by_id(2, SampleObject)


@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
def test_pages_lie_at_multiples_of_the_page_size(path: Path, page_size: int) -> None:
    data = os.urandom(3 * page_size)
    with ImageWriter.open(path) as writer:
        writer.add(header(page_size))
        writer.add(SampleObject(id=1, size=1))
        for start in (0, 8 * page_size):
            record = pages(1, (start, page_size), (start + 2 * page_size, 2 * page_size))
            writer.add_data(record, [memoryview(data)[:page_size], data[page_size:]])
        writer.finish()
    with Image.open(path) as image:
        image.verify_data()
        for known, at in image.chunks:
            assert at % page_size == 0
            assert os.pread(image.fd, known.length, at) == data


@given(st.lists(st.lists(st.binary(max_size=3000), max_size=20).filter(any), max_size=5))
def test_data_of_any_length_in_any_pieces(tmp_path_factory: Any, chunks: list[list[bytes]]) -> None:
    path = tmp_path_factory.getbasetemp() / "pieces.img"
    with ImageWriter.open(path) as writer:
        writer.add(header())
        writer.add(SampleObject(id=1, size=1))
        for buffers in chunks:
            writer.add_data(file_data(1, (0, sum(map(len, buffers)))), buffers)
        writer.finish()
    with Image.open(path) as image:
        image.verify_data()
        read = [os.pread(image.fd, record.length, at) for record, at in image.chunks]
    assert read == [b"".join(buffers) for buffers in chunks]


def test_a_header_that_is_written_anew(path: Path) -> None:
    """It may tell of an instant that has come after data was written: the image is the same as if it had been the first word."""
    noise = [os.urandom(4096), os.urandom(1 << 19)]  # the second goes beyond what is collected before it is written
    later = header()
    later.realtime, later.monotonic = later.realtime + 5, 1 << 50
    images = []
    for first in (header(), later):
        with ImageWriter.open(path) as image:
            image.add(first)
            image.add(SampleObject(id=1, size=1))
            image.add_data(pages(1, (0, 4096)), [noise[0]])
            image.add_data(pages(1, (4096, 1 << 19)), [noise[1]])
            if first is not later:
                assert image.can_amend
                image.amend(later)
            image.finish()
        images.append(path.read_bytes())
        with Image.open(path) as read:
            read.verify_data()
            assert read.header.monotonic == 1 << 50
    assert images[0] == images[1]


def test_a_header_that_cannot_be_written_anew(path: Path) -> None:
    """Not before there is one, not by a longer one, and not in a pipe: that would be a bug of the caller."""
    with ImageWriter.open(path) as image:
        with pytest.raises(ValueError, match="cannot take the place"):
            image.amend(header())
        image.add(header())
        longer = header()
        longer.host = "somewhere, and behind it"
        with pytest.raises(ValueError, match="cannot take the place"):
            image.amend(longer)
    receive, send = os.pipe()
    with open(receive, "rb"), open(send, "wb"), ImageWriter.open(send) as image:
        image.add(header())
        assert not image.can_amend
        with pytest.raises(ValueError, match="cannot take the place"):
            image.amend(header())


def test_a_chunk_of_many_pages_goes_out_in_many_pieces(path: Path) -> None:
    """More buffers than one writev takes (IOV_MAX), each from its own place, reused for the next chunk."""
    buffer = bytearray(os.urandom(MAX_CHUNK))
    view = memoryview(buffer)
    scattered = [view[at : at + 4096] for at in range(0, MAX_CHUNK, 8192)]
    with ImageWriter.open(path) as writer:
        writer.add(header())
        writer.add(SampleObject(id=1, size=1))
        writer.add_data(pages(1, *((at, 4096) for at in range(0, MAX_CHUNK, 8192))), scattered)
        first = b"".join(scattered)
        buffer[:] = bytes(MAX_CHUNK)
        writer.add_data(pages(1, (0, MAX_CHUNK)), [buffer])
        writer.finish()
    with Image.open(path) as image:
        image.verify_data()
        assert os.pread(image.fd, MAX_CHUNK // 2, image.chunks[0][1]) == first
        assert not any(os.pread(image.fd, MAX_CHUNK, image.chunks[1][1]))


def test_through_a_pipe_in_both_directions(path: Path) -> None:
    expected = write_small(path)
    source, sink = os.pipe()

    def write() -> None:
        with os.fdopen(sink, "wb"), ImageWriter.open(sink) as writer, Image.open(path) as image:
            writer.add(image.header)
            for record in image.records:
                if isinstance(record, DataRecord):
                    at = dict((id(known), at) for known, at in image.chunks)[id(record)]
                    writer.add_data(record, [os.pread(image.fd, record.length, at)])
                else:
                    writer.add(record)
            writer.finish()

    thread = threading.Thread(target=write)
    thread.start()
    with Image.open(source) as image:
        image.verify_data()
        assert os.pread(image.fd, len(expected) + 1, 0) == expected
    thread.join()
    os.close(source)


def test_a_descriptor_stays_the_callers(path: Path) -> None:
    write_small(path)
    fd = os.open(path, os.O_RDONLY)
    with Image.open(fd) as image:
        assert image.fd == fd
    assert os.lseek(fd, 0, os.SEEK_CUR) == 0, "and its position is where it was"
    os.close(fd)


# --- Damage: no byte can be missing, added or changed ---------------------------------------------------------------


def test_every_flipped_bit_is_refused(path: Path) -> None:
    content = bytearray(write_small(path))
    fd = os.open(path, os.O_RDWR)
    # The raw data and the zeros before it look alike all the way; 64 bytes at each end of them will do.
    offsets = [at for at in range(len(content)) if at < 1024 or at >= 4096 + 4096 - 64 or at % 256 == 0]
    for at in offsets:
        os.pwrite(fd, bytes([content[at] ^ 1 << at % 8]), at)
        with pytest.raises(BadImage), Image.open(fd) as image:
            image.verify_data()
        os.pwrite(fd, content[at : at + 1], at)
    Image.open(fd).verify_data()
    os.close(fd)


def test_every_truncation_is_refused(path: Path) -> None:
    content = write_small(path)
    for length in range(len(content) - 1, -1, -1):
        if length > 1024 and length % 64 and length < 8192:
            continue  # inside of the page and its padding
        os.truncate(path, length)
        with pytest.raises(BadImage, match=r"cut short|is empty"):
            Image.open(path)


def test_one_byte_more_is_refused(path: Path) -> None:
    assert "altered: 1 bytes follow the trailer" in refusal(path, write_small(path) + b"\0")


def test_two_images_in_one_file_are_refused(path: Path) -> None:
    assert "bytes follow the trailer" in refusal(path, write_small(path) * 2)


def test_altered_data_is_found_where_it_lies(path: Path) -> None:
    content = bytearray(write_small(path))
    with Image.open(path) as image:
        at = image.chunks[1][1]
    content[at] ^= 0x80
    sentence = refusal(path, content)
    assert f"FileData of #1 at byte {at}: altered: the hash of the data differs; copy the image again" in sentence


def test_a_file_that_shrinks_while_it_is_read(path: Path) -> None:
    write_small(path)
    with Image.open(path) as image:
        os.truncate(path, image.chunks[0][1] + 10)
        with pytest.raises(BadImage, match="cut short: the file ends at byte"):
            image.verify_data()


def test_an_interrupted_verification_does_not_go_on_behind_our_back(path: Path) -> None:
    with ImageWriter.open(path) as writer:
        writer.add(header())
        writer.add(SampleObject(id=1, size=1))
        for index in range(50):
            writer.add_data(pages(1, (index << 24, 1 << 20)), [bytes(1 << 20)])
        writer.finish()

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with Image.open(path) as image, pytest.raises(KeyboardInterrupt):
        image.verify_data(stop)
    assert threading.active_count() == before


# --- Hostile images: every checksum is right ------------------------------------------------------------------------


def hostile_header(**changed: object) -> bytes:
    record = header()
    for name, value in changed.items():
        setattr(record, name, value)
    payload = bytearray(header().pack())
    struct.pack_into("<HHII", payload, 0, record.major, record.minor, record.arch, record.page_size)
    return samples.record(Header.type_word, bytes(payload))


PAGES = 0x80000002  # Pages

HOSTILE = {
    "no header": (by_hand(OBJECT, with_header=False), "the first record must be a Header"),
    "two headers": (by_hand(samples.of(header())), "the first record must be a Header, and no other"),
    "only a magic": (samples.MAGIC, "cut short: the file ends without a trailer"),
    "newer major": (
        by_hand(hostile_header(major=2, minor=5), with_header=False),
        "its format revision 2.5 is newer than 1.0, the one that is known here; restart it with a newer torpor",
    ),
    "older than the first": (
        by_hand(hostile_header(major=0), with_header=False),
        "Header.major: 0 is not between 1 and 1",
    ),
    "unknown architecture": (by_hand(hostile_header(arch=77), with_header=False), "Header.arch: 77 is none of 1, 2"),
    "page size 0": (by_hand(hostile_header(page_size=0), with_header=False), "Header.page_size: 0 is none of 4096"),
    "unknown type": (
        by_hand(samples.record(0xFEDCBA98, b"")),
        "type 0x7edcba98 is not known here, and must be understood; read it with the torpor that wrote it",
    ),
    "must-understand bit cleared": (
        by_hand(samples.record(SampleObject.type_number, SampleObject(id=1, size=1).pack())),
        "type word 0x7f000001 is not that of SampleObject",
    ),
    "value out of range": (
        by_hand(samples.record(SampleObject.type_word, struct.pack("<QI4x", 1, 0))),
        "SampleObject.size: 0 is not between 1 and 0x100000",
    ),
    "same id twice": (by_hand(OBJECT, OBJECT), "SampleObject.id: #1 is already the id of a SampleObject"),
    "reference to nothing": (
        by_hand(data_record(PAGES, 9, [(0, 4096)], bytes(4096)), bytes(4096)),
        "Pages.owner: refers to #9, which is not an earlier record",
    ),
    "reference forward": (
        by_hand(data_record(PAGES, 1, [(0, 4096)], bytes(4096)), bytes(4096), OBJECT),
        "Pages.owner: refers to #1, which is not an earlier record",
    ),
    "half a page": (
        by_hand(OBJECT, data_record(PAGES, 1, [(0, 2048)], bytes(2048)), bytes(2048)),
        "Pages.runs[0]: 0x0+0x800 is not of whole pages of 4096 bytes",
    ),
    "page out of step": (
        by_hand(OBJECT, data_record(PAGES, 1, [(8, 4096)], bytes(4096)), bytes(4096)),
        "Pages.runs[0]: 0x8+0x1000 is not of whole pages of 4096 bytes",
    ),
    "runs descend": (
        by_hand(OBJECT, data_record(PAGES, 1, [(8192, 4096), (0, 4096)], bytes(8192)), bytes(8192)),
        "Pages: runs[1] starts at 0x0, before the end of the run before it, 0x3000",
    ),
    "runs overlap": (
        by_hand(OBJECT, data_record(PAGES, 1, [(0, 8192), (4096, 4096)], bytes(12288)), bytes(12288)),
        "Pages: runs[1] starts at 0x1000, before the end of the run before it, 0x2000",
    ),
    "runs beyond the last address": (
        by_hand(OBJECT, data_record(PAGES, 1, [((1 << 64) - 4096, 8192)], bytes(8192)), bytes(8192)),
        "Pages: runs[0] ends at 0x10000000000001000, behind the last address",
    ),
    "more data than runs": (
        by_hand(OBJECT, data_record(PAGES, 1, [(0, 4096)], bytes(8192)), bytes(8192)),
        "Pages: the runs have 4096 bytes, the data 8192",
    ),
    "no runs": (by_hand(OBJECT, data_record(PAGES, 1, [], b"")), "Pages.runs: is empty"),
    "too much data": (
        by_hand(OBJECT, data_record(PAGES, 1, [(0, MAX_CHUNK + 4096)], bytes(MAX_CHUNK + 4096))),
        "Pages.runs[0].length: 16781312 is not between 1 and 0x1000000",
    ),
    "data that is not there": (
        samples.MAGIC + samples.of(header()) + OBJECT + data_record(PAGES, 1, [(0, 4096)], bytes(4096)),
        "cut short: data should lie at byte 4096 to 8192, and the file ends at",
    ),
    "padding with something in it": (
        by_hand(OBJECT, data_record(0x80000003, 1, [(0, 3)], b"abc"), b"abc").replace(b"abc\0", b"abc\1"),
        "altered: the padding at byte 355 is not zero",
    ),
    "a record without end": (
        samples.MAGIC + samples.of(header()) + struct.pack("<II", 0x80000002, 0xFFFFFFF8) + bytes(100),
        "altered: a record of 4294967288 bytes cannot be",
    ),
    "a record beyond the file": (
        samples.MAGIC + samples.of(header()) + struct.pack("<II", 0x80000002, 1 << 20) + bytes(100),
        "cut short: 1048592 bytes should follow byte",
    ),
    "a record of odd length": (samples.MAGIC + samples.record(0x80000001, b"abc"), "a record of 3 bytes cannot be"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_images_are_refused_in_words(path: Path, case: str) -> None:
    content, sentence = HOSTILE[case]
    assert sentence in refusal(path, content)


@pytest.mark.parametrize("field", ["records", "chunks", "data", "size", "crc"])
def test_a_trailer_that_disagrees_is_refused(path: Path, field: str) -> None:
    content = write_small(path)
    with Image.open(path) as image:
        trailer = image.trailer
    setattr(trailer, field, getattr(trailer, field) + 1)
    changed = samples.of(trailer)
    what = "the checksum over all records differs" if field == "crc" else f"the trailer says {field} = "
    assert what in refusal(path, content[: -len(changed)] + changed)


def test_an_unknown_record_that_may_be_skipped_is_skipped(path: Path) -> None:
    path.write_bytes(by_hand(samples.record(0x7FFF0000, b"whatever"), OBJECT))
    with Image.open(path) as image:
        assert image.records == [SampleObject(id=1, size=1)]
        assert image.trailer.records == 3


def test_a_newer_minor_revision_can_be_read(path: Path) -> None:
    path.write_bytes(by_hand(hostile_header(minor=9), OBJECT, with_header=False))
    with Image.open(path) as image:
        assert image.header.minor == 9


def test_a_sparse_file_does_not_make_us_take_memory(path: Path) -> None:
    """A record may claim 64 MiB of a file that has them only on paper; more is refused outright."""
    path.write_bytes(samples.MAGIC + samples.of(header()) + struct.pack("<II", 0x80000002, 64 << 20))
    os.truncate(path, 1 << 40)
    with pytest.raises(BadImage, match="the checksum of the record differs"):
        Image.open(path)


@given(st.data())
def test_any_payload_makes_an_image_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """The promise for all images: whatever the bytes, with every checksum right, nothing but BadImage comes out."""
    path = tmp_path_factory.getbasetemp() / "fuzz.img"
    page = bytes(4096)
    parts = [samples.of(header()), OBJECT, data_record(PAGES, 1, [(0, 4096)], page)]
    index = data.draw(st.integers(0, len(parts) - 1))
    payload = bytearray(parts[index][8:-8])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(payload) - 1))
        payload[at] = data.draw(st.integers(0, 255))
    parts[index] = samples.record(int.from_bytes(parts[index][:4], "little"), bytes(payload))
    path.write_bytes(by_hand(*parts, page, with_header=False))
    try:
        with Image.open(path) as image:
            image.verify_data()
    except BadImage as error:
        assert len(str(error)) < 600


# --- What is no image at all ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty, so it is no image; check that the checkpoint succeeded"),
        (b"\x89TOR", "is an image cut short after 4 bytes; copy the image again"),
        (b"\x7fELF\2\1\1" + bytes(100), "is not an image: it does not start as one; name the file of a checkpoint"),
        (b"#!/bin/sh\n", "is not an image: it does not start as one; name the file of a checkpoint"),
    ],
)
def test_what_is_no_image_is_told_so(path: Path, content: bytes, sentence: str) -> None:
    assert refusal(path, content) == f"{path}: {sentence}"


def test_a_pipe_that_holds_no_image_is_refused_at_once() -> None:
    with open("/dev/zero", "rb") as endless, pytest.raises(BadImage, match=r"descriptor \d+: is not an image"):
        Image.open(endless.fileno())
    with open("/dev/null", "rb") as nothing, pytest.raises(BadImage, match=r"descriptor \d+: is empty"):
        Image.open(nothing.fileno())


def test_files_that_cannot_be_read_are_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(TorporError, match=r"missing: cannot read the image: No such file or directory; check the path"):
        Image.open(tmp_path / "missing")
    with pytest.raises(TorporError, match=r"cannot read the image: it is a directory; name a file in it"):
        Image.open(tmp_path)


# --- The writer's own rules -----------------------------------------------------------------------------------------


def test_the_writer_refuses_what_the_reader_would(path: Path) -> None:
    def attempt(*records: Record, data: bytes = b"") -> str:
        with pytest.raises(ValueError) as error, ImageWriter.open(path) as writer:
            for record in records:
                if isinstance(record, DataRecord):
                    writer.add_data(record, [data])
                else:
                    writer.add(record)
            writer.finish()
        assert list(path.parent.iterdir()) == [], "nothing is left of the attempt"
        return str(error.value)

    one = SampleObject(id=1, size=1)
    assert "only the first is a Header" in attempt(one)
    assert "only the first is a Header" in attempt(header(), header())
    assert "without a Header" in attempt()
    assert "Trailer is not for add()" in attempt(header(), Trailer(records=1, chunks=0, data=0, size=0, crc=0))
    assert attempt(header(), one, one) == "SampleObject.id: #1 is already the id of a SampleObject"
    assert attempt(header(), SampleObject(id=1, size=0)) == "SampleObject.size: 0 is not between 1 and 0x100000"
    assert attempt(header(), pages(1, (0, 4096)), data=bytes(4096)).startswith("Pages.owner: refers to #1")
    assert attempt(header(), one, pages(1, (0, 4096)), data=bytes(8)) == "Pages: the runs have 4096 bytes, the data 8"
    assert "not of whole pages" in attempt(header(), one, pages(1, (0, 8)), data=bytes(8))


def test_by_hand_and_by_the_writer_are_the_same(path: Path) -> None:
    page, words = b"page" * 1024, b"helloworld!"
    image = by_hand(
        samples.of(SampleObject(id=1, size=4096)),
        data_record(0x80000002, 1, [(0x1000, 4096)], page),
        page,
        samples.of(SampleSkippable(note="hello")),
        data_record(0x80000003, 1, [(7, 5), (100, 6)], words),
        words,
    )
    assert write_small(path) == image
    assert MUST_UNDERSTAND | Pages.type_number == 0x80000002

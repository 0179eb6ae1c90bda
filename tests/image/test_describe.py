"""The format page is what the declarations say, and it suffices to read an image with nothing else."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

from tests.conftest import ROOT, SRC
from tests.image.samples import SampleObject, header, pages
from torpor.image.describe import prose, table
from torpor.image.fields import flags, text, u8, u32
from torpor.image.record import Record
from torpor.image.writer import ImageWriter

PAGE = ROOT / "docs" / "image-format.md"


class SampleDescribed(Record):
    """The first line.

    A second paragraph.
    """

    size: int = u8("in | bytes")
    name: str = text("its name", max=10)
    more: int = u32("behind it")
    late: int = flags(32, {0: "A", 4: "B"}, "of a later revision", since=3, default=0)


def test_the_page_is_up_to_date() -> None:
    """If not: python -m torpor.image.describe > docs/image-format.md"""
    made = subprocess.run(
        [sys.executable, "-m", "torpor.image.describe"],
        env=os.environ | {"PYTHONPATH": str(SRC)},
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    assert made.decode() == PAGE.read_text(), "make it again: python -m torpor.image.describe > docs/image-format.md"


def test_a_row_for_every_field() -> None:
    assert prose(SampleDescribed) == "The first line.\n\nA second paragraph."
    assert table(SampleDescribed).splitlines()[2:] == [
        r"| 0 | u8 | `size` | in \| bytes |  |",
        "| 8 | text | `name` | its name | at most 10 bytes |",
        "| var | u32 | `more` | behind it |  |",
        "| var | u32 | `late` | of a later revision (since 1.3, before that 0) | bit 0 A, bit 4 B |",
    ]


def test_an_independent_reader(tmp_path: Path) -> None:
    """Nothing here comes from torpor.image but the file: the page's own numbers are enough (R-B3, R-B6)."""
    path = tmp_path / "job.img"
    with ImageWriter.open(path) as image:
        image.add(header())
        image.add(SampleObject(id=7, size=99))
        image.add_data(pages(7, (0x400000, 4096), (0x7F0000000000, 8192)), [b"a" * 4096, b"b" * 8192])
        image.finish()
    data = path.read_bytes()

    assert data[:8] == bytes.fromhex("89 54 4f 52 50 4f 52 0a")
    at, crcs, seen = 8, b"", []
    while at < len(data):
        kind, length = struct.unpack_from("<II", data, at)
        crc, zero = struct.unpack_from("<II", data, at + 8 + length)
        assert (zlib.crc32(data[at : at + 8 + length]), 0) == (crc, zero)
        payload = data[at + 8 : at + 8 + length]
        at += 16 + length
        seen.append(kind)
        if kind == 0x80000001:  # Header
            major, minor, arch, page_size, flags, realtime, monotonic, boottime = struct.unpack_from(
                "<HHIIIqQQ", payload
            )
            assert (major, minor, arch, page_size, flags) == (1, 0, 2, 4096, 0)
            assert (realtime, monotonic, boottime) == (1_700_000_000_000_000_000, 123, 456)
            size, one = struct.unpack_from("<II", payload, 40)
            assert (payload[48 : 48 + size], one) == (b"6.1.0", 1)
        elif kind == 0x80000002:  # Pages
            owner, algorithm, hash, length, count, each = struct.unpack_from("<QI4xQQII", payload)
            assert (owner, algorithm, length, count, each) == (7, 1, 12288, 2, 16)
            assert struct.unpack_from("<4Q", payload, 40) == (0x400000, 4096, 0x7F0000000000, 8192)
            start = -(-at // page_size) * page_size
            assert data[start : start + length] == b"a" * 4096 + b"b" * 8192
            assert zlib.crc32(data[start : start + length]) == hash
            at = start + length
        elif kind == 0x80000004:  # Trailer
            records, chunks, raw, size, total = struct.unpack_from("<QQQQI", payload)
            assert (records, chunks, raw, size, total) == (3, 1, 12288, len(data), zlib.crc32(crcs))
        crcs += struct.pack("<I", crc)
    assert seen == [0x80000001, 0xFF000001, 0x80000002, 0x80000004]

"""The format page: everything that docs/image-format.md says about a record comes from its declaration.

    python -m torpor.image.describe > docs/image-format.md

Modules named as arguments are imported first, so that their records are known; without arguments these are
torpor.arch and torpor.objects, and what a package lists in its `ALL`.
"""

from __future__ import annotations

import importlib
import sys
import textwrap

from . import format
from .kinds import Structs
from .record import RECORDS, Run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .kinds import Field
    from .record import Struct

INTRODUCTION = f"""\
# The image format

<!-- Made by `python -m torpor.image.describe` from the declarations in the code. Change those, then make it again. -->

An image is one file, written in one forward pass: it can go through a pipe in both directions. All numbers are
little-endian and of explicit width, on every architecture; everything begins at a multiple of 8 bytes.

## The file

| Part | Bytes |
|---|---|
| magic | `89 54 4f 52 50 4f 52 0a` |
| Header | a record |
| everything else | records; behind some of them their raw data |
| Trailer | a record; nothing follows it |

This page is revision {format.MAJOR}.{format.MINOR} of the format. A reader refuses an image of a newer major revision.
A newer minor revision added fields at the end of records, or records that may be skipped.

## A record

| Offset | Type | Name | Meaning |
|---|---|---|---|
| 0 | u32 | type | the number of the record; bit 31 set: *must be understood* |
| 4 | u32 | length | of the payload in bytes: a multiple of 8, at most {format.MAX_PAYLOAD} |
| 8 | | payload | the fields |
| 8 + length | u32 | crc | CRC-32 (as in zlib) of everything before it in the record |
| 12 + length | u32 | | zero |

A reader that does not know a type refuses the image if the type must be understood, and else skips the record.

Objects are named once and referred to afterwards: an `ident` is the id of a record, unique in the image and never 0;
a `ref` is the id of a record *earlier* in the image. So nothing in an image is circular.

## Fields

The fields of a payload lie in the order of the tables below.

| Type | Bytes | Alignment | |
|---|---|---|---|
| u8, u16, u32, u64 | 1, 2, 4, 8 | the same | unsigned number |
| i8, i16, i32, i64 | 1, 2, 4, 8 | the same | signed number, two's complement |
| ident, ref | 8 | 8 | as u64 |
| raw *n* | *n* | 1 | *n* bytes |
| blob | 8 + bytes | 8 | u32 number of bytes, u32 1, the bytes |
| text | 8 + bytes | 8 | as blob: UTF-8 without NUL. Names that are not UTF-8 are kept as the bytes they are |
| u32[] and the like | 8 + elements | 8 | u32 number of elements, u32 bytes of one, the elements |
| *Struct*[] | 8 + elements | 8 | u32 number of elements, u32 bytes of one, the elements; see below |

Gaps between fields of fixed width are zero. What follows a field of variable length, or a payload's last field, is at
the next multiple of 8, and the bytes before it are zero. In the tables, *var* is an offset behind a field of variable
length.

The elements of a *Struct*[] are laid out as payloads are. When they have no field of variable length, all are of the
same length, and the count says so. When they have one, the count says 0 for the length, and in front of every element
are u32 length in bytes, u32 1.

**Growth.** Fields are added at the end, at the next multiple of 8, never changed or removed. A payload or element that
is longer than the table is read as far as the table goes. One that ends where a later revision added fields has the
default values for these; the tables say *since* which revision.

## Raw data

The data of `Pages` begins at the first multiple of the Header's `page_size` behind the record, that of `FileData` and
`CompressedPages` right behind the record. It is followed by zeros to a multiple of 8; all padding is zero. The record says
where the data belongs: its runs are ascending, do not overlap, and their lengths add up to that of the data (before it was
compressed), which is at most {format.MAX_CHUNK >> 20} MiB. `Pages` and `CompressedPages` consist of whole pages.

Pages may lie in earlier images of the same program. A `ParentImage` names one and says how it is recognised: by the size and
the CRC of its Trailer and the time in its Header. `EarlierPages` says which pages lie in which of its pieces of data, or in one
of this image's own: what is equal is stored once. It always means the image in which the data really lies: that one's own
parents do not matter. Pages that a `Draft` owns were saved before the instant of which the image tells, and belong to nothing by
themselves.

## Integrity

The CRC of every record, the hash of every piece of data, the zeros between them, and the counts and the CRC over all in
the Trailer leave no byte uncovered. This is against accidents. An image that somebody made on purpose has correct sums:
therefore every value is checked against the last column of these tables before it is used.
"""


def describe() -> str:
    """The whole page, for all record classes that have been imported, in the order of their numbers."""
    sections = [INTRODUCTION, "## The records\n"]
    shown: set[type[Struct]] = set()
    for number, cls in sorted(RECORDS.items()):
        skip = ", may be skipped" if cls.optional else ""
        sections.append(f"### {cls.__name__} ({number:#06x}{skip})\n\n{prose(cls)}\n\n{table(cls)}")
        for element in nested(cls):
            if element not in shown:
                shown.add(element)
                sections.append(f"#### {element.__name__}[]\n\n{prose(element)}\n\n{table(element)}")
    return "\n".join(sections)


def prose(cls: type[Struct]) -> str:
    """The docstring, as paragraphs."""
    first, _, rest = (cls.__doc__ or "").strip().partition("\n")
    return f"{first}\n{textwrap.dedent(rest)}".strip()


def table(cls: type[Struct]) -> str:
    """The fields of `cls`, a row each."""
    rows = ["| Offset | Type | Name | Meaning | Values |", "|---|---|---|---|---|"]
    for field, offset in zip(cls.declared, offsets(cls), strict=True):
        cells = (offset, field.kind, f"`{field.name}`", meaning(field), field.values())
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def meaning(field: Field) -> str:
    """The doc of `field`; when it was added later also by which revision, and its value in images before that."""
    if not field.since:
        return field.doc
    return f"{field.doc} (since {format.MAJOR}.{field.since}, before that {field.show(field.initial())})"


def offsets(cls: type[Struct]) -> Iterator[str]:
    """Where each field of `cls` begins in the payload."""
    at: int | None = 0
    for part in cls.parts:
        if isinstance(part, Run):
            for offset in part.offsets:
                yield "var" if at is None else str(at + offset)
            at = None if at is None else at + part.packer.size
        else:
            yield "var" if at is None else str(at)
            at = None


def nested(cls: type[Struct]) -> Iterator[type[Struct]]:
    """The structs that `cls` has lists of, and those that these have."""
    for field in cls.declared:
        if isinstance(field, Structs):
            yield field.of
            yield from nested(field.of)


def main(modules: list[str]) -> None:
    """Import `modules` and print the page."""
    for name in modules or ["torpor.arch", "torpor.objects"]:
        module = importlib.import_module(name)
        for further in getattr(module, "ALL", ()):
            if isinstance(further, str):
                importlib.import_module(further)
    sys.stdout.write(describe())


if __name__ == "__main__":
    main(sys.argv[1:])

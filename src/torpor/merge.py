"""One image of a chain: what lies in earlier images is copied into it, and nothing else changes."""

from __future__ import annotations

import os

from torpor import arch
from torpor.image.chain import open_parents
from torpor.image.format import CompressedPages, DataRecord, EarlierPages, Pages, ParentImage, laid_out
from torpor.image.reader import Image
from torpor.image.writer import ImageWriter
from torpor.objects import plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Progress = Callable[[int, int], None]

assert arch and plan  # with them, every record is known


def merge(source: str | os.PathLike[str] | int, output: str | os.PathLike[str] | int, progress: Progress | None = None) -> None:
    """Write what is in the image `source` into `output`, as an image that needs no other.

    Each is a path, "-" (standard input, standard output) or a descriptor; `output` may be the image itself. All data is verified
    on the way. What is compressed stays so, if all of its chunk is needed. Raises BadImage, TorporError, NoPermission; then no
    file has appeared.
    """
    with Image.open(source) as image:
        open_parents(image)
        total = image.trailer.data + sum(sum(pages.lengths) for pages in image.of(EarlierPages) if pages.image)
        done = 0
        numbers: list[int] = []  # of the image's chunks -> in the new image
        offsets = {id(record): offset for record, offset in image.chunks}
        with ImageWriter.open(output) as writer:
            writer.add(image.header)
            for record in image.records:
                if isinstance(record, DataRecord):
                    numbers.append(writer.chunks)
                    writer.add_data(record, [image.stored(record, offsets[id(record)])])
                    done += record.stored
                elif isinstance(record, EarlierPages) and not record.image:
                    record.chunks = [numbers[chunk] for chunk in record.chunks]
                    writer.add(record)
                elif isinstance(record, EarlierPages):
                    _add_pages(writer, image, record)
                    done += sum(record.lengths)
                elif not isinstance(record, ParentImage):
                    writer.add(record)
                if progress:
                    progress(done, total)
            writer.finish()


def _add_pages(writer: ImageWriter, image: Image, pages: EarlierPages) -> None:
    """Add pages of a parent with their data."""
    parent = image.parents[pages.image]
    for chunk, places in pages.by_chunk():
        record, offset = parent.chunks[chunk]
        runs = [(start, length) for start, length, _ in places]
        if isinstance(record, CompressedPages) and sum(length for _, length in runs) == record.length and places == laid_out(runs):
            whole = CompressedPages(owner=pages.owner, runs=runs, length=record.length, compressed=record.compressed)
            writer.add_data(whole, [parent.stored(record, offset)])
        else:
            data = parent.data(record, offset)
            writer.add_data(Pages(owner=pages.owner, runs=runs), [data[at : at + length] for _, length, at in places])

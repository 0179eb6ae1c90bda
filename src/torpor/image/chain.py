"""Images whose data lies partly in earlier ones of the same program (`--parent`).

An image names every earlier image that it needs data of, and of each piece the chunk it is in: an earlier image is only a store
of chunks, whatever that one's own parents are. So nothing is followed from image to image, and there can be no circle.
"""

from __future__ import annotations

import os
import stat

from torpor.errors import BadImage, NoPermission, Obstacle

from .format import CompressedPages, Draft, EarlierPages, Pages, ParentImage, laid_out
from .reader import Image

ALTERED = "restore the file as it was, or take a new checkpoint"


class Source:
    """Pages of one address space that lie in one chunk: `runs` of (address, bytes, bytes from the start of the chunk's data).

    The chunk is number `chunk` of `image`, `record` its record, and `offset` where its data begins in the file.
    """

    __slots__ = ("chunk", "image", "offset", "record", "runs")

    def __init__(self, image: Image, chunk: int, runs: list[tuple[int, int, int]]) -> None:
        self.image, self.chunk, self.runs = image, chunk, runs
        self.record, self.offset = image.chunks[chunk]

    def read(self, view: memoryview, at: int) -> None:
        """Fill `view` with the chunk's data from byte `at` on, unverified. BadImage, TorporError."""
        if isinstance(self.record, CompressedPages):
            view[:] = self.image.data(self.record, self.offset)[at : at + len(view)]
        else:
            self.image.fill(view, self.offset + at)


def open_parents(image: Image) -> None:
    """Open the earlier images that data of `image` lies in, and check that they are those it means.

    Raises BadImage where one is missing, is another than that, or has not what is looked for in it; NoPermission where it may not
    be read. `image` closes them.
    """
    try:
        for parent in image.of(ParentImage):
            image.parents[parent.id] = _open(image, parent)
        image.parents[0] = image
        for pages in image.of(EarlierPages):
            if reason := _fault(image, pages):
                raise BadImage(Obstacle(f"{image.name}: EarlierPages of #{pages.owner}", reason, "take another checkpoint"))
    except BaseException:
        image.close_parents()  # nobody is to use them unchecked
        raise


def place_of(image: Image, parent: ParentImage) -> str:
    """Where a parent's file is: where the image says, or, when both have been moved, beside the image."""
    told = os.path.join(image.directory, parent.name)
    beside = os.path.join(image.directory, os.path.basename(parent.name))
    return beside if not os.path.lexists(told) and os.path.lexists(beside) else told


def _open(image: Image, parent: ParentImage) -> Image:
    path = place_of(image, parent)
    what = f"{path!r}, in which some of the data of {image.name} lies"
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe could last for ever
            raise BadImage(Obstacle(what, "is no file", ALTERED))
        found = Image.open(path, store=True)
    except FileNotFoundError:
        remedy = "put it back beside the image, or take a checkpoint without --parent"
        raise BadImage(Obstacle(what, "is not there", remedy)) from None
    except OSError as error:
        kind = NoPermission if isinstance(error, PermissionError) else BadImage
        raise kind(Obstacle(what, f"cannot be read: {error.strerror}", ALTERED)) from None
    trailer, header = found.trailer, found.header
    if (trailer.size, trailer.crc, header.realtime) != (parent.size, parent.crc, parent.realtime):
        found.close()
        raise BadImage(Obstacle(what, "is another image than that, or has been altered", ALTERED))
    if header.page_size != image.header.page_size:
        found.close()
        raise BadImage(Obstacle(what, f"has pages of {header.page_size} bytes", "take another checkpoint"))
    return found


def _fault(image: Image, pages: EarlierPages) -> str | None:
    """What is wrong with where these pages are said to lie."""
    holder, unit = image.parents[pages.image], image.header.page_size
    for chunk in sorted(set(pages.chunks)):
        if chunk >= len(holder.chunks):
            return f"there is no chunk {chunk} in {holder.name!r}"
        if not isinstance(holder.chunks[chunk][0], Pages):
            return f"chunk {chunk} of {holder.name!r} holds no pages"
    for start, length, chunk, at in zip(pages.starts, pages.lengths, pages.chunks, pages.offsets, strict=True):
        if (start | length | at) % unit:
            return f"{start:#x}+{length:#x} at {at:#x} is not of whole pages"
        if at + length > holder.chunks[chunk][0].length:
            return f"the run at {start:#x} ends behind the data of chunk {chunk}"
    return None


def sources(image: Image) -> dict[int, list[Source]]:
    """For each address space, where its pages lie; what came before is left out unless `open_parents` has found it in order."""
    found: dict[int, list[Source]] = {}
    drafts = {draft.id for draft in image.of(Draft)}  # what of them counts is among the EarlierPages
    for chunk, (record, _) in enumerate(image.chunks):
        if isinstance(record, Pages) and record.owner not in drafts:
            found.setdefault(record.owner, []).append(Source(image, chunk, laid_out(record.runs)))
    for pages in image.of(EarlierPages):
        if parent := image.parents.get(pages.image):
            found.setdefault(pages.owner, []).extend(Source(parent, chunk, runs) for chunk, runs in pages.by_chunk())
    return found

"""The pages of memory on their way into an image: read from a process, or from the copy of one, in chunks.

Anonymous pages that hold nothing but zeros are left out: they are what a fresh mapping has. (Where huge pages are given to
everybody, most of what a program has may never have been written.)
"""

from __future__ import annotations

import ctypes
import os

from torpor.image.format import DataRun as Run
from torpor.image.format import Pages
from torpor.linux import memory
from torpor.linux.libc import PAGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torpor.image.writer import ImageWriter
    from torpor.linux.procfs import Mapping
    from torpor.tasks.task import Process

    Progress = Callable[[int, int], None]
    PageRun = tuple[Mapping, int, int]

CHUNK = 4 << 20
"""Bytes of memory that are read, hashed and written at a time."""


class PageWriter:
    """Writes pages behind the records of the address spaces that they belong to."""

    def __init__(self, writer: ImageWriter, progress: Progress | None) -> None:
        self._writer, self._progress = writer, progress
        self._done = self._total = 0
        self._buffer = bytearray()

    def write(self, owner: int, source: Process, runs: Sequence[PageRun], *, fresh: bool) -> None:
        """The pages `runs` (mapping, address, bytes) of the address space with the id `owner`, as `source` has them.

        In as few reads as possible, of at most CHUNK bytes. `fresh`: what the image leaves out will be as new, and not as in an
        address space that this one is to be a fork of. Raises OSError, TorporError.
        """
        wanted = sum(length for _, _, length in runs)
        if not wanted:
            return
        self._total += wanted
        if len(self._buffer) < min(CHUNK, wanted):
            self._buffer = bytearray(min(CHUNK, wanted))  # no longer than that: its pages are all touched here
        buffer = self._buffer
        target = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        view = memoryview(buffer)
        chunk: list[tuple[int, int]] = []
        readable = anonymous = True
        size = 0

        def flush() -> None:
            nonlocal chunk, size
            if not chunk:
                return
            if readable:
                memory.read_into(source.pid, chunk, target, size)
            else:
                at = 0
                for address, length in chunk:
                    if os.preadv(source.mem, [view[at : at + length]], address) != length:
                        raise OSError(14, f"/proc/{source.pid}/mem: short read at {address:#x}")
                    at += length
            kept, data = _without_zeros(chunk, view[:size]) if anonymous and fresh else (chunk, [view[:size]])
            if kept:
                self._writer.add_data(Pages(owner=owner, runs=[Run(start=start, length=length) for start, length in kept]), data)
            self._done += size
            if self._progress:
                self._progress(self._done, self._total)
            chunk, size = [], 0

        for mapping, address, length in runs:
            if (mapping.readable, not mapping.inode) != (readable, anonymous):
                flush()
                readable, anonymous = mapping.readable, not mapping.inode
            while length:
                if size == CHUNK or len(chunk) == memory.IOV_MAX:
                    flush()
                part = min(length, CHUNK - size)
                chunk.append((address, part))
                address, length, size = address + part, length - part, size + part
        flush()


def _without_zeros(runs: list[tuple[int, int]], data: memoryview) -> tuple[list[tuple[int, int]], list[memoryview]]:
    """The runs (address, bytes) of pages, and the parts of their `data`, that hold more than zeros."""
    # Few pages begin with a zero word: only those are looked at whole.
    words = data.cast("Q")[:: PAGE // 8].tolist()
    if 0 not in words:
        return runs, [data]
    nothing = bytes(PAGE)
    kept: list[tuple[int, int]] = []
    parts: list[memoryview] = []
    at = 0
    for address, length in runs:
        start = at  # of what is to be kept
        for page in range(at, at + length, PAGE):
            if not words[page // PAGE] and bytes(data[page : page + PAGE]) == nothing:
                if page > start:
                    kept.append((address + start - at, page - start))
                    parts.append(data[start:page])
                start = page + PAGE
        if at + length > start:
            kept.append((address + start - at, at + length - start))
            parts.append(data[start : at + length])
        at += length
    return kept, parts

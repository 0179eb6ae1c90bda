"""The pages of memory on their way into an image: read from a process, or from the copy of one, in chunks."""

from __future__ import annotations

import ctypes
import os

from torpor.image.format import DataRun as Run
from torpor.image.format import Pages
from torpor.linux import memory

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

    def write(self, owner: int, source: Process, runs: Sequence[PageRun]) -> None:
        """The pages `runs` (mapping, address, bytes) of the address space with the id `owner`, as `source` has them.

        In as few reads as possible, of at most CHUNK bytes. Raises OSError, TorporError.
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
        readable = True
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
            record = Pages(owner=owner, runs=[Run(start=address, length=length) for address, length in chunk])
            self._writer.add_data(record, [view[:size]])
            self._done += size
            if self._progress:
                self._progress(self._done, self._total)
            chunk, size = [], 0

        for mapping, address, length in runs:
            if mapping.readable != readable:
                flush()
                readable = mapping.readable
            while length:
                if size == CHUNK or len(chunk) == memory.IOV_MAX:
                    flush()
                part = min(length, CHUNK - size)
                chunk.append((address, part))
                address, length, size = address + part, length - part, size + part
        flush()

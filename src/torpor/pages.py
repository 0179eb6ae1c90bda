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
    from collections.abc import Callable, Iterator, Sequence

    from torpor.image.writer import ImageWriter
    from torpor.linux.procfs import Mapping
    from torpor.tasks.task import Process

    Progress = Callable[[int, int], None]
    PageRun = tuple[Mapping, int, int]

CHUNK = 4 << 20
"""Bytes of memory that are read, hashed and written at a time."""

TWO_THREADS = 16 << 20
"""Bytes from which it pays that one thread reads while another one hashes and writes."""

BUFFERS = 3
"""Chunks that these two threads have in hand at most, whatever the size of the program."""


class Chunk:
    """Pages that are read and written together: `runs` (address, bytes), `size` bytes in all, of mappings alike."""

    __slots__ = ("anonymous", "readable", "runs", "size")

    def __init__(self, mapping: Mapping) -> None:
        self.runs: list[tuple[int, int]] = []
        self.size = 0
        self.readable, self.anonymous = mapping.readable, not mapping.inode


class PageWriter:
    """Writes pages behind the records of the address spaces that they belong to."""

    def __init__(self, writer: ImageWriter, progress: Progress | None) -> None:
        self._writer, self._progress = writer, progress
        self._done = self._total = 0
        self._buffers: list[bytearray] = []

    def write(self, owner: int, source: Process, runs: Sequence[PageRun], *, fresh: bool) -> None:
        """The pages `runs` (mapping, address, bytes) of the address space with the id `owner`, as `source` has them.

        In as few reads as possible, of at most CHUNK bytes. `fresh`: what the image leaves out will be as new, and not as in an
        address space that this one is to be a fork of. Raises OSError, TorporError.
        """
        wanted = sum(length for _, _, length in runs)
        self._total += wanted
        if wanted >= TWO_THREADS:
            self._write_by_two(owner, source, runs, fresh)
            return
        for chunk in chunks(runs):
            buffer = self._buffers.pop() if self._buffers else bytearray()
            if len(buffer) < chunk.size:
                buffer = bytearray(min(CHUNK, wanted))  # no longer than that: its pages are all touched here
            _read(source, chunk, buffer)
            self._put(owner, chunk, buffer, fresh)
            self._buffers.append(buffer)
            self._tell(chunk)

    def _write_by_two(self, owner: int, source: Process, runs: Sequence[PageRun], fresh: bool) -> None:
        """The same, by this thread, which reads, and another one. While they work they do not hold the interpreter's lock."""
        from queue import SimpleQueue
        from threading import Thread

        empty: SimpleQueue[bytearray] = SimpleQueue()
        full: SimpleQueue[tuple[Chunk, bytearray] | None] = SimpleQueue()
        for _ in range(BUFFERS):
            buffer = self._buffers.pop() if self._buffers else bytearray()
            empty.put(buffer if len(buffer) == CHUNK else bytearray(CHUNK))
        failures: list[BaseException] = []

        def put_all() -> None:
            while job := full.get():
                chunk, buffer = job
                try:
                    if not failures:
                        self._put(owner, chunk, buffer, fresh)
                except BaseException as error:
                    failures.append(error)
                empty.put(buffer)

        other = Thread(target=put_all, name="torpor writes pages")
        other.start()
        try:
            for chunk in chunks(runs):
                buffer = empty.get()
                if failures:
                    break
                _read(source, chunk, buffer)
                full.put((chunk, buffer))
                self._tell(chunk)
        finally:
            full.put(None)
            other.join()
        if failures:
            raise failures[0]
        self._buffers += [empty.get() for _ in range(BUFFERS)]

    def _put(self, owner: int, chunk: Chunk, buffer: bytearray, fresh: bool) -> None:
        """Write what has been read, but for zeros."""
        kept, data = chunk.runs, [memoryview(buffer)[: chunk.size]]
        if chunk.anonymous and fresh:
            kept, data = _without_zeros(kept, data[0])
        if kept:
            self._writer.add_data(Pages(owner=owner, runs=[Run(start=start, length=length) for start, length in kept]), data)

    def _tell(self, chunk: Chunk) -> None:
        self._done += chunk.size
        if self._progress:
            self._progress(self._done, self._total)


def chunks(runs: Sequence[PageRun]) -> Iterator[Chunk]:
    """What is to be read at a time, in the order of `runs`."""
    chunk: Chunk | None = None
    for mapping, address, length in runs:
        if chunk and (chunk.readable, chunk.anonymous) != (mapping.readable, not mapping.inode):
            yield chunk
            chunk = None
        while length:
            if chunk and (chunk.size == CHUNK or len(chunk.runs) == memory.IOV_MAX):
                yield chunk
                chunk = None
            chunk = chunk or Chunk(mapping)
            part = min(length, CHUNK - chunk.size)
            chunk.runs.append((address, part))
            chunk.size += part
            address, length = address + part, length - part
    if chunk:
        yield chunk


def _read(source: Process, chunk: Chunk, buffer: bytearray) -> None:
    """Read a chunk into the beginning of `buffer`. Raises OSError."""
    if chunk.readable:
        memory.read_into(source.pid, chunk.runs, ctypes.addressof(ctypes.c_char.from_buffer(buffer)), chunk.size)
        return
    view, at = memoryview(buffer), 0
    for address, length in chunk.runs:
        if os.preadv(source.mem, [view[at : at + length]], address) != length:
            raise OSError(14, f"/proc/{source.pid}/mem: short read at {address:#x}")
        at += length


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

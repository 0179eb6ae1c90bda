"""The pages of memory on their way into an image: read from a process, or from the copy of one, in chunks.

Anonymous pages that hold nothing but zeros are left out: they are what a fresh mapping has. (Where huge pages are given to
everybody, most of what a program has may never have been written.)
"""

from __future__ import annotations

import ctypes
import os
from _thread import allocate_lock

from torpor.image.format import MAX_CHUNK, MAX_PLACES, CompressedPages, EarlierPages, Pages, laid_out
from torpor.image.format import parts as in_parts
from torpor.image.known import Saved
from torpor.image.writer import hash_of
from torpor.linux import memory
from torpor.linux.libc import PAGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from mmap import mmap

    from torpor.image.chain import Source
    from torpor.image.known import Drafted, Known
    from torpor.linux.procfs import Mapping
    from torpor.objects.saving import Saving
    from torpor.parent import Parent
    from torpor.tasks.task import Process

    Progress = Callable[[int, int], None]
    PageRun = tuple[Mapping, int, int]
    Kept = dict[Source | Saved, list[tuple[int, int, int]]]

CHUNK = 4 << 20
"""Bytes of memory that are read, hashed and written at a time."""

LARGE = 2 << 30
"""Bytes of a process from which they are MAX_CHUNK at a time: its image has fewer records to be looked at before it runs again."""

TWO_THREADS = 16 << 20
"""Bytes from which it pays that one thread reads while another one hashes and writes."""

READ_AHEAD = 16 << 20
"""Bytes of smaller memories that are read while a program stands still and written when it does not any more."""

BUFFERS = 3
"""Chunks that these two threads have in hand at most, whatever the size of the program; each further thread another small one."""

WRITERS = 2
"""Threads that hash and write at most: while one waits for the disk, another one hashes."""

COMPRESSORS = 4
"""Threads that compress at most: each has a chunk in hand, and what it compares that with."""

UNPACKED = 2
"""Decompressed chunks of a parent that each of them has at hand."""


class Chunk:
    """Pages that are read and written together: `runs` (address, bytes), `size` bytes in all, of mappings alike."""

    __slots__ = ("anonymous", "readable", "runs", "size")

    def __init__(self, mapping: Mapping) -> None:
        self.runs: list[tuple[int, int]] = []
        self.size = 0
        self.readable, self.anonymous = mapping.readable, not mapping.inode


class Selection:
    """Of the pages of a process, `runs` (mapping, address, bytes) are to be read, `size` bytes in all; the `rest` is in an image.

    `compared_with`: in what memory of the parent those that are read may be found as well.
    """

    def __init__(self, runs: Sequence[PageRun], known: Known | None, rest: Sequence[tuple[int, int]] | None = None) -> None:
        self.runs, self.size = runs, sum(length for _, _, length in runs)
        self.compared_with = known if rest is None else None
        self._known, self._rest = known, rest or ()

    def find_rest(self, kept: Kept) -> None:
        """Enter where the rest lies. It takes its time, and is done when nothing stands still."""
        rest, self._rest = self._rest, ()
        for start, length, source, offset in self._known.split(rest) if self._known else ():
            if source:
                kept.setdefault(source, []).append((start, length, offset))


class PageWriter:
    """Writes pages behind the records of the address spaces that they belong to.

    `level`: that of compression (zstd), 0 for none. `parent`: the earlier image in which pages may be found.
    """

    def __init__(self, saving: Saving, progress: Progress | None, level: int = 0, parent: Parent | None = None) -> None:
        self._saving, self._writer, self._progress = saving, saving.writer, progress
        self._room = self._left = memoryview(b"")
        self._level, self._parent = level, parent
        self.known = dict(parent.known) if parent else {}
        """By the id that a process knows itself by, what is in an image of its memory."""
        self._done = self._total = 0
        self._buffers: list[mmap] = []
        self._lock = allocate_lock()
        """Held by a thread that adds a record."""
        self._written: dict[tuple[int, int, int], tuple[int, int]] = {}
        """(hash, bytes, bytes in the file) of each chunk written -> its number, and where it lies."""
        self._read: list[tuple[Callable[[], _Job], list[tuple[Chunk, memoryview]]]] = []
        """What has been read and not written yet. A job is made when it begins: it may need memory of its own."""
        self._read_bytes = 0

    def make_room(self, size: int) -> None:
        """Before a stop: have memory for about `size` bytes of pages that are read in it, all of it there.

        To get it takes as long as to fill it. It is not there beside that of what has been written until now.
        """
        self._buffers.clear()
        self._room = self._left = memoryview(bytearray(b"-") * min(size, READ_AHEAD))

    def select(self, source: Process, runs: Sequence[PageRun], written: Sequence[tuple[int, int]] | None) -> Selection:
        """Which of the pages `runs` (mapping, address, bytes) of a process or its copy are to be read.

        `written`: the runs (address, bytes), ascending, outside of which no page has been written since it was saved; None if that
        is not known.
        """
        known = self.known.get(source.own_pid)
        if not known or written is None:
            return Selection(runs, known)
        runs, rest = divided(runs, known.changed(written))
        return Selection(runs, known, rest)

    def has_room(self, selected: Selection) -> bool:
        """Whether to `write` these now is to read them now, and to write them later."""
        return selected.size < TWO_THREADS and self._read_bytes + selected.size <= READ_AHEAD

    def write(self, owner: int, source: Process, selected: Selection, *, fresh: bool) -> None:
        """The `selected` pages of the address space with the id `owner`, as `source` has them.

        In as few reads as possible, a chunk at a time; the last of what has been read is written by `finish`. `fresh`: what
        the image leaves out will be as new, and not as in an address space that this one is to be a fork of.
        Raises OSError, TorporError.
        """
        self._total += selected.size
        kept: Kept = {}

        def job() -> _Job:
            selected.find_rest(kept)
            return _Job(owner, fresh, selected.compared_with, kept, self._compressor())

        if selected.size >= TWO_THREADS:
            self._write_by_several(job, source, selected.runs, None)
            return
        if not self.has_room(selected):
            self.finish()
        self._read_bytes += selected.size
        read = []
        for chunk in chunks(selected.runs, CHUNK):
            buffer, self._left = self._left[: chunk.size], self._left[chunk.size :]
            if len(buffer) < chunk.size:  # the program has grown since it was looked at
                buffer = memoryview(bytearray(chunk.size))
            _read(source, chunk, buffer)
            read.append((chunk, buffer))
        self._read.append((job, read))

    def draft(self, draft: Drafted, source: Process, runs: Sequence[PageRun], goes_on: Callable[[int], bool]) -> None:
        """Save these pages (mapping, address, bytes) of a process that runs, and note in `draft` where they lie.

        What has gone in the meantime is left out. `goes_on` is asked before each chunk, with the bytes read so far, whether it is
        still of use. Raises TorporError.
        """
        self._total += sum(length for _, _, length in runs)

        def job() -> _Job:
            return _Job(draft.owner, True, None, {}, self._compressor(), draft)

        self._write_by_several(job, source, runs, goes_on)

    def finish(self) -> None:
        """Write what has only been read."""
        waiting, self._read, self._read_bytes = self._read, [], 0
        for make, read in waiting:
            job = make()
            for chunk, buffer in read:
                self._put(job, chunk, buffer)
                self._tell(chunk)
            self._refer(job)
        self._left = self._room

    def _compressor(self) -> Callable[[memoryview | bytes], bytes] | None:
        if not self._level:
            return None
        from torpor.image.compression import compressor

        return compressor(self._level)

    def _write_by_several(
        self, job: Callable[[], _Job], source: Process, runs: Sequence[PageRun], goes_on: Callable[[int], bool] | None
    ) -> None:
        """Write pages, by this thread, which reads, and others. While they work they do not hold the interpreter's lock.

        With `goes_on` as in `draft`: the process runs.
        """
        from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
        from queue import SimpleQueue
        from threading import Thread

        workers = min(os.cpu_count() or 1, COMPRESSORS if self._level else WRITERS)
        # Who compresses or compares holds more than one chunk.
        small = self._level or self._parent or sum(length for _, _, length in runs) < LARGE
        size, held = (CHUNK, BUFFERS + workers - 1) if small else (MAX_CHUNK, BUFFERS)
        empty: SimpleQueue[mmap] = SimpleQueue()
        full: SimpleQueue[tuple[Chunk, mmap] | None] = SimpleQueue()
        for _ in range(held):
            buffer = self._buffers.pop() if self._buffers else None
            if not buffer or len(buffer) != size:
                buffer = mmap(-1, size, MAP_PRIVATE | MAP_ANONYMOUS)  # whole pages, which image/output.py can write directly
            empty.put(buffer)
        failures: list[BaseException] = []

        def put_all(mine: _Job) -> None:
            while work := full.get():
                chunk, buffer = work
                try:
                    if not failures:
                        self._put(mine, chunk, buffer)
                except BaseException as error:
                    failures.append(error)
                empty.put(buffer)

        jobs = [job() for _ in range(workers)]
        others = [Thread(target=put_all, args=(each,), name="torpor writes pages") for each in jobs]
        for other in others:
            other.start()
        try:
            begun = self._done
            for chunk in chunks(runs, size):
                if failures or (goes_on and not goes_on(self._done - begun)):
                    break
                buffer = empty.get()
                try:
                    _read(source, chunk, buffer)
                    full.put((chunk, buffer))
                except OSError:
                    if not goes_on:
                        raise
                    empty.put(buffer)  # the program has unmapped something of it
                self._tell(chunk)
        finally:
            for _ in others:
                full.put(None)
            for other in others:
                other.join()
        if failures:
            raise failures[0]
        self._buffers += [empty.get() for _ in range(held)]
        self._refer(jobs[0])

    def _put(self, job: _Job, chunk: Chunk, buffer: mmap | memoryview) -> None:
        """Write what has been read, but for what the parent has, and zeros."""
        kept, data = chunk.runs, [memoryview(buffer)[: chunk.size]]
        if job.known:
            kept, data = job.changed(kept, data[0])
        if chunk.anonymous and job.fresh:
            kept, data = _without_zeros(kept, data)
        if not kept:
            job.note(0, chunk.runs, kept)
            return
        size = sum(map(len, data))
        record = Pages(owner=job.owner, runs=kept)
        if job.compress:
            packed = job.compress(data[0] if len(data) == 1 else b"".join(data))
            if len(packed) < size - size // 16:  # else not worth the time to unpack them
                record = CompressedPages(owner=job.owner, runs=kept, length=size, compressed=len(packed))
                data = [memoryview(packed)]
        hashed = hash_of(data)
        with self._lock:
            key = hashed, size, sum(map(len, data))
            number, offset = self._written.get(key, (0, 0))
            if not offset or not self._writer.holds(offset, data):
                number = self._writer.chunks
                self._written[key] = number, self._writer.add_data(record, data, hashed=hashed)
            elif not job.draft:
                job.kept[Saved(number)] = laid_out(kept)
            job.note(number, chunk.runs, kept)

    def _refer(self, job: _Job) -> None:
        """Write where the pages lie that were saved earlier."""
        places: dict[int, list[tuple[int, int, int, int]]] = {}
        for source, runs in job.kept.items():
            image = self._parent.id_of(source.image, self._saving) if self._parent and source.image else 0
            places.setdefault(image, []).extend((start, length, source.chunk, offset) for start, length, offset in runs)
        for image, found in places.items():
            for record in _earlier(job.owner, image, sorted(found)):
                self._writer.add(record)

    def _tell(self, chunk: Chunk) -> None:
        self._done += chunk.size
        if self._progress:
            self._progress(self._done, self._total)


def _earlier(owner: int, image: int, places: Sequence[tuple[int, int, int, int]]) -> Iterator[EarlierPages]:
    """The records of pages (address, bytes, chunk, offset in its data), ascending, that lie elsewhere; adjacent runs become one."""
    record: EarlierPages | None = None
    behind: object = None  # where the run would have to begin to be one with that before it
    for start, length, chunk, offset in places:
        if record and (start, chunk, offset) == behind:
            record.lengths[-1] += length
        else:
            if record and len(record.starts) == MAX_PLACES:
                yield record
                record = None
            record = record or EarlierPages(owner=owner, image=image, starts=[], lengths=[], chunks=[], offsets=[])
            record.starts.append(start)
            record.lengths.append(length)
            record.chunks.append(chunk)
            record.offsets.append(offset)
        behind = start + length, chunk, offset + length
    if record:
        yield record


class _Job:
    """What a thread needs to know of the address space whose pages it writes."""

    def __init__(
        self,
        owner: int,
        fresh: bool,
        known: Known | None,
        kept: Kept,
        compress: Callable[[memoryview | bytes], bytes] | None,
        draft: Drafted | None = None,
    ) -> None:
        self.owner, self.fresh, self.known, self.kept, self.compress = owner, fresh, known, kept, compress
        self.draft = draft
        self._there = memoryview(bytearray(CHUNK if known else 0))
        self._unpacked: dict[Source, memoryview] = {}

    def note(self, chunk: int, read: list[tuple[int, int]], kept: list[tuple[int, int]]) -> None:
        """Of the runs (address, bytes) that were `read` those `kept` lie in a chunk, and the others hold zeros."""
        if self.draft:
            self.draft.note(chunk, read, kept)

    def changed(self, runs: list[tuple[int, int]], data: memoryview) -> tuple[list[tuple[int, int]], list[memoryview]]:
        """The runs (address, bytes) of pages, and the parts of their `data`, that are not what the parent has."""
        assert self.known
        found: list[tuple[int, int]] = []
        parts: list[memoryview] = []
        at = 0
        for start, size, source, offset in self.known.split(runs):
            here = data[at : at + size]
            at += size
            if source is None or source.image is None:
                found.append((start, size))
                parts.append(here)
                continue
            there = self._there[:size]
            self._read_parent(source, offset, there)
            same = 0
            for low, count in memory.differing(here, there):
                if low > same:
                    self.kept.setdefault(source, []).append((start + same, low - same, offset + same))
                found.append((start + low, count))
                parts.append(here[low : low + count])
                same = low + count
            if size > same:
                self.kept.setdefault(source, []).append((start + same, size - same, offset + same))
        return found, parts

    def _read_parent(self, source: Source, offset: int, view: memoryview) -> None:
        """Fill `view` with the data of a chunk from `offset` on. BadImage, TorporError."""
        if not isinstance(source.record, CompressedPages):
            source.read(view, offset)
            return
        if source not in self._unpacked:
            while len(self._unpacked) >= UNPACKED:
                self._unpacked.pop(next(iter(self._unpacked)))
            self._unpacked[source] = source.image.data(source.record, source.offset)
        view[:] = self._unpacked[source][offset : offset + len(view)]


def divided(runs: Sequence[PageRun], marked: Sequence[tuple[int, int]]) -> tuple[list[PageRun], list[tuple[int, int]]]:
    """The parts of `runs` that lie in one of the ranges (first address, end), ascending, and the others (address, bytes)."""
    inside: list[PageRun] = []
    outside: list[tuple[int, int]] = []
    for mapping, address, length in runs:
        for start, size, within in in_parts(address, length, marked):
            if within:
                inside.append((mapping, start, size))
            else:
                outside.append((start, size))
    return inside, outside


def chunks(runs: Sequence[PageRun], size: int) -> Iterator[Chunk]:
    """What is to be read at a time, in the order of `runs`, at most `size` bytes."""
    chunk: Chunk | None = None
    for mapping, address, length in runs:
        if chunk and length >= size:
            yield chunk  # what is large begins a chunk, so that equal memory of two processes is in equal chunks
            chunk = None
        if chunk and (chunk.readable, chunk.anonymous) != (mapping.readable, not mapping.inode):
            yield chunk
            chunk = None
        while length:
            if chunk and (chunk.size == size or len(chunk.runs) == memory.IOV_MAX):
                yield chunk
                chunk = None
            chunk = chunk or Chunk(mapping)
            part = min(length, size - chunk.size)
            chunk.runs.append((address, part))
            chunk.size += part
            address, length = address + part, length - part
    if chunk:
        yield chunk


def _read(source: Process, chunk: Chunk, buffer: mmap | memoryview) -> None:
    """Read a chunk into the beginning of `buffer`. Raises OSError."""
    if chunk.readable and not source.shares:
        memory.read_into(source.pid, chunk.runs, ctypes.addressof(ctypes.c_char.from_buffer(buffer)), chunk.size)
        return
    view, at = memoryview(buffer), 0
    for address, length in chunk.runs:
        if os.preadv(source.mem, [view[at : at + length]], address) != length:
            raise OSError(14, f"/proc/{source.pid}/mem: short read at {address:#x}")
        at += length


def _without_zeros(
    runs: list[tuple[int, int]], data: list[memoryview]
) -> tuple[list[tuple[int, int]], list[memoryview]]:
    """The runs (address, bytes) of pages, and the parts of their `data`, that hold more than zeros.

    `data` is in one part, or in one for each run.
    """
    if len(data) == 1:
        return _kept_of(runs, data[0])
    kept: list[tuple[int, int]] = []
    parts: list[memoryview] = []
    for run, part in zip(runs, data, strict=True):
        some, of_it = _kept_of([run], part)
        kept += some
        parts += of_it
    return kept, parts


def _kept_of(runs: list[tuple[int, int]], data: memoryview) -> tuple[list[tuple[int, int]], list[memoryview]]:
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

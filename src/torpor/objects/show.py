"""What an image holds, put together for people and for programs that look at it (R-B6).

The tree here is made for looking, the one in `plan` for restarting: this one never refuses. What does not fit together
in an image that the reader has admitted is shown as it is, and a program of any processor family can be looked at on
any machine. Nothing here needs a right or touches a process.
"""

from __future__ import annotations

from bisect import bisect_right

from torpor import arch
from torpor.errors import Unsupported
from torpor.image.chain import sources
from torpor.image.kinds import Blob, Choice, Flags, Pairs, Raw, Structs, Text
from torpor.objects.memory import Mm
from torpor.objects.processes import ALIVE, Process
from torpor.objects.signals import Handlers
from torpor.objects.tables import FdTable, Fs
from torpor.objects.threads import Thread
from torpor.objects.timers import Timers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar

    from torpor.image.chain import Source
    from torpor.image.reader import Image
    from torpor.image.record import Record, Struct

    R = TypeVar("R", bound=Record)

ARGUMENTS_MAX = 128 << 10
"""Bytes of arguments that are looked for in the pages: more are cut off."""
GENERATIONS_MAX = 64
"""Address spaces that are asked for a page, from child to parent."""


class ShownThread:
    """A thread and the register records behind it."""

    __slots__ = ("record", "registers")

    def __init__(self, record: Thread) -> None:
        self.record = record
        self.registers: list[Record] = []

    @property
    def complete(self) -> bool:
        """Whether there are as many register records as the mask announces."""
        return len(self.registers) >= self.record.registers.bit_count()

    def bits(self) -> list[tuple[int, str]]:
        """The bits of its register mask with the record that each announces; "" where there is no such record.

        Register records follow their thread in the order of their bits (R-B5): this needs no architecture's table.
        """
        mask = self.record.registers
        names = [type(record).__name__ for record in self.registers]
        numbers = [bit for bit in range(64) if mask >> bit & 1]
        return list(zip(numbers, names + [""] * (len(numbers) - len(names)), strict=True))


class ShownProcess:
    """A process with what it refers to, as far as that is there; `depth` is 0 for the root of the tree."""

    __slots__ = ("children", "depth", "files", "fs", "handlers", "mm", "parent", "record", "threads", "timers")

    def __init__(self, record: Process, parent: ShownProcess | None, image: Image) -> None:
        self.record, self.parent = record, parent
        self.depth: int = parent.depth + 1 if parent else 0
        self.mm = _maybe(image, record.mm, Mm)
        self.files = _maybe(image, record.files, FdTable)
        self.fs = _maybe(image, record.fs, Fs)
        self.handlers = _maybe(image, record.handlers, Handlers)
        self.timers: Timers | None = None
        self.children: list[ShownProcess] = []
        self.threads: list[ShownThread] = []

    @property
    def alive(self) -> bool:
        """Not a zombie."""
        return self.record.state == ALIVE

    @property
    def name(self) -> str:
        """That of its first thread."""
        return self.threads[0].record.name if self.threads else ""


def _maybe(image: Image, number: int, cls: type[R]) -> R | None:
    return image.by_id(number, cls) if number else None


class Contents:
    """All of an image: `processes`, each before its descendants, and where the pages of each address space lie."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.processes = _processes(image)
        self._runs: dict[int, list[tuple[int, int, int, Source]]] = {}
        """For each address space (start, end, offset in the chunk's data, where that lies), ascending."""
        for owner, pieces in sources(image).items():
            runs = [(start, start + length, at, piece) for piece in pieces for start, length, at in piece.runs]
            self._runs[owner] = sorted(runs, key=_first)
        self._arguments: dict[int, list[str] | None] = {}

    def arguments(self, mm: Mm) -> list[str] | None:
        """The program's arguments, read from its pages; None where these are not in the image. Raises TorporError."""
        if mm.id not in self._arguments:
            length = min(mm.arg_end - mm.arg_start, ARGUMENTS_MAX)
            try:
                data = self._read(mm, mm.arg_start, length) if length > 0 else None
            except Unsupported:
                data = None  # compressed, in a way for which there is no library here
            words = data.removesuffix(b"\0").split(b"\0") if data else []
            self._arguments[mm.id] = [word.decode("utf-8", "surrogateescape") for word in words] or None
        return self._arguments[mm.id]

    def _read(self, mm: Mm, start: int, length: int) -> bytes | None:
        """Memory of an address space; None unless all of it lies in pages that the image carries."""
        ancestors = [mm]  # pages that fork left shared are with the oldest that has them
        while ancestors[-1].base and len(ancestors) < GENERATIONS_MAX:
            ancestors.append(self.image.by_id(ancestors[-1].base, Mm))
        data, have = bytearray(length), bytearray(length)
        view = memoryview(data)
        for one in reversed(ancestors):
            for gone in one.dropped:
                low, high = max(gone.start, start), min(gone.end, start + length)
                if low < high:
                    have[low - start : high - start] = bytes(high - low)
            runs = self._runs.get(one.id, [])
            first = max(bisect_right(runs, start, key=_first) - 1, 0)
            for run_start, run_end, at, piece in runs[first : bisect_right(runs, start + length, key=_first)]:
                low, high = max(run_start, start), min(run_end, start + length)
                if low < high:
                    piece.read(view[low - start : high - start], at + low - run_start)
                    have[low - start : high - start] = b"\1" * (high - low)
        return None if 0 in have else bytes(data)

    def own_bytes(self, mm: Mm) -> list[int]:
        """How many bytes of each mapping the image carries for this address space, in the order of the mappings."""
        order = sorted(range(len(mm.mappings)), key=lambda index: mm.mappings[index].start)
        starts = [mm.mappings[index].start for index in order]
        counts = [0] * len(order)
        for at, end, _, _ in self._runs.get(mm.id, []):
            while at < end:
                place = bisect_right(starts, at) - 1
                stop = min(end, starts[place + 1]) if place + 1 < len(starts) else end
                if place >= 0:
                    inside = min(stop, mm.mappings[order[place]].end) - at
                    counts[order[place]] += max(inside, 0)
                at = stop
        return counts


def _first(run: tuple[int, int, int, Source]) -> int:
    return run[0]


def _processes(image: Image) -> list[ShownProcess]:
    by_id: dict[int, ShownProcess] = {}
    thread: ShownThread | None = None
    for record in image.records:
        # A register record is one that an architecture declares; a sound image has as many as the mask has bits.
        if thread is not None and arch.is_register_record(record) and not thread.complete:
            thread.registers.append(record)
            continue
        thread = None
        if isinstance(record, Process):
            parent = by_id.get(record.parent)
            process = by_id[record.id] = ShownProcess(record, parent, image)
            if parent:
                parent.children.append(process)
        elif isinstance(record, Thread):
            thread = ShownThread(record)
            by_id[record.process].threads.append(thread)
        elif isinstance(record, Timers):
            by_id[record.process].timers = record
    found: list[ShownProcess] = []
    waiting = [process for process in by_id.values() if process.parent is None][::-1]
    while waiting:
        process = waiting.pop()
        found.append(process)
        waiting += process.children[::-1]
    return found


# --- for programs


def as_data(contents: Contents) -> dict[str, Any]:
    """Everything but the raw data, as lists, dicts, strings and numbers; `cli/inspect.py` says in which shape."""
    image = contents.image
    shown_threads = [thread for process in contents.processes for thread in process.threads]
    by_record = {id(thread.record): thread for thread in shown_threads}
    under_threads = {id(record) for thread in shown_threads for record in thread.registers}
    records: dict[str, list[dict[str, Any]]] = {}
    for record in image.records:
        if id(record) in under_threads:
            continue
        shown = fields(record)
        if isinstance(record, Thread):
            thread = by_record[id(record)]
            shown["register_names"] = [name or f"bit {bit}" for bit, name in thread.bits()]
            shown["register_records"] = [{"class": type(one).__name__, **fields(one)} for one in thread.registers]
        elif isinstance(record, Process):
            mm = _maybe(image, record.mm, Mm)
            shown["arguments"] = contents.arguments(mm) if mm else None
        records.setdefault(type(record).__name__, []).append(shown)
    return {"header": fields(image.header), "records": records, "trailer": fields(image.trailer)}


def fields(record: Struct) -> dict[str, Any]:
    """Every field of a record by name: numbers as they are, names for choices and flags, hexadecimal for bytes."""
    return {field.name: _plain(field, getattr(record, field.name)) for field in record.declared}


def _plain(field: object, value: Any) -> Any:
    if isinstance(field, Structs):
        return [fields(element) for element in (field.structs(value) if isinstance(field, Pairs) else value)]
    if isinstance(field, Flags):
        return [name for bit, name in field.names.items() if value >> bit & 1]
    if isinstance(field, Choice):
        return field.names[value]
    if isinstance(field, Raw) or (isinstance(field, Blob) and not isinstance(field, Text)):
        return bytes(value).hex()
    return value

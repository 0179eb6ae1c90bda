"""What `torpor inspect` says of an open file description: one line, by its kind or, for a new kind, by its fields."""

from __future__ import annotations

from torpor.cli.text import duration, size
from torpor.image.record import Record
from torpor.objects import names
from torpor.objects.files.events import Epoll, EventFd, SignalFd, TimerFd
from torpor.objects.files.paths import OpenFile
from torpor.objects.files.pipes import Pipe, PipeEnd
from torpor.objects.files.terminals import Terminal
from torpor.objects.nodes import NAMED, FileNode
from torpor.objects.tables import EOF

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from torpor.image.reader import Image
    from torpor.image.record import Struct
    from torpor.objects.tables import Lock


def described(number: int, image: Image, architecture: str) -> str:
    """The description with the id `number`, whose flags are those of a kernel of this `architecture`."""
    record: Record = image.by_id(number, Record)
    said = _WORDS.get(type(record), _others)(record, image)
    flags = getattr(record, "flags", None)
    return said if flags is None else f"{said}, {names.open_flags(flags, architecture)}"


def _open_file(record: OpenFile, image: Image) -> str:
    node = image.by_id(record.node, FileNode)
    kind = "" if node.kind == NAMED else f" ({value(node, 'kind')}, {size(node.size)} in the image)"
    return f"{node.path}{kind} at {record.position}"


def _pipe_end(record: PipeEnd, image: Image) -> str:
    pipe = image.by_id(record.pipe, Pipe)
    held = sum(len(piece.data) for piece in pipe.pieces)
    packets = f" in {len(pipe.pieces)} packets" if pipe.packets else ""
    return f"{pipe.path or 'pipe'} #{pipe.id}, {size(held)}{packets} of {size(pipe.capacity)} in it"


def _terminal(record: Terminal, image: Image) -> str:
    return f"terminal {record.path}"


def _event(record: EventFd, image: Image) -> str:
    return f"eventfd {record.count}{', semaphore' if record.semaphore else ''}"


def _epoll(record: Epoll, image: Image) -> str:
    watched = [f"{one.fd} for {names.bits(one.events, names.EPOLL_EVENTS)}" for one in record.watched]
    return f"epoll, watches {', '.join(watched) or 'nothing'}"


def _timer(record: TimerFd, image: Image) -> str:
    unread = f", {record.ticks} expirations unread" if record.ticks else ""
    return f"timerfd, {names.clock(record.clock)}, {armed(record.left, record.interval)}{unread}"


def _signal(record: SignalFd, image: Image) -> str:
    return f"signalfd, {names.signals(record.signals)}"


def _others(record: Record, image: Image) -> str:
    fields = [field for field in record.declared if field.name not in ("id", "flags")]
    changed = [field for field in fields if field.default is None or getattr(record, field.name) != field.initial()]
    return ", ".join([type(record).__name__, *(f"{field.name} {value(record, field.name)}" for field in changed)])


_WORDS: dict[type, Callable[[Any, Image], str]] = {
    OpenFile: _open_file, PipeEnd: _pipe_end, Terminal: _terminal, EventFd: _event, Epoll: _epoll, TimerFd: _timer,
    SignalFd: _signal,
}  # fmt: skip


def value(record: Struct, name: str) -> str:
    """A field in readable form: a choice or flags by name."""
    return next(field.show(getattr(record, name)) for field in record.declared if field.name == name)


def armed(left: int, interval: int) -> str:
    """When a timer fires."""
    if not left:
        return "disarmed"
    return f"in {duration(left)}" + (f", then every {duration(interval)}" if interval else "")


def lock(one: Lock) -> str:
    """A lock on a file."""
    end = "the end" if one.end == EOF else str(one.end)
    return f"{value(one, 'kind')}, {value(one, 'type')}, bytes {one.start} to {end}"

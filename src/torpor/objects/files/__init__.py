"""Open file descriptions: one module per kind, all with the same functions.

    claims(seen)            is this descriptor of the kind?
    obstacle(seen)          why it cannot be saved, or None: looks, and touches nothing
    save(seen, saving)      write its record, and before it what it refers to; the id
    faults(record, making)  what in the record no program can have: reasons
    check(record, making)   why it cannot be made again here, or None: looks, and makes nothing
    make(record, making)    make it again with ordinary calls; a descriptor of the restart's own

A new kind is a new module and its row in `KINDS`.
"""

from __future__ import annotations

from torpor.errors import Obstacle
from torpor.image.record import Record
from torpor.linux import kcmp
from torpor.objects.files import events, paths, pipes, terminals
from torpor.objects.files.seen import Seen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

    from torpor.objects.making import Making
    from torpor.objects.saving import Saving

KINDS: tuple[tuple[ModuleType, tuple[type[Record], ...]], ...] = (
    (terminals, (terminals.Terminal,)),
    (pipes, (pipes.PipeEnd,)),
    (events, (events.EventFd, events.Epoll, events.TimerFd, events.SignalFd)),
    (paths, (paths.OpenFile,)),
)
RECORDS = tuple(record for _, records in KINDS for record in records)
NAMES = tuple(record.__name__ for record in RECORDS)

_REMEDIES = {
    "socket:": ("sockets are not saved yet", "close the connection, or checkpoint before it is made"),
    "anon_inode:inotify": ("inotify watches are not saved yet", "close it before the checkpoint"),
    "anon_inode:[io_uring]": ("an io_uring has requests in flight that only the kernel knows", "run the program without io_uring"),
    "anon_inode:[userfaultfd]": ("userfaultfd is not saved", "close it before the checkpoint"),
    "anon_inode:[pidfd]": ("a pidfd is not saved yet", "close it before the checkpoint"),
    "anon_inode:[perf_event]": ("performance counters are not saved", "stop the profiler first"),
}


def kind_of(seen: Seen) -> ModuleType | None:
    """The module for a descriptor's kind, or None for one that torpor does not save."""
    return next((module for module, _ in KINDS if module.claims(seen)), None)


def obstacle(seen: Seen) -> Obstacle | None:
    """Why a descriptor cannot be saved, or None."""
    module = kind_of(seen)
    if module is not None:
        found: Obstacle | None = module.obstacle(seen)
        return found
    for start, (reason, remedy) in _REMEDIES.items():
        if seen.link.startswith(start):
            return Obstacle(seen.name, reason, remedy, pid=seen.pid)
    return Obstacle(seen.name, "descriptors of this kind are not saved", "close it before the checkpoint", pid=seen.pid)


def save(seen: Seen, saving: Saving) -> int:
    """Write the record of a descriptor's open file description; its id."""
    module = kind_of(seen)
    assert module is not None, "preflight lets no other descriptor through"
    number: int = module.save(seen, saving)
    return number


def _module_of(record: Record) -> ModuleType:
    return next(module for module, records in KINDS if isinstance(record, records))


def faults(record: Record, making: Making) -> Iterator[str]:
    """What in the record of a description no program can have (R-D1)."""
    found: Iterator[str] = _module_of(record).faults(record, making)
    return found


def check(record: Record, making: Making) -> Obstacle | None:
    """Why a description cannot be made again here, or None."""
    found: Obstacle | None = _module_of(record).check(record, making)
    return found


def make(record: Record, making: Making) -> int:
    """Make a description again; a descriptor of our own."""
    fd: int = _module_of(record).make(record, making)
    return fd


def group(descriptors: Sequence[Seen], order: Callable[[Seen, Seen], int]) -> list[list[Seen]]:
    """Descriptors by open file description: those in one list share it (dup, fork, SCM_RIGHTS).

    `order` is kcmp(2)'s three-way comparison; it is only asked for descriptors that look alike.
    """
    buckets: dict[tuple[object, ...], list[Seen]] = {}
    for seen in descriptors:
        buckets.setdefault(seen.bucket, []).append(seen)
    return [members for alike in buckets.values() for members in kcmp.gather(alike, order)]

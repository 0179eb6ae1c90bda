"""Terminals. What a terminal shows cannot be saved; a restarted program gets the terminal of the restart command.

Descriptors 0, 1 and 2 that were a terminal become the restart command's own standard streams, whatever these are there; any
other descriptor of a terminal becomes the controlling terminal of the restart, or its standard error where there is none.
"""

from __future__ import annotations

import os
import stat

from torpor.errors import Obstacle
from torpor.image.fields import ident, text, u32
from torpor.image.record import Record
from torpor.objects.files.seen import Seen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.objects.making import Making
    from torpor.objects.saving import Saving

_TTY_MAJORS = {4, 136, 137, 138, 139, 140, 141, 142, 143, 188, 204}


class Terminal(Record, type=0x0317):
    """An open file description of a terminal (tty(4), pty(7))."""

    id: int = ident("the open file description")
    flags: int = u32("O_* access mode and status flags")
    path: str = text("what it was called", max=4096)


def claims(seen: Seen) -> bool:
    """Whether a descriptor is of this kind."""
    if not stat.S_ISCHR(seen.stat.st_mode):
        return False
    major, minor = os.major(seen.stat.st_rdev), os.minor(seen.stat.st_rdev)
    return major in _TTY_MAJORS or (major, minor) == (5, 1)


def obstacle(seen: Seen) -> Obstacle | None:
    """The controlling side of a pseudo terminal (/dev/ptmx) is no terminal of this kind and is refused elsewhere."""
    return None


def save(seen: Seen, saving: Saving) -> int:
    """Write the description. Returns its id."""
    return saving.add(Terminal(id=saving.new_id(), flags=seen.flags & 0o7777777, path=seen.link))


def faults(record: Terminal, making: Making) -> Iterator[str]:
    """Nothing: what a terminal was is not used."""
    return iter(())


def check(record: Terminal, making: Making) -> Obstacle | None:
    """A terminal can always be replaced."""
    return None


def make(record: Terminal, making: Making) -> int:
    """The terminal of the restart command, for a descriptor other than 0, 1 and 2; a descriptor of our own."""
    try:
        return os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return standard_stream(2)


def standard_stream(number: int) -> int:
    """A duplicate of the restart command's own descriptor 0, 1 or 2; /dev/null where it has been closed."""
    import fcntl

    try:
        return fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError:
        return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)

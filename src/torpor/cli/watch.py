"""torpor watch: take an image of a program every so often, with no more in it than what has changed."""

from __future__ import annotations

import gc
import signal
import sys
import time

from torpor.cli.arguments import Option, Verb
from torpor.cli.text import plain
from torpor.errors import Obstacle, TorporError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from torpor.cli.arguments import Parsed

VERB = Verb(
    "watch",
    "Save the process PID and all its descendants into DIR again and again, until they or this command end.",
    ["PID"],
    [
        Option("-o", "--output", value="DIR", doc="where the images go"),
        Option("--every", value="TIME", doc="from one to the next: 30s, 10m (the default), 2h"),
        Option("--keep", value="COUNT", doc="images that can be restarted at any time: 3 by default; older ones are removed"),
        Option("--compress", value="zstd[:LEVEL]", doc="compress memory"),
    ],
)

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class _Ended(BaseException):
    """A signal that asks this command to end."""


def run(arguments: Parsed) -> int:
    """Run the verb. Raises TorporError when not even the first image can be taken."""
    directory = arguments.text("output")
    if not directory:
        raise UsageError(Obstacle("torpor watch", "it needs -o DIR"))
    every, keep = _seconds(arguments.text("every", "10m")), arguments.text("keep", "3")
    if not (keep.isascii() and keep.isdigit()):
        raise UsageError(Obstacle("torpor watch", f"--keep is a number, not {keep!r}"))
    from torpor.watch import Watch

    def tell(line: str) -> None:
        print(plain(line), flush=True)

    watch = Watch(arguments.number(0, "process id"), directory, int(keep), arguments.text("compress"), tell)
    signal.signal(signal.SIGTERM, _end)
    first = True
    try:
        while True:
            begun = time.monotonic()
            try:
                watch.take()
            except TorporError as error:
                if first or watch.ended(0):
                    raise
                for obstacle in error.obstacles:  # the disk may have room again next time
                    print(f"torpor: {obstacle}", file=sys.stderr)
            first = False
            gc.collect()  # which is switched off for commands, and this one lives long
            if watch.ended(begun + every - time.monotonic()):
                tell("the program has ended")
                return 0
    except _Ended:
        return 0
    finally:
        watch.close()


def _end(number: int, frame: FrameType | None) -> None:
    raise _Ended


def _seconds(text: str) -> float:
    number, unit = text[:-1], text[-1:]
    try:
        seconds = float(number) * _UNITS[unit]
    except (KeyError, ValueError):
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise UsageError(Obstacle("torpor watch", f"--every is a time such as 30s, 10m or 2h, not {text!r}"))
    return seconds

"""Stands in for `python -m torpor` where TORPOR_TEST_MODE says how the tests' checkpoints and restarts are to be made.

snapshot: before a checkpoint that kills, one is taken of the program that goes on, and verified;
incremental: the same, and the one that kills holds only what has changed since;
ahead: memory is saved before the stop, as far as there is any, and not only from 256 MiB on;
lazy: a restarted program runs before its memory is there.

A program by itself: tests run it as users who may read nothing else of this checkout.
"""

from __future__ import annotations

import os
import subprocess
import sys

TORPOR = [sys.executable, "-m", "torpor"]
EAGER_AHEAD = """
import sys
import torpor.checkpoint
vars(sys.modules["torpor.checkpoint"]).update(WORTH_SAVING_AHEAD=1, HUGE=1 << 62)
from torpor.cli import main
sys.exit(main(sys.argv[1:]))
"""


def _run(command: list[str]) -> None:
    if status := subprocess.run([*TORPOR, *command], check=False).returncode:
        sys.exit(status)


def main(words: list[str]) -> None:
    """Make what the mode asks for of a command line of torpor's; what remains of it takes our place."""
    mode = os.environ["TORPOR_TEST_MODE"]
    if words[0] == "checkpoint" and "--kill" in words:
        image = words[words.index("-o") + 1]
        first = [image + ".first" if word == image else word for word in words if word != "--kill"]
        if mode in ("snapshot", "incremental"):
            _run(first)
        if mode == "snapshot":
            _run(["verify", image + ".first"])
            os.unlink(image + ".first")
        elif mode == "incremental":
            words = [*words, "--parent", image + ".first"]
    elif words[0] == "restart" and mode == "lazy":
        words = [*words, "--lazy"]
    start = [sys.executable, "-c", EAGER_AHEAD] if mode == "ahead" and words[0] == "checkpoint" else TORPOR
    os.execv(start[0], [*start, *words])


if __name__ == "__main__":
    main(sys.argv[1:])

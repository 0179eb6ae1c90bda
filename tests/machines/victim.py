"""A program in a machine that is checkpointed, killed and restarted while it goes on counting."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.torture.harness import Reaper, Run, descendants, describe, inner_pid, is_alive, status, torpor

FIRST = -15  # nice, of torpor and this: it does not share one slow processor evenly with all the threads that it is to stop
PROGRESS_WITHIN = 120.0  # s; on a host with work for ten, ppc32 had not begun to compute after 30
END_WITHIN = 120.0


class Victim:
    """A process tree. `directory` is its own: what it says is in `said` there. `run` runs torpor's commands."""

    def __init__(
        self, command: Sequence[str], directory: Path, rng: random.Random, run: Callable[..., Run] = torpor
    ) -> None:
        directory.mkdir(parents=True)
        self.directory, self.said, self.image, self._random = directory, directory / "said", directory / "image", rng
        self.reaper, self._run = Reaper(), run
        self.runs: list[Run] = []
        with self.said.open("wb") as said:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd=directory, start_new_session=True
            )
        process.returncode = 0  # an ordinary child from here on: after a restart another process has its number
        self.pid = self._number = process.pid
        os.setpriority(os.PRIO_PROCESS, 0, FIRST)

    def wait_for(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        end = time.monotonic() + seconds
        while not condition():
            self.reaper.reap()
            assert time.monotonic() < end, f"{what} not within {seconds:.0f} s: {self.evidence()}"
            assert is_alive(self.pid) or condition(), f"it has ended before {what}: {self.evidence()}"
            time.sleep(0.01)

    def goes_on(self, progress: Callable[[], int]) -> None:
        before = progress()
        self.wait_for(lambda: progress() > before, PROGRESS_WITHIN, "progress")

    def cycle(self) -> float:
        """At a random instant: checkpoint and kill, wait until all is gone, restart. Returns the seconds that took."""
        time.sleep(self._random.uniform(0, 0.5))
        start = time.monotonic()
        tree = [self.pid, *descendants(self.pid)]
        self.save(self.image)
        self.reaper.wait_gone(tree)
        self._restart()
        return time.monotonic() - start

    def cycle_from_copy(self, changed: Path) -> None:
        """The same of a program that goes on while its image is written; what it does to the file `changed` meanwhile is undone."""
        tree = [self.pid, *descendants(self.pid)]
        run = self._run(self.reaper, "checkpoint", str(self.pid), "-o", self.image)
        assert (run.code, run.output) == (0, ""), f"not from a copy of its memory: {run}\n{self.evidence()}"
        for pid in tree:
            os.kill(pid, signal.SIGKILL)
        self.reaper.wait_gone(tree)
        self._restart("--allow-changed", changed)

    def _restart(self, *arguments: str | Path) -> None:
        self._torpor("restart", self.image, "--detach", *arguments)
        self.pid = next((pid for pid in descendants(os.getpid()) if inner_pid(pid) == self._number), 0)
        assert self.pid, f"the restarted process cannot be found: {self.evidence()}"
        self.image.unlink()

    def save(self, image: Path) -> None:
        """Into `image`, and no further."""
        self._torpor("checkpoint", str(self.pid), "-o", image, "--kill")

    def _torpor(self, *arguments: str | Path) -> None:
        run = self._run(self.reaper, *arguments)
        self.runs.append(run)
        assert run.code == 0, f"{run}\n{self.evidence()}"

    def ended(self) -> None:
        self.wait_for(lambda: not is_alive(self.pid), END_WITHIN, "its end")

    def evidence(self) -> str:
        lines = [str(run) for run in self.runs[-2:]]
        lines += [describe(pid) for pid in [self.pid, *descendants(self.pid)] if status(pid)]
        return "\n".join([*lines, f"it has said: {self.said.read_text(errors='replace')[-2000:]}"])

    def times(self) -> str:
        """How long torpor took, on average."""
        words = []
        for verb in ("checkpoint", "restart"):
            seconds = [run.seconds for run in self.runs if run.arguments[0] == verb]
            if seconds:
                words.append(f"{verb} {sum(seconds) / len(seconds):.2f} s")
        return f"{len(self.runs) // 2} cycles, {', '.join(words)}"

"""Interrupted calls in a machine: a few programs of tests/programs/calls.c in one tree, and whether they noticed.

A wait has to outlast the cycles of its tree, and how long they take the host's load decides. Two ways: waits long enough for the
busiest host, for which every run waits; or waits of a usual length, and the same tree again with waits twice as long where these
were over too early. The second won. It hides nothing: what has ended is judged first.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.calls import program
from tests.machines import forked
from tests.machines.victim import Victim
from tests.settings import SEED
from tests.torture.harness import descendants, remove_ipc
from torpor.linux import procfs

HOME = Path("/tmp/cases")
"""Where a guest has its programs, and its cases their directories."""
SHELL = shutil.which("sh")
EARLY, LATE = 0.2, 4.0  # s; how far a call's running time may be off where QEMU translates
BEGIN_WITHIN = END_WITHIN = 30.0  # s
STOPS = 3


class Calls:
    """A few interrupted calls, by name, each in a process of its own, all in one tree; they are in these calls, or just before."""

    def __init__(self, executable: Path, names: Sequence[str], directory: Path, seconds: float, slowness: float) -> None:
        self.names, self.seconds = names, seconds
        command = ["sh", "-c", "".join(f"{executable} {name} {seconds} {name} &\n" for name in names) + "wait\n"]
        if not SHELL:
            words = ([str(executable), name, str(seconds), name, ","] for name in names)
            command = [sys.executable, str(HOME / "together.py"), *[word for few in words for word in few][:-1]]
        self.victim = Victim(command, directory, random.Random(f"{SEED} {names[0]}"), forked.torpor)
        self.victim.wait_for(lambda: all(self.said(name) for name in names), BEGIN_WITHIN * slowness, "the beginning of all calls")
        self.worked = 0.0
        """Seconds in which torpor saved the tree or made it again; when each process stood still cannot be told from outside."""

    def outlasts(self, cycles: int) -> bool:
        """Checkpoint, kill and restart the tree so many times; False if a call was over before the last of them was."""
        for _ in range(cycles):
            try:
                self.worked += self._stop_often() + self.victim.cycle()
            except AssertionError:
                if len(self.over()) < len(self.names):  # else there was nothing left to save
                    raise
            if self.over():
                return False
        return True

    def _stop_often(self) -> float:
        """Stop the tree and let it go on, several times at once: each wait goes on with the rest of its time. Returns seconds."""
        from torpor.tasks.stopping import Brief  # not before: what it loads asks the environment where to tell its phases

        begun, root = time.monotonic(), self.victim.pid
        for _ in range(STOPS):
            with Brief(root, {}, [root, *descendants(root)], _clock_offset) as tree:
                in_slots = [thread for thread in tree.threads() if thread.was_in_slot]
                assert all(thread.issued_again >= 0 for thread in in_slots), "a wait begins anew"
        return time.monotonic() - begun

    def over(self) -> list[str]:
        """The calls that have ended."""
        return [name for name in self.names if len(self.said(name)) > 1]

    def end(self) -> None:
        """Leave nothing behind."""
        for pid in [self.victim.pid, *descendants(self.victim.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for name in self.names:
            remove_ipc(self.victim.directory / f"{name}.ipc")

    def said(self, name: str) -> list[str]:
        return whole_lines(self.victim.directory / name)

    def wait(self) -> None:
        """Until all have ended, or should have."""
        with contextlib.suppress(AssertionError):  # what does not end has no second line, and `judge` says so
            self.victim.wait_for(lambda: len(self.over()) == len(self.names), self.seconds + END_WITHIN, "the end of all calls")

    def judge(self, name: str) -> tuple[bool, str]:
        """Whether a call is well, and what there is to say."""
        remove_ipc(self.victim.directory / f"{name}.ipc")
        if len(self.said(name)) < 2:
            return False, f"it does not end: {self.victim.evidence()}"
        outcome = program.outcome(self.said(name)[1])
        problems = self._problems(name, outcome)
        words = [self.victim.times()] if self.victim.runs else []
        words += [f"asked {self.seconds:.0f} s", f"took {outcome.monotonic:.2f} s by its own clock", f"gave {outcome}"]
        return not problems, "; ".join([*words, *problems])

    def _problems(self, name: str, outcome: program.Outcome) -> list[str]:
        """What is wrong with a call.

        Its process's clock stands still while it does, but goes on for what is not yet stopped or already made. So by that
        clock a call never ends early, and late by no more than torpor worked; and the clock keeps to the wall's otherwise.
        """
        problems = [] if outcome.result_ok else ["that is not what it gives undisturbed"]
        if not outcome.registers_ok:
            problems.append(f"{outcome.changed} changed over the call")
        if outcome.monotonic < self.seconds - EARLY:
            problems.append("it ended too early")
        if outcome.monotonic > self.seconds + self._again(name, outcome) + self.worked + LATE:
            problems.append("it ended too late")
        stood_still = outcome.real_end - outcome.real_start - outcome.monotonic
        if not -EARLY <= stood_still <= self.worked + EARLY:
            problems.append(f"its clock stood still for {stood_still:.2f} s, torpor worked for {self.worked:.2f} s")
        return problems

    def _again(self, name: str, outcome: program.Outcome) -> float:
        """Seconds that a call may have waited in vain: where /proc does not say for how long, it begins anew (docs/limits.md)."""
        return 0.0 if os.path.exists("/proc/self/sched") else self.seconds


def _clock_offset(pid: int) -> int:
    """How far the CLOCK_MONOTONIC of a process is ahead of ours, ns."""
    return procfs.timens_offsets(pid)[0] - procfs.timens_offsets(os.getpid())[0]


def whole_lines(path: Path) -> list[str]:
    """The whole lines in a file that is being written."""
    try:
        return path.read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []


def outlasting(executable: Path, names: Sequence[str], directory: Path, seconds: float, slowness: float, cycles: int) -> Calls:
    """A tree of calls after so many cycles, in all of which every call was interrupted; if need be, the second or third tree."""
    while True:
        tree = Calls(executable, names, directory / f"{names[0]}-{seconds:.0f}", seconds, slowness)
        if tree.outlasts(cycles) or not all(tree.judge(name)[0] for name in tree.over()):
            return tree
        tree.end()
        seconds *= 2

"""torpor killed in the middle of an injection, in a machine: the wait that it was looking at is none the worse for it.

What tests/torture/test_storm.py proves on the host depends on the processor: each gives a thread its registers back in a way
of its own, and not every way leaves the kernel what restart_syscall(2) needs. So these are the waits that go on by that call
when they have been interrupted, and they have been, by another checkpoint, when the kill comes.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import time
import traceback
from pathlib import Path

from tests.calls import program
from tests.machines.calls import Calls
from tests.settings import SEED
from tests.torture.harness import INJECTION

WAITS = ("nanosleep", "poll", "futex_wait")
SECONDS = 6.0  # s; a wait that is over before its last kill, because the host is busy, has fewer of them
ROUNDS = 2
LATEST = 0.02  # s from the beginning of an injection to the first kill: about as long as it takes, where `slowness` is 1
LOOK_EVERY = 0.001  # s; the machine has one CPU, and torpor needs it
KEEPS_TIME = os.uname().machine in ("x86_64", "i686")
"""Whether a wait keeps to its time when torpor is killed; elsewhere it takes its whole time again (docs/limits.md)."""


class Killed(Calls):
    """The waits after `ROUNDS` of a checkpoint of all and a torpor killed at each.

    torpor is used from Python here, and forked where it is to be killed: the command alone takes seconds to start.
    """

    def __init__(self, executable: Path, directory: Path, slowness: float) -> None:
        from torpor import checkpoint

        super().__init__(executable, WAITS, directory, SECONDS, slowness)
        self.random, self.latest = random.Random(f"{SEED} {directory}"), LATEST * slowness
        self.phases: list[int] = []
        """Where torpor was when it was killed."""
        self.begun: dict[str, float] = {}
        """When a wait may have begun again, by the wall's clock."""
        with open(os.environ["TORPOR_PHASE_FILE"], "r+b") as file, mmap.mmap(file.fileno(), 1) as phase:
            for _ in range(ROUNDS):
                if any(map(self._waiting, WAITS)):
                    checkpoint(self.victim.pid, os.devnull)
                for name in self.random.sample(WAITS, len(WAITS)):
                    if self._waiting(name):
                        self._kill(name, phase)

    def _waiting(self, name: str) -> bool:
        return len(self.said(name)) < 2

    def _kill(self, name: str, phase: mmap.mmap) -> None:
        """Have a checkpoint made of the process that waits in `name`, and kill it when it makes calls by way of that process."""
        phase[0] = 0
        said = self.victim.directory / "torpor"
        pid = os.fork()
        if not pid:
            self._checkpoint(int(self.said(name)[0].split()[1]), said)
        self.victim.reaper.own.add(pid)
        while phase[0] != INJECTION and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(LOOK_EVERY)
        time.sleep(self.random.uniform(0, self.latest))
        os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self.victim.reaper.own.discard(pid)
        self.begun[name] = time.time()
        if code == -signal.SIGKILL:
            self.phases.append(phase[0])
            if phase[0] != INJECTION:
                self.latest /= 2  # how long it takes differs from machine to machine
        assert code <= 0 or not self._waiting(name), f"{said.read_text()}\n{self.victim.evidence()}"

    @staticmethod
    def _checkpoint(pid: int, said: Path) -> None:
        """What the forked process does, and ends with."""
        code = 1
        try:
            from torpor import checkpoint

            checkpoint(pid, os.devnull)
            code = 0
        except BaseException:
            said.write_text(traceback.format_exc())
        finally:
            os._exit(code)

    def _again(self, name: str, outcome: program.Outcome) -> float:
        return 0.0 if KEEPS_TIME or name not in self.begun else self.begun[name] - outcome.real_start

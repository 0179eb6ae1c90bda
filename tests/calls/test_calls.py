"""One blocking call, caught in the middle: it ends when it would have ended, with what it would have given.

The program (`tests/programs/calls.c`) makes one call and writes down stamps of CLOCK_REALTIME from right before and right
after it, the result, and whether all registers that must outlive a system call did. Its running time is the time between
the stamps less the time it was dead: from the freeze to the end of the restart, seen from outside in /proc by a thread of
ours that looks every few hundred microseconds.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.calls import program
from tests.calls.program import ALL_TIMED, ALL_UNTIMED, CANNOT_BE_SAVED, MAY_BE_REFUSED, Outcome, check
from tests.calls.watch import Watch
from tests.conftest import FULL, SEED
from tests.torture.harness import Reaper, Run, compile_program, descendants, is_alive, remove_ipc, status, subreaper, torpor

SECONDS = 2.0 if FULL else 1.2
EXACT = 0.030  # s, by which the running time may differ
HELPED = 0.080  # where another process ends the call: its own sleep and its wake-up come on top
TRIES = 3  # for the time alone: a machine under load may miss it

# At a stop the kernel writes the rest of their time into the program's memory: they do not count while it stands still.
REST_IN_MEMORY = {"ppoll", "select", "pselect6"}
# Sockets count time in ticks of the kernel's clock.
COARSE = {"recv_timeout": 0.025}
SOME = {"nanosleep", "clock_nanosleep_abs", "poll", "select", "futex_wait", "epoll_wait", "sigtimedwait", "poll-vdso"}
TWICE = ALL_TIMED if FULL else [(bits, name) for bits, name in ALL_TIMED if name in SOME and bits == 64]
# Every call takes its time: without TORPOR_TEST_FULL=1 all of them on 64 bit, and on 32 bit those that differ there.
ONCE = ALL_TIMED if FULL else [(bits, name) for bits, name in ALL_TIMED if bits == 64 or name in SOME | {"sigtimedwait_time64"}]
ENDLESS = ALL_UNTIMED if FULL else [pair for pair in ALL_UNTIMED if pair[0] == 64 or pair[1] in ("read_pipe-vdso", "wait4")]

pytestmark = [pytest.mark.usefixtures("torpor_runs", "adopted")]


def names(pairs: Sequence[tuple[int, str]]) -> list[str]:
    return [f"{name}-{bits}" for bits, name in pairs]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    directory = tmp_path_factory.mktemp("calls")
    return {bits: compile_program("calls", bits, directory) for bits in (64, 32)}


@pytest.fixture
def adopted() -> Iterator[None]:
    with subreaper():
        yield


class TooLate(Exception):
    """The machine is so busy that the call was over before torpor came to it."""


class Call:
    """One run of the program."""

    def __init__(self, program: Path, name: str, directory: Path, seconds: float = SECONDS) -> None:
        self.name, self.directory, self.seconds = name, directory, seconds
        directory.mkdir(parents=True)
        self.out = directory / "out"
        self.image = directory / "image"
        self.reaper = Reaper()
        self.runs: list[Run] = []
        process = subprocess.Popen(
            [str(program), name, str(seconds), str(self.out)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=directory,
            start_new_session=True,
        )
        process.returncode = 0  # an ordinary child from here on: after a restart another process has its number
        self.pid = process.pid
        end = time.monotonic() + 10
        while not self.out.exists() or not self.out.read_text().endswith("\n"):
            assert time.monotonic() < end and is_alive(self.pid), f"{name} has not begun"
            time.sleep(0.001)
        self.watch = Watch(self.pid)

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *_: object) -> None:
        self.watch.stop()
        if self.pid in descendants(os.getpid()):
            for pid in [self.pid, *descendants(self.pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.reaper.kill_orphans()
        remove_ipc(Path(f"{self.out}.ipc"))

    def torpor(self, *arguments: str | Path) -> Run:
        run = torpor(self.reaper, *arguments)
        self.runs.append(run)
        if run.code == CANNOT_BE_SAVED and arguments[0] == "checkpoint" and self.name in MAY_BE_REFUSED:
            pytest.skip(f"{self.name}: torpor refuses: {run.output.strip()}")
        if run.code == 1 and run.output.endswith(": process: it has ended\n"):
            raise TooLate(f"{self.name} had ended before torpor could stop it: {run.seconds * 1000:.0f} ms")
        assert run.code == 0, f"{self.name}: {run}"
        return run

    def checkpoint(self) -> None:
        """The program goes on."""
        self.torpor("checkpoint", str(self.pid), "-o", self.image)
        self.image.unlink()

    def kill_and_restart(self, dead: float) -> None:
        tree = [self.pid, *descendants(self.pid)]
        self.torpor("checkpoint", str(self.pid), "-o", self.image, "--kill")
        self.reaper.wait_gone(tree)
        if self.finished():
            raise TooLate(f"{self.name} had ended before it was killed")
        time.sleep(dead)
        self.torpor("restart", self.image, "--detach")
        if not is_alive(self.pid) and not self.finished():  # restarted into a pid namespace: another number here
            self.pid = self.watch.pid = self._find()

    def _find(self) -> int:
        for pid in descendants(os.getpid()):
            with contextlib.suppress(OSError):
                if str(self.out).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        raise AssertionError(f"{self.name}: the restarted process cannot be found")

    def finished(self) -> bool:
        return self.out.read_text().count("\n") >= 2

    def outcome(self, within: float = 10.0) -> Outcome:
        end = time.monotonic() + self.seconds + within
        while not self.finished():
            self.reaper.reap()
            now = status(self.pid).get("State", "gone")
            assert time.monotonic() < end, f"{self.name} does not end: {now}\n{self._history()}"
            assert now[0] not in "gZX" or self.finished(), f"{self.name}: {now} without a result\n{self._history()}"
            time.sleep(0.001)
        return program.outcome(self.out.read_text().splitlines()[1])

    def _history(self) -> str:
        return "\n".join(map(str, self.runs))


def running_time(name: str, outcome: Outcome, dead: float) -> float:
    """How long it ran. Calls with an absolute deadline go by the program's own clock, which stood still while it was dead
    but for the moments in which torpor saved it and made it again: both readings of such a call are right."""
    ran = outcome.real_end - outcome.real_start - dead
    if "_abs" in name and ran < SECONDS < outcome.monotonic:
        return SECONDS
    return min(ran, outcome.monotonic, key=lambda each: abs(each - SECONDS)) if "_abs" in name else ran


def stolen() -> float:
    """Seconds that the host of a virtual machine has taken from its CPUs, since the boot (proc_stat(5), steal)."""
    with open("/proc/stat") as file:
        return int(file.readline().split()[8]) / os.sysconf("SC_CLK_TCK")


def judge(tries: Sequence[float], name: str, asked: float, tolerance: float, stolen_before: float) -> bool:
    """Whether the last try was on time; raises when it was not and no try is left.

    The kernel's account of when a wait began leaves stolen time out (docs/limits.md), so that much more is allowed.
    """
    wrong = tries[-1] - asked
    exact = tolerance + COARSE.get(name, 0.0) + stolen() - stolen_before
    if abs(wrong) <= exact:
        return True
    if len(tries) < TRIES:
        print(f"{name}: {wrong * 1000:+.1f} ms: tried again")
        return False
    text = ", ".join(f"{(each - asked) * 1000:+.1f}" for each in tries)
    raise AssertionError(f"{name}: ran {text} ms longer than {asked} s in {TRIES} tries; allowed: {exact * 1000:.0f} ms")


def tried(attempt: Callable[[Path], bool], tmp_path: Path) -> None:
    """Make the attempt until it succeeds, TRIES times at most."""
    for number in range(TRIES):
        try:
            if attempt(tmp_path / str(number)):
                return
        except TooLate as late:
            print(f"{late}: tried again")
    raise AssertionError(f"none of {TRIES} tries was on time")


@pytest.mark.parametrize(("bits", "name"), ONCE, ids=names(ONCE))
def test_ends_on_time_after_restart(programs: dict[int, Path], tmp_path: Path, bits: int, name: str) -> None:
    """Checkpointed and killed at a random instant, dead for a while, restarted: it runs as long as was asked."""
    rng = random.Random(f"{SEED} {bits} {name}")
    ran: list[float] = []

    def attempt(directory: Path) -> bool:
        before = stolen()
        with Call(programs[bits], name, directory) as call:
            time.sleep(rng.uniform(0.05, 0.45 * SECONDS))
            call.kill_and_restart(0.5)
            outcome = call.outcome()
            call.watch.stop()
            dead = call.watch.dead(outcome.real_end)
        check(name, outcome)
        ran.append(running_time(name, outcome, dead))
        print(
            f"{name} ({bits} bit): asked {SECONDS} s, ran {ran[-1]:.4f} s (CLOCK_MONOTONIC of the program: "
            f"{outcome.monotonic:.4f} s), dead {dead:.3f} s, gave {outcome}"
        )
        assert dead > 0.5
        return judge(ran, name, SECONDS, EXACT, before)

    tried(attempt, tmp_path)


@pytest.mark.parametrize(("bits", "name"), TWICE, ids=names(TWICE))
def test_ends_on_time_after_two_checkpoints(programs: dict[int, Path], tmp_path: Path, bits: int, name: str) -> None:
    """Two checkpoints that let it go on: nothing is to be seen of them."""
    rng = random.Random(f"{SEED} twice {bits} {name}")
    ran: list[float] = []

    def attempt(directory: Path) -> bool:
        before = stolen()
        with Call(programs[bits], name, directory) as call:
            for _ in range(2):
                time.sleep(rng.uniform(0.05, 0.2 * SECONDS))
                call.checkpoint()
            outcome = call.outcome()
            call.watch.stop()
        check(name, outcome)
        ran.append(outcome.real_end - outcome.real_start)
        if name in REST_IN_MEMORY:
            ran[-1] -= call.watch.standstill(outcome.real_end)
        print(f"{name} ({bits} bit): asked {SECONDS} s, took {ran[-1]:.4f} s, gave {outcome}")
        return judge(ran, name, SECONDS, EXACT, before)

    tried(attempt, tmp_path)


@pytest.mark.parametrize(("bits", "name"), TWICE, ids=names(TWICE))
def test_ends_on_time_after_second_stop(programs: dict[int, Path], tmp_path: Path, bits: int, name: str) -> None:
    """A checkpoint that lets it go on (the call is now a restart_syscall), then one that kills it, and a restart."""
    rng = random.Random(f"{SEED} second {bits} {name}")
    ran: list[float] = []

    def attempt(directory: Path) -> bool:
        before = stolen()
        with Call(programs[bits], name, directory) as call:
            time.sleep(rng.uniform(0.05, 0.2 * SECONDS))
            call.checkpoint()
            time.sleep(rng.uniform(0.05, 0.2 * SECONDS))
            call.kill_and_restart(0.5)
            outcome = call.outcome()
            call.watch.stop()
            dead = call.watch.dead(outcome.real_end)
        check(name, outcome)
        ran.append(running_time(name, outcome, dead))
        print(f"{name} ({bits} bit): asked {SECONDS} s, ran {ran[-1]:.4f} s, dead {dead:.3f} s, gave {outcome}")
        return judge(ran, name, SECONDS, EXACT, before)

    tried(attempt, tmp_path)


@pytest.mark.parametrize("times", [1, 2] if FULL else [2])
@pytest.mark.parametrize(("bits", "name"), ENDLESS, ids=names(ENDLESS))
def test_goes_on_waiting(programs: dict[int, Path], tmp_path: Path, bits: int, name: str, times: int) -> None:
    """Calls without a time limit of their own, ended by a child or a timer that was checkpointed with them.

    With 2: killed and restarted twice.
    """
    rng = random.Random(f"{SEED} {bits} {name} {times}")
    asked = SECONDS * times

    def attempt(directory: Path) -> bool:
        with Call(programs[bits], name, directory, asked) as call:
            for _ in range(times):
                time.sleep(rng.uniform(0.05, 0.2 * SECONDS))
                call.kill_and_restart(0.2)
            outcome = call.outcome()
            call.watch.stop()
            dead = call.watch.dead(outcome.real_end)
        check(name, outcome)
        ran = outcome.real_end - outcome.real_start - dead
        print(f"{name} ({bits} bit): ended after {ran:.4f} s of {asked} s, dead {dead:.3f} s, gave {outcome}")
        assert dead > 0.2 * times
        return ran > asked - HELPED

    tried(attempt, tmp_path)


@pytest.mark.parametrize("bits", [64, 32])
def test_alone(programs: dict[int, Path], tmp_path: Path, bits: int) -> None:
    """Without torpor, all at once: what the program itself says is right, and this list is the program's."""
    listed = subprocess.run([programs[bits], "--list"], capture_output=True, text=True, check=True).stdout.split("\n")[:-1]
    timed = {line.split()[0] for line in listed if line.endswith(" timed")}
    untimed = {line.split()[0] for line in listed if line.endswith(" untimed")}
    assert timed == {name for size, name in ALL_TIMED if size == bits}
    assert untimed == {name for size, name in ALL_UNTIMED if size == bits}
    with contextlib.ExitStack() as stack:
        calls = [stack.enter_context(Call(programs[bits], name, tmp_path / name, 1.0)) for name in sorted(timed | untimed)]
        for call in calls:
            outcome = call.outcome()
            check(call.name, outcome)
            took = outcome.real_end - outcome.real_start
            print(f"{call.name} ({bits} bit): asked 1.0 s, took {took:.4f} s, gave {outcome}")
            assert took > 0.9

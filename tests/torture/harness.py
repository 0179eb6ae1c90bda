"""Starts the torture program, takes torpor to it, and looks from outside whether it noticed.

`cycle()` checkpoints, kills and restarts it; `storm()` kills torpor in the middle of a checkpoint. Afterwards every
heartbeat slot must advance and none may have counted an error. What goes wrong is raised as `TortureFailure` with all
that is known; the directory with the image, the heartbeat file and the errors stays.

By hand, from the root of the repository:

    python3 -m tests.torture.harness cycle --bits 64 --threads 10 --count 20
    python3 -m tests.torture.harness storm --bits 32 --threads 9 --mode blocked --count 100
    python3 -m tests.torture.harness run --threads 300 --seconds 10
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import mmap
import os
import random
import re
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.settings import M32, MODE, ROOT, SEED, SRC
from tests.torture.heartbeat import Heartbeat, Slot, error_lines

PROGRAMS = ROOT / "tests" / "programs"
PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 36, 37

START_WITHIN = 30.0  # s, where QEMU translates; pages of 64 KiB take their time to be filled
PROGRESS_WITHIN = 20.0  # s, in which every slot must have advanced
GONE_WITHIN = 20.0
COMMAND_WITHIN = 120.0

PHASES = {0: "none", 1: "frozen", 2: "injection", 3: "injection over", 4: "thawed", 5: "stopping"}
INJECTION, STOPPING = 2, 5

_libc = ctypes.CDLL(None, use_errno=True)


class TortureFailure(AssertionError):
    """Something the program noticed, or did not survive; the text is the whole evidence."""


# ------------------------------------------------------------------------------------------------ building


def compile_program(name: str, bits: int, directory: Path, compiler: Sequence[str] = ()) -> Path:
    """Build tests/programs/NAME*.c with warnings as errors; returns the program. `compiler`: one for another machine."""
    sources = sorted(PROGRAMS.glob(f"{name}.c")) + sorted(PROGRAMS.glob(f"{name}_*.c"))
    out = directory / f"{name}{bits}"
    if not compiler:
        words = ["-m64"] if bits == 64 else list(M32)
        compiler = ["gcc", *words] if os.uname().machine == "x86_64" else ["gcc"]
    command = [*compiler, "-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", str(out)]
    done = subprocess.run([*command, *map(str, sources)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} does not build for {bits} bits:\n{done.stderr}")
    return out


# ------------------------------------------------------------------------------------------------ processes


@contextlib.contextmanager
def subreaper() -> Iterator[None]:
    """Orphans of our descendants come to us for this time: process 1 may reap late or, in a container, not at all."""
    before = ctypes.c_int()
    _libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        _libc.prctl(PR_SET_CHILD_SUBREAPER, before.value, 0, 0, 0)


def children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for tid in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{tid}/children").read_text().split())
    except OSError:
        pass
    return found


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    for child in children(pid):
        found += [child, *descendants(child)]
    return found


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status; empty when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def inner_pid(pid: int) -> int:
    """The number by which the process knows itself: another one in a pid namespace of its own."""
    numbers = status(pid).get("NSpid", "").split()
    return int(numbers[-1]) if numbers else pid


def is_alive(pid: int) -> bool:
    return status(pid).get("State", "Z")[0] not in "ZX"


def describe(pid: int) -> str:
    """What a task is doing, for the evidence."""
    words = [f"task {pid}:"]
    for name in ("comm", "wchan", "syscall"):
        try:
            words.append(f"{name}={Path(f'/proc/{pid}/{name}').read_text().strip()}")
        except OSError as error:
            words.append(f"{name}: {error.strerror}")
    now = status(pid)
    words += [f"{key}={now[key]}" for key in ("State", "TracerPid", "SigPnd", "ShdPnd", "SigBlk") if key in now]
    return " ".join(words)


def remove_ipc(path: Path) -> None:
    """Remove the System V objects whose numbers a program that may have been killed has written to `path`."""
    with contextlib.suppress(FileNotFoundError):
        for kind, number in (line.split() for line in path.read_text().splitlines()):
            if kind == "sem":
                _libc.semctl(int(number), 0, 0)  # IPC_RMID
            else:
                _libc.msgctl(int(number), 0, None)


class Reaper:
    """Reaps those of our children that came to us as orphans; processes that were ours before are left alone."""

    def __init__(self) -> None:
        self._before = set(children(os.getpid()))
        self.own: set[int] = set()  # commands of ours that subprocess waits for

    def reap(self) -> None:
        for pid in children(os.getpid()):
            if pid not in self._before and pid not in self.own and not is_alive(pid):
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)

    def wait_gone(self, pids: Sequence[int], seconds: float = GONE_WITHIN) -> None:
        end = time.monotonic() + seconds
        while True:
            self.reap()
            left = [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
            if not left:
                return
            if time.monotonic() > end:
                raise TortureFailure("still there: " + "; ".join(describe(pid) for pid in left))
            time.sleep(0.001)

    def kill_orphans(self) -> None:
        """At the end: nothing that came to us may go on."""
        for _ in range(50):
            mine = [pid for pid in children(os.getpid()) if pid not in self._before and pid not in self.own]
            if not mine:
                return
            for pid in mine:
                for each in [pid, *descendants(pid)]:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(each, signal.SIGKILL)
            self.reap()
            time.sleep(0.01)


# ------------------------------------------------------------------------------------------------ torpor


@dataclass
class Run:
    """One finished torpor command."""

    arguments: list[str]
    code: int
    output: str
    seconds: float

    def __str__(self) -> str:
        text = f"torpor {' '.join(self.arguments)}: exit {self.code} after {self.seconds * 1000:.1f} ms"
        return f"{text}\n{self.output.rstrip()}" if self.output.strip() else text


def wait_for(process: subprocess.Popen[bytes], seconds: float) -> int:
    """Popen.wait(timeout), but it wakes at the end of the process and not up to 50 ms later."""
    pidfd = os.pidfd_open(process.pid)
    try:
        if not select.select([pidfd], [], [], seconds)[0]:
            raise subprocess.TimeoutExpired(process.args, seconds)
    finally:
        os.close(pidfd)
    return process.wait()


def torpor_environment(**more: str) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TORPOR_PHASE")}
    return {**environment, "PYTHONPATH": str(SRC), **more}


def torpor_command(*arguments: str | Path, mode: str = "") -> list[str]:
    command = [str(ROOT / "tests" / "mode.py")] if mode else ["-m", "torpor"]
    return [sys.executable, *command, *map(str, arguments)]


def torpor(reaper: Reaper, *arguments: str | Path, **environment: str) -> Run:
    """Run one torpor command as a real process and wait for it. What it starts and leaves is not waited for."""
    start, mode = time.monotonic(), environment.get("TORPOR_TEST_MODE", MODE)
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            torpor_command(*arguments, mode=mode),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=torpor_environment(**environment),
            cwd=ROOT,
        )
        reaper.own.add(process.pid)
        try:
            code = wait_for(process, COMMAND_WITHIN)
        except subprocess.TimeoutExpired:
            doing = describe(process.pid)
            process.kill()
            process.wait()
            output.seek(0)
            said = output.read().decode(errors="replace")
            raise TortureFailure(f"torpor {arguments} has not ended; {doing}\n{said}") from None
        finally:
            reaper.own.discard(process.pid)
        seconds = time.monotonic() - start
        output.seek(0)
        return Run([str(word) for word in arguments], code, output.read().decode(errors="replace"), seconds)


# ------------------------------------------------------------------------------------------------ the victim


@dataclass
class CycleTimes:
    checkpoint: float
    restart: float
    progress: float
    image: int


@dataclass
class StormResult:
    kills: int = 0
    phases: Counter[int] = field(default_factory=Counter)
    finished: int = 0  # runs that were over before the kill came
    clean: list[float] = field(default_factory=list)  # s, runs that were not killed
    interrupted: int = 0  # calls that have ended with EINTR, as docs/limits.md ("Waits") says that they may

    def __str__(self) -> str:
        by_phase = ", ".join(f"{PHASES.get(phase, phase)} {count}" for phase, count in sorted(self.phases.items()))
        interrupted = f"; {self.interrupted} calls ended with EINTR, as limits.md says" if self.interrupted else ""
        return (
            f"{self.kills} kills ({by_phase}){interrupted}; {self.finished} came too late; "
            f"a run takes {statistics.median(self.clean) * 1000:.0f} ms"
        )


class Torture:
    """One running torture program and everything about it. Use as a context manager."""

    def __init__(
        self,
        program: Path,
        directory: Path,
        *,
        threads: int,
        kids: int = 2,
        mode: str = "mixed",
        extra: Sequence[str] = (),
        rng: random.Random | None = None,
        command: Callable[..., Run] = torpor,
        patience: float = PROGRESS_WITHIN,
    ) -> None:
        self.program, self.directory = program, directory
        self.heartbeat_path = directory / "heartbeat"
        self.arguments = ["--threads", str(threads), "--heartbeat", str(self.heartbeat_path)]
        self.arguments += ["--children", str(kids), "--mode", mode, *extra]
        self.random, self.patience = rng or random.Random(SEED), patience
        self.reaper, self._command = Reaper(), command
        self.runs: list[Run] = []
        self.started_in = 0.0
        self.excused = 0
        """Errors that `storm` has found to be what docs/limits.md allows."""

    def __enter__(self) -> Torture:
        self.directory.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        self.process = subprocess.Popen(
            [str(self.program), *self.arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.directory,
            close_fds=True,
            start_new_session=True,
        )
        # It is an ordinary child to us from here on: after a restart another process has its number.
        self.process.returncode = 0
        self.pid = self.process.pid
        end = start + START_WITHIN
        while True:
            if self.heartbeat_path.exists() and self.heartbeat_path.stat().st_size >= 64:
                with contextlib.suppress(ValueError):
                    self.heart = Heartbeat(self.heartbeat_path)
                    if self.heart.ready():
                        break
                    self.heart.close()
            if time.monotonic() > end or not is_alive(self.pid):
                raise TortureFailure(f"torture has not started: {error_lines(self.heartbeat_path)} {describe(self.pid)}")
            time.sleep(0.002)
        self.started_in = time.monotonic() - start
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        # Only what is ours: a process that has ended and was reaped may have given its number to somebody else.
        pids = [self.pid, *descendants(self.pid)] if self.pid in descendants(os.getpid()) else []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(TortureFailure):
            self.reaper.wait_gone(pids, 5)
        self.reaper.kill_orphans()
        remove_ipc(Path(f"{self.heartbeat_path}.ipc"))
        self.heart.close()

    def exit_status(self, seconds: float) -> int:
        """Wait for the program to end by itself; -1: it does not, or was never our child."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                pid, state = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                return -1
            if pid:
                return os.waitstatus_to_exitcode(state)
            time.sleep(0.005)
        return -1

    # -------------------------------------------------------------------------------- looking

    def task_pids(self) -> list[int]:
        """Every thread and child by the numbers it knows of itself."""
        return [slot.tid for slot in self.heart.all() if slot.tid]

    def failure(self, what: str, stuck: Sequence[Slot] = ()) -> TortureFailure:
        """`what`, with all the evidence there is."""
        lines = [what, f"program: {self.program.name} {' '.join(self.arguments)}", f"evidence: {self.directory}"]
        lines.append(f"TORPOR_TEST_SEED={SEED}")
        lines += [f"  {run}" for run in self.runs[-4:]]
        lines += [
            f"  slot {slot.index} {slot.role}: {slot.errors} errors, last {slot.last_error_code} detail {slot.detail:#x}"
            for slot in self.heart.all()
            if slot.errors
        ]
        lines += [f"  {line}" for line in self._few_of_each(error_lines(self.heartbeat_path))]
        lines += [f"  stuck: slot {s.index} {s.role} at {s.count}: {describe(s.tid)}" for s in stuck[:10]]
        if not is_alive(self.pid):
            lines.append(f"  process {self.pid} is not alive")
        return TortureFailure("\n".join(lines))

    @staticmethod
    def _few_of_each(errors: Sequence[str], few: int = 4, most: int = 40) -> list[str]:
        seen: Counter[str] = Counter()
        kept = []
        for line in errors:
            code = line.split(" ", 1)[0]
            seen[code] += 1
            if seen[code] <= few:
                kept.append(line)
        return kept[:most]

    def verify(self, steps: int = 2) -> float:
        """Every slot advances by `steps` rounds, without an error; returns the seconds that took."""
        begin = time.monotonic()
        before = self.heart.beating()
        waiting = set(before)
        while True:
            if self.heart.errors() > self.excused:
                raise self.failure("the program found errors in its own state")
            now = self.heart.beating()
            waiting = {index for index in waiting if now[index] < before[index] + steps}
            if not waiting:
                return time.monotonic() - begin
            if time.monotonic() - begin > self.patience:
                stuck = [self.heart.slot(index) for index in sorted(waiting)]
                raise self.failure(f"{len(stuck)} of {len(before)} slots do not advance", stuck)
            time.sleep(0.003)

    def verify_tree(self) -> None:
        """No process beside the known ones, and nobody is being traced."""
        known = set(self.task_pids()) | {self.pid}
        for _ in range(20):  # a child of the forker comes and goes; so does the copy of a killed torpor
            self.reaper.reap()
            tree = [self.pid, *descendants(self.pid)]
            strange = [pid for pid in tree if inner_pid(pid) not in known and is_alive(pid) and not self._of_the_forker(pid)]
            traced = [pid for pid in tree if status(pid).get("TracerPid", "0") != "0"]
            if not strange and not traced:
                return
            time.sleep(0.05)
        what = "; ".join(describe(pid) for pid in strange + traced)
        raise self.failure(f"processes that nobody knows, or that are traced: {what}")

    def _of_the_forker(self, pid: int) -> bool:
        parent = inner_pid(int(status(pid).get("PPid", "0")))
        return any(slot.role.startswith("session") and slot.pid == parent for slot in self.heart.all())

    def outside_pid(self) -> int:
        """The pid by which we know the first process: another one when it was restarted into a pid namespace."""
        for pid in descendants(os.getpid()):
            if inner_pid(pid) == self.heart.pid and is_alive(pid):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if str(self.heartbeat_path).encode() in command:
                    return pid
        raise self.failure("the restarted process cannot be found among our descendants")

    def run_torpor(self, *arguments: str | Path, **environment: str) -> Run:
        run = self._command(self.reaper, *arguments, **environment)
        self.runs.append(run)
        return run

    # -------------------------------------------------------------------------------- checkpoint, kill, restart

    def cycle(self, *checkpoint_options: str, mode: str = "") -> CycleTimes:
        """At a random instant: checkpoint and kill, wait until all is gone, restart, see it go on. `mode`: see tests/mode.py."""
        how = {"TORPOR_TEST_MODE": mode} if mode else {}
        image = self.directory / "image"
        time.sleep(self.random.uniform(0, 0.05))
        tree = [self.pid, *descendants(self.pid)]
        taken = self.run_torpor("checkpoint", str(self.pid), "-o", image, "--kill", *checkpoint_options, **how)
        if taken.code:
            raise self.failure("the checkpoint failed")
        self.reaper.wait_gone(tree)
        counts = self.heart.beating()
        if self.heart.errors() > self.excused:
            raise self.failure("the program found errors before it was killed")
        size = image.stat().st_size
        back = self.run_torpor("restart", image, "--detach", **how)
        if back.code:
            raise self.failure("the restart failed")
        if mode == "lazy" and "of its memory follow" not in back.output:
            raise self.failure("the restart was not lazy")
        # How much of it that is depends on what the program has done meanwhile: right after its start that is the most part.
        if mode == "incremental" and "image.first, taken" not in self.run_torpor("inspect", image).output:
            raise self.failure("nothing of the image lies in its parent")
        if mode == "ahead" and '"Draft"' not in self.run_torpor("inspect", "--json", image).output:
            raise self.failure("nothing was saved before the stop")
        self.pid = self.outside_pid()
        progress = self.verify()
        after = self.heart.beating()
        if any(after[index] < count for index, count in counts.items()):
            raise self.failure("a heartbeat went backwards")
        self.verify_tree()
        image.unlink()
        return CycleTimes(taken.seconds, back.seconds, progress, size)

    def checkpoint_and_go_on(self) -> Run:
        """A checkpoint that leaves the program alone."""
        image = self.directory / "image"
        run = self.run_torpor("checkpoint", str(self.pid), "-o", image)
        if run.code:
            raise self.failure("the checkpoint failed")
        self.verify()
        image.unlink()
        return run

    # -------------------------------------------------------------------------------- killing torpor

    def _only_interrupted(self) -> bool:
        """Whether all new errors are of one thread, one of whose calls has ended with EINTR, and so too early."""
        time.sleep(0.05)  # the second is written behind the first
        lines = error_lines(self.heartbeat_path)
        new = [re.fullmatch(r"\d+ (WAIT_EINTR|WAIT_SHORT) (slot .* round \d+): .*", line) for line in lines[self.excused :]]
        return len(lines) == self.heart.errors() and all(new) and len({each[2] for each in new if each}) == 1

    def storm(self, kills: int, *, in_injection: float = 0.5) -> StormResult:
        """Kill torpor `kills` times in the middle of a checkpoint, `in_injection` of them during an injection.

        The rest comes at an instant drawn evenly from the time that a whole run takes. torpor says where it is in one
        byte of the file that TORPOR_PHASE_FILE names (see PHASES); without that byte no kill can be aimed.
        """
        result = StormResult()
        phase_path = self.directory / "phase"
        phase_path.write_bytes(b"\0" * 4096)
        with phase_path.open("r+b") as file, mmap.mmap(file.fileno(), 4096) as phase:
            injections = []
            for _ in range(4):
                result.clean.append(self._one_run(phase, phase_path, None, 0.0)[1])
                injections.append(self._injection_seconds)
            typical, injection = statistics.median(result.clean), statistics.median(injections)
            self.verify()
            for number in range(kills * 4):  # those that come too late are done again
                if result.kills == kills:
                    break
                aimed = injection > 0 and self.random.random() < in_injection
                delay = self.random.uniform(0, injection if aimed else typical)
                killed_in, _ = self._one_run(phase, phase_path, INJECTION if aimed else 0, delay)
                if killed_in is None:
                    result.finished += 1
                else:
                    result.kills += 1
                    result.phases[killed_in] += 1
                try:
                    self.verify(1)
                except TortureFailure:
                    if killed_in != STOPPING or not self._only_interrupted():
                        raise
                    result.interrupted += 1
                    self.excused = self.heart.errors()
                if number % 20 == 19:
                    self.verify_tree()
        self.verify_tree()
        self.verify()
        self.checkpoint_and_go_on()
        return result

    def _one_run(self, phase: mmap.mmap, phase_path: Path, wait_for: int | None, delay: float) -> tuple[int | None, float]:
        """One `torpor checkpoint`, killed `delay` s after phase `wait_for` began; None: not killed.

        Returns the phase it was in when it was killed (None: it ended by itself), and the seconds it ran.
        """
        image = self.directory / "storm-image"
        image.unlink(missing_ok=True)
        phase[0] = 0
        words = self.directory / "storm-said"
        said = words.open("wb")
        start = time.monotonic()
        process = subprocess.Popen(
            torpor_command("checkpoint", str(self.pid), "-o", image),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            env=torpor_environment(TORPOR_PHASE_FILE=str(phase_path)),
            cwd=ROOT,
        )
        self.reaper.own.add(process.pid)
        try:
            if wait_for is None:
                code = self._watch(process, phase)
                if code:
                    raise self.failure(f"an undisturbed checkpoint failed with exit code {code}: {words.read_text()}")
                return None, time.monotonic() - start
            while wait_for and phase[0] != wait_for and process.poll() is None:
                pass
            end = time.monotonic() + delay
            while time.monotonic() < end and process.poll() is None:
                pass
            process.kill()
            code = process.wait()
        finally:
            said.close()
            self.reaper.own.discard(process.pid)
            for left in self.directory.glob("*storm-image*"):
                left.unlink()
        if code != -signal.SIGKILL:
            if code:
                raise self.failure(f"a checkpoint failed with exit code {code}: {words.read_text()}")
            return None, time.monotonic() - start
        return phase[0], time.monotonic() - start

    def _watch(self, process: subprocess.Popen[bytes], phase: mmap.mmap) -> int:
        """Wait for a run to end; measures how long from its first injection to the end of its last one."""
        first = last = 0.0
        before = 0
        while (code := process.poll()) is None:
            now = phase[0]
            if now != before:
                if now == INJECTION and not first:
                    first = time.monotonic()
                if before == INJECTION:
                    last = time.monotonic()
                before = now
        self._injection_seconds = max(0.0, last - first)
        return code


# ------------------------------------------------------------------------------------------------ by hand


def figures(name: str, values: Sequence[float]) -> str:
    """A line of figures in ms."""
    if not values:
        return f"{name}: none"
    ordered = sorted(values)
    return (
        f"{name}: median {statistics.median(ordered) * 1000:.1f} ms, least {ordered[0] * 1000:.1f}, most {ordered[-1] * 1000:.1f}"
    )


def summary(times: Sequence[CycleTimes]) -> str:
    return "; ".join(
        (
            f"{len(times)} cycles",
            figures("checkpoint", [each.checkpoint for each in times]),
            figures("restart", [each.restart for each in times]),
            figures("all slots advance after", [each.progress for each in times]),
            f"image {max((each.image for each in times), default=0) / 1e6:.1f} MB",
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cycle", "storm", "run"))
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--threads", type=int, default=10)
    parser.add_argument("--children", type=int, default=2)
    parser.add_argument("--mode", default="mixed", choices=("mixed", "running", "blocked"))
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--extra", nargs="*", default=[], help="more words for torture, without the leading --")
    wanted = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="torture-"))
    program = compile_program("torture", wanted.bits, directory)
    extra = ["--" + word for word in wanted.extra]
    with (
        subreaper(),
        Torture(program, directory / "run", threads=wanted.threads, kids=wanted.children, mode=wanted.mode, extra=extra) as victim,
    ):
        print(f"started in {victim.started_in * 1000:.0f} ms as pid {victim.pid}; TORPOR_TEST_SEED={SEED}")
        if wanted.what == "run":
            time.sleep(wanted.seconds)
            print(f"all slots advanced within {victim.verify() * 1000:.0f} ms")
        elif wanted.what == "storm":
            print(victim.storm(wanted.count))
        else:
            times = []
            for number in range(wanted.count):
                times.append(victim.cycle())
                print(f"{number + 1}: {summary(times[-1:])}", flush=True)
            print(summary(times))
    shutil.rmtree(directory)


if __name__ == "__main__":
    try:
        main()
    except TortureFailure as failure:
        sys.exit(re.sub(r"^", "! ", str(failure), flags=re.M))

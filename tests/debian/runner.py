"""Runs a program undisturbed and interrupted by torpor, and compares what comes out.

A program is started in a session of its own, with /dev/null as standard input, a file as standard output and error and
no other descriptor. The undisturbed run says how long it takes and what it leaves behind. In an interrupted run torpor
checkpoints and kills it at given instants; each time every process of it must be gone, and `torpor restart` must bring
it back; in the end its exit status and every byte it left behind must be those of the undisturbed run.

The process that uses a `Lab` becomes a child subreaper for its time: whatever it started, and whatever those started,
is then among its descendants, and nothing can be left running unseen.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.settings import MODE, ROOT, SEED, SRC

PR_SET_CHILD_SUBREAPER = 36
ORDINARY = 54321  # a user without an account
GONE_WITHIN = 15.0  # s, in which a killed tree must have disappeared
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


@dataclass(frozen=True)
class Program:
    """Something to be run in a directory of its own."""

    name: str
    argv: Sequence[str]
    outputs: Sequence[str] = ()  # patterns of files, besides its standard output, that must be equal afterwards
    prepare: Callable[[Path], None] = lambda directory: None  # puts what it needs into the directory
    collect: Callable[[Path], Mapping[str, bytes]] = lambda directory: {}  # what else must be equal afterwards
    pid_file: str = ""  # a daemon: the file into which it writes its pid when it is ready
    status: int = 0


@dataclass(frozen=True)
class Outcome:
    status: int
    seconds: float = field(compare=False)
    left: Mapping[str, tuple[int, str]]  # name: (length, hash)

    def difference(self, other: Outcome) -> str:
        """What differs between the two, in words; "" when nothing does."""
        found = []
        if self.status != other.status:
            found.append(f"exit status {self.status} and {other.status}")
        for name in sorted({*self.left, *other.left}):
            mine, theirs = self.left.get(name), other.left.get(name)
            if mine != theirs:
                lengths = ["absent" if one is None else f"{one[0]} bytes" for one in (mine, theirs)]
                found.append(f"{name} ({lengths[0]} and {lengths[1]})")
        return ", ".join(found)


class Missed(Exception):
    """The program had ended before the instant at which it was to be interrupted."""


def process(pid: int) -> tuple[int, str] | None:
    """(parent, state) of a process, None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields[1]), fields[0]


def descendants(of: int) -> dict[int, tuple[int, str]]:
    """Every process below `of`, zombies too: pid: (parent, state)."""
    everyone = {int(name): stat for name in os.listdir("/proc") if name.isdigit() and (stat := process(int(name)))}
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in everyone.items():
        children.setdefault(parent, []).append(pid)
    found, todo = {}, list(children.get(of, []))
    while todo:
        pid = todo.pop()
        found[pid] = everyone[pid]
        todo += children.get(pid, [])
    return found


def status_line(pid: int, key: str) -> list[str]:
    """The words of a line of /proc/PID/status, [] when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return next((line.split()[1:] for line in lines if line.startswith(f"{key}:")), [])


def describe(pids: Mapping[int, tuple[int, str]]) -> str:
    def command(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:100]
        except OSError:
            return ""

    return "; ".join(f"{pid} ({state}, parent {parent}) {command(pid)}" for pid, (parent, state) in pids.items())


def as_user(uid: int) -> dict[str, Any]:
    """Arguments for subprocess that make it run as this user, without groups."""
    return {} if uid == os.geteuid() else {"user": uid, "group": uid, "extra_groups": []}


def interpreter_for(uid: int) -> str:
    """A Python >= 3.11 that this user may execute: Debian's before the one that runs this, perhaps from root's home."""
    for candidate in ("/usr/bin/python3", str(getattr(sys, "_base_executable", "")), sys.executable):
        check = [candidate, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        try:
            if candidate and subprocess.run(check, cwd="/", stderr=subprocess.DEVNULL, **as_user(uid)).returncode == 0:
                return candidate
        except OSError:
            pass  # not there, or not for this user
    raise RuntimeError(f"no Python 3.11 or newer that uid {uid} may execute")


class Lab:
    """A directory that `uid` owns and in which programs run as this user; a context manager that leaves nothing behind.

    `torpor` is the command to use in place of `python -m torpor`. TORPOR_TEST_KEEP=1 keeps the directory.
    """

    def __init__(self, uid: int, torpor: Sequence[str] = ()) -> None:
        self.uid = uid
        self.torpor = list(torpor)
        self.environment: dict[str, str] = {}
        self.notes: list[str] = []
        self._runs = 0
        self._started: dict[int, subprocess.Popen[bytes]] = {}
        self._statuses: dict[int, int] = {}

    def __enter__(self) -> Lab:
        self._before = set(descendants(os.getpid()))
        self.directory = Path(tempfile.mkdtemp(prefix="torpor-test-"))
        os.chmod(self.directory, 0o755)
        os.chown(self.directory, self.uid, -1)
        self.environment = ENVIRONMENT | {"HOME": str(self.directory), "TMPDIR": str(self.directory)}
        if not self.torpor:
            self.torpor = [interpreter_for(self.uid), "-m", "torpor"]
            self.environment["PYTHONPATH"] = str(SRC if self.uid == os.geteuid() else self._copy_of_torpor())
            if MODE:
                shutil.copy(ROOT / "tests" / "mode.py", self.directory)
                self.torpor[1:] = [str(self.directory / "mode.py")]
                self.environment["TORPOR_TEST_MODE"] = MODE
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._end_all()
        finally:
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
            if os.environ.get("TORPOR_TEST_KEEP"):
                print(f"kept: {self.directory}")
            else:
                shutil.rmtree(self.directory)

    def _copy_of_torpor(self) -> Path:
        """torpor's source where the user can read it: the directory of this checkout may be closed to him."""
        copy = self.directory / "src"
        shutil.copytree(SRC, copy, ignore=shutil.ignore_patterns("__pycache__"))
        for path in [copy, *copy.rglob("*")]:
            os.chmod(path, 0o755 if path.is_dir() else 0o644)
            os.chown(path, self.uid, -1)
        compile_all = [self.torpor[0], "-m", "compileall", "-q", str(copy)]
        subprocess.run(compile_all, check=True, cwd="/", **as_user(self.uid))
        return copy

    # --- processes --------------------------------------------------------------------------------------------------

    def ours(self) -> dict[int, tuple[int, str]]:
        """Every process there is because of this lab."""
        return {pid: stat for pid, stat in descendants(os.getpid()).items() if pid not in self._before}

    def _poll(self, pid: int) -> int | None:
        """The exit status of a child, or of an orphan that has come to us; None while there is none."""
        if pid not in self._statuses:
            if popen := self._started.get(pid):
                if (status := popen.poll()) is None:
                    return None
                del self._started[pid]  # the pid may be used again, by the restarted program
            else:
                try:
                    reaped, raw = os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:
                    return None  # not ours, or not yet
                if reaped == 0:
                    return None
                status = os.waitstatus_to_exitcode(raw)
            self._statuses[pid] = status
        return self._statuses[pid]

    def _reap(self) -> None:
        """Waits for the zombies among our children, and keeps their exit statuses."""
        for pid, (parent, state) in self.ours().items():
            if parent == os.getpid() and state == "Z":
                self._statuses.pop(pid, None)
                self._poll(pid)

    def _spawn(self, argv: Sequence[str], directory: Path, output: Path) -> int:
        with open(output, "wb") as out:
            os.chown(output, self.uid, -1)
            popen = subprocess.Popen(
                argv,
                cwd=directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                close_fds=True,
                **as_user(self.uid),
            )
        self._started[popen.pid] = popen
        return popen.pid

    def _wait(self, pid: int, seconds: float, what: str) -> int:
        """The exit status of our child `pid`, or of an orphan that has come to us."""
        begin = reaped = time.monotonic()
        while (status := self._poll(pid)) is None:
            now = time.monotonic()
            assert now < begin + seconds, f"{what} has not ended after {seconds:.0f} s: {describe(self.ours())}"
            if now > reaped + 0.5:  # looking through /proc costs time that the program should have
                self._reap()
                reaped = now
            time.sleep(0.005)
        return status

    def _wait_until_gone(self, why: str) -> dict[int, int]:
        """Waits until nothing of ours is left; the exit statuses that came to us."""
        deadline = time.monotonic() + GONE_WITHIN
        while left := self.ours():
            self._reap()
            assert time.monotonic() < deadline, f"{why}, and {GONE_WITHIN:.0f} s later there is still {describe(left)}"
            time.sleep(0.005)
        statuses, self._statuses = self._statuses, {}
        return statuses

    def _end_all(self) -> None:
        deadline = time.monotonic() + GONE_WITHIN
        while left := self.ours():
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            self._reap()
            assert time.monotonic() < deadline, f"cannot be killed: {describe(left)}"
            time.sleep(0.01)
        self._statuses.clear()

    # --- runs -------------------------------------------------------------------------------------------------------

    def _start(self, program: Program) -> tuple[Path, int]:
        self._runs += 1
        directory = self.directory / f"{program.name}-{self._runs}"
        directory.mkdir()
        os.chown(directory, self.uid, -1)
        program.prepare(directory)
        first = self._spawn(program.argv, directory, directory / "stdout")
        if not program.pid_file:
            return directory, first
        status = self._wait(first, 30, "what starts the daemon")
        assert status == 0, f"what starts the daemon failed with {status}: {(directory / 'stdout').read_text()[-2000:]}"
        deadline = time.monotonic() + 30
        while not (directory / program.pid_file).exists():
            assert time.monotonic() < deadline, "the daemon has not written its pid after 30 s"
            time.sleep(0.005)
        return directory, int((directory / program.pid_file).read_text())

    def _outcome(self, program: Program, directory: Path, status: int, seconds: float) -> Outcome:
        left = {}
        for pattern in ("stdout", *program.outputs):
            paths = sorted(directory.glob(pattern))
            assert paths, f"{program.name} has left no {pattern}"
            for path in paths:
                with open(path, "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                left[str(path.relative_to(directory))] = (path.stat().st_size, digest)
        for name, content in program.collect(directory).items():
            left[name] = (len(content), hashlib.sha256(content).hexdigest())
        assert status == program.status, (
            f"{program.name} ended with exit status {status}, not {program.status}; its last words: "
            + (directory / "stdout").read_text(errors="replace")[-2000:]
        )
        if not os.environ.get("TORPOR_TEST_KEEP"):
            shutil.rmtree(directory)
        return Outcome(status, seconds, left)

    def undisturbed(self, program: Program) -> Outcome:
        begin = time.monotonic()
        directory, pid = self._start(program)
        status = self._wait(pid, 300, program.name)
        seconds = time.monotonic() - begin
        self._wait_until_gone(f"{program.name} has ended")
        return self._outcome(program, directory, status, seconds)

    def interrupted(self, program: Program, instants: Sequence[float], patience: float) -> Outcome:
        """One run with a checkpoint, a kill and a restart at each instant (s of its own running time).

        `patience`: after how many s without an end the last restart counts as one that hangs.

        Raises Missed when the program ends before the last instant, AssertionError when torpor does not do its part.
        """
        directory, pid = self._start(program)
        try:
            return self._interrupted(program, directory, pid, instants, patience)
        finally:
            self._end_all()

    def _interrupted(
        self, program: Program, directory: Path, pid: int, instants: Sequence[float], patience: float
    ) -> Outcome:
        original, restart, ran = pid, 0, 0.0
        for number, instant in enumerate(instants, 1):
            begin = time.monotonic()
            time.sleep(max(0.0, instant - ran))
            if self._poll(restart or pid) is not None:
                raise Missed(f"{program.name} ended before {instant:.3f} s")
            image, log = directory / f"image-{number}", directory / f"checkpoint-{number}.log"
            now = time.monotonic()
            ran += now - begin
            tree = descendants(pid) | {pid: process(pid) or (0, "gone")}
            what = f"torpor checkpoint {pid} -o {image.name} --kill after {ran:.3f} s, of {describe(tree)}"
            checkpoint = self._spawn(
                [*self.torpor, "checkpoint", str(pid), "-o", str(image), "--kill"], self.directory, log
            )
            status = self._wait(checkpoint, 120, what)
            said = log.read_text(errors="replace").strip()[-4000:]
            self.notes.append(f"{ran:.3f} s: {len(tree)} processes, checkpoint {time.monotonic() - now:.2f} s")
            if status:
                if self._poll(restart or pid) == program.status:  # it ended by itself while torpor was starting
                    raise Missed(f"{program.name} ended at about {instant:.3f} s")
                raise AssertionError(f"{what}: exit status {status}: {said}")
            killed = self._wait_until_gone(f"{what} has ended with 0").get(pid, -signal.SIGKILL)
            assert killed == -signal.SIGKILL, f"{what}: it was not killed, but ended with exit status {killed}"
            assert image.stat().st_size, f"{what}: the image is empty"

            log = directory / f"restart-{number}.log"
            restart = self._spawn([*self.torpor, "restart", str(image)], self.directory, log)
            if number < len(instants):
                begin = time.monotonic()
                pid = self._restarted(original, restart, program.status, log)
                self.notes[-1] += f", restart {time.monotonic() - begin:.2f} s, now pid {pid}"
        begin = time.monotonic()
        status = self._wait(restart, patience, f"torpor restart of {program.name} after {instant:.3f} s")
        ran += time.monotonic() - begin
        said = log.read_text(errors="replace").strip()[-4000:]
        assert status == program.status, f"torpor restart ended with exit status {status}, not {program.status}: {said}"
        self._wait_until_gone("torpor restart has ended")
        return self._outcome(program, directory, status, ran)

    def _restarted(self, original: int, restart: int, expected: int, log: Path) -> int:
        """The pid by which the restarted program's first process is known *here*, once it goes on.

        It has its own pid again, in a pid namespace of its own or in ours, and its own arguments, for until it has been traced
        it is a copy of torpor. It goes on when nobody traces it any more and torpor is not about to; nothing says so in the
        foreground, so it must be seen untraced for 50 ms.
        """
        deadline = time.monotonic() + 120
        seen = 0.0
        while True:
            if (status := self._poll(restart)) is not None:
                if status == expected:
                    raise Missed("it ended before the next instant")
                said = log.read_text(errors="replace").strip()[-4000:]
                raise AssertionError(f"torpor restart ended with exit status {status}: {said}")
            below = descendants(restart)
            found = [pid for pid in below if status_line(pid, "NSpid")[-1:] == [str(original)]]
            copies = [pid for pid in found if arguments(pid) == arguments(restart)]
            if len(found) == 1 and not copies and all(status_line(pid, "TracerPid") in ([], ["0"]) for pid in below):
                seen = seen or time.monotonic()
                if time.monotonic() - seen > 0.05:
                    return found[0]
            else:
                seen = 0.0
            assert time.monotonic() < deadline, f"no restarted pid {original} among {describe(below)} after 120 s"
            time.sleep(0.01)


def arguments(pid: int) -> bytes:
    """What a process was started with; nothing if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def instants(rng: random.Random, seconds: float, rounds: int) -> list[float]:
    """Random instants of a run that takes so many seconds, neither at its very beginning nor near its end."""
    return sorted(rng.uniform(0.1, 0.9) * seconds for _ in range(rounds))


def trials(count: int) -> Iterator[int]:
    """How often the program is interrupted in each of its runs: `count` runs once, one run three times."""
    yield from [1] * count
    yield 3


def compare(lab: Lab, program: Program, expected: Outcome, count: int) -> None:
    """`count` runs interrupted once and one interrupted three times, at random instants; all must end as `expected`."""
    rng = random.Random(f"{SEED} {program.name} {lab.uid}")
    repeat = f"repeat it with TORPOR_TEST_SEED={SEED}"
    for rounds in trials(count):
        seconds = expected.seconds
        for _ in range(5):
            when = instants(rng, seconds, rounds)
            at = f"{program.name} as uid {lab.uid}, {expected.seconds:.3f} s undisturbed, interrupted at " + ", ".join(
                f"{instant:.3f}" for instant in when
            )
            print(at, flush=True)
            try:
                outcome = lab.interrupted(program, when, 60 + 10 * expected.seconds)
            except Missed as missed:
                print(f"  missed: {missed}; once more, earlier", flush=True)
                seconds *= 0.7
                continue
            except AssertionError as failed:
                raise AssertionError(f"{at}: {failed}\n({repeat})") from failed
            finally:
                for note in lab.notes:
                    print(f"  {note}", flush=True)
                lab.notes.clear()
            difference = expected.difference(outcome)
            assert not difference, f"{at}: not as undisturbed: {difference}\n({repeat})"
            break
        else:
            raise AssertionError(f"{program.name} always ended before it could be interrupted {rounds} times")

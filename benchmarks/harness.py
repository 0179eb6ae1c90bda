"""The processes of a benchmark: the program that is measured, torpor's commands, and what must be gone afterwards.

The harness is a child subreaper: whatever is started here, and whatever that starts, ends as its child, and is reaped at once.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

HERE = Path(__file__).resolve().parent
SRC = HERE.parent / "src"
PR_SET_CHILD_SUBREAPER = 36
PATIENCE = 60.0
"""Seconds to wait for anything that should happen soon."""


class Failed(Exception):
    """Something did not do what it should; says what in a sentence."""


def become_subreaper() -> None:
    """Get every orphan below this process, and give no descriptor but the standard ones to a child."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise Failed("prctl(PR_SET_CHILD_SUBREAPER) failed")
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            try:
                os.set_inheritable(int(name), False)
            except OSError:
                pass  # the one that has just listed them


def wait_for(what: str, condition: Callable[[], bool]) -> None:
    """Wait until the function `condition` is true. Raises Failed."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {PATIENCE:.0f} s")
        time.sleep(0.001)


# --- commands


def environment() -> dict[str, str]:
    """What commands run with: torpor can be imported, and nothing else changes how Python starts."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return kept | {"PYTHONPATH": str(SRC)}


class Python:
    """The interpreter that is measured."""

    source = str(SRC)
    """Where torpor lies."""

    def __init__(self, path: str) -> None:
        self.path = path

    def torpor(self, *words: str) -> list[str]:
        """`torpor WORDS`, by the command that is installed."""
        return [self.path, str(HERE.parent / "bin" / "torpor"), *words]

    def code(self, text: str, *, isolated: bool = True) -> list[str]:
        """`python3 -c TEXT`."""
        return [self.path, *(["-I", "-S"] if isolated else []), "-c", text]


class Command:
    """One command, run to its end; `out` is what it wrote.

    Times in ns: `began` on CLOCK_REALTIME; `took` until it was reaped; `cpu`, its own, with that of children it has waited for.
    """

    def __init__(self, argv: list[str], directory: Path) -> None:
        said = [directory / "stdout", directory / "stderr"]
        for file in said:
            file.write_bytes(b"")
        actions = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)]
        actions += [(os.POSIX_SPAWN_OPEN, fd, str(file), os.O_WRONLY, 0) for fd, file in enumerate(said, 1)]
        surroundings = environment()
        self.began, start = time.time_ns(), time.perf_counter_ns()
        pid = os.posix_spawn(argv[0], argv, surroundings, file_actions=actions)
        _, status, usage = os.wait4(pid, 0)
        self.took = time.perf_counter_ns() - start
        self.cpu = round((usage.ru_utime + usage.ru_stime) * 1e9)
        self.out = said[0].read_text()
        if status:
            code = os.waitstatus_to_exitcode(status)
            words = " ".join(word for word in argv if "\n" not in word and "import" not in word)
            raise Failed(f"{words}: exit code {code}: {said[1].read_text().strip()}")


class Server:
    """`torpor serve`."""

    def __init__(self, python: Python, path: Path) -> None:
        command = python.torpor("serve", str(path))
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(), stdin=subprocess.DEVNULL)
        self.pid, self.options = self._process.pid, ("--server", str(path))
        assert self._process.stdout
        if b"listening" not in self._process.stdout.readline():
            raise Failed("torpor serve does not listen")

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()


class Warm:
    """The process that calls torpor's functions (warm.py)."""

    def __init__(self, python: Python) -> None:
        program = str(HERE / "warm.py")
        code = f"import sys, runpy; sys.path.insert(0, {str(SRC)!r}); runpy.run_path({program!r})"
        self._process = subprocess.Popen(python.code(code), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid

    def ask(self, *words: str) -> list[int]:
        """A request and its answer."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("\t".join(words) + "\n")
        self._process.stdin.flush()
        kind, _, rest = self._process.stdout.readline().strip().partition(" ")
        if kind != "ok":
            raise Failed(f"torpor.{words[0]}: {rest or 'its process died'}")
        return [int(word) for word in rest.split()]

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


# --- the program that is measured


class Victim:
    """victim.c, running, or saved and not running. A context manager: in the end nothing of it is left."""

    _FIELDS = ("reset", "longest", "longest_gap", "resumed", "readings", "ready", "address", "change", "stopped")

    def __init__(self, argv: list[str], directory: Path, warm: Warm, others: int, server: Server) -> None:
        """`argv`: victim.c's program and its arguments but the file. `others`: its threads and processes beside the first one."""
        self._warm, self._server = warm, server
        # In memory where that can be had: writing to a file on a disk could wait for the disk, and look like a stop.
        place = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else directory
        fd, self._path = tempfile.mkstemp(prefix="torpor-benchmark-", dir=place)
        self.options = ["--allow-changed", self._path]
        """What a restart must be told: the file's time of modification may change as the program goes on."""
        os.ftruncate(fd, mmap.PAGESIZE)
        self._map = mmap.mmap(fd, mmap.PAGESIZE)
        os.close(fd)
        self._words = memoryview(self._map).cast("Q")
        argv = [argv[0], self._path, *argv[1:]]
        null = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1, 2)]
        self.pid = os.posix_spawn(argv[0], argv, environment(), file_actions=null, setsid=True)
        self._expected = others + 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()
        self._words.release()
        self._map.close()
        os.unlink(self._path)

    def __getattr__(self, name: str) -> int:
        return self._words[self._FIELDS.index(name)]

    def _set(self, name: str, value: int) -> None:
        self._words[self._FIELDS.index(name)] = value

    def await_ready(self) -> None:
        """Wait until all threads and processes are there and idle."""
        wait_for("the program that is measured comes up", lambda: self.ready == self._expected)
        self.await_running()

    def await_running(self) -> None:
        """Wait until the first thread has read the clock again."""
        before = self.readings
        wait_for("the program that is measured runs", lambda: self.readings != before)

    def begin(self) -> None:
        """Have it forget the longest time it stood still."""
        self._set("reset", 1)
        wait_for("the program that is measured runs", lambda: self.reset == 0)

    def alter(self, pages: int) -> None:
        """Have it change so many pages of its random data."""
        self._set("change", pages)
        wait_for("the program that is measured changes its data", lambda: self.change == 0)

    def resident(self) -> int:
        """Bytes of its memory that are there."""
        try:
            text = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return 0
        return next((int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("VmRSS:")), 0)

    def undisturbed(self) -> int:
        """The longest time it stands still by itself in 50 ms, ns: what the machine's scheduler contributes."""
        self.begin()
        time.sleep(0.05)
        return self.longest

    def await_restart(self, began: int) -> int:
        """The time from `began` (CLOCK_REALTIME, ns) until it ran again after a restart, ns."""
        wait_for("the restarted program runs", lambda: self.resumed > began)
        found = self.resumed - began
        self.await_running()
        return found

    def _left(self) -> list[int]:
        """All processes below this one but the warm process, the server, and those with which the server does its work."""
        below = descendants(os.getpid())
        return [pid for pid in below if pid not in (self._warm.pid, self._server.pid) and parent_of(pid) != self._server.pid]

    def end(self) -> None:
        """Kill it, its processes and the process that watches over a restarted one; all ids are free afterwards."""
        deadline = time.monotonic() + PATIENCE
        while left := self._left():
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            for pid in left:
                try:
                    os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:
                    pass  # another's child, until that one has gone
            self._warm.ask("reap")
            if time.monotonic() > deadline:
                raise Failed(f"{left} cannot be ended")
        self._set("resumed", 0)
        self._set("longest_gap", 0)
        self._set("longest", 0)


def parent_of(pid: int) -> int:
    """The parent of a process; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def descendants(root: int) -> list[int]:
    """All processes below one, those that are nearer to it first."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            children.setdefault(parent_of(int(name)), []).append(int(name))
    found, todo = [], [root]
    while todo:
        below = children.get(todo.pop(0), [])
        found += below
        todo += below
    return found

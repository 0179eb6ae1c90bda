"""Runs torpor's command line many times, each time in a process of its own, and looks at what is left afterwards.

`Attempts` starts a server that has imported torpor and forks for every attempt, which saves the start of Python. The
server is a child subreaper: whatever an attempt starts, and whatever that starts, stays among its descendants and
cannot be left unseen.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

if __name__ != "__main__":
    from tests.altered import environment

PR_SET_CHILD_SUBREAPER = 36
TIMEOUT = 20.0  # s for one command
LINGER = 0.01  # s that a restarted program is given to do harm
GONE_WITHIN = 5.0  # s, in which what was left must be dead


@dataclass
class Outcome:
    """How an attempt ended. `code` is None when it was killed because it did not end."""

    code: int | None
    out: str
    err: str
    left: list[str]  # the processes that an attempt which failed has left behind, or that could not be killed

    def fault(self) -> str:
        """What nobody should ever see, in words; "" when all is as it should be."""
        if self.code is None:
            return f"did not end within {TIMEOUT:.0f} s: {self.err}"
        if "Traceback" in self.err or "Error:" in self.err or self.code == CRASHED:
            return f"a traceback: {self.err}"
        if self.left:
            return f"left behind (exit code {self.code}): {'; '.join(self.left)}; {self.err}"
        if self.code < 0 or self.code in (2, 3) or self.code > 6:
            return f"exit code {self.code}: {self.err}"
        lines = self.err.splitlines()
        if self.code and not lines:
            return f"exit code {self.code} without a word"
        if strange := [line for line in lines if not (line.startswith("torpor: ") and line.isprintable())]:
            return f"said {strange!r}"
        return ""


CRASHED = 70


class Attempts:
    """The server, as a context manager."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __enter__(self) -> Attempts:
        self._server = subprocess.Popen(
            [sys.executable, __file__, str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin
        self._server.stdin.close()
        assert self._server.wait(timeout=60) == 0

    def run(self, *argv: str) -> Outcome:
        """`torpor ARGV`."""
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps(argv).encode() + b"\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, "the server has died"
        return Outcome(**json.loads(answer))


# --- the server -----------------------------------------------------------------------------------------------------


def serve(directory: str) -> None:
    """An attempt for every line on standard input, until its end."""
    from torpor import cli, rebuild, restart  # noqa: F401  what every attempt needs
    from torpor.cli import inspect, picture, verify  # noqa: F401

    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for line in sys.stdin:
        outcome = attempt(json.loads(line), directory)
        print(json.dumps(outcome.__dict__), flush=True)


def attempt(argv: list[str], directory: str) -> Outcome:
    """One command; afterwards nothing of it is left."""
    said = [os.path.join(directory, name) for name in ("stdout", "stderr")]
    child = os.fork()
    if child == 0:
        run(argv, said)
    code = ended(child)
    left = []
    if code == 0:
        time.sleep(LINGER)
    elif code is not None:
        left = survivors()
    left += kill_all()
    out, err = (Path(name).read_text(errors="backslashreplace") for name in said)
    return Outcome(code, out, err, left)


def run(argv: list[str], said: list[str]) -> None:
    """In the child: the command. Does not return."""
    code = CRASHED
    try:
        os.setsid()
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        for number, name in enumerate(said, 1):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        os.closerange(3, 1024)
        from torpor.cli import main

        code = main(argv)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int | None:
    """The exit code of `child`, negative for a signal; None when it had to be killed."""
    deadline = time.monotonic() + TIMEOUT
    pause = 0.001
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
    return None


def survivors() -> list[str]:
    """What is still there shortly after a command has failed, in words."""
    deadline = time.monotonic() + 1.0
    while (found := below()) and time.monotonic() < deadline:
        reap()
        time.sleep(0.002)
    return [describe(pid) for pid in found]


def kill_all() -> list[str]:
    """Kill and reap all descendants; those that cannot be killed, in words."""
    deadline = time.monotonic() + GONE_WITHIN
    while found := below():
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        reap()
        if time.monotonic() > deadline:
            return [f"cannot be killed: {describe(pid)}" for pid in found]
        time.sleep(0.001)
    return []


def reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def below() -> list[int]:
    """All descendants of the server, zombies too."""
    found = [os.getpid()]
    for pid in found:
        try:
            for thread in os.listdir(f"/proc/{pid}/task"):
                found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found[1:]


def describe(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return f"{pid} {Path(f'/proc/{pid}/stat').read_text().split(')')[0]}) {words}"
    except (FileNotFoundError, ProcessLookupError):
        return f"{pid} (gone)"


if __name__ == "__main__":
    serve(sys.argv[1])

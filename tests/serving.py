"""A server of `torpor serve` for tests, and what speaks to it without torpor's own client."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests import altered

PATIENCE = 20.0


class Server:
    """`torpor serve`, as a context manager."""

    def __init__(self, path: Path, torpor: tuple[str, ...] = (sys.executable, "-m", "torpor"), **options: Any) -> None:
        self.path = path
        environment = options.pop("env", altered.environment())
        self.process = subprocess.Popen([*torpor, "serve", str(path)], stdout=subprocess.PIPE, env=environment, **options)
        assert self.process.stdout
        assert b"listening on" in self.process.stdout.readline()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self.process.stdout
        self.process.terminate()
        try:
            self.process.wait(timeout=PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()

    def children(self) -> list[int]:
        """The children of the server: the one that waits for a client, and those that are at work."""
        return [int(word) for word in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()]

    def spare(self) -> int:
        """The child that will carry out the next request."""
        found: list[int] = []

        def alone() -> bool:
            found[:] = self.children()
            return len(found) == 1

        await_true("nothing is under way", alone)
        return found[0]


def await_true(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} s: {what}"
        time.sleep(0.005)


def connect(path: Path) -> socket.socket:
    """A connection to a server."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(PATIENCE)
    connection.connect(str(path))
    return connection


def answers(connection: socket.socket) -> list[dict[str, Any]]:
    """All lines until the server has closed."""
    data = b""
    while part := connection.recv(65536):
        data += part
    assert not data or data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


def raw(path: Path, line: bytes, descriptors: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """All that a server says to `line`."""
    with connect(path) as connection:
        try:
            if descriptors:
                sent = socket.send_fds(connection, [line], list(descriptors))
                line = line[sent:]
            connection.sendall(line)
        except BrokenPipeError:
            pass  # it has refused it already
        return answers(connection)


def ask(path: Path, **request: Any) -> dict[str, Any]:
    """The only line that a server says to a request without progress."""
    (answer,) = raw(path, json.dumps({"torpor": 1, **request}).encode() + b"\n")
    assert answer["torpor"] == 1
    return answer


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):  # before it was opened, or before it was read
        return True

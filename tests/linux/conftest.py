"""Live children for the tests of torpor.linux: small programs that tell what they are, then wait until they may end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from torpor.linux import procfs

PRELUDE = """
import ctypes, json, mmap, os, resource, signal, socket, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
def say(**facts):
    print(json.dumps(facts), flush=True)
def wait():
    os.read(0, 1)
"""


class Child:
    """A running Python program. `facts` is what it said; `go()` lets it take the next step."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process, self.pid = process, process.pid
        self.facts: dict[str, Any] = {}
        self.hear()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the child ended with {self.process.wait()} before it said anything"
        self.facts = json.loads(line)
        return self.facts

    def asleep(self) -> Child:
        """Wait until it is at rest: what it said is heard before it has gone to sleep."""
        deadline = time.monotonic() + 10
        while procfs.stat(self.pid).state != "S":
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return self

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def step(self) -> dict[str, Any]:
        """Let it go on and hear what it says next."""
        self.go()
        return self.hear()


@pytest.fixture
def start() -> Iterator[Callable[..., Child]]:
    """Start a child that runs the given source. It must say() once, and is ended by the fixture."""
    running: list[subprocess.Popen[bytes]] = []

    def run(source: str, **options: Any) -> Child:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", PRELUDE + source + "\nwait()\n"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            **options,
        )
        running.append(process)
        return Child(process)

    yield run
    for process in running:
        process.kill()
        process.wait()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        process.stdout.close()


@pytest.fixture
def root() -> None:
    """For tests of what only root may do."""
    if os.geteuid() != 0:
        pytest.skip("needs root")

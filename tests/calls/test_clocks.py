"""A thread is never caught in the middle of reading a clock: it would finish that with the offsets of another time namespace."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.settings import M32
from torpor.tasks.freeze import FrozenThread, freeze

PROGRAM = """
#include <fcntl.h>
#include <sys/mman.h>
#include <time.h>
int main(int count, char **arguments)
{
    struct timespec now;
    volatile unsigned *rounds = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, open(arguments[1], O_RDWR), 0);
    for (;; ++*rounds) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        for (volatile int i = 0; i < 1500; i++)
            ;
    }
}
"""
STOPS = 1000


@pytest.fixture(params=[64, 32])
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A program that reads a clock over and over, which it finds in its vdso, and the file in which it counts that."""
    (tmp_path / "reader.c").write_text(PROGRAM)
    words = M32 if request.param == 32 else ("-m64",)
    subprocess.run(["gcc", *words, "-O2", "-o", tmp_path / "reader", tmp_path / "reader.c"], check=True)
    rounds = tmp_path / "rounds"
    rounds.write_bytes(bytes(4096))
    process = subprocess.Popen([tmp_path / "reader", rounds])
    yield process.pid, rounds
    process.kill()
    process.wait()


def _await_more(rounds: Path) -> None:
    """On a busy machine a thread that has just been let go may not yet have a processor when it is stopped again."""
    before, end = rounds.read_bytes()[:4], time.monotonic() + 10
    while rounds.read_bytes()[:4] == before:
        assert time.monotonic() < end, "the reader does not go on"
        time.sleep(0)


def test_let_out_of_the_vdso(reader: tuple[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly all that are found there have left it when the freeze is complete: the others are where the counter is read."""
    asked: list[bool] = []
    found = left = 0
    reads_clock = FrozenThread.reads_clock

    def noted(thread: FrozenThread) -> bool:
        asked.append(reads_clock(thread))
        return asked[-1]

    monkeypatch.setattr(FrozenThread, "reads_clock", noted)
    pid, rounds = reader
    for _ in range(STOPS):
        _await_more(rounds)
        asked.clear()
        with freeze(pid, {}) as tree:
            (thread,) = tree.threads()
            assert thread.process.vdso
            left += thread.regs[thread.process.arch.ip] in thread.process.vdso
        found += any(asked)
    print(f"{found} of {STOPS} were found in the vdso, {left} left there")
    assert found > 10
    assert left < 0.7 * found

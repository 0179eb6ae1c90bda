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
#include <time.h>
int main(void)
{
    struct timespec now;
    for (;;) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        for (volatile int i = 0; i < 1500; i++)
            ;
    }
}
"""
STOPS = 1000


@pytest.fixture(params=[64, 32])
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """A program that reads a clock over and over, which it finds in its vdso."""
    (tmp_path / "reader.c").write_text(PROGRAM)
    words = M32 if request.param == 32 else ("-m64",)
    subprocess.run(["gcc", *words, "-O2", "-o", tmp_path / "reader", tmp_path / "reader.c"], check=True)
    process = subprocess.Popen([tmp_path / "reader"])
    yield process.pid
    process.kill()
    process.wait()


def test_let_out_of_the_vdso(reader: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly all that are found there have left it when the freeze is complete: the others are where the counter is read."""
    asked: list[bool] = []
    found = left = 0
    reads_clock = FrozenThread.reads_clock

    def noted(thread: FrozenThread) -> bool:
        asked.append(reads_clock(thread))
        return asked[-1]

    monkeypatch.setattr(FrozenThread, "reads_clock", noted)
    time.sleep(0.1)
    for _ in range(STOPS):
        asked.clear()
        with freeze(reader, {}) as tree:
            (thread,) = tree.threads()
            assert thread.process.vdso
            left += thread.regs[thread.process.arch.ip] in thread.process.vdso
        found += any(asked)
    print(f"{found} of {STOPS} were found in the vdso, {left} left there")
    assert found > 10
    assert left < 0.7 * found

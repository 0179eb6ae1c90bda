"""What is left of a sleep is found out from outside, while the program runs on: what was seen may be of two moments."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.calls.program import check, outcome
from tests.torture.harness import compile_program
from torpor import checkpoint, preflight, restart
from torpor.errors import Obstacle, TorporError
from torpor.linux import memory, procfs
from torpor.tasks import sleeping
from torpor.tasks.freeze import freeze
from torpor.tasks.stopping import Brief

ASKED = 100_000  # ns
# Sleeps for ASKED; in between, the same bytes of its memory say something quite different: eleven days.
PROGRAM = f"""
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int main(void)
{{
    static volatile struct timespec time, other = {{ 0, {ASKED} / 2 }};
    for (;;) {{
        time.tv_nsec = {ASKED};
        syscall(SYS_nanosleep, &time, 0);
        time.tv_sec = 1000000;
        syscall(SYS_nanosleep, &other, 0);
        time.tv_sec = 0;
    }}
}}
"""


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[int]:
    """A program that sleeps shortly, again and again."""
    (tmp_path / "sleeper.c").write_text(PROGRAM)
    subprocess.run(["gcc", "-O1", "-o", tmp_path / "sleeper", tmp_path / "sleeper.c"], check=True)
    process = subprocess.Popen([tmp_path / "sleeper"])
    yield process.pid
    process.kill()
    process.wait()


def test_seen_in_two_moments(sleeper: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No wait is taken for longer than what the stopped thread asks for, whatever was seen of it while it ran."""
    read = memory.read

    def late(pid: int, address: int, length: int) -> bytes:
        """As on a busy machine: between the look at the call and that at its time limit the call ends."""
        time.sleep(random.uniform(0, 3e-4))
        return read(pid, address, length)

    monkeypatch.setattr(memory, "read", late)
    mixed = caught = 0
    until = time.monotonic() + 120
    while (mixed < 3 or caught < 50) and time.monotonic() < until:
        time.sleep(random.uniform(0, 1e-3))  # on a busy machine it would not get to its next wait
        naps = sleeping.observe([sleeper])
        stopped = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        with freeze(sleeper, {}) as tree:
            for thread in tree.threads():
                number, left = sleeping.left(thread, naps, stopped, 0, thread.process.padding or _vdso_end(sleeper))
                if number < 0:
                    continue
                caught += 1
                mixed += any(nap.asked > ASKED and nap.fits(thread, False) for nap in naps.values())
                assert left <= ASKED, f"{left} ns left of {ASKED}"
            tree.thaw()
    assert mixed and caught >= 50, f"the race was seen {mixed} times in {caught}"


def test_whole_seconds_are_of_the_call_that_was_seen(tmp_path: Path) -> None:
    """{60, 0} with zeros behind it is the same to futex and futex_time64: which one it was, the last checkpoint has seen."""
    waiter = subprocess.Popen([compile_program("calls", 32, tmp_path), "futex_wait", "60", tmp_path / "out"])
    try:
        while "futex" not in Path(f"/proc/{waiter.pid}/wchan").read_text():
            time.sleep(0.01)
        checkpoint(waiter.pid, os.devnull)
        time.sleep(0.1)
        naps = sleeping.observe([waiter.pid])
        with freeze(waiter.pid, {}) as tree:
            (thread,) = tree.threads()
            assert sleeping.recognised([thread], naps)
            assert thread.makes_again == thread.process.arch.syscalls["futex_time32"]
    finally:
        waiter.kill()
        waiter.wait()


def _vdso_end(pid: int) -> int:
    """An address in a page that holds no notes."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if line.endswith("[vdso]"):
            return int(line.split()[0].split("-")[1], 16) - os.sysconf("SC_PAGE_SIZE")
    raise AssertionError("no vdso")


@pytest.mark.parametrize("restarted", [False, True], ids=["stopped", "restarted"])
@pytest.mark.parametrize(("bits", "name"), [(64, "epoll_wait"), (64, "semtimedop"), (32, "epoll_wait"), (32, "sigtimedwait")])
def test_stopped_again_before_it_has_come_to_its_call(tmp_path: Path, bits: int, name: str, restarted: bool) -> None:
    """A wait that any stop ends goes on from a slot. Who is stopped right there has not begun to wait anew."""
    before, out = os.sched_getaffinity(0), tmp_path / "out"
    cpu = min(before)
    words = ["taskset", "--cpu-list", str(cpu), str(compile_program("calls", bits, tmp_path)), name, "3", str(out)]
    waiter = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    try:
        time.sleep(2)
        if restarted:
            checkpoint(waiter.pid, tmp_path / "image", kill=True)
            waiter.wait()
        os.sched_setaffinity(0, {cpu})  # it does not run until we wait for something
        again = restart(tmp_path / "image") if restarted else None
        pid = again.pid if again else waiter.pid
        offset = procfs.timens_offsets(pid)[0] - procfs.timens_offsets(os.getpid())[0]
        in_slots = 0
        for _ in range(20):
            with Brief(pid, {}, [pid], lambda _: offset) as tree:
                in_slots += tree.processes[0].leader.was_in_slot
        os.sched_setaffinity(0, before)
        assert in_slots > 10
        assert (again.wait() if again else waiter.wait(10)) == 0
        ended = outcome(out.read_text().splitlines()[1])
    finally:
        os.sched_setaffinity(0, before)
        waiter.kill()
        waiter.wait()
    check(name, ended)
    assert 2.99 <= ended.monotonic < 3.6, "begun anew, it would have lasted 5 s"


@pytest.mark.parametrize("how", ["not recognised", "refused"])
@pytest.mark.parametrize("name", ["epoll_wait", "semtimedop"])
def test_a_stop_that_comes_to_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: str) -> None:
    """A wait that any stop ends goes on with the rest of its time, too, when the program is stopped in vain."""
    out = tmp_path / "out"
    waiter = subprocess.Popen([compile_program("calls", 64, tmp_path), name, "3", str(out)], stdin=subprocess.DEVNULL)
    try:
        time.sleep(2)
        if how == "refused":
            monkeypatch.setattr(preflight, "frozen", lambda *_: [Obstacle("test", "it is refused")])
            for _ in range(3):
                with pytest.raises(TorporError, match="it is refused"):
                    checkpoint(waiter.pid, os.devnull)
        else:
            recognised, tries = sleeping.recognised, [3]

            def not_yet(*arguments: Any) -> bool:
                tries[0] -= 1
                return recognised(*arguments) and tries[0] < 0

            monkeypatch.setattr(sleeping, "recognised", not_yet)
            checkpoint(waiter.pid, os.devnull)
            assert tries[0] == -1
        assert waiter.wait(10) == 0
    finally:
        waiter.kill()
        waiter.wait()
    ended = outcome(out.read_text().splitlines()[1])
    check(name, ended)
    assert 2.99 <= ended.monotonic < 3.6, "begun anew, it would have lasted 5 s"

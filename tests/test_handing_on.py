"""Threads hand torpor's work area on, one to the next: whenever torpor is killed meanwhile, one of them unmaps it and all go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import torpor
from tests.settings import SRC
from torpor.arch import of_program
from torpor.linux import procfs
from torpor.tasks.places import find_padding, find_second
from torpor.tasks.retry import slots_at
from torpor.tasks.task import Process

# Four threads count, with a pause between, each in its own word of a file; the first one waits for a signal that nobody sends.
# Every other thread has all signals blocked, so that one which is sent to it remains. Two of them pause in a call that any stop
# ends.
PROGRAM = """
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
static volatile int *counts;
static void *count(void *which)
{
    struct timespec some = {0, 1000000};
    struct epoll_event event;
    int epoll = epoll_create1(0);
    sigset_t all;
    sigfillset(&all);
    if ((long)which % 2 && pthread_sigmask(SIG_BLOCK, &all, NULL))
        abort();
    for (;;) {
        for (volatile int i = 0; i < 100000; i++)
            ;
        if ((long)which < 2 ? epoll_wait(epoll, &event, 1, 1) : nanosleep(&some, NULL))
            abort();
        counts[(long)which]++;
    }
}
int main(void)
{
    pthread_t thread;
    counts = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, 1, 0);
    for (long which = 0; which < 4; which++)
        if (pthread_create(&thread, NULL, count, (void *)which))
            abort();
    for (;;)
        pause();
}
"""

# Fails before or after the nth time that anything of a program is changed while a work area is handed on the kth time: it kills
# itself, or finds that the kernel refuses.
KILLER = """
import os, signal, sys
from torpor.arch.x86.registers import X86Registers
from torpor.checkpoint import checkpoint
from torpor.linux import ptrace
from torpor.tasks import remote, task

pid, image, which, last, after, refused = int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
handed = steps = 0
within = False

def fail():
    global within
    if not refused:
        os.kill(os.getpid(), signal.SIGKILL)
    within = False
    raise OSError(12, "refused by the test")

def counted(holder, name):
    function = getattr(holder, name)
    def instead(*args):
        global steps
        steps += within
        if within and steps == last and not after:
            fail()
        result = function(*args)
        if within and steps == last:
            fail()
        return result
    setattr(holder, name, instead)

counted(task.Process, "write")
counted(X86Registers, "write_general")
counted(ptrace, "set_signal_mask")
take_over = remote.Remote.take_over

def noted(self, before):
    global handed, within
    handed += 1
    within = handed == which
    take_over(self, before)
    within = False

remote.Remote.take_over = noted
checkpoint(pid, image)
print(handed, steps)
"""


class Running:
    """The program, and where its threads count."""

    def __init__(self, pid: int, counts: Path) -> None:
        self.pid, self._counts = pid, counts

    def counted(self) -> tuple[int, ...]:
        """How far each thread has come."""
        return tuple(memoryview(self._counts.read_bytes())[:16].cast("i"))

    def goes_on(self) -> None:
        """Raises AssertionError unless every thread does."""
        before, deadline = self.counted(), time.monotonic() + 10
        while not all(now > then for now, then in zip(self.counted(), before, strict=True)):
            assert time.monotonic() < deadline, (before, self.counted())
            time.sleep(0.002)


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Running]:
    (tmp_path / "program.c").write_text(PROGRAM)
    subprocess.run(["gcc", "-O1", "-pthread", "-o", tmp_path / "program", tmp_path / "program.c"], check=True)
    counts = tmp_path / "counts"
    counts.write_bytes(bytes(4096))
    with counts.open("r+b") as out:
        null = subprocess.DEVNULL
        popen = subprocess.Popen([tmp_path / "program"], stdin=null, stdout=out, stderr=null, start_new_session=True)
    try:
        running = Running(popen.pid, counts)
        running.goes_on()
        if not _second(popen.pid):
            pytest.skip("the vdso of this kernel has no room for torpor's code twice: each thread maps an area of its own")
        yield running
    finally:
        os.kill(popen.pid, signal.SIGKILL)  # popen.kill asks first how it is, which takes a stop for an end
        popen.wait()


def _checkpoint(
    program: Running, image: Path, which: int, step: int, after: bool, *, refused: bool = False
) -> subprocess.CompletedProcess[str]:
    words = [str(program.pid), str(image), *(str(int(word)) for word in (which, step, after, refused))]
    command, environment = [sys.executable, "-c", KILLER, *words], os.environ | {"PYTHONPATH": str(SRC)}
    return subprocess.run(command, env=environment, text=True, capture_output=True, check=False)


def _places(pid: int) -> list[tuple[int, int, str, str]]:
    return [(mapping.start, mapping.end, mapping.perms, mapping.path) for mapping in procfs.maps(pid)]


def _signals(pid: int) -> list[tuple[int, int, int]]:
    """Of each thread which signals are pending, and which blocked."""
    found = [(tid, procfs.status(pid, tid)) for tid in procfs.threads(pid)]
    return [(tid, status.pending | status.shd_pending, status.blocked) for tid, status in found]


@pytest.mark.usefixtures("torpor_runs")
@pytest.mark.parametrize("refused", [False, True], ids=["killed", "refused"])
@pytest.mark.parametrize("which", [1, 2, 4])
def test_torpor_fails_while_threads_hand_on(program: Running, tmp_path: Path, which: int, refused: bool) -> None:
    """Killed, or because the kernel refuses something: it gives up then, and leaves its code where a thread may still run it."""
    image, vdso = tmp_path / "image", _vdso(program.pid)
    whole = _checkpoint(program, image, which, 0, False)
    assert whole.returncode == 0
    handed, steps = map(int, whole.stdout.split())
    assert handed == 4  # five threads
    assert steps >= 8
    image.unlink()
    places, signals = _places(program.pid), _signals(program.pid)
    assert {pending for _, pending, _ in signals} == {0}
    for step in range(1, steps + 1):
        for after in (False, True):
            done = _checkpoint(program, image, which, step, after, refused=refused)
            assert done.returncode == (1 if refused else -signal.SIGKILL)
            assert ("refused by the test" in done.stderr) == refused
            program.goes_on()
            assert _places(program.pid) == places, f"step {step}, {'after' if after else 'before'} it"
            assert _signals(program.pid) == signals, f"step {step}, {'after' if after else 'before'} it"
            assert not image.exists()
    assert _vdso(program.pid) != vdso  # what the last one has left, which is gone after one that is not killed
    torpor.checkpoint(program.pid, image)
    program.goes_on()
    assert _vdso(program.pid) == vdso


@pytest.mark.usefixtures("torpor_runs")
def test_a_thread_that_has_not_left_the_second_place(program: Running, tmp_path: Path) -> None:
    """It is seen there as it is in the first, from which the other threads are gone: the program stands still meanwhile."""
    image, vdso = tmp_path / "image", _vdso(program.pid)
    handed_and_steps = _checkpoint(program, image, 1, 0, False).stdout.split()
    os.kill(program.pid, signal.SIGSTOP)
    assert _checkpoint(program, image, 1, int(handed_and_steps[1]), True).returncode == -signal.SIGKILL
    with pytest.raises(torpor.TorporError, match="just leaving the calls of a torpor that was killed"):
        torpor.checkpoint(program.pid, image)
    os.kill(program.pid, signal.SIGCONT)
    program.goes_on()
    torpor.checkpoint(program.pid, image)
    program.goes_on()
    assert _vdso(program.pid) == vdso


@contextmanager
def _looked_into(pid: int) -> Iterator[tuple[Process, int]]:
    """A process, and where torpor's code can lie in it."""
    process = Process(pid, pid)
    try:
        process.arch = of_program(pid)
        yield process, find_padding(process, procfs.maps(pid))
    finally:
        process.close()


def _second(pid: int) -> int:
    with _looked_into(pid) as (process, padding):
        return find_second(process, padding)


def _vdso(pid: int) -> bytes:
    """Without what stays there on purpose: slots, and notes of waits."""
    (place,) = [mapping for mapping in procfs.maps(pid) if mapping.path == "[vdso]"]
    with _looked_into(pid) as (process, padding):
        slots, _ = slots_at(process, padding)
        return process.read(place.start, slots - place.start)

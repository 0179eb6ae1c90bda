"""Programs that execute others all the time: whenever they are stopped, what is saved is one program and not half of two."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import torpor
from tests.settings import FULL
from torpor.image.reader import Image
from torpor.linux import ptrace
from torpor.objects.memory import ANONYMOUS, Mm
from torpor.objects.processes import Process
from torpor.tasks import freeze

# What is executed next is the same again, in a session of its own every other time. Its first thread does it or, while that one
# waits, another one, which is the first one then.
PROGRAM = """
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static char **words;
static void *next(void *unused)
{
    static char count[24];
    long n = atol(words[2]);
    for (volatile long i = 0; i < 100000 + n * 7919 % 100000; i++)
        ;
    snprintf(count, sizeof count, "%ld", n + 1);
    words[2] = count;
    if (pwrite(1, count, strlen(count), 0) < 0)
        abort();
    execv("/proc/self/exe", words);
    abort();
}
int main(int argc, char **argv)
{
    pthread_t thread;
    words = argv;
    if (!strcmp(argv[1], "first"))
        next(NULL);
    if (pthread_create(&thread, NULL, next, NULL))
        abort();
    for (;;)
        pause();
}
"""
CHECKPOINTS = 300 if FULL else 60


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("executing")
    (directory / "program.c").write_text(PROGRAM)
    subprocess.run(["gcc", "-O1", "-pthread", "-o", directory / "program", directory / "program.c"], check=True)
    return directory / "program"


@contextmanager
def _running(words: list[str], progress: Path) -> Iterator[subprocess.Popen[bytes]]:
    with progress.open("w") as out:
        popen = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        _await(progress, 10)
        yield popen
    finally:
        if popen.returncode is None:
            os.kill(popen.pid, signal.SIGKILL)  # popen.kill asks first how it is, which takes a stop for an end
            popen.wait()


@pytest.mark.usefixtures("torpor_runs")
@pytest.mark.parametrize("elsewhere", [True, False], ids=["elsewhere", "same addresses"])
@pytest.mark.parametrize("who", ["first", "other"])
def test_a_program_that_executes_itself(program: Path, tmp_path: Path, who: str, elsewhere: bool) -> None:
    progress, image = tmp_path / "progress", tmp_path / "image"
    words = [*([] if elsewhere else ["setarch", "--addr-no-randomize"]), str(program), who, "0"]
    with _running(words, progress) as popen:
        for number in range(CHECKPOINTS):
            before = int(progress.read_text())
            torpor.checkpoint(popen.pid, image, kill=number == CHECKPOINTS - 1)
            with Image.open(image) as opened:
                (mm,), (process,) = opened.of(Mm), opened.of(Process)
                stack = [m for m in mm.mappings if m.kind == ANONYMOUS and m.start <= mm.start_stack < m.end]
                assert len(stack) == 1 and stack[0].start <= mm.arg_start < stack[0].end, mm.show()
                assert process.sid == popen.pid
            if number < CHECKPOINTS - 1:
                _await(progress, before + 1)
        popen.wait()
        before = int(progress.read_text())
        restarted = torpor.restart(image, allow_changed=[str(progress)])
        try:
            _await(progress, before + 10)
        finally:
            os.kill(restarted.pid, 9)
            restarted.wait()


@pytest.mark.parametrize("who", ["first", "other"])
def test_while_torpor_is_held_up(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    """A busy machine gives others the processor between any two calls of ours, and what was just seen is true no more."""
    rng, progress = random.Random(7), tmp_path / "progress"

    def late(call: Callable[..., object]) -> Callable[..., object]:
        def held_up(*args: object, **words: object) -> object:
            if rng.random() < 0.3:
                time.sleep(rng.random() * 0.003)
            return call(*args, **words)

        return held_up

    for name in ("seize", "interrupt", "wait", "news", "cont", "detach"):
        monkeypatch.setattr(ptrace, name, late(getattr(ptrace, name)))
    with _running([str(program), who, "0"], progress) as popen:
        for _ in range(3 * CHECKPOINTS):
            before = int(progress.read_text())
            torpor.checkpoint(popen.pid, tmp_path / "image")
            _await(progress, before + 1)


def test_looked_at_anew_again_and_again(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file in /proc goes before it has stopped, then it has stopped and executes another program: it stops all the same."""
    progress = tmp_path / "progress"

    def at_first(module: object, name: str, error: BaseException) -> list[BaseException]:
        """Let the first call fail. What has been raised, once it has."""
        call = getattr(module, name)
        raised: list[BaseException] = []

        def attempt(*args: object, **words: object) -> object:
            if not raised:
                raised.append(error)
                raise error
            return call(*args, **words)

        monkeypatch.setattr(module, name, attempt)
        return raised

    monkeypatch.setattr(freeze, "PATIENCE", 2.0)
    with _running([str(program), "first", "0"], progress) as popen:
        failed = [
            at_first(ptrace, "wait", FileNotFoundError()),
            at_first(ptrace, "detach", ProcessLookupError()),
            at_first(freeze, "padding_of", freeze._Changed()),
        ]
        torpor.checkpoint(popen.pid, tmp_path / "image")
        _await(progress, int(progress.read_text()) + 1)
    assert all(failed)


def _await(progress: Path, count: int) -> None:
    """Wait until the program has been executed so many times."""
    end = time.monotonic() + 20
    while int(progress.read_text() or 0) < count:
        assert time.monotonic() < end, f"it was executed {progress.read_text()} times, and not {count}"
        time.sleep(0.001)

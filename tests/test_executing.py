"""Programs that execute others all the time: whenever they are stopped, what is saved is one program and not half of two."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

import torpor
from tests.settings import FULL
from torpor.image.reader import Image
from torpor.objects.memory import ANONYMOUS, Mm
from torpor.objects.processes import Process

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


@pytest.mark.usefixtures("torpor_runs")
@pytest.mark.parametrize("random", [True, False], ids=["elsewhere", "same addresses"])
@pytest.mark.parametrize("who", ["first", "other"])
def test_a_program_that_executes_itself(program: Path, tmp_path: Path, who: str, random: bool) -> None:
    progress, image = tmp_path / "progress", tmp_path / "image"
    words = [*([] if random else ["setarch", "--addr-no-randomize"]), str(program), who, "0"]
    with progress.open("w") as out:
        popen = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        _await(progress, 10)
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
    finally:
        popen.kill()
        popen.wait()


def _await(progress: Path, count: int) -> None:
    """Wait until the program has been executed so many times."""
    end = time.monotonic() + 20
    while int(progress.read_text() or 0) < count:
        assert time.monotonic() < end, f"it was executed {progress.read_text()} times, and not {count}"
        time.sleep(0.001)

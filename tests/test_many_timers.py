"""More POSIX timers than the kernel can be asked about at a time."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

import torpor
from torpor.objects.timers import AT_ONCE

# Says when its timers run; asked by SIGUSR1, it ends with 0 if each of them has the time left that it should have.
PROGRAM = """
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    int count = atoi(argv[1]), bad = 0, got;
    timer_t *timers = malloc(count * sizeof *timers);
    struct sigevent none = { .sigev_notify = SIGEV_NONE };
    struct itimerspec when = { { 0, 0 }, { 0, 0 } };
    sigset_t usr1;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    sigprocmask(SIG_BLOCK, &usr1, NULL);
    for (int i = 0; i < count; i++) {
        when.it_value.tv_sec = 1000 + i;
        if (timer_create(CLOCK_MONOTONIC, &none, &timers[i]) || timer_settime(timers[i], 0, &when, NULL))
            return 2;
    }
    if (write(1, "!", 1) != 1 || close(1))
        return 3;
    sigwait(&usr1, &got);
    for (int i = 0; i < count; i++)
        if (timer_gettime(timers[i], &when) || when.it_value.tv_sec > 1000 + i || when.it_value.tv_sec < 900 + i)
            bad = 1;
    return bad;
}
"""


@pytest.mark.usefixtures("torpor_runs")
@pytest.mark.parametrize("count", [AT_ONCE, 2 * AT_ONCE + 1])
def test_many_timers(tmp_path: Path, count: int) -> None:
    (tmp_path / "program.c").write_text(PROGRAM)
    subprocess.run(["gcc", "-O1", "-o", tmp_path / "program", tmp_path / "program.c"], check=True)
    null = subprocess.DEVNULL
    popen = subprocess.Popen(
        [tmp_path / "program", str(count)], stdin=null, stdout=subprocess.PIPE, stderr=null, start_new_session=True
    )
    try:
        assert popen.stdout and popen.stdout.read() == b"!"
        torpor.checkpoint(popen.pid, tmp_path / "image", kill=True)
    finally:
        popen.kill()
        popen.wait()
    restarted = torpor.restart(tmp_path / "image")
    os.kill(restarted.pid, signal.SIGUSR1)
    assert restarted.wait() == 0

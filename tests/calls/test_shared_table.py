"""Parent and child share their descriptor table (CLONE_FILES) but not their working directory."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.torture.harness import Reaper, descendants, subreaper, torpor

PROGRAM = """
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void)
{
    long child = syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0);
    if (chdir(child ? "/tmp" : "/usr"))
        return 1;
    for (;;)
        pause();
}
"""


@pytest.mark.usefixtures("torpor_runs")
def test_directories_of_their_own(tmp_path: Path) -> None:
    with subreaper():
        _cycle(tmp_path)


def executes(pid: int) -> Path | None:
    """The program of a process; None of one that has ended, which may be another test's."""
    with contextlib.suppress(FileNotFoundError):
        return Path(os.readlink(f"/proc/{pid}/exe"))
    return None


def _cycle(tmp_path: Path) -> None:
    (tmp_path / "program.c").write_text(PROGRAM)
    subprocess.run(["gcc", "-O1", "-o", tmp_path / "program", tmp_path / "program.c"], check=True)
    reaper, null = Reaper(), subprocess.DEVNULL
    process = subprocess.Popen([tmp_path / "program"], stdin=null, stdout=null, stderr=null, start_new_session=True)
    process.returncode = 0  # an ordinary child from here on: after a restart another process has its number
    pid = process.pid
    try:
        end = time.monotonic() + 10
        while [os.readlink(f"/proc/{each}/cwd") for each in [pid, *descendants(pid)]] != ["/tmp", "/usr"]:
            assert time.monotonic() < end
            time.sleep(0.01)
        tree = [pid, *descendants(pid)]
        taken = torpor(reaper, "checkpoint", str(pid), "-o", tmp_path / "image", "--kill")
        assert taken.code == 0, taken
        reaper.wait_gone(tree)
        back = torpor(reaper, "restart", tmp_path / "image", "--detach")
        assert back.code == 0, back
        found = [each for each in descendants(os.getpid()) if executes(each) == tmp_path / "program"]
        assert [os.readlink(f"/proc/{each}/cwd") for each in found] == ["/tmp", "/usr"]
    finally:
        for each in [pid, *descendants(os.getpid())]:
            if executes(each) == tmp_path / "program":
                os.kill(each, 9)
        reaper.kill_orphans()

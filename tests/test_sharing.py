"""What processes share: what cannot be shared after a restart is refused, and what fork shares stays shared."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import torpor
import torpor.checkpoint
from tests import test_parent
from tests.torture.harness import descendants
from torpor.errors import Unsupported
from torpor.linux import kcmp, pagemap, writes
from torpor.objects.memory import Mm

# Two children; the second is made by the first, as its sibling, and shares with it what the flags say.
PROGRAM = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>
static char stack[65536] __attribute__((aligned(16)));
static int rest(void *unused)
{
    open("/dev/null", O_RDONLY);
    for (;;)
        pause();
}
int main(int argc, char **argv)
{
    if (!fork())
        clone(rest, stack + sizeof stack, atoi(argv[1]) | CLONE_PARENT | SIGCHLD, 0);
    return rest(0);
}
"""
KINDS = {"memory": (0x100, kcmp.VM), "working directory": (0x200, kcmp.FS), "descriptor table": (0x400, kcmp.FILES)}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sharing")
    (directory / "program.c").write_text(PROGRAM)
    subprocess.run(["gcc", "-O1", "-o", directory / "program", directory / "program.c"], check=True)
    return directory / "program"


@pytest.mark.parametrize("what", KINDS)
def test_siblings_that_share(program: Path, tmp_path: Path, what: str) -> None:
    flag, kind = KINDS[what]
    null = subprocess.DEVNULL
    popen = subprocess.Popen([program, str(flag)], stdin=null, stdout=null, stderr=null, start_new_session=True)
    try:
        end = time.monotonic() + 10
        while len(tree := [popen.pid, *descendants(popen.pid)]) < 3 or any(len(os.listdir(f"/proc/{pid}/fd")) < 4 for pid in tree):
            assert time.monotonic() < end
            time.sleep(0.01)
        assert sorted(map(len, kcmp.groups(tree, kind))) == [1, 2]
        with pytest.raises(Unsupported) as caught:
            torpor.checkpoint(popen.pid, tmp_path / "image")
        (line,) = str(caught.value).splitlines()
        one, other = tree[1:]
        assert what in line and str(one) in line and str(other) in line, line
        assert not (tmp_path / "image").exists()
        assert all("TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text() for pid in tree)
    finally:
        for pid in descendants(popen.pid):
            os.kill(pid, 9)
        popen.kill()
        popen.wait()


def test_groups(program: Path) -> None:
    me, children = os.getpid(), []
    try:
        for _ in range(9):
            popen = subprocess.Popen(["sleep", "1000"], start_new_session=True)
            children.append(popen)
        pids = [popen.pid for popen in children]
        assert sorted(kcmp.groups([*pids, me, *pids], kcmp.VM)) == sorted([[pid, pid] for pid in pids] + [[me]])
    finally:
        for popen in children:
            popen.kill()
            popen.wait()


FORKED = """
import os, signal
memory = bytearray(os.urandom(1 << 20)) * 32
if os.fork():
    print("ready", flush=True)
while True:
    signal.pause()
"""


def shared_with_others(pid: int) -> int:
    """Bytes of pages of a process that others have as well, and that are no file's."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return sum(int(line.split()[1]) << 10 for line in file if line.startswith("Shared_Dirty:"))


@pytest.mark.parametrize("frames", ["seen", "hidden"])
@pytest.mark.parametrize("how", ["copied", "ahead", "standing"])
def test_what_is_read_stays_shared(tmp_path: Path, how: str, frames: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages that parent and child share by fork are not there twice because they have been saved."""
    if how == "ahead" and not writes.can_be_told():
        pytest.skip("this kernel does not tell which pages have been written")
    story = vars(sys.modules["torpor.checkpoint"])
    monkeypatch.setitem(story, "WORTH_SAVING_AHEAD", 1 if how == "ahead" else 1 << 62)
    monkeypatch.setitem(story, "HUGE", 1 << 62)
    if how == "standing":
        monkeypatch.setitem(story, "WORTH_A_COPY", 1 << 62)
    if frames == "hidden":  # as for an ordinary user: then pages are compared by what they hold
        monkeypatch.setattr(pagemap, "pfns", lambda *_: None)
    command = [sys.executable, "-c", FORKED]
    null = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=null, stdout=subprocess.PIPE, stderr=null, cwd="/", start_new_session=True) as popen:
        try:
            assert popen.stdout and popen.stdout.readline()
            tree = [popen.pid, *descendants(popen.pid)]
            before = [shared_with_others(pid) for pid in tree]
            assert len(tree) == 2 and min(before) > 32 << 20
            torpor.checkpoint(popen.pid, tmp_path / "image")
            assert all(now > then - (4 << 20) for now, then in zip(map(shared_with_others, tree), before, strict=True))
        finally:
            os.killpg(popen.pid, signal.SIGKILL)


def test_what_differs_is_told_by_its_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel hides which pages are the same: parent and child each go on with their own."""
    monkeypatch.setattr(pagemap, "pfns", lambda *_: None)
    image = tmp_path / "image"
    with test_parent.program(tmp_path) as pid:
        torpor.checkpoint(pid, image, kill=True)
    with torpor.open_image(image) as opened:
        assert any(space.base for space in opened.of(Mm)), "the child does not begin as a fork"
    test_parent.is_right(image, tmp_path)

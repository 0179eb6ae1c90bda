"""What processes share: what cannot be shared after a restart is refused, and what fork shares stays shared."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import torpor
import torpor.checkpoint
from tests import test_parent
from tests.torture.harness import descendants
from torpor.errors import Unsupported
from torpor.image.format import Pages
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


@contextmanager
def family(code: str) -> Iterator[int]:
    """The id of a Python program that says when it has forked, for as long as the block lasts."""
    command, null = [sys.executable, "-c", code], subprocess.DEVNULL
    with subprocess.Popen(command, stdin=null, stdout=subprocess.PIPE, stderr=null, cwd="/", start_new_session=True) as popen:
        try:
            assert popen.stdout and popen.stdout.readline()
            yield popen.pid
        finally:
            os.killpg(popen.pid, signal.SIGKILL)


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
    with family(FORKED) as pid:
        tree = [pid, *descendants(pid)]
        before = [shared_with_others(each) for each in tree]
        assert len(tree) == 2 and min(before) > 32 << 20
        torpor.checkpoint(pid, tmp_path / "image")
        assert all(now > then - (4 << 20) for now, then in zip(map(shared_with_others, tree), before, strict=True))


# Small pieces close to each other and further away, a large one with another mapping right behind it.
# MiB from BASE on, pages into that, how many:
BASE = 0x100000000000
PIECES = [(0, 0, 3), (0, 5, 4), (1, 0, 2), (6, 0, 5), (12, 0, 2048), (20, 0, 3), (21, 0, 1), (30, 0, 2)]
WRITTEN = [0, 2, 6, 8, 6 * 256, 12 * 256, 12 * 256 + 511, 12 * 256 + 512, 12 * 256 + 1023, 12 * 256 + 2047, 30 * 256 + 1]
DROPPED = [1, 256, 12 * 256 + 700]
FAMILY = f"""
import ctypes, os, signal
libc = ctypes.CDLL(None)
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mmap.restype, libc.madvise.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
place = lambda page: {BASE} + page * 4096
for mib, first, count in {PIECES}:
    start = mib * 256 + first
    assert libc.mmap(place(start), count * 4096, 3, 0x100022, -1, 0) == place(start)
    libc.madvise(place(start), count * 4096, 15)
    if mib == 20:
        libc.madvise(place(start), count * 4096, 16)
    for page in range(start, start + count):
        ctypes.memmove(place(page), (page + 1).to_bytes(8, "little"), 8)
if not os.fork():
    for page in {WRITTEN}:
        ctypes.memmove(place(page), b"of the child", 12)
    for page in {DROPPED}:
        libc.madvise(place(page), 4096, 4)
    print("ready", flush=True)
while True:
    signal.pause()
"""


@pytest.mark.parametrize("frames", ["seen", "hidden"])
def test_just_what_is_a_childs_own_is_saved_for_it(tmp_path: Path, frames: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Page by page: what it has written since the fork, and what it has not any more; all else is the parent's."""
    if frames == "hidden":
        monkeypatch.setattr(pagemap, "pfns", lambda *_: None)
    with family(FAMILY) as pid:
        torpor.checkpoint(pid, tmp_path / "image")

    def pages(runs: Iterable[tuple[int, int]]) -> list[int]:
        inside = [(start, length) for start, length in runs if BASE <= start < BASE + (64 << 20)]
        return sorted((start - BASE) // 4096 + page for start, length in inside for page in range(length // 4096))

    with torpor.open_image(tmp_path / "image") as opened:
        space, child = opened.of(Mm)
        assert child.base == space.id
        found: dict[int, list[tuple[int, int]]] = {space.id: [], child.id: []}
        for record in opened.of(Pages):
            found[record.owner] += record.runs
        assert pages(found[child.id]) == WRITTEN
        assert pages((gone.start, gone.end - gone.start) for gone in child.dropped) == DROPPED
        assert pages(found[space.id]) == [mib * 256 + first + page for mib, first, count in PIECES for page in range(count)]


def test_what_differs_is_told_by_its_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel hides which pages are the same: parent and child each go on with their own."""
    monkeypatch.setattr(pagemap, "pfns", lambda *_: None)
    image = tmp_path / "image"
    with test_parent.program(tmp_path) as pid:
        torpor.checkpoint(pid, image, kill=True)
    with torpor.open_image(image) as opened:
        assert any(space.base for space in opened.of(Mm)), "the child does not begin as a fork"
    test_parent.is_right(image, tmp_path)

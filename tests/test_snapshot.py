"""A checkpoint whose memory comes from a copy-on-write copy: of one instant, and nothing of the copy is ever left."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import torpor
from tests.altered import environment, running
from tests.conftest import FULL, SEED
from torpor.image import writer
from torpor.image.reader import Image
from torpor.linux import procfs
from torpor.objects.memory import Mm

# Every page is given the number of the round, one after the other; memory that is not of one instant shows at the end of a round.
ROUNDS = """
import mmap, os, sys
place, kind = sys.argv[1:]
length = 32 << 20
memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
if kind == "dontfork":
    memory.madvise(10)
elif kind == "wipeonfork":
    memory.madvise(18)
elif kind == "child":
    os.fork()
elif kind == "subreaper":
    import ctypes
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
elif kind == "alone":
    import resource
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    os.setresuid(54321, 54321, 54321)
pages, number = range(0, length, 4096), 0
while not os.path.exists(place + "/stop"):
    number += 1
    for at in pages:
        memory[at] = number % 251
    if memory[::4096] != bytes([number % 251]) * len(pages):
        with open(place + "/torn", "a") as file:
            print(os.getpid(), number, file=file)
    with open(f"{place}/progress.{os.getpid()}", "w") as file:
        file.write("x" * number)
"""


def rounds(place: Path, pid: int) -> int:
    """How many rounds the program has made."""
    file = place / f"progress.{pid}"
    return file.stat().st_size if file.exists() else 0


def goes_on(place: Path, pid: int, count: int = 3) -> None:
    """Wait until the program has made some more rounds."""
    end, before = time.monotonic() + 30, rounds(place, pid)
    while rounds(place, pid) == before:  # it is emptied before it is written
        assert time.monotonic() < end, f"process {pid} does not go on"
        time.sleep(0.01)
    while rounds(place, pid) < before + count:
        assert time.monotonic() < end, f"process {pid} does not go on"
        time.sleep(0.01)
    assert not (place / "torn").exists(), (place / "torn").read_text()


def named(place: Path) -> list[int]:
    """Every process, if it has not ended, that has `place` among its arguments."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdecimal() and os.fsencode(place) in Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0"):
                found.append(int(entry))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return sorted(found)


@contextmanager
def program(place: Path, kind: str = "") -> Iterator[int]:
    """The program, at work in `place`; ended with all that has its name when the block is left."""
    place.mkdir(exist_ok=True)
    with running([sys.executable, "-c", ROUNDS, str(place), kind], wait=False) as pid:
        try:
            goes_on(place, pid)
            yield pid
        finally:
            for each in named(place):
                os.kill(each, 9)


def save_slowly(pid: int, *arguments: str) -> tuple[subprocess.Popen[bytes], bytes]:
    """A checkpoint into a pipe that nobody empties, as far as it comes with that, and what it has written."""
    command = [sys.executable, "-m", "torpor", "checkpoint", str(pid), "-o", "-", *arguments]
    popen = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert popen.stdout is not None
    return popen, popen.stdout.read(4096)


@pytest.mark.parametrize("kind", ["", "child", "dontfork", "wipeonfork"])
def test_memory_is_of_one_instant(tmp_path: Path, kind: str) -> None:
    """The program goes on while its image is written; what the image holds is what was there when it was stopped."""
    place = tmp_path / "place"
    with program(place, kind) as pid:
        family = named(place)
        saving, begun = save_slowly(pid)
        if kind in ("", "child"):  # the others have nearly all of their memory written while they stand still
            for each in family:
                goes_on(place, each)
            copies = [each for each in named(place) if each not in family]
            assert len(copies) == len(family)
            assert os.listdir(f"/proc/{copies[0]}/fd") == [], "it has files open that the program may have closed"
            assert os.getpgid(copies[0]) == copies[0], "a signal to the program's group would reach it"
        rest, said = saving.communicate(timeout=60)
        assert (saving.returncode, said) == (0, b"")
        assert named(place) == family
        for each in family:
            goes_on(place, each)
        image = tmp_path / "image"
        image.write_bytes(begun + rest)
    written = [place / f"progress.{each}" for each in family]  # one of them may have been open just then
    for file in written:
        file.write_bytes(b"")
    restarted = torpor.restart(image, allow_changed=map(str, written))
    try:
        for each in family:
            goes_on(place, each)
    finally:
        (place / "stop").touch()
        assert restarted.wait() == 0
    assert not (place / "torn").exists(), (place / "torn").read_text()


def test_a_copy_dies_with_torpor(tmp_path: Path) -> None:
    """Killed while it writes, and at any other instant: what was copied is gone at once, and the program goes on alone."""
    rng = random.Random(f"{SEED} copy")
    place = tmp_path / "place"
    with program(place) as pid:
        seen = 0
        for _ in range(200 if FULL else 20):
            saving, _ = save_slowly(pid) if rng.random() < 0.3 else (_save(pid, tmp_path / "image"), b"")
            time.sleep(rng.random() * 0.15)
            seen += len(named(place)) > 1
            saving.kill()
            saving.communicate(timeout=60)
            end = time.monotonic() + 5
            while named(place) != [pid]:
                assert time.monotonic() < end, f"of process {pid} there is more than one: {named(place)}"
                time.sleep(0.005)
            assert Path(f"/proc/{pid}/task/{pid}/children").read_text() == ""
            goes_on(place, pid, 1)
        assert seen, "no copy was there when torpor was killed"


DIES = """
import os, sys
import torpor
from torpor.tasks import snapshot
pid, image, births = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
genuine = snapshot._await_birth
def await_birth(tid):
    global births
    births -= 1
    if births:
        return genuine(tid)
    os.kill(os.getpid(), 9)
snapshot._await_birth = await_birth
torpor.checkpoint(pid, image)
"""


@pytest.mark.parametrize("births", [1, 2])
def test_torpor_dies_at_a_birth(tmp_path: Path, births: int) -> None:
    """Killed before it has said a word about what has just been born: that ends by itself, and runs none of the program's code."""
    place = tmp_path / "place"
    with program(place) as pid:
        for _ in range(5):
            code = [sys.executable, "-c", DIES, str(pid), str(tmp_path / "image"), str(births)]
            assert subprocess.run(code, env=environment()).returncode == -9
            end = time.monotonic() + 5
            while named(place) != [pid]:
                assert time.monotonic() < end, f"of process {pid} there is more than one: {named(place)}"
                time.sleep(0.005)
            goes_on(place, pid, 1)
            assert Path(f"/proc/{pid}/task/{pid}/children").read_text() == ""
        assert sorted(file.name for file in place.iterdir()) == [f"progress.{pid}"]


def _save(pid: int, image: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torpor", "checkpoint", str(pid), "-o", str(image)]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_the_program_may_end_while_it_is_written(tmp_path: Path) -> None:
    place = tmp_path / "place"
    with program(place) as pid:
        saving, begun = save_slowly(pid)
        goes_on(place, pid)
        os.kill(pid, 9)
        rest, said = saving.communicate(timeout=60)
        assert (saving.returncode, said) == (0, b"")
    (tmp_path / "image").write_bytes(begun + rest)
    torpor.open_image(tmp_path / "image").verify_data(None)


def test_a_copy_is_killed(tmp_path: Path) -> None:
    """By the kernel, for want of memory, as a rule. That is one sentence and no image, and the program goes on."""
    place = tmp_path / "place"
    with program(place) as pid:
        saving, begun = save_slowly(pid)
        (copy,) = {*named(place)} - {pid}
        os.kill(copy, 9)
        rest, said = saving.communicate(timeout=60)
        assert saving.returncode == 1, said
        assert said.startswith(b"torpor: pid %d: copy of its memory: it was killed" % pid), said
        assert said.count(b"\n") == 1, said
        goes_on(place, pid)
    (tmp_path / "image").write_bytes(begun + rest)
    with pytest.raises(torpor.BadImage):
        torpor.open_image(tmp_path / "image").verify_data(None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a program as another user")
def test_the_program_may_not_make_a_process(tmp_path: Path) -> None:
    """Its memory is written while it stands still; a limit of processes does not keep it from being saved."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o777)
        place = Path(directory) / "place"
        place.mkdir(0o777)
        place.chmod(0o777)
        with program(place, "alone") as pid:
            assert "Resource temporarily unavailable" in torpor.checkpoint(pid, tmp_path / "image")
            goes_on(place, pid)
            assert named(place) == [pid]


def test_why_there_is_no_copy(tmp_path: Path) -> None:
    """A copy would become a child of the program: its memory is written while it stands still, and torpor says so."""
    place = tmp_path / "place"
    with program(place, "subreaper") as pid:
        saving = _save(pid, tmp_path / "image")
        _, said = saving.communicate(timeout=60)
        assert saving.returncode == 0, said
        assert said.startswith(b"torpor: the program stood still"), said
        assert b"PR_SET_CHILD_SUBREAPER" in said, said
        assert "takes in orphans" in torpor.checkpoint(pid, tmp_path / "image")
        goes_on(place, pid)
    with program(tmp_path / "other") as pid:
        assert torpor.checkpoint(pid, tmp_path / "image") == ""
        goes_on(tmp_path / "other", pid)

def linux(*version: int) -> bool:
    """Whether the kernel is as new as that."""
    return tuple(map(int, os.uname().release.split(".")[:2])) >= version


# One mapping that a copy has, one that it has not, and one that it has as new; guard pages in each.
GUARDS = """
import ctypes, mmap, sys, time
libc = ctypes.CDLL(None)
kept = []
with open(sys.argv[1] + ".new", "w") as file:
    for advice in (0, 10, 18):
        memory = mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory[:] = b"x" * len(memory)
        if advice:
            memory.madvise(advice)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + 0x10000
        assert libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(0x3000), 102) == 0
        print(address, address + 0x3000, file=file)
        kept.append(memory)
import os
if not sys.argv[2:] or os.fork():
    os.rename(sys.argv[1] + ".new", sys.argv[1])
while True:
    time.sleep(60)
"""


@pytest.mark.skipif(not linux(6, 15), reason="before Linux 6.15 nobody tells of guard pages")
@pytest.mark.parametrize("kill", [False, True], ids=["from a copy", "from the program"])
@pytest.mark.parametrize("child", [False, True], ids=["one", "a child"])
def test_guard_pages(tmp_path: Path, kill: bool, child: bool) -> None:
    place = tmp_path / "place"
    with running([sys.executable, "-c", GUARDS, str(place), *["child"] * child], wait=False) as pid:
        end = time.monotonic() + 20
        while not place.exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        why = torpor.checkpoint(pid, tmp_path / "image", kill=kill)
        assert bool(why) == kill
    with Image.open(tmp_path / "image") as image:
        found = [[(guard.start, guard.end) for guard in mm.guards] for mm in image.of(Mm)]
    made = [tuple(map(int, line.split())) for line in place.read_text().splitlines()]
    assert set(made) <= set(found[0]), (made, found)
    assert len(found) == 1 + child
    # A child has nothing of the second mapping, and the third as new.
    assert all(made[0] in each for each in found), (made, found)
    assert all(each == sorted(each) for each in found)


@pytest.mark.parametrize("waiting", range(2, 24))
def test_records_that_cannot_wait_any_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waiting: int) -> None:
    """Whenever records are packed while the program stands still, they are complete."""
    ready = tmp_path / "ready"
    with running([sys.executable, "-c", f"import os, time; os.mkdir({str(ready)!r}); time.sleep(1000)"], wait=False) as pid:
        end = time.monotonic() + 20
        while not ready.exists() or procfs.wchan(pid, pid) in ("", "0"):
            assert time.monotonic() < end
            time.sleep(0.01)
        monkeypatch.setattr(writer, "WAITING", waiting)
        torpor.checkpoint(pid, tmp_path / "image")
        with Image.open(tmp_path / "image") as image:
            (mm,) = image.of(Mm)
            there = [mapping for mapping in procfs.maps(pid) if mapping.path != "[vsyscall]"]
            assert [(m.start, m.end) for m in mm.mappings] == [(m.start, m.end) for m in there]

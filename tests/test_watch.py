"""`torpor watch`: images of a program that goes on, one after the other."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import torpor
from tests.conftest import SRC
from tests.test_parent import command, goes_on, is_right, program
from torpor.image.format import ParentImage


def watch(pid: int, place: Path, *options: str) -> subprocess.Popen[str]:
    """Start it."""
    whole = [sys.executable, "-m", "torpor", "watch", str(pid), "-o", str(place), *options]
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    return subprocess.Popen(whole, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def images(place: Path) -> list[Path]:
    """What can be seen of it, oldest first."""
    return sorted(place.glob("*.torpor"))


def await_images(watcher: subprocess.Popen[str], count: int) -> list[str]:
    """Wait until it has told of `count` images. What it has said."""
    said: list[str] = []
    assert watcher.stdout
    while sum(" MB in " in line for line in said) < count:
        said.append(watcher.stdout.readline())
        assert said[-1], watcher.communicate()
    return said


def resident(pid: int) -> int:
    """Bytes of a process's memory that are there."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) << 10


def test_images_one_after_the_other(tmp_path: Path) -> None:
    """Old ones go, the newest is made whole when it needs too much; each is right as long as it is there."""
    place = tmp_path / "images"
    with program(tmp_path) as pid:
        before = sorted(os.listdir(f"/proc/{pid}/fd"))
        watcher = watch(pid, place, "--every", "0.2s", "--keep", "2")
        said: list[str] = []
        while not any(": merged, " in line for line in said):  # from then on it has all the buffers that it ever needs
            said += await_images(watcher, 1)
        memory = resident(watcher.pid)
        said += await_images(watcher, 8)
        assert resident(watcher.pid) < memory + (8 << 20), "what was read for an image stays in memory"
        watcher.send_signal(signal.SIGTERM)
        rest, errors = watcher.communicate(timeout=60)
        assert (watcher.returncode, errors) == (0, "")
        said += rest.splitlines(keepends=True)
        goes_on(tmp_path, 5)
        assert len(os.listdir(f"/proc/{pid}/fd")) <= len(before) + 1, "a descriptor of ours was left"  # one for its counter
    assert any(": merged, " in line for line in said), said
    left = images(place)
    needed = set(left[-2:])
    for image in left[-2:]:
        with torpor.open_image(image) as opened:
            needed |= {place / parent.name for parent in opened.of(ParentImage)}
    assert set(left) == needed, "a file is there that nobody needs"
    assert len(os.listdir(place)) == len(left), "something else was left"
    for image in left[-2:]:
        # It looks for its counters beside itself.
        is_right(image, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_it_ends_before_the_program(tmp_path: Path, number: int) -> None:
    place = tmp_path / "images"
    with program(tmp_path) as pid:
        watcher = watch(pid, place, "--every", "0.1s", "--keep", "1")
        await_images(watcher, 3)
        time.sleep(0.05)
        watcher.send_signal(number)
        watcher.wait()
        assert not re.search("Traceback", watcher.communicate()[1])
        goes_on(tmp_path, 10)
        assert "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text()
        # The next one begins anew.
        watcher = watch(pid, tmp_path / "others", "--every", "1h")
        await_images(watcher, 1)
        watcher.terminate()
        assert watcher.wait() == 0
    assert command("verify", images(place)[-1]).returncode == 0
    is_right(images(tmp_path / "others")[-1], tmp_path)


def test_the_program_ends_first(tmp_path: Path) -> None:
    with program(tmp_path) as pid:
        watcher = watch(pid, tmp_path / "images", "--every", "1h")
        await_images(watcher, 1)
        os.kill(pid, 9)
        out, errors = watcher.communicate(timeout=30)
    assert (watcher.returncode, errors) == (0, "") and "the program has ended" in out


def test_a_failure_that_passes(tmp_path: Path) -> None:
    """What is said once, and tried again; images from then on are right."""
    place = tmp_path / "images"
    with program(tmp_path) as pid:
        watcher = watch(pid, place, "--every", "0.2s", "--keep", "1")
        await_images(watcher, 2)
        place.rename(tmp_path / "away")
        assert watcher.stderr and re.search("No such file|is not there", watcher.stderr.readline())
        (tmp_path / "away").rename(place)
        await_images(watcher, 2)
        watcher.terminate()
        watcher.wait()
    is_right(images(place)[-1], tmp_path)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--every", "5"], 2, "a time such as"),
        (["--every", "-5s"], 2, "a time such as"),
        (["--keep", "0"], 2, "at least one"),
        (["--keep", "x"], 2, "is a number"),
        (["--compress", "lzma"], 2, "'lzma'"),
    ],
)
def test_nonsense(tmp_path: Path, options: list[str], code: int, said: str) -> None:
    done = command("watch", str(os.getpid()), "-o", tmp_path / "images", *options)
    assert done.returncode == code and said in done.stderr, done.stderr


def test_no_such_program(tmp_path: Path) -> None:
    done = command("watch", "999999999", "-o", tmp_path / "images")
    assert done.returncode == 1 and "there is none" in done.stderr


def test_one_file_of_a_chain(tmp_path: Path) -> None:
    """The same program, in an image that needs no other; also in the place of the old one."""
    with program(tmp_path) as pid:
        torpor.checkpoint(pid, tmp_path / "1")
        goes_on(tmp_path, 5)
        torpor.checkpoint(pid, tmp_path / "2", parent=tmp_path / "1", compress="zstd")
    done = command("merge", tmp_path / "2", "-o", tmp_path / "one")
    assert (done.returncode, done.stderr) == (0, "")
    done = command("merge", tmp_path / "2", "-o", tmp_path / "2")
    assert (done.returncode, done.stderr) == (0, "")
    shutil.move(tmp_path / "1", tmp_path / "gone")
    for image in (tmp_path / "one", tmp_path / "2"):
        is_right(image, tmp_path)

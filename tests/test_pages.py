"""Pages that hold nothing but zeros are not in the image, and are zeros after a restart."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

import torpor
from torpor.image.format import Pages
from torpor.linux.libc import PAGE
from torpor.pages import _without_zeros

# Anonymous memory of which every third page holds something; a private mapping of a file, with a page of zeros where the file has
# none; and a child that has zeros where its parent has none.
PROGRAM = """
import mmap, os, sys, time
place, page = sys.argv[1], mmap.PAGESIZE
count = 4800
memory = mmap.mmap(-1, count * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for number in range(count):
    memory[number * page + page - 1] = number % 3 == 0
inherited = mmap.mmap(-1, 8 * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
inherited[:] = b"x" * len(inherited)
with open(place + "/file", "rb") as file:
    private = mmap.mmap(file.fileno(), 2 * page, flags=mmap.MAP_PRIVATE)
private[:page] = bytes(page)
child = os.fork()
if not child:
    inherited[:page] = bytes(page)
open(f"{place}/ready.{'child' if child == 0 else 'parent'}", "w").close()
while not os.path.exists(place + "/stop"):
    time.sleep(0.01)
right = [memory[number * page : number * page + page] == bytes(page - 1) + bytes([number % 3 == 0]) for number in range(count)]
first = bytes(page) if not child else b"x" * page
right += [inherited[:] == first + b"x" * 7 * page, private[:] == bytes(page) + b"f" * page]
if child:
    right.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0)
sys.exit(not all(right))
"""


@pytest.mark.parametrize("kill", [True, False])
def test_pages_of_zeros(tmp_path: Path, kill: bool) -> None:
    (tmp_path / "file").write_bytes(b"f" * 2 * PAGE)
    null = subprocess.DEVNULL
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    popen = subprocess.Popen(command, stdin=null, stdout=null, stderr=null, cwd="/", start_new_session=True)
    try:
        end = time.monotonic() + 30
        while not all((tmp_path / f"ready.{who}").exists() for who in ("parent", "child")):
            assert time.monotonic() < end and popen.poll() is None
            time.sleep(0.01)
        torpor.checkpoint(popen.pid, tmp_path / "image", kill=kill)
    finally:
        (tmp_path / "stop").touch()
        assert popen.wait(60) == (-9 if kill else 0)
    with torpor.open_image(tmp_path / "image") as image:
        saved = sum(record.length for record in image.of(Pages))
    assert saved < 2400 * PAGE + (24 << 20), "it holds more than half of the pages"
    assert torpor.restart(tmp_path / "image").wait() == 0


@pytest.mark.parametrize(
    ("runs", "pages", "kept"),
    [
        ([(8, 3)], "x.x", [(8, 1), (10, 1)]),
        ([(8, 3)], "...", []),
        ([(8, 1), (20, 2)], ".xx", [(20, 2)]),
        ([(8, 1), (20, 2)], "x.x", [(8, 1), (21, 1)]),
        ([(8, 2), (20, 1)], "xxx", [(8, 2), (20, 1)]),
        ([(8, 2), (20, 1)], "oox", [(8, 2), (20, 1)]),  # begins with zeros, but there is more
    ],
)
def test_what_is_kept(runs: list[tuple[int, int]], pages: str, kept: list[tuple[int, int]]) -> None:
    """In pages: where runs begin and how long they are; x holds data from the start on, o at its end, . none."""
    looks = {"x": b"x" * PAGE, "o": bytes(PAGE - 1) + b"x", ".": bytes(PAGE)}
    data = b"".join(looks[look] for look in pages)
    found, parts = _without_zeros([(start * PAGE, length * PAGE) for start, length in runs], [memoryview(data)])
    assert found == [(start * PAGE, length * PAGE) for start, length in kept]
    assert b"".join(parts) == b"".join(looks[look] for look in pages if look != ".")

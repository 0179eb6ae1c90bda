"""Memory that is saved before the stop (ahead.py): the image has what the program had at the stop, whatever it does meanwhile."""

from __future__ import annotations

import mmap
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

import torpor
import torpor.checkpoint
from tests.conftest import FULL, SEED, SRC
from tests.test_parent import goes_on, is_right, program
from torpor import ahead
from torpor.arch.waits import NO_LIMIT
from torpor.image.chain import sources
from torpor.image.format import Draft, EarlierPages, Pages
from torpor.image.known import Drafted, Known, Saved
from torpor.linux import procfs, writes
from torpor.merge import merge
from torpor.objects import memory as memory_objects
from torpor.objects.memory import Mm
from torpor.objects.threads import Thread
from torpor.pages import PageWriter
from torpor.tasks import snapshot
from torpor.tasks.remote import Remote
from torpor.tasks.stopping import Brief
from torpor.tasks.tracking import Tracking

pytestmark = pytest.mark.skipif(not writes.can_be_told(), reason="this kernel does not tell which pages have been written")
STORY: Any = sys.modules["torpor.checkpoint"]
MIB = 1 << 20


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small programs count as large ones, also with huge pages."""
    monkeypatch.setattr(STORY, "WORTH_SAVING_AHEAD", MIB)
    monkeypatch.setattr(STORY, "HUGE", 1 << 62)


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that the kernel has made a copy of."""
    found: list[int] = []
    take = snapshot.take

    def noted(remote: Remote) -> snapshot.Copy:
        found.append(remote.thread.process.pid)
        return take(remote)

    monkeypatch.setattr(snapshot, "take", noted)
    return found


@contextmanager
def running(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program that has said a word."""
    null, pipe = subprocess.DEVNULL, subprocess.PIPE
    argv = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(argv, stdin=null, stdout=pipe, stderr=null, cwd="/", start_new_session=True, text=True) as popen:
        try:
            assert popen.stdout and popen.stdout.readline()
            yield popen
        finally:
            os.killpg(popen.pid, signal.SIGKILL)


def drafts(image: Path) -> int:
    """The bytes in an image that were saved before the stop and that count; none if nothing was."""
    with torpor.open_image(image) as opened:
        numbers = {draft.id for draft in opened.of(Draft)}
        of_drafts = {number for number, (record, _) in enumerate(opened.chunks) if record.owner in numbers}
        own = [pages for pages in opened.of(EarlierPages) if not pages.image]
        places = [place for pages in own for place in zip(pages.lengths, pages.chunks, strict=True)]
        return sum(length for length, chunk in places if chunk in of_drafts)


@pytest.mark.parametrize("how", ["plain", "compressed", "killed", "watched", "next"])
def test_what_is_saved_ahead_is_right(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two processes that share memory by fork, and unmap, move and give back what is just being saved."""
    compress, tracking = "zstd:1" if how == "compressed" else "", Tracking() if how in ("watched", "next") else None
    if how == "next":
        monkeypatch.setattr(STORY, "READ_AHEAD", 16 << 10)
    for number in range(20 if FULL else 3):
        place = tmp_path / str(number)
        place.mkdir()
        image, later = place / "image", place / "later"
        with program(place) as pid:
            torpor.checkpoint(pid, image, compress=compress, tracking=tracking, kill=how == "killed")
            if how != "killed":
                goes_on(place, 20)
            if tracking:
                torpor.checkpoint(pid, place / "between", parent=image, tracking=tracking)
                goes_on(place, 5)
                torpor.checkpoint(pid, later, parent=place / "between", tracking=tracking)
                tracking.close()
                goes_on(place, 5)
        assert drafts(image) > 12 * MIB
        is_right(image, place)
        if tracking:
            assert (drafts(place / "between") > 0) == (drafts(later) > 0) == (how == "next")
            is_right(place / "between", place)
            is_right(later, place)
            merge(later, image)
            is_right(image, place)


def test_zeros_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pages that hold nothing but zeros the image says nothing, and the stop has nothing to do with them."""
    code = "import time\nm = bytearray(b'x' * 4096 + bytes(4092)) * 4096\nfor i in range(0, len(m), 8188): m[i] = 0\n"
    code += "z = bytearray(b'\\1' * (16 << 20)); z[:] = bytes(16 << 20)\nprint(1, flush=True)\nwhile True: time.sleep(9)"
    image = tmp_path / "image"
    in_the_stop: list[int] = []
    write = PageWriter.write

    def noted(self: PageWriter, owner: int, source: Any, selected: Any, *, fresh: bool) -> None:
        in_the_stop.append(selected.size)
        write(self, owner, source, selected, fresh=fresh)

    monkeypatch.setattr(PageWriter, "write", noted)
    with running(code) as popen:
        assert torpor.checkpoint(popen.pid, image) == ""
    assert sum(in_the_stop) < 4 * MIB
    with torpor.open_image(image) as opened:
        assert sum(pages.length for pages in opened.of(Pages)) < 48 * MIB
        owners = {draft.id for draft in opened.of(Draft)}
        assert sum(pages.length for pages in opened.of(Pages) if pages.owner not in owners) < 4 * MIB


INHERITED = """
import mmap, os, sys, time
memory = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory[:] = b"x" * len(memory)
ready, done = os.pipe()
child = os.fork()
wanted = b"x" * len(memory)
if not child:
    memory[: 4 << 20] = bytes(4 << 20)
    wanted = bytes(4 << 20) + wanted[4 << 20 :]
    os.write(done, b"1")
else:
    os.read(ready, 1)
    print("ready", flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
right = memory[:] == wanted
if child:
    right = not os.waitpid(child, 0)[1] and right
os._exit(not right)
"""


def test_zeros_in_the_place_of_what_was_inherited(tmp_path: Path) -> None:
    """A child that begins as a fork of its parent has zeros only where it is told so."""
    image, stop = tmp_path / "image", tmp_path / "stop"
    with running(INHERITED, str(stop)) as popen:
        torpor.checkpoint(popen.pid, image)
    assert drafts(image) > 6 * MIB
    with torpor.open_image(image) as opened:
        assert any(space.base for space in opened.of(Mm)), "the child does not begin as a fork"
        assert sources(opened).keys() == {space.id for space in opened.of(Mm)}  # and nothing is a draft's
    restarted = torpor.restart(image)
    stop.touch()
    assert restarted.wait() == 0


CHANGES = """
import random, sys, time
size, rate, pause = int(sys.argv[1]) << 20, int(sys.argv[2]), float(sys.argv[3])
memory = bytearray(random.randbytes(1 << 20)) * (size >> 20)
print("ready", flush=True)
while True:
    for _ in range(rate):
        memory[random.randrange(size)] ^= 1
    time.sleep(pause)
"""


def test_a_program_that_changes_little_is_not_copied(tmp_path: Path, copied: list[int]) -> None:
    image = tmp_path / "image"
    with running(CHANGES, "64", "1", "0.005") as popen:
        assert torpor.checkpoint(popen.pid, image) == ""
        assert not any(set(m.flags) & {"uw", "um"} for m in procfs.smaps(popen.pid)), "it is still watched"
    assert copied == [] and drafts(image) > 48 * MIB
    assert image.stat().st_size < 72 * MIB


def test_much_that_has_changed_since_the_parent_image(
    tmp_path: Path, copied: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is saved ahead as well, where a copy would be needed for it, and what was in the parent image stays there."""
    monkeypatch.setattr(STORY, "READ_AHEAD", 2 * MIB)
    tracking = Tracking()
    with running(CHANGES, "64", "4", "0.005") as popen:
        torpor.checkpoint(popen.pid, tmp_path / "0", tracking=tracking)
        for number, seconds in ((1, 2), (2, 0), (3, 2)):
            time.sleep(seconds)
            image, parent = tmp_path / str(number), tmp_path / str(number - 1)
            assert torpor.checkpoint(popen.pid, image, parent=parent, tracking=tracking) == ""
            assert (drafts(image) > 2 * MIB) == (seconds > 0)
            assert image.stat().st_size < 24 * MIB
    tracking.close()
    assert copied == []


def test_a_program_that_changes_all_is_copied(tmp_path: Path, copied: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is soon seen that it is of no use to go on, and the image does not become much larger for it."""
    monkeypatch.setattr(ahead, "FIRST_LOOK", 4 * MIB)
    monkeypatch.setattr(ahead, "READ_AHEAD", MIB)
    code = "import random\nm = bytearray(random.randbytes(1 << 20)) * 64\nprint(1, flush=True)\n"
    code += "n = 0\nwhile True:\n for i in range(0, len(m), 4096): n += 1; m[i : i + 8] = n.to_bytes(8, 'big')\n"
    image = tmp_path / "image"
    with running(code) as popen:
        assert torpor.checkpoint(popen.pid, image) == ""
        assert copied == [popen.pid]
    assert image.stat().st_size < 110 * MIB
    restarted = torpor.restart(image)
    os.kill(restarted.pid, signal.SIGKILL)
    restarted.wait()


def test_rounds_until_little_is_left(tmp_path: Path, copied: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """What has changed while memory was saved is saved again, and the stop before each round is over at once."""
    stops: list[float] = []
    leave = Brief.__exit__

    def noted(self: Brief, *what: Any) -> None:
        stops.append(time.monotonic())
        leave(self, *what)

    monkeypatch.setattr(Brief, "__exit__", noted)
    monkeypatch.setattr(ahead, "LITTLE", 0)
    with running(CHANGES, "64", "4", "0.001") as popen:
        assert torpor.checkpoint(popen.pid, tmp_path / "image") == ""
    assert copied == [] and 2 + 1 <= len(stops) <= 1 + ahead.ROUNDS


def test_the_header_tells_of_the_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not of the instant in which it was first written; its CRC is right, and that of all records."""
    image, saved = tmp_path / "image", list[int]()
    save = ahead.save

    def noted(*arguments: Any) -> Any:
        found = save(*arguments)
        saved.append(time.clock_gettime_ns(time.CLOCK_MONOTONIC))
        saved.append(time.time_ns())
        return found

    monkeypatch.setattr(ahead, "save", noted)
    with running(CHANGES, "8", "1", "0.01") as popen:
        torpor.checkpoint(popen.pid, image)
    with torpor.open_image(image) as opened:
        assert saved[0] < opened.header.monotonic and saved[1] < opened.header.realtime
        opened.verify_data()


@pytest.mark.parametrize("why", ["pipe", "parent", "huge", "small"])
def test_where_nothing_is_saved_ahead(tmp_path: Path, why: str, monkeypatch: pytest.MonkeyPatch, copied: list[int]) -> None:
    """A pipe's first record cannot be written anew; what has a parent is compared with that; huge pages are copied at once."""

    def never(*_: object) -> None:
        pytest.fail("memory was saved ahead")

    image, earlier = tmp_path / "image", tmp_path / "earlier"
    code = CHANGES
    if why == "huge":
        monkeypatch.setattr(STORY, "HUGE", 0)
        code = "import mmap, time\nm = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\nm.madvise(14)\n"
        code += "m[:] = b'x' * len(m)\nprint(1, flush=True)\nwhile True: time.sleep(9)\n"
    elif why == "small":
        monkeypatch.undo()
    with running(code, "8", "1", "0.01") as popen:
        if why == "huge" and not any(mapping.huge_kb > 0 for mapping in procfs.smaps(popen.pid)):
            pytest.skip("this kernel gives no huge pages")
        if why == "parent":
            torpor.checkpoint(popen.pid, earlier)
        monkeypatch.setattr(ahead, "save", never)
        if why == "pipe":
            with open(image, "wb") as file, subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file) as cat:
                assert cat.stdin
                torpor.checkpoint(popen.pid, cat.stdin.fileno())
        else:
            torpor.checkpoint(popen.pid, image, parent=earlier if why == "parent" else None)
    with torpor.open_image(image) as opened:
        assert not opened.of(Draft)


def test_memory_that_goes_while_it_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left out, and what lies beside it is saved at the stop."""
    own_pages: Callable[..., Any] = memory_objects.own_pages
    asked = [0]

    def with_a_stranger(*arguments: Any) -> Any:
        for run in own_pages(*arguments):
            yield run
            if not asked[0]:
                asked[0] = run[1] + run[2]
                yield (run[0], 1 << 40, mmap.PAGESIZE)  # nothing is there, as if it had just been unmapped

    monkeypatch.setattr(memory_objects, "own_pages", with_a_stranger)
    with program(tmp_path) as pid:
        image = tmp_path / "image"
        save = ahead.save

        def noted(*arguments: Any) -> Any:
            found = save(*arguments)
            monkeypatch.setattr(memory_objects, "own_pages", own_pages)
            return found

        monkeypatch.setattr(ahead, "save", noted)
        torpor.checkpoint(pid, image)
        goes_on(tmp_path, 5)
    print(drafts(image))
    assert asked[0] and drafts(image) > 8 * MIB
    is_right(image, tmp_path)


WAITS = """
import os, select, sys, threading, time
memory = bytearray(os.urandom(1 << 20)) * 64
def sleep(): time.sleep(8)
def poll(): select.poll().poll(8000)
def epoll(): select.epoll().poll(8)
def event(): threading.Event().wait(8)
def measured(wait):
    begun = time.monotonic()
    wait()
    os.write(1, f"{wait.__name__} {time.monotonic() - begun}\\n".encode())
threads = [threading.Thread(target=measured, args=(wait,)) for wait in (sleep, poll, epoll, event)]
for thread in threads: thread.start()
print("ready", flush=True)
for thread in threads: thread.join()
"""


def test_waits_last_as_long_as_they_are_to(tmp_path: Path) -> None:
    """However often the program is stopped: three times for each image, and three images."""
    with running(WAITS) as popen:
        begun = time.monotonic()
        for number in range(3):
            time.sleep(0.9)
            torpor.checkpoint(popen.pid, tmp_path / str(number))
        assert popen.stdout
        lasted = {name: float(seconds) for name, seconds in (line.split() for line in popen.stdout)}
    assert lasted.keys() == {"sleep", "poll", "epoll", "event"}
    assert all(7.99 < seconds < 9.7 for seconds in lasted.values()), lasted  # begun anew at the last stop, they would last 10.7
    with torpor.open_image(tmp_path / "2") as image:
        passed = image.header.monotonic / 1e9 - begun
        left = [thread.left / 1e9 for thread in image.of(Thread) if thread.call >= 0 and thread.left < NO_LIMIT]
    assert len(left) >= 2 and all(abs(8 - passed - seconds) < 0.6 for seconds in left), (passed, left)


@pytest.mark.parametrize("run", range(20 if FULL else 6))
def test_a_kill_while_memory_is_saved(tmp_path: Path, run: int) -> None:
    """The program goes on, watched by nobody, and there is no file."""
    rng = random.Random(f"{SEED} {run}")
    place = tmp_path / "images"
    place.mkdir()
    code = "import sys, torpor.checkpoint as c\nvars(sys.modules['torpor.checkpoint']).update(WORTH_SAVING_AHEAD=1, HUGE=1 << 62)\n"
    code += f"import torpor\nprint(1, flush=True)\nwhile True: torpor.checkpoint(int(sys.argv[1]), {str(place / 'image')!r})"
    with program(tmp_path) as pid:
        argv = [sys.executable, "-c", code, str(pid)]
        with subprocess.Popen(argv, env=os.environ | {"PYTHONPATH": str(SRC)}, stdout=subprocess.PIPE, cwd="/") as saving:
            assert saving.stdout and saving.stdout.readline()
            time.sleep(rng.uniform(0, 0.5))
            saving.kill()
        goes_on(tmp_path, 5)
        assert set(os.listdir(place)) <= {"image"}
        assert not any(set(mapping.flags) & {"uw", "um"} for mapping in procfs.smaps(pid))
        (tmp_path / "stop").touch()
        deadline = time.monotonic() + 60
        while procfs.stat(pid).state not in "ZX" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [path.read_text() for path in tmp_path.glob("bad.*")] == []
        assert procfs.stat(pid).exit_code == 0


DIRECT = """
import mmap, os, sys, threading
path, count, size = sys.argv[1], 6, 1 << 20
fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
versions = os.fstat(fd).st_size // size
places = [mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(count)]
bad = []
def read(number):
    place, turn = places[number], number
    while not os.path.exists(path + ".stop"):
        turn = (turn + 1) % versions
        done = 0
        while done < size:
            done += os.preadv(fd, [memoryview(place)[done:]], turn * size + done)
        if place[:] != bytes([turn + 1]) * size:
            bad.append((number, turn, sorted(set(place[:]))))
            return
threads = [threading.Thread(target=read, args=(number,)) for number in range(count)]
for thread in threads: thread.start()
print("ready", flush=True)
for thread in threads: thread.join()
if bad:
    with open(path + ".bad", "w") as file: file.write(str(bad))
os._exit(bool(bad))
"""


@contextmanager
def slow_disk(file: Path) -> Iterator[Path]:
    """A control group (cgroups(7)) whose processes read the disk of `file` slowly: the file to write their ids to."""
    device = os.stat(file).st_dev
    old, new = Path("/sys/fs/cgroup/blkio"), Path("/sys/fs/cgroup")
    group = (old if old.is_dir() else new) / f"torpor-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"there is no control group to be had: {error}")
    try:
        try:
            if old.is_dir():
                (group / "blkio.throttle.read_bps_device").write_text(f"{os.major(device)}:{os.minor(device)} {32 * MIB}")
            else:
                (new / "cgroup.subtree_control").write_text("+io")
                (group / "io.max").write_text(f"{os.major(device)}:{os.minor(device)} rbps={32 * MIB}")
        except OSError as error:
            pytest.skip(f"this disk cannot be made slow: {error}")
        yield group / "cgroup.procs"
    finally:
        until = time.monotonic() + 10
        while (group / "cgroup.procs").read_text() and time.monotonic() < until:
            time.sleep(0.01)
        group.rmdir()


@pytest.mark.parametrize("disk", ["fast", "slow"])
def test_reads_past_the_page_cache(tmp_path: Path, disk: str) -> None:
    """What a device writes into memory nobody sees who looks for writes: such a read is over before the memory is saved."""
    file, stop, bad = (tmp_path / name for name in ("file", "file.stop", "file.bad"))
    file.write_bytes(b"".join(bytes([number + 1]) * MIB for number in range(16)))
    try:
        os.close(os.open(file, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("this file system has no O_DIRECT")
    with slow_disk(file) if disk == "slow" else nullcontext() as group:
        for number in range(20 if FULL else 3):
            image = tmp_path / f"image.{number}"
            stop.unlink(missing_ok=True)
            with running(DIRECT, str(file)) as popen:
                if group:
                    group.write_text(str(popen.pid))
                    time.sleep(0.3)  # all six are in the middle of it
                torpor.checkpoint(popen.pid, image)
            assert drafts(image)
            restarted = torpor.restart(image)
            time.sleep(0.1)
            stop.touch()
            assert (restarted.wait(), bad.exists() and bad.read_text()) == (0, False)
            image.unlink()


@pytest.mark.parametrize("seed", range(300 if FULL else 60))
def test_what_is_known_of_a_draft(seed: int) -> None:
    """Page by page the same as by a dictionary."""
    rng = random.Random(f"{SEED} {seed}")
    lengths = {start: rng.randrange(1, 7) for start in range(0, 60, 6) if rng.random() < 0.5}
    earlier = Known((start, start + length, Saved(100 + start), 7) for start, length in lengths.items())
    drafted, expected = Drafted(1, earlier), dict[int, tuple[int, int] | None]()
    for start, length in lengths.items():
        expected |= {page: (100 + start, 7 + page - start) for page in range(start, start + length)}
    free = [page for page in range(60) if page not in expected]
    for chunk in range(rng.randrange(6)):
        read = sorted(rng.sample(free, rng.randrange(len(free) + 1)))
        kept = [page for page in read if rng.random() < 0.7]
        drafted.note(chunk, [(page, 1) for page in read], [(page, 1) for page in kept])
        expected |= dict.fromkeys(read) | {page: (chunk, at) for at, page in enumerate(kept)}
        if rng.random() < 0.5:
            written = [(start, rng.randrange(1, 9)) for start in rng.choices(range(60), k=rng.randrange(4))]
            pages = {page for start, length in written for page in range(start, start + length)}
            assert drafted.within(written) == len(pages & expected.keys())
            drafted.forget(written)
            assert drafted.within(written) == 0
            for page in pages:
                expected.pop(page, None)
        free = [page for page in free if page not in expected]
    for zeros in (True, False):
        known = drafted.known(zeros=zeros)
        covered = {page for start, end in known.covered for page in range(start, end)}
        assert covered == {page for page, place in expected.items() if zeros or place}
        found = {
            page: (place.chunk, offset + page - start)
            for start, length, place, offset in known.split([(0, 60)])
            if place
            for page in range(start, start + length)
        }
        assert found == {page: place for page, place in expected.items() if place}

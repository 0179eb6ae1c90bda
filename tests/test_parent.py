"""Images that need an earlier one (`--parent`), compressed ones, and what becomes of both when files are lost or altered."""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import torpor
from tests import altered
from tests.conftest import FULL, SEED, SRC
from torpor import pages
from torpor.image.chain import open_parents
from torpor.image.format import CompressedPages, EarlierPages, Pages, ParentImage
from torpor.image.known import Known
from torpor.linux import writes
from torpor.merge import merge
from torpor.tasks import snapshot
from torpor.tasks.remote import Remote
from torpor.tasks.tracking import Tracking

# Memory whose every page says which one it is and how often it has been changed: anonymous memory of 32 MiB, of which a part is
# now and then unmapped or given back; blocks that are moved; a private mapping of a file; and a child that was forked and
# changes its own. What it is to hold, it knows besides; it says at the end whether it does.
PROGRAM = r"""
import ctypes, mmap, os, random, struct, sys, time
place, seed = sys.argv[1], int(sys.argv[2])
page = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long
libc.munmap.argtypes = ctypes.c_void_p, ctypes.c_size_t
libc.madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
libc.mremap.restype = ctypes.c_void_p
libc.mremap.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p
ANON, FIXED = 0x22, 0x10
count = 8192
base = libc.mmap(None, count * page, 3, ANON, -1, 0)
libc.read.argtypes = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
zeros = os.open("/dev/zero", os.O_RDONLY)
with open(place + "/file", "rb") as file:
    private = libc.mmap(None, 64 * page, 3, 2, file.fileno(), 0)
rng = random.Random(seed)
noise = random.Random(7).randbytes(page + 4096)
wanted = [None] * count
def content(number, version):
    return struct.pack("=QQ", number, version) + noise[number % 4096 : number % 4096 + page - 16]
def put(number, version):
    ctypes.memmove(base + number * page, content(number, version), page)
    wanted[number] = version
for number in range(0, count, 2):
    put(number, 0)
own = [b"f" * page] * 64
blocks = [libc.mmap(None, 64 * page, 3, ANON, -1, 0) for _ in range(8)]
held = [0] * len(blocks)
version = 0
child = os.fork()
rng.seed(seed + (child == 0))
name = "child" if child == 0 else "parent"
while not os.path.exists(place + "/stop"):
    version += 1
    for _ in range(3):
        put(rng.randrange(count), version)
    at = rng.randrange(64)
    own[at] = content(at, version)
    ctypes.memmove(private + at * page, own[at], page)
    if version % 5 == 0:
        first = rng.randrange(count - 64)
        what = rng.randrange(5)
        if what == 0:
            assert libc.madvise(base + first * page, 64 * page, 4) == 0
        elif what == 1:
            assert libc.munmap(base + first * page, 64 * page) == 0
            assert libc.mmap(base + first * page, 64 * page, 3, ANON | FIXED, -1, 0)
        elif what == 2:
            read = 0
            while read < 64 * page:  # written by the kernel; a stop makes the call a shorter one, as a signal does (docs/limits.md)
                some = libc.read(zeros, base + first * page + read, 64 * page - read)
                assert some > 0
                read += some
        elif what == 3:
            zero = bytes(64 * page)
            ctypes.memmove(base + first * page, zero, len(zero))
        else:
            # What mremap(2) is to move must be of one mapping, and these always are.
            here, there = rng.sample(range(len(blocks)), 2)
            to = blocks[there]
            assert libc.mremap(blocks[here], 64 * page, 64 * page, 3, to) == to
            assert libc.mmap(blocks[here], 64 * page, 3, ANON | FIXED, -1, 0) == blocks[here]
            held[there], held[here] = held[here], version
            ctypes.memset(blocks[here] + page, version & 255, page)
            continue
        wanted[first : first + 64] = [None] * 64
    with open(f"{place}/{name}", "w") as file:
        file.write(str(version))
    time.sleep(0.005)
bad = []
for number, w in enumerate(wanted):
    there = ctypes.string_at(base + number * page, page)
    if there != (bytes(page) if w is None else content(number, w)):
        bad.append((number, w, there[:16].hex()))
for number, w in enumerate(own):
    if ctypes.string_at(private + number * page, page) != w:
        bad.append(("file", number))
for block, version in zip(blocks, held):
    if ctypes.string_at(block, 64 * page) != bytes(page) + bytes([version & 255]) * page + bytes(62 * page):
        bad.append(("block", version, [(n, b) for n, b in enumerate(ctypes.string_at(block, 64 * page)[::page]) if b]))
if bad:
    with open(f"{place}/bad.{name}", "w") as file:
        file.write(f"{len(bad)} pages: {bad[:5]}")
if child and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
    bad.append("child")
os._exit(bool(bad))
"""


@contextmanager
def program(place: Path) -> Iterator[int]:
    """The program, past its beginning. It is killed at the end."""
    (place / "file").write_bytes(b"f" * 64 * os.sysconf("SC_PAGE_SIZE"))
    null = subprocess.DEVNULL
    command = [sys.executable, "-c", PROGRAM, str(place), str(random.randrange(1 << 30))]
    popen = subprocess.Popen(command, stdin=null, stdout=null, stderr=null, cwd="/", start_new_session=True)
    try:
        goes_on(place, 20)
        yield popen.pid
    finally:
        os.killpg(popen.pid, 9)
        popen.wait()


def rounds(place: Path) -> int:
    """How often both processes have changed something."""
    try:
        return min(int((place / who).read_text() or 0) for who in ("parent", "child"))
    except FileNotFoundError:
        return 0


def goes_on(place: Path, count: int) -> None:
    """Wait for `count` more rounds of both."""
    until, end = rounds(place) + count, time.monotonic() + 60
    while rounds(place) < until:
        assert time.monotonic() < end
        time.sleep(0.005)


def is_right(image: Path, place: Path) -> None:
    """The image is restarted, runs for a while, and finds its memory as it is to be."""
    (place / "stop").unlink(missing_ok=True)
    counters = [place / "parent", place / "child"]  # one of which may just have been open
    for counter in counters:
        counter.write_text("0")
    restarted = torpor.restart(image, allow_changed=map(str, counters))
    goes_on(place, 5)
    (place / "stop").touch()
    with open(os.pidfd_open(restarted.pid)) as ended:
        if not select.select([ended], [], [], 60)[0]:
            os.kill(restarted.pid, signal.SIGKILL)  # it waits for a child that it has not, or for itself
    status = restarted.wait()
    found = [path.read_text() for path in place.glob("bad.*")]
    assert (status, found) == (0, [])


def command(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    """Run torpor."""
    whole = [sys.executable, "-m", "torpor", *map(str, argv)]
    return subprocess.run(whole, env=os.environ | {"PYTHONPATH": str(SRC)}, capture_output=True, text=True, timeout=120)


def allowing(image: Path) -> list[str]:
    """The options with which the program of an image may find its counters changed: it may have had one open."""
    return [f"--allow-changed={image.with_name(who)}" for who in ("parent", "child")]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """An image, a second one that needs it, and a third that needs both."""
    place = tmp_path_factory.mktemp("chain")
    images = place / "1", place / "2", place / "3"
    with program(place) as pid:
        torpor.checkpoint(pid, images[0])
        goes_on(place, 10)
        torpor.checkpoint(pid, images[1], parent=images[0], compress="zstd")
        goes_on(place, 10)
        torpor.checkpoint(pid, images[2], parent=images[1])
    return images


@pytest.mark.parametrize("how", ["compared", "compressed", "watched"])
def test_a_chain_is_one_image(tmp_path: Path, how: str) -> None:
    images = [tmp_path / f"image.{number}" for number in range(6)]
    compress, tracking = "zstd:1" if how == "compressed" else "", Tracking() if how == "watched" else None
    if tracking and not writes.can_be_told():
        pytest.skip("this kernel does not tell which pages have been written")
    with program(tmp_path) as pid:
        for number, image in enumerate(images):
            parent = images[number - 1] if number else None
            torpor.checkpoint(pid, image, parent=parent, compress=compress, tracking=tracking, kill=number == 5)
            if number < 5:
                goes_on(tmp_path, 20)
    if tracking:
        tracking.close()
    sizes = []
    for each in images:
        with torpor.open_image(each) as opened:
            sizes.append(sum(pages.length for pages in opened.of(Pages)))
    # (A child whose pages were shared with its parent by fork in one image, and are not in the next, is saved anew.)
    assert min(sizes[1:]) < sizes[0] / 2, "what has not changed was saved again"
    for each in (images[5], images[2], images[0]):
        is_right(each, tmp_path)
    merge(images[4], tmp_path / "merged")
    for image in images:
        image.unlink()
    is_right(tmp_path / "merged", tmp_path)


STEADY = """
import random, time
memory = bytearray(random.randbytes(24 << 20))
print("ready", flush=True)
while True:
    memory[random.randrange(len(memory))] ^= 1
    time.sleep(0.001)
"""


def test_little_that_has_changed_is_read_without_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where it is known what has, and only what is little: for the rest the program is not to stand still.

    (That what is read is right, the chains of the other tests show.)
    """
    if not writes.can_be_told():
        pytest.skip("this kernel does not tell which pages have been written")
    copied, take = [0] * 5, snapshot.take

    def counted(remote: Remote) -> snapshot.Copy:
        copied[number] += 1
        return take(remote)

    monkeypatch.setattr(snapshot, "take", counted)
    tracking, null = Tracking(), subprocess.DEVNULL
    command = [sys.executable, "-c", STEADY]
    with subprocess.Popen(command, stdin=null, stdout=subprocess.PIPE, stderr=null, cwd="/", start_new_session=True) as popen:
        try:
            assert popen.stdout and popen.stdout.readline()
            for number in range(5):
                # The last two: there is room for what has been written, but not for all that is to be read; not even for the first.
                if number == 3:
                    monkeypatch.setattr(pages, "READ_AHEAD", 4096)
                if number == 4:
                    monkeypatch.setattr(sys.modules["torpor.checkpoint"], "READ_AHEAD", 4096)
                time.sleep(0.05)
                parent = tmp_path / str(number - 1) if number else None
                torpor.checkpoint(popen.pid, tmp_path / str(number), parent=parent, tracking=tracking)
        finally:
            popen.kill()
    tracking.close()
    assert copied == [1, 0, 0, 1, 1]
    assert (tmp_path / "1").stat().st_size < (tmp_path / "0").stat().st_size / 4


@pytest.mark.parametrize("seed", range(300 if FULL else 60))
def test_what_is_read_and_what_lies_in_the_parent(seed: int) -> None:
    """Page by page the same as by sets of pages."""
    rng = random.Random(f"{SEED} {seed}")
    last = 60

    def ranges() -> list[tuple[int, int]]:
        cuts = sorted(rng.sample(range(last), rng.randrange(12) * 2))
        return list(zip(cuts[::2], cuts[1::2], strict=True))

    def pages_of(some: Iterable[tuple[int, int]]) -> set[int]:
        return {page for start, end in some for page in range(start, end)}

    held: list[Any] = []
    at = 0
    for start, end in ranges():
        middle = rng.randrange(start, end + 1)  # adjacent pieces, too
        for low, high in ((start, middle), (middle, end)):
            if high > low:
                held.append(SimpleNamespace(place=(low, high, at)))
                at += high - low
    known = Known((low, high, piece, at) for piece in held for low, high, at in [piece.place])
    has, wrote, present = pages_of(piece.place[:2] for piece in held), ranges(), ranges()
    mapping: Any = object()
    inside, outside = pages.divided(
        [(mapping, start, end - start) for start, end in present], known.changed((start, end - start) for start, end in wrote)
    )
    unread = pages_of(present) - (pages_of(wrote) | ({*range(last)} - has))
    assert pages_of((start, start + length) for _, start, length in inside) == pages_of(present) - unread
    assert pages_of((start, start + length) for start, length in outside) == unread
    assert sum(length for _, _, length in inside) + sum(length for _, length in outside) == len(pages_of(present))
    found: dict[int, object] = {}
    for start, length, piece, offset in known.split(outside):
        low, high, first = cast(Any, piece).place
        assert low <= start and start + length <= high and offset == first + start - low
        found |= dict.fromkeys(range(start, start + length), piece)
    assert found.keys() == unread
    split = list(known.split((start, end - start) for start, end in present))
    assert [page for start, length, _, _ in split for page in range(start, start + length)] == sorted(pages_of(present))
    assert pages_of((start, start + length) for start, length, piece, _ in split if piece) == pages_of(present) & has
    assert all(length for _, _, length in inside) and all(length for _, length in outside) and all(part[1] for part in split)


def test_what_an_image_refers_to(chain: tuple[Path, Path, Path]) -> None:
    with torpor.open_image(chain[2]) as image:
        assert sorted(parent.name for parent in image.of(ParentImage)) == ["1", "2"]
        open_parents(image)
        for pages in image.of(EarlierPages):
            assert all(isinstance(image.parents[pages.image].chunks[chunk][0], Pages) for chunk in pages.chunks)
    with torpor.open_image(chain[1]) as image:
        assert image.of(CompressedPages)
    for image_ in chain:
        done = command("verify", image_)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("field", "change", "reason"),
    [
        ("chunks", lambda _: 1 << 40, "there is no chunk 1099511627776 in"),
        ("offsets", lambda offset: offset + 8, "is not of whole pages"),
        ("offsets", lambda _: 1 << 40, "ends behind the data of chunk"),
    ],
)
def test_where_no_data_lies(
    chain: tuple[Path, Path, Path], tmp_path: Path, field: str, change: Callable[[int], int], reason: str
) -> None:
    """What an image says of an earlier one is compared with that before anything is read."""
    image = moved(chain, tmp_path)[2]
    items = altered.read(image)
    record = next(item.record for item in items if isinstance(item.record, EarlierPages))
    places = getattr(record, field)
    places[-1] = change(places[-1])
    altered.write(items, image)
    done = command("verify", image)
    assert done.returncode == 5 and reason in done.stderr, done.stderr


def test_many_places_take_several_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No record has more than a reader admits, and all of them together name every page."""
    with program(tmp_path) as pid:
        torpor.checkpoint(pid, tmp_path / "1")
        goes_on(tmp_path, 20)
        monkeypatch.setattr(pages, "MAX_PLACES", 8)
        torpor.checkpoint(pid, tmp_path / "2", parent=tmp_path / "1", kill=True)
    with torpor.open_image(tmp_path / "2") as image:
        counts = [len(record.starts) for record in image.of(EarlierPages)]
    assert len(counts) > 4 and max(counts) == 8
    is_right(tmp_path / "2", tmp_path)


EQUAL = r"""
import ctypes, mmap, os, random, subprocess, sys, time
place, times, size = sys.argv[1], int(sys.argv[2]), 24 << 20
words = [sys.executable, __file__, place, str(times), "child"]
child = len(sys.argv) == 3 and subprocess.Popen(words, stdin=0, stdout=1, stderr=2, cwd="/")
unequal = [bytearray(random.randbytes(4096)) for _ in range(random.randrange(100))]
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory[:] = wanted = random.Random(1).randbytes(size // times) * times
open(place + ("/ready.parent" if child else "/ready.child"), "w").close()
while not os.path.exists(place + "/stop"):
    time.sleep(0.01)
right = memory[:] == wanted and not (child and child.wait())
sys.exit(not right)
"""


@pytest.mark.parametrize("times", [1, 6])
@pytest.mark.parametrize("compress", ["", "zstd:1"])
def test_equal_memory_is_stored_once(tmp_path: Path, compress: str, times: int) -> None:
    """Of processes that have it each for itself, and `times` in each; in a chain, and in what is made of it, too."""
    (tmp_path / "equal.py").write_text(EQUAL)
    null = subprocess.DEVNULL
    words = [sys.executable, str(tmp_path / "equal.py"), str(tmp_path), str(times)]
    popen = subprocess.Popen(words, stdin=null, stdout=null, stderr=null, cwd="/")
    try:
        end = time.monotonic() + 60
        while not all((tmp_path / f"ready.{who}").exists() for who in ("parent", "child")):
            assert time.monotonic() < end and popen.poll() is None
            time.sleep(0.01)
        torpor.checkpoint(popen.pid, tmp_path / "1", compress=compress)
        torpor.checkpoint(popen.pid, tmp_path / "2", compress=compress, parent=tmp_path / "1", kill=True)
    finally:
        (tmp_path / "stop").touch()
        popen.kill()
        popen.wait()
    merge(tmp_path / "2", tmp_path / "3")
    with torpor.open_image(tmp_path / "1") as image:
        kept = sum(sum(pages.lengths) for pages in image.of(EarlierPages))
        # (Where a neighbour has become one mapping with it, its chunks begin elsewhere.)
        assert kept > 20 << 20, "equal memory was stored more than once"
    for name in "123":
        assert torpor.restart(tmp_path / name).wait() == 0
    if os.geteuid() == 0:
        restarted = torpor.restart(tmp_path / "3", lazy=True)
        assert restarted.wait() == 0


def moved(chain: tuple[Path, Path, Path], to: Path) -> list[Path]:
    """Copies of the three images."""
    return [Path(shutil.copy(image, to / image.name)) for image in chain]


@pytest.mark.parametrize("lost", [0, 1])
def test_a_parent_is_missing(chain: tuple[Path, Path, Path], tmp_path: Path, lost: int) -> None:
    images = moved(chain, tmp_path)
    images[lost].unlink()
    for argv in (["restart", *allowing(chain[2])], ["verify"]):
        done = command(*argv, images[2])
        assert done.returncode == 5 and f"{str(images[lost])!r}, in which some of the data" in done.stderr, done.stderr
        assert "is not there" in done.stderr
    done = command("inspect", images[2])
    assert done.returncode == 0 and f"{images[lost].name}, taken" in done.stdout and "(not there" in done.stdout


def test_a_parent_is_another_image(chain: tuple[Path, Path, Path], tmp_path: Path) -> None:
    images = moved(chain, tmp_path)
    shutil.copy(images[2], images[0])
    for argv in (["restart", *allowing(chain[2])], ["verify"]):
        done = command(*argv, images[2])
        assert done.returncode == 5 and "another image" in done.stderr, done.stderr


def test_data_of_a_parent_is_altered(chain: tuple[Path, Path, Path], tmp_path: Path) -> None:
    images = moved(chain, tmp_path)
    with torpor.open_image(images[2]) as image:
        open_parents(image)
        parent, record, offset = next(found for found in image.needed_chunks() if found[0] is not image)
        name = parent.name
    with open(name, "r+b") as file:
        file.seek(offset + record.stored // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    for argv in (["restart", *allowing(chain[2])], ["verify"]):
        done = command(*argv, images[2])
        assert done.returncode == 5 and "the hash of the data differs" in done.stderr and name in done.stderr, done.stderr


def test_a_parent_that_is_a_pipe(chain: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """To open one would wait for ever."""
    images = moved(chain, tmp_path)
    images[0].unlink()
    os.mkfifo(images[0])
    done = command("verify", images[2])
    assert done.returncode == 5 and "is no file" in done.stderr


def test_parents_move_with_the_image(chain: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Those in another directory are named by their whole path; moved all together they are found again."""
    first = Path(shutil.copy(chain[0], tmp_path / "first"))
    (tmp_path / "place").mkdir()
    (tmp_path / "other").mkdir()
    with program(tmp_path / "place") as pid:
        torpor.checkpoint(pid, first)
        torpor.checkpoint(pid, tmp_path / "other" / "second", parent=first)
    assert command("verify", tmp_path / "other" / "second").returncode == 0
    (tmp_path / "third").mkdir()
    for image in (first, tmp_path / "other" / "second"):
        image.rename(tmp_path / "third" / image.name)
    assert command("verify", tmp_path / "third" / "second").returncode == 0


def test_nonsense(chain: tuple[Path, Path, Path], tmp_path: Path) -> None:
    images = moved(chain, tmp_path)
    me = str(os.getpid())
    done = command("checkpoint", me, "-o", images[0], "--parent", images[0])
    assert done.returncode == 2 and "cannot replace its parent" in done.stderr
    for words in ("gzip", "zstd:", "zstd:0", "zstd:20", "zstd:x"):
        done = command("checkpoint", me, "-o", tmp_path / "new", "--compress", words)
        assert done.returncode == 2 and words in done.stderr
    done = command("checkpoint", me, "-o", tmp_path / "new", "--parent", tmp_path / "none")
    assert done.returncode == 1 and "No such file" in done.stderr
    assert not (tmp_path / "new").exists()


def test_compressed_data_that_is_none(chain: tuple[Path, Path, Path]) -> None:
    """A hash says only that the bytes are those that were written."""
    with torpor.open_image(chain[1]) as image:
        record, offset = next(found for found in image.chunks if isinstance(found[0], CompressedPages))
        record.length += 4096
        with pytest.raises(torpor.BadImage, match="cannot be decompressed"):
            image.data(record, offset)


def test_without_the_library(chain: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Said before anything is stopped, and before a process exists."""
    (tmp_path / "zstandard.py").write_text("raise ImportError")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{SRC}"}
    with program(tmp_path) as pid:
        for argv in (["checkpoint", str(pid), "-o", "new", "--compress", "zstd"], ["restart", str(chain[1]), *allowing(chain[1])]):
            done = subprocess.run([sys.executable, "-m", "torpor", *argv], env=environment, cwd=tmp_path, capture_output=True)
            assert done.returncode == 4 and b"zstd: this Python has no module" in done.stderr, done.stderr
        goes_on(tmp_path, 3)

"""torpor.linux.pagemap against children that know which of their pages they have touched, in both ways."""

from __future__ import annotations

import errno
import os
import random
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import SEED
from torpor.linux import pagemap, procfs
from torpor.linux.libc import PAGE

if TYPE_CHECKING:
    from tests.linux.conftest import Child

Start = Callable[..., "Child"]
MADV_GUARD_INSTALL = 102


@pytest.fixture(params=["scan", "fallback"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each test runs with PAGEMAP_SCAN and with plain pagemap."""
    if request.param == "fallback":
        monkeypatch.setattr(pagemap, "FORCE_FALLBACK", True)
        assert not pagemap.has_scan()
    elif not pagemap.has_scan():
        pytest.skip("no PAGEMAP_SCAN before Linux 6.7")
    return str(request.param)


@pytest.fixture
def opened() -> Iterator[Callable[[int], int]]:
    """pagemap.open() whose descriptors are closed after the test."""
    fds: list[int] = []

    def run(pid: int) -> int:
        fds.append(pagemap.open(pid))
        return fds[-1]

    yield run
    for fd in fds:
        os.close(fd)


def runs(pages: list[int], base: int) -> list[tuple[int, int]]:
    """The runs that the page numbers `pages` make, as present_runs() should give them."""
    found: list[tuple[int, int]] = []
    for page in sorted(set(pages)):
        address = base + page * PAGE
        if found and sum(found[-1]) == address:
            found[-1] = (found[-1][0], found[-1][1] + PAGE)
        else:
            found.append((address, PAGE))
    return found


def test_anonymous_pages(start: Start, opened: Callable[[int], int], way: str) -> None:
    chosen = random.Random(SEED)
    pages = sorted(chosen.sample(range(6000), 2500))
    child = start(f"""
at = libc.mmap(None, 6000 * {PAGE}, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
libc.madvise(at, 6000 * {PAGE}, 15)     # no huge pages
for page in {pages}:
    ctypes.memset(at + page * {PAGE}, 1, 1)
say(at=at)
""")
    at = child.facts["at"]
    fd = opened(child.pid)
    expected = runs(pages, at)
    assert len(expected) > 1024  # more than fit in one vector, so that the scan has to go on where it stopped
    assert list(pagemap.present_runs(fd, at, at + 6000 * PAGE, file_backed_private=False)) == expected
    assert list(pagemap.present_runs(fd, at, at + 6000 * PAGE, file_backed_private=True)) == expected
    # A window of it, and nothing.
    first, last = at + 1000 * PAGE, at + 1100 * PAGE
    inside = [page for page in pages if 1000 <= page < 1100]
    assert list(pagemap.present_runs(fd, first, last)) == runs(inside, at)
    assert list(pagemap.present_runs(fd, at, at)) == []


def test_nothing_touched_and_zero_pages(start: Start, opened: Callable[[int], int], way: str) -> None:
    child = start(f"""
at = libc.mmap(None, 64 * {PAGE}, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
libc.madvise(at, 64 * {PAGE}, 15)
say(at=at)
wait()
for page in range(10, 20):
    ctypes.string_at(at + page * {PAGE}, 1)     # read only: the zero page
ctypes.memset(at + 15 * {PAGE}, 0, 1)           # a page of its own, of zeros
say(at=at)
""")
    at = child.facts["at"]
    fd = opened(child.pid)
    assert list(pagemap.present_runs(fd, at, at + 64 * PAGE)) == []
    child.step()
    expected = [15] if way == "scan" else list(range(10, 20))
    assert list(pagemap.present_runs(fd, at, at + 64 * PAGE)) == runs(expected, at)


def test_private_file_pages_are_only_the_copied_ones(
    start: Start, opened: Callable[[int], int], way: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 40 * PAGE)
    child = start(f"""
fd = os.open({str(path)!r}, os.O_RDWR)
private = libc.mmap(None, 40 * {PAGE}, 3, mmap.MAP_PRIVATE, fd, 0)
shared = libc.mmap(None, 40 * {PAGE}, 3, mmap.MAP_SHARED, fd, 0)
for page in range(40):
    ctypes.string_at(private + page * {PAGE}, 1)
for page in 3, 4, 5, 39:
    ctypes.memset(private + page * {PAGE}, 1, 1)
    ctypes.memset(shared + page * {PAGE}, 2, 1)
say(private=private, shared=shared)
""")
    fd = opened(child.pid)
    private, shared = child.facts["private"], child.facts["shared"]
    end = private + 40 * PAGE
    own = list(pagemap.present_runs(fd, private, end, file_backed_private=True))
    assert own == runs([3, 4, 5, 39], private)
    assert list(pagemap.present_runs(fd, private, end, file_backed_private=False)) == [(private, 40 * PAGE)]
    assert list(pagemap.present_runs(fd, shared, shared + 40 * PAGE, file_backed_private=True)) == []
    found = list(pagemap.present_runs(fd, shared, shared + 40 * PAGE))
    assert {shared + page * PAGE for page in (3, 4, 5, 39)} <= {a + i for a, n in found for i in range(0, n, PAGE)}


def test_huge_pages(start: Start, opened: Callable[[int], int], way: str) -> None:
    child = start("""
at = libc.mmap(None, 16 << 20, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
at = (at + (2 << 20) - 1) // (2 << 20) * (2 << 20)
libc.madvise(at, 8 << 20, 14)
ctypes.memset(at + (2 << 20), 1, 1)
say(at=at)
""")
    at = child.facts["at"]
    found = list(pagemap.present_runs(opened(child.pid), at, at + (8 << 20)))
    assert found in ([(at + (2 << 20), 2 << 20)], [(at + (2 << 20), PAGE)])


def test_swapped_pages(start: Start, opened: Callable[[int], int], way: str) -> None:
    child = start(f"""
at = libc.mmap(None, 64 * {PAGE}, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
ctypes.memset(at, 1, 64 * {PAGE})
libc.madvise(at, 32 * {PAGE}, 21)   # MADV_PAGEOUT
say(at=at)
""")
    at = child.facts["at"]
    swapped = next(m for m in procfs.smaps(child.pid) if m.start <= at < m.end).swap_kb
    assert list(pagemap.present_runs(opened(child.pid), at, at + 64 * PAGE)) == [(at, 64 * PAGE)]
    if not swapped:
        pytest.skip("nothing was swapped out: no swap here (the run was right all the same)")


def _where_guards_are_told(child: Child, way: str) -> int:
    """The address at which a child has made guard pages."""
    if not child.facts["made"]:
        pytest.skip("no MADV_GUARD_INSTALL before Linux 6.13")
    pagemap.has_scan()
    if not pagemap._guard_category and way == "scan":
        pytest.skip("Linux 6.13 and 6.14 do not tell guard pages from swapped ones")
    at: int = child.facts["at"]
    return at


def test_guard_pages(start: Start, opened: Callable[[int], int], way: str) -> None:
    child = start(f"""
at = libc.mmap(None, 64 * {PAGE}, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
libc.madvise(at, 64 * {PAGE}, 15)
ctypes.memset(at, 1, 64 * {PAGE})
made = not libc.madvise(at + 10 * {PAGE}, 3 * {PAGE}, {MADV_GUARD_INSTALL})
say(at=at, made=made)
""")
    at = _where_guards_are_told(child, way)
    fd = opened(child.pid)
    own = [page for page in range(64) if page not in (10, 11, 12)]
    assert list(pagemap.present_runs(fd, at, at + 64 * PAGE)) == runs(own, at)
    assert list(pagemap.guard_runs(fd, at, at + 64 * PAGE)) == [(at + 10 * PAGE, 3 * PAGE)]
    guards: list[tuple[int, int]] = []
    assert list(pagemap.present_runs(fd, at, at + 64 * PAGE, guards=guards)) == runs(own, at)
    assert guards == [(at + 10 * PAGE, 3 * PAGE)]


def test_many_guard_pages_on_the_way(start: Start, opened: Callable[[int], int], way: str) -> None:
    """More regions than the kernel tells of at a time; every third page is a guard, and all of the last ones are."""
    child = start(f"""
at = libc.mmap(None, 3000 * {PAGE}, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
libc.madvise(at, 3000 * {PAGE}, 15)
ctypes.memset(at, 1, 3000 * {PAGE})
made = all(not libc.madvise(at + page * {PAGE}, {PAGE}, {MADV_GUARD_INSTALL}) for page in range(0, 2400, 3))
made = made and not libc.madvise(at + 2400 * {PAGE}, 600 * {PAGE}, {MADV_GUARD_INSTALL})
say(at=at, made=made)
""")
    at = _where_guards_are_told(child, way)
    fd = opened(child.pid)
    for low, high in ((0, 3000), (1, 2999), (2, 1500)):
        guards: list[tuple[int, int]] = []
        own = [page for page in range(low, high) if page % 3 and page < 2400]
        assert list(pagemap.present_runs(fd, at + low * PAGE, at + high * PAGE, guards=guards)) == runs(own, at)
        assert guards == list(pagemap.guard_runs(fd, at + low * PAGE, at + high * PAGE))
        assert sum(length for _, length in guards) == (high - low - len(own)) * PAGE


def test_empty_terabyte_costs_nothing(
    start: Start, opened: Callable[[int], int], way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    child = start(f"""
at = libc.mmap(None, 1 << 40, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, -1, 0)
libc.mprotect(ctypes.c_void_p(at + (1 << 39)), ctypes.c_size_t({PAGE}), 3)
ctypes.memset(at + (1 << 39), 1, 1)
say(at=at)
""")
    at = child.facts["at"]
    before = time.perf_counter()
    found = list(pagemap.present_runs(opened(child.pid), at, at + (1 << 40)))
    taken = time.perf_counter() - before
    assert found == [(at + (1 << 39), PAGE)]
    with capsys.disabled():
        print(f" [1 TiB of PROT_NONE by {way}: {taken * 1e3:.2f} ms]", end="")


def test_fallback_reads_everything_when_smaps_cannot_be_had(
    start: Start, opened: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    child = start("""
at = libc.mmap(None, 1 << 30, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, -1, 0)
libc.madvise(at, 1 << 30, 15)
ctypes.memset(at + (768 << 20), 1, 8192)
ctypes.memset(at + (512 << 20) - 4096, 1, 8192)
say(at=at)
""")
    at = child.facts["at"]
    fd = opened(child.pid)
    expected = [(at + (512 << 20) - 4096, 8192), (at + (768 << 20), 8192)]  # the first lies across a chunk's border
    monkeypatch.setattr(pagemap, "FORCE_FALLBACK", True)
    monkeypatch.setattr(pagemap, "SPARSE", 1 << 20)
    assert list(pagemap.present_runs(fd, at, at + (1 << 30))) == expected

    def refused(pid: int) -> list[procfs.Mapping]:
        raise PermissionError(errno.EACCES, "refused")

    monkeypatch.setattr(procfs, "smaps", refused)
    assert list(pagemap.present_runs(fd, at, at + (1 << 30))) == expected


def test_process_that_has_ended(start: Start, opened: Callable[[int], int], way: str) -> None:
    child = start("at = libc.mmap(None, 65536, 3, 0x22, -1, 0)\nctypes.memset(at, 1, 65536)\nsay(at=at)")
    fd = opened(child.pid)
    at = child.facts["at"]
    child.process.kill()
    child.process.wait()
    with pytest.raises(ProcessLookupError):
        list(pagemap.present_runs(fd, at, at + 65536))


def test_both_ways_agree_on_whole_processes(
    start: Start, opened: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not pagemap.has_scan():
        pytest.skip("no PAGEMAP_SCAN before Linux 6.7")
    child = start("import decimal\nsay()")
    fd = opened(child.pid)
    for mapping in procfs.smaps(child.pid):
        if mapping.path.startswith("[v"):  # the kernel's own: vsyscall, vvar, vdso
            continue
        private_file = bool(mapping.inode) and not mapping.shared
        found = []
        for forced in False, True:
            monkeypatch.setattr(pagemap, "FORCE_FALLBACK", forced)
            found.append(list(pagemap.present_runs(fd, mapping.start, mapping.end, file_backed_private=private_file)))
        pages = [{a + i for a, n in some for i in range(0, n, PAGE)} for some in found]
        assert pages[0] <= pages[1], mapping
        # What plain pagemap has more can only be zero pages: they read as such.
        with open(f"/proc/{child.pid}/mem", "rb", buffering=0) as memory:
            for address in pages[1] - pages[0]:
                memory.seek(address)
                assert memory.read(PAGE) == bytes(PAGE), mapping
        if not private_file and not mapping.shared:
            assert sum(n for _, n in found[0]) == mapping.anonymous_kb * 1024 + mapping.swap_kb * 1024, mapping


# ---------------------------------------------------------------------------------------------------------------------
# Physical pages

FORKED = f"""
at = libc.mmap(None, 300 * {PAGE}, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
libc.madvise(at, 300 * {PAGE}, 15)
ctypes.memset(at, 1, 200 * {PAGE})
r, w = os.pipe()
pid = os.fork()
if not pid:
    for page in 7, 8, 100:
        ctypes.memset(at + page * {PAGE}, 2, 1)
    ctypes.memset(at + 250 * {PAGE}, 2, 1)
    os.write(w, b"x")
    time.sleep(600)
import atexit
os.read(r, 1)
ctypes.memset(at + 250 * {PAGE}, 2, 1)
say(at=at, pid=pid)
wait()
os.kill(pid, 9)
say()
"""


def test_frames_after_a_fork(start: Start, opened: Callable[[int], int]) -> None:
    child = start(FORKED)
    try:
        at, end = child.facts["at"], child.facts["at"] + 300 * PAGE
        a = pagemap.pfns(opened(child.pid), at, end)
        b = pagemap.pfns(opened(child.facts["pid"]), at, end)
        if a is None or b is None:
            assert os.geteuid() != 0 or not procfs.status(os.getpid()).cap_effective >> 21 & 1
            pytest.skip("needs root (CAP_SYS_ADMIN): the kernel hides the page frame numbers")
        assert len(a) == 300 * 8
        assert list(pagemap.same_frames(a, b)) == [(0, 7), (9, 91), (101, 99)]
        assert list(pagemap.same_frames(a, a)) == [(0, 200), (250, 1)]
    finally:
        child.step()


def test_frames_are_hidden_from_plain_users(start: Start, root: None) -> None:
    child = start(f"""
sys.path.insert(0, {str(Path(pagemap.__file__).parents[2])!r})
from torpor.linux import pagemap
os.setresuid(65534, 65534, 65534)
libc.prctl(4, 1, 0, 0, 0)   # PR_SET_DUMPABLE: /proc/self is ours again
fd = pagemap.open(os.getpid())
b = ctypes.create_string_buffer(1 << 20)
at = ctypes.addressof(b) // {PAGE} * {PAGE}
say(hidden=pagemap.pfns(fd, at, at + 65536) is None, scan=pagemap.has_scan(),
    runs=list(pagemap.present_runs(fd, at + {PAGE}, at + 65536)), at=at)
""")
    assert child.facts["hidden"]
    assert child.facts["runs"] == [[child.facts["at"] + PAGE, 65536 - PAGE]]
    assert child.facts["scan"] == pagemap.has_scan()


def naive(a: bytes, b: bytes) -> list[tuple[int, int]]:
    """same_frames() as one would write it at first."""
    pairs = zip(struct.unpack(f"{len(a) // 8}Q", a), struct.unpack(f"{len(b) // 8}Q", b), strict=True)
    found: list[tuple[int, int]] = []
    for index, (x, y) in enumerate(pairs):
        if x >> 63 and y >> 63 and (x ^ y) & (1 << 55) - 1 == 0:
            if found and sum(found[-1]) == index:
                found[-1] = (found[-1][0], found[-1][1] + 1)
            else:
                found.append((index, 1))
    return found


@pytest.mark.parametrize("pages", [0, 1, 2, 511, 512, 513, 2000, 5000])
@pytest.mark.parametrize("different", [0.0, 0.0005, 0.1, 0.5, 1.0])
def test_same_frames_is_the_naive_comparison(pages: int, different: float) -> None:
    chosen = random.Random(f"{SEED} {pages} {different}")
    for _ in range(10):
        left = [1 << 63 | chosen.getrandbits(40) for _ in range(pages)]
        right = list(left)
        for i in range(pages):
            if chosen.random() < different:
                right[i] = chosen.choice(
                    [left[i] ^ 1 << chosen.randrange(55), 0, left[i] & ~(1 << 63), 1 << 62 | left[i] & ~(1 << 63)]
                )
                if chosen.random() < 0.3:
                    left[i] = right[i]  # equal, but perhaps not present: not the same frame
            elif chosen.random() < 0.3:
                right[i] ^= 1 << chosen.choice([55, 56, 57, 61])  # soft-dirty and other flags do not matter
        a, b = struct.pack(f"{pages}Q", *left), struct.pack(f"{pages}Q", *right)
        assert list(pagemap.same_frames(a, b)) == naive(a, b)


def test_same_frames_wants_equal_lengths() -> None:
    with pytest.raises(ValueError, match="1 and 2"):
        list(pagemap.same_frames(bytes(8), bytes(16)))


def test_entries_of_the_other_byte_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """s390x and 32-bit PowerPC: the same arithmetic with the bytes of an entry turned round."""
    swapped = "little" if sys.byteorder == "big" else "big"
    entries = [1 << 63 | 5, 0, 1 << 62 | 1 << 61, 1 << 58 | 1 << 62, 1 << 63 | 1 << 61]
    data = b"".join(entry.to_bytes(8, swapped) for entry in entries)  # type: ignore[arg-type]
    monkeypatch.setattr(pagemap, "_TOP", 7 - pagemap._TOP)
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: data[offset % PAGE :][:size])
    assert list(pagemap._read_runs(0, 0, 5 * PAGE, pagemap._ANY_TABLE)) == [
        (0, PAGE),
        (2 * PAGE, PAGE),
        (4 * PAGE, PAGE),
    ]
    assert list(pagemap._read_runs(0, 0, 5 * PAGE, pagemap._OWN_TABLE)) == [(0, PAGE)]
    assert list(pagemap._read_runs(0, 0, 5 * PAGE, pagemap._GUARD_TABLE)) == [(3 * PAGE, PAGE)]

"""Where images go: a file appears whole or not at all, a stream takes every byte, and every failure is a sentence."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.conftest import SEED, SRC
from tests.image.samples import SampleObject, header, pages, write_small
from torpor.errors import BadImage, NoPermission, TorporError
from torpor.image import input as image_input
from torpor.image.reader import Image
from torpor.image.writer import ImageWriter

Buffer = bytes | memoryview

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def left_in(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def write_much(target: Path | str | int, chunks: int = 8, buffers: Sequence[Buffer] = (bytes(1 << 20),)) -> None:
    """An image with `chunks` MiB of data."""
    with ImageWriter.open(target) as image:
        image.add(header())
        image.add(SampleObject(id=1, size=1))
        for index in range(chunks):
            image.add_data(pages(1, (index << 20, 1 << 20)), buffers)
        image.finish()


def whole_pages(size: int, before: int = 0) -> memoryview:
    """Random bytes that lie `before` bytes behind the beginning of a page, where the disk can take them from if that is 0."""
    room = mmap.mmap(-1, before + size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    room[before:] = random.Random(SEED).randbytes(size)
    return memoryview(room)[before:]


@pytest.fixture
def no_tmpfile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that does not know O_TMPFILE."""
    real = os.open

    def without(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", without)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


# --- Files ----------------------------------------------------------------------------------------------------------


def check_a_file_appears_whole_or_not_at_all(directory: Path, names_before_finish: int) -> None:
    path = directory / "job.img"
    with ImageWriter.open(path) as image:
        image.add(header())
        assert len(left_in(directory)) == names_before_finish
        image.finish()
        assert left_in(directory) == ["job.img"]
    first = path.read_bytes()
    assert path.stat().st_mode & 0o7777 == 0o600, "memory holds secrets"

    with ImageWriter.open(path) as image:
        image.add(header())
    assert path.read_bytes() == first, "without finish() the image that was there stays"

    with pytest.raises(KeyboardInterrupt), ImageWriter.open(path) as image:
        image.add(header())
        raise KeyboardInterrupt
    assert left_in(directory) == ["job.img"]

    assert write_small(path) != first, "finish() replaces it"
    assert left_in(directory) == ["job.img"]
    Image.open(path).close()


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    check_a_file_appears_whole_or_not_at_all(tmp_path, 0)


@pytest.mark.usefixtures("no_tmpfile")
def test_also_where_files_need_names(tmp_path: Path) -> None:
    check_a_file_appears_whole_or_not_at_all(tmp_path, 1)


@pytest.mark.usefixtures("no_tmpfile")
def test_a_name_of_full_length_has_room_for_the_temporary(tmp_path: Path) -> None:
    write_small(tmp_path / ("é" * 127))
    assert left_in(tmp_path) == ["é" * 127]


def test_a_symlink_is_followed_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    link = tmp_path / "latest"
    link.symlink_to("far/job.img")
    for _ in range(2):
        write_small(link)
        assert link.is_symlink()
        assert left_in(tmp_path / "far") == ["job.img"]


def kill_while_writing(path: Path) -> Iterator[int]:
    """Writers of a 16 MiB image at `path`, each killed a little later; yields the pid of each when it is dead."""
    for delay in (0.0, 0.003, 0.01, 0.03, 0.06):
        pid = os.fork()
        if pid == 0:
            try:
                write_much(path, 16)
            finally:
                os._exit(0)
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        yield pid


def test_kill_9_leaves_nothing(tmp_path: Path) -> None:
    for _ in kill_while_writing(tmp_path / "job.img"):
        if left_in(tmp_path):  # it was faster than the signal
            assert left_in(tmp_path) == ["job.img"]
            Image.open(tmp_path / "job.img").close()
            (tmp_path / "job.img").unlink()


@pytest.mark.usefixtures("no_tmpfile")
def test_kill_9_where_files_need_names_leaves_only_what_is_easily_recognised(tmp_path: Path) -> None:
    """Half an image is never taken for one; only between its last byte and its renaming is it a whole one."""
    for pid in kill_while_writing(tmp_path / "job.img"):
        assert set(left_in(tmp_path)) <= {"job.img", f".job.img.{pid}.torpor.part"}
        for entry in tmp_path.iterdir():
            try:
                with Image.open(entry) as image:
                    image.verify_data()
            except BadImage:
                assert entry.name != "job.img"
            entry.unlink()


# --- Streams --------------------------------------------------------------------------------------------------------


def test_a_device_or_pipe_is_written_to_not_replaced(tmp_path: Path) -> None:
    write_much("/dev/null", 1)
    assert not Path("/dev/null").is_file()

    fifo, copy = tmp_path / "fifo", tmp_path / "copy"
    os.mkfifo(fifo)
    with subprocess.Popen(["cp", fifo, copy]):
        write_much(fifo, 1)
    assert fifo.is_fifo()
    with Image.open(copy) as image:
        image.verify_data()


def test_dash_is_standard_output_and_input(tmp_path: Path) -> None:
    """From one process to the next: `torpor checkpoint -o - | torpor restart -`."""
    write = "from tests.image.test_output import write_much; write_much('-', 3)"
    read = "from tests.image.test_output import Image; im = Image.open('-'); im.verify_data(); print(im.trailer.data)"
    environment = os.environ | {"PYTHONPATH": f"{SRC}:{SRC.parent}"}
    with subprocess.Popen([sys.executable, "-c", write], stdout=subprocess.PIPE, env=environment) as writer:
        done = subprocess.run([sys.executable, "-c", read], stdin=writer.stdout, capture_output=True, env=environment)
    assert (done.stdout, done.stderr, writer.returncode) == (b"3145728\n", b"", 0)


def test_a_non_blocking_pipe_is_waited_for(tmp_path: Path) -> None:
    """ssh and others make the descriptors that they share non-blocking."""
    copy = tmp_path / "copy"
    with (
        copy.open("wb") as out,
        subprocess.Popen(["sh", "-c", "sleep 0.2; cat"], stdin=subprocess.PIPE, stdout=out) as cat,
    ):
        assert cat.stdin
        os.set_blocking(cat.stdin.fileno(), False)
        write_much(cat.stdin.fileno(), 3)
    with Image.open(copy) as image:
        image.verify_data()


def test_a_pipe_without_a_reader(tmp_path: Path) -> None:
    source, sink = os.pipe()
    os.close(source)
    with pytest.raises(TorporError) as error:
        write_much(sink)
    remedy = "look at the program that was to read it: it ended first"
    assert str(error.value) == f"descriptor {sink}: cannot write the image: Broken pipe; {remedy}"
    os.close(sink)


def test_what_stands_on_a_pipe_without_finish_is_no_image(tmp_path: Path) -> None:
    source, sink = os.pipe()
    with ImageWriter.open(sink) as image:
        image.add(header())
        image.add(SampleObject(id=1, size=1))
        image.add_data(pages(1, (0, 4096)), [bytes(4096)])
    os.close(sink)
    with pytest.raises(BadImage, match="cut short: the file ends without a trailer"):
        Image.open(source)
    os.close(source)


# --- Past the page cache --------------------------------------------------------------------------------------------


@pytest.fixture
def directly(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each write past the page cache."""
    real, seen = os.pwritev, []

    def watched(fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT
        seen.append(real(fd, buffers, offset))
        return seen[-1]

    monkeypatch.setattr(os, "pwritev", watched)
    return seen


def takes_direct_writes(directory: Path) -> bool:
    try:
        os.close(os.open(directory / "tried", os.O_CREAT | os.O_RDWR | os.O_DIRECT))
    except OSError:
        return False
    finally:
        (directory / "tried").unlink(missing_ok=True)
    return True


BUFFERS: dict[str, tuple[Callable[[], list[memoryview]], bool]] = {
    # name: (the buffers, 1 MiB together; whether a disk can take them from where they lie)
    "whole pages": (lambda: [whole_pages(1 << 20)], True),
    "in two parts": (lambda: [whole_pages(3 << 18), whole_pages(1 << 18)], True),
    "inside of a page": (lambda: [whole_pages(1 << 20, 512)], False),
    "of odd lengths": (lambda: [whole_pages((1 << 19) + 100), whole_pages((1 << 19) - 100)], False),
    "read-only": (lambda: [whole_pages(1 << 20).toreadonly()], False),
}


@pytest.mark.parametrize("name", BUFFERS)
def test_large_data_goes_past_the_page_cache(tmp_path: Path, directly: list[int], name: str) -> None:
    make, possible = BUFFERS[name]
    buffers, path = make(), tmp_path / "job.img"
    write_much(path, 3, buffers)
    check_written(path, 3, buffers)
    assert sum(directly) == (3 << 20 if possible and takes_direct_writes(tmp_path) else 0)


@pytest.mark.parametrize("refused", ["open", "first write", "second write", "all of a write but a part"])
def test_where_the_disk_does_not_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    """What open(2) says of file systems: some refuse O_DIRECT when they are written to, some always; the bytes are the same."""
    real_open, real_write = os.open, os.pwritev
    writes = 0

    def opened(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_DIRECT and refused == "open":
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real_open(path, flags & ~os.O_DIRECT, mode, dir_fd=dir_fd)

    def written(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        nonlocal writes
        writes += 1
        if (refused, writes) in (("first write", 1), ("second write", 2)):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if refused == "all of a write but a part":
            buffers = [buffers[0][: 5000 if writes == 2 else 8192]]
        return real_write(fd, buffers, offset)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "pwritev", written)
    path, buffers = tmp_path / "job.img", [whole_pages(1 << 20)]
    write_much(path, 3, buffers)
    check_written(path, 3, buffers)
    assert writes == {"open": 0, "first write": 1, "second write": 2}.get(refused, writes)
    assert writes > 2 or refused != "all of a write but a part"


def check_written(path: Path, chunks: int, buffers: Sequence[Buffer]) -> None:
    data = b"".join(bytes(buffer) for buffer in buffers)
    with Image.open(path) as image:
        image.verify_data()
        assert [bytes(image.data(*chunk)) == data for chunk in image.chunks] == [True] * chunks


# --- Failures -------------------------------------------------------------------------------------------------------


def test_a_full_device() -> None:
    with pytest.raises(TorporError) as error:
        write_much("/dev/full")
    assert str(error.value) == (
        "/dev/full: cannot write the image: No space left on device; make room, or write the image elsewhere"
    )


@root
@pytest.mark.parametrize("buffer", [bytes(1 << 20), whole_pages(1 << 20)], ids=["cached", "direct"])
def test_a_full_disk(small_disk: Path, buffer: Buffer) -> None:
    path = small_disk / "job.img"
    with pytest.raises(TorporError, match=rf"^{path}: cannot write the image: No space left on device; make room"):
        write_much(path, buffers=[buffer])
    assert left_in(small_disk) == []
    write_small(path)
    with pytest.raises(TorporError, match="No space left on device"):
        write_much(path)
    Image.open(path).close()


@root
@pytest.mark.usefixtures("no_tmpfile")
def test_a_full_disk_where_files_need_names(small_disk: Path) -> None:
    with pytest.raises(TorporError, match="No space left on device"):
        write_much(small_disk / "job.img")
    assert left_in(small_disk) == []


@root
def test_no_room_for_an_image_from_a_pipe(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(small_disk))
    script = "from tests.image.test_output import write_much; write_much('-')"
    environment = os.environ | {"PYTHONPATH": f"{SRC}:{SRC.parent}"}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as writer:
        assert writer.stdout
        fd = writer.stdout.fileno()
        with pytest.raises(TorporError) as error:
            Image.open(fd)
    assert str(error.value).startswith(
        f"descriptor {fd}, copied to {small_disk}: cannot keep the image: No space left on device; "
    )


def test_a_file_size_limit(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(TorporError, match=r"cannot write the image: File too large; raise `ulimit -f`"):
            write_much(tmp_path / "job.img")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "cannot write the image: it is a directory; name a file in it"),
        ("missing/job.img", "cannot write the image: No such file or directory; check the path"),
        ("missing/", "cannot write the image: that names no file; name a file"),
        ("file/job.img", "cannot write the image: Not a directory; check the path"),
        ("n" * 300, "cannot write the image: File name too long; choose a shorter name"),
    ],
)
def test_places_that_cannot_take_an_image(tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / "file").touch()
    target = f"{tmp_path}/{name}".removesuffix("/") if not name else f"{tmp_path}/{name}"
    with pytest.raises(TorporError) as error:
        ImageWriter.open(target)
    assert str(error.value) == f"{target}: {sentence}"
    assert left_in(tmp_path) == ["file"]


def test_an_empty_path_is_no_place() -> None:
    with pytest.raises(TorporError, match="that names no file"):
        ImageWriter.open("")


@pytest.fixture
def forbidden(tmp_path: Path) -> Iterator[Path]:
    """A directory with an image that this process may not use: as root, it gives up being root for the test."""
    place = tmp_path / "forbidden"
    place.mkdir()
    write_small(place / "job.img")
    place.chmod(0o555)
    (place / "job.img").chmod(0)
    parents = [parent for parent in place.parents if parent.stat().st_uid == os.getuid() and parent != Path("/")]
    modes = [(parent, parent.stat().st_mode) for parent in parents]
    if os.geteuid() == 0:
        for parent, mode in modes:
            parent.chmod(mode & 0o7777 | 0o111)
        os.seteuid(65534)
    yield place
    if os.getuid() == 0:
        os.seteuid(0)
        for parent, mode in modes:
            parent.chmod(mode & 0o7777)
    place.chmod(0o755)


def test_no_permission(forbidden: Path) -> None:
    with pytest.raises(NoPermission) as error:
        ImageWriter.open(forbidden / "new.img")
    assert str(error.value) == (
        f"{forbidden}/new.img: cannot write the image: Permission denied; "
        "choose another place, or run as a user who may use it"
    )
    with pytest.raises(NoPermission, match="cannot read the image: Permission denied; "):
        Image.open(forbidden / "job.img")


# --- The copy of a pipe ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_tmpfile")
def test_the_copy_of_a_pipe_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    fd, place = image_input.temporary_file()
    assert place == str(tmp_path)
    assert os.fstat(fd).st_nlink == 0
    assert left_in(tmp_path) == []
    os.close(fd)


def test_without_a_place_for_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_input, "unnamed_in", lambda place: os.open("/missing/", os.O_RDONLY))
    monkeypatch.setenv("TMPDIR", "/nowhere")
    with pytest.raises(TorporError, match=r"cannot be copied to any of /nowhere, /var/tmp, /tmp; set TMPDIR"):
        image_input.temporary_file()

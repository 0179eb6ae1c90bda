"""Bad input from the command line: each is a sentence and its exit code, and nothing has changed.

The program to be saved goes on, untraced; no file has appeared, and one that was there before is what it was.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import altered
from tests.altered import Subject, environment
from tests.attempts import Attempts
from tests.conftest import SEED
from tests.debian.runner import ORDINARY, Lab
from tests.image import samples
from tests.torture.harness import descendants
from torpor import arch
from torpor.image.format import ARCHITECTURES, Header
from torpor.objects.processes import Process

FAILED, USAGE, CANNOT, BAD_IMAGE, NO_PERMISSION = 1, 2, 4, 5, 6

# Seizes the process that it is told, says so, and waits.
TRACER = """
import ctypes, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 2 + [ctypes.c_void_p] * 2
print(libc.ptrace(0x4206, int(sys.argv[1]), None, None), flush=True)
time.sleep(1000)
"""


def torpor(*argv: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torpor", *map(str, argv)]
    options = {"env": environment(), "capture_output": True, "text": True, "timeout": 60, **options}
    return subprocess.run(command, check=False, **options)


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """It ended with `code`, and said a sentence with `words` in it, on standard error and nowhere else."""
    assert done.returncode == code, (done.args, done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines
    assert all(line.startswith("torpor: ") for line in lines), done.stderr
    for word in words:
        assert word in done.stderr, (word, done.stderr)


def used(pid: int) -> int:
    """Clock ticks of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def goes_on(pid: int, *, tracer: int = 0) -> None:
    """The busy process `pid` runs, and nobody but `tracer` traces it."""
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert int(status["TracerPid"]) == tracer
    before, deadline = used(pid), time.monotonic() + 10
    while used(pid) == before:
        assert not status["State"].startswith("Z"), f"process {pid} is dead"
        assert time.monotonic() < deadline, f"process {pid} does not run any more: {status['State']}"
        time.sleep(0.005)


@pytest.fixture
def program() -> Iterator[int]:
    """A process that is busy all the time; at the end of the test it still is."""
    with altered.running(["/bin/sh", "-c", "while :; do :; done"], wait=False) as pid:
        goes_on(pid)
        yield pid
        goes_on(pid)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """An empty directory for an image; at the end of the test nothing has appeared in it."""
    directory = tmp_path / "place"
    directory.mkdir()
    yield directory
    assert list(directory.iterdir()) == []


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(tmp_path_factory.mktemp("subject"))


# --- whom to save -----------------------------------------------------------------------------------------------------


def test_a_pid_that_is_not_there(place: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    for pid in (gone.pid, 0, 1 << 22, 1 << 40):
        refused(torpor("checkpoint", str(pid), "-o", place / "image"), FAILED, f"pid {pid}: ", "no such process")
        refused(torpor("check", str(pid)), FAILED, f"pid {pid}: ", "no such process")


@pytest.mark.parametrize("word", ["one", "-1", "1.5", "", "٣"])
def test_a_pid_that_is_no_number(place: Path, word: str) -> None:
    for argv in (["checkpoint", "-o", place / "image", "--", word], ["check", "--", word]):
        refused(torpor(*argv), USAGE, repr(word))


def test_a_kernel_thread(place: Path) -> None:
    try:
        name = Path("/proc/2/comm").read_text().strip()
    except OSError as error:
        pytest.skip(f"no kernel thread is to be seen here, in a pid namespace of its own ({error.strerror})")
    if name != "kthreadd":
        pytest.skip(f"process 2 is no kernel thread here, but {name}")
    refused(torpor("checkpoint", "2", "-o", place / "image"), CANNOT, "pid 2: ", "kernel")
    refused(torpor("check", "2"), CANNOT, "pid 2: ", "kernel")


@pytest.mark.parametrize("command", ["exec {0}", "{0}; exit $?"], ids=["itself", "its parent shell"])
@pytest.mark.parametrize("verb", ["checkpoint $$ -o image", "checkpoint $$ -o image --kill", "check $$"])
def test_torpor_itself_and_those_it_runs_under(place: Path, command: str, verb: str) -> None:
    line = command.format(f"{sys.executable} -m torpor {verb}")
    done = subprocess.run(["/bin/sh", "-c", line], cwd=place, env=environment(), capture_output=True, text=True, timeout=60)
    refused(done, CANNOT, "torpor ", "from another")


def test_the_first_process(place: Path) -> None:
    """It is an ancestor of torpor, and of everything."""
    refused(torpor("checkpoint", "1", "-o", place / "image"), CANNOT, "pid 1: ", "torpor runs under it")


def test_a_program_that_is_being_traced(program: int, place: Path) -> None:
    tracer = subprocess.Popen([sys.executable, "-c", TRACER, str(program)], stdout=subprocess.PIPE, text=True)
    try:
        assert tracer.stdout
        assert tracer.stdout.readline().strip() == "0"
        said = (f"pid {program}: ", f"traced by process {tracer.pid}", "end that debugger")
        refused(torpor("checkpoint", str(program), "-o", place / "image"), CANNOT, *said)
        refused(torpor("check", str(program)), CANNOT, *said)
        goes_on(program, tracer=tracer.pid)
    finally:
        tracer.kill()
        tracer.communicate()


def test_a_program_of_another_user() -> None:
    if os.geteuid():
        refused(torpor("check", "1"), CANNOT if os.getppid() == 1 else NO_PERMISSION, "pid 1: ")
        return
    with altered.running(["/bin/sh", "-c", "while :; do :; done"], wait=False) as pid, Lab(ORDINARY) as lab:
        for argv in (["checkpoint", str(pid), "-o", str(lab.directory / "image")], ["check", str(pid)]):
            refused(as_ordinary(lab, *argv), NO_PERMISSION, f"pid {pid}: ", "as the user whose process it is, or as root")
        assert not (lab.directory / "image").exists()
        goes_on(pid)


def as_ordinary(lab: Lab, *argv: str) -> subprocess.CompletedProcess[str]:
    """`torpor ARGV`, run by an ordinary user."""
    return subprocess.run(
        [*lab.torpor, *argv], env=lab.environment, cwd=lab.directory, user=lab.uid, group=lab.uid, extra_groups=[],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


# --- where to save it -------------------------------------------------------------------------------------------------


def test_an_output_that_is_a_directory(program: int, place: Path) -> None:
    refused(torpor("checkpoint", str(program), "-o", place), FAILED, str(place), "directory")
    refused(torpor("checkpoint", str(program), "-o", f"{place}/"), FAILED, str(place), "name a file")


def test_an_output_in_no_directory(program: int, place: Path) -> None:
    refused(torpor("checkpoint", str(program), "-o", place / "no" / "image"), FAILED, "No such file or directory")
    refused(torpor("checkpoint", str(program), "-o", "/dev/null/image"), FAILED, "Not a directory")
    refused(torpor("checkpoint", str(program), "-o", place / ("x" * 300)), FAILED, "File name too long")


def test_an_output_that_takes_nothing(program: int, place: Path) -> None:
    refused(torpor("checkpoint", str(program), "-o", "/dev/full"), FAILED, "/dev/full", "No space left on device")
    with open("/dev/full", "wb") as full:
        done = torpor("checkpoint", str(program), "-o", "-", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    done.stdout = ""
    refused(done, FAILED, "standard output", "No space left on device")
    out, into = os.pipe()
    os.close(out)
    done = torpor("checkpoint", str(program), "-o", "-", capture_output=False, stdout=into, stderr=subprocess.PIPE)
    os.close(into)
    done.stdout = ""
    refused(done, FAILED, "standard output", "Broken pipe")


def test_an_output_that_may_not_grow(program: int, place: Path) -> None:
    def little() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))

    done = torpor("checkpoint", str(program), "-o", place / "image", "--kill", preexec_fn=little)
    refused(done, FAILED, str(place / "image"), "File too large", "ulimit -f")


@contextlib.contextmanager
def small_file_system(place: Path, size: str) -> Iterator[Path]:
    """A file system of so much space (as tmpfs(5) says it), for a `with` block."""
    mounted = place / "small"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(mounted)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_an_output_on_a_full_file_system(program: int, tmp_path: Path) -> None:
    with small_file_system(tmp_path, "64k") as mounted:
        (mounted / "before").write_bytes(b"x" * 20000)
        refused(torpor("checkpoint", str(program), "-o", mounted / "image", "--kill"), FAILED, "No space left on device")
        refused(torpor("checkpoint", str(program), "-o", mounted / "before"), FAILED, "No space left on device")
        assert (mounted / "before").read_bytes() == b"x" * 20000
        assert [path.name for path in mounted.iterdir()] == ["before"]


@pytest.mark.parametrize("size", ["2m", "7m", "11m"])
def test_an_output_that_becomes_full_while_memory_is_written(tmp_path: Path, size: str) -> None:
    ready = tmp_path / "ready"
    code = f"import os\nb = os.urandom(12 << 20)\nos.mkdir({str(ready)!r})\nwhile True: pass"
    with small_file_system(tmp_path, size) as mounted, altered.running([sys.executable, "-c", code], wait=False) as pid:
        deadline = time.monotonic() + 20
        while not ready.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        refused(torpor("checkpoint", str(pid), "-o", mounted / "image"), FAILED, "No space left on device")
        assert not list(mounted.iterdir())
        goes_on(pid)


def test_an_output_without_permission(tmp_path: Path) -> None:
    if os.geteuid():
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o555)
        with altered.running(["/bin/sh", "-c", "while :; do :; done"], wait=False) as pid:
            refused(torpor("checkpoint", str(pid), "-o", closed / "image"), NO_PERMISSION, "Permission denied")
            goes_on(pid)
        return
    busy = ["/bin/sh", "-c", "while :; do :; done"]
    with Lab(ORDINARY) as lab, altered.running(busy, wait=False, user=ORDINARY, group=ORDINARY, extra_groups=[]) as pid:
        done = as_ordinary(lab, "checkpoint", str(pid), "-o", "/root/image")
        refused(done, NO_PERMISSION, "/root/image", "Permission denied")
        done = as_ordinary(lab, "checkpoint", str(pid), "-o", "/proc/version")
        assert done.returncode in (FAILED, NO_PERMISSION), done.stderr
        goes_on(pid)
    assert not os.path.exists("/root/image")


def test_what_was_there_before_a_checkpoint_that_fails(program: int, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_text("another image")

    def little() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))

    refused(torpor("checkpoint", str(program), "-o", image, preexec_fn=little), FAILED, "File too large")
    assert image.read_text() == "another image"
    assert [path.name for path in tmp_path.iterdir()] == ["image"]


# --- what to restart --------------------------------------------------------------------------------------------------

READERS = (["verify"], ["inspect"], ["inspect", "--json"], ["restart", "--detach"])


def each_reader(image: Path | str, code: int, *words: str, **options: Any) -> None:
    for reader in READERS:
        if "stdin" in options:
            options["stdin"].seek(0)
        refused(torpor(*reader, image, **options), code, *words)


@pytest.mark.parametrize("part", [1, 7, 8, 9, 100, 0.3, 0.7, -1])
def test_an_image_cut_short(subject: Subject, tmp_path: Path, part: float) -> None:
    whole = subject.image.read_bytes()
    image = tmp_path / "image"
    image.write_bytes(whole[: part if isinstance(part, int) else int(part * len(whole))])
    each_reader(image, BAD_IMAGE, str(image), "cut short", "copy the image again")
    with open(image, "rb") as stream:
        each_reader("-", BAD_IMAGE, "standard input", "cut short", stdin=stream)


def _text(path: Path) -> None:
    path.write_text("#!/bin/sh\necho hello\n")


def _nothing(path: Path) -> None:
    path.write_bytes(b"")


def _zeros(path: Path) -> None:
    path.write_bytes(bytes(1 << 20))


@pytest.mark.parametrize("make, said", [(_text, "not an image"), (_nothing, "is empty"), (_zeros, "not an image")])
def test_what_is_no_image(tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    path = tmp_path / "image"
    make(path)
    each_reader(path, BAD_IMAGE, str(path), said)


def test_what_is_no_file(tmp_path: Path) -> None:
    each_reader(tmp_path / "image", FAILED, str(tmp_path / "image"), "No such file or directory", "check the path")
    each_reader(tmp_path, FAILED, str(tmp_path), "directory")
    each_reader("/dev/zero", BAD_IMAGE, "/dev/zero", "not an image")  # and not read to its end
    each_reader("/dev/null", BAD_IMAGE, "/dev/null", "is empty")
    if os.geteuid() == 0:
        with Lab(ORDINARY) as lab:
            closed = lab.directory / "image"
            closed.write_bytes(b"x")
            closed.chmod(0o600)
            os.chown(closed, 0, 0)
            for reader in READERS:
                refused(as_ordinary(lab, *reader, str(closed)), NO_PERMISSION, str(closed), "Permission denied")


def test_an_image_of_a_newer_format(tmp_path: Path, subject: Subject) -> None:
    items = altered.read(subject.image)
    header = items[0].record
    assert isinstance(header, Header)
    header.major += 1
    image = tmp_path / "image"
    altered.write(items, image)
    each_reader(image, BAD_IMAGE, str(image), "revision 2.0 is newer than 1.0", "newer torpor")
    # The same of a format that has nothing in common with this one but the first record's first words.
    image.write_bytes(samples.by_hand(samples.record(0x80000001, b"\x03\0\x07\0" + b"\xff" * 20), with_header=False))
    each_reader(image, BAD_IMAGE, str(image), "revision 3.7 is newer than 1.0")


@pytest.mark.parametrize("what", ["header and processes", "header", "processes"])
@pytest.mark.parametrize("name", ["arm", "aarch64", "ppc64le"])
def test_an_image_of_another_architecture(tmp_path: Path, subject: Subject, name: str, what: str) -> None:
    """It is refused where it cannot go on, and can be looked at everywhere."""
    number = next(number for number, known in ARCHITECTURES.items() if known == name)
    items = altered.read(subject.image)
    for item in items:
        if (isinstance(item.record, Header) and "header" in what) or (isinstance(item.record, Process) and "processes" in what):
            item.record.arch = number
    image = tmp_path / "image"
    altered.write(items, image)
    with Attempts(tmp_path) as attempts:  # which ends what should not have been restarted
        outcome = attempts.run("restart", "--detach", str(image))
    assert not outcome.fault()
    assert outcome.code in (CANNOT, BAD_IMAGE), outcome
    if what == "header and processes" and arch.by_image_id(number) is None:
        assert "another processor family" in outcome.err
        assert "restart it on a machine of that family" in outcome.err
        for reader in READERS[:-1]:
            assert torpor(*reader, image).returncode == 0


# --- how to say it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv, said",
    [
        (["freeze"], "torpor freeze: there is no such verb"),
        (["--version=3"], "there is no such verb"),
        (["checkpoint"], "-o FILE"),
        (["checkpoint", "1"], "-o FILE"),
        (["checkpoint", "-o"], "-o needs a value"),
        (["checkpoint", "-o", "image"], "PID"),
        (["checkpoint", "1", "2", "-o", "image"], "1 2"),
        (["checkpoint", "1", "-o", "image", "--kil"], "there is no option --kil"),
        (["checkpoint", "1", "-o", "image", "--kill=yes"], "--kill takes no value"),
        (["checkpoint", "1", "-o", "image", "--self"], "--self takes no PID"),
        (["checkpoint", "1", "-o", ""], "-o FILE"),
        (["restart"], "nothing"),
        (["restart", "a", "b"], "a b"),
        (["restart", "image", "--pids", "mine"], "same"),
        (["restart", "image", "--cpu", "fast"], "used"),
        (["restart", "image", "--pids"], "--pids needs a value"),
        (["inspect"], "nothing"),
        (["inspect", "--xml", "image"], "there is no option --xml"),
        (["verify"], "nothing"),
        (["check", "1", "2"], "1 2"),
    ],
)
def test_a_command_line_that_makes_no_sense(place: Path, argv: list[str], said: str) -> None:
    refused(torpor(*argv, cwd=place), USAGE, said)


def test_a_command_line_without_anything() -> None:
    done = torpor()
    assert (done.returncode, done.stderr) == (USAGE, "")
    assert done.stdout.startswith("usage: torpor VERB")


@pytest.mark.parametrize("verb", ["checkpoint", "restart", "inspect", "verify", "check"])
def test_help_is_no_error(verb: str) -> None:
    done = torpor(verb, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: torpor {verb}")
    assert "see torpor" not in done.stdout


def test_an_image_is_not_written_to_a_terminal(program: int) -> None:
    controller, terminal = os.openpty()
    try:
        done = torpor("checkpoint", str(program), "-o", "-", capture_output=False, stdout=terminal, stderr=subprocess.PIPE)
        done.stdout = ""
        refused(done, USAGE, "terminal", "redirect standard output")
    finally:
        os.close(controller)
        os.close(terminal)


# --- what comes in between --------------------------------------------------------------------------------------------


def test_an_interrupt_at_any_time(program: int, place: Path) -> None:
    """Ctrl-C: nothing has changed, and nothing is said that nobody understands."""
    rng = random.Random(SEED)
    print(f"TORPOR_TEST_SEED={SEED}")
    phase = place.parent / "phase"
    for phase_number in (1, 2, 3, 5):  # frozen, in an injection, behind it; 5 comes first, when a thread is being stopped
        for _ in range(8):
            phase.write_bytes(b"\0")
            command = [sys.executable, "-m", "torpor", "checkpoint", str(program), "-o", str(place / "image")]
            popen = subprocess.Popen(
                command, env=environment() | {"TORPOR_PHASE_FILE": str(phase)}, stderr=subprocess.PIPE, text=True
            )
            with open(phase, "r+b") as file, mmap.mmap(file.fileno(), 1) as now:
                deadline = time.monotonic() + 30
                while now[0] != phase_number and popen.poll() is None and time.monotonic() < deadline:
                    pass
            busy_until = time.perf_counter() + rng.random() * 0.002
            while time.perf_counter() < busy_until:
                pass
            popen.send_signal(signal.SIGINT)
            _, said = popen.communicate(timeout=30)
            assert "torpor/" not in said or "Traceback" not in said, said
            if (place / "image").exists():  # it came too late
                assert torpor("verify", place / "image").returncode == 0
                (place / "image").unlink()
            goes_on(program)


def test_a_program_without_room_for_the_calls_of_a_checkpoint(place: Path) -> None:
    """It goes on, although torpor has come as far as to run code in it."""
    code = "import resource as r; r.setrlimit(r.RLIMIT_AS, (4096, 4096))\nwhile True: pass"
    with altered.running([sys.executable, "-c", code], wait=False) as pid:
        goes_on(pid)
        time.sleep(0.2)
        done = torpor("checkpoint", str(pid), "-o", place / "image", "--kill")
        goes_on(pid)
        refused(done, CANNOT, f"pid {pid}: memory", "ulimit -v")


def test_a_process_killed_while_it_is_being_saved(tmp_path: Path) -> None:
    """The first process of the tree is being written when the second is killed; it goes on, and what was written is no image."""
    code = "import os\nb = os.urandom(16 << 20)\nos.fork()\nwhile True: pass"
    with altered.running([sys.executable, "-c", code], wait=False) as pid:
        deadline = time.monotonic() + 20
        while len(tree := [pid, *descendants(pid)]) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        command = [sys.executable, "-m", "torpor", "checkpoint", str(pid), "-o", "-", "--kill"]  # what goes on does not stand still
        popen = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert popen.stdout is not None
        begun = popen.stdout.read(4096)  # the rest fills the pipe, and torpor waits
        time.sleep(0.5)
        os.kill(tree[1], signal.SIGKILL)
        rest, said = popen.communicate(timeout=60)
        assert popen.returncode == FAILED, said
        assert b"it was killed while it was being saved" in said, said
        assert said.count(b"\n") == 1, said
        (tmp_path / "image").write_bytes(begun + rest)
        refused(torpor("verify", tmp_path / "image"), BAD_IMAGE)
        goes_on(pid)

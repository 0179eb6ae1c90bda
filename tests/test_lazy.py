"""Lazy restarts: the program runs before its memory is there, does all it can with it meanwhile, and never reads anything wrong.

tests/programs/lazy.c checks its memory itself, and says how much of it was missing when it began.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import torpor
from tests.conftest import FULL, M32, SEED, SRC
from tests.torture.harness import compile_program, subreaper
from torpor.errors import TorporError
from torpor.image.format import Pages
from torpor.image.reader import Image
from torpor.lazy import server
from torpor.lazy.server import Turn
from torpor.lazy.space import Space
from torpor.linux import userfaultfd

MIB = 192
ORDINARY = 54321

refused = server.refusal() if os.geteuid() == 0 else None
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: an ordinary user has no lazy restart"),
    pytest.mark.skipif(refused is not None, reason=f"this kernel has no lazy restart: {refused and refused[0]}"),
    pytest.mark.timeout(120),
]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the test program, "lazy64" and, where gcc can, "lazy32"."""
    directory = tmp_path_factory.mktemp("lazy")
    compile_program("lazy", 64, directory)
    if os.uname().machine == "x86_64":
        compile_program("lazy", 32, directory)
    return directory


@pytest.fixture(autouse=True)
def adopted() -> Iterator[None]:
    """Orphans come to us, and are ended."""
    with subreaper():
        yield
        while True:
            try:
                if os.waitpid(-1, os.WNOHANG) == (0, 0):
                    for pid in children():
                        os.kill(pid, 9)
            except ChildProcessError:
                return
            time.sleep(0.005)


def children() -> list[int]:
    return [int(word) for word in Path("/proc/self/task", str(os.getpid()), "children").read_text().split()]


def wait_until(what: str, condition: object, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    assert callable(condition)
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.005)


class Saved:
    """A program that was checkpointed and killed, and will find `go`."""

    def __init__(self, place: Path, words: list[str]) -> None:
        self.place, self.image = place, place / "image"
        pid = os.fork()
        if pid == 0:
            os.setsid()
            null = os.open("/dev/null", os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(null, number)
            os.closerange(3, 4096)
            try:
                os.execv(words[0], words)
            finally:
                os._exit(127)
        wait_until("the program does not begin", lambda: (place / "ready").exists())
        torpor.checkpoint(pid, str(self.image), kill=True)
        os.waitpid(pid, 0)
        self.pid = pid
        (place / "go").touch()

    def command(self, *options: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(SRC)}
        words = [sys.executable, "-m", "torpor", "restart", str(self.image), "--lazy", *options]
        return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def restart(self, *options: str) -> tuple[int, str]:
        """Exit code and what was said."""
        command = self.command(*options)
        _, said = command.communicate(timeout=60)
        return command.returncode, said

    @property
    def said(self) -> str:
        """What the program itself said at its end; empty if it did not come to that."""
        file = self.place / "done"
        return file.read_text() if file.exists() else ""

    def chunks(self) -> list[tuple[Pages, int]]:
        """The chunks of the memory that comes late, with their offsets in the file."""
        with Image.open(str(self.image)) as image:
            return [(record, offset) for record, offset in image.chunks if isinstance(record, Pages) and record.length >= 1 << 20]

    def spoil(self, index: int) -> None:
        """Change a byte of a chunk, and nothing that says that it is so."""
        record, offset = self.chunks()[index]
        with self.image.open("r+b") as file:
            file.seek(offset + record.length - 5)
            (byte,) = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))


def saved(programs: Path, place: Path, action: str, *, bits: int = 64, mib: int = MIB) -> Saved:
    place.mkdir(exist_ok=True)
    return Saved(place, [str(programs / f"lazy{bits}"), action, str(mib), str(place)])


def is_good(program: Saved, outcome: tuple[int, str]) -> int:
    """The program was content; how many of its pages were missing when it began."""
    assert outcome[0] == 0, (outcome, program.said)
    missing, word = program.said.split(maxsplit=1)
    assert word == "good"
    return int(missing)


ACTIONS = ["nothing", "backwards", "fork", "mremap", "munmap", "dontneed", "free", "mprotect", "exec", "read", "lock"]


@pytest.mark.parametrize("action", ACTIONS)
def test_whatever_it_does(programs: Path, tmp_path: Path, action: str) -> None:
    """Each change to an address space most of whose memory is still to come."""
    program = saved(programs, tmp_path / "place", action)
    missing = is_good(program, program.restart())
    assert missing > MIB * 256 // 2, "it was not lazy"


@pytest.mark.parametrize("action", ["mremap", "fork"])
def test_32_bits(programs: Path, tmp_path: Path, action: str) -> None:
    if not (programs / "lazy32").exists():
        pytest.skip(f"no 32-bit programs on {os.uname().machine} (needs gcc {' '.join(M32)})")
    program = saved(programs, tmp_path / "place", action, bits=32)
    assert is_good(program, program.restart()) > MIB * 256 // 2


def test_threads_that_move_memory(programs: Path, tmp_path: Path) -> None:
    """Eight threads do nothing but that. Where the order cannot be known the program is ended, and never reads anything wrong."""
    program = saved(programs, tmp_path / "place", "threads")
    code, said = program.restart()
    assert "holds" not in program.said
    assert (code, program.said[-4:]) == (0, "good") or (code == 1 and "in the same instant" in said and not program.said), said


def test_in_a_namespace(programs: Path, tmp_path: Path) -> None:
    program = saved(programs, tmp_path / "place", "fork", mib=64)
    is_good(program, program.restart("--pids", "namespace"))


def test_a_process_that_is_left_behind(programs: Path, tmp_path: Path) -> None:
    """The first process has ended at once; its child has its memory all the same, also when the command would be done."""
    program = saved(programs, tmp_path / "place", "leave")
    assert program.restart()[0] == 0
    wait_until("the child has not come to its end", lambda: program.said)
    assert program.said.endswith("good")


def test_detached_and_from_python(programs: Path, tmp_path: Path) -> None:
    program = saved(programs, tmp_path / "a", "nothing")
    code, said = program.restart("--detach")
    assert (code, said.count("\n")) == (0, 1), said
    wait_until("it has not come to its end", lambda: program.said)
    assert program.said.endswith("good")
    program = saved(programs, tmp_path / "b", "nothing", mib=64)
    assert torpor.restart(str(program.image), lazy=True).wait() == 0


def test_python_with_threads(tmp_path: Path) -> None:
    source = """
import hashlib, os, sys, threading, time
place, = sys.argv[1:]
data = [os.urandom(1 << 16) for _ in range(500)]
expected = [hashlib.sha256(part).digest() for part in data]
open(place + "/ready", "w").close()
while not os.path.exists(place + "/go"):
    time.sleep(0.001)
wrong = []
def look(mine):
    for _ in range(3):
        wrong.extend(i for i in mine if hashlib.sha256(data[i]).digest() != expected[i])
threads = [threading.Thread(target=look, args=(range(first, 500, 4),)) for first in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
sys.exit(len(wrong) > 0)
"""
    program = Saved(tmp_path, [sys.executable, "-I", "-S", "-c", source, str(tmp_path)])
    assert program.restart()[0] == 0


@pytest.mark.parametrize("options", [(), ("--pids", "namespace")])
def test_damage_is_found_late(programs: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    """The program is ended with a sentence, and has not seen what should not be."""
    program = saved(programs, tmp_path / "place", "backwards")
    program.spoil(len(program.chunks()) // 2)
    code, said = program.restart(*options)
    assert code == torpor.BadImage.exit_code, said
    assert "the hash of the data differs" in said and "the program was ended" in said
    assert program.said == ""
    assert not [pid for pid in children() if Path(f"/proc/{pid}/comm").read_text() == "lazy64\n"]


def test_damage_where_nobody_waits(programs: Path, tmp_path: Path) -> None:
    program = saved(programs, tmp_path / "place", "sleep")
    program.spoil(-1)
    code, said = program.restart("--detach")
    assert code == 0, said
    wait_until("it still runs", lambda: not os.path.exists(f"/proc/{program.pid}") or not running(program.pid))
    assert program.said == ""


def test_damage_is_told_to_python(programs: Path, tmp_path: Path) -> None:
    program = saved(programs, tmp_path / "place", "sleep")
    program.spoil(-1)
    with pytest.raises(torpor.BadImage, match="the program was ended"):
        torpor.restart(str(program.image), lazy=True).wait()


def test_damage_before_it_runs(programs: Path, tmp_path: Path) -> None:
    """What is needed at once is verified before a process is made."""
    program = saved(programs, tmp_path / "place", "nothing", mib=8)
    with Image.open(str(program.image)) as image:
        offset = next(offset for record, offset in image.chunks if record.length < 1 << 20)
    with program.image.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(7) + b"\xff")
    code, said = program.restart()
    assert code == torpor.BadImage.exit_code and "the program was ended" not in said, said


def test_image_cut_short_meanwhile(programs: Path, tmp_path: Path) -> None:
    program = saved(programs, tmp_path / "place", "backwards", mib=2 * MIB)
    command = program.command()
    assert command.stderr is not None and "memory follow" in command.stderr.readline()
    os.truncate(program.image, 1 << 20)
    _, said = command.communicate(timeout=60)
    if command.returncode == 0:
        pytest.skip("everything had come already")
    assert command.returncode == torpor.BadImage.exit_code and "cut short" in said, said
    assert "holds" not in program.said


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@contextmanager
def served(program: Saved, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A lazy restart, as soon as the program runs, and the guard's process id."""
    command = program.command(*options)
    assert command.stderr is not None and "memory follow" in command.stderr.readline()
    try:
        yield command, guard_of(command.pid)
    finally:
        command.kill()
        command.communicate()


def guard_of(pid: int) -> int:
    try:
        for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if Path(f"/proc/{each}/comm").read_text() == "torpor-guard\n":
                return int(each)
    except OSError:
        pass
    return 0


@pytest.mark.parametrize("turn", range(40 if FULL else 6))
def test_the_server_is_killed(programs: Path, tmp_path: Path, turn: int) -> None:
    """At whatever instant: the program is ended, or had everything; it never sees zeros, nor waits for ever."""
    rng = random.Random(f"{SEED} {turn}")
    program = saved(programs, tmp_path / "place", "backwards")
    command = program.command()
    time.sleep(rng.uniform(0.03, 0.3))
    command.kill()
    command.communicate(timeout=20)
    wait_until("it neither ends nor comes to its end", lambda: not running(program.pid), 20)
    assert program.said == "" or program.said.endswith("good"), program.said


def test_the_server_is_killed_while_it_is_needed(programs: Path, tmp_path: Path) -> None:
    program = saved(programs, tmp_path / "place", "fork")
    with served(program) as (command, _):
        os.kill(command.pid, signal.SIGSTOP)
        # For a page, for the news of a fork to be read, or for a child that does.
        waits = {"handle_userfault", "userfaultfd_event_wait_completion", "do_wait"}
        wait_until("it still runs", lambda: Path(f"/proc/{program.pid}/wchan").read_text() in waits)
        command.kill()
        assert command.stderr is not None
        wait_until("it still waits", lambda: not running(program.pid), 20)
        assert "the process that brings it was killed" in command.stderr.read()
    assert program.said == ""


def test_the_guard_is_killed(programs: Path, tmp_path: Path) -> None:
    program = saved(programs, tmp_path / "place", "fork")
    with served(program) as (command, guard):
        os.kill(guard, signal.SIGKILL)
        command.wait(60)
        assert command.returncode == 0
    assert program.said.endswith("good")


def test_an_ordinary_user_is_refused(programs: Path, tmp_path: Path) -> None:
    program = saved(programs, tmp_path / "place", "nothing", mib=8)
    for each in (program.image, program.place, tmp_path, *tmp_path.parents[:2]):
        os.chmod(each, 0o755)
    words = ["restart", str(program.image), "--lazy"]
    code = f"import sys; sys.path.insert(0, {str(SRC)!r}); from torpor.cli import main; sys.exit(main({words!r}))"
    interpreter = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
    done = subprocess.run(
        [interpreter, "-c", code], user=ORDINARY, group=ORDINARY, extra_groups=[], capture_output=True, text=True, env={}, cwd="/"
    )
    assert done.returncode == torpor.NoPermission.exit_code, done.stderr
    assert "userfaultfd" in done.stderr and "leave --lazy away" in done.stderr


@pytest.mark.parametrize(("error", "kind"), [(errno.EPERM, torpor.NoPermission), (errno.ENOSYS, torpor.Unsupported)])
def test_a_kernel_that_will_not(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, kind: type[torpor.TorporError]
) -> None:
    """What an older kernel, or one with another policy, answers; no such kernel is at hand."""
    program = saved(programs, tmp_path / "place", "nothing", mib=8)

    def answer() -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("torpor.linux.userfaultfd.create", answer)
    with pytest.raises(kind, match="leave --lazy away"):
        torpor.restart(str(program.image), lazy=True)


def test_it_cannot_be_saved_before_its_memory_is_there(programs: Path, tmp_path: Path) -> None:
    program = saved(programs, tmp_path / "place", "fork")
    with served(program) as (command, _):
        os.kill(command.pid, signal.SIGSTOP)
        with pytest.raises(torpor.Unsupported, match="lazy restart"):
            torpor.checkpoint(program.pid, str(tmp_path / "other"))
        os.kill(command.pid, signal.SIGCONT)
        command.wait(60)
    assert program.said.endswith("good")


REMAP, UNMAP, FORK = userfaultfd.REMAP, userfaultfd.UNMAP, userfaultfd.FORK
ORDERS = {
    # (kind, first address, target or end, bytes), as they were told; whether their order may have been another
    "one after the other": ([(REMAP, 0x1000, 0x9000, 0x2000), (UNMAP, 0x5000, 0x6000, 0)], False),
    "what was left behind is unmapped": ([(REMAP, 0x1000, 0x9000, 0x2000), (UNMAP, 0x1000, 0x3000, 0)], False),
    "to where something was": ([(REMAP, 0x1000, 0x9000, 0x2000), (UNMAP, 0xA000, 0xB000, 0)], True),
    "moved twice": ([(REMAP, 0x1000, 0x9000, 0x2000), (REMAP, 0x9000, 0x5000, 0x2000)], True),
    "another has grown there and shrunk again": ([(UNMAP, 0x1000, 0x2000, 0), (REMAP, 0x1000, 0x9000, 0x2000)], True),
    "the same, told in time": ([(REMAP, 0x1000, 0x9000, 0x2000), (UNMAP, 0x2000, 0x3000, 0)], True),
    "two unmap": ([(UNMAP, 0x1000, 0x2000, 0), (UNMAP, 0x1000, 0x3000, 0)], False),
    "a fork meanwhile": ([(FORK, 7, 0, 0), (UNMAP, 0x1000, 0x2000, 0)], True),
}


@pytest.mark.parametrize("name", ORDERS)
def test_what_happens_in_one_instant(name: str) -> None:
    """Where the order matters, and several threads may have done it, the program is ended; alone one is believed."""
    told, matters = ORDERS[name]
    messages = [userfaultfd.Message(*each) for each in told]
    for alone in (True, False):
        space = Space(5, [(0x1000, 0x3000, 3, 0)], lambda: True)
        if matters and not alone:
            with pytest.raises(TorporError, match="in the same instant"):
                space.apply(messages, alone)
            assert space.of_chunk(3) == [(0x1000, 0x3000, 3, 0)]
        else:
            space.apply(messages, alone)


def test_nobody_goes_on_after_a_problem() -> None:
    """Once somebody could not follow a change, pages put anywhere could be the wrong ones."""
    turn = Turn()
    with pytest.raises(OSError, match="No space left"), turn:
        raise OSError(28, "No space left on device")
    with pytest.raises(TorporError, match="cannot be put into place: No space left"), turn:
        pytest.fail("it was given to another one")

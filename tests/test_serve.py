"""torpor serve: what the command does with --server, and what becomes of programs when a client, a request or the server dies."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import altered
from tests.serving import Server, ask, await_true, connect, gone, raw
from tests.test_api import COUNTER, await_lines, start, subreaper
from tests.test_bad_input import FAILED, goes_on, refused, torpor

assert subreaper  # of every test here, too

BUSY = ["/bin/sh", "-c", "while :; do :; done"]
LARGE = [sys.executable, "-c", "import os\nb = os.urandom(32 << 20)\nopen('/dev/null').read()\nwhile True: pass"]
"""With more memory than any pipe holds."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "socket") as server:
        yield server


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "place"
    directory.mkdir()
    return directory


@pytest.fixture
def large() -> Iterator[int]:
    """A busy program of 32 MiB, unharmed at the end."""
    with altered.running(LARGE, wait=False) as pid:
        await_true("it has its memory", lambda: int(Path(f"/proc/{pid}/statm").read_text().split()[1]) > 32 << 8)
        time.sleep(0.1)  # and nothing open any more
        yield pid
        goes_on(pid)


# --- the command


def test_a_checkpoint_is_the_users_and_lies_where_he_stands(server: Server, place: Path) -> None:
    with altered.running(BUSY, wait=False) as pid:
        done = torpor("checkpoint", str(pid), "-o", "run.torpor", "--server", str(server.path), cwd=place)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        goes_on(pid)
    image = place / "run.torpor"
    assert image.stat().st_mode & 0o777 == 0o600 and image.stat().st_uid == os.geteuid()
    assert list(place.iterdir()) == [image]
    with_it = torpor("verify", "run.torpor", "--server", str(server.path), cwd=place)
    without = torpor("verify", "run.torpor", cwd=place)
    assert with_it.stdout == without.stdout and "run.torpor: complete; 1 process, 1 thread" in without.stdout


def test_an_image_that_needs_an_earlier_one(server: Server, place: Path, large: int) -> None:
    """--parent by a relative name, too; what it refuses, it refuses in the same words."""
    command = ("checkpoint", str(large), "-o")
    assert torpor(*command, "first", "--server", str(server.path), cwd=place).returncode == 0
    assert torpor(*command, "second", "--parent", "first", "--server", str(server.path), cwd=place).returncode == 0
    assert (place / "second").stat().st_size < (place / "first").stat().st_size / 4
    assert torpor("verify", "second", "--server", str(server.path), cwd=place).returncode == 0
    for more in (("--parent", "none"), ("--compress", "most")):
        alone = torpor(*command, "third", *more, cwd=place)
        served = torpor(*command, "third", *more, "--server", str(server.path), cwd=place)
        assert (alone.returncode, alone.stderr) == (served.returncode, served.stderr)
        assert served.returncode


def test_standard_streams_are_the_commands_own(server: Server, place: Path) -> None:
    image = place / "image"
    with altered.running(BUSY, wait=False) as pid, image.open("wb") as out:
        command = ("checkpoint", str(pid), "-o", "-", "--server", str(server.path))
        done = torpor(*command, capture_output=False, stdout=out, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (0, "")
    with image.open("rb") as file:
        said = torpor("verify", "-", "--server", str(server.path), stdin=file)
    assert "standard input: complete" in said.stdout, said


def test_everything_is_said_as_without_a_server(server: Server, place: Path) -> None:
    (place / "no image").write_text("no image")
    commands: list[tuple[tuple[str, ...], int]] = [
        (("check",), 0),
        (("check", "4194304"), 1),
        (("checkpoint", "4194304", "-o", "image"), 1),
        (("checkpoint", "1", "-o", "image"), 4),
        (("checkpoint", str(os.getpid()), "-o", "/dev/null/image"), 4),  # the server runs under it as well
        (("verify", "no image"), 5),
        (("verify", "none"), 1),
        (("restart", "no image", "--detach"), 5),
        (("restart", "no image", "--detach", "--pids", "some"), 2),
        (("checkpoint", "one", "-o", "image"), 2),
    ]
    for command, code in commands:
        alone, served = torpor(*command, cwd=place), torpor(*command, "--server", str(server.path), cwd=place)
        assert (alone.returncode, alone.stdout, alone.stderr) == (served.returncode, served.stdout, served.stderr), command
        assert served.returncode == code, (command, served.stderr)


def test_what_a_server_cannot_do(server: Server, place: Path) -> None:
    refused(torpor("restart", "image", "--server", str(server.path), cwd=place), 2, "say --detach")
    refused(torpor("checkpoint", "--self", "-o", "image", "--server", str(server.path), cwd=place), 2, "--self takes no")
    refused(torpor("check", "--server", "none", cwd=place), FAILED, "none: no server listens there", "torpor serve none")
    (place / "file").write_text("")
    refused(torpor("check", "--server", "file", cwd=place), FAILED, "file: no server listens there")
    refused(torpor("check", "--server", "x" * 200, cwd=place), FAILED, "too long")


def test_the_client_loads_next_to_nothing(server: Server, place: Path) -> None:
    """What it loads decides what a small checkpoint costs."""
    with altered.running(BUSY, wait=False) as pid:
        words = ["checkpoint", str(pid), "-o", str(place / "image"), "--server", str(server.path)]
        code = f"import sys; from torpor.cli import main; code = main({words!r}); print(*sys.modules); sys.exit(code)"
        command = [sys.executable, "-S", "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=altered.environment())
    ours = {name for name in done.stdout.split() if name.startswith("torpor.")}
    assert ours == {
        "torpor.cli", "torpor.errors", "torpor.cli.arguments", "torpor.cli.checkpoint", "torpor.cli.progress", "torpor.serve",
        "torpor.serve.client", "torpor.serve.plain",
    }  # fmt: skip
    assert not {"ctypes", "json", "socket", "enum", "re", "struct", "signal"} & set(done.stdout.split())


# --- a restarted program


def test_a_restarted_program_outlives_the_server(tmp_path: Path) -> None:
    out, image = tmp_path / "out", tmp_path / "image"
    pid = start(COUNTER, str(out))
    await_lines(out, 5)
    with Server(tmp_path / "socket", start_new_session=True) as server:
        assert torpor("checkpoint", str(pid), "-o", str(image), "--kill", "--server", str(server.path)).returncode == 0
        os.waitpid(pid, 0)
        command = ("restart", str(image), "--detach", "--server", str(server.path))
        done = torpor(*command)
        assert done.returncode == 0 and int(done.stdout) > 0, done
        keeper = int(Path(f"/proc/{done.stdout.strip()}/stat").read_text().rpartition(")")[2].split()[1])
        links = [os.readlink(f"/proc/{keeper}/fd/{fd}") for fd in os.listdir(f"/proc/{keeper}/fd")]
        assert not [link for link in links if "socket" in link], "it holds what is the server's"
        os.killpg(server.process.pid, signal.SIGTERM)  # as a terminal or an init does
        assert server.process.wait(timeout=20) == 0
    seen = len(out.read_text().splitlines())
    assert seen < 40
    lines = await_lines(out, 40)
    assert [line.split()[0] for line in lines] == [str(number) for number in range(40)]


# --- deaths


def blocked(server: Server, pid: int, *options: str) -> tuple[subprocess.Popen[bytes], int, int]:
    """A checkpoint of `pid` that cannot go on until its output is read: the client, the pipe, the process that carries it out."""
    worker = server.spare()
    out, into = os.pipe()
    command = [sys.executable, "-m", "torpor", "checkpoint", str(pid), "-o", "-", "--server", str(server.path), *options]
    client = subprocess.Popen(command, stdout=into, stderr=subprocess.PIPE, env=altered.environment())
    os.close(into)
    await_true("it writes", lambda: "pipe_write" in wchans(worker))
    return client, out, worker


def wchans(pid: int) -> str:
    """In which functions of the kernel the threads of a process wait."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
        return " ".join(Path(f"/proc/{pid}/task/{tid}/wchan").read_text() for tid in threads)
    except OSError:
        return ""


def finish(client: subprocess.Popen[bytes], out: int) -> tuple[int, bytes, bytes]:
    """Read the output to its end: exit code, image, what was said."""
    with open(out, "rb") as file:
        image = file.read()
    _, said = client.communicate(timeout=60)
    return client.returncode, image, said


@pytest.mark.parametrize("options", [(), ("--kill",)])
def test_a_client_that_goes_gives_its_checkpoint_up(server: Server, large: int, options: tuple[str, ...]) -> None:
    client, out, worker = blocked(server, large, *options)
    client.kill()
    client.communicate()
    await_true("it is given up", lambda: gone(worker))
    os.close(out)
    goes_on(large)
    server.spare()


def test_a_client_that_goes_leaves_no_file(server: Server, place: Path) -> None:
    """It is written to the disk already, but not complete."""
    (place / "before").write_text("before")
    code = "import os\nb = os.urandom(1 << 28)\nos.close(os.open('/dev/null', 0))\nwhile True: pass"
    with altered.running([sys.executable, "-c", code], wait=False) as pid:
        await_true("it has its memory", lambda: int(Path(f"/proc/{pid}/statm").read_text().split()[1]) > 1 << 16)
        for image in ("new", "before"):
            worker = server.spare()
            with connect(server.path) as connection:
                line = f'{{"torpor": 1, "verb": "checkpoint", "pid": {pid}, "output": "{place}/{image}", "progress": true}}\n'
                connection.sendall(line.encode())
                assert b"progress" in connection.recv(1000)
            await_true("it is given up", partial(gone, worker))
            goes_on(pid)
            assert [path.name for path in place.iterdir()] == ["before"]
            assert (place / "before").read_text() == "before"


def test_a_client_that_goes_gives_a_restart_up(server: Server, tmp_path: Path) -> None:
    """While nothing has been made: here it waits for the image."""
    os.mkfifo(tmp_path / "fifo")
    worker = server.spare()
    with connect(server.path) as connection:
        connection.sendall(f'{{"torpor": 1, "verb": "restart", "source": "{tmp_path}/fifo"}}\n'.encode())
        await_true("it waits for the image", lambda: "wait_for_partner" in wchans(worker))
    await_true("it is given up", partial(gone, worker))


def test_a_killed_request_concerns_no_other(server: Server, large: int, place: Path) -> None:
    first, out, worker = blocked(server, large, "--kill")
    with altered.running(BUSY, wait=False) as other:  # meanwhile
        answer = ask(server.path, verb="checkpoint", pid=other, output=str(place / "image"))
        assert answer["exit_code"] == 0, answer
        goes_on(other)
    assert torpor("verify", place / "image").returncode == 0
    os.kill(worker, signal.SIGKILL)
    code, _, said = finish(first, out)
    assert code == FAILED and b"the process that carried it out has died (signal 9)" in said, said
    goes_on(large)
    assert ask(server.path, verb="check", pid=large)["exit_code"] == 0


def test_two_of_the_same_program(server: Server, large: int, place: Path) -> None:
    client, out, _ = blocked(server, large, "--kill")
    answer = ask(server.path, verb="checkpoint", pid=large, output=str(place / "image"))
    assert answer["exit_code"] == 4 and "traced by process" in answer["obstacles"][0]["reason"], answer
    client.kill()
    finish(client, out)
    assert list(place.iterdir()) == []


def test_the_servers_end_gives_up_what_is_under_way(server: Server, large: int) -> None:
    client, out, worker = blocked(server, large)
    server.process.terminate()
    assert server.process.wait(timeout=20) == 0
    code, _, said = finish(client, out)
    assert code == FAILED and b"given up, for the server ends" in said, said
    assert gone(worker) and not server.path.exists()
    goes_on(large)


def test_a_killed_server_leaves_what_is_under_way_to_be_finished(server: Server, large: int, place: Path) -> None:
    client, out, _ = blocked(server, large)
    server.process.kill()
    server.process.wait()
    code, image, said = finish(client, out)
    assert (code, said) == (0, b"")
    (place / "image").write_bytes(image)
    assert torpor("verify", place / "image").returncode == 0
    goes_on(large)
    assert server.path.exists()
    with Server(server.path) as next_one:  # replaces what it has left
        assert ask(next_one.path, verb="check", pid=large)["exit_code"] == 0
    assert not server.path.exists()


def test_a_killed_spare_is_replaced(server: Server) -> None:
    for _ in range(2):
        spare = server.spare()
        os.kill(spare, signal.SIGKILL)
        await_true("it is dead", partial(gone, spare))
        assert ask(server.path, verb="check")["exit_code"] == 0


def test_many_at_once_and_nothing_is_left_of_them(server: Server) -> None:
    with altered.running(BUSY, wait=False) as pid:
        server.spare()
        before = len(os.listdir(f"/proc/{server.process.pid}/fd"))
        line = f'{{"torpor": 1, "verb": "check", "pid": {pid}}}\n'.encode()
        connections = [connect(server.path) for _ in range(100)]  # more than are carried out at a time
        for connection in reversed(connections):
            connection.sendall(line)
        for connection in connections:
            with connection:
                assert b'"exit_code": 0' in connection.recv(1000)
        server.spare()
        await_true("all is closed", lambda: len(os.listdir(f"/proc/{server.process.pid}/fd")) == before)


# --- the socket


def test_only_a_stale_socket_is_replaced(server: Server, place: Path) -> None:
    refused(torpor("serve", server.path), FAILED, "a server listens there already")
    assert ask(server.path, verb="check")["exit_code"] == 0
    assert server.path.stat().st_mode & 0o777 == 0o600
    (place / "file").write_text("mine")
    refused(torpor("serve", place / "file"), FAILED, "no socket")
    assert (place / "file").read_text() == "mine"
    (place / "link").symlink_to(place / "file")
    refused(torpor("serve", place / "link"), FAILED, "no socket")
    refused(torpor("serve", place / "none" / "socket"), FAILED, "No such file or directory")
    refused(torpor("serve", place / ("x" * 100)), 2, "at most 107 bytes")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
        stale.bind(str(place / "stale"))
    with Server(place / "stale") as second:
        assert ask(second.path, verb="check")["exit_code"] == 0
    assert sorted(path.name for path in place.iterdir()) == ["file", "link"]


def test_a_socket_that_has_become_anothers_is_left_alone(server: Server) -> None:
    server.path.unlink()
    server.path.write_text("of somebody else")
    server.process.terminate()
    assert server.process.wait(timeout=20) == 0
    assert server.path.read_text() == "of somebody else"


def test_progress_that_nobody_reads_holds_nothing_up(server: Server, large: int) -> None:
    line = f'{{"torpor": 1, "verb": "checkpoint", "pid": {large}, "output": "/dev/null", "progress": true}}\n'
    answers: list[Any] = raw(server.path, line.encode())
    assert answers[-1]["exit_code"] == 0
    assert all(0 < done <= total for done, total in (answer["progress"] for answer in answers[:-1])) and len(answers) > 1



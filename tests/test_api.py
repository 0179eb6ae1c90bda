"""The public names, used as a program would use them: save, restart, save oneself, look into an image."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import torpor
from tests.conftest import SRC
from torpor.tasks import freeze

COUNTER = """
import os, sys, time
with open(sys.argv[1], "a", buffering=1) as out:
    for number in range(40):
        print(number, os.getpid(), file=out)
        time.sleep(0.05)
sys.exit(7)
"""

SELF = """
import sys
import torpor
with open(sys.argv[1], "a", buffering=1) as out:
    print("before", file=out)
    answer = torpor.checkpoint_self(sys.argv[2])
    print("restarted" if answer == 0 else "goes on", file=out)
"""


def start(program: str, *arguments: str) -> int:
    """Run a Python program in a session of its own, with nothing open that is ours; its process id."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            null = os.open("/dev/null", os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(null, number)
            os.closerange(3, 4096)
            os.execve(sys.executable, [sys.executable, "-c", program, *arguments], {**os.environ, "PYTHONPATH": str(SRC)})
        finally:
            os._exit(127)
    return pid


def await_lines(path: Path, count: int) -> list[str]:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if path.exists() and len(lines := path.read_text().splitlines()) >= count:
            return lines
        time.sleep(0.01)
    raise AssertionError(f"{path} has not {count} lines: {path.read_text() if path.exists() else 'it is not there'}")


def test_save_kill_and_restart(tmp_path: Path) -> None:
    out, image = tmp_path / "out", tmp_path / "image"
    pid = start(COUNTER, str(out))
    await_lines(out, 5)
    torpor.checkpoint(pid, image, kill=True)
    os.waitpid(pid, 0)
    before = len(out.read_text().splitlines())
    time.sleep(0.2)
    assert len(out.read_text().splitlines()) == before
    program = torpor.restart(image)
    assert os.waitstatus_to_exitcode(program.wait()) == 7
    assert out.read_text().splitlines() == [f"{number} {pid}" for number in range(40)]


def test_the_program_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pid = start(COUNTER, str(out))
    for number in range(3):
        await_lines(out, 5 * (number + 1))
        torpor.checkpoint(pid, tmp_path / f"image{number}")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert out.read_text().splitlines() == [f"{number} {pid}" for number in range(40)]


def test_an_image_can_be_opened(tmp_path: Path) -> None:
    pid = start(COUNTER, str(tmp_path / "out"))
    await_lines(tmp_path / "out", 2)
    torpor.checkpoint(pid, tmp_path / "image", kill=True)
    os.waitpid(pid, 0)
    with torpor.open_image(tmp_path / "image") as image:
        image.verify_data()
        assert image.header.host == os.uname().nodename


def test_a_program_saves_itself(tmp_path: Path) -> None:
    """R-A1: the call returns twice, above 0 in the program that goes on and 0 in the restarted one."""
    out, image = tmp_path / "out", tmp_path / "image"
    pid = start(SELF, str(out), str(image))
    assert os.waitpid(pid, 0)[1] == 0
    assert out.read_text().splitlines() == ["before", "goes on"]
    program = torpor.restart(image, allow_changed=[str(out)])
    assert program.wait() == 0
    assert out.read_text().splitlines() == ["before", "goes on", "restarted"]


def test_a_shell_script_saves_itself(tmp_path: Path) -> None:
    out, image = tmp_path / "out", tmp_path / "image"
    script = f"echo before >>{out}; {sys.executable} -m torpor checkpoint --self -o {image}; echo $? >>{out}"
    pid = start(f"import os; os.execvp('bash', ['bash', '-c', {script!r}])")
    assert os.waitpid(pid, 0)[1] == 0
    assert out.read_text().splitlines() == ["before", "0"]
    assert torpor.restart(image).wait() == 0
    assert out.read_text().splitlines() == ["before", "0", "3"]


def test_every_error_names_object_reason_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(torpor.TorporError) as caught:
        torpor.checkpoint(4194304, tmp_path / "image")
    (obstacle,) = caught.value.obstacles
    assert (obstacle.pid, obstacle.object) == (4194304, "process") and obstacle.reason and obstacle.remedy
    assert not list(tmp_path.iterdir())


def test_import_costs_next_to_nothing() -> None:
    listing = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(SRC)!r}); import torpor; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert [name for name in listing if name.startswith("torpor")] == ["torpor"]


@pytest.fixture(autouse=True)
def subreaper() -> None:
    """PID 1 may reap late, and a restart finds the id taken: what a killed tree leaves is ours to reap."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


SPAWNS = """
import os, sys
wait_for_writer = [(os.POSIX_SPAWN_OPEN, 5, sys.argv[1], os.O_RDONLY, 0)]
spawned = os.posix_spawn("/bin/true", ["true"], {}, file_actions=wait_for_writer)  # until then in vfork(2)
os.waitpid(spawned, 0)
sys.exit(7)
"""


def test_a_program_that_cannot_be_stopped_goes_on_unharmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the caller, who stays its tracer if it once became that, goes on too."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    pid = start(SPAWNS, str(fifo))
    end = time.monotonic() + 20
    while Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "D":
        assert time.monotonic() < end, "it is not in vfork"
        time.sleep(0.01)
    monkeypatch.setattr(freeze, "PATIENCE", 0.3)
    with pytest.raises(torpor.Unsupported, match="has been busy in the kernel"):
        torpor.checkpoint(pid, tmp_path / "image")
    assert not (tmp_path / "image").exists()
    fifo.write_bytes(b"")  # now somebody writes
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        assert time.monotonic() < end, "it does not go on"
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(ended[1]) == 7


def test_an_id_that_only_a_process_group_has(tmp_path: Path) -> None:
    """No process is to be seen under it, and yet the kernel gives it to none: a restart that is free to makes a namespace."""
    out = tmp_path / "out"
    null = subprocess.DEVNULL
    command = [sys.executable, "-c", COUNTER, str(out)]
    leader = subprocess.Popen(command, stdin=null, stdout=null, stderr=null, process_group=0)
    member = subprocess.Popen(["sleep", "60"], stdin=null, stdout=null, stderr=null, process_group=leader.pid)
    try:
        await_lines(out, 3)
        torpor.checkpoint(leader.pid, tmp_path / "image", kill=True)
        assert leader.wait() == -9
        assert not os.path.exists(f"/proc/{leader.pid}")
        with pytest.raises(torpor.Unsupported, match="process group"):
            torpor.restart(tmp_path / "image", pids="same")
        restarted = torpor.restart(tmp_path / "image")
        assert restarted.mode == "namespace"
        assert os.waitstatus_to_exitcode(restarted.wait()) == 7
        assert [line.split()[0] for line in await_lines(out, 40)] == [str(number) for number in range(40)]
    finally:
        leader.kill()
        leader.wait()
        member.kill()
        member.wait()

"""The program that fills every register, checkpointed by torpor itself, killed and restarted: it finds them as they were.

Each even seed uses all components that the CPU has, AMX tiles included, for which a new process must ask first.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.arch.x86_program import build
from tests.conftest import SRC
from torpor.linux import procfs

pytestmark = pytest.mark.usefixtures("torpor_runs")


@pytest.fixture(scope="module", params=[8, 4], ids=["64", "32"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("x86"), request.param)


def torpor(*arguments: str | Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torpor", *map(str, arguments)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(SRC)}, stdin=subprocess.DEVNULL)


def running(program: Path) -> int:
    """The id of the process that runs `program`."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for name in os.listdir("/proc"):
            try:
                if name.isdigit() and os.readlink(f"/proc/{name}/exe") == str(program):
                    return int(name)
            except OSError:
                continue
        time.sleep(0.005)
    raise AssertionError(f"{program} does not run")


def ignore_sigtrap() -> None:
    signal.signal(signal.SIGTRAP, signal.SIG_IGN)


@pytest.mark.parametrize("words", [[], ["untouched"]], ids=["touched", "untouched"])
@pytest.mark.parametrize("seed", [0, 2, 3, 6])
def test_every_register_after_a_restart(program: Path, tmp_path: Path, seed: int, words: list[str]) -> None:
    said, image = tmp_path / "said", tmp_path / "image"
    with said.open("wb") as out, (tmp_path / "complaints").open("wb") as err:
        command = [str(program), str(seed), str(seed), *words]
        first = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True, preexec_fn=ignore_sigtrap
        )
    while not said.stat().st_size:
        assert first.poll() is None, (tmp_path / "complaints").read_text()
        time.sleep(0.005)
    time.sleep(0.02)  # until it is in its loop
    assert torpor("checkpoint", str(first.pid), "-o", image, "--kill").wait(60) == 0
    first.wait(20)
    with torpor("restart", image) as restart:
        try:
            pid = running(program)
            with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
                time.sleep(0.02)
                deadline = time.monotonic() + 10
                while not procfs.status(pid).ignored >> signal.SIGTRAP - 1 & 1:  # the breakpoint behind making room resets it
                    assert time.monotonic() < deadline, "SIGTRAP is not ignored any more"
                memory.seek(int(said.read_text().split()[0], 16))  # where it wants to be told to go on
                memory.write(b"\1")
            assert restart.wait(20) == 0, (tmp_path / "complaints").read_text()
        finally:
            restart.kill()
    assert (tmp_path / "complaints").read_text() == ""

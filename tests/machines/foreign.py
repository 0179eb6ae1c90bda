"""Images of one machine on another: what torpor says of them does not depend on where it says it (R-B6)."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.torture.harness import Reaper, Run, torpor


def leave_an_image(work: Path) -> None:
    """A small image of this machine, `foreign` in `work`, and the description of its CPU."""
    program = subprocess.Popen(
        ["sleep", "1000"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    run = torpor(Reaper(), "checkpoint", str(program.pid), "-o", work / "foreign")
    program.kill()
    program.wait()
    assert run.code == 0, str(run)
    shutil.copyfile("/proc/cpuinfo", work / "foreign.cpuinfo")


def words_about(image: Path, command: Callable[..., Run] = torpor) -> list[str]:
    """What torpor says of an image: whether it is whole, what is in it, and whether its own CPU would do."""
    said = []
    commands: list[list[str | Path]] = [["verify", image], ["inspect", image], ["inspect", image, "--cpu", f"{image}.cpuinfo"]]
    for arguments in commands:
        run = command(Reaper(), *arguments)
        said.append(f"exit {run.code}: {run.output.replace(str(image), image.name)}")
    return said


def differences(work: Path) -> list[str]:
    """Where this machine says something else of the images in `work` than the other one has said."""
    found = []
    for name, there in json.loads((work / "images.said").read_text()).items():
        for mine, other in zip(words_about(work / name), there, strict=True):
            if mine != other or not mine.startswith("exit 0"):
                found.append(f"{name}: here\n{mine}\nand there\n{other}")
    return found

"""One boot of a machine under QEMU, translated (TCG): no KVM is needed, and none is used.

The guest sees the project read-only and a work folder: it finds its job there, and leaves there `booted` (what it runs
on) and `results`, one JSON line for each case as it ends, and a last one. Everything else is a failed boot, told with the
end of the console.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.machines.images import Image
from tests.machines.machines import Machine
from tests.settings import ROOT

BOOT_WITHIN = 120.0  # s; 4 to 10 are usual
TAIL = 40  # lines of the console that a failure shows


@dataclass
class Outcome:
    """How one case went."""

    ok: bool
    seconds: float
    text: str


@dataclass
class Booted:
    """What a machine said of itself, and its results by case."""

    kernel: str = ""
    cpu: str = ""
    boot_seconds: float = 0.0
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    work: Path = Path()
    """The folder that it shared, with what it has left there."""
    failure: str = ""
    """Why cases may have no result."""


def command(machine: Machine, image: Image, work: Path) -> list[str]:
    """QEMU's command line. -no-reboot: a guest ends by restarting, a panic (panic=-1) as well."""
    words = [*machine.qemu, "-m", str(machine.memory), "-kernel", str(image.kernel), "-initrd", str(image.initramfs)]
    words += ["-append", f"console={machine.console} rdinit=/init panic=-1 oops=panic quiet mitigations=off {machine.words}"]
    words += [
        "-accel",
        "tcg",
        "-no-reboot",
        "-nodefaults",
        "-display",
        "none",
        "-chardev",
        f"file,id=console,path={work / 'console'}",
    ]
    words += ["-device", "sclpconsole,chardev=console"] if machine.transport == "ccw" else ["-serial", "chardev:console"]
    for tag, path, more in (("project", ROOT, ",readonly=on"), ("work", work, "")):
        words += ["-fsdev", f"local,id={tag},path={path},security_model=none,multidevs=remap{more}"]
        words += ["-device", f"virtio-9p-{machine.transport},fsdev={tag},mount_tag={tag}"]
    return words


def boot(machine: Machine, image: Image, work: Path, job: dict[str, Any], within: float) -> Booted:
    """Boot, let `job` be done within so many seconds, and gather the results. What is left behind stays in `work`."""
    (work / "job").write_text(json.dumps(job))
    booted = Booted(work=work)
    start = time.monotonic()
    with (work / "qemu").open("wb") as said:
        qemu = subprocess.Popen(command(machine, image, work), stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    try:
        up = work / "booted"
        while not up.exists() and qemu.poll() is None and time.monotonic() < start + BOOT_WITHIN:
            time.sleep(0.05)
        booted.boot_seconds = time.monotonic() - start
        if up.exists():
            facts = json.loads(up.read_text())
            booted.kernel, booted.cpu = facts["kernel"], facts["cpu"]
            qemu.wait(within)
            problem = "it ended before its cases did"
        else:
            problem = f"it did not come up ({booted.boot_seconds:.0f} s)"
    except subprocess.TimeoutExpired:
        problem = f"it was not at its end after {within:.0f} s"
    finally:
        qemu.kill()
        qemu.wait()
    if not _gather(work / "results", booted):
        booted.failure = f"{machine.name}: {problem}\n{_tail(work)}"
    return booted


def _gather(results: Path, booted: Booted) -> bool:
    """Take up the results; whether the last line is there."""
    for line in results.read_text().splitlines() if results.exists() else []:
        result = json.loads(line)
        if result["case"] == "end":
            return True
        booted.outcomes[result["case"]] = Outcome(result["ok"], result["seconds"], result["text"])
    return False


def _tail(work: Path) -> str:
    """The last lines that QEMU and the console have said."""
    lines = []
    for name in ("qemu", "console"):
        if (work / name).exists():
            lines += [f"{name}: {line}" for line in (work / name).read_text(errors="replace").splitlines()[-TAIL:]]
    return "\n".join(lines)

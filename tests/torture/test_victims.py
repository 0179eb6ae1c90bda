"""Without torpor: the torture program runs clean by itself, and each of its checks fails when its state is disturbed."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import SEED
from tests.torture.disturbances import TABLE, Disturbance, memory_word
from tests.torture.harness import PROGRAMS, Torture, TortureFailure, compile_program
from tests.torture.heartbeat import code_names, error_lines
from tests.torture.tracer import Traced

Build = Callable[[str, int], Path]

# What nothing here can bring about: OK is no error, END_* are about the end of the program (test_ends_by_itself), and
# for the clocks to disagree the kernel's own page would have to be changed.
NOT_BROKEN = {"OK", "END_CHILD", "END_THREAD", "CLOCK_VDSO"}

pytestmark = pytest.mark.usefixtures("adopted")


@pytest.mark.parametrize("mode", ["mixed", "running", "blocked"])
@pytest.mark.parametrize("threads", [1, 10, 300])
@pytest.mark.parametrize("bits", [64, 32])
def test_runs_clean(build: Build, tmp_path: Path, bits: int, threads: int, mode: str) -> None:
    extra = ["--sysv", "--sockets", "--stopped"]
    with Torture(build("torture", bits), tmp_path / "run", threads=threads, kids=3, mode=mode, extra=extra) as victim:
        progress = [victim.verify(steps=1) for _ in range(5)]
        print(f"started in {victim.started_in * 1000:.0f} ms; all advance within {max(progress) * 1000:.0f} ms")
        victim.verify_tree()
        _ends_by_itself(victim)


def _ends_by_itself(victim: Torture) -> None:
    """When asked to, it joins its threads, reaps its children and leaves without an error."""
    victim.heart.ask_to_end()
    assert victim.exit_status(60) == 0, victim.failure("it did not end well")
    assert victim.heart.errors() == 0, victim.failure("errors at the end")


@pytest.mark.parametrize("threads", [1, 9, 40])
@pytest.mark.parametrize("bits", [64, 32])
def test_stops_are_not_noticed(build: Build, tmp_path: Path, bits: int, threads: int) -> None:
    """SEIZE, INTERRUPT, DETACH of one thread after the other, with nothing changed but calls that stops end."""
    rng = random.Random(SEED)
    extra = ["--sysv", "--sockets"]
    with Torture(build("torture", bits), tmp_path / "run", threads=threads, extra=extra) as victim:
        slots = [slot for slot in victim.heart.all() if slot.tid]
        stops = 0
        end = time.monotonic() + 4
        while time.monotonic() < end:
            slot = rng.choice(slots)
            with Traced(slot.tid, slot.pid):
                time.sleep(rng.choice((0, 0, 0, 0.002)))
            stops += 1
        victim.verify()
        print(f"{stops} stops, none noticed")
        assert stops > 500


ALL = [(bits, disturbance) for bits in (64, 32) for disturbance in TABLE if disturbance.only in (0, bits)]


@pytest.mark.parametrize(("bits", "disturbance"), ALL, ids=lambda value: getattr(value, "name", str(value)))
def test_check_can_fail(build: Build, tmp_path: Path, bits: int, disturbance: Disturbance) -> None:
    extra = ["--stopped"]
    with Torture(build("torture", bits), tmp_path / "run", threads=30, mode=disturbance.mode, extra=extra) as victim:
        victim.verify(steps=1)
        try:
            disturbance.disturb(victim)
        except NotImplementedError as reason:
            pytest.skip(f"{disturbance.name}: {reason}")
        names = [disturbance.code]
        lines = wait_for_error(victim, names, disturbance.text)
        print(lines[0])
        with pytest.raises(TortureFailure, match=names[0]):  # and so does the harness
            victim.verify()


def wait_for_error(victim: Torture, names: list[str], text: str) -> list[str]:
    """The lines of the error file that are about this error; fails if none comes."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        lines = [line for line in error_lines(victim.heartbeat_path) if line.split()[1] in names and re.search(text, line)]
        if lines:
            codes = code_names(PROGRAMS / "torture.h")
            numbers = {codes[line.split()[1]] for line in lines}
            assert victim.heart.errors() > 0
            assert numbers & {int(line.split()[0]) for line in lines}
            return lines
        time.sleep(0.01)
    raise victim.failure(f"{names} {text!r} was not reported")


REGIONS = (
    "brk heap", "malloc heap", "data segment", "with holes", "read-only", "sparse", "growsdown", "private file",
    "shared anonymous", "shared file", "memfd", "locked",
)  # fmt: skip


@pytest.mark.parametrize("bits", [64, 32])
def test_every_region_is_compared(build: Build, tmp_path: Path, bits: int) -> None:
    with Torture(build("torture", bits), tmp_path / "run", threads=1, kids=0) as victim:
        memory_word(victim)
        for name in REGIONS:
            print(wait_for_error(victim, ["MEM_WORD"], f": {name}: page")[0])


def test_every_check_is_disturbed() -> None:
    """Each error of torture.h has a disturbance that brings it about, or a reason why it has none."""
    codes = set(code_names(PROGRAMS / "torture.h"))
    disturbed = {name for disturbance in TABLE for name in disturbance.code.split("|")}
    assert disturbed <= codes
    assert codes - disturbed == NOT_BROKEN


def test_builds_without_warnings(tmp_path: Path) -> None:
    for bits in (64, 32):
        for name in ("torture", "calls"):
            assert compile_program(name, bits, tmp_path).exists()

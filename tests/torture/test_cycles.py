"""Checkpoint, kill, restart, again and again at random instants: the program never notices.

TORPOR_TEST_FULL=1: 500 cycles on 64 bit and 500 on 32, over 1, 10 and 300 threads.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.conftest import FULL, SEED
from tests.settings import MODES
from tests.torture.conftest import Build
from tests.torture.harness import Torture, summary
from torpor.linux import writes

CYCLES = {1: 200, 10: 200, 300: 100} if FULL else {1: 4, 10: 4, 300: 2}

pytestmark = [pytest.mark.usefixtures("torpor_runs", "adopted"), pytest.mark.timeout(3600 if FULL else 300)]


@pytest.mark.parametrize("threads", CYCLES)
@pytest.mark.parametrize("bits", [64, 32])
def test_cycles(build: Build, tmp_path: Path, bits: int, threads: int) -> None:
    rng = random.Random(f"{SEED} {bits} {threads}")
    extra = ["--stopped"] if threads == 10 else []
    with Torture(build("torture", bits), tmp_path / "run", threads=threads, extra=extra, rng=rng) as victim:
        victim.verify()
        times = []
        for _ in range(CYCLES[threads]):
            times.append(victim.cycle())
        print(f"{bits} bit, {threads} threads: {summary(times)}")


@pytest.mark.parametrize("bits", [64, 32])
def test_goes_on_after_checkpoints(build: Build, tmp_path: Path, bits: int) -> None:
    """Checkpoints that do not kill, one after the other; then one of them that does."""
    rng = random.Random(f"{SEED} {bits}")
    with Torture(build("torture", bits), tmp_path / "run", threads=10, rng=rng) as victim:
        seconds = [victim.checkpoint_and_go_on().seconds for _ in range(30 if FULL else 5)]
        victim.verify_tree()
        victim.cycle()
        print(f"{bits} bit: {len(seconds)} checkpoints of a program that goes on, at most {max(seconds) * 1000:.0f} ms each")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [64, 32])
def test_cycles_in_other_modes(build: Build, tmp_path: Path, bits: int, mode: str) -> None:
    """The same: with a checkpoint before, or that is the parent; or memory is saved before the stop, or comes after the restart."""
    if mode == "lazy" and os.geteuid() != 0:
        pytest.skip("an ordinary user has no lazy restart")
    if mode == "ahead" and not writes.can_be_told():
        pytest.skip("this kernel does not tell which pages have been written")
    rng = random.Random(f"{SEED} {bits} {mode}")
    with Torture(build("torture", bits), tmp_path / "run", threads=10, rng=rng) as victim:
        times = [victim.cycle(mode=mode) for _ in range(100 if FULL else 4)]
        print(f"{bits} bit, {mode}: {summary(times)}")

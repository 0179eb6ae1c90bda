"""SIGKILL of torpor at random instants of a checkpoint: the program never notices.

TORPOR_TEST_FULL=1: 1,000 kills, at least 300 of them while an injection was under way. torpor says where it is in the
file that TORPOR_PHASE_FILE names: one byte, 1 frozen, 2 injection under way, 3 injection over, 4 thawed, 5 stopping a thread.

One thing may be noticed: a call that any stop ends with EINTR does so when the kill comes between the kernel's stop of its thread
and torpor's first word to it (docs/limits.md, "Waits"). It is counted, and only where the byte said 5.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import FULL, SEED
from tests.torture.conftest import Build
from tests.torture.harness import INJECTION, PHASES, Torture

KILLS = 125 if FULL else 5  # for each of the eight kinds
WITHIN_INJECTION = 300 if FULL else 5

pytestmark = [pytest.mark.usefixtures("torpor_runs", "adopted"), pytest.mark.timeout(3600 if FULL else 300)]

totals: Counter[int] = Counter()
kinds_done = 0


@pytest.mark.parametrize("mode", ["running", "blocked"])
@pytest.mark.parametrize("threads", [1, 9])
@pytest.mark.parametrize("bits", [64, 32])
def test_storm(build: Build, tmp_path: Path, bits: int, threads: int, mode: str) -> None:
    global kinds_done
    rng = random.Random(f"{SEED} {bits} {threads} {mode}")
    with Torture(build("torture", bits), tmp_path / "run", threads=threads, mode=mode, rng=rng) as victim:
        result = victim.storm(KILLS, in_injection=0.6)
        print(f"{bits} bit, {threads} threads, {mode}: {result}")
        assert result.kills == KILLS
        assert result.interrupted <= max(1, KILLS // 50)
    totals.update(result.phases)
    kinds_done += 1


def test_enough_kills_hit_an_injection() -> None:
    if kinds_done < 8:
        pytest.skip(f"only {kinds_done} of the 8 storms of this module ran to their end")
    print(f"{sum(totals.values())} kills: " + ", ".join(f"{PHASES.get(p, p)} {n}" for p, n in sorted(totals.items())))
    if set(totals) == {0}:
        pytest.skip("torpor does not write TORPOR_PHASE_FILE yet: no kill could be aimed or told apart")
    assert totals[INJECTION] >= WITHIN_INJECTION

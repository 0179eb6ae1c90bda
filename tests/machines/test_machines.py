"""torpor on other kernels and processors, under QEMU: every case of every machine.

One machine alone: make test-machines ARGS='-k amd64'. A machine boots once, its cases run in it, and each is reported by itself.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.machines.boot import Booted
from tests.machines.cases import ALL_WITHIN, MADE_WITHIN, names, on_poorer
from tests.machines.foreign import differences
from tests.machines.machines import MACHINES

CASES = [(machine, case) for machine, row in MACHINES.items() for case in names(row)]

pytestmark = [pytest.mark.usefixtures("torpor_runs"), pytest.mark.timeout(MADE_WITHIN + ALL_WITHIN)]


@pytest.mark.parametrize(("machine", "case"), CASES, ids=["-".join(pair) for pair in CASES])
def test_case(booted: Callable[[str, str], Booted], lines: dict[str, list[str]], machine: str, case: str) -> None:
    ran = booted(machine, case)
    outcome = ran.outcomes.get(case)
    model = MACHINES[machine].poorer if on_poorer(case) else MACHINES[machine].qemu[-1]
    where = f"{machine} ({ran.kernel}, -cpu {model}: {ran.cpu}, up after {ran.boot_seconds:.1f} s)"
    if outcome is None:
        lines[f"{where} {case}"] = ["no result"]
    elif outcome.ok and case.startswith("call-"):  # there are a hundred of them
        _, width, call = case.split("-", 2)
        refused = outcome.text.startswith("refused: ")
        lines.setdefault(f"{where} calls-{width}, {'refused' if refused else 'well'}", []).append(call)
    else:
        result = "well" if outcome.ok else "FAILED"
        first = outcome.text.splitlines()[:1]
        lines[f"{where} {case}"] = ["; ".join([f"{result} after {outcome.seconds:.1f} s", *first])]
    assert outcome is not None, ran.failure
    assert outcome.ok, f"{where}\n{outcome.text}\n{ran.failure}"
    if case == "image":
        assert not differences(ran.work), where
    if outcome.text.startswith("refused: "):
        pytest.skip(f"{where}: {outcome.text}")

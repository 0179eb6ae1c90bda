"""Programs that nobody here wrote are checkpointed, killed and restarted at random instants: no byte may differ.

Each is first run twice undisturbed: what it leaves behind must not depend on chance, or nothing could be compared. Then
it runs twice (TORPOR_TEST_FULL: ten times) with one interruption, and once with three.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import FULL
from tests.debian.programs import ENTRIES, Materials
from tests.debian.runner import ORDINARY, Lab, Outcome, Program, compare
from tests.settings import MODE

ROOT = os.geteuid() == 0
RUNS = 10 if FULL else 2


@dataclass(frozen=True)
class Case:
    name: str
    uid: int


def cases() -> Iterator[object]:
    """Everything as the user who runs the tests; as an ordinary user too, where root can become one."""
    for name, entry in ENTRIES.items():
        users = {"root" if ROOT else "user": os.geteuid()}
        if ROOT and (entry.ordinary or (FULL and not entry.needs_root)):
            users["user"] = ORDINARY
        for who, uid in users.items():
            marks = []
            if obstacle := entry.obstacle():
                marks.append(pytest.mark.skip(reason=f"{name}: {obstacle}"))
            if entry.needs_root and uid:
                marks.append(pytest.mark.skip(reason=f"{name}: has to be started as root"))
            if MODE == "lazy" and uid:
                marks.append(pytest.mark.skip(reason=f"{name}: an ordinary user has no lazy restart"))
            yield pytest.param(Case(name, uid), id=f"{name}-{who}", marks=marks)


@pytest.fixture(scope="session")
def materials() -> Iterator[Materials]:
    directory = Path(tempfile.mkdtemp(prefix="torpor-materials-"))
    directory.chmod(0o755)
    yield Materials(directory)
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def undisturbed() -> dict[Case, Outcome]:
    """How each program ends when nobody interrupts it; filled by whoever asks first."""
    return {}


@pytest.fixture
def lab(case: Case) -> Iterator[Lab]:
    with Lab(case.uid) as here:
        yield here


@pytest.fixture
def program(case: Case, materials: Materials) -> Program:
    return ENTRIES[case.name].program(materials)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", list(cases()))
def test_undisturbed_it_always_ends_the_same(
    case: Case, program: Program, lab: Lab, undisturbed: dict[Case, Outcome]
) -> None:
    first, second = lab.undisturbed(program), lab.undisturbed(program)
    print(f"{case.name}: {first.seconds:.3f} and {second.seconds:.3f} s, {first.left}")
    assert not first.difference(second), f"{case.name} is no use as a test: {first.difference(second)}"
    assert sum(length for length, _ in first.left.values()) > 1000, f"{case.name} leaves next to nothing: {first.left}"
    undisturbed[case] = first


@pytest.mark.timeout(3600 if FULL else 600)
@pytest.mark.parametrize("case", list(cases()))
@pytest.mark.usefixtures("torpor_runs")
def test_interrupted_it_ends_as_if_nothing_had_been(
    case: Case, program: Program, lab: Lab, undisturbed: dict[Case, Outcome]
) -> None:
    if case not in undisturbed:
        undisturbed[case] = lab.undisturbed(program)
    compare(lab, program, undisturbed[case], RUNS)

"""One boot for all cases of a machine, and a table at the end of what they ran on."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.machines.boot import Booted, boot
from tests.machines.cases import ALL_WITHIN, CYCLES, GROUP_WITHIN
from tests.machines.images import image
from tests.machines.machines import MACHINES, Machine
from tests.settings import SEED
from tests.torture.harness import compile_program

LINES = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LINES] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[LINES]:
        terminalreporter.section("machines")
        for line in config.stash[LINES]:
            terminalreporter.write_line(line)


@pytest.fixture
def lines(pytestconfig: pytest.Config) -> list[str]:
    """What the table at the end will say."""
    return pytestconfig.stash[LINES]


@pytest.fixture(scope="session")
def booted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Booted]:
    """booted(name): its results, from a single boot in which all its selected cases run."""
    done: dict[str, Booted] = {}

    def once(name: str) -> Booted:
        if name not in done:
            tests = [item for item in request.session.items if isinstance(item, pytest.Function) and "booted" in item.fixturenames]
            cases = [str(test.callspec.params["case"]) for test in tests if test.callspec.params["machine"] == name]
            done[name] = _boot(MACHINES[name], cases, tmp_path_factory.mktemp(name))
        return done[name]

    return once


def _boot(machine: Machine, cases: list[str], work: Path) -> Booted:
    if platform.machine() != "x86_64":
        pytest.skip("the programs for the machines are built on x86_64 only")
    programs = work / "programs"
    programs.mkdir()
    for bits, compiler in machine.compilers.items():
        for name in ("torture", "calls"):
            compile_program(name, bits, programs, compiler)
    job = {"cases": cases, "cycles": CYCLES, "seconds": GROUP_WITHIN, "seed": SEED}
    return boot(machine, image(machine), work, job, ALL_WITHIN)

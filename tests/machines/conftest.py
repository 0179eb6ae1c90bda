"""One boot for all cases of a machine, and a table at the end of what they ran on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.machines.boot import Booted, boot
from tests.machines.cases import ALL_WITHIN, CYCLES, GROUP_WITHIN, on_poorer
from tests.machines.foreign import leave_an_image
from tests.machines.images import image
from tests.machines.machines import MACHINES, Machine
from tests.machines.sources import CannotBuild
from tests.settings import SEED
from tests.torture.harness import compile_program

LINES = pytest.StashKey[dict[str, list[str]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LINES] = {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[LINES]:
        terminalreporter.section("machines")
        for line, said in config.stash[LINES].items():
            terminalreporter.write_line(f"{line}: {', '.join(said)}")


@pytest.fixture
def lines(pytestconfig: pytest.Config) -> dict[str, list[str]]:
    """What the table at the end will say: beginnings of lines, and what comes behind them."""
    return pytestconfig.stash[LINES]


@pytest.fixture(scope="session")
def booted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], Booted]]:
    """booted(name, case): the results of the boot with that case; all selected cases of a machine and CPU run in one.

    Every machine has one CPU, and one machine more runs at a time than there are CPUs here: a good part of the time they only
    wait for calls to end. Those that take longest begin.
    """
    wanted: dict[str, list[str]] = {}
    for test in request.session.items:
        if isinstance(test, pytest.Function) and "booted" in test.fixturenames:
            wanted.setdefault(str(test.callspec.params["machine"]), []).append(str(test.callspec.params["case"]))
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)) + 1)
    order = sorted(wanted, key=lambda name: -MACHINES[name].slowness * len(MACHINES[name].compilers))
    done = {name: pool.submit(_boot, MACHINES[name], wanted[name], tmp_path_factory.mktemp(name)) for name in order}
    yield lambda name, case: done[name].result()[on_poorer(case)]
    pool.shutdown(cancel_futures=True)


def _boot(machine: Machine, cases: list[str], work: Path) -> tuple[Booted, Booted]:
    """The results on its own CPU and, where there are cases for that, on the poorer one."""
    programs = work / "programs"
    programs.mkdir()
    for bits, compiler in machine.compilers.items():
        for name in ("torture", "calls"):
            compile_program(name, bits, programs, compiler)
        if bits in machine.feature[1]:
            compile_program("feature", bits, programs, (*compiler, "-static"))
    try:
        made = image(machine)
    except CannotBuild as problem:
        pytest.skip(f"{machine.name}: no kernel and root have been built for it, and none can be: {problem}")
    if "image" in cases:
        leave_an_image(work)
    later = [case for case in cases if on_poorer(case)]
    needed = {case.replace("moved", "saved") for case in later}
    first = [case for case in cases if case not in later] + sorted(needed.difference(cases))
    job = {"cases": first, "cycles": CYCLES, "seconds": GROUP_WITHIN * machine.slowness, "seed": SEED, "slowness": machine.slowness}
    job["feature"] = machine.feature[0]
    ran = boot(machine, made, work, job, ALL_WITHIN)
    if not later:
        return ran, ran
    for left in ("booted", "results"):
        (work / left).rename(work / f"{left}-first")
    poorer = replace(machine, qemu=(*machine.qemu[:-1], machine.poorer), words=f"{machine.words} {machine.poorer_words}")
    return ran, boot(poorer, made, work, {**job, "cases": later}, ALL_WITHIN)

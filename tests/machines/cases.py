"""What is tried on a machine: the names of the cases, the same for the host, which reports them, and the guest, which runs them."""

from __future__ import annotations

from collections.abc import Iterable

from tests.calls.program import ALL_TIMED, ALL_UNTIMED
from tests.machines.machines import Machine
from tests.settings import FULL

CYCLES = 20 if FULL else 2
"""How often a case is checkpointed, killed and restarted."""
GROUP_WITHIN = 3600.0 if FULL else 240.0  # s, for cases that are run together
ALL_WITHIN = 6 * 3600.0 if FULL else 1800.0  # s, from the boot to the end
THREADS = (1, 10)
MADE_WITHIN = 3600.0  # s, before that; most are made in seconds, but two are built, one after the other
X86 = ("amd64", "i386")
BY_VDSO = "-vdso"
"""What the names of calls end with that enter the kernel as only x86 can."""


def names(machine: Machine) -> list[str]:
    """The cases of a machine."""
    found = ["check", "image", "python", "pipeline"]
    for width in machine.compilers:
        found += [f"torture-{width}-{threads}" for threads in THREADS]
        calls = [name for size, name in ALL_TIMED + ALL_UNTIMED if size == width]
        if machine.name not in X86:
            calls = [name for name in calls if not name.endswith(BY_VDSO)]
        found += [f"call-{width}-{name}" for name in calls]
        found.append(f"killed-{width}")
    return found + [f"{case}-{width}" for case in ("saved", "moved") for width in machine.feature[1]]


def on_poorer(case: str) -> bool:
    """Whether a case runs on the machine's poorer CPU, with what `saved` has left."""
    return case.startswith("moved-")


def grouped(cases: Iterable[str]) -> list[list[str]]:
    """The cases that are run by one process: all calls of one width."""
    groups: dict[str, list[str]] = {}
    for case in cases:
        groups.setdefault("-".join(case.split("-")[:2]) if case.startswith("call-") else case, []).append(case)
    return list(groups.values())

"""What is tried on a machine: the names of the cases, the same for the host, which reports them, and the guest, which runs them."""

from __future__ import annotations

from collections.abc import Iterable

from tests.calls.program import ALL_TIMED, ALL_UNTIMED
from tests.settings import FULL

CYCLES = 20 if FULL else 2
"""How often a case is checkpointed, killed and restarted."""
GROUP_WITHIN = 1800.0 if FULL else 120.0  # s, for cases that are run together
ALL_WITHIN = 6 * 3600.0 if FULL else 600.0  # s, from the boot to the end
THREADS = (1, 10)
CALLS_AT_ONCE = 8
"""A tree of many processes takes so long to freeze and to make, where QEMU translates, that their waits would be over."""


def names(bits: Iterable[int]) -> list[str]:
    """The cases of a machine that runs programs of these widths."""
    found = ["check", "python", "pipeline"]
    for width in bits:
        found += [f"torture-{width}-{threads}" for threads in THREADS]
        found += [f"call-{width}-{name}" for size, name in ALL_TIMED + ALL_UNTIMED if size == width]
    return found


def grouped(cases: Iterable[str]) -> list[list[str]]:
    """The cases that are run together: a few calls of one width at a time are in one process tree."""
    groups: list[list[str]] = []
    calls: dict[str, list[str]] = {}
    for case in cases:
        kind, _, rest = case.partition("-")
        if kind != "call":
            groups.append([case])
        else:
            calls.setdefault(rest.split("-")[0], []).append(case)
    for found in calls.values():
        groups += [found[first : first + CALLS_AT_ONCE] for first in range(0, len(found), CALLS_AT_ONCE)]
    return groups

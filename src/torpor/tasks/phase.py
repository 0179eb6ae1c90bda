"""Where in a checkpoint torpor is, for the test that kills it there.

When TORPOR_PHASE_FILE names a file of at least one byte, its first byte says it at any instant; otherwise nothing is done.
"""

from __future__ import annotations

import os

NONE, FROZEN, INJECTING, INJECTED, THAWED = 0, 1, 2, 3, 4
STOPPING = 5
"""A thread has been told to stop, and a call that this ends with EINTR is not yet put right (docs/limits.md, "Waits")."""


def _ignore(phase: int) -> None:
    pass


def _make() -> object:
    path = os.environ.get("TORPOR_PHASE_FILE")
    if not path:
        return _ignore
    import mmap

    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        page = mmap.mmap(fd, 1)
    finally:
        os.close(fd)

    def enter(phase: int) -> None:
        page[0] = phase

    return enter


_enter = _make()


def enter_phase(phase: int) -> None:
    """Note that torpor has come to `phase`."""
    _enter(phase)  # type: ignore[operator]

"""Signal actions of this process (signal(7)), without the `signal` module.

That module brings enum, functools and collections: 5 ms of every restart. The C module below it needs none of them.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SIGHUP, SIGINT, SIGQUIT, SIGKILL, SIGUSR1, SIGUSR2, SIGTERM, SIGCHLD = 1, 2, 3, 9, 10, 12, 15, 17
SIGCONT, SIGSTOP, SIGTSTP, SIGTTOU = 18, 19, 20, 22


def handle(number: int, function: Callable[[int, object], None]) -> None:
    """Have Python call `function` (number, frame) when signal `number` has arrived; on the main thread."""
    _signal.signal(number, function)


def ignore(*numbers: int) -> None:
    """Ignore the signals; execve(2) passes that on."""
    for number in numbers:
        _signal.signal(number, _signal.SIG_IGN)


class Changes:
    """Waits for children and traced tasks to change state, within a `with` block: SIGCHLD tells, and is put back afterwards."""

    def __init__(self) -> None:
        self._taken = False

    def __enter__(self) -> Changes:
        self._before = _signal.pthread_sigmask(_signal.SIG_BLOCK, {SIGCHLD})
        return self

    def __exit__(self, *_: object) -> None:
        if self._taken and callable(_signal.getsignal(SIGCHLD)):
            _signal.raise_signal(SIGCHLD)  # it may have been about another child, whose parent's handler waits for it
        _signal.pthread_sigmask(_signal.SIG_SETMASK, self._before)

    def wait(self, seconds: float) -> None:
        """Return at the next change, which may have come already, or after `seconds`: another thread may have taken the signal."""
        self._taken |= _signal.sigtimedwait({SIGCHLD}, seconds) is not None


class Held:
    """Holds SIGINT and SIGTERM back for the length of a `with` block: what is in the middle of a task must not be left there."""

    def __enter__(self) -> None:
        self._before = _signal.pthread_sigmask(_signal.SIG_BLOCK, {SIGINT, _signal.SIGTERM})

    def __exit__(self, *_: object) -> None:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, self._before)


def block_all() -> None:
    """Block every signal that can be blocked, for good, on the calling thread."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())

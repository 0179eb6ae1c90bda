"""A stop of a whole tree, with what belongs to it: the waits that it ends go on with the rest of their time."""

from __future__ import annotations

import time

from torpor.errors import NoPermission, Obstacle, TorporError
from torpor.tasks import sleeping
from torpor.tasks.freeze import freeze
from torpor.tasks.places import Busy, make_place
from torpor.tasks.sleeping import Waits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from types import TracebackType

    from torpor.tasks.freeze import FrozenTree
    from torpor.tasks.sleeping import Nap

PATIENCE = 5.0
"""Seconds to wait for threads that are still leaving the calls of a torpor that was killed."""


def frozen(pid: int, absent: Mapping[int, int], pids: Collection[int]) -> tuple[dict[int, Nap], FrozenTree]:
    """The frozen tree of the process `pid`, and how its threads were sleeping just before (`pids`: all processes of it).

    Tries again while a thread is leaving the code of a torpor that was killed, or was not seen in the call it was stopped in.
    Raises TorporError, NoPermission.
    """
    patience = time.monotonic() + PATIENCE
    while True:
        naps = sleeping.observe(pids)
        try:
            tree = freeze(pid, absent)
        except ProcessLookupError as error:
            raise TorporError(Obstacle("process", "it ended before it could be stopped", pid=pid)) from error
        except PermissionError as error:
            raise NoPermission(Obstacle("process", f"it may not be looked into ({error.strerror})", pid=pid)) from error
        try:
            if tree.processes[0].zombie:
                raise TorporError(Obstacle("process", "it has ended", pid=pid))
            for process in tree.alive():
                make_place(process)
            if sleeping.recognised(tree.threads(), naps) or time.monotonic() > patience:
                return naps, tree
            tree.thaw()
        except Busy:
            tree.thaw()
            if time.monotonic() > patience:
                raise
        except BaseException:
            tree.thaw()
            raise
        time.sleep(0.002)


class Brief:
    """A stop in which little is done: `with Brief(...) as tree:`. The program goes on at the end, as if nothing had been."""

    def __init__(
        self, pid: int, absent: Mapping[int, int], pids: Collection[int], clock_offset: Callable[[int], int]
    ) -> None:
        """`clock_offset`: how far a process's CLOCK_MONOTONIC is ahead of ours, ns. The rest is as for `frozen`."""
        self._pid, self._absent, self._pids, self._clock_offset = pid, absent, pids, clock_offset

    def __enter__(self) -> FrozenTree:
        naps, self._tree = frozen(self._pid, self._absent, self._pids)
        try:
            stopped = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            self._waits = [Waits(each, naps, stopped, self._clock_offset(each.pid)) for each in self._tree.alive()]
        except BaseException:
            self._tree.thaw()
            raise
        return self._tree

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            for waits in self._waits:
                waits.note()
                waits.shorten()
        finally:
            self._tree.thaw()

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


class Stop:
    """A stopped tree, since when it stands still (CLOCK_MONOTONIC, ns), and what its processes were waiting for, by their ids."""

    def __init__(self, tree: FrozenTree, naps: dict[int, Nap], clock_offset: Callable[[int], int]) -> None:
        self.tree, self.since = tree, time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self.waits = {each.pid: Waits(each, naps, self.since, clock_offset(each.pid)) for each in tree.alive()}

    def shorten_waits(self) -> None:
        """Let the waits that the stop has ended go on with the rest of their time, and leave notes of them for the next one."""
        for waits in self.waits.values():
            if not waits.process.disturbed:
                waits.note()
                waits.shorten()


def frozen(pid: int, absent: Mapping[int, int], pids: Collection[int], clock_offset: Callable[[int], int]) -> Stop:
    """The process `pid` and its descendants but those `absent`, stopped. `pids`: all processes of the tree, just before.

    Tries again while a thread is leaving the code of a torpor that was killed, or was not seen in the call it was stopped in.
    `clock_offset`: how far a process's CLOCK_MONOTONIC is ahead of ours, ns. Raises TorporError, NoPermission.
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
            recognised = sleeping.recognised(tree.threads(), naps)
            stop = Stop(tree, naps, clock_offset)
            if recognised or time.monotonic() > patience:
                return stop
            stop.shorten_waits()
            tree.thaw()
        except (FileNotFoundError, ProcessLookupError) as error:
            tree.thaw()
            raise TorporError(Obstacle("process", "it was killed while it was being stopped", pid=pid)) from error
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
        """The arguments are those of `frozen`."""
        self._pid, self._absent, self._pids, self._clock_offset = pid, absent, pids, clock_offset

    def __enter__(self) -> FrozenTree:
        self._stop = frozen(self._pid, self._absent, self._pids, self._clock_offset)
        return self._stop.tree

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._stop.shorten_waits()
        finally:
            self._stop.tree.thaw()

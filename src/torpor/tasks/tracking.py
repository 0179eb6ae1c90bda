"""What the processes of a tree have written since they were last looked at, so that only that has to be saved (linux/writes.py).

Each process makes a userfaultfd of its own, of which a duplicate stays with us; the program itself is left with no descriptor. If
torpor ends, however it ends, the kernel takes everything back.
"""

from __future__ import annotations

import os

from torpor.linux import pagemap, pidfd, writes
from torpor.tasks.remote import Remotes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.linux.procfs import Mapping
    from torpor.tasks.freeze import FrozenProcess, FrozenTree

    Runs = list[tuple[int, int]]


class Tracking:
    """The processes that are watched. It outlives the freeze of the tree, and is of use to whoever looks again."""

    def __init__(self) -> None:
        self._watched: dict[int, int] = {}
        """Process id -> descriptor of its userfaultfd."""
        self._places: dict[int, list[tuple[int, int]]] = {}
        """What of a process has been looked at last: ranges (first address, end)."""

    def since(self, process: FrozenProcess, mappings: Sequence[Mapping], tree: FrozenTree) -> Runs | None:
        """The runs (address, bytes) outside of which the stopped process has written nothing since the last look, ascending.

        None: it was not watched until now. `mappings`: those to watch.
        """
        if process.pid in self._watched and (found := self.look(process.pid, mappings)) is not None:
            return found
        # Now for the first time, or anew: it may execute another program by now, in an address space of its own.
        if self.begin(process, tree):
            self.look(process.pid, mappings)
        return None

    def begin(self, process: FrozenProcess, tree: FrozenTree) -> bool:
        """Make it possible to `look` at a stopped process from now on, running or not. False: it is not to be had."""
        if not writes.can_be_told():
            return False
        pid = process.pid
        self._forget(pid)
        try:
            with Remotes(process, tree) as remotes:
                leader = remotes.of(process.leader)
                self._watched[pid] = leader.descriptor(("userfaultfd", writes.FLAGS), lambda number: pidfd.getfd(pid, number))
            writes.enable(self._watched[pid])
        except OSError:
            self._forget(pid)
            return False
        return True

    def look(self, pid: int, mappings: Sequence[Mapping]) -> Runs | None:
        """The runs (address, bytes) of a process outside of which nothing was written since the last look, ascending.

        The first look at a mapping finds all of it. None: the process is not watched any more, and may have gone.
        """
        if pid not in self._watched:
            return None
        try:
            pages = pagemap.open(pid)
            try:
                return self._look(pid, mappings, pages)
            finally:
                os.close(pages)
        except OSError:
            self._forget(pid)
            return None

    def _look(self, pid: int, mappings: Sequence[Mapping], pages: int) -> Runs:
        fd = self._watched[pid]
        found: Runs = []
        for mapping in mappings:
            try:
                found += writes.since(pages, mapping.start, mapping.end)
            except PermissionError:
                found.append((mapping.start, mapping.length))
                try:
                    writes.begin(fd, pages, mapping.start, mapping.end)
                except OSError as error:
                    if writes.gone(error):
                        raise
                    # Else it is not watched, and counts as written each time.
        self._places[pid] = [(mapping.start, mapping.end) for mapping in mappings]
        return found

    def written(self, pid: int, mappings: Sequence[Mapping]) -> int:
        """About how many bytes of a process were written since the last look; the next one finds them. 0: it is not watched."""
        if pid not in self._watched:
            return 0
        total = 0
        try:
            pages = pagemap.open(pid)
            try:
                for mapping in mappings:
                    try:
                        total += writes.size(pages, mapping.start, mapping.end)
                    except PermissionError:
                        total += max(0, mapping.anonymous_kb) << 10
            finally:
                os.close(pages)
        except OSError:
            return 0  # it has just ended
        return total

    def watches(self, pid: int) -> bool:
        """Whether a `look` at the process may tell something."""
        return pid in self._watched

    def keep(self, pids: set[int]) -> None:
        """Forget all processes but `pids`."""
        for pid in self._watched.keys() - pids:
            self._forget(pid)

    def close(self) -> None:
        """Watch nothing any more."""
        self.keep(set())

    def _forget(self, pid: int) -> None:
        fd, places = self._watched.pop(pid, -1), self._places.pop(pid, [])
        if fd >= 0:
            for start, end in places:
                writes.end(fd, start, end)
            os.close(fd)

"""What the processes of a tree have written since they were last looked at, so that only that has to be saved (linux/writes.py).

Each process makes a userfaultfd of its own, of which a duplicate stays with us; the program itself is left with no descriptor. If
torpor ends, however it ends, the kernel takes everything back.
"""

from __future__ import annotations

import os

from torpor.linux import pagemap, pidfd, writes
from torpor.tasks.remote import Remote, quiet_signal, take_code_away

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

    def since(self, process: FrozenProcess, mappings: Sequence[Mapping], tree: FrozenTree) -> Runs | None:
        """The runs (address, bytes) outside of which the stopped process has written nothing since the last look, ascending.

        None: it was not watched until now. `mappings`: those to watch.
        """
        if not writes.can_be_told():
            return None
        pid = process.pid
        known = pid in self._watched
        pages = pagemap.open(pid)
        try:
            try:
                if known:
                    return self._look(process, mappings, pages)
                self._begin(process, mappings, pages, tree)
            except OSError as error:
                self._forget(pid)
                if not known or not writes.gone(error):
                    return None
                # It executes another program by now, in an address space of its own.
                self._begin(process, mappings, pages, tree)
        except OSError:
            self._forget(pid)
        finally:
            os.close(pages)
        return None

    def _begin(self, process: FrozenProcess, mappings: Sequence[Mapping], pages: int, tree: FrozenTree) -> None:
        leader = process.leader
        try:
            with Remote(leader, process.padding, process.hole, signal=quiet_signal(leader.status)) as remote:
                fd = remote.descriptor(("userfaultfd", writes.FLAGS), lambda number: pidfd.getfd(process.pid, number))
            tree.lost_signals += [(process.pid, signal) for signal in remote.suppressed]
        finally:
            take_code_away(process, process.padding)
        self._watched[process.pid] = fd
        writes.enable(fd)
        self._look(process, mappings, pages)

    def _look(self, process: FrozenProcess, mappings: Sequence[Mapping], pages: int) -> Runs:
        fd = self._watched[process.pid]
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
        return found

    def keep(self, pids: set[int]) -> None:
        """Forget all processes but `pids`."""
        for pid in self._watched.keys() - pids:
            self._forget(pid)

    def close(self) -> None:
        """Watch nothing any more."""
        self.keep(set())

    def _forget(self, pid: int) -> None:
        fd = self._watched.pop(pid, -1)
        if fd >= 0:
            os.close(fd)

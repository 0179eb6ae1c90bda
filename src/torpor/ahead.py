"""Ahead of the stop: memory is saved while the program runs, so that there is little left to do while it stands still.

Two ways lead to a short stop. The kernel copies the page tables (tasks/snapshot.py), and all pages are saved from the copy: 9 to
20 ms of stop per GiB, whatever the program does. Or the program is watched (tasks/tracking.py) while its memory is saved, and what
it has changed meanwhile is saved again, until little is left for the stop: that takes 3 ms per GiB, to look for it. Where a
program has much memory in small pages, the second way comes first; if it changes its memory about as fast as that can be saved,
the first one follows, for what has changed. (Huge pages are copied at once, and to watch them would break them up.)

A page that is read here must not be in the hands of a device: who reads a file past the page cache (O_DIRECT) has told the kernel
before where the data is to go, and then the data comes without anybody writing. So a look is followed by a stop in which nothing
is done: no thread stops inside of such a call. What begins later is seen as a write.
"""

from __future__ import annotations

from torpor.image.format import Draft
from torpor.image.known import Drafted, uncovered
from torpor.linux import procfs
from torpor.linux.signals import Held
from torpor.objects import asking, signals
from torpor.objects import memory as memory_objects
from torpor.pages import READ_AHEAD, divided
from torpor.tasks.remote import Remotes
from torpor.tasks.task import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from torpor.image.known import Known
    from torpor.linux.procfs import Mapping as MappedRange
    from torpor.objects.saving import Saving
    from torpor.pages import PageWriter
    from torpor.tasks.freeze import FrozenProcess, FrozenTree
    from torpor.tasks.stopping import Brief
    from torpor.tasks.tracking import Tracking

LITTLE = 1 << 20
"""Bytes of changes that are left for the stop without another round."""

ROUNDS = 4

FIRST_LOOK = 32 << 20
"""Bytes saved after which is asked for the first time whether it was of use; then after twice as many each time."""

IN_VAIN = 8
"""Of what has been saved a part in so many may have changed."""


def save(
    saving: Saving,
    pages: PageWriter,
    tracking: Tracking,
    pids: Collection[int],
    stop: Callable[[], Brief],
) -> dict[int, Ahead]:
    """Save memory of the processes `pids`, which run, and say what lies where.

    They are watched from now on, or have been since the parent image: what they have written since, `tracking` tells. Those that
    cannot be are left out. `stop` stops the tree they are of. Raises TorporError.
    """
    every = []
    with stop() as tree:
        relatives = tree.relatives()
        for frozen in tree.alive():
            if frozen.pid not in pids:
                continue
            earlier = pages.known.get(frozen.own_pid)
            watched = earlier is not None and tracking.watches(frozen.pid)
            if not watched:
                with Held():
                    _ask_for_actions(frozen, tree)
                    watched = tracking.begin(frozen, tree)
            if watched:
                process = Process(frozen.pid, frozen.own_pid)
                process.shares = frozen.pid in relatives
                every.append(Ahead(process, Drafted(saving.add(Draft(id=saving.new_id())), earlier), pages, tracking))
    try:
        for each in every:
            each.look()
        active = every
        for _ in range(ROUNDS):
            with stop():
                pass
            for each in active:
                each.save()
            for each in every:
                each.look()
            active = [each for each in active if each.of_use and each.lost() > LITTLE]
            if not active:
                break
    finally:
        for each in every:
            each.process.close()
    for each in every:
        each.forget()
        each.known = each.drafted.known()
    return {each.process.pid: each for each in every if each.watched}


def _ask_for_actions(process: FrozenProcess, tree: FrozenTree) -> None:
    """Where the kernel has forgotten how an interrupted call ends, when we have had calls made: see what it went by."""
    if process.arch.rewinds:
        with Remotes(process, tree) as remotes:
            remote = remotes.of(process.leader)
            (actions,) = asking.ask(remote, signals.ask(remote))
        process.restarting = signals.restarting(actions)


class Ahead:
    """A process of which memory is saved while it runs.

    `drafted` and `known` are what has been saved, and `tracking` tells what has been written since; `of_use` is False when the
    program changes it faster than that.
    """

    known: Known

    def __init__(self, process: Process, drafted: Drafted, pages: PageWriter, tracking: Tracking) -> None:
        self.process, self.drafted, self.tracking, self._pages = process, drafted, tracking, pages
        self._mappings: list[MappedRange] = []
        """Those that may have pages of its own, as they were when they were looked at last."""
        self.watched = self.of_use = True
        self._changed: list[tuple[int, int]] = []
        """The runs (address, bytes) that have changed since the round began."""
        self._saved = self._next_look = 0
        """Bytes saved in all; and those of this round after which to look again."""

    def look(self) -> None:
        """See what has been written since the last look."""
        pid = self.process.pid
        try:
            # What the program has mapped since is in one of its own, for it is not watched, and all of that counts as written.
            self._mappings = [mapping for mapping in procfs.maps(pid) if memory_objects.private(mapping)]
        except OSError:  # it has just ended, and that `tracking` will tell
            self._mappings = []
        found = self.tracking.look(pid, self._mappings)
        if found is None:
            self.watched = self.of_use = False
        else:
            self._changed += found

    def save(self) -> None:
        """A round: save what has not been saved as it is."""
        self.forget()
        try:
            readable = [mapping for mapping in self._mappings if mapping.readable]
            runs, _ = divided(list(memory_objects.own_pages(self.process.pid, readable)), uncovered(self.drafted.covered))
        except OSError:  # it has just ended
            self.watched = self.of_use = False
            return
        self._next_look = FIRST_LOOK
        self._pages.draft(self.drafted, self.process, runs, self._goes_on)
        self._saved += sum(length for _, _, length in runs)

    def _goes_on(self, done: int) -> bool:
        """Whether it is of use to save more than the `done` bytes of this round."""
        if done >= self._next_look:
            self._next_look = 2 * done
            self.look()
            self.of_use = self.of_use and self.lost() <= max(READ_AHEAD, (self._saved + done) // IN_VAIN)
        return self.of_use

    def lost(self) -> int:
        """Bytes that have been saved and have changed since."""
        return self.drafted.within(self._changed)

    def forget(self) -> None:
        """What has changed is as if it had not been saved."""
        self.drafted.forget(self._changed)
        self._changed = []

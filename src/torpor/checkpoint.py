"""The story of a checkpoint: look, refuse or stop, describe, let go, copy.

What can be learned from /proc is learned before the stop, and much memory is saved before it (ahead.py); then the tree is frozen,
and every object kind describes what it sees as records. If little memory is left to be saved, it is read at once; else the kernel
makes a copy of it, copy-on-write (tasks/snapshot.py), the tree is let go, and the pages follow from the copies. Where there is no
copy, they come from the processes themselves, which stand still so long. Nothing appears under the image's name before all of it
is there.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_right

from torpor import arch, preflight
from torpor.collector import Paused
from torpor.errors import Obstacle, TorporError
from torpor.image.format import ARCHITECTURES, Constant, FileData, Header
from torpor.image.writer import ImageWriter
from torpor.linux import headroom, kcmp, procfs, ptrace
from torpor.linux.libc import PAGE
from torpor.linux.signals import Held
from torpor.objects import asking, cow, nodes, processes, signals, tables, threads, timers
from torpor.objects import memory as memory_objects
from torpor.objects.files import events
from torpor.objects.files.seen import look
from torpor.objects.saving import Saving
from torpor.pages import READ_AHEAD, TWO_THREADS, PageWriter
from torpor.tasks import snapshot
from torpor.tasks.remote import Remotes
from torpor.tasks.stopping import Brief, frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from torpor.ahead import Ahead
    from torpor.linux.procfs import Mapping as MappedRange
    from torpor.objects.files.seen import Seen
    from torpor.pages import PageRun, Progress
    from torpor.parent import Parent
    from torpor.tasks.freeze import FrozenProcess, FrozenThread, FrozenTree
    from torpor.tasks.stopping import Stop
    from torpor.tasks.task import Process
    from torpor.tasks.tracking import Tracking

WORTH_SAVING_AHEAD = 256 << 20
"""Bytes of a process in small pages from which it stands still for a shorter time when they are saved before the stop."""

HUGE = READ_AHEAD // 2
"""Bytes in huge pages up to which that is so: they are not watched, and so they are saved in the stop."""

WORTH_A_COPY = 2 << 20
"""Bytes of memory of a process below which to write them is as quick as to have the kernel make a copy."""

ENDS = "it is to end"
"""Why there is no copy of a program that does not go on."""

CAPTURED = 1000
"""Threads whose registers, up to 11 KiB each, are kept until the program goes on."""


def checkpoint(
    pid: int,
    output: str | os.PathLike[str] | int,
    *,
    kill: bool = False,
    progress: Progress | None = None,
    absent: Mapping[int, int] | None = None,
    parent: str | os.PathLike[str] | None = None,
    compress: str = "",
    tracking: Tracking | None = None,
) -> str:
    """Save the process `pid` and all its descendants into the file `output` ("-": standard output; a number: a descriptor).

    The program goes on unless `kill`. `progress` is called with the bytes written and the bytes in all. The processes `absent`
    (id -> wait status) are not stopped; in the image they have ended with that status. `parent`: an earlier image of the program;
    memory that is as it was then is not saved again, and the new image needs the file. `compress`: how memory is compressed,
    "zstd" or "zstd:LEVEL". `tracking` knows what has been written since `parent`, the image it was last given to; after an error
    it does not any more. Returns why the program had to stand still
    until its memory was written; "" when it had not to. Raises TorporError (its subclasses tell which exit code); the program is
    then unharmed and no file has appeared.
    """
    level, earlier = 0, None
    if compress:
        from torpor.image.compression import compressor, level_of

        compressor(level := level_of(compress))  # refused now where there is no library
    if parent is not None:
        from torpor.parent import Parent

        earlier = Parent(parent, output)
    try:
        with Paused():
            return _checkpoint(pid, output, kill, progress, absent or {}, earlier, level, tracking)
    finally:
        if earlier:
            earlier.close()


def _checkpoint(
    pid: int,
    output: str | os.PathLike[str] | int,
    kill: bool,
    progress: Progress | None,
    absent: Mapping[int, int],
    earlier: Parent | None,
    level: int,
    tracking: Tracking | None,
) -> str:
    """The same, a step a line."""
    mappings = preflight.survey(pid, absent)
    here = _Here(pid, mappings)
    little = sum(size for size in here.sizes.values() if size < TWO_THREADS)
    if tracking and earlier:
        little += earlier.image.trailer.data  # as much as the last time, perhaps
    with ImageWriter.open(output, later=True) as writer:  # to check and pack records takes as long as to make them
        saving = Saving(writer, here.code)
        large = _worth_saving_ahead(mappings) if writer.can_amend else []
        if earlier:  # then what was written since is as a rule read in the stop
            large = [pid for pid in large if tracking and tracking.written(pid, _private(mappings[pid])) > READ_AHEAD]
        pages = PageWriter(saving, progress, level, earlier)
        if not large:
            pages.make_room(little)
            return _stop_and_save(pid, kill, absent, _Work(saving, pages, here, mappings, tracking))
        from torpor import ahead
        from torpor.tasks.tracking import Tracking

        watching = tracking or Tracking()
        try:
            # It is to tell of the stop, and is written anew then.
            writer.add(here.header(min(ARCHITECTURES), pid, time.clock_gettime_ns(time.CLOCK_MONOTONIC)))

            def stop() -> Brief:
                return Brief(pid, absent, mappings, lambda pid: here.clock_offsets(pid)[0])

            saved = ahead.save(saving, pages, watching, large, stop)
            now = preflight.survey(pid, absent)
            here.look(now)
            pages.make_room(READ_AHEAD)
            return _stop_and_save(pid, kill, absent, _Work(saving, pages, here, now, tracking, saved))
        finally:
            if watching is not tracking:
                watching.close()


def _stop_and_save(pid: int, kill: bool, absent: Mapping[int, int], work: _Work) -> str:
    """The stop, and what follows it. Returns why the program had to stand still so long, or ""."""
    stop = frozen(pid, absent, work.mappings, lambda pid: work.here.clock_offsets(pid)[0])
    with stop.tree as tree, _Checkpoint(stop, absent, work) as run:
        try:
            try:
                run.describe()
                run.save_memory(kill)
            finally:
                stop.shorten_waits()
        except Exception as error:
            _refuse_the_dead(tree, error)
            raise
        _refuse_the_dead(tree, None)  # what /proc says of them may have been nothing at all
        if not kill:
            tree.thaw()  # the copies and the disk are no business of the program's
        run.write_rest()
        run.writer.finish()
        if kill:
            tree.kill()
    return run.why_not_copied


def _worth_saving_ahead(mappings: Mapping[int, Sequence[MappedRange]]) -> list[int]:
    """The processes, by their mappings, of which memory is to be saved before the stop."""
    found = []
    for pid, ranges in mappings.items():
        huge = sum(mapping.huge_kb for mapping in ranges if not mapping.shared) << 10
        if huge <= HUGE and _private_bytes(ranges) - huge >= WORTH_SAVING_AHEAD:
            found.append(pid)
    return found


def _refuse_the_dead(tree: FrozenTree, error: Exception | None) -> None:
    """Raises TorporError if a process has been killed since it was stopped: by a user, or for want of memory."""
    if pid := tree.killed():
        raise TorporError(Obstacle("process", "it was killed while it was being saved", pid=pid)) from error


def _refuse_a_lost(copy: snapshot.Copy, error: Exception | None) -> None:
    """Raises TorporError if the copy of a process has been killed."""
    if procfs.is_ending(copy.pid):
        reason = "it was killed while it was being written, perhaps for want of memory; the program is unharmed"
        raise TorporError(Obstacle("copy of its memory", reason, "try again", pid=copy.own_pid)) from error


class _Work:
    """What a checkpoint brings to the stop: how the image is written, and what has been seen and saved before.

    `tracking` is the caller's, and knows what has been written since the parent image. `saved`: by process id, what has been saved
    ahead; None if no record has been written yet.
    """

    def __init__(
        self,
        saving: Saving,
        pages: PageWriter,
        here: _Here,
        mappings: dict[int, list[MappedRange]],
        tracking: Tracking | None,
        saved: Mapping[int, Ahead] | None = None,
    ) -> None:
        self.saving, self.pages, self.here, self.mappings = saving, pages, here, mappings
        self.tracking, self.saved = tracking, saved


class _Here:
    """What the image tells of this machine, and what there is to know of the program: asked before anything stands still."""

    def __init__(self, root: int, mappings: Mapping[int, Sequence[MappedRange]]) -> None:
        self.uname = os.uname()
        self.boot_id = procfs.boot_id()
        self._offsets = procfs.timens_offsets(os.getpid())
        try:
            arch.of_program(root).header()  # asked once, and kept
        except OSError:
            pass  # it has just ended
        self.code = nodes.Code()
        self._root = root
        self.look(mappings)

    def look(self, mappings: Mapping[int, Sequence[MappedRange]]) -> None:
        """See what there is in the processes of the program, by their mappings."""
        self.code.look([mapping for ranges in mappings.values() for mapping in ranges])
        self.places = {pid: _places(ranges) for pid, ranges in mappings.items()}
        self.sizes = {pid: _private_bytes(ranges) for pid, ranges in mappings.items()}
        """About how much memory each process has for itself, in bytes."""
        self.room = headroom.available(self._root) if max(self.sizes.values(), default=0) >= WORTH_A_COPY else 0
        """How much more there could be, if one of them is worth a copy; else 0."""
        self.layouts = {pid: cow.Layout(ranges) for pid, ranges in mappings.items()} if len(mappings) > 1 else {}
        """What is compared among relatives; without those there is nothing to compare."""

    def clock_offsets(self, pid: int) -> tuple[int, int]:
        """How far a process's CLOCK_MONOTONIC and CLOCK_BOOTTIME are ahead of torpor's own, in ns (time namespaces)."""
        monotonic, boottime = procfs.timens_offsets(pid)
        return monotonic - self._offsets[0], boottime - self._offsets[1]

    def header(self, architecture: int, root: int, stopped: int) -> Header:
        """The image's header (R-B1), if the process `root` was `stopped` at that time (ns, CLOCK_MONOTONIC)."""
        monotonic_offset, boottime_offset = self.clock_offsets(root)
        return Header(
            arch=architecture,
            page_size=PAGE,
            realtime=time.time_ns(),
            monotonic=stopped + monotonic_offset,
            boottime=time.clock_gettime_ns(time.CLOCK_BOOTTIME) + boottime_offset,
            release=self.uname.release,
            version=self.uname.version,
            machine=self.uname.machine,
            host=self.uname.nodename,
            boot_id=self.boot_id,
            torpor=_version(),
            constants=[
                Constant(name="TASK_COMM_LEN", value=16),
                Constant(name="_NSIG", value=64),
                Constant(name="CLK_TCK", value=os.sysconf("SC_CLK_TCK")),
            ],
        )


class _Checkpoint:
    """One run: the frozen tree, the writer, and what has been written so far."""

    def __init__(self, stop: Stop, absent: Mapping[int, int], work: _Work) -> None:
        self.tree, self.stopped, self.waits, self.absent = stop.tree, stop.since, stop.waits, absent
        self.mappings, self.here, self.saving = work.mappings, work.here, work.saving
        self.writer, self.page_writer, self.work = work.saving.writer, work.pages, work
        self.descriptors: dict[int, list[Seen]] = {}
        self.all_pages: dict[int, list[PageRun]] = {}
        self.pages: dict[int, list[PageRun]] = {}
        """The runs of pages that belong to a process alone, and those of them that are written for it.

        Only of the relatives, which may share pages; of the others it is asked when it is needed.
        """
        self.parents: dict[int, cow.Parent] = {}
        self.sizes: dict[int, int] = {}
        """About how much memory each process has for itself, in bytes."""
        self.relatives: set[int] = set()
        """The processes whose parent or a child of which is in the tree, alive."""
        self.heirs: set[int] = set()
        """The processes whose address spaces will begin as forks of their parents'."""
        self.copies: dict[int, snapshot.Copy] = {}
        self.unguarded: dict[int, memory_objects.Mm] = {}
        """The address spaces whose guard pages are still to be seen, with their pages or in their copies."""
        self.unfinished: list[tuple[memory_objects.Mm, Sequence[MappedRange], list[int]]] = []
        """The address spaces whose mappings, with the files under them, are still to become records, before those are packed."""
        self.writer.before_packing = self.finish_records
        self.told: dict[int, _Told] = {}
        self.written: dict[int, list[tuple[int, int]] | None] = {}
        """What each process has written since the parent image, or since it was saved ahead, where that is known."""
        self.why_not_copied = ""
        self.captured: list[tuple[threads.Captured, int, tuple[int, int]]] = []
        """The threads that are still to become records, each with its process's, and with the call that is to be resumed."""
        self.contents: dict[tuple[int, str | int], Iterator[tuple[int, bytes]]] = {}
        """(file's id, path it is opened by, or offset of a part of it) -> its contents."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.writer.before_packing = None  # a circle: all that has been read would stay in memory until the collector comes
        while self.copies:
            self.copies.popitem()[1].end()

    def describe(self) -> None:
        """Every record of the image and all data but pages, a step a line."""
        self.look_again()
        self.write_header()
        with Held():
            for process in self.tree.alive():
                self.told[process.pid] = self.question(process)
        self.write_descriptors()
        self.relatives = self.tree.relatives()
        for process in self.tree.processes:
            process.shares = process.pid in self.relatives
            self.write_process(process)
        self.write_contents()

    def look_again(self) -> None:
        """Now that nothing moves: see whether anything has changed since the look before the stop."""
        changed = {}
        for process in self.tree.alive():
            pid = process.pid
            if self.here.places.get(pid) != _places(process.mappings):
                self.mappings[pid] = changed[pid] = procfs.smaps(pid)
                self.here.code.note(self.mappings[pid])
                self.here.layouts.pop(pid, None)
                self.sizes[pid] = _private_bytes(self.mappings[pid])
            else:
                self.sizes[pid] = self.here.sizes[pid]
            self.descriptors[pid] = look(pid)
        preflight.refuse(preflight.frozen(self.tree, changed, self.descriptors))

    def write_header(self) -> None:
        """The image's header (R-B1) and its architecture's (R-B2)."""
        kinds = sorted({process.arch.image_id for process in self.tree.alive()}, reverse=True)
        header = self.here.header(kinds[0], self.tree.processes[0].pid, self.stopped)
        if self.work.saved is None:
            self.writer.add(header)
        else:
            self.writer.amend(header)
        for of_arch in {process.arch.header_record: process.arch.header for process in self.tree.alive()}.values():
            self.writer.add(of_arch())

    def question(self, process: FrozenProcess) -> _Told:
        """Let every thread of a process tell what only it can tell."""
        told = _Told()
        with Remotes(process, self.tree) as remotes:
            for thread in process.threads:
                # Before our calls: they use none but the general ones, which are known already, but there is no need to rely on it.
                told.registers[thread.tid] = process.arch.registers.capture(thread.tid)
                remote = remotes.of(thread)
                if thread is process.leader:
                    of_process = processes.ask(remote), signals.ask(remote), timers.ask(remote, process.pid)
                    mine, told.inside, told.actions, of_timers = asking.ask(remote, threads.ask(remote), *of_process)
                    told.threads[thread.tid], (told.interval_timers, told.timers) = mine, of_timers
                    events.find_semaphores(self.descriptors[process.pid], remote)
                    process.restarting = signals.restarting(told.actions)
                else:
                    (told.threads[thread.tid],) = asking.ask(remote, threads.ask(remote))
        return told

    def write_descriptors(self) -> None:
        """Open file descriptions, descriptor tables, working directories."""
        shared = {process.pid: self.sharer(process, kcmp.FILES) for process in self.tree.alive()}
        own = [(pid, table) for pid, table in self.descriptors.items() if shared[pid] == pid]
        tables.save_descriptors(own, self.saving)
        for process in self.tree.alive():
            self.saving.also(("files", process.pid), ("files", shared[process.pid]))
            owner = self.sharer(process, kcmp.FS)
            if owner == process.pid:
                tables.save_fs(process, self.saving)
            self.saving.also(("fs", process.pid), ("fs", owner))
            for seen in self.descriptors[process.pid]:
                self.note_contents(seen)

    def sharer(self, process: FrozenProcess, kind: int) -> int:
        """The id of the oldest ancestor in an unbroken line that shares `kind` (kcmp(2)) with a process; its own if none does."""
        while (parent := process.parent) is not None and not parent.zombie and kcmp.same(process.pid, parent.pid, kind):
            process = parent
        return process.pid

    def note_contents(self, seen: Seen) -> None:
        """Remember a file without a name: its contents go into the image."""
        from torpor.objects.files import paths

        if paths.claims(seen):
            found = paths.found(seen)
            if found.kind in nodes.WITH_CONTENTS:
                number = self.saving.known(found.key)
                self.contents.setdefault((number, found.open_path), nodes.contents_of(found.open_path))

    def write_process(self, process: FrozenProcess) -> None:
        """A process, its address space, its threads."""
        saving = self.saving
        parent = saving.known(("process", process.parent.pid)) if process.parent else 0
        number = saving.new_id()
        record = processes.describe(process, number, parent)
        if process.zombie:
            saving.add(record, ("process", process.pid))
            return
        mine = self.told[process.pid]
        self.note_mapped_contents(process)
        mappings = self.mappings[process.pid]
        space, files = memory_objects.describe(process, mappings, mine.inside.brk, saving)
        self.unguarded[process.pid] = space
        if process.pid in self.relatives:
            self.pages[process.pid] = self.all_pages[process.pid] = self.own_pages(process.pid)
            self.find_heritage(process, space)
        elif self.sizes[process.pid] >= WORTH_A_COPY:
            space.guards = memory_objects.guards(process.pid, mappings, _uncopied)
        self.unfinished.append((space, mappings, files))
        record.mm = saving.add(space, ("mm", process.pid))
        record.handlers = saving.add(signals.Handlers(id=saving.new_id(), actions=mine.actions))
        record.files, record.fs = saving.known(("files", process.pid)), saving.known(("fs", process.pid))
        record.dumpable, record.subreaper = mine.inside.dumpable, mine.inside.subreaper
        record.thp_disable, record.components = mine.inside.thp_disable, mine.inside.components
        pending = ptrace.pending_signals(process.leader.tid, shared=True)
        record.pending = [signals.unpack_siginfo(info, process.arch) for info in pending]
        record.pending += self.ends_of_absent(process)
        saving.add(record, ("process", process.pid))
        saving.add(timers.Timers(process=number, interval_timers=mine.interval_timers, timers=mine.timers))
        for thread in process.threads:
            self.write_thread(thread, number, mine)

    def find_heritage(self, process: FrozenProcess, space: memory_objects.Mm) -> None:
        """Leave out the pages that a child shares with its parent since fork."""
        parent = process.parent
        if parent is None or parent.zombie or parent.arch is not process.arch:
            return
        before, now = self.layout(parent.pid), self.layout(process.pid)
        sharing = self.saving.known(("files", process.pid)) == self.saving.known(("files", parent.pid))
        sharing |= self.saving.known(("fs", process.pid)) == self.saving.known(("fs", parent.pid))
        if not now.related(before):
            return
        if parent.pid not in self.parents:
            self.parents[parent.pid] = cow.Parent(parent.pid, self.all_pages[parent.pid])
        mems = parent.mem, process.mem
        heritage = cow.compare(self.parents[parent.pid], process.pid, self.pages[process.pid], now.kept(before), mems)
        if heritage.shared or sharing:
            self.heirs.add(process.pid)
            space.base = self.saving.known(("mm", parent.pid))
            space.dropped = [memory_objects.Range(start=start, end=start + length) for start, length in heritage.dropped]
            self.pages[process.pid] = heritage.own

    def layout(self, pid: int) -> cow.Layout:
        """A process's, as it was seen before the stop, if it has not changed since."""
        if pid not in self.here.layouts:
            self.here.layouts[pid] = cow.Layout(self.mappings[pid])
        return self.here.layouts[pid]

    def ends_of_absent(self, parent: FrozenProcess) -> list[signals.Queued]:
        """The SIGCHLDs of children that will have ended when the image is restarted, and have not ended yet."""
        return [
            signals.Queued(
                signal=signals.SIGCHLD,
                layout=signals.CHILD,
                errno=0,
                code=1,  # CLD_EXITED
                pid=child.own_pid,
                uid=child.status.uids[0],
                status=child.stat.exit_code >> 8,
            )
            for child in self.tree.processes
            if child.parent is parent and child.pid in self.absent
        ]

    def write_thread(self, thread: FrozenThread, process: int, told: _Told) -> None:
        """A thread; its record and those of its registers follow (`write_threads`)."""
        # Of its general registers those count that the thread will go on with.
        captured = threads.Captured(thread, told.threads[thread.tid], told.registers[thread.tid])
        self.captured.append((captured, process, self.waits[thread.process.pid].left[thread.tid]))
        if len(self.captured) == CAPTURED:
            self.write_threads()

    def write_threads(self) -> None:
        """The threads captured so far and, behind each, the register records that its mask announces (R-B5)."""
        waiting, self.captured = self.captured, []
        for captured, process, resumed in waiting:
            thread, registers = threads.describe(captured, process), captured.arch.registers
            thread.call, thread.left = resumed
            records = [registers.general_record(captured.general), *registers.decode(captured.registers)]
            thread.registers = registers.mask(records)
            for record in (thread, *records):
                self.writer.add(record)

    # -- data

    def note_mapped_contents(self, process: FrozenProcess) -> None:
        """Remember the mapped files without a name."""
        for mapping in self.mappings[process.pid]:
            if mapping.deleted and mapping.inode and not memory_objects.special(mapping):
                ranges = self.mappings[process.pid]
                found = memory_objects.found(mapping, process.pid, ranges)
                number = memory_objects.node_of(mapping, process.pid, ranges, self.saving)
                if found.open_path:
                    self.contents.setdefault((number, found.open_path), nodes.contents_of(found.open_path))
                else:
                    part = memory_objects.seen_contents(process.pid, mapping)
                    self.contents.setdefault((number, mapping.offset), part)

    def write_contents(self) -> None:
        """The contents of files that have no name."""
        opened = {number for number, key in self.contents if isinstance(key, str)}
        for (number, key), parts in self.contents.items():
            if isinstance(key, str) and number not in opened:
                continue  # the same file by another path: written already
            opened.discard(number)
            for offset, data in parts:
                self.writer.add_data(FileData(owner=number, runs=[(offset, len(data))]), [data])

    def save_memory(self, kill: bool) -> None:
        """While nothing moves: a copy of every large memory, if nothing speaks against it, or else its pages into the image."""
        against, stood = ENDS if kill else self.against_copies(), kill
        for process in self.tree.alive():
            large = self.sizes[process.pid] >= WORTH_A_COPY
            if large:
                self.find_written(process)
                if self.write_little(process):
                    continue
                if not against:
                    try:
                        with Held():
                            self.copies[process.pid] = self.copy_of(process)
                    except snapshot.NoCopy as error:
                        against = str(error)
                stood |= process.pid not in self.copies
            self.write_pages(process.pid, process, _uncopied if process.pid in self.copies else _any)
        self.note_guards(self.unguarded.keys() - self.copies.keys())
        self.why_not_copied = against if stood else ""
        if self.work.tracking:
            self.work.tracking.keep(set(self.sizes))

    def find_written(self, process: FrozenProcess) -> None:
        """Find out what a process has written since its memory was last saved."""
        saved = self.saved_ahead(process)
        tracking = saved.tracking if saved else self.work.tracking
        if not tracking:
            return
        with Held():
            written = tracking.since(process, _private(self.mappings[process.pid]), self.tree)
        self.written[process.pid] = written
        if saved and written is not None:
            # What was zero then is left out here; an address space that is to begin as a fork of another one would not have it.
            known = saved.known if process.pid not in self.heirs else saved.drafted.known(zeros=False)
            self.page_writer.known[process.own_pid] = known

    def saved_ahead(self, process: FrozenProcess) -> Ahead | None:
        """What of a process has been saved before the stop."""
        return (self.work.saved or {}).get(process.pid)

    def write_little(self, process: FrozenProcess) -> bool:
        """Read what has not been saved of a large memory, if that is so little that a copy takes longer."""
        written, saved = self.written.get(process.pid), self.saved_ahead(process)
        if written is None or sum(length for _, length in written) > READ_AHEAD or (saved and not saved.of_use):
            return False
        selected = self.page_writer.select(process, self.pages_of(process.pid, process, _any), written)
        if not self.page_writer.has_room(selected):
            return False
        self.page_writer.write(self.saving.known(("mm", process.pid)), process, selected, fresh=process.pid not in self.heirs)
        return True

    def finish_records(self) -> None:
        """Enter what is missing."""
        self.note_guards()
        for space, mappings, files in self.unfinished:
            space.mappings = memory_objects.records(mappings, files)
        self.unfinished.clear()

    def note_guards(self, pids: Iterable[int] | None = None) -> None:
        """Enter the guard pages that have not been looked for yet; only of the processes `pids`, if these are given."""
        for pid in list(self.unguarded if pids is None else pids):
            space, mappings = self.unguarded.pop(pid), self.mappings[pid]
            if pid in self.copies:
                found = memory_objects.guards(self.copies[pid].pid, mappings, lambda mapping: not _uncopied(mapping))
                space.guards = sorted([*space.guards, *found], key=_start)
            else:
                space.guards = memory_objects.guards(pid, mappings, _any)

    def against_copies(self) -> str:
        """What speaks against copies of memory, in words; nothing, as a rule."""
        if max(self.sizes.values()) < WORTH_A_COPY:
            return ""
        for pid, told in self.told.items():
            if told.inside.subreaper:
                return f"process {pid} takes in orphans (PR_SET_CHILD_SUBREAPER), and a copy would be one"
        size, room = sum(self.sizes.values()), self.here.room or headroom.available(self.tree.processes[0].pid)
        if room < size:
            return f"all of its {size >> 20} MiB may change meanwhile, and there is memory for {room >> 20} MiB"
        return ""

    def copy_of(self, process: FrozenProcess) -> snapshot.Copy:
        """Have the kernel make one. Raises NoCopy."""
        with Remotes(process, self.tree) as remotes:
            return snapshot.take(remotes.of(process.leader))

    def write_rest(self) -> None:
        """The registers, the pages in the copies, and what has been read before; the program may be running."""
        try:
            self.note_guards()
        except Exception as error:
            for copy in self.copies.values():
                _refuse_a_lost(copy, error)
            raise
        self.write_threads()
        for pid, copy in list(self.copies.items()):
            try:
                copy.part()
                self.check_copy(pid, copy)
                self.write_pages(pid, copy, lambda mapping: not _uncopied(mapping))
            except Exception as error:
                _refuse_a_lost(copy, error)
                raise
            _refuse_a_lost(copy, None)  # of memory that is gone, too, the kernel says that no page is there
            self.copies.pop(pid).end()  # what the program changes costs memory until then
        self.page_writer.finish()

    def check_copy(self, pid: int, copy: snapshot.Copy) -> None:
        """Raises TorporError if the copy of a process has not all the mappings that it is to have."""
        # Mappings that only a userfaultfd keeps apart are one in the copy.
        theirs = [mapping for mapping in procfs.smaps(copy.pid) if "wf" not in mapping.flags]
        starts = [mapping.start for mapping in theirs]
        for mapping in self.mappings[pid]:
            if _uncopied(mapping) or not memory_objects.private(mapping):
                continue
            index = bisect_right(starts, mapping.start) - 1
            if index < 0 or theirs[index].end < mapping.end:
                # Its flags had been seen before the stop.
                what, reason = f"memory at {mapping.start:#x}", "the program has just said that no child gets it (madvise)"
                raise TorporError(Obstacle(what, reason, "try again", pid=pid))

    def write_pages(self, pid: int, source: Process, wanted: Callable[[MappedRange], bool]) -> None:
        """The pages of the `wanted` mappings of a process, as `source` has them: it, or a copy of it."""
        selected = self.page_writer.select(source, self.pages_of(pid, source, wanted), self.written.get(pid))
        self.page_writer.write(self.saving.known(("mm", pid)), source, selected, fresh=pid not in self.heirs)

    def pages_of(self, pid: int, source: Process, wanted: Callable[[MappedRange], bool]) -> list[PageRun]:
        """Which pages of the `wanted` mappings belong to a process alone, as `source` has them."""
        runs = self.pages.get(pid)
        if runs is None and wanted is _any:
            return self.own_pages(pid)
        if runs is None:
            return list(memory_objects.own_pages(source.pid, [mapping for mapping in self.mappings[pid] if wanted(mapping)]))
        return [run for run in runs if wanted(run[0])]

    def own_pages(self, pid: int) -> list[PageRun]:
        """All pages of a process that stands still. Its guard pages are noted on the way, if they have not been."""
        mappings = self.mappings[pid]
        if pid not in self.unguarded:
            return list(memory_objects.own_pages(pid, mappings))
        found: list[memory_objects.Range] = []
        runs = list(memory_objects.own_pages(pid, mappings, found))
        found += memory_objects.guards(pid, mappings, lambda mapping: mapping.shared)
        self.unguarded.pop(pid).guards = sorted(found, key=_start)
        return runs


class _Told:
    """What the threads of one process have told."""

    inside: processes.Inside

    def __init__(self) -> None:
        self.threads: dict[int, threads.Inside] = {}
        self.registers: dict[int, object] = {}
        self.actions: list[signals.Action] = []
        self.interval_timers: list[timers.IntervalTimer] = []
        self.timers: list[timers.Timer] = []


def _places(mappings: Iterable[MappedRange]) -> list[tuple[int, int, str, int, int]]:
    """What is not alike in mappings of different places and times."""
    return [(mapping.start, mapping.end, mapping.perms, mapping.offset, mapping.inode) for mapping in mappings]


def _private(mappings: Iterable[MappedRange]) -> list[MappedRange]:
    """Those of the mappings whose pages may be a process's own."""
    return [mapping for mapping in mappings if memory_objects.private(mapping)]


def _private_bytes(mappings: Iterable[MappedRange]) -> int:
    """About how much memory a process with these mappings has for itself."""
    private = (mapping for mapping in mappings if not mapping.shared)
    return sum(max(0, mapping.anonymous_kb) + max(0, mapping.swap_kb) << 10 for mapping in private)


def _start(pages: memory_objects.Range) -> int:
    return pages.start


def _any(mapping: MappedRange) -> bool:
    return True


def _uncopied(mapping: MappedRange) -> bool:
    """Whether a child would not get the pages that are there."""
    return not mapping.shared and not mapping.flags.isdisjoint(("dc", "wf"))


def _version() -> str:
    from torpor import __version__

    return __version__

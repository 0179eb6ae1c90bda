"""The commit pass of a restart: the tree that a checked plan describes is made, or nothing is left of it.

Every task is made by its own parent, stopped, and dies with torpor (PTRACE_O_EXITKILL) until the whole tree is complete. The
order: all processes as stubs, parents first; then each one's memory, descriptors, threads; then what needs all of them; then
the registers; then all are let go together.
"""

from __future__ import annotations

import os
import time
from itertools import count

from torpor.arch.waits import NO_LIMIT
from torpor.errors import Obstacle
from torpor.image.chain import sources
from torpor.image.record import Record
from torpor.linux import clone, libc, pidfd, procfs, ptrace, sched
from torpor.linux.libc import PAGE
from torpor.objects import files, memory, processes, signals, tables, threads, timers
from torpor.objects.files import events, paths, terminals
from torpor.objects.files.events import Epoll
from torpor.objects.files.paths import OpenFile
from torpor.objects.files.seen import O_PATH
from torpor.objects.files.terminals import Terminal
from torpor.objects.nodes import NAMED
from torpor.objects.plan import ProcessPlan, sessions
from torpor.tasks import resume, sleeping, spawn
from torpor.tasks.places import find_padding, take_code_away
from torpor.tasks.remote import Remote
from torpor.tasks.retry import Slots
from torpor.tasks.spawn import STUB_LENGTH, Stub

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from torpor.lazy.server import Server
    from torpor.objects.late import Late
    from torpor.objects.making import Making
    from torpor.tasks.task import Thread

    Calls = list[tuple[str | int, ...]]


EPOLL_AT_ONCE = 2048
"""Members of an epoll set that fit into a task's work area."""
AT_FDCWD, F_SETFD, FD_CLOEXEC, RLIMIT_NOFILE = -100, 2, 1, 7


class Rebuilding:
    """A tree in the making. `run` leaves it complete but stopped, `let_go` starts it, `abandon` leaves nothing."""

    def __init__(self, root: ProcessPlan, making: Making, late: Late | None, *, own_groups: bool) -> None:
        """`late`: what comes while the tree runs already; None: the tree runs when all is there."""
        self.root, self.making, self.own_groups, self._late = root, making, own_groups, late
        self.begun = time.monotonic_ns()
        self.warnings: list[Obstacle] = []
        self.remotes: dict[int, Remote] = {}
        self.born: list[int] = []
        self._carriers: dict[tuple[str, int], int] = {}
        """("file" | "std" | "node" | "dir" | "stub", id) -> number under which every stub inherits the description."""
        self._done: set[int] = set()
        """Ids of the shared objects that one of the processes has put in order for all."""
        self._pages = late.now if late else sources(making.image)
        self._sessions = sessions(root)
        self._own: dict[int, int] = {}
        """That number -> our descriptor."""
        self._kinds = {process.arch for process in root.family()}
        self._ignored = procfs.status(os.getpid()).ignored
        self.stub = Stub(self._stub_address(), self._kinds)
        self._opener: Remote | None = None
        # We and the tasks take turns, and a turn is shorter on one processor than between two.
        self._processors = os.sched_getaffinity(0)
        sched.set_affinity(0, [sched.current()])
        self._threads: list[tuple[ProcessPlan, list[tuple[threads.Thread, Thread]]]] = []
        self.server: Server | None = None
        if late is not None:
            from torpor.lazy.server import Server

            self.server = Server(making.image, root.ids())

    def run(self) -> None:
        """Everything up to the instant before the first instruction, a step a line."""
        self.open_files()
        self.make_processes()
        if self.server:
            self.server.serve(self._processors)
        for process in self._alive():
            self._join_group(process)
        for process in self._alive():
            self.place_files(process)
        for process in self._alive():
            self.finish_process(process)

    def let_go(self) -> None:
        """Start every thread of the tree."""
        sched.set_affinity(0, self._processors)  # what we still do is not to be in its way, nor it in ours
        if self.server:
            self.server.go(self.born)
        for _, made in self._threads:
            for _, thread in made:
                ptrace.set_options(thread.tid, 0)
        for _, made in self._threads:
            for _, thread in made:
                try:
                    ptrace.detach(thread.tid)
                except ProcessLookupError:
                    continue  # a thread that was let go before has ended its whole process
        if self.server:
            self.server.stream()
        self.close()

    def abandon(self) -> None:
        """Kill whatever has been made."""
        self._dismiss_opener()
        for pid in reversed(self.born):
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue
        for _, made in self._threads:
            for _, thread in made[1:]:
                _reap(thread.tid)
        for pid in reversed(self.born):
            _reap(pid)
        if self.server:
            self.server.abandon()
        self.close()

    def close(self) -> None:
        """Close our own descriptors of what the tree has open."""
        self.stub.close()
        for fd in self._own.values():
            os.close(fd)
        self._own.clear()
        sched.set_affinity(0, self._processors)
        for remote in self.remotes.values():
            remote.thread.process.close()
        self.making.close()

    # -- descriptors

    def open_files(self) -> None:
        """Open everything that the tree has open or mapped; the stubs inherit it under numbers that no process uses."""
        opened: dict[tuple[str, int], int] = {}

        self.making.narrow = self._open_narrow if any(kind.word == 4 for kind in self._kinds) else None
        for process in self._alive():
            for entry in process.files.entries:
                record = self.making.record(entry.file, Record)
                if isinstance(record, OpenFile) and paths.of_process(record, self.making):
                    continue
                if isinstance(record, Terminal) and entry.fd <= 2:
                    if ("std", entry.fd) not in opened:
                        opened["std", entry.fd] = terminals.standard_stream(entry.fd)
                elif ("file", entry.file) not in opened:
                    opened["file", entry.file] = files.make(record, self.making)
            for lock in process.files.locks:
                if lock.kind != tables.POSIX:  # those belong to the process, which takes them itself
                    entry = next(entry for entry in process.files.entries if entry.fd == lock.fd)
                    tables.take_description_lock(lock, opened["file", entry.file])
            for key, (node, mode) in memory.files_needed(process.mm).items():
                if ("node", key) not in opened:
                    opened["node", key] = self._open_node(node, mode)
            for path in (process.fs.root, process.fs.cwd):
                if ("dir", hash(path)) not in opened:
                    opened["dir", hash(path)] = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._dismiss_opener()
        for index, name in enumerate(self.stub.files):
            opened["stub", index] = os.dup(self.stub.files[name])
        used = {entry.fd for process in self._alive() for entry in process.files.entries}
        first = max(int(fd) for fd in os.listdir("/proc/self/fd")) + 1
        free = (number for number in count(first) if number not in used)
        for key_, fd in opened.items():
            self._carriers[key_] = number = next(free)
            self._own[number] = fd
        self._raise_limit(max(max(self._own), *used, 0) + 1)

    def _open_narrow(self, path: str, flags: int) -> int:
        """Open `path` in a 32-bit stub made for that, and take the descriptor from it."""
        if self._opener is None:
            kind = next(kind for kind in self._kinds if kind.word == 4)
            self._opener = spawn.spawn_root(self.stub, kind, 0, {}, lambda: None)
        remote = self._opener
        remote.prepare()
        remote.reset()
        fd = remote.call("openat", AT_FDCWD, remote.put(os.fsencode(path) + b"\0"), flags)
        try:
            return pidfd.getfd(remote.thread.tid, fd)
        finally:
            remote.call("close", fd)

    def _dismiss_opener(self) -> None:
        if self._opener is not None:
            pid = self._opener.thread.tid
            self._opener.thread.process.close()
            self._opener = None
            os.kill(pid, 9)
            _reap(pid)

    def _raise_limit(self, needed: int) -> None:
        """Let this process, and so the stubs, have `needed` descriptors, if the hard limit allows; else dup2 will say it."""
        soft, hard = procfs.limits(os.getpid())[RLIMIT_NOFILE]
        if needed > hard and clone.capget()[0] >> clone.CAP_SYS_RESOURCE & 1:
            hard = needed
        if needed > soft:
            libc.set_limit(RLIMIT_NOFILE, min(needed, hard), hard)

    def _open_node(self, node_id: int, mode: int) -> int:
        node = self.making.node(node_id)
        path = node.path if node.kind == NAMED else f"/proc/self/fd/{self.making.contents(node)}"
        return os.open(path, mode | os.O_CLOEXEC)

    def _first(self, number: int) -> bool:
        """Whether nobody has asked this for the object `number` before."""
        new = number not in self._done
        self._done.add(number)
        return new

    def _carrier(self, entry: tables.Descriptor) -> int:
        """The number under which the stubs have inherited what descriptor `entry` shall be; -1 if the process opens it itself."""
        number = self._carriers.get(("file", entry.file))
        return self._carriers.get(("std", entry.fd), -1) if number is None else number

    # -- processes

    def _alive(self) -> list[ProcessPlan]:
        return [process for process in self.root.family() if process.alive]

    def _stub_address(self) -> int:
        """An address where the stub fits in every address space of the image."""
        taken = sorted((m.start, m.end) for process in self._alive() for m in process.mm.mappings)
        limit = min(process.arch.user_limit for process in self._alive())
        return memory._free(taken, STUB_LENGTH + PAGE, limit)

    def make_processes(self) -> None:
        """All processes of the tree with their memory, each made by its parent."""
        root = self.root

        def before() -> None:
            if root.record.sid == root.record.pid:
                os.setsid()
            elif root.record.pgid == root.record.pid:
                os.setpgid(0, 0)

        self._have(root, spawn.spawn_root(self.stub, root.arch, root.record.pid, self._own, before))
        self._grow(root)

    def _have(self, process: ProcessPlan, remote: Remote) -> None:
        self.remotes[process.record.pid] = remote
        self.born.append(remote.thread.tid)

    def _grow(self, process: ProcessPlan) -> None:
        """The memory and the children of one process.

        A child that executed a program of its own is made while its parent is small; one that shares pages with it since fork comes
        when these are there. And a child of an older session comes before its parent's setsid.
        """
        waiting = list(process.children)
        leads = process is not self.root and process.record.sid == process.record.pid

        def make(wanted: Callable[[ProcessPlan], bool]) -> None:
            for child in [child for child in waiting if wanted(child)]:
                waiting.remove(child)
                self._make_child(process, child)

        def older(child: ProcessPlan) -> bool:
            return leads and child.record.sid != process.record.pid

        make(lambda child: not _forked(child) and (older(child) or not leads))
        if leads and not any(older(child) for child in waiting):
            self.remotes[process.record.pid].call("setsid")
            leads = False
            make(lambda child: not _forked(child))
        self.fill_memory(process)
        make(older)
        if leads:
            self.remotes[process.record.pid].call("setsid")
        make(lambda child: True)

    def _make_child(self, process: ProcessPlan, child: ProcessPlan) -> None:
        parent, record = self.remotes[process.record.pid], child.record
        if not child.alive:
            spawn.spawn_zombie(parent, record.pid, record.exit_signal, record.exit_status)
            return
        if _forked(child):
            flags = clone.CLONE_FILES if child.files is process.files else 0
            flags |= clone.CLONE_FS if child.fs is process.fs else 0
            remote = spawn.spawn_fork(parent, record.pid, record.exit_signal, flags)
        else:
            program = self._carriers["stub", list(self.stub.files).index(child.arch.name)]
            remote = spawn.spawn_child(parent, self.stub, child.arch, record.pid, record.exit_signal, program)
        self._have(child, remote)
        self._grow(child)

    def _join_group(self, process: ProcessPlan) -> None:
        """Put a process into its process group, if that group's leader is alive, and has come to be in the same session."""
        leaders = {p.record.pid: self._sessions[p.record.pid] for p in self._alive()}
        record = process.record
        if record.sid != record.pid and leaders.get(record.pgid) == self._sessions[record.pid]:
            remote = self.remotes[record.pid]
            if record.pgid != record.pid:
                leader = next(p for p in self._alive() if p.record.pid == record.pgid)
                if leader.record.sid != leader.record.pid:
                    self.remotes[record.pgid].call("setpgid", 0, 0)
            remote.call("setpgid", 0, record.pgid if record.pgid != record.pid else 0)

    def fill_memory(self, process: ProcessPlan) -> None:
        """The address space: made anew in a stub, or changed where it differs from the parent's."""
        remote = self.remotes[process.record.pid]
        base = process.parent.mm if process.parent and _forked(process) else None
        if base is None:
            memory.vacate(remote, process.mm, self.stub.address, STUB_LENGTH)
            padding = find_padding(remote.thread.process, _as_mappings(process.mm))
            remote = Remote(remote.thread, padding, self.stub.work, signal=spawn.QUIET, mapped=True)
            self.remotes[process.record.pid] = remote
            remote.prepare()
        nodes = {key: number for (kind, key), number in self._carriers.items() if kind == "node"}
        pages = self._pages.get(process.mm.id, [])
        stub = self.stub.address, self.stub.work - self.stub.address
        memory.fill(remote, process.mm, base, pages, nodes, stub, self._processors)
        remote.reset()
        if self.server and self._late and (ranges := self._late.ranges.get(process.mm.id)):
            self.server.add(remote, ranges, self._late.later[process.mm.id])

    def place_files(self, process: ProcessPlan) -> None:
        """Root and working directory, then the descriptors into their places, then the locks and what epoll watches."""
        remote = self.remotes[process.record.pid]
        calls = self._directory_calls(process)
        if self._first(process.files.id):
            for other in self._alive():
                # Once the table is as the program had it, those who share it find no directory there any more.
                if other.files.id == process.files.id and (moves := self._directory_calls(other)):
                    self.remotes[other.record.pid].checked(moves)
            calls += tables.place_calls(process.files, self._carrier)
        remote.checked(calls)
        self._open_own(process, remote)
        numbers = {entry.fd for entry in process.files.entries}
        for entry in process.files.entries:
            record = self.making.record(entry.file, Record)
            # A set that parent and child share is filled once, by one that has all its members under their numbers.
            if isinstance(record, Epoll) and record.members <= numbers and self._first(record.id):
                for first in range(0, len(record.watched), EPOLL_AT_ONCE):
                    remote.reset()
                    room = remote.room(12 * EPOLL_AT_ONCE)
                    remote.reset()
                    more, data = events.epoll_calls(record.watched[first : first + EPOLL_AT_ONCE], entry.fd, room, remote.arch)
                    remote.put(data)
                    remote.checked(more)
        for lock in process.files.locks:
            if lock.kind == tables.POSIX:
                remote.reset()
                room = remote.room(32)
                call, data = tables.lock_call(lock, remote.arch, room)
                remote.reset()
                remote.put(data)
                remote.checked([call])

    def _directory_calls(self, process: ProcessPlan) -> Calls:
        """The calls that give a process its root and working directory, unless it shares them with one that has made them."""
        remote, fs = self.remotes[process.record.pid], process.fs
        remote.reset()
        if not self._first(fs.id):
            return []
        calls: Calls = []
        if fs.root != "/":
            calls += [("fchdir", self._carriers["dir", hash(fs.root)]), ("chroot", remote.put(b".\0"))]
        return [*calls, ("fchdir", self._carriers["dir", hash(fs.cwd)]), ("umask", fs.umask)]

    def _open_own(self, process: ProcessPlan, remote: Remote) -> None:
        """Have the process open what is its own in /proc."""
        for entry in process.files.entries:
            record = self.making.record(entry.file, Record)
            if isinstance(record, OpenFile) and (path := paths.of_process(record, self.making)):
                remote.reset()
                fd = remote.call("openat", AT_FDCWD, remote.put(os.fsencode(path) + b"\0"), record.flags)
                if record.position and not record.flags & O_PATH:
                    remote.call("lseek", fd, record.position, os.SEEK_SET)
                if fd != entry.fd:
                    remote.checked([("dup3", fd, entry.fd, os.O_CLOEXEC if entry.cloexec else 0), ("close", fd)])
                elif entry.cloexec:
                    remote.call("fcntl", fd, F_SETFD, FD_CLOEXEC)

    def finish_process(self, process: ProcessPlan) -> None:
        """Threads with all that is theirs, timers, pending signals, credentials, registers."""
        remote = self.remotes[process.record.pid]
        record = process.record
        made: list[tuple[threads.Thread, Thread]] = [(process.threads[0].record, remote.thread)]
        self._threads.append((process, made))
        for plan in process.threads[1:]:
            made.append((plan.record, spawn.spawn_thread(remote, plan.record.tid)))
        remotes = [remote]
        for _, thread in made[1:]:
            remotes.append(Remote(thread, remote.code_at, remote.work_at, signal=spawn.QUIET, mapped=True))
        remote.reset()
        attributes = processes.attribute_calls(record, process.arch)
        rooms = [own.arch.registers.room(plan.registers) for plan, own in zip(process.threads, remotes, strict=True)]
        if any(rooms):
            # Code that makes the kernel have room ends in a breakpoint, at which it forgets that SIGTRAP is ignored or blocked
            # (force_sig_info_to_task()): so this comes before the actions, and behind what asks for the registers.
            remote.checked(attributes)
            attributes = []
            for needed, own in zip(rooms, remotes, strict=True):
                if needed:
                    own.reset()
                    own.execute(needed.code, {**needed.registers, needed.pointer: own.put(needed.data)})
            remote.prepare()
            remote.reset()
        room = remote.room(40 * 65)
        remote.reset()
        inherited = signals.EVERY if _forked(process) else self._ignored
        calls, data = signals.tell_actions(process.handlers.actions, inherited, room, remote.arch)
        remote.put(data or b"\0")
        leader = process.threads[0]
        calls += attributes
        remote.checked(calls + threads.attach_calls(leader.record, remote) + process.arch.own_calls(leader.registers))
        for plan, own in zip(process.threads[1:], remotes[1:], strict=True):
            own.reset()
            own.prepare()
            own.checked(threads.attach_calls(plan.record, own) + own.arch.own_calls(plan.registers))
        remote.prepare()
        remote.reset()
        self.warnings += processes.set_oom_score(record, remote.thread.tid)
        if process.timers is not None:
            timers.restore(process.timers, remote)
        self._drop_child_signals(process, remote)
        self._queue_signals(process, remotes)
        # Now that nothing is made any more that a limit could forbid: a program may have lowered it afterwards.
        remote.prepare()
        remote.reset()
        self.warnings += processes.set_limits(record, remote)
        # The leader last: any thread's new credentials would undo what it says of the whole process (commit_creds()).
        for plan, own in zip(process.threads[::-1], remotes[::-1], strict=True):
            own.prepare()
            own.reset()
            calls = threads.credential_calls(plan.record, record.groups, own, self.own_groups)
            if own is remote:
                calls.append(("prctl", processes.PR_SET_DUMPABLE, 1 if record.dumpable == 1 else 0))
            own.checked(calls)
        slots = Slots(remote.thread.process, remote.code_at)
        for plan, own in zip(process.threads, remotes, strict=True):
            self._give_registers(plan.record, plan.registers, own)
            if own.arch.rewinds:
                queued = plan.record.pending + (record.pending if own is remote else [])
                action = signals.first_handled(queued, plan.record.blocked, process.handlers.actions)
                if action is not None:
                    own.thread.regs = own.arch.handled(own.thread.regs, bool(action.flags & signals.SA_RESTART))
            if own.arch.pending_call(own.thread.regs) is None and own.arch.retried(plan.record.call):
                slots.put(own.thread, plan.record.call, plan.record.left)
        for plan, own in zip(process.threads, remotes, strict=True):
            self.warnings += threads.schedule(plan.record, own.thread.tid, self._processors)
        self._leave(process, remotes)

    def _drop_child_signals(self, process: ProcessPlan, remote: Remote) -> None:
        """Take away the signals (mostly SIGCHLD) that making its zombies has sent."""
        sent = {child.record.exit_signal for child in process.children if not child.alive} - {0}
        if sent:
            remote.reset()
            wanted = remote.put(remote.arch.sigset(sum(1 << number - 1 for number in sent)))
            nothing = remote.put(bytes(16))
            for _ in process.children:
                remote.batch([("rt_sigtimedwait", wanted, 0, nothing, 8)])

    def _queue_signals(self, process: ProcessPlan, remotes: list[Remote]) -> None:
        """Queue what was pending, by the process itself: only it may use any si_code."""
        leader = remotes[0]
        for queued in process.record.pending:
            leader.prepare()
            leader.reset()
            info = leader.put(signals.pack_siginfo(queued, leader.arch))
            leader.checked([("rt_sigqueueinfo", process.record.pid, queued.signal, info)])
        for plan, own in zip(process.threads, remotes, strict=True):
            for queued in plan.record.pending:
                own.prepare()
                own.reset()
                info = own.put(signals.pack_siginfo(queued, own.arch))
                own.checked([("rt_tgsigqueueinfo", process.record.pid, plan.record.tid, queued.signal, info)])

    def _give_registers(self, record: threads.Thread, registers: list[Record], own: Remote) -> None:
        """Extended registers, and the interrupted call that needs a restart block."""
        sets = own.arch.registers
        own.thread.regs = sets.general_dict(registers[0])
        own.thread.mask = record.blocked
        own.prepare()
        own.reset()
        resume.rebuild_restart_block(own, record.call, record.left)
        sets.write(own.thread.tid, registers)

    def _leave(self, process: ProcessPlan, remotes: list[Remote]) -> None:
        """Unmap the work area; from here on every thread only needs to be let go."""
        for own in remotes[1:]:
            own.mapped = False
            own.cure()
        leader = remotes[0]
        leader.prepare()
        leader.cure()
        take_code_away(leader.thread.process, leader.code_at)
        # The program's clock goes on from the checkpoint, since just before the first process was made.
        started = self.making.image.header.monotonic + time.monotonic_ns() - self.begun
        waits = [
            (plan.record.tid, plan.record.call, registers[own.arch.sp], started + plan.record.left)
            for plan, own in zip(process.threads, remotes, strict=True)
            if plan.record.call >= 0 and plan.record.left != NO_LIMIT
            for registers in [own.arch.registers.general_dict(plan.registers[0])]
        ]
        sleeping.note(leader.thread.process, leader.code_at, waits)
        if process.record.stopped_by:
            self._stop_again(process, remotes)

    def _stop_again(self, process: ProcessPlan, remotes: list[Remote]) -> None:
        """Put the process back into the job-control stop it was in.

        By SIGSTOP, whatever stopped it: the other three do not stop a process that blocks them, or whose process group is
        orphaned, as that of a restart is.
        """
        for own in remotes:
            ptrace.cont(own.thread.tid, signals.SIGSTOP if own is remotes[0] else 0)
        for own in remotes:
            while True:
                status = ptrace.wait(own.thread.tid)
                if status is None or not os.WIFSTOPPED(status) or status >> 16 == ptrace.EVENT_STOP:
                    break
                # From the end of a call (Arch.resumes_at_end) the signal only comes to be delivered.
                ptrace.cont(own.thread.tid, signals.SIGSTOP if status >> 8 == signals.SIGSTOP else 0)


def _forked(process: ProcessPlan) -> bool:
    """Whether a process is made by fork from its finished parent, and has executed nothing since."""
    return process.alive and process.mm.base != 0


class _Place:
    """A mapping of the image, as tasks.places wants to see it."""

    __slots__ = ("end", "flags", "path", "start")

    def __init__(self, start: int, end: int, path: str) -> None:
        self.start, self.end, self.path = start, end, path
        self.flags: frozenset[str] = frozenset()


def _as_mappings(mm: memory.Mm) -> list:  # type: ignore[type-arg]
    return [_Place(m.start, m.end, m.name) for m in mm.mappings]


def _reap(pid: int) -> None:
    while True:
        try:
            status = ptrace.wait(pid)
        except ChildProcessError:
            return
        if status is None or not os.WIFSTOPPED(status):
            return

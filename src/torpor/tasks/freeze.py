"""Stopping a whole process tree, and letting it go.

A stop is PTRACE_SEIZE and PTRACE_INTERRUPT of every thread: it is taken at the boundary to user space, so that all registers are
to be had (R-A3), it sends no signal and the parent sees nothing. Parents are stopped before their children are looked for, so
no child is missed, and a parent that waits in vfork(2) gets its child's execve or exit before it stops (R-A3, "pretty soon").

ptrace belongs to a thread: everything here must happen in the thread that called `freeze`. If that thread ends, the kernel
lets every task go.
"""

from __future__ import annotations

import errno
import os
import time

from torpor import arch
from torpor.errors import NoPermission, Obstacle, TorporError, Unsupported
from torpor.linux import procfs, ptrace, sched
from torpor.linux.signals import Changes
from torpor.tasks import interrupted
from torpor.tasks.phase import FROZEN, NONE, STOPPING, THAWED, enter_phase
from torpor.tasks.places import Busy, find_padding
from torpor.tasks.task import Process, Thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Mapping as Mapping_
    from types import TracebackType

    from torpor.arch.contract import Seen
    from torpor.linux.procfs import Mapping, Stat, Status

STOP_SIGNALS = (19, 20, 21, 22)  # SIGSTOP SIGTSTP SIGTTIN SIGTTOU

PATIENCE = 10.0
"""Seconds to wait for a task that is busy in the kernel (vfork, a slow disk) before the checkpoint is refused."""
_LOOK, _ASK_AGAIN = 0.001, 1.0
"""Seconds after which a thread is looked at although nothing has told of a change, and is asked again to stop."""
_SOON = 0.1
"""Seconds in which a thread should have stopped that is to be let go again, or another one have executed its program."""


CLOCK_TRIES = 6
"""How often at most a thread that is reading a clock is let go for a moment. A reading takes some 50 ns, so that once is enough."""


RUN_TRIES = 200
"""How often at most it is asked whether that thread has been given a processor: for some 20 ms."""


SEIZE_TRIES = 20
"""How often at most it is tried to become the tracer of a thread that nobody traces."""


MIDWAY_TRIES = 1000
"""How often at most a thread is let go that has not yet come back into its call: until it is given a processor."""


class _Changed(Exception):
    """While a process was being stopped it has executed another program, or its first thread has ended: it is looked at anew."""


class FrozenThread(Thread):
    """A thread that has been stopped.

    `stopped_by` is the signal of the job-control stop that it was in already, or 0.
    """

    __slots__ = ("issued_again", "sp_found", "status", "stopped_by", "was_in_slot")

    process: FrozenProcess
    sp_found: int
    """The stack pointer that it was stopped with: in a slot, perhaps another than it goes on with."""
    issued_again: int
    """The number of the call that it was in, if our stop has ended that and `regs` issue it again; else -1."""
    was_in_slot: bool
    """Whether it was in the slot that an earlier stop has put it into (tasks/retry.py)."""

    def __init__(self, process: FrozenProcess, tid: int, stopped_by: int, seen: Seen | None) -> None:
        interrupted.hasten(process.arch, tid, seen)
        enter_phase(NONE)
        registers = process.arch.registers.read_general(tid)
        if not process.threads:
            process.padding, process.vdso = padding_of(process)
        if process.arch.rewinds:
            registers = process.arch.looked_at(registers, seen)
        self.stopped_by, self.issued_again, self.sp_found = stopped_by, -1, registers[process.arch.sp]
        self.was_in_slot = False
        self.status = procfs.status(process.pid, tid)
        super().__init__(process, tid, self.status.ns_pid[-1], registers, ptrace.get_signal_mask(tid))
        interrupted.settle(self)

    def reads_clock(self) -> bool:
        """Whether it was stopped in the middle of the vdso, which reads clocks without a call (vdso(7)).

        Not in a job-control stop, of course: it must not run on, wherever it is.

        After a restart it would finish with what it has read before and the offset of its new time namespace: one reading
        of a clock that jumps. A 32-bit thread makes its calls there, too, and is in none of them unless it is in a call.
        """
        process = self.process
        inside = self.regs[process.arch.ip] in process.vdso
        running = not self.stopped_by and self.issued_again < 0 and process.arch.pending_call(self.regs) is None
        return inside and running

    def midway(self) -> bool:
        """Whether only the kernel knows where it goes on."""
        mem = self.process.mem
        return self.process.arch.midway(self.regs, lambda address, length: os.pread(mem, length, address))


class FrozenProcess(Process):
    """A process whose threads are all stopped, or a zombie (no threads)."""

    __slots__ = ("disturbed", "hole", "mappings", "padding", "parent", "restarting", "second", "stat", "status", "threads",
                 "under_second", "vdso")  # fmt: skip

    status: Status
    restarting: int | None
    """The signals whose handlers have SA_RESTART, bit n-1 for signal n; None until the process has been asked."""
    padding: int
    """Where torpor's code can lie: the padding of its vdso; 0 if it has none."""
    disturbed: bool
    """Whether one of its threads may not have its own registers: it is let go as it is, and heals by itself (tasks/remote.py)."""
    second: int
    """Where it can lie once more at the same time; 0 if nowhere, or if there is no need to know (the same)."""
    under_second: bytes
    """What the kernel has put there."""
    vdso: range
    """Where its vdso lies, up to torpor's code; empty if it has none."""
    mappings: list[Mapping]
    """What is mapped while it stands still, as procfs.maps says (tasks.places.make_place)."""
    hole: int
    """Where nothing is mapped, and torpor's work area can be (the same)."""

    def __init__(self, pid: int, parent: FrozenProcess | None) -> None:
        super().__init__(pid, 0)
        self.parent = parent
        self.restarting = None
        self.disturbed = False
        self.second, self.under_second = 0, b""
        self.stat = procfs.stat(pid)
        self.threads: list[FrozenThread] = []

    def settle(self, stat: Stat, status: Status) -> None:
        """What /proc says of it now that nothing of it changes any more."""
        self.stat, self.status, self.own_pid = stat, status, status.ns_tgid[-1]

    @property
    def zombie(self) -> bool:
        """It has ended and its parent has not yet asked how."""
        return not self.threads

    @property
    def leader(self) -> FrozenThread:
        """The thread whose id is the process's."""
        return self.threads[0]


class FrozenTree:
    """A stopped process tree, parents before children. Leaving the `with` block lets it go."""

    def __init__(self) -> None:
        self.processes: list[FrozenProcess] = []
        self.lost_signals: list[tuple[int, int]] = []
        self._seized: set[int] = set()
        self._executed: set[int] = set()
        """Processes that have executed another program while they were being stopped."""
        self.changes = Changes()
        """Wakes us when a thread has stopped."""

    def __enter__(self) -> FrozenTree:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.thaw()

    def threads(self) -> Iterator[FrozenThread]:
        """Every thread of the tree."""
        for process in self.processes:
            yield from process.threads

    def alive(self) -> Iterator[FrozenProcess]:
        """Every process that is not a zombie."""
        return (process for process in self.processes if not process.zombie)

    def relatives(self) -> set[int]:
        """The ids of the processes whose parent or a child of which is in the tree, alive: they may share pages."""
        families = ((each, each.parent) for each in self.alive() if each.parent and not each.parent.zombie)
        return {process.pid for family in families for process in family}

    def killed(self) -> int:
        """The id of a process that has been killed since it was stopped; 0: there is none."""
        return next((process.pid for process in self.alive() if procfs.is_ending(process.pid)), 0)

    def thaw(self) -> None:
        """Let every task go on as if nothing had been."""
        for thread in self.threads():
            if thread.process.arch.rewinds and thread.tid in self._seized:
                _ignoring_gone(interrupted.release, thread)
        for tid in self._seized:
            try:
                ptrace.detach(tid)
            except ProcessLookupError:
                _let_go(tid)
        self._seized.clear()
        for pid, signal in self.lost_signals:
            _ignoring_gone(os.kill, pid, signal)
        self.lost_signals.clear()
        for process in self.processes:
            process.close()
        enter_phase(THAWED)

    def kill(self) -> None:
        """End every process of the tree by SIGKILL and wait until the kernel has taken its threads down."""
        for process in self.alive():
            _ignoring_gone(os.kill, process.pid, 9)
        for process in self.alive():
            # A traced thread stays a zombie until its tracer has waited for it, and the leader until all others are gone.
            for thread in reversed(process.threads):
                if thread is process.leader and process.stat.ppid == os.getpid():
                    # The caller's own child: how it ended is for the caller to ask.
                    os.waitid(os.P_PID, thread.tid, os.WEXITED | os.WNOWAIT)
                else:
                    ptrace.wait_gone(thread.tid)
            process.close()
        self._seized.clear()
        enter_phase(THAWED)

    # -- stopping

    def add(self, pid: int, parent: FrozenProcess | None) -> FrozenProcess:
        """Stop one process and all its threads."""
        while True:
            process = FrozenProcess(pid, parent)
            try:
                if process.stat.state in "ZX":
                    self._add_zombie(process)
                else:
                    self._stop_all(process)
            except _Changed:
                self._executed.add(pid)
                self._begin_again(process)
                continue
            except BaseException:
                self._begin_again(process)
                raise
            self.processes.append(process)
            return process

    def _begin_again(self, process: FrozenProcess) -> None:
        """Let those threads of a process go that have stopped; the others have been asked to, and stop when we look again.

        Also what an earlier attempt has left: what stops twice tells of it once, and a thread whose stop has been heard of would
        be waited for in vain.
        """
        for tid in self._seized - {thread.tid for thread in self.threads()}:
            try:
                ptrace.detach(tid)
                self._seized.discard(tid)
            except ProcessLookupError:
                if not ptrace.traced(tid):
                    self._seized.discard(tid)
        process.close()

    def _add_zombie(self, process: FrozenProcess) -> None:
        """A process that has ended. Raises _Changed when only its first thread has, for another one that executes a program."""
        pid, deadline = process.pid, time.monotonic() + _SOON
        while True:
            alone = procfs.threads(pid) == [pid]
            if procfs.stat(pid).state not in "ZX":
                raise _Changed
            if alone:
                break
            if time.monotonic() > deadline:
                raise Unsupported(
                    Obstacle(
                        "first thread",
                        "it has ended while other threads go on, and its registers are gone",
                        "checkpoint the program before its main thread calls pthread_exit",
                        pid=pid,
                    )
                )
            time.sleep(_LOOK)
        process.settle(process.stat, procfs.status(process.pid))

    def _stop_all(self, process: FrozenProcess) -> None:
        """Stop all threads of a process. Raises _Changed.

        When its first thread has ended, it is a zombie now, gone, or, with other threads left, what cannot be saved; or its place
        has been taken by another thread, which may be ours already.
        """
        pid = process.pid
        # What follows is true of the program that it executes, and from here on we are told of another one.
        if not self._seize(process, pid):
            raise _Changed
        process.arch = arch.of_program(pid)
        ended: set[int] = set()
        while True:
            known = ended | {thread.tid for thread in process.threads}
            new = [tid for tid in procfs.threads(pid) if tid not in known]
            if not new:
                break
            # One at a time: between the stop of a thread and `interrupted.hasten` lies the one instant at which the death of
            # torpor could show, as EINTR from a call that any stop ends.
            for tid in new:
                if thread := self._take(process, tid):
                    process.threads.append(thread)
                else:
                    ended.add(tid)
        if pid in ended:
            raise _Changed
        stat, news = procfs.stat(pid), ptrace.news(pid)
        if stat.state != "t" or news:
            # Another thread than the first has executed a program, and is the first one now: ours, or nobody's.
            if procfs.is_ending(pid):
                raise ProcessLookupError(3, f"process {pid} is ending")
            if not news:
                self._seized.discard(pid)
            raise _Changed
        process.settle(stat, process.threads[-1].status)

    def add_absent(self, pid: int, parent: FrozenProcess | None, status: int) -> None:
        """Take a running process for one that has ended with the wait status `status`."""
        process = FrozenProcess(pid, parent)
        process.settle(process.stat, procfs.status(pid))
        process.stat.exit_code = status
        self.processes.append(process)

    def _take(self, process: FrozenProcess, tid: int) -> FrozenThread | None:
        """One thread, stopped; None if it has ended."""
        if not self._seize(process, tid):
            return None
        places: list[int] = []
        while True:
            signal, seen = self._stop(process, tid)
            if signal < 0:
                return None
            thread = FrozenThread(process, tid, signal, seen)
            places.append(thread.regs[process.arch.ip])
            if thread.reads_clock() and thread.midway():
                if len(places) > MIDWAY_TRIES:
                    raise Busy(Obstacle(f"thread {tid}", "it is just going back into a call", "try again", pid=process.pid))
                ptrace.cont(tid)
                time.sleep(1e-4)
                continue
            # A thread that does nothing else is found again and again where the counter is read: there it does no harm,
            # for what is read is checked afterwards.
            same = len(places) > 2 and len(set(places[-3:])) == 1
            if not thread.reads_clock() or same or len(places) > CLOCK_TRIES:
                return thread
            _let_run(process.pid, tid)

    def _await_disk(self, process: FrozenProcess, tid: int) -> None:
        """Wait while a thread sleeps where no signal reaches it (vfork(2), a disk). Raises Unsupported when that lasts too long.

        Nothing has been asked of it then. What was asked to stop, and could not, would stop later, when nobody lets it go on.
        """
        pid, since, waited = process.pid, None, 0.0
        try:
            stat = process.stat if tid == pid else procfs.stat(pid, tid)
            while stat.state == "D":
                ran = procfs.exec_start(pid, tid)
                if waited and ran != since:
                    return  # one wait after the other: it will stop between two of them
                if waited > PATIENCE:
                    raise _busy(pid, tid)
                time.sleep(_LOOK)
                since, waited, stat = ran, waited + _LOOK, procfs.stat(pid, tid)
        except (FileNotFoundError, ProcessLookupError):
            pass  # it has ended

    def _seize(self, process: FrozenProcess, tid: int) -> bool:
        """Become the tracer of one thread, if we are not; False if it has ended meanwhile."""
        if tid in self._seized:
            return True
        self._await_disk(process, tid)
        pid = process.pid
        for left in reversed(range(SEIZE_TRIES)):
            try:
                ptrace.seize(tid, ptrace.O_TRACESYSGOOD | ptrace.O_TRACEEXEC)
                break
            except ProcessLookupError:
                return False
            except PermissionError:
                try:
                    status = procfs.status(pid, tid)
                except (FileNotFoundError, ProcessLookupError):
                    return False
                if status.state in "ZX":
                    return False
                if tid in self._executed and status.tracer_pid == os.getpid():
                    break  # we were the tracer of another thread, which has this id now
                if status.tracer_pid or not left:
                    raise _not_ours(pid, tid, status.tracer_pid) from None
                # Perhaps it had just ended, and another thread, which executes a program, has got its id.
        self._seized.add(tid)
        return True

    def _stop(self, process: FrozenProcess, tid: int) -> tuple[int, Seen | None]:
        """Stop a seized thread. Returns the signal of the group-stop it was in already, 0, or -1: it has ended.

        And, where the stop hides it, in which call it was seen right before. Raises _Changed.
        """
        pid, seen = process.pid, None
        try:
            seen = _seen(process, tid)
            enter_phase(STOPPING)
            ptrace.interrupt(tid)
        except (FileNotFoundError, ProcessLookupError):
            self._seized.discard(tid)
            return -1, None
        waited, asked = 0.0, 0.0
        while True:
            status, ours = None, True
            try:
                status = ptrace.wait(tid, block=False)
            except ChildProcessError:
                ours = False
            if status is None and not (ours and waited == 0) and not _traced_by_us(pid, tid):
                # Another thread executes a program: it has become the first one of the process, or has made room for that.
                self._seized.discard(tid)
                raise _Changed
            if status is None:
                if waited > PATIENCE:
                    raise _busy(pid, tid)
                if waited - asked > _ASK_AGAIN:
                    # To ask a thread twice is to ask it once. It costs nothing against whatever has used the first one up.
                    _ignoring_gone(ptrace.interrupt, tid)
                    asked = waited
                before = time.monotonic()
                self.changes.wait(_LOOK)
                # When the machine or torpor itself has stood still meanwhile, the thread had no time either.
                waited += min(time.monotonic() - before, 10 * _LOOK)
            elif not os.WIFSTOPPED(status):
                self._seized.discard(tid)
                return -1, None
            elif status >> 16 == ptrace.EVENT_STOP:
                signal = status >> 8 & 0xFF
                return (signal if signal in STOP_SIGNALS else 0), seen
            elif status >> 16 == ptrace.EVENT_EXEC:
                _ignoring_gone(ptrace.cont, tid)
                raise _Changed
            else:
                # A signal was about to be delivered: deliver it, or it is lost. That stop has used our interrupt up: ask again,
                # and first, for a signal without a handler is to leave an interrupted call as the kernel has interrupted it.
                seen = None
                _ignoring_gone(ptrace.interrupt, tid)
                _ignoring_gone(ptrace.cont, tid, 0 if status >> 16 else status >> 8 & 0xFF)


def _let_go(tid: int) -> None:
    """Stop being the tracer of a thread that has not stopped yet, or that has been killed.

    One that does not stop soon is let go by the kernel when our own thread ends.
    """
    try:
        ptrace.interrupt(tid)
        deadline = time.monotonic() + _SOON
        while (status := ptrace.wait(tid, block=False)) is None and time.monotonic() < deadline:
            time.sleep(_LOOK)
        if status is not None and os.WIFSTOPPED(status):
            event, signal = status >> 16, status >> 8 & 0xFF
            ptrace.detach(tid, 0 if event else signal)
    except (ProcessLookupError, ChildProcessError):
        pass  # it has ended


def _traced_by_us(pid: int, tid: int) -> bool:
    """Whether there is such a thread in the process, and this process is its tracer."""
    try:
        return procfs.status(pid, tid).tracer_pid == os.getpid()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _let_run(pid: int, tid: int) -> None:
    """Let a stopped thread execute some instructions."""
    before = procfs.times_run(pid, tid)
    ptrace.cont(tid)
    for _ in range(RUN_TRIES):
        time.sleep(1e-6)  # with the kernel's slack some 60 us; sooner it would not come to its next instruction
        if before is None or procfs.times_run(pid, tid) != before:
            return  # on a busy machine others are given the processor first


def _seen(process: FrozenProcess, tid: int) -> Seen | None:
    """The call that a thread is in, where that cannot be seen any more when it has stopped."""
    return procfs.syscall(process.pid, tid) if process.arch.rewinds else None


def _stopped(tree: FrozenTree, pid: int, parent: FrozenProcess | None) -> FrozenProcess | None:
    """A process of the tree, stopped, or as the zombie that it is about to become; None if it is gone."""
    while True:
        try:
            return tree.add(pid, parent)
        except (FileNotFoundError, ProcessLookupError):
            # It is ending: one file of /proc after the other goes, until a zombie is left, which its stopped parent cannot reap.
            if not procfs.exists(pid):
                return None
            time.sleep(0.0002)


def padding_of(process: FrozenProcess) -> tuple[int, range]:
    """Where torpor's code can lie, 0 if nowhere (preflight will say so); and the vdso without it. Raises _Changed."""
    mappings = procfs.maps(process.pid)
    try:
        padding = find_padding(process, mappings)
    except Unsupported:
        return 0, range(0)
    except OSError as error:
        if error.errno == errno.EIO:  # what was mapped a moment ago: another thread has executed a program, and so ended this one
            raise _Changed from None
        raise
    vdso = next((range(mapping.start, mapping.end) for mapping in mappings if mapping.path == "[vdso]"), range(0))
    return padding, range(vdso.start, padding) if padding in vdso else vdso


def freeze(root: int, absent: Mapping_[int, int]) -> FrozenTree:
    """Stop process `root` and all its descendants.

    The processes `absent` (id -> wait status) are left alone, and stand in the tree as zombies of that status. Raises
    ProcessLookupError (no such process), NoPermission, Unsupported; then nothing is stopped any more.
    """
    tree = FrozenTree()
    # First in the queue for a processor, where that may be had: the program stands still, and its threads are stopped one by one.
    with sched.Urgent(), tree.changes:
        return _freeze(tree, root, absent)


def _freeze(tree: FrozenTree, root: int, absent: Mapping_[int, int]) -> FrozenTree:
    try:
        waiting: list[tuple[int, FrozenProcess | None]] = [(root, None)]
        while waiting:
            pid, parent = waiting.pop(0)
            if pid in absent:
                tree.add_absent(pid, parent, absent[pid])
                continue
            process = _stopped(tree, pid, parent)
            if process is None:
                if parent is None:
                    raise ProcessLookupError(3, f"there is no process {pid}")
                continue  # a child that was reaped by another child's end before it could be stopped
            if not process.zombie:
                waiting += [(child, process) for child in sorted(procfs.children(pid))]
    except BaseException:
        tree.thaw()
        raise
    enter_phase(FROZEN)
    return tree


def _ignoring_gone(function: object, *args: object) -> None:
    try:
        function(*args)  # type: ignore[operator]
    except ProcessLookupError:
        pass


def _not_ours(pid: int, tid: int, tracer: int) -> TorporError:
    if tracer:
        return NoPermission(
            Obstacle(
                "process" if pid == tid else f"thread {tid}",
                f"it is being traced by process {tracer} already",
                "end that debugger first",
                pid=pid,
            )
        )
    return NoPermission(
        Obstacle(
            "process",
            "the kernel does not let this user trace it (ptrace(2), 'ptrace access mode checking')",
            "run torpor as the user whose process it is, or as root",
            pid=pid,
        )
    )


def _busy(pid: int, tid: int) -> Unsupported:
    ran = procfs.exec_start(pid, tid)
    time.sleep(0.1)
    where, state = procfs.wchan(pid, tid), procfs.stat(pid, tid).state
    if state == "R" and ran is not None and ran == procfs.exec_start(pid, tid):
        reason = f"it has been given no processor for {PATIENCE:.0f} s, and so it cannot be stopped"
        remedy = "try again when others leave it one"
    else:
        place = f", in {where}" if where else ""
        reason = f"it has been busy in the kernel for {PATIENCE:.0f} s and cannot be stopped there (state {state}{place})"
        remedy = "try again when the vfork child has called execve, or the disk or network file system answers"
    return Unsupported(Obstacle("process" if pid == tid else f"thread {tid}", reason, remedy, pid=pid))

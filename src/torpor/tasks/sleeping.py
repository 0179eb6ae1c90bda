"""How much of a sleep is left: what the kernel knows and tells nobody.

A task that waits with a time limit left its CPU when it went to sleep, and /proc/PID/sched says when (`se.exec_start`), on that
CPU's task clock. The offset of that clock to CLOCK_MONOTONIC is found by sleeping on the same CPU and reading one's own. Both
must be read *before* the stop, which wakes the task. Source: kernel/sched/fair.c, update_stats_curr_start().

A stop resets exec_start, so what a checkpoint has found out is left behind for the next one: a note of 24 bytes in the
padding of the task's vdso, next to where torpor's code lies while it is needed.
"""

from __future__ import annotations

import os
import struct
import time

from torpor import arch
from torpor.arch.contract import ERESTART_RESTARTBLOCK
from torpor.arch.waits import NO_LIMIT
from torpor.errors import Unsupported
from torpor.linux import memory, procfs
from torpor.tasks.retry import Slots, page_end, slots_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torpor.arch.contract import Arch
    from torpor.tasks.freeze import FrozenProcess, FrozenThread
    from torpor.tasks.task import Process

SAMPLES = 4
_NOTE = struct.Struct("=IIQQ")  # thread id in its own namespace, call number, stack pointer, deadline in its own clock

class Nap:
    """A wait with a time limit, as it was seen before the stop: which call, until when (ns of CLOCK_MONOTONIC), how long in all."""

    __slots__ = ("arguments", "asked", "deadline", "number", "restarted", "sp")

    def __init__(self, number: int, restarted: bool, arguments: tuple[int, ...], sp: int, asked: int) -> None:
        self.number, self.restarted, self.arguments, self.sp, self.asked = number, restarted, arguments, sp, asked
        self.deadline = 0

    def fits(self, thread: FrozenThread, restarted: bool) -> bool:
        """Whether this is what the thread was stopped in; it may have gone on to another call meanwhile."""
        kind, regs = thread.process.arch, thread.regs
        if self.sp != thread.sp_found:
            return False
        if thread.issued_again >= 0:  # from a slot, perhaps: then the time limit was another
            return self.number == thread.issued_again and self.arguments[:2] == tuple(regs[name] for name in kind.arguments[:2])
        if self.arguments != tuple(regs[name] for name in kind.arguments):
            return False
        return self.restarted if restarted else self.number == regs[kind.number]

    def left(self, now: int, asked: int) -> int:
        """The ns left at `now`, of a wait for which the stopped thread asks for `asked` ns.

        What was seen was seen from outside, of a thread that ran: its call may have ended between two looks, its memory may have
        held something else by then. A deadline that has passed, or that no wait of this length has, is not that of this
        wait, which then has just begun.
        """
        remaining = self.deadline - now
        return remaining if 0 < remaining <= asked else asked


def observe(pids: Iterable[int]) -> dict[int, Nap]:
    """Every thread of the running processes `pids` that is waiting with a relative time limit, by its thread id."""
    seen: list[tuple[int, Nap, float | None, int]] = []
    for pid in pids:
        try:
            kind = arch.of_program(pid)
            for tid in procfs.threads(pid):
                if found := _waiting(kind, pid, tid):
                    seen.append((tid, *found))
        except (OSError, Unsupported):
            continue  # it has ended, or preflight will say why not
    offsets = {cpu: _clock_offset(cpu) for cpu in {cpu for _, nap, started, cpu in seen if started and nap.asked < NO_LIMIT}}
    for _, nap, started, cpu in seen:
        if started and nap.asked < NO_LIMIT:
            nap.deadline = int(started * 1e6) + offsets[cpu] + nap.asked
    return {tid: nap for tid, nap, _, _ in seen}


def _waiting(kind: Arch, pid: int, tid: int) -> tuple[Nap, float | None, int] | None:
    """The wait, exec_start in ms where the kernel tells it, and the CPU of a thread that waits with a relative limit.

    Or that waits otherwise in restart_syscall(2): which call that is can be seen only while it waits.
    """
    state = procfs.syscall(pid, tid)
    if state is None:
        return None
    number, arguments, sp, _ = state
    restarted = number == kind.syscalls["restart_syscall"]
    if restarted:
        number = _restarted_call(kind, pid, tid, arguments)
    asked = kind.asked(number, arguments, lambda address, length: memory.read(pid, address, length))
    if asked is None:
        if not restarted or number < 0:
            return None
        asked = NO_LIMIT
    return Nap(number, restarted, arguments, sp, asked), procfs.exec_start(pid, tid), procfs.stat(pid, tid).last_cpu


def _restarted_call(kind: Arch, pid: int, tid: int, arguments: Sequence[int]) -> int:
    """Which call a thread in restart_syscall(2) waits in, by where in the kernel it sleeps; its arguments are still there."""
    where = procfs.wchan(pid, tid).lstrip(".")  # where a function's address is that of a descriptor, its code has a dot
    if where in ("", "0"):
        return -1
    # A restarted nanosleep shows as what called it (do_syscall_64): its own functions count as the scheduler's.
    name = "futex" if where.startswith("futex") else "poll" if "poll" in where else "nanosleep"
    if name == "nanosleep" and arguments[0] < 4096:
        name = "clock_nanosleep"  # the first argument is a clock, not an address
    # Where there are two calls of that name, with 64- and 32-bit times, the argument makes sense for one of them only.
    numbers = [kind.syscalls[each] for each in (name, f"{name}_time32") if each in kind.syscalls]
    for number in numbers:
        if kind.sensible(number, arguments, lambda address, length: memory.read(pid, address, length)):
            return number
    return numbers[0] if numbers else -1


def _clock_offset(cpu: int) -> int:
    """CLOCK_MONOTONIC minus the task clock of `cpu`, in ns: the least of several samples, each taken right after a sleep."""
    before = os.sched_getaffinity(0)
    best = 0
    try:
        os.sched_setaffinity(0, {cpu})
        for _ in range(SAMPLES):
            time.sleep(1e-6)  # with the kernel's slack some 60 us
            now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            mine = procfs.exec_start(os.getpid())
            if mine is not None:
                offset = now - int(mine * 1e6)
                best = min(best or offset, offset)
    except OSError:
        pass
    finally:
        os.sched_setaffinity(0, before)
    return best


class Waits:
    """What the threads of a frozen process were waiting for with a time limit: they go on with what is left of it.

    `left`: by thread id, (call number, ns left or NO_LIMIT), or (-1, 0).
    """

    def __init__(self, process: FrozenProcess, naps: dict[int, Nap], stopped: int, clock_offset: int) -> None:
        """`stopped`: CLOCK_MONOTONIC at the stop, ns; `clock_offset`: what the process's own clock is ahead of it."""
        self.process, self._stopped, self._clock_offset = process, stopped, clock_offset
        self.left = {thread.tid: left(thread, naps, stopped, clock_offset, process.padding) for thread in process.threads}

    def note(self) -> None:
        """Leave a note of the deadlines for the next stop."""
        waits = [
            (thread.own_tid, number, thread.regs[self.process.arch.sp], self._stopped + self._clock_offset + left)
            for thread in self.process.threads
            for number, left in [self.left[thread.tid]]
            if number >= 0 and left != NO_LIMIT
        ]
        note(self.process, self.process.padding, waits)

    def shorten(self) -> None:
        """Let the waits that this stop has ended go on with the rest of their time."""
        process = self.process
        slots = Slots(process, process.padding)
        for thread in process.threads:
            number, left = self.left[thread.tid]
            if thread.issued_again >= 0 and number >= 0:
                passed = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - self._stopped
                slots.put(thread, number, max(0, left - passed))
                process.arch.registers.write_general(thread.tid, thread.regs)


def left(thread: FrozenThread, naps: dict[int, Nap], stopped: int, clock_offset: int, padding: int) -> tuple[int, int]:
    """(call number, ns left or NO_LIMIT) of the wait that a frozen thread was in, or (-1, 0).

    `stopped`: CLOCK_MONOTONIC at the stop; `clock_offset`: what the task's own clock is ahead of it; `padding`: of its vdso.
    """
    kind = thread.process.arch
    nap = naps.get(thread.tid)
    if thread.issued_again >= 0:
        # What has been put into a slot is no other wait; only whether it was seen waiting there since is not certain.
        if thread.was_in_slot and (told := noted(thread, padding)) and told[0] == thread.issued_again:
            return told[0], max(0, told[1] - clock_offset - stopped)
        asked = _asked(thread, thread.issued_again)
        if nap is None or not nap.fits(thread, False) or nap.asked >= NO_LIMIT or asked >= NO_LIMIT:
            return -1, 0
        return thread.issued_again, nap.left(stopped, asked)
    call = kind.pending_call(thread.regs)
    if call is None or call[1] != ERESTART_RESTARTBLOCK:
        return -1, 0
    restarted = call[0] == kind.syscalls["restart_syscall"]
    told = noted(thread, padding) if restarted else None
    if told and not kind.retried(told[0]) and 0 < told[1] - clock_offset - stopped <= _asked(thread, told[0]):
        return told[0], told[1] - clock_offset - stopped
    if nap is None or not nap.fits(thread, restarted):
        return call[0], _asked(thread, call[0])
    asked = _asked(thread, nap.number)
    if asked >= NO_LIMIT or (not restarted and asked != nap.asked):
        return nap.number, asked
    return nap.number, nap.left(stopped, asked)


def _asked(thread: FrozenThread, number: int) -> int:
    """The ns that a stopped thread asks the call `number` to wait, or NO_LIMIT."""
    kind = thread.process.arch
    arguments = [thread.regs[name] for name in kind.arguments]
    asked = kind.asked(number, arguments, lambda address, length: os.pread(thread.process.mem, length, address))
    return NO_LIMIT if asked is None else asked


def recognised(threads: Iterable[FrozenThread], naps: dict[int, Nap]) -> bool:
    """Tell each thread in restart_syscall(2) which call it makes again; False if one was not seen waiting in it."""
    found = True
    for thread in threads:
        kind = thread.process.arch
        if kind.pending_call(thread.regs) == (kind.syscalls["restart_syscall"], ERESTART_RESTARTBLOCK):
            nap = naps.get(thread.tid)
            if nap is None or not nap.fits(thread, True):
                found = False
            else:
                thread.makes_again = _as_noted(thread, nap.number)
    return found


def _as_noted(thread: FrozenThread, number: int) -> int:
    """`number`, which was told from the arguments of a call, or the one that an earlier checkpoint has seen it made by.

    Where there are two calls of that name, with 64- and 32-bit times, whole seconds with zeros behind them are the same to both.
    """
    kind = thread.process.arch
    told = noted(thread, thread.process.padding)
    if told is None or kind.call_name(told[0])[0] != kind.call_name(number)[0]:
        return number
    asked = _asked(thread, number)
    return told[0] if asked == _asked(thread, told[0]) < NO_LIMIT else number


def _notes_at(process: Process, padding: int) -> tuple[int, int]:
    """Where notes lie, behind torpor's code and the slots, and how many fit into the page."""
    _, start = slots_at(process, padding)
    return start, max(page_end(process, padding) - start, 0) // _NOTE.size


def noted(thread: FrozenThread, padding: int) -> tuple[int, int] | None:
    """(call number, deadline) that an earlier checkpoint or restart has noted for this wait, if it is this one."""
    start, count = _notes_at(thread.process, padding)
    data = os.pread(thread.process.mem, count * _NOTE.size, start)
    for tid, number, sp, deadline in _NOTE.iter_unpack(data[: len(data) // _NOTE.size * _NOTE.size]):
        if tid == thread.own_tid and sp == thread.regs[thread.process.arch.sp]:
            return number, deadline
    return None


def note(process: Process, padding: int, waits: Sequence[tuple[int, int, int, int]]) -> None:
    """Leave (own thread id, call number, stack pointer, deadline in the task's own clock) for the next checkpoint.

    What does not fit is left out: those waits then take their whole time again if they are caught twice.
    """
    start, count = _notes_at(process, padding)
    data = b"".join(_NOTE.pack(*wait) for wait in waits[:count])
    if any(os.pread(process.mem, count * _NOTE.size, start)) or data:
        os.pwrite(process.mem, data.ljust(count * _NOTE.size, b"\0"), start)

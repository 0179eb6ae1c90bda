"""Timers of a process: the three interval timers (setitimer(2)) and POSIX timers (timer_create(2)).

A timer is saved with the time that was left and goes on with it; the clock itself goes on in the restart's time namespace.
"""

from __future__ import annotations

import os
import struct

from torpor.errors import Obstacle
from torpor.image.fields import choice, i32, in_range, ref, structs, u32, u64
from torpor.image.record import Record, Struct
from torpor.linux import libc, timers
from torpor.objects.processes import PID_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Generator, Iterator, Sequence

    from torpor.arch.contract import Arch
    from torpor.linux.timers import PosixTimer
    from torpor.tasks.remote import Remote

    Calls = list[tuple[str | int, ...]]

NSEC = 1_000_000_000
USEC = 1_000_000
_NS = in_range(0, 1 << 62)
SIGNAL, NONE, THREAD_ID = 0, 1, 4


class IntervalTimer(Struct):
    """A timer of setitimer(2)."""

    which: int = choice(32, {0: "REAL", 1: "VIRTUAL", 2: "PROF"}, "its clock and signal")
    left: int = u64("ns until it fires", check=_NS)
    interval: int = u64("ns between firings, 0 for once", check=_NS)


class Timer(Struct):
    """A timer of timer_create(2)."""

    number: int = u32("its id in the process", check=in_range(0, (1 << 31) - 1))
    clock: int = i32("its clock; negative for the CPU time of a process or thread")
    notify: int = choice(32, {SIGNAL: "signal", NONE: "none", THREAD_ID: "signal to a thread"}, "SIGEV_*")
    signal: int = u32("its signal", check=in_range(0, 64))
    thread: int = u32("the thread that gets it, 0 for any", check=in_range(0, PID_MAX - 1))
    value: int = u64("si_value")
    left: int = u64("ns until it fires, 0 when disarmed", check=_NS)
    interval: int = u64("ns between firings, 0 for once", check=_NS)


class Timers(Record, type=0x0510):
    """The timers of one process, written behind it."""

    process: int = ref("the process", to="Process")
    interval_timers: list[IntervalTimer] = structs(IntervalTimer, "armed ones, ascending", max=3)
    timers: list[Timer] = structs(Timer, "POSIX timers, ascending", max=1 << 16)


AT_ONCE = 512
"""POSIX timers that are asked for at a time: each takes 32 bytes of the work area."""


def ask(remote: Remote, pid: int) -> Generator[Calls, list[int], tuple[list[IntervalTimer], list[Timer]]]:
    """Read the timers of a process from inside (a conversation of `objects.asking`)."""
    arch = remote.arch
    posix: Sequence[PosixTimer] = timers.posix_timers(pid)
    length = 3 * 4 * arch.word
    at = remote.room(length + 32 * min(len(posix), AT_ONCE))
    calls: Calls = [("getitimer", which, at + which * 4 * arch.word) for which in range(3)]
    data = specs = b""
    for first in range(0, len(posix) or 1, AT_ONCE):
        piece = posix[first : first + AT_ONCE]
        yield calls + [("timer_gettime", timer.id, at + length + 32 * index) for index, timer in enumerate(piece)]
        answer, calls = remote.take(at, length + 32 * len(piece)), []
        data, specs = data or answer[:length], specs + answer[length:]
    interval_timers = []
    for which in range(3):
        values = arch.unwords(data[which * 4 * arch.word : (which + 1) * 4 * arch.word])
        interval, left = (values[i] * NSEC + values[i + 1] * 1000 for i in (0, 2))
        if left or interval:
            # One that has just fired is armed again only when its signal is taken (kernel/time/itimer.c).
            left = left or interval
            interval_timers.append(IntervalTimer(which=which, left=left, interval=interval))
    found = []
    for index, timer in enumerate(posix):
        numbers = struct.unpack_from("=4q", specs, 32 * index)
        notify = {"none": NONE, "signal": THREAD_ID if timer.to_thread else SIGNAL}.get(timer.notify, SIGNAL)
        found.append(
            Timer(
                number=timer.id,
                clock=timer.clock,
                notify=notify,
                signal=timer.signal,
                thread=timer.tid if timer.to_thread else 0,
                value=arch.sigval(timer.sigval),
                left=numbers[2] * NSEC + numbers[3],
                interval=numbers[0] * NSEC + numbers[1],
            )
        )
    return interval_timers, found


def sigevent(timer: Timer, arch: Arch) -> bytes:
    """struct sigevent as a task of `arch` passes it to timer_create (sigevent(7))."""
    head = arch.words(timer.value) + struct.pack("=iii", timer.signal, timer.notify, timer.thread)
    return head.ljust(64, b"\0")


def itimerval(timer: IntervalTimer, arch: Arch) -> bytes:
    """struct itimerval; microseconds are rounded up, so that an armed timer stays armed."""
    words: list[int] = []
    for ns in (timer.interval, timer.left):
        usec = -(-ns // 1000)
        words += [usec // USEC, usec % USEC]
    return arch.words(*words)


def itimerspec(timer: Timer) -> bytes:
    """struct itimerspec with 64-bit times."""
    return struct.pack("=4q", *divmod(timer.interval, NSEC), *divmod(timer.left, NSEC))


# --- restart

PR_TIMER_CREATE_RESTORE_IDS, _GET = 77, 2
_CLOCKS = (0, 1, 2, 3, 7, 8, 9, 11)
"""Those that timers can be made of (timer_create(2)): REALTIME MONOTONIC PROCESS_CPUTIME THREAD_CPUTIME BOOTTIME *_ALARM TAI."""
_ALARM_CLOCKS = (8, 9)
_ENOUGH_TO_COUNT = 10_000
"""Ids below this are reached on an older kernel by making and deleting timers; it takes up to a second."""


def faults(record: Timers, arch: Arch, pids: Container[int], tids: Container[int]) -> Iterator[str]:
    """What in the timers of a process no process can have (R-D1). `pids` are those of the tree, `tids` the process's own."""
    seconds = 1 << 8 * arch.word - 1
    before = -1
    for interval in record.interval_timers:
        if interval.which <= before:
            yield f"interval timer {interval.which} is out of order"
        if max(interval.left, interval.interval) // NSEC + 1 >= seconds:  # rounded up
            yield f"interval timer {interval.which} has a time that does not fit into a struct timeval"
        before = interval.which
    before = -1
    for timer in record.timers:
        name = f"timer {timer.number}"
        if timer.number <= before:
            yield f"{name} is out of order"
        before = timer.number
        if timer.clock not in _CLOCKS and not _cpu_clock(timer.clock, pids, tids):
            yield f"{name} is of clock {timer.clock}, which has no timers"
        if timer.notify != NONE and not timer.signal:
            yield f"{name} sends no signal"
        if timer.notify == THREAD_ID and timer.thread not in tids:
            yield f"{name} signals thread {timer.thread}, which is not of its process"


def _cpu_clock(clock: int, pids: Container[int], tids: Container[int]) -> bool:
    """Whether a negative clock id is that of the CPU time of one of these (linux/posix-timers_types.h)."""
    owner, of_thread = ~(clock >> 3), clock & 4
    return clock < 0 and clock & 3 < 3 and (owner == 0 or owner in (tids if of_thread else pids))


def check(record: Timers, pid: int) -> Iterator[Obstacle]:
    """What in the timers of a process cannot be had on this machine."""
    clocks = {timer.clock for timer in record.timers}
    for clock in clocks.intersection(_ALARM_CLOCKS):
        if error := _refused(clock):
            reason = f"this machine or user cannot make timers of clock {clock} ({error})"
            yield Obstacle("timers", reason, "restart it where the real-time clock has an alarm", pid=pid)
    last = max((timer.number for timer in record.timers), default=0)
    if last >= _ENOUGH_TO_COUNT and not _takes_ids():
        reason = f"this kernel cannot make a timer with the id {last} (PR_TIMER_CREATE_RESTORE_IDS)"
        yield Obstacle("timers", reason, "restart it on Linux 6.16 or newer", pid=pid)


def _refused(clock: int) -> str:
    """Why the kernel makes no timer of this clock here, or ''."""
    import ctypes

    made = ctypes.c_int()
    event = ctypes.create_string_buffer(struct.pack("=QiI" if libc.WORD == 8 else "=IiI", 0, 0, NONE), 64)
    try:
        libc.call("timer_create", clock, ctypes.byref(event), ctypes.byref(made))
    except OSError as error:
        return os.strerror(error.errno or 0)
    libc.call("timer_delete", made.value)
    return ""


def _takes_ids() -> bool:
    """Whether this kernel makes timers with ids that it is told."""
    try:
        libc.prctl(PR_TIMER_CREATE_RESTORE_IDS, _GET)
    except OSError:
        return False
    return True


def restore(record: Timers, remote: Remote) -> None:
    """Make the timers again, with their ids, and arm them. Raises OSError."""
    arch = remote.arch
    if record.timers:
        by_id = remote.batch([("prctl", PR_TIMER_CREATE_RESTORE_IDS, 1, 0, 0, 0)]) == [0]
        for timer in record.timers:
            remote.reset()
            event, number = remote.put(sigevent(timer, arch)), remote.put(struct.pack("=i", timer.number))
            spec = remote.put(itimerspec(timer))
            clock = timer.clock & 0xFFFFFFFF
            while True:
                remote.call("timer_create", clock, event, number)
                (made,) = struct.unpack("=i", remote.take(number, 4))
                if made == timer.number:
                    break
                # Before 6.16 ids are handed out in order: use up those before ours.
                remote.call("timer_delete", made)
                if by_id or made > timer.number:
                    raise OSError(17, f"timer {timer.number} of process {remote.thread.process.pid} cannot have its id")
            remote.call("timer_settime", timer.number, 0, spec, 0)
        if by_id:
            remote.call("prctl", PR_TIMER_CREATE_RESTORE_IDS, 0, 0, 0, 0)
    for interval in record.interval_timers:
        remote.reset()
        remote.call("setitimer", interval.which, remote.put(itimerval(interval, arch)), 0)

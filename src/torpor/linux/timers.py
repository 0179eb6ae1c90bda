"""POSIX timers of a process as /proc/PID/timers lists them (timer_create(2); CONFIG_CHECKPOINT_RESTORE).

The file tells how a timer was made, not how it is set: its value and its overruns are known to timer_gettime(2) and
timer_getoverrun(2) within the process. Interval timers (setitimer) and timerfds are other things.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False

NONE, SIGNAL, THREAD = "none", "signal", "thread"


class PosixTimer:
    """One timer."""

    __slots__ = ("clock", "id", "notify", "signal", "sigval", "tid", "to_thread")

    def __init__(self, id: int, clock: int, notify: str, signal: int, sigval: int, tid: int, to_thread: bool) -> None:
        self.id = id
        """The timer_t of the system call (the C library's may be another)."""
        self.clock = clock
        """CLOCK_* number, or the negative number of a process's or thread's CPU clock."""
        self.notify = notify
        """SIGNAL, NONE, or THREAD (SIGEV_THREAD as the kernel was given it; glibc turns it into a signal to_thread)."""
        self.signal, self.sigval = signal, sigval
        """Signal number, and the pointer-wide value that comes with it."""
        self.tid, self.to_thread = tid, to_thread
        """Whom the signal goes to: with to_thread (SIGEV_THREAD_ID) the thread `tid`, else the process `tid`. In the
        pid namespace of this /proc; 0 when that thread is gone."""

    def __repr__(self) -> str:
        target = f"{'tid' if self.to_thread else 'pid'} {self.tid}"
        return f"<PosixTimer {self.id} clock {self.clock} {self.notify} {self.signal}/{self.sigval:#x} to {target}>"


def parse(text: str) -> list[PosixTimer]:
    """The timers in the text of /proc/PID/timers, by ascending id."""
    rows: list[dict[str, str]] = []
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key == "ID":
            rows.append({})
        rows[-1][key] = value.strip()
    found: list[PosixTimer] = []
    for row in rows:
        number, _, value = row["signal"].partition("/")
        notify, _, target = row["notify"].partition("/")
        whom, _, tid = target.partition(".")
        signal, sigval = int(number), int(value, 16)
        found.append(PosixTimer(int(row["ID"]), int(row["ClockID"]), notify, signal, sigval, int(tid), whom == "tid"))
    found.sort(key=lambda timer: timer.id)
    return found


def posix_timers(pid: int) -> list[PosixTimer]:
    """The process's timers, by ascending id.

    FileNotFoundError: the process is gone, or the kernel cannot tell (no CONFIG_CHECKPOINT_RESTORE).
    """
    fd = os.open(f"/proc/{pid}/timers", os.O_RDONLY | os.O_CLOEXEC)
    with open(fd, encoding="utf-8") as file:
        return parse(file.read())

"""What `tests/programs/calls.c` can be asked for, and what it says; imports nothing but the standard library."""

from __future__ import annotations

import os
from dataclasses import dataclass

TIMED = """nanosleep clock_nanosleep_rel clock_nanosleep_abs poll ppoll select pselect6 futex_wait futex_wait_bitset_abs
    epoll_wait epoll_pwait2 sigtimedwait semtimedop recv_timeout""".split()
TIMED32 = """clock_nanosleep_rel_time64 clock_nanosleep_abs_time64 ppoll_time64 pselect6_time64 futex_wait_time64
    futex_wait_bitset_abs_time64 sigtimedwait_time64 nanosleep-vdso poll-vdso pselect6-vdso futex_wait-vdso
    epoll_wait-vdso""".split()
UNTIMED = """read_pipe write_pipe poll_forever select_forever epoll_forever futex_forever wait4 waitid pause sigsuspend
    sigwaitinfo flock_wait fcntl_lock_wait semop msgrcv recv_forever""".split()
UNTIMED32 = ["read_pipe-vdso"]

ALL_TIMED = [(64, name) for name in TIMED] + [(32, name) for name in TIMED + TIMED32]
ALL_UNTIMED = [(64, name) for name in UNTIMED] + [(32, name) for name in UNTIMED + UNTIMED32]

# What torpor may still refuse to save (with exit code 4 and a reason): then there is nothing to be seen here.
MAY_BE_REFUSED = {"recv_timeout", "recv_forever"}
CANNOT_BE_SAVED = 4  # torpor's exit code


@dataclass
class Outcome:
    """The line that the program wrote; times in seconds."""

    real_start: float
    real_end: float
    monotonic: float
    result: int
    error: int
    result_ok: bool
    registers_ok: bool
    changed: str

    def __str__(self) -> str:
        error = f" {os.strerror(self.error)}" if self.error else ""
        return f"{self.result}{error}"


def outcome(line: str) -> Outcome:
    """The second line that the program writes."""
    words = line.split(maxsplit=9)
    mono_start, real_start, mono_end, real_end, result, error = (int(word) for word in words[1:7])
    return Outcome(
        real_start / 1e9,
        real_end / 1e9,
        (mono_end - mono_start) / 1e9,
        result,
        error,
        words[7] == "1",
        words[8] == "1",
        words[9],
    )


def check(name: str, outcome: Outcome) -> None:
    assert outcome.result_ok, f"{name} gave {outcome}"
    assert outcome.registers_ok, f"{name}: {outcome.changed} changed over the call"

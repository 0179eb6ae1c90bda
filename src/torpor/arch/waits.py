"""Calls that wait for some time: what they were asked for, and how they go on with the rest.

It is the same in every ABI but for the numbers. Where one has two calls, with 64- and with 32-bit times, the latter's name ends in
`_time32`. Sources: the man pages of the calls; signal(7) on those that any stop ends.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Read = Callable[[int, int], bytes]

NO_LIMIT = 1 << 62
"""Time left of a wait that has no relative limit: it waits for ever (146 years will do), or until a deadline in its arguments."""
NSEC = 1_000_000_000

TIME_ARGUMENT = {"nanosleep": 0, "clock_nanosleep": 2, "futex": 3}
"""Which argument of a call that has a restart block is its timespec; poll's is the third, in milliseconds."""
RETRIED = {"epoll_wait": 3, "epoll_pwait": 3, "epoll_pwait2": 3, "semtimedop": 3, "rt_sigtimedwait": 2, "io_getevents": 4}
"""Which argument of a call that any stop ends is its time limit; of the first two in milliseconds, of the others a timespec."""
MILLISECONDS = ("poll", "epoll_wait", "epoll_pwait")


class Waits:
    """The calls of one kind of task that wait for some time."""

    syscalls: Mapping[str, int]

    def call_name(self, number: int) -> tuple[str, bool]:
        """(name, whether its times are of two 32-bit words) of a call; ("", False) of one that is not known."""
        name = next((name for name, known in self.syscalls.items() if known == number), "")
        return name.removesuffix("_time32"), name.endswith("_time32")

    def absolute(self, name: str, arguments: Sequence[int]) -> bool:
        """Whether the time that a call was given is a deadline (clock_nanosleep(2), futex(2))."""
        if name == "clock_nanosleep":
            return bool(arguments[1] & 1)
        return name == "futex" and arguments[1] & 0x7F not in (0,)

    def asked(self, number: int, arguments: Sequence[int], read: Read) -> int | None:
        """How many ns call `number` was asked to wait, counted from its start; None when it waits otherwise.

        `read` gives bytes of the task's memory. Only calls that are resumed with the time that was left are known here.
        """
        name, narrow = self.call_name(number)
        if name in MILLISECONDS:
            milliseconds = arguments[2 if name == "poll" else 3] & 0xFFFFFFFF
            return milliseconds * 1_000_000 if milliseconds < 1 << 31 else None
        if self.absolute(name, arguments) or (limit := _limit(name, narrow, arguments, read)) is None:
            return None
        seconds, nanoseconds = limit
        return min(max(0, seconds * NSEC + nanoseconds), NO_LIMIT)

    def sensible(self, number: int, arguments: Sequence[int], read: Read) -> bool:
        """Whether the time limit or deadline that call `number` was given is one that the kernel takes, within a century.

        Where a call comes with 32- and with 64-bit times this tells in which of the two a thread waits: two words of 32
        bits, read as one, are more than that.
        """
        name, narrow = self.call_name(number)
        if name in MILLISECONDS:
            return True
        limit = _limit(name, narrow, arguments, read)
        return limit is not None and 0 <= limit[0] < 1 << 32 and 0 <= limit[1] < NSEC

    def shorten(self, number: int, arguments: list[int], left: int, put: Callable[[bytes], int]) -> None:
        """Change the arguments of call `number` so that it waits `left` ns instead of what the program asked for.

        `put` places a timespec in the task's memory. Calls with an absolute deadline keep it: the clock goes on, too.
        """
        name, narrow = self.call_name(number)
        if name == "poll":
            arguments[2] = -(-left // 1_000_000)
        elif name in TIME_ARGUMENT and not self.absolute(name, arguments):
            arguments[TIME_ARGUMENT[name]] = put(timespec(left, narrow))

    def call_fault(self, number: int, left: int) -> str | None:
        """Why no thread can be in the call `number` with `left` ns to go, or None: only waits with a time limit are resumed."""
        name, narrow = self.call_name(number)
        if name not in RETRIED and name not in TIME_ARGUMENT and name not in ("poll", "restart_syscall"):
            return f"is in call {number}, which has no rest of a time limit"
        if left == NO_LIMIT and name not in RETRIED:
            return None
        longest = 0x7FFFFFFF * (1_000_000 if name in MILLISECONDS else NSEC) if narrow or name in MILLISECONDS else NO_LIMIT
        return f"has {left} ns left of {name}, more than can be asked for" if left > longest else None

    def retried(self, number: int) -> bool:
        """Whether call `number` has a time limit and is ended by any stop, so that it is issued again from a slot."""
        return self.call_name(number)[0] in RETRIED


def rest(name: str, narrow: bool, left: int, at: int) -> tuple[int, bytes]:
    """What a call of RETRIED is given to wait `left` ns: its argument, and the timespec to lie at `at`, if it takes one."""
    if name in MILLISECONDS:
        return min(-(-left // 1_000_000), 0x7FFFFFFF), b""
    return at, timespec(left, narrow)


def timespec(ns: int, narrow: bool) -> bytes:
    """struct timespec, of two 64-bit words or, `narrow`, of two with 32 bits."""
    return struct.pack("=ii" if narrow else "=qq", *divmod(ns, NSEC))


def _limit(name: str, narrow: bool, arguments: Sequence[int], read: Read) -> tuple[int, int] | None:
    """(seconds, nanoseconds) that a call was given in a timespec; None where it has none."""
    which = TIME_ARGUMENT.get(name, RETRIED.get(name))
    if which is None or not arguments[which]:
        return None
    try:
        seconds, nanoseconds = struct.unpack("=ii" if narrow else "=qq", read(arguments[which], 8 if narrow else 16))
    except (OSError, struct.error):
        return None
    return seconds, nanoseconds

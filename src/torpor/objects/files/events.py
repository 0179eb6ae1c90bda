"""Descriptors that count and wait: eventfd(2), epoll(7), timerfd(2), signalfd(2).

/proc/PID/fdinfo tells all of their state, but for one thing before 6.5 (`find_semaphores`). An epoll set remembers the *numbers*
under which descriptors were added, so it is filled by the task itself, once its descriptors are in their places.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

from torpor.errors import Obstacle
from torpor.image.fields import choice, ident, in_range, structs, u32, u64
from torpor.image.record import Record, Struct
from torpor.linux import libc
from torpor.objects.files.seen import Seen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

    from torpor.arch.contract import Arch
    from torpor.objects.making import Making
    from torpor.objects.saving import Saving
    from torpor.tasks.remote import Remote

_NONBLOCK = os.O_NONBLOCK
NSEC = 1_000_000_000


class EventFd(Record, type=0x0313):
    """A counter (eventfd(2))."""

    id: int = ident("the open file description")
    count: int = u64("its value")
    semaphore: int = choice(32, {0: "no", 1: "yes"}, "EFD_SEMAPHORE")
    flags: int = u32("O_NONBLOCK or 0", check=lambda v: None if v in (0, _NONBLOCK) else "more than O_NONBLOCK")


def _epoll_events(events: int) -> str | None:
    """EPOLL* of linux/eventpoll.h; EPOLLEXCLUSIVE goes with few others (fs/eventpoll.c, do_epoll_ctl())"""
    if events & 0x0FFF0000 or (events >> 28 & 1 and events & ~0xB000001D):
        return f"{events:#x} are not events of epoll"
    return None


class Watched(Struct):
    """A descriptor in an epoll set."""

    fd: int = u32("its number when it was added")
    events: int = u32("EPOLL* it waits for", check=_epoll_events)
    data: int = u64("what epoll_wait returns for it")


class Epoll(Record, type=0x0314):
    """An epoll set (epoll(7))."""

    id: int = ident("the open file description")
    watched: list[Watched] = structs(Watched, "its members", max=1 << 20)

    @property
    def members(self) -> set[int]:
        """The numbers of its members."""
        return {member.fd for member in self.watched}


class TimerFd(Record, type=0x0315):
    """A timer that is read (timerfd_create(2))."""

    id: int = ident("the open file description")
    clock: int = choice(32, {0: "REALTIME", 1: "MONOTONIC", 7: "BOOTTIME"}, "its clock")
    flags: int = u32("O_NONBLOCK or 0", check=lambda v: None if v in (0, _NONBLOCK) else "more than O_NONBLOCK")
    ticks: int = u64("expirations that nobody has read yet")
    left: int = u64("ns until the next expiration, 0 when disarmed", check=in_range(0, 1 << 63))
    interval: int = u64("ns between expirations, 0 for one only", check=in_range(0, 1 << 63))


class SignalFd(Record, type=0x0316):
    """Signals that are read (signalfd(2))."""

    id: int = ident("the open file description")
    signals: int = u64("the signals it takes, bit n-1 for signal n")
    flags: int = u32("O_NONBLOCK or 0", check=lambda v: None if v in (0, _NONBLOCK) else "more than O_NONBLOCK")


_LINKS = {
    "anon_inode:[eventfd]": EventFd,
    "anon_inode:[eventpoll]": Epoll,
    "anon_inode:[timerfd]": TimerFd,
    "anon_inode:[signalfd]": SignalFd,
}


def claims(seen: Seen) -> bool:
    """Whether a descriptor is of this kind."""
    return seen.link in _LINKS


def obstacle(seen: Seen) -> Obstacle | None:
    """Why this descriptor cannot be saved, or None."""
    extra = seen.info.extra
    if seen.link.endswith("[timerfd]") and int(extra["clockid"][0]) not in (0, 1, 7):
        return Obstacle(
            seen.name, "it is an alarm timer (CLOCK_*_ALARM), which wakes the machine", "use CLOCK_BOOTTIME", pid=seen.pid
        )
    return None


def lost_members(seen: Seen, numbers: Container[int]) -> list[int]:
    """The descriptors that an epoll set watches and that are not among the `numbers` its process has open."""
    if not seen.link.endswith("[eventpoll]"):
        return []
    return [member.fd for member in map(_watched, seen.info.extra.get("tfd", [])) if member.fd not in numbers]


def save(seen: Seen, saving: Saving) -> int:
    """Write the description. Returns its id."""
    extra = seen.info.extra
    number, flags = saving.new_id(), seen.flags & _NONBLOCK
    kind = _LINKS[seen.link]
    if kind is EventFd:
        semaphore = int(extra.get("eventfd-semaphore", ["0"])[0])
        return saving.add(EventFd(id=number, count=int(extra["eventfd-count"][0], 16), semaphore=semaphore, flags=flags))
    if kind is Epoll:
        return saving.add(Epoll(id=number, watched=[_watched(line) for line in extra.get("tfd", [])]))
    if kind is TimerFd:
        left, interval = (_pair(extra[name][0]) for name in ("it_value", "it_interval"))
        ticks, clock = int(extra["ticks"][0]), int(extra["clockid"][0])
        return saving.add(TimerFd(id=number, clock=clock, flags=flags, ticks=ticks, left=left, interval=interval))
    return saving.add(SignalFd(id=number, signals=int(extra["sigmask"][0], 16), flags=flags))


EVENTFDS_AT_ONCE = 64
_F_SETFL = 4


def find_semaphores(table: Sequence[Seen], remote: Remote) -> None:
    """Find out which eventfds of a stopped process are semaphores, where its kernel does not say so (before 6.5).

    A semaphore that stands at 2 or more gives 1 to a reader and anything else all it has. One batch of calls of the process
    itself brings each counter there, reads, and puts back what there was, for either kind: it ends so even if torpor dies.
    """
    unsaid = [seen for seen in table if _LINKS.get(seen.link) is EventFd and "eventfd-semaphore" not in seen.info.extra]
    for first in range(0, len(unsaid), EVENTFDS_AT_ONCE):
        remote.reset()
        answers: list[tuple[Seen, int]] = []
        calls: list[tuple[str | int, ...]] = []
        for seen in unsaid[first : first + EVENTFDS_AT_ONCE]:
            count, answer = int(seen.info.extra["eventfd-count"][0], 16), remote.room(8)
            answers.append((seen, answer))
            if count >= 2:
                calls += [("read", seen.fd, answer, 8), ("write", seen.fd, answer, 8)]
                continue
            # The second read takes what a semaphore still has, and finds nothing in another: neither may then wait.
            missing, rest = remote.put((2 - count).to_bytes(8, sys.byteorder)), remote.room(8)
            calls += [("fcntl", seen.fd, _F_SETFL, seen.flags | _NONBLOCK), ("write", seen.fd, missing, 8)]
            calls += [("read", seen.fd, answer, 8), ("read", seen.fd, rest, 8)]
            if count:
                calls.append(("write", seen.fd, remote.put(count.to_bytes(8, sys.byteorder)), 8))
            calls.append(("fcntl", seen.fd, _F_SETFL, seen.flags))
        remote.batch(calls)
        for seen, answer in answers:
            given = int.from_bytes(remote.take(answer, 8), sys.byteorder)
            seen.info.extra["eventfd-semaphore"] = [str(int(given == 1))]


def _watched(line: str) -> Watched:
    """A `tfd:` line: "        5 events:       19 data:                5  pos:0 ino:61af sdev:7"."""
    words = line.replace(":", ": ").split()
    return Watched(fd=int(words[0]), events=int(words[2], 16) & 0xFFFFFFFF, data=int(words[4], 16))


def _pair(text: str) -> int:
    """ "(1, 500)": seconds and nanoseconds, as nanoseconds."""
    seconds, nanoseconds = text.strip("() ").split(",")
    return int(seconds) * NSEC + int(nanoseconds)


_COUNT_MAX = (1 << 64) - 2
"""eventfd(2)"""


def faults(record: EventFd | Epoll | TimerFd | SignalFd, making: Making) -> Iterator[str]:
    """What no such descriptor can be (R-D1)."""
    if isinstance(record, EventFd) and record.count > _COUNT_MAX:
        yield f"an eventfd cannot count to {record.count}"
    if isinstance(record, Epoll) and len(record.members) != len(record.watched):
        yield "an epoll set watches the same descriptor twice"  # fs/eventpoll.c, EEXIST


def check(record: EventFd | Epoll | TimerFd | SignalFd, making: Making) -> Obstacle | None:
    """Nothing outside the record itself can stand in the way."""
    return None


_eventfd = libc.function("eventfd", ctypes.c_uint, ctypes.c_int, restype=ctypes.c_int)
_epoll_create = libc.function("epoll_create1", ctypes.c_int, restype=ctypes.c_int)
_timerfd_create = libc.function("timerfd_create", ctypes.c_int, ctypes.c_int, restype=ctypes.c_int)
_timerfd_settime = libc.function(
    "timerfd_settime", ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, restype=ctypes.c_int
)
_signalfd = libc.function("signalfd", ctypes.c_int, ctypes.c_void_p, ctypes.c_int, restype=ctypes.c_int)
_EFD_SEMAPHORE, _CLOEXEC = 1, os.O_CLOEXEC


def make(record: EventFd | Epoll | TimerFd | SignalFd, making: Making) -> int:
    """Make it again; a descriptor of our own. Raises OSError."""
    if isinstance(record, EventFd):
        fd = _made(_eventfd(0, (_EFD_SEMAPHORE if record.semaphore else 0) | record.flags | _CLOEXEC), "eventfd")
        if record.count:
            os.write(fd, record.count.to_bytes(8, sys.byteorder))
    elif isinstance(record, Epoll):
        fd = _made(_epoll_create(_CLOEXEC), "epoll_create1")
    elif isinstance(record, TimerFd):
        fd = _made(_timerfd_create(record.clock, record.flags | _CLOEXEC), "timerfd_create")
        if record.left or record.interval or record.ticks:
            _arm(fd, record)
    else:
        mask = ctypes.c_uint64(record.signals)
        fd = _made(_signalfd(-1, ctypes.addressof(mask), record.flags | _CLOEXEC), "signalfd")
    return fd


def _arm(fd: int, record: TimerFd) -> None:
    """Set the time that was left; ticks that nobody has read are made up for by TFD_IOC_SET_TICKS."""
    import fcntl
    import struct

    spec = ctypes.create_string_buffer(struct.pack("=4q", *divmod(record.interval, NSEC), *divmod(record.left, NSEC)))
    if _timerfd_settime(fd, 0, ctypes.addressof(spec), None) == -1:
        raise libc.failure("timerfd_settime")
    if record.ticks:
        fcntl.ioctl(fd, libc.ioctl_write("T", 0, 8), record.ticks.to_bytes(8, sys.byteorder))


def _made(fd: int, what: str) -> int:
    if fd < 0:
        raise libc.failure(what)
    return fd


def epoll_calls(watched: Sequence[Watched], fd: int, address: int, arch: Arch) -> tuple[list[tuple[str | int, ...]], bytes]:
    """The epoll_ctl calls that add `watched` to the set at descriptor `fd`, and the events they read from `address` on."""
    calls: list[tuple[str | int, ...]] = []
    data = b""
    for member in watched:
        calls.append(("epoll_ctl", fd, 1, member.fd, address + len(data)))
        data += struct.pack(arch.epoll_event, member.events, member.data)
    return calls, data

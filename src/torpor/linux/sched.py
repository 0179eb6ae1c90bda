"""How a thread is scheduled: sched_getattr(2), sched_setattr(2), affinity, I/O priority.

All functions take a thread's id; 0 is the caller. Reading another user's thread may need CAP_SYS_NICE, raising a
priority does (or RLIMIT_NICE, RLIMIT_RTPRIO).
"""

from __future__ import annotations

import ctypes
import os

from torpor.linux import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

NORMAL, FIFO, RR, BATCH, IDLE, DEADLINE, EXT = 0, 1, 2, 3, 5, 6, 7
"""Policies (linux/sched.h)."""

RESET_ON_FORK, RECLAIM, DL_OVERRUN = 0x01, 0x02, 0x04
KEEP_POLICY, KEEP_PARAMS, UTIL_CLAMP_MIN, UTIL_CLAMP_MAX = 0x08, 0x10, 0x20, 0x40
"""Bits of SchedAttr.flags."""

IOPRIO_CLASS_NONE, IOPRIO_CLASS_RT, IOPRIO_CLASS_BE, IOPRIO_CLASS_IDLE = 0, 1, 2, 3
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_CLASS_SHIFT = 13


class Urgent:
    """Within a `with` block the calling thread runs as soon as it can (SCHED_FIFO), where its user may have that."""

    def __enter__(self) -> None:
        self._before: tuple[int, os.sched_param] | None = None
        policy = os.sched_getscheduler(0)
        if policy & ~os.SCHED_RESET_ON_FORK in (NORMAL, BATCH, IDLE):
            try:
                param = os.sched_getparam(0)
                # Its flag stays as it is: an ordinary user could not clear it again (sched(7)).
                os.sched_setscheduler(0, FIFO | policy & os.SCHED_RESET_ON_FORK, os.sched_param(1))
                self._before = policy, param
            except PermissionError:
                pass

    def __exit__(self, *_: object) -> None:
        if self._before:
            os.sched_setscheduler(0, *self._before)


_getcpu = libc.function("sched_getcpu", restype=ctypes.c_int)


class _Attr(ctypes.Structure):
    """struct sched_attr (linux/sched/types.h), SCHED_ATTR_SIZE_VER1: 56 bytes, alike on every architecture."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
        ("util_min", ctypes.c_uint32),
        ("util_max", ctypes.c_uint32),
    )


class SchedAttr:
    """A thread's policy with everything that belongs to it."""

    __slots__ = ("deadline", "flags", "nice", "period", "policy", "priority", "runtime", "util_max", "util_min")

    def __init__(
        self,
        policy: int = NORMAL,
        *,
        flags: int = 0,
        nice: int = 0,
        priority: int = 0,
        runtime: int = 0,
        deadline: int = 0,
        period: int = 0,
        util_min: int = 0,
        util_max: int = 1024,
    ) -> None:
        self.policy, self.flags = policy, flags
        self.nice = nice
        """-20 to 19, for NORMAL and BATCH."""
        self.priority = priority
        """1 to 99, for FIFO and RR."""
        self.runtime, self.deadline, self.period = runtime, deadline, period
        """Nanoseconds, for DEADLINE. From 6.12 `runtime` of a NORMAL or BATCH thread is its time slice."""
        self.util_min, self.util_max = util_min, util_max
        """Utilisation clamps, 0 to 1024; set only with UTIL_CLAMP_* in flags."""

    def _values(self) -> tuple[int, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SchedAttr) and self._values() == other._values()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"SchedAttr({', '.join(f'{name}={getattr(self, name)}' for name in self.__slots__)})"


def sched_getattr(tid: int) -> SchedAttr:
    """sched_getattr(2). ESRCH: no such thread."""
    raw = _Attr()
    libc.call("sched_getattr", tid, ctypes.byref(raw), ctypes.sizeof(raw), 0)
    return SchedAttr(
        raw.policy, flags=raw.flags, nice=raw.nice, priority=raw.priority, runtime=raw.runtime, deadline=raw.deadline,
        period=raw.period, util_min=raw.util_min, util_max=raw.util_max,
    )  # fmt: skip


def sched_setattr(tid: int, attr: SchedAttr) -> None:
    """sched_setattr(2). EPERM: needs CAP_SYS_NICE; EINVAL: the policy does not know one of the values; EBUSY: no
    bandwidth.

    A `runtime` that sched_getattr() has reported for a NORMAL or BATCH thread would be pinned as its own slice by
    setting it again: give 0 for those to keep the system's.
    """
    raw = _Attr(
        ctypes.sizeof(_Attr), attr.policy, attr.flags, attr.nice, attr.priority, attr.runtime, attr.deadline,
        attr.period, attr.util_min, attr.util_max,
    )  # fmt: skip
    if not attr.flags & (UTIL_CLAMP_MIN | UTIL_CLAMP_MAX):
        raw.size = 48  # SCHED_ATTR_SIZE_VER0: kernels without utilisation clamps (5.3) look no further
    libc.call("sched_setattr", tid, ctypes.byref(raw), 0)


def affinity(tid: int) -> list[int]:
    """The CPUs the thread may run on, ascending; only those that are online (sched_getaffinity(2))."""
    return sorted(os.sched_getaffinity(tid))


def set_affinity(tid: int, cpus: Iterable[int]) -> None:
    """Confine the thread to `cpus`. EINVAL: none of them exists, or none is in its cpuset."""
    os.sched_setaffinity(tid, cpus)


def current() -> int:
    """The CPU that the caller is running on (sched_getcpu(3))."""
    cpu: int = _getcpu()
    return cpu


def ioprio(tid: int) -> int:
    """The thread's I/O priority: class << 13 | level (ioprio_get(2)); class NONE means derived from its nice value."""
    return libc.call("ioprio_get", _IOPRIO_WHO_PROCESS, tid)


def set_ioprio(tid: int, value: int) -> None:
    """Set what ioprio() gave. EPERM: IOPRIO_CLASS_RT needs CAP_SYS_ADMIN or CAP_SYS_NICE."""
    libc.call("ioprio_set", _IOPRIO_WHO_PROCESS, tid, value)


def ioprio_value(io_class: int, level: int = 4) -> int:
    """An I/O priority from its class and its level, 0 (highest) to 7."""
    return io_class << _IOPRIO_CLASS_SHIFT | level


def ioprio_parts(value: int) -> tuple[int, int]:
    """(class, level) of an I/O priority."""
    return value >> _IOPRIO_CLASS_SHIFT, value & 7

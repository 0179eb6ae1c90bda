"""torpor.linux.timers against a child that makes timers of every kind, by the bare system call."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from torpor.linux import timers

if TYPE_CHECKING:
    from tests.linux.conftest import Child

Start = Callable[..., "Child"]

NUMBER = {"x86_64": 222, "aarch64": 107, "riscv64": 107, "s390x": 254}.get(platform.machine())

MAKE = f"""
class Sigevent(ctypes.Structure):
    _fields_ = [("value", ctypes.c_ulong), ("signo", ctypes.c_int), ("notify", ctypes.c_int), ("tid", ctypes.c_int),
                ("pad", ctypes.c_int * 11)]
def make(clock, value, signo, notify, tid=0):
    event, made = Sigevent(value, signo, notify, tid), ctypes.c_int(-1)
    if libc.syscall({NUMBER}, clock, ctypes.byref(event), ctypes.byref(made)):
        raise OSError(ctypes.get_errno())
    return made.value
"""


def test_timers(start: Start) -> None:
    if NUMBER is None:
        pytest.skip("this machine's number of timer_create is not known to the test")
    child = start(
        MAKE
        + """
hold = threading.Event()
t = threading.Thread(target=hold.wait, daemon=True)
t.start()
made = [
    make(1, 0xdeadbeef12345678, 34, 0),
    make(0, 7, 10, 1),
    make(7, 8, 12, 4, t.native_id),
    make(2, 0, 14, 2),
]
say(made=made, tid=t.native_id)
"""
    )
    pid, tid, made = child.pid, child.facts["tid"], child.facts["made"]
    found = timers.posix_timers(pid)
    assert [(t.id, t.clock, t.notify, t.signal, t.sigval, t.tid, t.to_thread) for t in found] == sorted(
        [
            (made[0], 1, timers.SIGNAL, 34, 0xDEADBEEF12345678, pid, False),
            (made[1], 0, timers.NONE, 10, 7, found[1].tid, False),
            (made[2], 7, timers.SIGNAL, 12, 8, tid, True),
            (made[3], found[3].clock, timers.THREAD, 14, 0, pid, False),
        ]
    )
    assert found[3].clock == 2 or found[3].clock < 0
    assert "0xdeadbeef12345678" in repr(found[0]) and f"tid {tid}" in repr(found[2])


def test_no_timers(start: Start) -> None:
    assert timers.posix_timers(start("say()").pid) == []
    with pytest.raises(FileNotFoundError):
        timers.posix_timers(2**22 + 1)


def test_parse_sorts_by_id() -> None:
    """From Linux 6.16 on the kernel lists them as its hash table has them."""
    text = "".join(f"ID: {n}\nsignal: 14/0000000000000000\nnotify: signal/pid.5\nClockID: -6\n" for n in (3, 1, 2))
    assert [(timer.id, timer.clock) for timer in timers.parse(text)] == [(1, -6), (2, -6), (3, -6)]
    assert timers.parse("") == []

"""torpor.linux.sched against the C library's older calls and the child's own view."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.conftest import SRC
from torpor.linux import procfs, sched

if TYPE_CHECKING:
    from tests.linux.conftest import Child

CAP_SYS_NICE = 23
Start = Callable[..., "Child"]


def test_nice_and_batch(start: Start) -> None:
    child = start("os.nice(3)\nsay()")
    attr = sched.sched_getattr(child.pid)
    assert (attr.policy, attr.nice, attr.priority, attr.flags) == (sched.NORMAL, 3, 0, 0)
    attr = sched.SchedAttr(sched.BATCH, nice=9)
    sched.sched_setattr(child.pid, attr)
    assert os.sched_getscheduler(child.pid) == os.SCHED_BATCH
    assert os.getpriority(os.PRIO_PROCESS, child.pid) == procfs.stat(child.pid).nice == 9
    sched.sched_setattr(child.pid, sched.SchedAttr(sched.IDLE))
    assert procfs.stat(child.pid).policy == sched.sched_getattr(child.pid).policy == sched.IDLE


def test_real_time(start: Start, root: None) -> None:
    child = start("say()")
    try:
        sched.sched_setattr(child.pid, sched.SchedAttr(sched.RR, priority=7, flags=sched.RESET_ON_FORK))
    except PermissionError:
        pytest.skip("needs CAP_SYS_NICE and real-time bandwidth in this control group")
    assert os.sched_getscheduler(child.pid) & ~0x40000000 == os.SCHED_RR
    assert os.sched_getparam(child.pid).sched_priority == procfs.stat(child.pid).rt_priority == 7
    attr = sched.sched_getattr(child.pid)
    assert (attr.policy, attr.priority, attr.flags & sched.RESET_ON_FORK) == (sched.RR, 7, sched.RESET_ON_FORK)
    sched.sched_setattr(child.pid, attr)
    assert sched.sched_getattr(child.pid) == attr
    with pytest.raises(OSError, match="sched_setattr"):
        sched.sched_setattr(child.pid, sched.SchedAttr(sched.RR, priority=100))


def test_deadline(start: Start, root: None) -> None:
    child = start("say()")
    wanted = sched.SchedAttr(sched.DEADLINE, runtime=1_000_000, deadline=50_000_000, period=100_000_000)
    try:
        sched.sched_setattr(child.pid, wanted)
    except OSError as error:
        pytest.skip(f"SCHED_DEADLINE is not to be had here: {error}")
    attr = sched.sched_getattr(child.pid)
    assert (attr.policy, attr.runtime, attr.deadline, attr.period) == (6, 1_000_000, 50_000_000, 100_000_000)


def test_attributes_compare_and_print() -> None:
    one, other = sched.SchedAttr(nice=1), sched.SchedAttr(nice=2)
    assert one != other and one == sched.SchedAttr(nice=1) and one != 5
    assert "nice=1" in repr(one)


def test_affinity(start: Start) -> None:
    child = start("say(cpus=sorted(os.sched_getaffinity(0)))\nwait()\nsay(cpus=sorted(os.sched_getaffinity(0)))")
    assert sched.affinity(child.pid) == child.facts["cpus"]
    one = child.facts["cpus"][-1:]
    sched.set_affinity(child.pid, one)
    assert child.step()["cpus"] == one == sched.affinity(child.pid)


def test_ioprio(start: Start) -> None:
    child = start("os.nice(4)\nsay()")
    assert sched.ioprio_parts(sched.ioprio(child.pid))[0] in (sched.IOPRIO_CLASS_NONE, sched.IOPRIO_CLASS_BE)
    sched.set_ioprio(child.pid, sched.ioprio_value(sched.IOPRIO_CLASS_BE, 6))
    assert sched.ioprio(child.pid) == 2 << 13 | 6
    assert sched.ioprio_parts(sched.ioprio(child.pid)) == (sched.IOPRIO_CLASS_BE, 6)
    sched.set_ioprio(child.pid, sched.ioprio_value(sched.IOPRIO_CLASS_IDLE, 0))
    assert sched.ioprio_parts(sched.ioprio(child.pid))[0] == sched.IOPRIO_CLASS_IDLE
    with pytest.raises(ProcessLookupError):
        sched.ioprio(2**22 + 1)


def test_urgent_is_given_back(start: Start) -> None:
    """Inside the block the thread runs first, where its user may have that; afterwards everything is as before."""
    program = """
sys.path.insert(0, {src!r})
from torpor.linux import sched
os.nice(4)
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
with sched.Urgent():
    inside = os.sched_getscheduler(0)
with sched.Urgent(), sched.Urgent():
    pass
say(inside=inside, after=os.sched_getscheduler(0), nice=os.nice(0))
"""
    facts = start(program.format(src=str(SRC))).facts
    may = procfs.status(os.getpid()).cap_effective >> CAP_SYS_NICE & 1
    assert facts["inside"] == (os.SCHED_FIFO if may else os.SCHED_BATCH)
    assert (facts["after"], facts["nice"]) == (os.SCHED_BATCH, 4)


def test_changes_are_not_swallowed(start: Start) -> None:
    """The SIGCHLD that wakes torpor may have been about another child, whose parent has a handler for it."""
    program = """
sys.path.insert(0, {src!r})
from torpor.linux.signals import Changes
seen = []
signal.signal(signal.SIGCHLD, lambda *_: seen.append(1))
with Changes() as changes:
    child = os.fork()
    if not child:
        os._exit(0)
    begin = time.monotonic()
    changes.wait(10)
    took = time.monotonic() - begin
    during = len(seen)
say(during=during, after=len(seen), woken=took < 5)
"""
    assert start(program.format(src=str(SRC))).facts == {"during": 0, "after": 1, "woken": True}

"""torpor.linux.pidfd against a live child."""

from __future__ import annotations

import errno
import os
import select
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from torpor.linux import pidfd, procfs

if TYPE_CHECKING:
    from tests.linux.conftest import Child

Start = Callable[..., "Child"]


def test_open_and_end(start: Start) -> None:
    child = start("say()")
    with pidfd.open(child.pid) as fd:
        assert int(fd) > 2 and not os.get_inheritable(fd)
        assert procfs.fdinfo(os.getpid(), fd).extra["Pid"] == [str(child.pid)]
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        assert poll.poll(0) == []
        pidfd.send_signal(fd, 0)
        pidfd.send_signal(fd, signal.SIGTERM)
        assert poll.poll(10_000) == [(fd, select.POLLIN)]
        assert child.process.wait() == -signal.SIGTERM
        with pytest.raises(ProcessLookupError):
            pidfd.send_signal(fd, 0)
    with pytest.raises(OSError) as caught:
        os.fstat(fd)
    assert caught.value.errno == errno.EBADF
    with pytest.raises(ProcessLookupError):
        pidfd.open(child.pid)


def test_getfd_shares_the_open_file(start: Start) -> None:
    child = start("""
f = os.memfd_create("shared")
os.write(f, b"0123456789")
os.lseek(f, 3, 0)
say(f=f)
wait()
say(at=os.lseek(f, 0, 1))
""")
    before = procfs.fds(os.getpid())
    by_pid = pidfd.getfd(child.pid, child.facts["f"])
    with pidfd.open(child.pid) as held:
        by_fd = pidfd.getfd(held, child.facts["f"])
    try:
        assert os.read(by_pid, 2) == b"34" and os.read(by_fd, 1) == b"5"
        assert not os.get_inheritable(by_fd)
        assert child.step()["at"] == 6
    finally:
        os.close(by_pid)
        os.close(by_fd)
    with pytest.raises(OSError) as caught:
        pidfd.getfd(child.pid, 999)
    assert caught.value.errno == errno.EBADF
    assert procfs.fds(os.getpid()) == before
    assert f"{pidfd.PidFd(5)}" == "5"

"""Processes held by a descriptor: pidfd_open(2), pidfd_getfd(2), pidfd_send_signal(2).

A pidfd keeps meaning the same process when its number has gone to another one. `open()` gives a `PidFd`, an int of its
own class, so that `getfd()` can tell it from a plain pid.
"""

from __future__ import annotations

import os

from torpor.linux import libc

TYPE_CHECKING = False

PIDFD_NONBLOCK = os.O_NONBLOCK
PIDFD_THREAD = os.O_EXCL
"""For open(): one thread, not necessarily a leader (6.9)."""


class PidFd(int):
    """The number of a pidfd. Closes itself at the end of a `with`; os.close() and select() take it as it is."""

    __slots__ = ()

    def __enter__(self) -> PidFd:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self)


def open(pid: int, flags: int = 0) -> PidFd:
    """A close-on-exec pidfd of the process `pid`. ESRCH: there is none; EINVAL: `pid` is a thread, not a leader."""
    return PidFd(libc.call("pidfd_open", pid, flags))


def getfd(pid_or_pidfd: int, fd: int) -> int:
    """A close-on-exec duplicate, in this process, of descriptor `fd` of another one; both share the open file.

    A `PidFd` is used as it is, any other int is a pid and opened for the moment. EBADF: it has no such descriptor;
    EPERM: no ptrace rights (PTRACE_MODE_ATTACH_REALCREDS).
    """
    if isinstance(pid_or_pidfd, PidFd):
        return libc.call("pidfd_getfd", pid_or_pidfd, fd, 0)
    with open(pid_or_pidfd) as pidfd:
        return libc.call("pidfd_getfd", pidfd, fd, 0)


def send_signal(pidfd: int, signal: int) -> None:
    """Send `signal` as kill(2) would, never to a later process of the same number. 0 only checks. ESRCH: it is gone."""
    libc.call("pidfd_send_signal", pidfd, signal, None, 0)

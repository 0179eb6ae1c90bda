"""Nobody reads zeros where memory could not be brought: the tree is ended first.

When the last descriptor of a userfaultfd is closed the kernel gives zeros for all that has not come. So a second process, the
guard, shares the table of descriptors of the one that serves (CLONE_FILES): what that one opens, and what the kernel opens for it
when the program forks, is open in the guard, without an instant in between. If the server dies, by SIGKILL or otherwise, the guard
ends the tree, and lets go of nothing before every address space in question is gone.
"""

from __future__ import annotations

import os
import select
import struct
import time

from torpor.errors import Obstacle
from torpor.linux import clone, libc, pidfd, procfs, ptrace, signals, userfaultfd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Task = tuple[int, int]
    """A process of the tree: its id, and a pidfd of it."""

_TASK = struct.Struct("=ii")
_ALL_THERE = (0, 0)
_EVERY = 0.02  # s between two looks at what is left of the tree


class Guard:
    """The process that watches over the one that calls, which has a single thread (linux/clone.py), and what it has been told."""

    __slots__ = ("_own", "_receive", "_send", "pid")

    def __init__(self, taken: Iterable[int]) -> None:
        """Start it, with a process id that is none of `taken`. Raises OSError."""
        taken = frozenset(taken)
        self._receive, self._send = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._own = pidfd.open(os.getpid())
        refused: list[int] = []
        while True:
            # Nobody is told of its end, and so no wait() for the program finds it.
            self.pid = clone.clone3(clone.CLONE_FILES, exit_signal=0)
            if self.pid == 0:
                _watch(self._own, self._receive)
            if self.pid not in taken:
                break
            refused.append(self.pid)
        for pid in refused:
            _end(pid)

    def tell(self, tree: Sequence[Task]) -> None:
        """Whom to end. Before this the tree dies with its tracer."""
        os.write(self._send, b"".join(_TASK.pack(*task) for task in tree))

    def dismiss(self) -> None:
        """All has come, or there is nobody left whom it could come to."""
        os.write(self._send, _TASK.pack(*_ALL_THERE))
        _end(self.pid)
        for fd in (self._receive, self._send, self._own):
            os.close(fd)


def _end(pid: int) -> None:
    try:
        os.kill(pid, 9)
    except ProcessLookupError:
        pass
    ptrace.wait_gone(pid)


def _watch(server: int, channel: int) -> None:
    """The guard itself. Does not return."""
    try:
        signals.block_all()
        os.setsid()  # what a terminal sends to a group is not for it
        libc.set_name(b"torpor-guard")
        poll = select.poll()
        poll.register(server, select.POLLIN)
        while not poll.poll():
            pass
        try:
            told = list(_TASK.iter_unpack(os.read(channel, 1 << 16)))
        except BlockingIOError:
            told = []
        tree = [(pid, fd) for pid, fd in told]
        if tree and _ALL_THERE not in tree and (spaces := _insist(_spaces)):
            end_tree(tree, spaces)
            why = "the process that brings it was killed before all of it had come, so the program was ended"
            said = Obstacle("memory", why, "restart it from the image again")
            log(said)
            os.write(2, f"torpor: {said}\n".encode())
    finally:
        os._exit(0)


def _insist(function: Callable[[], list[int]]) -> list[int]:
    """Its result, whatever stands in the way for a while: to give up would be to let go."""
    while True:
        try:
            return function()
        except (OSError, MemoryError):  # out of memory or descriptors
            time.sleep(_EVERY)


def _spaces() -> list[int]:
    """Every userfaultfd that is open here."""
    found = []
    for fd in procfs.fds(os.getpid()):
        try:
            if procfs.fd_link(os.getpid(), fd) == "anon_inode:[userfaultfd]":
                found.append(fd)
        except OSError:
            continue  # the one that has just listed them
    return found


def end_tree(tree: Sequence[Task], spaces: Iterable[int]) -> None:
    """Kill the tree, and whoever else asks for memory that will not come; returns when all address spaces `spaces` are gone."""
    left = set(spaces)
    for fd in left:
        userfaultfd.wake_all(fd)  # who has asked already asks once more
    while left:
        try:
            _end_some(tree, left)
        except (OSError, ValueError, MemoryError):
            # Out of memory or descriptors, or a process has ended in the middle of a look: but nothing is let go.
            time.sleep(_EVERY)


def _end_some(tree: Sequence[Task], left: set[int]) -> None:
    """One round of it; what has gone is taken out of `left`."""
    _kill(tree)
    poll = select.poll()
    for fd in left:
        poll.register(fd, select.POLLIN)
    poll.poll(_EVERY * 1000)
    for fd in list(left):
        for message in userfaultfd.read(fd):
            if message.kind == userfaultfd.FORK:
                left.add(message.a)
            elif message.kind == userfaultfd.PAGEFAULT:
                _kill_asking(message.thread, message.a)
    for fd in [fd for fd in left if userfaultfd.gone(fd)]:
        left.discard(fd)
        os.close(fd)


def _kill(tree: Sequence[Task]) -> None:
    """All processes of the tree that are left, and their descendants: stopped first, so that none makes another one meanwhile."""
    stopped: set[int] = set()
    while True:
        alive = [pid for pid, fd in tree if _is_alive(fd)]
        found = {child for pid in alive for child in _descendants(pid)} | set(alive)
        if found <= stopped:
            break
        for pid in found - stopped:
            _signal(pid, signals.SIGSTOP)
        stopped |= found
    for pid in stopped:
        _signal(pid, signals.SIGKILL)


def _is_alive(fd: int) -> bool:
    try:
        pidfd.send_signal(fd, 0)
    except OSError:
        return False
    return True


def _descendants(pid: int) -> list[int]:
    try:
        return procfs.descendants(pid)
    except OSError:
        return []


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        pass  # it has ended, or changed its user; what it asks for will not come in any case


def _kill_asking(thread: int, address: int) -> None:
    """A process that has left the tree (its parents have ended) and touches what will not come.

    The kernel gives the thread's id in its own pid namespace; so look whether this one can be meant.
    """
    try:
        if procfs.namespace(thread, "pid") == procfs.namespace(os.getpid(), "pid"):
            for mapping in procfs.smaps(thread):
                if mapping.start <= address < mapping.end and "um" in mapping.flags:
                    _signal(thread, signals.SIGKILL)
    except OSError:
        pass


def log(said: Obstacle) -> None:
    """Say it where those look whom no command stands beside: syslog(3)."""
    import syslog

    syslog.openlog("torpor", syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_ERR, str(said))

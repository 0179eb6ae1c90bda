"""Whether two tasks share a kernel object: kcmp(2).

    kcmp.same_file(a, 3, b, 5)          one open file description behind two descriptors?
    kcmp.same(a, b, kcmp.VM)            one address space?

`order_files()` is a total order that stays the same while the machine runs, so that n descriptors can be sorted in
n log n comparisons. Needs ptrace rights on both tasks; ENOSYS where the kernel is built without CONFIG_KCMP.
"""

from __future__ import annotations

import ctypes

from torpor.linux import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    T = TypeVar("T")

FILE, VM, FILES, FS, SIGHAND, IO, SYSVSEM, EPOLL_TFD = range(8)
"""Kinds of objects (linux/kcmp.h): open file, memory, descriptor table, cwd/root/umask, signal handlers, I/O context,
System V semaphore undo list, target of an epoll descriptor."""

_EQUAL, _LESS, _GREATER = 0, 1, 2


class _EpollSlot(ctypes.Structure):
    _fields_ = (("efd", ctypes.c_uint32), ("tfd", ctypes.c_uint32), ("toff", ctypes.c_uint32))


def same(pid1: int, pid2: int, kind: int) -> bool:
    """Whether the two tasks (thread ids will do) share their VM, FILES, FS, SIGHAND, IO or SYSVSEM.

    Two tasks that have no I/O context, or no undo list, are called the same.
    """
    return libc.call("kcmp", pid1, pid2, kind, 0, 0) == _EQUAL


def order(pid1: int, pid2: int, kind: int) -> int:
    """-1, 0 or 1: how the kernel sorts the two tasks' objects of that kind."""
    return _sign(libc.call("kcmp", pid1, pid2, kind, 0, 0))


def groups(pids: Iterable[int], kind: int) -> list[list[int]]:
    """The tasks, gathered by the object of that kind that they share."""
    return gather(pids, lambda one, other: order(one, other, kind))


def gather(items: Iterable[T], compare: Callable[[T, T], int]) -> list[list[T]]:
    """Items that are one and the same object in the kernel, for `compare` one of its orders, in one list; as they come.

    The kernel has its objects in an order, so that n log n comparisons do.
    """
    found: list[list[T]] = []
    ascending: list[list[T]] = []
    for item in items:
        low, high = 0, len(ascending)
        while low < high:
            middle = (low + high) // 2
            answer = compare(item, ascending[middle][0])
            if not answer:
                ascending[middle].append(item)
                break
            low, high = (low, middle) if answer < 0 else (middle + 1, high)
        else:
            found.append([item])
            ascending.insert(low, found[-1])
    return found


def same_file(pid1: int, fd1: int, pid2: int, fd2: int) -> bool:
    """Whether both descriptors refer to one open file description (dup, fork, SCM_RIGHTS). EBADF: one is not open."""
    return libc.call("kcmp", pid1, pid2, FILE, fd1, fd2) == _EQUAL


def order_files(pid1: int, fd1: int, pid2: int, fd2: int) -> int:
    """-1, 0 or 1: how the kernel sorts the two open file descriptions; 0 when they are one."""
    return _sign(libc.call("kcmp", pid1, pid2, FILE, fd1, fd2))


def same_epoll_target(pid1: int, fd1: int, pid2: int, epoll_fd: int, target_fd: int, index: int = 0) -> bool:
    """Whether descriptor `fd1` of `pid1` is the open file that epoll `epoll_fd` of `pid2` watches as `target_fd`.

    `index` counts the entries of the same `target_fd` (it may have been closed and opened anew). ENOENT: no such entry.
    """
    slot = _EpollSlot(epoll_fd, target_fd, index)
    return libc.call("kcmp", pid1, pid2, EPOLL_TFD, fd1, ctypes.byref(slot)) == _EQUAL


def _sign(answer: int) -> int:
    if answer == _EQUAL:
        return 0
    if answer == _LESS:
        return -1
    if answer == _GREATER:
        return 1
    raise OSError(22, f"kcmp: these objects have no order ({answer})")

"""A copy of a stopped process's memory that costs no copying: the kernel's copy-on-write, by fork.

The process itself cannot simply fork: it would have a child more, and one day a zombie. So its first thread makes C1, which shares
its memory, and C1 makes C2, the copy; C1 is killed, and the thread reaps it. C2 now belongs to init (or to the next subreaper), is
stopped from its first instant to its last, and only its memory is of interest. It takes 9 ms per GiB of 4 KiB pages: page tables.

Neither may ever run as a second instance of the program, whoever dies. Once torpor has them, PTRACE_O_EXITKILL sees to that. If
torpor dies in the instant between a birth and that, they end by themselves: both are born within a batch of calls in which the
result of clone3(2) is an argument of seccomp(2). For the parent, to which it is not 0, that call is an error and nothing else;
the child, to which it is 0, has locked itself up, and its next call kills it. (CLONE_VFORK keeps the parent away meanwhile.)
"""

from __future__ import annotations

import os
import struct

from torpor.linux import ptrace
from torpor.linux.clone import CLONE_FILES, CLONE_FS, CLONE_PARENT_SETTID, CLONE_VFORK, CLONE_VM
from torpor.tasks.remote import to_next_call
from torpor.tasks.task import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.tasks.remote import Remote

_NOBODY = 0x7FFFFFFF  # above any process id: wait4(2) of it is an error
_CLOSE_RANGE_UNSHARE = 2
_EINVAL = -22
_CLONE, _LOCK, _REAP = 0, 1, 3  # their places in the batch
_OOM_FIRST = 1000


class NoCopy(Exception):
    """The kernel gives none; the text says why. The process is as it was."""


class Copy(Process):
    """The copy of a process, to be read from: `pid` and `mem`. `own_pid` is the original's."""

    __slots__ = ("_maker",)

    def __init__(self, pid: int, maker: Remote) -> None:
        super().__init__(pid, maker.thread.process.own_pid)
        self.arch, self._maker = maker.arch, maker
        self.shares = True

    def part(self) -> None:
        """Have it give up what it shares with the program, which may be running again. Raises OSError: it has been killed.

        Files and pipes shall end when the program closes them (before Linux 5.9 the copy keeps them as long as it lives), and
        a signal to its process group is not for the copy; nor may that group be held by it, for its number is a process id.
        """
        try:
            with open(f"/proc/{self.pid}/oom_score_adj", "w") as file:
                file.write(str(_OOM_FIRST))
        except OSError:
            pass  # then others go first when there is no memory left
        files = ("close_range", 0, 0xFFFFFFFF, _CLOSE_RANGE_UNSHARE)
        self._maker.lend(self, ("setsid",), files, ("seccomp", 0, 0, 0), ("getpid",))
        for _ in range(2 * 2):  # a call stops on entry and on exit
            to_next_call(self.pid)

    def end(self) -> None:
        """Kill and reap it. Its parent, init, reaps it once more."""
        self.close()
        _end(self.pid)


def take(remote: Remote) -> Copy:
    """Copy the process of `remote`, its first thread. Raises NoCopy."""
    if remote.batch([("seccomp", 0, 1, 0)]) != [_EINVAL]:
        raise NoCopy("this kernel has no seccomp(2), without which a copy could come to life")
    remote.reset()
    arguments = remote.put(_arguments(CLONE_VM | CLONE_VFORK | CLONE_FS | CLONE_FILES | CLONE_PARENT_SETTID, remote))
    calls: Sequence[Sequence[str | int]] = [
        ("clone3", arguments, len(_arguments(0, remote))),
        ("seccomp", 0, 0, 0),  # SECCOMP_SET_MODE_STRICT; its flags are the result of clone3
        ("getpid",),
        ("wait4", _NOBODY, 0, ptrace.WALL, 0),  # of the process whose id clone3 leaves here
        # How far the child has come in the batch when torpor dies is not known: there is enough for both.
        ("getpid",),
        ("getpid",),
    ]
    made: list[int] = []
    failures: list[BaseException] = []

    def at_birth(tid: int) -> None:
        try:
            made.append(_by_intermediate(remote, tid, arguments))
        except BaseException as error:  # the first thread is in the middle of its call: let it come to its end
            failures.append(error)

    tid = remote.thread.tid
    remote.at_birth = at_birth
    try:
        ptrace.set_options(tid, ptrace.O_TRACESYSGOOD | ptrace.O_TRACEVFORK | ptrace.O_TRACECLONE)
        results = remote.table(calls, (_CLONE, _LOCK, 1))
        ptrace.set_options(tid, ptrace.O_TRACESYSGOOD)
        if failures:
            raise failures[0]
    except BaseException:
        for each in made:
            _end(each)
        raise
    finally:
        remote.at_birth = None
        remote.born.clear()
    if not made:
        raise NoCopy(f"the kernel makes no process for it ({os.strerror(-results[_CLONE])})")
    return Copy(made[0], remote)


def _arguments(flags: int, remote: Remote) -> bytes:
    """struct clone_args (linux/sched.h) of a child that tells nobody of its end."""
    return struct.pack("=8Q", flags, 0, 0, remote.argument_at(_REAP, 0, 4), 0, 0, 0, 0)


def _by_intermediate(remote: Remote, tid: int, arguments: int) -> int:
    """Let C1, the task `tid` that has just been born, make the copy, and end C1. The id of the copy. Raises NoCopy."""
    _await_birth(tid)
    try:
        # The copy inherits these.
        ptrace.set_options(tid, ptrace.O_TRACESYSGOOD | ptrace.O_TRACECLONE | ptrace.O_EXITKILL)
        # C1 begins the same batch anew, with other flags, while the first thread waits for its end.
        remote.thread.process.write(arguments, _arguments(CLONE_FS | CLONE_FILES, remote))
        remote.lead(tid)
        for _ in range(2):  # a call stops on entry and on exit, and one that makes a task in between
            if to_next_call(tid) >> 16 == ptrace.EVENT_CLONE:
                made = ptrace.event_message(tid)
                _await_birth(made)
                return made
        registers = remote.arch.registers.read_general(tid)
        raise NoCopy(f"the kernel makes no copy of it (clone3 gives {remote.arch.signed(registers[remote.arch.result])})")
    except ProcessLookupError as error:
        raise NoCopy("what was to make it has been killed") from error
    finally:
        _end(tid)


def _await_birth(tid: int) -> None:
    status = ptrace.wait(tid)
    if status is None or status >> 16 != ptrace.EVENT_STOP:
        raise NoCopy(f"what was to make it did not come up (wait status {status})")


def _end(tid: int) -> None:
    try:
        os.kill(tid, 9)
    except ProcessLookupError:
        pass
    ptrace.wait_gone(tid)

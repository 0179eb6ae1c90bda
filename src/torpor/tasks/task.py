"""A task in our hands: stopped, and traced by this thread."""

from __future__ import annotations

import os
from errno import EFAULT, ESRCH

from torpor.linux import memory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from torpor.arch.contract import Arch, Registers


class Process:
    """A thread group. `pid` is its id here, `own_pid` the one in its own pid namespace."""

    __slots__ = ("_mem", "arch", "lent_to", "own_pid", "pid", "shares")

    arch: Arch
    lent_to: object
    """Whose code lies in the process's memory at the moment (a tasks.remote.Remote)."""
    shares: bool
    """Whether it shares pages with others by fork. Who reads one by process_vm_readv(2) pins it, and for that the kernel makes a
    copy of it (mm/gup.c, gup_must_unshare()): it takes twice as long, and the memory is there twice. /proc/PID/mem does not pin.
    """

    def __init__(self, pid: int, own_pid: int) -> None:
        self.pid, self.own_pid = pid, own_pid
        self._mem = -1
        self.lent_to = None
        self.shares = False

    @property
    def mem(self) -> int:
        """A descriptor of /proc/PID/mem; it belongs to one address space, so `close` it when the process calls execve."""
        if self._mem < 0:
            self._mem = memory.open_mem(self.pid)
        return self._mem

    def read(self, address: int, length: int) -> bytes:
        """`length` bytes at `address`, also where the process may not read itself.

        Raises OSError when not all is mapped, ProcessLookupError when it is just ending.
        """
        data = os.pread(self.mem, length, address)
        if len(data) != length:
            raise self._cut_short(len(data), length, address)
        return data

    def write(self, address: int, data: bytes) -> None:
        """Put `data` at `address`, also where the process may not write itself. Raises as `read`."""
        written = os.pwrite(self.mem, data, address)
        if written != len(data):
            raise self._cut_short(written, len(data), address)

    def _cut_short(self, done: int, length: int, address: int) -> OSError:
        """What is to be raised; where nothing is mapped at all, the kernel has said so itself (EIO)."""
        if not done:
            return ProcessLookupError(ESRCH, f"process {self.pid} is ending: its memory is gone")
        return OSError(EFAULT, f"/proc/{self.pid}/mem: {done} of {length} bytes at {address:#x}")

    def close(self) -> None:
        """Close what was opened for this process."""
        mem, self._mem = self._mem, -1
        if mem >= 0:  # not twice, if Ctrl-C comes in between
            os.close(mem)


class Thread:
    """A thread. `regs` and `mask` are the general registers and the signal mask it is to go on with.

    `makes_again` is the number of the call that it is in by way of restart_syscall(2), where that is known, else -1.
    """

    __slots__ = ("makes_again", "mask", "own_tid", "process", "regs", "tid")

    def __init__(self, process: Process, tid: int, own_tid: int, regs: Registers, mask: int) -> None:
        self.process, self.tid, self.own_tid, self.regs, self.mask = process, tid, own_tid, regs, mask
        self.makes_again = -1

"""Waits that any stop ends go on with the rest of their time.

epoll_wait, sigtimedwait and their like return EINTR from every stop (signal(7)) and have no restart block. They are issued again,
but their time limit stands in a register or in the program's memory, which must not be seen to change. So the call is made from a
*slot*: a few instructions behind torpor's code in the padding of the vdso, that issue the call with the rest of the time, put the
register back and jump to where the program goes on. A thread that is stopped in its slot is taken out of it at once, so
an image never knows of slots.

Where no jump leaves all registers alone, one slot does for all threads: it ends in rt_sigreturn(2), whose frame lies below the
thread's stack, where the kernel may put one at any time.
"""

from __future__ import annotations

import os

from torpor.linux import procfs
from torpor.linux.libc import PAGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from torpor.arch.contract import Registers
    from torpor.tasks.task import Process, Thread


def slots_at(process: Process, padding: int) -> tuple[int, int]:
    """Where the slots of a process lie, and where they end: as many as the page in which torpor's code ends has room for."""
    arch = process.arch
    start = padding + (len(arch.code) + 15 & ~15)
    room = max(page_end(process, padding) - start, 0)
    return start, start + arch.slot_size * min(arch.slot_count, room // arch.slot_size)


def page_end(process: Process, padding: int) -> int:
    """The end of the page in which torpor's code ends; behind it there may be nothing."""
    return padding + len(process.arch.code) + PAGE - 1 & -PAGE


def slot_of(thread: Thread, padding: int) -> int:
    """The address of the slot that a stopped thread is in; 0: in none."""
    start, end = slots_at(thread.process, padding)
    at, size = thread.regs[thread.process.arch.ip], thread.process.arch.slot_size
    return start + (at - start) // size * size if start <= at < end else 0


def taken_out(thread: Thread, slot: int) -> Registers:
    """The registers of a thread stopped in the slot at `slot` as they would be if it had made its call by itself."""
    arch, mem = thread.process.arch, thread.process.mem
    code = os.pread(mem, arch.slot_size, slot)
    return arch.from_slot(code, slot, thread.regs, lambda address, length: os.pread(mem, length, address))


class Slots:
    """The slots of one frozen process, handed out one by one."""

    def __init__(self, process: Process, padding: int) -> None:
        self.process = process
        self._next, self._end = slots_at(process, padding)

    def put(self, thread: Thread, number: int, left: int) -> None:
        """Let `thread`, whose registers issue the call `number` again, issue it from a slot, for `left` ns.

        Where no slot is left, it waits its whole time again.
        """
        arch = self.process.arch
        if self._next + arch.slot_size > self._end or not arch.retried(number):
            return
        if arch.framed_slots:
            self._put_framed(thread, number, left)
            return
        code, regs = arch.to_slot(self._next, thread.regs, number, left)
        os.pwrite(self.process.mem, code.ljust(arch.slot_size, b"\0"), self._next)
        self._next += arch.slot_size
        thread.regs = regs


    def _put_framed(self, thread: Thread, number: int, left: int) -> None:
        arch, process = self.process.arch, self.process
        top = thread.regs[arch.sp]
        code, frame, regs = arch.to_framed_slot(self._next, thread, number, left)
        for mapping in procfs.maps(process.pid):
            if mapping.start <= regs[arch.sp] and top <= mapping.end:
                if mapping.perms == "rw-p" and mapping.path in ("", "[stack]", "[heap]"):
                    os.pwrite(process.mem, code, self._next)
                    os.pwrite(process.mem, frame, regs[arch.sp])
                    thread.regs = regs
                return

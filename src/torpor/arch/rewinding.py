"""Kernels that move the registers of an interrupted call back *before* a tracer can see them.

They forget what they were going to decide as soon as the tracer has used the thread for something else. So a thread is looked at
just before it is stopped, its registers are put into the form that they would have without that (`looked_at`), and brought back
to what it must go on with when they are written.

All of them come with the table of calls in include/uapi/asm-generic/unistd.h, pass the first argument in the register that takes
the result, and have no jump that keeps every register, so torpor's code ends in rt_sigreturn(2).
"""

from __future__ import annotations

import struct

from torpor.arch.contract import EINTR, ERESTART_RESTARTBLOCK, ERESTARTNOHAND, ERESTARTSYS, Arch
from torpor.arch.rules import asks_again
from torpor.arch.waits import RETRIED, TIME_ARGUMENT, rest, timespec
from torpor.linux import ptrace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from torpor.arch.contract import Registers, Seen, Task

NT_PRSTATUS = 1
NONE = (1 << 64) - 1
"""In syscallno: no call."""
INSTRUCTION = 4
"""Bytes of the instruction that makes a call."""
SYSCALLS = {
    "io_getevents": 4, "epoll_ctl": 21, "epoll_pwait": 22, "dup3": 24, "fcntl": 25, "ioctl": 29, "flock": 32, "fchdir": 50,
    "chroot": 51, "openat": 56, "close": 57, "lseek": 62, "read": 63, "write": 64, "pread64": 67, "pselect6": 72,
    "ppoll": 73, "capset": 91, "personality": 92, "exit": 93, "exit_group": 94, "waitid": 95, "set_tid_address": 96,
    "futex": 98, "set_robust_list": 99, "get_robust_list": 100, "nanosleep": 101, "getitimer": 102, "setitimer": 103,
    "timer_create": 107, "timer_gettime": 108, "timer_settime": 110, "timer_delete": 111, "clock_nanosleep": 115,
    "restart_syscall": 128, "kill": 129, "tgkill": 131, "sigaltstack": 132, "rt_sigsuspend": 133, "rt_sigaction": 134,
    "rt_sigprocmask": 135, "rt_sigtimedwait": 137, "rt_sigqueueinfo": 138, "rt_sigreturn": 139, "setresuid": 147,
    "setresgid": 149, "setpgid": 154, "setsid": 157, "setgroups": 159, "umask": 166, "prctl": 167, "getpid": 172,
    "gettid": 178, "msgrcv": 188, "msgsnd": 189, "semtimedop": 192, "semop": 193, "accept": 202, "connect": 203,
    "sendto": 206, "recvfrom": 207, "sendmsg": 211, "recvmsg": 212, "brk": 214, "munmap": 215, "mremap": 216, "mmap": 222,
    "mprotect": 226, "mlock": 228, "madvise": 233, "rt_tgsigqueueinfo": 240, "accept4": 242, "recvmmsg": 243,
    "wait4": 260, "prlimit64": 261, "seccomp": 277, "execveat": 281, "mlock2": 284, "io_pgetevents": 292, "rseq": 293,
    "userfaultfd": 282,
    "pidfd_open": 434, "clone3": 435, "close_range": 436, "pidfd_getfd": 438, "epoll_pwait2": 441,
}  # fmt: skip
"""include/uapi/asm-generic/unistd.h"""

_RESTARTED = frozenset((
    "read", "write", "openat", "ioctl", "fcntl", "flock", "futex", "wait4", "waitid", "accept", "accept4", "connect",
    "sendto", "recvfrom", "sendmsg", "recvmsg", "recvmmsg",
))  # fmt: skip
"""Calls that go on behind a signal handler with SA_RESTART (signal(7)); all others end with EINTR."""


class General:
    """The general registers of a family: the names of those that the kernel has, in its order, and what some of them do.

    Two more are torpor's own: syscallno, and the first argument of the call that the thread was in, orig_ and its register.
    """

    __slots__ = ("every", "ip", "layout", "names", "number", "original", "result", "sp")

    def __init__(self, names: Sequence[str], *, ip: str, sp: str, result: str, number: str) -> None:
        self.names, self.layout = tuple(names), struct.Struct(f"={len(names)}Q")
        self.ip, self.sp, self.result, self.original = ip, sp, result, f"orig_{result}"
        self.every = (*names, self.original, "syscallno")
        self.number = number
        """The register that says which call is to be made."""

    def read(self, tid: int) -> Registers:
        """The general registers by name; that the thread is in a call is not among what they tell (`Arch.looked_at`)."""
        regs = dict(zip(self.names, self.layout.unpack(ptrace.get_regset(tid, NT_PRSTATUS)), strict=True))
        return {**regs, self.original: regs[self.result], "syscallno": NONE}

    def write(self, tid: int, regs: Mapping[str, int]) -> None:
        """Set the general registers, with which an interrupted call is made again: the kernel will not do it any more."""
        if regs["syscallno"] != NONE:
            regs = self.again(regs)
        ptrace.set_regset(tid, NT_PRSTATUS, self.layout.pack(*[regs[name] for name in self.names]))

    def restart_ended(self, tid: int, calls: AbstractSet[int], seen: Seen | None) -> None:
        """Where a stop has ended one of `calls` with EINTR, let the thread make it again; `seen` has the argument that is lost."""
        if seen is None or seen[0] not in calls:
            return
        regs = self.read(tid)
        if regs[self.result] == NONE + 1 - EINTR and regs[self.ip] == seen[3] and regs[self.sp] == seen[2]:
            self.write(tid, {**regs, self.result: seen[1][0], self.ip: regs[self.ip] - INSTRUCTION})

    def again(self, regs: Mapping[str, int]) -> Mapping[str, int]:
        """What an interrupted call leaves behind when it is to be made again: by its number, or by restart_syscall(2).

        Sources: arch/arm64/kernel/signal.c, do_signal() and setup_restart_syscall(); arch/riscv/kernel/signal.c,
        arch_do_signal_or_restart(). They leave the number of restart_syscall in its register.
        """
        if not asks_again(regs[self.result], 8):
            return regs
        block = NONE + 1 - regs[self.result] == ERESTART_RESTARTBLOCK
        number = SYSCALLS["restart_syscall"] if block else regs["syscallno"]
        return {**regs, self.result: regs[self.original], self.number: number, self.ip: regs[self.ip] - INSTRUCTION}


class Rewinding(Arch):
    """A kind of task of such a kernel."""

    general: General
    slot_code: bytes
    """Makes the call, puts its result into the frame at the stack pointer, and ends in rt_sigreturn(2): an instruction each."""
    frame_front = 0
    """Bytes of the frame in front of `code.symbols["frame"]`: nobody reads them."""

    word = 8
    number = "syscallno"
    syscalls = SYSCALLS
    slot_size, slot_count, framed_slots = 16, 1, True
    rewinds = True
    code_behind_segments = True

    def looked_at(self, regs: Registers, seen: Seen | None) -> Registers:
        """See Arch.looked_at."""
        general = self.general
        if seen is None or seen[0] < 0 or regs[general.sp] != seen[2]:
            return regs
        number, arguments, _, ip = seen
        others = tuple(regs[name] for name in self.arguments[1:])
        if regs[general.number] != number or others != arguments[1:]:
            return regs
        call = {general.original: arguments[0], "syscallno": number, general.ip: ip}
        if regs[general.ip] == ip - INSTRUCTION and regs[general.result] == arguments[0]:
            return {**regs, **call, general.result: NONE + 1 - self._error(number, arguments)}
        if regs[general.ip] == ip and regs[general.result] == NONE + 1 - EINTR:
            return {**regs, **call}
        return regs

    def _error(self, number: int, arguments: Sequence[int]) -> int:
        """With which of ERESTART* the kernel ends call `number` when a signal comes."""
        name, _ = self.call_name(number)
        if name == "restart_syscall":
            return ERESTART_RESTARTBLOCK
        if name in TIME_ARGUMENT and not self.absolute(name, arguments) and arguments[TIME_ARGUMENT[name]]:
            return ERESTART_RESTARTBLOCK
        return ERESTARTSYS if name in _RESTARTED else ERESTARTNOHAND

    def handled(self, regs: Registers, restarts: bool, *, again: bool = False) -> Registers:
        """See Arch.handled."""
        general = self.general
        if again:
            return {**regs, general.result: NONE + 1 - EINTR, general.ip: regs[general.ip] + INSTRUCTION}
        call = self.pending_call(regs)
        if call is None or call[1] == EINTR or (call[1] == ERESTARTSYS and restarts):
            return regs
        return {**regs, general.result: NONE + 1 - EINTR, "syscallno": NONE}

    def again(self, regs: Registers, number: int | None = None) -> Registers:
        """See Arch.again."""
        general, number = self.general, regs["syscallno"] if number is None else number
        made = {general.result: regs[general.original], general.number: number, general.ip: regs[general.ip] - INSTRUCTION}
        return {**regs, **made, "syscallno": NONE}

    def settled(self, regs: Registers) -> Registers:
        """See Arch.settled. After rt_sigreturn(2) there is no restart block any more: the call is made from its beginning."""
        call = self.pending_call(regs)
        return dict(regs) if call is None or call[1] == EINTR else self.again(regs)

    def _frame(self) -> tuple[int, int, int]:
        """Where in the code its frame begins, where the general registers in it, and where it ends."""
        symbols = self.code.symbols
        return symbols["frame"], symbols[f"r_{self.general.names[0]}"], symbols["end"]

    def to_framed_slot(self, at: int, thread: Task, number: int, left: int) -> tuple[bytes, bytes, Registers]:
        """See Arch.to_framed_slot: the call, its result into the frame, rt_sigreturn(2). The frame is that of `heal`."""
        (name, narrow), regs, general = self.call_name(number), thread.regs, self.general
        values = self.heal_values({**regs, general.ip: regs[general.ip] + INSTRUCTION}, thread.tid) | {"v_mask": thread.mask}
        begin, _, end = self._frame()
        frame = bytes(self.frame_front) + self.code.placed(0, 0, values)[begin:end]
        start = regs[general.sp] - len(frame) - len(timespec(left, narrow)) & -16
        limit, words = rest(name, narrow, left, start + len(frame))
        return self.slot_code, frame + words, {**regs, general.ip: at, general.sp: start, self.arguments[RETRIED[name]]: limit}

    def from_slot(self, code: bytes, at: int, regs: Registers, read: Callable[[int, int], bytes]) -> Registers:
        """See Arch.from_slot."""
        general, (begin, registers, end) = self.general, self._frame()
        length = self.frame_front + end - begin
        try:
            frame = read(regs[general.sp], length)
        except OSError:
            return regs
        if len(frame) < length:
            return regs
        kept = dict(zip(general.names, general.layout.unpack_from(frame, self.frame_front + registers - begin), strict=True))
        kept |= {general.original: kept[general.result], "syscallno": NONE}
        if regs[general.ip] == at:  # it has not made the call yet
            return {**kept, general.ip: kept[general.ip] - INSTRUCTION}
        if regs[general.ip] == at + INSTRUCTION:
            return {**kept, **{name: regs[name] for name in (general.result, general.original, "syscallno")}}
        return kept

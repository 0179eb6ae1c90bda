"""AArch64: which registers mean what, the numbers of the calls, the code that runs inside a task.

The kernel moves the registers of an interrupted call back *before* a tracer can see them, and forgets what it was going to
decide as soon as the tracer has used the thread for something else. So a thread is looked at just before it is stopped, its
registers are put into the form that they would have without that (`looked_at`), and brought back to what it must go on with when
they are written (registers.py).

Sources: include/uapi/asm-generic/unistd.h; arch/arm64/kernel/signal.c, do_signal(); arch/arm64/kernel/syscall.c.
"""

from __future__ import annotations

import sys

from torpor.arch.arm64 import cpu
from torpor.arch.arm64.code import CODE_64
from torpor.arch.arm64.registers import GENERAL, INSTRUCTION, KEPT, NT_PRFPREG, REGISTERS, VECTOR
from torpor.arch.arm64.rules import NONE, PSTATE
from torpor.arch.contract import EINTR, ERESTART_RESTARTBLOCK, ERESTARTNOHAND, ERESTARTSYS, Arch
from torpor.arch.waits import RETRIED, TIME_ARGUMENT, rest, timespec
from torpor.linux import ptrace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torpor.arch.contract import Registers, Seen, Task
    from torpor.image.record import Record

_RESTARTED = frozenset((
    "read", "write", "openat", "ioctl", "fcntl", "flock", "futex", "wait4", "waitid", "accept", "accept4", "connect",
    "sendto", "recvfrom", "sendmsg", "recvmsg", "recvmmsg",
))  # fmt: skip
"""Calls that go on behind a signal handler with SA_RESTART (signal(7)); all others end with EINTR."""

_SLOT = bytes.fromhex("010000d4 e09f00f9 681180d2 010000d4")
"""svc #0; str x0, [sp, #312]; mov x8, #139; svc #0"""

_SYSCALLS = {
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
    "wait4": 260, "prlimit64": 261, "execveat": 281, "mlock2": 284, "io_pgetevents": 292, "rseq": 293,
    "pidfd_open": 434, "clone3": 435, "close_range": 436, "pidfd_getfd": 438, "epoll_pwait2": 441,
}  # fmt: skip


class Arm64(Arch):
    """A 64-bit task."""

    name, image_id, word, elf_machine = "aarch64", 4, 8, 183
    user_limit = 1 << 48
    ip, sp, flags, result, number = "pc", "sp", "pstate", "x0", "syscallno"
    arguments = ("orig_x0", "x1", "x2", "x3", "x4", "x5")
    entry_registers = {"pstate": 0}
    kept_flags = PSTATE
    syscall_instruction = (b"\x01\x00\x00\xd4",)  # svc #0
    syscalls = _SYSCALLS
    code = CODE_64
    slot_size, slot_count, framed_slots = 16, 1, True
    registers = REGISTERS
    header = staticmethod(cpu.header)
    header_record = cpu.Arm64Header
    rewinds = True
    code_behind_segments = True

    def verdict(self, header: Record, used: int, cpu_mode: str, here: Record) -> list[str]:
        """See Arch.verdict."""
        assert isinstance(header, cpu.Arm64Header)
        assert isinstance(here, cpu.Arm64Header)
        return cpu.verdict(header, used, here=here, cpu=cpu_mode)

    def described(self, cpuinfo: Mapping[str, str]) -> Record:
        """See Arch.described."""
        return cpu.described(cpuinfo)

    def looked_at(self, regs: Registers, seen: Seen | None) -> Registers:
        """See Arch.looked_at."""
        if seen is None or seen[0] < 0 or regs["sp"] != seen[2]:
            return regs
        number, arguments, _, pc = seen
        others = tuple(regs[name] for name in self.arguments[1:])
        if regs["x8"] != number or others != arguments[1:]:
            return regs
        call = {"orig_x0": arguments[0], "syscallno": number, "pc": pc}
        if regs["pc"] == pc - INSTRUCTION and regs["x0"] == arguments[0]:
            return {**regs, **call, "x0": NONE + 1 - self._error(number, arguments)}
        if regs["pc"] == pc and regs["x0"] == NONE + 1 - EINTR:
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
        if again:
            return {**regs, "x0": NONE + 1 - EINTR, "pc": regs["pc"] + INSTRUCTION}
        call = self.pending_call(regs)
        if call is None or call[1] == EINTR or (call[1] == ERESTARTSYS and restarts):
            return regs
        return {**regs, "x0": NONE + 1 - EINTR, "syscallno": NONE}

    def again(self, regs: Registers, number: int | None = None) -> Registers:
        """See Arch.again."""
        number = regs["syscallno"] if number is None else number
        return {**regs, "x0": regs["orig_x0"], "x8": number, "pc": regs["pc"] - INSTRUCTION, "syscallno": NONE}

    def settled(self, regs: Registers) -> Registers:
        """See Arch.settled. After rt_sigreturn(2) there is no restart block any more: the call is made from its beginning."""
        call = self.pending_call(regs)
        return dict(regs) if call is None or call[1] == EINTR else self.again(regs)

    def heal_values(self, regs: Registers, tid: int) -> dict[str, int]:
        """See Arch.heal_values: the vector registers are among them."""
        vectors, fpsr, fpcr = VECTOR.unpack(ptrace.get_regset(tid, NT_PRFPREG))
        values = super().heal_values(regs, tid)
        return {**values, "v_v": int.from_bytes(vectors, sys.byteorder), "v_fpsr": fpsr, "v_fpcr": fpcr}

    def to_framed_slot(self, at: int, thread: Task, number: int, left: int) -> tuple[bytes, bytes, Registers]:
        """See Arch.to_framed_slot: the call, its result into the frame, rt_sigreturn(2). The frame is that of `heal`."""
        (name, narrow), regs = self.call_name(number), thread.regs
        values = self.heal_values({**regs, "pc": regs["pc"] + INSTRUCTION}, thread.tid) | {"v_mask": thread.mask}
        frame = self.code.placed(0, 0, values)[self.code.symbols["frame"] :]
        start = regs["sp"] - len(frame) - len(timespec(left, narrow)) & -16
        limit, words = rest(name, narrow, left, start + len(frame))
        return _SLOT, frame + words, {**regs, "pc": at, "sp": start, self.arguments[RETRIED[name]]: limit}

    def from_slot(self, code: bytes, at: int, regs: Registers, read: Callable[[int, int], bytes]) -> Registers:
        """See Arch.from_slot."""
        symbols = self.code.symbols
        try:
            frame = read(regs["sp"], symbols["end"] - symbols["frame"])
        except OSError:
            return regs
        if len(frame) < symbols["end"] - symbols["frame"]:
            return regs
        kept = dict(zip(KEPT, GENERAL.unpack_from(frame, symbols["r_x0"] - symbols["frame"]), strict=True))
        kept |= {"orig_x0": kept["x0"], "syscallno": NONE}
        if regs["pc"] == at:  # it has not made the call yet
            return {**kept, "pc": kept["pc"] - INSTRUCTION}
        if regs["pc"] == at + INSTRUCTION:
            return {**kept, **{name: regs[name] for name in ("x0", "orig_x0", "syscallno")}}
        return kept


KINDS = (Arm64(),)

"""32-bit ARM (R-C4): which registers mean what, the numbers of the calls, the code that runs inside a task.

It is a package beside `arm64`, whose machines run these programs too: records, header and calls have nothing in common with
AArch64's, and a 32-bit machine need not know of that. On a kernel of either width an interrupted call is moved back before a
tracer sees it, as arm64/__init__.py tells. But a 32-bit kernel restarts a call without going back to the program, so that r7,
unlike on arm64, never becomes the number of restart_syscall(2); what has a restart block is therefore given back at the end of a
call, where the kernel takes it for the interrupted one (`resumes_at_end`).

Torpor's code lies in [sigpage], which every kernel gives to its 32-bit ARM programs; some give no vdso. Its trampolines for signal
handlers begin anywhere up to 0x9fc (arm, get_signal_page()), or at 0 (arm64), and are 68 bytes at most.

Sources: arch/arm/tools/syscall.tbl; arch/{arm,arm64}/kernel/signal.c, do_signal(); arch/arm/kernel/entry-common.S.
"""

from __future__ import annotations

import sys

from torpor.arch.arm import cpu
from torpor.arch.arm.code import CODE_32
from torpor.arch.arm.registers import FRAMED, NT_ARM_VFP, REGISTERS, RESTART_SYSCALL, VFP, ArmRegisters, width
from torpor.arch.arm.rules import CPSR, IT, NONE, THUMB, USER_MODE
from torpor.arch.arm.state import ArmTls
from torpor.arch.contract import EINTR, ERESTART_RESTARTBLOCK, ERESTARTNOHAND, ERESTARTSYS, Arch
from torpor.arch.waits import RETRIED, TIME_ARGUMENT, rest, timespec
from torpor.linux import libc, ptrace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torpor.arch.contract import Registers, Seen, Task
    from torpor.image.record import Record

_RESTARTED = frozenset((
    "read", "write", "openat", "ioctl", "fcntl", "flock", "futex", "wait4", "waitid", "accept", "accept4", "connect",
    "send", "sendto", "recv", "recvfrom", "sendmsg", "recvmsg", "recvmmsg",
))  # fmt: skip
"""Calls that go on behind a signal handler with SA_RESTART (signal(7)); all others end with EINTR."""

_RESULT_AT = CODE_32.symbols["r_r0"] - CODE_32.symbols["frame"]
_SLOT = b"".join(word.to_bytes(4, sys.byteorder) for word in (0xEF000000, 0xE58D0000 | _RESULT_AT, 0xE3A070AD, 0xEF000000))
"""svc #0; str r0, [sp, #...]; mov r7, #173; svc #0"""

SET_TLS = 0x0F0005
"""The private call that sets the thread pointer (asm/unistd.h, __ARM_NR_set_tls)."""

# Where there are two calls, the name means the one with wide ids and 64-bit times; the others keep their own names.
_SYSCALLS = {
    "restart_syscall": 0, "exit": 1, "read": 3, "write": 4, "close": 6, "lseek": 19, "getpid": 20, "pause": 29, "kill": 37,
    "brk": 45, "ioctl": 54, "setpgid": 57, "umask": 60, "chroot": 61, "setsid": 66, "munmap": 91, "setitimer": 104,
    "getitimer": 105, "wait4": 114, "mprotect": 125, "fchdir": 133, "personality": 136, "_llseek": 140, "select": 142,
    "flock": 143, "mlock": 150, "nanosleep_time32": 162, "mremap": 163, "poll": 168, "prctl": 172, "rt_sigreturn": 173,
    "rt_sigaction": 174, "rt_sigprocmask": 175, "rt_sigtimedwait_time32": 177, "rt_sigqueueinfo": 178, "rt_sigsuspend": 179,
    "pread64": 180, "capset": 185, "sigaltstack": 186, "mmap2": 192, "setgroups": 206, "setresuid": 208, "setresgid": 210,
    "madvise": 220, "fcntl": 221, "gettid": 224, "futex_time32": 240, "io_getevents_time32": 245, "exit_group": 248,
    "epoll_ctl": 251, "epoll_wait": 252, "set_tid_address": 256, "timer_create": 257, "timer_delete": 261,
    "clock_nanosleep_time32": 265, "tgkill": 268, "waitid": 280, "connect": 283, "accept": 285, "send": 289, "sendto": 290,
    "recv": 291, "recvfrom": 292, "sendmsg": 296, "recvmsg": 297, "semop": 298, "msgsnd": 301, "msgrcv": 302,
    "semtimedop_time32": 312, "openat": 322, "pselect6_time32": 335, "ppoll_time32": 336, "set_robust_list": 338,
    "get_robust_list": 339, "epoll_pwait": 346, "dup3": 358, "rt_tgsigqueueinfo": 363, "recvmmsg_time32": 365,
    "accept4": 366, "prlimit64": 369, "seccomp": 383, "execveat": 387, "mlock2": 390, "rseq": 398, "io_pgetevents_time32": 399,
    "userfaultfd": 388,
    "clock_nanosleep": 407, "timer_gettime": 408, "timer_settime": 409, "pselect6": 413, "ppoll": 414, "io_pgetevents": 416,
    "recvmmsg": 417, "semtimedop": 420, "rt_sigtimedwait": 421, "futex": 422, "pidfd_open": 434, "clone3": 435,
    "close_range": 436, "pidfd_getfd": 438, "epoll_pwait2": 441,
}  # fmt: skip


class Arm(Arch):
    """A 32-bit task of the EABI, in ARM or Thumb code, on a kernel of either width."""

    name, image_id, word, elf_machine, elf_flags = "arm", 3, 4, 40, 0x0500_0000
    user_limit = cpu.user_limit()
    ip, sp, flags, result, number = "pc", "sp", "cpsr", "r0", "syscallno"
    arguments = ("orig_r0", "r1", "r2", "r3", "r4", "r5")
    entry_registers = {"r0": 0, "cpsr": USER_MODE}
    kept_flags = CPSR | USER_MODE
    syscall_instruction = (b"\0\0\0\xef", b"\0\xdf")  # svc #0 in ARM and in Thumb code
    syscalls = _SYSCALLS
    code = CODE_32
    code_in, code_offset = "[sigpage]", 0xA80
    slot_size, slot_count, framed_slots = 16, 1, True
    registers: ArmRegisters = REGISTERS
    header = staticmethod(cpu.header)
    header_record = cpu.ArmHeader
    rewinds = True

    def has_abi(self, flags: int) -> bool:
        """See Arch.has_abi: programs of the old ABI have no version of the EABI, and the number of a call in its instruction."""
        return bool(flags & 0xFF00_0000)

    def verdict(self, header: Record, used: int, cpu_mode: str, here: Record) -> list[str]:
        """See Arch.verdict."""
        assert isinstance(header, cpu.ArmHeader)
        assert isinstance(here, cpu.ArmHeader)
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
        if not self._asked_for(number, regs) or others != arguments[1:]:
            return regs
        call = {"orig_r0": arguments[0], "syscallno": number, "pc": pc}
        if regs["pc"] == pc - width(regs) and regs["r0"] == arguments[0]:
            return {**regs, **call, "r0": NONE + 1 - self._error(number, arguments)}
        if regs["pc"] == pc and regs["r0"] == NONE + 1 - EINTR:
            return {**regs, **call}
        return regs

    def _asked_for(self, number: int, regs: Registers) -> bool:
        """Whether the registers that a thread was stopped with may ask for call `number`: see the head of this module."""
        return regs["r7"] == number or (number == RESTART_SYSCALL and not libc.WIDE_KERNEL)

    def _error(self, number: int, arguments: Sequence[int]) -> int:
        """With which of ERESTART* the kernel ends call `number` when a signal comes."""
        name, _ = self.call_name(number)
        if name in ("restart_syscall", "poll"):
            return ERESTART_RESTARTBLOCK
        if name in TIME_ARGUMENT and not self.absolute(name, arguments) and arguments[TIME_ARGUMENT[name]]:
            return ERESTART_RESTARTBLOCK
        return ERESTARTSYS if name in _RESTARTED else ERESTARTNOHAND

    def handled(self, regs: Registers, restarts: bool, *, again: bool = False) -> Registers:
        """See Arch.handled."""
        if again:
            return {**regs, "r0": NONE + 1 - EINTR, "pc": regs["pc"] + width(regs)}
        call = self.pending_call(regs)
        if call is None or call[1] == EINTR or (call[1] == ERESTARTSYS and restarts):
            return regs
        return {**regs, "r0": NONE + 1 - EINTR, "syscallno": NONE}

    def again(self, regs: Registers, number: int | None = None) -> Registers:
        """See Arch.again."""
        number = regs["syscallno"] if number is None else number
        return {**regs, "r0": regs["orig_r0"], "r7": number, "pc": regs["pc"] - width(regs), "syscallno": NONE}

    def resumes_at_end(self, regs: Registers) -> bool:
        """See Arch.resumes_at_end."""
        call = self.pending_call(regs)
        return call is not None and call[1] == ERESTART_RESTARTBLOCK and not libc.WIDE_KERNEL

    def write_at_end(self, tid: int, regs: Registers) -> None:
        """See Arch.write_at_end."""
        self.registers.write_at_end(tid, regs)

    def settled(self, regs: Registers) -> Registers:
        """See Arch.settled. After rt_sigreturn(2) there is no restart block any more: the call is made from its beginning."""
        call = self.pending_call(regs)
        if call is None or call[1] == EINTR:
            return dict(regs)
        return self.again(regs, regs["r7"] if call[0] == RESTART_SYSCALL else None)

    def heal_values(self, regs: Registers, tid: int) -> dict[str, int]:
        """See Arch.heal_values: the floating point registers are among them."""
        try:
            data = ptrace.get_regset(tid, NT_ARM_VFP)
        except OSError:  # a CPU without
            data = bytes(VFP.size)
        values = super().heal_values(regs, tid)
        return {**values, "v_d": int.from_bytes(data[:256], sys.byteorder), "v_fpscr": int.from_bytes(data[256:], sys.byteorder)}

    def own_calls(self, records: Sequence[Record]) -> list[tuple[str | int, ...]]:
        """See Arch.own_calls: the thread pointer."""
        return [(SET_TLS, record.tp) for record in records if isinstance(record, ArmTls)]

    def to_framed_slot(self, at: int, thread: Task, number: int, left: int) -> tuple[bytes, bytes, Registers]:
        """See Arch.to_framed_slot: the call, its result into the frame, rt_sigreturn(2). The frame is that of `heal`."""
        (name, narrow), regs = self.call_name(number), thread.regs
        values = self.heal_values({**regs, "pc": regs["pc"] + width(regs)}, thread.tid) | {"v_mask": thread.mask}
        frame = self.code.placed(0, 0, values)[self.code.symbols["frame"] :]
        start = regs["sp"] - len(frame) - len(timespec(left, narrow)) & -8
        limit, words = rest(name, narrow, left, start + len(frame))
        at_slot = {"pc": at, "sp": start, "cpsr": regs["cpsr"] & ~(THUMB | IT), self.arguments[RETRIED[name]]: limit}
        return _SLOT, frame + words, {**regs, **at_slot}

    def from_slot(self, code: bytes, at: int, regs: Registers, read: Callable[[int, int], bytes]) -> Registers:
        """See Arch.from_slot."""
        symbols = self.code.symbols
        try:
            frame = read(regs["sp"], symbols["end"] - symbols["frame"])
        except OSError:
            return regs
        if len(frame) < symbols["end"] - symbols["frame"]:
            return regs
        first = symbols["r_r0"] - symbols["frame"]
        names = (*FRAMED, "cpsr")
        kept = dict(zip(names, self.unwords(frame[first : first + 4 * len(names)]), strict=True))
        kept |= {"orig_r0": kept["r0"], "syscallno": NONE}
        if regs["pc"] == at:  # it has not made the call yet
            return {**kept, "pc": kept["pc"] - width(kept)}
        if regs["pc"] == at + 4:
            return {**kept, **{name: regs[name] for name in ("r0", "orig_r0", "syscallno")}}
        return kept


KINDS = (Arm(),)

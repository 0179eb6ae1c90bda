"""PowerPC: 64-bit tasks of both byte orders and 32-bit ones, on kernels of either width (R-C3).

There are two ways to make a system call. `sc` reports an error as a positive number beside a flag in CR; `scv 0`, which the C
library takes where the CPU has it, as a negative number. The registers of a call that was interrupted are as the kernel left them,
error included, and tell which of the two it was.

By the ABI of either way a call leaves nothing in r0, r4 to r12 and CTR: a slot (tasks/retry.py) can go on from there by them.

Sources: arch/powerpc/kernel/signal.c, check_syscall_restart(); Documentation/powerpc/syscall64-abi.rst;
arch/powerpc/kernel/syscalls/syscall.tbl.
"""

from __future__ import annotations

import struct
import sys

from torpor.arch.contract import EINTR, ERESTART_RESTARTBLOCK, ERESTARTNOHAND, ERESTARTNOINTR, ERESTARTSYS, Arch
from torpor.arch.powerpc import cpu
from torpor.arch.powerpc.code import CODE_32, CODE_64, CODE_64LE
from torpor.arch.powerpc.registers import NT_PPC_VMX, NT_PRFPREG, REGISTERS_32, REGISTERS_64, low_halves, result, with_result
from torpor.arch.powerpc.rules import SF, SYSCALL, VECTORED
from torpor.arch.powerpc.state import PowerFloatMode
from torpor.arch.waits import RETRIED, rest
from torpor.linux import ptrace
from torpor.linux.libc import PAGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torpor.arch.contract import Registers
    from torpor.image.record import Record

_MSR_LE, _MSR_VSX, _MSR_VEC = 1, 1 << 23, 1 << 25
_PR_SET_FPEXC = 12
_INTERRUPTED = (ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK, EINTR)
_ABI = 3  # of e_flags (EF_PPC64_ABI)
INSTRUCTION = 4
"""Bytes of every instruction."""
SC, SCV = 0x4400_0002, 0x4400_0001
_MTCTR_R12, _BCTR = 0x7D89_03A6, 0x4E80_0420

_COMMON = {
    "restart_syscall": 0, "exit": 1, "read": 3, "write": 4, "close": 6, "lseek": 19, "getpid": 20, "pause": 29, "kill": 37,
    "brk": 45, "ioctl": 54, "setpgid": 57, "umask": 60, "chroot": 61, "setsid": 66, "setgroups": 81, "munmap": 91,
    "setitimer": 104, "getitimer": 105, "wait4": 114, "ipc": 117, "mprotect": 125, "fchdir": 133, "personality": 136,
    "_llseek": 140, "select": 142, "flock": 143, "mlock": 150, "mremap": 163, "setresuid": 164, "poll": 167,
    "setresgid": 169, "prctl": 171, "rt_sigreturn": 172, "rt_sigaction": 173, "rt_sigprocmask": 174, "rt_sigqueueinfo": 177,
    "pread64": 179, "capset": 184, "sigaltstack": 185, "madvise": 205, "gettid": 207, "set_tid_address": 232,
    "exit_group": 234, "epoll_ctl": 237, "epoll_wait": 238, "timer_create": 240, "timer_delete": 244, "tgkill": 250,
    "waitid": 272, "openat": 286, "get_robust_list": 299, "set_robust_list": 300, "epoll_pwait": 303, "dup3": 316,
    "rt_tgsigqueueinfo": 322, "prlimit64": 325, "connect": 328, "accept": 330, "sendto": 335, "seccomp": 358, "recvfrom": 337,
    "sendmsg": 341, "recvmsg": 342, "accept4": 344, "execveat": 362, "userfaultfd": 364, "mlock2": 378, "rseq": 387, "msgsnd": 400,
    "msgrcv": 401, "pidfd_open": 434, "clone3": 435, "close_range": 436, "pidfd_getfd": 438, "epoll_pwait2": 441,
}  # fmt: skip

_SYSCALLS_64 = {
    "fcntl": 55, "mmap": 90, "nanosleep": 162, "rt_sigtimedwait": 176, "futex": 221, "io_getevents": 229,
    "timer_settime": 241, "timer_gettime": 242, "clock_nanosleep": 248, "pselect6": 280, "ppoll": 281, "recvmmsg": 343,
    "io_pgetevents": 388, "semtimedop": 392,
}  # fmt: skip

# Where a 32-bit ABI has two calls, the name means the one with wide ids and 64-bit times; the others keep their own names.
_SYSCALLS_32 = {
    "nanosleep_time32": 162, "rt_sigtimedwait_time32": 176, "mmap2": 192, "fcntl": 204, "futex_time32": 221,
    "io_getevents_time32": 229, "clock_nanosleep_time32": 248, "pselect6_time32": 280, "ppoll_time32": 281,
    "recvmmsg_time32": 343, "clock_nanosleep": 407, "timer_gettime": 408, "timer_settime": 409, "pselect6": 413,
    "ppoll": 414, "io_pgetevents": 416, "recvmmsg": 417, "semtimedop": 420, "rt_sigtimedwait": 421, "futex": 422,
}  # fmt: skip


class Power(Arch):
    """What all kinds of PowerPC task have in common."""

    ip, sp, flags, result, number = "nip", "r1", "ccr", "r3", "call"
    arguments = ("orig_r3", "r4", "r5", "r6", "r7", "r8")
    entry_registers: Mapping[str, int] = {}
    kept_flags = 0xFFFF_FFFF
    slot_count = 8
    header = staticmethod(cpu.header)
    header_record = cpu.PowerHeader
    forgets_argument = True
    no_reserve = 0x40

    def __init__(self) -> None:
        order = "<" if self.byte_order == "little" else ">"
        self._instructions = struct.Struct(f"{order}I")
        self._words = struct.Struct(f"{order}2{'Q' if self.word == 8 else 'I'}")
        self._kept_at = {4: 24, 8: 32}[self.word]  # behind a slot's instructions
        self._vectored = self._instructions.pack(SCV)
        self.syscall_instruction = (self._instructions.pack(SC), self._vectored)[: 2 if self.word == 8 else 1]

    def verdict(self, header: Record, used: int, cpu_mode: str, here: Record) -> list[str]:
        """See Arch.verdict."""
        assert isinstance(header, cpu.PowerHeader)
        assert isinstance(here, cpu.PowerHeader)
        return cpu.verdict(header, used, here=here, cpu=cpu_mode)

    def described(self, cpuinfo: Mapping[str, str]) -> Record:
        """See Arch.described."""
        return cpu.described(cpuinfo)

    # Interrupted calls.

    def outcome(self, regs: Registers) -> int:
        """See Arch.outcome."""
        return result(regs, self.word)

    def ended(self, regs: Registers, value: int) -> Registers:
        """See Arch.ended."""
        return {**with_result(regs, value, self.word), "call": (1 << 8 * self.word) - 1}

    def pending_call(self, regs: Registers) -> tuple[int, int] | None:
        """See Arch.pending_call."""
        error = -result(regs, self.word)
        return (regs["call"], error) if self.signed(regs["call"]) >= 0 and error in _INTERRUPTED else None

    def again(self, regs: Registers, number: int | None = None) -> Registers:
        """See Arch.again."""
        return {
            **regs,
            "r0": regs["call"] if number is None else number,
            "r3": regs["orig_r3"],
            "nip": regs["nip"] - INSTRUCTION,
            "call": (1 << 8 * self.word) - 1,
        }

    def settled(self, regs: Registers) -> Registers:
        """See Arch.settled. After rt_sigreturn(2) there is no restart block any more: the call is made from its beginning."""
        call = self.pending_call(regs)
        return dict(regs) if call is None or call[1] == EINTR else self.again(regs)

    # Torpor's code.

    def heal_values(self, regs: Registers, tid: int) -> dict[str, int]:
        """See Arch.heal_values: the floating point and vector registers are among them."""
        values = super().heal_values(regs, tid)
        values["v_fp"] = _value(ptrace.get_regset(tid, NT_PRFPREG))
        msr = (SF if self.word == 8 else 0) | (_MSR_LE if sys.byteorder == "little" else 0)
        if "altivec" in cpu.header().features.split():
            vectors = ptrace.get_regset(tid, NT_PPC_VMX)
            if self.word == 4:  # vscr, and over its unused first word vrsave
                vectors = vectors[:512] + vectors[528:532] + vectors[516:528]
            values["v_vmx"], msr = _value(vectors), msr | _MSR_VEC
        if low := low_halves(tid):
            values["v_vsx"], msr = _value(low), msr | _MSR_VSX
        return {**values, "v_msr": msr}

    def own_calls(self, records: Sequence[Record]) -> list[tuple[str | int, ...]]:
        """See Arch.own_calls."""
        mode = next((record.mode for record in records if isinstance(record, PowerFloatMode)), 0)
        return [("prctl", _PR_SET_FPEXC, mode)]  # also where it is at rest: a child made by fork has its parent's

    def to_slot(self, at: int, regs: Registers, number: int, left: int) -> tuple[bytes, Registers]:
        """See Arch.to_slot: the call, and a branch by r12 and CTR; the argument that was there; the address; a timespec."""
        name, narrow = self.call_name(number)
        register = self.arguments[RETRIED[name]]
        back = regs["nip"] + INSTRUCTION
        load = [0x3D80_0000 | back >> 16 & 0xFFFF, 0x618C_0000 | back & 0xFFFF]  # lis, ori
        if self.word == 8:  # lis, ori, sldi, oris, ori
            load = [0x3D80_0000 | back >> 48, 0x618C_0000 | back >> 32 & 0xFFFF, 0x798C_07C6, 0x658C_0000 | back >> 16 & 0xFFFF]
            load.append(0x618C_0000 | back & 0xFFFF)
        call = SCV if regs["trap"] == VECTORED else SC
        code = b"".join(self._instructions.pack(word) for word in (call, *load, _MTCTR_R12, _BCTR))
        code = code.ljust(self._kept_at, b"\0") + self._words.pack(regs[register], back)
        limit, words = rest(name, narrow, left, at + len(code))
        return code + words, {**regs, "nip": at, register: limit}

    def from_slot(self, code: bytes, at: int, regs: Registers, read: Callable[[int, int], bytes]) -> Registers:
        """See Arch.from_slot."""
        if len(code) < self._kept_at + self._words.size:
            return regs
        kept, back = self._words.unpack_from(code, self._kept_at)
        name, _ = self.call_name(regs["r0"])
        taken = {**regs, "nip": back, "trap": VECTORED if code.startswith(self._vectored) else SYSCALL}
        if regs["nip"] > at + INSTRUCTION:  # it has made the call, and what is in these registers counts no more
            return taken
        if name in RETRIED:
            taken[self.arguments[RETRIED[name]]] = kept
        return {**taken, "nip": back - INSTRUCTION} if regs["nip"] == at else taken


class Power64(Power):
    """A 64-bit task. Addresses beyond 128 TiB are for those that ask for them (asm/task_size_64.h)."""

    word, elf_machine = 8, 21
    user_limit = 1 << (52 if PAGE == 65536 else 46)
    slot_size = 64
    syscalls = _COMMON | _SYSCALLS_64
    registers = REGISTERS_64


class Ppc64le(Power64):
    """A 64-bit task of little-endian byte order."""

    name, image_id, code, byte_order = "ppc64le", 7, CODE_64LE, "little"
    elf_flags = 2  # version of the ELF ABI

    def has_abi(self, flags: int) -> bool:
        """See Arch.has_abi: the kernel takes the address of a signal handler for what it is in the ABI."""
        return flags & _ABI == 2


class Ppc64(Power64):
    """A 64-bit task of big-endian byte order."""

    name, image_id, code, byte_order = "ppc64", 6, CODE_64, "big"
    elf_flags, descriptors = 1, True

    def has_abi(self, flags: int) -> bool:
        """See Arch.has_abi."""
        return flags & _ABI != 2


class Ppc32(Power):
    """A 32-bit task, on a kernel of either width."""

    name, image_id, word, elf_machine, code, byte_order = "ppc", 5, 4, 20, CODE_32, "big"
    user_limit = cpu.user_limit_32()
    slot_size = 48
    syscalls = _COMMON | _SYSCALLS_32
    registers = REGISTERS_32


def _value(data: bytes) -> int:
    return int.from_bytes(data, sys.byteorder)


KINDS = (Ppc64le(), Ppc64(), Ppc32())

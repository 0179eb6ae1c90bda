"""s390x: which registers mean what, the numbers of the calls, the code that runs inside a task.

A call's number is in its instruction (svc N), or in r1 (svc 0). The kernel keeps it, and how long the instruction was, for a
debugger to see and to set (NT_S390_SYSTEM_CALL). Registers are as the call has left them until the kernel has looked for signals.

Sources: arch/s390/kernel/syscalls/syscall.tbl, signal.c (arch_do_signal_or_restart), syscall.c; asm/ptrace.h.
"""

from __future__ import annotations

import sys

from torpor.arch.contract import EINTR, Arch
from torpor.arch.regsets import get
from torpor.arch.s390x import cpu
from torpor.arch.s390x.code import CODE_64
from torpor.arch.s390x.registers import (
    ACCESS,
    FLOAT,
    GENERAL,
    KEPT,
    NT_PRFPREG,
    NT_PRSTATUS,
    NT_S390_VXRS_HIGH,
    NT_S390_VXRS_LOW,
    REGISTERS,
    SVC,
)
from torpor.arch.s390x.rules import NONE, PSW_KEPT, PSW_WIDTH
from torpor.arch.waits import RETRIED, rest, timespec
from torpor.linux import ptrace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torpor.arch.contract import Registers, Task
    from torpor.image.record import Record

_SYSCALLS = {
    "exit": 1, "read": 3, "write": 4, "close": 6, "restart_syscall": 7, "lseek": 19, "getpid": 20, "pause": 29,
    "kill": 37, "brk": 45, "ioctl": 54, "fcntl": 55, "setpgid": 57, "umask": 60, "chroot": 61, "setsid": 66, "mmap": 90,
    "munmap": 91, "setitimer": 104, "getitimer": 105, "wait4": 114, "ipc": 117, "mprotect": 125, "fchdir": 133,
    "personality": 136, "select": 142, "mlock": 150, "nanosleep": 162, "mremap": 163, "poll": 168, "prctl": 172,
    "rt_sigreturn": 173, "rt_sigaction": 174, "rt_sigprocmask": 175, "rt_sigtimedwait": 177, "rt_sigqueueinfo": 178,
    "rt_sigsuspend": 179, "pread64": 180, "capset": 185, "sigaltstack": 186, "setgroups": 206, "setresuid": 208,
    "setresgid": 210, "madvise": 219, "gettid": 236, "futex": 238, "tgkill": 241, "io_getevents": 245, "exit_group": 248,
    "epoll_ctl": 250, "epoll_wait": 251, "set_tid_address": 252, "timer_create": 254, "timer_settime": 255,
    "timer_gettime": 256, "timer_delete": 258, "clock_nanosleep": 262, "waitid": 281, "openat": 288, "pselect6": 301,
    "ppoll": 302, "set_robust_list": 304, "get_robust_list": 305, "epoll_pwait": 312, "dup3": 326,
    "rt_tgsigqueueinfo": 330, "prlimit64": 334, "seccomp": 348, "execveat": 354, "recvmmsg": 357, "connect": 362, "accept4": 364,
    "userfaultfd": 355,
    "sendto": 369, "sendmsg": 370, "recvfrom": 371, "recvmsg": 372, "mlock2": 374, "io_pgetevents": 382, "rseq": 383,
    "semtimedop": 392, "msgsnd": 400, "msgrcv": 401, "pidfd_open": 434, "clone3": 435, "close_range": 436,
    "pidfd_getfd": 438, "epoll_pwait2": 441,
}  # fmt: skip


def _slot() -> bytes:
    """svc 0; stg r2 to where it lies in the frame, which r15 points to; svc 173 (rt_sigreturn)"""
    at = CODE_64.symbols["r_r2"] - CODE_64.symbols["frame"]
    return bytes((0x0A, 0, 0xE3, 0x20, 0xF0 | at >> 8 & 15, at & 0xFF, at >> 12, 0x24, 0x0A, 173))


class S390x(Arch):
    """A 64-bit task."""

    name, image_id, word, elf_machine, byte_order = "s390x", 8, 8, 22, "big"
    user_limit = (1 << 64) - 4096  # page tables grow with what is mapped: arch/s390/mm/pgalloc.c, crst_table_upgrade()
    ip, sp, flags, result, number = "psw_addr", "r15", "psw_mask", "r2", "system_call"
    arguments = ("orig_gpr2", "r3", "r4", "r5", "r6", "r7")
    entry_registers = {"psw_mask": 0, "r2": 0}  # r2: nothing that looks like an interrupted call (S390xRegisters.write_general)
    kept_flags = PSW_KEPT
    syscall_instruction = (b"\x0a\x00",)  # svc 0
    syscalls = _SYSCALLS
    code = CODE_64
    slot_size, slot_count, framed_slots = 16, 1, True
    registers = REGISTERS
    header = staticmethod(cpu.header)
    header_record = cpu.S390xHeader

    def verdict(self, header: Record, used: int, cpu_mode: str, here: Record) -> list[str]:
        """See Arch.verdict."""
        assert isinstance(header, cpu.S390xHeader)
        assert isinstance(here, cpu.S390xHeader)
        return cpu.verdict(header, used, here=here, cpu=cpu_mode)

    def described(self, cpuinfo: Mapping[str, str]) -> Record:
        """See Arch.described."""
        return cpu.described(cpuinfo)

    def midway(self, regs: Registers, read: Callable[[int, int], bytes]) -> bool:
        """See Arch.midway: in the vdso is `svc 7` for that, and the way back in the restart block."""
        return read(regs["psw_addr"], SVC) == bytes((0x0A, _SYSCALLS["restart_syscall"]))

    def again(self, regs: Registers, number: int | None = None) -> Registers:
        """See Arch.again; no other call can be made, for its number is in the instruction."""
        return {**regs, "r2": regs["orig_gpr2"], "psw_addr": regs["psw_addr"] - regs["svc_length"], "system_call": NONE}

    def settled(self, regs: Registers) -> Registers:
        """See Arch.settled. After rt_sigreturn(2) there is no restart block any more: the call is made from its beginning."""
        call = self.pending_call(regs)
        return dict(regs) if call is None or call[1] == EINTR else self.again(regs)

    def heal_values(self, regs: Registers, tid: int) -> dict[str, int]:
        """See Arch.heal_values: access, floating point and vector registers are among them."""
        values = super().heal_values(regs, tid)
        values["v_flags"] |= PSW_WIDTH
        general, vector = ptrace.get_regset(tid, NT_PRSTATUS), ptrace.get_regset(tid, NT_PRFPREG)
        blocks = {
            "v_acrs": general[GENERAL.size : GENERAL.size + ACCESS.size],
            "v_fpc": vector[:4],
            "v_fprs": vector[8 : FLOAT.size],
            "v_low": get(tid, NT_S390_VXRS_LOW),
            "v_high": get(tid, NT_S390_VXRS_HIGH),
        }
        return values | {name: int.from_bytes(data, sys.byteorder) for name, data in blocks.items()}

    def to_framed_slot(self, at: int, thread: Task, number: int, left: int) -> tuple[bytes, bytes, Registers]:
        """See Arch.to_framed_slot: the call, its result into the frame, rt_sigreturn(2). The frame is that of `heal`."""
        (name, narrow), regs = self.call_name(number), thread.regs
        behind = {**regs, "psw_addr": regs["psw_addr"] + regs["svc_length"]}
        values = self.heal_values(behind, thread.tid) | {"v_mask": thread.mask}
        frame = self.code.placed(0, 0, values)[self.code.symbols["frame"] :]
        start = regs["r15"] - len(frame) - len(timespec(left, narrow)) & -8
        limit, words = rest(name, narrow, left, start + len(frame))
        slot = {**regs, "psw_addr": at, "r15": start, "r1": number, self.arguments[RETRIED[name]]: limit}
        return _slot(), frame + words, slot

    def from_slot(self, code: bytes, at: int, regs: Registers, read: Callable[[int, int], bytes]) -> Registers:
        """See Arch.from_slot."""
        symbols = self.code.symbols
        try:
            frame = read(regs["r15"], symbols["end"] - symbols["frame"])
        except OSError:
            return regs
        if len(frame) < symbols["end"] - symbols["frame"]:
            return regs
        kept = dict(zip(KEPT, GENERAL.unpack_from(frame, symbols["v_flags"] - symbols["frame"]), strict=True))
        length = symbols["r_svc_length"] - symbols["frame"]
        kept["svc_length"] = int.from_bytes(frame[length : length + 4], sys.byteorder)
        kept |= {"psw_mask": kept["psw_mask"] & PSW_KEPT, "orig_gpr2": kept["r2"], "system_call": NONE}
        if regs["psw_addr"] == at:  # it has not made the call yet
            return {**kept, "psw_addr": kept["psw_addr"] - kept["svc_length"]}
        if regs["psw_addr"] == at + SVC:
            return {**kept, **{name: regs[name] for name in ("r2", "orig_gpr2", "system_call")}}
        return kept


KINDS = (S390x(),)

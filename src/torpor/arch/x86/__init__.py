"""x86-64 and x86-32 (R-C1, R-C2): which registers mean what, the numbers of the calls, the code that runs inside a task.

Sources: arch/x86/entry/syscalls/syscall_{32,64}.tbl, arch/x86/kernel/signal.c, Intel SDM vol. 1, 3.4.
"""

from __future__ import annotations

from torpor.arch.contract import Arch
from torpor.arch.waits import RETRIED, rest
from torpor.arch.x86 import cpu
from torpor.arch.x86.code import CODE_32, CODE_64
from torpor.arch.x86.registers import REGISTERS_32, REGISTERS_64, TILES
from torpor.arch.x86.state import STATE_OF, X86TileData

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torpor.arch.contract import Registers
    from torpor.image.record import Record

_ENTRY = {"eflags": 0x202}
ARCH_GET_XCOMP_PERM, ARCH_REQ_XCOMP_PERM = 0x1022, 0x1023  # asm/prctl.h
_MOVE = {  # mov register, immediate
    "rcx": b"\x48\xb9", "rdx": b"\x48\xba", "r10": b"\x49\xba", "r8": b"\x49\xb8",
    "edx": b"\xba", "esi": b"\xbe", "edi": b"\xbf",
}  # fmt: skip

# CF PF AF ZF SF DF OF, and of the flags a program may set by popf: NT, AC, ID. Not TF: only a debugger has a use for it.
_KEPT_FLAGS = 0x244CD5

_COMMON = {"pidfd_open": 434, "clone3": 435, "close_range": 436, "pidfd_getfd": 438, "epoll_pwait2": 441}

_SYSCALLS_64 = {
    "read": 0, "write": 1, "close": 3, "poll": 7, "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12,
    "rt_sigaction": 13, "rt_sigprocmask": 14, "ioctl": 16, "pread64": 17, "select": 23, "mremap": 25, "madvise": 28,
    "pause": 34, "nanosleep": 35, "getitimer": 36, "setitimer": 38, "getpid": 39, "connect": 42, "accept": 43,
    "sendto": 44, "recvfrom": 45, "sendmsg": 46, "recvmsg": 47, "exit": 60, "wait4": 61, "kill": 62, "semop": 65,
    "msgrcv": 70, "msgsnd": 69, "fcntl": 72, "fchdir": 81, "umask": 95, "setpgid": 109, "setsid": 112, "setgroups": 116,
    "setresuid": 117, "setresgid": 119, "capset": 126, "rt_sigtimedwait": 128, "rt_sigqueueinfo": 129,
    "sigaltstack": 131, "personality": 135, "mlock": 149, "prctl": 157, "arch_prctl": 158, "chroot": 161, "gettid": 186,
    "futex": 202, "io_getevents": 208, "restart_syscall": 219, "semtimedop": 220, "set_tid_address": 218,
    "timer_create": 222, "timer_settime": 223, "timer_gettime": 224, "timer_delete": 226, "clock_nanosleep": 230,
    "exit_group": 231, "epoll_wait": 232, "epoll_ctl": 233, "tgkill": 234, "waitid": 247, "openat": 257, "pselect6": 270,
    "ppoll": 271, "set_robust_list": 273, "get_robust_list": 274, "epoll_pwait": 281, "accept4": 288, "dup3": 292,
    "rt_tgsigqueueinfo": 297, "recvmmsg": 299, "prlimit64": 302, "seccomp": 317, "execveat": 322, "mlock2": 325, "rseq": 334,
    "userfaultfd": 323,
    "io_pgetevents": 333,
}  # fmt: skip

# Where a 32-bit ABI has two calls, the name means the one with wide ids and 64-bit times; the others keep their own names.
_SYSCALLS_32 = {
    "restart_syscall": 0, "exit": 1, "read": 3, "write": 4, "close": 6, "pause": 29, "kill": 37, "brk": 45,
    "umask": 60, "ioctl": 54, "setpgid": 57, "chroot": 61, "setsid": 66, "munmap": 91, "setitimer": 104,
    "getitimer": 105, "wait4": 114, "ipc": 117, "mprotect": 125, "fchdir": 133, "personality": 136, "select": 142,
    "mlock": 150, "nanosleep_time32": 162, "mremap": 163, "poll": 168, "prctl": 172, "rt_sigaction": 174,
    "rt_sigprocmask": 175, "rt_sigtimedwait_time32": 177, "rt_sigqueueinfo": 178, "pread64": 180, "capset": 185,
    "sigaltstack": 186, "mmap2": 192, "setgroups": 206, "setresuid": 208, "setresgid": 210, "madvise": 219,
    "fcntl": 221, "gettid": 224, "futex_time32": 240, "io_getevents_time32": 247, "exit_group": 252, "epoll_ctl": 255,
    "epoll_wait": 256,
    "set_tid_address": 258, "timer_create": 259, "timer_delete": 263, "clock_nanosleep_time32": 267, "tgkill": 270,
    "waitid": 284, "openat": 295, "pselect6_time32": 308, "ppoll_time32": 309, "set_robust_list": 311, "get_robust_list": 312,
    "epoll_pwait": 319, "dup3": 330, "rt_tgsigqueueinfo": 335, "recvmmsg_time32": 337, "prlimit64": 340,
    "seccomp": 354, "execveat": 358, "connect": 362, "accept4": 364, "sendto": 369, "sendmsg": 370, "recvfrom": 371, "recvmsg": 372,
    "mlock2": 376, "arch_prctl": 384, "rseq": 386, "clock_nanosleep": 407, "timer_gettime": 408, "timer_settime": 409,
    "userfaultfd": 374,
    "pselect6": 413, "ppoll": 414, "io_pgetevents": 416, "recvmmsg": 417, "semtimedop": 420, "rt_sigtimedwait": 421,
    "futex": 422, "msgrcv": 401, "msgsnd": 400, "lseek": 19, "_llseek": 140,
    "getpid": 20,
}  # fmt: skip


class X86(Arch):
    """What both kinds of x86 task have in common."""

    flags = "eflags"
    epoll_event = "=IQ"  # EPOLL_PACKED
    kept_flags = _KEPT_FLAGS
    code_behind_segments = code_twice = True
    header = staticmethod(cpu.header)
    header_record = cpu.X86Header

    def verdict(self, header: Record, used: int, cpu_mode: str, here: Record) -> list[str]:
        """See Arch.verdict."""
        assert isinstance(header, cpu.X86Header)
        assert isinstance(here, cpu.X86Header)
        return cpu.verdict(header, used, here=here.features.split(), cpu=cpu_mode)

    def described(self, cpuinfo: Mapping[str, str]) -> Record:
        """See Arch.described."""
        return cpu.described(cpuinfo)

    requestable = TILES

    def ask_components(self, address: int) -> list[tuple[str | int, ...]]:
        """See Arch.ask_components."""
        return [("arch_prctl", ARCH_GET_XCOMP_PERM, address)] if cpu.host().layout.xcr0 & TILES else []

    def request_components(self, components: int) -> list[tuple[str | int, ...]]:
        """See Arch.request_components."""
        return [("arch_prctl", ARCH_REQ_XCOMP_PERM, TILES.bit_length() - 1)] if components & TILES else []

    def records_of(self, components: int) -> int:
        """See Arch.records_of."""
        return 1 << STATE_OF[X86TileData].bit if components & TILES else 0

    syscall_instruction = (b"\x0f\x05", b"\xcd\x80", b"\x0f\x34")  # syscall, int 0x80, sysenter: two bytes each

    def to_slot(self, at: int, regs: Registers, number: int, left: int) -> tuple[bytes, Registers]:
        """See Arch.to_slot.

        The call; the register back; on 64 bit rcx, in which the call leaves where it returned to; `jmp [address]`; then the
        address, and a timespec.
        """
        name, narrow = self.call_name(number)
        register = self.arguments[RETRIED[name]]
        back = regs[self.ip] + 2
        size = self.word
        code = (b"\x0f\x05" if size == 8 else b"\xcd\x80") + _MOVE[register] + regs[register].to_bytes(size, "little")
        if size == 8:
            code += _MOVE["rcx"] + back.to_bytes(8, "little")
        target = len(code) + 6
        code += b"\xff\x25" + (0 if size == 8 else at + target).to_bytes(4, "little") + back.to_bytes(size, "little")
        limit, words = rest(name, narrow, left, at + len(code))
        return code + words, {**regs, self.ip: at, register: limit}

    def from_slot(self, code: bytes, at: int, regs: Registers, read: Callable[[int, int], bytes]) -> Registers:
        """See Arch.from_slot."""
        size = self.word
        register = next((name for name in self.arguments if code[2:].startswith(_MOVE.get(name, b"\0"))), None)
        jump = code.find(b"\xff\x25", 2)
        if register is None or jump < 0:
            return regs
        first = 2 + len(_MOVE[register])
        value = int.from_bytes(code[first : first + size], "little")
        back = int.from_bytes(code[jump + 6 : jump + 6 + size], "little")
        taken = {**regs, register: value}
        if regs[self.ip] == at:  # it has not made the call yet
            return {**taken, self.ip: back - 2}
        return {**taken, self.ip: back, "rcx": back} if size == 8 else {**taken, self.ip: back}


class X86_64(X86):
    """A 64-bit task."""

    name, image_id, word, elf_machine = "x86_64", 2, 8, 62
    user_limit = (1 << 47) - 4096
    ip, sp, result, number = "rip", "rsp", "rax", "orig_rax"
    arguments = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
    entry_registers = _ENTRY
    syscalls = _COMMON | _SYSCALLS_64
    code = CODE_64
    slot_size, slot_count = 64, 8
    registers = REGISTERS_64


class X86_32(X86):
    """A 32-bit task, on a kernel of either width."""

    name, image_id, word, elf_machine = "i386", 1, 4, 3
    user_limit = cpu.user_limit_32()
    ip, sp, result, number = "eip", "esp", "eax", "orig_eax"
    arguments = ("ebx", "ecx", "edx", "esi", "edi", "ebp")
    entry_registers = _ENTRY
    syscalls = _COMMON | _SYSCALLS_32
    code = CODE_32
    slot_size, slot_count = 48, 3
    flock = "=hhqqi"  # 64-bit members are aligned to 4 bytes
    registers = REGISTERS_32


KINDS = (X86_64(), X86_32())

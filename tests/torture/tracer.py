"""A small tracer of its own, so that the victims can be disturbed and proven without any part of torpor.

`Traced` stops one thread (SEIZE, INTERRUPT), reads and writes its registers, vector state, memory and mask, and lets it
make system calls: its registers point at a system call instruction of the vdso or the C library, PTRACE_SYSCALL runs it
from entry to exit, and the registers of before come back. The tracer must stay alive meanwhile; torpor does better.

Everything works from a 64-bit Python on 64-bit and on i386 programs.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path

CONT, DETACH, SYSCALL, SEIZE, INTERRUPT = 7, 17, 24, 0x4206, 0x4207
SETOPTIONS, GETREGSET, SETREGSET, GETSIGMASK, SETSIGMASK = 0x4200, 0x4204, 0x4205, 0x420A, 0x420B
GET_THREAD_AREA, SET_THREAD_AREA, GET_RSEQ = 25, 26, 0x420F
TRACESYSGOOD, TRACEFORK = 1, 2
PRSTATUS, XSTATE = 1, 0x202
EVENT_STOP = 128
WALL = 0x40000000

REGISTERS64 = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base ds es fs gs"
).split()
REGISTERS32 = "ebx ecx edx esi edi ebp eax ds es fs gs orig_eax eip cs eflags esp ss".split()
GENERAL64 = "rax rbx rdx rsi rdi rbp r8 r9 r10 r11 r12 r13 r14 r15".split()  # rcx counts in the loop
GENERAL32 = "eax ebx edx esi edi ebp".split()

# Names of calls: (64 bit, 32 bit).
NUMBERS = {
    "close": (3, 6), "lseek": (8, 19), "mprotect": (10, 125), "munmap": (11, 91), "munlock": (150, 151), "dup2": (33, 63),
    "setitimer": (38, 104), "fork": (57, 2), "chdir": (80, 12), "umask": (95, 60), "setpgid": (109, 57),
    "sigaltstack": (131, 186), "personality": (135, 136), "prctl": (157, 172), "timer_delete": (226, 263),
    "wait4": (61, 114), "rt_sigaction": (13, 174), "rt_sigtimedwait": (128, 177), "set_robust_list": (273, 311),
    "rseq": (334, 386), "setresgid": (119, 210), "mmap": (9, 192), "dup": (32, 41),
}  # fmt: skip

# Calls that any stop ends with EINTR, signal or not (signal(7)): epoll_wait, epoll_pwait, epoll_pwait2, rt_sigtimedwait,
# semop, semtimedop, msgrcv, and the socket calls with a time limit.
ENDED_BY_STOPS = {
    64: {232, 281, 441, 128, 65, 220, 70, 45},
    32: {256, 319, 441, 177, 421, 420, 401, 117, 371},
}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _ptrace(request: int, tid: int, address: int = 0, data: int = 0) -> int:
    result: int = _libc.ptrace(request, tid, address, data)
    if result == -1 and (error := ctypes.get_errno()):
        raise OSError(error, f"ptrace({request:#x}, {tid}): {os.strerror(error)}")
    return result


def bits_of(pid: int) -> int:
    with open(f"/proc/{pid}/exe", "rb") as file:
        return 64 if file.read(5)[4] == 2 else 32


def mappings(pid: int) -> list[tuple[int, int, str, str]]:
    """(start, end, rights, name) of each mapping."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        words = line.split(None, 5)
        start, end = (int(word, 16) for word in words[0].split("-"))
        found.append((start, end, words[1], words[5] if len(words) > 5 else ""))
    return found


class Memory:
    """/proc/PID/mem, which writes to pages that the process itself may not write."""

    def __init__(self, pid: int) -> None:
        self._fd = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)

    def read(self, address: int, length: int) -> bytes:
        return os.pread(self._fd, length, address)

    def write(self, address: int, data: bytes) -> None:
        if os.pwrite(self._fd, data, address) != len(data):
            raise OSError(errno.EFAULT, f"short write at {address:#x}")

    def flip(self, address: int) -> None:
        """Change one byte."""
        self.write(address, bytes([self.read(address, 1)[0] ^ 0x55]))

    def close(self) -> None:
        os.close(self._fd)


class Traced:
    """One thread, seized and stopped until the end of the `with` block.

    With `heal`, calls that a stop ends with EINTR are made again, so that the stop itself is not noticed.
    """

    def __init__(self, tid: int, pid: int | None = None, *, heal: bool = True) -> None:
        self.tid = tid
        self.heal = heal
        self.pid = pid or tid
        self.bits = bits_of(self.pid)
        self.names = REGISTERS64 if self.bits == 64 else REGISTERS32
        self._shape = struct.Struct("<27Q" if self.bits == 64 else "<17I")
        self.original: dict[str, int] = {}

    def __enter__(self) -> Traced:
        self.memory = Memory(self.tid)
        _ptrace(SEIZE, self.tid, 0, TRACESYSGOOD)
        self.stop()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            _ptrace(DETACH, self.tid)
        except ProcessLookupError:
            pass
        self.memory.close()

    def stop(self) -> None:
        """Until the event stop; a signal that is being delivered on the way there is passed on.

        Any stop clears a pending INTERRUPT (ptrace_stop in the kernel's signal.c), so it is asked for again.
        """
        while True:
            _ptrace(INTERRUPT, self.tid)
            state = self._wait()
            if state >> 16 == EVENT_STOP:
                break
            _ptrace(CONT, self.tid, 0, os.WSTOPSIG(state))
        self.original = self.registers()
        if self.heal and self.heal_call():
            self.original = self.registers()

    def resume(self) -> None:
        _ptrace(CONT, self.tid)

    def _wait(self) -> int:
        _, state = os.waitpid(self.tid, WALL)
        if not os.WIFSTOPPED(state):
            raise ProcessLookupError(f"thread {self.tid} ended while it was traced: {state:#x}")
        return state

    # -------------------------------------------------------------------------------- registers

    def regset(self, kind: int) -> bytes:
        buffer = ctypes.create_string_buffer(65536)
        vector = IoVec(ctypes.addressof(buffer), len(buffer))
        _ptrace(GETREGSET, self.tid, kind, ctypes.addressof(vector))
        return buffer.raw[: vector.length]

    def set_regset(self, kind: int, data: bytes) -> None:
        buffer = ctypes.create_string_buffer(data, len(data))
        vector = IoVec(ctypes.addressof(buffer), len(data))
        _ptrace(SETREGSET, self.tid, kind, ctypes.addressof(vector))

    def registers(self) -> dict[str, int]:
        return dict(zip(self.names, self._shape.unpack(self.regset(PRSTATUS)), strict=True))

    def set_registers(self, **changes: int) -> None:
        values = {**self.registers(), **changes}
        mask = (1 << self.bits) - 1
        self.set_regset(PRSTATUS, self._shape.pack(*(values[name] & mask for name in self.names)))

    def flip_register(self, name: str) -> None:
        self.set_registers(**{name: self.registers()[name] ^ 0x10})

    def flip_vector(self, offset: int) -> None:
        """Change one byte of the vector state, as XSAVE lays it out."""
        state = bytearray(self.regset(XSTATE))
        state[offset] ^= 0x11
        self.set_regset(XSTATE, bytes(state))

    def __getitem__(self, name: str) -> int:
        """A register by its 64-bit name, on either: ax, ip, sp, orig_ax."""
        return self.original[self._long(name)]

    def _long(self, name: str) -> str:
        letter = "r" if self.bits == 64 else "e"
        return f"orig_{letter}ax" if name == "orig_ax" else letter + name

    def result(self) -> int:
        """The signed value of the result register."""
        value = self["ax"]
        return value - (1 << self.bits) if value >> (self.bits - 1) else value

    def set_result(self, value: int) -> None:
        """The call that was interrupted here gives `value` and is not made again."""
        self.set_registers(**{self._long("ax"): value, self._long("orig_ax"): -1})

    def mask(self) -> int:
        buffer = ctypes.create_string_buffer(8)
        _ptrace(GETSIGMASK, self.tid, 8, ctypes.addressof(buffer))
        return int.from_bytes(buffer.raw, "little")

    def set_mask(self, mask: int) -> None:
        buffer = ctypes.create_string_buffer(struct.pack("<Q", mask), 8)
        _ptrace(SETSIGMASK, self.tid, 8, ctypes.addressof(buffer))

    def in_loop(self) -> bool:
        """Stopped at the one instruction of hold_loop (torture_regs_x86.h)?"""
        return self.memory.read(self["ip"], 2) == b"\xe2\xfe"

    def call_number(self) -> int:
        """The system call that this stop interrupted, -1: none."""
        number = self["orig_ax"]
        return -1 if number >> (self.bits - 1) else number

    def starts_loop(self) -> bool:
        return self.in_loop() and self["cx"] > 20000

    def heal_call(self) -> bool:
        """Where the stop has ended a call with EINTR that would have gone on, have it made again."""
        if self.result() != -errno.EINTR or self.call_number() not in ENDED_BY_STOPS[self.bits]:
            return False
        self.set_registers(**{self._long("ax"): self.call_number(), self._long("ip"): self["ip"] - 2, self._long("orig_ax"): -1})
        return True

    # -------------------------------------------------------------------------------- system calls

    def _gate(self) -> int:
        """The address of a system call instruction in the task."""
        wanted = b"\x0f\x05" if self.bits == 64 else b"\xcd\x80"
        for start, end, rights, name in mappings(self.pid):
            if "x" in rights and (name == "[vdso]" or re.search(r"/libc[.-]", name)):
                at = self.memory.read(start, end - start).find(wanted)
                if at >= 0:
                    return start + at
        raise LookupError("no system call instruction found")

    def call(self, name: str, *arguments: int, options: int = 0) -> int:
        """Let the stopped thread make a call; returns its signed result. Its registers are as before afterwards."""
        order = "rdi rsi rdx r10 r8 r9" if self.bits == 64 else "ebx ecx edx esi edi ebp"
        values = dict(zip(order.split(), arguments, strict=False))
        values[self._long("ax")] = NUMBERS[name][self.bits == 32]
        values[self._long("ip")] = self._gate()
        values[self._long("orig_ax")] = -1
        saved, mask = self.regset(PRSTATUS), self.mask()
        _ptrace(SETOPTIONS, self.tid, 0, TRACESYSGOOD | options)
        self.set_mask((1 << 64) - 1)  # no handler may run in between
        self.set_registers(**values)
        entered = 0
        while entered < 2:  # entry, exit
            _ptrace(SYSCALL, self.tid)
            entered += os.WSTOPSIG(self._wait()) == signal.SIGTRAP | 0x80
        answer = self.registers()[self._long("ax")]
        self.set_regset(PRSTATUS, saved)
        self.set_mask(mask)
        return answer - (1 << self.bits) if answer >> (self.bits - 1) else answer

    def scratch(self, data: bytes) -> int:
        """Put something far below the stack pointer, where nobody looks."""
        address = (self["sp"] - 4096 - len(data)) & ~63
        self.memory.write(address, data)
        return address

    def fork(self) -> int:
        """Let the thread fork; the child never runs but is killed, and stays as a zombie. Returns its pid."""
        child = self.call("fork", options=TRACEFORK)
        os.kill(child, signal.SIGKILL)
        for _ in range(1000):
            pid, state = os.waitpid(child, WALL | os.WNOHANG)
            if pid and not os.WIFSTOPPED(state):
                break
            time.sleep(0.001)
        return child


@contextlib.contextmanager
def stop_when(tid: int, pid: int, condition: str, seconds: float = 10.0) -> Iterator[Traced]:
    """A `Traced` of which the method `condition` says yes: it is stopped again and again until then."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with Traced(tid, pid) as traced:
            if getattr(traced, condition)():
                yield traced
                return
        time.sleep(0.0007)
    raise TimeoutError(f"{condition} was never seen of thread {tid}")

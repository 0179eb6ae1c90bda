"""Each one changes a single thing in a running torture program, which must then report the error that belongs to it.

Done from outside (signals, /proc, duplicated descriptors) where that is possible, else through `tracer`. Everything is
found without symbols: patterns have shapes that can be recognised in memory.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from tests.torture import tracer
from tests.torture.harness import Torture, children
from tests.torture.tracer import GENERAL32, GENERAL64, Memory, Traced, mappings, stop_when

_libc = ctypes.CDLL(None, use_errno=True)
PAGE = 4096
STEP = 0x632BE59BD9B4E019  # from word to word of a pattern page (torture_memory.c)
SIG_TICK, SIG_QUEUED, SIG_THREAD, SIG_NEVER = 35, 36, 38, 40  # torture.h
ALL64 = (1 << 64) - 1

Disturb = Callable[[Torture], None]


class Disturbance:
    """What is done, and the error (by its name in torture.h, and a pattern of its text) that must come of it."""

    def __init__(self, code: str, text: str, disturb: Disturb, only: int = 0, mode: str = "mixed") -> None:
        self.code, self.text, self.disturb, self.only, self.mode = code, text, disturb, only, mode
        self.name = f"{code}-{disturb.__name__.removeprefix('_')}"


TABLE: list[Disturbance] = []


def breaks(code: str, text: str = "", **more: Any) -> Callable[[Disturb], Disturb]:
    def add(disturb: Disturb) -> Disturb:
        TABLE.append(Disturbance(code, text, disturb, **more))
        return disturb

    return add


# ------------------------------------------------------------------------------------------------ tools


def slot_tid(victim: Torture, role: str) -> tuple[int, int]:
    """(tid, pid) of the first slot with this role; some roles have the number of the slot behind them."""
    for slot in victim.heart.all():
        if re.fullmatch(rf"{role}(-\d+)?", slot.role):
            return slot.tid, slot.pid
    raise LookupError(role)


def main_thread(victim: Torture) -> AbstractContextManager[Traced]:
    """The first thread, stopped in plain user code, so that calls can be made in it without touching another."""
    return stop_when(victim.pid, victim.pid, "in_loop")


def looping(victim: Torture, role: str = "regs") -> AbstractContextManager[Traced]:
    """A thread stopped in its register loop with much of it still to come."""
    return stop_when(*slot_tid(victim, role), "starts_loop")


@contextmanager
def descriptor(victim: Torture, target: str) -> Iterator[tuple[int, int]]:
    """(our duplicate, its number there) of the first descriptor whose /proc link matches: one open file description."""
    for name in sorted(os.listdir(f"/proc/{victim.pid}/fd"), key=int):
        if re.search(target, os.readlink(f"/proc/{victim.pid}/fd/{name}")):
            pidfd = os.pidfd_open(victim.pid)
            ours = _libc.syscall(438, pidfd, int(name), 0)
            os.close(pidfd)
            if ours < 0:
                raise OSError(ctypes.get_errno(), "pidfd_getfd")
            try:
                yield ours, int(name)
            finally:
                os.close(ours)
            return
    raise LookupError(target)


def their_number(victim: Torture, target: str) -> int:
    with descriptor(victim, target) as (_, number):
        return number


def pattern_pages(victim: Torture) -> dict[str, list[int]]:
    """Addresses of pages that hold a pattern of torture_memory.c, by mapping."""
    found: dict[str, list[int]] = {}
    memory = Memory(victim.pid)
    for start, end, rights, name in mappings(victim.pid):
        if rights[0] != "r" or end - start > 64 << 20 or name.startswith("[v"):
            continue
        data = memory.read(start, end - start)
        for at in range(0, len(data), PAGE):
            a, b, c = struct.unpack_from("<3Q", data, at)
            if (b - a) & ALL64 == STEP == (c - b) & ALL64:
                found.setdefault(f"{start:x} {name}", []).append(start + at)
    memory.close()
    return found


def search(victim: Torture, wanted: bytes, count: int = 1) -> list[int]:
    """Addresses in writable private memory where `wanted` lies."""
    found = []
    memory = Memory(victim.pid)
    for start, end, rights, _ in mappings(victim.pid):
        if not rights.startswith("rw") or end - start > 64 << 20:
            continue
        data = memory.read(start, end - start)
        at = data.find(wanted)
        while at >= 0:
            found.append(start + at)
            at = data.find(wanted, at + 1)
    memory.close()
    if len(found) < count:
        raise LookupError(wanted[:16].hex())
    return found


def timespec(traced: Traced) -> int:
    return traced.scratch(bytes(16))


# ------------------------------------------------------------------------------------------------ registers


def _general(name: str) -> Disturb:
    def disturb(victim: Torture) -> None:
        with looping(victim) as thread:
            thread.flip_register(name)

    disturb.__name__ = name
    return disturb


for _bits, _names in ((64, GENERAL64), (32, GENERAL32)):
    for _name in _names:
        TABLE.append(Disturbance("REG_GENERAL", rf"{_name}\[", _general(_name), only=_bits))


@breaks("REG_STACK")
def stack_pointer_expected(victim: Torture) -> None:
    """A moved stack pointer cannot be survived: instead the value that it is compared with is changed."""
    with looping(victim) as thread:
        struct_at = int.from_bytes(thread.memory.read(thread["sp"], thread.bits // 8), "little")
        thread.memory.flip(struct_at + 7 * thread.bits // 8)  # in[SP]


@breaks("REG_FLAGS")
def direction_flag(victim: Torture) -> None:
    with looping(victim) as thread:
        thread.set_registers(eflags=thread.original["eflags"] ^ 0x400)


@breaks("REG_FLAGS")
def carry_flag(victim: Torture) -> None:
    with looping(victim) as thread:
        thread.set_registers(eflags=thread.original["eflags"] ^ 1)


@breaks("REG_RED_ZONE", only=64)
def red_zone(victim: Torture) -> None:
    with looping(victim) as thread:
        thread.memory.flip(thread["sp"] - 64)


@breaks("REG_X87", "control")
def x87_control_word(victim: Torture) -> None:
    with looping(victim) as thread:
        thread.flip_vector(1)


@breaks("REG_X87", "stack")
def x87_stack(victim: Torture) -> None:
    with looping(victim) as thread:
        thread.flip_vector(32 + 16 * 3 + 5)


@breaks("REG_SSE", "mxcsr")
def mxcsr_sticky_flag(victim: Torture) -> None:
    with looping(victim) as thread:
        thread.flip_vector(24)


@breaks("REG_SSE", "xmm")
def xmm(victim: Torture) -> None:
    with looping(victim) as thread:
        thread.flip_vector(160 + 16 * 7 + 3)


def _component(group: int, name: str, index: int) -> Disturb:
    def disturb(victim: Torture) -> None:
        lines = os.popen(f"{victim.program} --components").read().splitlines()
        parts = {int(a): int(b) for a, b, _ in (line.split() for line in lines)}
        if group not in parts:
            raise NotImplementedError(f"this processor has no {name}")
        with looping(victim) as thread:
            thread.flip_vector(parts[group] + index)

    disturb.__name__ = name
    return disturb


TABLE += [
    Disturbance("REG_AVX", "ymm", _component(6, "ymm", 16 * 7 + 3)),
    Disturbance("REG_OPMASK", "k0", _component(7, "opmask", 8 * 7)),
    Disturbance("REG_ZMM_HIGH", "zmm", _component(8, "zmm_high", 32 * 7 + 1)),
    Disturbance("REG_ZMM_16_31", "zmm", _component(9, "zmm_16_31", 64 * 15 + 63), only=64),
    Disturbance("REG_PKRU", "pkru", _component(10, "pkru", 1)),
]


@breaks("REG_SELECTOR")
def selector(victim: Torture) -> None:
    with looping(victim) as thread:
        if thread.bits == 64:
            thread.set_registers(es=0x2B - thread.original["es"])
        else:  # the other TLS slot: a selector that can be loaded
            thread.set_registers(fs=thread.original["gs"])


@breaks("REG_EXTRA_BASE", "gs base", only=64)
def gs_base(victim: Torture) -> None:
    with looping(victim) as thread:
        thread.set_registers(gs_base=thread.original["gs_base"] + 8)


@breaks("REG_EXTRA_BASE", "TLS entry", only=32)
def tls_entry(victim: Torture) -> None:
    with looping(victim) as thread:
        _move_tls(thread, thread.original["fs"] >> 3, 8)


@breaks("REG_TLS_BASE")
def tls_base(victim: Torture) -> None:
    """The thread-local block is copied to another place and the base moved there: all its content is as before."""
    with looping(victim) as thread:
        if thread.bits == 64:
            base = thread.original["fs_base"]
            copy = thread.call("mmap", 0, 8 * PAGE, 3, 0x22, -1 & ALL64, 0)
            thread.memory.write(copy, thread.memory.read((base & ~(PAGE - 1)) - PAGE, 2 * PAGE))
            thread.set_registers(fs_base=copy + PAGE + base % PAGE)
        else:  # the word at gs:0 that it is compared with
            thread.memory.flip(_tls_base(thread, thread.original["gs"] >> 3))


def _thread_area(thread: Traced, entry: int) -> bytearray:
    buffer = ctypes.create_string_buffer(16)
    tracer._ptrace(tracer.GET_THREAD_AREA, thread.tid, entry, ctypes.addressof(buffer))
    return bytearray(buffer.raw)


def _tls_base(thread: Traced, entry: int) -> int:
    return int(struct.unpack_from("<I", _thread_area(thread, entry), 4)[0])


def _move_tls(thread: Traced, entry: int, by: int) -> None:
    area = _thread_area(thread, entry)
    struct.pack_into("<I", area, 4, struct.unpack_from("<I", area, 4)[0] + by)
    buffer = ctypes.create_string_buffer(bytes(area), 16)
    tracer._ptrace(tracer.SET_THREAD_AREA, thread.tid, entry, ctypes.addressof(buffer))


@breaks("REG_RESULT")
def result_of_getpid(victim: Torture) -> None:
    """The pid that the answer is compared with lies in the record of the thread, beside the parent's and its own."""
    tid, pid = slot_tid(victim, "regs")
    record = struct.pack("<2i", os.getpid(), tid)  # ppid, tid; before them the pid
    memory = Memory(victim.pid)
    for at in search(victim, record):
        if memory.read(at - 4, 4) == struct.pack("<i", pid):
            memory.write(at - 4, struct.pack("<i", pid + 1))
    memory.close()


@breaks("TLS_WORD")
def thread_local_word(victim: Torture) -> None:
    slot = next(slot for slot in victim.heart.all() if slot.role.startswith("regs"))
    seed = 0x9E3779B97F4A7C15 * (slot.index + 1)
    with looping(victim) as thread:
        wanted = struct.pack("<3Q", *((seed + i) & ALL64 for i in range(3)))
        for at in search(victim, wanted):
            thread.memory.flip(at)


@breaks("STACK_WORD")
def stack_word(victim: Torture) -> None:
    """64 words that count upwards lie somewhere above the stack pointer."""
    with looping(victim) as thread:
        stack = thread.memory.read(thread["sp"], 4096)
        for at in range(0, len(stack) - 128, 4):
            words = struct.unpack_from("<16Q", stack, at)
            if words[0] > 1 << 32 and all(words[i] == words[0] + i for i in range(16)):
                thread.memory.flip(thread["sp"] + at + 40)
                return
        raise LookupError("no pattern on the stack")


# ------------------------------------------------------------------------------------------------ memory


@breaks("MEM_WORD")
def memory_word(victim: Torture) -> None:
    """One word in some pages of each mapping that holds patterns."""
    memory = Memory(victim.pid)
    for pages in pattern_pages(victim).values():
        for page in {pages[0], *pages[::16], pages[-1]}:
            memory.flip(page + 808)
    memory.close()


@breaks("MEM_ZERO")
def untouched_page(victim: Torture) -> None:
    memory = Memory(victim.pid)
    start, end, _, _ = max(
        (each for each in mappings(victim.pid) if each[2].startswith("rw") and not each[3]), key=lambda m: m[1] - m[0]
    )
    used = {page for pages in pattern_pages(victim).values() for page in pages}
    for page in range(start, end, PAGE):
        if page not in used and not any(memory.read(page, PAGE)):
            memory.write(page + 8, b"\1")
    memory.close()


@breaks("MEM_LAYOUT", "read-only")
def protection(victim: Torture) -> None:
    pages = pattern_pages(victim)
    start = next(at for at, _, rights, name in mappings(victim.pid) if rights == "r--p" and f"{at:x} {name}" in pages)
    with main_thread(victim) as thread:
        assert thread.call("mprotect", start + PAGE, PAGE, 3) == 0


@breaks("MEM_LAYOUT", "reservation")
def reservation(victim: Torture) -> None:
    start = max((each for each in mappings(victim.pid) if each[2] == "---p"), key=lambda each: each[1] - each[0])[0]
    with main_thread(victim) as thread:
        assert thread.call("munmap", start + 8 * PAGE, PAGE) == 0


@breaks("MEM_LOCKED")
def locked_pages(victim: Torture) -> None:
    with main_thread(victim) as thread:
        for start, end, rights, _ in mappings(victim.pid):
            if rights == "rw-p":
                thread.call("munlock", start, end - start)


# ------------------------------------------------------------------------------------------------ signals and timers


@breaks("SIG_MASK")
def signal_mask(victim: Torture) -> None:
    with looping(victim) as thread:
        thread.set_mask(0x1234)


@breaks("SIG_ACTION", "signal 25")
def disposition(victim: Torture) -> None:
    with main_thread(victim) as thread:
        action = thread.scratch(bytes(32))
        assert thread.call("rt_sigaction", 25, action, 0, 8) == 0


@breaks("SIG_NOT_ON_ALTSTACK")
def disposition_without_onstack(victim: Torture) -> None:
    with main_thread(victim) as thread:
        at, word = thread.scratch(bytes(32)), thread.bits // 8
        assert thread.call("rt_sigaction", SIG_TICK, 0, at, 8) == 0
        flags = int.from_bytes(thread.memory.read(at + word, 4), "little")
        thread.memory.write(at + word, (flags & ~0x08000000).to_bytes(4, "little"))
        assert thread.call("rt_sigaction", SIG_TICK, at, 0, 8) == 0


@breaks("SIG_ALTSTACK")
def alternate_stack(victim: Torture) -> None:
    with looping(victim) as thread:
        at, word = thread.scratch(bytes(64)), thread.bits // 8
        assert thread.call("sigaltstack", 0, at) == 0
        size = int.from_bytes(thread.memory.read(at + 2 * word if word == 8 else at + 8, word), "little")
        thread.memory.write(at + 2 * word if word == 8 else at + 8, (size - 4096).to_bytes(word, "little"))
        assert thread.call("sigaltstack", at, 0) == 0


def _take(thread: Traced, number: int) -> int:
    """What sigtimedwait gives that waits for this signal and for no time at all."""
    wanted = thread.scratch(struct.pack("<Q", 1 << (number - 1)) + bytes(56))
    return thread.call("rt_sigtimedwait", wanted, 0, wanted + 16, 8)


@breaks("SIG_PENDING_LOST")
def pending_of_process(victim: Torture) -> None:
    with main_thread(victim) as thread:
        assert _take(thread, SIG_QUEUED) == SIG_QUEUED


@breaks("SIG_PENDING_LOST")
def pending_of_thread(victim: Torture) -> None:
    with looping(victim) as thread:
        assert _take(thread, SIG_THREAD) == SIG_THREAD


@breaks("SIG_PENDING_EXTRA")
def pending_extra(victim: Torture) -> None:
    """For one thread that does not wait for it."""
    tid, pid = slot_tid(victim, "regs")
    _libc.tgkill(pid, tid, SIG_NEVER)


@breaks("SIG_INFO")
def pending_with_another_value(victim: Torture) -> None:
    """Taken, and sent again with the same value but by another process."""
    with main_thread(victim) as thread:
        assert _take(thread, SIG_QUEUED) == SIG_QUEUED
        _libc.sigqueue(victim.pid, SIG_QUEUED, ctypes.c_void_p(0xBEEF))


@breaks("SIG_STRAY")
def stray_signal(victim: Torture) -> None:
    os.kill(victim.pid, signal.SIGUSR1)


@breaks("SIG_CRASH")
def instruction_pointer(victim: Torture) -> None:
    with looping(victim) as thread:
        thread.set_registers(**{"rip" if thread.bits == 64 else "eip": 16})


@breaks("TIMER_SETTING", "ITIMER_REAL")
def interval_timer(victim: Torture) -> None:
    with main_thread(victim) as thread:
        assert thread.call("setitimer", 0, thread.scratch(bytes(64)), 0) == 0


@breaks("TIMER_SILENT", "ITIMER_REAL")
def interval_timer_silent(victim: Torture) -> None:
    interval_timer(victim)


@breaks("TIMER_SETTING", "ITIMER_VIRTUAL")
def virtual_timer(victim: Torture) -> None:
    with main_thread(victim) as thread:
        assert thread.call("setitimer", 1, thread.scratch(bytes(64)), 0) == 0


@breaks("TIMER_SETTING", "POSIX timer:")
def posix_timer(victim: Torture) -> None:
    with main_thread(victim) as thread:
        assert thread.call("timer_delete", 1) == 0


@breaks("TIMER_SETTING", "never fires")
def posix_timer_idle(victim: Torture) -> None:
    with main_thread(victim) as thread:
        assert thread.call("timer_delete", 0) == 0


@breaks("TIMER_SILENT", "POSIX timer")
def posix_timer_silent(victim: Torture) -> None:
    posix_timer(victim)


# ------------------------------------------------------------------------------------------------ descriptors


@breaks("FILE_POSITION", "regular file")
def position(victim: Torture) -> None:
    with descriptor(victim, "/plain$") as (ours, _):
        os.lseek(ours, 7, os.SEEK_CUR)


@breaks("FILE_POSITION", "shared position")
def shared_position(victim: Torture) -> None:
    with descriptor(victim, "/common$") as (ours, _):
        os.lseek(ours, 7, os.SEEK_CUR)


@breaks("FILE_POSITION", "deleted file")
def deleted_position(victim: Torture) -> None:
    with descriptor(victim, "/deleted") as (ours, _):
        os.lseek(ours, 0, os.SEEK_SET)


@breaks("FILE_CONTENT", "deleted file")
def deleted_content(victim: Torture) -> None:
    with descriptor(victim, "/deleted") as (ours, _):
        os.pwrite(ours, bytes(5000), 0)


@breaks("FILE_CONTENT", "O_APPEND")
def appended(victim: Torture) -> None:
    with descriptor(victim, "/append$") as (ours, _):
        os.write(ours, b"more")


@breaks("FILE_FLAGS", "pipe, read end")
def status_flags(victim: Torture) -> None:
    with _content_pipe(victim) as ours:
        os.set_blocking(ours, True)


@contextmanager
def _content_pipe(victim: Torture) -> Iterator[int]:
    """The read end of the pipe with 3000 bytes inside: made right after the deleted file's descriptor."""
    number = their_number(victim, "/deleted") + 1
    pidfd = os.pidfd_open(victim.pid)
    ours = _libc.syscall(438, pidfd, number, 0)
    os.close(pidfd)
    try:
        yield ours
    finally:
        os.close(ours)


@breaks("FILE_TABLE", "closed")
def descriptor_closed(victim: Torture) -> None:
    with main_thread(victim) as thread:
        assert thread.call("close", 777) == 0


@breaks("FILE_TABLE", "open, should be closed")
def descriptor_extra(victim: Torture) -> None:
    with main_thread(victim) as thread:
        assert thread.call("dup", 0) > 2


@breaks("FILE_PIPE")
def pipe_content(victim: Torture) -> None:
    with _content_pipe(victim) as ours:
        os.read(ours, 1)


@breaks("FILE_EVENTFD", "eventfd: ")
def eventfd_counter(victim: Torture) -> None:
    with descriptor(victim, r"eventfd") as (_, number):
        pidfd = os.pidfd_open(victim.pid)
        for fd in range(number, number + 8):  # the first one that does not block is the counter
            ours = _libc.syscall(438, pidfd, fd, 0)
            if ours >= 0 and "eventfd" in os.readlink(f"/proc/{victim.pid}/fd/{fd}") and not os.get_blocking(ours):
                os.write(ours, struct.pack("<Q", 1))
                os.close(ours)
                break
        os.close(pidfd)


@breaks("FILE_IDENTITY", "directory|another file")
def another_file(victim: Torture) -> None:
    with main_thread(victim) as thread:
        directory = their_number(victim, r"heartbeat\.d$")
        assert thread.call("dup2", 777, directory) == directory


@breaks("FILE_CWD")
def current_directory(victim: Torture) -> None:
    with main_thread(victim) as thread:
        assert thread.call("chdir", thread.scratch(b"/\0")) == 0


@breaks("FILE_UMASK")
def umask(victim: Torture) -> None:
    with main_thread(victim) as thread:
        thread.call("umask", 0)


@breaks("FILE_CALL")
def call_fails(victim: Torture) -> None:
    with main_thread(victim) as thread:
        assert thread.call("close", their_number(victim, "/plain$")) == 0


# ------------------------------------------------------------------------------------------------ processes


@breaks("PROC_ID", "process group")
def process_group(victim: Torture) -> None:
    tid, _ = slot_tid(victim, "grandchild")
    with stop_when(tid, tid, "in_loop") as thread:
        assert thread.call("setpgid", 0, 0) == 0


@breaks("PROC_NAME")
def thread_name(victim: Torture) -> None:
    with looping(victim) as thread:
        assert thread.call("prctl", 15, thread.scratch(b"other\0")) == 0


@breaks("PROC_CHILD_GONE")
def child_killed(victim: Torture) -> None:
    os.kill(slot_tid(victim, "partner")[0], signal.SIGKILL)


@breaks("PROC_ZOMBIE")
def zombie_reaped(victim: Torture) -> None:
    zombie = next(pid for pid in children(victim.pid) if "(zombie)" in Path(f"/proc/{pid}/status").read_text())
    with main_thread(victim) as thread:
        assert thread.call("wait4", zombie, 0, 0, 0) == zombie


@breaks("PROC_CHILD_EXTRA")
def child_extra(victim: Torture) -> None:
    with main_thread(victim) as thread:
        thread.fork()


@breaks("PROC_PRIORITY")
def priority(victim: Torture) -> None:
    os.setpriority(os.PRIO_PROCESS, slot_tid(victim, "regs")[0], 3)


@breaks("PROC_PRIORITY", "policy")
def policy(victim: Torture) -> None:
    os.sched_setscheduler(slot_tid(victim, "main")[0], os.SCHED_BATCH, os.sched_param(0))


@breaks("PROC_AFFINITY")
def affinity(victim: Torture) -> None:
    tid = slot_tid(victim, "main")[0]
    os.sched_setaffinity(tid, {max(os.sched_getaffinity(tid))})


@breaks("PROC_PRCTL", "timer slack")
def timer_slack(victim: Torture) -> None:
    with looping(victim) as thread:
        assert thread.call("prctl", 29, 77000) == 0


@breaks("PROC_PRCTL", "dumpable")
def dumpable(victim: Torture) -> None:
    with main_thread(victim) as thread:
        assert thread.call("prctl", 4, 0) == 0


@breaks("PROC_PRCTL", "subreaper")
def child_subreaper(victim: Torture) -> None:
    with main_thread(victim) as thread:
        assert thread.call("prctl", 36, 0) == 0


@breaks("PROC_PRCTL", "death signal")
def death_signal(victim: Torture) -> None:
    tid, _ = slot_tid(victim, "session")
    with stop_when(tid, tid, "in_loop") as thread:
        assert thread.call("prctl", 1, 10) == 0


@breaks("PROC_LIMIT")
def limit(victim: Torture) -> None:
    soft, hard = resource.prlimit(victim.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(victim.pid, resource.RLIMIT_NOFILE, (soft - 1, hard))


@breaks("PROC_PERSONALITY")
def personality(victim: Torture) -> None:
    with main_thread(victim) as thread:
        thread.call("personality", 0x0040000)


@breaks("PROC_OOM")
def oom_score(victim: Torture) -> None:
    path = Path(f"/proc/{victim.pid}/oom_score_adj")
    path.write_text(str(int(path.read_text()) + 3))


@breaks("PROC_ARGUMENTS", "cmdline")
def arguments(victim: Torture) -> None:
    fields = Path(f"/proc/{victim.pid}/stat").read_text().rpartition(")")[2].split()
    memory = Memory(victim.pid)
    memory.flip(int(fields[45]) + 2)  # arg_start, field 48
    memory.close()


@breaks("PROC_ARGUMENTS", "environment strings")
def environment(victim: Torture) -> None:
    fields = Path(f"/proc/{victim.pid}/stat").read_text().rpartition(")")[2].split()
    memory = Memory(victim.pid)
    memory.flip(int(fields[47]) + 2)  # env_start, field 50
    memory.close()


@breaks("PROC_AUXV")
def auxiliary_vector_expected(victim: Torture) -> None:
    """The kernel's copy cannot be changed by everybody: the program's copy, with which it is compared, is."""
    vector = Path(f"/proc/{victim.pid}/auxv").read_bytes()
    memory = Memory(victim.pid)
    for at in search(victim, vector):
        memory.flip(at + 20)
    memory.close()


@breaks("PROC_ROBUST")
def robust_list(victim: Torture) -> None:
    with looping(victim) as thread:
        at = thread.scratch(bytes(64))
        assert thread.call("set_robust_list", at, 3 * thread.bits // 8) == 0


@breaks("PROC_RSEQ")
def rseq_dead(victim: Torture) -> None:
    """No longer registered, but the memory as it was: what a restart would leave that forgot it."""
    with looping(victim) as thread:
        buffer = ctypes.create_string_buffer(24)
        tracer._ptrace(tracer.GET_RSEQ, thread.tid, 24, ctypes.addressof(buffer))
        address, size, sign, _flags, _pad = struct.unpack_from("<QIIII", buffer.raw)
        if not address:
            raise NotImplementedError("this C library does not use rseq")
        assert thread.call("rseq", address, size, 1, sign) == 0
        thread.memory.write(address, struct.pack("<II", 77, 77))


@breaks("PROC_CREDENTIALS")
def credentials(victim: Torture) -> None:
    if os.geteuid():
        raise NotImplementedError("only root may change its group")
    with main_thread(victim) as thread:
        assert thread.call("setresgid", ALL64, 12345, ALL64) == 0


@breaks("PROC_STOPPED", "went on")
def stopped_child_goes_on(victim: Torture) -> None:
    os.kill(slot_tid(victim, "stopped")[1], signal.SIGCONT)


@breaks("PROC_STOPPED", "no longer stopped")
def stopped_child_killed(victim: Torture) -> None:
    os.kill(slot_tid(victim, "stopped")[1], signal.SIGKILL)


@breaks("CLOCK_BACKWARDS", "MONOTONIC")
def clock(victim: Torture) -> None:
    """Every word on the heap that looks like a stamp of just now is moved into the future."""
    memory = Memory(victim.pid)
    with main_thread(victim):
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        for start, end, _, name in mappings(victim.pid):
            if name != "[heap]":
                continue
            data = memory.read(start, end - start)
            for at in range(0, len(data) - 7, 4):
                word = int.from_bytes(data[at : at + 8], "little")
                if 0 <= now - word < 300_000_000:
                    memory.write(start + at, (word + 10**13).to_bytes(8, "little"))
    memory.close()


# ------------------------------------------------------------------------------------------------ blocking calls


def _early(role: str, value: int, times: int = 15) -> Disturb:
    """Interrupted calls of this thread give `value` at once.

    Several times, because a stop may last so long on a busy machine that the call's time is over anyway.
    """

    def disturb(victim: Torture) -> None:
        tid, pid = slot_tid(victim, role)
        end, left = time.monotonic() + 10, times
        while left and time.monotonic() < end:
            with Traced(tid, pid) as thread:
                # These results say that an interrupted call would have gone on.
                if thread.call_number() >= 0 and thread.result() in (-512, -513, -514, -516):
                    thread.set_result(value)
                    left -= 1
            time.sleep(0.004)
        if left:
            raise TimeoutError(f"{role} was too seldom seen in a call")

    disturb.__name__ = f"{role}_gives_{abs(value)}"
    return disturb


TABLE += [
    Disturbance("WAIT_SHORT", "nanosleep", _early("nanosleep", 0)),
    Disturbance("WAIT_SHORT", "poll", _early("poll", 0)),
    Disturbance("WAIT_SHORT", "futex wait", _early("futex", -110)),
    Disturbance("WAIT_SHORT", "clock_nanosleep", _early("clock", 0)),
    Disturbance("WAIT_SHORT", "TIMER_ABSTIME", _early("clock-abs", 0)),
    Disturbance("WAIT_REST", "select", _early("select", 0)),
    Disturbance("WAIT_REST", "pselect", _early("pselect", 0)),
    Disturbance("WAIT_REST", "ppoll", _early("ppoll", 0)),
    Disturbance("WAIT_RESULT", "read of a pipe", _early("read", 0)),
    Disturbance("WAIT_RESULT", "pause", _early("pause", -4)),
    Disturbance("WAIT_RESULT", "sigsuspend", _early("sigsuspend", -4)),
    Disturbance("WAIT_EINTR", "futex wait without end", _early("futex-forever", -4)),
    Disturbance("WAIT_EINTR", "poll without end", _early("poll-forever", -4)),
]


@breaks("WAIT_EINTR", "epoll_wait|sigtimedwait")
def stops_that_end_calls(victim: Torture) -> None:
    """What a tracer does that does not know of the calls that any stop ends with EINTR."""
    for role in ("epoll", "sigtimedwait") * 20:
        with Traced(*slot_tid(victim, role), heal=False):
            pass
        time.sleep(0.005)


@breaks("WAIT_SEQUENCE", "read of a pipe")
def wrong_answer(victim: Torture) -> None:
    """The thread waits for eight bytes: it gets others."""
    tid, pid = slot_tid(victim, "read")
    end = time.monotonic() + 10
    number = 3 if victim.heart.bits == 32 else 0
    while time.monotonic() < end:
        words = Path(f"/proc/{pid}/task/{tid}/syscall").read_text().split()
        if words[0] == str(number):
            pidfd = os.pidfd_open(pid)
            ours = _libc.syscall(438, pidfd, int(words[1], 16) + 1, 0)
            os.close(pidfd)
            os.write(ours, b"\xff" * 8)
            os.close(ours)
            return
        time.sleep(0.0005)
    raise TimeoutError("never seen in read")

"""32-bit ARM on any host: the registers of interrupted calls in ARM and Thumb code, which the kernel moves back."""

from __future__ import annotations

import struct

import pytest

from torpor.arch.arm import KINDS, SET_TLS
from torpor.arch.arm.registers import GENERAL, NAMES, ArmRegisters, again
from torpor.arch.arm.rules import NONE, THUMB, USER_MODE
from torpor.arch.arm.state import ArmGeneral, ArmTls
from torpor.arch.contract import EINTR, ERESTART_RESTARTBLOCK, ERESTARTNOHAND, ERESTARTSYS
from torpor.linux import libc, ptrace

KIND = KINDS[0]
SVC, SP = 0x1_0100, 0xBEFF_0000
NUMBERS = KIND.syscalls

Seen = tuple[int, tuple[int, ...], int, int]
BOTH = pytest.mark.parametrize("width", [4, 2], ids=["arm", "thumb"])


def stopped(name: str, *arguments: int, width: int = 4, ended: bool = False) -> tuple[dict[str, int], Seen]:
    """(registers at the stop, what was seen before) of a thread in the call `name`; `ended`: with EINTR."""
    six = (*arguments, *[0x55] * (6 - len(arguments)))
    regs = {name: 0x1000 + index for index, name in enumerate(NAMES)}
    regs |= {f"r{n}": value for n, value in enumerate(six)} | {"r7": NUMBERS[name], "sp": SP, "pc": SVC, "orig_r0": six[0]}
    regs |= {"cpsr": USER_MODE | (THUMB if width == 2 else 0), "syscallno": NONE}
    if ended:
        regs |= {"r0": NONE + 1 - EINTR, "pc": SVC + width}
    return regs, (NUMBERS[name], six, SP, SVC + width)


ERRORS = [
    ("nanosleep_time32", (0x100, 0), ERESTART_RESTARTBLOCK),
    ("clock_nanosleep", (1, 0, 0x100, 0), ERESTART_RESTARTBLOCK),
    ("clock_nanosleep_time32", (1, 1, 0x100, 0), ERESTARTNOHAND),
    ("futex_time32", (0x100, 0, 0, 0x200), ERESTART_RESTARTBLOCK),
    ("futex", (0x100, 0, 0, 0), ERESTARTSYS),
    ("futex", (0x100, 9, 0, 0x200), ERESTARTSYS),
    ("poll", (0x100, 1, 500), ERESTART_RESTARTBLOCK),
    ("poll", (0x100, 1, NONE), ERESTART_RESTARTBLOCK),
    ("restart_syscall", (0x100,), ERESTART_RESTARTBLOCK),
    ("read", (3, 0x100, 8), ERESTARTSYS),
    ("recv", (3, 0x100, 8, 0), ERESTARTSYS),
    ("select", (3, 0x100, 0, 0, 0x200), ERESTARTNOHAND),
    ("epoll_wait", (5, 0x100, 4, 1000), ERESTARTNOHAND),
]


@BOTH
@pytest.mark.parametrize(("name", "arguments", "error"), ERRORS, ids=[f"{row[0]}-{row[2]}-{n}" for n, row in enumerate(ERRORS)])
def test_interrupted_call_is_recognised_and_made_again(name: str, arguments: tuple[int, ...], error: int, width: int) -> None:
    regs, seen = stopped(name, *arguments, width=width)
    found = KIND.looked_at(regs, seen)
    assert KIND.pending_call(found) == (NUMBERS[name], error)
    assert [found[each] for each in KIND.arguments] == list(seen[1])
    assert found["pc"] == SVC + width
    back = again(found)
    assert (back["pc"], back["r0"]) == (SVC, arguments[0])
    assert back["r7"] == (NUMBERS["restart_syscall"] if error == ERESTART_RESTARTBLOCK else NUMBERS[name])
    settled = KIND.settled(found)
    assert (settled["pc"], settled["r0"], settled["r7"], settled["syscallno"]) == (SVC, arguments[0], NUMBERS[name], NONE)
    handled = KIND.handled(found, True)
    assert KIND.pending_call(handled) == (KIND.pending_call(found) if error == ERESTARTSYS else None)
    assert KIND.signed(KIND.handled(found, False)["r0"]) == -EINTR


@BOTH
def test_call_that_any_stop_ends_gets_its_argument_back(width: int) -> None:
    regs, seen = stopped("epoll_wait", 5, 0x100, 4, 1000, width=width, ended=True)
    found = KIND.looked_at(regs, seen)
    assert KIND.pending_call(found) == (NUMBERS["epoll_wait"], EINTR)
    made = KIND.again(found)
    assert (made["r0"], made["r7"], made["pc"], made["syscallno"]) == (5, NUMBERS["epoll_wait"], SVC, NONE)
    assert KIND.handled(made, True, again=True) == {**made, "r0": NONE + 1 - EINTR, "pc": SVC + width}


@pytest.mark.parametrize("change", ["r1", "r5", "r7", "sp", "pc"])
def test_thread_that_has_gone_on_is_in_no_call(change: str) -> None:
    regs, seen = stopped("nanosleep_time32", 0x100, 0)
    regs[change] += 16
    assert KIND.looked_at(regs, seen) == regs
    assert KIND.looked_at(regs, None) == regs
    assert KIND.pending_call(regs) is None


def test_only_a_32_bit_kernel_keeps_r7_and_gives_a_restart_block_back_at_the_end_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    sleeps, reads = (KIND.looked_at(*stopped(*call)) for call in (("nanosleep_time32", 0x100), ("read", 3)))
    monkeypatch.setattr(libc, "WIDE_KERNEL", False)
    assert KIND.resumes_at_end(sleeps)
    assert not KIND.resumes_at_end(reads)  # the kernel would take it for the call at whose end it gets them
    assert not KIND.resumes_at_end(KIND.looked_at(*stopped("epoll_wait", 5, ended=True)))
    # Made again by the kernel, it is another call by its number there, and the same by its registers.
    regs, (_, arguments, sp, pc) = stopped("nanosleep_time32", 0x100)
    restarted = NUMBERS["restart_syscall"], arguments, sp, pc
    again = KIND.looked_at(regs, restarted)
    assert KIND.pending_call(again) == (NUMBERS["restart_syscall"], ERESTART_RESTARTBLOCK)
    assert KIND.resumes_at_end(again) and again["r7"] == NUMBERS["nanosleep_time32"]
    assert KIND.settled(again)["r7"] == NUMBERS["nanosleep_time32"]
    monkeypatch.setattr(libc, "WIDE_KERNEL", True)
    assert not KIND.resumes_at_end(sleeps)
    assert KIND.pending_call(KIND.looked_at(regs, restarted)) is None


def test_registers_are_written_as_they_must_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    regs, seen = stopped("read", 3, 0x100, 8, width=2)
    block = GENERAL.pack(*[regs[name] for name in NAMES[:18]])
    written: list[bytes] = []
    monkeypatch.setattr(ptrace, "get_regset", lambda tid, note: block)
    monkeypatch.setattr(ptrace, "set_regset", lambda tid, note, data: written.append(data))
    sets = ArmRegisters()
    found = KIND.looked_at(sets.read_general(1), seen)
    sets.write_general(1, found)
    assert written == [block]  # as the kernel would have let it go on
    KIND.write_at_end(1, found)  # as the kernel itself has them before it moves them back
    there = {**regs, "r0": NONE + 1 - ERESTARTSYS, "pc": SVC + 2}
    assert GENERAL.unpack(written.pop()) == tuple(there[name] for name in NAMES[:18])
    ended = GENERAL.pack(*[{**regs, "r0": NONE + 1 - EINTR, "pc": SVC + 2}[name] for name in NAMES[:18]])
    monkeypatch.setattr(ptrace, "get_regset", lambda tid, note: ended)
    sets.restart_ended(1, {NUMBERS["read"]}, seen)
    assert written == [block, block]
    sets.restart_ended(1, {NUMBERS["write"]}, seen)
    sets.restart_ended(1, {NUMBERS["read"]}, (*seen[:2], SP + 16, seen[3]))
    assert len(written) == 2


def test_address_of_a_handler_in_thumb_code_is_even(monkeypatch: pytest.MonkeyPatch) -> None:
    for cpsr, pc in ((USER_MODE | THUMB, SVC), (USER_MODE, SVC + 1)):
        values = dict.fromkeys(NAMES[:18], 0) | {"cpsr": cpsr, "pc": SVC + 1}
        monkeypatch.setattr(ptrace, "get_regset", lambda tid, note, values=values: GENERAL.pack(*values.values()))
        assert ArmRegisters().read_general(1)["pc"] == pc


def test_bits_of_cpsr_are_replaced_and_never_the_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    monkeypatch.setattr(ptrace, "set_regset", lambda tid, note, data: written.append(data))
    regs = dict.fromkeys(NAMES, 0) | {"cpsr": NONE, "syscallno": NONE}
    ArmRegisters().write_general(1, regs)
    (cpsr,) = struct.unpack_from("=I", written[0], 4 * NAMES.index("cpsr"))
    assert cpsr == 0xFEAF_FE30
    assert ArmRegisters().general_record(regs).cpsr == cpsr


class Waiting:
    """A thread whose registers issue epoll_pwait2 again."""

    tid, mask = 1, 0xF0

    def __init__(self, width: int) -> None:
        self.regs, _ = stopped("epoll_pwait2", 5, 0x100, 4, 0x2000, 0, 8, width=width)
        self.regs["cpsr"] |= 0x8000_0000 | (1 << 11 if width == 2 else 0)


@BOTH
@pytest.mark.parametrize("at", [0, 4, 8, 12])
def test_slot_and_back(monkeypatch: pytest.MonkeyPatch, at: int, width: int) -> None:
    thread, slot = Waiting(width), 0x7000
    monkeypatch.setattr(ptrace, "get_regset", lambda tid, note: bytes(range(256)) + bytes(4))
    code, frame, regs = KIND.to_framed_slot(slot, thread, NUMBERS["epoll_pwait2"], 3_000_000_007)
    memory = {regs["sp"]: frame}
    assert len(code) == KIND.slot_size and regs["sp"] % 8 == 0 and regs["sp"] + len(frame) <= thread.regs["sp"]
    assert regs["r3"] == regs["sp"] + len(frame) - 16 and struct.unpack("=qq", frame[-16:]) == (3, 7)
    changed = {name for name in regs if regs[name] != thread.regs[name]}
    assert changed == {"pc", "sp", "r3"} | ({"cpsr"} if width == 2 else set())
    assert regs["cpsr"] == 0x8000_0010  # the slot is ARM code
    now = {**regs, "pc": slot + at, "r0": regs["r0"] if at == 0 else 1}
    back = KIND.from_slot(code, slot, now, lambda address, length: memory[address][:length])
    expected = {**thread.regs, "pc": SVC if at == 0 else SVC + width, "r0": 1 if at == 4 else 5}
    assert back == expected | {"orig_r0": now["orig_r0"] if at == 4 else 5}
    assert KIND.from_slot(code, slot, now, lambda address, length: b"") == now


def test_frame_is_what_rt_sigreturn_reads() -> None:
    """Offsets of struct rt_sigframe (arch/arm/kernel/signal.c) from the stack pointer with which the code ends."""
    symbols = KIND.code.symbols
    values = {"v_mask": 0xAB, "r_r0": 1, "r_r10": 2, "r_fp": 3, "r_ip": 4, "r_sp": 5, "r_lr": 6, "r_pc": 7, "v_flags": 0x30}
    code = KIND.code.placed(0, 0, values | {"v_d": 1 << 2047, "v_fpscr": 9})
    frame, ucontext = symbols["frame"], symbols["frame"] + 128
    assert frame % 8 == 0
    (flags,) = struct.unpack_from("<I", code, ucontext + 12)
    assert flags & ~0x8000_0003  # no flags of sigaltstack(2) are 0x7fffffff
    assert struct.unpack_from("<I", code, ucontext + 32) == (1,)
    assert struct.unpack_from("<7I", code, ucontext + 32 + 40) == (2, 3, 4, 5, 6, 7, 0x30)
    assert struct.unpack_from("<Q", code, ucontext + 104) == (0xAB,)
    assert struct.unpack_from("<II", code, ucontext + 232) == (0x56465001, 288)
    assert struct.unpack_from("<QI", code, ucontext + 240 + 248) == (1 << 63, 9)
    assert len(code) == ucontext + 232 + 288
    assert code[symbols["call"] : symbols["call"] + 4] == KIND.syscall_instruction[0]
    assert KIND.code_offset + len(code) + KIND.slot_size < 4096


def test_programs_of_the_old_abi_are_none_of_this_kind() -> None:
    assert KIND.has_abi(KIND.elf_flags) and KIND.has_abi(0x0500_0400)
    assert not KIND.has_abi(0) and not KIND.has_abi(0x0000_0202)


def test_code_keeps_r12_until_its_notification() -> None:
    """At the end of a call the kernel gives r12 back as it was at the beginning, whatever a tracer has written."""
    symbols, code = KIND.code.symbols, KIND.code.placed(0, 0, {})
    for first, last in (("leave", "batch"), ("notify", "notified")):
        for (word,) in struct.iter_unpack("<I", code[symbols[first] : symbols[last]]):
            assert word >> 12 & 15 != 12 or word >> 24 & 15 in (10, 15), f"{word:#010x}"


def test_thread_sets_its_thread_pointer_itself() -> None:
    general = ArmGeneral(**dict.fromkeys(NAMES, 0))
    assert KIND.own_calls([general, ArmTls(tp=0xB6F0_0000)]) == [(SET_TLS, 0xB6F0_0000)]
    assert KIND.own_calls([general]) == []

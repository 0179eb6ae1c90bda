"""PowerPC on any host: interrupted calls of both conventions, slots, and the frames in which torpor's code ends."""

from __future__ import annotations

import struct
import sys
from typing import Any

import pytest

from torpor.arch.contract import EINTR, ERESTART_RESTARTBLOCK, ERESTARTNOHAND, ERESTARTSYS
from torpor.arch.powerpc import KINDS
from torpor.arch.powerpc.registers import SUMMARY_OVERFLOW, PowerRegisters
from torpor.arch.powerpc.rules import SYSCALL, VECTORED
from torpor.linux import ptrace

SC = 0x1000_0100
KINDS_AND_TRAPS = [(kind, trap) for kind in KINDS for trap in ((SYSCALL, VECTORED) if kind.word == 8 else (SYSCALL,))]
EACH = pytest.mark.parametrize(("kind", "trap"), KINDS_AND_TRAPS, ids=[f"{kind.name}-{trap:#x}" for kind, trap in KINDS_AND_TRAPS])


def interrupted(kind: Any, trap: int, error: int, name: str) -> dict[str, int]:
    """The registers of a thread that has stopped in the call `name`, which has ended with `error`."""
    regs = {each: 0x1000 + index for index, each in enumerate(kind.registers.names)}
    number = kind.syscalls[name]
    regs |= {"r0": number, "call": number, "trap": trap, "nip": SC + 4, "orig_r3": 7, "msr": 0}
    regs |= {"r3": error, "ccr": SUMMARY_OVERFLOW}
    return regs if trap == SYSCALL else {**regs, "r3": -error & (1 << 8 * kind.word) - 1, "ccr": 0}


@EACH
def test_interrupted_call_is_recognised_and_made_again(kind: Any, trap: int) -> None:
    none = (1 << 8 * kind.word) - 1
    for error in (ERESTARTSYS, ERESTARTNOHAND, ERESTART_RESTARTBLOCK, EINTR):
        regs = interrupted(kind, trap, error, "read")
        assert kind.pending_call(regs) == (3, error)
        assert kind.outcome(regs) == -error
        made = kind.again(regs)
        assert (made["nip"], made["r0"], made["r3"], made["call"]) == (SC, 3, 7, none)
        settled = kind.settled(regs)
        assert settled == (regs if error == EINTR else made)  # a restart block does not survive rt_sigreturn(2)
        assert kind.pending_call({**regs, "call": none}) is None
    regs = interrupted(kind, trap, EINTR, "read")
    assert kind.outcome(kind.ended(regs, 5)) == 5 and kind.outcome(kind.ended(regs, -110)) == -110
    assert kind.pending_call(kind.ended(regs, -EINTR)) is None


def test_flag_and_sign_do_not_mix() -> None:
    """512 is bytes read where no flag says that it is an error, and an error by sc is none by scv."""
    kind = KINDS[0]
    regs = interrupted(kind, SYSCALL, ERESTARTSYS, "read")
    assert kind.pending_call({**regs, "ccr": 0}) is None
    assert kind.pending_call({**regs, "trap": VECTORED}) is None
    assert kind.pending_call(interrupted(kind, VECTORED, ERESTARTSYS, "read") | {"trap": SYSCALL}) is None


@EACH
def test_restart_block_keeps_the_first_argument(monkeypatch: pytest.MonkeyPatch, kind: Any, trap: int) -> None:
    """The kernel puts the error where the first argument of restart_syscall(2) would be; so it is made to do otherwise."""
    written: list[bytes] = []
    monkeypatch.setattr(ptrace, "set_regset", lambda tid, note, data: written.append(data))
    registers: PowerRegisters = kind.registers
    registers.write_general(1, interrupted(kind, trap, ERESTART_RESTARTBLOCK, "poll"))
    letter = "Q" if kind.word == 8 else "I"
    values = struct.unpack(f"={len(written[0]) // kind.word}{letter}", written[0])
    assert len(values) == 41  # up to trap
    assert (values[0], values[34], values[40], values[32]) == (0, 7, trap, SC + 4)
    assert values[3] == (ERESTARTNOHAND if trap == SYSCALL else -ERESTARTNOHAND & (1 << 8 * kind.word) - 1)
    registers.write_general(1, {**interrupted(kind, trap, ERESTARTSYS, "read"), "call": (1 << 8 * kind.word) - 1})
    assert struct.unpack(f"=41{letter}", written[1])[40] == 0  # not in a call: the kernel is to leave it alone


@EACH
def test_a_call_that_the_kernel_has_dealt_with_is_none(monkeypatch: pytest.MonkeyPatch, kind: Any, trap: int) -> None:
    layout = kind.registers.layout
    values = [index + 1 for index in range(48)]
    for found, call in ((trap, 1), (trap | 1, (1 << 8 * kind.word) - 1), (0x900, (1 << 8 * kind.word) - 1)):
        values[40] = found
        block = layout.pack(*values)
        monkeypatch.setattr(ptrace, "get_regset", lambda tid, note, block=block: block)
        regs = kind.registers.read_general(1)
        assert regs["call"] == call and regs["trap"] == (trap if found & ~1 == trap else 0)
        assert (regs["r0"], regs["r31"], regs["nip"], regs["orig_r3"], regs["ccr"]) == (1, 32, 33, 35, 39)


@EACH
def test_calls_that_a_stop_has_ended_are_restarted(monkeypatch: pytest.MonkeyPatch, kind: Any, trap: int) -> None:
    regs = interrupted(kind, trap, EINTR, "epoll_wait")
    written: list[dict[str, int]] = []
    registers: PowerRegisters = kind.registers
    monkeypatch.setattr(PowerRegisters, "read_general", lambda self, tid: regs)
    monkeypatch.setattr(PowerRegisters, "write_general", lambda self, tid, new: written.append(new))
    registers.restart_ended(1, {kind.syscalls["read"]}, None)
    assert not written
    registers.restart_ended(1, {kind.syscalls["epoll_wait"]}, None)
    assert kind.pending_call(written[0]) == (kind.syscalls["epoll_wait"], ERESTARTNOHAND)


@EACH
@pytest.mark.parametrize("offset", [0, 4, 8, 16])
def test_slot_and_back(kind: Any, trap: int, offset: int) -> None:
    name = "rt_sigtimedwait" if kind.word == 8 else "rt_sigtimedwait_time32"
    regs = kind.again(interrupted(kind, trap, EINTR, name))
    code, now = kind.to_slot(0x7000, regs, kind.syscalls[name], 3_000_000_007)
    order = "<" if kind.byte_order == "little" else ">"
    assert len(code) <= kind.slot_size
    assert code[:4] == kind.syscall_instruction[1 if trap == VECTORED else 0]
    assert {each for each in now if now[each] != regs[each]} == {"nip", "r5"}
    at = now["r5"] - 0x7000
    layout = "=qq" if kind.word == 8 else "=ii"
    assert struct.unpack_from(layout, code, at) == (3, 7)
    if kind.word == 4:  # lis, ori: where the branch goes
        high, low = struct.unpack_from(f"{order}2xH2xH", code, 4)
        assert high << 16 | low == SC + 4
    back = kind.from_slot(code, 0x7000, {**now, "nip": 0x7000 + offset}, lambda address, length: b"")
    if offset <= 4:
        assert back == {**regs, "nip": SC + offset, "trap": trap}
    else:
        assert back["nip"] == SC + 4


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_frame_is_what_rt_sigreturn_reads(kind: Any) -> None:
    """Offsets of struct ucontext and struct sigcontext or mcontext (asm/ucontext.h, asm/sigcontext.h)."""
    code, symbols, wide = kind.code, kind.code.symbols, kind.word == 8
    values = {"r_r0": 1, "r_r31": 2, "r_nip": 3, "v_msr": 4, "r_orig_r3": 5, "r_ctr": 6, "r_link": 7, "r_xer": 8, "v_flags": 9}
    placed = code.placed(0x10_0000, 0, {**values, "v_mask": 0xAB, "v_fp": 1 << 8 * 264 - 1, "v_vmx": 0xCD, "v_vsx": 0xEF})
    order = "<" if kind.byte_order == "little" else ">"
    letter, frame = ("Q", symbols["frame"]) if wide else ("I", symbols["frame"])
    assert frame % 16 == 0 and symbols["v_vmx"] % 16 == 0
    assert struct.unpack_from(f"{order}{letter}", placed, frame + (8 if wide else 4)) == (0,)  # uc_link: no transaction
    assert struct.unpack_from(f"{order}I", placed, frame + (24 if wide else 12)) == (0x7FFF_FFFF,)
    assert struct.unpack_from(f"{order}Q", placed, frame + (40 if wide else 52)) == (0xAB,)
    registers = frame + 232 if wide else struct.unpack_from(f"{order}I", placed, frame + 48)[0] - 0x10_0000
    found = struct.unpack_from(f"{order}39{letter}", placed, registers)
    assert (found[0], *found[31:39]) == (1, 2, 3, 4, 5, 6, 7, 8, 9)
    floats = registers + 48 * kind.word
    assert symbols["v_fp"] == floats and code.variables["v_fp"] == 264
    at = struct.unpack_from(f"{order}Q", placed, frame + 880)[0] - 0x10_0000 if wide else floats + 264 + 8
    assert symbols["v_vmx"] == at and symbols["v_vsx"] == at + (544 if wide else 528)
    assert len(placed) == symbols["v_vsx"] + 256
    assert placed[symbols["notified"] - 4 : symbols["notified"]] == kind.syscall_instruction[0]
    heal = struct.unpack_from(f"{order}I", placed, symbols["heal"])[0]
    assert heal & 0xFFFF == frame - (0 if wide else 208)  # addi r1, r31, ...


def test_a_stub_begins_where_its_entry_point_says() -> None:
    """By the ABI's number in e_flags the kernel takes entry point and handlers for code, or for descriptors of functions."""
    for kind in KINDS:
        stub = kind.stub(0x20_0000, 0x30_0000, 0x1_0000, {})
        wide = kind.word == 8
        (flags,) = struct.unpack_from("=I", stub, 48 if wide else 36)
        (entry,) = struct.unpack_from("=Q" if wide else "=I", stub, 24)
        assert flags == {7: 2, 6: 1, 5: 0}[kind.image_id] and kind.has_abi(flags)
        if kind.image_id == 6:
            (entry,) = struct.unpack_from("=Q", stub, entry - 0x20_0000)
        assert entry == 0x20_0000 + kind.stub_code_offset + kind.code.symbols["entry"]
    assert not KINDS[0].has_abi(0) and not KINDS[1].has_abi(2)


def test_kinds_of_the_other_byte_order_do_not_run_here() -> None:
    from torpor import arch

    assert all(kind.byte_order == sys.byteorder for kind in arch.KINDS)
    assert {kind.image_id for kind in KINDS} == {5, 6, 7} and arch.by_image_id(6) is KINDS[1]

"""s390x on any host: interrupted calls, the slot from which some are issued again, and the frame by which torpor's code ends."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from torpor.arch.contract import EINTR, ERESTART_RESTARTBLOCK, ERESTARTNOHAND, ERESTARTSYS
from torpor.arch.s390x import KINDS
from torpor.arch.s390x.registers import (
    KEPT,
    NAMES,
    NT_PRFPREG,
    NT_PRSTATUS,
    NT_S390_GS_CB,
    NT_S390_RI_CB,
    NT_S390_SYSTEM_CALL,
    NT_S390_VXRS_HIGH,
    NT_S390_VXRS_LOW,
    REGISTERS,
)
from torpor.arch.s390x.rules import NONE, PSW_SPACE, PSW_WIDTH
from torpor.errors import Unsupported
from torpor.linux import ptrace
from torpor.tasks import freeze
from torpor.tasks.places import Busy

KIND = KINDS[0]
SVC, SP = 0x100_0100, 0x3FF_FFFF_0000
KERNELS = 0x0705_0000_0000_0000 | PSW_WIDTH
"""What of the program status word is the kernel's."""
CC = 0x2000_0000_0000
NUMBERS = KIND.syscalls


class Kernel:
    """The register sets of one stopped thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **changes: int) -> None:
        self.regs = {name: 0x1000 + n for n, name in enumerate(NAMES)} | {
            "psw_mask": KERNELS | CC,
            "psw_addr": SVC + 2,
            "r15": SP,
        }
        self.regs |= changes
        self.sets = {
            NT_PRSTATUS: struct.pack("=18Q16IQ", *[self.regs[name] for name in KEPT], *range(100, 116), self.regs["orig_gpr2"]),
            NT_PRFPREG: struct.pack("=I4x16Q", 0x0080_0003, *range(200, 216)),
            NT_S390_SYSTEM_CALL: struct.pack("=HH", 2, NUMBERS["read"]),
            NT_S390_VXRS_LOW: struct.pack("=16Q", *range(300, 316)),
            NT_S390_VXRS_HIGH: bytes(range(256)),
        }
        monkeypatch.setattr(ptrace, "get_regset", self.get)
        monkeypatch.setattr(ptrace, "set_regset", lambda tid, note, data: self.sets.update({note: data}))

    def get(self, tid: int, note: int) -> bytes:
        if note not in self.sets:
            raise OSError(61, "no data")
        return self.sets[note]


def interrupted(error: int, number: int, length: int = 2) -> dict[str, int]:
    regs = {name: 0x1000 + n for n, name in enumerate(NAMES)}
    psw = {"psw_mask": CC, "psw_addr": SVC + length, "r15": SP}
    return regs | psw | {"r2": NONE + 1 - error, "orig_gpr2": 3, "system_call": number, "svc_length": length}


@pytest.mark.parametrize("error", [ERESTARTSYS, ERESTARTNOHAND, ERESTART_RESTARTBLOCK, EINTR])
@pytest.mark.parametrize("length", [2, 4, 6])
def test_interrupted_call(error: int, length: int) -> None:
    regs = interrupted(error, NUMBERS["read"], length)
    assert KIND.pending_call(regs) == (NUMBERS["read"], error)
    again = {**regs, "r2": 3, "psw_addr": SVC, "system_call": NONE}
    assert KIND.again(regs) == again
    assert KIND.settled(regs) == (regs if error == EINTR else again)
    assert KIND.pending_call({**regs, "system_call": NONE}) is None


def test_all_is_read_and_written_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    regs, before = REGISTERS.read_general(1), dict(kernel.sets)
    assert regs == {**kernel.regs, "psw_mask": CC, "system_call": NUMBERS["read"], "svc_length": 2}
    records = REGISTERS.read(1)
    assert [type(record).__name__[5:] for record in records] == ["General", "Access", "Float", "VectorLow", "VectorHigh"]
    REGISTERS.write(1, records[:1])
    assert kernel.sets[NT_PRSTATUS][18 * 8 : 18 * 8 + 64] == bytes(64) and not any(kernel.sets[NT_S390_VXRS_HIGH])
    REGISTERS.write_general(1, dict.fromkeys(NAMES, 0) | {"system_call": NONE})
    assert struct.unpack_from("=Q", kernel.sets[NT_PRSTATUS]) == (KERNELS,)
    assert not any(kernel.sets[NT_S390_SYSTEM_CALL])
    REGISTERS.write(1, records)
    REGISTERS.write_general(1, REGISTERS.general_dict(records[0]))
    assert kernel.sets == before
    mask = REGISTERS.mask(records)
    assert mask == 31


def test_call_that_a_stop_has_ended_is_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, r2=NONE + 1 - EINTR)
    REGISTERS.restart_ended(1, {NUMBERS["write"]}, None)
    assert REGISTERS.read_general(1)["r2"] == NONE + 1 - EINTR
    REGISTERS.restart_ended(1, {NUMBERS["read"]}, None)
    assert KIND.pending_call(REGISTERS.read_general(1)) == (NUMBERS["read"], ERESTARTNOHAND)
    assert kernel.sets[NT_S390_SYSTEM_CALL] == struct.pack("=HH", 2, NUMBERS["read"])


@pytest.mark.parametrize(
    ("mask", "note", "words"),
    [
        (KERNELS | 1 << 46, 0, "access-register"),
        (KERNELS | PSW_SPACE, 0, "access-register"),
        (KERNELS & ~PSW_WIDTH, 0, "31 or 24 bits"),
        (KERNELS & ~(1 << 32), 0, "31 or 24 bits"),
        (KERNELS, NT_S390_GS_CB, "guarded storage"),
        (KERNELS, NT_S390_RI_CB, "runtime instrumentation"),
    ],
)
def test_what_cannot_be_saved_is_refused(monkeypatch: pytest.MonkeyPatch, mask: int, note: int, words: str) -> None:
    kernel = Kernel(monkeypatch, psw_mask=mask)
    if note:
        kernel.sets[note] = bytes(32)
    with pytest.raises(Unsupported, match=words):
        REGISTERS.read(1)


@pytest.mark.parametrize(("result", "call"), [(-514, 3), (-514, NONE), (-4, 3), (0, 3), (0, NONE), (7, NONE)])
def test_no_half_written_registers_ask_for_a_call(monkeypatch: pytest.MonkeyPatch, result: int, call: int) -> None:
    """At whichever step torpor dies: in an interrupted call before, and in torpor's code, which was begun with an r2 of 0."""
    kernel = Kernel(monkeypatch, r2=NONE + 1 - 514)
    own = {**REGISTERS.read_general(1), "r2": result & NONE, "system_call": call}
    written: list[int] = []

    def write(tid: int, note: int, data: bytes) -> None:
        written.append(note)
        kernel.sets[note] = data

    monkeypatch.setattr(ptrace, "set_regset", write)
    REGISTERS.write_general(1, KIND.entered(REGISTERS.read_general(1), 0x7000))
    assert written == [NT_PRSTATUS, NT_S390_SYSTEM_CALL] and REGISTERS.read_general(1)["r2"] == 0
    written.clear()
    REGISTERS.write_general(1, own)
    assert written[-1] == (NT_PRSTATUS if -516 <= result <= -512 else NT_S390_SYSTEM_CALL)
    assert REGISTERS.read_general(1) == own


class Waiting:
    """A thread whose registers issue epoll_pwait2 again."""

    tid, mask = 1, 0xF0

    def __init__(self, length: int) -> None:
        self.regs = KIND.again(interrupted(ERESTARTNOHAND, NUMBERS["epoll_pwait2"], length))


@pytest.mark.parametrize("length", [2, 4])
@pytest.mark.parametrize(("at", "made"), [(0, False), (2, True), (8, True)])
def test_slot_and_back(monkeypatch: pytest.MonkeyPatch, length: int, at: int, made: bool) -> None:
    Kernel(monkeypatch)
    thread, slot = Waiting(length), 0x7000
    code, frame, regs = KIND.to_framed_slot(slot, thread, NUMBERS["epoll_pwait2"], 3_000_000_007)
    assert len(code) <= KIND.slot_size and regs["r15"] % 8 == 0 and regs["r15"] + len(frame) <= thread.regs["r15"]
    assert regs["r5"] == regs["r15"] + len(frame) - 16 and struct.unpack("=qq", frame[-16:]) == (3, 7)
    assert regs["r1"] == NUMBERS["epoll_pwait2"]
    assert {name for name in regs if regs[name] != thread.regs[name]} == {"psw_addr", "r1", "r15", "r5"}
    now = {**regs, "psw_addr": slot + at, "r2": 1 if made else regs["r2"], "svc_length": 2}
    back = KIND.from_slot(code, slot, now, lambda address, count: frame[:count])
    ended = {"psw_addr": SVC + length, "r2": 1 if at == 2 else thread.regs["r2"]}
    assert back == {**thread.regs, **(ended if made else {})}
    assert KIND.from_slot(code, slot, now, lambda address, count: b"") == now


def test_frame_is_what_rt_sigreturn_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offsets of struct rt_sigframe (arch/s390/kernel/signal.c) from the stack pointer with which the code ends."""
    kernel, symbols = Kernel(monkeypatch), KIND.code.symbols
    values: dict[str, Any] = KIND.heal_values({**REGISTERS.read_general(1), "system_call": NONE}, 1) | {"v_mask": 0xAB}
    code = KIND.code.placed(0, 0, values)[symbols["frame"] :]
    context = 160 + 8 + 128  # the save area, an instruction, siginfo
    (flags,) = struct.unpack_from(">I", code, context + 24)
    assert flags & ~0x8000_0003  # no flag of sigaltstack(2) is 0x7ffffffc
    registers = context + 40
    assert struct.unpack_from("=Q", code, registers) == (CC | PSW_WIDTH,)
    assert code[registers + 8 : registers + 18 * 8] == kernel.sets[NT_PRSTATUS][8 : 18 * 8]
    vectors = registers + 18 * 8 + 64 + 8 + 128 + 128
    assert struct.unpack_from("=Q", code, vectors - 128) == (0xAB,)
    # One number each to `placed`, in the byte order of the machine that this runs on.
    for at, data in (
        (registers + 144, kernel.sets[NT_PRSTATUS][144:208]),
        (registers + 208, kernel.sets[NT_PRFPREG][:4]),
        (registers + 216, kernel.sets[NT_PRFPREG][8:]),
        (vectors, kernel.sets[NT_S390_VXRS_LOW]),
        (vectors + 128, kernel.sets[NT_S390_VXRS_HIGH]),
    ):
        assert code[at : at + len(data)] == data
    assert len(code) == vectors + 128 + 256


def test_slot_ends_in_its_frame() -> None:
    code, symbols = KIND.code.placed(0, 0, {}), KIND.code.symbols
    assert code[symbols["call"] : symbols["call"] + 2] == KIND.syscall_instruction[0]
    assert code[symbols["heal"] + 6 : symbols["heal"] + 8] == bytes((0x0A, NUMBERS["rt_sigreturn"]))


class Returning:
    """A thread that is found in the vdso, on its way back into a call, as many times as `found` says."""

    found = 0
    regs = {"psw_addr": 0x7470}

    def __init__(self, process: Any, tid: int, signal: int, seen: None) -> None:
        self.process = process

    def reads_clock(self) -> bool:
        Returning.found -= 1
        return Returning.found >= 0

    def midway(self) -> bool:
        return KIND.midway(self.regs, lambda address, length: {0x7470: b"\x0a\x07"}[address][:length])


@pytest.mark.parametrize("times", [0, 1, 5, 50])
def test_thread_on_its_way_back_into_a_call_is_let_go_until_it_is_there(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    let_go: list[int] = []
    monkeypatch.setattr(freeze, "FrozenThread", Returning)
    monkeypatch.setattr(freeze.FrozenTree, "_seize", lambda self, pid, tid: True)
    monkeypatch.setattr(freeze.FrozenTree, "_stop", lambda self, process, tid: (0, None))
    monkeypatch.setattr(ptrace, "cont", let_go.append)
    process: Any = type("Process", (), {"pid": 1, "arch": KIND})()
    Returning.found = times
    assert isinstance(freeze.FrozenTree()._take(process, 77), Returning)
    assert let_go == [77] * times
    Returning.found = 10**6
    with pytest.raises(Busy, match="going back into a call"):
        freeze.FrozenTree()._take(process, 77)
    assert not KIND.midway({"psw_addr": 0x7474}, lambda address, length: b"\x0a\xad")

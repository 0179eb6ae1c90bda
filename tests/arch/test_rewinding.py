"""Kernels that rewind, on any host: the registers of interrupted calls, which they move back before anybody sees them."""

from __future__ import annotations

import struct
import subprocess
import sys

import pytest

from torpor.arch import arm64, riscv64
from torpor.arch.contract import EINTR, ERESTART_RESTARTBLOCK, ERESTARTNOHAND, ERESTARTSYS
from torpor.arch.rewinding import NONE, SYSCALLS, Rewinding
from torpor.linux import ptrace

CALL_AT, SP = 0x40_0100, 0xFFFF_0000

Registers = dict[str, int]
Seen = tuple[int, tuple[int, ...], int, int]


@pytest.fixture(params=[arm64.KINDS[0], riscv64.KINDS[0]], ids=lambda kind: str(kind.name))
def kind(request: pytest.FixtureRequest) -> Rewinding:
    found: Rewinding = request.param
    return found


def stopped(kind: Rewinding, name: str, *arguments: int, pc: int = CALL_AT, result: int | None = None) -> tuple[Registers, Seen]:
    """(registers at the stop, what was seen before) of a thread in the call `name`."""
    six, general = (*arguments, *[0x55] * (6 - len(arguments))), kind.general
    regs = {name: 0x1000 + index for index, name in enumerate(general.names)}
    regs |= dict(zip((general.result, *kind.arguments[1:]), six, strict=True))
    regs |= {general.number: SYSCALLS[name], general.sp: SP, general.ip: pc}
    if result is not None:
        regs[general.result] = result
    return {**regs, general.original: regs[general.result], "syscallno": NONE}, (SYSCALLS[name], six, SP, CALL_AT + 4)


ERRORS = [
    ("nanosleep", (0x100, 0), ERESTART_RESTARTBLOCK),
    ("clock_nanosleep", (1, 0, 0x100, 0), ERESTART_RESTARTBLOCK),
    ("clock_nanosleep", (1, 1, 0x100, 0), ERESTARTNOHAND),
    ("futex", (0x100, 0, 0, 0x200), ERESTART_RESTARTBLOCK),
    ("futex", (0x100, 0, 0, 0), ERESTARTSYS),
    ("futex", (0x100, 9, 0, 0x200), ERESTARTSYS),
    ("restart_syscall", (0x100,), ERESTART_RESTARTBLOCK),
    ("read", (3, 0x100, 8), ERESTARTSYS),
    ("ppoll", (0x100, 1, 0x200), ERESTARTNOHAND),
    ("epoll_pwait", (5, 0x100, 4, 1000), ERESTARTNOHAND),
]


@pytest.mark.parametrize(("name", "arguments", "error"), ERRORS, ids=[f"{row[0]}-{row[2]}-{n}" for n, row in enumerate(ERRORS)])
def test_interrupted_call_is_recognised_and_made_again(
    kind: Rewinding, name: str, arguments: tuple[int, ...], error: int
) -> None:
    regs, seen = stopped(kind, name, *arguments)
    found, general = kind.looked_at(regs, seen), kind.general
    assert kind.pending_call(found) == (SYSCALLS[name], error)
    assert [found[each] for each in kind.arguments] == list(seen[1])
    assert found[general.ip] == CALL_AT + 4
    back = general.again(found)
    assert (back[general.ip], back[general.result]) == (CALL_AT, arguments[0])
    assert back[general.number] == SYSCALLS["restart_syscall" if error == ERESTART_RESTARTBLOCK else name]
    settled = kind.settled(found)
    assert (settled[general.ip], settled[general.result]) == (CALL_AT, arguments[0])
    assert (settled[general.number], settled["syscallno"]) == (SYSCALLS[name], NONE)
    handled = kind.handled(found, True)
    assert kind.pending_call(handled) == (kind.pending_call(found) if error == ERESTARTSYS else None)
    assert kind.signed(kind.handled(found, False)[general.result]) == -EINTR


def test_call_that_any_stop_ends_gets_its_argument_back(kind: Rewinding) -> None:
    general = kind.general
    regs, seen = stopped(kind, "epoll_pwait", 5, 0x100, 4, 1000, pc=CALL_AT + 4, result=NONE + 1 - EINTR)
    found = kind.looked_at(regs, seen)
    assert kind.pending_call(found) == (SYSCALLS["epoll_pwait"], EINTR)
    made = kind.again(found)
    assert (made[general.result], made[general.number]) == (5, SYSCALLS["epoll_pwait"])
    assert (made[general.ip], made["syscallno"]) == (CALL_AT, NONE)
    assert kind.handled(made, True, again=True) == {**made, general.result: NONE + 1 - EINTR, general.ip: CALL_AT + 4}


@pytest.mark.parametrize("change", ["second", "last", "number", "sp", "ip"])
def test_thread_that_has_gone_on_is_in_no_call(kind: Rewinding, change: str) -> None:
    regs, seen = stopped(kind, "nanosleep", 0x100, 0)
    name = {"second": kind.arguments[1], "last": kind.arguments[-1]}.get(change) or getattr(kind.general, change)
    regs[name] += 16
    assert kind.looked_at(regs, seen) == regs
    assert kind.looked_at(regs, None) == regs
    assert kind.pending_call(regs) is None


def test_registers_are_written_as_they_must_go_on(kind: Rewinding, monkeypatch: pytest.MonkeyPatch) -> None:
    regs, seen = stopped(kind, "read", 3, 0x100, 8)
    general, sets = kind.general, kind.registers

    def block(regs: Registers) -> bytes:
        return general.layout.pack(*[regs[name] for name in general.names])

    written: list[bytes] = []
    monkeypatch.setattr(ptrace, "get_regset", lambda tid, note: block(regs))
    monkeypatch.setattr(ptrace, "set_regset", lambda tid, note, data: written.append(data))
    found = kind.looked_at(sets.read_general(1), seen)
    sets.write_general(1, found)
    assert written == [block(regs)]  # as the kernel would have let it go on
    ended = block({**regs, general.result: NONE + 1 - EINTR, general.ip: CALL_AT + 4})
    monkeypatch.setattr(ptrace, "get_regset", lambda tid, note: ended)
    sets.restart_ended(1, {SYSCALLS["read"]}, seen)
    assert written == [block(regs), block(regs)]
    sets.restart_ended(1, {SYSCALLS["write"]}, seen)
    sets.restart_ended(1, {SYSCALLS["read"]}, (*seen[:2], SP + 16, seen[3]))
    assert len(written) == 2


def test_general_registers_as_record_and_back(kind: Rewinding) -> None:
    found = kind.looked_at(*stopped(kind, "read", 3, 0x100, 8))
    assert kind.registers.general_dict(kind.registers.general_record(found)) == found
    made_up = {**found, "syscallno": 5000, kind.general.result: 7}  # a program may call what there is not
    assert kind.registers.general_dict(kind.registers.general_record(made_up))["syscallno"] == NONE


class Waiting:
    """A thread whose registers issue epoll_pwait2 again."""

    tid, mask = 1, 0xF0

    def __init__(self, kind: Rewinding) -> None:
        self.regs, _ = stopped(kind, "epoll_pwait2", 5, 0x100, 4, 0x2000, 0, 8)
        if kind.flags:
            self.regs[kind.flags] = 0x8000_0000


@pytest.mark.parametrize(("at", "pc"), [(0, CALL_AT), (4, CALL_AT + 4), (8, CALL_AT + 4), (12, CALL_AT + 4)])
def test_slot_and_back(kind: Rewinding, monkeypatch: pytest.MonkeyPatch, at: int, pc: int) -> None:
    thread, slot, general = Waiting(kind), 0x7000, kind.general
    floats = {"aarch64": bytes(range(256)) * 2 + bytes(16), "riscv64": bytes(range(256)) + bytes(8)}[kind.name]
    monkeypatch.setattr(ptrace, "get_regset", lambda tid, note: floats)
    code, frame, regs = kind.to_framed_slot(slot, thread, SYSCALLS["epoll_pwait2"], 3_000_000_007)
    start, limit, result = regs[general.sp], kind.arguments[3], general.result
    memory = {start: frame}
    assert len(code) == kind.slot_size and start % 16 == 0 and start + len(frame) <= thread.regs[general.sp]
    assert regs[limit] == start + len(frame) - 16 and struct.unpack("=qq", frame[-16:]) == (3, 7)
    assert {name for name in regs if regs[name] != thread.regs[name]} == {general.ip, general.sp, limit}
    now = {**regs, general.ip: slot + at, result: regs[result] if at == 0 else 1}
    back = kind.from_slot(code, slot, now, lambda address, length: memory[address][:length])
    assert back == {**thread.regs, general.ip: pc, result: 1 if at == 4 else thread.regs[result]}
    assert kind.from_slot(code, slot, now, lambda address, length: b"") == now


def test_frame_of_aarch64_is_what_rt_sigreturn_reads() -> None:
    """Offsets of struct rt_sigframe (arch/arm64/kernel/signal.c) from the stack pointer with which the code ends."""
    arch = arm64.KINDS[0]
    symbols, code = arch.code.symbols, arch.code.placed(0, 0, {"v_mask": 0xAB, "r_x0": 1, "r_x30": 2, "r_sp": 3, "r_pc": 4})
    frame = symbols["frame"]
    assert frame % 16 == 0
    flags, mask = struct.unpack_from("<I", code, frame + 152)[0], struct.unpack_from("<Q", code, frame + 168)[0]
    assert flags & ~0x8000_0003 and mask == 0xAB  # no flag of sigaltstack(2) is 0x7ffffffc
    assert struct.unpack_from("<Q", code, frame + 312) == (1,)
    assert struct.unpack_from("<QQQ", code, frame + 312 + 8 * 30) == (2, 3, 4)
    assert struct.unpack_from("<II", code, frame + 592) == (0x46508001, 528)
    assert struct.unpack_from("<II", code, frame + 592 + 528) == (0, 0)
    assert len(code) == frame + 592 + 528 + 8
    assert code[symbols["call"] : symbols["call"] + 4] == arch.syscall_instruction[0]


def test_frame_of_riscv64_is_what_rt_sigreturn_reads() -> None:
    """Offsets of struct rt_sigframe (arch/riscv/kernel/signal.c) from the stack pointer with which the code ends."""
    arch = riscv64.KINDS[0]
    values = {"v_mask": 0xAB, "r_pc": 1, "r_sp": 2, "r_a0": 3, "r_t6": 4, "v_f": 0xCD, "v_fcsr": 5}
    symbols, code = arch.code.symbols, arch.code.placed(0, 0, values)
    frame = -arch.frame_front
    assert symbols["frame"] == 0 and frame % 16 == 0
    assert struct.unpack_from("<I", code, frame + 152)[0] & ~0x8000_0003  # no flag of sigaltstack(2)
    assert struct.unpack_from("<Q", code, frame + 168) == (0xAB,)
    registers = struct.unpack_from("<32Q", code, frame + 304)
    assert [registers[arch.general.names.index(name)] for name in ("pc", "sp", "a0", "t6")] == [1, 2, 3, 4]
    assert struct.unpack_from("<Q", code, frame + 560) == (0xCD,) and struct.unpack_from("<I", code, frame + 816) == (5,)
    assert code[frame + 1076 : frame + 1088] == bytes(12)  # reserved, and the last header
    assert len(code) == frame + 1088
    assert code[symbols["call"] : symbols["call"] + 4] == arch.syscall_instruction[0]


def test_other_families_are_imported_when_they_are_needed() -> None:
    program = (
        "import sys; from torpor import arch; from torpor.image.record import class_of; "
        "other = {4: 'arm64', 2: 'x86'}; "
        "wanted = next(number for number, name in other.items() if 'torpor.arch.' + name not in sys.modules); "
        "assert class_of({4: 0x1100, 2: 0x1000}[wanted] | 1 << 31).__name__.endswith('General' if wanted == 4 else 'General64');"
        "assert arch.by_image_id(wanted) not in arch.KINDS; assert arch.by_image_id(77) is None"
    )
    subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": ":".join(sys.path)}, check=True)

"""AArch64 on any host: the registers of interrupted calls, which the kernel moves back before anybody sees them."""

from __future__ import annotations

import struct
import subprocess
import sys

import pytest

from torpor.arch.arm64 import KINDS
from torpor.arch.arm64.registers import GENERAL, Arm64Registers
from torpor.arch.contract import EINTR, ERESTART_RESTARTBLOCK, ERESTARTNOHAND, ERESTARTSYS
from torpor.arch.rewinding import NONE
from torpor.linux import ptrace

KIND = KINDS[0]
SVC, SP = 0x40_0100, 0xFFFF_0000
NUMBERS = KIND.syscalls
NAMES, again = GENERAL.names, GENERAL.again


Seen = tuple[int, tuple[int, ...], int, int]


def stopped(name: str, *arguments: int, pc: int = SVC, x0: int | None = None) -> tuple[dict[str, int], Seen]:
    """(registers at the stop, what was seen before) of a thread in the call `name`."""
    six = (*arguments, *[0x55] * (6 - len(arguments)))
    regs = {name: 0x1000 + index for index, name in enumerate(NAMES)}
    regs |= {f"x{n}": value for n, value in enumerate(six)} | {"x8": NUMBERS[name], "sp": SP, "pc": pc}
    if x0 is not None:
        regs["x0"] = x0
    return {**regs, "orig_x0": regs["x0"], "syscallno": NONE}, (NUMBERS[name], six, SP, SVC + 4)


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
def test_interrupted_call_is_recognised_and_made_again(name: str, arguments: tuple[int, ...], error: int) -> None:
    regs, seen = stopped(name, *arguments)
    found = KIND.looked_at(regs, seen)
    assert KIND.pending_call(found) == (NUMBERS[name], error)
    assert [found[each] for each in KIND.arguments] == list(seen[1])
    assert found["pc"] == SVC + 4
    back = again(found)
    assert (back["pc"], back["x0"]) == (SVC, arguments[0])
    assert back["x8"] == (NUMBERS["restart_syscall"] if error == ERESTART_RESTARTBLOCK else NUMBERS[name])
    settled = KIND.settled(found)
    assert (settled["pc"], settled["x0"], settled["x8"], settled["syscallno"]) == (SVC, arguments[0], NUMBERS[name], NONE)
    handled = KIND.handled(found, True)
    assert KIND.pending_call(handled) == (KIND.pending_call(found) if error == ERESTARTSYS else None)
    assert KIND.signed(KIND.handled(found, False)["x0"]) == -EINTR


def test_call_that_any_stop_ends_gets_its_argument_back() -> None:
    regs, seen = stopped("epoll_pwait", 5, 0x100, 4, 1000, pc=SVC + 4, x0=NONE + 1 - EINTR)
    found = KIND.looked_at(regs, seen)
    assert KIND.pending_call(found) == (NUMBERS["epoll_pwait"], EINTR)
    made = KIND.again(found)
    assert (made["x0"], made["x8"], made["pc"], made["syscallno"]) == (5, NUMBERS["epoll_pwait"], SVC, NONE)
    assert KIND.handled(made, True, again=True) == {**made, "x0": NONE + 1 - EINTR, "pc": SVC + 4}


@pytest.mark.parametrize("change", ["x1", "x5", "x8", "sp", "pc"])
def test_thread_that_has_gone_on_is_in_no_call(change: str) -> None:
    regs, seen = stopped("nanosleep", 0x100, 0)
    regs[change] += 16
    assert KIND.looked_at(regs, seen) == regs
    assert KIND.looked_at(regs, None) == regs
    assert KIND.pending_call(regs) is None


def test_registers_are_written_as_they_must_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    regs, seen = stopped("read", 3, 0x100, 8)
    block = GENERAL.layout.pack(*[regs[name] for name in NAMES])
    written: list[bytes] = []
    monkeypatch.setattr(ptrace, "get_regset", lambda tid, note: block)
    monkeypatch.setattr(ptrace, "set_regset", lambda tid, note, data: written.append(data))
    sets = Arm64Registers()
    found = KIND.looked_at(sets.read_general(1), seen)
    sets.write_general(1, found)
    assert written == [block]  # as the kernel would have let it go on
    ended = GENERAL.layout.pack(*[{**regs, "x0": NONE + 1 - EINTR, "pc": SVC + 4}[name] for name in NAMES])
    monkeypatch.setattr(ptrace, "get_regset", lambda tid, note: ended)
    sets.restart_ended(1, {NUMBERS["read"]}, seen)
    assert written == [block, block]
    sets.restart_ended(1, {NUMBERS["write"]}, seen)
    sets.restart_ended(1, {NUMBERS["read"]}, (*seen[:2], SP + 16, seen[3]))
    assert len(written) == 2


class Waiting:
    """A thread whose registers issue epoll_pwait2 again."""

    tid, mask = 1, 0xF0

    def __init__(self) -> None:
        self.regs, _ = stopped("epoll_pwait2", 5, 0x100, 4, 0x2000, 0, 8)
        self.regs["pstate"] = 0x8000_0000


@pytest.mark.parametrize(("at", "pc"), [(0, SVC), (4, SVC + 4), (8, SVC + 4), (12, SVC + 4)])
def test_slot_and_back(monkeypatch: pytest.MonkeyPatch, at: int, pc: int) -> None:
    thread, slot = Waiting(), 0x7000
    monkeypatch.setattr(ptrace, "get_regset", lambda tid, note: bytes(range(256)) * 2 + bytes(16))
    code, frame, regs = KIND.to_framed_slot(slot, thread, NUMBERS["epoll_pwait2"], 3_000_000_007)
    memory = {regs["sp"]: frame}
    assert len(code) == KIND.slot_size and regs["sp"] % 16 == 0 and regs["sp"] + len(frame) <= thread.regs["sp"]
    assert regs["x3"] == regs["sp"] + len(frame) - 16 and struct.unpack("=qq", frame[-16:]) == (3, 7)
    assert {name for name in regs if regs[name] != thread.regs[name]} == {"pc", "sp", "x3"}
    now = {**regs, "pc": slot + at, "x0": regs["x0"] if at == 0 else 1}
    back = KIND.from_slot(code, slot, now, lambda address, length: memory[address][:length])
    assert back == {**thread.regs, "pc": pc, "x0": 1 if at == 4 else thread.regs["x0"]}
    assert KIND.from_slot(code, slot, now, lambda address, length: b"") == now


def test_frame_is_what_rt_sigreturn_reads() -> None:
    """Offsets of struct rt_sigframe (arch/arm64/kernel/signal.c) from the stack pointer with which the code ends."""
    symbols, code = KIND.code.symbols, KIND.code.placed(0, 0, {"v_mask": 0xAB, "r_x0": 1, "r_x30": 2, "r_sp": 3, "r_pc": 4})
    frame = symbols["frame"]
    assert frame % 16 == 0
    flags, mask = struct.unpack_from("<I", code, frame + 152)[0], struct.unpack_from("<Q", code, frame + 168)[0]
    assert flags & ~0x8000_0003 and mask == 0xAB  # no flag of sigaltstack(2) is 0x7ffffffc
    assert struct.unpack_from("<Q", code, frame + 312) == (1,)
    assert struct.unpack_from("<QQQ", code, frame + 312 + 8 * 30) == (2, 3, 4)
    assert struct.unpack_from("<II", code, frame + 592) == (0x46508001, 528)
    assert struct.unpack_from("<II", code, frame + 592 + 528) == (0, 0)
    assert len(code) == frame + 592 + 528 + 8
    assert code[symbols["call"] : symbols["call"] + 4] == KIND.syscall_instruction[0]


def test_other_families_are_imported_when_they_are_needed() -> None:
    program = (
        "import sys; from torpor import arch; from torpor.image.record import class_of; "
        "other = {4: 'arm64', 2: 'x86'}; "
        "wanted = next(number for number, name in other.items() if 'torpor.arch.' + name not in sys.modules); "
        "assert class_of({4: 0x1100, 2: 0x1000}[wanted] | 1 << 31).__name__.endswith('General' if wanted == 4 else 'General64');"
        "assert arch.by_image_id(wanted) not in arch.KINDS; assert arch.by_image_id(77) is None"
    )
    subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": ":".join(sys.path)}, check=True)

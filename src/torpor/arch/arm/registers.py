"""The registers of a stopped 32-bit ARM thread: read into records, and written from them (R-C4).

`state.py` declares the records, `rules.py` says what they may hold. Here are the register sets between them and a task.

Source: arch/arm/kernel/ptrace.c, and aarch32_ptrace_regsets in arch/arm64/kernel/ptrace.c: a 64-bit tracer sees the same sets.
"""

from __future__ import annotations

import ctypes
import os
import struct

from torpor.arch.arm import cpu
from torpor.arch.arm.rules import CPSR, JAZELLE, NONE, RULES, THUMB, USER_MODE
from torpor.arch.arm.state import STATE_OF, ArmGeneral, ArmTls, ArmVfp, ArmVfpHigh
from torpor.arch.contract import EINTR, ERESTART_RESTARTBLOCK
from torpor.arch.regsets import Regsets, get
from torpor.arch.rules import CALL_LIMIT, asks_again
from torpor.errors import Obstacle, Unsupported
from torpor.linux import libc, ptrace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from torpor.arch.contract import Seen
    from torpor.image.record import Record

# elf.h. Not NT_PRFPREG: writing that set of an emulated coprocessor harms 32-bit kernels.
NT_PRSTATUS, NT_ARM_VFP, NT_ARM_TLS, NT_ARM_HW_BREAK, NT_ARM_HW_WATCH = 1, 0x400, 0x401, 0x402, 0x403
# asm/ptrace.h, of 32-bit kernels
_GETWMMXREGS, _GET_THREAD_AREA, _GETHBPREGS = 18, 22, 29

GENERAL = struct.Struct("=18I")
VFP = struct.Struct("=128s128sI")
_BREAK_ENTRY = struct.Struct("=QI4x")  # address, control; behind 8 bytes of what the hardware is

NAMES = tuple(field.name for field in ArmGeneral.declared)
KEPT = NAMES[:18]
"""Those that the kernel has: r0 to pc, cpsr, orig_r0."""
FRAMED = NAMES[:16]
"""Those that a signal frame has one after the other; cpsr follows them."""
RESTART_SYSCALL = 0

_ptrace = libc.function("ptrace", ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


def _word(request: int, tid: int, at: int | None = None) -> int:
    """The word that one of the requests of 32-bit kernels answers with."""
    answer = (ctypes.c_uint32 * 64)()
    if _ptrace(request, tid, at, ctypes.addressof(answer)) == -1:
        error = ctypes.get_errno()
        raise OSError(error, f"ptrace({request}, {tid}): {os.strerror(error)}")
    return answer[0]


def width(regs: Mapping[str, int]) -> int:
    """Bytes of the instruction that makes a system call, in the code that a thread runs."""
    return 2 if regs["cpsr"] & THUMB else 4


class ArmRegisters(Regsets):
    """The register records of 32-bit threads, on a kernel of either width.

    Every method that takes `tid` needs that thread to be in a ptrace stop of the calling thread, and raises OSError.
    """

    __slots__ = ()
    general, generals, word, ip, call = ArmGeneral, (ArmGeneral,), 4, "pc", "syscallno"
    states, rules = STATE_OF, RULES

    # General registers.

    def read_general(self, tid: int) -> dict[str, int]:
        """The general registers by name; that the thread is in a call is not among what they tell (`Arm.looked_at`).

        At the first instruction of a signal handler in Thumb code the arm64 kernel shows its address with the bit that says so.
        """
        regs = dict(zip(NAMES, (*GENERAL.unpack(ptrace.get_regset(tid, NT_PRSTATUS)), NONE), strict=True))
        if regs["cpsr"] & THUMB:
            regs["pc"] &= ~1
        return regs

    def write_general(self, tid: int, regs: Mapping[str, int]) -> None:
        """Set the general registers, with which an interrupted call is made again: the kernel will not do it any more."""
        self._write(tid, again(regs) if regs["syscallno"] != NONE else regs)

    def write_at_end(self, tid: int, regs: Mapping[str, int]) -> None:
        """The same in the stop at the end of a call: as if it had been the interrupted one, which the kernel makes again."""
        self._write(tid, regs)

    def _write(self, tid: int, regs: Mapping[str, int]) -> None:
        regs = {**regs, "cpsr": regs["cpsr"] & CPSR | USER_MODE}
        ptrace.set_regset(tid, NT_PRSTATUS, GENERAL.pack(*[regs[name] for name in KEPT]))

    def restart_ended(self, tid: int, calls: AbstractSet[int], seen: Seen | None) -> None:
        """Where a stop has ended one of `calls` with EINTR, let the thread make it again."""
        if seen is None or seen[0] not in calls:
            return
        regs = self.read_general(tid)
        if regs["r0"] == NONE + 1 - EINTR and regs["pc"] == seen[3] and regs["sp"] == seen[2]:
            self._write(tid, {**regs, "r0": seen[1][0], "pc": regs["pc"] - width(regs)})

    def general_record(self, regs: Mapping[str, int]) -> ArmGeneral:
        """The record of these general registers; a call that no kernel knows, as programs make them, is none."""
        if regs["syscallno"] >= CALL_LIMIT and regs["syscallno"] != NONE and not asks_again(regs["r0"], 4):
            regs = {**regs, "syscallno": NONE}
        return ArmGeneral(**{**regs, "cpsr": regs["cpsr"] & CPSR | USER_MODE})

    def general_dict(self, record: Record) -> dict[str, int]:
        """The general registers in a record."""
        return {name: getattr(record, name) for name in NAMES}

    # The other records.

    def read(self, tid: int) -> list[Record]:
        """Every register record of a thread whose state is not the one a program starts with, in the order of their bits.

        Raises Unsupported for state that torpor knows no record for.
        """
        regs = self.read_general(tid)
        if name := _unsaved(tid, regs):
            raise Unsupported(
                Obstacle(f"thread {tid}", f"it uses {name}, which torpor cannot save", "take a checkpoint when it does not")
            )
        records: list[Record] = [self.general_record(regs)]
        if pointer := self._thread_pointer(tid):
            records.append(ArmTls(tp=pointer))
        if data := get(tid, NT_ARM_VFP):
            low, high, fpscr = VFP.unpack(data)
            if any(low) or fpscr:
                records.append(ArmVfp(d=low, fpscr=fpscr))
            if any(high):
                records.append(ArmVfpHigh(d=high))
        return records

    def _thread_pointer(self, tid: int) -> int:
        if libc.WIDE_KERNEL:
            return int(struct.unpack_from("=I", ptrace.get_regset(tid, NT_ARM_TLS))[0])
        return _word(_GET_THREAD_AREA, tid)

    def write(self, tid: int, records: Sequence[Record]) -> None:
        """Set everything but the general registers and the thread pointer (`Arch.own_calls`); what has no record is put at rest."""
        given = {type(record): record for record in records}
        low, high = given.get(ArmVfp), given.get(ArmVfpHigh)
        if get(tid, NT_ARM_VFP):
            d, fpscr = (low.d, low.fpscr) if isinstance(low, ArmVfp) else (bytes(128), 0)
            upper = high.d if isinstance(high, ArmVfpHigh) else bytes(128)
            ptrace.set_regset(tid, NT_ARM_VFP, VFP.pack(d, upper, fpscr))



def again(regs: Mapping[str, int]) -> Mapping[str, int]:
    """What an interrupted call leaves behind when it is to be made again: by its number, or by restart_syscall(2).

    Source: arch/arm64/kernel/signal.c, do_signal() and compat_setup_restart_syscall(), which leaves its number in r7. A
    32-bit kernel makes the call again without going back to the program; `write_at_end` lets it.
    """
    error = NONE + 1 - regs["r0"]
    if not asks_again(regs["r0"], 4):
        return regs
    number = RESTART_SYSCALL if error == ERESTART_RESTARTBLOCK else regs["syscallno"]
    return {**regs, "r0": regs["orig_r0"], "r7": number, "pc": regs["pc"] - width(regs)}


def _unsaved(tid: int, regs: Mapping[str, int]) -> str:
    """What of a thread's state has no record and is in use, or nothing."""
    if regs["cpsr"] & JAZELLE:
        return "Jazelle or ThumbEE code"
    if libc.WIDE_KERNEL:
        for note, name in ((NT_ARM_HW_BREAK, "hardware breakpoints"), (NT_ARM_HW_WATCH, "hardware watchpoints")):
            data = get(tid, note)[8:]
            if any(control & 1 for _, control in _BREAK_ENTRY.iter_unpack(data[: len(data) // 16 * 16])):
                return name
        return ""
    hardware = _word(_GETHBPREGS, tid, 0)
    for sign, count, name in ((1, hardware & 0xFF, "hardware breakpoints"), (-1, hardware >> 8 & 0xFF, "hardware watchpoints")):
        if any(_word(_GETHBPREGS, tid, sign * 2 * (index + 1)) & 1 for index in range(count)):
            return name
    if "iwmmxt" in cpu.header().features.split():
        try:
            _word(_GETWMMXREGS, tid)
        except OSError:
            return ""
        return "the registers of iWMMXt"
    return ""


REGISTERS = ArmRegisters()

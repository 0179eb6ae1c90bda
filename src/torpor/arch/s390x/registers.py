"""The registers of a stopped s390x thread: read into records, and written from them.

`state.py` declares the records, `rules.py` says what they may hold. Here are the register sets between them and a task.

Not saved, because nothing is lost: a transaction (its interruption has aborted it, and the program goes on where it handles
that), and the address of the last branch, which is for debuggers.

Source: arch/s390/kernel/ptrace.c (s390_regsets), asm/ptrace.h (s390_regs), elf.h.
"""

from __future__ import annotations

import struct

from torpor.arch.contract import EINTR, ERESTARTNOHAND
from torpor.arch.regsets import Regsets, get
from torpor.arch.rules import CALL_LIMIT, asks_again
from torpor.arch.s390x.rules import NONE, PSW_KEPT, PSW_SPACE, PSW_WIDTH, RULES
from torpor.arch.s390x.state import STATE_OF, S390xAccess, S390xFloat, S390xGeneral, S390xVectorHigh, S390xVectorLow
from torpor.errors import Obstacle, Unsupported
from torpor.linux import ptrace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from torpor.arch.contract import Seen
    from torpor.image.record import Record

# elf.h
NT_PRSTATUS, NT_PRFPREG = 1, 2
NT_S390_SYSTEM_CALL, NT_S390_VXRS_LOW, NT_S390_VXRS_HIGH = 0x307, 0x309, 0x30A
NT_S390_GS_CB, NT_S390_GS_BC, NT_S390_RI_CB = 0x30B, 0x30C, 0x30D

GENERAL = struct.Struct("=18Q")
"""At the beginning of NT_PRSTATUS: the program status word, r0 to r15. Then come the access registers and orig_gpr2."""
ACCESS = struct.Struct("=16I")
_ACCESS_AT, _ORIGINAL_AT = GENERAL.size, GENERAL.size + ACCESS.size
FLOAT = struct.Struct("=I4x16Q")
"""struct s390_fp_regs: the control register, f0 to f15."""
_LOW = struct.Struct("=16Q")

NAMES = tuple(field.name for field in S390xGeneral.declared)
KEPT = NAMES[:18]
"""The program status word, r0 to r15."""
_RESULT, _ORIGINAL = "r2", "orig_gpr2"
SVC = 2
"""Bytes of the instruction that makes a call."""


class S390xRegisters(Regsets):
    """The register records of 64-bit threads.

    Every method that takes `tid` needs that thread to be in a ptrace stop of the calling thread, and raises OSError.
    """

    __slots__ = ()
    general, generals, word, ip, call = S390xGeneral, (S390xGeneral,), 8, "psw_addr", "system_call"
    states, rules = STATE_OF, RULES

    # General registers.

    def read_general(self, tid: int) -> dict[str, int]:
        """The general registers by name."""
        data = ptrace.get_regset(tid, NT_PRSTATUS)
        regs = dict(zip(KEPT, GENERAL.unpack_from(data), strict=True))
        regs["psw_mask"] &= PSW_KEPT
        (regs[_ORIGINAL],) = struct.unpack_from("=Q", data, _ORIGINAL_AT)
        length, number = struct.unpack("=HH", ptrace.get_regset(tid, NT_S390_SYSTEM_CALL))  # one number, high half first
        regs["system_call"] = number if length else NONE
        regs["svc_length"] = length or SVC
        return regs

    def write_general(self, tid: int, regs: Mapping[str, int]) -> None:
        """Set the general registers. Of the program status word only what programs can set; the rest is the kernel's.

        In two steps, between which torpor may die: so the registers with an r2 like -ERESTART* come last, and all others first.
        Those with which torpor's code begins, and those in which it stops, have no such r2.
        """
        data = bytearray(ptrace.get_regset(tid, NT_PRSTATUS))
        mask = GENERAL.unpack_from(data)[0] & ~PSW_KEPT | regs["psw_mask"]
        GENERAL.pack_into(data, 0, mask, *[regs[name] for name in KEPT[1:]])
        struct.pack_into("=Q", data, _ORIGINAL_AT, regs[_ORIGINAL])
        call = bytes(4) if regs["system_call"] == NONE else struct.pack("=HH", regs["svc_length"], regs["system_call"])
        steps = [(NT_PRSTATUS, bytes(data)), (NT_S390_SYSTEM_CALL, call)]
        for note, block in reversed(steps) if asks_again(regs[_RESULT], 8) else steps:
            ptrace.set_regset(tid, note, block)

    def restart_ended(self, tid: int, calls: AbstractSet[int], seen: Seen | None) -> None:
        """Where a stop has ended one of `calls` with EINTR, have the kernel restart it as it does pause(2)."""
        if struct.unpack("=HH", ptrace.get_regset(tid, NT_S390_SYSTEM_CALL))[1] in calls:
            regs = self.read_general(tid)
            if regs["system_call"] in calls and regs[_RESULT] == NONE + 1 - EINTR:
                self.write_general(tid, {**regs, _RESULT: NONE + 1 - ERESTARTNOHAND})

    def general_record(self, regs: Mapping[str, int]) -> S390xGeneral:
        """The record of these general registers; a call that no kernel knows, as programs make them, is none."""
        if regs["system_call"] >= CALL_LIMIT and regs["system_call"] != NONE and not asks_again(regs[_RESULT], 8):
            regs = {**regs, "system_call": NONE}
        return S390xGeneral(**regs)

    def general_dict(self, record: Record) -> dict[str, int]:
        """The general registers in a record."""
        return {name: getattr(record, name) for name in NAMES}

    # All of them.

    def read(self, tid: int) -> list[Record]:
        """Every register record of a stopped thread in ascending bit order, the general one first.

        Raises Unsupported for state that this version of torpor knows no record for.
        """
        if name := _unsaved(tid):
            raise Unsupported(
                Obstacle(f"thread {tid}", f"it uses {name}, which torpor cannot save", "take a checkpoint when it does not")
            )
        records: list[Record] = [self.general_record(self.read_general(tid))]
        acrs = ACCESS.unpack_from(ptrace.get_regset(tid, NT_PRSTATUS), _ACCESS_AT)
        if any(acrs):
            records.append(S390xAccess(acrs=list(acrs)))
        fpc, *fprs = FLOAT.unpack(ptrace.get_regset(tid, NT_PRFPREG))
        if fpc or any(fprs):
            records.append(S390xFloat(fpc=fpc, fprs=fprs))
        low, high = get(tid, NT_S390_VXRS_LOW), get(tid, NT_S390_VXRS_HIGH)
        if any(low):
            records.append(S390xVectorLow(vxrs=list(_LOW.unpack(low))))
        if any(high):
            records.append(S390xVectorHigh(vxrs=high))
        return records

    def write(self, tid: int, records: Sequence[Record]) -> None:
        """Set everything but the general registers; what has no record is put at rest. `write_general` comes after."""
        given = {type(record): record for record in records}
        access, vector = given.get(S390xAccess), given.get(S390xFloat)
        low, high = given.get(S390xVectorLow), given.get(S390xVectorHigh)
        data = bytearray(ptrace.get_regset(tid, NT_PRSTATUS))
        ACCESS.pack_into(data, _ACCESS_AT, *(access.acrs if isinstance(access, S390xAccess) else [0] * 16))
        ptrace.set_regset(tid, NT_PRSTATUS, bytes(data))
        fpc, fprs = (vector.fpc, vector.fprs) if isinstance(vector, S390xFloat) else (0, [0] * 16)
        ptrace.set_regset(tid, NT_PRFPREG, FLOAT.pack(fpc, *fprs))
        if get(tid, NT_S390_VXRS_LOW):
            lower = low.vxrs if isinstance(low, S390xVectorLow) else [0] * 16
            ptrace.set_regset(tid, NT_S390_VXRS_LOW, _LOW.pack(*lower))
            ptrace.set_regset(tid, NT_S390_VXRS_HIGH, high.vxrs if isinstance(high, S390xVectorHigh) else bytes(256))



def _unsaved(tid: int) -> str:
    """What of a thread's state has no record and is in use, or nothing."""
    (mask,) = struct.unpack_from("=Q", ptrace.get_regset(tid, NT_PRSTATUS))
    if mask & PSW_SPACE:
        return "access-register or secondary-space mode"
    if mask & PSW_WIDTH != PSW_WIDTH:
        return "addresses of 31 or 24 bits"
    if get(tid, NT_S390_GS_CB) or get(tid, NT_S390_GS_BC):
        return "guarded storage"
    return "runtime instrumentation" if get(tid, NT_S390_RI_CB) else ""


REGISTERS = S390xRegisters()

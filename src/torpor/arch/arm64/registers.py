"""The registers of a stopped AArch64 thread: read into records, and written from them.

`state.py` declares the records, `rules.py` says what they may hold. Here are the register sets between them and a task.

Source: arch/arm64/kernel/ptrace.c (aarch64_regsets), elf.h.
"""

from __future__ import annotations

import struct

from torpor.arch.arm64 import cpu
from torpor.arch.arm64.rules import RULES
from torpor.arch.arm64.state import (
    STATE_OF,
    Arm64AddressKeys,
    Arm64EnabledKeys,
    Arm64General,
    Arm64GenericKey,
    Arm64Sve,
    Arm64TaggedAddresses,
    Arm64Tls,
    Arm64Vector,
)
from torpor.arch.regsets import Regsets, get
from torpor.arch.rewinding import NONE, General
from torpor.arch.rules import CALL_LIMIT, asks_again
from torpor.errors import Obstacle, Unsupported
from torpor.linux import ptrace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torpor.image.record import Record

# elf.h
NT_PRFPREG = 2
NT_ARM_TLS, NT_ARM_HW_BREAK, NT_ARM_HW_WATCH, NT_ARM_SYSTEM_CALL, NT_ARM_SVE = 0x401, 0x402, 0x403, 0x404, 0x405
NT_ARM_PACA_KEYS, NT_ARM_PACG_KEYS, NT_ARM_TAGGED_ADDR_CTRL, NT_ARM_PAC_ENABLED_KEYS = 0x407, 0x408, 0x409, 0x40A
NT_ARM_SSVE, NT_ARM_ZA = 0x40B, 0x40C

VECTOR = struct.Struct("=512sII8x")
"""struct user_fpsimd_state: v0 to v31, fpsr, fpcr."""
_SVE_HEADER = struct.Struct("=IIHHHH")  # size, max_size, vl, max_vl, flags
_SVE_LIVE, _SVE_INHERIT_SHIFT = 1, 1  # flags: the registers are those of SVE; then PR_SVE_VL_INHERIT, PR_SVE_SET_VL_ONEXEC
_BREAK_ENTRY = struct.Struct("=QI4x")  # address, control; behind 8 bytes of what the hardware is

GENERAL = General([field.name for field in Arm64General.declared][:34], ip="pc", sp="sp", result="x0", number="x8")
"""x0 to x30, sp, pc, pstate."""
ALL_KEYS = 15


class Arm64Registers(Regsets):
    """The register records of 64-bit threads.

    Every method that takes `tid` needs that thread to be in a ptrace stop of the calling thread, and raises OSError.
    """

    __slots__ = ()
    general, generals, word, ip, call = Arm64General, (Arm64General,), 8, "pc", "syscallno"
    states, rules = STATE_OF, RULES

    # General registers.

    read_general = staticmethod(GENERAL.read)
    write_general = staticmethod(GENERAL.write)
    restart_ended = staticmethod(GENERAL.restart_ended)

    def general_record(self, regs: Mapping[str, int]) -> Arm64General:
        """The record of these general registers; a call that no kernel knows, as programs make them, is none."""
        if regs["syscallno"] >= CALL_LIMIT and regs["syscallno"] != NONE and not asks_again(regs["x0"], 8):
            regs = {**regs, "syscallno": NONE}
        return Arm64General(**regs)

    def general_dict(self, record: Record) -> dict[str, int]:
        """The general registers in a record."""
        return {name: getattr(record, name) for name in GENERAL.every}

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
        thread_pointers = struct.unpack_from("=QQ", ptrace.get_regset(tid, NT_ARM_TLS).ljust(16, b"\0"))
        if any(thread_pointers):
            records.append(Arm64Tls(tpidr=thread_pointers[0], tpidr2=thread_pointers[1]))
        vectors = ptrace.get_regset(tid, NT_PRFPREG)
        if any(vectors):
            v, fpsr, fpcr = VECTOR.unpack(vectors)
            records.append(Arm64Vector(v=v, fpsr=fpsr, fpcr=fpcr))
        if scalable := get(tid, NT_ARM_SVE):
            size, _, length, _, flags, _ = _SVE_HEADER.unpack_from(scalable)
            live = flags & _SVE_LIVE
            if live or length != self.usual_length() or flags >> _SVE_INHERIT_SHIFT:
                data = scalable[_SVE_HEADER.size : size] if live else b""  # the kernel gives room for the longest, too
                records.append(Arm64Sve(length=length, flags=flags >> _SVE_INHERIT_SHIFT & 3, registers=data))
        for note, record in ((NT_ARM_PACA_KEYS, Arm64AddressKeys), (NT_ARM_PACG_KEYS, Arm64GenericKey)):
            if data := get(tid, note):
                records.append(record(keys=list(struct.unpack(f"={len(data) // 8}Q", data))))
        (control,) = struct.unpack("=Q", get(tid, NT_ARM_TAGGED_ADDR_CTRL) or bytes(8))
        if control:
            records.append(Arm64TaggedAddresses(control=control))
        enabled = get(tid, NT_ARM_PAC_ENABLED_KEYS)
        if enabled and struct.unpack("=Q", enabled) != (ALL_KEYS,):
            records.append(Arm64EnabledKeys(keys=struct.unpack("=Q", enabled)[0]))
        return records

    def write(self, tid: int, records: Sequence[Record]) -> None:
        """Set everything but the general registers; what has no record is put at rest. `write_general` comes after."""
        given = {type(record): record for record in records}
        tls, vector, scalable = given.get(Arm64Tls), given.get(Arm64Vector), given.get(Arm64Sve)
        pointers = struct.pack("=QQ", getattr(tls, "tpidr", 0), getattr(tls, "tpidr2", 0))
        ptrace.set_regset(tid, NT_ARM_TLS, pointers[: len(ptrace.get_regset(tid, NT_ARM_TLS))])
        if isinstance(scalable, Arm64Sve):
            self._write_scalable(tid, scalable)
        if not (isinstance(scalable, Arm64Sve) and scalable.registers):  # which hold the others, too
            v, fpsr, fpcr = (vector.v, vector.fpsr, vector.fpcr) if isinstance(vector, Arm64Vector) else (bytes(512), 0, 0)
            ptrace.set_regset(tid, NT_PRFPREG, VECTOR.pack(v, fpsr, fpcr))
        for note, kind in ((NT_ARM_PACA_KEYS, Arm64AddressKeys), (NT_ARM_PACG_KEYS, Arm64GenericKey)):
            record = given.get(kind)
            # Where there are none a program that signs nothing is welcome (--cpu used).
            if isinstance(record, Arm64AddressKeys | Arm64GenericKey) and get(tid, note):
                ptrace.set_regset(tid, note, struct.pack(f"={len(record.keys)}Q", *record.keys))
        tagged, enabled = given.get(Arm64TaggedAddresses), given.get(Arm64EnabledKeys)
        if isinstance(tagged, Arm64TaggedAddresses):
            ptrace.set_regset(tid, NT_ARM_TAGGED_ADDR_CTRL, struct.pack("=Q", tagged.control))
        if isinstance(enabled, Arm64EnabledKeys):
            ptrace.set_regset(tid, NT_ARM_PAC_ENABLED_KEYS, struct.pack("=Q", enabled.keys))

    def _write_scalable(self, tid: int, record: Arm64Sve) -> None:
        flags = record.flags << _SVE_INHERIT_SHIFT | (_SVE_LIVE if record.registers else 0)
        data = record.registers or bytes(VECTOR.size)
        header = _SVE_HEADER.pack(_SVE_HEADER.size + len(data), 0, record.length, 0, flags, 0)
        ptrace.set_regset(tid, NT_ARM_SVE, header + data)

    def usual_length(self) -> int:
        """Bytes of a scalable vector of a thread that has chosen none."""
        return cpu.header().sve_length

    def dropped_by_calls(self, tid: int) -> bytes:
        """The scalable vectors of a thread that was in the middle of using them: every system call drops them."""
        data = get(tid, NT_ARM_SVE) if self.usual_length() else b""
        return data if data and _SVE_HEADER.unpack_from(data)[4] & _SVE_LIVE else b""

    def give_dropped(self, tid: int, dropped: bytes) -> None:
        """Give back what `dropped_by_calls` has found."""
        ptrace.set_regset(tid, NT_ARM_SVE, dropped)



def _unsaved(tid: int) -> str:
    """What of a thread's state has no record and is in use, or nothing."""
    for note, name in ((NT_ARM_HW_BREAK, "hardware breakpoints"), (NT_ARM_HW_WATCH, "hardware watchpoints")):
        data = get(tid, note)[8:]
        if any(control & 1 for _, control in _BREAK_ENTRY.iter_unpack(data[: len(data) // 16 * 16])):
            return name
    streaming, matrix = get(tid, NT_ARM_SSVE), get(tid, NT_ARM_ZA)
    if (streaming and _SVE_HEADER.unpack_from(streaming)[4] & _SVE_LIVE) or len(matrix) > _SVE_HEADER.size:
        return "the matrix registers of SME"
    (control,) = struct.unpack("=Q", get(tid, NT_ARM_TAGGED_ADDR_CTRL) or bytes(8))
    return "memory tagging (MTE)" if control & ~1 else ""


REGISTERS = Arm64Registers()

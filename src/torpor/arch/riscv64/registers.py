"""The registers of a stopped riscv64 thread: read into records, and written from them.

`state.py` declares the records, `rules.py` says what they may hold. Here are the register sets between them and a task.

Source: arch/riscv/kernel/ptrace.c (riscv_user_regset), elf.h.
"""

from __future__ import annotations

import errno
import os
import struct

from torpor.arch.contract import Room
from torpor.arch.regsets import Regsets, get
from torpor.arch.rewinding import NONE, General
from torpor.arch.riscv64 import cpu
from torpor.arch.riscv64.rules import ILLEGAL, RULES
from torpor.arch.riscv64.state import STATE_OF, VECTOR_LENGTH_MAX, Riscv64Float, Riscv64General, Riscv64Vector
from torpor.arch.rules import CALL_LIMIT, asks_again
from torpor.errors import Obstacle, Unsupported
from torpor.linux import ptrace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torpor.image.record import Record

# elf.h, include/uapi/linux/elf.h
NT_PRFPREG, NT_RISCV_VECTOR, NT_RISCV_TAGGED_ADDR_CTRL, NT_RISCV_USER_CFI = 2, 0x901, 0x902, 0x903

GENERAL = General([field.name for field in Riscv64General.declared][:32], ip="pc", sp="sp", result="a0", number="a7")
FLOAT = struct.Struct("=256sI4x")
"""struct __riscv_d_ext_state: f0 to f31, fcsr."""
VECTOR = struct.Struct("=5Q")
"""struct __riscv_v_regset_state: vstart, vl, vtype, vcsr, vlenb; the registers follow."""
_UNSAVED = {NT_RISCV_TAGGED_ADDR_CTRL: "pointer masking", NT_RISCV_USER_CFI: "a shadow stack or landing pads"}
_OLDEST = (6, 6)
"""Older kernels do not move the registers of an interrupted call back, and keep its first argument to themselves."""

_FIRST_USE = bytes.fromhex("73000000 57f000cc 73001000")
"""ecall; vsetivli zero, 1, e8, m1, ta, ma; ebreak"""
_PR_RISCV_V_SET_CONTROL, _PR_RISCV_V_VSTATE_CTRL_ON = 69, 2


def _vectors(tid: int) -> bytes:
    """The vector registers of a thread that has used them. Raises Unsupported for those that are not of RVV 1.0, or too long."""
    data = get(tid, NT_RISCV_VECTOR)
    if not data:
        return b""
    length = VECTOR.unpack_from(data)[4]
    if length > VECTOR_LENGTH_MAX or "xtheadvector" in cpu.header().features.split():
        which = f"of {length} bytes" if length > VECTOR_LENGTH_MAX else "as they were before RVV 1.0"
        raise Unsupported(Obstacle(f"thread {tid}", f"it uses vector registers {which}, which torpor cannot save"))
    return data[: VECTOR.size + 32 * length]  # the kernel takes all the room that it is given for full


def _write_vectors(tid: int, data: bytes) -> None:
    """Set the vector registers of a thread that has used them."""
    try:
        ptrace.set_regset(tid, NT_RISCV_VECTOR, data)
    except OSError as error:
        vstart, vl, vtype, vcsr, vlenb = VECTOR.unpack_from(data)
        if error.errno != errno.EINVAL or vtype != ILLEGAL:
            raise
        # Newer kernels let no tracer set this type, which a system call leaves behind: then the first that there is.
        ptrace.set_regset(tid, NT_RISCV_VECTOR, VECTOR.pack(vstart, vl, 0, vcsr, vlenb) + data[VECTOR.size :])


class Riscv64Registers(Regsets):
    """The register records of 64-bit threads.

    Every method that takes `tid` needs that thread to be in a ptrace stop of the calling thread, and raises OSError.
    """

    __slots__ = ()
    general, generals, word, ip, call = Riscv64General, (Riscv64General,), 8, "pc", "syscallno"
    states, rules = STATE_OF, RULES

    # General registers.

    read_general = staticmethod(GENERAL.read)
    write_general = staticmethod(GENERAL.write)
    restart_ended = staticmethod(GENERAL.restart_ended)

    def general_record(self, regs: Mapping[str, int]) -> Riscv64General:
        """The record of these general registers; a call that no kernel knows, as programs make them, is none."""
        if regs["syscallno"] >= CALL_LIMIT and regs["syscallno"] != NONE and not asks_again(regs["a0"], 8):
            regs = {**regs, "syscallno": NONE}
        return Riscv64General(**regs)

    def general_dict(self, record: Record) -> dict[str, int]:
        """The general registers in a record."""
        return {name: getattr(record, name) for name in GENERAL.every}

    # All of them.

    def read(self, tid: int) -> list[Record]:
        """The register records of a stopped thread, in the order of the mask: general registers first.

        Raises Unsupported for state that this version of torpor knows no record for.
        """
        _refuse(tid)
        records: list[Record] = [self.general_record(self.read_general(tid))]
        if any(floats := get(tid, NT_PRFPREG)):
            f, fcsr = FLOAT.unpack(floats)
            records.append(Riscv64Float(f=f, fcsr=fcsr))
        if vectors := _vectors(tid):
            vstart, vl, vtype, vcsr, vlenb = VECTOR.unpack_from(vectors)
            registers = vectors[VECTOR.size :]
            records.append(Riscv64Vector(vlenb=vlenb, vcsr=vcsr, vstart=vstart, vl=vl, vtype=vtype, registers=registers))
        return records

    def write(self, tid: int, records: Sequence[Record]) -> None:
        """Set everything but the general registers; what has no record is put at rest. `write_general` comes after.

        Vector registers need the thread to have executed what `room` says.
        """
        given = {type(record): record for record in records}
        floats, vectors = given.get(Riscv64Float), given.get(Riscv64Vector)
        if isinstance(floats, Riscv64Float):
            ptrace.set_regset(tid, NT_PRFPREG, FLOAT.pack(floats.f, floats.fcsr))
        elif any(get(tid, NT_PRFPREG)):
            ptrace.set_regset(tid, NT_PRFPREG, bytes(FLOAT.size))
        if isinstance(vectors, Riscv64Vector):
            v = vectors
            _write_vectors(tid, VECTOR.pack(v.vstart, v.vl, v.vtype, v.vcsr, v.vlenb) + v.registers)

    def dropped_by_calls(self, tid: int) -> bytes:
        """The vector registers of a thread that has used them: every system call drops them."""
        return _vectors(tid)

    def give_dropped(self, tid: int, dropped: bytes) -> None:
        """Give back what `dropped_by_calls` has found."""
        _write_vectors(tid, dropped)

    def room(self, records: Sequence[Record]) -> Room | None:
        """What a thread with vector registers must execute before `write`; None without them.

        The kernel has them only when the thread first uses them (arch/riscv/kernel/vector.c, riscv_v_first_use_handler), and
        that it may must be asked for where /proc/sys/abi/riscv_v_default_allow is 0. That it may not does not hinder here.
        """
        if not any(isinstance(record, Riscv64Vector) for record in records):
            return None
        call = {"a7": 167, "a0": _PR_RISCV_V_SET_CONTROL, "a1": _PR_RISCV_V_VSTATE_CTRL_ON}
        return Room(_FIRST_USE, b"", "t0", call)



def _refuse(tid: int) -> None:
    """Raise Unsupported for what of a thread's state has no record and is in use, and for a kernel that tells too little."""
    major, minor = os.uname().release.replace("-", ".").split(".")[:2]
    if (int(major), int(minor)) < _OLDEST:
        raise Unsupported(
            Obstacle("kernel", f"Linux {major}.{minor} does not tell which system call a thread is in", "use Linux 6.6 or newer")
        )
    for note, name in _UNSAVED.items():
        if any(get(tid, note)[:8]):
            raise Unsupported(
                Obstacle(f"thread {tid}", f"it uses {name}, which torpor cannot save", "take a checkpoint when it does not")
            )


REGISTERS = Riscv64Registers()

"""The register records of riscv64 threads: what each holds, and the one table of their places in the record mask (R-B5).

The image keeps registers by name and explicit width. A record that is missing means the state that every program starts in.

Sources: struct user_regs_struct, __riscv_d_ext_state, __riscv_v_regset_state in asm/ptrace.h; The RISC-V Instruction Set Manual,
volume I, "F" and "V" (fcsr, vtype, vcsr).
"""

from __future__ import annotations

from torpor.arch.masks import State
from torpor.image.fields import address, blob, raw, u8, u16, u32, u64
from torpor.image.record import Record

VECTOR_LENGTH_MAX = 1024
"""Bytes of the longest vector register that is saved: the longest that there are yet. The manual allows 8192."""


class Riscv64General(Record, type=0x1400):
    """The general registers of a 64-bit thread, and which system call they are in.

    The kernel moves the registers of an interrupted call back before anybody can look at them. Here they are as if it had
    not: a0 holds -ERESTART* or -EINTR, pc is behind the instruction, and orig_a0 and syscallno say what was asked for.
    """

    pc: int = address("instruction pointer")
    ra: int = address("return address")
    sp: int = address("stack pointer")
    gp: int = address("global pointer")
    tp: int = address("thread pointer")
    t0: int = address("t0")
    t1: int = address("t1")
    t2: int = address("t2")
    s0: int = address("frame pointer")
    s1: int = address("s1")
    a0: int = address("a0; result of a system call, or -ERESTART* of an interrupted one")
    a1: int = address("a1; second argument")
    a2: int = address("a2; third argument")
    a3: int = address("a3; fourth argument")
    a4: int = address("a4; fifth argument")
    a5: int = address("a5; sixth argument")
    a6: int = address("a6")
    a7: int = address("a7; number of a system call to be made")
    s2: int = address("s2")
    s3: int = address("s3")
    s4: int = address("s4")
    s5: int = address("s5")
    s6: int = address("s6")
    s7: int = address("s7")
    s8: int = address("s8")
    s9: int = address("s9")
    s10: int = address("s10")
    s11: int = address("s11")
    t3: int = address("t3")
    t4: int = address("t4")
    t5: int = address("t5")
    t6: int = address("t6")
    orig_a0: int = address("first argument of the interrupted system call")
    syscallno: int = address("its number, or -1")


class Riscv64Float(Record, type=0x1404):
    """The floating point registers. At rest: all zero."""

    f: bytes = raw(256, "f0 to f31, 8 bytes each")
    fcsr: int = u32("rounding mode and exceptions")


class Riscv64Vector(Record, type=0x1405):
    """The vector registers of a thread that has used them. A system call leaves all bits set in v0 to v31, and no type."""

    vlenb: int = u16("bytes in a vector register")
    vcsr: int = u8("rounding mode and saturation of fixed point numbers")
    vstart: int = u32("element that the next instruction begins with")
    vl: int = u32("elements that an instruction is about")
    vtype: int = u64("type of the elements; bit 63: there is none")
    registers: bytes = blob("v0 to v31, `vlenb` bytes each", max=32 * VECTOR_LENGTH_MAX)


STATES: tuple[State, ...] = (
    State(0, Riscv64General, "", "64-bit registers"),
    State(4, Riscv64Float, "d", "floating point registers"),
    # What all kinds of V have, the embedded ones (Zve*) included.
    State(5, Riscv64Vector, "zve32x", "vector registers (V)"),
)
"""Record type = 0x1400 + bit. A bit never changes its meaning."""

STATE_OF: dict[type[Record], State] = {state.record: state for state in STATES}

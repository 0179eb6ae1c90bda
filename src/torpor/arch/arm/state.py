"""The register records of 32-bit ARM threads: what each holds, and the one table of their places in the record mask (R-B5, R-C4).

The image keeps registers by name and explicit width. A record that is missing means the state that every program starts in.

Sources: struct pt_regs, user_vfp in asm/ptrace.h and asm/user.h; Arm Architecture Reference Manual (ARMv7-A), A2.3 and A2.5.
"""

from __future__ import annotations

from torpor.arch.masks import State
from torpor.image.fields import raw, u32
from torpor.image.record import Record


class ArmGeneral(Record, type=0x1500):
    """The general registers of a 32-bit ARM thread, and which system call it is in.

    The kernel moves the registers of an interrupted call back before anybody can look at them. Here they are as if it had
    not: r0 holds -ERESTART* or -EINTR, pc is behind the instruction, and orig_r0 and syscallno say what was asked for.
    """

    r0: int = u32("r0; result of a system call, or -ERESTART* of an interrupted one")
    r1: int = u32("r1; second argument")
    r2: int = u32("r2; third argument")
    r3: int = u32("r3; fourth argument")
    r4: int = u32("r4; fifth argument")
    r5: int = u32("r5; sixth argument")
    r6: int = u32("r6")
    r7: int = u32("r7; number of a system call to be made")
    r8: int = u32("r8")
    r9: int = u32("r9")
    r10: int = u32("r10")
    fp: int = u32("r11")
    ip: int = u32("r12")
    sp: int = u32("stack pointer")
    lr: int = u32("link register")
    pc: int = u32("instruction pointer")
    cpsr: int = u32("flags, instruction set and mode")
    orig_r0: int = u32("first argument of the interrupted system call")
    syscallno: int = u32("its number, or -1")


class ArmTls(Record, type=0x1501):
    """The thread pointer. Zero: no such record."""

    tp: int = u32("TPIDRURO, or the word at 0xffff0ff0 where the CPU has no such register (set_tls)")


class ArmVfp(Record, type=0x1502):
    """The floating point registers that every VFP has. At rest: all zero."""

    d: bytes = raw(128, "d0 to d15, 8 bytes each")
    fpscr: int = u32("status and control")


class ArmVfpHigh(Record, type=0x1503):
    """Those that only a VFP of 32 registers has, as NEON does. At rest: all zero."""

    d: bytes = raw(128, "d16 to d31, 8 bytes each")


STATES: tuple[State, ...] = (
    State(0, ArmGeneral, "", "32-bit registers"),
    State(1, ArmTls, "", "thread pointer"),
    State(2, ArmVfp, "vfp", "floating point registers"),
    State(3, ArmVfpHigh, "vfpd32", "upper floating point registers"),
)
"""Record type = 0x1500 + bit. A bit never changes its meaning."""

STATE_OF: dict[type[Record], State] = {state.record: state for state in STATES}

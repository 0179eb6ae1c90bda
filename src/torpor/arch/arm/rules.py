"""What the registers of a restarted 32-bit ARM thread may hold (R-D1): `RULES` has a row for every field of every record.

A rule answers with the rest of a sentence that begins "register NAME VALUE", or with None.

Sources: valid_user_regs() in arch/arm/include/asm/ptrace.h, valid_compat_regs() in arch/arm64/kernel/ptrace.c; Arm
Architecture Reference Manual (ARMv7-A), B1.3.3 (CPSR) and B6.1.34 (FPSCR).
"""

from __future__ import annotations

from torpor.arch.arm.state import STATE_OF, ArmGeneral, ArmTls, ArmVfp, ArmVfpHigh
from torpor.arch.rules import call, executable, result, row, stack, within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from torpor.arch.rules import Facts, Rules

NONE = (1 << 32) - 1
"""In syscallno: no call."""

THUMB, JAZELLE, USER_MODE = 1 << 5, 1 << 24, 0x10
IT = 0x0600_FC00
"""How many of the next instructions are conditional, and on what; in Thumb code alone."""
CPSR = 0xF8AF_0000 | IT | 1 << 9 | THUMB
"""N Z C V Q, GE, IT, E, T, and on ARMv8 SSBS and DIT: what a program can change; the rest of its CPSR is the mode of programs."""
FPSCR = 0xFFFF_9F9F  # N Z C V QC AHP DN FZ RMode Stride FZ16 Len, the trap enables, the sticky exceptions


def _instruction(value: int, facts: Facts) -> str | None:
    width = 2 if getattr(facts.record, "cpsr", 0) & THUMB else 4
    if value % width:
        return f"is not a multiple of {width}"
    return executable(value, facts)


def _flags(value: int, facts: Facts) -> str | None:
    if value & 0x1F != USER_MODE:
        return "is not in the mode of programs"
    if value & JAZELLE:
        return "is in Jazelle or ThumbEE state, which no kernel keeps any more"
    if value & IT and not value & THUMB:
        return "has conditional instructions to come (IT) outside of Thumb code"
    return within(CPSR | USER_MODE)(value, facts)


RULES: Rules = {
    **row(ArmGeneral, r0=result, sp=stack, pc=_instruction, cpsr=_flags, syscallno=call),
    **row(ArmTls),
    **row(ArmVfp, fpscr=within(FPSCR)),
    **row(ArmVfpHigh),
}

assert RULES.keys() == STATE_OF.keys()

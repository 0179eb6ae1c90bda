"""What the registers of a restarted s390x thread may hold (R-D1): `RULES` has a row for every field of every record.

A rule answers with the rest of a sentence that begins "register NAME VALUE", or with None. Of the program status word only what
a program can set by itself is in an image; the rest is the kernel's, and stays what it is in the new thread.

Sources: arch/s390/kernel/ptrace.c (__poke_user), asm/fpu.h (test_fp_ctl); z/Architecture Principles of Operation, "Program-Status
Word" and "Floating-Point-Control (FPC) Register".
"""

from __future__ import annotations

from torpor.arch.rules import call, executable, numbers, result, row, stack, within
from torpor.arch.s390x.state import STATE_OF, S390xAccess, S390xFloat, S390xGeneral, S390xVectorHigh, S390xVectorLow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from torpor.arch.rules import Facts, Rules

NONE = (1 << 64) - 1
"""In system_call: no call."""

PSW_KEPT = 0x0000_3F00_0000_0000
"""Condition code and program mask. Not the address space control: where a program changes that, it is refused."""
PSW_SPACE = 0x0000_C000_0000_0000
PSW_WIDTH = 0x0000_0001_8000_0000
"""The addressing mode, of 64 bits."""
FPC = 0xFCFC_FF77  # masks, flags, the code of the last exception, decimal and binary rounding


def _instruction(value: int, facts: Facts) -> str | None:
    return "is odd" if value % 2 else executable(value, facts)


def _length(value: int, facts: Facts) -> str | None:
    return None if value in (2, 4, 6) else "is not the length of an instruction that makes system calls"


def _control(value: int, facts: Facts) -> str | None:
    return "asks for a way of rounding that there is not" if value & 7 in (4, 5, 6) else within(FPC)(value, facts)


RULES: Rules = {
    **row(
        S390xGeneral,
        psw_mask=within(PSW_KEPT),
        psw_addr=_instruction,
        r2=result,
        r15=stack,
        system_call=call,
        svc_length=_length,
    ),
    **row(S390xAccess, acrs=numbers(16, (1 << 32) - 1)),
    **row(S390xFloat, fpc=_control, fprs=numbers(16, NONE)),
    **row(S390xVectorLow, vxrs=numbers(16, NONE)),
    **row(S390xVectorHigh),
}

assert RULES.keys() == STATE_OF.keys()

"""What the registers of a restarted PowerPC thread may hold (R-D1): `RULES` has a row for every field of every record.

A rule answers with the rest of a sentence that begins "register NAME VALUE", or with None. MSR is rebuilt from SF alone, which
follows from the kind of task (R-C3).

Sources: arch/powerpc/kernel/ptrace/; asm/reg.h; Power ISA, book I, 4.2 (FPSCR), 6.3 (VSCR); book II, 4.2 (DSCR); III, 4.3 (PPR).
"""

from __future__ import annotations

from torpor.arch.powerpc.state import (
    STATE_OF,
    PowerAltivec,
    PowerBooke,
    PowerDscr,
    PowerFloat,
    PowerFloatMode,
    PowerGeneral32,
    PowerGeneral64,
    PowerKeyRights,
    PowerPriority,
    PowerSpe,
    PowerTar,
    PowerVrsave,
    PowerVsx,
)
from torpor.arch.rules import anything, asks_again, call, executable, numbers, row, stack, within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from torpor.arch.rules import Facts, Rules

SF = 1 << 63
"""In MSR: the thread is in 64-bit mode."""
FPSCR = 0x7_FFFF_FFFF  # decimal rounding; then status and control
VSCR = 0x1_0001  # Java mode, saturation
DSCR = 0x1FF_FFFF
PRIORITY_SHIFT = 50
_PRIORITIES = tuple(level << PRIORITY_SHIFT for level in (1, 2, 3, 4, 5))
"""What programs can have; the others are the kernel's, which would load them without a question."""
SYSCALL, VECTORED = 0xC00, 0x3000
TRAPS = {4: (0, SYSCALL), 8: (0, SYSCALL, VECTORED)}
"""Of which ways into the kernel a record tells, by the bytes of a word: scv is there for 64-bit tasks only."""
_ERRORS = range(512, 517)


def _instruction(value: int, facts: Facts) -> str | None:
    return "is not a multiple of 4" if value % 4 else executable(value, facts)


def _mode(value: int, facts: Facts) -> str | None:
    return None if value == (SF if facts.word == 8 else 0) else "has other bits than that of the mode that the thread runs in"


def _trap(value: int, facts: Facts) -> str | None:
    return None if value in TRAPS[facts.word] else "is not how such a thread makes a system call"


def _result(value: int, facts: Facts) -> str | None:
    """The first register: an error is a positive number there beside a flag, or after scv a negative one."""
    if facts.call >> (8 * facts.word - 1) or facts.syscall_before(facts.ip):
        return None
    again = value in _ERRORS or asks_again(value, facts.word)
    return f"asks for a system call to be made again, but there is none in front of {facts.ip:#x}" if again else None


def _priority(value: int, facts: Facts) -> str | None:
    return None if value in _PRIORITIES else "is not a priority that a program can have"


def _exceptions(value: int, facts: Facts) -> str | None:
    return None if value in (1, 2, 3) else "is not a mode of floating point exceptions"


_LONG = (1 << 64) - 1

RULES: Rules = {
    **row(PowerGeneral64, r1=stack, r3=_result, nip=_instruction, msr=_mode, trap=_trap, call=call),
    **row(PowerGeneral32, r1=stack, r3=_result, nip=_instruction, msr=_mode, trap=_trap, call=call),
    **row(PowerFloat, f=numbers(32, _LONG), fpscr=within(FPSCR)),
    **row(PowerAltivec, vscr=within(VSCR)),
    **row(PowerVsx, low=numbers(32, _LONG)),
    **row(PowerSpe, evr=numbers(32, 0xFFFF_FFFF)),
    **row(PowerTar, tar=anything),
    **row(PowerPriority, ppr=_priority),
    **row(PowerDscr, dscr=within(DSCR)),
    **row(PowerFloatMode, mode=_exceptions),
    **row(PowerBooke, dbcr=numbers(3, 0), addresses=numbers(6, 0)),
    **row(PowerKeyRights, amr=anything),
    **row(PowerVrsave, vrsave=anything),
}

assert RULES.keys() == STATE_OF.keys()

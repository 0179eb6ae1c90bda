"""What the registers of a restarted AArch64 thread may hold (R-D1): `RULES` has a row for every field of every record.

A rule answers with the rest of a sentence that begins "register NAME VALUE", or with None.

Sources: arch/arm64/kernel/ptrace.c (valid_native_regs, sve_set_common, pac_*_keys_set, tagged_addr_ctrl_set), asm/ptrace.h;
Arm Architecture Reference Manual, C5.2 (FPCR, FPSR) and C5.2.19 (SPSR_EL1).
"""

from __future__ import annotations

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
from torpor.arch.rewinding import NONE
from torpor.arch.rules import call, executable, numbers, result, row, stack, within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from torpor.arch.rules import Facts, Rules

PSTATE = 0xF300_1C00
"""N Z C V, TCO, DIT, SSBS and BTYPE: what a program can have, in the mode of programs (EL0t, which is 0)."""
FPCR = 0x07FF_9F07  # AHP DN FZ RMode Stride FZ16 Len, the trap enables, NEP AH FIZ
FPSR = 0xF800_009F  # N Z C V QC, and the sticky exceptions
_VECTOR_LENGTHS = range(16, 257, 16)  # bytes; the kernel's own limit is higher, the architecture's is this


def _instruction(value: int, facts: Facts) -> str | None:
    if value % 4:
        return "is not a multiple of 4"
    return executable(value, facts)


def _length(value: int, facts: Facts) -> str | None:
    return None if value in _VECTOR_LENGTHS else "is not the length of a scalable vector"


def _scalable(value: bytes, facts: Facts) -> str | None:
    wanted = sve_size(getattr(facts.record, "length", 0))
    return None if len(value) in (0, wanted) else f"has {len(value)} bytes instead of {wanted}"


def _tags(value: int, facts: Facts) -> str | None:
    return "asks for memory tagging (MTE), which is not saved" if value & ~1 else None


def sve_size(length: int) -> int:
    """Bytes of the kernel's image of the scalable vectors behind its header (asm/ptrace.h, SVE_PT_SVE_SIZE)."""
    end = 16 + 32 * length + 17 * length // 8  # header, z0 to z31, p0 to p15 and ffr
    return (end + 15 & ~15) + 8 + 15 - 16 & ~15  # fpsr and fpcr, and a multiple of 16 bytes again


RULES: Rules = {
    **row(Arm64General, x0=result, sp=stack, pc=_instruction, pstate=within(PSTATE), syscallno=call),
    **row(Arm64Tls, tpidr=stack),
    **row(Arm64Vector, fpsr=within(FPSR), fpcr=within(FPCR)),
    **row(Arm64Sve, length=_length, flags=within(3), registers=_scalable),
    **row(Arm64AddressKeys, keys=numbers(8, NONE)),
    **row(Arm64GenericKey, keys=numbers(2, NONE)),
    **row(Arm64TaggedAddresses, control=_tags),
    **row(Arm64EnabledKeys, keys=within(15)),
}

assert RULES.keys() == STATE_OF.keys()

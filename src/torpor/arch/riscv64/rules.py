"""What the registers of a restarted riscv64 thread may hold (R-D1): `RULES` has a row for every field of every record.

A rule answers with the rest of a sentence that begins "register NAME VALUE", or with None.

Sources: arch/riscv/kernel/ptrace.c (riscv_vr_set, and invalid_ptrace_v_csr of newer kernels); The RISC-V Instruction Set Manual,
volume I, "F" (fcsr) and "V", 3.4 (vtype) to 3.8 (vcsr).
"""

from __future__ import annotations

from torpor.arch.riscv64.state import STATE_OF, VECTOR_LENGTH_MAX, Riscv64Float, Riscv64General, Riscv64Vector
from torpor.arch.rules import call, executable, result, row, stack, within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from torpor.arch.rules import Facts, Rules

FCSR = 0xFF  # rounding mode, and the exceptions
VCSR = 7  # rounding mode, and saturation
ILLEGAL = 1 << 63
"""vtype: what no instruction could use (vill)."""
_VTYPE = 0xFF  # vma, vta, vsew (3 bits), vlmul (3 bits)


def _instruction(value: int, facts: Facts) -> str | None:
    if value % 2:
        return "is not a multiple of 2"
    return executable(value, facts)


def _length(value: int, facts: Facts) -> str | None:
    # Zvl32b, the shortest, has 4 bytes.
    return None if value in (4 << n for n in range(12)) and value <= VECTOR_LENGTH_MAX else "is not the length of a vector register"


def elements(vtype: int, vlenb: int) -> int:
    """How many elements of the type `vtype` there are in a register, or a group of them; 0 for no type that there is."""
    if vtype & ~_VTYPE:
        return 0
    group, size = vtype & 7, vtype >> 3 & 7
    if group == 4 or size > 3:
        return 0
    # 5, 6, 7: an eighth, a quarter, half of a register.
    return (vlenb << group if group < 4 else vlenb >> 8 - group) >> size


def _type(value: int, facts: Facts) -> str | None:
    if value == ILLEGAL or elements(value, getattr(facts.record, "vlenb", 0)):
        return None
    return "is not the type of vector elements"


def _vl(value: int, facts: Facts) -> str | None:
    most = elements(getattr(facts.record, "vtype", 0), getattr(facts.record, "vlenb", 0))
    return None if value <= most else f"is more than the {most} elements that there are"


def _vstart(value: int, facts: Facts) -> str | None:
    most = 8 * getattr(facts.record, "vlenb", 0)
    return None if value < max(most, 1) else "is behind the last element"


def _registers(value: bytes, facts: Facts) -> str | None:
    wanted = 32 * getattr(facts.record, "vlenb", 0)
    return None if len(value) == wanted else f"has {len(value)} bytes instead of {wanted}"


RULES: Rules = {
    **row(Riscv64General, a0=result, sp=stack, pc=_instruction, syscallno=call),
    **row(Riscv64Float, fcsr=within(FCSR)),
    **row(Riscv64Vector, vlenb=_length, vcsr=within(VCSR), vstart=_vstart, vl=_vl, vtype=_type, registers=_registers),
}

assert RULES.keys() == STATE_OF.keys()

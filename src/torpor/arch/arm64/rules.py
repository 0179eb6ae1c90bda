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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from torpor.image.record import Record

    Rule = Callable[[Any, "Facts"], str | None]

NONE = (1 << 64) - 1
"""In syscallno: no call."""
CALL_LIMIT = 1024
"""No system call has this number or a higher one."""

PSTATE = 0xF300_1C00
"""N Z C V, TCO, DIT, SSBS and BTYPE: what a program can have, in the mode of programs (EL0t, which is 0)."""
FPCR = 0x07FF_9F07  # AHP DN FZ RMode Stride FZ16 Len, the trap enables, NEP AH FIZ
FPSR = 0xF800_009F  # N Z C V QC, and the sticky exceptions
_VECTOR_LENGTHS = range(16, 257, 16)  # bytes; the kernel's own limit is higher, the architecture's is this


class Facts:
    """What a rule may look at besides the value itself."""

    __slots__ = ("call", "is_executable", "pc", "record", "syscall_before", "user_limit")

    def __init__(
        self, general: Arm64General, user_limit: int, is_executable: Callable[[int], bool], syscall_before: Callable[[int], bool]
    ) -> None:
        self.pc, self.call, self.user_limit = general.pc, general.syscallno, user_limit
        self.is_executable, self.syscall_before = is_executable, syscall_before
        self.record: Record = general


def faults(record: Record, facts: Facts) -> list[str]:
    """What is wrong with one record: a sentence for each field, naming the register."""
    found = []
    facts.record = record
    for name, rule in RULES[type(record)].items():
        value = getattr(record, name)
        if reason := rule(value, facts):
            shown = f" {value:#x}" if isinstance(value, int) else ""
            found.append(f"register {name}{shown} {reason}")
    return found


def asks_again(result: int) -> bool:
    """Whether x0 holds -ERESTART* (512 to 516)."""
    return 512 <= (1 << 64) - result <= 516


def _anything(value: Any, facts: Facts) -> None:
    """A value of the program's own that neither CPU nor kernel interprets, or of which every one is good."""


def _instruction(value: int, facts: Facts) -> str | None:
    if value % 4:
        return "is not a multiple of 4"
    return None if facts.is_executable(value) else "does not lie in executable memory"


def _stack(value: int, facts: Facts) -> str | None:
    # An empty stack at the very top is in order; and a program may use the register for something else.
    return None if value <= facts.user_limit else f"lies above user memory, which ends at {facts.user_limit:#x}"


def _within(mask: int) -> Rule:
    return lambda value, facts: f"has bits set outside {mask:#x}" if value & ~mask else None


def _call(value: int, facts: Facts) -> str | None:
    return None if value < CALL_LIMIT or value == NONE else "is neither -1 nor the number of a system call"


def _result(value: int, facts: Facts) -> str | None:
    if facts.call == NONE or not asks_again(value) or facts.syscall_before(facts.pc):
        return None
    return f"asks for a system call to be made again, but there is none in front of {facts.pc:#x}"


def _length(value: int, facts: Facts) -> str | None:
    return None if value in _VECTOR_LENGTHS else "is not the length of a scalable vector"


def _scalable(value: bytes, facts: Facts) -> str | None:
    wanted = sve_size(getattr(facts.record, "length", 0))
    return None if len(value) in (0, wanted) else f"has {len(value)} bytes instead of {wanted}"


def _numbers(count: int) -> Rule:
    return lambda value, facts: None if len(value) == count else f"has {len(value)} values instead of {count}"


def _tags(value: int, facts: Facts) -> str | None:
    return "asks for memory tagging (MTE), which is not saved" if value & ~1 else None


def sve_size(length: int) -> int:
    """Bytes of the kernel's image of the scalable vectors behind its header (asm/ptrace.h, SVE_PT_SVE_SIZE)."""
    end = 16 + 32 * length + 17 * length // 8  # header, z0 to z31, p0 to p15 and ffr
    return (end + 15 & ~15) + 8 + 15 - 16 & ~15  # fpsr and fpcr, and a multiple of 16 bytes again


def _row(record: type[Record], **special: Rule) -> dict[type[Record], dict[str, Rule]]:
    """The rules of `record`, one for each field in the order of declaration; a field not named may hold anything."""
    names = [field.name for field in record.declared]
    unknown = special.keys() - names
    if unknown:
        raise TypeError(f"{record.__name__} has no field {unknown}")
    return {record: {name: special.get(name, _anything) for name in names}}


RULES: dict[type[Record], dict[str, Rule]] = {
    **_row(Arm64General, x0=_result, sp=_stack, pc=_instruction, pstate=_within(PSTATE), syscallno=_call),
    **_row(Arm64Tls, tpidr=_stack),
    **_row(Arm64Vector, fpsr=_within(FPSR), fpcr=_within(FPCR)),
    **_row(Arm64Sve, length=_length, flags=_within(3), registers=_scalable),
    **_row(Arm64AddressKeys, keys=_numbers(8)),
    **_row(Arm64GenericKey, keys=_numbers(2)),
    **_row(Arm64TaggedAddresses, control=_tags),
    **_row(Arm64EnabledKeys, keys=_within(15)),
}

assert RULES.keys() == STATE_OF.keys()

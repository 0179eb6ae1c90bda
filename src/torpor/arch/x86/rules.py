"""What the registers of a restarted thread may hold (R-D1): `RULES` has a row for every field of every record.

The kernel checks some of it itself, but takes many a value that kills the task at once, and a check pass must know
before there is a task. A rule answers with the rest of a sentence that begins "register NAME VALUE", or with None.

Sources: arch/x86/kernel/ptrace.c (putreg, putreg32, ptrace_set_debugreg), arch/x86/kernel/tls.c (tls_desc_okay),
arch/x86/kernel/hw_breakpoint.c, arch/x86/kernel/fpu/xstate.c (copy_uabi_to_xstate), arch/x86/kernel/signal.c,
Intel SDM vol. 1, 3.4.3, 8.1 and 10.2.3, vol. 2 LDTILECFG, vol. 3 17.2.
"""

from __future__ import annotations

from torpor.arch.rules import Facts, call, executable, numbers, result, row, stack, within
from torpor.arch.x86.state import (
    CODE_64,
    ON_32,
    ON_64,
    STATE_OF,
    X87,
    X86Apx,
    X86Avx,
    X86BoundConfig,
    X86BoundRegisters,
    X86Debug,
    X86General32,
    X86General64,
    X86Opmask,
    X86Pkru,
    X86ShadowStack,
    X86Sse,
    X86TileConfig,
    X86TileData,
    X86Tls,
    X86TlsEntry,
    X86Zmm,
    X86ZmmHigh,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from torpor.arch.rules import Rule, Rules
    from torpor.image.record import Record

FLAGS = 0x254FD7
"""What a program can have in EFLAGS: CF PF AF ZF SF DF OF, what it can set by POPF (NT AC ID), what the hardware keeps
set (bit 1, IF) or sets (RF). ptrace writes all of them but ID, IF and bit 1, which stay as they are in the task. AC is
the program's own choice: it asks for SIGBUS on unaligned access. Not TF: only a debugger single-steps, and torpor's
own code would be hit by it; not IOPL, VM, VIF, VIP."""
_FORBIDDEN_FLAGS = {8: "TF", 12: "IOPL", 13: "IOPL", 17: "VM", 19: "VIF", 20: "VIP"}

DR6_AT_REST, DR6_CONDITIONS = 0xFFFF0FF0, 0xE00F
_DR7_BITS = 0xFFFF07FF  # bit 10 is always 1 in the hardware's; 11 to 15 are reserved, or GD


class X86Facts(Facts):
    """What a rule of x86 may look at besides the value itself."""

    __slots__ = ("debug", "is_mapped", "numbering", "selectors", "wide")

    def __init__(
        self,
        records: Sequence[Record],
        user_limit: int,
        is_executable: Callable[[int], bool],
        is_mapped: Callable[[int], bool],
        syscall_before: Callable[[int], bool],
        wide: bool,
    ) -> None:
        super().__init__(user_limit, is_executable, syscall_before)
        self.wide = wide
        """`wide`: the kernel here is a 64-bit one."""
        self.is_mapped = is_mapped
        self.debug: X86Debug | None = None
        self.selectors: list[int] = []
        """Of the TLS descriptors in use."""
        for record in records:
            if isinstance(record, X86General64):
                self.word, self.ip, self.call, self.numbering = 8, record.rip, record.orig_rax, ON_64
            elif isinstance(record, X86General32):
                self.word, self.ip, self.call = 4, record.eip, record.orig_eax
                self.numbering = ON_32 if record.cs == ON_32.code else ON_64
            elif isinstance(record, X86Tls):
                self.selectors = [8 * entry.entry + 3 for entry in record.entries]
            elif isinstance(record, X86Debug):
                self.debug = record


def _code(value: int, facts: X86Facts) -> str | None:
    allowed = (CODE_64, ON_64.code) if facts.word == 8 else (ON_64.code, ON_32.code)
    return None if value in allowed else f"is not a code segment of user programs ({allowed[0]:#x} or {allowed[1]:#x})"


def _stack_segment(value: int, facts: X86Facts) -> str | None:
    data = facts.numbering.data
    return None if value == data else f"is not the data segment of user programs ({data:#x})"


def _segment(value: int, facts: X86Facts) -> str | None:
    data = facts.numbering.data
    if value in (0, data, *facts.selectors):
        return None
    return f"is neither the data segment of user programs ({data:#x}) nor a TLS descriptor in use; LDTs are not saved"


def _base(value: int, facts: X86Facts) -> str | None:
    return None if value < facts.user_limit else f"lies above user memory, which ends at {facts.user_limit:#x}"


def _flags(value: int, facts: X86Facts) -> str | None:
    wrong = value & ~FLAGS
    names = {_FORBIDDEN_FLAGS.get(bit, f"bit {bit}") for bit in range(64) if wrong >> bit & 1}
    return f"has {', '.join(sorted(names))} set" if names else None


def _tls(entries: Sequence[X86TlsEntry], facts: X86Facts) -> str | None:
    first = facts.numbering.first_tls
    numbers = [entry.entry for entry in entries]
    if not numbers or sorted(set(numbers)) != numbers or not first <= numbers[0] <= numbers[-1] < first + 3:
        return f"are numbered {numbers}, not ascending from {first} to {first + 2}"
    return next((f"have an entry {e.entry} that {fault}" for e in entries if (fault := tls_fault(e))), None)


def tls_fault(entry: X86TlsEntry) -> str | None:
    """What keeps the kernel from taking a descriptor: only 32-bit data segments that are present; dpl is always 3.

    arch/x86/kernel/tls.c, tls_desc_okay(): 16-bit ones need the espfix that only LDTs have, code is not allowed.
    """
    if entry.flags & ~0x7F:
        return f"has unknown flags ({entry.flags:#x})"
    if not entry.flags & 1:
        return "is a 16-bit segment"
    if entry.flags >> 1 & 3 > 1:
        return "is a code segment"
    if entry.flags & 0x20:
        return "is not present"
    return f"has a limit of {entry.limit:#x}, more than 20 bits" if entry.limit > 0xFFFFF else None


def _breakpoint(n: int) -> Rule:
    def rule(value: int, facts: X86Facts) -> str | None:
        dr7 = facts.debug.dr7 if facts.debug else 0
        length = (1, 2, 8, 4)[dr7 >> 18 + 4 * n & 3] if dr7 >> 2 * n & 3 else 1
        if value + length > facts.user_limit:
            return f"lies above user memory, which ends at {facts.user_limit:#x}"
        return f"is not a multiple of the breakpoint's length, {length}" if value % length else None

    return rule


def _dr6(value: int, facts: X86Facts) -> str | None:
    return "has reserved bits set" if value & ~(DR6_AT_REST | DR6_CONDITIONS) else None


def _dr7(value: int, facts: X86Facts) -> str | None:
    if value & ~_DR7_BITS:
        return "has reserved bits set"
    for n in range(4):
        kind, length = value >> 16 + 4 * n & 3, value >> 18 + 4 * n & 3
        if value >> 2 * n & 3 and (kind == 2 or (kind == 0 and length) or (length == 2 and not facts.wide)):
            return f"enables a breakpoint {n} of a kind or length that user programs cannot have"
    return None


def _pointer(value: int, facts: X86Facts) -> str | None:
    return None if facts.wide or value >> 32 == 0 else "has more than the 32 bits that a 32-bit kernel keeps"


def _registers(width: int) -> Rule:
    def rule(value: bytes, facts: X86Facts) -> str | None:
        rest = value[8 * width :]
        return None if facts.wide or rest.count(0) == len(rest) else "has more than the 8 that a 32-bit kernel keeps"

    return rule


def _at_most(limit: int) -> Rule:
    return lambda value, facts: f"is more than {limit}" if value > limit else None


def _shadow_features(value: int, facts: X86Facts) -> str | None:
    return None if value in (1, 3) else "is not a set of shadow stack features"


def _shadow_pointer(value: int, facts: X86Facts) -> str | None:
    if value % 8:
        return "is not a multiple of 8"
    return None if 8 <= value < facts.user_limit and facts.is_mapped(value - 8) else "does not lie in a mapping"


def _mpx(value: Any, facts: X86Facts) -> str:
    return "belongs to MPX, which Linux no longer supports"


_ANY_64 = (1 << 64) - 1

RULES: Rules = {
    **row(
        X86General64,
        rax=result, orig_rax=call, rip=executable, cs=_code, eflags=_flags, rsp=stack, ss=_stack_segment,
        fs_base=_base, gs_base=_base, ds=_segment, es=_segment, fs=_segment, gs=_segment,
    ),
    **row(
        X86General32,
        eax=result, orig_eax=call, eip=executable, cs=_code, eflags=_flags, esp=stack, ss=_stack_segment,
        ds=_segment, es=_segment, fs=_segment, gs=_segment,
    ),
    **row(X86Tls, entries=_tls),
    **row(
        X86Debug,
        dr0=_breakpoint(0), dr1=_breakpoint(1), dr2=_breakpoint(2), dr3=_breakpoint(3), dr6=_dr6, dr7=_dr7,
    ),
    # fcw: the CPU drops bits 7 and 13 to 15. fip, fdp, fcs and fds are there for a SIGFPE handler to read, no more.
    **row(X87, fcw=within(0x1F7F), ftw=within(0xFF), fop=within(0x7FF), fip=_pointer, fdp=_pointer),
    **row(X86Sse, mxcsr=within(0xFFFF), xmm=_registers(16)),
    **row(X86Avx, ymm_high=_registers(16)),
    **row(X86Opmask, k=numbers(8, _ANY_64)),
    **row(X86ZmmHigh, zmm_high=_registers(32)),
    **row(X86Zmm),
    **row(X86Pkru),
    **row(
        X86TileConfig,
        palette=_at_most(1), start_row=_at_most(15), columns=numbers(8, 64), rows=numbers(8, 16),
    ),
    **row(X86TileData),
    **row(X86ShadowStack, features=_shadow_features, ssp=_shadow_pointer),
    **row(X86BoundRegisters, bounds=_mpx),
    **row(X86BoundConfig, bndcfgu=_mpx, bndstatus=_mpx),
    **row(X86Apx, r=numbers(16, _ANY_64)),
}  # fmt: skip

assert RULES.keys() == STATE_OF.keys()

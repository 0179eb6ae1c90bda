"""AArch64: which registers mean what, and the code that runs inside a task.

Sources: arch/arm64/kernel/signal.c, do_signal(); arch/arm64/kernel/syscall.c.
"""

from __future__ import annotations

import sys

from torpor.arch.arm64 import cpu
from torpor.arch.arm64.code import CODE_64
from torpor.arch.arm64.registers import GENERAL, NT_PRFPREG, REGISTERS, VECTOR
from torpor.arch.arm64.rules import PSTATE
from torpor.arch.rewinding import Rewinding
from torpor.linux import ptrace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from torpor.arch.contract import Registers
    from torpor.image.record import Record


class Arm64(Rewinding):
    """A 64-bit task."""

    name, image_id, elf_machine = "aarch64", 4, 183
    user_limit = 1 << 48
    ip, sp, flags, result = "pc", "sp", "pstate", "x0"
    arguments = ("orig_x0", "x1", "x2", "x3", "x4", "x5")
    entry_registers = {"pstate": 0}
    kept_flags = PSTATE
    syscall_instruction = (b"\x01\x00\x00\xd4",)  # svc #0
    code = CODE_64
    slot_code = bytes.fromhex("010000d4 e09f00f9 681180d2 010000d4")  # svc #0; str x0, [sp, #312]; mov x8, #139; svc #0
    general = GENERAL
    registers = REGISTERS
    header = staticmethod(cpu.header)
    header_record = cpu.Arm64Header

    def verdict(self, header: Record, used: int, cpu_mode: str, here: Record) -> list[str]:
        """See Arch.verdict."""
        assert isinstance(header, cpu.Arm64Header)
        assert isinstance(here, cpu.Arm64Header)
        return cpu.verdict(header, used, here=here, cpu=cpu_mode)

    def described(self, cpuinfo: Mapping[str, str]) -> Record:
        """See Arch.described."""
        return cpu.described(cpuinfo)

    def heal_values(self, regs: Registers, tid: int) -> dict[str, int]:
        """See Arch.heal_values: the vector registers are among them."""
        vectors, fpsr, fpcr = VECTOR.unpack(ptrace.get_regset(tid, NT_PRFPREG))
        values = super().heal_values(regs, tid)
        return {**values, "v_v": int.from_bytes(vectors, sys.byteorder), "v_fpsr": fpsr, "v_fpcr": fpcr}


KINDS = (Arm64(),)

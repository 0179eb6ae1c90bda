"""riscv64: which registers mean what, and the code that runs inside a task.

Source: arch/riscv/kernel/signal.c, arch_do_signal_or_restart().
"""

from __future__ import annotations

import sys

from torpor.arch.rewinding import Rewinding
from torpor.arch.riscv64 import cpu
from torpor.arch.riscv64.code import CODE_64
from torpor.arch.riscv64.registers import FLOAT, GENERAL, NT_PRFPREG, REGISTERS
from torpor.linux import ptrace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from torpor.arch.contract import Registers
    from torpor.image.record import Record


class Riscv64(Rewinding):
    """A 64-bit task."""

    name, image_id, elf_machine = "riscv64", 9, 243
    user_limit = cpu.user_limit()
    ip, sp, result = "pc", "sp", "a0"
    arguments = ("orig_a0", "a1", "a2", "a3", "a4", "a5")
    entry_registers: Mapping[str, int] = {}
    syscall_instruction = (b"\x73\0\0\0",)  # ecall
    action_words = 2
    code = CODE_64
    slot_code = bytes.fromhex("73000000 2330a118 9308b008 73000000")  # ecall; sd a0, 384(sp); li a7, 139; ecall
    frame_front = 144
    general = GENERAL
    registers = REGISTERS
    header = staticmethod(cpu.header)
    header_record = cpu.Riscv64Header

    def verdict(self, header: Record, used: int, cpu_mode: str, here: Record) -> list[str]:
        """See Arch.verdict."""
        assert isinstance(header, cpu.Riscv64Header)
        assert isinstance(here, cpu.Riscv64Header)
        return cpu.verdict(header, used, here=here, cpu=cpu_mode)

    def described(self, cpuinfo: Mapping[str, str]) -> Record:
        """See Arch.described."""
        return cpu.described(cpuinfo)

    def heal_values(self, regs: Registers, tid: int) -> dict[str, int]:
        """See Arch.heal_values: the floating point registers are among them, and there are no flags."""
        f, fcsr = FLOAT.unpack(ptrace.get_regset(tid, NT_PRFPREG))
        values = super().heal_values(regs, tid)
        return {**values, "v_f": int.from_bytes(f, sys.byteorder), "v_fcsr": fcsr}


KINDS = (Riscv64(),)

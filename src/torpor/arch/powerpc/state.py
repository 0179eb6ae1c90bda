"""The register records of PowerPC threads: what each holds, and the one table of their places in the record mask (R-B5, R-C3).

The image keeps registers by name and explicit width. A record that is missing means the state that every program starts in.

Sources: struct pt_regs and PT_* in asm/ptrace.h; asm/elf.h; arch/powerpc/kernel/ptrace/; Power ISA, books I and III.
"""

from __future__ import annotations

from torpor.arch.masks import State
from torpor.image.fields import address, array, raw, u32, u64
from torpor.image.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass


class PowerGeneral64(Record, type=0x1200):
    """The general registers of a 64-bit thread, and which system call they are in."""

    r0: int = address("r0; number of a system call")
    r1: int = address("stack pointer")
    r2: int = address("r2; table of contents")
    r3: int = address("r3; first argument and result of a system call")
    r4: int = address("r4; second argument")
    r5: int = address("r5; third argument")
    r6: int = address("r6; fourth argument")
    r7: int = address("r7; fifth argument")
    r8: int = address("r8; sixth argument")
    r9: int = address("r9")
    r10: int = address("r10")
    r11: int = address("r11")
    r12: int = address("r12")
    r13: int = address("thread pointer")
    r14: int = address("r14")
    r15: int = address("r15")
    r16: int = address("r16")
    r17: int = address("r17")
    r18: int = address("r18")
    r19: int = address("r19")
    r20: int = address("r20")
    r21: int = address("r21")
    r22: int = address("r22")
    r23: int = address("r23")
    r24: int = address("r24")
    r25: int = address("r25")
    r26: int = address("r26")
    r27: int = address("r27")
    r28: int = address("r28")
    r29: int = address("r29")
    r30: int = address("r30")
    r31: int = address("r31")
    nip: int = address("instruction pointer")
    msr: int = u64("bit 63 (SF), 64-bit mode; all others are the kernel's")
    orig_r3: int = address("first argument of the interrupted system call")
    ctr: int = address("count register")
    link: int = address("link register")
    xer: int = u64("carry and overflow")
    ccr: int = u32("condition register")
    trap: int = u32("how the thread came into the kernel: 0xc00 by sc, 0x3000 by scv, 0 otherwise")
    call: int = address("number of the interrupted system call, or -1")


class PowerGeneral32(Record, type=0x1201):
    """The general registers of a 32-bit thread, and which system call they are in."""

    r0: int = u32("r0; number of a system call")
    r1: int = u32("stack pointer")
    r2: int = u32("thread pointer")
    r3: int = u32("r3; first argument and result of a system call")
    r4: int = u32("r4; second argument")
    r5: int = u32("r5; third argument")
    r6: int = u32("r6; fourth argument")
    r7: int = u32("r7; fifth argument")
    r8: int = u32("r8; sixth argument")
    r9: int = u32("r9")
    r10: int = u32("r10")
    r11: int = u32("r11")
    r12: int = u32("r12")
    r13: int = u32("r13; small data")
    r14: int = u32("r14")
    r15: int = u32("r15")
    r16: int = u32("r16")
    r17: int = u32("r17")
    r18: int = u32("r18")
    r19: int = u32("r19")
    r20: int = u32("r20")
    r21: int = u32("r21")
    r22: int = u32("r22")
    r23: int = u32("r23")
    r24: int = u32("r24")
    r25: int = u32("r25")
    r26: int = u32("r26")
    r27: int = u32("r27")
    r28: int = u32("r28")
    r29: int = u32("r29")
    r30: int = u32("r30")
    r31: int = u32("r31")
    nip: int = u32("instruction pointer")
    msr: int = u32("0: the bit that could be set, SF, lies higher")
    orig_r3: int = u32("first argument of the interrupted system call")
    ctr: int = u32("count register")
    link: int = u32("link register")
    xer: int = u32("carry and overflow")
    ccr: int = u32("condition register")
    trap: int = u32("how the thread came into the kernel: 0xc00 by sc, 0 otherwise")
    call: int = u32("number of the interrupted system call, or -1")


class PowerFloat(Record, type=0x1204):
    """The floating point registers. At rest: all zero."""

    f: list[int] = array(64, "f0 to f31; the upper halves of vs0 to vs31", max=32)
    fpscr: int = u64("status and control")


class PowerAltivec(Record, type=0x1205):
    """The vector registers of AltiVec. At rest: zero, but for Java mode (bit 16 of VSCR), which does not matter to zeros."""

    v: bytes = raw(512, "v0 to v31, as the thread would store them")
    vscr: int = u32("status and control")
    vrsave: int = u32("which registers are in use, by programs that say so")


class PowerVsx(Record, type=0x1206):
    """What VSX adds to the floating point registers. At rest: zero."""

    low: list[int] = array(64, "the lower halves of vs0 to vs31", max=32)


class PowerSpe(Record, type=0x1207):
    """The signal processing engine of e500 CPUs. At rest: zero."""

    evr: list[int] = array(32, "the upper halves of r0 to r31", max=32)
    acc: int = u64("accumulator")
    spefscr: int = u32("status and control")


class PowerTar(Record, type=0x1208):
    """The target address register. At rest: zero."""

    tar: int = address("where bctar branches to")


class PowerPriority(Record, type=0x1209):
    """The program priority register, where it is not medium."""

    ppr: int = u64("bits 50 to 52: 1 very low, 2 low, 3 medium low, 4 medium, 5 medium high")


class PowerDscr(Record, type=0x120A):
    """The data stream control register. At rest: zero."""

    dscr: int = u64("how the CPU fetches ahead")


class PowerFloatMode(Record, type=0x120B):
    """Whether floating point exceptions become signals (PR_SET_FPEXC). At rest: they do not."""

    mode: int = u32("PR_FP_EXC_*: 1 imprecise and not to be recovered, 2 imprecise, 3 precise")


class PowerBooke(Record, type=0x120C):
    """Debug registers as BookE CPUs have them: 003 lists them; they belong to a debugger, and no image has them."""

    dbcr: list[int] = array(32, "dbcr0 to dbcr2", max=3)
    addresses: list[int] = array(64, "iac1 to iac4, dac1, dac2", max=6)


class PowerKeyRights(Record, type=0x120D):
    """What the thread may do with memory protection keys, where that is not what every program starts with."""

    amr: int = u64("authority mask: two bits for each key, key 0 in the highest")


class PowerVrsave(Record, type=0x120E):
    """VRSAVE of a thread whose vector registers are at rest: a C library sets it at the start of every program. At rest: zero."""

    vrsave: int = u32("which vector registers are in use, by programs that say so")


_NO_DEBUGGING = "hardware breakpoints belong to a debugger, and are not given back; take a checkpoint when it has ended"

STATES: tuple[State, ...] = (
    State(0, PowerGeneral64, "ppc64", "64-bit registers"),
    State(1, PowerGeneral32, "ppc32", "32-bit registers"),
    State(4, PowerFloat, "fpu", "floating point registers"),
    State(5, PowerAltivec, "altivec", "vector registers"),
    State(6, PowerVsx, "vsx", "vector-scalar registers"),
    State(7, PowerSpe, "spe", "signal processing registers"),
    State(8, PowerTar, "tar", "branch targets (TAR)"),
    State(9, PowerPriority, "arch_2_06", "program priorities"),
    State(10, PowerDscr, "arch_2_06", "data stream settings"),
    State(11, PowerFloatMode, "fpu", "floating point exception modes"),
    State(12, PowerBooke, "booke", "debug registers", gone=_NO_DEBUGGING),
    State(13, PowerKeyRights, "pkey", "protection key rights"),
    # Where there is no AltiVec it is nowhere to be seen, and can be left out.
    State(14, PowerVrsave, "ppc32", "vector save mask (VRSAVE)"),
)
"""Record type = 0x1200 + bit. A bit never changes its meaning."""

STATE_OF: dict[type[Record], State] = {state.record: state for state in STATES}

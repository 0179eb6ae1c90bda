"""The register records of s390x threads: what each holds, and the one table of their places in the record mask (R-B5).

The image keeps registers by name and explicit width. A record that is missing means the state that every program starts in.

Sources: struct user_regs_struct and the vector register sets in asm/ptrace.h and elf.h; z/Architecture Principles of Operation,
"Program-Status Word", "Floating-Point-Control (FPC) Register".
"""

from __future__ import annotations

from torpor.arch.masks import State
from torpor.image.fields import address, array, raw, u8, u32, u64
from torpor.image.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass


class S390xGeneral(Record, type=0x1300):
    """The general registers of a 64-bit thread, and which system call they are in.

    After a call, before the kernel has decided whether it is made again: r2 holds the result, psw_addr is behind the instruction.
    """

    psw_mask: int = u64("condition code and program mask, where the program status word has them")
    psw_addr: int = address("instruction pointer")
    r0: int = u64("r0")
    r1: int = u64("r1; number of a system call to be made by svc 0")
    r2: int = u64("r2; result of a system call, or -ERESTART* of an interrupted one")
    r3: int = u64("r3; second argument")
    r4: int = u64("r4; third argument")
    r5: int = u64("r5; fourth argument")
    r6: int = u64("r6; fifth argument")
    r7: int = u64("r7; sixth argument")
    r8: int = u64("r8")
    r9: int = u64("r9")
    r10: int = u64("r10")
    r11: int = u64("r11")
    r12: int = u64("r12")
    r13: int = u64("r13")
    r14: int = u64("r14; return address")
    r15: int = address("stack pointer")
    orig_gpr2: int = u64("first argument of the system call")
    system_call: int = u64("its number, or -1")
    svc_length: int = u8("bytes of the instruction that made it: 2, or more where that was EXECUTE")


class S390xAccess(Record, type=0x1301):
    """The access registers; the first two hold the thread pointer. At rest: all zero."""

    acrs: list[int] = array(32, "a0 to a15", max=16)


class S390xFloat(Record, type=0x1302):
    """The floating point registers, which are the upper halves of the first vector registers. At rest: all zero."""

    fpc: int = u32("control and status")
    fprs: list[int] = array(64, "f0 to f15", max=16)


class S390xVectorLow(Record, type=0x1303):
    """The lower halves of the vector registers 0 to 15. At rest: all zero."""

    vxrs: list[int] = array(64, "v0 to v15", max=16)


class S390xVectorHigh(Record, type=0x1304):
    """The vector registers 16 to 31. At rest: all zero."""

    vxrs: bytes = raw(256, "v16 to v31, 16 bytes each, as the program stores them")


STATES: tuple[State, ...] = (
    State(0, S390xGeneral, "zarch", "64-bit registers"),
    State(1, S390xAccess, "", "access registers"),
    State(2, S390xFloat, "", "floating point registers"),
    State(3, S390xVectorLow, "vx", "vector registers"),
    State(4, S390xVectorHigh, "vx", "vector registers 16 to 31"),
)
"""Record type = 0x1300 + bit. A bit never changes its meaning."""

STATE_OF: dict[type[Record], State] = {state.record: state for state in STATES}

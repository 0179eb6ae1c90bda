"""The register records of AArch64 threads: what each holds, and the one table of their places in the record mask (R-B5).

The image keeps registers by name and explicit width. A record that is missing means the state that every program starts in.

Sources: struct user_pt_regs, user_fpsimd_state, user_sve_header, user_pac_*_keys in asm/ptrace.h; Documentation/arch/arm64/
{sve,pointer-authentication,tagged-address-abi}.rst; Arm Architecture Reference Manual, B1.2 and C5.2.
"""

from __future__ import annotations

from torpor.arch.masks import State
from torpor.image.fields import address, array, blob, raw, u16, u32, u64
from torpor.image.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass


class Arm64General(Record, type=0x1100):
    """The general registers of a 64-bit thread, and which system call they are in.

    The kernel moves the registers of an interrupted call back before anybody can look at them. Here they are as if it had
    not: x0 holds -ERESTART* or -EINTR, pc is behind the instruction, and orig_x0 and syscallno say what was asked for.
    """

    x0: int = address("x0; result of a system call, or -ERESTART* of an interrupted one")
    x1: int = address("x1; second argument")
    x2: int = address("x2; third argument")
    x3: int = address("x3; fourth argument")
    x4: int = address("x4; fifth argument")
    x5: int = address("x5; sixth argument")
    x6: int = address("x6")
    x7: int = address("x7")
    x8: int = address("x8; number of a system call to be made")
    x9: int = address("x9")
    x10: int = address("x10")
    x11: int = address("x11")
    x12: int = address("x12")
    x13: int = address("x13")
    x14: int = address("x14")
    x15: int = address("x15")
    x16: int = address("x16")
    x17: int = address("x17")
    x18: int = address("x18")
    x19: int = address("x19")
    x20: int = address("x20")
    x21: int = address("x21")
    x22: int = address("x22")
    x23: int = address("x23")
    x24: int = address("x24")
    x25: int = address("x25")
    x26: int = address("x26")
    x27: int = address("x27")
    x28: int = address("x28")
    x29: int = address("frame pointer")
    x30: int = address("link register")
    sp: int = address("stack pointer")
    pc: int = address("instruction pointer")
    pstate: int = u64("flags and mode")
    orig_x0: int = address("first argument of the interrupted system call")
    syscallno: int = address("its number, or -1")


class Arm64Tls(Record, type=0x1102):
    """The thread pointers. Zero: no such record."""

    tpidr: int = address("TPIDR_EL0")
    tpidr2: int = u64("TPIDR2_EL0, where there is SME")


class Arm64Vector(Record, type=0x1104):
    """The floating point and vector registers. At rest: all zero."""

    v: bytes = raw(512, "v0 to v31, 16 bytes each")
    fpsr: int = u32("status")
    fpcr: int = u32("control")


class Arm64Sve(Record, type=0x1105):
    """The scalable vectors: there when the thread has a length of its own, or was not in a system call, which drops them."""

    length: int = u16("bytes in a vector")
    flags: int = u16("1: the children of the thread inherit the length, 2: it counts from the next execve(2) on")
    registers: bytes = blob("z0 to z31, p0 to p15, ffr, fpsr, fpcr as the kernel has them (asm/ptrace.h); or nothing", max=16384)


class Arm64AddressKeys(Record, type=0x1106):
    """The keys with which the program signs its pointers (PAC)."""

    keys: list[int] = array(64, "apia, apib, apda, apdb: low and high half of each", max=8)


class Arm64GenericKey(Record, type=0x1107):
    """The key with which the program signs data (PAC)."""

    keys: list[int] = array(64, "low and high half", max=2)


class Arm64TaggedAddresses(Record, type=0x1108):
    """Whether system calls take addresses with a tag in the top byte (PR_SET_TAGGED_ADDR_CTRL)."""

    control: int = u64("bit 0: they do; the others belong to MTE")


class Arm64EnabledKeys(Record, type=0x1109):
    """Which keys sign pointers (PR_PAC_SET_ENABLED_KEYS). At rest: all."""

    keys: int = u64("bit 0 to 3: apia, apib, apda, apdb")


STATES: tuple[State, ...] = (
    State(0, Arm64General, "", "64-bit registers"),
    State(2, Arm64Tls, "", "thread pointers"),
    State(4, Arm64Vector, "asimd", "vector registers"),
    State(5, Arm64Sve, "sve", "scalable vectors"),
    # Every thread has keys, whether it signs anything or not: they are no sign of use.
    State(6, Arm64AddressKeys, "", "address keys"),
    State(7, Arm64GenericKey, "", "generic key"),
    State(8, Arm64TaggedAddresses, "", "tagged addresses"),
    State(9, Arm64EnabledKeys, "paca", "choice of keys"),
)
"""Record type = 0x1100 + bit; bits 1 and 3 are kept for 32-bit ARM. A bit never changes its meaning."""

STATE_OF: dict[type[Record], State] = {state.record: state for state in STATES}

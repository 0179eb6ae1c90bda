"""The register records of x86 threads: what each holds, and the one table of their places in the record mask (R-B5).

The image keeps registers by name and explicit width and never as the kernel's own block, so that a CPU with another
XSAVE layout, or a kernel of another word size, can take them. A record that is missing means the state that every
program starts in: a program has not used what it has not changed.

Sources: struct user_regs_struct in sys/user.h, asm/ldt.h, asm/segment.h, Intel SDM vol. 1 chapters 3.4, 8.1, 10.5
and 13, Documentation/arch/x86/xstate.rst.
"""

from __future__ import annotations

from torpor.arch.masks import State
from torpor.image.fields import address, array, raw, structs, u8, u16, u32, u64
from torpor.image.record import Record, Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass


class X86General64(Record, type=0x1000):
    """The general registers of a 64-bit thread, in the order of struct user_regs_struct."""

    r15: int = address("r15")
    r14: int = address("r14")
    r13: int = address("r13")
    r12: int = address("r12")
    rbp: int = address("frame pointer")
    rbx: int = address("rbx")
    r11: int = address("r11")
    r10: int = address("r10; fourth argument of a system call")
    r9: int = address("r9; sixth argument")
    r8: int = address("r8; fifth argument")
    rax: int = address("rax; result of a system call, or -ERESTART* of an interrupted one")
    rcx: int = address("rcx")
    rdx: int = address("rdx; third argument")
    rsi: int = address("rsi; second argument")
    rdi: int = address("rdi; first argument")
    orig_rax: int = address("number of the system call under way, or -1")
    rip: int = address("instruction pointer")
    cs: int = u64("code segment selector: 0x33 for 64-bit, 0x23 for 32-bit code")
    eflags: int = address("flags")
    rsp: int = address("stack pointer")
    ss: int = u64("stack segment selector")
    fs_base: int = address("base of FS: the thread pointer")
    gs_base: int = address("base of GS")
    ds: int = u64("data segment selector")
    es: int = u64("ES selector")
    fs: int = u64("FS selector")
    gs: int = u64("GS selector")


class X86General32(Record, type=0x1001):
    """The general registers of a 32-bit thread, in the order of the i386's struct user_regs_struct."""

    ebx: int = u32("ebx; first argument of a system call")
    ecx: int = u32("ecx; second argument")
    edx: int = u32("edx; third argument")
    esi: int = u32("esi; fourth argument")
    edi: int = u32("edi; fifth argument")
    ebp: int = u32("ebp; sixth argument")
    eax: int = u32("eax; result of a system call, or -ERESTART* of an interrupted one")
    ds: int = u32("data segment selector")
    es: int = u32("ES selector")
    fs: int = u32("FS selector")
    gs: int = u32("GS selector")
    orig_eax: int = u32("number of the system call under way, or -1")
    eip: int = u32("instruction pointer")
    cs: int = u32("code segment selector: 0x23 on a 64-bit kernel, 0x73 on a 32-bit one")
    eflags: int = u32("flags")
    esp: int = u32("stack pointer")
    ss: int = u32("stack segment selector")


class X86TlsEntry(Struct):
    """One descriptor of the thread's own part of the GDT (struct user_desc, set_thread_area(2))."""

    entry: int = u32("number in the GDT: 12 to 14 on a 64-bit kernel, 6 to 8 on a 32-bit one")
    base: int = u32("first address")
    limit: int = u32("last offset, in bytes or in pages")
    flags: int = u32("bit 0 32-bit, 1-2 contents, 3 read-only, 4 limit in pages, 5 not present, 6 useable, 7 long mode")


class X86Tls(Record, type=0x1002):
    """The TLS descriptors in use; there is no such record when there are none (R-C1)."""

    entries: list[X86TlsEntry] = structs(X86TlsEntry, "the descriptors, ascending", max=3)


class X86Debug(Record, type=0x1003):
    """The debug registers. An untraced thread owns some only if a debugger died and left its breakpoints behind."""

    dr0: int = address("address of breakpoint 0")
    dr1: int = address("address of breakpoint 1")
    dr2: int = address("address of breakpoint 2")
    dr3: int = address("address of breakpoint 3")
    dr6: int = address("what the last debug exceptions were; at rest 0xffff0ff0")
    dr7: int = address("which breakpoints are enabled, their lengths and kinds")


class X87(Record, type=0x1004):
    """The x87 FPU (XSAVE component 0): FXSAVE's fields without its mxcsr. At rest: fcw 0x37f, all else 0."""

    fcw: int = u16("control word")
    fsw: int = u16("status word")
    ftw: int = u16("abridged tag word: bit n is 1 when physical register n is not empty")
    fop: int = u16("opcode of the last instruction, 11 bits")
    fcs: int = u16("segment of the last instruction, where the kernel is a 32-bit one")
    fds: int = u16("segment of its operand, where the kernel is a 32-bit one")
    fip: int = address("address of the last instruction")
    fdp: int = address("address of its operand")
    st: bytes = raw(80, "st0 to st7, 10 bytes each")


class X86Sse(Record, type=0x1005):
    """SSE (component 1), and MXCSR, which belongs to no component. At rest: mxcsr 0x1f80, all else 0."""

    mxcsr: int = u32("control and status")
    xmm: bytes = raw(256, "xmm0 to xmm15, 16 bytes each; a 32-bit thread has xmm0 to xmm7, the rest is 0")


class X86Avx(Record, type=0x1006):
    """AVX (component 2)."""

    ymm_high: bytes = raw(256, "bits 128-255 of ymm0 to ymm15, 16 bytes each; a 32-bit thread has 8, the rest is 0")


class X86Opmask(Record, type=0x1007):
    """The mask registers of AVX-512 (component 5)."""

    k: list[int] = array(64, "k0 to k7", max=8)


class X86ZmmHigh(Record, type=0x1008):
    """The upper halves of the first registers of AVX-512 (component 6)."""

    zmm_high: bytes = raw(512, "bits 256-511 of zmm0 to zmm15, 32 bytes each; a 32-bit thread has 8, the rest is 0")


class X86Zmm(Record, type=0x1009):
    """The second 16 registers of AVX-512 (component 7); 64-bit code only."""

    zmm: bytes = raw(1024, "zmm16 to zmm31, 64 bytes each")


class X86Pkru(Record, type=0x100A):
    """Rights of the protection keys (component 9), pkeys(7). At rest: what Linux gives to a new program, 0x55555554."""

    pkru: int = u32("bits 2n and 2n+1: access, and writing, denied by key n")


class X86TileConfig(Record, type=0x100B):
    """The shapes of the AMX tiles (component 17), as LDTILECFG takes them. 64-bit code only."""

    palette: int = u8("0: no tiles; 1: 8 tiles of up to 16 rows of up to 64 bytes")
    start_row: int = u8("where an interrupted tile load or store goes on")
    columns: list[int] = array(16, "bytes in a row, for each tile", max=8)
    rows: list[int] = array(8, "rows, for each tile", max=8)


class X86TileData(Record, type=0x100C):
    """The AMX tiles (component 18). The task must have asked for them (ARCH_REQ_XCOMP_PERM) and touched them once."""

    tiles: bytes = raw(8192, "tmm0 to tmm7, 1024 bytes each")


class X86ShadowStack(Record, type=0x100D):
    """The user shadow stack of CET (component 11; arch_prctl ARCH_SHSTK_*). 64-bit code only."""

    features: int = u64("bit 0: shadow stack, bit 1: WRSS allowed")
    ssp: int = address("shadow stack pointer")


class X86BoundRegisters(Record, type=0x100E):
    """MPX bnd0 to bnd3 (component 3), which Linux dropped in 5.6: saved by older kernels, restarted by none."""

    bounds: bytes = raw(64, "bnd0 to bnd3: lower and complement of upper bound, 8 bytes each")


class X86BoundConfig(Record, type=0x100F):
    """MPX bndcfgu and bndstatus (component 4)."""

    bndcfgu: int = u64("configuration")
    bndstatus: int = u64("status")


class X86Apx(Record, type=0x1010):
    """The general registers that APX adds (component 19). 64-bit code only."""

    r: list[int] = array(64, "r16 to r31", max=16)


class X86State(State):
    """A row of the table."""

    __slots__ = ("component",)

    def __init__(self, bit: int, record: type[Record], component: int, feature: str, title: str, gone: str = "") -> None:
        super().__init__(bit, record, feature, title, gone)
        self.component = component
        """The XSAVE state component (XCR0 bit) it is, or -1."""


_NO_MPX = "bounds registers are in use, which Linux supports no longer; rebuild the program without"
STATES: tuple[X86State, ...] = (
    X86State(0, X86General64, -1, "lm", "64-bit registers"),
    X86State(1, X86General32, -1, "ia32", "32-bit registers"),
    X86State(2, X86Tls, -1, "", "TLS descriptors"),
    X86State(3, X86Debug, -1, "", "debug registers"),
    X86State(4, X87, 0, "fpu", "x87 registers"),
    X86State(5, X86Sse, 1, "sse", "SSE registers"),
    X86State(6, X86Avx, 2, "avx", "AVX registers"),
    X86State(7, X86Opmask, 5, "avx512f", "AVX-512 mask registers"),
    X86State(8, X86ZmmHigh, 6, "avx512f", "AVX-512 registers"),
    X86State(9, X86Zmm, 7, "avx512f", "AVX-512 registers 16 to 31"),
    X86State(10, X86Pkru, 9, "ospke", "protection key rights"),
    X86State(11, X86TileConfig, 17, "amx_tile", "AMX tile shapes"),
    X86State(12, X86TileData, 18, "amx_tile", "AMX tiles"),
    X86State(13, X86ShadowStack, -1, "user_shstk", "shadow stack"),
    X86State(14, X86BoundRegisters, 3, "mpx", "MPX bound registers", _NO_MPX),
    X86State(15, X86BoundConfig, 4, "mpx", "MPX configuration", _NO_MPX),
    X86State(16, X86Apx, 19, "apx", "APX registers"),
)
"""Record type = 0x1000 + bit. New kinds are added at the end; a bit never changes its meaning."""

STATE_OF: dict[type[Record], X86State] = {state.record: state for state in STATES}


class Numbering:
    """How a kernel numbers the segments of its 32-bit programs (asm/segment.h)."""

    __slots__ = ("code", "data", "first_tls")

    def __init__(self, code: int, data: int, first_tls: int) -> None:
        self.code, self.data, self.first_tls = code, data, first_tls

    def selectors(self) -> tuple[int, ...]:
        """Code, data, and the three TLS slots."""
        return self.code, self.data, *(8 * (self.first_tls + slot) + 3 for slot in range(3))


# The code segment tells them apart: no TLS slot can hold code. 64-bit programs have the same, and one more for code.
ON_64 = Numbering(0x23, 0x2B, 12)
ON_32 = Numbering(0x73, 0x7B, 6)
CODE_64 = 0x33

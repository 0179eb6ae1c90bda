"""What this CPU and kernel offer, and whether an image can run on them (R-B2, R-B5).

A program chooses its code by what CPUID offered when it started: a memcpy of AVX-512 goes on being called long after
its registers are back at rest. So an image says two things: which features *its threads hold state of* (the record
masks) and which were *offered*. What is used and lacking here is refused always; what was only offered and is lacking
here is refused unless the user vouches for the program; more than there was is welcome.

Sources: /proc/cpuinfo (names: arch/x86/include/asm/cpufeatures.h), Intel SDM vol. 2 CPUID, vol. 1 13.2 and 13.5.
"""

from __future__ import annotations

import ctypes
import os

from torpor.arch.masks import refusals
from torpor.arch.x86.state import STATE_OF, STATES, X86Pkru
from torpor.arch.x86.xstate import EXTENDED, FXSAVE_SIZE, Layout
from torpor.errors import Obstacle, UsageError
from torpor.image.fields import array, text, u8, u32, u64
from torpor.image.record import Record
from torpor.linux import libc, procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class X86Header(Record, type=0x10F0):
    """The machine an x86 image was made on (R-B2): once per image, before every register record."""

    xcr0: int = u64("the register components that the kernel has enabled (XCR0); 3 where there is no XSAVE")
    xstate_size: int = u32("bytes of extended registers that the kernel saves for a task")
    fxsr: int = u8("1: FXSAVE")
    xsave: int = u8("1: XSAVE")
    offsets: list[int] = array(32, "where component n lies among these bytes, 0 if nowhere", max=64)
    features: str = text("what was offered to programs, as /proc/cpuinfo calls it, between blanks", max=8192)
    model: str = text("name of the CPU", max=256)


# Which of the names in /proc/cpuinfo count: instructions and registers that an unprivileged program can choose by
# CPUID, and that fault, or do something else, where they are lacking. Not: what only the kernel uses (pcid, smep,
# xsaves ...), what describes speed (erms, fsrm ...), and hints that do nothing on other CPUs (3dnowprefetch, cldemote).
PROGRAM_FLAGS = frozenset(
    name
    for group in (
        "fpu tsc cx8 cmov mmx mmxext 3dnow 3dnowext fxsr lm",  # still chosen at run time by 32-bit programs
        "sse sse2 pni ssse3 sse4_1 sse4_2 sse4a misalignsse",
        "avx f16c fma fma4 xop avx2 avx_vnni",
        "cx16 lahf_lm movbe popcnt abm bmi1 bmi2 tbm adx rdrand rdseed rdtscp rdpid rdpru",
        "aes pclmulqdq sha_ni gfni vaes vpclmulqdq rng_en ace_en ace2_en phe_en pmm_en",  # the last five are VIA's
        "clflush clflushopt clwb clzero movdiri movdir64b enqcmd serialize waitpkg mwaitx ring3mwait",
        "hle rtm tsxldtrk lwp",
        "fsgsbase ospke user_shstk ibt mpx",
        "xsave xsaveopt xsavec xgetbv1",  # the dynamic linker keeps arguments with them when it binds a function
    )
    for name in group.split()
)
PROGRAM_PREFIXES = ("avx512", "amx_")  # families that grow

# What newer kernels no longer print (cpufeatures.h since 6.11): where CPUID has it, as leaf, subleaf, register (eax 0,
# ebx 1, ecx 2, edx 3) and bit; and the register component without which it does not work.
_UNPRINTED = (
    ("sha512", 7, 1, 0, 0, 2), ("sm3", 7, 1, 0, 1, 2), ("sm4", 7, 1, 0, 2, 2), ("cmpccxadd", 7, 1, 0, 7, 0),
    ("amx_fp16", 7, 1, 0, 21, 18), ("avx_ifma", 7, 1, 0, 23, 2), ("movrs", 7, 1, 0, 31, 0),
    ("avx_vnni_int8", 7, 1, 3, 4, 2), ("avx_ne_convert", 7, 1, 3, 5, 2), ("amx_complex", 7, 1, 3, 8, 18),
    ("avx_vnni_int16", 7, 1, 3, 10, 2), ("avx10", 7, 1, 3, 19, 7), ("apx", 7, 1, 3, 21, 19),
)  # fmt: skip


PKRU = STATE_OF[X86Pkru].component


class Host:
    """This CPU and kernel."""

    __slots__ = ("flags", "layout", "model", "offers")

    def __init__(self, flags: Iterable[str], model: str, offers: Iterable[str], layout: Layout) -> None:
        self.flags, self.model, self.offers, self.layout = frozenset(flags), model, sorted(offers), layout


_host: Host | None = None


def host() -> Host:
    """What there is here: asked once, which takes less than a millisecond."""
    global _host
    if _host is None:
        _host = _ask()
    return _host


def offers() -> list[str]:
    """Names of the features that this CPU and kernel offer to programs, sorted.

    They are those of /proc/cpuinfo, apart from two that speak of the kernel: `lm`, it runs 64-bit programs, and `ia32`,
    it runs 32-bit ones.
    """
    return list(host().offers)


def header() -> X86Header:
    """The architecture header of an image made here."""
    return _header(host())


def described(cpuinfo: Mapping[str, str]) -> X86Header:
    """The header that an image made where /proc/cpuinfo has these lines would have, as far as they tell.

    What a newer kernel does not print (`_UNPRINTED`) counts as offered, and a 64-bit CPU as one whose kernel runs 32-bit
    programs: a restart there looks for itself. Raises UsageError when there are no flags.
    """
    flags = frozenset(cpuinfo.get("flags", "").split())
    if not flags:
        raise UsageError(Obstacle("processor", "its description is neither an image nor a copy of an x86 machine's /proc/cpuinfo"))
    layout = guessed_layout(flags, cpuinfo.get("vendor_id", ""), wide="lm" in flags)
    names = _for_programs(flags) | {"ia32"} | {row[0] for row in _UNPRINTED}
    return _header(Host(flags, cpuinfo.get("model name", ""), names, layout))


def _header(me: Host) -> X86Header:
    last = max(me.layout.places, default=-1)
    return X86Header(
        xcr0=me.layout.xcr0,
        xstate_size=me.layout.size,
        fxsr=int("fxsr" in me.flags),
        xsave=int("xsave" in me.flags),
        offsets=[me.layout.places.get(number, (0, 0))[0] for number in range(last + 1)],
        features=" ".join(me.offers),
        model=me.model,
    )


def verdict(header: X86Header, used: int, *, here: Sequence[str], cpu: str = "same") -> list[str]:
    """Why an image cannot run where the features `here` are offered, a sentence for each reason (R-B5).

    `header` is the image's, `used` the union of the record masks of its threads. `cpu` is "same" when the program may
    use whatever its old CPU offered, "used" when the user says that it only needs what it holds state of.
    """
    ran_on = header.model or "unknown CPU"
    return refusals(header.features, header.model, used, here, cpu, STATES, ran_on=ran_on)


def user_limit_32() -> int:
    """The first address that no 32-bit program can use: a 32-bit kernel keeps a part for itself (CONFIG_VMSPLIT_*).

    Its programs' stacks end at most 8 MiB below, as torpor's own does (arch/x86/mm/mmap.c). On a machine of another family, where
    images are only looked at, it is that of a 64-bit kernel.
    """
    if os.uname().machine not in ("i386", "i486", "i586", "i686"):
        return 0xFFFFE000
    stack = max(mapping.end for mapping in procfs.maps(os.getpid()) if mapping.path == "[stack]")
    return min(limit for limit in (0x40000000, 0x78000000, 0x80000000, 0xB0000000, 0xC0000000) if limit >= stack)


def _ask() -> Host:
    fields = procfs.cpuinfo()
    flags = frozenset(fields.get("flags", "").split())
    names = _for_programs(flags)
    wide = libc.WORD == 8 or os.uname().machine == "x86_64"
    cpuid = Cpuid.open()
    if cpuid is None:
        layout = guessed_layout(flags, fields.get("vendor_id", ""), wide=wide)
    else:
        layout = cpuid.layout(wide=wide) if "xsave" in flags else no_xsave(wide=wide)
        last_leaf = cpuid(0, 0)[0]
        # Each CPUID of a virtual machine is a trip to its host, 15 us and more.
        asked = {at: cpuid(*at) for at in {row[1:3] for row in _UNPRINTED} if at[0] <= last_leaf}
        for name, leaf, subleaf, register, bit, component in _UNPRINTED:
            if (leaf, subleaf) in asked and asked[leaf, subleaf][register] >> bit & 1 and layout.xcr0 >> component & 1:
                names.add(name)
        cpuid.close()
    if "ospke" not in flags:
        # A 32-bit kernel enables the component of a CPU with protection keys and knows nothing of it: no program can
        # use it, and it is not what a new program has elsewhere.
        layout.places.pop(PKRU, None)
    if not wide:
        names.discard("lm")
    if not wide or os.path.exists("/proc/sys/abi/vsyscall32"):  # CONFIG_IA32_EMULATION makes this file
        names.add("ia32")
    return Host(flags, fields.get("model name", ""), names, layout)


def _for_programs(flags: Iterable[str]) -> set[str]:
    return {flag for flag in flags if flag in PROGRAM_FLAGS or flag.startswith(PROGRAM_PREFIXES)}


# For each word size of the interpreter two functions of (leaf, subleaf, where), the second 64 bytes behind the first:
# CPUID, storing eax ebx ecx edx at `where`, and XGETBV of XCR0, storing eax edx.
_CODE = {
    8: ("5389f889f14989d00fa241890041895804418948084189500c5bc3", "4989d031c90f01d041890041895004c3"),
    4: ("53578b44240c8b4c24108b7c24140fa28907895f04894f0889570c5f5bc3", "538b5c241031c90f01d089038953045bc3"),
}
_mmap = libc.function("mmap", ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long, restype=ctypes.c_void_p)
_munmap = libc.function("munmap", ctypes.c_void_p, ctypes.c_size_t, restype=ctypes.c_int)
_READ_EXECUTE, _PRIVATE, _PAGE = 5, 2, 4096
_ARCH_GET_CPUID = 0x1011


class Cpuid:
    """The CPUID instruction, which Python cannot execute: `cpuid(leaf, subleaf)` gives (eax, ebx, ecx, edx)."""

    __slots__ = ("_at", "_cpuid", "_out", "_xgetbv")

    def __init__(self, at: int) -> None:
        self._at = at
        function = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)
        self._cpuid, self._xgetbv = function(at), function(at + 64)
        self._out = (ctypes.c_uint32 * 4)()

    @classmethod
    def open(cls) -> Cpuid | None:
        """None where no code of our own may run (SELinux execmem), or somebody makes the instruction fault."""
        try:
            if libc.call("arch_prctl", _ARCH_GET_CPUID) == 0:
                return None
        except OSError:
            pass  # this CPU or kernel cannot make it fault
        first, second = _CODE[libc.WORD]
        try:
            fd = os.memfd_create("torpor-cpuid", os.MFD_CLOEXEC)
        except OSError:
            return None
        try:
            os.write(fd, bytes.fromhex(first).ljust(64, b"\xcc") + bytes.fromhex(second))
            at = _mmap(None, _PAGE, _READ_EXECUTE, _PRIVATE, fd, 0)
        finally:
            os.close(fd)
        return None if at == ctypes.c_void_p(-1).value else cls(at)

    def __call__(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        self._cpuid(leaf, subleaf, ctypes.addressof(self._out))
        eax, ebx, ecx, edx = self._out
        return eax, ebx, ecx, edx

    def layout(self, *, wide: bool) -> Layout:
        """How the kernel of this CPU, which must have enabled XSAVE, sees an XSAVE area (leaf 0xD)."""
        self._xgetbv(0, 0, ctypes.addressof(self._out))
        xcr0 = self._out[0] | self._out[1] << 32
        places = {}
        for number in range(2, 63):
            if xcr0 >> number & 1:
                size, offset, _, _ = self(0xD, number)
                places[number] = (offset, size)
        return Layout(self(0xD, 0)[1], xcr0, places, wide=wide)

    def close(self) -> None:
        """Unmap the code; the object cannot be called any more."""
        _munmap(self._at, _PAGE)


def no_xsave(*, wide: bool) -> Layout:
    """FXSAVE's 512 bytes."""
    return Layout(FXSAVE_SIZE, 3, {}, wide=wide)


# Intel's CPUs have had every component at a place of its own so far; AMD's have those they know, one behind the other.
_INTEL_PLACES = {
    2: (576, 256), 3: (960, 64), 4: (1024, 64), 5: (1088, 64), 6: (1152, 512), 7: (1664, 1024), 9: (2688, 8),
    17: (2752, 64), 18: (2816, 8192), 19: (960, 128),
}  # fmt: skip
_AMD_SIZES = {2: 256, 5: 64, 6: 512, 7: 1024, 9: 8}


def guessed_layout(flags: Iterable[str], vendor: str, *, wide: bool) -> Layout:
    """The layout that CPUs with these flags have had so far, where CPUID cannot be asked; `Layout.misfit` checks it."""
    if "xsave" not in flags:
        return no_xsave(wide=wide)
    extended = {part.number for part in EXTENDED}
    enabled = sorted(s.component for s in STATES if s.component in extended and s.feature in flags)
    places, end = {}, FXSAVE_SIZE + 64
    for number in enabled:
        if vendor in ("AuthenticAMD", "HygonGenuine"):
            places[number] = (end, _AMD_SIZES.get(number, 0))
        else:
            places[number] = _INTEL_PLACES[number]
        end = max(end, sum(places[number]))
    return Layout(end, 3 | sum(1 << number for number in enabled), places, wide=wide)

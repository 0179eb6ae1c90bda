"""What this CPU and kernel offer, and whether an image can run on them (R-B2, R-B5).

A program chooses its code by the AT_HWCAP bits that it was started with. /proc/cpuinfo does not have them, but the name of the CPU,
from which they follow.

Sources: asm/cputable.h; arch/powerpc/kernel/cputable.c; getauxval(3); the kernel's Documentation/powerpc/elf_hwcaps.rst.
"""

from __future__ import annotations

import ctypes
import os
import struct

from torpor.arch.masks import refusals
from torpor.arch.powerpc.state import STATES
from torpor.errors import Obstacle, UsageError
from torpor.image.fields import array, text
from torpor.image.record import Record
from torpor.linux import libc, procfs
from torpor.linux.libc import PAGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_AT_HWCAP, _AT_PLATFORM, _AT_HWCAP2, _PLATFORM_MAX = 16, 15, 26, 32

_NAMES = (
    {
        31: "ppc32", 30: "ppc64", 29: "ppc601", 28: "altivec", 27: "fpu", 25: "4xxmac", 23: "spe", 22: "efpsingle",
        21: "efpdouble", 19: "power4", 18: "power5", 17: "power5+", 16: "cellbe", 15: "booke", 12: "arch_2_05", 11: "pa6t",
        10: "dfp", 9: "power6x", 8: "arch_2_06", 7: "vsx", 1: "true_le", 0: "ppcle",
    },
    {
        31: "arch_2_07", 30: "htm", 29: "dscr", 28: "ebb", 27: "isel", 26: "tar", 25: "vcrypto", 24: "htm-nosc",
        23: "arch_3_00", 22: "ieee128", 21: "darn", 20: "scv", 19: "htm-no-suspend", 18: "arch_3_1", 17: "mma",
    },
)  # fmt: skip
"""Bits of AT_HWCAP and AT_HWCAP2. Not named: mmu, smt, caches, time base and the like, on which no program depends."""

_IMPLIED = {
    "arch_3_1": "arch_3_00", "arch_3_00": "arch_2_07", "arch_2_07": "arch_2_06", "arch_2_06": "arch_2_05",
    "arch_2_05": "power5+", "power5+": "power5", "power5": "power4",
}  # fmt: skip
"""Of the levels of the architecture a CPU names only some; whatever has one has those below it."""

_BASE = "altivec arch_2_06 dfp fpu ppc32 ppc64 true_le vsx"
_CPUS = {
    "POWER4": "fpu power4 ppc32 ppc64",
    "POWER5": "fpu power5 ppc32 ppc64",
    "PPC970": "altivec fpu power4 ppc32 ppc64",
    "POWER6": "altivec arch_2_05 dfp fpu ppc32 ppc64 true_le",
    "POWER7": _BASE,
    "POWER8": f"{_BASE} arch_2_07 dscr ebb htm isel tar vcrypto",
    "POWER9": f"{_BASE} arch_2_07 arch_3_00 darn dscr ebb ieee128 isel tar vcrypto",
    "POWER10": f"{_BASE} arch_2_07 arch_3_00 arch_3_1 darn dscr ebb ieee128 isel mma tar vcrypto",
    "74": "altivec fpu ppc32 ppcle",
    "7": "fpu ppc32 ppcle",
    "604": "fpu ppc32 ppcle",
    "603": "fpu ppc32 ppcle",
    "6": "fpu ppc32",
    "e500": "booke efpsingle ppc32 spe",
}
"""By what the name of a CPU in /proc/cpuinfo begins with, the longest first: what all of them offer."""
_UNTOLD = {"POWER8": "htm-nosc pkey", "POWER9": "htm htm-nosc htm-no-suspend pkey scv", "POWER10": "pkey scv"}
"""What they offer besides where kernel and hypervisor allow it, of which the name does not tell: it counts as there."""


class PowerHeader(Record, type=0x12F0):
    """The machine a PowerPC image was made on (R-B2): once per image, before every register record."""

    features: str = text("what was offered to programs, as the kernel's documentation calls it, between blanks", max=8192)
    model: str = text("the CPU as /proc/cpuinfo calls it", max=256)
    platform: str = text("AT_PLATFORM: which directories a library is looked for in", max=_PLATFORM_MAX, default="")
    hwcap: list[int] = array(64, "AT_HWCAP, AT_HWCAP2 (getauxval(3))", max=8)


_header: PowerHeader | None = None


def header() -> PowerHeader:
    """The architecture header of an image made here: asked once."""
    global _header
    if _header is None:
        _header = _ask()
    return _header


def named(hwcap: Iterable[int]) -> set[str]:
    """The features that AT_HWCAP and AT_HWCAP2 stand for."""
    found = set()
    for word, names in zip(hwcap, _NAMES, strict=True):
        found |= {name for bit, name in names.items() if word >> bit & 1}
    return found


def described(cpuinfo: Mapping[str, str]) -> PowerHeader:
    """The header that an image made where /proc/cpuinfo has these lines would have, as far as the CPU's name tells.

    Raises UsageError for a name that is not known.
    """
    model = cpuinfo.get("cpu", "")
    known = next((name for name in sorted(_CPUS, key=len, reverse=True) if model.startswith(name)), None)
    if known is None:
        raise UsageError(Obstacle("processor", "its description is neither an image nor a copy of the /proc/cpuinfo of a PowerPC "
                                  "machine that torpor knows"))  # fmt: skip
    features = {*_CPUS[known].split(), *_UNTOLD.get(known, "").split()}
    if "altivec supported" not in model:
        features -= {"altivec", "vsx"}
    return PowerHeader(features=" ".join(sorted(features)), model=model, hwcap=[])


def verdict(header: PowerHeader, used: int, *, here: PowerHeader, cpu: str = "same") -> list[str]:
    """Why an image cannot run on `here`, a sentence for each reason (R-B5).

    `header` is the image's, `used` the union of the record masks of its threads. `cpu` is "same" when the program may
    use whatever its old CPU offered, "used" when the user says that it only needs what it holds state of.
    """
    offered = set(here.features.split())
    for name, lower in _IMPLIED.items():
        if name in offered:
            offered.add(lower)
    return refusals(header.features, header.model, used, offered, cpu, STATES, ran_on=f"CPU {header.model or 'unknown'}")


def user_limit_32() -> int:
    """The first address that no 32-bit program can use: a 32-bit kernel keeps a part for itself (CONFIG_TASK_SIZE).

    Its programs' stacks end a little below, as torpor's own does.
    """
    if os.uname().machine != "ppc":
        return (1 << 32) - PAGE
    stack = max(mapping.end for mapping in procfs.maps(os.getpid()) if mapping.path == "[stack]")
    return min(limit for limit in (0x8000_0000, 0xB000_0000, 0xC000_0000, (1 << 32) - PAGE) if limit >= stack)


def _ask() -> PowerHeader:
    with open("/proc/self/auxv", "rb") as file:
        values = dict(struct.iter_unpack("=QQ" if libc.WORD == 8 else "=II", file.read()))
    hwcap = [int(values.get(key, 0)) for key in (_AT_HWCAP, _AT_HWCAP2)]
    platform = ctypes.string_at(values[_AT_PLATFORM]) if values.get(_AT_PLATFORM) else b""
    return PowerHeader(
        features=" ".join(sorted(named(hwcap) | _keys())),
        model=procfs.cpuinfo().get("cpu", ""),
        platform=platform.decode("ascii", "replace")[:_PLATFORM_MAX],
        hwcap=hwcap,
    )


def _keys() -> set[str]:
    """Whether memory protection keys can be had, by asking for one (pkeys(7))."""
    try:
        libc.call("pkey_free", libc.call("pkey_alloc", 0, 0))
    except OSError:
        return set()
    return {"pkey"}

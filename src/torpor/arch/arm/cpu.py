"""What this CPU and kernel offer to 32-bit ARM programs, and whether an image can run on them (R-B2, R-B5, R-C4).

A program chooses its code by the HWCAP bits that it was started with, which are the names in /proc/cpuinfo, and was built for a
version of the instruction set. Programs for an older version run on a newer CPU.

Sources: arch/arm/include/uapi/asm/hwcap.h, arch/arm/kernel/setup.c and arch/arm64/kernel/cpuinfo.c (c_show).
"""

from __future__ import annotations

import ctypes
import os

from torpor.arch.arm.state import STATES, ArmVfpHigh
from torpor.arch.masks import State, refusals
from torpor.errors import Obstacle, UsageError
from torpor.image.fields import text, u32
from torpor.image.record import Record
from torpor.linux import libc, procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_NO_FEATURES = frozenset(("evtstrm", "swp"))
"""What the kernel does for itself, or in place of the CPU: no program depends on it."""
_WITH_NEON = tuple(State(each.bit, each.record, "neon", each.title) if each.record is ArmVfpHigh else each for each in STATES)
"""The table for a program that was offered NEON: what is in its upper registers, that has put there. VFP has them alone on no CPU
known, and a program whose NEON code found no NEON behind a restart would die."""
_MODEL = ("CPU implementer", "CPU part", "CPU variant", "CPU revision")
_PER_LINUX32 = 8  # linux/personality.h


class ArmHeader(Record, type=0x15F0):
    """The machine that a 32-bit ARM image was made on (R-B2): once per image, before every register record."""

    isa: int = u32("version of the instruction set, as 'CPU architecture' in /proc/cpuinfo")
    features: str = text("what was offered to programs, as /proc/cpuinfo calls it, between blanks", max=8192)
    model: str = text("implementer, part, variant and revision of the CPU, as /proc/cpuinfo has them", max=256)
    mmu: int = u32("1: there was a memory management unit", default=1)
    thumbee: int = u32("the handler base of ThumbEE, where it was in use", default=0)


_header: ArmHeader | None = None


def header() -> ArmHeader:
    """The architecture header of an image made here: asked once."""
    global _header
    if _header is None:
        _header = described(_cpuinfo())
    return _header


def described(cpuinfo: Mapping[str, str]) -> ArmHeader:
    """The header that an image made where /proc/cpuinfo has these lines would have. Raises UsageError when there are none."""
    features = set(cpuinfo.get("Features", "").split()) - _NO_FEATURES
    version = "".join(char for char in cpuinfo.get("CPU architecture", "") if char.isdigit())  # "5TEJ", say
    if "half" not in features or not version:  # every 32-bit ARM since version 4 has halfwords, and AArch64 calls nothing so
        raise UsageError(
            Obstacle("processor", "its description is neither an image nor a copy of a 32-bit ARM machine's /proc/cpuinfo")
        )
    if "neon" in features:
        features.add("vfpd32")  # it has no fewer; the arm64 kernel does not say it
    model = " ".join(cpuinfo.get(key, "?") for key in _MODEL)
    return ArmHeader(isa=int(version[0]), features=" ".join(sorted(features)), model=model)


def verdict(header: ArmHeader, used: int, *, here: ArmHeader, cpu: str = "same") -> list[str]:
    """Why an image cannot run on `here`, a sentence for each reason (R-B5).

    `header` is the image's, `used` the union of the record masks of its threads. `cpu` is "same" when the program may
    use whatever its old CPU offered, "used" when the user says that it only needs what it holds state of.
    """
    found = []
    if header.isa > here.isa:
        found.append(
            f"ARMv{header.isa}: the program ran on that version of the instruction set, and this CPU has version {here.isa}; "
            f"restart on ARMv{header.isa} or newer"
        )
    if not header.mmu:
        found.append("it comes from a machine without a memory management unit, where programs lie elsewhere: it cannot run here")
    if header.thumbee:
        found.append("thumbee: its state is in use, and no kernel keeps it any more")
    ran_on = f"CPU {header.model or 'unknown'}"
    states = _WITH_NEON if "neon" in header.features.split() else STATES
    return found + refusals(header.features, header.model, used, here.features.split(), cpu, states, ran_on=ran_on)


def _cpuinfo() -> dict[str, str]:
    """/proc/cpuinfo as a 32-bit program sees it: a 64-bit kernel shows it so to those who ask for that (personality(2))."""
    if not libc.WIDE_KERNEL:
        return procfs.cpuinfo()
    personality = libc.function("personality", ctypes.c_ulong, restype=ctypes.c_int)
    before = personality(0xFFFFFFFF)
    personality(before & ~0xFF | _PER_LINUX32)
    try:
        return procfs.cpuinfo()
    finally:
        personality(before)


def user_limit() -> int:
    """The first address that no program can use: a 32-bit kernel keeps a part for itself, and modules below (CONFIG_VMSPLIT_*).

    Programs' stacks end at most 8 MiB below, as torpor's own does. On a 64-bit kernel it is the page of kuser helpers, which
    every program has at the same place.
    """
    if libc.WIDE_KERNEL or not os.uname().machine.startswith("arm"):
        return 0xFFFF0000
    stack = max(mapping.end for mapping in procfs.maps(os.getpid()) if mapping.path == "[stack]")
    return min(limit - 0x1000000 for limit in (0x40000000, 0x80000000, 0xB0000000, 0xC0000000) if limit - 0x1000000 >= stack)

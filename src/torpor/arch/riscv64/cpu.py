"""What this CPU and kernel offer, and whether an image can run on them (R-B2, R-B5).

A program chooses its code by AT_HWCAP or riscv_hwprobe(2), which tell what the line "isa" of /proc/cpuinfo names. As on x86 an
image says which features its threads hold state of, and which were offered.

Sources: Documentation/arch/riscv/{uabi,hwprobe,vm-layout}.rst; arch/riscv/kernel/{cpu,signal}.c; asm/pgtable.h (TASK_SIZE).
"""

from __future__ import annotations

import os
import struct

from torpor.arch.masks import refusals
from torpor.arch.riscv64.state import STATE_OF, STATES, Riscv64Vector
from torpor.errors import Obstacle, UsageError
from torpor.image.fields import text, u8, u32, u64
from torpor.image.record import Record
from torpor.linux import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_AT_HWCAP, _AT_MINSIGSTKSZ = 16, 51
_FRAME = 1088
"""Bytes of struct rt_sigframe, behind which the vector registers come."""
_SHORTER = {("c",): "zca", ("c", "d"): "zcd", ("v",): "zve64d zve64f zve64x zve32f zve32x"}
"""What older kernels do not name, for it is part of something else (The RISC-V Instruction Set Manual, volume I: C, V, Zc)."""
_MODEL = ("uarch", "mvendorid", "marchid", "mimpid")
_WIDTHS = {"sv39": 38, "sv48": 47, "sv57": 56}
USUAL_WIDTH = 47
"""Kernels give no program an address above that for which it has not asked, however much there is."""


class Riscv64Header(Record, type=0x14F0):
    """The machine a riscv64 image was made on (R-B2): once per image, before every register record."""

    features: str = text("extensions that were offered to programs, as /proc/cpuinfo calls them, between blanks", max=8192)
    model: str = text("kind of core, vendor, architecture and implementation of the CPU, as /proc/cpuinfo has them", max=256)
    hwcap: int = u64("AT_HWCAP (getauxval(3))")
    vlenb: int = u32("bytes in a vector register; 0 where there are none, or it is not known")
    address_bits: int = u8("how wide the addresses of programs are: 38, 47 or 56; 0 where it is not known")


_header: Riscv64Header | None = None


def header() -> Riscv64Header:
    """The architecture header of an image made here: asked once."""
    global _header
    if _header is None:
        _header = _ask()
    return _header


def user_limit() -> int:
    """Where user memory ends: here, or at most on any machine, if this is none of the family."""
    bits = header().address_bits if os.uname().machine == "riscv64" else 0
    return 1 << (bits or max(_WIDTHS.values()))


def described(cpuinfo: Mapping[str, str]) -> Riscv64Header:
    """The header that an image made where /proc/cpuinfo has these lines would have, as far as they tell.

    The length of vectors is not among them. Raises UsageError when there are no extensions.
    """
    isa = cpuinfo.get("isa", "")
    if not isa.startswith("rv64"):
        raise UsageError(
            Obstacle("processor", "its description is neither an image nor a copy of a riscv64 machine's /proc/cpuinfo")
        )
    model = " ".join(cpuinfo.get(key, "?") for key in _MODEL)
    bits = _WIDTHS.get(cpuinfo.get("mmu", ""), 0)
    return Riscv64Header(features=" ".join(sorted(_features(isa))), model=model, hwcap=0, vlenb=0, address_bits=bits)


def _features(isa: str) -> set[str]:
    """The extensions in an "isa" line that concern programs; those of the kernel (h, s...) do not."""
    letters, *words = isa.removeprefix("rv64").split("_")
    found = set(letters) - {"h"} | {word for word in words if word[:1] not in ("s", "h")}
    if "g" in found:
        found |= set("imafd")
    for whole, parts in _SHORTER.items():
        if found.issuperset(whole):
            found.update(parts.split())
    return found


def verdict(header: Riscv64Header, used: int, *, here: Riscv64Header, cpu: str = "same") -> list[str]:
    """Why an image cannot run on `here`, a sentence for each reason (R-B5).

    `header` is the image's, `used` the union of the record masks of its threads. `cpu` is "same" when the program may
    use whatever its old CPU offered, "used" when the user says that it only needs what it holds state of.
    """
    ran_on = f"CPU {header.model or 'unknown'}"
    found = refusals(header.features, header.model, used, here.features.split(), cpu, STATES, ran_on=ran_on)
    in_use = used >> STATE_OF[Riscv64Vector].bit & 1
    if header.vlenb != here.vlenb and header.vlenb and here.vlenb and (in_use or cpu != "used"):
        found.append(
            f"v: its vector registers were of {header.vlenb} bytes where the program ran, and are of {here.vlenb} here; "
            "restart on a machine with such registers" + ("" if in_use else ", or say cpu=used if it uses none of them")
        )
    bits = min(header.address_bits, USUAL_WIDTH)
    if bits > here.address_bits > 0:
        found.append(
            f"mmu: its addresses are of {bits} bits, the stack's for one, and those here of {here.address_bits}; "
            "restart on a machine with sv48 or sv57"
        )
    return found


def _auxv() -> dict[int, int]:
    with open("/proc/self/auxv", "rb") as file:
        return dict(struct.iter_unpack("=QQ", file.read()))


def _ask() -> Riscv64Header:
    found, values = described(procfs.cpuinfo()), _auxv()
    found.hwcap = values.get(_AT_HWCAP, 0)
    if "zve32x" in found.features.split():
        # The kernel tells the length only as part of that of a signal frame, with less than one register of other things.
        found.vlenb = 1 << (max(values.get(_AT_MINSIGSTKSZ, 0) - _FRAME, 0) // 32).bit_length() >> 1
    return found

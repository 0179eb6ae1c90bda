"""What this CPU and kernel offer, and whether an image can run on them (R-B2, R-B5).

A program chooses its code by the HWCAP bits that it was started with, which are the names in /proc/cpuinfo. As on x86 an image
says which features its threads hold state of, and which were offered.

Sources: Documentation/arch/arm64/{elf_hwcaps,cpu-feature-registers}.rst, prctl(2) on PR_SVE_GET_VL.
"""

from __future__ import annotations

import struct

from torpor.arch.arm64.state import STATE_OF, STATES, Arm64Sve
from torpor.arch.masks import refusals
from torpor.errors import Obstacle, UsageError
from torpor.image.fields import array, text, u32
from torpor.image.record import Record
from torpor.linux import libc, procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_AT_HWCAP, _AT_HWCAP2, _AT_HWCAP3 = 16, 26, 29
_PR_SVE_GET_VL = 51
_NO_FEATURES = frozenset(("evtstrm", "cpuid"))
"""What the kernel does, and what it shows: no program depends on it."""
_MODEL = ("CPU implementer", "CPU part", "CPU variant", "CPU revision")


class Arm64Header(Record, type=0x11F0):
    """The machine an AArch64 image was made on (R-B2): once per image, before every register record."""

    features: str = text("what was offered to programs, as /proc/cpuinfo calls it, between blanks", max=8192)
    model: str = text("implementer, part, variant and revision of the CPU, as /proc/cpuinfo has them", max=256)
    hwcap: list[int] = array(64, "AT_HWCAP, AT_HWCAP2, AT_HWCAP3 (getauxval(3))", max=8)
    sve_length: int = u32("bytes of a scalable vector in a new process; 0 where there are none")


_header: Arm64Header | None = None


def header() -> Arm64Header:
    """The architecture header of an image made here: asked once."""
    global _header
    if _header is None:
        _header = _ask()
    return _header


def described(cpuinfo: Mapping[str, str]) -> Arm64Header:
    """The header that an image made where /proc/cpuinfo has these lines would have, as far as they tell.

    The length of scalable vectors is not among them. Raises UsageError when there are no features.
    """
    features = set(cpuinfo.get("Features", "").split()) - _NO_FEATURES
    if not features:
        raise UsageError(
            Obstacle("processor", "its description is neither an image nor a copy of an arm64 machine's /proc/cpuinfo")
        )
    model = " ".join(cpuinfo.get(key, "?") for key in _MODEL)
    return Arm64Header(features=" ".join(sorted(features)), model=model, hwcap=[], sve_length=0)


def verdict(header: Arm64Header, used: int, *, here: Arm64Header, cpu: str = "same") -> list[str]:
    """Why an image cannot run on `here`, a sentence for each reason (R-B5).

    `header` is the image's, `used` the union of the record masks of its threads. `cpu` is "same" when the program may
    use whatever its old CPU offered, "used" when the user says that it only needs what it holds state of.
    """
    ran_on = f"CPU {header.model or 'unknown'}"
    found = refusals(header.features, header.model, used, here.features.split(), cpu, STATES, ran_on=ran_on)
    in_use = used >> STATE_OF[Arm64Sve].bit & 1
    if header.sve_length != here.sve_length and here.sve_length and header.sve_length and (in_use or cpu != "used"):
        found.append(
            f"sve: its vectors were of {header.sve_length} bytes where the program ran, and are of {here.sve_length} here; "
            "set /proc/sys/abi/sve_default_vector_length" + ("" if in_use else ", or say cpu=used if it uses none of them")
        )
    return found


def _ask() -> Arm64Header:
    found = described(procfs.cpuinfo())
    with open("/proc/self/auxv", "rb") as file:
        values = dict(struct.iter_unpack("=QQ" if libc.WORD == 8 else "=II", file.read()))
    found.hwcap = [int(values.get(key, 0)) for key in (_AT_HWCAP, _AT_HWCAP2, _AT_HWCAP3)]
    if "sve" in found.features.split():
        found.sve_length = libc.prctl(_PR_SVE_GET_VL) & 0xFFFF
    return found

"""What this CPU and kernel offer, and whether an image can run on them (R-B2, R-B5).

A program chooses its code by the HWCAP bits that it was started with, which are the features in /proc/cpuinfo, or asks for
facilities itself (STFLE is no privileged instruction), which are there by number. As on x86 an image says which features its
threads hold state of, and which were offered.

Sources: arch/s390/kernel/processor.c (show_cpuinfo), getauxval(3); z/Architecture Principles of Operation, "Facility Indications".
"""

from __future__ import annotations

import struct

from torpor.arch.masks import refusals
from torpor.arch.s390x.state import STATES
from torpor.errors import Obstacle, UsageError
from torpor.image.fields import array, text
from torpor.image.record import Record
from torpor.linux import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_AT_HWCAP, _AT_HWCAP2 = 16, 26
_NO_FEATURES = frozenset(("sie",))
"""What the kernel does with its guests: no program depends on it."""
_CONTROL = frozenset((3, 4, 5, 6, 8, 9, 10, 11, 13, 14, 40, 51, 66, 67, 68, 78, 130, 131, 138, 139, 149, 158, 161))
"""Facilities of address translation, storage keys, virtual machines and counters: no program can use them."""


class S390xHeader(Record, type=0x13F0):
    """The machine an s390x image was made on (R-B2): once per image, before every register record."""

    features: str = text("what was offered to programs, as /proc/cpuinfo calls it; facilityN for what has a number only", max=8192)
    model: str = text("vendor and machine type, as /proc/cpuinfo has them", max=256)
    hwcap: list[int] = array(64, "AT_HWCAP, AT_HWCAP2 (getauxval(3))", max=8)


_header: S390xHeader | None = None


def header() -> S390xHeader:
    """The architecture header of an image made here: asked once."""
    global _header
    if _header is None:
        _header = described(procfs.cpuinfo())
        with open("/proc/self/auxv", "rb") as file:
            values = dict(struct.iter_unpack("=QQ", file.read()))
        _header.hwcap = [int(values.get(key, 0)) for key in (_AT_HWCAP, _AT_HWCAP2)]
    return _header


def described(cpuinfo: Mapping[str, str]) -> S390xHeader:
    """The header that an image made where /proc/cpuinfo has these lines would have. UsageError: there are no features."""
    features = set(cpuinfo.get("features", "").split()) - _NO_FEATURES
    if "zarch" not in features:
        raise UsageError(
            Obstacle("processor", "its description is neither an image nor a copy of an s390x machine's /proc/cpuinfo")
        )
    facilities = {int(number) for number in cpuinfo.get("facilities", "").split() if number.isdecimal()} - _CONTROL
    names = [*sorted(features), *(f"facility{number}" for number in sorted(facilities))]
    machine = cpuinfo.get("processor 0", "").rpartition("machine = ")[2]
    return S390xHeader(features=" ".join(names), model=f"{cpuinfo.get('vendor_id', '')} {machine}".strip(), hwcap=[])


def verdict(header: S390xHeader, used: int, *, here: S390xHeader, cpu: str = "same") -> list[str]:
    """Why an image cannot run on `here`, a sentence for each reason (R-B5).

    `header` is the image's, `used` the union of the record masks of its threads. `cpu` is "same" when the program may
    use whatever its old CPU offered, "used" when the user says that it only needs what it holds state of.
    """
    ran_on = f"CPU {header.model or 'unknown'}"
    return refusals(header.features, header.model, used, here.features.split(), cpu, STATES, ran_on=ran_on)

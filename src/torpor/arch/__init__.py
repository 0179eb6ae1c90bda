"""Processor families: each is a package with the `KINDS` of task of that family; the rest of torpor asks here.

The family of this machine is imported at the start, the others when an image is of them: imports are the time of a small
checkpoint.
"""

from __future__ import annotations

import os
import sys

from torpor.arch.contract import Arch
from torpor.errors import Obstacle, Unsupported
from torpor.image.record import LOADERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from torpor.image.record import Record


class Family:
    """A processor family: its package, `uname -m` of its machines, its first record type, image numbers of its kinds of task.

    Machines may run programs of more than one family.
    """

    __slots__ = ("kinds", "machines", "package", "records")

    def __init__(self, package: str, machines: str, records: int, *kinds: int) -> None:
        self.package, self.machines, self.records, self.kinds = package, machines.split(), records, frozenset(kinds)

    def load(self) -> tuple[Arch, ...]:
        """Its kinds of task."""
        # Not importlib.import_module(): it would bring warnings with it.
        kinds: tuple[Arch, ...] = __import__(f"torpor.arch.{self.package}", fromlist=["KINDS"]).KINDS
        return kinds


FAMILIES = (
    Family("x86", "x86_64 i386 i486 i586 i686", 0x1000, 1, 2),
    Family("arm64", "aarch64", 0x1100, 4),
    Family("powerpc", "ppc64le ppc64 ppc", 0x1200, 5, 6, 7),
    Family("riscv64", "riscv64", 0x1400, 9),
    Family("s390x", "s390x", 0x1300, 8),
    Family("arm", "armv6l armv7l armv8l aarch64", 0x1500, 3),
)
ALL = tuple(f"torpor.arch.{family.package}" for family in FAMILIES)
"""The modules whose records are part of the format."""
REGISTERS = range(0x1000, 0x2000)
"""The types of all register records: 256 for each family, the upper ones of them for what belongs to the machine."""


def _load(number: int) -> None:
    for family in FAMILIES:
        if number in range(family.records, family.records + 256):
            family.load()


LOADERS.append((REGISTERS, _load))

_machine = os.uname().machine
KINDS: tuple[Arch, ...] = tuple(
    kind
    for family in FAMILIES
    if _machine in family.machines
    for kind in family.load()
    if kind.byte_order == sys.byteorder
)
"""The kinds of task that can run here."""


def by_image_id(image_id: int) -> Arch | None:
    """The kind of task that an image's architecture number means, or None for one that this version does not know."""
    for family in FAMILIES:
        if image_id in family.kinds:
            return next(kind for kind in family.load() if kind.image_id == image_id)
    return None


def is_register_record(record: Record) -> bool:
    """Whether `record` holds registers of a thread, of whichever kind."""
    return record.type_number in REGISTERS and record.type_number & 0xFF < 0xF0


def of_program(pid: int) -> Arch:
    """The kind of task that process `pid` is, by its program's ELF header (elf(5)). Raises Unsupported, OSError."""
    fd = os.open(f"/proc/{pid}/exe", os.O_RDONLY | os.O_CLOEXEC)
    try:
        head = os.pread(fd, 52, 0)
    finally:
        os.close(fd)
    word = {1: 4, 2: 8}.get(head[4] if len(head) == 52 else 0, 0)
    order: Literal["big", "little"] = "big" if head[5:6] == b"\2" else "little"
    machine, flags = int.from_bytes(head[18:20], order), int.from_bytes(head[48:52] if word == 8 else head[36:40], order)
    for kind in KINDS:
        if kind.elf_machine == machine and kind.word == word and kind.has_abi(flags):
            return kind
    raise Unsupported(
        Obstacle(
            "program",
            f"it is of a processor family or ABI that torpor cannot save here (ELF machine {machine}, {8 * word} bit)",
            pid=pid,
        )
    )

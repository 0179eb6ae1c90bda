"""Processor families. `KINDS` has one `Arch` for each kind of task torpor knows; the rest of torpor asks here."""

from __future__ import annotations

import os

from torpor.arch import x86
from torpor.arch.contract import Arch
from torpor.errors import Obstacle, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from torpor.image.record import Record

KINDS: tuple[Arch, ...] = x86.KINDS


def by_image_id(image_id: int) -> Arch | None:
    """The kind of task that an image's architecture number means, or None for one this version cannot restart."""
    return next((kind for kind in KINDS if kind.image_id == image_id), None)


def is_register_record(record: Record) -> bool:
    """Whether `record` holds registers of a thread, of whichever kind."""
    return any(kind.registers.knows(record) for kind in KINDS)


def of_program(pid: int) -> Arch:
    """The kind of task that process `pid` is, by its program's ELF header (elf(5)). Raises Unsupported, OSError."""
    fd = os.open(f"/proc/{pid}/exe", os.O_RDONLY | os.O_CLOEXEC)
    try:
        head = os.pread(fd, 20, 0)
    finally:
        os.close(fd)
    word = {1: 4, 2: 8}.get(head[4] if len(head) == 20 else 0, 0)
    machine = int.from_bytes(head[18:20], "little")
    for kind in KINDS:
        if kind.elf_machine == machine and kind.word == word:
            return kind
    raise Unsupported(
        Obstacle(
            "program",
            f"it is of a processor family that torpor cannot save here (ELF machine {machine}, {8 * word} bit)",
            pid=pid,
        )
    )

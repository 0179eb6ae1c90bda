"""Reads the heartbeat file of `tests/programs/torture.c` from outside; its layout is written down in torture.h."""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path

HEADER = struct.Struct("=8s8I24x")
END_AT = 8 + 7 * 4  # the offset of its last number, by which the program is asked to end
SLOT = struct.Struct("=5Q2I16s")
MAGIC = b"TORTURE1"
SILENT = 1


@dataclass(frozen=True)
class Slot:
    """One thread or child: see struct slot in torture.h."""

    index: int
    count: int
    errors: int
    last_error_code: int
    detail: int
    tid: int
    pid: int
    flags: int
    role: str


class Heartbeat:
    """The mapped file. Reading is never torn badly: every field is an aligned word written by one task."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        magic, self.slot_size, self.slots, _, self.bits, self.pid, self.threads, self.children, _ = HEADER.unpack_from(self._memory)
        if magic != MAGIC or self.slot_size != SLOT.size:
            raise ValueError(f"{path}: not a heartbeat file of this version of torture")

    def ready(self) -> bool:
        return bool(HEADER.unpack_from(self._memory)[3])

    def ask_to_end(self) -> None:
        """The program joins its threads, reaps its children and exits."""
        self._memory[END_AT] = 1

    def slot(self, index: int) -> Slot:
        count, errors, code, detail, tid, pid, flags, role = SLOT.unpack_from(self._memory, HEADER.size + index * self.slot_size)
        name = role.rstrip(b"\0").decode("ascii", "replace")
        return Slot(index, count, errors, code, detail, tid, pid, flags, name)

    def all(self) -> list[Slot]:
        return [self.slot(index) for index in range(self.slots)]

    def beating(self) -> dict[int, int]:
        """The counts of all slots that are expected to grow, by slot."""
        return {slot.index: slot.count for slot in self.all() if not slot.flags & SILENT}

    def errors(self) -> int:
        return sum(slot.errors for slot in self.all())

    def close(self) -> None:
        self._memory.close()


def error_lines(path: Path) -> list[str]:
    """The errors that torture wrote as text beside the heartbeat file `path`."""
    try:
        text = Path(f"{path}.errors").read_text(errors="replace")
    except FileNotFoundError:
        return []
    return text.splitlines()


def code_names(header: Path) -> dict[str, int]:
    """Names and numbers of all errors, from torture.h."""
    return {name: int(number) for name, number in re.findall(r"X\((\w+), (\d+)\)", header.read_text())}

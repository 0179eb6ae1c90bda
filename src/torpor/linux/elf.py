"""The little of elf(5) that tells one build of a program or library from another."""

from __future__ import annotations

import struct

NT_GNU_BUILD_ID = 3
_PT_NOTE = 4


def build_id(image: bytes) -> bytes:
    """The GNU build id of the ELF file that begins with `image`, or b"" where it has none or it is not in these bytes.

    Any width and byte order; nothing in the file is trusted.
    """
    if len(image) < 64 or image[:4] != b"\x7fELF":
        return b""
    order = "<" if image[5] == 1 else ">"
    wide = image[4] == 2
    try:
        (table,) = struct.unpack_from(order + ("Q" if wide else "I"), image, 32 if wide else 28)
        size, count = struct.unpack_from(order + "HH", image, 54 if wide else 42)
        for index in range(min(count, 64)):
            at = table + index * size
            (kind,) = struct.unpack_from(order + "I", image, at)
            if kind == _PT_NOTE:
                layout = order + ("Q16xQ" if wide else "I8xI")
                offset, length = struct.unpack_from(layout, image, at + (8 if wide else 4))
                found = _find_note(image[offset : offset + length], order)
                if found:
                    return found
    except struct.error:
        pass
    return b""


def _find_note(notes: bytes, order: str) -> bytes:
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from(order + "III", notes, at)
        start = at + 12 + (name_size + 3 & ~3)
        if kind == NT_GNU_BUILD_ID and notes[at + 12 : at + 16] == b"GNU\0":
            return notes[start : start + size]
        at = start + (size + 3 & ~3)
    return b""

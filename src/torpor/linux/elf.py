"""The little of elf(5) that tells one build of a program or library from another, and what kind of program a kernel runs."""

from __future__ import annotations

import errno
import os
import struct
import sys

NT_GNU_BUILD_ID = 3
_PT_INTERP, _PT_NOTE = 3, 4
_NOWHERE = b"/dev/null/nothing\0"


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


def header_size(word: int, segments: int) -> int:
    """Bytes of the ELF header and of `segments` program headers behind it, `word` bytes in a pointer."""
    return 64 + 56 * segments if word == 8 else 52 + 32 * segments


def header(machine: int, word: int, flags: int, entry: int, segments: int) -> bytes:
    """The ELF header of an executable, `word` bytes in a pointer, in this kernel's byte order (elf(5)).

    `flags` is e_flags, `entry` the address of its first instruction; `segments` program headers are to follow.
    """
    ident = b"\x7fELF" + bytes((word // 4, 1 if sys.byteorder == "little" else 2, 1)) + bytes(9)
    layout = "=16sHHIQQQIHHHHHH" if word == 8 else "=16sHHIIIIIHHHHHH"
    first, each = header_size(word, 0), header_size(word, 1) - header_size(word, 0)
    return struct.pack(layout, ident, 2, machine, 1, entry, first, 0, flags, first, each, segments, 0, 0, 0)


def segment(word: int, kind: int, flags: int, offset: int, address: int, length: int, align: int) -> bytes:
    """A program header: `kind` is p_type, `flags` p_flags, the rest in bytes (elf(5))."""
    if word == 8:
        return struct.pack("=IIQQQQQQ", kind, flags, offset, address, address, length, length, align)
    return struct.pack("=8I", kind, offset, address, address, length, length, flags, align)


def runs(machine: int, word: int, flags: int) -> bool:
    """Whether this kernel runs programs of an ELF machine, `word` bytes in a pointer, and e_flags, in its own byte order.

    It is asked by the execution of a program without an interpreter: of the kind that it knows the kernel says ENOTDIR, of any
    other ENOEXEC, and there is no process. A kernel's configuration does not tell: what it has can be switched off when it is
    booted (fs/binfmt_elf.c; binfmt_misc, which would run a program by an emulator, does not count).
    """
    interpreter = segment(word, _PT_INTERP, 4, header_size(word, 1), 0, len(_NOWHERE), 1)
    program = header(machine, word, flags, 0, 1) + interpreter
    file = os.memfd_create("torpor-asks", os.MFD_CLOEXEC)
    try:
        os.write(file, program + _NOWHERE)
        readable = os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(file)  # what is open for writing cannot be executed
    try:
        emulator = os.posix_spawn(f"/proc/self/fd/{readable}", ["torpor"], {})
    except OSError as error:
        return error.errno == errno.ENOTDIR
    finally:
        os.close(readable)
    os.kill(emulator, 9)
    os.waitpid(emulator, 0)
    return False

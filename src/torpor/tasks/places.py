"""Where in a process torpor's code and work area can lie, and what is there without them.

The code goes where nothing else looks: into the zero padding behind the section headers of the vdso, or elsewhere in what the
kernel maps. The work area is a hole between mappings, mapped while a thread makes calls (tasks/remote.py).
"""

from __future__ import annotations

import ctypes
import os
import struct

from torpor.errors import Obstacle, TorporError, Unsupported
from torpor.linux import procfs
from torpor.linux.libc import PAGE, WORD
from torpor.tasks.retry import slots_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.linux.procfs import Mapping
    from torpor.tasks.freeze import FrozenProcess
    from torpor.tasks.task import Process

WORK_LENGTH = 64 * 1024


class Busy(TorporError):
    """A thread is still leaving the code of a torpor that was killed; it does so by itself, a moment later."""


def find_padding(process: Process, mappings: Sequence[Mapping]) -> int:
    """Where torpor's code can lie in a process: the address behind the vdso's section headers (elf(5)), as a rule.

    If there is no room for slots, too, it lies over these headers, which only debuggers read. Raises Unsupported when the
    process has no vdso, or no room in it.
    """
    place, offset = process.arch.code_in, process.arch.code_offset
    for mapping in mappings:
        if mapping.path == place:
            if offset:
                return mapping.start + offset
            head = process.read(mapping.start, 64)
            length = len(process.arch.code)
            ends = (_headers_end, _segments_end) if process.arch.code_behind_segments else (_headers_end,)
            for needed in (length + process.arch.slot_size * process.arch.slot_count, length):
                for end_of in ends:
                    start: int = mapping.start + (end_of(process, mapping.start, head) + 15 & ~15)
                    if start + needed <= mapping.end:
                        return start
            raise Unsupported(Obstacle("vdso", "there is no room behind its section headers", pid=process.pid))
    if offset:
        raise Unsupported(Obstacle(place, "the process has none", "start it on a kernel that gives it one", pid=process.pid))
    raise Unsupported(
        Obstacle("vdso", "the process has none", "start it without removing the vdso (vdso=0 on the kernel's command line)",
                 pid=process.pid)
    )  # fmt: skip


def _headers_end(process: Process, start: int, head: bytes) -> int:
    """Where, from `start`, the section headers of the vdso end whose ELF header is `head` (elf(5))."""
    wide = process.arch.word == 8
    (table,) = struct.unpack_from("=Q" if wide else "=I", head, 40 if wide else 32)
    size, count = struct.unpack_from("=HH", head, 58 if wide else 46)
    end: int = table + size * count
    return end


def _segments_end(process: Process, start: int, head: bytes) -> int:
    """Where, from `start`, the loaded segments of the vdso there end, whose ELF header is `head` (elf(5))."""
    wide = process.arch.word == 8
    (table,) = struct.unpack_from("=Q" if wide else "=I", head, 32 if wide else 28)
    size, count = struct.unpack_from("=HH", head, 54 if wide else 42)
    segment = struct.Struct("=I4xQ16xQ" if wide else "=II8xI")
    end = 64
    for at in range(start + table, start + table + size * count, size):
        kind, offset, length = segment.unpack(process.read(at, segment.size))
        if kind == 1:  # PT_LOAD
            end = max(end, offset + length)
    return end


def take_code_away(process: Process, padding: int) -> None:
    """Make padding of what torpor's code lay in, when all threads have their own registers back."""
    os.pwrite(process.mem, _former(process, padding, len(process.arch.code)), padding)


def _vdso_before(process: Process, padding: int) -> tuple[int, bytes]:
    """Where the vdso begins in which the padding lies, and its ELF header: 64 bytes, or fewer when the process has been killed."""
    start = padding & -PAGE
    while len(head := os.pread(process.mem, 64, start)) == 64 and head[:4] != b"\x7fELF":
        start -= PAGE
    return start, head


def _former(process: Process, padding: int, length: int) -> bytes:
    """What the kernel had put where torpor's code lies.

    Zeros; in a page of its own the word that stands in front, too; or torpor's own vdso is like the task's, or else it was for
    debuggers only.
    """
    if process.arch.code_offset:
        return (os.pread(process.mem, 4, padding - 4) * (length // 4 + 1))[:length]
    if not process.arch.code_behind_segments:
        return bytes(length)
    start, head = _vdso_before(process, padding)
    if len(head) < 64 or padding - start >= _headers_end(process, start, head):
        return bytes(length)
    own = next((mapping for mapping in procfs.maps(os.getpid()) if mapping.path == "[vdso]"), None)
    there = ctypes.string_at(own.start, own.end - own.start) if own else b""
    if head != there[:64]:
        return bytes(length)
    return there[padding - start : padding - start + length].ljust(length, b"\0")


def find_hole(mappings: Sequence[Mapping], length: int, limit: int) -> int:
    """An address where `length` bytes are free with a page to spare on both sides, below `limit`. Raises Unsupported."""
    low = 0x10000 + PAGE
    for mapping in mappings:
        if mapping.start >= limit:
            break
        if mapping.start - low >= length + PAGE and "gd" not in mapping.flags and mapping.path != "[stack]":
            return low
        low = max(low, mapping.end + PAGE)
    if limit - low >= length + 2 * PAGE:
        return low
    raise Unsupported(Obstacle("address space", "there is no room for 64 KiB of work space in it"))


def being_left(process: FrozenProcess, there: bytes) -> bool:
    """Whether a thread is still inside code that a killed torpor left in the padding, or in a slot. `there`: what they hold.

    Either its instruction pointer is there, or a signal handler interrupted it there and will return to it.
    """
    a, code_end = process.arch, process.padding + len(process.arch.code)
    if any((process.second or process.padding) <= thread.regs[a.ip] < code_end for thread in process.threads):
        return True
    end = process.padding + len(there)
    if not there.strip(b"\0") or (a.code_offset and there == _former(process, process.padding, len(there))):
        return False
    # Where there is none of our code in the first place, there is none in the second (Remotes).
    start = process.second if process.second and there[: len(a.code)].strip(b"\0") else process.padding
    for thread in process.threads:
        try:
            stack = os.pread(process.mem, 16384, thread.regs[a.sp] - 128)
        except OSError:
            continue
        if any(start <= word < end for word in a.unwords(stack[: len(stack) // a.word * a.word])):
            return True
    return False


def find_second(process: Process, padding: int) -> int:
    """Where torpor's code can lie once more, below `padding`, over headers that only debuggers read; 0: there is no room.

    What a killed torpor leaves there can be put right only for tasks that have the same vdso as torpor itself. Both places are in
    one page, as far as it must be known which of two threads unmaps the work area (`Remote.take_over`).
    """
    arch = process.arch
    second, at = padding - (len(arch.code) + 15 & ~15), arch.code.symbols["v_length"]
    if not arch.code_twice or arch.word != WORD or (second + at) // PAGE != (padding + at) // PAGE:
        return 0
    start, head = _vdso_before(process, padding)
    return second if len(head) == 64 and start + _segments_end(process, start, head) <= second else 0


def make_place(process: FrozenProcess) -> None:
    """Find out where in a frozen process code and work area can lie. Raises Unsupported; Busy while it is being left."""
    process.mappings = procfs.maps(process.pid)
    padding = process.padding = process.padding or find_padding(process, process.mappings)
    length, (_, end) = len(process.arch.code), slots_at(process, padding)
    there = os.pread(process.mem, end - padding, padding)
    left = there[:length].strip(b"\0")
    process.second = find_second(process, padding) if left or len(process.threads) > 1 else 0
    if being_left(process, there):
        raise Busy(Obstacle("process", "it is just leaving the calls of a torpor that was killed", "try again", pid=process.pid))
    if process.second:
        # What a killed torpor has left lies in the first place, too.
        second = process.second
        process.under_second = _former(process, second, length) if left else process.read(second, length)
    process.hole = find_hole(process.mappings, WORK_LENGTH, process.arch.user_limit)

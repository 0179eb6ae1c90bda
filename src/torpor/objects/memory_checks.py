"""What is checked of an address space before it is made (R-D1, R-D2): `faults` no program can have, `check` cannot be had here.

The kernel's own checks are in mm/mmap.c (do_mmap), mm/madvise.c, mm/mlock.c and kernel/sys.c (prctl_set_mm_map).
"""

from __future__ import annotations

import ctypes
import os
import stat
from bisect import bisect_right

from torpor.errors import Obstacle
from torpor.linux import clone, elf, libc, procfs
from torpor.linux.libc import PAGE
from torpor.objects.memory import (
    ANONYMOUS,
    DONTFORK,
    FILE,
    GROWSDOWN,
    HUGEPAGE,
    LOCKED,
    LOCKONFAULT,
    MAYWRITE,
    MERGEABLE,
    NOHUGEPAGE,
    PROT_WRITE,
    RANDOM,
    SEQUENTIAL,
    SHARED,
    SPECIAL,
    WIPEONFORK,
    wrong_vdso,
)
from torpor.objects.nodes import MEMFD, NAMED, WITH_CONTENTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torpor.arch.contract import Arch
    from torpor.image.chain import Source
    from torpor.objects.memory import MappingRecord, Mm, Range
    from torpor.objects.nodes import FileNode

    Nodes = Callable[[int], FileNode]

_SPECIAL_NAMES = ("[vdso]", "[vvar]", "[vvar_vclock]", "[sigpage]")
_MARKS = (
    "start_code", "end_code", "start_data", "end_data", "start_brk", "brk", "start_stack", "arg_start", "arg_end", "env_start",
    "env_end",
)  # fmt: skip
_LOWEST_MARK = 0x10000
"""CONFIG_LSM_MMAP_MIN_ADDR, below which the kernel takes no mark, whatever sysctl vm.mmap_min_addr says."""
_ZERO = 1 << 32 | 5
"""/dev/zero, the only device whose mapping is memory like any other."""
_EXEC = 4
_SEAL_WRITE, _SEAL_FUTURE_WRITE = 8, 16
_OFFSETS = {4: 1 << 44, 8: 1 << 63}
"""By word size: mmap2 counts 32 bits of pages, and no file is longer than 2^63-1 bytes."""
_EXCLUSIVE = (HUGEPAGE | NOHUGEPAGE, SEQUENTIAL | RANDOM)


# --- what no program can have


def faults(mm: Mm, arch: Arch, base: Mm | None, nodes: Nodes) -> Iterator[str]:
    """What in the record of an address space no program can have. `base`: the one it was forked from, if pages are shared."""
    free = 0
    for m in mm.mappings:
        if m.start < free or m.end <= m.start:
            yield f"mapping {m.start:#x}-{m.end:#x} overlaps the one before it or is empty"
        elif reason := _mapping_fault(m, arch, nodes):
            yield f"mapping {m.start:#x}-{m.end:#x} {reason}"
        free = max(free, m.end)
    for mark in _MARKS:
        if not _LOWEST_MARK <= getattr(mm, mark) < arch.user_limit:
            yield f"{mark} is outside of user space"
    # kernel/sys.c, validate_prctl_map_addr()
    if mm.start_code >= mm.end_code:
        yield "its code ends before it starts"
    for first, last in (("start_data", "end_data"), ("start_brk", "brk"), ("arg_start", "arg_end"), ("env_start", "env_end")):
        if getattr(mm, first) > getattr(mm, last):
            yield f"{last} lies before {first}"
    if len(mm.auxv) % (2 * arch.word):
        yield "its auxiliary vector is not of whole entries"
    exe = nodes(mm.exe)
    if not stat.S_ISREG(exe.mode) or exe.kind not in (NAMED, *WITH_CONTENTS):
        yield f"its program {exe.path!r} is no file that can be executed"
    if sum(m.name == arch.code_in for m in mm.mappings) != 1:
        yield f"it has no {arch.code_in.strip('[]')}, or more than one"
    if _outside(mm.guards, [m for m in mm.mappings if m.kind != SPECIAL]):
        yield "its guard pages are out of order, or lie in no mapping"
    yield from _heritage_faults(mm, base)


def _mapping_fault(m: MappingRecord, arch: Arch, nodes: Nodes) -> str | None:
    """Why there is no such mapping, or None."""
    a = m.attributes
    if m.end > arch.user_limit:
        return "is outside of user space"
    if m.kind == SPECIAL:
        return None if m.name in _SPECIAL_NAMES else f"is a special mapping of an unknown name, {m.name!r}"
    if m.name or (m.kind == FILE) != bool(m.node) or (m.kind == ANONYMOUS and m.offset):
        return "has a name, a file or an offset that does not go with its kind"
    if a and (any(a & both == both for both in _EXCLUSIVE) or a & (LOCKED | LOCKONFAULT) == LOCKONFAULT):
        return f"has attributes that do not go together, {a:#x}"
    if m.kind == ANONYMOUS:
        return "is shared and of no file" if a & SHARED else None
    if a & (GROWSDOWN | WIPEONFORK):
        return "is of a file and grows down or is wiped on fork"
    if m.offset % PAGE or m.offset + m.end - m.start > _OFFSETS[arch.word]:
        return f"has an impossible file offset, {m.offset:#x}"
    node = nodes(m.node)
    memory_like = stat.S_ISREG(node.mode) or (stat.S_ISCHR(node.mode) and node.device == _ZERO)
    if node.kind not in (NAMED, *WITH_CONTENTS) or not memory_like:
        return f"is of {node.path!r}, which is no file that can be mapped"
    if a & SHARED and m.prot & PROT_WRITE and not a & MAYWRITE:
        return "can be written although it must not be"
    if a & SHARED and a & MAYWRITE and node.seals & _SEAL_WRITE:
        return "can be written although its file is sealed against it"
    return None


def _heritage_faults(mm: Mm, base: Mm | None) -> Iterator[str]:
    """What a process that was forked, and has executed nothing since, must have from its parent."""
    if base is None:
        if mm.dropped:
            yield "it has dropped pages of a parent it shares none with"
        return
    if mm.exe != base.exe or mm.vdso != base.vdso or _specials(mm) != _specials(base):
        yield "it shares pages with its parent, and has another program or vdso"
    mine = {(m.start, m.end) for m in mm.mappings}
    both = [m for m in base.mappings if m.kind != SPECIAL and not m.attributes & (SHARED | DONTFORK | WIPEONFORK)]
    if _outside(mm.dropped, [m for m in both if (m.start, m.end) in mine]):
        yield "the pages that it has dropped are out of order, or lie in no mapping of its parent's"


def _specials(mm: Mm) -> list[tuple[str, int, int]]:
    return [(m.name, m.start, m.end) for m in mm.mappings if m.kind == SPECIAL]


def _outside(ranges: Sequence[Range], places: Sequence[MappingRecord]) -> bool:
    """Whether one of `ranges` is empty, out of order, or not covered by `places` (ascending)."""
    starts = [m.start for m in places]
    free = 0
    for r in ranges:
        if r.start < free or r.end <= r.start:
            return True
        free = at = r.end
        at = r.start
        while at < r.end:
            index = bisect_right(starts, at) - 1
            if index < 0 or at >= places[index].end:
                return True
            at = places[index].end
    return False


def stray_pages(mm: Mm, pages: Sequence[Source], nodes: Nodes) -> Iterator[str]:
    """Pages of the image that lie in no private mapping of their address space, or twice in the same place."""
    places = [m for m in mm.mappings if m.kind != SPECIAL and not m.attributes & SHARED]
    starts = [m.start for m in places]
    free = 0
    for at, length in sorted((start, length) for source in pages for start, length, _ in source.runs):
        if at < free:
            yield f"page {at:#x} is there twice"
        free = end = at + length
        while at < end:
            index = bisect_right(starts, at) - 1
            if index < 0 or at >= places[index].end:
                yield f"page {at:#x} lies in no private mapping"
                break
            m = places[index]
            if min(end, m.end) > _usable_end(m, nodes):
                yield f"page {at:#x} lies behind the end of {nodes(m.node).path!r}"
                break
            at = m.end


def _usable_end(m: MappingRecord, nodes: Nodes) -> int:
    """The address behind the last page that can be touched: memory behind the end of a file cannot (SIGBUS)."""
    if m.kind != FILE:
        return m.end
    node = nodes(m.node)
    if not stat.S_ISREG(node.mode):
        return m.end
    return min(m.end, m.start - m.offset + (node.size + PAGE - 1) // PAGE * PAGE)


def _at(mm: Mm, address: int) -> MappingRecord | None:
    """The mapping that `address` lies in."""
    index = bisect_right(mm.mappings, address, key=lambda m: m.start) - 1
    return mm.mappings[index] if index >= 0 and address < mm.mappings[index].end else None


def executable(mm: Mm, address: int) -> bool:
    """Whether code could run at `address`."""
    m = _at(mm, address)
    return m is not None and bool(m.prot & _EXEC)


def writable(mm: Mm, address: int, length: int, nodes: Nodes) -> bool:
    """Whether all of these bytes may be written."""
    end = address + length
    while address < end:
        m = _at(mm, address)
        if m is None or not m.prot & PROT_WRITE or m.kind == SPECIAL:
            return False
        usable_end = _usable_end(m, nodes)
        if address >= usable_end:
            return False
        address = usable_end
    return True


def mapped(mm: Mm, address: int) -> bool:
    """Whether `address` lies in a mapping, or just below one that grows down."""
    index = bisect_right(mm.mappings, address, key=lambda m: m.end)
    if index == len(mm.mappings):
        return False
    m = mm.mappings[index]
    return m.start - (1 << 23 if m.attributes & GROWSDOWN else 0) <= address


# --- what cannot be had here


class Here:
    """What this machine and user allow, asked once for all address spaces of a tree, and only for what they need."""

    def __init__(self) -> None:
        self.capable = clone.capget()[0]
        self.rooted = os.geteuid() == 0
        self._auxv = procfs.auxv(os.getpid())
        self._specials: tuple[list[tuple[str, int]], bytes] | None = None

    def specials(self) -> tuple[list[tuple[str, int]], bytes]:
        """(name, length) of the kernel's mappings in a process as wide as this one, and the build of its vdso."""
        if self._specials is not None:
            return self._specials
        found, build = [], b""
        with open("/proc/self/maps", "rb", buffering=0) as file:
            lines = file.readall()
        # Only the lines from the first of them on: there are many mappings, and these are among the last.
        first = max(lines.find(b" [sigpage]"), 0) or lines.find(b" [v")
        for line in lines[lines.rfind(b"\n", 0, first) + 1 :].splitlines():
            name = line[line.rindex(b"[") :].decode() if b" [" in line else ""
            if name in _SPECIAL_NAMES:
                start, end = (int(word, 16) for word in line.split(b" ", 1)[0].split(b"-"))
                found.append((name, end - start))
                if name == "[vdso]":
                    build = elf.build_id(ctypes.string_at(start, end - start))
        self._specials = found, build
        return found, build

    def auxv_room(self) -> int:
        """How many bytes the kernel keeps: the entries it gave to us, and AT_EXECFD and AT_SYSINFO, which not all have.

        They are as wide as the kernel's longs, whatever the task's (mm->saved_auxv).
        """
        return 16 * (len(self._auxv) // (2 * libc.WORD) + 2)

    def lowest(self) -> int:
        """The lowest address that may be mapped here."""
        return 0 if self.rooted and self.capable >> 17 & 1 else procfs.sysctl("vm/mmap_min_addr", 0)  # CAP_SYS_RAWIO


def check(mm: Mm, arch: Arch, nodes: Nodes, here: Here, pid: int) -> Iterator[Obstacle]:
    """What of an address space this machine or user cannot have."""
    if arch.word == libc.WORD and mm.base == 0:
        found, build = here.specials()
        wanted = [(m.name, m.end - m.start) for m in mm.mappings if m.kind == SPECIAL]
        if found != wanted or build != mm.vdso:
            yield wrong_vdso(pid)
    if len(mm.auxv) > here.auxv_room():
        yield Obstacle("auxiliary vector", "it is longer than this kernel's", "restart it on the kernel it comes from", pid=pid)
    if mm.mappings[0].start < _LOWEST_MARK and mm.mappings[0].start < (low := here.lowest()):
        yield Obstacle("memory", f"it has some below {low:#x}", "sysctl vm.mmap_min_addr=0, or be root", pid=pid)
    if len(mm.mappings) > 60_000 and len(mm.mappings) > (most := procfs.sysctl("vm/max_map_count", 65530)):
        yield Obstacle("memory", f"it has {len(mm.mappings)} mappings, more than {most}", "raise vm.max_map_count", pid=pid)
    attributes = 0
    locked = 0
    for m in mm.mappings:
        attributes |= m.attributes
        locked += m.end - m.start if m.attributes & LOCKED else 0
    if attributes & (HUGEPAGE | NOHUGEPAGE) and not os.path.isdir("/sys/kernel/mm/transparent_hugepage"):
        yield Obstacle("memory", "this kernel has no transparent huge pages, and it has asked for them", pid=pid)
    if attributes & MERGEABLE and not os.path.isdir("/sys/kernel/mm/ksm"):
        yield Obstacle("memory", "this kernel cannot merge pages (KSM), and it has asked for that", pid=pid)
    if locked and not here.rooted and locked > (most := procfs.limits(os.getpid())[8][0]):
        yield Obstacle("memory", f"it has {locked} bytes of it locked, and this user may lock {most}", "ulimit -l", pid=pid)
    yield from _file_check(mm, nodes, pid)


def _file_check(mm: Mm, nodes: Nodes, pid: int) -> Iterator[Obstacle]:
    """What stands in the way of mapping its files, and of having its program."""
    wanted: dict[int, int] = {mm.exe: os.R_OK | os.X_OK}
    for m in mm.mappings:
        if m.kind == FILE:
            more = os.W_OK if m.attributes & SHARED and m.attributes & MAYWRITE else 0
            wanted[m.node] = wanted.get(m.node, 0) | os.R_OK | more | (_NOT_NOEXEC if m.prot & _EXEC else 0)
    for number, need in wanted.items():
        node = nodes(number)
        name = f"file {node.path!r}"
        if need & os.W_OK and number == mm.exe:
            yield Obstacle(name, "it is the program itself, and mapped to be written", pid=pid)
        if need & os.W_OK and node.kind == MEMFD and node.seals & _SEAL_FUTURE_WRITE:
            yield Obstacle(name, "it was mapped to be written before it was sealed, which is not restored yet", pid=pid)
        if number == mm.exe and node.kind != NAMED and not node.mode & 0o111:
            yield Obstacle(name, "it is the program, and may not be executed any more", "chmod +x before the checkpoint", pid=pid)
        if node.kind != NAMED or not os.path.exists(node.path):
            continue  # the latter is said of the file itself
        if not os.access(node.path, need & ~_NOT_NOEXEC):
            words = "read, write or execute" if need & os.W_OK else "read or execute"
            yield Obstacle(name, f"this user may not {words} it as the program did", "change its permissions", pid=pid)
        elif need & (_NOT_NOEXEC | os.X_OK) and os.statvfs(node.path).f_flag & os.ST_NOEXEC:
            yield Obstacle(name, "its file system is mounted noexec here", "mount it without", pid=pid)


_NOT_NOEXEC = 8


def opened_for_writing(written: Iterable[int], programs: Iterable[int], nodes: Nodes) -> Iterator[Obstacle]:
    """Programs of the tree among the files that it has open for writing (execve(2), ETXTBSY)."""
    for number in set(written) & set(programs):
        path = nodes(number).path
        yield Obstacle(f"file {path!r}", "it is the program of one of the processes, and open for writing")

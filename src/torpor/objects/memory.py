"""An address space: its mappings, the pages that hold data, and the marks the kernel keeps about it (mmap(2), prctl(2) PR_SET_MM).

What is saved of the pages: those that are the process's own. Pages of a file that nobody has written to come from the file
again, zero pages and untouched reservations cost nothing.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from bisect import bisect_right

from torpor.errors import Obstacle, Unsupported
from torpor.image.fields import aligned, all_of, blob, choice, flags, ident, in_range, ref, structs, text, u64
from torpor.image.format import CompressedPages
from torpor.image.record import Record, Struct
from torpor.linux import elf, libc, memory, pagemap, procfs
from torpor.linux.libc import PAGE
from torpor.objects import nodes
from torpor.objects.nodes import Found

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable, Iterable, Iterator, Sequence, Set
    from collections.abc import Mapping as Mapping_

    from torpor.image.chain import Source
    from torpor.linux.procfs import Mapping
    from torpor.objects.saving import Saving
    from torpor.tasks.freeze import FrozenProcess
    from torpor.tasks.remote import Remote

ENOMEM = 12
_STEPPED_OVER = 4 << 20
"""Bytes of a mapping that is rather looked through in vain than left out: to ask the kernel once more takes as long."""
TWO_THREADS = 16 << 20
"""Bytes of pages from which a second thread pays."""
_ADDRESS = all_of(in_range(0, 1 << 63), aligned(4096))  # whatever the page size of the image
ANONYMOUS, FILE, SPECIAL = 0, 1, 2

PROT = {0: "READ", 1: "WRITE", 2: "EXEC"}
# Every attribute is a bit here and a two-letter code in /proc/PID/smaps (proc_pid_smaps(5), fs/proc/task_mmu.c).
ATTRIBUTES = {
    0: ("sh", "SHARED"), 1: ("gd", "GROWSDOWN"), 2: ("lo", "LOCKED"), 3: ("lf", "LOCKONFAULT"), 4: ("dc", "DONTFORK"),
    5: ("wf", "WIPEONFORK"), 6: ("dd", "DONTDUMP"), 7: ("hg", "HUGEPAGE"), 8: ("nh", "NOHUGEPAGE"), 9: ("mg", "MERGEABLE"),
    10: ("sr", "SEQUENTIAL"), 11: ("rr", "RANDOM"), 12: ("nr", "NORESERVE"), 13: ("mw", "MAYWRITE"),
}  # fmt: skip
SHARED, GROWSDOWN, LOCKED, LOCKONFAULT, DONTFORK, WIPEONFORK, DONTDUMP = (1 << bit for bit in range(7))
HUGEPAGE, NOHUGEPAGE, MERGEABLE, SEQUENTIAL, RANDOM, NORESERVE, MAYWRITE = (1 << bit for bit in range(7, 14))
# Codes that say nothing about what must be made again. With "uw" somebody else watches what is written, perhaps `torpor watch`:
# a program with a userfaultfd of its own is refused for that descriptor.
_HARMLESS = frozenset("rd wr ex mr mw me ms ac sd sh gd lo lf dc wf dd hg nh mg sr rr nr nl dw sf ar gu uw".split())
_REASONS = {
    "um": "it is served by userfaultfd (so is a lazy restart until all of its memory has come)",
    "ui": "it is served by userfaultfd",
    "ht": "it is of huge pages (hugetlbfs), which are not saved yet", "io": "it is the memory of a device",
    "pf": "it is the memory of a device", "ss": "it is a shadow stack, which is not saved yet",
    "sl": "it is sealed (mseal), and a sealed mapping cannot be made again", "dp": "it is droppable memory, which is not saved yet",
}  # fmt: skip


class MappingRecord(Struct):
    """One mapping (a line of /proc/PID/maps)."""

    start: int = u64("first address", check=_ADDRESS)
    end: int = u64("address behind the last", check=_ADDRESS)
    kind: int = choice(32, {ANONYMOUS: "anonymous", FILE: "file", SPECIAL: "special"}, "what it maps")
    prot: int = flags(32, PROT, "PROT_*")
    attributes: int = flags(64, {bit: name for bit, (_, name) in ATTRIBUTES.items()}, "how it was mapped and advised")
    node: int = ref("the file, for kind file", to="FileNode", optional=True, default=0)
    offset: int = u64("offset in the file, bytes", default=0)
    name: str = text("name of a special mapping: [vdso], [vvar] ...", max=64, default="")


class Range(Struct):
    """A run of pages."""

    start: int = u64("first address", check=_ADDRESS)
    end: int = u64("address behind the last", check=_ADDRESS)


class Mm(Record, type=0x0400):
    """An address space."""

    id: int = ident("the address space")
    base: int = ref("the parent's, where pages are shared with it since fork", to="Mm", optional=True, default=0)
    exe: int = ref("the program's file (/proc/PID/exe)", to="FileNode")
    start_code: int = u64("mm->start_code")
    end_code: int = u64("mm->end_code")
    start_data: int = u64("mm->start_data")
    end_data: int = u64("mm->end_data")
    start_brk: int = u64("mm->start_brk")
    brk: int = u64("mm->brk, the end of the heap")
    start_stack: int = u64("mm->start_stack")
    arg_start: int = u64("mm->arg_start")
    arg_end: int = u64("mm->arg_end")
    env_start: int = u64("mm->env_start")
    env_end: int = u64("mm->env_end")
    auxv: bytes = blob("the auxiliary vector", max=4096)
    vdso: bytes = blob("build id of the vdso", max=64)
    mappings: list[MappingRecord] = structs(MappingRecord, "its mappings, ascending", max=1 << 20)
    guards: list[Range] = structs(Range, "guard pages (MADV_GUARD_INSTALL, Linux 6.13), ascending", max=1 << 20, default=[])
    dropped: list[Range] = structs(Range, "pages of `base` that it has not any more, ascending", max=1 << 20, default=[])


def special(mapping: Mapping) -> bool:
    """Whether a mapping is made by the kernel at execve: vdso, vvar and their like, and ARM's trampolines for signal handlers."""
    return mapping.path.startswith(("[v", "[sigpage]")) and not ignored(mapping)


def ignored(mapping: Mapping) -> bool:
    """[vsyscall] of x86 and [vectors] of ARM: every process has them, at an address of the kernel's."""
    return mapping.path in ("[vsyscall]", "[vectors]")


def of_kernel(mapping: Mapping) -> bool:
    """Whether its pages are the kernel's own: either of these."""
    return mapping.path[:1] == "[" and (special(mapping) or ignored(mapping))


def private(mapping: Mapping) -> bool:
    """Whether its pages may be the process's own."""
    return not (mapping.shared or of_kernel(mapping))


def has_file(mapping: Mapping) -> bool:
    """Whether there is a file under it, if only one without a number of its own."""
    return bool(mapping.inode) or mapping.path.startswith("/")


def obstacle(mapping: Mapping, pid: int) -> Obstacle | None:
    """Why a mapping cannot be saved, or None."""
    if of_kernel(mapping):
        return None
    reason = _against(mapping)
    if not reason:
        return None
    return Obstacle(f"mapping {mapping.start:x}-{mapping.end:x} {mapping.path}".rstrip(), reason, pid=pid)


def _against(mapping: Mapping) -> str:
    """What speaks against saving a mapping of the program's; "" when nothing does."""
    if mapping.protection_key:
        return f"it has protection key {mapping.protection_key}; keys are not saved yet"
    for code in sorted(mapping.flags - _HARMLESS):
        return _REASONS.get(code, f"it has an attribute that torpor does not know ({code!r} in VmFlags)")
    if mapping.path.startswith("/SYSV") and mapping.deleted:
        return "it is System V shared memory, which is not saved yet"
    if mapping.path.startswith("/[aio]"):
        return "it is the ring of asynchronous I/O (io_setup), which is not saved"
    return "what it maps is not saved" if mapping.path.startswith(("anon_inode:", "[uprobes]")) else ""


def found(mapping: Mapping, pid: int, mappings: Sequence[Mapping]) -> Found:
    """The file under one of the `mappings` of process `pid`.

    map_files needs CAP_CHECKPOINT_RESTORE; without it the running program and open descriptors are tried, and a file that
    cannot be opened in any way is put together from what the process sees of it.
    """
    if not mapping.deleted:
        try:
            st = os.stat(mapping.path)
            if st.st_ino == mapping.inode:
                return Found(mapping.path, False, st, mapping.path)
        except OSError:
            pass
    by_range = f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}"
    try:
        # Following the link needs the right to open it, too.
        return Found(mapping.path, mapping.deleted, os.stat(by_range), by_range)
    except OSError:
        pass
    device = os.makedev(mapping.major, mapping.minor)
    for path in (f"/proc/{pid}/exe", *(f"/proc/{pid}/fd/{fd}" for fd in procfs.fds(pid))):
        try:
            st = os.stat(path)
        except OSError:
            continue
        if (st.st_ino, st.st_dev) == (mapping.inode, device):
            return Found(mapping.path, mapping.deleted, st, path)
    parts = [m for m in mappings if (m.inode, m.major, m.minor) == (mapping.inode, mapping.major, mapping.minor)]
    size = max(m.offset + m.length for m in parts)
    st = os.stat_result((stat.S_IFREG | 0o600, mapping.inode, device, 0, 0, 0, size, 0, 0, 0))
    return Found(mapping.path, True, st, "")


def seen_contents(pid: int, mapping: Mapping) -> Iterator[tuple[int, bytes]]:
    """What a process sees of the file under a mapping, as (file offset, bytes); ends where the file does."""
    at = mapping.start
    while at < mapping.end:
        length = min(nodes.CHUNK, mapping.end - at)
        try:
            data = memory.read(pid, at, length)
        except OSError:
            if length > PAGE:
                length = PAGE
            try:
                data = memory.read(pid, at, length)
            except OSError:
                return
        yield mapping.offset + at - mapping.start, data
        at += length


def attributes(mapping: Mapping) -> int:
    """A mapping's VmFlags as a MappingRecord has them."""
    bits = _known_attributes.get(mapping.flags, -1)
    if bits < 0:
        bits = sum(1 << bit for bit, (code, _) in ATTRIBUTES.items() if code in mapping.flags)
        _known_attributes[mapping.flags] = bits
    return bits


_known_attributes: dict[frozenset[str], int] = {}
"""By VmFlags: few of their combinations occur."""


def describe(process: FrozenProcess, mappings: Sequence[Mapping], brk: int, saving: Saving) -> tuple[Mm, list[int]]:
    """The record of an address space, still without `mappings` and `guards`, and the file under each mapping, 0 for none.

    The records of these files are written before.
    """
    pid, marks = process.pid, process.stat
    files = [node_of(m, pid, mappings, saving) if has_file(m) else 0 for m in mappings]
    vdso = next((elf.build_id(os.pread(process.mem, m.length, m.start)) for m in mappings if m.path == "[vdso]"), b"")
    exe = os.stat(f"/proc/{pid}/exe")
    path = procfs.exe(pid)
    program = Found(path.removesuffix(" (deleted)") if exe.st_nlink == 0 else path, exe.st_nlink == 0, exe, f"/proc/{pid}/exe")
    number = nodes.save(program, saving)
    space = Mm(
        id=saving.new_id(),
        exe=number,
        start_code=marks.start_code,
        end_code=marks.end_code,
        start_data=marks.start_data,
        end_data=marks.end_data,
        start_brk=marks.start_brk,
        brk=brk,
        start_stack=marks.start_stack,
        arg_start=marks.arg_start,
        arg_end=marks.arg_end,
        env_start=marks.env_start,
        env_end=marks.env_end,
        auxv=procfs.auxv(pid),
        vdso=vdso,
        mappings=[],
    )
    return space, files


def records(mappings: Sequence[Mapping], files: Sequence[int]) -> list[MappingRecord]:
    """The records of mappings and of the `files` under them. To make them takes a while: not while something stands still."""
    found = []
    for mapping, node in zip(mappings, files, strict=True):
        if ignored(mapping):
            continue
        kind, seen, offset, name = ANONYMOUS, attributes(mapping), 0, ""
        if special(mapping):
            kind, seen, name = SPECIAL, 0, mapping.path
        elif node:
            kind, offset = FILE, mapping.offset
        prot = mapping.readable | mapping.writable << 1 | mapping.executable << 2
        found.append(
            MappingRecord(
                start=mapping.start, end=mapping.end, kind=kind, prot=prot, attributes=seen, node=node, offset=offset, name=name
            )
        )
    return found


def guards(pid: int, mappings: Sequence[Mapping], wanted: Callable[[Mapping], bool]) -> list[Range]:
    """The guard pages of a process in the `wanted` ones of its mappings, ascending.

    They are in anonymous memory, and in files since 6.15.
    """
    if not pagemap.has_scan():
        return []  # a kernel older than guard pages
    found: list[Range] = []
    if groups := list(_neighbours(mappings, lambda m: wanted(m) and not of_kernel(m))):
        fd = pagemap.open(pid)
        try:
            for places in groups:
                found += _ranges(places, pagemap.guard_runs(fd, places[0].start, places[-1].end))
        finally:
            os.close(fd)
    return found


def _ranges(places: Sequence[Mapping], runs: Iterable[tuple[int, int]]) -> Iterator[Range]:
    """The runs (address, bytes), as far as they lie in these mappings."""
    return (Range(start=start, end=start + length) for _, start, length in _within(places, runs))


def node_of(mapping: Mapping, pid: int, mappings: Sequence[Mapping], saving: Saving) -> int:
    """The id of the file under one of the `mappings` of a process, written now if it has not been."""
    asked = "mapped", mapping.path, mapping.deleted, mapping.inode, mapping.major, mapping.minor
    if not saving.known(asked):
        node = found(mapping, pid, mappings)
        nodes.save(node, saving)
        saving.also(asked, node.key)
    return saving.known(asked)


def own_pages(
    pid: int, mappings: Sequence[Mapping], guards: list[Range] | None = None
) -> Iterator[tuple[Mapping, int, int]]:
    """(mapping, address, bytes) of every run of pages that the image must carry, ascending.

    `guards` is given the guard pages in private memory, found on the way.
    """
    fd = pagemap.open(pid)
    try:
        for places in _neighbours(mappings, private):
            # Of the pages that no file has private memory consists, and so one look is enough for what is a file's and what is not.
            # Which they are is written in each page's own structure: where there is no file, five times as long for nothing.
            files = any(has_file(mapping) for mapping in places)
            # A kernel older than guard pages would be asked for nothing, at length.
            found: list[tuple[int, int]] | None = None if guards is None or not pagemap.has_scan() else []
            start, end = places[0].start, places[-1].end
            yield from _within(places, pagemap.present_runs(fd, start, end, file_backed_private=files, guards=found))
            if guards is not None and found:
                guards += _ranges(places, found)
    finally:
        os.close(fd)


def _neighbours(mappings: Sequence[Mapping], wanted: Callable[[Mapping], bool]) -> Iterator[list[Mapping]]:
    """The mappings that are wanted, in groups to be looked at together: nothing large lies between those of a group.

    To ask the kernel takes as long as to look through some of them. A large mapping is a group by itself; where there is no
    PAGEMAP_SCAN holes are not stepped over, and each one is.
    """
    together = pagemap.has_scan()
    group: list[Mapping] = []
    alone = False
    for mapping in mappings:
        if wanted(mapping):
            before, alone = alone, not together or mapping.length > _STEPPED_OVER
            if group and (before or alone):
                yield group
                group = []
            group.append(mapping)
        elif group and mapping.length > _STEPPED_OVER:
            yield group
            group = []
    if group:
        yield group


def _within(mappings: Sequence[Mapping], runs: Iterable[tuple[int, int]]) -> Iterator[tuple[Mapping, int, int]]:
    """The ascending runs (address, bytes), as far as they lie in one of the mappings, and in which one."""
    index = 0
    for start, length in runs:
        end = start + length
        while index < len(mappings) and mappings[index].end <= start:
            index += 1
        at = index
        while at < len(mappings) and mappings[at].start < end:
            mapping = mappings[at]
            low, high = max(start, mapping.start), min(end, mapping.end)
            yield mapping, low, high - low
            at += 1


# --- restart: how it is made again

PROT_READ, PROT_WRITE = 1, 2
MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_GROWSDOWN = 1, 2, 0x20, 0x100
MAP_FIXED_NOREPLACE = 0x100000
MADV_DONTNEED, MADV_GUARD_INSTALL = 4, 102
MREMAP_MAYMOVE_FIXED = 3
PR_SET_MM, PR_SET_MM_MAP, PR_SET_MM_MAP_SIZE = 35, 14, 15
_ADVICE = {HUGEPAGE: 14, NOHUGEPAGE: 15, MERGEABLE: 12, SEQUENTIAL: 2, RANDOM: 1, DONTDUMP: 16, DONTFORK: 10, WIPEONFORK: 18}


def wrong_vdso(pid: int) -> Obstacle:
    """This kernel's vdso is not the image's."""
    return Obstacle(
        "vdso",
        "this kernel's is another than the one the program has its clock functions from",
        "restart on a machine with the kernel named by `torpor inspect`",
        pid=pid,
    )


def vacate(remote: Remote, mm: Mm, stub_at: int, stub_length: int) -> None:
    """Unmap everything of a fresh stub but the stub itself, and move the kernel's special mappings to where they were.

    Raises Unsupported when this kernel's are not the image's.
    """
    process = remote.thread.process
    here = [m for m in procfs.maps(process.pid) if not ignored(m)]
    found = sorted((m for m in here if special(m)), key=lambda m: m.start)
    wanted = [m for m in mm.mappings if m.kind == SPECIAL]
    build = b"".join(elf.build_id(os.pread(process.mem, m.length, m.start)) for m in found if m.path == "[vdso]")
    if [(m.path, m.length) for m in found] != [(m.name, m.end - m.start) for m in wanted] or build != mm.vdso:
        raise Unsupported(wrong_vdso(process.own_pid))
    calls: list[tuple[str | int, ...]] = []
    for mapping in here:
        if not special(mapping) and not stub_at <= mapping.start < stub_at + stub_length:
            calls.append(("munmap", mapping.start, mapping.length))
    # By way of a parking place, since where they are and where they were may overlap.
    low, high = found[0].start, found[-1].end
    taken = sorted([(m.start, m.end) for m in here] + [(m.start, m.end) for m in mm.mappings])
    park = _free(taken, high - low, remote.arch.user_limit)
    for mapping in found:
        calls.append(("mremap", mapping.start, mapping.length, mapping.length, MREMAP_MAYMOVE_FIXED, park + mapping.start - low))
    for mapping, place in zip(found, wanted, strict=True):
        calls.append(("mremap", park + mapping.start - low, mapping.length, mapping.length, MREMAP_MAYMOVE_FIXED, place.start))
    remote.checked(calls)


def _free(taken: Sequence[tuple[int, int]], length: int, limit: int) -> int:
    """An address where `length` bytes overlap none of the ranges `taken` (ascending)."""
    at = 0x100000
    for start, end in taken:
        if start - at >= length + PAGE:
            return at
        at = max(at, end + PAGE)
    if at + length > limit:
        raise Unsupported(Obstacle("address space", "there is no room left in it to move the vdso"))
    return at


def fill(
    remote: Remote,
    mm: Mm,
    base: Mm | None,
    pages: Sequence[Source],
    descriptors: Mapping_[int, int],
    stub: tuple[int, int],
    processors: Set[int],
) -> None:
    """Map everything, bring the pages back, give protection and advice, and tell the kernel what lies where.

    `base`: the address space that the task has from its parent, in which only the differences are made; None after `vacate`:
    then `stub` is the range where the stub still lies. `pages`: where this address space's pages come from; `descriptors`: for a
    file, the number under which the task has it open; `processors`: where we may run.
    """
    remote.reset()
    inherited = {_identity(m): m for m in base.mappings if not m.attributes & (DONTFORK | WIPEONFORK)} if base else {}
    kept = {_identity(m) for m in mm.mappings if _identity(m) in inherited and not m.attributes & (DONTFORK | WIPEONFORK)}
    full = _with_pages(mm, pages)
    calls: list[tuple[str | int, ...]] = [] if base else [("munmap", *stub)]
    after: list[tuple[str | int, ...]] = []
    for m in base.mappings if base else ():
        if m.kind != SPECIAL and _identity(m) not in kept:
            calls.append(("munmap", m.start, m.end - m.start))
    calls += [("madvise", r.start, r.end - r.start, MADV_DONTNEED) for r in mm.dropped]
    locks: list[tuple[str | int, ...]] = []
    for index, m in enumerate(mm.mappings):
        if m.kind == SPECIAL:
            continue
        length = m.end - m.start
        prot = m.prot | (PROT_READ | PROT_WRITE if index in full else 0)
        if _identity(m) in kept:
            if prot != m.prot:
                calls.append(("mprotect", m.start, length, prot))
        else:
            flags = MAP_FIXED_NOREPLACE | (MAP_SHARED if m.attributes & SHARED else MAP_PRIVATE)
            flags |= MAP_GROWSDOWN if m.attributes & GROWSDOWN else 0
            flags |= remote.arch.no_reserve if m.attributes & NORESERVE else 0
            flags |= MAP_ANONYMOUS if m.kind != FILE else 0
            fd = descriptors[_descriptor_key(m)] if m.kind == FILE else -1
            calls.append(remote.arch.mmap_call(m.start, length, prot, flags, fd, m.offset))
            for attribute, advice in _ADVICE.items():
                if m.attributes & attribute:
                    target = calls if attribute in (HUGEPAGE, NOHUGEPAGE) else after
                    target.append(("madvise", m.start, length, advice))
        if prot != m.prot:
            after.append(("mprotect", m.start, length, m.prot))
        if m.attributes & LOCKED:
            locks.append(("mlock2", m.start, length, 1 if m.attributes & LOCKONFAULT else 0))
    for call, result in zip(calls, remote.checked(calls), strict=True):
        if call[0] in ("mmap", "mmap2") and result & ((1 << 8 * remote.arch.word) - 1) != call[1]:
            raise OSError(17, f"mmap in process {remote.thread.process.pid}: {call[1]:#x} is taken")
    _write_pages(remote.thread.process.pid, pages, processors)
    after += [("madvise", r.start, r.end - r.start, MADV_GUARD_INSTALL) for r in mm.guards]
    # Nothing of the stub may be mapped any more, or the kernel answers EBUSY to a program file.
    remote.checked([*after, _marks(remote, mm, -1 if base else descriptors[mm.exe])])
    for result in remote.batch(locks):
        # Where a page cannot be had (no access, a guard, behind the end of a file) the kernel says so, and has locked all others.
        if result < 0 and result != -ENOMEM:
            raise OSError(-result, f"mlock2 in process {remote.thread.process.pid}: {os.strerror(-result)}")


def _identity(m: MappingRecord) -> tuple[object, ...]:
    """Equal for mappings that a child has from its parent as they are; locks are not inherited."""
    return m.start, m.end, m.kind, m.prot, m.attributes & ~(LOCKED | LOCKONFAULT), m.node, m.offset, m.name


def _descriptor_key(m: MappingRecord) -> int:
    """A shared writable mapping needs a file that is open for writing: such nodes are opened under the negative id."""
    return -m.node if m.attributes & SHARED and m.attributes & MAYWRITE else m.node


def files_needed(mm: Mm) -> dict[int, tuple[int, int]]:
    """Key -> (node id, access mode) of every file that `fill` wants open."""
    needed = {mm.exe: (mm.exe, os.O_RDONLY)}
    for m in mm.mappings:
        if m.kind == FILE:
            key = _descriptor_key(m)
            needed[key] = (m.node, os.O_RDWR if key < 0 else os.O_RDONLY)
    return needed


def _with_pages(mm: Mm, pages: Sequence[Source]) -> set[int]:
    """The indices of the mappings that pages of the image belong to."""
    starts = [m.start for m in mm.mappings]
    found = set()
    for source in pages:
        for start, length, _ in source.runs:
            index = bisect_right(starts, start) - 1
            while index < len(starts) and starts[index] < start + length:
                found.add(index)
                index += 1
    return found


def _write_pages(pid: int, pages: Sequence[Source], processors: Set[int]) -> None:
    """Copy pages into process `pid`: straight from the files, unless they are compressed there. Large memory on two processors."""
    if sum(length for source in pages for _, length, _ in source.runs) < TWO_THREADS:
        _write_some(pid, pages)
        return
    import threading

    left = iter(pages)  # shared: each thread takes the next one that nobody has
    errors: list[BaseException] = []

    def work() -> None:
        try:
            os.sched_setaffinity(0, processors)  # of this thread; the one that makes the tree stays on one processor
            _write_some(pid, left)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(min(2, len(processors)))]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError:
        # Linux 6.1 gives no thread to a process whose children will have other clocks than itself (copy_process(), kernel/fork.c).
        threads = [thread for thread in threads if thread.ident]
        _write_some(pid, left)
    try:
        for thread in threads:
            thread.join()
    finally:
        for _ in left:  # what is left after a Ctrl-C is not worth waiting for
            pass
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


def _write_some(pid: int, pages: Iterable[Source]) -> None:
    import mmap

    files: dict[int, mmap.mmap] = {}
    for source in pages:
        if isinstance(source.record, CompressedPages):
            _write_source(pid, source, source.image.data(source.record, source.offset), 0)
        else:
            fd = source.image.fd
            if fd not in files:
                files[fd] = mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            _write_source(pid, source, files[fd], source.offset)
    for file in files.values():
        file.close()


def _write_source(pid: int, source: Source, data: memoryview | mmap.mmap, skip: int) -> None:
    """Copy the pages of `source` into process `pid` from its chunk, which begins behind `skip` bytes of `data`."""
    anchor = ctypes.c_char.from_buffer(data)
    try:
        at = ctypes.addressof(anchor) + skip
        for first in range(0, len(source.runs), memory.IOV_MAX):
            some = source.runs[first : first + memory.IOV_MAX]
            memory.scatter(pid, [(at + offset, start, length) for start, length, offset in some])
    finally:
        del anchor


def _marks(remote: Remote, mm: Mm, exe: int) -> tuple[str | int, ...]:
    """The call that says where code, heap, stack, arguments and environment are, and which file the program is (PR_SET_MM_MAP).

    `exe`: the task's descriptor of that file, or -1 if it is the one it has.
    """
    answer = ctypes.c_uint32()
    libc.prctl(PR_SET_MM, PR_SET_MM_MAP_SIZE, ctypes.addressof(answer))
    auxv = remote.put(mm.auxv)
    marks = struct.pack(
        "=11Q", mm.start_code, mm.end_code, mm.start_data, mm.end_data, mm.start_brk, mm.brk, mm.start_stack,
        mm.arg_start, mm.arg_end, mm.env_start, mm.env_end,
    )  # fmt: skip
    # The pointer in struct prctl_mm_map is as wide as the kernel's, whatever the task's; its length is a multiple of what u64 is
    # aligned to there.
    marks += struct.pack("=QII" if libc.WIDE_KERNEL else "=III", auxv, len(mm.auxv), exe & 0xFFFFFFFF)
    return "prctl", PR_SET_MM, PR_SET_MM_MAP, remote.put(marks.ljust(answer.value, b"\0")), answer.value, 0

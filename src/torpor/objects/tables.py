"""What a process looks things up in: its descriptors (files_struct) and its place in the file system (fs_struct).

Both may be shared between processes (CLONE_FILES, CLONE_FS); each is written once. POSIX record locks belong to the
descriptor table, so they are here as well; flock and open-file-description locks belong to the description.
"""

from __future__ import annotations

import os
import struct

from torpor.errors import Obstacle
from torpor.image.checks import brief
from torpor.image.fields import choice, ident, in_range, ref, structs, text, u32, u64
from torpor.image.record import Record, Struct
from torpor.linux import clone, kcmp, locks, procfs
from torpor.objects import files, nodes
from torpor.objects.files import paths, terminals
from torpor.objects.files.events import Epoll, Watched
from torpor.objects.files.paths import OpenFile
from torpor.objects.files.pipes import PipeEnd
from torpor.objects.files.seen import O_PATH, Seen
from torpor.objects.files.terminals import Terminal
from torpor.objects.nodes import NAMED, OF_PROCESS, OWN, VIRTUAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence

    from torpor.arch.contract import Arch
    from torpor.objects.making import Making
    from torpor.objects.saving import Saving
    from torpor.tasks.freeze import FrozenProcess

FD_MAX = 1 << 20
POSIX, OFD, FLOCK = 0, 1, 2
F_SETLK, F_SETLK64 = 6, 13  # fcntl.h
READ, WRITE = 0, 1
EOF = (1 << 63) - 1
RLIMIT_NOFILE = 7


class Descriptor(Struct):
    """One entry of a descriptor table."""

    fd: int = u32("its number", check=lambda v: None if v < FD_MAX else "no table is that long")
    cloexec: int = choice(32, {0: "no", 1: "yes"}, "FD_CLOEXEC")
    file: int = ref("the open file description", to=files.NAMES)


class Lock(Struct):
    """A lock on (part of) a file (fcntl(2), flock(2))."""

    fd: int = u32("a descriptor through which it is held")
    kind: int = choice(32, {POSIX: "record lock", OFD: "open file description lock", FLOCK: "flock"}, "its kind")
    type: int = choice(32, {READ: "shared", WRITE: "exclusive"}, "what it excludes")
    start: int = u64("first byte", check=in_range(0, EOF), default=0)
    end: int = u64("last byte, 2^63-1 for the end of the file whatever its length", check=in_range(0, EOF), default=EOF)


class FdTable(Record, type=0x0320):
    """A descriptor table."""

    id: int = ident("the table")
    entries: list[Descriptor] = structs(Descriptor, "its descriptors, ascending", max=FD_MAX)
    locks: list[Lock] = structs(Lock, "the locks held through it", max=65536, default=[])


def _absolute(path: str) -> str | None:
    """an absolute path"""
    return None if path.startswith("/") else f"{brief(path)} is no absolute path"


class Fs(Record, type=0x0321):
    """Root, working directory and umask."""

    id: int = ident("the place")
    root: str = text("root directory", max=4096, check=_absolute)
    cwd: str = text("working directory, as seen from torpor's own root", max=4096, check=_absolute)
    umask: int = u32("umask", check=lambda v: None if v <= 0o777 else "more than permission bits")


def fs_check(fs: Fs, pid: int) -> Iterator[Obstacle]:
    """What of a process's place in the file system cannot be had here (R-D2)."""
    for path in {fs.root, fs.cwd}:
        if not os.path.isdir(path):
            yield Obstacle(f"directory {path!r}", "it is not here", "make it again", pid=pid)
        elif not os.access(path, os.X_OK):
            yield Obstacle(f"directory {path!r}", "this user may not enter it", "change its permissions", pid=pid)


def save_descriptors(tables: Sequence[tuple[int, Sequence[Seen]]], saving: Saving) -> None:
    """Write every open file description of the tree once, then the tables; `tables` are (pid, its descriptors)."""
    everything = [seen for _, table in tables for seen in table]
    ids: dict[tuple[int, int], int] = {}
    for members in files.group(everything, lambda a, b: kcmp.order_files(a.pid, a.fd, b.pid, b.fd)):
        number = files.save(members[0], saving)
        ids.update({(seen.pid, seen.fd): number for seen in members})
    for pid, table in tables:
        entries = [Descriptor(fd=seen.fd, cloexec=int(seen.cloexec), file=ids[pid, seen.fd]) for seen in table]
        record = FdTable(id=saving.new_id(), entries=entries, locks=[lock for seen in table for lock in _locks(seen)])
        saving.add(record, ("files", pid))
    for seen in everything:
        seen.close()


def _locks(seen: Seen) -> list[Lock]:
    """The locks that /proc/PID/fdinfo shows for a descriptor."""
    kinds = {"POSIX": POSIX, "OFDLCK": OFD, "FLOCK": FLOCK}
    found = []
    for lock in locks.of(seen.info):
        if lock.kind in kinds:
            end = min(lock.end, EOF)
            found.append(Lock(fd=seen.fd, kind=kinds[lock.kind], type=int(lock.type == "WRITE"), start=lock.start, end=end))
    return found


def obstacles(seen: Seen) -> list[Obstacle]:
    """Why a descriptor's locks cannot be saved."""
    return [
        Obstacle(seen.name, "it holds a lease", "let the program give the lease up (fcntl F_SETLEASE, F_UNLCK)", pid=seen.pid)
        for lock in locks.of(seen.info)
        if lock.kind == "LEASE"
    ]


def save_fs(process: FrozenProcess, saving: Saving) -> int:
    """Write a process's place in the file system. Returns its id."""
    pid, umask = process.pid, process.status.umask
    return saving.add(Fs(id=saving.new_id(), root=procfs.root(pid), cwd=procfs.cwd(pid), umask=umask), ("fs", pid))


def fs_obstacle(pid: int) -> Obstacle | None:
    """Why a process's working directory cannot be saved, or None."""
    cwd = procfs.cwd(pid)
    try:
        os.stat(cwd)
    except OSError as error:
        return Obstacle(
            f"working directory {cwd!r}", f"it is not to be found ({error.strerror})", "let the program change to another", pid=pid
        )
    return None


# --- restart


def lock_call(lock: Lock, arch: Arch, address: int) -> tuple[tuple[str | int, ...], bytes]:
    """The fcntl that takes a record lock, and the struct flock that it reads at `address` (fcntl(2))."""
    length = 0 if lock.end == EOF else lock.end - lock.start + 1
    kind = (0, 1)[lock.type]
    data = struct.pack(arch.flock, kind, 0, lock.start, length, 0)
    return ("fcntl", lock.fd, F_SETLK if arch.word == 8 else F_SETLK64, address), data


def take_description_lock(lock: Lock, fd: int) -> None:
    """Take a FLOCK or OFD lock through our own descriptor of the description. Raises OSError (EAGAIN: someone has it)."""
    import fcntl

    if lock.kind == FLOCK:
        fcntl.flock(fd, (fcntl.LOCK_SH, fcntl.LOCK_EX)[lock.type] | fcntl.LOCK_NB)
    elif lock.kind == OFD:
        length = 0 if lock.end == EOF else lock.end - lock.start + 1
        kind = (fcntl.F_RDLCK, fcntl.F_WRLCK)[lock.type]
        fcntl.fcntl(fd, 37, struct.pack("hhqqi4x", kind, 0, lock.start, length, 0))


def place_calls(table: FdTable, carrier: Callable[[Descriptor], int]) -> list[tuple[str | int, ...]]:
    """The calls that move inherited descriptors to their numbers and close everything else.

    `carrier` gives the number under which the task has inherited the description of an entry, or -1 if it has not.
    """
    calls: list[tuple[str | int, ...]] = []
    free = 0
    gaps: list[tuple[str | int, ...]] = []
    for entry in table.entries:
        number = carrier(entry)
        if number < 0:
            continue
        calls.append(("dup3", number, entry.fd, os.O_CLOEXEC if entry.cloexec else 0))
        if entry.fd > free:
            gaps.append(("close_range", free, entry.fd - 1, 0))
        free = entry.fd + 1
    return [*calls, *gaps, ("close_range", free, 0xFFFFFFFF, 0)]


def faults(table: FdTable, making: Making) -> Iterator[str]:
    """What in a descriptor table no process can have (R-D1)."""
    before = -1
    for entry in table.entries:
        if entry.fd <= before:
            yield "descriptor numbers are not ascending"
        before = entry.fd
    by_number = {entry.fd: making.record(entry.file, Record) for entry in table.entries}
    for lock in table.locks:
        name, record = f"the lock through descriptor {lock.fd}", by_number.get(lock.fd)
        if record is None:
            yield f"{name} is none: nothing is open there"
        elif lock.end < lock.start:
            yield f"{name} ends before it starts"
        elif isinstance(record, OpenFile | PipeEnd):
            # fcntl(2): to lock for reading it must be open for reading, and so for writing; flock(2) is content with either.
            wanted = (os.O_RDONLY, os.O_RDWR) if lock.type == READ else (os.O_WRONLY, os.O_RDWR)
            if record.flags & O_PATH or (lock.kind != FLOCK and record.flags & 3 not in wanted):
                yield f"{name} is of another type than the file is open for"
    for record in by_number.values():
        if isinstance(record, Epoll):
            for member in record.watched:
                yield from _watch_faults(record, member, by_number)
    if _nested(by_number):
        yield f"epoll sets watch each other more than {_EPOLL_NESTING} deep"


_EPOLL_NESTING = 4  # fs/eventpoll.c, EP_MAX_NESTS
_EPOLLEXCLUSIVE = 1 << 28


def _watch_faults(record: Epoll, member: Watched, by_number: Mapping[int, Record]) -> Iterator[str]:
    """Why an epoll set cannot watch one of its members (fs/eventpoll.c, do_epoll_ctl())."""
    target = by_number.get(member.fd)
    if target is record:
        yield "an epoll set watches itself"
    elif isinstance(target, OpenFile) and target.flags & O_PATH:
        yield f"an epoll set watches descriptor {member.fd}, which is not open for anything (O_PATH)"
    elif isinstance(target, Epoll) and member.events & _EPOLLEXCLUSIVE:
        yield "an epoll set watches another one exclusively"


def _nested(by_number: Mapping[int, Record]) -> bool:
    """Whether epoll sets watch epoll sets more than _EPOLL_NESTING deep, or in a circle."""
    within = {record.id: record for record in by_number.values() if isinstance(record, Epoll)}
    for _ in range(_EPOLL_NESTING + 1):
        if not within:
            return False
        ids = within.keys()
        within = {
            number: record
            for number, record in within.items()
            if any(getattr(by_number.get(fd), "id", 0) in ids for fd in record.members)
        }
    return bool(within)


def unfilled(tables: Iterable[FdTable], making: Making) -> Iterator[str]:
    """Epoll sets that watch what no process has open under that number."""
    lacking: dict[int, Epoll] = {}
    complete = set()
    for table in tables:
        numbers = {entry.fd for entry in table.entries}
        for entry in table.entries:
            record = making.record(entry.file, Record)
            if isinstance(record, Epoll) and record.members <= numbers:
                complete.add(record.id)
            elif isinstance(record, Epoll):
                lacking[record.id] = record
    for number in lacking.keys() - complete:
        yield f"epoll set #{number} watches a descriptor that no process has open"


def conflicts(tables: Iterable[FdTable], making: Making) -> Iterator[str]:
    """Locks of the image that exclude each other (fs/locks.c)."""
    held: dict[tuple[int, bool], set[tuple[int, int, int, int]]] = {}
    for table in tables:
        files_of = {entry.fd: entry.file for entry in table.entries}
        for lock in table.locks:
            number = files_of.get(lock.fd, 0)
            record = making.record(number, Record) if number else None
            if isinstance(record, OpenFile | PipeEnd):
                node = record.node if isinstance(record, OpenFile) else record.pipe
                owner = table.id if lock.kind == POSIX else number
                start, end = (0, EOF) if lock.kind == FLOCK else (lock.start, lock.end)
                held.setdefault((node, lock.kind == FLOCK), set()).add((start, end, lock.type, owner))
    for (node, _), those in held.items():
        if len(those) > 1 and _overlap(sorted(those)):
            yield f"two locks on file #{node} exclude each other"


def _overlap(ascending: Iterable[tuple[int, int, int, int]]) -> bool:
    """Whether locks (start, end, type, owner) of different owners overlap, one of them for writing."""
    # For either type the two furthest ends so far that are of different owners.
    furthest: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    for start, end, kind, owner in ascending:
        for other, ends in enumerate(furthest):
            if WRITE in (kind, other) and any(reach >= start and whose != owner for reach, whose in ends):
                return True
        best = {whose: reach for reach, whose in furthest[kind]}
        best[owner] = max(end, best.get(owner, -1))
        furthest[kind][:] = sorted(((reach, whose) for whose, reach in best.items()), reverse=True)[:2]
    return False


def check(table: FdTable, making: Making, root: str, pid: int) -> Iterator[Obstacle]:
    """What in a table cannot be had here. `root`: the root directory of the process, `pid` its own id."""
    by_number = {entry.fd: making.record(entry.file, Record) for entry in table.entries}
    for number, record in by_number.items():
        if isinstance(record, OpenFile) and (path := paths.of_process(record, making)):
            if not _own_is_here(path, record.flags, root, by_number, pid):
                yield Obstacle(f"descriptor {number} ({path})", "a process has no such file here", "close it before the checkpoint")
        elif isinstance(record, Epoll):
            for member in record.watched:
                target = by_number.get(member.fd)
                if isinstance(target, OpenFile | Terminal) and not _pollable(member.fd, target, making):
                    reason = f"what descriptor {member.fd} will be cannot be waited for, and an epoll set watches it"
                    yield Obstacle(f"descriptor {number}", reason, "give the restart a terminal or a pipe as standard streams")
    for lock in table.locks:
        record_ = by_number.get(lock.fd)
        own = isinstance(record_, OpenFile) and paths.of_process(record_, making)
        if own or (isinstance(record_, Terminal) and lock.kind != POSIX):
            yield Obstacle(f"descriptor {lock.fd}", "a lock on a terminal or a file of the process itself cannot be taken again")
    if table.entries and (last := table.entries[-1].fd) >= 1024:
        hard = procfs.limits(os.getpid())[RLIMIT_NOFILE][1]
        if last >= max(hard, clone.capget()[0] >> clone.CAP_SYS_RESOURCE & 1 and procfs.sysctl("fs/nr_open", 1 << 20)):
            yield Obstacle(f"descriptor {last}", f"this user may have {hard} of them", "raise the limit: ulimit -Hn")


def _own_is_here(path: str, flags: int, root: str, numbers: Container[int], pid: int) -> bool:
    """Whether a process has the file /proc/self/... and may open it so, as far as our own files tell."""
    if root != "/" and not os.path.isdir(f"{root}/proc/self"):
        return False
    kind, _, rest = path.removeprefix(OWN).partition("/")
    number, _, name = rest.partition("/")
    if kind in ("fd", "fdinfo", "task") and number:
        if not number.isdecimal() or int(number) not in ((pid,) if kind == "task" else numbers):
            return False  # a file of another thread: there is only the first one when files are opened
        if kind == "task":
            name = f"task/{os.getpid()}/{name}"
        path = f"{OWN}{name}" if name else f"{OWN}{'status' if kind == 'fdinfo' else ''}"
    try:
        os.close(os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def _pollable(number: int, target: OpenFile | Terminal, making: Making) -> bool:
    """Whether epoll takes what a descriptor will be."""
    if isinstance(target, Terminal):
        fd = terminals.standard_stream(number) if number <= 2 else terminals.make(target, making)
    else:
        node = making.node(target.node)
        if node.kind not in (NAMED, VIRTUAL) or not nodes.same_type(node):
            return node.kind == OF_PROCESS
        try:
            fd = os.open(node.path, target.flags | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError:
            return False
    import select

    try:
        with select.epoll() as probe:
            probe.register(fd, 0)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True

"""What a process looks things up in: its descriptors (files_struct) and its place in the file system (fs_struct).

Both may be shared between processes (CLONE_FILES, CLONE_FS); each is written once. POSIX record locks belong to the
descriptor table, so they are here as well; flock and open-file-description locks belong to the description.
"""

from __future__ import annotations

import os

from torpor.errors import Obstacle
from torpor.image.fields import choice, ident, ref, structs, text, u32, u64
from torpor.image.record import Record, Struct
from torpor.linux import kcmp, locks, procfs
from torpor.objects import files
from torpor.objects.files.seen import Seen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torpor.arch.contract import Arch
    from torpor.objects.saving import Saving

FD_MAX = 1 << 20
POSIX, OFD, FLOCK = 0, 1, 2
READ, WRITE = 0, 1
EOF = (1 << 63) - 1


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
    start: int = u64("first byte", default=0)
    end: int = u64("last byte, 2^63-1 for the end of the file whatever its length", default=EOF)


class FdTable(Record, type=0x0320):
    """A descriptor table."""

    id: int = ident("the table")
    entries: list[Descriptor] = structs(Descriptor, "its descriptors, ascending", max=FD_MAX)
    locks: list[Lock] = structs(Lock, "the locks held through it", max=65536, default=[])


class Fs(Record, type=0x0321):
    """Root, working directory and umask."""

    id: int = ident("the place")
    root: str = text("root directory", max=4096)
    cwd: str = text("working directory, as seen from torpor's own root", max=4096)
    umask: int = u32("umask", check=lambda v: None if v <= 0o777 else "more than permission bits")


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


def save_fs(pid: int, saving: Saving) -> int:
    """Write a process's place in the file system. Returns its id."""
    umask = procfs.status(pid).umask
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
    if arch.word == 8:
        data = kind.to_bytes(2, "little") + bytes(6)
        data += lock.start.to_bytes(8, "little") + length.to_bytes(8, "little") + bytes(8)
        return ("fcntl", lock.fd, 6, address), data
    # struct flock64 of x86-32: no padding before the 64-bit members
    data = kind.to_bytes(2, "little") + bytes(2)
    data += lock.start.to_bytes(8, "little") + length.to_bytes(8, "little") + bytes(4)
    return ("fcntl", lock.fd, 13, address), data


def take_description_lock(lock: Lock, fd: int) -> None:
    """Take a FLOCK or OFD lock through our own descriptor of the description. Raises OSError (EAGAIN: someone has it)."""
    import fcntl
    import struct

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


def faults(table: FdTable) -> list[str]:
    """What in a descriptor table no process can have (R-D1)."""
    numbers = [entry.fd for entry in table.entries]
    if numbers != sorted(set(numbers)):
        return ["descriptor numbers are not ascending"]
    return [
        f"there is a lock through descriptor {lock.fd}, which is not open" for lock in table.locks if lock.fd not in numbers
    ] + [f"the lock through descriptor {lock.fd} ends before it starts" for lock in table.locks if lock.end < lock.start]

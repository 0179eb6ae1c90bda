"""File locks as the kernel lists them: the "lock:" lines of /proc/PID/fdinfo/FD, and /proc/locks.

    for lock in locks.held(pid, fd): ...    locks made through this open file
    for lock in locks.system(): ...         all locks of this pid namespace, and who waits for them

fdinfo shows a POSIX lock at the descriptors of the open file it was made through, and only to the process that owns it;
FLOCK, OFDLCK and LEASE belong to the open file and show up at each of its descriptors, in every process that has one.
"""

from __future__ import annotations

import os

from torpor.linux import procfs

TYPE_CHECKING = False

POSIX, OFDLCK, FLOCK, LEASE, DELEG = "POSIX", "OFDLCK", "FLOCK", "LEASE", "DELEG"
READ, WRITE, UNLCK = "READ", "WRITE", "UNLCK"

EOF = 2**63 - 1
"""The `end` of a lock that reaches to the end of the file, however far that moves (the kernel's OFFSET_MAX)."""


class FileLock:
    """One lock. `start` and `end` are byte positions, both inclusive."""

    __slots__ = ("dev", "end", "inode", "kind", "mode", "pid", "start", "type", "waiting")

    def __init__(
        self,
        kind: str,
        type: str,
        start: int,
        end: int,
        *,
        pid: int = 0,
        dev: int = 0,
        inode: int = 0,
        mode: str = "ADVISORY",
        waiting: bool = False,
    ) -> None:
        self.kind = kind
        """POSIX (fcntl F_SETLK), OFDLCK (F_OFD_SETLK), FLOCK (flock), LEASE (F_SETLEASE), DELEG (NFS server)."""
        self.type = type
        """READ (shared) or WRITE (exclusive); a lease that is being broken shows what it becomes, UNLCK perhaps."""
        self.start, self.end = start, end
        self.pid = pid
        """Who made it, in the reader's pid namespace; -1 for OFDLCK, 0 or -1 when it is not in the namespace."""
        self.dev, self.inode = dev, inode
        """The device as os.makedev() has it: the file system's own, which on overlayfs and btrfs is not stat's."""
        self.mode = mode
        """ADVISORY; for leases ACTIVE, BREAKING or BREAKER."""
        self.waiting = waiting
        """Not held: somebody waits for it (/proc/locks only)."""

    @property
    def length(self) -> int:
        """As struct flock has it: 0 for "to the end of the file"."""
        return 0 if self.end == EOF else self.end - self.start + 1

    def __repr__(self) -> str:
        end = "EOF" if self.end == EOF else self.end
        return f"<FileLock {self.kind} {self.mode} {self.type} pid {self.pid} inode {self.inode} {self.start}-{end}>"


def parse(line: str) -> FileLock:
    """The lock on one line "1: POSIX  ADVISORY  WRITE 712 fe:00:1234 0 EOF" (fs/locks.c, lock_get_status()).

    ValueError: it is not such a line.
    """
    words = line.split()
    waiting = "->" in words[1:2]
    if waiting:
        del words[1]
    if len(words) != 8:
        raise ValueError(f"not a lock: {line!r}")
    _, kind, mode, type, pid, where, start, end = words
    if where == "<none>:0":
        dev = inode = 0
    else:
        major, minor, number = where.split(":")
        dev, inode = os.makedev(int(major, 16), int(minor, 16)), int(number)
    return FileLock(
        kind, type, int(start), EOF if end == "EOF" else int(end), pid=int(pid), dev=dev, inode=inode, mode=mode,
        waiting=waiting,
    )  # fmt: skip


def of(info: procfs.FdInfo) -> list[FileLock]:
    """The locks in an fdinfo that has been read already."""
    return [parse(line) for line in info.extra.get("lock", ())]


def held(pid: int, fd: int) -> list[FileLock]:
    """The locks that the process holds through its descriptor `fd`."""
    return of(procfs.fdinfo(pid, fd))


def system() -> list[FileLock]:
    """/proc/locks: every lock whose owner the reader's pid namespace knows, each followed by those who wait for it."""
    fd = os.open("/proc/locks", os.O_RDONLY | os.O_CLOEXEC)
    with open(fd, encoding="utf-8", errors="replace") as file:
        return [parse(line) for line in file if "*NOINODE*" not in line]

"""A descriptor as it is found in a process, before anyone has said what kind of object it is."""

from __future__ import annotations

import os

from torpor.linux import pidfd, procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from torpor.linux.procfs import FdInfo

O_CLOEXEC = 0o2000000
O_PATH = 0o10000000
STATUS_FLAGS = 0o2000 | 0o4000 | 0o10000 | os.O_DIRECT | 0o1000000 | 0o4010000
"""What F_SETFL can change: O_APPEND O_NONBLOCK O_DSYNC O_DIRECT O_NOATIME O_SYNC."""


class Seen:
    """Descriptor `fd` of process `pid`: what /proc says of it, without touching the process."""

    __slots__ = ("_dup", "cloexec", "fd", "flags", "info", "link", "pid", "position", "stat")

    def __init__(self, pid: int, fd: int) -> None:
        self.pid, self.fd = pid, fd
        self.info: FdInfo = procfs.fdinfo(pid, fd)
        self.link: str = procfs.fd_link(pid, fd)
        self.stat = os.stat(f"/proc/{pid}/fd/{fd}")
        self.cloexec = bool(self.info.flags & O_CLOEXEC)
        self.flags = self.info.flags & ~O_CLOEXEC
        self.position = self.info.pos
        self._dup = -1

    @property
    def name(self) -> str:
        """How a sentence calls it."""
        return f"descriptor {self.fd} ({self.link})"

    @property
    def open_path(self) -> str:
        """A path that opens the same inode anew, as a description of its own."""
        return f"/proc/{self.pid}/fd/{self.fd}"

    @property
    def bucket(self) -> tuple[object, ...]:
        """Equal for all descriptors that may be the same open file description; kcmp(2) decides among them."""
        return self.stat.st_dev, self.stat.st_ino, self.flags, self.position, self.link

    def dup(self) -> int:
        """A descriptor of our own for the same open file description (pidfd_getfd(2)). Raises OSError."""
        if self._dup < 0:
            self._dup = pidfd.getfd(self.pid, self.fd)
        return self._dup

    def close(self) -> None:
        """Close what `dup` has opened."""
        if self._dup >= 0:
            os.close(self._dup)
            self._dup = -1


def look(pid: int) -> list[Seen]:
    """Every descriptor of a process, in order. Raises OSError."""
    found = []
    for fd in procfs.fds(pid):
        try:
            found.append(Seen(pid, fd))
        except FileNotFoundError:
            continue  # closed meanwhile: the process is running
    return found

"""Descriptions that a path opens: regular files, directories, devices, O_PATH; deleted files and memfds too.

Their contents are the FileNode's business; what is saved here is the description: how it was opened, and where it stands.
"""

from __future__ import annotations

import errno
import os
import stat

from torpor.errors import Obstacle
from torpor.image.fields import i64, ident, ref, u32
from torpor.image.record import Record
from torpor.linux.libc import O_LARGEFILE
from torpor.objects import nodes
from torpor.objects.files.seen import O_PATH, STATUS_FLAGS, Seen
from torpor.objects.nodes import (
    HANDED_OVER,
    HANDED_OVER_DEVICES,
    NAMED,
    OF_PROCESS,
    VIRTUAL,
    WITH_CONTENTS,
    FileNode,
    Found,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.objects.making import Making
    from torpor.objects.saving import Saving

CREATION_FLAGS = 0o100 | 0o200 | 0o400 | 0o1000  # O_CREAT O_EXCL O_NOCTTY O_TRUNC: they act once, at open
O_DIRECTORY, O_NOFOLLOW, O_TMPFILE = os.O_DIRECTORY, os.O_NOFOLLOW, 0o20000000  # the last without O_DIRECTORY
O_ASYNC = 0o20000


class OpenFile(Record, type=0x0310):
    """An open file description of a file, directory or device (open(2))."""

    id: int = ident("the open file description")
    node: int = ref("the file that is open", to="FileNode")
    flags: int = u32("O_* access mode and status flags")
    position: int = i64("file position, bytes", default=0)


def found(seen: Seen) -> Found:
    """The file under a descriptor."""
    path, deleted = seen.link, False
    own = f"/proc/{seen.pid}/"
    if path.startswith(own):
        return Found("/proc/self/" + path[len(own) :], False, seen.stat, seen.open_path)
    if seen.stat.st_nlink == 0 or path.startswith("/memfd:"):
        path, deleted = path.removesuffix(" (deleted)"), True
    return Found(path, deleted, seen.stat, seen.open_path)


def claims(seen: Seen) -> bool:
    """Whether a descriptor is of this kind."""
    if not seen.link.startswith("/"):
        return False
    kind = stat.S_IFMT(seen.stat.st_mode)
    return bool(seen.flags & O_PATH) or kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFBLK)


def obstacle(seen: Seen) -> Obstacle | None:
    """Why this descriptor cannot be saved, or None."""
    st = seen.stat
    if stat.S_ISCHR(st.st_mode):
        if (os.major(st.st_rdev), os.minor(st.st_rdev)) not in HANDED_OVER_DEVICES:
            return Obstacle(seen.name, "the state inside a device cannot be saved", "close it before the checkpoint", pid=seen.pid)
        return None
    if stat.S_ISBLK(st.st_mode) and not seen.flags & O_PATH:
        return Obstacle(seen.name, "it is a block device", "close it before the checkpoint", pid=seen.pid)
    if st.st_nlink == 0 and not stat.S_ISREG(st.st_mode):
        return Obstacle(seen.name, "the directory it has open was removed", "let the program open another", pid=seen.pid)
    if seen.flags & O_ASYNC:
        return Obstacle(seen.name, "it asks for SIGIO (O_ASYNC), which is not saved yet", pid=seen.pid)
    return None


def save(seen: Seen, saving: Saving) -> int:
    """Write the description and, before it, its file. Returns its id."""
    node_id = nodes.save(found(seen), saving)
    # O_TMPFILE stays visible in the flags of the file that it has made, with O_DIRECTORY, which only its directory has.
    flags = seen.flags & ~(CREATION_FLAGS if stat.S_ISDIR(seen.stat.st_mode) else CREATION_FLAGS | O_TMPFILE | O_DIRECTORY)
    position = 0 if stat.S_ISCHR(seen.stat.st_mode) else seen.position
    return saving.add(OpenFile(id=saving.new_id(), node=node_id, flags=flags, position=position))


_MOST_WITHOUT_LARGEFILE = 0x7FFFFFFF  # MAX_NON_LFS, linux/fs.h
_FLAGS = 3 | STATUS_FLAGS | O_DIRECTORY | O_LARGEFILE | O_NOFOLLOW | O_PATH | O_TMPFILE
_REMEDIES = {errno.EACCES: "change its permissions", errno.EPERM: "change its permissions", errno.ETXTBSY: "end the program first"}


def faults(record: OpenFile, making: Making) -> Iterator[str]:
    """What no open file can be (R-D1)."""
    node = making.node(record.node)
    name = f"file {node.path!r}"
    if record.flags & ~_FLAGS:
        yield f"{name} is said to be open with flags {record.flags:#o}"
    if record.flags & O_PATH:
        return
    kind = stat.S_IFMT(node.mode)
    if kind == stat.S_IFCHR:
        if node.device not in HANDED_OVER:
            yield f"{name} is a device that is not handed over"
    elif kind not in (stat.S_IFREG, stat.S_IFDIR):
        # Not only wrong: opening a FIFO waits for its other end.
        yield f"{name} is of a type that is not opened"
    if record.position < 0 and kind == stat.S_IFREG:
        yield f"{name} is said to be at the position {record.position}"
    if kind == stat.S_IFDIR and (record.flags & 3 or node.kind in WITH_CONTENTS):
        yield f"{name} is a directory and open for writing, or deleted"
    if kind == stat.S_IFREG and record.flags & (O_DIRECTORY | O_TMPFILE) == O_DIRECTORY:
        yield f"{name} is no directory and was opened as one"


def check(record: OpenFile, making: Making) -> Obstacle | None:
    """What stands in the way of opening it again, or None (the file itself is checked as a node).

    A file that has its contents by itself is opened once now, and closed again: only the kernel knows about O_DIRECT,
    O_NOATIME and the last position of this file system. Nothing is created or cut short by that.
    """
    node = making.node(record.node)
    if node.kind not in (NAMED, VIRTUAL) or record.flags & O_PATH or not nodes.same_type(node):
        return None
    try:
        fd = os.open(node.path, record.flags | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            if record.position and (stat.S_ISDIR(node.mode) or stat.S_ISREG(node.mode)):
                os.lseek(fd, record.position, os.SEEK_SET)
        finally:
            os.close(fd)
    except OSError as error:
        reason = f"it cannot be opened as the program had it open ({error.strerror})"
        return Obstacle(f"file {node.path!r}", reason, _REMEDIES.get(error.errno or 0, ""))
    return None


def too_large(record: OpenFile, making: Making) -> Obstacle | None:
    """Why a file that a 32-bit program has opened without O_LARGEFILE cannot be opened again: it has grown (open(2), EOVERFLOW)."""
    node = making.node(record.node)
    if record.flags & (O_LARGEFILE | O_PATH) or not stat.S_ISREG(node.mode) or node.size <= _MOST_WITHOUT_LARGEFILE:
        return None
    reason = f"it has {node.size} bytes, and the program had opened it as one of less than 2 GiB (without O_LARGEFILE)"
    return Obstacle(f"file {node.path!r}", reason, "take the checkpoint before it is that large")


def of_process(record: OpenFile, making: Making) -> str:
    """The path that only the process itself can open (/proc/self/...), or ''."""
    node = making.node(record.node)
    return node.path if node.kind == OF_PROCESS else ""


def make(record: OpenFile, making: Making) -> int:
    """Open it again; a descriptor of our own. Raises OSError."""
    node: FileNode = making.node(record.node)
    path, flags = node.path, record.flags
    if node.kind in WITH_CONTENTS:
        # A symbolic link that only looks like one.
        path, flags = f"/proc/{os.getpid()}/fd/{making.contents(node)}", flags & ~O_NOFOLLOW
        if flags & O_TMPFILE:  # it was made nameless, and is there now
            flags &= ~(O_TMPFILE | O_DIRECTORY)
    fd = making.open(path, flags)
    try:
        if record.position and not record.flags & O_PATH and (stat.S_ISDIR(node.mode) or stat.S_ISREG(node.mode)):
            _seek(fd, record)
        if record.flags & STATUS_FLAGS and not record.flags & O_PATH:
            import fcntl

            fcntl.fcntl(fd, fcntl.F_SETFL, record.flags & STATUS_FLAGS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _seek(fd: int, record: OpenFile) -> None:
    """Only the file system knows how far a file can be."""
    try:
        os.lseek(fd, record.position, os.SEEK_SET)
    except OSError as error:
        what = f"position {record.position} of an open file (#{record.id})"
        raise OSError(error.errno, f"{what}: {error.strerror}") from error

"""Descriptions that a path opens: regular files, directories, devices, O_PATH; deleted files and memfds too.

Their contents are the FileNode's business; what is saved here is the description: how it was opened, and where it stands.
"""

from __future__ import annotations

import os
import stat

from torpor.errors import Obstacle
from torpor.image.fields import i64, ident, ref, u32
from torpor.image.record import Record
from torpor.objects import nodes
from torpor.objects.files.seen import O_PATH, STATUS_FLAGS, Seen
from torpor.objects.nodes import HANDED_OVER_DEVICES, NAMED, OF_PROCESS, WITH_CONTENTS, FileNode, Found

TYPE_CHECKING = False
if TYPE_CHECKING:
    from torpor.objects.making import Making
    from torpor.objects.saving import Saving

CREATION_FLAGS = 0o100 | 0o200 | 0o400 | 0o1000  # O_CREAT O_EXCL O_NOCTTY O_TRUNC: they act once, at open
O_NOFOLLOW = 0o400000
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
    node = found(seen)
    node_id = saving.known(node.key) or saving.add(nodes.describe(node, saving.new_id(), code=False), node.key)
    # O_TMPFILE stays visible in the flags of the file that it has made, with O_DIRECTORY, which only its directory has.
    flags = seen.flags & ~(CREATION_FLAGS if stat.S_ISDIR(seen.stat.st_mode) else CREATION_FLAGS | 0o20200000)
    position = 0 if stat.S_ISCHR(seen.stat.st_mode) else seen.position
    return saving.add(OpenFile(id=saving.new_id(), node=node_id, flags=flags, position=position))


def check(record: OpenFile, making: Making) -> Obstacle | None:
    """What stands in the way of opening it again, or None (the file itself is checked as a node)."""
    node = making.node(record.node)
    if record.position < 0 and stat.S_ISREG(node.mode):
        return Obstacle(f"file {node.path!r}", f"its position {record.position} is negative")
    if record.flags & (CREATION_FLAGS | O_ASYNC) or record.flags >> 31:
        return Obstacle(f"file {node.path!r}", f"it was opened with flags {record.flags:#o} that an image does not have")
    access = {0: os.R_OK, 1: os.W_OK, 2: os.R_OK | os.W_OK}.get(record.flags & 3, 0)
    if node.kind == NAMED and not record.flags & O_PATH and os.path.exists(node.path) and not os.access(node.path, access):
        return Obstacle(f"file {node.path!r}", "this user may not open it as the program had it open", "change its permissions")
    return None


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
    fd = making.open(path, flags)
    try:
        if record.position and not record.flags & O_PATH and (stat.S_ISDIR(node.mode) or stat.S_ISREG(node.mode)):
            os.lseek(fd, record.position, os.SEEK_SET)
        if record.flags & STATUS_FLAGS and not record.flags & O_PATH:
            import fcntl

            fcntl.fcntl(fd, fcntl.F_SETFL, record.flags & STATUS_FLAGS)
    except BaseException:
        os.close(fd)
        raise
    return fd

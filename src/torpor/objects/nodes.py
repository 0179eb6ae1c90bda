"""Files as the file system knows them: what lies under an open file description or a mapping.

An ordinary file is not part of the image; it is named, and compared at the restart: size and modification time, or, for
code that is mapped, its build id (or a hash), so that the same package on another machine will do. A file that has no name any
more (deleted, memfd, anonymous shared memory) travels in the image.
"""

from __future__ import annotations

import os
import stat

from torpor.errors import Obstacle
from torpor.image.fields import blob, choice, flags, i64, ident, in_range, u32, u64
from torpor.image.fields import text as text_
from torpor.image.record import Record
from torpor.linux import elf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torpor.linux.procfs import Mapping
    from torpor.objects.saving import Saving

NAMED, DELETED, MEMFD, SHARED, VIRTUAL, OF_PROCESS = range(6)
WITH_CONTENTS = (DELETED, MEMFD, SHARED)
PATH_MAX = 4096

CHUNK = 4 << 20
"""Bytes of file contents that travel in one piece."""

F_ADD_SEALS, F_GET_SEALS = 1033, 1034
HANDED_OVER_DEVICES = {(1, 3): "null", (1, 5): "zero", (1, 7): "full", (1, 8): "random", (1, 9): "urandom", (5, 0): "tty"}
HANDED_OVER = frozenset(major << 32 | minor for major, minor in HANDED_OVER_DEVICES)
"""The same, as FileNode.device has them."""
OWN = "/proc/self/"
_OTHERS_OWN = ("/proc/thread-self", "/proc/mounts", "/proc/net")


class FileNode(Record, type=0x0300):
    """A file: one inode. Open file descriptions and mappings refer to it."""

    id: int = ident("the file")
    kind: int = choice(
        8,
        {NAMED: "named", DELETED: "deleted", MEMFD: "memfd", SHARED: "shared memory", VIRTUAL: "virtual", OF_PROCESS: "of process"},
        "where its contents are: a named file keeps them itself, a virtual one (/proc, /sys) is made by the kernel, and one of the "
        "process (/proc/self) opened by the process itself; the others travel in the image as FileData",
    )
    mode: int = u32("st_mode: type and permissions")
    size: int = u64("bytes", check=in_range(0, 1 << 62))
    mtime: int = i64("last modification, ns since 1970")
    device: int = u64("st_rdev of a device (major << 32 | minor), else 0", default=0)
    seals: int = flags(
        32,
        {0: "SEAL", 1: "SHRINK", 2: "GROW", 3: "WRITE", 4: "FUTURE_WRITE", 5: "EXEC"},
        "F_GET_SEALS of a memfd",
        default=0,
    )
    path: str = text_("absolute path; the name of a memfd", max=PATH_MAX)
    build_id: bytes = blob("GNU build id of mapped code, b'' where it has none or is not code", max=64, default=b"")
    digest: bytes = blob("BLAKE2b-256 of mapped code that has no build id", max=32, default=b"")


def _virtual_devices() -> set[int]:
    """The devices of /proc and /sys, whose files have neither a size nor a time of their own."""
    if not _virtual:
        for path in ("/proc", "/sys"):
            try:
                _virtual.add(os.stat(path).st_dev)
            except OSError:
                continue
    return _virtual


_virtual: set[int] = set()


class Found:
    """A file as it was found at a checkpoint: its stat, its path, and how to open it for reading its contents."""

    __slots__ = ("deleted", "open_path", "path", "stat")

    def __init__(self, path: str, deleted: bool, found: os.stat_result, open_path: str) -> None:
        self.path, self.deleted, self.stat, self.open_path = path, deleted, found, open_path

    @property
    def key(self) -> tuple[str, int, int, str]:
        """What makes it the same file as another."""
        return "node", self.stat.st_dev, self.stat.st_ino, self.path if self.kind == OF_PROCESS else ""

    @property
    def kind(self) -> int:
        """Where its contents are (FileNode.kind)."""
        if self.stat.st_dev in _virtual_devices():
            return OF_PROCESS if self.path.startswith(OWN) else VIRTUAL
        if self.path.startswith("/memfd:") and self.deleted:
            return MEMFD
        if self.path == "/dev/zero" and self.deleted:
            return SHARED
        return DELETED if self.deleted else NAMED


class Code:
    """Which files are mapped as code, and of which build each of them is."""

    def __init__(self) -> None:
        self._inodes: set[int] = set()
        self._builds: dict[tuple[int, int, int, int], tuple[bytes, bytes]] = {}

    def note(self, mappings: Iterable[Mapping]) -> None:
        """Note what is code among these mappings."""
        self._inodes.update(mapping.inode for mapping in mappings if mapping.executable and mapping.inode)

    def look(self, mappings: Sequence[Mapping]) -> None:
        """The same, and look at the builds, while nothing stands still yet."""
        self.note(mappings)
        for path, inode in {(m.path, m.inode) for m in mappings if m.executable and m.inode and not m.deleted}:
            try:
                st = os.stat(path)
                if st.st_ino == inode:
                    self.build(path, st)
            except OSError:
                pass  # whoever needs it will say why

    def has(self, st: os.stat_result) -> bool:
        """Whether a file may be mapped as code. (Not every file system shows the same device in stat(2) and in maps.)"""
        return st.st_ino in self._inodes

    def build(self, path: str, st: os.stat_result) -> tuple[bytes, bytes]:
        """The fingerprint of the file `path`, whose stat is `st`. Raises OSError."""
        key = st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns
        if key not in self._builds:
            self._builds[key] = fingerprint(path)
        return self._builds[key]


def save(found: Found, saving: Saving) -> int:
    """The id of a file, whose record is written now if it has not been. Raises OSError."""
    return saving.known(found.key) or saving.add(describe(found, saving.new_id(), saving.code), found.key)


def describe(found: Found, number: int, code: Code) -> FileNode:
    """The record of a file. Raises OSError."""
    st = found.stat
    device = (os.major(st.st_rdev) << 32 | os.minor(st.st_rdev)) if stat.S_ISCHR(st.st_mode) else 0
    node = FileNode(
        id=number,
        kind=found.kind,
        mode=st.st_mode,
        size=st.st_size if stat.S_ISREG(st.st_mode) else 0,
        mtime=st.st_mtime_ns or 0,  # None in a stat that was put together
        device=device,
        path=found.path.removeprefix("/memfd:") if found.kind == MEMFD else found.path,
    )
    if found.kind == MEMFD and found.open_path:
        import fcntl

        fd = os.open(found.open_path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            node.seals = fcntl.fcntl(fd, F_GET_SEALS)
        finally:
            os.close(fd)
    elif found.kind == NAMED and stat.S_ISREG(st.st_mode) and code.has(st):
        node.build_id, node.digest = code.build(found.open_path, st)
    return node


def fingerprint(path: str) -> tuple[bytes, bytes]:
    """(build id, b"") of the code in the file `path`, or (b"", hash) where it has none. Raises OSError."""
    with open(path, "rb", buffering=0) as file:
        found = elf.build_id(file.read(65536))
        if found:
            return found, b""
        import hashlib

        file.seek(0)
        return b"", hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).digest()


def contents_of(path: str) -> Iterator[tuple[int, bytes]]:
    """The parts of a file that are not holes, as (offset, bytes) of at most CHUNK bytes (lseek(2), SEEK_DATA)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        at, size = 0, os.fstat(fd).st_size
        while at < size:
            try:
                start = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole is left
                return
            end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
            at = start
            while at < end:
                data = os.pread(fd, min(CHUNK, end - at), at)
                if not data:
                    return
                yield at, data
                at += len(data)
    finally:
        os.close(fd)


# --- restart


NAME_MAX = 249
"""Bytes in the name of a memfd (memfd_create(2))."""
_SEAL_WRITE, _SEAL_FUTURE_WRITE, _SEAL_EXEC = 8, 16, 32
_SEALED_WITH_EXEC = 2 | 4 | _SEAL_WRITE | _SEAL_FUTURE_WRITE


def faults(node: FileNode) -> Iterator[str]:
    """What no file can be (R-D1)."""
    name = f"file {node.path!r}"
    if node.kind == MEMFD:
        if len(os.fsencode(node.path)) > NAME_MAX:
            yield f"{name} has a name that is too long for a memfd"
        # mm/memfd.c, memfd_add_seals(): what can be executed is sealed against all changes by SEAL_EXEC.
        if node.seals & _SEAL_EXEC and node.mode & 0o111 and node.seals & _SEALED_WITH_EXEC != _SEALED_WITH_EXEC:
            yield f"{name} has seals that do not go together, {node.seals:#x}"
    elif not node.path.startswith("/"):
        yield f"{name} has no absolute path"
    elif os.path.normpath(node.path) != node.path or node.path.startswith(_OTHERS_OWN):
        # Whoever opens them gets torpor's own; the kernel names neither.
        yield f"{name} has a path that no file has"
    elif (node.kind == OF_PROCESS) != node.path.startswith(OWN):
        yield f"{name} is said to be one of the process's own in /proc, and is not, or the reverse"
    if node.seals and node.kind != MEMFD:
        yield f"{name} has seals and is no memfd"
    if node.kind in WITH_CONTENTS and not stat.S_ISREG(node.mode):
        yield f"{name} has its contents in the image and is no regular file"


def same_type(node: FileNode) -> bool:
    """Whether there is a file of this type under its path here."""
    try:
        here = os.stat(node.path, follow_symlinks=not stat.S_ISLNK(node.mode))
    except OSError:
        return False
    return stat.S_IFMT(here.st_mode) == stat.S_IFMT(node.mode)


def differences(node: FileNode, allowed: frozenset[str]) -> Obstacle | None:
    """Why the file of this name here is not the one that the image means, or None (R-D2: only looks)."""
    if node.kind not in (NAMED, VIRTUAL):
        return None
    name = f"file {node.path!r}"
    try:
        here = os.stat(node.path, follow_symlinks=not stat.S_ISLNK(node.mode))
    except OSError as error:
        return Obstacle(name, f"it cannot be found here ({error.strerror})", "bring it back to this path")
    if stat.S_IFMT(here.st_mode) != stat.S_IFMT(node.mode):
        return Obstacle(name, "it is of another type here than it was", "bring the original back to this path")
    if stat.S_ISCHR(node.mode):
        device = os.major(here.st_rdev) << 32 | os.minor(here.st_rdev)
        return None if device == node.device else Obstacle(name, "it is another device here")
    if not stat.S_ISREG(node.mode) or node.kind == VIRTUAL or node.path in allowed:
        return None
    remedy = f"restore the original, or say --allow-changed {node.path} if the program can live with it"
    if node.build_id or node.digest:
        try:
            same = fingerprint(node.path) == (node.build_id, node.digest)
        except OSError as error:
            return Obstacle(name, f"it cannot be read here ({error.strerror})", "make it readable")
        return None if same else Obstacle(name, "the program's code is of another build here", remedy)
    if here.st_size != node.size:
        return Obstacle(name, f"it has {here.st_size} bytes here and had {node.size}", remedy)
    if here.st_mtime_ns != node.mtime:
        return Obstacle(name, "it has been modified since the checkpoint", remedy)
    return None


def create(node: FileNode) -> int:
    """A new, nameless file for the contents of a DELETED, MEMFD or SHARED node; a descriptor open for both. OSError."""
    if node.kind in (MEMFD, SHARED):
        name = node.path if node.kind == MEMFD else "shared-anonymous"
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        fd = _nameless(os.path.dirname(node.path))
    try:
        # Not the set-id bits: it belongs to whoever restarts, who may be another than its owner was. And it is opened
        # again by its owner, for reading and writing.
        os.fchmod(fd, node.mode & 0o777 | 0o600)
        os.ftruncate(fd, node.size)
    except OSError as error:
        os.close(fd)
        what = f"file {node.path!r} of {node.size} bytes"
        raise OSError(error.errno, f"{what}: {error.strerror}") from error
    return fd


def _nameless(directory: str) -> int:
    """A file without a name, in `directory` if that can be had, else in the directory for temporary files."""
    for place in (directory, os.environ.get("TMPDIR", "/tmp")):
        try:
            return os.open(place, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError:
            continue
    return os.memfd_create("deleted", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def seal(node: FileNode, fd: int) -> None:
    """Put a memfd's seals back, once its contents are there. Raises OSError."""
    if node.seals:
        import fcntl

        fcntl.fcntl(fd, F_ADD_SEALS, node.seals)

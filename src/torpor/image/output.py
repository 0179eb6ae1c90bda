"""Where the bytes of a new image go: to a descriptor, or into a file that appears under its name only when complete.

A file is written without a name (O_TMPFILE) where the file system can do that, so that even a `kill -9` leaves nothing;
elsewhere beside its name, as `.NAME.PID.torpor.part`. It becomes NAME in one step, once its data is on disk. (A link
cannot replace an older NAME: then the complete image has the other name for an instant, until a rename does.)
"""

from __future__ import annotations

import errno
import os
import stat

from torpor.errors import Obstacle, TorporError

from .failure import failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from mmap import mmap

    Buffer = bytes | bytearray | memoryview | mmap

PIECE = 1 << 18  # bytes compared at a time
DIRECT = 1 << 20  # bytes of data from which it is written past the page cache, if it lies where that can be done from
ALIGNED = 4096  # no disk has larger blocks, and no file system asks for more (open(2), O_DIRECT)
IOV_MAX = 1024  # include/uapi/linux/uio.h: buffers in one writev


class Output:
    """A descriptor to write to. This class writes to one that belongs to the caller; `File` below to a new file."""

    can_rewrite = False
    """Whether what has been written can be written anew (`rewrite`)."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd, self.name = fd, name

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Write `buffers` in order, straight from where they lie."""
        try:
            for first in range(0, len(buffers), IOV_MAX):
                self._write_some(buffers[first : first + IOV_MAX])
        except OSError as error:
            raise failure(self.name, "write the image", error) from error

    def _write_some(self, buffers: Sequence[Buffer]) -> None:
        left = [memoryview(buffer).cast("B") for buffer in buffers]
        while left:
            try:
                written = os.writev(self.fd, left)
            except BlockingIOError:
                import select  # standard output may be non-blocking: its mode belongs to whoever shares it

                select.select([], [self.fd], [])
                continue
            left = _behind(left, written)

    def holds(self, offset: int, buffers: Sequence[Buffer]) -> bool:
        """Whether these bytes have been written at `offset`, as far as that can be found out."""
        return False

    def rewrite(self, offset: int, data: bytes) -> None:
        """Write other bytes in the place of those at `offset`. Only where that can be had (`can_rewrite`)."""
        try:
            while data:
                written = os.pwrite(self.fd, data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            raise failure(self.name, "write the image", error) from error

    def commit(self) -> None:
        """Everything is written: make it what the caller asked for."""

    def abort(self) -> None:
        """Leave nothing behind. Does nothing after a commit."""


class Stream(Output):
    """A pipe or a device that was opened by its path."""

    def commit(self) -> None:
        fd, self.fd = self.fd, -1
        try:
            os.close(fd)  # where some file systems report what they could not write
        except OSError as error:
            raise failure(self.name, "write the image", error) from error

    def abort(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class File(Output):
    """A file that gets its name in `commit`, and replaces the one that had it.

    Large data goes to the disk past the page cache (O_DIRECT), where the file system can do that. An image is waited for until it
    is on the disk in any case, so a copy of it in memory gains nothing: to make it takes half of the whole time, and drives the
    program's own files out of the page cache. (The image is there when it has been read once.)
    """

    can_rewrite = True

    def __init__(self, path: str) -> None:
        directory, self._base = os.path.split(os.path.realpath(path))
        short = os.fsdecode(os.fsencode(self._base)[:200])  # names have at most 255 bytes
        self._part = f".{short}.{os.getpid()}.torpor.part"
        self._linked = False
        self._direct = -1
        """The same file again, for data that goes past the page cache."""
        self._indirect = False
        """Whether that cannot be had."""
        try:
            self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise failure(path, "write the image", error) from error
        try:
            super().__init__(self._create(), path)
        except OSError as error:
            os.close(self._directory)
            raise failure(path, "write the image", error) from error

    def _create(self) -> int:
        """A new file, readable by nobody else: memory holds secrets."""
        try:
            return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=self._directory)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
        mode = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
        fd = os.open(self._part, mode, 0o600, dir_fd=self._directory)
        self._linked = True
        return fd

    def write(self, buffers: Sequence[Buffer]) -> None:
        """See Output.write. The first buffer is what stands in front of the data."""
        data = [memoryview(buffer).cast("B") for buffer in buffers[1:]]
        if self._indirect or sum(map(len, data)) < DIRECT or not all(map(_is_aligned, data)):
            super().write(buffers)
            return
        super().write(buffers[:1])
        try:
            at = os.lseek(self.fd, 0, os.SEEK_CUR)
            if at % ALIGNED == 0:
                data, at = self._write_direct(data, at)
                os.lseek(self.fd, at, os.SEEK_SET)
        except OSError as error:
            raise failure(self.name, "write the image", error) from error
        super().write(data)

    def _write_direct(self, data: list[memoryview], at: int) -> tuple[list[memoryview], int]:
        """Write what goes past the page cache, from `at` on. What is left, and where that belongs. Raises OSError."""
        try:
            if self._direct < 0:
                self._direct = os.open(f"/proc/self/fd/{self.fd}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
            while data and at % ALIGNED == 0:
                written = os.pwritev(self._direct, data[:IOV_MAX], at)
                at += written
                data = _behind(data, written)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT, errno.EACCES, errno.EPERM):
                raise
            self._indirect = True
        return data, at

    def holds(self, offset: int, buffers: Sequence[Buffer]) -> bool:
        """See Output.holds."""
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            for at in range(0, len(view), PIECE):
                part = view[at : at + PIECE]
                if os.pread(self.fd, len(part), offset + at) != bytes(part):
                    return False
            offset += len(view)
        return True

    def commit(self) -> None:
        try:
            os.fsync(self.fd)
            self._name_it()
            os.fsync(self._directory)
        except OSError as error:
            raise failure(self.name, "complete the image", error) from error
        self._close()

    def _name_it(self) -> None:
        if not self._linked:
            try:
                self._link(self._base)
                return
            except FileExistsError:  # a link cannot replace a file, a rename can
                self._link(self._part)
                self._linked = True
        os.rename(self._part, self._base, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        self._linked = False

    def _link(self, name: str) -> None:
        os.link(f"/proc/self/fd/{self.fd}", name, dst_dir_fd=self._directory, follow_symlinks=True)

    def abort(self) -> None:
        if self.fd < 0:
            return
        if self._linked:
            try:
                os.unlink(self._part, dir_fd=self._directory)
            except OSError:  # somebody else removed it; there is nothing to add to the error that brought us here
                pass
        self._close()

    def _close(self) -> None:
        if self._direct >= 0:
            os.close(self._direct)
        os.close(self.fd)
        os.close(self._directory)
        self.fd = -1


def _behind(views: list[memoryview], written: int) -> list[memoryview]:
    """What is left of the views when so many bytes of them have been written."""
    done = 0
    while done < len(views) and written >= len(views[done]):
        written -= len(views[done])
        done += 1
    left = views[done:]
    if left:
        left[0] = left[0][written:]
    return left


def _is_aligned(view: memoryview) -> bool:
    """Whether it can be written past the page cache."""
    if len(view) % ALIGNED or view.readonly:
        return False
    import ctypes  # which who has such data has imported

    return ctypes.addressof(ctypes.c_char.from_buffer(view)) % ALIGNED == 0


def open_output(target: str | os.PathLike[str] | int) -> Output:
    """The output that `target` means: a descriptor, "-" for standard output, or a path.

    A path may name a pipe or a device that takes a stream (such as /dev/null): that is written to, never replaced.
    """
    if isinstance(target, int):
        return Output(target, f"descriptor {target}")
    path = os.fspath(target)
    if path == "-":
        return Output(1, "standard output")
    if not path or path.endswith("/"):
        raise TorporError(Obstacle(path or "output", "cannot write the image: that names no file", "name a file"))
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return File(path)
    except OSError as error:
        raise failure(path, "write the image", error) from error
    if stat.S_ISREG(mode):
        return File(path)
    if stat.S_ISDIR(mode):
        raise TorporError(Obstacle(path, "cannot write the image: it is a directory", "name a file in it"))
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        try:
            return Stream(os.open(path, os.O_WRONLY | os.O_CLOEXEC), path)
        except OSError as error:
            raise failure(path, "write the image", error) from error
    raise TorporError(Obstacle(path, "cannot write the image: it is neither a file nor a pipe", "name a file"))

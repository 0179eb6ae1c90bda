"""torpor.linux.locks against a child that takes locks of every kind."""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from torpor.linux import locks, procfs

if TYPE_CHECKING:
    from tests.linux.conftest import Child

Start = Callable[..., "Child"]

TAKE = """
import fcntl, struct
def lock(fd, command, type, start, length):
    fcntl.fcntl(fd, command, struct.pack("hhqqi4x", type, 0, start, length, 0))
"""


def rows(found: list[locks.FileLock]) -> list[tuple[str, str, int, int]]:
    return sorted((lock.kind, lock.type, lock.start, lock.end) for lock in found)


def test_each_kind_is_at_its_descriptor(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    child = start(
        TAKE
        + f"""
a, b, c, d = (os.open({str(path)!r}, os.O_RDWR) for _ in range(4))
e = os.open({str(tmp_path / "leased")!r}, os.O_RDWR | os.O_CREAT)
lock(a, fcntl.F_SETLK, fcntl.F_WRLCK, 10, 5)
lock(a, fcntl.F_SETLK, fcntl.F_RDLCK, 50, 0)
lock(b, 37, fcntl.F_RDLCK, 20, 10)      # F_OFD_SETLK
fcntl.flock(c, fcntl.LOCK_SH)
fcntl.fcntl(e, fcntl.F_SETLEASE, fcntl.F_WRLCK)
pid = os.fork()
if not pid:
    os.read(0, 1)
    os._exit(0)
say(a=a, b=b, c=c, d=d, e=e, pid=pid)
"""
    )
    facts, pid = child.facts, child.pid
    posix = locks.held(pid, facts["a"])
    assert rows(posix) == [("POSIX", "READ", 50, locks.EOF), ("POSIX", "WRITE", 10, 14)]
    assert sorted(lock.length for lock in posix) == [0, 5]
    inode = path.stat()
    for lock in posix:
        assert (lock.pid, lock.inode, lock.mode, lock.waiting) == (pid, inode.st_ino, "ADVISORY", False)
    mapped = {(m.major, m.minor) for m in procfs.maps(os.getpid()) if m.inode}
    if (os.major(inode.st_dev), os.minor(inode.st_dev)) in mapped:
        assert posix[0].dev == inode.st_dev
    (ofd,) = locks.held(pid, facts["b"])
    assert (ofd.kind, ofd.type, ofd.start, ofd.end, ofd.pid) == ("OFDLCK", "READ", 20, 29, -1)
    (flock,) = locks.held(pid, facts["c"])
    assert (flock.kind, flock.type, flock.start, flock.end, flock.length) == ("FLOCK", "READ", 0, locks.EOF, 0)
    assert locks.held(pid, facts["d"]) == []
    (lease,) = locks.held(pid, facts["e"])
    assert (lease.kind, lease.mode, lease.type) == ("LEASE", "ACTIVE", "WRITE")
    # The forked child owns none of the POSIX locks, but shares what belongs to the open files.
    assert locks.held(facts["pid"], facts["a"]) == []
    assert rows(locks.held(facts["pid"], facts["b"])) == rows([ofd])
    assert rows(locks.held(facts["pid"], facts["c"])) == rows([flock])
    everywhere = [lock for lock in locks.system() if lock.inode == inode.st_ino]
    assert rows(everywhere) == rows([*posix, ofd, flock])


def test_those_who_wait(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    with path.open("r+b") as file:
        fcntl.fcntl(file, fcntl.F_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
        child = start(
            TAKE + f"fd = os.open({str(path)!r}, os.O_RDWR)\nsay(fd=fd)\nlock(fd, fcntl.F_SETLKW, fcntl.F_WRLCK, 3, 4)"
        )
        deadline = time.monotonic() + 10
        while True:
            found = [lock for lock in locks.system() if lock.inode == path.stat().st_ino]
            if len(found) == 2:
                break
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert [(lock.waiting, lock.pid, lock.start, lock.end) for lock in found] == [
            (False, os.getpid(), 0, locks.EOF),
            (True, child.pid, 3, 6),
        ]
        assert locks.held(child.pid, child.facts["fd"]) == []
        child.process.kill()


def test_parse() -> None:
    lock = locks.parse("7: OFDLCK ADVISORY  READ  -1 fe:1a:2233 5 9\n")
    assert (lock.kind, lock.dev, lock.inode, lock.pid) == ("OFDLCK", os.makedev(0xFE, 0x1A), 2233, -1)
    assert repr(lock) == "<FileLock OFDLCK ADVISORY READ pid -1 inode 2233 5-9>"
    assert locks.parse("1: POSIX  ADVISORY  WRITE 0 <none>:0 0 EOF").inode == 0
    assert "0-EOF" in repr(locks.parse("1: FLOCK  ADVISORY  WRITE 0 00:1:4 0 EOF"))
    waiting = locks.parse("1: -> FLOCK  ADVISORY  READ 12 00:12:4 0 EOF")
    assert waiting.waiting and waiting.type == locks.READ and waiting.dev == os.makedev(0, 0x12)
    assert locks.parse("3: LEASE  BREAKING  UNLCK 12 00:12:4 0 EOF").mode == "BREAKING"
    with pytest.raises(ValueError, match="not a lock"):
        locks.parse("1: POSIX")

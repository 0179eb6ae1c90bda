"""torpor.linux.clone: everything that changes a process is done by a child of its own, in a fresh interpreter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import torpor.linux.clone
from torpor.linux import clone, procfs

SRC = str(Path(torpor.linux.clone.__file__).parents[2])


def alone(source: str, *arguments: str) -> str:
    """Run `source` in a single-threaded interpreter that has torpor; what it printed."""
    head = "import os, sys; sys.path.insert(0, sys.argv[1])\nfrom torpor.linux import clone, procfs\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", head + source, SRC, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    )
    return done.stdout.decode()


def test_clone3_is_a_fork() -> None:
    text = alone("""
x = [1]
for i in range(50):
    pid = clone.clone3()
    if pid == 0:
        x.append(os.getppid())
        import decimal      # the interpreter lives: imports, allocation, garbage collection
        import gc; gc.collect()
        os._exit(len(x) + 40)
    done, status = os.waitpid(pid, 0)
    assert done == pid and os.waitstatus_to_exitcode(status) == 42, status
print(x, procfs.children(os.getpid()))
""")
    assert text == "[1] []\n"


def test_clone3_without_exit_signal() -> None:
    text = alone("""
pid = clone.clone3(exit_signal=0)
if pid == 0:
    os._exit(9)
try:
    os.waitpid(pid, 0)
except ChildProcessError:
    print("only __WALL finds it")
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0x40000000)[1]))
""")
    assert text == "only __WALL finds it\n9\n"


def test_clone3_with_chosen_pids(root: None) -> None:
    text = alone("""
free = next(n for n in range(20000, 4000, -1) if not procfs.exists(n))
pid = clone.clone3(clone.CLONE_NEWPID, set_tid=[1, free])
if pid == 0:
    inner = clone.clone3(set_tid=[77])
    if inner == 0:
        os._exit(os.getpid())
    assert inner == 77
    try:
        clone.clone3(set_tid=[77])
    except FileExistsError as error:
        pass
    else:
        os._exit(98)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(77, 0)[1]))
assert pid == free, (pid, free)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
""")
    assert text == "77\n"


def test_clone3_into_cgroup(root: None) -> None:
    """Born in the cgroup v2 directory given: where there is one at all."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    where = next((words[1] for words in mounts if words[2] == "cgroup2"), None)
    if where is None or not os.access(where, os.W_OK):
        pytest.skip("no cgroup v2 hierarchy that could be written to")
    group = Path(where) / f"torpor-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        text = alone(
            """
fd = os.open(sys.argv[2], os.O_RDONLY | os.O_DIRECTORY)
pid = clone.clone3(cgroup=fd)
if pid == 0:
    print([path for number, _, path in procfs.cgroup(os.getpid()) if number == 0], flush=True)
    os._exit(0)
os.waitpid(pid, 0)
""",
            str(group),
        )
        assert group.name in text
    finally:
        group.rmdir()


@pytest.mark.parametrize("flag", [clone.CLONE_VM, clone.CLONE_THREAD, clone.CLONE_PIDFD, clone.CLONE_CHILD_SETTID])
def test_clone3_refuses_what_is_no_fork(flag: int) -> None:
    with pytest.raises(ValueError, match="plain child"):
        clone.clone3(flag)


def test_clone3_names_the_pids_when_it_fails() -> None:
    if os.geteuid() != 0:
        with pytest.raises(PermissionError, match=r"set_tid=\[5\]"):
            clone.clone3(set_tid=[5])
    else:
        with pytest.raises(FileExistsError, match=rf"set_tid=\[{os.getpid()}\]"):
            clone.clone3(set_tid=[os.getpid()])


def test_execveat() -> None:
    text = alone("""
fd = os.open(sys.executable, os.O_RDONLY | os.O_CLOEXEC)
try:
    clone.execveat(os.open("/dev/null", os.O_RDONLY), ["x"])
except PermissionError:
    print("refused", flush=True)
clone.execveat(fd, [sys.executable, "-I", "-c", "import os, sys; print(os.environb, sys.argv)", "", b"\\xff"],
               ["A=1", b"B=\\xfe"])
""")
    assert "refused" in text
    assert "b'A': b'1'" in text and "b'B': b'\\xfe'" in text and "['-c', '', '\\udcff']" in text


def test_subreaper() -> None:
    text = alone("""
def grandchild():
    r, w = os.pipe()
    middle = os.fork()
    if not middle:
        below = os.fork()
        if below:
            os.write(w, b"%d" % below)
            os._exit(0)
        import time
        time.sleep(0.2)
        os._exit(5)
    os.waitpid(middle, 0)
    return int(os.read(r, 20))
clone.set_subreaper(True)
pid = grandchild()
print(procfs.stat(pid).ppid == os.getpid(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
clone.set_subreaper(False)
print(procfs.stat(grandchild()).ppid == os.getpid())
""")
    assert text == "True 5\nFalse\n"


def test_unshare_mount_umount(root: None, tmp_path: Path) -> None:
    text = alone(
        """
before = procfs.namespace(os.getpid(), "mnt")
clone.unshare(clone.CLONE_NEWNS)
print(procfs.namespace(os.getpid(), "mnt") != before)
clone.mount("none", "/", "", clone.MS_REC | clone.MS_PRIVATE)
clone.mount("torpor", sys.argv[2], "tmpfs", clone.MS_NOSUID | clone.MS_NODEV, "size=64k")
line = next(l for l in open("/proc/self/mounts") if l.split()[1] == sys.argv[2])
print(line.startswith("torpor "), "nosuid,nodev" in line and "size=64k" in line)
clone.umount(sys.argv[2], clone.MNT_DETACH)
print(any(l.split()[1] == sys.argv[2] for l in open("/proc/self/mounts")))
try:
    clone.mount("x", sys.argv[2], "no such type")
except OSError as error:
    print(error.errno)
home = os.open(f"/proc/{os.getppid()}/ns/mnt", os.O_RDONLY)
clone.setns(home, clone.CLONE_NEWNS)
print(procfs.namespace(os.getpid(), "mnt") == before)
""",
        str(tmp_path),
    )
    assert text == "True\nTrue True\nFalse\n19\nTrue\n"
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


def test_capget_is_what_status_says() -> None:
    for pid in (os.getpid(), os.getppid()):
        status = procfs.status(pid)
        assert clone.capget(pid) == (status.cap_effective, status.cap_permitted, status.cap_inheritable)
    assert clone.capget() == clone.capget(os.getpid())
    assert clone.last_capability() >= 37


def test_capabilities(root: None) -> None:
    text = alone("""
def show():
    s = procfs.status(os.getpid())
    return s.cap_effective, s.cap_permitted, s.cap_inheritable, s.cap_ambient
kill, nice = 1 << clone.CAP_KILL, 1 << clone.CAP_CHECKPOINT_RESTORE
_, permitted, _ = clone.capget()
assert permitted & kill and permitted & nice
clone.capset(kill | nice | 1 << clone.CAP_SETPCAP, permitted, nice)
clone.drop_bounding(range(clone.last_capability() + 1))
assert procfs.status(os.getpid()).cap_bounding == 0
clone.drop_bounding([3])
clone.capset(kill | nice, kill | nice, nice)
assert show() == (kill | nice, kill | nice, nice, 0) == (*clone.capget(), 0)
clone.raise_ambient([clone.CAP_CHECKPOINT_RESTORE])
assert show() == (kill | nice, kill | nice, nice, nice)
try:
    clone.raise_ambient([clone.CAP_KILL])       # not inheritable
except PermissionError as error:
    print("refused")
clone.clear_ambient()
clone.capset(0, 0, 0)
try:
    clone.capset(kill, kill, 0)
except PermissionError as error:
    print("capset" in str(error))
print(show())
""")
    assert text == "refused\nTrue\n(0, 0, 0, 0)\n"


def test_exit_signal_number() -> None:
    assert clone.SIGCHLD == signal.SIGCHLD

"""torpor.linux.procfs against children that know what they have made, and against other ways into the kernel."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import os
import resource
import signal
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from torpor.linux import procfs

if TYPE_CHECKING:
    from tests.linux.conftest import Child

Start = Callable[..., "Child"]


# ---------------------------------------------------------------------------------------------------------------------
# Mappings

PROCMAP_QUERY = 0xC0686611  # _IOWR('f', 17, struct procmap_query), Linux 6.11


def query_maps(pid: int) -> list[tuple[int, int, str, int, int, int, int, str]]:
    """The mappings as the ioctl PROCMAP_QUERY gives them: the kernel's own second reader, without any text."""
    found: list[tuple[int, int, str, int, int, int, int, str]] = []
    name = ctypes.create_string_buffer(8192)
    with open(f"/proc/{pid}/maps", "rb") as file:
        address = 0
        while True:
            query = bytearray(
                struct.pack(
                    "9Q4I2Q", 104, 0x10, address, 0, 0, 0, 0, 0, 0, 0, 0, len(name), 0, ctypes.addressof(name), 0
                )
            )
            try:
                fcntl.ioctl(file, PROCMAP_QUERY, query)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return found
                if error.errno == errno.ENOTTY:
                    pytest.skip("no PROCMAP_QUERY before Linux 6.11")
                raise
            _, _, _, start, end, flags, _, offset, inode, major, minor, length, *_ = struct.unpack("9Q4I2Q", query)
            perms = "".join(letter if flags & bit else "-" for letter, bit in (("r", 1), ("w", 2), ("x", 4)))
            perms += "s" if flags & 8 else "p"
            text = os.fsdecode(name.raw[: max(length - 1, 0)])
            found.append((start, end, perms, offset, major, minor, inode, text))
            address = end


def as_rows(mappings: list[procfs.Mapping]) -> list[tuple[int, int, str, int, int, int, int, str]]:
    return [
        (m.start, m.end, m.perms, m.offset, m.major, m.minor, m.inode, m.path + (" (deleted)" if m.deleted else ""))
        for m in mappings
        if m.path != "[vsyscall]"  # no real mapping: only the text files invent it
    ]


def test_maps_are_what_procmap_query_says(start: Start, tmp_path: Path) -> None:
    (tmp_path / "a b").write_bytes(bytes(8192))
    child = start(f"""
f = os.open({str(tmp_path / "a b")!r}, os.O_RDWR)
m = [mmap.mmap(f, 4096, mmap.MAP_PRIVATE), mmap.mmap(f, 4096, mmap.MAP_SHARED, offset=4096), mmap.mmap(-1, 8192)]
x = libc.mmap(None, 1 << 40, 0, 0x4022, -1, 0)
memfd = os.memfd_create("a name")
os.ftruncate(memfd, 4096)
n = mmap.mmap(memfd, 4096)
say()
""")
    expected = query_maps(child.pid)
    assert as_rows(procfs.maps(child.pid)) == expected
    assert as_rows(procfs.smaps(child.pid)) == expected
    assert len(expected) > 20


def test_maps_of_named_files(start: Start, tmp_path: Path) -> None:
    names = {
        "plain": b"plain",
        "newline": b"new\nline",
        "backslash": b"back\\012slash",
        "both": b"new\nline and back\\012slash",
        "bytes": b"\xff\xfe",
        "really": b"it is (deleted)",
        "gone": b"gone",
        "really gone": b"gone (deleted)",
        "blank": b"ends in blank ",
    }
    base = os.fsencode(tmp_path)
    for name in names.values():
        with open(base + b"/" + name, "wb") as file:
            file.write(bytes(4096))
    child = start(f"""
where = {{}}
for key, name in {names!r}.items():
    path = {base!r} + b"/" + name
    fd = os.open(path, os.O_RDWR)
    where[key] = libc.mmap(None, 4096, 1, mmap.MAP_SHARED, fd, 0)
    if b"gone" in name:
        os.unlink(path)
say(**where)
""")
    found = {m.start: m for m in procfs.maps(child.pid)}
    for key, name in names.items():
        mapping = found[child.facts[key]]
        if key == "both" and os.geteuid() != 0:
            continue
        assert os.fsencode(mapping.path) == base + b"/" + name, key
        assert mapping.deleted == ("gone" in key), key
        assert mapping.shared and mapping.readable and not mapping.writable and not mapping.executable
        assert mapping.length == 4096


def test_really_named_deleted_is_found_by_map_files_where_devices_differ(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: None
) -> None:
    path = tmp_path / "x (deleted)"
    path.write_bytes(bytes(4096))
    child = start(f"m = libc.mmap(None, 4096, 1, mmap.MAP_SHARED, os.open({str(path)!r}, os.O_RDONLY), 0)\nsay(at=m)")
    # As on btrfs: the line's device is not the one that stat shows.
    text = procfs.maps_text(child.pid)
    line = next(line for line in text.split(b"\n") if line.endswith(b"x (deleted)")).split(None, 5)
    line[3] = b"fff:ff"
    mapping = procfs._mapping(child.pid, b" ".join(line))
    assert (mapping.path, mapping.deleted) == (str(path), False)


def test_smaps_flags(start: Start) -> None:
    child = start("""
a = [libc.mmap(None, 65536, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0) for _ in range(2)]
a += [libc.mmap(None, 8192, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, -1, 0)]
assert libc.mlock(ctypes.c_void_p(a[0]), ctypes.c_size_t(65536)) == 0
assert libc.madvise(a[0], 65536, 16) == 0     # MADV_DONTDUMP
assert libc.madvise(a[1], 65536, 10) == 0     # MADV_DONTFORK
ctypes.memset(a[1], 1, 5 * 4096)
say(a=a)
""")
    found = {m.start: m for m in procfs.smaps(child.pid)}
    locked, unforked, none = (found[at] for at in child.facts["a"])
    assert {"rd", "wr", "mr", "mw", "me", "lo", "dd"} <= locked.flags
    assert "dc" in unforked.flags and not {"lo", "dd"} & unforked.flags
    assert locked.anonymous_kb == locked.rss_kb == 64
    assert (unforked.rss_kb, unforked.anonymous_kb, unforked.swap_kb) == (20, 20, 0)
    assert {"mr", "mw", "me", "nr"} == none.flags & {"rd", "wr", "ex", "mr", "mw", "me", "nr"}
    assert none.rss_kb == 0
    for mapping in found.values():
        if mapping.path != "[vsyscall]":
            assert ("rd" in mapping.flags) == mapping.readable and ("wr" in mapping.flags) == mapping.writable
            assert ("ex" in mapping.flags) == mapping.executable and ("ms" in mapping.flags) == mapping.shared
    for mapping in procfs.maps(child.pid):
        assert mapping.flags == frozenset() and mapping.rss_kb == -1


def test_smaps_add_up_to_the_rollup(start: Start) -> None:
    child = start("b = bytearray(3 << 20)\nsay()")
    rollup = dict(line.split(b":") for line in Path(f"/proc/{child.pid}/smaps_rollup").read_bytes().split(b"\n")[1:-1])
    mappings = procfs.smaps(child.pid)
    assert sum(m.rss_kb for m in mappings) == int(rollup[b"Rss"].split()[0])
    assert sum(m.anonymous_kb for m in mappings) == int(rollup[b"Anonymous"].split()[0])


def test_protection_key(start: Start) -> None:
    child = start("""
at = libc.mmap(None, 4096, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
key = libc.pkey_alloc(0, 0) if hasattr(libc, "pkey_alloc") else -1
if key > 0:
    assert libc.pkey_mprotect(ctypes.c_void_p(at), ctypes.c_size_t(4096), 3, key) == 0
say(at=at, key=key)
""")
    if child.facts["key"] <= 0:
        pytest.skip("this CPU or kernel has no protection keys")
    mapping = next(m for m in procfs.smaps(child.pid) if m.start == child.facts["at"])
    assert mapping.protection_key == child.facts["key"]


def test_many_mappings_are_read_whole(start: Start) -> None:
    child = start("""
for i in range(3000):
    assert libc.mmap(None, 4096, i & 1, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
say()
""")
    found = procfs.maps(child.pid)
    assert len(found) > 3000
    assert [(m.start, m.end) for m in procfs.smaps(child.pid)] == [(m.start, m.end) for m in found]
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))
    assert procfs.maps_text(child.pid).count(b"\n") == len(found)


# ---------------------------------------------------------------------------------------------------------------------
# The tree

FAMILY = """
import subprocess
made = {}
def another(key):
    made[key] = subprocess.Popen([sys.executable, "-I", "-S", "-c", '''
import subprocess, sys, os
p = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import os; os.read(0, 1)"], stdin=0)
print(p.pid, flush=True)
os.read(0, 1)
'''], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
another("leader")
hold = threading.Event()
ready = threading.Event()
def run():
    another("thread")
    ready.set()
    hold.wait()
t = threading.Thread(target=run, daemon=True)
t.start()
ready.wait()
grand = {key: int(p.stdout.readline()) for key, p in made.items()}
say(made={key: p.pid for key, p in made.items()}, grand=grand, tid=t.native_id)
"""


@pytest.fixture(params=["children file", "fallback"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With /proc/PID/task/TID/children and as on a kernel built without it."""
    if request.param == "children file":
        if not os.access("/proc/thread-self/children", os.F_OK):
            pytest.skip("this kernel has no /proc/PID/task/TID/children")
        return
    read, access = procfs._read, os.access

    def no_children(path: str) -> bytes:
        if path.endswith("/children"):
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return read(path)

    monkeypatch.setattr(procfs, "_read", no_children)
    monkeypatch.setattr(os, "access", lambda path, mode: not path.endswith("/children") and access(path, mode))


def test_children_and_descendants(start: Start, way: None) -> None:
    child = start(FAMILY)
    made, grand = child.facts["made"], child.facts["grand"]
    assert procfs.children(child.pid) == sorted(made.values())
    assert procfs.children(made["thread"]) == [grand["thread"]]
    assert procfs.children(grand["leader"]) == []
    below = procfs.descendants(child.pid)
    assert sorted(below) == sorted([*made.values(), *grand.values()])
    for key in made:
        assert below.index(made[key]) < below.index(grand[key])
    assert procfs.threads(child.pid) == [child.pid, child.facts["tid"]]
    assert all(procfs.stat(pid).ppid == child.pid for pid in made.values())
    with pytest.raises(FileNotFoundError):
        procfs.children(2**22 + 1)
    with pytest.raises(FileNotFoundError):
        procfs.descendants(2**22 + 1)


def test_threads_begin_with_the_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "listdir", lambda path: ["12", "7", "100", "9"])
    assert procfs.threads(100) == [100, 7, 9, 12]


def test_zombie(start: Start) -> None:
    child = start("""
pid = os.fork()
if not pid:
    os._exit(3)
os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
say(pid=pid)
""")
    pid = child.facts["pid"]
    assert procfs.exists(pid) and procfs.children(child.pid) == [pid]
    stat, status = procfs.stat(pid), procfs.status(pid)
    assert stat.state == status.state == "Z"
    assert stat.exit_code == 3 << 8
    assert stat.exit_signal == signal.SIGCHLD
    assert status.umask == -1
    assert procfs.maps(pid) == procfs.smaps(pid) == [] and procfs.cmdline(pid) == []
    with pytest.raises(FileNotFoundError):
        procfs.exe(pid)


def test_exists_and_pids(start: Start) -> None:
    child = start("say()")
    assert procfs.exists(child.pid) and child.pid in procfs.pids() and os.getpid() in procfs.pids()
    assert procfs.pids() == sorted(procfs.pids())
    child.process.kill()
    child.process.wait()
    assert not procfs.exists(child.pid)
    for gone in (procfs.stat, procfs.status, procfs.maps, procfs.fds, procfs.threads, procfs.limits, procfs.exec_start):
        with pytest.raises((FileNotFoundError, ProcessLookupError)):
            gone(child.pid)


def test_kernel_threads() -> None:
    assert not procfs.is_kernel_thread(os.getpid())
    if not procfs.exists(2) or procfs.stat(2).comm != b"kthreadd":
        pytest.skip("no kernel threads in this pid namespace")
    assert procfs.is_kernel_thread(2) and procfs.maps(2) == []


# ---------------------------------------------------------------------------------------------------------------------
# stat and status

ODD_NAMES = [b"a) R (b", b") S 1 1", b"new\nline", b"back\\n", b"\\\\\\\n", b"\xff(((", b"", b" "]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_comm_of_any_bytes(start: Start, name: bytes) -> None:
    child = start(f"libc.prctl(15, ctypes.c_char_p({name!r}), 0, 0, 0)\nsay(ppid=os.getppid(), pgrp=os.getpgrp())")
    stat, status = procfs.stat(child.pid), procfs.status(child.pid)
    assert procfs.comm(child.pid) == procfs.comm(child.pid, child.pid) == stat.comm == status.name == name
    assert (stat.pid, stat.ppid, stat.pgrp) == (child.pid, child.facts["ppid"], child.facts["pgrp"])
    assert status.tgid == status.pid == child.pid
    assert procfs.stat(child.pid, child.pid).comm == name


def test_stat(start: Start) -> None:
    child = start("""
os.setsid(); os.nice(5)
auxv = lambda kind: libc.getauxval(ctypes.c_ulong(kind))
libc.getauxval.restype = ctypes.c_ulong
libc.sbrk.restype = ctypes.c_void_p
here = ctypes.create_string_buffer(8)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
time.sleep(0)
say(sid=os.getsid(0), cpu=min(os.sched_getaffinity(0)), random=auxv(25), entry=auxv(9), brk=libc.sbrk(0),
    boot=time.clock_gettime(time.CLOCK_BOOTTIME))
""")
    stat, facts = procfs.stat(child.asleep().pid), child.facts
    assert stat.session == stat.pgrp == facts["sid"] == child.pid
    assert (stat.nice, stat.tty_nr, stat.tpgid, stat.last_cpu) == (5, 0, -1, facts["cpu"])
    assert (stat.exit_signal, stat.rt_priority, stat.policy) == (signal.SIGCHLD, 0, 0)
    assert stat.state == "S"
    assert 0 <= facts["boot"] - stat.starttime / os.sysconf("SC_CLK_TCK") < 60
    assert stat.start_code <= facts["entry"] < stat.end_code or stat.start_code <= stat.end_code
    assert stat.start_data <= stat.end_data and stat.start_brk <= facts["brk"]
    maps = procfs.maps(child.pid)
    stack = next(m for m in maps if m.path == "[stack]")
    for address in (stat.start_stack, stat.arg_start, stat.arg_end, stat.env_start, stat.env_end, facts["random"]):
        assert stack.start <= address <= stack.end
    heap = next((m for m in maps if m.path == "[heap]"), None)
    if heap is not None:
        assert heap.start <= stat.start_brk < heap.end
    with open(f"/proc/{child.pid}/mem", "rb") as memory:
        memory.seek(stat.arg_start)
        arguments = memory.read(stat.arg_end - stat.arg_start)
    assert arguments.split(b"\0")[:-1] == [os.fsencode(word) for word in procfs.cmdline(child.pid)]


def test_stat_of_a_thread(start: Start) -> None:
    child = start("""
hold = threading.Event()
ready = threading.Event()
def run():
    libc.prctl(15, ctypes.c_char_p(b"other one"), 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 7)
    libc.prctl(29, 12345, 0, 0, 0)
    ready.set()
    hold.wait()
t = threading.Thread(target=run, daemon=True)
t.start()
ready.wait()
say(tid=t.native_id)
""")
    tid = child.facts["tid"]
    assert procfs.stat(child.pid, tid).comm == procfs.status(child.pid, tid).name == b"other one"
    assert procfs.stat(child.pid, tid).nice == 7 and procfs.stat(child.pid).nice == 0
    assert procfs.stat(child.pid, tid).exit_signal == -1
    assert procfs.signals(procfs.status(child.pid, tid).blocked) == [signal.SIGUSR2]
    assert procfs.status(child.pid).blocked == 0
    status = procfs.status(child.pid, tid)
    assert (status.pid, status.tgid, status.threads) == (tid, child.pid, 2)
    if os.geteuid() == 0:
        assert procfs.timerslack_ns(tid) == 12345
        assert procfs.timerslack_ns(child.pid) == 50_000


def test_status_signals_and_umask(start: Start) -> None:
    child = start("""
os.umask(0o137)
signal.pthread_sigmask(signal.SIG_SETMASK, [1, 34, 64])
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
signal.signal(signal.SIGUSR2, lambda *a: None)
signal.pthread_kill(threading.get_ident(), 34)
os.kill(os.getpid(), 1)
say()
""")
    status = procfs.status(child.asleep().pid)
    assert status.umask == 0o137
    assert procfs.signals(status.blocked) == [1, 34, 64]
    assert status.blocked == procfs.mask([64, 1, 34, 1])
    assert procfs.signals(status.pending) == [34] and procfs.signals(status.shd_pending) == [1]
    assert signal.SIGUSR1 in procfs.signals(status.ignored) and signal.SIGUSR1 not in procfs.signals(status.caught)
    assert signal.SIGUSR2 in procfs.signals(status.caught)
    assert status.tracer_pid == 0 and status.state == "S"
    assert status.ns_tgid[0] == status.ns_pid[0] == child.pid
    assert len(status.ns_tgid) == len(status.ns_pgid) == len(status.ns_sid)


def test_status_ids_and_rights(start: Start, root: None) -> None:
    child = start("""
os.setgroups([7, 100000, 3])
libc.prctl(8, 1, 0, 0, 0)       # PR_SET_KEEPCAPS
os.setresgid(11, 12, 13)
os.setresuid(21, 22, 23)
libc.prctl(38, 1, 0, 0, 0)      # PR_SET_NO_NEW_PRIVS
say()
""")
    status = procfs.status(child.pid)
    assert status.uids == (21, 22, 23, 22) and status.gids == (11, 12, 13, 12)
    assert status.groups == [3, 7, 100000]
    assert (status.no_new_privs, status.seccomp) == (1, 0)
    mine = procfs.status(os.getpid())
    assert status.cap_effective == 0 and status.cap_permitted == mine.cap_permitted
    assert status.cap_bounding == mine.cap_bounding and status.cap_inheritable == status.cap_ambient == 0


def test_status_of_oneself() -> None:
    status = procfs.status(os.getpid())
    assert status.uids[:3] == os.getresuid() and status.gids[:3] == os.getresgid()
    assert sorted(status.groups) == sorted(os.getgroups())
    assert status.ppid == os.getppid() and status.ns_pgid[-1] == os.getpgrp()
    assert status.threads == threading.active_count()


def test_status_of_a_kernel_that_shows_less() -> None:
    """Linux 3.10's /proc/PID/status, and a zombie's."""
    old = (
        b"Name:\tsh\nState:\tS (sleeping)\nTgid:\t5\nPid:\t5\nPPid:\t1\nTracerPid:\t0\nUid:\t0\t0\t0\t0\n"
        b"Gid:\t0\t0\t0\t0\nFDSize:\t64\nGroups:\t\nThreads:\t1\nSigQ:\t0/1\nSigPnd:\t0\nShdPnd:\t0\nSigBlk:\t2\n"
        b"SigIgn:\t0\nSigCgt:\t0\nCapInh:\t0\nCapPrm:\t0\nCapEff:\t0\nCapBnd:\t1f\nCpus_allowed_list:\t0-2,5\n"
    )
    status = procfs.Status(old)
    assert (status.umask, status.groups, status.ns_tgid, status.ns_pid) == (-1, [], [5], [5])
    assert (status.cap_bounding, status.cap_ambient, status.no_new_privs) == (31, 0, 0)
    assert status.blocked == 2


def test_status_takes_microseconds(capsys: pytest.CaptureFixture[str]) -> None:
    taken = []
    for _ in range(300):
        before = time.perf_counter()
        procfs.status(os.getpid())
        taken.append(time.perf_counter() - before)
    with capsys.disabled():
        print(f" [status(): {statistics.median(taken) * 1e6:.0f} us]", end="")


# ---------------------------------------------------------------------------------------------------------------------
# Limits and the small files


def test_limits_are_what_prlimit_says(start: Start) -> None:
    child = start("""
resource.setrlimit(resource.RLIMIT_NOFILE, (123, 456))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_CPU, (1000, resource.getrlimit(resource.RLIMIT_CPU)[1]))
say()
""")
    found = procfs.limits(child.pid)
    assert len(found) == 16
    for number, limit in enumerate(found):
        expected = resource.prlimit(child.pid, number)
        assert limit == tuple(procfs.RLIM_INFINITY if value == -1 else value for value in expected), number
    assert found[resource.RLIMIT_NOFILE] == (123, 456)


def test_auxv_and_links(start: Start, tmp_path: Path) -> None:
    child = start(f"""
os.chdir({str(tmp_path)!r})
libc.getauxval.restype = ctypes.c_ulong
say(**{{str(kind): libc.getauxval(ctypes.c_ulong(kind)) for kind in (3, 6, 9, 25, 33)}})
""")
    data = procfs.auxv(child.pid)
    words = struct.unpack(f"{len(data) // ctypes.sizeof(ctypes.c_long)}L", data)
    vector = dict(zip(words[::2], words[1::2], strict=True))
    for kind, value in child.facts.items():
        assert vector.get(int(kind), 0) == value
    assert procfs.exe(child.pid) == os.path.realpath(sys.executable)
    assert procfs.cwd(child.pid) == str(tmp_path.resolve())
    assert procfs.root(child.pid) == os.readlink("/proc/self/root")
    assert procfs.cmdline(child.pid)[:3] == [sys.executable, "-I", "-c"]


def test_cmdline_keeps_empty_words_and_odd_bytes() -> None:
    arguments: list[bytes] = [os.fsencode(sys.executable), b"-c", b"input()", b"", b"\xff\xfe", b"", b""]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 10
        while len(procfs.cmdline(process.pid)) != len(arguments) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [os.fsencode(word) for word in procfs.cmdline(process.pid)] == arguments
        process.kill()


def test_personality_and_oom(start: Start) -> None:
    child = start("""
libc.personality(ctypes.c_ulong(0x0040000))
open("/proc/self/oom_score_adj", "w").write("321")
say()
""")
    assert procfs.personality(child.pid) == 0x0040000
    assert procfs.oom_score_adj(child.pid) == 321
    assert procfs.timerslack_ns(os.getpid()) is not None


def test_where_a_task_sleeps(start: Start) -> None:
    child = start("r, w = os.pipe()\nsay(r=r)\nos.read(r, 77)")
    deadline = time.monotonic() + 10
    while (call := procfs.syscall(child.pid)) is None or call[1][:1] != (child.facts["r"],):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    number, arguments, sp, pc = call
    assert len(arguments) == 6 and arguments[2] == 77
    maps = procfs.maps(child.pid)
    assert any(m.start <= sp < m.end and m.writable for m in maps)
    assert any(m.start <= pc < m.end and m.executable for m in maps)
    if os.uname().machine == "x86_64":
        assert number == 0
    assert procfs.syscall(child.pid, child.pid) == call
    assert procfs.wchan(child.pid) in ("", "pipe_read", "pipe_wait", "anon_pipe_read")
    spinning = start("say()\nwhile True: pass")
    assert any(procfs.syscall(spinning.pid) is None for _ in range(1000))
    assert procfs.wchan(spinning.pid) == ""


def test_exec_start_moves_when_the_task_runs(start: Start) -> None:
    child = start("say()\nwait()\nsay()")
    first = procfs.exec_start(child.asleep().pid)
    if first is None:
        pytest.skip("this kernel has no /proc/PID/sched")
    time.sleep(0.05)
    assert procfs.exec_start(child.pid, child.pid) == first
    child.step()
    time.sleep(0.05)
    second = procfs.exec_start(child.pid)
    assert second is not None and 50 <= second - first < 60_000


# ---------------------------------------------------------------------------------------------------------------------
# Descriptors


def test_fds_and_fdinfo(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))
    child = start(f"""
f = os.open({str(path)!r}, os.O_RDWR | os.O_APPEND | os.O_NONBLOCK)
os.lseek(f, 777, 0)
g = os.dup2(f, 200)
p = os.pipe2(0)
e = os.eventfd(0x1f)
libc.timerfd_create(1, 0)
s = socket.socket(socket.AF_UNIX)
import select
ep = select.epoll()
ep.register(e, 0x19)
i = libc.inotify_init1(0)
libc.inotify_add_watch(i, ctypes.c_char_p({str(tmp_path).encode()!r}), 2)
libc.inotify_add_watch(i, ctypes.c_char_p(b"/"), 2)
sfd = libc.signalfd(-1, ctypes.byref(ctypes.c_uint64(0x200)), 0)
t = libc.timerfd_create(1, 0)
libc.timerfd_settime(t, 1, (ctypes.c_long * 4)(5, 6, 1 << 31, 7), None)
open("/dev/null").close()
say(f=f, g=g, r=p[0], e=e, ep=ep.fileno(), i=i, s=s.fileno(), sfd=sfd, t=t)
""")
    facts = child.facts
    fds = procfs.fds(child.pid)
    assert {facts[key] for key in ("f", "g", "r", "e", "ep", "i", "s", "sfd", "t")} <= set(fds)
    assert fds == sorted(fds) and fds[:3] == [0, 1, 2]
    info = procfs.fdinfo(child.pid, facts["f"])
    assert info.pos == 777 and info.ino in (0, path.stat().st_ino)
    assert info.flags & (os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK) == os.O_RDWR | os.O_APPEND | os.O_NONBLOCK
    assert info.close_on_exec and not procfs.fdinfo(child.pid, 200).close_on_exec
    assert info.mnt_id in (int(line.split()[0]) for line in open("/proc/self/mountinfo"))
    assert info.extra == {}
    assert procfs.fd_link(child.pid, facts["f"]) == str(path)
    path.unlink()
    assert procfs.fd_link(child.pid, facts["f"]) == f"{path} (deleted)"
    pipe = os.stat(f"/proc/{child.pid}/fd/{facts['r']}").st_ino
    assert procfs.fd_link(child.pid, facts["r"]) == f"pipe:[{pipe}]"
    assert procfs.fdinfo(child.pid, facts["e"]).extra["eventfd-count"] == ["1f"]
    assert procfs.fdinfo(child.pid, facts["sfd"]).extra == {"sigmask": ["0000000000000200"]}
    (target,) = procfs.fdinfo(child.pid, facts["ep"]).extra["tfd"]
    assert target.split()[:3] == [str(facts["e"]), "events:", "19"]
    watches = procfs.fdinfo(child.pid, facts["i"]).extra["inotify"]
    assert sorted(watch.split()[0] for watch in watches) == ["wd:1", "wd:2"]
    timer = procfs.fdinfo(child.pid, facts["t"]).extra
    assert timer["clockid"] == ["1"] and timer["settime flags"] == ["01"] and timer["it_interval"] == ["(5, 6)"]
    with pytest.raises(FileNotFoundError):
        procfs.fdinfo(child.pid, 199)


def test_fdinfo_lines_of_a_kind_do_not_overrule_the_head() -> None:
    info = procfs.FdInfo(b"pos:\t5\nflags:\t02\nmnt_id:\t9\nino:\t4\nname:\tx\nflags:\t7\nino:\t99\nodd line\n")
    assert (info.pos, info.flags, info.mnt_id, info.ino) == (5, 2, 9, 4)
    assert info.extra == {"name": ["x"], "flags": ["7"], "ino": ["99"], "odd": ["line"]}
    old = procfs.FdInfo(b"pos:\t0\nflags:\t02000002\n")
    assert (old.mnt_id, old.ino, old.extra, old.close_on_exec) == (-1, 0, {}, bool(0o2000000 & os.O_CLOEXEC))


# ---------------------------------------------------------------------------------------------------------------------
# Namespaces and the machine


def test_namespaces(start: Start, root: None) -> None:
    child = start("""
if libc.unshare(0x08000000):    # CLONE_NEWIPC
    raise OSError(ctypes.get_errno())
say()
""")
    for kind in os.listdir("/proc/self/ns"):
        same = procfs.namespace(child.pid, kind) == procfs.namespace(os.getpid(), kind)
        assert same == (kind != "ipc"), kind
    with pytest.raises(FileNotFoundError):
        procfs.namespace(child.pid, "no such kind")


def test_time_namespace(start: Start, root: None) -> None:
    assert procfs.timens_offsets(os.getpid()) == (0, 0)
    child = start("""
made = not libc.unshare(0x80)
if made:
    open("/proc/self/timens_offsets", "w").write("monotonic 1000 5\\nboottime -1 999999999\\n")
say(made=made)
""")
    if not child.facts["made"]:
        pytest.skip("this kernel has no time namespaces")
    assert procfs.timens_offsets(child.pid) == (1_000_000_000_005, -1_000_000_000 + 999_999_999)


def test_user_namespace(start: Start) -> None:
    child = start("""
uid, gid = os.getuid(), os.getgid()
made = not libc.unshare(0x10000000)
if made:
    open("/proc/self/setgroups", "w").write("deny")
    open("/proc/self/uid_map", "w").write(f"5 {uid} 1")
    open("/proc/self/gid_map", "w").write(f"6 {gid} 1")
say(made=made, uid=uid, gid=gid)
""")
    if not child.facts["made"]:
        pytest.skip("user namespaces are not to be had here")
    assert procfs.uid_map(child.pid) == [(5, child.facts["uid"], 1)]
    assert procfs.gid_map(child.pid) == [(6, child.facts["gid"], 1)]
    assert procfs.uid_map(os.getpid())[0][2] > 0


def test_nested_pids(start: Start, root: None) -> None:
    child = start("""
assert not libc.unshare(0x20000000)
pid = os.fork()
if not pid:
    os.setsid()
    os.read(0, 1)
    os._exit(0)
time.sleep(0.1)
say(pid=pid)
""")
    status = procfs.status(child.facts["pid"])
    assert status.ns_pid == status.ns_tgid == status.ns_sid == status.ns_pgid == [child.facts["pid"], 1]


def test_machine() -> None:
    assert procfs.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert len(procfs.boot_id()) == 36
    groups = procfs.cgroup(os.getpid())
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    assert [f"{number}:{controllers}:{path}" for number, controllers, path in groups] == lines

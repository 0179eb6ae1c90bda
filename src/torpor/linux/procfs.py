"""/proc as tables: what proc(5) says about one process, one thread, one mapping, one descriptor.

Every function reads its file once, in the reader's own pid and user namespace, and gives plain integers and text:

    for mapping in procfs.maps(pid): ...        /proc/PID/maps, 0.1 ms
    for mapping in procfs.smaps(pid): ...       the same with VmFlags and sizes; walks all page tables (8-20 ms per GiB)
    procfs.status(pid).blocked                  bit n-1 for signal n
    procfs.threads(pid), procfs.children(pid)   task ids

Errors are those of open(2) and read(2): a process that is gone gives FileNotFoundError or ProcessLookupError, one that
belongs to somebody else PermissionError. A zombie has its stat and status, but no maps, exe, cwd or descriptors.

File names are text made by os.fsdecode(), so that any bytes survive; a task's own name (comm) stays bytes.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

RLIM_INFINITY = 2**64 - 1
"""Given for "unlimited" on every architecture, also where the kernel's own value is 2**32 - 1."""

PF_KTHREAD = 0x00200000
"""The bit in Stat.flags that says kernel thread (linux/sched.h)."""

_PF_EXITING = 4  # linux/sched.h

_DELETED = b" (deleted)"


def _read(path: str) -> bytes:
    """The whole file.

    Asked for once more where there is no such process: for an instant there is none while a thread of it that executes a program
    takes the place of the first one (fs/exec.c, de_thread()).
    """
    try:
        return _read_once(path)
    except (FileNotFoundError, ProcessLookupError):
        return _read_once(path)


def _read_once(path: str) -> bytes:
    """The whole file. A short read is not the end of a seq_file: those come page by page."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = [os.read(fd, 16384)]
        while piece := os.read(fd, 65536):
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
    finally:
        os.close(fd)


def _task(pid: int, tid: int | None) -> str:
    return f"/proc/{pid}" if tid is None else f"/proc/{pid}/task/{tid}"


# ---------------------------------------------------------------------------------------------------------------------
# Mappings


class Mapping:
    """One line of /proc/PID/maps, with what smaps adds to it.

    `path` is the name the kernel shows: a file's, "[heap]", "[vdso]", "[anon:name]", "anon_inode:...", "" when there is
    none. It is seen from the reader's root where that is possible and may be meaningless in another mount namespace.
    """

    __slots__ = (
        "anonymous_kb", "deleted", "end", "flags", "huge_kb", "inode", "major", "minor", "offset", "path", "perms",
        "protection_key", "rss_kb", "start", "swap_kb",
    )  # fmt: skip

    def __init__(
        self,
        start: int,
        end: int,
        perms: str,
        offset: int = 0,
        major: int = 0,
        minor: int = 0,
        inode: int = 0,
        path: str = "",
        deleted: bool = False,
    ) -> None:
        self.start, self.end = start, end
        self.perms = perms
        """As the kernel writes it: "rwxp" or "rwxs", with "-" for what is missing."""
        self.offset = offset
        """Bytes into the file where the mapping begins."""
        self.major, self.minor, self.inode = major, minor, inode
        self.path, self.deleted = path, deleted
        self.flags: frozenset[str] = frozenset()
        """VmFlags of smaps, two letters each (proc_pid_smaps(5)); empty when read by maps()."""
        self.protection_key = 0
        self.anonymous_kb = self.huge_kb = self.rss_kb = self.swap_kb = -1
        """KiB of smaps' Anonymous, AnonHugePages, Rss, Swap; -1 when read by maps()."""

    @property
    def length(self) -> int:
        """Bytes."""
        return self.end - self.start

    @property
    def readable(self) -> bool:
        return self.perms[0] == "r"

    @property
    def writable(self) -> bool:
        return self.perms[1] == "w"

    @property
    def executable(self) -> bool:
        return self.perms[2] == "x"

    @property
    def shared(self) -> bool:
        """MAP_SHARED. (Of a file opened for reading only, the flags have "ms" but not "sh".)"""
        return self.perms[3] == "s"

    def __repr__(self) -> str:
        deleted = " (deleted)" if self.deleted else ""
        return f"<Mapping {self.start:x}-{self.end:x} {self.perms} {self.offset:x} {self.path}{deleted}>"


def _mapping(pid: int, line: bytes) -> Mapping:
    fields = line.split(None, 5)
    low, _, high = fields[0].partition(b"-")
    major, _, minor = fields[3].partition(b":")
    start, end, inode = int(low, 16), int(high, 16), int(fields[4])
    mapping = Mapping(start, end, fields[1].decode(), int(fields[2], 16), int(major, 16), int(minor, 16), inode)
    if len(fields) == 6:
        name = fields[5]
        if b"\\012" in name:
            name = _unescape(pid, mapping, name)
        if name.endswith(_DELETED) and name[:1] != b"[" and not _is_really_named(pid, mapping, name):
            name, mapping.deleted = name[: -len(_DELETED)], True
        mapping.path = os.fsdecode(name)
    return mapping


def _unescape(pid: int, mapping: Mapping, shown: bytes) -> bytes:
    r"""The name behind `shown`, in which every newline is written \012.

    A backslash is not escaped, so a file whose name holds the four characters \012 looks the same: where map_files can
    be read (ptrace rights) its link tells the two apart.
    """
    try:
        exact = os.readlink(f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}".encode())
    except OSError:
        return shown.replace(b"\\012", b"\n")
    return exact if exact.replace(b"\n", b"\\012") == shown else shown.replace(b"\\012", b"\n")


def _is_really_named(pid: int, mapping: Mapping, name: bytes) -> bool:
    """Whether the mapped file is one whose own name ends in " (deleted)" and that still exists.

    Asked only for names with that ending: the file of that very name under the task's root must be the mapped one. It
    is compared with map_files (CAP_CHECKPOINT_RESTORE) where that can be followed, since the device in maps is not
    the one of stat on overlayfs and btrfs, else with the line's own device and inode. Where neither can tell, the
    ending is the kernel's.
    """
    if not mapping.inode or name[:1] != b"/":
        return False
    try:
        found = os.stat(f"/proc/{pid}/root".encode() + name)
        if found.st_ino != mapping.inode:
            return False
        if found.st_dev == os.makedev(mapping.major, mapping.minor):
            return True
        mapped = os.stat(f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}")
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (mapped.st_dev, mapped.st_ino)


def maps_text(pid: int) -> bytes:
    """/proc/PID/maps as it is, to compare two moments with."""
    return _read(f"/proc/{pid}/maps")


_latest: tuple[bytes, list[Mapping]] = b"", []
"""What `maps` has read last, and made of it."""


def maps(pid: int) -> list[Mapping]:
    """The mappings in ascending order, without VmFlags. Empty for zombies and kernel threads.

    The same objects when the text is the same as the time before: a process is asked twice, and its children often have the same.
    """
    global _latest
    text, latest = maps_text(pid), _latest
    if text != latest[0] or _DELETED in text or b"\\012" in text:  # of such names there is more to ask
        latest = _latest = text, [_mapping(pid, line) for line in text.split(b"\n") if line]
    return list(latest[1])


def smaps(pid: int) -> list[Mapping]:
    """The mappings in ascending order with flags, protection_key, anonymous_kb, huge_kb, rss_kb and swap_kb.

    The kernel walks all page tables for it: 8-20 ms per GiB of resident memory. Each mapping is consistent in itself,
    the list is not a snapshot unless the task is stopped.
    """
    found: list[Mapping] = []
    known: dict[bytes, frozenset[str]] = {}
    # VmFlags is the last line of each mapping (fs/proc/task_mmu.c, show_smap()); newlines in names are escaped.
    header, *blocks = _read(f"/proc/{pid}/smaps").split(b"\nVmFlags:")
    for block in blocks:
        mapping = _mapping(pid, header[: header.index(b"\n")])
        mapping.rss_kb = _attribute(header, b"\nRss:", -1)
        mapping.anonymous_kb = _attribute(header, b"\nAnonymous:", -1)
        mapping.huge_kb = _attribute(header, b"\nAnonHugePages:", 0)
        mapping.swap_kb = _attribute(header, b"\nSwap:", -1)
        mapping.protection_key = _attribute(header, b"\nProtectionKey:", 0)
        words, _, header = block.partition(b"\n")
        flags = known.get(words)
        if flags is None:
            flags = known[words] = frozenset(words.decode().split())
        mapping.flags = flags
        found.append(mapping)
    return found


def _attribute(block: bytes, key: bytes, missing: int) -> int:
    at = block.find(key)
    return missing if at < 0 else int(block[at + len(key) :].partition(b"\n")[0].removesuffix(b"kB"))


# ---------------------------------------------------------------------------------------------------------------------
# The tree of processes and threads


def exists(pid: int) -> bool:
    """Whether the number is taken by a process or a thread, running, stopped or zombie."""
    return os.access(f"/proc/{pid}", os.F_OK) or os.access(f"/proc/{pid}", os.F_OK)  # as in _read


def threads(pid: int) -> list[int]:
    """The ids of the process's threads: the leader first, then ascending. They come and go unless all are stopped."""
    tids = sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    # Numbers wrap around: a thread's id may well be lower than its leader's.
    if tids and tids[0] != pid and pid in tids:
        tids.remove(pid)
        tids.insert(0, pid)
    return tids


def children(pid: int) -> list[int]:
    """The pids of the process's children, zombies among them, whichever of its threads has made them; ascending.

    From /proc/PID/task/*/children (CONFIG_PROC_CHILDREN); where that file is missing every /proc/*/stat is asked for
    its parent. Reliable only while process and children are stopped (proc(5)).
    """
    found: set[int] = set()
    for tid in os.listdir(f"/proc/{pid}/task"):
        path = f"/proc/{pid}/task/{tid}/children"
        try:
            found.update(map(int, _read(path).split()))
        except FileNotFoundError:
            if exists(pid) and not os.access("/proc/thread-self/children", os.F_OK):
                return sorted(_by_parent().get(pid, []))
        except ProcessLookupError:
            pass  # the thread has ended; its children have moved to another one
    return sorted(found)


def descendants(pid: int) -> list[int]:
    """The pids of all children, their children and so on, parents before their children; `pid` itself is left out."""
    table = None if os.access("/proc/thread-self/children", os.F_OK) else _by_parent()
    if table is not None and not exists(pid):
        raise FileNotFoundError(2, os.strerror(2), f"/proc/{pid}")
    found: list[int] = []
    queue = [pid]
    for parent in queue:
        if table is not None:
            below = sorted(table.get(parent, []))
        else:
            try:
                below = children(parent)
            except (FileNotFoundError, ProcessLookupError):
                if parent == pid:
                    raise
                below = []
        found += below
        queue += below
    return found


def pids() -> list[int]:
    """The numbers of all processes that this /proc shows, ascending."""
    return sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())


def _by_parent() -> dict[int, list[int]]:
    table: dict[int, list[int]] = {}
    for pid in pids():
        try:
            table.setdefault(stat(pid).ppid, []).append(pid)
        except (FileNotFoundError, ProcessLookupError):
            pass  # ended meanwhile
    return table


# ---------------------------------------------------------------------------------------------------------------------
# stat and status


_STAT = {
    "ppid": 4, "pgrp": 5, "session": 6, "tty_nr": 7, "tpgid": 8, "flags": 9, "utime": 14, "stime": 15, "nice": 19, "starttime": 22,
    "vsize": 23, "start_code": 26, "end_code": 27, "start_stack": 28, "exit_signal": 38, "last_cpu": 39, "rt_priority": 40,
    "policy": 41, "start_data": 45, "end_data": 46, "start_brk": 47, "arg_start": 48, "arg_end": 49, "env_start": 50, "env_end": 51,
    "exit_code": 52,
}  # fmt: skip
"""The numbers of the fields (proc_pid_stat(5)) that are plain numbers."""


class Stat:
    """/proc/PID/stat (proc_pid_stat(5)). Addresses and exit_code are 0 (or 1) without ptrace rights on the task.

    What is seen is of one moment; each field becomes a number when it is asked for, for a program may have hundreds of tasks.
    """

    __slots__ = ("_words", "comm", "pid", "state", *_STAT)

    ppid: int
    pgrp: int
    session: int
    tty_nr: int
    """Device number of the controlling terminal, 0 for none."""
    tpgid: int
    """Foreground process group of that terminal, -1 for none."""
    flags: int
    """PF_* bits (linux/sched.h)."""
    utime: int
    stime: int
    """Clock ticks (sysconf SC_CLK_TCK)."""
    nice: int
    starttime: int
    """Clock ticks from boot (as the reader's time namespace has it) to the start: (pid, starttime) is unique."""
    vsize: int
    start_code: int
    end_code: int
    start_stack: int
    exit_signal: int
    last_cpu: int
    rt_priority: int
    policy: int
    start_data: int
    end_data: int
    start_brk: int
    arg_start: int
    arg_end: int
    env_start: int
    env_end: int
    exit_code: int
    """As waitpid(2) gives it, for a zombie."""

    def __init__(self, data: bytes) -> None:
        # comm may hold blanks, parentheses and newlines; no field after it can hold a parenthesis.
        opening, closing = data.index(b"("), data.rindex(b")")
        self.pid = int(data[:opening])
        self.comm = data[opening + 1 : closing]
        self._words = data[closing + 2 :].split()
        self.state = self._words[0].decode()
        """R running, S sleeping, D disk sleep, T stopped, t traced, Z zombie, X dead, I idle kernel thread."""

    def __getattr__(self, name: str) -> int:
        """A field that is asked for the first time."""
        number = _STAT.get(name)
        if number is None:
            raise AttributeError(name)
        value = int(self._words[number - 3])
        setattr(self, name, value)
        return value


def stat(pid: int, tid: int | None = None) -> Stat:
    """/proc/PID/stat; with `tid` that thread's own (state, flags, nice, starttime, exit_signal, last_cpu, comm)."""
    return Stat(_read(_task(pid, tid) + "/stat"))


def _numbers(text: bytes) -> list[int]:
    return [int(word) for word in text.split()]


def _four(text: bytes) -> tuple[int, int, int, int]:
    real, effective, saved, fs = text.split()
    return int(real), int(effective), int(saved), int(fs)


def _hexadecimal(text: bytes) -> int:
    return int(text, 16)


def _octal(text: bytes) -> int:
    return int(text, 8)


def _unescaped(name: bytes) -> bytes:
    return name.replace(b"\\\\", b"\0").replace(b"\\n", b"\n").replace(b"\0", b"\\") if b"\\" in name else name


def _letter(text: bytes) -> str:
    return text[:1].decode()


_STATUS: dict[str, tuple[bytes, Callable[[bytes], object], bytes | None]] = {
    "name": (b"Name", _unescaped, None),
    "umask": (b"Umask", _octal, b"-1"),
    "state": (b"State", _letter, None),
    "tgid": (b"Tgid", int, None),
    "pid": (b"Pid", int, None),
    "ppid": (b"PPid", int, None),
    "tracer_pid": (b"TracerPid", int, None),
    "uids": (b"Uid", _four, None),
    "gids": (b"Gid", _four, None),
    "groups": (b"Groups", _numbers, None),
    "ns_tgid": (b"NStgid", _numbers, b""),
    "ns_pid": (b"NSpid", _numbers, b""),
    "ns_pgid": (b"NSpgid", _numbers, b""),
    "ns_sid": (b"NSsid", _numbers, b""),
    "threads": (b"Threads", int, b"0"),
    "pending": (b"SigPnd", _hexadecimal, None),
    "shd_pending": (b"ShdPnd", _hexadecimal, None),
    "blocked": (b"SigBlk", _hexadecimal, None),
    "ignored": (b"SigIgn", _hexadecimal, None),
    "caught": (b"SigCgt", _hexadecimal, None),
    "cap_inheritable": (b"CapInh", _hexadecimal, None),
    "cap_permitted": (b"CapPrm", _hexadecimal, None),
    "cap_effective": (b"CapEff", _hexadecimal, None),
    "cap_bounding": (b"CapBnd", _hexadecimal, None),
    "cap_ambient": (b"CapAmb", _hexadecimal, b"0"),
    "no_new_privs": (b"NoNewPrivs", int, b"0"),
    "seccomp": (b"Seccomp", int, b"0"),
}
"""How each field is written there, and what stands for it where it may be missing; None: it never is."""


class Status:
    """/proc/PID/status (proc_pid_status(5)). Signal sets have bit n-1 for signal n, capability sets bit n for number n.

    Fields that an older kernel does not show are 0, `umask` of a zombie is -1. The ns_* lists begin with the number
    in the pid namespace of this /proc and end with the one in the task's own. What is seen is of one moment; each field is made of
    its line when it is asked for, for a program may have hundreds of tasks.
    """

    __slots__ = ("_text", *_STATUS)

    name: bytes
    """The thread's comm."""
    umask: int
    state: str
    """The letter, as in Stat.state."""
    tgid: int
    pid: int
    ppid: int
    tracer_pid: int
    uids: tuple[int, int, int, int]
    """Real, effective, saved, file system."""
    gids: tuple[int, int, int, int]
    groups: list[int]
    ns_tgid: list[int]
    ns_pid: list[int]
    ns_pgid: list[int]
    ns_sid: list[int]
    threads: int
    pending: int
    shd_pending: int
    """Signals that wait for this thread, and for any thread of the process."""
    blocked: int
    ignored: int
    caught: int
    cap_inheritable: int
    cap_permitted: int
    cap_effective: int
    cap_bounding: int
    cap_ambient: int
    no_new_privs: int
    seccomp: int
    """0 disabled, 1 strict, 2 filter."""

    def __init__(self, data: bytes) -> None:
        self._text = b"\n" + data

    def __getattr__(self, name: str) -> object:
        """A field that is asked for the first time. Raises KeyError where the kernel says nothing of what it always tells."""
        if name not in _STATUS:
            raise AttributeError(name)
        key, made_of, otherwise = _STATUS[name]
        at = self._text.find(b"\n" + key + b":\t")  # a newline in a name is escaped
        if at >= 0:
            value = made_of(self._text[at + len(key) + 3 : self._text.find(b"\n", at + 1)])
        elif name in ("ns_tgid", "ns_pid"):
            value = [self.tgid if name == "ns_tgid" else self.pid]
        elif otherwise is None:
            raise KeyError(name)
        else:
            value = made_of(otherwise)
        setattr(self, name, value)
        return value


def status(pid: int, tid: int | None = None) -> Status:
    """/proc/PID/status; with `tid` that thread's own signal sets, capabilities, ids, seccomp mode and name."""
    return Status(_read(_task(pid, tid) + "/status"))


def is_ending(pid: int) -> bool:
    """Whether a process has ended, or is about to: its memory may be gone."""
    try:
        found = stat(pid)
    except (FileNotFoundError, ProcessLookupError):
        return True
    return found.state in "ZX" or bool(found.flags & _PF_EXITING)


def is_kernel_thread(pid: int) -> bool:
    """Whether the task lives in the kernel only, without memory of its own."""
    return bool(stat(pid).flags & PF_KTHREAD)


def comm(pid: int, tid: int | None = None) -> bytes:
    """The name of the task (prctl PR_SET_NAME), at most 15 bytes of any kind."""
    return _read(_task(pid, tid) + "/comm")[:-1]


def cmdline(pid: int) -> list[str]:
    """The arguments as they now lie in the task's memory; empty for zombies and kernel threads."""
    data = _read(f"/proc/{pid}/cmdline")
    return [os.fsdecode(word) for word in data.removesuffix(b"\0").split(b"\0")] if data else []


def auxv(pid: int) -> bytes:
    """The auxiliary vector that execve(2) gave the process, in its own words: pairs of longs up to AT_NULL."""
    return _read(f"/proc/{pid}/auxv")


def exe(pid: int) -> str:
    """The program file's name, with " (deleted)" behind it when it is gone. ENOENT: zombie or kernel thread."""
    return os.readlink(f"/proc/{pid}/exe")


def cwd(pid: int) -> str:
    """The current directory's name, with " (deleted)" behind it when it is gone."""
    return os.readlink(f"/proc/{pid}/cwd")


def root(pid: int) -> str:
    """The root directory's name."""
    return os.readlink(f"/proc/{pid}/root")


def personality(pid: int) -> int:
    """The execution domain and its flags (personality(2))."""
    return int(_read(f"/proc/{pid}/personality"), 16)


def oom_score_adj(pid: int) -> int:
    """-1000 to 1000."""
    return int(_read(f"/proc/{pid}/oom_score_adj"))


def timerslack_ns(tid: int) -> int | None:
    """The thread's timer slack (PR_SET_TIMERSLACK) in nanoseconds, or None when the kernel does not let us know.

    Another task's needs CAP_SYS_NICE. The file stands in /proc/PID only, where a thread's id will do as well.
    """
    try:
        return int(_read(f"/proc/{tid}/timerslack_ns"))
    except PermissionError:
        return None
    except FileNotFoundError:
        if exists(tid):
            return None
        raise


_LIMITS = {
    name: number
    for number, name in enumerate(
        (
            b"Max cpu time", b"Max file size", b"Max data size", b"Max stack size", b"Max core file size",
            b"Max resident set", b"Max processes", b"Max open files", b"Max locked memory", b"Max address space",
            b"Max file locks", b"Max pending signals", b"Max msgqueue size", b"Max nice priority",
            b"Max realtime priority", b"Max realtime timeout",
        )
    )
}  # fmt: skip
"""The kernel's names in the order of the RLIMIT_* numbers of asm-generic/resource.h.

MIPS and SPARC number some of them differently; /proc is read by name, so the result is in the generic order there too.
"""


def limits(pid: int) -> list[tuple[int, int]]:
    """(soft, hard) of each resource limit, indexed by RLIMIT_*; RLIM_INFINITY where there is none.

    Needs no capability, unlike prlimit(2) on another user's process.
    """
    global _latest_limits
    text, latest = _read(f"/proc/{pid}/limits"), _latest_limits
    if text != latest[0]:  # those of the processes of a tree are alike, as a rule
        latest = _latest_limits = text, _as_limits(text)
    return list(latest[1])


_latest_limits: tuple[bytes, list[tuple[int, int]]] = b"", []
"""What `limits` has read last, and made of it."""


def _as_limits(text: bytes) -> list[tuple[int, int]]:
    found = [(RLIM_INFINITY, RLIM_INFINITY)] * len(_LIMITS)
    for line in text.split(b"\n")[1:]:
        number = _LIMITS.get(line[:25].rstrip())
        if number is not None:
            soft, hard = line[25:].split()[:2]
            found[number] = (
                RLIM_INFINITY if soft == b"unlimited" else int(soft),
                RLIM_INFINITY if hard == b"unlimited" else int(hard),
            )
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Descriptors


class FdInfo:
    """/proc/PID/fdinfo/FD (proc_pid_fdinfo(5))."""

    __slots__ = ("extra", "flags", "ino", "mnt_id", "pos")

    def __init__(self, data: bytes) -> None:
        self.pos = self.flags = self.ino = 0
        self.mnt_id = -1
        """-1 and ino 0: an older kernel does not say (3.15, 5.14)."""
        self.extra: dict[str, list[str]] = {}
        """The lines that belong to the kind of file, by what stands before the colon ("lock", "tfd", "eventfd-count",
        "inotify", "fanotify", "Pid" ...), each as the stripped text behind it."""
        head = True
        for line in os.fsdecode(data).split("\n"):
            key, colon, value = line.partition(":")
            if head and key == "pos":
                self.pos = int(value)
            elif head and key == "flags":
                self.flags = int(value, 8)
            elif head and key == "mnt_id":
                self.mnt_id = int(value)
            elif head and key == "ino":
                self.ino = int(value)
            elif line:
                head = False
                # "inotify wd:1 ino:..." has no colon behind its name; "settime flags: 01" has a blank in it.
                if not colon or key.startswith(("inotify ", "fanotify ")):
                    key, _, value = line.partition(" ")
                self.extra.setdefault(key, []).append(value.strip())

    @property
    def close_on_exec(self) -> bool:
        return bool(self.flags & os.O_CLOEXEC)


def fds(pid: int) -> list[int]:
    """The open descriptors' numbers, ascending."""
    return sorted(int(name) for name in os.listdir(f"/proc/{pid}/fd"))


def fd_link(pid: int, fd: int) -> str:
    """What the descriptor leads to: "/a/file", "/a/file (deleted)", "pipe:[123]", "anon_inode:[eventfd]" ..."""
    return os.readlink(f"/proc/{pid}/fd/{fd}")


def fdinfo(pid: int, fd: int) -> FdInfo:
    """Position, open flags (O_CLOEXEC among them), mount id, inode, and the lines of that kind of file."""
    return FdInfo(_read(f"/proc/{pid}/fdinfo/{fd}"))


# ---------------------------------------------------------------------------------------------------------------------
# Where a task sleeps


def wchan(pid: int, tid: int | None = None) -> str:
    """The kernel function the thread sleeps in; "" when it runs or the kernel does not tell."""
    name = _read(_task(pid, tid) + "/wchan").decode("ascii", "replace")
    return "" if name == "0" else name


def syscall(pid: int, tid: int | None = None) -> tuple[int, tuple[int, ...], int, int] | None:
    """(call number, its six arguments, stack pointer, program counter) of a thread in the kernel; None when it runs.

    A thread that sleeps outside of any system call has the number -1 and no arguments.
    """
    words = _read(_task(pid, tid) + "/syscall").split()
    if len(words) < 3:  # "running"
        return None
    return int(words[0]), tuple(int(word, 16) for word in words[1:-2]), int(words[-2], 16), int(words[-1], 16)


def times_run(pid: int, tid: int) -> int | None:
    """How often a thread has been given a processor: /proc/PID/task/TID/schedstat (Documentation/scheduler/sched-stats.rst).

    None where the kernel does not count that.
    """
    try:
        return int(_read(_task(pid, tid) + "/schedstat").split()[2])
    except (FileNotFoundError, IndexError):
        return None


def exec_start(pid: int, tid: int | None = None) -> float | None:
    """When the thread's current or last stretch on a CPU began or was last accounted, in milliseconds of that CPU's
    clock.

    For a sleeping thread: when it went to sleep. None where the kernel has no /proc/PID/task/TID/sched.
    """
    try:
        data = _read(f"/proc/{pid}/task/{pid if tid is None else tid}/sched")
    except FileNotFoundError:
        if exists(pid):
            return None
        raise
    at = data.find(b"se.exec_start")
    if at < 0:
        return None
    return float(data[at : data.index(b"\n", at)].partition(b":")[2])


# ---------------------------------------------------------------------------------------------------------------------
# Namespaces, control groups, the machine


def namespace(pid: int, kind: str) -> tuple[int, int]:
    """(device, inode) of the task's namespace; `kind` is a name in /proc/PID/ns. Equal pairs are the same namespace.

    FileNotFoundError: the kernel has no such kind, or the task is gone.
    """
    found = os.stat(f"/proc/{pid}/ns/{kind}")
    return found.st_dev, found.st_ino


def timens_offsets(pid: int) -> tuple[int, int]:
    """(CLOCK_MONOTONIC, CLOCK_BOOTTIME) offsets in nanoseconds of the time namespace for the task's children.

    That is the task's own once it has called execve or been forked into it. (0, 0) where there are no time namespaces.
    """
    offsets = {b"monotonic": 0, b"boottime": 0}
    try:
        data = _read(f"/proc/{pid}/timens_offsets")
    except FileNotFoundError:
        if not exists(pid):
            raise
        data = b""
    for line in data.splitlines():
        clock, seconds, nanoseconds = line.split()
        offsets[clock] = int(seconds) * 1_000_000_000 + int(nanoseconds)
    return offsets[b"monotonic"], offsets[b"boottime"]


def _id_map(path: str) -> list[tuple[int, int, int]]:
    rows = (line.split() for line in _read(path).splitlines())
    return [(int(inside), int(outside), int(count)) for inside, outside, count in rows]


def uid_map(pid: int) -> list[tuple[int, int, int]]:
    """(first inside, first outside, count) of the task's user namespace; "outside" is seen from the reader's."""
    return _id_map(f"/proc/{pid}/uid_map")


def gid_map(pid: int) -> list[tuple[int, int, int]]:
    """As uid_map(), for groups."""
    return _id_map(f"/proc/{pid}/gid_map")


def cgroup(pid: int) -> list[tuple[int, str, str]]:
    """(hierarchy number, controllers, path) for each line of /proc/PID/cgroup; number 0 and no controllers is v2."""
    found = []
    for line in os.fsdecode(_read(f"/proc/{pid}/cgroup")).split("\n"):
        if line:
            number, controllers, path = line.split(":", 2)
            found.append((int(number), controllers, path))
    return found


def cpuinfo() -> dict[str, str]:
    """The lines about the first CPU in /proc/cpuinfo; the whole file of a big machine takes milliseconds."""
    found = b""
    fd = os.open("/proc/cpuinfo", os.O_RDONLY | os.O_CLOEXEC)
    try:
        while b"\n\n" not in found and (more := os.read(fd, 8192)):
            found += more
    finally:
        os.close(fd)
    return first_cpu(found)


def first_cpu(cpuinfo: bytes) -> dict[str, str]:
    """The lines about the first CPU in a copy of /proc/cpuinfo, by their names."""
    lines = cpuinfo.partition(b"\n\n")[0].decode("ascii", "replace").splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def sysctl(name: str, otherwise: int) -> int:
    """The number in /proc/sys/NAME; `otherwise` where this kernel has none, or hides it."""
    try:
        with open(f"/proc/sys/{name}", "rb", buffering=0) as file:
            return int(file.read())
    except (OSError, ValueError):
        return otherwise


def boot_id() -> str:
    """The random name of this run of the kernel."""
    return _read("/proc/sys/kernel/random/boot_id").decode().strip()


def signals(mask: int) -> list[int]:
    """The signal numbers in one of Status' signal sets."""
    return [bit + 1 for bit in range(mask.bit_length()) if mask >> bit & 1]


def mask(signals: Iterable[int]) -> int:
    """The signal set that holds these signal numbers, as Status has them."""
    return sum(1 << signal - 1 for signal in set(signals))

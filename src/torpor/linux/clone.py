"""Making processes and changing what they are: clone3(2), unshare(2), setns(2), mount(2), execveat(2), capabilities(7).

    pid = clone.clone3(clone.CLONE_NEWPID, set_tid=[1])
    if pid == 0:
        ...                             # the child
        clone.execveat(fd, [b"stub"], [])

**clone3() here is a raw fork.** The child gets a copy of everything and returns into Python, but nobody has told the
interpreter or the C library: neither PyOS_AfterFork_Child() nor pthread_atfork(3) handlers run, so threading, random
and the C library's idea of its own thread id are the parent's. It is for *single-threaded* callers (another thread
might hold a lock of malloc that nobody in the child would ever release), whose child does little and ends in
execveat() or os._exit(). The interpreter lock is held across the call, so that the child owns it.
"""

from __future__ import annotations

import ctypes
import os

from torpor.linux import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import NoReturn

CLONE_NEWTIME = 0x00000080
CLONE_VM, CLONE_FS, CLONE_FILES, CLONE_SIGHAND = 0x00000100, 0x00000200, 0x00000400, 0x00000800
CLONE_PIDFD, CLONE_PTRACE, CLONE_VFORK, CLONE_PARENT = 0x00001000, 0x00002000, 0x00004000, 0x00008000
CLONE_THREAD, CLONE_NEWNS, CLONE_SYSVSEM, CLONE_SETTLS = 0x00010000, 0x00020000, 0x00040000, 0x00080000
CLONE_PARENT_SETTID, CLONE_CHILD_CLEARTID, CLONE_UNTRACED = 0x00100000, 0x00200000, 0x00800000
CLONE_CHILD_SETTID, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x01000000, 0x02000000, 0x04000000
CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x08000000, 0x10000000, 0x20000000, 0x40000000
CLONE_IO = 0x80000000
CLONE_CLEAR_SIGHAND, CLONE_INTO_CGROUP = 0x100000000, 0x200000000
"""linux/sched.h."""

SIGCHLD = 17
"""The usual exit_signal. (Python's signal module would load enum and functools.)"""

_NOT_A_FORK = (
    CLONE_VM | CLONE_THREAD | CLONE_SIGHAND | CLONE_PIDFD | CLONE_SETTLS
    | CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID
)  # fmt: skip

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_MOVE = 1, 2, 4, 8, 32, 4096, 8192
MS_REC, MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = 0x4000, 0x20000, 0x40000, 0x80000, 0x100000
"""linux/mount.h."""

MNT_FORCE, MNT_DETACH, UMOUNT_NOFOLLOW = 1, 2, 8

AT_EMPTY_PATH = 0x1000

CAP_CHOWN, CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SETPCAP, CAP_NET_ADMIN = 0, 5, 6, 7, 8, 12
CAP_SYS_CHROOT, CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_SYS_NICE, CAP_SYS_RESOURCE = 18, 19, 21, 23, 24
CAP_CHECKPOINT_RESTORE = 40
"""Numbers that torpor asks about (linux/capability.h); a set has bit n for number n."""

_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_CHILD_SUBREAPER, _PR_CAP_AMBIENT = 23, 24, 36, 47
_PR_CAP_AMBIENT_IS_SET, _PR_CAP_AMBIENT_RAISE, _PR_CAP_AMBIENT_CLEAR_ALL = 1, 2, 4


# PyDLL: unlike libc.call() it keeps the interpreter lock, which the child could not take from a thread it has not got.
_held = ctypes.PyDLL(None, use_errno=True)
_syscall = _held["syscall"]
_syscall.restype = ctypes.c_long

_unshare = libc.function("unshare", ctypes.c_int, restype=ctypes.c_int)
_setns = libc.function("setns", ctypes.c_int, ctypes.c_int, restype=ctypes.c_int)
_mount = libc.function(
    "mount", ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p, restype=ctypes.c_int
)
_umount2 = libc.function("umount2", ctypes.c_char_p, ctypes.c_int, restype=ctypes.c_int)


class _CloneArgs(ctypes.Structure):
    """struct clone_args (linux/sched.h), CLONE_ARGS_SIZE_VER2: 88 bytes of u64 on every architecture."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls", "set_tid",
            "set_tid_size", "cgroup",
        )
    )  # fmt: skip


_ARGS_SIZE_SET_TID = 80  # CLONE_ARGS_SIZE_VER1 (5.5)


def clone3(flags: int = 0, *, exit_signal: int = SIGCHLD, set_tid: Sequence[int] = (), cgroup: int | None = None) -> int:
    """Fork with clone3(2): the child's pid, or 0 in the child. See the warning at the head of this module.

    `set_tid` are the pids the child shall have: first the one in the innermost pid namespace (the new one, with
    CLONE_NEWPID), then that namespace's parent's and so on, as many as wanted. `cgroup` is a descriptor of a cgroup v2
    directory to be born in. Flags that share memory or take an address are refused with ValueError.

    EEXIST: a pid of `set_tid` is taken; EPERM: CAP_CHECKPOINT_RESTORE is missing in the namespaces in question;
    ENOSYS or E2BIG: the kernel is older than 5.3 (the call) or 5.5 (set_tid).
    """
    if flags & _NOT_A_FORK:
        raise ValueError(f"clone3: flags {flags & _NOT_A_FORK:#x} do not make a plain child")
    args = _CloneArgs(flags=flags, exit_signal=exit_signal)
    tids = (ctypes.c_int32 * len(set_tid))(*set_tid)
    if set_tid:
        args.set_tid, args.set_tid_size = ctypes.addressof(tids), len(set_tid)
    size = _ARGS_SIZE_SET_TID
    if cgroup is not None:
        args.flags |= CLONE_INTO_CGROUP
        args.cgroup = cgroup
        size = ctypes.sizeof(args)
    pid: int = _syscall(ctypes.c_long(libc.NUMBERS["clone3"]), ctypes.c_void_p(ctypes.addressof(args)), ctypes.c_size_t(size))
    if pid == -1:
        raise libc.failure(f"clone3({flags:#x}, set_tid={list(set_tid)})")
    return pid


def unshare(flags: int) -> None:
    """Move the caller into new namespaces (CLONE_NEW*), or stop sharing CLONE_FS and CLONE_FILES.

    CLONE_NEWPID and CLONE_NEWTIME mean the next children. EPERM: no CAP_SYS_ADMIN; EINVAL: CLONE_NEWUSER or
    CLONE_NEWTIME in a process of several threads.
    """
    if _unshare(ctypes.c_int(flags & 0xFFFFFFFF).value) == -1:
        raise libc.failure(f"unshare({flags:#x})")


def setns(fd: int, kind: int = 0) -> None:
    """Move the caller into the namespace behind `fd`, a file of /proc/PID/ns.

    `fd` may also be a pidfd, with all the CLONE_NEW* wanted in `kind` (5.8).
    """
    if _setns(fd, kind) == -1:
        raise libc.failure(f"setns({fd}, {kind:#x})")


def mount(
    source: str | bytes, target: str | bytes, fstype: str | bytes = "", flags: int = 0, data: str | bytes | None = None
) -> None:
    """mount(2). "" or "none" where the kernel looks at no source or type. EPERM: no CAP_SYS_ADMIN in this namespace."""
    options = None if data is None else os.fsencode(data)
    if _mount(os.fsencode(source), os.fsencode(target), os.fsencode(fstype), flags, options) == -1:
        raise libc.failure(f"mount({source!r}, {target!r}, {fstype!r}, {flags:#x})")


def umount(target: str | bytes, flags: int = 0) -> None:
    """umount2(2) with MNT_* flags. EBUSY: in use."""
    if _umount2(os.fsencode(target), flags) == -1:
        raise libc.failure(f"umount({target!r})")


def execveat(fd: int, argv: Sequence[str | bytes], env: Sequence[str | bytes] = (), flags: int = 0) -> NoReturn:
    """Run the program that `fd` is open at, in place of this one (execveat(2), AT_EMPTY_PATH). Returns only by OSError.

    `env` is a list of "NAME=value". Nothing is flushed or closed but what is close-on-exec; dispositions SIG_IGN
    survive, and Python ignores SIGPIPE. ENOENT: `fd` is a close-on-exec script.
    """
    arguments = (ctypes.c_char_p * (len(argv) + 1))(*map(os.fsencode, argv))
    environment = (ctypes.c_char_p * (len(env) + 1))(*map(os.fsencode, env))
    libc.call("execveat", fd, ctypes.c_char_p(b""), arguments, environment, AT_EMPTY_PATH | flags)
    raise AssertionError("execveat(2) does not return")


def set_subreaper(on: bool) -> None:
    """Have descendants whose parent has died become children of this process instead of init's
    (PR_SET_CHILD_SUBREAPER).

    Not inherited by children; kept across execve(2).
    """
    libc.prctl(_PR_SET_CHILD_SUBREAPER, int(on))


# ---------------------------------------------------------------------------------------------------------------------
# Capabilities of the calling thread

_CAPABILITY_VERSION_3 = 0x20080522


def capget(tid: int = 0) -> tuple[int, int, int]:
    """(effective, permitted, inheritable) capability sets of a thread, 0 for the caller (capget(2))."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, tid)
    data = (ctypes.c_uint32 * 6)()
    libc.call("capget", header, data)
    return data[0] | data[3] << 32, data[1] | data[4] << 32, data[2] | data[5] << 32


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Replace the calling thread's capability sets. EPERM: more than is permitted or bounded."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    low = 0xFFFFFFFF
    data = (ctypes.c_uint32 * 6)(
        effective & low, permitted & low, inheritable & low, effective >> 32, permitted >> 32, inheritable >> 32
    )
    libc.call("capset", header, data)


def raise_ambient(capabilities: Iterable[int]) -> None:
    """Add to the ambient set, which survives execve(2) of an ordinary program.

    EPERM: one of them is not both permitted and inheritable.
    """
    for number in capabilities:
        libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number)


def clear_ambient() -> None:
    """Empty the ambient set."""
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)


def drop_bounding(capabilities: Iterable[int]) -> None:
    """Take out of the bounding set, for good; what is not in it is passed over. EPERM: no CAP_SETPCAP.

    Afterwards capset() cannot make them inheritable any more: that comes first.
    """
    for number in capabilities:
        if libc.prctl(_PR_CAPBSET_READ, number):
            libc.prctl(_PR_CAPBSET_DROP, number)


def last_capability() -> int:
    """The highest capability number that this kernel knows."""
    with open("/proc/sys/kernel/cap_last_cap", "rb") as file:
        return int(file.read())

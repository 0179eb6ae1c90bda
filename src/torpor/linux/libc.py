"""System calls that Python has no name for, through the C library.

`call()` is the one way in: it takes integers, buffers or None, and raises `OSError` with the call's name. The numbers
are those of the interpreter torpor itself runs in; the numbers of a *task's* calls are its architecture's (`arch/`).
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

WORD = ctypes.sizeof(ctypes.c_long)
"""Bytes in a C long of this interpreter: 4 or 8."""
WIDE_KERNEL = WORD == 8 or "64" in os.uname().machine or os.uname().machine == "armv8l"
"""Whether the kernel's longs have 64 bits; armv8l is what the arm64 one calls itself to 32-bit programs."""
PAGE = os.sysconf("SC_PAGE_SIZE")
"""Bytes in a page: 4096, or 65536 on some PowerPC and AArch64 kernels."""
O_LARGEFILE = 0o740000 & ~(os.O_DIRECT | os.O_DIRECTORY | os.O_NOFOLLOW)
"""Four bits stand for these four flags, in an order that differs between machines; the C library hides this one where every file is
opened with it."""


class IoVec(ctypes.Structure):
    """struct iovec (readv(2))."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


# Calls added since Linux 5.1 carry the same number on every architecture; the older ones that torpor makes itself
# are listed for each machine it runs on (asm/unistd.h).
_COMMON = {
    "pidfd_send_signal": 424, "pidfd_open": 434, "clone3": 435, "close_range": 436, "pidfd_getfd": 438,
}  # fmt: skip
_POWERPC = {
    "clone": 120, "capget": 183, "capset": 184, "get_robust_list": 299, "ioprio_get": 274, "ioprio_set": 273, "kcmp": 354,
    "prlimit64": 325, "sched_getattr": 356, "sched_setattr": 355, "rt_sigtimedwait": 176, "rt_tgsigqueueinfo": 322,
    "execveat": 362, "timer_create": 240, "timer_delete": 244, "openat": 286, "pkey_alloc": 384, "pkey_free": 385,
    "userfaultfd": 364,
}  # fmt: skip
_GENERIC = {
    "clone": 220, "capget": 90, "capset": 91, "get_robust_list": 100, "ioprio_get": 31, "ioprio_set": 30,
    "kcmp": 272, "prlimit64": 261, "sched_getattr": 275, "sched_setattr": 274, "rt_sigtimedwait": 137,
    "rt_tgsigqueueinfo": 240, "execveat": 281, "timer_create": 107, "timer_delete": 111, "userfaultfd": 282,
}  # fmt: skip
"""The machines that came with the table of include/uapi/asm-generic/unistd.h."""

_MACHINE: dict[tuple[str, int], dict[str, int]] = {
    ("x86_64", 8): {
        "clone": 56, "capget": 125, "capset": 126, "get_robust_list": 274, "ioprio_get": 252, "ioprio_set": 251,
        "kcmp": 312, "prlimit64": 302, "sched_getattr": 315, "sched_setattr": 314, "rt_sigtimedwait": 128,
        "rt_tgsigqueueinfo": 297, "arch_prctl": 158, "execveat": 322, "timer_create": 222, "timer_delete": 226,
        "userfaultfd": 323,
    },
    ("i386", 4): {
        "clone": 120, "capget": 184, "capset": 185, "get_robust_list": 312, "ioprio_get": 290, "ioprio_set": 289,
        "kcmp": 349, "prlimit64": 340, "sched_getattr": 352, "sched_setattr": 351, "rt_sigtimedwait": 177,
        "rt_tgsigqueueinfo": 335, "arch_prctl": 384, "execveat": 358, "timer_create": 259, "timer_delete": 263,
        "openat": 295, "userfaultfd": 374,
    },
    ("ppc64le", 8): _POWERPC,
    ("ppc64", 8): _POWERPC,
    ("ppc64", 4): _POWERPC,
    ("ppc", 4): _POWERPC,
    ("arm", 4): {
        "clone": 120, "capget": 184, "capset": 185, "get_robust_list": 339, "ioprio_get": 315, "ioprio_set": 314,
        "kcmp": 378, "prlimit64": 369, "sched_getattr": 381, "sched_setattr": 380, "rt_sigtimedwait": 177,
        "rt_tgsigqueueinfo": 363, "execveat": 387, "timer_create": 257, "timer_delete": 261, "openat": 322,
        "userfaultfd": 388,
    },
    ("aarch64", 8): _GENERIC,
    ("riscv64", 8): _GENERIC,
    ("s390x", 8): {
        "clone": 120, "capget": 184, "capset": 185, "get_robust_list": 305, "ioprio_get": 283, "ioprio_set": 282,
        "kcmp": 343, "prlimit64": 334, "sched_getattr": 346, "sched_setattr": 345, "rt_sigtimedwait": 177,
        "rt_tgsigqueueinfo": 330, "execveat": 354, "timer_create": 254, "timer_delete": 258,
        "userfaultfd": 355,
    },
}  # fmt: skip


def _own_numbers() -> dict[str, int]:
    machine = os.uname().machine
    if WORD == 4 and machine in ("x86_64", "i486", "i586", "i686"):
        machine = "i386"
    if WORD == 4 and (machine.startswith("armv") or machine == "aarch64"):
        machine = "arm"
    return _COMMON | _MACHINE.get((machine, WORD), {})


NUMBERS = _own_numbers()


def call(name: str, *args: Any) -> int:
    """Make the system call `name` (syscall(2)) and return its non-negative result.

    Integers are passed as C longs; ctypes objects, bytes and None as they are. Raises OSError with the kernel's errno, and
    ENOSYS where this machine's number of the call is not known to torpor.
    """
    number = NUMBERS.get(name)
    if number is None:
        raise OSError(38, f"{name}: torpor does not know this call's number on {os.uname().machine}")
    result: int = _syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    if result == -1:
        raise failure(name)
    return result


def failure(what: str) -> OSError:
    """The OSError for the errno that the last C library call of this thread has left."""
    error = ctypes.get_errno()
    return OSError(error, f"{what}: {os.strerror(error)}")


def function(name: str, *argtypes: Any, restype: Any = ctypes.c_long) -> Any:
    """The C library's function `name` with its argument types declared; ctypes then checks every call."""
    found = _libc[name]  # a fresh object each time: two callers may declare the same function differently
    found.argtypes = argtypes
    found.restype = restype
    return found


_prctl = function("prctl", ctypes.c_int, *[ctypes.c_ulong] * 4, restype=ctypes.c_int)


def prctl(option: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0) -> int:
    """prctl(2) on the calling thread. Raises OSError."""
    result: int = _prctl(option, a, b, c, d)
    if result == -1:
        raise failure(f"prctl({option})")
    return result


def ioctl_write(kind: str, number: int, size: int) -> int:
    """The number of an ioctl(2) that hands over `size` bytes: _IOW() of asm/ioctl.h."""
    write = 4 << 29 if _other_directions() else 1 << 30
    return write | size << 16 | ord(kind) << 8 | number


def ioctl_read(kind: str, number: int, size: int) -> int:
    """The number of an ioctl(2) that the kernel thinks of as handing `size` bytes back: _IOR() of asm/ioctl.h."""
    read = 2 << 29 if _other_directions() else 2 << 30
    return read | size << 16 | ord(kind) << 8 | number


def ioctl_both(kind: str, number: int, size: int) -> int:
    """The number of an ioctl(2) that hands `size` bytes over and back: _IOWR(), of the same value under all encodings."""
    return 3 << 30 | size << 16 | ord(kind) << 8 | number


def _other_directions() -> bool:
    return os.uname().machine.startswith(("ppc", "mips", "sparc", "alpha"))


def set_name(name: bytes) -> None:
    """Name the calling thread, in at most 15 bytes (PR_SET_NAME)."""
    prctl(15, ctypes.addressof(ctypes.create_string_buffer(name)))


def set_limit(resource: int, soft: int, hard: int) -> None:
    """setrlimit(2) on the calling process (RLIMIT_* number, values of 64 bits). Raises OSError."""
    limit = (ctypes.c_uint64 * 2)(soft, hard)
    call("prlimit64", 0, resource, ctypes.addressof(limit), None)

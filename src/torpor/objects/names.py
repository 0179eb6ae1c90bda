"""What people call the numbers that records keep: signals, limits, capabilities, open flags, clocks.

The numbers are the *image's*, so none of this asks the machine at hand. Only the open flags differ between the
processor families torpor knows (include/uapi/asm-generic/fcntl.h and its siblings); all else are the generic numbers.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# signal(7); the first two real-time signals belong to the C library.
_SIGNALS = (
    "0 HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG "
    "XCPU XFSZ VTALRM PROF WINCH IO PWR SYS"
).split()
_SIGRTMIN, _SIGNAL_COUNT = 34, 64
_BLOCKABLE = (1 << _SIGNAL_COUNT) - 1 & ~(1 << 9 - 1 | 1 << 19 - 1)

LIMITS = "CPU FSIZE DATA STACK CORE RSS NPROC NOFILE MEMLOCK AS LOCKS SIGPENDING MSGQUEUE NICE RTPRIO RTTIME".split()
"""getrlimit(2), by number."""

_CAPABILITIES = (
    "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service "
    "net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin "
    "sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap mac_override "
    "mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore"
).split()

_CLOCKS = (
    "REALTIME MONOTONIC PROCESS_CPUTIME_ID THREAD_CPUTIME_ID MONOTONIC_RAW REALTIME_COARSE MONOTONIC_COARSE BOOTTIME "
    "REALTIME_ALARM BOOTTIME_ALARM 10 TAI"
).split()

SA_FLAGS = {
    0: "NOCLDSTOP", 1: "NOCLDWAIT", 2: "SIGINFO", 10: "UNSUPPORTED", 11: "EXPOSE_TAGBITS", 26: "RESTORER",
    27: "ONSTACK", 28: "RESTART", 30: "NODEFER", 31: "RESETHAND",
}  # fmt: skip
SECUREBITS = {
    0: "NOROOT", 1: "NOROOT_LOCKED", 2: "NO_SETUID_FIXUP", 3: "NO_SETUID_FIXUP_LOCKED", 4: "KEEP_CAPS",
    5: "KEEP_CAPS_LOCKED", 6: "NO_CAP_AMBIENT_RAISE", 7: "NO_CAP_AMBIENT_RAISE_LOCKED",
}  # fmt: skip
EPOLL_EVENTS = {
    0: "IN", 1: "PRI", 2: "OUT", 3: "ERR", 4: "HUP", 6: "RDNORM", 7: "RDBAND", 8: "WRNORM", 9: "WRBAND", 10: "MSG",
    13: "RDHUP", 28: "EXCLUSIVE", 29: "WAKEUP", 30: "ONESHOT", 31: "ET",
}  # fmt: skip

_ACCESS = ("RDONLY", "WRONLY", "RDWR", "ACCMODE")
_OPEN_FLAGS = {
    6: "CREAT", 7: "EXCL", 8: "NOCTTY", 9: "TRUNC", 10: "APPEND", 11: "NONBLOCK", 12: "DSYNC", 13: "ASYNC",
    18: "NOATIME", 19: "CLOEXEC", 20: "SYNC", 21: "PATH", 22: "TMPFILE",
}  # fmt: skip
# The four that moved: bits 14 to 17, by the family in ARCHITECTURES.
_MOVED = {
    "x86": ("DIRECT", "LARGEFILE", "DIRECTORY", "NOFOLLOW"),
    "arm": ("DIRECTORY", "NOFOLLOW", "DIRECT", "LARGEFILE"),
    "ppc": ("DIRECTORY", "NOFOLLOW", "LARGEFILE", "DIRECT"),
}


def bits(value: int, names: Mapping[int, str]) -> str:
    """The bits that are set in `value`, by name where `names` (bit number -> name) has one; "0" for none."""
    words = [name for bit, name in names.items() if value >> bit & 1]
    left = value & ~sum(1 << bit for bit in names)
    return "|".join([*words, hex(left)] if left else words) or "0"


def signal(number: int) -> str:
    """SIGHUP to SIGRTMIN+30."""
    if 0 < number < len(_SIGNALS):
        return "SIG" + _SIGNALS[number]
    if _SIGRTMIN <= number <= _SIGNAL_COUNT:
        return "SIGRTMIN" + (f"+{number - _SIGRTMIN}" if number > _SIGRTMIN else "")
    return f"SIG{number}"


def signals(mask: int) -> str:
    """A set of signals, bit n-1 for signal n; "none" and "all" where that says it shorter."""
    if not mask:
        return "none"
    lacking = _BLOCKABLE & ~mask
    if lacking.bit_count() <= 8:
        return "all but " + _listed(lacking) if lacking else "all"
    return _listed(mask)


def _listed(mask: int) -> str:
    return " ".join(signal(number + 1) for number in range(_SIGNAL_COUNT) if mask >> number & 1)


def capabilities(mask: int) -> str:
    """A set of capabilities (capabilities(7)); "none" and "all" where that says it shorter."""
    everything = (1 << len(_CAPABILITIES)) - 1
    if mask & everything == everything:
        return "all"
    if mask and (everything & ~mask).bit_count() <= 8:
        return "all but " + bits(everything & ~mask, dict(enumerate(_CAPABILITIES))).replace("|", " ")
    return bits(mask, dict(enumerate(_CAPABILITIES))).replace("|", " ") if mask else "none"


def open_flags(flags: int, architecture: str) -> str:
    """O_* access mode and flags (open(2)) of a kernel of this architecture, as the image's Header calls it.

    LARGEFILE is left out: every 64-bit program has it without asking.
    """
    family = {"aarch64": "arm"}.get(architecture, architecture[:3])
    moved = dict(enumerate(_MOVED.get(family, _MOVED["x86"]), 14))
    at = {name: bit for bit, name in moved.items()}
    rest = flags & ~(3 | 1 << at["LARGEFILE"])
    # SYNC and TMPFILE are two bits each, of which the other has a meaning of its own.
    if rest >> 20 & 1:
        rest &= ~(1 << 12)
    if rest >> 22 & 1:
        rest &= ~(1 << at["DIRECTORY"])
    return _ACCESS[flags & 3] + (f"|{bits(rest, _OPEN_FLAGS | moved)}" if rest else "")


def clock(number: int) -> str:
    """A clock of clock_gettime(2); the negative ones are those of a process or thread, or of a device."""
    return _CLOCKS[number] if 0 <= number < len(_CLOCKS) else f"clock {number}"


def end(status: int) -> str:
    """A wait status (wait(2)) in words."""
    if status & 0x7F:
        return f"killed by {signal(status & 0x7F)}" + (", core dumped" if status & 0x80 else "")
    return f"exit status {status >> 8 & 0xFF}"

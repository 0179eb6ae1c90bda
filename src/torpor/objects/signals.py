"""Signals: actions, pending signals with their siginfo, alternate stacks (signal(7), sigaction(2))."""

from __future__ import annotations

import struct

from torpor.image.fields import choice, ident, in_range, structs, u32, u64
from torpor.image.fields import i32 as i32_
from torpor.image.fields import i64 as i64_
from torpor.image.record import Record, Struct
from torpor.linux import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence

    from torpor.arch.contract import Arch
    from torpor.tasks.remote import Remote

    Calls = list[tuple[str | int, ...]]

SIGKILL, SIGCHLD, SIGSTOP, SIGSEGV, SIGTRAP = 9, 17, 19, 11, 5
EVERY = (1 << 64) - 1
COUNT = 64
SA_FLAGS, SA_RESTART, SA_RESTORER = 0xFFFF_FFFF, 0x1000_0000, 0x0400_0000


class Action(Struct):
    """What one signal does, where it is not the default (sigaction(2))."""

    signal: int = u32("its number", check=in_range(1, COUNT))
    flags: int = u32("SA_*")
    handler: int = u64("address of the handler, 1 to ignore it")
    restorer: int = u64("SA_RESTORER's address, 0 where there is none", default=0)
    mask: int = u64("signals blocked meanwhile, bit n-1 for signal n")


class Handlers(Record, type=0x0500):
    """The signal actions of a process."""

    id: int = ident("the actions")
    actions: list[Action] = structs(Action, "all that are not the default, ascending", max=COUNT)


# How the union in siginfo_t is used (include/uapi/asm-generic/siginfo.h); the width of its members differs between 32 and 64 bit.
KILL, CHILD, TIMER, QUEUE, FAULT, POLL = range(6)


class Queued(Struct):
    """A pending signal (sigaction(2), siginfo_t), with every member at its full width."""

    signal: int = u32("its number", check=in_range(1, COUNT))
    layout: int = choice(
        32,
        {KILL: "kill", CHILD: "child", TIMER: "timer", QUEUE: "queue", FAULT: "fault", POLL: "poll"},
        "which of the members below count",
    )
    errno: int = i32_("si_errno")
    code: int = i32_("si_code")
    pid: int = i32_("si_pid; si_timerid of a timer", default=0)
    uid: int = u32("si_uid; si_overrun of a timer", default=0)
    value: int = u64("si_value; si_addr of a fault; si_band of poll", default=0)
    status: int = i32_("si_status of a child; si_fd of poll", default=0)
    utime: int = i64_("si_utime of a child, clock ticks", default=0)
    stime: int = i64_("si_stime of a child, clock ticks", default=0)


def layout_of(signal: int, code: int) -> int:
    """Which members of the union the kernel fills in (kernel/signal.c, siginfo_layout())."""
    if code == -2:
        return TIMER
    if code == -1 or code == -3 or code == -4 or code == -60:
        return QUEUE
    if code <= 0 or code == 0x80:
        return KILL
    if signal == SIGCHLD and code <= 6:
        return CHILD
    if signal in (4, 5, 7, 8, 11) and code < 0x80:
        return FAULT
    return POLL if signal == 29 else KILL


def unpack_siginfo(info: bytes, arch: Arch) -> Queued:
    """A siginfo_t of 128 bytes as ptrace(2) gives it of a task of `arch`, in the layout of the tracer."""
    signal, errno, code = struct.unpack_from("=iii", info)
    layout = layout_of(signal, code)
    queued = Queued(signal=signal, layout=layout, errno=errno, code=code)
    wide = libc.WORD == 8
    word, at = ("Q", 16) if wide else ("I", 12)
    if layout == FAULT:
        (queued.value,) = struct.unpack_from(f"={word}", info, at)
    elif layout == POLL:
        queued.value, queued.status = struct.unpack_from(f"={word}i", info, at)
    else:
        queued.pid, queued.uid = struct.unpack_from("=iI", info, at)
        if layout == CHILD:
            queued.status, queued.utime, queued.stime = struct.unpack_from("=i4xqq" if wide else "=iii", info, at + 8)
        elif layout in (TIMER, QUEUE):
            queued.value = arch.sigval(*struct.unpack_from(f"={word}", info, at + 8))
    return queued


def pack_siginfo(queued: Queued, arch: Arch) -> bytes:
    """The siginfo_t that a task of `arch` hands to rt_sigqueueinfo(2)."""
    wide = arch.word == 8
    head = struct.pack("=iii", queued.signal, queued.errno, queued.code) + (bytes(4) if wide else b"")
    if queued.layout == FAULT:
        body = arch.words(queued.value)
    elif queued.layout == POLL:
        body = arch.words(queued.value) + struct.pack("=i", queued.status)
    else:
        body = struct.pack("=iI", queued.pid, queued.uid)
        if queued.layout == CHILD:
            body += struct.pack("=i", queued.status) + (bytes(4) if wide else b"")
            body += arch.words(queued.utime, queued.stime)
        elif queued.layout in (TIMER, QUEUE):
            body += arch.words(queued.value)
    return (head + body).ljust(128, b"\0")


# --- asking and telling the task


def action_size(arch: Arch) -> int:
    """Bytes of the kernel's struct sigaction: handler, flags, restorer where there is one, 64-bit mask."""
    return arch.action_words * arch.word + 8


def ask(remote: Remote) -> Generator[Calls, list[int], list[Action]]:
    """Ask for the actions that are not the default (a conversation of `objects.asking`)."""
    arch, size = remote.arch, action_size(remote.arch)
    at = remote.room(COUNT * size)
    yield [("rt_sigaction", signal, 0, at + size * (signal - 1), 8) for signal in range(1, COUNT + 1)]
    data, default, actions = remote.take(at, COUNT * size), bytes(size), []
    for index in range(COUNT):
        part = data[index * size : (index + 1) * size]
        if part == default:
            continue
        handler, flags, restorer, *_ = *arch.unwords(part[:-8]), 0
        mask = arch.from_sigset(part[-8:])
        if handler or flags or mask:
            actions.append(Action(signal=index + 1, flags=flags & SA_FLAGS, handler=handler, restorer=restorer, mask=mask))
    return actions


def first_handled(pending: Iterable[Queued], blocked: int, actions: Iterable[Action]) -> Action | None:
    """The action of that pending signal whose handler runs first in a thread that blocks `blocked`; None when none does."""
    handlers = {action.signal: action for action in actions if action.handler > 1}
    numbers = [each.signal for each in pending if each.signal in handlers and not blocked >> each.signal - 1 & 1]
    return handlers[min(numbers)] if numbers else None


def restarting(actions: Iterable[Action]) -> int:
    """The signals whose handlers let an interrupted call go on (SA_RESTART), bit n-1 for signal n."""
    return sum(1 << action.signal - 1 for action in actions if action.flags & SA_RESTART)


def tell_actions(
    actions: Iterable[Action], inherited: int, address: int, arch: Arch
) -> tuple[list[tuple[str | int, ...]], bytes]:
    """The calls that set the action of every signal, and the structures they read from `address` on.

    `inherited`: the signals, bit n-1 for signal n, whose action may not be the default now: those of a parent, or what a
    fresh program keeps because torpor ignores it (execve(2); Python ignores SIGPIPE).
    """
    data = bytes(action_size(arch))
    calls: dict[int, tuple[str | int, ...]] = {
        signal: ("rt_sigaction", signal, address, 0, 8)
        for signal in range(1, COUNT + 1)
        if inherited >> signal - 1 & 1 and signal not in (SIGKILL, SIGSTOP)
    }
    for action in actions:
        if action.signal not in (SIGKILL, SIGSTOP):
            calls[action.signal] = ("rt_sigaction", action.signal, address + len(data), 0, 8)
            data += arch.words(action.handler, action.flags, *[action.restorer][: arch.action_words - 2]) + arch.sigset(action.mask)
    return list(calls.values()), data


def faults(actions: Sequence[Action], user_limit: int) -> Iterator[str]:
    """What in `actions` no program can have (R-D1)."""
    before = 0
    for action in actions:
        if action.signal in (SIGKILL, SIGSTOP) or action.signal <= before:  # kernel/signal.c, do_sigaction()
            yield f"its action for signal {action.signal} is out of order, or for a signal that takes none"
        # Without the flag nobody looks at it, and C libraries that set no restorer leave anything there.
        if max(action.handler, action.restorer if action.flags & SA_RESTORER else 0) >= user_limit:
            yield f"the handler of signal {action.signal} is at {action.handler:#x}, outside of user space"
        before = action.signal


def pending_faults(pending: Iterable[Queued]) -> Iterator[str]:
    """What no task can have pending: SIGKILL ends it before anybody can look."""
    if any(queued.signal == SIGKILL for queued in pending):
        yield "SIGKILL is pending, so that it has ended"

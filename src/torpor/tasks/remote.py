"""System calls made by a stopped thread on torpor's behalf, in a way that a `kill -9` of torpor cannot hurt.

The architecture's code (arch/*/code*.S) is put where nothing else looks (tasks/places.py), through /proc/PID/mem: into a page that
is copied on write, and inert until a register points into it. Beside it lies, as data, every register to be put back. Writing the
instruction pointer is the one commit point: from there on the code, running free, always ends by itself in the registers, flags and
signal mask the thread had.

For torpor the code stops by sending the thread a signal that is ignored by default: a stop for a tracer, nothing for a task that
has none. Where every such signal is caught or pending, it stops at system calls instead (PTRACE_SYSCALL), more slowly.

Verbs in life order: `infect`, `batch` (or `call`), `cure`.
"""

from __future__ import annotations

import os
import struct

from torpor.errors import Obstacle, Unsupported
from torpor.linux import ptrace
from torpor.tasks.phase import INJECTED, INJECTING, enter_phase
from torpor.tasks.places import WORK_LENGTH, take_code_away

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from collections.abc import Mapping as Mapping_
    from types import TracebackType
    from typing import TypeVar

    from torpor.linux.procfs import Status
    from torpor.tasks.freeze import FrozenProcess, FrozenThread, FrozenTree
    from torpor.tasks.task import Process, Thread

    Call = Sequence[str | int]
    T = TypeVar("T")

_TABLE, _DATA, _SINK = 64, 32 * 1024, 48
_ENTRY = struct.Struct("=9Q")  # number, six arguments, result, and where the code stores the result besides
_RESULT = 7
_TABLE_CALLS = (_DATA - _TABLE) // _ENTRY.size
_POSITIVE = 1 << 31
"""Results below are the same for every word size."""
_NOTHING = [(0,) * (7 - count) for count in range(7)]
"""What stands behind so many arguments, the result included."""
_WORD = (1 << 64) - 1

_QUIET = (23, 28, 17)  # SIGURG SIGWINCH SIGCHLD: ignored by default
_NEVER = (5, 9, 11, 19)
_SIGTRAP, _FAULTS = 5, (4, 7, 8, 11)  # SIGILL SIGBUS SIGFPE SIGSEGV

_latest: tuple[object, bytes] = None, b""
"""The table of calls that was wanted last: all threads are asked the same, and so are forked processes, at the same places."""


def quiet_signal(status: Status) -> int:
    """A signal that the thread would ignore and that is not pending, or 0 if there is none."""
    pending = status.pending | status.shd_pending
    for signal in _QUIET:
        if not (status.caught | pending) >> (signal - 1) & 1:
            return signal
    for signal in range(1, 65):
        if signal not in _NEVER and status.ignored & ~pending & ~status.caught & 1 << (signal - 1):
            return signal
    return 0


def stop_again(tid: int) -> list[int]:
    """Let a stopped thread on from where it is to its next boundary to user space. Returns the signals that were held back.

    Raises ProcessLookupError when it was killed meanwhile.
    """
    held: list[int] = []
    while True:
        # Each time anew, and first: any stop uses an interrupt up, and so the thread executes nothing (ptrace(2)).
        ptrace.interrupt(tid)
        ptrace.cont(tid)
        status = ptrace.wait(tid)
        if status is None or not os.WIFSTOPPED(status):
            raise ProcessLookupError(3, f"task {tid} was killed meanwhile")
        if status >> 16 == ptrace.EVENT_STOP:
            return held
        held.append(status >> 8 & 0xFF)


def to_next_call(tid: int) -> int:
    """Let a stopped task on to its next stop at a call's entry or exit, or in one that has made a task. Returns the wait status.

    Raises ProcessLookupError when it was killed meanwhile.
    """
    while True:
        ptrace.cont_to_syscall(tid)
        status = ptrace.wait(tid)
        if status is None or not os.WIFSTOPPED(status):
            raise ProcessLookupError(3, f"task {tid} was killed meanwhile")
        if status >> 8 == ptrace.SYSCALL_STOP or status >> 16 == ptrace.EVENT_CLONE:
            return status


class Remote:
    """One stopped thread that makes calls for us.

    `code_at`: where its code lies; `work_at`: a free range of WORK_LENGTH bytes, or the one that is mapped already (`mapped`).
    """

    def __init__(self, thread: Thread, code_at: int, work_at: int, *, signal: int, mapped: bool = False) -> None:
        self.thread, self.arch, self.code_at, self.work_at = thread, thread.process.arch, code_at, work_at
        self.signal = signal
        self.mapped = mapped
        self.suppressed: list[int] = []
        """Signals that arrived although blocked (SIGSTOP): the caller sends them again when it is done."""
        self.born: list[int] = []
        """Tasks that a call of this thread has made; stopped, and traced by us."""
        self.at_birth: Callable[[int], None] | None = None
        """What to do with such a task before this thread goes on."""
        self._unmaps = WORK_LENGTH
        """How much of the work area this thread unmaps when it is done; nothing when it has handed it on, or not got it yet."""
        self._base = dict(thread.regs)
        self._dropped = b""
        self._used = 0
        self._waiting: list[tuple[int, bytes]] = []

    def __enter__(self) -> Remote:
        self.infect()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.cure()

    # -- life

    def prepare(self) -> None:
        """Put the code and the registers to be put back beside it, unless they are there; the thread is not touched."""
        if self.thread.process.lent_to is self:
            return
        self.thread.process.lent_to = self
        a, thread = self.arch, self.thread
        # Where only rt_sigreturn(2) puts all registers back, there is nothing any more that restart_syscall(2) could make again.
        regs = thread.regs if thread.makes_again < 0 else {**thread.regs, a.number: thread.makes_again}
        values = a.heal_values(regs, thread.tid) | {
            "v_work": self.work_at,
            "v_length": self._unmaps,
            "v_tgid": thread.process.own_pid,
            "v_tid": thread.own_tid,
            "v_signal": self.signal,
            "v_block": a.mask_value(self._block),
            "v_mask": a.mask_value(thread.mask),
        }
        code = a.code.placed(self.code_at, self.work_at, values)
        thread.process.write(self.code_at, code)

    def infect(self) -> None:
        """Let the thread map its work area. From here on it would heal by itself."""
        self.prepare()
        self._keep()
        enter_phase(INJECTING)
        if not self.mapped:
            self._enter("entry")
            if not self._work_area_is_there():
                self._give_back()
                raise Unsupported(
                    Obstacle(
                        "memory",
                        "there is none left to map 64 KiB for the calls that a checkpoint needs",
                        "raise the address-space limit (ulimit -v) or the memory limit of its control group",
                        pid=self.thread.process.pid,
                    )
                )
            self.mapped = True

    def take_over(self, before: Remote) -> None:
        """Have the work area of another thread of the process, whose code lies elsewhere in the page; that one is itself again.

        Whenever torpor dies, one of the two unmaps it, and the other one does not touch it any more: this thread comes in where
        it has nothing to do but to heal, and then one write into one page makes it the one that unmaps.
        """
        self._unmaps = 0
        self.prepare()
        self._keep()
        enter_phase(INJECTING)
        # At `entry` signals are blocked first of all, where they are not yet; nothing is mapped, for the length is none.
        self._start("entry")
        self._go_to("finish")
        process, at = self.thread.process, self.arch.code.symbols["v_length"]
        own, other = self.code_at + at, before.code_at + at
        low, width = min(own, other), self.arch.code.variables["v_length"]
        both = bytearray(process.read(low, abs(own - other) + width))
        both[own - low : own - low + width] = WORK_LENGTH.to_bytes(width, self.arch.byte_order)
        both[other - low : other - low + width] = bytes(width)
        process.write(low, bytes(both))
        self._unmaps, before._unmaps = WORK_LENGTH, 0
        self.mapped, before.mapped = True, False
        before._go_to("entry")
        before.cure()
        enter_phase(INJECTING)

    def _work_area_is_there(self) -> bool:
        try:
            self.take(self.work_at, 8)
            return True
        except OSError:
            return False

    def cure(self) -> None:
        """Unmap the work area and give the thread its mask and registers back, its interrupted call included."""
        if self.mapped:
            self._keep()
            self._enter("finish")
            self.mapped = False
        self._give_back()

    def _keep(self) -> None:
        """Remember the registers that do not survive our calls; what they were before the first of them counts."""
        self._dropped = self._dropped or self.arch.registers.dropped_by_calls(self.thread.tid)

    def _give_back(self) -> None:
        """Mask first, then the registers: with these the thread is itself again, and needs no healing any more."""
        if not self.signal:
            # On from the end of a call to where the kernel looks for signals. Not every kernel takes a word before that on which
            # call is to be made again, or that none is.
            self.suppressed += stop_again(self.thread.tid)
        if self._dropped:
            self.arch.registers.give_dropped(self.thread.tid, self._dropped)
        write = self.arch.registers.write_general
        if self.arch.resumes_at_end(self.thread.regs):
            self._come_to_end()
            write = self.arch.write_at_end
        ptrace.set_signal_mask(self.thread.tid, self.thread.mask)
        write(self.thread.tid, self.thread.regs)
        enter_phase(INJECTED)

    def _come_to_end(self) -> None:
        """Bring the thread to the end of a call that does nothing, a notification without signal. From there it would heal, too."""
        signal, self.signal = self.signal, 0
        self.thread.process.lent_to = None  # with the other signal
        self.prepare()
        self._base = dict(self.thread.regs)
        self._enter("leave")
        self.signal = signal
        self.thread.process.lent_to = None

    # -- calls

    def batch(self, calls: Sequence[Call]) -> list[int]:
        """Make `calls`, each (name, argument...), in order; their results, negative errno included.

        A failed call does not end the batch. Arguments are integers; data is handed over by `put`.
        """
        results: list[int] = []
        for first in range(0, len(calls), _TABLE_CALLS):
            results += self.table(calls[first : first + _TABLE_CALLS])
        return results

    def call(self, name: str, *args: int) -> int:
        """Make one call. Raises OSError when it fails."""
        (result,) = self.batch([(name, *args)])
        if result < 0:
            raise OSError(-result, f"{name} in process {self.thread.process.pid}: {os.strerror(-result)}")
        return result

    def checked(self, calls: Sequence[Call]) -> list[int]:
        """Like `batch`; raises OSError for the first call that failed."""
        results = self.batch(calls)
        for call, result in zip(calls, results, strict=True):
            # mmap and brk return addresses: only the last page of the address space means an error.
            if -4096 < result < 0:
                raise OSError(-result, f"{call[0]} in process {self.thread.process.pid}: {os.strerror(-result)}")
        return results

    def table(self, calls: Sequence[Call], passed_on: tuple[int, int, int] | None = None) -> list[int]:
        """Like `batch`, of no more calls than fit into the work area at a time.

        `passed_on` (source, target, argument): the result of call `source` becomes that argument of call `target`.
        """
        self._load(calls, passed_on)
        self._enter("batch")
        done = self.take(self.work_at + _TABLE, _ENTRY.size * len(calls))
        results = struct.unpack(f"={9 * len(calls)}Q", done)[_RESULT::9]
        return [result if result < _POSITIVE else self.arch.signed(result) for result in results]

    def descriptor(self, call: Call, use: Callable[[int], T]) -> T:
        """Make a call that opens a descriptor and have it `use`d; the same batch closes it again, whoever dies. Raises OSError."""
        self._load([call, ("close", 0)], (0, 1, 0))
        self._start("batch")
        try:
            for _ in range(2):  # a call stops on entry and on exit
                to_next_call(self.thread.tid)
            result = self.arch.signed(self.arch.registers.read_general(self.thread.tid)[self.arch.result])
            if result < 0:
                raise OSError(-result, f"{call[0]} in process {self.thread.process.pid}: {os.strerror(-result)}")
            return use(result)
        finally:
            self.resume()

    def argument_at(self, call: int, argument: int, width: int) -> int:
        """The address of the low `width` bytes of an argument in the table of calls."""
        skipped = 8 - width if self.arch.byte_order == "big" else 0
        return self.work_at + _TABLE + call * _ENTRY.size + 8 + 8 * argument + skipped

    def _load(self, calls: Sequence[Call], passed_on: tuple[int, int, int] | None = None) -> None:
        """Write the table of calls into the work area."""
        self._waiting.append((self.work_at, self._table(calls, passed_on)))
        self._write()

    def lend(self, copy: Process, *calls: Call) -> None:
        """Have a copy of this thread's process ready to make calls."""
        copy.write(self.work_at, self._table(calls))
        self.lead(copy.pid)

    def lead(self, tid: int) -> None:
        """Have a task that has this thread's memory, or a copy of it, ready to make the calls that lie there."""
        a = self.arch
        a.registers.write_general(tid, a.entered(self._base, self.code_at + a.code.symbols["batch"]))

    def _table(self, calls: Sequence[Call], passed_on: tuple[int, int, int] | None = None) -> bytes:
        """What the work area begins with when `calls` are to be made: where they lie and how many they are, then the calls."""
        global _latest
        asked, latest = (self.arch, self.work_at, passed_on, tuple(calls)), _latest
        if asked != latest[0]:
            begin = struct.pack("=QQ", self.work_at + _TABLE, len(calls)).ljust(_TABLE, b"\0")
            latest = _latest = asked, begin + self._packed(calls, passed_on)
        return latest[1]

    def _packed(self, calls: Sequence[Call], passed_on: tuple[int, int, int] | None) -> bytes:
        """The table of calls."""
        numbers, sink = self.arch.syscalls, self.work_at + _SINK
        words: list[int] = []
        for name, *args in calls:
            words.append(numbers[name] if isinstance(name, str) else name)
            for arg in args:
                words.append(int(arg) & _WORD)
            words += _NOTHING[len(args)]
            words.append(sink)
        if passed_on:
            source, target, argument = passed_on
            words[9 * source + 8] = self.argument_at(target, argument, self.arch.word)
        return struct.pack(f"={len(words)}Q", *words)

    def _write(self) -> None:
        """Bring what has been put there into the task's memory."""
        for address, data in self._waiting:
            self.thread.process.write(address, data)
        self._waiting.clear()

    # -- data

    @property
    def data(self) -> int:
        """The address of the part of the work area that is the caller's."""
        return self.work_at + _DATA

    def put(self, data: bytes) -> int:
        """The address at which the next calls will find `data` in the work area; valid until `reset`."""
        start = self._used
        if start + len(data) > WORK_LENGTH - _DATA:
            raise ValueError(f"{len(data)} bytes do not fit into the work area")
        self._used = start + len(data) + 15 & ~15
        self._waiting.append((self.data + start, data))
        return self.data + start

    def room(self, length: int) -> int:
        """The address of `length` bytes of work area for results."""
        return self.put(bytes(length))

    def take(self, address: int, length: int) -> bytes:
        """Read back `length` bytes."""
        return self.thread.process.read(address, length)

    def reset(self) -> None:
        """Forget what `put` has handed over."""
        self._used = 0

    # -- running

    @property
    def _block(self) -> int:
        return _WORD if not self.signal else _WORD & ~(1 << (self.signal - 1))

    def _enter(self, symbol: str) -> None:
        """Run the code from `symbol` to its next notification."""
        self._start(symbol)
        self.resume()

    def _start(self, symbol: str) -> None:
        """Point the thread at `symbol`: this is the one commit point, and the mask comes after it, never before."""
        self._go_to(symbol)
        ptrace.set_signal_mask(self.thread.tid, self._block)

    def _go_to(self, symbol: str) -> None:
        """Point the thread at `symbol`."""
        a = self.arch
        a.registers.write_general(self.thread.tid, a.entered(self._base, self.code_at + a.code.symbols[symbol]))

    def resume(self) -> None:
        """Let the code run to its next notification."""
        arch, tid = self.arch, self.thread.tid
        notified = self.code_at + arch.code.symbols["notified"]
        go_on = ptrace.cont if self.signal else ptrace.cont_to_syscall
        at_notify = 0
        go_on(tid)
        while True:
            status = ptrace.wait(tid)
            if status is None or not os.WIFSTOPPED(status):
                raise ProcessLookupError(3, f"process {self.thread.process.pid} was killed meanwhile")
            signal, event = status >> 8 & 0xFF, status >> 16
            if event in (ptrace.EVENT_FORK, ptrace.EVENT_VFORK, ptrace.EVENT_CLONE):
                self.born.append(ptrace.event_message(tid))
                if self.at_birth:
                    self.at_birth(self.born[-1])
            elif event:
                pass  # execve, a group-stop or its end: none can hold the code up
            elif signal == (self.signal or ptrace.SYSCALL_STOP):
                if arch.registers.instruction_pointer(tid) == notified:
                    at_notify += 1
                    if self.signal or at_notify == 2:  # a call stops twice: on entry and on exit
                        return
            else:
                self.suppressed.append(signal)
            go_on(tid)

    def execute(self, code: bytes, registers: Mapping_[str, int]) -> None:
        """Run machine code that ends in a breakpoint, in the place of torpor's own, which `prepare` puts back.

        Only for a task in the making: were torpor to die, the task would die with it. Raises OSError (EFAULT) when the code faults.
        """
        process, tid = self.thread.process, self.thread.tid
        self._write()
        process.lent_to = None
        process.write(self.code_at, code)
        self.arch.registers.write_general(tid, {**self.arch.entered(self._base, self.code_at), **registers})
        ptrace.cont(tid)
        while True:
            status = ptrace.wait(tid)
            if status is None or not os.WIFSTOPPED(status):
                raise ProcessLookupError(3, f"process {process.pid} was killed meanwhile")
            if status >> 8 == _SIGTRAP:
                return
            if status >> 8 & 0xFF in _FAULTS:
                raise OSError(14, f"process {process.pid}: signal {status >> 8} in code of torpor's")
            ptrace.cont(tid)

    def begin(self, call: Call) -> None:
        """Have the thread ready to make one call as soon as it is continued."""
        self._load([call])
        self._start("batch")

    def leave(self, call: Call) -> None:
        """Begin a call that does not return (exit_group, execveat)."""
        self.begin(call)
        ptrace.cont(self.thread.tid)


class Remotes:
    """The threads of a frozen process as Remotes, one at a time, within a `with` block; after it nothing of ours is left there.

    Where torpor's code has room twice, its threads hand one work area on: a thread then runs our code once and not three times.
    """

    def __init__(self, process: FrozenProcess, tree: FrozenTree) -> None:
        self._process, self._tree = process, tree
        self._now: Remote | None = None

    def __enter__(self) -> Remotes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._cure()
        process = self._process
        if process.disturbed:
            return  # its threads heal by themselves, and the next checkpoint finds what they leave
        # The second place first: where there is none of our code in the first, there is none in the second.
        if process.second:
            os.pwrite(process.mem, process.under_second, process.second)
        take_code_away(process, process.padding)

    def of(self, thread: FrozenThread) -> Remote:
        """One of the threads, ready to make calls; the one before it is itself again. Raises Unsupported."""
        before, process = self._now, self._process
        place = process.padding
        if before and before.code_at == place and process.second:
            place = process.second
        remote = Remote(thread, place, process.hole, signal=quiet_signal(thread.status))
        try:
            if before and process.second and before.signal and remote.signal:
                remote.take_over(before)
                self._note(before)
            else:
                self._cure()
                remote.infect()
        except Unsupported:
            raise
        except BaseException:
            process.disturbed = True
            raise
        self._now = remote
        return remote

    def _cure(self) -> None:
        remote, self._now = self._now, None
        if remote:
            remote.cure()
            self._note(remote)

    def _note(self, remote: Remote) -> None:
        """What has come meanwhile is sent again when all is over."""
        self._tree.lost_signals += [(self._process.pid, signal) for signal in remote.suppressed]

"""What the core asks of a processor family: tables, and the few functions that really differ (R-C5).

An `Arch` describes one kind of *task* (x86-64, x86-32, ...), not the machine torpor runs on: a 64-bit kernel runs the 32-bit
programs of its family too. The core knows no register by name; it takes them as a dict of unsigned integers and asks the
`Arch` which of them is the instruction pointer.
"""

from __future__ import annotations

import itertools
import struct
import sys

from torpor.arch.waits import Waits
from torpor.linux import elf
from torpor.linux.libc import PAGE, WORD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from typing import Any, Literal, Protocol

    from torpor.image.record import Record

    Registers = dict[str, int]
    Order = Literal["big", "little"]

    Seen = tuple[int, tuple[int, ...], int, int]
    """A thread in the kernel as /proc shows it: number and arguments of its call, stack pointer, instruction pointer."""

    class Task(Protocol):
        """A stopped thread, as tasks.task has it."""

        tid: int
        regs: Registers
        mask: int

    class RegisterSets(Protocol):
        """Reads, validates and writes every register record of a stopped thread."""

        def read_general(self, tid: int) -> Registers: ...
        def write_general(self, tid: int, regs: Registers) -> None: ...
        def instruction_pointer(self, tid: int) -> int: ...
        def restart_ended(self, tid: int, calls: AbstractSet[int], seen: Seen | None) -> None: ...
        def read(self, tid: int) -> list[Record]: ...
        def capture(self, tid: int) -> object: ...
        def decode(self, captured: Any) -> list[Record]: ...
        def write(self, tid: int, records: Sequence[Record]) -> None: ...
        def knows(self, record: Record) -> bool: ...
        def mask(self, records: Sequence[Record]) -> int: ...
        def general_record(self, regs: Registers) -> Record: ...
        def general_dict(self, record: Record) -> Registers: ...
        def room(self, records: Sequence[Record]) -> Room | None: ...
        def dropped_by_calls(self, tid: int) -> bytes: ...
        def give_dropped(self, tid: int, dropped: bytes) -> None: ...
        def validate(
            self,
            records: Sequence[Record],
            *,
            user_limit: int,
            is_executable: Callable[[int], bool],
            is_mapped: Callable[[int], bool],
            syscall_before: Callable[[int], bool],
        ) -> list[str]: ...


# include/linux/errno.h: how an interrupted call asks to be restarted. They never reach user space.
ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK = 512, 513, 514, 516
EINTR = 4
_PT_LOAD, _PT_GNU_STACK = 1, 0x6474E551
_DESCRIPTOR_AT = 0xC0  # in a stub, behind its headers


class Code:
    """Machine code that torpor lends to a task: position, variables and absolute addresses are filled in by `placed`."""

    __slots__ = ("_blocks", "_bytes", "_fixups", "_moved", "_order", "_widths", "restored", "symbols")

    def __init__(
        self, code: bytes, symbols: Mapping[str, int], fixups: Sequence[tuple[int, int, str]], order: Order = sys.byteorder
    ) -> None:
        self._bytes, self.symbols, self._fixups, self._order = code, symbols, fixups, order
        ordered = sorted(symbols.values())
        following = dict(itertools.pairwise(ordered))
        self._widths = {name: following.get(at, 0) - at for name, at in symbols.items() if name[:2] in ("v_", "r_")}
        self.restored = [(name, name[2:]) for name in self._widths if name[:2] == "r_"]
        """The variables for registers to be put back, and the names of these."""
        self._blocks = list(self._side_by_side())
        self._moved: dict[tuple[int, int], bytes] = {}

    def __len__(self) -> int:
        return len(self._bytes)

    @property
    def variables(self) -> Mapping[str, int]:
        """Name and width in bytes of every variable: v_* is torpor's, r_* a register to be put back."""
        return self._widths

    def placed(self, at: int, work: int, values: Mapping[str, int]) -> bytes:
        """The bytes to put at the address `at`, for a work area at `work`, with `values` in the variables.

        Values for which this code has no variable are left out: not every architecture's needs all.
        """
        image, order = bytearray(self._at(at, work)), self._order
        for start, block, masks in self._blocks:
            if block and all(map(values.__contains__, masks)):
                block.pack_into(image, start, *[values[name] & mask for name, mask in masks.items()])
                continue
            for name, mask in masks.items():
                if name in values:
                    where, width = self.symbols[name], self._widths[name]
                    image[where : where + width] = (values[name] & mask).to_bytes(width, order)
        return bytes(image)

    def _side_by_side(self) -> Iterator[tuple[int, struct.Struct | None, dict[str, int]]]:
        """Variables that lie side by side: where the first begins, how they are packed, and the mask of each.

        One that is wider than a register stands alone, and has no such way to be packed.
        """
        letters = {4: "I", 8: "Q"}
        blocks: list[list[str]] = []
        end = -1
        for name in sorted(self._widths, key=self.symbols.__getitem__):
            width = self._widths[name]
            if self.symbols[name] != end or width not in letters:
                blocks.append([])
            blocks[-1].append(name)
            end = self.symbols[name] + width if width in letters else -1
        for block in blocks:
            formats = [letters.get(self._widths[name], "") for name in block]
            packed = struct.Struct(("<" if self._order == "little" else ">") + "".join(formats)) if all(formats) else None
            yield self.symbols[block[0]], packed, {name: (1 << 8 * self._widths[name]) - 1 for name in block}

    def _at(self, at: int, work: int) -> bytes:
        """The code with its absolute addresses; threads of one process have it at the same two places (tasks/remote.py)."""
        if not self._fixups:
            return self._bytes
        if (at, work) not in self._moved:
            image = bytearray(self._bytes)
            for where, width, base in self._fixups:
                address = int.from_bytes(image[where : where + width], self._order) + (at if base == "code" else work)
                image[where : where + width] = (address & ((1 << 8 * width) - 1)).to_bytes(width, self._order)
            if len(self._moved) == 2:
                del self._moved[next(iter(self._moved))]
            self._moved[at, work] = bytes(image)
        return self._moved[at, work]


class Room:
    """What a new thread must execute before the kernel has room for all of its registers.

    `code` ends in a breakpoint and finds `data` (to be aligned to 64 bytes) at the address in the register `pointer`; `registers`
    are the others that it needs.
    """

    __slots__ = ("code", "data", "pointer", "registers")

    def __init__(self, code: bytes, data: bytes, pointer: str, registers: Mapping[str, int]) -> None:
        self.code, self.data, self.pointer, self.registers = code, data, pointer, registers


class Arch(Waits):
    """One kind of task. Instances are made by the family's package (`torpor.arch.x86`)."""

    name: str
    """What uname -m would call it."""
    image_id: int
    """Its number in the image header (image/header.py)."""
    word: int
    """Bytes in a long and a pointer: 4 or 8."""
    elf_machine: int
    elf_flags = 0
    """e_machine and e_flags of a program of this kind (elf(5))."""
    user_limit: int
    """First address that no program of this kind can use."""
    ip: str
    sp: str
    flags = ""
    """The register of the flags, if there is one."""
    result: str
    """The register that takes a call's result ..."""
    number: str
    """... and the one that keeps its number while it is under way, or -1."""
    arguments: tuple[str, ...]
    entry_registers: Mapping[str, int]
    """What a register must hold for torpor's code to run, besides the instruction pointer."""
    kept_flags = 0
    """The flags that `heal` may put back by itself (the trap flag is not among them)."""
    slot_size: int
    """Bytes of a slot (tasks/retry.py) ..."""
    slot_count: int
    """... and how many there are."""
    syscall_instruction: tuple[bytes, ...]
    code: Code
    registers: RegisterSets
    header: Callable[[], Record]
    """The architecture header of this machine (R-B2) ..."""
    header_record: type[Record]
    """... and the class of its record."""

    byte_order: Order = "little"
    """Of the machines that it runs on."""
    descriptors = False
    """Whether in that ABI the address of a function, an entry point too, is that of a descriptor: address, table of contents, 0."""

    framed_slots = False
    """Whether all threads share one slot, each with a frame of its own below its stack (tasks/retry.py)."""
    forgets_argument = False
    """Whether the kernel makes a call with a restart block again without its first argument, unless `write_general` was there."""
    rewinds = False
    """Whether the kernel moves the registers of an interrupted call back before the stop, and forgets why (`looked_at`)."""
    code_in, code_offset = "[vdso]", 0
    """The mapping of the kernel's in which torpor's code lies (tasks/places.py), and where: 0 means behind its section headers."""
    code_behind_segments = False
    """Whether torpor's code may lie where the vdso's loaded segment ends, over what only a debugger reads (tasks/places.py)."""
    code_twice = False
    """Whether it may lie there a second time, so that threads hand the work area on (Remote.take_over)."""
    requestable = 0
    """Register components that a process has only after asking for them, a bit each ..."""

    def ask_components(self, address: int) -> list[tuple[str | int, ...]]:
        """... the call that writes which it has, as u64, to `address`; none where this machine has no such component ..."""
        return []

    def request_components(self, components: int) -> list[tuple[str | int, ...]]:
        """... the calls that ask for them ..."""
        return []

    def records_of(self, components: int) -> int:
        """... and the mask of the register records for which they are needed (R-B5)."""
        return 0

    def has_abi(self, flags: int) -> bool:
        """Whether a program with these e_flags (elf(5)) makes its calls, and has its handlers called, as this kind of task does."""
        return True

    def verdict(self, header: Record, used: int, cpu_mode: str, here: Record) -> list[str]:
        """Why an image with this architecture header, whose threads' masks are `used` together, cannot run on a CPU (R-B5).

        `here`: the architecture header of that CPU. `cpu_mode`: "same" when the program may use all that its own CPU offered,
        "used" when only what it holds state of. A sentence for each reason; more than was offered is welcome.
        """
        raise NotImplementedError

    def described(self, cpuinfo: Mapping[str, str]) -> Record:
        """The architecture header of a CPU of which only these lines of /proc/cpuinfo are known. Raises UsageError."""
        raise NotImplementedError

    def signed(self, value: int) -> int:
        """A register's value as the signed integer of this word size."""
        bits = 8 * self.word
        value &= (1 << bits) - 1
        return value - (1 << bits) if value >> (bits - 1) else value

    def pending_call(self, regs: Registers) -> tuple[int, int] | None:
        """(number, error) of the system call whose interruption these registers show, or None.

        The error is positive: one of ERESTART*, or EINTR. A task stopped elsewhere, or after a call that has simply
        ended, gives None. Source: arch/x86/kernel/signal.c, arch_do_signal_or_restart().
        """
        number = self.signed(regs[self.number])
        error = -self.signed(regs[self.result])
        if number < 0 or error not in (ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK, EINTR):
            return None
        return number, error

    def looked_at(self, regs: Registers, seen: Seen | None) -> Registers:
        """The registers of a stopped thread as `pending_call` and its like take them, where the kernel `rewinds`.

        `seen` is what the thread was in right before it was told to stop; it may have gone on to something else.
        """
        return regs

    def midway(self, regs: Registers, read: Callable[[int, int], bytes]) -> bool:
        """Whether a stopped thread is where the kernel sends it to make restart_syscall(2), and only the kernel knows from where.

        `read` gives bytes of the task's memory.
        """
        return False

    def handled(self, regs: Registers, restarts: bool, *, again: bool = False) -> Registers:
        """Where the kernel `rewinds`: the registers of an interrupted call when a signal handler with or without SA_RESTART runs.

        `again`: `regs` issue a call again that had ended with EINTR.
        """
        return regs

    def outcome(self, regs: Registers) -> int:
        """What a call has given in whose end a thread has stopped, a negative errno when it has failed."""
        return self.signed(regs[self.result])

    def ended(self, regs: Registers, value: int) -> Registers:
        """The registers behind the call that they are in, when that has given `value`."""
        mask = (1 << 8 * self.word) - 1
        return {**regs, self.result: value & mask, self.number: mask}
    def resumes_at_end(self, regs: Registers) -> bool:
        """Whether a thread gets these registers, of an interrupted call, back in the stop at the end of another call.

        For a kernel that `rewinds` and makes such a call again without going back to the program, whose registers do not say which.
        """
        return False

    def write_at_end(self, tid: int, regs: Registers) -> None:
        """Give a thread that is in the stop at the end of a call these registers: the kernel takes them for that call's."""
        self.registers.write_general(tid, regs)

    def again(self, regs: Registers, number: int | None = None) -> Registers:
        """The registers with which the interrupted call (or call `number` instead) is issued again."""
        new = dict(regs)
        mask = (1 << 8 * self.word) - 1
        new[self.result] = regs[self.number] if number is None else number
        new[self.ip] = regs[self.ip] - len(self.syscall_instruction[0])
        new[self.number] = mask
        return new

    def settled(self, regs: Registers) -> Registers:
        """The registers as the kernel would leave them on the way back to user space, without a signal to deliver.

        These are what torpor's code puts back when nobody is there any more to let the kernel do it.
        """
        call = self.pending_call(regs)
        if call is None or call[1] == EINTR:
            return dict(regs)
        return self.again(regs, self.syscalls["restart_syscall"] if call[1] == ERESTART_RESTARTBLOCK else None)

    def entered(self, regs: Registers, address: int) -> Registers:
        """The registers with which a stopped task begins to run torpor's code at `address`."""
        mask = (1 << 8 * self.word) - 1
        return {**regs, **self.entry_registers, self.ip: address, self.number: mask}

    def heal_values(self, regs: Registers, tid: int) -> dict[str, int]:
        """The values of the code's variables that bring the stopped task `tid` back to `regs` by itself."""
        settled = self.settled(regs)
        values = {name: settled[register] for name, register in self.code.restored}
        if self.flags:
            values["v_flags"] = settled[self.flags] & self.kept_flags
        return values

    def own_calls(self, records: Sequence[Record]) -> list[tuple[str | int, ...]]:
        """The calls by which a thread gives itself what of these register records no tracer can give it."""
        return []

    def to_slot(self, at: int, regs: Registers, number: int, left: int) -> tuple[bytes, Registers]:
        """The code of a slot at the address `at`, and the registers with which a thread begins there.

        `regs` issue the call `number` again by themselves; in the slot it waits `left` ns.
        """
        raise NotImplementedError

    def to_framed_slot(self, at: int, thread: Task, number: int, left: int) -> tuple[bytes, bytes, Registers]:
        """The same where there are `framed_slots`: the code, what is to lie at the stack pointer, and the registers of `thread`."""
        raise NotImplementedError

    def from_slot(self, code: bytes, at: int, regs: Registers, read: Callable[[int, int], bytes]) -> Registers:
        """The reverse: what the registers of a thread stopped in the slot `code` at `at` would be without it."""
        raise NotImplementedError

    # The kernel's structures whose layout depends on the word size.

    no_reserve = 0x4000
    """MAP_NORESERVE (mmap(2))."""
    epoll_event = "=I4xQ"
    """struct epoll_event (epoll_ctl(2)): events, data."""
    flock = "=hh4xqqi4x"
    """struct flock, flock64 where a long has 32 bits (fcntl(2)): type, whence, start, length, pid."""
    action_words = 3
    """Longs before the mask of the kernel's struct sigaction: handler, flags, and most have a restorer."""

    def words(self, *values: int) -> bytes:
        """`values` as longs of this kind of task. A task's byte order is its kernel's, and so torpor's own."""
        mask = (1 << 8 * self.word) - 1
        return struct.pack(f"={len(values)}{'Q' if self.word == 8 else 'I'}", *[v & mask for v in values])

    def unwords(self, data: bytes) -> tuple[int, ...]:
        """The unsigned longs in `data`."""
        return struct.unpack(f"={len(data) // self.word}{'Q' if self.word == 8 else 'I'}", data)

    def sigset(self, mask: int) -> bytes:
        """A set of 64 signals, bit n-1 for signal n, as the kernel's sigset_t: longs, the one with signal 1 first."""
        return self.words(mask) if self.word == 8 else self.words(mask, mask >> 32)

    def from_sigset(self, data: bytes) -> int:
        """The reverse."""
        words = self.unwords(data)
        return words[0] if self.word == 8 else words[0] | words[1] << 32

    def sigval(self, value: int) -> int:
        """What a task has put into a union sigval (sigevent(7)), which the kernel shows as a pointer of its own width."""
        return value >> 32 if self.word < WORD and sys.byteorder == "big" else value

    def mask_value(self, mask: int) -> int:
        """A set of signals as the value of a variable of the code, which hands it to the kernel."""
        return int.from_bytes(self.sigset(mask), sys.byteorder)

    def mmap_call(self, start: int, length: int, prot: int, flags: int, fd: int, offset: int) -> tuple[str | int, ...]:
        """mmap(2) as (name, arguments...); where a long is too short for the offset the call takes pages."""
        if self.word == 8:
            return ("mmap", start, length, prot, flags, fd, offset)
        return ("mmap2", start, length, prot, flags, fd, offset >> 12)

    def stub(self, address: int, work: int, length: int, values: Mapping[str, int]) -> bytes:
        """A static ELF program of one page at `address` whose only content is torpor's code, begun at `entry`.

        `execve` of it gives a fresh task that maps its work area at `work` and then stops for its tracer (elf(5)).
        """
        header = 0x100
        first = entry = address + header + self.code.symbols["entry"]
        if self.descriptors:
            entry = address + _DESCRIPTOR_AT
        head = elf.header(self.elf_machine, self.word, self.elf_flags, entry, 2)
        head += elf.segment(self.word, _PT_LOAD, 5, 0, address, PAGE, PAGE)
        head += elf.segment(self.word, _PT_GNU_STACK, 6, 0, 0, 0, 16)  # not executable
        body = self.code.placed(address + header, work, {"v_work": work, "v_length": length, **values})
        head = head.ljust(_DESCRIPTOR_AT, b"\0") + (self.words(first, 0, 0) if self.descriptors else b"")
        return (head.ljust(header, b"\0") + body).ljust(PAGE, b"\0")

    @property
    def stub_code_offset(self) -> int:
        """Where in the stub's page torpor's code begins."""
        return 0x100

"""The registers of a stopped x86 thread: read into records, and written from them (R-C1, R-C2).

`state.py` declares the records, `rules.py` says what they may hold, `xstate.py` knows the XSAVE area, `cpu.py` this
machine. Here are the ptrace requests between them and a task.

Sources: arch/x86/kernel/ptrace.c, tls.c and fpu/regset.c, sys/user.h, asm/ldt.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from torpor.arch.contract import EINTR, ERESTARTNOHAND, Room
from torpor.arch.regsets import Regsets
from torpor.arch.rules import CALL_LIMIT, asks_again
from torpor.arch.x86 import cpu, xstate
from torpor.arch.x86.rules import DR6_AT_REST, DR6_CONDITIONS, RULES, X86Facts
from torpor.arch.x86.state import (
    ON_32,
    ON_64,
    STATE_OF,
    Numbering,
    X86Debug,
    X86General32,
    X86General64,
    X86ShadowStack,
    X86TileData,
    X86Tls,
    X86TlsEntry,
)
from torpor.errors import Obstacle, Unsupported
from torpor.linux import libc, ptrace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from torpor.arch.contract import Seen
    from torpor.image.record import Record

# elf.h
NT_PRSTATUS, NT_PRFPREG, NT_PRXFPREG = 1, 2, 0x46E62B7F
NT_386_TLS, NT_X86_XSTATE, NT_X86_SHSTK = 0x200, 0x202, 0x204

# sys/ptrace.h, asm/ptrace-abi.h
_PEEKUSER, _POKEUSER, _GETREGS, _SETREGS = 3, 6, 12, 13
_GET_THREAD_AREA, _SET_THREAD_AREA, _ARCH_PRCTL = 25, 26, 30
_ARCH_SHSTK_STATUS = 0x5005

_DEBUG_AT = 848 if libc.WORD == 8 else 252
"""offsetof(struct user, u_debugreg), sys/user.h: in the layout of the tracer."""

_AX_AT, _ORIG_AX_AT, _IP_AT = (80, 120, 128) if libc.WORD == 8 else (24, 44, 48)
"""offsetof(struct user, regs.rax) and so on."""
_LOW = 0xFFFFFFFF

_GENERAL_64 = struct.Struct("<27Q")
_GENERAL_32 = struct.Struct("<17I")
_NAMES_64 = tuple(field.name for field in X86General64.declared)
_NAMES_32 = tuple(field.name for field in X86General32.declared)
_CS_64 = 8 * _NAMES_64.index("cs")

_USER_DESC = struct.Struct("<4I")
_UNUSED_TLS = 0x28
"""The flags of a descriptor that is not in use: read-only and not present (asm/ldt.h, LDT_empty)."""


_ptrace = libc.function("ptrace", ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_block = ctypes.create_string_buffer(256)
_block_at = ctypes.addressof(_block)


def _request(request: int, tid: int, addr: int | None, data: int | None) -> int:
    ctypes.set_errno(0)  # PEEKUSER gives the word itself, and -1 is one
    result: int = _ptrace(request, tid, addr, data)
    if result == -1 and (error := ctypes.get_errno()):
        raise OSError(error, f"ptrace({request}, {tid}): {os.strerror(error)}")
    return result


class Captured:
    """All but the general registers of a stopped thread as the kernel gave them: quick to take in the pause, decoded after it."""

    __slots__ = ("area", "debug", "shadow", "tls")

    def __init__(self, tls: bytes, debug: tuple[int, ...], area: bytes, shadow: tuple[int, int] | None) -> None:
        self.tls, self.debug, self.area, self.shadow = tls, debug, area, shadow


class X86Registers(Regsets):
    """The register records of one kind of thread: `REGISTERS_64` or `REGISTERS_32`.

    Every method that takes `tid` needs that thread to be in a ptrace stop of the calling thread, and raises OSError.
    """

    __slots__ = ("ax", "general", "names", "orig_ax", "word")
    generals = (X86General64, X86General32)
    states, rules = STATE_OF, RULES
    general: type[X86General64] | type[X86General32]

    def __init__(self, word: int, general: type[X86General64] | type[X86General32]) -> None:
        self.word, self.general = word, general
        self.names, self.ax, self.orig_ax = (_NAMES_64, "rax", "orig_rax") if word == 8 else (_NAMES_32, "eax", "orig_eax")

    # General registers.

    def read_general(self, tid: int) -> dict[str, int]:
        """The general registers by name, as unsigned integers of the thread's word size."""
        if self.word == 8:
            # Not NT_PRSTATUS: that follows the code segment, and a 64-bit program may be in 32-bit code.
            _request(_GETREGS, tid, None, _block_at)
            return dict(zip(_NAMES_64, _GENERAL_64.unpack_from(_block), strict=True))
        data = ptrace.get_regset(tid, NT_PRSTATUS)
        if len(data) == _GENERAL_32.size:
            return dict(zip(_NAMES_32, _GENERAL_32.unpack(data), strict=True))
        # A 32-bit thread in 64-bit code, which can only be torpor's.
        wide = dict(zip(_NAMES_64, _GENERAL_64.unpack(data), strict=True))
        return {name: wide[_WIDE_NAME.get(name, name)] & 0xFFFFFFFF for name in _NAMES_32}

    def write_general(self, tid: int, regs: Mapping[str, int]) -> None:
        """Set the general registers. After `write`, because FS and GS of a 32-bit thread load their TLS descriptors.

        Not all-or-nothing: after an error (EIO: a selector or base the kernel does not take) set them again.
        """
        if self.word == 8:
            _GENERAL_64.pack_into(_block, 0, *[regs[name] for name in _NAMES_64])
            _request(_SETREGS, tid, None, _block_at)
            return
        regs = renumbered(regs)
        data = _GENERAL_32.pack(*[regs[name] for name in _NAMES_32])
        try:
            ptrace.set_regset(tid, NT_PRSTATUS, data)
        except OSError as error:
            if error.errno != errno.EINVAL or libc.WORD != 8:
                raise
            # The thread is in 64-bit code and would take 64-bit registers: back to a 32-bit code segment first.
            wide = bytearray(ptrace.get_regset(tid, NT_PRSTATUS))
            struct.pack_into("<Q", wide, _CS_64, ON_64.code)
            ptrace.set_regset(tid, NT_PRSTATUS, bytes(wide))
            ptrace.set_regset(tid, NT_PRSTATUS, data)

    def instruction_pointer(self, tid: int) -> int:
        """That alone, in 2 microseconds."""
        return _request(_PEEKUSER, tid, _IP_AT, None) & (1 << 8 * self.word) - 1

    def restart_ended(self, tid: int, calls: AbstractSet[int], seen: Seen | None) -> None:
        """Where a stop has ended one of `calls` with EINTR, have the kernel restart it as it does pause(2).

        Two words read and one written, in some microseconds: PTRACE_PEEKUSER speaks of the tracer's own struct user.
        """
        if _request(_PEEKUSER, tid, _AX_AT, None) & _LOW == -EINTR & _LOW and _request(_PEEKUSER, tid, _ORIG_AX_AT, None) in calls:
            _request(_POKEUSER, tid, _AX_AT, -ERESTARTNOHAND)

    def general_record(self, regs: Mapping[str, int]) -> X86General64 | X86General32:
        """The record of these general registers.

        A call number that no kernel knows is written as -1, no call: programs do make such calls, and the kernel
        looks at the number only beside -ERESTART*, which it never answers to them.
        """
        no_call = (1 << 8 * self.word) - 1
        if regs[self.orig_ax] >= CALL_LIMIT and regs[self.orig_ax] != no_call and not asks_again(regs[self.ax], self.word):
            regs = {**regs, self.orig_ax: no_call}
        return self.general(**regs)

    def general_dict(self, record: Record) -> dict[str, int]:
        """The general registers in a record of this kind of thread."""
        return {name: getattr(record, name) for name in self.names}

    # All of them.

    def read(self, tid: int) -> list[Record]:
        """See Regsets.read."""
        return [self.general_record(self.read_general(tid)), *self.decode(self.capture(tid))]

    def capture(self, tid: int) -> Captured:
        """Take all but the general registers, undecoded: some 15 to 25 microseconds."""
        area = ptrace.get_regset(tid, self._area_note())
        return Captured(self._read_tls(tid), _read_debug(tid), area, _read_shadow_stack(tid))

    def decode(self, captured: Captured) -> list[Record]:
        """The register records of what `capture` took, in ascending bit order.

        Raises Unsupported for state that this version of torpor knows no record for.
        """
        records: list[Record] = []
        entries = [
            X86TlsEntry(entry=entry, base=base, limit=limit, flags=flags)
            for entry, base, limit, flags in _USER_DESC.iter_unpack(captured.tls)
            if flags & ~0x40 != _UNUSED_TLS or base or limit
        ]
        if entries:
            records.append(X86Tls(entries=entries))
        dr0, dr1, dr2, dr3, dr6, dr7 = captured.debug
        if dr0 or dr1 or dr2 or dr3 or dr7 or dr6 & DR6_CONDITIONS:
            records.append(X86Debug(dr0=dr0, dr1=dr1, dr2=dr2, dr3=dr3, dr6=dr6 & 0xFFFFFFFF, dr7=dr7))
        layout = cpu.host().layout
        if misfit := layout.misfit(captured.area):
            raise Unsupported(Obstacle("extended registers", misfit))
        records += xstate.decode(captured.area, layout)
        if captured.shadow:
            features, ssp = captured.shadow
            records.append(X86ShadowStack(features=features, ssp=ssp))
            records.sort(key=lambda record: STATE_OF[type(record)].bit)
        return records

    def write(self, tid: int, records: Sequence[Record]) -> None:
        """Set everything but the general registers; what has no record is put at rest. `write_general` comes after.

        AMX tiles need the thread to have executed what `room` says; a shadow stack needs the task to have
        enabled it. Both raise OSError (EINVAL, ENODEV) otherwise.
        """
        given = {type(record): record for record in records}
        tls, debug, shadow = given.get(X86Tls), given.get(X86Debug), given.get(X86ShadowStack)
        self._write_tls(tid, tls.entries if isinstance(tls, X86Tls) else [])
        _write_debug(tid, [getattr(debug, f"dr{n}", 0) for n in (0, 1, 2, 3)], getattr(debug, "dr6", None),
                     getattr(debug, "dr7", 0))  # fmt: skip
        ptrace.set_regset(tid, self._area_note(), xstate.encode(records, cpu.host().layout))
        if isinstance(shadow, X86ShadowStack):
            ptrace.set_regset(tid, NT_X86_SHSTK, struct.pack("<Q", shadow.ssp))

    def room(self, records: Sequence[Record]) -> Room | None:
        """What a thread with AMX tiles must execute before `write`, after its process has asked for them; None without tiles.

        Asking is not enough for ptrace: the kernel makes room for the tiles when the thread first touches them
        (arch/x86/kernel/fpu/xstate.c, __xfd_enable_feature). XRSTOR does that in code of either width.
        """
        tiles = [record for record in records if isinstance(record, X86TileData)]
        if not tiles:
            return None
        a, d, di = ("rax", "rdx", "rdi") if self.word == 8 else ("eax", "edx", "edi")
        return Room(XRSTOR, xstate.encode(tiles, cpu.host().layout), di, {a: TILES, d: 0})

    def facts(
        self,
        records: Sequence[Record],
        user_limit: int,
        is_executable: Callable[[int], bool],
        is_mapped: Callable[[int], bool],
        syscall_before: Callable[[int], bool],
    ) -> X86Facts:
        """See Regsets.facts."""
        return X86Facts(records, user_limit, is_executable, is_mapped, syscall_before, cpu.host().layout.wide)

    def _area_note(self) -> int:
        """Of the register set that is an XSAVE area, or FXSAVE's where there is no XSAVE."""
        if cpu.host().layout.size > xstate.FXSAVE_SIZE:
            return NT_X86_XSTATE
        return NT_PRFPREG if self.word == 8 else NT_PRXFPREG

    # TLS descriptors. A 32-bit thread has a register set for them; for a 64-bit one the kernel has two requests.

    def _read_tls(self, tid: int) -> bytes:
        if self.word == 4:
            return ptrace.get_regset(tid, NT_386_TLS)
        found = b""
        for slot in range(3):
            try:
                _request(_GET_THREAD_AREA, tid, ON_64.first_tls + slot, _block_at)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                return b""  # a kernel that cannot run 32-bit programs has none
            found += _block.raw[: _USER_DESC.size]
        return found

    def _write_tls(self, tid: int, entries: Sequence[X86TlsEntry]) -> None:
        wanted = {(e.entry - (ON_64 if e.entry >= ON_64.first_tls else ON_32).first_tls): e for e in entries}
        slots = []
        for slot in range(3):
            number = _numbering().first_tls + slot
            e = wanted.get(slot)
            values = (e.base, e.limit, e.flags) if e else (0, 0, _UNUSED_TLS)
            slots.append(_USER_DESC.pack(number, *values))
        if self.word == 4:
            ptrace.set_regset(tid, NT_386_TLS, b"".join(slots))
            return
        if not entries and not self._read_tls(tid):
            return
        for slot, data in enumerate(slots):
            ctypes.memmove(_block_at, data, len(data))
            _request(_SET_THREAD_AREA, tid, ON_64.first_tls + slot, _block_at)


_WIDE_NAME = {name: "r" + name[1:] for name in _NAMES_32 if name[0] == "e" and name not in ("es", "eflags")}
_WIDE_NAME["orig_eax"] = "orig_rax"

REGISTERS_64 = X86Registers(8, X86General64)
REGISTERS_32 = X86Registers(4, X86General32)

TILES = 1 << STATE_OF[X86TileData].component
"""In XCR0: the one component that a process must ask for (arch/x86/kernel/fpu/xstate.h, XFEATURE_MASK_USER_DYNAMIC)."""
XRSTOR = bytes.fromhex("0fae2f cc")
"""xrstor [rdi] or [edi]; int3"""


def _numbering() -> Numbering:
    return ON_64 if cpu.host().layout.wide else ON_32


def renumbered(regs: Mapping[str, int]) -> Mapping[str, int]:
    """32-bit registers with the selectors of this kernel: a 32-bit program may come from a kernel of another width."""
    here = _numbering()
    there = ON_32 if here is ON_64 else ON_64
    if regs["cs"] != there.code:
        return regs
    new = dict(zip(there.selectors(), here.selectors(), strict=True))
    return {**regs, **{name: new.get(regs[name], regs[name]) for name in ("cs", "ss", "ds", "es", "fs", "gs")}}


def _read_shadow_stack(tid: int) -> tuple[int, int] | None:
    """(features, ssp) of a 64-bit thread with a user shadow stack."""
    if "user_shstk" not in cpu.host().flags:
        return None
    try:
        ssp = int.from_bytes(ptrace.get_regset(tid, NT_X86_SHSTK), "little")
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.EINVAL, errno.EOPNOTSUPP):
            return None
        raise
    _request(_ARCH_PRCTL, tid, _block_at, _ARCH_SHSTK_STATUS)
    return int.from_bytes(_block.raw[:8], "little"), ssp


def _read_debug(tid: int) -> tuple[int, ...]:
    """DR0 to DR3, DR6 and DR7."""
    word = (1 << 8 * libc.WORD) - 1
    return tuple(_request(_PEEKUSER, tid, _DEBUG_AT + libc.WORD * n, None) & word for n in (0, 1, 2, 3, 6, 7))


def _write_debug(tid: int, addresses: Sequence[int], dr6: int | None, dr7: int) -> None:
    """Set the debug registers; only those that differ, because each that is written takes a hardware breakpoint."""
    at = [_DEBUG_AT + libc.WORD * n for n in range(8)]
    word = (1 << 8 * libc.WORD) - 1
    now = [_request(_PEEKUSER, tid, at[n], None) & word for n in (0, 1, 2, 3, 7)]
    if now == [*addresses, dr7] and dr6 is None:
        return
    if now[4]:
        _request(_POKEUSER, tid, at[7], 0)
    for n, address in enumerate(addresses):
        if address != now[n]:
            _request(_POKEUSER, tid, at[n], address)
    _request(_POKEUSER, tid, at[6], DR6_AT_REST if dr6 is None else dr6 & DR6_CONDITIONS | DR6_AT_REST)
    if dr7:
        _request(_POKEUSER, tid, at[7], dr7)

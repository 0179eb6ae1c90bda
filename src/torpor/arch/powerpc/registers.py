"""The registers of a stopped PowerPC thread: read into records, and written from them (R-C3).

`state.py` declares the records, `rules.py` says what they may hold. Here are the register sets between them and a task.

Source: arch/powerpc/kernel/ptrace/, elf.h, sys/ptrace.h.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

from torpor.arch.contract import EINTR, ERESTART_RESTARTBLOCK, ERESTARTNOHAND, Room
from torpor.arch.powerpc import cpu
from torpor.arch.powerpc.rules import FPSCR, PRIORITY_SHIFT, RULES, SF, SYSCALL, VECTORED, VSCR
from torpor.arch.powerpc.state import (
    STATE_OF,
    PowerAltivec,
    PowerDscr,
    PowerFloat,
    PowerFloatMode,
    PowerGeneral32,
    PowerGeneral64,
    PowerKeyRights,
    PowerPriority,
    PowerSpe,
    PowerTar,
    PowerVrsave,
    PowerVsx,
)
from torpor.arch.regsets import ABSENT, Regsets, get
from torpor.arch.rules import CALL_LIMIT
from torpor.errors import Obstacle, Unsupported
from torpor.linux import libc, ptrace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from torpor.arch.contract import Seen
    from torpor.image.record import Record

# elf.h
NT_PRSTATUS, NT_PRFPREG = 1, 2
NT_PPC_VMX, NT_PPC_SPE, NT_PPC_VSX, NT_PPC_TAR, NT_PPC_PPR, NT_PPC_DSCR, NT_PPC_EBB = (0x100 + n for n in range(7))
NT_PPC_PKEY = 0x110

# sys/ptrace.h, asm/ptrace.h
_PEEKUSER, _POKEUSER, _GET_DEBUGREG, _GETVSRREGS, _SETVSRREGS = 3, 6, 25, 27, 28
_PT_MSR, _PT_DSCR = 33, 44

_LITTLE = sys.byteorder == "little"
_VRSAVE_AT = 528
_VSCR_AT = 512 if _LITTLE else 512 + 12  # the word that the CPU takes of the quadword in which it lies
_FLOAT = struct.Struct("=33Q")
_LOW = struct.Struct("=32Q")
_SPE = struct.Struct("=32IQI")
_SPE_NONE = _SPE.pack(*[0] * 34)
_LAST = 40
"""PT_TRAP: nothing behind it can be set, and of what is in front MSR cannot, but for the debugger's bits."""

SUMMARY_OVERFLOW = 0x1000_0000
"""In CR: the call in r3 has failed (sc; not scv)."""
JAVA_MODE = 0x1_0000
USUAL_PRIORITY = 3 << PRIORITY_SHIFT
USUAL_KEY_RIGHTS = 0x3FFF_FFFF_FFFF_FFFF
_MSR_LE, _MSR_TRANSACTION, _MSR_FE0, _MSR_FE1 = 1, 3 << 33, 0x800, 0x100
_TOUCH = {"altivec": 0x1000_0484, "vsx": 0xF000_0490, "": 0x7FE0_0008}
"""vor 0, 0, 0; xxlor 0, 0, 0; trap."""
_RESTART_SYSCALL = 0

_ptrace = libc.function("ptrace", ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_block = ctypes.create_string_buffer(512)
_block_at = ctypes.addressof(_block)


def _request(request: int, tid: int, addr: int | None, data: int | None) -> None:
    """A request that torpor makes on PowerPC only, with the numbers of `addr` and `data` as they are."""
    if _ptrace(request, tid, addr, data) == -1:
        error = ctypes.get_errno()
        raise OSError(error, f"ptrace({request}, {tid}): {os.strerror(error)}")


def _number(tid: int, note: int) -> int:
    """A register set of one register; 0 where there is none."""
    (value,) = struct.unpack("=Q", get(tid, note) or bytes(8))
    return int(value)


def low_halves(tid: int) -> bytes:
    """The lower halves of vs0 to vs31; nothing where there are none.

    The register sets of a 32-bit thread on a 64-bit kernel lack them, though it has them; an older request does not.
    """
    if "vsx" not in cpu.header().features.split():
        return b""
    if data := get(tid, NT_PPC_VSX):
        return data
    _request(_GETVSRREGS, tid, None, _block_at)
    return _block.raw[: _LOW.size]


def _set_low_halves(tid: int, data: bytes) -> None:
    if get(tid, NT_PPC_VSX):
        ptrace.set_regset(tid, NT_PPC_VSX, data)
        return
    ctypes.memmove(_block_at, data, len(data))
    _request(_SETVSRREGS, tid, None, _block_at)


class PowerRegisters(Regsets):
    """The register records of one kind of thread.

    Every method that takes `tid` needs that thread to be in a ptrace stop of the calling thread, and raises OSError.
    """

    __slots__ = ("general", "layout", "names", "none", "word")
    ip, call, generals = "nip", "call", (PowerGeneral64, PowerGeneral32)
    states, rules = STATE_OF, RULES
    general: type[PowerGeneral64] | type[PowerGeneral32]

    def __init__(self, word: int, general: type[PowerGeneral64] | type[PowerGeneral32]) -> None:
        self.word, self.general = word, general
        self.names = tuple(field.name for field in general.declared)
        self.layout = struct.Struct("=48Q" if word == 8 else "=48I")
        self.none = (1 << 8 * word) - 1

    # General registers.

    def read_general(self, tid: int) -> dict[str, int]:
        """The general registers by name, as unsigned integers of the thread's word size.

        `trap` tells how the thread came into the kernel; its lowest bit that a call has been dealt with already.
        """
        values = self.layout.unpack(ptrace.get_regset(tid, NT_PRSTATUS))
        trap = values[40] & ~0xF
        if trap not in (SYSCALL, VECTORED):
            trap = 0
        call = values[0] if trap and not values[40] & 1 else self.none
        return dict(zip(self.names, (*values[:33], self._msr, *values[34:39], trap, call), strict=True))

    @property
    def _msr(self) -> int:
        return SF if self.word == 8 else 0

    def write_general(self, tid: int, regs: Mapping[str, int]) -> None:
        """Set the general registers.

        The kernel makes a call with a restart block again without its first argument, which nobody could find any more: such a
        call is turned into one without a block, with the number of restart_syscall(2).
        """
        if regs["call"] != self.none and result(regs, self.word) == -ERESTART_RESTARTBLOCK:
            regs = {**with_result(regs, -ERESTARTNOHAND, self.word), "r0": 0}
        trap = regs["trap"] if regs["call"] != self.none else 0
        values = [regs[name] for name in self.names[:39]]
        ptrace.set_regset(tid, NT_PRSTATUS, self.layout.pack(*values, 0, trap, *[0] * 7)[: (_LAST + 1) * self.word])

    def restart_ended(self, tid: int, calls: AbstractSet[int], seen: Seen | None) -> None:
        """Where a stop has ended one of `calls` with EINTR, have the kernel restart it as it does pause(2)."""
        regs = self.read_general(tid)
        if regs["call"] in calls and result(regs, self.word) == -EINTR:
            self.write_general(tid, with_result(regs, -ERESTARTNOHAND, self.word))

    def general_record(self, regs: Mapping[str, int]) -> PowerGeneral64 | PowerGeneral32:
        """The record of these general registers; a call that no kernel knows, as programs make them, is none."""
        if regs["call"] >= CALL_LIMIT and regs["call"] != self.none:
            regs = {**regs, "call": self.none}
        if regs["ccr"] > 0xFFFF_FFFF:
            regs = {**regs, "ccr": regs["ccr"] & 0xFFFF_FFFF}
        return self.general(**regs)

    def general_dict(self, record: Record) -> dict[str, int]:
        """The general registers in a record of this kind of thread."""
        return {name: getattr(record, name) for name in self.names}

    # All of them.

    def read(self, tid: int) -> list[Record]:
        """Every register record of a stopped thread in ascending bit order, the general one first.

        Raises Unsupported for state that this version of torpor knows no record for.
        """
        msr = self._whole_msr(tid)
        regs = self.read_general(tid)
        if name := _unsaved(tid, msr):
            raise Unsupported(
                Obstacle(f"thread {tid}", f"it uses {name}, which torpor cannot save", "take a checkpoint when it does not")
            )
        if regs["call"] == _RESTART_SYSCALL and regs["orig_r3"] in (ERESTART_RESTARTBLOCK, self.none + 1 - ERESTART_RESTARTBLOCK):
            raise Unsupported(
                Obstacle(
                    f"thread {tid}",
                    "a job-control stop or a debugger has interrupted its wait, and since then nobody knows what it waits for",
                    "take a checkpoint when that wait is over",
                )
            )
        records: list[Record] = [self.general_record(regs)]
        *f, fpscr = _FLOAT.unpack(ptrace.get_regset(tid, NT_PRFPREG))
        fpscr &= FPSCR  # what is above is whatever an old CPU leaves there
        if any(f) or fpscr:
            records.append(PowerFloat(f=f, fpscr=fpscr))
        vectors = get(tid, NT_PPC_VMX)
        last: list[Record] = []
        if vectors:
            (vscr,), (vrsave,) = struct.unpack_from("=I", vectors, _VSCR_AT), struct.unpack_from("=I", vectors, _VRSAVE_AT)
            vscr &= VSCR
            if any(vectors[:512]) or vscr & ~JAVA_MODE:
                records.append(PowerAltivec(v=vectors[:512], vscr=vscr, vrsave=vrsave))
            elif vrsave:
                last.append(PowerVrsave(vrsave=vrsave))
        if any(low := low_halves(tid)):
            records.append(PowerVsx(low=list(_LOW.unpack(low))))
        spe = get(tid, NT_PPC_SPE)
        if any(spe):
            *evr, acc, spefscr = _SPE.unpack(spe)
            records.append(PowerSpe(evr=evr, acc=acc, spefscr=spefscr))
        if tar := _number(tid, NT_PPC_TAR):
            records.append(PowerTar(tar=tar))
        if (ppr := _number(tid, NT_PPC_PPR) & 7 << PRIORITY_SHIFT) not in (0, USUAL_PRIORITY):
            records.append(PowerPriority(ppr=ppr))
        if dscr := _number(tid, NT_PPC_DSCR):
            records.append(PowerDscr(dscr=dscr))
        if mode := (2 if msr & _MSR_FE0 else 0) | (1 if msr & _MSR_FE1 else 0):
            records.append(PowerFloatMode(mode=mode))
        keys = get(tid, NT_PPC_PKEY)
        if keys and (amr := struct.unpack_from("=Q", keys)[0]) != USUAL_KEY_RIGHTS:
            records.append(PowerKeyRights(amr=amr))
        return records + last

    def write(self, tid: int, records: Sequence[Record]) -> None:
        """Set everything but the general registers; what has no record is put at rest. `write_general` comes after."""
        given = {type(record): record for record in records}
        float_, altivec, vsx = given.get(PowerFloat), given.get(PowerAltivec), given.get(PowerVsx)
        spe, tar, dscr = given.get(PowerSpe), given.get(PowerTar), given.get(PowerDscr)
        f, fpscr = (float_.f, float_.fpscr) if isinstance(float_, PowerFloat) else ([0] * 32, 0)
        ptrace.set_regset(tid, NT_PRFPREG, _FLOAT.pack(*f, fpscr))
        if get(tid, NT_PPC_VMX):
            vectors = bytearray(544)
            struct.pack_into("=I", vectors, _VSCR_AT, JAVA_MODE)
            if isinstance(altivec, PowerAltivec):
                vectors[:512] = altivec.v
                struct.pack_into("=I", vectors, _VSCR_AT, altivec.vscr)
            struct.pack_into("=I", vectors, _VRSAVE_AT, getattr(altivec or given.get(PowerVrsave), "vrsave", 0))
            ptrace.set_regset(tid, NT_PPC_VMX, bytes(vectors))
        if low_halves(tid):
            _set_low_halves(tid, _LOW.pack(*vsx.low) if isinstance(vsx, PowerVsx) else bytes(_LOW.size))
        if get(tid, NT_PPC_SPE):
            ptrace.set_regset(
                tid, NT_PPC_SPE, _SPE.pack(*spe.evr, spe.acc, spe.spefscr) if isinstance(spe, PowerSpe) else _SPE_NONE
            )
        if get(tid, NT_PPC_TAR):
            ptrace.set_regset(tid, NT_PPC_TAR, struct.pack("=Q", tar.tar if isinstance(tar, PowerTar) else 0))
        if get(tid, NT_PPC_PPR):
            ptrace.set_regset(tid, NT_PPC_PPR, struct.pack("=Q", getattr(given.get(PowerPriority), "ppr", USUAL_PRIORITY)))
        wanted = dscr.dscr if isinstance(dscr, PowerDscr) else 0
        if _number(tid, NT_PPC_DSCR) != wanted:
            # Not by the register set: the kernel would take it for the system's, and put its own in its place.
            _request(_POKEUSER, tid, _PT_DSCR * libc.WORD, wanted)
        amr = getattr(given.get(PowerKeyRights), "amr", USUAL_KEY_RIGHTS)
        if (keys := get(tid, NT_PPC_PKEY)) and struct.unpack_from("=Q", keys) != (amr,):
            ptrace.set_regset(tid, NT_PPC_PKEY, struct.pack("=Q", amr))

    def room(self, records: Sequence[Record]) -> Room | None:
        """What a thread with vectors must execute before `write`; None for one without.

        Where a thread has not touched them itself, the kernel leaves them out of a signal's frame and clears them behind it
        (arch/powerpc/kernel/signal_64.c: used_vr, used_vsr).
        """
        wanted = {PowerAltivec: "altivec", PowerVsx: "vsx"}
        touched = [wanted[type(record)] for record in records if type(record) in wanted]
        code = b"".join(struct.pack("=I", _TOUCH[name]) for name in [*touched, ""])
        return Room(code, b"", "r3", {}) if touched else None

    def _whole_msr(self, tid: int) -> int:
        """MSR with the FP exception mode; the register set of a 32-bit thread has the lower half of it, which will do there."""
        (msr,) = struct.unpack_from("=Q" if self.word == 8 else "=I", ptrace.get_regset(tid, NT_PRSTATUS), _PT_MSR * self.word)
        if libc.WORD == 8 and self.word == 4:
            _request_word(tid)
            return int.from_bytes(_block.raw[:8], sys.byteorder)
        return int(msr)


def _request_word(tid: int) -> None:
    """MSR as a 64-bit tracer sees it, into the block."""
    ctypes.set_errno(0)
    value = _ptrace(_PEEKUSER, tid, _PT_MSR * libc.WORD, _block_at)
    if value == -1 and (error := ctypes.get_errno()):
        raise OSError(error, f"ptrace({_PEEKUSER}, {tid}): {os.strerror(error)}")
    ctypes.memmove(_block_at, (value & (1 << 64) - 1).to_bytes(8, sys.byteorder), 8)


def result(regs: Mapping[str, int], word: int) -> int:
    """What a call has given, as a negative errno when it has failed: sc marks that in CR, scv in the sign."""
    value = regs["r3"]
    if regs["trap"] == VECTORED:
        return value - (1 << 8 * word) if value >> (8 * word - 1) else value
    return -value if regs["ccr"] & SUMMARY_OVERFLOW else value


def with_result(regs: Mapping[str, int], value: int, word: int) -> dict[str, int]:
    """The registers behind a call that has given `value`."""
    if regs["trap"] == VECTORED:
        return {**regs, "r3": value & (1 << 8 * word) - 1}
    failed = -4096 < value < 0
    ccr = regs["ccr"] | SUMMARY_OVERFLOW if failed else regs["ccr"] & ~SUMMARY_OVERFLOW
    return {**regs, "r3": (-value if failed else value) & (1 << 8 * word) - 1, "ccr": ccr}


def _unsaved(tid: int, msr: int) -> str:
    """What of a thread's state has no record and is in use, or nothing."""
    if msr & _MSR_TRANSACTION:
        return "a memory transaction"
    if (msr & _MSR_LE) != _LITTLE:
        return "the other byte order (PR_SET_ENDIAN)"
    if get(tid, NT_PPC_EBB):
        return "event-based branches"
    ctypes.memset(_block_at, 0, 8)
    try:
        _request(_GET_DEBUGREG, tid, None, _block_at)
    except OSError as error:
        if error.errno not in ABSENT:
            raise
    return "hardware breakpoints" if any(_block.raw[:8]) else ""


REGISTERS_64 = PowerRegisters(8, PowerGeneral64)
REGISTERS_32 = PowerRegisters(4, PowerGeneral32)

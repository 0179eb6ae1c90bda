"""The registers of real 64- and 32-bit programs, taken from one and given to another (R-C1, R-C2)."""

from __future__ import annotations

import os
import random
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.arch.x86_program import Child, build
from tests.conftest import FULL, SEED
from torpor.arch.x86 import cpu
from torpor.arch.x86.registers import REGISTERS_32, REGISTERS_64
from torpor.arch.x86.state import (
    STATE_OF,
    STATES,
    X87,
    X86Avx,
    X86Debug,
    X86General32,
    X86General64,
    X86Opmask,
    X86Sse,
    X86Tls,
    X86TlsEntry,
    X86Zmm,
    X86ZmmHigh,
)
from torpor.image.record import Record

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="needs an x86-64 machine")

LIMITS = {8: (1 << 47) - 4096, 4: 0xFFFFE000}


@pytest.fixture(scope="module", params=[8, 4], ids=["64", "32"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    missing = [s.title for s in STATES if s.component > 0 and not cpu.host().layout.xcr0 >> s.component & 1]
    print("not offered by this CPU, so not tried:", ", ".join(missing))
    yield build(tmp_path_factory.mktemp("x86"), request.param)


def packed_and_back(records: list[Record]) -> list[Record]:
    return [type(record).unpack(record.pack()) for record in records]


def as_bytes(records: list[Record]) -> list[tuple[str, bytes]]:
    return [(type(record).__name__, record.pack()) for record in records]


def judge(child: Child, records: list[Record]) -> list[str]:
    return child.sets.validate(
        records,
        user_limit=LIMITS[child.word],
        is_executable=child.is_executable,
        is_mapped=lambda address: True,
        syscall_before=lambda address: False,
    )


@pytest.mark.parametrize("seed", range(7))
def test_moved_to_another_task(program: Path, seed: int) -> None:
    """What one program holds is put into another, whose registers were others; both go on and find theirs."""
    for other in [n for n in (0, 2, 3, 6) if n != seed][: 3 if FULL else 2]:
        with Child(program, seed, seed) as giver, Child(program, other, seed) as taker:
            records = giver.sets.read(giver.tid)
            assert judge(giver, records) == []
            records = packed_and_back(records)
            taker.sets.write(taker.tid, records)
            taker.sets.write_general(taker.tid, taker.sets.general_dict(records[0]))
            assert as_bytes(taker.sets.read(taker.tid)) == as_bytes(records)
            assert taker.finish() == (0, "")
            assert giver.finish() == (0, "")


def test_the_program_notices(program: Path) -> None:
    """The check above is worth something: without the transfer the program complains."""
    with Child(program, 2, 4) as child:
        code, said = child.finish()
        assert code == 1
        noticed = {"mxcsr 0 differs", "st 3 differs", "xmm 0 differs", "memory behind fs 0 differs"}
        assert noticed <= set(said.splitlines())


def test_only_what_is_used_is_written(program: Path) -> None:
    """Seed 0 has everything at rest, seed 1 x87 and AVX-512 masks, with MXCSR changed and no SSE register in use."""
    with Child(program, 0, 0) as child:
        kinds = [type(record).__name__ for record in child.sets.read(child.tid)]
        assert kinds == (["X86General64"] if child.word == 8 else ["X86General32", "X86Tls"])
    with Child(program, 1, 1) as child:
        records = child.sets.read(child.tid)
        kinds = [type(record).__name__ for record in records if not isinstance(record, X86General64 | X86General32)]
        has = cpu.host().layout.xcr0
        # The hardware's PKRU, 0, is none that Linux gives: there a record says so.
        expected = ["X86Tls", "X87", "X86Sse"] + ["X86Opmask"] * (has >> 5 & 1) + ["X86Pkru"] * (has >> 9 & 1)
        assert kinds == expected
        sse = next(record for record in records if isinstance(record, X86Sse))
        assert (sse.mxcsr, sse.xmm.strip(b"\0")) == (0x3FA1, b"")
        assert child.sets.mask(records) == sum(1 << STATE_OF[type(r)].bit for r in records)


def gdb(pid: int, *expressions: str) -> list[str]:
    """gdb's view of an untraced process."""
    commands = [part for e in expressions for part in ("-ex", e)]
    done = subprocess.run(
        ["gdb", "-nx", "-batch", "-p", str(pid), "-ex", "set width 0", "-ex", "echo \\nBEGIN\\n", *commands],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout.partition("\nBEGIN\n")[2].splitlines()


@pytest.mark.skipif(not shutil.which("gdb"), reason="gdb is not installed")
def test_gdb_sees_the_same(program: Path) -> None:
    with Child(program, 4, 4) as child:
        records = {type(record): record for record in child.sets.read(child.tid)}
        general = child.sets.read_general(child.tid)
        child.release()
        names = [name for name in general if not name.startswith("orig_") and name not in ("rip", "eip", "eflags")]
        wanted = {f"p/x ${name}": general[name] for name in names}
        sse, x87 = records[X86Sse], records[X87]
        assert isinstance(sse, X86Sse) and isinstance(x87, X87)
        wanted["p/x $mxcsr"] = sse.mxcsr
        for n in range(2 * child.word if child.word == 4 else 16):
            wanted[f"p/x $xmm{n}.uint128"] = int.from_bytes(sse.xmm[16 * n : 16 * n + 16], "little")
        wanted |= {"p/x $fctrl": x87.fcw, "p/x $fstat": x87.fsw}
        if avx := records.get(X86Avx):
            assert isinstance(avx, X86Avx)
            for n in (0, 3, 7):
                low, high = sse.xmm[16 * n : 16 * n + 16], avx.ymm_high[16 * n : 16 * n + 16]
                wanted[f"p/x $ymm{n}.v2_int128[0]"] = int.from_bytes(low, "little")
                wanted[f"p/x $ymm{n}.v2_int128[1]"] = int.from_bytes(high, "little")
        if opmask := records.get(X86Opmask):
            assert isinstance(opmask, X86Opmask)
            wanted |= {f"p/x $k{n}": opmask.k[n] for n in range(8)}
        if upper := records.get(X86ZmmHigh):
            assert isinstance(upper, X86ZmmHigh)
            for n in (0, 5):
                wanted[f"p/x $zmm{n}.v8_int64[7]"] = struct.unpack_from("<Q", upper.zmm_high, 32 * n + 24)[0]
        if zmm := records.get(X86Zmm):
            assert isinstance(zmm, X86Zmm)
            for n in (16, 31):
                wanted[f"p/x $zmm{n}.v8_int64[1]"] = struct.unpack_from("<Q", zmm.zmm, 64 * (n - 16) + 8)[0]
        said = gdb(child.tid, *wanted, *[f"info registers st{n}" for n in range(8)])
        values = [int(line.partition(" = ")[2], 16) for line in said if " = 0x" in line]
        assert dict(zip(wanted, values, strict=True)) == {
            key: value & (1 << 64) - 1 if "v8_int64" in key else value for key, value in wanted.items()
        }
        raw = [int(found[1], 16) for line in said if (found := re.search(r"\(raw 0x([0-9a-f]+)\)", line))]
        assert raw == [int.from_bytes(x87.st[10 * n : 10 * n + 10], "little") for n in range(8)]
        assert child.finish() == (0, "")


def random_records(rng: random.Random, child: Child, records: list[Record]) -> list[Record]:
    """Records with random values in every field that may hold any, and random good ones in the others."""
    layout, wide = cpu.host().layout, child.word == 8
    full = 16 if wide else 8
    general = dict(child.sets.general_dict(records[0]))
    for name in general:
        if name not in ("rip", "eip", "orig_rax", "orig_eax", "eflags", "cs", "ss", "ds", "es", "fs", "gs", "gs_base"):
            general[name] = rng.randrange(1 << 8 * child.word)
    general["rip" if wide else "eip"] = child.spin  # not between the test of its loop and the jump
    general["eflags"] = rng.randrange(1 << 22) & 0x54CD5 | 0x202
    general["orig_rax" if wide else "orig_eax"] = rng.choice([(1 << 8 * child.word) - 1, rng.randrange(600)])
    general["rsp" if wide else "esp"] = rng.randrange(LIMITS[child.word] + 1)
    if wide:
        general |= {"fs_base": rng.randrange(LIMITS[8]), "gs_base": rng.randrange(LIMITS[8])}
    entries = []
    for entry in (12, 13, 14):
        if entry == 12 and not wide:  # the C library's
            entries += [e for r in records if isinstance(r, X86Tls) for e in r.entries if e.entry == 12]
        elif entry == 13 and not wide:  # what FS points to, and is read
            entries += [e for r in records if isinstance(r, X86Tls) for e in r.entries if e.entry == 13]
        elif rng.random() < 0.7:
            flags = 1 | rng.choice((0, 2)) | rng.choice((0, 8)) | rng.choice((0, 16)) | rng.choice((0, 64))
            entries.append(
                X86TlsEntry(entry=entry, base=rng.randrange(1 << 32), limit=rng.randrange(1 << 20), flags=flags)
            )
    used = [8 * e.entry + 3 for e in entries]
    general["es"] = rng.choice([0, 0x2B, *used])
    if wide:
        general["ds"] = rng.choice([0, 0x2B, *used])
    found: list[Record] = [child.sets.general_record(general)]
    if entries:
        found.append(X86Tls(entries=entries))
    if rng.random() < 0.7:
        kinds = [rng.choice([(1, 1), (3, 4), (1, 2), (0, 1), (3, 8)]) for _ in range(4)]
        length = {1: 0, 2: 1, 4: 3, 8: 2}
        dr7 = sum(1 << 2 * n | k << 16 + 4 * n | length[size] << 18 + 4 * n for n, (k, size) in enumerate(kinds))
        places = [rng.randrange(0x1000, LIMITS[child.word] - 64) // s * s for _, s in kinds]
        found.append(X86Debug(dr0=places[0], dr1=places[1], dr2=places[2], dr3=places[3], dr6=0xFFFF0FF0, dr7=dr7))
    words = [rng.randrange(1 << 16) for _ in range(8)]
    found.append(
        X87(fcw=words[0] & 0x1F7F | 0x40, fsw=0, ftw=words[1] & 0xFF, fop=words[2] & 0x7FF, fcs=0, fds=0,
            fip=rng.randrange(LIMITS[child.word]), fdp=rng.randrange(LIMITS[child.word]), st=rng.randbytes(80))
    )  # fmt: skip
    found.append(X86Sse(mxcsr=words[3], xmm=rng.randbytes(16 * full).ljust(256, b"\0")))
    if layout.xcr0 & 4:
        found.append(X86Avx(ymm_high=rng.randbytes(16 * full).ljust(256, b"\0")))
    if layout.xcr0 & 0x20:
        found.append(X86Opmask(k=[rng.randrange(1, 1 << 64) for _ in range(8)]))
        found.append(X86ZmmHigh(zmm_high=rng.randbytes(32 * full).ljust(512, b"\0")))
        if wide:
            found.append(X86Zmm(zmm=rng.randbytes(1024)))
    return found


def test_what_is_accepted_the_kernel_takes(program: Path) -> None:
    """Random values that pass the rules: the kernel takes each as it is, and the task lives with them."""
    rng = random.Random(SEED)
    for _ in range(100 if FULL else 15):
        with Child(program, 2, 2) as child:
            records = random_records(rng, child, child.sets.read(child.tid))
            assert judge(child, records) == []
            child.sets.write(child.tid, records)
            child.sets.write_general(child.tid, child.sets.general_dict(records[0]))
            again = child.sets.read(child.tid)
            assert as_bytes(again) == as_bytes(records)
            child.release()
            time.sleep(0.005)
            child.stop()
            after = child.sets.read(child.tid)
            # Running on, the program has only changed the flags of its comparison.
            first, then = child.sets.general_dict(records[0]), child.sets.general_dict(after[0])
            changed = {name for name in first if first[name] != then[name]}
            assert changed <= {"rip", "eip", "eflags", "orig_rax", "orig_eax"}
            assert as_bytes(after[1:]) == as_bytes(records[1:])
            if child.word == 8:  # it reads what lies behind the bases
                restored = {"fs_base": child.go & ~7, "gs_base": child.go & ~7}
                child.sets.write_general(child.tid, then | restored)
            child.sets.write(child.tid, [r for r in after if not isinstance(r, X86Debug)])
            assert child.finish()[0] == 1  # it has found other values, and was not killed by them


FLAGS = {"CF": 1, "PF": 4, "AF": 0x10, "ZF": 0x40, "SF": 0x80, "DF": 0x400, "OF": 0x800, "NT": 0x4000, "AC": 0x40000}


def test_every_accepted_flag_is_kept(program: Path) -> None:
    with Child(program, 0, 0) as child:
        regs = child.sets.read_general(child.tid)
        for flag in FLAGS.values():
            child.sets.write_general(child.tid, regs | {"eflags": 0x202 | flag})
            kept = child.sets.read_general(child.tid)["eflags"]
            assert kept & ~0x10000 == 0x202 | flag


def test_breakpoints_left_by_a_debugger(program: Path) -> None:
    """They are the only debug registers an untraced task can have; they are moved, and cleared where there are none."""
    with Child(program, 0, 0) as giver, Child(program, 0, 0) as taker:
        plain = giver.sets.read(giver.tid)
        left = X86Debug(dr0=0x1000, dr1=0, dr2=0x2004, dr3=0, dr6=0xFFFF4FF1, dr7=0x0D000011)
        at = next(n for n, r in enumerate([*plain, left]) if STATE_OF[type(r)].bit >= STATE_OF[X86Debug].bit)
        records = [*plain[:at], left, *plain[at:]]
        assert judge(giver, records) == []
        giver.sets.write(giver.tid, records)
        giver.release()
        giver.stop()
        seen = giver.sets.read(giver.tid)
        assert as_bytes(seen[1:]) == as_bytes(records[1:])
        taker.sets.write(taker.tid, packed_and_back(seen))
        assert as_bytes(taker.sets.read(taker.tid)[1:]) == as_bytes(records[1:])
        taker.sets.write(taker.tid, plain)
        assert as_bytes(taker.sets.read(taker.tid)[1:]) == as_bytes(plain[1:])
        assert giver.finish() == taker.finish() == (0, "")


def test_a_breakpoint_still_works(program: Path) -> None:
    """A write of the program to a watched address stops it: what was restored is really in the hardware."""
    with Child(program, 0, 0) as child:
        out = subprocess.run(["nm", str(program)], capture_output=True, text=True, check=True).stdout
        address = int(re.search(r"^([0-9a-f]+) \w out$", out, re.M)[1], 16)  # type: ignore[index]
        records = child.sets.read(child.tid)
        watch = X86Debug(dr0=address, dr1=0, dr2=0, dr3=0, dr6=0xFFFF0FF0, dr7=0xD0001)
        at = next((n for n, r in enumerate(records) if STATE_OF[type(r)].bit > STATE_OF[X86Debug].bit), len(records))
        child.sets.write(child.tid, [*records[:at], watch, *records[at:]])
        assert child.finish()[0] == -5  # SIGTRAP


def test_32_bit_thread_in_64_bit_code(program: Path) -> None:
    """torpor runs its own code in a 32-bit task as 64-bit code: registers can be read there, and put back."""
    with Child(program, 2, 2) as child:
        if child.word == 8:
            return
        regs = child.sets.read_general(child.tid)
        inside = REGISTERS_64.read_general(child.tid)
        REGISTERS_64.write_general(child.tid, inside | {"cs": 0x33, "rax": 0x123456789, "r12": 0xABCDEF012345})
        there = REGISTERS_64.read_general(child.tid)
        assert (there["cs"], there["rax"], there["r12"]) == (0x33, 0x123456789, 0xABCDEF012345)
        assert REGISTERS_32.read_general(child.tid) == regs | {"cs": 0x33, "eax": 0x23456789}
        child.sets.write_general(child.tid, regs)
        assert child.sets.read_general(child.tid) == regs
        assert child.finish() == (0, "")


def test_from_a_32_bit_kernel(program: Path) -> None:
    """A 32-bit kernel numbers the segments otherwise: its selectors and TLS entries are put in this one's terms."""
    with Child(program, 2, 2) as giver, Child(program, 4, 2) as taker:
        if giver.word == 8:
            return
        there = {0x23: 0x73, 0x2B: 0x7B, 0x63: 0x33, 0x6B: 0x3B, 0x73: 0x43, 0: 0}
        records = packed_and_back(giver.sets.read(giver.tid))
        general, tls = records[0], records[1]
        assert isinstance(general, X86General32) and isinstance(tls, X86Tls)
        for name in ("cs", "ss", "ds", "es", "fs", "gs"):
            setattr(general, name, there[getattr(general, name)])
        for entry in tls.entries:
            entry.entry -= 6
        assert judge(giver, records) == []
        taker.sets.write(taker.tid, records)
        taker.sets.write_general(taker.tid, taker.sets.general_dict(general))
        assert taker.finish() == (0, "")


def test_unknown_call_number_becomes_no_call() -> None:
    """A program may call numbers that no kernel knows; recorded as no call, as long as none is to be restarted."""
    regs = dict.fromkeys((field.name for field in X86General64.declared), 0)
    minus_one = (1 << 64) - 1
    for orig, ax, recorded in (
        (5000, -38 & minus_one, minus_one),
        (5000, -512 & minus_one, 5000),
        (230, -516 & minus_one, 230),
        (230, 0, 230),
        (minus_one, 7, minus_one),
    ):
        record = REGISTERS_64.general_record(regs | {"orig_rax": orig, "rax": ax})
        assert isinstance(record, X86General64)
        assert record.orig_rax == recorded


def test_a_cpu_without_xsave(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the FXSAVE registers are all there is, in a register set of their own; this kernel has it as well."""
    with Child(program, 2, 2) as giver, Child(program, 4, 2) as taker:
        whole = giver.sets.read(giver.tid)
        monkeypatch.setattr(cpu, "_host", cpu.Host([], "", [], cpu.no_xsave(wide=True)))
        records = packed_and_back(giver.sets.read(giver.tid))
        beyond = {state.record for state in STATES if state.component > 1}
        assert as_bytes(records) == as_bytes([r for r in whole if type(r) not in beyond])
        taker.sets.write(taker.tid, records)
        taker.sets.write_general(taker.tid, taker.sets.general_dict(records[0]))
        assert as_bytes(taker.sets.read(taker.tid)) == as_bytes(records)
        _, said = taker.finish()
        assert {line.rsplit(" ", 2)[0] for line in said.splitlines()} <= {"state component"}


@pytest.mark.skipif(not FULL and "TORPOR_TEST_TIMES" not in os.environ, reason="times only when asked for")
def test_times(program: Path) -> None:
    with Child(program, 2, 2) as child:
        sets, tid = child.sets, child.tid
        regs, records = sets.read_general(tid), sets.read(tid)
        steps: dict[str, Callable[[], object]] = {
            "read_general": lambda: sets.read_general(tid),
            "write_general": lambda: sets.write_general(tid, regs),
            "capture": lambda: sets.capture(tid),
            "read": lambda: sets.read(tid),
            "write": lambda: sets.write(tid, records),
        }
        took = {}
        for name, step in steps.items():
            rounds = []
            for _ in range(9):
                start = time.perf_counter()
                for _ in range(200):
                    step()
                rounds.append((time.perf_counter() - start) / 200 * 1e6)
            took[name] = sorted(rounds)[4]
        print({name: f"{us:.1f} us" for name, us in took.items()})
        assert took["read_general"] < 15 and took["write_general"] < 15

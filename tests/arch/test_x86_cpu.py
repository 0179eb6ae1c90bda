"""Layouts of the XSAVE area other than this CPU's, what a CPU offers, and who may run whose image (R-B2, R-B5)."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import M32, ROOT, SEED
from torpor.arch.x86 import cpu, registers, xstate
from torpor.arch.x86.cpu import X86Header, guessed_layout, verdict
from torpor.arch.x86.state import (
    STATE_OF,
    STATES,
    X87,
    X86Apx,
    X86Avx,
    X86BoundConfig,
    X86BoundRegisters,
    X86General64,
    X86Opmask,
    X86Pkru,
    X86Sse,
    X86TileConfig,
    X86TileData,
    X86Zmm,
    X86ZmmHigh,
)
from torpor.arch.x86.xstate import EXTENDED, Layout, decode, encode
from torpor.errors import Unsupported
from torpor.image.record import Record
from torpor.linux import procfs

pytestmark = pytest.mark.skipif(os.uname().machine not in ("x86_64", "i686"), reason="needs an x86 machine")


def random_layout(rng: random.Random, *, wide: bool = True, without: tuple[int, ...] = ()) -> Layout:
    """Components in any order, with gaps between them."""
    places, at = {}, 576
    for part in rng.sample(EXTENDED, len(EXTENDED)):
        if part.number in without:
            continue
        at += rng.choice((0, 0, 8, 64, 320))
        room = max(8, part.size)
        places[part.number] = (at, room)
        at += room
    return Layout(at + rng.choice((0, 64)), 3 | sum(1 << n for n in places), places, wide=wide)


def random_state(rng: random.Random, *, wide: bool = True) -> list[Record]:
    """Some of the components, none of them at rest."""
    half = 1 if wide else 2

    def some(n: int) -> bytes:
        return (rng.randbytes(n // half - 1) + b"\1").ljust(n, b"\0")

    bits = 64 if wide else 32
    pointers = {"fip": rng.randrange(1 << bits), "fdp": rng.randrange(1 << bits)}
    segments = {"fcs": 0, "fds": 0} if wide else {"fcs": rng.randrange(1 << 16), "fds": 0x7B}
    everything: list[Record] = [
        X87(fcw=0x37F, fsw=rng.randrange(1 << 16), ftw=0xA5, fop=0x123, st=rng.randbytes(80), **pointers, **segments),
        X86Sse(mxcsr=0x1FA0, xmm=some(256)),
        X86Avx(ymm_high=some(256)),
        X86Opmask(k=[rng.randrange(1 << 64) for _ in range(7)] + [1]),
        X86ZmmHigh(zmm_high=some(512)),
        X86Zmm(zmm=rng.randbytes(1023) + b"\1"),
        X86Pkru(pkru=rng.randrange(0x55555554)),
        X86TileConfig(palette=1, start_row=3, columns=[64, 1, 2, 3, 4, 5, 6, 7], rows=[16, 1, 2, 3, 4, 5, 6, 7]),
        X86TileData(tiles=rng.randbytes(8191) + b"\1"),
        X86BoundRegisters(bounds=rng.randbytes(63) + b"\1"),
        X86BoundConfig(bndcfgu=rng.randrange(1 << 64), bndstatus=1),
        X86Apx(r=[rng.randrange(1 << 64) for _ in range(15)] + [1]),
    ]
    return [record for record in everything if rng.random() < 0.6]


def with_frame(area: bytes, layout: Layout) -> bytes:
    """The area as the kernel would give it back: XCR0 among FXSAVE's software bytes."""
    return area[: xstate.XCR0_AT] + layout.xcr0.to_bytes(8, "little") + area[xstate.XCR0_AT + 8 :]


def as_bytes(records: Sequence[Record]) -> list[tuple[str, bytes]]:
    return [(type(record).__name__, record.pack()) for record in records]


@pytest.mark.parametrize("wide", [True, False], ids=["64-bit kernel", "32-bit kernel"])
def test_any_layout_gives_the_same_records(wide: bool) -> None:
    rng = random.Random(SEED)
    for _ in range(200):
        records = random_state(rng, wide=wide)
        layout = random_layout(rng, wide=wide)
        area = with_frame(encode(records, layout), layout)
        assert layout.misfit(area) is None
        assert as_bytes(decode(area, layout)) == as_bytes(records)
        assert decode(encode([], layout), layout) == []


def test_from_one_layout_into_another() -> None:
    """What one CPU saved another takes, in its own places; registers that only the other has are at rest there."""
    rng = random.Random(SEED + 1)
    for _ in range(50):
        records = [r for r in random_state(rng) if not isinstance(r, X86TileData | X86TileConfig | X86Apx)]
        here, there = random_layout(rng, without=(17, 18, 19)), random_layout(rng)
        moved = decode(encode(decode(encode(records, here), here), there), there)
        assert as_bytes(moved) == as_bytes(records)
        used = int.from_bytes(encode(records, there)[512:520], "little")
        # Linux gives every program a PKRU that is not the hardware's.
        assert used == sum(1 << STATE_OF[type(r)].component for r in records) | 1 << 9


def test_a_component_that_is_lacking_is_refused() -> None:
    layout = random_layout(random.Random(3), without=(18,))
    with pytest.raises(Unsupported, match="AMX tiles: this CPU or kernel does not offer amx_tile"):
        encode([X86TileData(tiles=bytes(8192))], layout)


def test_state_that_no_record_is_for_is_refused() -> None:
    layout = random_layout(random.Random(4))
    area = bytearray(encode([], layout))
    area[519] |= 1 << 6  # component 62, LWP
    with pytest.raises(Unsupported, match="state component 62"):
        decode(bytes(area), layout)


def test_a_record_needs_more_than_a_bit() -> None:
    """XSTATE_BV says that the hardware saved something, not that it differs from the initial state."""
    layout = random_layout(random.Random(5))
    area = bytearray(encode([], layout))
    for number in (0, 1, 2, 5, 6, 7, 9, 17, 18, 19):
        area[512 + number // 8] |= 1 << number % 8
    assert decode(bytes(area), layout) == []
    # And without the bits, bytes mean nothing: older kernels leave stale ones there.
    stale = bytearray(random.Random(6).randbytes(layout.size))
    stale[512:576] = bytes(64)
    assert as_bytes(decode(bytes(stale), layout)) == as_bytes([X86Pkru(pkru=0)])


def test_fxsave_alone() -> None:
    for wide in (True, False):
        layout = cpu.no_xsave(wide=wide)
        records = [r for r in random_state(random.Random(8), wide=wide) if isinstance(r, X87 | X86Sse)]
        area = encode(records, layout)
        assert len(area) == 512 and layout.misfit(area) is None
        assert as_bytes(decode(area, layout)) == as_bytes(records)
        with pytest.raises(Unsupported):
            encode([X86Avx(ymm_high=b"\1" * 256)], layout)


def test_misfits_are_seen() -> None:
    layout = random_layout(random.Random(9))
    area = with_frame(encode([], layout), layout)
    assert "bytes" in str(layout.misfit(area + bytes(8)))
    assert "components" in str(layout.misfit(with_frame(area, Layout(layout.size, 0x7, {}))))


INTEL = "fpu sse avx xsave"
AVX512 = INTEL + " avx512f"


@pytest.mark.parametrize(
    ("flags", "vendor", "size", "places"),
    [
        # Sizes that CPUID of such machines reports (leaf 0xD, subleaf 0, ebx).
        (INTEL, "GenuineIntel", 832, {2: 576}),
        (AVX512, "GenuineIntel", 2688, {2: 576, 5: 1088, 6: 1152, 7: 1664}),
        (AVX512 + " ospke", "GenuineIntel", 2696, {2: 576, 5: 1088, 6: 1152, 7: 1664, 9: 2688}),
        (AVX512 + " ospke amx_tile", "GenuineIntel", 11008, {9: 2688, 17: 2752, 18: 2816}),
        (INTEL + " ospke", "AuthenticAMD", 840, {2: 576, 9: 832}),
        (AVX512 + " ospke", "AuthenticAMD", 2440, {2: 576, 5: 832, 6: 896, 7: 1408, 9: 2432}),
        ("fpu sse xsave", "GenuineIntel", 576, {}),
        ("fpu sse", "GenuineIntel", 512, {}),
    ],
)
def test_layouts_without_cpuid(flags: str, vendor: str, size: int, places: dict[int, int]) -> None:
    layout = guessed_layout(flags.split(), vendor, wide=True)
    assert layout.size == size
    assert places.items() <= {number: offset for number, (offset, _) in layout.places.items()}.items()


def test_guess_is_right_here() -> None:
    me = cpu.host()
    vendor = procfs.cpuinfo().get("vendor_id", "")
    guess = guessed_layout(me.flags, vendor, wide=me.layout.wide)
    assert (guess.size, guess.xcr0, guess.places) == (me.layout.size, me.layout.xcr0, me.layout.places)


def test_without_executable_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where CPUID may not be executed the answers are the same, as far as /proc/cpuinfo prints them."""
    mine = cpu.host()
    monkeypatch.setattr(cpu.Cpuid, "open", lambda: None)
    blind = cpu._ask()
    assert blind.layout.places == mine.layout.places
    assert set(blind.offers) <= set(mine.offers)
    assert set(mine.offers) - set(blind.offers) <= {row[0] for row in cpu._UNPRINTED}


def test_header_describes_this_machine() -> None:
    header = cpu.header()
    again = X86Header.unpack(header.pack())
    assert again.features.split() == cpu.offers() == sorted(cpu.offers())
    assert again.xcr0 == cpu.host().layout.xcr0 and again.fxsr == 1
    assert {"fpu", "sse2", "cmov"} <= set(cpu.offers())
    assert not {"pcid", "smep", "erms", "nx", "hypervisor", "xsaves"} & set(cpu.offers())


def test_asking_is_quick() -> None:
    took = []
    for _ in range(15):
        start = time.perf_counter()
        cpu._ask()
        took.append(time.perf_counter() - start)
    assert sorted(took)[7] < 0.005, took  # 0.4 ms on a quiet machine


CPUID_C = r"""
#include <cpuid.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
static const unsigned char cpuid_code[] = {%s}, xgetbv_code[] = {%s};
int main(void) {
    unsigned char *at = mmap(0, 4096, 7, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(at, cpuid_code, sizeof cpuid_code);
    memcpy(at + 64, xgetbv_code, sizeof xgetbv_code);
    void (*cpuid)(uint32_t, uint32_t, void *) = (void *)at, (*xgetbv)(uint32_t, uint32_t, void *) = (void *)(at + 64);
    uint32_t got[4], want[4];
    for (int i = 0; i < 20; i++) {
        cpuid(0xd, i, got);
        __cpuid_count(0xd, i, want[0], want[1], want[2], want[3]);
        if (memcmp(got, want, 16)) return 1;
    }
    xgetbv(0, 0, got);
    asm("xgetbv" : "=a"(want[0]), "=d"(want[1]) : "c"(0));
    if (memcmp(got, want, 8)) return 2;
    /* What the x87 makes of reserved bits: rules.py's mask for fcw. */
    uint16_t fcw = 0xffff;
    asm volatile("fldcw %%0; fnstcw %%0; fninit" : "+m"(fcw));
    printf("%%x\n", fcw);
    return 0;
}
"""


@pytest.mark.parametrize("word", [8, 4])
def test_our_machine_code(word: int, tmp_path: Path) -> None:
    """The bytes for both word sizes, called from C: a 64-bit Python would never run the 32-bit ones."""
    as_list = [",".join(str(byte) for byte in bytes.fromhex(code)) for code in cpu._CODE[word]]
    (tmp_path / "c.c").write_text(CPUID_C % tuple(as_list))
    flags = M32 if word == 4 else ()
    subprocess.run(["gcc", *flags, "-O2", "-w", "-o", str(tmp_path / "c"), str(tmp_path / "c.c")], check=True)
    done = subprocess.run([str(tmp_path / "c")], capture_output=True, text=True, check=True)
    assert int(done.stdout, 16) == 0x1F7F


@pytest.mark.skipif(not shutil.which("objdump"), reason="objdump is not installed")
@pytest.mark.parametrize("machine", ["i386:x86-64", "i386"])
def test_the_code_that_touches_tiles(tmp_path: Path, machine: str) -> None:
    (tmp_path / "code").write_bytes(registers.XRSTOR)
    command = ["objdump", "-Dw", "-b", "binary", "-m", machine, str(tmp_path / "code")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [line.split("\t")[-1].strip() for line in said.splitlines() if "\t" in line]
    assert lines == ["xrstor (%rdi)" if machine != "i386" else "xrstor (%edi)", "int3"]


# The algebra of R-B5.

ZEN3 = "ia32 lm fpu sse sse2 avx avx2 ospke"
SAPPHIRE = ZEN3 + " avx512f avx512bw amx_tile amx_int8"
BITS = {state.record: 1 << state.bit for state in STATES}
PLAIN = BITS[X86General64] | BITS[X87] | BITS[X86Sse]


def image(features: str) -> X86Header:
    return X86Header(xcr0=7, xstate_size=832, fxsr=1, xsave=1, offsets=[], features=features, model="Test CPU")


@pytest.mark.parametrize(
    ("there", "used", "here", "cpu_is", "refused"),
    [
        (ZEN3, PLAIN, ZEN3, "same", []),
        (ZEN3, PLAIN, SAPPHIRE, "same", []),  # more is welcome
        (SAPPHIRE, PLAIN, ZEN3, "same", ["amx_int8, amx_tile, avx512bw, avx512f: offered"]),
        (SAPPHIRE, PLAIN, ZEN3, "used", []),
        (SAPPHIRE, PLAIN | BITS[X86Zmm], ZEN3, "used", ["avx512f: its AVX-512 registers 16 to 31"]),
        (SAPPHIRE, PLAIN | BITS[X86Zmm], ZEN3, "same", ["avx512f: ", "amx_int8, amx_tile, avx512bw: offered"]),
        (
            SAPPHIRE,
            PLAIN | BITS[X86Zmm] | BITS[X86Opmask],
            ZEN3,
            "used",
            ["avx512f: its AVX-512 mask registers and AVX"],
        ),
        (SAPPHIRE, PLAIN | BITS[X86TileData] | BITS[X86Avx], ZEN3, "used", ["amx_tile: its AMX tiles"]),
        (ZEN3, PLAIN | BITS[X86Pkru], ZEN3.replace(" ospke", ""), "used", ["ospke: its protection key rights"]),
        (ZEN3, PLAIN, ZEN3.replace("lm ", ""), "used", ["lm: its 64-bit registers"]),
        (ZEN3, 2, ZEN3.replace("ia32 ", ""), "used", ["ia32: its 32-bit registers"]),
        (ZEN3 + " mpx", PLAIN | BITS[X86BoundConfig], ZEN3 + " mpx", "used", ["mpx: "]),
        (ZEN3, PLAIN | 1 << 17 | 1 << 63, ZEN3, "used", ["the threads have register records of kinds"]),
    ],
)
def test_verdict(there: str, used: int, here: str, cpu_is: str, refused: list[str]) -> None:
    said = verdict(image(there), used, here=here.split(), cpu=cpu_is)
    assert len(said) == len(refused), said
    for sentence, start in zip(said, refused, strict=True):
        assert sentence.startswith(start)
        assert ";" in sentence  # a remedy


def test_every_feature_can_be_refused_and_accepted() -> None:
    for state in STATES:
        said = verdict(image(""), 1 << state.bit, here=[])
        assert len(said) == bool(state.feature)
        assert all(sentence.startswith(f"{state.feature}: ") for sentence in said)
        if state.feature != "mpx":
            assert verdict(image(""), 1 << state.bit, here=[state.feature]) == []


def test_every_mask_bit_is_documented() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    for state in STATES:
        feature = f"`{state.feature}`" if state.feature else ""
        assert f"| {state.bit} | `{state.record.__name__}` | {state.title} | {feature} |" in page

"""riscv64 on any host: every field of every register record has a rule, hostile values are named, a CPU is judged (R-D1, R-B5)."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from torpor.arch.rewinding import NONE
from torpor.arch.riscv64 import KINDS, cpu, registers
from torpor.arch.riscv64.registers import REGISTERS, VECTOR
from torpor.arch.riscv64.rules import ILLEGAL, RULES, elements
from torpor.arch.riscv64.state import STATE_OF, STATES, Riscv64Float, Riscv64General, Riscv64Vector
from torpor.errors import Unsupported, UsageError
from torpor.image.record import Record
from torpor.linux import procfs, ptrace

CODE, STACK = 0x40_0000, 0x3F_F000_0000
KIND = KINDS[0]
VILL_AND_ALL_ONES = {"vtype": ILLEGAL, "vl": 0, "registers": b"\xff" * 512}
"""What a system call leaves behind."""


def general(**values: int) -> Riscv64General:
    at_rest = dict.fromkeys((field.name for field in Riscv64General.declared), 0)
    return Riscv64General(**{**at_rest, "pc": CODE, "sp": STACK, "syscallno": NONE, **values})


def floats(**values: Any) -> Riscv64Float:
    return Riscv64Float(**{"f": bytes(256), "fcsr": 0, **values})


def vector(**values: Any) -> Riscv64Vector:
    return Riscv64Vector(**{"vlenb": 16, "vcsr": 0, "vstart": 0, "vl": 16, "vtype": 0, "registers": bytes(512), **values})


def validate(*records: Record, after_ecall: bool = False) -> list[str]:
    return REGISTERS.validate(
        records,
        user_limit=1 << 38,
        is_executable=lambda address: CODE <= address < CODE + 4096,
        is_mapped=lambda address: False,
        syscall_before=lambda address: after_ecall,
    )


GOOD: list[list[Record]] = [
    [general()],
    [general(pc=CODE + 2, sp=1 << 38)],
    [general(gp=NONE, tp=NONE, ra=1 << 63)],  # registers like others
    [general(a0=NONE + 1 - 512, syscallno=63)],
    [general(a0=NONE + 1 - 512)],  # a value of the program's own
    [general(), floats(fcsr=0xFF)],
    [general(), floats(), vector(vcsr=7, vstart=127)],
    [general(), vector(**VILL_AND_ALL_ONES)],
    [general(), vector(vtype=0xC3, vl=128)],  # 8 bit, 8 registers, ta, ma
    [general(), vector(vlenb=1024, vtype=3 << 3 | 3, vl=1024, registers=bytes(32 * 1024))],
]
HOSTILE: list[tuple[list[Record], str]] = [
    ([general(pc=CODE + 1)], "pc"),
    ([general(pc=0)], "pc"),
    ([general(pc=1 << 63)], "pc"),
    ([general(sp=(1 << 38) + 16)], "sp"),
    ([general(sp=NONE)], "sp"),
    ([general(syscallno=1024)], "syscallno"),
    ([general(a0=NONE + 1 - 516, syscallno=101)], "a0"),
    ([general(), vector(vlenb=2, vl=0, registers=bytes(64))], "vlenb"),
    ([general(), vector(vlenb=24, registers=bytes(24 * 32))], "vlenb"),
    ([general(), vector(vlenb=2048, registers=bytes(32 * 1024))], "vlenb"),
    ([general(), vector(vcsr=8)], "vcsr"),
    ([general(), vector(vstart=128)], "vstart"),
    ([general(), vector(vl=17)], "vl"),
    ([general(), vector(vtype=ILLEGAL, vl=1)], "vl"),
    ([general(), vector(vtype=4, vl=0)], "vtype"),  # no such group of registers
    ([general(), vector(vtype=4 << 3, vl=0)], "vtype"),  # elements of 128 bits
    ([general(), vector(vtype=3 << 3 | 5, vl=0)], "vtype"),  # 64 bits of an eighth of a register of 128
    ([general(), vector(registers=bytes(511))], "registers"),
    ([general(), vector(registers=b"")], "registers"),
]
HOSTILE += [([general(), floats(fcsr=1 << bit)], "fcsr") for bit in range(8, 32)]
HOSTILE += [([general(), vector(vl=0, vtype=1 << bit)], "vtype") for bit in range(8, 63)]


def test_every_record_and_field_has_a_rule() -> None:
    assert RULES.keys() == STATE_OF.keys()
    for record, rules in RULES.items():
        assert list(rules) == [field.name for field in record.declared]


def test_numbers_are_bits() -> None:
    assert [state.record.type_number for state in STATES] == [0x1400 + state.bit for state in STATES]


@pytest.mark.parametrize("records", GOOD, ids=range(len(GOOD)))
def test_what_programs_have_is_taken(records: list[Record]) -> None:
    assert validate(*records, after_ecall=True) == []


@pytest.mark.parametrize(("records", "name"), HOSTILE, ids=[f"{name}-{n}" for n, (_, name) in enumerate(HOSTILE)])
def test_hostile_values_are_named(records: list[Record], name: str) -> None:
    faults = validate(*records)
    assert faults and faults[0].startswith(f"register {name} "), faults
    assert len(faults) == 1 or name in ("vlenb", "vtype"), faults  # others are measured by these


def test_records_in_order_and_once() -> None:
    assert validate() and validate(floats()) and validate(general(), general()) and validate(general(), vector(), floats())


@pytest.mark.parametrize("vlenb", [4, 16, 32, 128, 1024])
def test_elements_in_a_group(vlenb: int) -> None:
    """The manual, V, 3.4: VLMAX = LMUL * VLEN / SEW; an LMUL of 4 and a SEW above 64 are reserved."""
    for vtype in range(256):
        group, size = vtype & 7, vtype >> 3 & 7
        if group == 4 or size > 3:
            assert elements(vtype, vlenb) == 0
        else:
            times = {0: 1.0, 1: 2.0, 2: 4.0, 3: 8.0, 5: 1 / 8, 6: 1 / 4, 7: 1 / 2}[group]
            assert elements(vtype, vlenb) == int(times * 8 * vlenb / (8 << size)), vtype


# --- the register set of vectors


def regset(vlenb: int, vtype: int = 0) -> bytes:
    return VECTOR.pack(1, 2, vtype, 3, vlenb) + bytes(range(256)) * (vlenb // 8)


def uname(*, machine: str = "riscv64", release: str = "") -> os.uname_result:
    return os.uname_result(("Linux", "here", release, "#1", machine))


def asked(monkeypatch: pytest.MonkeyPatch, vectors: bytes | int, others: bytes = b"") -> None:
    """Let the kernel answer a read of the vectors with these or with an error, of newer sets with `others`."""

    def answer(tid: int, note: int) -> bytes:
        if note == 1:
            return bytes(256)
        if note == registers.NT_PRFPREG:
            return bytes(264)
        if note != registers.NT_RISCV_VECTOR:
            return others
        if isinstance(vectors, int):
            raise OSError(vectors, "no")
        return vectors.ljust(65536, b"\xee")  # all the room that it was given

    monkeypatch.setattr(ptrace, "get_regset", answer)
    monkeypatch.setattr(os, "uname", lambda: uname(release="6.12.9-x"))
    monkeypatch.setattr(cpu, "_header", header("c d v"))


@pytest.mark.parametrize("vlenb", [16, 32, 256, 1024])
def test_vectors_are_read_as_long_as_they_are(monkeypatch: pytest.MonkeyPatch, vlenb: int) -> None:
    asked(monkeypatch, regset(vlenb))
    _, found = REGISTERS.read(1)
    assert isinstance(found, Riscv64Vector)
    assert (found.vstart, found.vl, found.vtype, found.vcsr, found.vlenb) == (1, 2, 0, 3, vlenb)
    assert found.registers == regset(vlenb)[40:]
    assert REGISTERS.dropped_by_calls(1) == regset(vlenb)
    assert REGISTERS.mask(REGISTERS.read(1)) == 1 | 1 << 5


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENODEV, errno.ENODATA])
def test_thread_without_vectors(monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    asked(monkeypatch, error)
    assert REGISTERS.mask(REGISTERS.read(1)) == 1
    assert REGISTERS.dropped_by_calls(1) == b""
    assert REGISTERS.room(REGISTERS.read(1)) is None
    assert REGISTERS.room([general(), vector()]) is not None


def test_what_cannot_be_saved_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked(monkeypatch, errno.EINVAL, others=(1).to_bytes(8, "little"))
    with pytest.raises(Unsupported, match="pointer masking"):
        REGISTERS.read(1)
    asked(monkeypatch, VECTOR.pack(0, 0, 0, 0, 2048))
    with pytest.raises(Unsupported, match="2048 bytes"):
        REGISTERS.read(1)
    asked(monkeypatch, regset(16))
    monkeypatch.setattr(cpu, "_header", header("c d xtheadvector"))
    with pytest.raises(Unsupported, match=r"before RVV 1\.0"):
        REGISTERS.read(1)
    monkeypatch.setattr(os, "uname", lambda: uname(release="6.5.0-rc3"))
    with pytest.raises(Unsupported, match=r"Linux 6\.5 does not tell"):
        REGISTERS.read(1)


def test_newer_kernels_take_no_illegal_type(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[int, ...]] = []

    def take(tid: int, note: int, data: bytes) -> None:
        if VECTOR.unpack_from(data)[2] == ILLEGAL:
            raise OSError(errno.EINVAL, "no")
        written.append((*VECTOR.unpack_from(data), len(data)))

    monkeypatch.setattr(ptrace, "set_regset", take)
    REGISTERS.give_dropped(1, regset(16, ILLEGAL))
    assert written == [(1, 2, 0, 3, 16, 40 + 512)]


# --- which CPU


def header(features: str, vlenb: int = 0, bits: int = 47) -> cpu.Riscv64Header:
    return cpu.Riscv64Header(features=features, model="? 0x0 0x70216 0x70216", hwcap=0, vlenb=vlenb, address_bits=bits)


PLAIN = "rv64imafdc_zicntr_zicsr_zba"
VECTORS = "rv64imafdcvh_zicntr_zicsr_zba_zve32x_zve32f_zve64x_zve64f_zve64d_sstc"


def test_described_by_cpuinfo() -> None:
    found = cpu.described({"isa": VECTORS, "mmu": "sv39", "marchid": "0x1", "uarch": "sifive,u74"})
    assert found.features.split() == sorted("i m a f d c v zca zcd zicntr zicsr zba zve32x zve32f zve64x zve64f zve64d".split())
    assert (found.model, found.address_bits) == ("sifive,u74 ? 0x1 ?", 38)
    assert cpu.described({"isa": "rv64imafdcv_zicntr_zicsr_zba"}).features == found.features  # as older kernels put it
    assert "zca" not in cpu.described({"isa": "rv64imafd"}).features
    for other in ("", "rv32imafdc"):
        with pytest.raises(UsageError):
            cpu.described({"isa": other, "Features": "fp asimd"})


def test_verdict() -> None:
    old, new = cpu.described({"isa": PLAIN}), cpu.described({"isa": VECTORS})
    used = 1 << STATE_OF[Riscv64General].bit | 1 << STATE_OF[Riscv64Float].bit
    assert cpu.verdict(old, used, here=new) == []
    (lacking,) = cpu.verdict(new, used, here=old)
    assert lacking.startswith("v, zve32f, zve32x") and "offered to the program" in lacking
    assert cpu.verdict(new, used, here=old, cpu="used") == []
    vectors = used | 1 << STATE_OF[Riscv64Vector].bit
    (in_use,) = cpu.verdict(new, vectors, here=old, cpu="used")
    assert "vector registers (V) are in use" in in_use
    assert cpu.verdict(new, vectors, here=new) == []
    (floating,) = cpu.verdict(old, used, here=cpu.described({"isa": "rv64imac_zicntr_zicsr_zba"}), cpu="used")
    assert floating.startswith("d: its floating point registers are in use")
    (unknown,) = cpu.verdict(old, used | 1 << 1, here=old)
    assert "bits 1" in unknown


def test_vectors_of_another_length() -> None:
    short, long = header("v zve32x", 16), header("v zve32x", 32)
    (refused,) = cpu.verdict(short, 1, here=long)
    assert "16 bytes" in refused and "32 here" in refused
    assert cpu.verdict(short, 1, here=long, cpu="used") == []
    assert cpu.verdict(short, 1 | 1 << STATE_OF[Riscv64Vector].bit, here=long, cpu="used")
    assert cpu.verdict(short, 1, here=header("v zve32x")) == []  # not known of a copy of /proc/cpuinfo


def test_shorter_addresses() -> None:
    (refused,) = cpu.verdict(header("c", bits=56), 1, here=header("c", bits=38), cpu="used")
    assert "47 bits" in refused and "here of 38" in refused
    for there, here in ((56, 47), (38, 56), (47, 47), (56, 0), (0, 38)):
        assert cpu.verdict(header("c", bits=there), 1, here=header("c", bits=here)) == []


@pytest.mark.parametrize(("frame", "vlenb"), [(1664, 16), (2176, 32), (1088 + 64 + 32 * 1024, 1024), (1088, 0), (0, 0)])
def test_length_of_vectors_by_that_of_a_signal_frame(monkeypatch: pytest.MonkeyPatch, frame: int, vlenb: int) -> None:
    """1664 is what Linux 6.12 says of registers of 128 bits."""
    monkeypatch.setattr(procfs, "cpuinfo", lambda: {"isa": VECTORS, "mmu": "sv57"})
    monkeypatch.setattr(cpu, "_auxv", lambda: {16: 0x20112D, 51: frame})
    found = cpu._ask()
    assert (found.vlenb, found.hwcap, found.address_bits) == (vlenb, 0x20112D, 56)


def test_user_memory_ends_where_it_does_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_header", header("c", bits=38))
    for machine, limit in (("riscv64", 1 << 38), ("x86_64", 1 << 56)):
        monkeypatch.setattr(os, "uname", lambda machine=machine: uname(machine=machine))
        assert cpu.user_limit() == limit

"""AArch64 on any host: every field of every register record has a rule, and hostile values are named (R-D1, R-B5)."""

from __future__ import annotations

from typing import Any

import pytest

from torpor.arch.arm64 import KINDS, cpu
from torpor.arch.arm64.registers import REGISTERS
from torpor.arch.arm64.rules import RULES, sve_size
from torpor.arch.arm64.state import (
    STATE_OF,
    STATES,
    Arm64AddressKeys,
    Arm64EnabledKeys,
    Arm64General,
    Arm64GenericKey,
    Arm64Sve,
    Arm64TaggedAddresses,
    Arm64Tls,
    Arm64Vector,
)
from torpor.arch.rewinding import NONE
from torpor.image.record import Record

CODE, STACK = 0x40_0000, 0xFFFF_F000_0000
KIND = KINDS[0]


def general(**values: int) -> Arm64General:
    at_rest = dict.fromkeys((field.name for field in Arm64General.declared), 0)
    return Arm64General(**{**at_rest, "pc": CODE, "sp": STACK, "syscallno": NONE, **values})


def vector(**values: Any) -> Arm64Vector:
    return Arm64Vector(**{"v": bytes(512), "fpsr": 0, "fpcr": 0, **values})


def validate(*records: Record, after_svc: bool = False) -> list[str]:
    return REGISTERS.validate(
        records,
        user_limit=KIND.user_limit,
        is_executable=lambda address: CODE <= address < CODE + 4096,
        is_mapped=lambda address: False,
        syscall_before=lambda address: after_svc,
    )


GOOD: list[list[Record]] = [
    [general()],
    [general(pstate=0xF000_0000 | 1 << 12 | 1 << 24)],
    [general(x0=NONE + 1 - 512, syscallno=63)],
    [general(x0=NONE + 1 - 512)],  # a value of the program's own
    [general(sp=KIND.user_limit), Arm64Tls(tpidr=0x1234_5678, tpidr2=0), vector(fpcr=0x07C0_0000, fpsr=0x0800_009F)],
    [general(), Arm64Sve(length=32, flags=3, registers=b"")],
    [general(), Arm64Sve(length=64, flags=0, registers=bytes(sve_size(64)))],
    [general(), Arm64AddressKeys(keys=[NONE] * 8), Arm64GenericKey(keys=[1, 2]), Arm64TaggedAddresses(control=1)],
    [general(), Arm64EnabledKeys(keys=5)],
]
HOSTILE: list[tuple[list[Record], str]] = [
    ([general(pc=CODE + 2)], "pc"),
    ([general(pc=0)], "pc"),
    ([general(pc=1 << 63)], "pc"),
    ([general(sp=KIND.user_limit + 16)], "sp"),
    ([general(sp=NONE)], "sp"),
    ([general(syscallno=1024)], "syscallno"),
    ([general(x0=NONE + 1 - 516, syscallno=101)], "x0"),
    ([general(), Arm64Tls(tpidr=NONE, tpidr2=0)], "tpidr"),
    ([general(), vector(fpcr=1 << 31)], "fpcr"),
    ([general(), vector(fpsr=1 << 8)], "fpsr"),
    ([general(), Arm64Sve(length=0, flags=0, registers=b"")], "length"),
    ([general(), Arm64Sve(length=17, flags=0, registers=b"")], "length"),
    ([general(), Arm64Sve(length=32, flags=4, registers=b"")], "flags"),
    ([general(), Arm64Sve(length=32, flags=0, registers=bytes(sve_size(16)))], "registers"),
    ([general(), Arm64AddressKeys(keys=[1])], "keys"),
    ([general(), Arm64GenericKey(keys=[])], "keys"),
    ([general(), Arm64TaggedAddresses(control=3)], "control"),
    ([general(), Arm64EnabledKeys(keys=16)], "keys"),
]

HOSTILE += [([general(pstate=1 << bit)], "pstate") for bit in range(64) if not 0xF300_1C00 >> bit & 1]


def test_every_record_and_field_has_a_rule() -> None:
    assert RULES.keys() == STATE_OF.keys()
    for record, rules in RULES.items():
        assert list(rules) == [field.name for field in record.declared]


def test_numbers_are_bits() -> None:
    assert [state.record.type_number for state in STATES] == [0x1100 + state.bit for state in STATES]


@pytest.mark.parametrize("records", GOOD, ids=range(len(GOOD)))
def test_what_programs_have_is_taken(records: list[Record]) -> None:
    assert validate(*records, after_svc=True) == []


@pytest.mark.parametrize(("records", "name"), HOSTILE, ids=[f"{name}-{n}" for n, (_, name) in enumerate(HOSTILE)])
def test_hostile_values_are_named(records: list[Record], name: str) -> None:
    faults = validate(*records)
    assert len(faults) == 1, faults
    assert faults[0].startswith(f"register {name} ")


def test_records_in_order_and_once() -> None:
    assert (
        validate()
        and validate(vector())
        and validate(general(), general())
        and validate(general(), vector(), Arm64Tls(tpidr=1, tpidr2=0))
    )


@pytest.mark.parametrize("length", [16, 32, 48, 64, 128, 256])
def test_size_of_the_scalable_registers(length: int) -> None:
    """asm/ptrace.h: z, p and ffr behind a header of 16 bytes, then fpsr at the next multiple of 16, all of it rounded up."""
    behind = 16 + 32 * length + 16 * (length // 8) + length // 8
    fpsr = -(-behind // 16) * 16
    assert sve_size(length) == -(-(fpsr + 8 - 16) // 16) * 16


def header(features: str, sve: int = 0) -> cpu.Arm64Header:
    return cpu.Arm64Header(features=features, model="0x41 0xd07 0x1 0", hwcap=[], sve_length=sve)


def test_verdict() -> None:
    old, new = header("asimd fp"), header("asimd fp paca pacg sve", 32)
    used = 1 << STATE_OF[Arm64General].bit | 1 << STATE_OF[Arm64Vector].bit
    assert cpu.verdict(old, used, here=new) == []
    (lacking,) = cpu.verdict(new, used, here=old)
    assert lacking.startswith("paca, pacg, sve: offered")
    assert cpu.verdict(new, used, here=old, cpu="used") == []
    assert cpu.verdict(new, used | 1 << STATE_OF[Arm64AddressKeys].bit, here=old, cpu="used") == []
    (vectors,) = cpu.verdict(new, used | 1 << STATE_OF[Arm64Sve].bit, here=old, cpu="used")
    assert vectors.startswith("sve: its scalable vectors are in use")
    (length,) = cpu.verdict(new, used, here=header(new.features, 64))
    assert "32 bytes" in length and "64 here" in length
    assert cpu.verdict(new, used, here=header(new.features, 64), cpu="used") == []
    assert cpu.verdict(new, used | 1 << STATE_OF[Arm64Sve].bit, here=header(new.features, 64), cpu="used")
    (unknown,) = cpu.verdict(old, used | 1 << 1, here=old)
    assert "bits 1" in unknown


def test_described_by_cpuinfo() -> None:
    found = cpu.described({"Features": "fp asimd evtstrm cpuid", "CPU part": "0xd07", "CPU implementer": "0x41"})
    assert (found.features, found.model) == ("asimd fp", "0x41 0xd07 ? ?")

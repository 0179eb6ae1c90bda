"""32-bit ARM on any host: every field of every register record has a rule, and hostile values are named (R-C4, R-D1, R-B5)."""

from __future__ import annotations

from typing import Any

import pytest

from torpor.arch.arm import KINDS, cpu
from torpor.arch.arm.registers import REGISTERS
from torpor.arch.arm.rules import IT, NONE, RULES, THUMB, USER_MODE
from torpor.arch.arm.state import STATE_OF, STATES, ArmGeneral, ArmTls, ArmVfp, ArmVfpHigh
from torpor.errors import UsageError
from torpor.image.record import Record

CODE, STACK = 0x1_0000, 0xBEFF_0000
KIND = KINDS[0]
TAKEN = 0xFE0F_FE30 | 1 << 21 | 1 << 23
"""What of CPSR a program can have: N Z C V Q, IT, GE, E, T, the mode; DIT and SSBS of ARMv8."""


def general(**values: int) -> ArmGeneral:
    at_rest = dict.fromkeys((field.name for field in ArmGeneral.declared), 0)
    return ArmGeneral(**{**at_rest, "pc": CODE, "sp": STACK, "cpsr": USER_MODE, "syscallno": NONE, **values})


def vfp(**values: Any) -> ArmVfp:
    return ArmVfp(**{"d": bytes(128), "fpscr": 0, **values})


def validate(*records: Record, after_svc: bool = False) -> list[str]:
    return REGISTERS.validate(
        records,
        user_limit=0xBF00_0000,
        is_executable=lambda address: CODE <= address < CODE + 4096,
        is_mapped=lambda address: False,
        syscall_before=lambda address: after_svc,
    )


GOOD: list[list[Record]] = [
    [general()],
    [general(pc=CODE + 2, cpsr=0xFE0F_FE30)],
    [general(cpsr=0xF80F_0210, pc=CODE + 4)],
    [general(r0=NONE + 1 - 512, syscallno=3)],
    [general(r0=NONE + 1 - 512)],  # a value of the program's own
    [general(sp=0xBF00_0000), ArmTls(tp=NONE), vfp(fpscr=0xFFC0_009F), ArmVfpHigh(d=b"\xff" * 128)],
    [general(), ArmVfpHigh(d=bytes(128))],
]
HOSTILE: list[tuple[list[Record], str]] = [
    ([general(pc=CODE + 2)], "pc"),
    ([general(pc=CODE + 1, cpsr=USER_MODE | THUMB)], "pc"),
    ([general(pc=0)], "pc"),
    ([general(pc=0xFFFF_0FE0)], "pc"),
    ([general(sp=0xBF00_0004)], "sp"),
    ([general(sp=NONE)], "sp"),
    ([general(syscallno=1024)], "syscallno"),
    ([general(syscallno=0x0F_0005)], "syscallno"),
    ([general(syscallno=0x90_0001)], "syscallno"),  # OABI
    ([general(r0=NONE + 1 - 516, syscallno=162)], "r0"),
    ([general(cpsr=0)], "cpsr"),
    ([general(cpsr=THUMB)], "cpsr"),
    ([general(), vfp(fpscr=1 << 5)], "fpscr"),
    ([general(), vfp(fpscr=1 << 14)], "fpscr"),
]
HOSTILE += [([general(cpsr=USER_MODE | mode)], "cpsr") for mode in range(1, 16)]
HOSTILE += [([general(cpsr=USER_MODE | THUMB | 1 << bit)], "cpsr") for bit in range(5, 32) if not TAKEN >> bit & 1]
HOSTILE += [([general(cpsr=USER_MODE | 1 << bit)], "cpsr") for bit in range(32) if IT >> bit & 1]


def test_every_record_and_field_has_a_rule() -> None:
    assert RULES.keys() == STATE_OF.keys()
    for record, rules in RULES.items():
        assert list(rules) == [field.name for field in record.declared]


def test_numbers_are_bits() -> None:
    assert [state.record.type_number for state in STATES] == [0x1500 + state.bit for state in STATES]


@pytest.mark.parametrize("records", GOOD, ids=range(len(GOOD)))
def test_what_programs_have_is_taken(records: list[Record]) -> None:
    assert validate(*records, after_svc=True) == []


@pytest.mark.parametrize(("records", "name"), HOSTILE, ids=[f"{name}-{n}" for n, (_, name) in enumerate(HOSTILE)])
def test_hostile_values_are_named(records: list[Record], name: str) -> None:
    faults = validate(*records)
    assert len(faults) == 1, faults
    assert faults[0].startswith(f"register {name} ")


def test_jazelle_and_thumbee_are_called_so() -> None:
    for thumb in (0, THUMB):
        (fault,) = validate(general(cpsr=USER_MODE | thumb | 1 << 24))
        assert "Jazelle or ThumbEE" in fault


def test_records_in_order_and_once() -> None:
    assert validate() and validate(vfp()) and validate(general(), general())
    assert validate(general(), vfp(), ArmTls(tp=1)) and validate(general(), ArmVfpHigh(d=bytes(128)), vfp())


OLD = "edsp fastmult half thumb vfp vfpv3"
NEW = f"{OLD} neon vfpd32 vfpv4"


def header(features: str, isa: int = 7, **more: int) -> cpu.ArmHeader:
    return cpu.ArmHeader(isa=isa, features=features, model="0x41 0xc0f 0x4 0", **more)


def bits(*records: type[Record]) -> int:
    return sum(1 << STATE_OF[record].bit for record in records)


def test_verdict() -> None:
    used = bits(ArmGeneral, ArmTls, ArmVfp)
    old, new = header(OLD), header(NEW)
    assert cpu.verdict(old, used, here=new) == []
    (lacking,) = cpu.verdict(new, used, here=old)
    assert lacking.startswith("neon, vfpd32, vfpv4: offered")
    assert cpu.verdict(new, used, here=old, cpu="used") == []
    (upper,) = cpu.verdict(new, used | bits(ArmVfpHigh), here=old, cpu="used")
    assert upper.startswith("neon: its upper floating point registers are in use")
    (upper,) = cpu.verdict(new, used | bits(ArmVfpHigh), here=header(f"{OLD} vfpd32"), cpu="used")
    assert upper.startswith("neon: its upper floating point registers are in use")
    (upper,) = cpu.verdict(header(f"{OLD} vfpd32"), used | bits(ArmVfpHigh), here=old, cpu="used")
    assert upper.startswith("vfpd32: its upper floating point registers are in use")
    (none,) = cpu.verdict(old, used, here=header("half thumb"), cpu="used")
    assert none.startswith("vfp: its floating point registers are in use")
    (unknown,) = cpu.verdict(old, used | 1 << 4, here=old)
    assert "bits 4" in unknown


def test_newer_instruction_set_is_welcome_an_older_one_refused() -> None:
    used = bits(ArmGeneral)
    assert cpu.verdict(header(OLD, 6), used, here=header(OLD, 7)) == []
    assert cpu.verdict(header(OLD, 7), used, here=header(OLD, 8)) == []
    for mode in ("same", "used"):
        (older,) = cpu.verdict(header(OLD, 7), used, here=header(OLD, 6), cpu=mode)
        assert older.startswith("ARMv7: ") and "version 6" in older


def test_what_cannot_be_honoured_is_refused_whatever_the_cpu() -> None:
    used = bits(ArmGeneral)
    for mode in ("same", "used"):
        (nommu,) = cpu.verdict(header(OLD, mmu=0), used, here=header(NEW), cpu=mode)
        assert "memory management unit" in nommu
        (thumbee,) = cpu.verdict(header(OLD, thumbee=0x1000), used, here=header(NEW), cpu=mode)
        assert thumbee.startswith("thumbee: ")


def test_described_by_cpuinfo() -> None:
    lines = {"Features": "half thumb vfp neon evtstrm", "CPU architecture": "7", "CPU part": "0xc0f", "CPU implementer": "0x41"}
    found = cpu.described(lines)
    assert (found.isa, found.features, found.model) == (7, "half neon thumb vfp vfpd32", "0x41 0xc0f ? ?")
    assert (found.mmu, found.thumbee) == (1, 0)
    assert cpu.described({**lines, "CPU architecture": "5TEJ"}).isa == 5
    for other in ({"Features": "fp asimd evtstrm", "CPU architecture": "8"}, {"flags": "sse2"}, {"Features": "half"}):
        with pytest.raises(UsageError):
            cpu.described(other)

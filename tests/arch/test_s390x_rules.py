"""s390x on any host: every field of every register record has a rule, and hostile values are named (R-D1, R-B5)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import ROOT
from torpor.arch.s390x import KINDS, cpu
from torpor.arch.s390x.registers import REGISTERS
from torpor.arch.s390x.rules import NONE, PSW_KEPT, RULES
from torpor.arch.s390x.state import (
    STATE_OF,
    STATES,
    S390xAccess,
    S390xFloat,
    S390xGeneral,
    S390xVectorHigh,
    S390xVectorLow,
)
from torpor.errors import UsageError
from torpor.image.record import Record

CODE, STACK = 0x100_0000, 0x3FF_FFF0_0000
KIND = KINDS[0]


def general(**values: int) -> S390xGeneral:
    at_rest = dict.fromkeys((field.name for field in S390xGeneral.declared), 0)
    return S390xGeneral(**{**at_rest, "psw_addr": CODE, "r15": STACK, "system_call": NONE, "svc_length": 2, **values})


def floats(**values: Any) -> S390xFloat:
    return S390xFloat(**{"fpc": 0, "fprs": [0] * 16, **values})


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
    [general(psw_mask=PSW_KEPT, r0=NONE, r1=NONE, orig_gpr2=NONE)],
    [general(r2=NONE + 1 - 512, system_call=3)],
    [general(r2=NONE + 1 - 516, system_call=7, svc_length=4)],
    [general(r2=NONE + 1 - 512)],  # a value of the program's own
    [general(r15=KIND.user_limit), S390xAccess(acrs=[(1 << 32) - 1] * 16), floats(fpc=0xFCFC_FF73, fprs=[NONE] * 16)],
    [general(), floats(fpc=7), S390xVectorLow(vxrs=[NONE] * 16), S390xVectorHigh(vxrs=b"\xff" * 256)],
]
HOSTILE: list[tuple[list[Record], str]] = [
    ([general(psw_addr=CODE + 1)], "psw_addr"),
    ([general(psw_addr=0)], "psw_addr"),
    ([general(psw_addr=1 << 63)], "psw_addr"),
    ([general(r15=NONE)], "r15"),
    ([general(system_call=1024)], "system_call"),
    ([general(system_call=1 << 16)], "system_call"),
    ([general(r2=NONE + 1 - 516, system_call=162)], "r2"),
    ([general(svc_length=0)], "svc_length"),
    ([general(svc_length=3)], "svc_length"),
    ([general(svc_length=255)], "svc_length"),
    ([general(), S390xAccess(acrs=[0] * 15)], "acrs"),
    ([general(), floats(fprs=[])], "fprs"),
    ([general(), S390xVectorLow(vxrs=[0] * 8)], "vxrs"),
]
HOSTILE += [([general(psw_mask=1 << bit)], "psw_mask") for bit in range(64) if not PSW_KEPT >> bit & 1]
HOSTILE += [([general(), floats(fpc=1 << bit)], "fpc") for bit in range(32) if not 0xFCFC_FF77 >> bit & 1]
HOSTILE += [([general(), floats(fpc=rounding)], "fpc") for rounding in (4, 5, 6)]


def test_every_record_and_field_has_a_rule() -> None:
    assert RULES.keys() == STATE_OF.keys()
    for record, rules in RULES.items():
        assert list(rules) == [field.name for field in record.declared]


def test_numbers_are_bits() -> None:
    assert [state.record.type_number for state in STATES] == [0x1300 + state.bit for state in STATES]


@pytest.mark.parametrize("records", GOOD, ids=range(len(GOOD)))
def test_what_programs_have_is_taken(records: list[Record]) -> None:
    assert validate(*records, after_svc=True) == []


@pytest.mark.parametrize(("records", "name"), HOSTILE, ids=[f"{name}-{n}" for n, (_, name) in enumerate(HOSTILE)])
def test_hostile_values_are_named(records: list[Record], name: str) -> None:
    faults = validate(*records)
    assert len(faults) == 1, faults
    assert faults[0].startswith(f"register {name} ")


def test_records_in_order_and_once() -> None:
    assert validate() and validate(floats()) and validate(general(), general())
    assert validate(general(), floats(), S390xAccess(acrs=[1] * 16))


def header(features: str) -> cpu.S390xHeader:
    return cpu.S390xHeader(features=features, model="IBM/S390 8561", hwcap=[])


def test_verdict() -> None:
    old, new = header("esan3 zarch"), header("esan3 zarch vx vxe facility129")
    used = 1 << STATE_OF[S390xGeneral].bit | 1 << STATE_OF[S390xFloat].bit
    assert cpu.verdict(old, used, here=new) == []
    (lacking,) = cpu.verdict(new, used, here=old)
    assert lacking.startswith("facility129, vx, vxe: offered")
    assert cpu.verdict(new, used, here=old, cpu="used") == []
    for state in (S390xVectorLow, S390xVectorHigh):
        (vectors,) = cpu.verdict(new, used | 1 << STATE_OF[state].bit, here=old, cpu="used")
        assert vectors.startswith("vx: its vector registers")
    (unknown,) = cpu.verdict(old, used | 1 << 9, here=old)
    assert "bits 9" in unknown


def test_the_documents_table_is_this_one() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    for state in STATES:
        needs = f"`{state.feature}`" if state.feature else ""
        assert f"| {state.bit} | `{state.record.__name__}` | {state.title} | {needs} |" in page


def test_described_by_cpuinfo() -> None:
    lines = {"features": "esan3 zarch vx sie", "facilities": "0 8 129 17"}
    assert cpu.described(lines).model == ""
    lines |= {"vendor_id": "IBM/S390", "processor 0": "version = 00,  identification = 000000,  machine = 8561"}
    found = cpu.described(lines)
    assert (found.features, found.model) == ("esan3 vx zarch facility0 facility17 facility129", "IBM/S390 8561")
    with pytest.raises(UsageError):
        cpu.described({"Features": "fp asimd"})

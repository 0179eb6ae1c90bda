"""PowerPC on any host: every field of every register record has a rule, and hostile values are named (R-D1, R-B5, R-C3)."""

from __future__ import annotations

from typing import Any

import pytest

from torpor.arch.powerpc import KINDS, cpu
from torpor.arch.powerpc.registers import JAVA_MODE
from torpor.arch.powerpc.rules import FPSCR, RULES, SF, SYSCALL, VECTORED
from torpor.arch.powerpc.state import (
    STATE_OF,
    STATES,
    PowerAltivec,
    PowerBooke,
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
from torpor.errors import UsageError
from torpor.image.record import Record

CODE, STACK = 0x1000_0000, 0x7FFF_F000
NONE, NONE_32 = (1 << 64) - 1, (1 << 32) - 1
LE, BE, NARROW = KINDS


def general(**values: int) -> PowerGeneral64:
    at_rest = dict.fromkeys((field.name for field in PowerGeneral64.declared), 0)
    return PowerGeneral64(**{**at_rest, "nip": CODE, "r1": STACK, "msr": SF, "call": NONE, **values})


def narrow(**values: int) -> PowerGeneral32:
    at_rest = dict.fromkeys((field.name for field in PowerGeneral32.declared), 0)
    return PowerGeneral32(**{**at_rest, "nip": CODE, "r1": STACK, "call": NONE_32, **values})


def floats(**values: Any) -> PowerFloat:
    return PowerFloat(**{"f": [0] * 32, "fpscr": 0, **values})


def vectors(**values: Any) -> PowerAltivec:
    return PowerAltivec(**{"v": bytes(512), "vscr": JAVA_MODE, "vrsave": 0, **values})


def validate(*records: Record, after_call: bool = False, kind: Any = None) -> list[str]:
    kind = kind or (NARROW if records and isinstance(records[0], PowerGeneral32) else LE)
    found: list[str] = kind.registers.validate(
        records,
        user_limit=kind.user_limit,
        is_executable=lambda address: CODE <= address < CODE + 4096,
        is_mapped=lambda address: False,
        syscall_before=lambda address: after_call,
    )
    return found


GOOD: list[list[Record]] = [
    [general()],
    [narrow()],
    [general(ccr=0xFFFF_FFFF, xer=NONE, ctr=NONE, link=NONE, r13=NONE, r0=NONE)],
    [general(r3=516, orig_r3=1, trap=SYSCALL, call=162, ccr=0x1000_0000)],
    [general(r3=NONE + 1 - 512, trap=VECTORED, call=3)],
    [narrow(r3=514, trap=SYSCALL, call=280, ccr=0x1000_0000)],
    [general(r3=512)],  # a value of the program's own
    [general(r1=LE.user_limit), floats(f=[NONE] * 32, fpscr=FPSCR), vectors(v=bytes(range(256)) * 2, vscr=1, vrsave=NONE_32)],
    [narrow(), floats(fpscr=3), vectors(), PowerVsx(low=[NONE] * 32)],
    [general(), PowerTar(tar=NONE), PowerPriority(ppr=4 << 50), PowerDscr(dscr=0x1FF_FFFF), PowerFloatMode(mode=3)],
    [general(), PowerKeyRights(amr=NONE)],
    [narrow(), PowerVrsave(vrsave=NONE_32)],
    [narrow(), PowerSpe(evr=[NONE_32] * 32, acc=NONE, spefscr=NONE_32)],
]
HOSTILE: list[tuple[list[Record], str]] = [
    ([general(nip=CODE + 2)], "nip"),
    ([general(nip=0)], "nip"),
    ([general(nip=0xC000_0000_0000_0000)], "nip"),
    ([narrow(nip=0xC000_0000)], "nip"),
    ([general(r1=LE.user_limit + 16)], "r1"),
    ([general(r1=0xC000_0000_0000_0000)], "r1"),
    ([general(call=1024)], "call"),
    ([narrow(call=1024)], "call"),
    ([general(trap=0x700)], "trap"),
    ([general(trap=0xC01)], "trap"),
    ([narrow(trap=VECTORED)], "trap"),
    ([general(r3=516, trap=SYSCALL, call=162)], "r3"),
    ([general(r3=NONE + 1 - 516, trap=VECTORED, call=162)], "r3"),
    ([narrow(r3=513, trap=SYSCALL, call=162)], "r3"),
    ([general(), floats(fpscr=1 << 35)], "fpscr"),
    ([general(), floats(f=[0] * 31)], "f"),
    ([general(), vectors(vscr=2)], "vscr"),
    ([general(), PowerVsx(low=[0] * 33)], "low"),
    ([general(), PowerSpe(evr=[], acc=0, spefscr=0)], "evr"),
    ([general(), PowerPriority(ppr=0)], "ppr"),
    ([general(), PowerPriority(ppr=6 << 50)], "ppr"),
    ([general(), PowerPriority(ppr=7 << 50)], "ppr"),
    ([general(), PowerPriority(ppr=4 << 50 | 1)], "ppr"),
    ([general(), PowerDscr(dscr=1 << 25)], "dscr"),
    ([general(), PowerFloatMode(mode=0)], "mode"),
    ([general(), PowerFloatMode(mode=4)], "mode"),
    ([general(), PowerBooke(dbcr=[1, 0, 0], addresses=[0] * 6)], "dbcr"),
    ([general(), PowerBooke(dbcr=[0] * 3, addresses=[0] * 5 + [CODE])], "addresses"),
]
HOSTILE += [([general(msr=SF ^ 1 << bit)], "msr") for bit in range(64)]
HOSTILE += [([narrow(msr=1 << bit)], "msr") for bit in range(32)]


def test_every_record_and_field_has_a_rule() -> None:
    assert RULES.keys() == STATE_OF.keys()
    for record, rules in RULES.items():
        assert list(rules) == [field.name for field in record.declared]


def test_numbers_are_bits() -> None:
    assert [state.record.type_number for state in STATES] == [0x1200 + state.bit for state in STATES]


@pytest.mark.parametrize("records", GOOD, ids=range(len(GOOD)))
def test_what_programs_have_is_taken(records: list[Record]) -> None:
    assert validate(*records, after_call=True) == []


@pytest.mark.parametrize(("records", "name"), HOSTILE, ids=[f"{name}-{n}" for n, (_, name) in enumerate(HOSTILE)])
def test_hostile_values_are_named(records: list[Record], name: str) -> None:
    faults = validate(*records)
    assert len(faults) == 1, faults
    assert faults[0].startswith(f"register {name} ")


def test_records_in_order_and_once() -> None:
    assert validate() and validate(floats()) and validate(general(), general()) and validate(general(), vectors(), floats())
    assert validate(general(), narrow())  # of one width or the other
    assert validate(narrow(), kind=LE) and validate(general(), kind=NARROW)


def header(features: str) -> cpu.PowerHeader:
    return cpu.PowerHeader(features=features, model="POWER9", hwcap=[])


POWER9 = "altivec arch_2_06 arch_2_07 arch_3_00 fpu isel ppc32 ppc64 scv tar vsx"
BITS = {state.record: 1 << state.bit for state in STATES}
PLAIN = BITS[PowerGeneral64] | BITS[PowerFloat]


@pytest.mark.parametrize(
    ("there", "used", "here", "cpu_is", "refused"),
    [
        (POWER9, PLAIN, POWER9, "same", []),
        ("fpu power4 power5 arch_2_05 ppc64", PLAIN, POWER9, "same", []),  # what is newer can what is older could
        (POWER9, PLAIN, "altivec arch_2_06 fpu ppc32 ppc64 vsx", "same", ["arch_2_07, arch_3_00, isel, scv, tar: offered"]),
        (POWER9, PLAIN, "altivec arch_2_06 fpu ppc32 ppc64 vsx", "used", []),
        (POWER9, PLAIN | BITS[PowerTar], "fpu ppc64 vsx", "used", ["tar: its branch targets (TAR) are in use"]),
        (POWER9, PLAIN | BITS[PowerVsx] | BITS[PowerAltivec], "fpu ppc64", "used", ["altivec: its vector", "vsx: its vector"]),
        ("fpu ppc32 spe", BITS[PowerGeneral32] | BITS[PowerSpe], POWER9, "used", ["spe: its signal processing registers"]),
        ("booke fpu ppc32", BITS[PowerGeneral32] | BITS[PowerBooke], "booke fpu ppc32", "same", ["booke: hardware breakpoints"]),
        ("fpu ppc32", BITS[PowerGeneral32] | BITS[PowerFloat], "fpu ppc64", "used", ["ppc32: its 32-bit registers are in use"]),
        ("altivec fpu ppc32", BITS[PowerGeneral32] | BITS[PowerVrsave], "fpu ppc32", "used", []),
        (POWER9, PLAIN, "fpu ppc32", "used", ["ppc64: its 64-bit registers are in use"]),
        (POWER9, PLAIN | 1 << 2, POWER9, "same", ["the threads have register records of kinds"]),
    ],
)
def test_verdict(there: str, used: int, here: str, cpu_is: str, refused: list[str]) -> None:
    found = cpu.verdict(header(there), used, here=header(here), cpu=cpu_is)
    assert len(found) == len(refused), found
    assert all(sentence.startswith(start) for sentence, start in zip(found, refused, strict=True)), found


def test_features_by_their_bits() -> None:
    assert cpu.named([0xDC0065C2, 0xBEF00000]) == set(
        "altivec arch_2_06 arch_2_07 arch_3_00 darn dfp dscr ebb fpu ieee128 isel ppc32 ppc64 scv tar true_le vcrypto vsx".split()
    )


@pytest.mark.parametrize(
    ("name", "has", "lacks"),
    [
        ("POWER9 (architected), altivec supported", "arch_3_00", "arch_3_1"),
        ("POWER10, altivec supported", "mma", "htm"),
        ("POWER8 (raw), altivec supported", "htm", "darn"),
        ("PPC970MP, altivec supported", "altivec", "vsx"),
        ("7400, altivec supported", "altivec", "ppc64"),
        ("7400, altivec supported", "ppcle", "ppc64"),
        ("740/750", "fpu", "altivec"),
    ],
)
def test_described_by_the_name_of_the_cpu(name: str, has: str, lacks: str) -> None:
    found = cpu.described({"cpu": name})
    assert found.model == name and has in found.features.split() and lacks not in found.features.split()


def test_a_cpu_that_nobody_knows() -> None:
    with pytest.raises(UsageError):
        cpu.described({"cpu": "Intel"})

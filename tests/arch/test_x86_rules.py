"""What registers of a restarted x86 thread may hold (R-D1): every rule refuses, and is no stricter than the kernel."""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.arch.x86_program import Child, build
from torpor.arch.rules import anything
from torpor.arch.x86 import cpu, registers, rules
from torpor.arch.x86.registers import REGISTERS_32, REGISTERS_64, X86Registers
from torpor.arch.x86.rules import RULES
from torpor.arch.x86.state import (
    STATE_OF,
    STATES,
    X87,
    X86Apx,
    X86Avx,
    X86BoundConfig,
    X86BoundRegisters,
    X86Debug,
    X86General32,
    X86General64,
    X86Opmask,
    X86Pkru,
    X86ShadowStack,
    X86Sse,
    X86TileConfig,
    X86TileData,
    X86Tls,
    X86TlsEntry,
    X86Zmm,
    X86ZmmHigh,
)
from torpor.arch.x86.xstate import Layout
from torpor.image.record import Record
from torpor.linux import ptrace

CODE, AFTER_CALL, DATA = 0x401000, 0x401100, 0x600000
LIMIT_64, LIMIT_32 = (1 << 47) - 4096, 0xFFFFE000
M64, M32 = (1 << 64) - 1, (1 << 32) - 1


def general_64(**changed: int) -> X86General64:
    regs = dict.fromkeys((field.name for field in X86General64.declared), 0)
    regs |= {"rip": CODE, "cs": 0x33, "ss": 0x2B, "rsp": DATA, "eflags": 0x246, "orig_rax": M64}
    return X86General64(**regs | changed)


def general_32(**changed: int) -> X86General32:
    regs = dict.fromkeys((field.name for field in X86General32.declared), 0)
    regs |= {"eip": CODE, "cs": 0x23, "ss": 0x2B, "ds": 0x2B, "es": 0x2B, "esp": DATA, "eflags": 0x246, "orig_eax": M32}
    return X86General32(**regs | changed)


def tls(*numbers: int, **changed: int) -> X86Tls:
    entry = {"base": 0x1000, "limit": 0xFFFFF, "flags": 0x51}
    return X86Tls(entries=[X86TlsEntry(entry=number, **entry | changed) for number in numbers])


def debug(**changed: int) -> X86Debug:
    return X86Debug(**{"dr0": 0x1000, "dr1": 0, "dr2": 0, "dr3": 0x2000, "dr6": 0xFFFF0FF0, "dr7": 0xD0001} | changed)


def x87(**changed: Any) -> X87:
    fields: dict[str, Any] = dict.fromkeys(("fcw", "fsw", "ftw", "fop", "fcs", "fds", "fip", "fdp"), 0)
    return X87(**fields | {"fcw": 0x37F, "fsw": 0x3800, "st": bytes(80)} | changed)


GOOD: list[Record] = [
    general_64(), general_32(), tls(12), debug(), x87(),
    X86Sse(mxcsr=0x1F80, xmm=bytes(256)), X86Avx(ymm_high=bytes(256)),
    X86Opmask(k=[M64] * 8), X86ZmmHigh(zmm_high=bytes(512)), X86Zmm(zmm=bytes(1024)), X86Pkru(pkru=M32),
    X86TileConfig(palette=1, start_row=15, columns=[64] * 8, rows=[16] * 8), X86TileData(tiles=bytes(8192)),
    X86ShadowStack(features=1, ssp=DATA), X86Apx(r=[M64] * 16),
]  # fmt: skip


def segments(kind: str) -> dict[str, list[Any]]:
    wrong = [0x10, 0x18, 7, 0x33 if kind != "cs" else 0x2B, 0x63, 0xFFFF, 0x1002B, 3]
    return {kind: wrong if kind in ("ds", "es", "fs", "gs") else [0, *wrong]}


# Wrong values for every field that has a rule, in an image that is otherwise in order.
HOSTILE: dict[type[Record], dict[str, list[Any]]] = {
    X86General64: {
        "rip": [0, CODE - 1, 1 << 47, 1 << 63, 0xFFFFFFFF81000000, M64],
        "rsp": [LIMIT_64 + 1, 1 << 47, 1 << 63, 0xFFFFFFFF81000000, M64],
        "fs_base": [LIMIT_64, 1 << 56, 1 << 63, M64],
        "gs_base": [LIMIT_64, 1 << 56, 1 << 63, M64],
        "eflags": [1 << bit for bit in range(64) if not rules.FLAGS >> bit & 1],
        "orig_rax": [1024, 1 << 31, 1 << 32, M32, 1 << 63, -512 & M64, 0x40000000],
        "rax": [],  # only beside a call number: below
        **segments("cs"), **segments("ss"), **segments("ds"), **segments("es"), **segments("fs"), **segments("gs"),
    },
    X86General32: {
        "eip": [0, CODE - 1, LIMIT_32, M32],
        "esp": [LIMIT_32 + 1, M32],
        "eflags": [1 << bit for bit in range(32) if not rules.FLAGS >> bit & 1],
        "orig_eax": [1024, 1 << 31, -512 & M32],
        "eax": [],
        **segments("cs"), **segments("ss"), **segments("ds"), **segments("es"), **segments("fs"), **segments("gs"),
    },
    X86Tls: {
        "entries": [
            [], tls(11).entries, tls(15).entries, tls(13, 12).entries, tls(12, 12).entries, tls(0).entries,
            tls(6).entries, tls(12, flags=0x50).entries, tls(12, flags=0x55).entries, tls(12, flags=0x57).entries,
            tls(12, flags=0x71).entries, tls(12, flags=0xD1).entries, tls(12, flags=0x100051).entries,
            tls(12, limit=1 << 20).entries,
        ],
    },
    X86Debug: {
        "dr0": [LIMIT_64, LIMIT_64 - 3, 1 << 63, M64, 0x1001],
        "dr1": [LIMIT_64, M64], "dr2": [LIMIT_64, M64], "dr3": [LIMIT_64, M64],
        "dr6": [1 << 12, 1 << 32, M64],
        "dr7": [*[1 << bit for bit in (11, 12, 13, 14, 15, 32, 63)], 0x20001, 0x40001, 0x80001, 0x20000002 | 1 << 6],
    },
    X87: {"fcw": [0x80, 0x2000, 0x4000, 0x8000], "ftw": [0x100, 0xFFFF], "fop": [0x800, 0xFFFF], "fip": [], "fdp": []},
    X86Sse: {"mxcsr": [0x10000, 0x20000, M32], "xmm": []},
    X86Avx: {"ymm_high": []},
    X86Opmask: {"k": [[0] * 7, []]},
    X86ZmmHigh: {"zmm_high": []},
    X86TileConfig: {
        "palette": [2, 255], "start_row": [16, 255],
        "columns": [[64] * 7, [65] * 8, []], "rows": [[16] * 7, [17] * 8, []],
    },
    X86ShadowStack: {"features": [0, 2, 4, M64], "ssp": [0, 4, DATA + 4, LIMIT_64, M64, 0x10000000]},
    X86BoundRegisters: {"bounds": [bytes(64)]},
    X86BoundConfig: {"bndcfgu": [1], "bndstatus": [1]},
    X86Apx: {"r": [[0] * 15, []]},
}  # fmt: skip


def judge(kind: X86Registers, records: Sequence[Record]) -> list[str]:
    return kind.validate(
        records,
        user_limit=LIMIT_64 if kind is REGISTERS_64 else LIMIT_32,
        is_executable=lambda address: CODE <= address < CODE + 4096,
        is_mapped=lambda address: CODE <= address < DATA + 4096,
        syscall_before=lambda address: address == AFTER_CALL,
    )


def complete(record: Record) -> tuple[X86Registers, list[Record]]:
    """A thread's records with `record` among them."""
    if isinstance(record, X86General64):
        return REGISTERS_64, [record]
    if isinstance(record, X86General32):
        return REGISTERS_32, [record]
    return REGISTERS_64, [general_64(), record]


def altered(record: Record, field: str, value: Any) -> Record:
    return type(record)(**{f.name: getattr(record, f.name) for f in record.declared} | {field: value})


def test_every_rule_is_tried() -> None:
    ruled = {
        (record, name) for record, row in RULES.items() for name, rule in row.items() if rule is not anything
    }
    assert ruled == {(record, name) for record, row in HOSTILE.items() for name in row}
    assert set(RULES) == {state.record for state in STATES} and len(STATES) == 17
    assert all(state.record.type_number == 0x1000 + state.bit for state in STATES)
    assert [state.bit for state in STATES] == list(range(len(STATES)))


@pytest.mark.parametrize("record", GOOD, ids=lambda record: type(record).__name__)
def test_good_records_pass(record: Record) -> None:
    kind, records = complete(record)
    assert judge(kind, records) == []


@pytest.mark.parametrize("record", HOSTILE, ids=lambda record: record.__name__)
def test_wrong_values_are_refused_by_name(record: type[Record]) -> None:
    good = next((r for r in GOOD if type(r) is record), None)
    if good is None:  # MPX: no value is good
        good = record(**{f.name: bytes(64) if f.name == "bounds" else 0 for f in record.declared})
    for field, values in HOSTILE[record].items():
        for value in values:
            kind, records = complete(altered(good, field, value))
            said = judge(kind, records)
            assert any(sentence.startswith(f"register {field} ") for sentence in said), (field, value, said)


def test_a_selector_needs_its_descriptor() -> None:
    for kind, general in ((REGISTERS_64, general_64), (REGISTERS_32, general_32)):
        for name in ("ds", "es", "fs", "gs"):
            assert judge(kind, [general(**{name: 0x6B}), tls(13)]) == []
            (said,) = judge(kind, [general(**{name: 0x6B}), tls(12)])
            assert said.startswith(f"register {name} 0x6b ")


def test_a_32_bit_kernels_numbering_hangs_together() -> None:
    other = {"cs": 0x73, "ss": 0x7B, "ds": 0x7B, "es": 0x7B, "gs": 0x33}
    assert judge(REGISTERS_32, [general_32(**other), tls(6)]) == []
    said = judge(REGISTERS_32, [general_32(**other), tls(12)])
    assert {s.split()[1] for s in said} == {"gs", "entries"}
    assert {s.split()[1] for s in judge(REGISTERS_32, [general_32(cs=0x73)])} == {"ss", "ds", "es"}
    assert {s.split()[1] for s in judge(REGISTERS_64, [general_64(cs=0x73)])} == {"cs"}


@pytest.mark.parametrize("code", [512, 513, 514, 515, 516])
def test_a_call_is_only_made_again_behind_a_call(code: int) -> None:
    assert judge(REGISTERS_64, [general_64(rax=-code & M64, orig_rax=230, rip=AFTER_CALL)]) == []
    assert judge(REGISTERS_64, [general_64(rax=-code & M64)]) == []
    (said,) = judge(REGISTERS_64, [general_64(rax=-code & M64, orig_rax=230)])
    assert said.startswith("register rax 0xffff")
    assert judge(REGISTERS_32, [general_32(eax=-code & M32, orig_eax=162, eip=AFTER_CALL)]) == []
    (said,) = judge(REGISTERS_32, [general_32(eax=-code & M32, orig_eax=162)])
    assert said.startswith("register eax 0xffff")


def test_the_list_itself() -> None:
    avx, sse = GOOD[6], GOOD[5]
    for records in (
        [], [sse], [general_32(), sse], [general_64(), general_32()], [general_64(), general_64()],
        [general_64(), avx, sse], [sse, general_64()], [general_64(), sse, sse], [general_64(), cpu.header()],
    ):  # fmt: skip
        assert judge(REGISTERS_64, records), records
    assert judge(REGISTERS_32, [general_64()])


def test_what_a_32_bit_kernel_cannot_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = Layout(2688, 0xE7, {}, wide=False)
    monkeypatch.setattr(cpu, "_host", cpu.Host([], "", [], narrow))
    upper = bytes(255) + b"\1"
    records: list[Record] = [
        general_32(), debug(dr7=0x90001), x87(fip=1 << 32, fdp=1 << 32), X86Sse(mxcsr=0x1F80, xmm=upper),
        X86Avx(ymm_high=upper), X86ZmmHigh(zmm_high=upper + upper),
    ]  # fmt: skip
    assert [s.split()[1] for s in judge(REGISTERS_32, records)] == ["dr7", "fip", "fdp", "xmm", "ymm_high", "zmm_high"]


# The same questions to the kernel.


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("x86"), 8)


def takes(action: Any) -> bool:
    try:
        action()
    except OSError as error:
        assert error.errno in (errno.EINVAL, errno.EIO)
        return False
    return True


def test_the_kernel_agrees_on_tls_descriptors(program: Path) -> None:
    """Whatever passes the rule is taken and read back as it was; what does not, the kernel takes neither."""
    with Child(program, 0, 0) as child:
        for flags in range(256):
            for limit in (0, 1, 0xFFFFF):
                entry = X86TlsEntry(entry=13, base=0x12345678, limit=limit, flags=flags)
                taken = takes(lambda entry=entry: REGISTERS_64._write_tls(child.tid, [entry]))
                good = rules.tls_fault(entry) is None
                assert taken == good or flags & 0x80  # the kernel drops the flag for long mode
                if good:
                    raw = REGISTERS_64._read_tls(child.tid)[16:32]
                    assert raw == struct.pack("<4I", 13, 0x12345678, limit, flags)


def test_the_kernel_agrees_on_breakpoints(program: Path) -> None:
    with Child(program, 0, 0) as child:
        for kind in range(4):
            for length in range(4):
                for address in (0x1000, 0x1001, 0x1004, LIMIT_64 - 8, LIMIT_64):
                    record = debug(dr0=address, dr3=0, dr7=1 | kind << 16 | length << 18)
                    given = [record.dr0, 0, 0, 0]
                    args = (child.tid, given, record.dr6, record.dr7)
                    taken = takes(lambda args=args: registers._write_debug(*args))
                    assert taken == (judge(REGISTERS_64, [general_64(), record]) == []), (kind, length, hex(address))
                    registers._write_debug(child.tid, [0, 0, 0, 0], None, 0)


def test_the_kernel_agrees_on_general_registers(program: Path) -> None:
    """What the kernel refuses (EIO) the rules refuse as well."""
    with Child(program, 0, 0) as child:
        start = REGISTERS_64.read_general(child.tid)
        for field, values in HOSTILE[X86General64].items():
            for value in [*values, *[1 << bit for bit in range(0, 64, 3)]]:
                if not takes(lambda f=field, v=value: REGISTERS_64.write_general(child.tid, start | {f: v})):
                    assert judge(REGISTERS_64, [general_64(**{field: value})])
                REGISTERS_64.write_general(child.tid, start)
        assert child.finish() == (0, "")


def test_the_kernel_agrees_on_mxcsr(program: Path) -> None:
    with Child(program, 0, 0) as child:
        layout = cpu.host().layout
        for bit in range(32):
            record = X86Sse(mxcsr=1 << bit, xmm=bytes(256))
            taken = takes(lambda record=record: REGISTERS_64.write(child.tid, [record]))
            assert taken == (judge(REGISTERS_64, [general_64(), record]) == []), bit
        assert len(ptrace.get_regset(child.tid, registers.NT_X86_XSTATE)) == layout.size


def test_state_table() -> None:
    assert {state.record for state in STATES} == set(STATE_OF)
    assert len({state.component for state in STATES if state.component >= 0}) == sum(s.component >= 0 for s in STATES)

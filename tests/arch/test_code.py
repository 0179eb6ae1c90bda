"""The machine code that torpor lends to tasks is what its sources say, and fits where it must lie."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tools import assemble
from torpor.arch import KINDS


@pytest.mark.parametrize("family", sorted(assemble.SOURCES))
def test_generated_code_is_what_the_sources_say(family: str) -> None:
    if not assemble.tool(family, "as"):
        pytest.skip(f"there is no assembler for it here (package binutils, or binutils-{assemble.TRIPLETS[family]})")
    assert (assemble.ARCH / family / "code.py").read_text() == assemble.render(family)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_variables_are_placed(kind: object) -> None:
    code = kind.code  # type: ignore[attr-defined]
    values = {name: 0x1122334455667788 + index for index, name in enumerate(code.variables)}
    placed = code.placed(0x7000, 0x9000, values)
    for name, value in values.items():
        width, at = code.variables[name], code.symbols[name]
        assert int.from_bytes(placed[at : at + width], sys.byteorder) == value & ((1 << 8 * width) - 1), name


def test_stub_is_a_program_that_execve_takes(tmp_path: Path) -> None:
    """Untraced, a stub maps its work area, notifies nobody, unmaps it and jumps to the address 0 that its registers hold."""
    for kind in KINDS:
        program = tmp_path / kind.name
        program.write_bytes(kind.stub(0x200000, 0x201000, 0x10000, {"v_signal": 23}))
        program.chmod(0o755)
        outcome = subprocess.run([program], check=False)
        assert outcome.returncode == -11, f"{kind.name}: {outcome.returncode}"


def test_readelf_finds_nothing_to_complain_about(tmp_path: Path) -> None:
    for kind in KINDS:
        program = tmp_path / kind.name
        program.write_bytes(kind.stub(0x200000, 0x201000, 0x10000, {}))
        shown = subprocess.run(["readelf", "-hlW", program], capture_output=True, text=True, check=True)
        assert not shown.stderr
        assert "EXEC (Executable file)" in shown.stdout and "0x00200000" in shown.stdout.replace("0x0000000000200000", "0x00200000")


def test_code_slots_and_a_note_fit_into_this_kernels_vdso() -> None:
    with open("/proc/self/maps") as file:
        line = next(line for line in file if "[vdso]" in line)
    start, end = (int(word, 16) for word in line.split()[0].split("-"))
    mem = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        head = os.pread(mem, 64, start)
    finally:
        os.close(mem)
    (table,) = struct.unpack_from("<Q", head, 40)
    size, count = struct.unpack_from("<HH", head, 58)
    kind = next(kind for kind in KINDS if kind.word == 8)
    needed = len(kind.code) + 16 + kind.slot_size * kind.slot_count + 24
    print(f"{end - start - table - size * count} bytes of padding, {needed} needed")
    assert start + table + size * count + needed <= end

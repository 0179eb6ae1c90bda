"""Which programs a kernel says that it runs: compared with whether it does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from torpor.linux import elf, libc

OTHERS = {8: "any of 64 bit", 183: "AArch64", 62: "x86-64", 22: "s390x", 21: "ppc64"}


def own_machine() -> int:
    with open("/proc/self/exe", "rb") as file:
        return int.from_bytes(file.read(20)[18:20], sys.byteorder)


def test_own_programs_run() -> None:
    assert elf.runs(own_machine(), libc.WORD, 0)


@pytest.mark.parametrize("machine", [m for m in OTHERS if m != own_machine()])
def test_programs_of_other_families_do_not(machine: int) -> None:
    assert not elf.runs(machine, 8, 0)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="needs a 64-bit x86 kernel, which may run 32-bit programs or not")
def test_32_bit_programs(tmp_path: Path) -> None:
    source = "int main(void) { return 42; }"
    command = ["gcc", "-m32", "-static", "-nostdlib", "-x", "c", "-", "-o", str(tmp_path / "program"), "-Wl,-emain"]
    subprocess.run(command, input=source, text=True, check=True)
    try:
        subprocess.run([tmp_path / "program"])
        does = True
    except OSError:
        does = False
    assert elf.runs(3, 4, 0) == does


def test_nothing_is_left_open() -> None:
    before = os.listdir("/proc/self/fd")
    elf.runs(own_machine(), libc.WORD, 0)
    elf.runs(0, 4, 0)
    assert os.listdir("/proc/self/fd") == before

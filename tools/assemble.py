"""Assembles arch/*/code*.S into arch/*/code.py: bytes, symbols and relocations, so that torpor itself needs no assembler.

Run it after a change of a source; tests/arch/test_code.py does the same and compares. Needs GNU binutils of each family, whose
names begin with its triplet (aarch64-linux-gnu-as) where this machine is of another.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

ARCH = Path(__file__).resolve().parent.parent / "src" / "torpor" / "arch"
SOURCES: dict[str, dict[str, tuple[str, list[str]]]] = {
    "x86": {"CODE_64": ("code64.S", ["--64"]), "CODE_32": ("code32.S", ["--32"])},
    "arm64": {"CODE_64": ("code64.S", [])},
    "powerpc": {
        "CODE_64LE": ("code64.S", ["-a64", "-mlittle"]),
        "CODE_64": ("code64.S", ["-a64", "-mbig"]),
        "CODE_32": ("code32.S", ["-a32", "-mbig"]),
    },
    "riscv64": {"CODE_64": ("code64.S", ["-march=rv64imac"])},
    "s390x": {"CODE_64": ("code64.S", ["-march=z10"])},
    "arm": {"CODE_32": ("code32.S", [])},
}
TRIPLETS = {
    "x86": "x86_64-linux-gnu",
    "arm64": "aarch64-linux-gnu",
    "arm": "arm-linux-gnueabihf",
    "riscv64": "riscv64-linux-gnu",
    "s390x": "s390x-linux-gnu",
    "powerpc": "powerpc64le-linux-gnu",
}
WIDTHS = {"R_386_32": 4, "R_PPC_ADDR32": 4, "R_PPC64_ADDR64": 8}
"""Relocations that are absolute addresses, and their bytes."""

LINKED = ("riscv64",)
"""Where the assembler leaves it to the linker to put in even the distances within a section."""


def tool(family: str, name: str) -> str | None:
    """The binutils program `name` for a family, or None where it is not installed."""
    triplet = TRIPLETS[family]
    return shutil.which(f"{triplet}-{name}") or (shutil.which(name) if triplet.startswith(platform.machine()) else None)


def assemble(family: str, source: Path, options: list[str]) -> tuple[bytes, dict[str, int], list[tuple[int, int, str]]]:
    """The bytes of the source's text section, its symbols' offsets, and (offset, width, base) of each absolute address."""

    def run(name: str, *words: str) -> str:
        program = tool(family, name)
        if program is None:
            raise FileNotFoundError(2, f"no {name} for {TRIPLETS[family]} here")
        return subprocess.run([program, *words], check=True, stdout=subprocess.PIPE, text=True).stdout

    with tempfile.TemporaryDirectory() as scratch:
        obj, linked, raw = f"{scratch}/code.o", f"{scratch}/code", f"{scratch}/code.bin"
        run("as", *options, "-o", obj, str(source))
        names, relocations = run("nm", obj), run("objdump", "-r", obj)
        if family in LINKED:
            run("ld", "-e", "0", "-Ttext", "0x10000", "-o", linked, obj)
            obj, relocations = linked, ""
        run("objcopy", "-O", "binary", "-j", ".text", obj, raw)
        code = bytearray(Path(raw).read_bytes())
    symbols = {m[2]: int(m[1], 16) for m in re.finditer(r"^([0-9a-f]+) \w (\w+)$", names, re.M)}
    fixups = []
    order: Literal["big", "little"] = "big" if "-mbig" in options else "little"
    for where, kind, base, addend in re.findall(r"^([0-9a-f]+) (\S+)\s+(\S+?)(?:\+0x([0-9a-f]+))?$", relocations, re.M):
        at, width = int(where, 16), WIDTHS[kind]
        if addend:  # in the relocation, and not where it belongs (elf(5), Rela)
            code[at : at + width] = int(addend, 16).to_bytes(width, order)
        fixups.append((at, width, {".text": "code", "work": "work"}[base]))
    return bytes(code), dict(sorted(symbols.items(), key=lambda s: s[1])), fixups


def render(family: str) -> str:
    """The text of arch/FAMILY/code.py."""
    lines = [
        '"""Made by tools/assemble.py from the .S files beside this one: do not edit."""',
        "",
        "from torpor.arch.contract import Code",
    ]
    for name, (source, options) in SOURCES[family].items():
        code, symbols, fixups = assemble(family, ARCH / family / source, options)
        lines += ["", f"{name} = Code(", "    bytes.fromhex("]
        lines += [f'        "{code[i : i + 48].hex()}"' for i in range(0, len(code), 48)]
        lines += ["    ),", "    {"]
        lines += [f'        "{symbol}": {offset},' for symbol, offset in symbols.items()]
        lines += ["    },", "    ["]
        lines += [f'        ({where}, {width}, "{base}"),' for where, width, base in fixups]
        lines += ["    ],", ")"]
        if not fixups:
            del lines[-3:-1]
            lines.insert(-1, "    [],")
        if "-mbig" in options:
            lines.insert(-1, '    "big",')
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write every family's code.py."""
    for family in SOURCES:
        (ARCH / family / "code.py").write_text(render(family))
    return 0


if __name__ == "__main__":
    sys.exit(main())

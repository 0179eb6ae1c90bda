"""Programs from Debian's packages, each set to work for 2 to 8 s on something whose result depends on no clock.

What they need (`Materials`) is made once for all their runs and lies where every user can read it.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.conftest import M32
from tests.debian.runner import ENVIRONMENT, Program

SOURCES = Path(__file__).with_name("sources")
DROPPED = 65534  # the user that the daemon becomes
MEGABYTES = 200


class Materials:
    """Sources, data and compiled programs in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def source(self, name: str) -> str:
        """A copy of a program's source: the checkout may be closed to an ordinary user."""
        copy = self.directory / name
        if not copy.exists():
            shutil.copyfile(SOURCES / name, copy)
            copy.chmod(0o644)
        return str(copy)

    def compiled(self, source: str, *flags: str, libraries: tuple[str, ...] = ()) -> str:
        binary = self.directory / "".join([source.removesuffix(".c"), *flags[:1]])
        if not binary.exists():
            warnings = ["-Wall", "-Wextra", "-Werror"]
            command = ["gcc", "-O2", *warnings, *flags, "-o", str(binary), str(SOURCES / source), *libraries]
            subprocess.run(command, check=True)
            binary.chmod(0o755)
        return str(binary)

    @cached_property
    def numbers(self) -> Path:
        """200 MB of lines in no order, to be sorted."""
        path = self.directory / "numbers"
        total = MEGABYTES * 1_000_000
        tails = [b" the quick brown fox jumps over the lazy dog, %03d times in a row\n" % n for n in range(251)]
        with open(path, "wb") as out:
            written = line = 0
            while written < total:
                lines = [b"%010d" % (n * 2654435761 % (1 << 32)) + tails[n % 251] for n in range(line, line + 100_000)]
                line += len(lines)
                written += out.write(b"".join(lines)[: total - written])
        path.chmod(0o644)
        return path

    @cached_property
    def part_of_numbers(self) -> Path:
        path = self.directory / "part"
        with open(self.numbers, "rb") as whole:
            path.write_bytes(whole.read(MEGABYTES * 150_000))
        path.chmod(0o644)
        return path

    @cached_property
    def transactions(self) -> Path:
        """SQL for sqlite3's command line: 1,600 transactions in WAL mode that insert, change and delete."""
        path = self.directory / "transactions.sql"
        with open(path, "w") as out:
            out.write("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=300;\n")
            out.write("CREATE TABLE account(id INTEGER PRIMARY KEY, owner TEXT, balance INTEGER, note BLOB);\n")
            out.write("CREATE INDEX by_owner ON account(owner); CREATE INDEX by_balance ON account(balance);\n")
            for number in range(1600):
                out.write("BEGIN;\n")
                for row in range(12):
                    key = (number * 12 + row) * 7919 % 1_000_003
                    out.write(
                        f"INSERT OR REPLACE INTO account VALUES({key}, 'owner{key % 977}', {key * 31 % 10007}, "
                        f"zeroblob({key % 300}));\n"
                    )
                out.write(f"UPDATE account SET balance = balance + {number} WHERE owner = 'owner{number % 977}';\n")
                out.write(f"DELETE FROM account WHERE id % 4001 = {number};\n")
                out.write("COMMIT;\n")
                if number % 400 == 399:
                    out.write("SELECT count(*), sum(balance) FROM account;\n")
        path.chmod(0o644)
        return path

    @cached_property
    def project(self) -> Path:
        """A C project of 30 files with a Makefile; the program it builds prints what all of them compute."""
        path = self.directory / "project"
        path.mkdir()
        for module in range(30):
            lines = ['#include "all.h"', "#include <stdio.h>", "#include <string.h>"]
            for number in range(14):
                lines += [
                    f"static unsigned step{number}(const char *text, unsigned seed)",
                    "{",
                    f"    unsigned table[64], hash = seed + {module * 100 + number}u;",
                    "    for (unsigned i = 0; i < 64; i++)",
                    f"        table[i] = (hash = hash * 1664525u + {1013904223 + number}u) >> {number % 7};",
                    "    for (size_t i = 0; i < strlen(text); i++) {",
                    f"        switch ((text[i] + i) % {5 + number % 4}) {{",
                    "        case 0: hash ^= table[hash % 64]; break;",
                    f"        case 1: hash += table[(hash >> {number % 5}) % 64] * {number + 3}u; break;",
                    "        case 2: hash = hash << 5 | hash >> 27; break;",
                    "        default: hash -= table[(i * 7) % 64];",
                    "        }",
                    "    }",
                    "    return hash;",
                    "}",
                ]
            steps = "".join(f"    seed = step{number}(text, seed);\n" for number in range(14))
            lines += [f"unsigned module{module}(unsigned seed)", "{", "    char text[80];"]
            lines += ['    sprintf(text, "a text for the seed %u", seed);', f"{steps}    return seed;", "}"]
            (path / f"module{module}.c").write_text("\n".join(lines) + "\n")
        declarations = "".join(f"unsigned module{module}(unsigned seed);\n" for module in range(30))
        calls = "".join(f'    printf("module {m}: %u\\n", seed = module{m}(seed));\n' for m in range(30))
        (path / "all.h").write_text(declarations)
        body = f"int main(void)\n{{\n    unsigned seed = 1;\n{calls}    return 0;\n}}\n"
        (path / "main.c").write_text(f'#include "all.h"\n#include <stdio.h>\n{body}')
        (path / "Makefile").write_text(
            "OBJECTS := main.o " + " ".join(f"module{module}.o" for module in range(30)) + "\n"
            "report: program\n\t./program >report\n"
            "program: $(OBJECTS)\n\tgcc -o $@ $^\n"
            "%.o: %.c all.h\n\tgcc -O2 -c -o $@ $<\n"
        )
        return path


def bash(materials: Materials) -> Program:
    argv = ["bash", materials.source("pipeline.bash"), str(materials.numbers)]
    return Program("bash", argv, outputs=["sorted.gz"])


def perl(materials: Materials) -> Program:
    return Program("perl", ["perl", materials.source("words.pl")], outputs=["words.txt"], status=7)


def ruby(materials: Materials) -> Program:
    return Program("ruby", ["ruby", materials.source("cells.rb")], outputs=["cells.txt"])


def python3(materials: Materials) -> Program:
    return Program("python3", ["/usr/bin/python3", materials.source("workers.py")], outputs=["workers.txt"])


def make(materials: Materials) -> Program:
    def prepare(directory: Path) -> None:
        shutil.copytree(materials.project, directory, dirs_exist_ok=True)
        owner = directory.stat().st_uid
        os.chmod(directory, 0o755)
        for path in directory.iterdir():
            os.chown(path, owner, -1)

    # -s: in which order two compilers' commands are printed is not make's to say.
    return Program("make", ["make", "-s", "-j2"], outputs=["*.o", "program", "report"], prepare=prepare)


def sqlite3(materials: Materials) -> Program:
    def collect(directory: Path) -> Mapping[str, bytes]:
        def ask(question: str) -> bytes:
            command = ["sqlite3", str(directory / "test.db"), question]
            return subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE).stdout

        integrity = ask("PRAGMA integrity_check")
        assert integrity == b"ok\n", f"PRAGMA integrity_check says: {integrity.decode()}"
        dump = ask(".dump")
        assert dump.count(b"INSERT INTO account") > 10_000, dump[-2000:]
        return {"dump of test.db": dump}

    return Program("sqlite3", ["sqlite3", "test.db", f".read {materials.transactions}"], collect=collect)


def ffmpeg(materials: Materials) -> Program:
    picture = "testsrc=size=640x360:rate=25:duration=50"
    sound = "sine=frequency=440:beep_factor=4:sample_rate=48000:duration=50"
    sources = ["-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", sound]
    codecs = ["-threads", "2", "-c:v", "mpeg4", "-q:v", "4", "-c:a", "ac3"]
    exact = ["-fflags", "+bitexact", "-flags", "bitexact"]
    command = ["ffmpeg", "-nostdin", "-loglevel", "error", *sources, *codecs, *exact, "out.mkv"]
    return Program("ffmpeg", command, outputs=["out.mkv"])


def xz(materials: Materials) -> Program:
    command = 'exec xz -T2 -4 --block-size=4MiB -c "$0" >out.xz'
    return Program("xz", ["sh", "-c", command, str(materials.part_of_numbers)], outputs=["out.xz"])


def i386(materials: Materials) -> Program:
    binary = materials.compiled("compute.c", *M32, libraries=("-lm",))
    return Program("i386", [binary, "compute.txt", "200"], outputs=["compute.txt"])


def static(materials: Materials) -> Program:
    binary = materials.compiled("compute.c", "-static", libraries=("-lm",))
    return Program("static", [binary, "compute.txt", "220"], outputs=["compute.txt"])


def daemon(materials: Materials) -> Program:
    argv = [materials.compiled("daemon.c"), str(DROPPED), "100"]
    return Program(
        "daemon", argv, outputs=["result", "log"], prepare=lambda d: os.chown(d, DROPPED, DROPPED), pid_file="pid"
    )


@dataclass(frozen=True)
class Entry:
    """What it takes to run a program here."""

    program: Callable[[Materials], Program]
    commands: tuple[str, ...]
    ordinary: bool = False  # by default also as an ordinary user (TORPOR_TEST_FULL: all that do not need root)
    needs_root: bool = False

    def obstacle(self) -> str:
        """Why it cannot be run here; "" if it can."""
        missing = [command for command in self.commands if not shutil.which(command, path=ENVIRONMENT["PATH"])]
        if missing:
            return f"not installed: {', '.join(missing)} (`make packages` installs what the tests need)"
        if self.program is i386 and platform.machine() != "x86_64":
            return f"i386 programs do not run on {platform.machine()}"
        return ""


ENTRIES = {
    "bash": Entry(bash, ("bash", "gzip", "sort", "sed"), ordinary=True),
    "perl": Entry(perl, ("perl",)),
    "python3": Entry(python3, ("python3",), ordinary=True),
    "ruby": Entry(ruby, ("ruby",)),
    "make": Entry(make, ("make", "gcc")),
    "sqlite3": Entry(sqlite3, ("sqlite3",)),
    "ffmpeg": Entry(ffmpeg, ("ffmpeg",)),
    "xz": Entry(xz, ("xz",)),
    "i386": Entry(i386, ("gcc",)),
    "static": Entry(static, ("gcc",)),
    "daemon": Entry(daemon, ("gcc",), needs_root=True),
}

"""What a checkpoint and a restart cost, beside what moving the same bytes costs without torpor.

    benchmarks/run [--quick] [--runs N] [--only WORD] [--json FILE] [--directory DIR] [--python PATH]

Every figure is a median. The program that is measured (victim.c) says itself how long it stood still; commands are measured from
the outside, a process each. No figure is judged here: a machine that is busy gives what it gives.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.harness import HERE, Command, Failed, Python, Victim, Warm, become_subreaper

MIB = 1 << 20
SMALL = 64 << 10
"""Bytes of random data of a program whose threads or processes are what counts."""
RUNS, RUNS_LARGE = 5, 3
LARGE = 512 * MIB


class Case:
    """A program to measure: `memory` bytes of random data, so many threads and processes (the first one counts)."""

    def __init__(self, name: str, memory: int, threads: int = 1, processes: int = 1) -> None:
        self.name, self.memory, self.threads, self.processes = name, memory, threads, processes


CASES = [
    Case("1 MiB", MIB),
    Case("64 MiB", 64 * MIB),
    Case("1 GiB", 1024 * MIB),
    Case("1 thread", SMALL),
    Case("10 threads", SMALL, threads=10),
    Case("100 threads", SMALL, threads=100),
    Case("1 process", SMALL),
    Case("10 processes", SMALL, processes=10),
    Case("100 processes", SMALL, processes=100),
]
QUICK = ("1 MiB", "1 thread", "10 threads", "1 process", "10 processes")

STARTS = {
    "nothing": "pass",
    "torpor's command line": "import torpor.cli",
    "all of a checkpoint": "import torpor.cli.checkpoint, torpor.checkpoint",
    "all of a restart": "import torpor.cli.restart, torpor.restart, torpor.rebuild",
}
"""What is loaded -> the code that loads it."""


class Samples:
    """Figures by name, each measured several times."""

    def __init__(self) -> None:
        self._all: dict[str, list[int]] = {}

    def add(self, name: str, value: int) -> None:
        """One more."""
        self._all.setdefault(name, []).append(value)

    def medians(self) -> dict[str, Any]:
        """The median of each, and all that was measured, in order, as "samples"."""
        return {name: median(values) for name, values in self._all.items()} | {"samples": self._all}


class Bench:
    """One run of the benchmarks: the programs are built, and the warm process runs."""

    def __init__(self, python: Python, directory: Path) -> None:
        self.python, self.directory = python, directory
        self.victim, self.raw = (build(name, directory) for name in ("victim", "raw"))
        self.warm = Warm(python)

    def starts(self, runs: int) -> list[dict[str, Any]]:
        """What starting Python and loading torpor costs."""
        rows = []
        for name, code in STARTS.items():
            samples = Samples()
            for style, argv in (
                ("plain", self.python.code(code, isolated=False)),
                ("isolated", self.python.code(f"import sys; sys.path.insert(0, {self.python.source!r}); {code}")),
            ):
                for run in range(runs + 1):
                    took = self.run(argv).took
                    if run:
                        samples.add(style, took)
            rows.append({"name": name, **samples.medians()})
        return rows

    def run(self, argv: list[str]) -> Command:
        """A command, to its end."""
        return Command(argv, self.directory)

    def measure(self, case: Case, runs: int) -> dict[str, Any]:
        """All figures of one program, ns and bytes."""
        image = self.directory / "image"
        samples = Samples()
        with Victim(self.victim, self.directory, self.warm, case.memory, case.threads, case.processes) as victim:
            victim.await_ready()
            for run in range(runs + 1):
                # The first round fills caches (of bytecode, too) and is not counted.
                self._checkpoint(victim, case, image, samples if run else Samples(), run)
            victim.end()
            for run in range(runs + 1):
                self._restart(victim, image, samples if run else Samples())
            size = image.stat().st_size
            image.unlink()
        return {
            "name": case.name, "memory": case.memory, "threads": case.threads, "processes": case.processes,
            "runs": runs, "image_bytes": size, **samples.medians(),
        }  # fmt: skip

    def _checkpoint(self, victim: Victim, case: Case, image: Path, samples: Samples, turn: int) -> None:
        """One round: the command in both styles, the function, and the raw cost of as many bytes.

        Each round begins with another of them: what one leaves for the disk to do slows the next one down.
        """
        samples.add("undisturbed", victim.undisturbed())
        words = ("checkpoint", str(victim.pid), "-o", str(image))

        def command(style: str, argv: list[str]) -> None:
            found = self.run(argv)
            samples.add(f"checkpoint_{style}", found.took)
            samples.add(f"checkpoint_{style}_cpu", found.cpu)

        def mechanism() -> None:
            samples.add("checkpoint_mechanism", self.warm.ask("checkpoint", str(victim.pid), str(image))[0])

        def raw() -> None:
            copy = self.directory / "raw-copy"
            where = (str(victim.address), str(case.memory), str(image.stat().st_size))
            said = self.run([str(self.raw), "out", str(victim.pid), *where, str(copy)]).out
            copy.unlink()
            for name, word in zip(("raw_out", "raw_out_synced"), said.split(), strict=True):
                samples.add(name, int(word))

        steps: list[tuple[str, Callable[[], None]]] = [
            ("command", partial(command, "command", self.python.torpor(*words))),
            ("isolated", partial(command, "isolated", self.python.isolated(*words))),
            ("mechanism", mechanism),
            ("raw", raw),
        ]
        turn %= len(steps)
        for name, step in (*steps[turn:], *steps[:turn]):
            if name == "raw":
                step()
                continue
            image.unlink(missing_ok=True)
            victim.begin()
            step()
            victim.await_running()
            samples.add(f"checkpoint_{name}_stopped", victim.longest)

    def _restart(self, victim: Victim, image: Path, samples: Samples) -> None:
        """One round of restarts of a program that does not run."""
        words = ("restart", str(image), "--detach", *victim.options)
        for style, argv in (("command", self.python.torpor(*words)), ("isolated", self.python.isolated(*words))):
            command = self.run(argv)
            samples.add(f"restart_{style}", command.took)
            samples.add(f"restart_{style}_cpu", command.cpu)
            samples.add(f"restart_{style}_running", victim.await_restart(command.began))
            victim.end()
        took, began, _ = self.warm.ask("restart", str(image), *victim.options[1:])
        samples.add("restart_mechanism", took)
        samples.add("restart_mechanism_running", victim.await_restart(began))
        victim.end()
        said = self.run([str(self.raw), "in", str(image), str(image.stat().st_size)]).out
        samples.add("raw_in", int(said))


def build(name: str, directory: Path) -> Path:
    """Compile a C program of the benchmarks. Raises Failed."""
    program = directory / name
    command = [os.environ.get("CC", "gcc"), "-O2", "-pthread", "-o", str(program), str(HERE / f"{name}.c")]
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Failed(f"{name}.c cannot be built: {error}") from error
    return program


def room(case: Case, directory: Path) -> str:
    """Why there is no room for a case on this machine, or ""."""
    needed = 2 * case.memory + 64 * MIB  # the image beside a raw copy; the program beside a raw restart
    if shutil.disk_usage(directory).free < needed:
        return f"needs {needed // MIB} MiB on the disk"
    if os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < needed:
        return f"needs {needed // MIB} MiB of free memory"
    return ""


def default_python() -> str:
    """The system's own Python if it is new enough, as a user would have it; else the one that runs this."""
    system = "/usr/bin/python3"
    try:
        subprocess.run([system, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"], check=True)
    except (OSError, subprocess.CalledProcessError):
        return sys.executable
    return system


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    assert __doc__
    parser = argparse.ArgumentParser(prog="benchmarks/run", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"one run each, and only: {', '.join(QUICK)}")
    parser.add_argument("--runs", type=int, metavar="N",
                        help=f"measure each figure N times (default {RUNS}, and {RUNS_LARGE} for 1 GiB)")  # fmt: skip
    parser.add_argument("--only", action="append", metavar="NAME", choices=[case.name for case in CASES],
                        help="only this program; may be repeated")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE as well (ns, bytes)")
    parser.add_argument("--directory", metavar="DIR", help="where images are written (default: the temporary directory)")
    parser.add_argument("--python", metavar="PATH", help="the interpreter that runs torpor (default: the system's)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks. Returns the exit code: 1 when a program could not be measured."""
    options = arguments(argv)
    results = options.json.resolve() if options.json else None
    names = options.only or (QUICK if options.quick else [case.name for case in CASES])
    python = Python(os.path.abspath(shutil.which(options.python or default_python()) or options.python))
    become_subreaper()
    failures = []
    with tempfile.TemporaryDirectory(prefix="torpor-benchmarks-", dir=options.directory) as name:
        directory = Path(name).resolve()
        # Nothing may be imported from wherever this was called.
        os.chdir(directory)
        try:
            bench = Bench(python, directory)
        except Failed as error:
            print(f"benchmarks: {error}", file=sys.stderr)
            return 1
        runs = options.runs or (1 if options.quick else RUNS)
        found: dict[str, Any] = {"machine": machine(python), "starts": [], "cases": []}
        try:
            found["starts"] = bench.starts(runs if options.quick else 2 * runs)
            for case in CASES:
                if case.name not in names:
                    continue
                if reason := room(case, directory):
                    print(f"benchmarks: {case.name} left out: {reason}", file=sys.stderr)
                    continue
                few = case.memory >= LARGE and not options.runs
                try:
                    found["cases"].append(bench.measure(case, min(runs, RUNS_LARGE) if few else runs))
                except Failed as error:
                    failures.append(f"{case.name}: {error}")
                    print(f"benchmarks: {failures[-1]}", file=sys.stderr)
        finally:
            bench.warm.close()
            os.chdir("/")
    print(report.text(found))
    if results:
        results.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if failures else 0


def machine(python: Python) -> dict[str, Any]:
    """Where the figures come from."""
    version = subprocess.run([python.path, "-V"], capture_output=True, text=True, check=True).stdout.split()[-1]
    processor = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(": ")[2]
            break
    return {
        "kernel": os.uname().release, "architecture": platform.machine(), "processor": processor, "cpus": os.cpu_count(),
        "python": version, "user": "root" if os.geteuid() == 0 else "ordinary",
        "load": os.getloadavg()[0],
    }  # fmt: skip

"""What a checkpoint and a restart cost, beside what moving the same bytes costs without torpor.

    benchmarks/run [--quick] [--runs N] [--only NAME] [--json FILE] [--svg FILE] [--history FILE] [--directory DIR] [--python PATH]

Every figure is a median. The program that is measured (victim.c) says itself how long it stood still; commands are measured from
the outside, a process each; measure.py takes the ways to do a thing in turn. No figure is judged here: a machine that is busy gives
what it gives. With --history a run is compared with the last one of this machine in that file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import history, plot, report
from benchmarks.harness import Failed, Python, become_subreaper
from benchmarks.measure import CASES, Bench, obstacle

QUICK = ("1 MiB", "1 thread", "10 threads", "1 process", "10 processes")
RUNS = 5


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
    parser.add_argument("--runs", type=int, metavar="N", help=f"measure each figure N times (default {RUNS})")
    parser.add_argument("--only", action="append", metavar="NAME", choices=[case.name for case in CASES],
                        help="only this program; may be repeated")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE as well (ns, bytes)")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="plot what depends on the size of a program")
    parser.add_argument("--history", type=Path, metavar="FILE",
                        help="compare with the last run of this machine in FILE, and append this one")  # fmt: skip
    parser.add_argument("--directory", metavar="DIR", help="where images are written (default: the temporary directory)")
    parser.add_argument("--python", metavar="PATH", help="the interpreter that runs torpor (default: the system's)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks. Returns the exit code: 1 when a program could not be measured."""
    options = arguments(argv)
    files = {name: path.resolve() for name in ("json", "svg", "history") if (path := getattr(options, name))}
    names = options.only or (QUICK if options.quick else [case.name for case in CASES])
    python = Python(os.path.abspath(shutil.which(options.python or default_python()) or options.python))
    become_subreaper()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # nothing is to be left then, either
    found: dict[str, Any] = {"machine": machine(python), "starts": [], "cases": []}
    failures = []
    try:
        before = history.last(files["history"], found["machine"]) if "history" in files else None
        with tempfile.TemporaryDirectory(prefix="torpor-benchmarks-", dir=options.directory) as name:
            directory = Path(name).resolve()
            # Nothing may be imported from wherever this was called.
            os.chdir(directory)
            try:
                failures = measure(python, directory, names, options.runs or (1 if options.quick else RUNS), found)
            finally:
                os.chdir("/")
        print(report.text(found))
    except Failed as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    if "json" in files:
        files["json"].write_text(json.dumps(found, indent=1) + "\n")
    if "svg" in files and (drawn := plot.svg(found["cases"], f"torpor on {described(found['machine'])}")):
        files["svg"].write_text(drawn)
    if "history" in files:
        now = history.line(found)
        history.append(files["history"], now)
        if before:
            print(f"\n{report.regressions(before, list(history.slower(before, now)))}")
    return 1 if failures else 0


def measure(python: Python, directory: Path, names: Sequence[str], runs: int, found: dict[str, Any]) -> list[str]:
    """Measure the programs `names`, add their figures to `found`; what could not be measured. Raises Failed."""
    failures = []
    with Bench(python, directory) as bench:
        found["starts"] = bench.starts(runs if runs == 1 else 2 * runs)
        for case in CASES:
            if case.name not in names:
                continue
            if reason := obstacle(case, directory):
                print(f"benchmarks: {case.name} left out: {reason}", file=sys.stderr)
                continue
            try:
                found["cases"].append(bench.measure(case, runs))
            except Failed as error:
                failures.append(f"{case.name}: {error}")
                print(f"benchmarks: {failures[-1]}", file=sys.stderr)
    return failures


def described(machine: dict[str, Any]) -> str:
    """In a few words."""
    return f"{machine['processor']}, {machine['cpus']} CPUs, Linux {machine['kernel']}"


def machine(python: Python) -> dict[str, Any]:
    """Where the figures come from."""
    version = subprocess.run([python.path, "-V"], capture_output=True, text=True, check=True).stdout.split()[-1]
    processor = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(": ")[2]
            break
    return {
        "host": os.uname().nodename,
        "kernel": os.uname().release, "architecture": platform.machine(), "processor": processor, "cpus": os.cpu_count(),
        "python": version, "user": "root" if os.geteuid() == 0 else "ordinary",
        "load": os.getloadavg()[0],
    }  # fmt: skip

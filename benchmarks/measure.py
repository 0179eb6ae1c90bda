"""The measurements: for each program, torpor's ways to save and to restart it in turn, and the limit of the machine beside them."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import HERE, Command, Failed, Python, Server, Victim, Warm, wait_for

MIB = 1 << 20
SMALL = 64 << 10
"""Bytes of random data of a program whose threads or processes are what counts."""
FEW = 3
"""How often is measured what hardly varies."""
LARGE = 64 * MIB
"""Bytes of memory from which it says something how much less there is to save the second time, and what can come later."""
LEAST = 256 * MIB
"""Bytes of free memory that is brought back before anything is measured."""
CHANGED = 100
"""One page in so many changes from one image to the next."""


class Case:
    """A program to measure: `memory` bytes of random data, so many threads and processes (the first one counts).

    `huge`: in huge pages, as far as the kernel has them. `restarts`: whether these are measured, too.
    """

    def __init__(
        self, name: str, memory: int, threads: int = 1, processes: int = 1, *, huge: bool = False, restarts: bool = True
    ) -> None:
        self.name, self.memory, self.threads, self.processes = name, memory, threads, processes
        self.huge, self.restarts = huge, restarts
        self.in_a_row = FEW if memory <= MIB else 1
        """How often functions are called one after the other."""


CASES = [
    Case("1 MiB", MIB),
    Case("64 MiB", 64 * MIB),
    Case("1 GiB", 1024 * MIB),
    Case("4 GiB", 4096 * MIB),
    Case("1 GiB, huge pages", 1024 * MIB, huge=True, restarts=False),
    Case("4 GiB, huge pages", 4096 * MIB, huge=True, restarts=False),
    Case("1 GiB, 20 threads", 1024 * MIB, threads=20, restarts=False),
    Case("4 GiB, 20 threads", 4096 * MIB, threads=20, restarts=False),
    Case("1 thread", SMALL),
    Case("10 threads", SMALL, threads=10),
    Case("100 threads", SMALL, threads=100),
    Case("1 process", SMALL),
    Case("10 processes", SMALL, processes=10),
    Case("100 processes", SMALL, processes=100),
]

STARTS = {
    "nothing": "pass",
    "torpor's command line": "import torpor.cli",
    "what a command with --server loads": "import torpor.cli.checkpoint, torpor.serve.client",
    "all of a checkpoint": "import torpor.cli.checkpoint, torpor.checkpoint",
    "all of a restart": "import torpor.cli.restart, torpor.restart, torpor.rebuild",
}
"""What is loaded -> the code that loads it."""

PEAK = "import sys; from torpor.cli import main; code = main(sys.argv[1:]); print(open('/proc/self/status').read()); sys.exit(code)"
"""A command that says what it needed: the largest RSS that wait4(2) tells is at least that of the process which started it."""


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
    """One run of the benchmarks: the programs are built, the warm process and a server run. A context manager."""

    def __init__(self, python: Python, directory: Path) -> None:
        self.python, self.directory = python, directory
        self.victim, self.raw = (build(name, directory) for name in ("victim", "raw"))
        self.warm = Warm(python)
        self.server = Server(python, directory / "server")

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()
        self.warm.close()

    def starts(self, runs: int) -> list[dict[str, Any]]:
        """What starting Python and loading torpor costs."""
        rows = []
        for name, code in STARTS.items():
            samples = Samples()
            for run in range(runs + 1):
                for style, argv in (
                    ("plain", self.python.code(code, isolated=False)),
                    ("isolated", self.python.code(f"import sys; sys.path.insert(0, {self.python.source!r}); {code}")),
                ):
                    took = self.run(argv).took
                    if run:
                        samples.add(style, took)
            rows.append({"name": name, **samples.medians()})
        return rows

    def run(self, argv: list[str]) -> Command:
        """A command, to its end."""
        return Command(argv, self.directory)

    def freshen(self, memory: int = LEAST) -> None:
        """See to it that this machine has some of the free memory which it says it has, `memory` bytes.

        The host of a virtual machine may have been given what was free (free page reporting), and brings a page back when it is
        touched: that takes ten times as long as to use it, and stops whoever runs here. `raw touch` has it brought back before
        something is measured. Much of it at a time goes to the host again at once.
        """
        self.run([str(self.raw), "touch", str(memory)])

    def measure(self, case: Case, runs: int) -> dict[str, Any]:
        """All figures of one program, ns and bytes."""
        image = self.directory / "image"
        samples = Samples()
        argv = [str(self.victim), str(case.memory), str(case.threads), str(case.processes), *["huge"] * case.huge]
        others = case.threads - 1 + case.processes - 1
        with Victim(argv, self.directory, self.warm, others, self.server) as victim:
            victim.await_ready()
            for run in range(runs + 1):
                # The first round fills caches (of bytecode, too) and is not counted.
                self._checkpoint(victim, case, image, samples if run else Samples(), run)
            if case.restarts and case.memory >= LARGE:
                self._increments(victim, case, samples, runs)
            for _ in range(min(runs, FEW)):
                samples.add("peak_rss", self._peak(victim, image))
            victim.end()
            for run in range(runs + 1 if case.restarts else 0):
                self._restart(victim, case, image, samples if run else Samples(), run)
            size = image.stat().st_size
            image.unlink()
        return {
            "name": case.name, "memory": case.memory, "threads": case.threads, "processes": case.processes, "huge": case.huge,
            "runs": runs, "image_bytes": size, **samples.medians(),
        }  # fmt: skip

    def _checkpoint(self, victim: Victim, case: Case, image: Path, samples: Samples, turn: int) -> None:
        """One round: each way to save the program, and the raw cost of as many bytes.

        Each round begins with another of them: what one leaves for the disk to do slows the next one down.
        """
        samples.add("undisturbed", victim.undisturbed())
        words = ("checkpoint", str(victim.pid), "-o", str(image))

        def command(style: str, argv: list[str]) -> None:
            found = self.run(argv)
            samples.add(f"checkpoint_{style}", found.took)
            samples.add(f"checkpoint_{style}_cpu", found.cpu)

        def function(style: str, verb: str) -> None:
            for _ in range(case.in_a_row):
                image.unlink(missing_ok=True)
                took, file, directory = self.warm.ask(verb, str(victim.pid), str(image))
                samples.add(f"checkpoint_{style}", took)
                samples.add(f"checkpoint_{style}_fsync_file", file)
                samples.add(f"checkpoint_{style}_fsync_directory", directory)
                samples.add(f"checkpoint_{style}_without_fsync", took - file - directory)

        def raw() -> None:
            copy = self.directory / "raw-copy"
            where = (str(victim.address), str(case.memory), str(image.stat().st_size))
            said = self.run([str(self.raw), "out", str(victim.pid), *where, str(copy)]).out
            copy.unlink()
            for name, word in zip(("raw_out", "raw_out_synced"), said.split(), strict=True):
                samples.add(name, int(word))
            copied = self.run([str(self.raw), "fork", str(case.memory), *["huge"] * case.huge])
            samples.add("raw_fork", int(copied.out))

        steps: list[tuple[str, Callable[[], None]]] = [
            ("command", partial(command, "command", self.python.torpor(*words))),
            ("served", partial(command, "served", self.python.torpor(*words, *self.server.options))),
            ("mechanism", partial(function, "mechanism", "checkpoint")),
            ("standing", partial(function, "standing", "standing")),
            ("raw", raw),
        ]
        turn %= len(steps)
        turned = [*steps[turn:], *steps[:turn]]
        if turned[0][0] == "raw":  # it is to move as many bytes as there are in an image
            turned.append(turned.pop(0))
        for name, step in turned:
            if name != "raw":
                image.unlink(missing_ok=True)
            self.freshen()
            victim.begin()
            before = stolen()
            step()
            victim.await_running()
            if name == "command":
                samples.add("checkpoint_command_stolen", stolen() - before)
            samples.add("raw_out_stopped" if name == "raw" else f"checkpoint_{name}_stopped", victim.longest)
            if name != "raw":
                samples.add(f"checkpoint_{name}_in_stop", victim.stopped)

    def _increments(self, victim: Victim, case: Case, samples: Samples, runs: int) -> None:
        """One image after the other of a program of which a hundredth changes meanwhile, as `torpor watch` takes them."""
        place = self.directory / "chain"
        place.mkdir()
        changed = case.memory // os.sysconf("SC_PAGE_SIZE") // CHANGED
        for run in range(FEW):
            parent = ""
            for number in range(min(runs, FEW) + 1):
                image = place / str(number)
                if number:
                    victim.alter(changed)
                self.freshen()
                victim.begin()
                took, _, _ = self.warm.ask("next", str(victim.pid), str(image), *[parent] * bool(parent))
                victim.await_running()
                kind = "next" if number else "first"
                samples.add(f"checkpoint_{kind}", took)
                samples.add(f"checkpoint_{kind}_stopped", victim.longest)
                samples.add(f"checkpoint_{kind}_in_stop", victim.stopped)
                samples.add(f"checkpoint_{kind}_bytes", image.stat().st_size)
                parent = str(image)
            where = (str(victim.address), str(case.memory), str(changed))
            said = self.run([str(self.raw), "next", str(victim.pid), *where, str(place / "raw")]).out
            for name, word in zip(("raw_looked", "raw_next"), said.split(), strict=True):
                samples.add(name, int(word))
            if not run:
                victim.alter(changed)
                words = ("checkpoint", str(victim.pid), "-o", str(place / "compared"), "--parent", parent)
                samples.add("checkpoint_compared", self.run(self.python.torpor(*words)).took)
            shutil.rmtree(place)
            place.mkdir()
        place.rmdir()

    def _peak(self, victim: Victim, image: Path) -> int:
        """The most memory (bytes of RSS) that a command for a checkpoint has had, as the kernel counts it (VmHWM, proc(5))."""
        image.unlink(missing_ok=True)
        argv = [*self.python.code(PEAK, isolated=False), "checkpoint", str(victim.pid), "-o", str(image)]
        status = dict(line.split(":", 1) for line in self.run(argv).out.splitlines() if ":" in line)
        return int(status["VmHWM"].split()[0]) << 10

    def _restart(self, victim: Victim, case: Case, image: Path, samples: Samples, turn: int) -> None:
        """One round of restarts of a program that does not run."""
        words = ("restart", str(image), "--detach", *victim.options)

        def command(style: str, argv: list[str]) -> None:
            found = self.run(argv)
            samples.add(f"restart_{style}", found.took)
            samples.add(f"restart_{style}_cpu", found.cpu)
            samples.add(f"restart_{style}_running", victim.await_restart(found.began))

        def mechanism() -> None:
            for number in range(case.in_a_row):
                if number:
                    victim.end()
                took, began, _ = self.warm.ask("restart", str(image), *victim.options[1:])
                samples.add("restart_mechanism", took)
                samples.add("restart_mechanism_running", victim.await_restart(began))

        def lazy() -> None:
            found = self.run(self.python.torpor(*words, "--lazy"))
            samples.add("restart_lazy_running", victim.await_restart(found.began))
            wait_for("all of the program's memory comes", lambda: victim.resident() >= case.memory)
            samples.add("restart_lazy_whole", time.time_ns() - found.began)

        def lazily() -> None:
            _, began, _ = self.warm.ask("lazily", str(image), *victim.options[1:])
            samples.add("restart_lazily_running", victim.await_restart(began))

        def raw() -> None:
            samples.add("raw_in", int(self.run([str(self.raw), "in", str(image), str(image.stat().st_size)]).out))

        steps: list[Callable[[], None]] = [
            partial(command, "command", self.python.torpor(*words)),
            partial(command, "served", self.python.torpor(*words, *self.server.options)),
            mechanism,
            raw,
            *[lazy, lazily] * (case.memory >= LARGE and os.geteuid() == 0),
        ]
        turn %= len(steps)
        for step in (*steps[turn:], *steps[:turn]):
            self.freshen(max(case.memory + case.memory // 4, LEAST))
            step()
            victim.end()


def stolen() -> int:
    """How long in all a host has kept this machine's processors from running while they wanted to, ns (proc_stat(5), steal)."""
    ticks = int(Path("/proc/stat").read_text().split(maxsplit=9)[8])
    return ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def build(name: str, directory: Path) -> Path:
    """Compile a C program of the benchmarks. Raises Failed."""
    program = directory / name
    command = [os.environ.get("CC", "gcc"), "-O2", "-pthread", "-o", str(program), str(HERE / f"{name}.c")]
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Failed(f"{name}.c cannot be built: {error}") from error
    return program


def obstacle(case: Case, directory: Path) -> str:
    """Why a case cannot be measured on this machine, or ""."""
    needed = 2 * case.memory + 64 * MIB  # the image beside a raw copy; the program beside its copy, or another one
    if shutil.disk_usage(directory).free < needed:
        return f"needs {needed // MIB} MiB on the disk"
    if os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < needed:
        return f"needs {needed // MIB} MiB of free memory"
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if case.huge and (not setting.exists() or "[never]" in setting.read_text()):
        return "this kernel gives no huge pages (transparent_hugepage/enabled)"
    return ""

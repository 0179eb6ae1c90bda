"""Runs the cases inside a machine: python3 -m tests.machines.guest.

The job is in /work/job; each result is a line of JSON in /work/results. A group of cases runs in a process of its own with a
time limit, so that one that hangs or dies takes no other with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import select
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.calls.program import CANNOT_BE_SAVED, MAY_BE_REFUSED
from tests.machines import forked
from tests.machines.calls import HOME, SHELL, outlasting, whole_lines
from tests.machines.cases import grouped
from tests.machines.foreign import words_about
from tests.machines.killed import Killed
from tests.machines.programs import compute
from tests.machines.victim import FIRST, PROGRESS_WITHIN, Victim
from tests.settings import ROOT, SEED
from tests.torture.harness import INJECTION, PHASES, Reaper, Torture, descendants, remove_ipc, subreaper, summary, torpor

WORK = Path("/work")
PROGRAMS = ROOT / "tests" / "machines" / "programs"
CALL_SECONDS = 3.0  # s, and as much for each cycle; `outlasting` takes more where that is too little
USED = ("--cpu", "used")
FEATURE_UNHARMED = 42  # tests/programs/feature.c
NO_PERMISSION = 6  # torpor's exit code
CALLS_AT_ONCE = 14
"""A tree of many processes takes so long to stop and to make, where QEMU translates, that their waits would be over."""

Report = Callable[[str, bool, str], None]
"""Takes the case, whether it is well, and what there is to say."""


def check(report: Report, cases: list[str], cycles: int) -> None:
    """`torpor check` says what this kernel has."""
    run = torpor(Reaper(), "check")
    report(cases[0], run.code == 0, "; ".join(" ".join(line.split()) for line in run.output.splitlines()))


def image(report: Report, cases: list[str], cycles: int) -> None:
    """A small image is left for the host, and the host's is looked at; what was said of both, it compares."""
    asleep = [sys.executable, "-c", "import time; time.sleep(1000)"]  # there may be no sleep(1)
    victim = Victim(asleep, HOME / "image", random.Random(f"{SEED} image"))
    victim.save(WORK / "image")
    victim.reaper.wait_gone([victim.pid])
    shutil.copyfile("/proc/cpuinfo", WORK / "image.cpuinfo")
    said = {name: words_about(WORK / name, forked.torpor) for name in ("image", "foreign")}
    (WORK / "images.said").write_text(json.dumps(said))
    report(cases[0], True, f"{victim.runs[0].seconds:.2f} s; {said['image'][0]}".splitlines()[0])


def python(report: Report, cases: list[str], cycles: int) -> None:
    """A computation of several threads: every number comes out right."""
    directory = HOME / "python"
    victim = Victim([sys.executable, str(HOME / "compute.py"), str(directory)], directory, random.Random(f"{SEED} python"))
    progress = _size_or_number(directory / "progress")
    victim.goes_on(progress)
    victim.cycle_from_copy(directory / "progress")
    victim.goes_on(progress)
    for _ in range(cycles):
        victim.cycle()
        victim.goes_on(progress)
    (directory / "stop").touch()
    victim.ended()
    threads = [line.split(" ", 2) for line in victim.said.read_text().splitlines()]
    assert [int(thread) for thread, _, _ in threads] == list(range(compute.THREADS)), victim.evidence()
    for thread, links, value in threads:
        right = compute.last_link(int(thread), int(links))
        assert value == right, f"thread {thread} has after {links} links {value}, and not {right}"
    report(cases[0], True, f"{victim.times()}; {sum(int(links) for _, links, _ in threads)} numbers in {len(threads)} threads")


def _size_or_number(path: Path) -> Callable[[], int]:
    """The number in a short file, or the length of a long one; 0 while it is not there."""

    def progress() -> int:
        with contextlib.suppress(OSError, ValueError):
            return int(path.read_bytes()) if path.stat().st_size == 20 else path.stat().st_size
        return 0

    return progress


def pipeline(report: Report, cases: list[str], cycles: int) -> None:
    """Four programs of a shell, joined by pipes, or four processes where there is none: no line is lost, none comes twice."""
    directory = HOME / "pipeline"
    program = ["sh", str(HOME / "pipeline.sh")] if SHELL else [sys.executable, str(HOME / "pipeline.py")]
    victim = Victim([*program, str(directory)], directory, random.Random(f"{SEED} pipeline"))
    written = directory / "progress"
    progress = _size_or_number(written)
    victim.goes_on(progress)
    for _ in range(cycles):
        victim.cycle()
        victim.goes_on(progress)
    (directory / "stop").touch()
    victim.ended()
    rows = written.read_bytes()
    lines = rows.splitlines()
    wrong = next((number for number, line in enumerate(lines, 1) if line != b"row %d" % number), 0)
    assert not wrong, f"line {wrong} of {len(lines)} is {lines[wrong - 1]!r}"
    assert victim.said.read_text().split()[:1] == [hashlib.md5(rows).hexdigest()], victim.evidence()
    report(cases[0], True, f"{victim.times()}; {len(lines)} lines")


def torture(report: Report, cases: list[str], cycles: int) -> None:
    """The program that checks all its own state all the time."""
    _, bits, threads = cases[0].split("-")
    rng = random.Random(f"{SEED} {cases[0]}")
    program = HOME / f"torture{bits}"
    place, command = HOME / cases[0], forked.torpor
    with Torture(program, place, threads=int(threads), rng=rng, command=command, patience=PROGRESS_WITHIN) as victim:
        os.setpriority(os.PRIO_PROCESS, 0, FIRST)
        victim.verify()
        report(cases[0], True, summary([victim.cycle() for _ in range(cycles)]))


def calls(report: Report, cases: list[str], cycles: int) -> None:
    """Interrupted calls of one width. While those of one tree wait for their ends, the next tree has its cycles."""
    bits, slowness = cases[0].split("-")[1], json.loads((WORK / "job").read_text())["slowness"]
    executable, directory = HOME / f"calls{bits}", HOME / f"calls-{bits}"
    by_name = {case.split("-", 2)[2]: case for case in cases}
    for name in sorted(MAY_BE_REFUSED & by_name.keys()):
        if reason := _refusal(executable, name, directory):
            report(by_name.pop(name), True, f"refused: {reason}")
    names, trees, seconds = list(by_name), [], CALL_SECONDS * slowness * (1 + cycles)
    for first in range(0, len(names), CALLS_AT_ONCE):
        trees.append(outlasting(executable, names[first : first + CALLS_AT_ONCE], directory, seconds, slowness, cycles))
        seconds = trees[-1].seconds
    for tree in trees:
        tree.wait()
        for name in tree.names:
            report(by_name[name], *tree.judge(name))


def killed(report: Report, cases: list[str], cycles: int) -> None:
    """torpor is killed while it makes calls by way of a process that waits: the wait is none the worse for it."""
    bits, slowness = cases[0].split("-")[1], json.loads((WORK / "job").read_text())["slowness"]
    trees = [Killed(HOME / f"calls{bits}", HOME / f"{cases[0]}-{number}", slowness) for number in range(cycles // 2)]
    problems = []
    for tree in trees:
        tree.wait()
        problems += [f"{name}: {text}" for name in tree.names for well, text in [tree.judge(name)] if not well]
    phases = Counter(phase for tree in trees for phase in tree.phases)
    if not phases[INJECTION]:
        problems.append("no kill has come during an injection")
    words = ", ".join(f"{PHASES[phase]} {count}" for phase, count in sorted(phases.items()))
    report(cases[0], not problems, "; ".join([f"{phases.total()} kills ({words})", *problems]))


def saved(report: Report, cases: list[str], cycles: int) -> None:
    """Two programs leave their images: one holds state of the feature that the poorer CPU has not, one has never used it."""
    bits = cases[0].split("-")[1]
    for what in ("used", "unused"):
        directory, rng = HOME / f"{cases[0]}-{what}", random.Random(f"{SEED} {what}")
        victim = Victim([str(HOME / f"feature{bits}"), what, str(directory / "stop")], directory, rng, forked.torpor)
        time.sleep(0.5)
        victim.cycle()
        time.sleep(0.1)
        os.utime(victim.said, (0, 0))  # which the image names: on the other CPU there is to be the same
        victim.save(WORK / f"{what}-{bits}")
        victim.reaper.wait_gone([victim.pid])
    report(cases[0], True, victim.times())


def moved(report: Report, cases: list[str], cycles: int) -> None:
    """On the poorer CPU: the first is refused, with the feature's name; the second too, unless the user says --cpu used.

    A kernel without time namespaces refuses all that comes from another boot: there nothing but the clocks stands against it then.
    """
    bits, feature = cases[0].split("-")[1], json.loads((WORK / "job").read_text())["feature"]
    reaper, problems, words = Reaper(), [], []
    welcome = FEATURE_UNHARMED if os.path.exists("/proc/self/ns/time") else NO_PERMISSION
    for what, arguments, code in (("used", [*USED], 4), ("unused", [], 4), ("unused", [*USED], welcome)):
        directory = HOME / f"saved-{bits}-{what}"
        directory.mkdir(exist_ok=True)
        (directory / "stop").touch()
        (directory / "said").touch()
        os.utime(directory / "said", (0, 0))
        run = torpor(reaper, "restart", WORK / f"{what}-{bits}", *arguments)
        named = re.search(rf"\b{feature}\b", run.output) is not None
        words.append(f"{what} {' '.join(arguments)}: exit {run.code}".replace("  ", " "))
        if run.code != code or (code == 4 and not named) or (code == NO_PERMISSION and (named or "clocks" not in run.output)):
            problems.append(f"not exit {code} and {feature!r}: {run}")
    report(cases[0], not problems, "; ".join([f"without {feature}", *words, *problems]))


def _refusal(executable: Path, name: str, directory: Path) -> str:
    """What torpor has to say against saving this call; nothing, as a rule."""
    victim = Victim([str(executable), name, "60", "out"], directory / name, random.Random(0))
    victim.wait_for(lambda: bool(whole_lines(victim.directory / "out")), 30, "its beginning")
    run = torpor(victim.reaper, "check", str(victim.pid))
    for pid in [victim.pid, *descendants(victim.pid)]:
        os.kill(pid, signal.SIGKILL)
    remove_ipc(victim.directory / "out.ipc")
    assert run.code in (0, CANNOT_BE_SAVED), str(run)
    return run.output.strip() if run.code else ""


KINDS = {
    "check": check, "image": image, "python": python, "pipeline": pipeline, "torture": torture, "call": calls,
    "killed": killed, "saved": saved, "moved": moved,
}  # fmt: skip


@contextlib.contextmanager
def results() -> Iterator[Report]:
    """Where results go, with the seconds since the last one."""
    last = time.monotonic()
    with (WORK / "results").open("a") as file:

        def report(case: str, ok: bool, text: str) -> None:
            nonlocal last
            now = time.monotonic()
            file.write(json.dumps({"case": case, "ok": ok, "seconds": now - last, "text": text}) + "\n")
            file.flush()
            last = now

        yield report


def run_group(cases: list[str], cycles: int) -> None:
    """In a process of its own: what is raised is the failure of all cases that have not been reported."""
    left = list(cases)
    with results() as report:

        def take(case: str, ok: bool, text: str) -> None:
            left.remove(case)
            report(case, ok, text)

        try:
            with subreaper():
                KINDS[cases[0].split("-", 1)[0]](take, cases, cycles)
        except BaseException:
            for case in left:
                report(case, False, traceback.format_exc())


def main() -> None:
    job = json.loads((WORK / "job").read_text())
    HOME.mkdir()
    phase = HOME / "phase"
    phase.write_bytes(b"\0")
    os.environ["TORPOR_PHASE_FILE"] = str(phase)  # which torpor looks for when it is loaded, and `killed` looks at
    for path in [*PROGRAMS.iterdir(), *(WORK / "programs").iterdir()]:
        if path.is_file():
            shutil.copy2(path, HOME)  # as it was, for an image that comes from another boot
    with subreaper():
        for cases in grouped(job["cases"]):
            print(f"[{time.monotonic():.1f}] {cases[0]}", flush=True)
            forked.load()
            pid = os.fork()
            if not pid:
                run_group(cases, job["cycles"])
                os._exit(0)
            pidfd = os.pidfd_open(pid)
            ended = bool(select.select([pidfd], [], [], job["seconds"])[0])
            os.close(pidfd)
            for each in descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            os.waitpid(pid, 0)
            if not ended:
                known = [json.loads(line)["case"] for line in (WORK / "results").read_text().splitlines()]
                with results() as report:
                    for case in cases:
                        if case not in known:
                            report(case, False, f"not at its end after {job['seconds']:.0f} s")
    with results() as report:
        report("end", True, "")


if __name__ == "__main__":
    main()

"""The benchmarks run and measure something: they are used rarely, and must work then. No time is judged here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import history, plot, report
from benchmarks.harness import Failed, descendants
from tests.conftest import ROOT

MIB = 1 << 20

PROGRAMS = ["1 MiB", "1 thread", "10 threads", "1 process", "10 processes"]
FIGURES = {
    "checkpoint_command", "checkpoint_served", "checkpoint_mechanism", "checkpoint_standing",
    "checkpoint_command_stopped", "checkpoint_served_stopped", "checkpoint_mechanism_stopped", "checkpoint_standing_stopped",
    "checkpoint_command_in_stop", "checkpoint_served_in_stop", "checkpoint_mechanism_in_stop", "checkpoint_standing_in_stop",
    "checkpoint_mechanism_fsync_file", "checkpoint_mechanism_fsync_directory", "checkpoint_mechanism_without_fsync", "peak_rss",
    "restart_command", "restart_served", "restart_mechanism",
    "restart_command_running", "restart_served_running", "restart_mechanism_running",
    "raw_out", "raw_out_synced", "raw_fork", "raw_in", "undisturbed", "image_bytes",
}  # fmt: skip


@pytest.mark.usefixtures("torpor_runs")
@pytest.mark.skipif(shutil.which("gcc") is None, reason="the benchmarks need gcc")
def test_a_quick_run_measures_everything(tmp_path: Path) -> None:
    file, past = tmp_path / "figures.json", tmp_path / "history"
    before = set(descendants(os.getpid()))
    command = [sys.executable, str(ROOT / "benchmarks" / "run"), "--quick", "--json", str(file), "--history", str(past)]
    done = subprocess.run([*command, "--directory", str(tmp_path)], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert set(descendants(os.getpid())) <= before
    assert not [path for path in Path("/dev/shm").glob("torpor-benchmark-*") if path.stat().st_mtime > file.stat().st_mtime - 250]

    found = json.loads(file.read_text())
    cases = {case["name"]: case for case in found["cases"]}
    assert list(cases) == PROGRAMS
    for name, case in cases.items():
        assert {key for key in FIGURES if not case.get(key)} == set(), f"{name}: no figure"
        assert case["memory"] < case["image_bytes"] < 100 * case["memory"]
    assert cases["10 processes"]["image_bytes"] > cases["1 process"]["image_bytes"]
    assert [row["plain"] > 0 and row["isolated"] > 0 for row in found["starts"]] == [True] * 5
    assert all(case["checkpoint_mechanism_fsync_file"] < case["checkpoint_mechanism"] for case in cases.values())
    assert all(MIB < case["peak_rss"] < 200 * MIB for case in cases.values())
    assert all(case["checkpoint_command_in_stop"] <= case["checkpoint_command_stopped"] for case in cases.values())

    tables = done.stdout.split("\nStood still:")[1].replace("\nRestart", "\nCheckpoint").split("\nCheckpoint")
    assert len(tables) == 3
    for table in tables:
        first = [line[:12].strip() for line in table.splitlines()]
        assert [name for name in PROGRAMS if name not in first] == []
    assert all(f"\n{word} " in done.stdout for word in ("thread", "process"))
    assert sorted(tmp_path.iterdir()) == [file, past]

    (line,) = past.read_text().splitlines()
    run = json.loads(line)
    assert run["machine"] == found["machine"]
    assert run["figures"]["1 MiB: checkpoint_command"] == [cases["1 MiB"]["checkpoint_command"]] * 3 + [1]
    assert ElementTree.fromstring(plotted(list(cases.values()))).tag.endswith("svg")


def plotted(rows: list[dict[str, Any]]) -> str:
    """The plot of real figures, and as if there were another program of 64 MiB for which everything takes 10 times as long."""
    real = next(row for row in rows if row["name"] == "1 MiB")
    larger = {key: 10 * value if key in {key for key, *_ in plot.CURVES} else value for key, value in real.items()}
    return plot.svg([larger | {"name": "64 MiB", "memory": 64 * MIB}, *rows], "x < y & z")


# --- what follows from figures


def row(name: str, memory: int, **figures: float) -> dict[str, Any]:
    return {"name": name, "memory": memory, "threads": 1, "processes": 1, "huge": False, **figures}


def test_a_plot_is_to_scale() -> None:
    """A time ten times as long is one step higher, a memory that is twice as large as far to the right each time."""
    times = {MIB: 1e6, 2 * MIB: 1e7, 8 * MIB: 1e8}
    rows = [row(f"{memory // MIB} MiB", memory, checkpoint_command=time, raw_in=2e6) for memory, time in times.items()]
    root = ElementTree.fromstring(plot.svg([row("1 thread", 65536, checkpoint_command=1e3), *rows], "title"))
    lines = [one.get("points", "").split() for one in root.iter() if one.tag.endswith("polyline")]
    assert len(lines) == 2, "one for each figure that there is"
    curve, limit = [[tuple(map(float, point.split(","))) for point in line] for line in lines]
    (x1, y1), (x2, y2), (x3, y3) = curve
    assert x2 - x1 == pytest.approx((x3 - x2) / 2, abs=0.2) and y1 - y2 == pytest.approx(y2 - y3, abs=0.2) and y1 > y2
    assert len({y for _, y in limit}) == 1 and y2 < limit[0][1] < y1
    assert plot.svg(rows[:1], "title") == ""


def history_line(**figures: list[int]) -> dict[str, Any]:
    rows = [{"name": "1 MiB", name: median(values), "samples": {name: values}} for name, values in figures.items()]
    return history.line({"starts": [], "cases": rows, "machine": MACHINE})


MACHINE = {"host": "a", "processor": "b", "architecture": "c", "cpus": 2, "user": "root", "kernel": "6.1", "load": 0.1}


def test_what_has_become_slower_beyond_noise() -> None:
    before = history_line(
        a=[10, 11, 12], b=[10, 11, 12], c=[100, 101, 102], few=[10, 11], raw_out=[10, 11, 12], x_cpu=[10, 11, 12], gone=[1, 1, 1],
        x_stolen=[0, 0, 0], none=[0, 0, 0],
    )  # fmt: skip
    now = history_line(
        a=[20, 21, 22], b=[11, 21, 22], c=[103, 104, 105], few=[20, 21], raw_out=[20, 21, 22], x_cpu=[20, 21, 22], new=[9, 9, 9],
        x_stolen=[10, 10, 10], none=[1, 1, 1],
    )  # fmt: skip
    found = list(history.slower(before, now))
    # b: ranges overlap; c: by 3 % only; few: too few; the others are not torpor's, or not in both
    assert found == [("1 MiB: a", 11, 21), ("1 MiB: none", 0, 1)]
    said = report.regressions(before, found)
    assert "1 MiB: a" in said and "1.9x" in said and "1 MiB: none" in said
    assert list(history.slower(now, before)) == [] and "Nothing is slower" in report.regressions(before, [])


def test_only_runs_of_the_same_machine_are_compared(tmp_path: Path) -> None:
    file = tmp_path / "history"
    assert history.last(file, MACHINE) is None
    history.append(file, history_line(a=[1]))
    history.append(file, history_line(a=[2]))
    history.append(file, history_line(a=[3]) | {"machine": MACHINE | {"host": "another"}})
    found = history.last(file, MACHINE | {"kernel": "6.18", "load": 3.0})
    assert found and found["figures"] == {"1 MiB: a": [2, 2, 2, 1]}
    assert history.last(file, MACHINE | {"cpus": 4}) is None
    file.write_text("no history\n")
    with pytest.raises(Failed, match="no history"):
        history.last(file, MACHINE)

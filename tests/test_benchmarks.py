"""The benchmarks run and measure something: they are used rarely, and must work then. No time is judged here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PROGRAMS = ["1 MiB", "1 thread", "10 threads", "1 process", "10 processes"]
FIGURES = {
    "checkpoint_command", "checkpoint_isolated", "checkpoint_mechanism", "checkpoint_command_stopped",
    "restart_command", "restart_isolated", "restart_mechanism", "restart_command_running", "restart_mechanism_running",
    "raw_out", "raw_out_synced", "raw_in", "undisturbed", "image_bytes",
}  # fmt: skip


@pytest.mark.usefixtures("torpor_runs")
@pytest.mark.skipif(shutil.which("gcc") is None, reason="the benchmarks need gcc")
def test_a_quick_run_measures_everything(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "run"), "--quick", "--json", str(file), "--directory", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert not done.stderr

    found = json.loads(file.read_text())
    cases = {case["name"]: case for case in found["cases"]}
    assert list(cases) == PROGRAMS
    for name, case in cases.items():
        assert {key for key in FIGURES if not case.get(key)} == set(), f"{name}: no figure"
        assert case["memory"] < case["image_bytes"] < 100 * case["memory"]
    assert cases["10 processes"]["image_bytes"] > cases["1 process"]["image_bytes"]
    assert [row["plain"] > 0 and row["isolated"] > 0 for row in found["starts"]] == [True] * 4

    tables = done.stdout.split("\nCheckpoint:")[1].split("\nRestart")
    for table in tables:
        first = [line[:12].strip() for line in table.splitlines()]
        assert [name for name in PROGRAMS if name not in first] == []
    assert all(f"\n{word} " in done.stdout for word in ("thread", "process"))
    assert list(tmp_path.iterdir()) == [file]

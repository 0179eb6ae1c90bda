"""What was measured before on the same machine, and what has become slower than that.

The file has a JSON object on each line, for one run: date, commit, machine, and of every figure the median, the least, the greatest
and how many there were. Noise is what a figure varies by within a run: it has become slower if every sample of it is greater than
every sample of the run before, and the median by more than MARGIN. Five samples of two equal runs lie like that once in 252 times.
"""

from __future__ import annotations

import datetime
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import HERE, Failed

MARGIN = 0.1
FEWEST = 3
"""Samples of a figure below which nothing is said of it."""
IDENTITY = ("host", "processor", "architecture", "cpus", "user")
"""What makes a machine the same one."""
LEFT_OUT = ("undisturbed", "cpu", "raw", "stolen")
"""Words in the names of figures that are not torpor's, or that others already say."""

Line = dict[str, Any]


def line(found: dict[str, Any]) -> Line:
    """The line of a run."""
    figures: dict[str, list[float]] = {}
    for row in (*found["starts"], *found["cases"]):
        for name, values in row["samples"].items():
            figures[f"{row['name']}: {name}"] = [row[name], min(values), max(values), len(values)]
    now = datetime.datetime.now(datetime.UTC)
    return {"date": now.isoformat(timespec="seconds"), "commit": commit(), "machine": found["machine"], "figures": figures}


def commit() -> str:
    """The commit that is measured, with a "+" if something has been changed since; "" if that is not known."""
    def git(*words: str) -> str:
        try:
            return subprocess.run(["git", "-C", str(HERE), *words], capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""

    name = git("rev-parse", "HEAD")
    return name + ("+" if name and git("status", "--porcelain", "--untracked-files=no") else "")


def last(file: Path, machine: dict[str, Any]) -> Line | None:
    """The last run on this machine in the file. Raises Failed if that is no history."""
    try:
        lines = [json.loads(text) for text in file.read_text().splitlines()] if file.exists() else []
        same = [one for one in lines if all(one["machine"].get(key) == machine[key] for key in IDENTITY)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failed(f"{file} is no history of benchmarks: {error}") from error
    return same[-1] if same else None


def append(file: Path, run: Line) -> None:
    """One run more."""
    with file.open("a") as out:
        out.write(json.dumps(run) + "\n")


def slower(before: Line, now: Line) -> Iterator[tuple[str, float, float]]:
    """(figure, median before, median now) of what has become slower, or larger, beyond noise."""
    for name, (middle, least, _, count) in now["figures"].items():
        old = before["figures"].get(name)
        if old is None or min(count, old[3]) < FEWEST or set(LEFT_OUT) & set(name.partition(": ")[2].split("_")):
            continue
        if least > old[2] and middle > old[0] * (1 + MARGIN):
            yield name, old[0], middle

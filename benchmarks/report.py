"""The figures as tables for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.harness import Failed

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]


def ms(ns: float) -> str:
    """Nanoseconds as milliseconds, three digits that say something."""
    value = ns / 1e6
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def size(count: float) -> str:
    """Bytes in a unit in which they are readable."""
    power = 0
    while count >= 1024 and power < 3:
        count, power = count / 1024, power + 1
    return (f"{count:.0f}" if count >= 100 or not power else f"{count:.3g}") + (" B", " KiB", " MiB", " GiB")[power]


def time_of(key: str) -> Callable[[Row], str]:
    """A column that shows a time in ms."""
    return lambda row: ms(row[key])


def ratio(above: str, below: str) -> Callable[[Row], str]:
    """A column that shows how many times as long one thing takes as another."""
    return lambda row: f"{row[above] / row[below]:.1f}x"


CHECKPOINT: list[Column] = [
    ("program", lambda row: row["name"]),
    ("image", lambda row: size(row["image_bytes"])),
    ("command", time_of("checkpoint_command")),
    ("-I -S", time_of("checkpoint_isolated")),
    ("mechanism", time_of("checkpoint_mechanism")),
    ("stood still", time_of("checkpoint_command_stopped")),
    ("(alone)", time_of("undisturbed")),
    ("raw", time_of("raw_out")),
    ("raw+fsync", time_of("raw_out_synced")),
    ("command/raw+fsync", ratio("checkpoint_command", "raw_out_synced")),
    ("mechanism/raw+fsync", ratio("checkpoint_mechanism", "raw_out_synced")),
    ("stood still/raw", ratio("checkpoint_command_stopped", "raw_out")),
]
RESTART: list[Column] = [
    ("program", lambda row: row["name"]),
    ("image", lambda row: size(row["image_bytes"])),
    ("command", time_of("restart_command")),
    ("-I -S", time_of("restart_isolated")),
    ("mechanism", time_of("restart_mechanism")),
    ("runs again", time_of("restart_command_running")),
    ("(mechanism)", time_of("restart_mechanism_running")),
    ("raw", time_of("raw_in")),
    ("command/raw", ratio("restart_command", "raw_in")),
    ("mechanism/raw", ratio("restart_mechanism", "raw_in")),
]
STARTS: list[Column] = [
    ("Python starts and loads", lambda row: row["name"]),
    ("as it comes", time_of("plain")),
    ("-I -S", time_of("isolated")),
]
SLOPES: list[Column] = [
    ("each", lambda row: row["name"]),
    ("checkpoint", time_of("checkpoint_mechanism")),
    ("stood still", time_of("checkpoint_command_stopped")),
    ("restart", time_of("restart_mechanism")),
    ("image", lambda row: size(row["image_bytes"])),
]
SLOPE_KEYS = ("checkpoint_mechanism", "checkpoint_command_stopped", "restart_mechanism", "image_bytes")


def table(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    """Lines with the first column to the left and all others to the right."""
    cells = [[head for head, _ in columns], *([show(row) for _, show in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for line in cells:
        first, *others = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        lines.append("  ".join([line[0].ljust(len(first)), *others]))
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def slopes(cases: Sequence[Row]) -> list[Row]:
    """What each further thread, process or GiB costs: from the smallest to the largest program of a kind."""
    found = []
    for name, key, unit in (("thread", "threads", 1), ("process", "processes", 1), ("GiB", "memory", 1 << 30)):
        # Those that differ in nothing else.
        others = [other for other in ("threads", "processes", "memory") if other != key]
        if key == "memory":
            kind = [row for row in cases if all(row[other] == 1 for other in others)]
        else:
            kind = [row for row in cases if row["name"].partition(" ")[2].startswith(name)]
        kind.sort(key=lambda row: int(row[key]))
        # From a few MiB more one learns nothing.
        if kind and (kind[-1][key] - kind[0][key]) / unit > 1 / 32:
            low, high = kind[0], kind[-1]
            distance = (high[key] - low[key]) / unit
            found.append({"name": name, **{k: (high[k] - low[k]) / distance for k in SLOPE_KEYS}})
    return found


def text(found: dict[str, Any]) -> str:
    """Everything, as it is printed. Raises Failed when there is nothing."""
    machine, cases = found["machine"], found["cases"]
    if not cases:
        raise Failed("nothing was measured")
    runs = sorted({row["runs"] for row in cases})
    lines = [
        f"{machine['processor']}, {machine['cpus']} CPUs (load {machine['load']:.1f}), Linux {machine['kernel']}, "
        f"Python {machine['python']}, {machine['user']} user",
        f"Medians of {' or '.join(map(str, runs))} runs; times in ms.",
        "",
        *table(STARTS, found["starts"]),
        "",
        "Checkpoint: the program goes on, the image is on disk (fsync). raw: process_vm_readv + write of as many bytes.",
        *table(CHECKPOINT, cases),
        "",
        "Restart (--detach). runs again: from the start of the command to the program's next look at the clock.",
        "raw: first touch of fresh memory + read of as many bytes from the page cache.",
        *table(RESTART, cases),
    ]
    if costs := slopes(cases):
        lines += ["", "Each further one costs (mechanism):", *table(SLOPES, costs)]
    lines += [
        "",
        "command: `torpor`, a process each. -I -S: the same without site-packages. mechanism: the function",
        "alone, called in a process that has torpor loaded. stood still: the longest time between two of the program's",
        "own looks at the clock; (alone): the same while nothing is done to it.",
    ]
    return "\n".join(lines)

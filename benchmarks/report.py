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


def ratio(above: str, below: str, digits: int = 1) -> Callable[[Row], str]:
    """A column that shows how many times as long one thing takes as another; nothing where that took no time."""
    return lambda row: f"{row[above] / row[below]:.{digits}f}x" if row[below] else ""


def rate(key: str, share: str = "image_bytes") -> Callable[[Row], str]:
    """A column that shows how many GB (1e9 bytes) a second a time comes to."""
    return lambda row: f"{row[share] / row[key]:.2f}"


def name(row: Row) -> str:
    """The first column."""
    return str(row["name"])


PAUSE: list[Column] = [
    ("program", name),
    ("stood still", time_of("checkpoint_command_stopped")),
    ("in the stop", time_of("checkpoint_command_in_stop")),
    ("--server", time_of("checkpoint_served_stopped")),
    ("in the stop", time_of("checkpoint_served_in_stop")),
    ("stop-and-copy", time_of("checkpoint_standing_stopped")),
    ("(stolen)", time_of("checkpoint_command_stolen")),
    ("(fork alone)", time_of("raw_fork")),
    ("(raw copy)", time_of("raw_out_stopped")),
    ("(alone)", time_of("undisturbed")),
    ("stop-and-copy/stood still", ratio("checkpoint_standing_stopped", "checkpoint_command_stopped")),
]
CHECKPOINT: list[Column] = [
    ("program", name),
    ("image", lambda row: size(row["image_bytes"])),
    ("command", time_of("checkpoint_command")),
    ("--server", time_of("checkpoint_served")),
    ("mechanism", time_of("checkpoint_mechanism")),
    ("fsync: file", time_of("checkpoint_mechanism_fsync_file")),
    ("directory", time_of("checkpoint_mechanism_fsync_directory")),
    ("raw", time_of("raw_out")),
    ("raw+fsync", time_of("raw_out_synced")),
    ("command/raw+fsync", ratio("checkpoint_command", "raw_out_synced")),
    ("without fsync/raw", ratio("checkpoint_mechanism_without_fsync", "raw_out")),
    ("peak RSS", lambda row: size(row["peak_rss"])),
]
RATE: list[Column] = [
    ("program", name),
    ("command", rate("checkpoint_command")),
    ("mechanism without fsync", rate("checkpoint_mechanism_without_fsync")),
    ("raw", rate("raw_out")),
    ("raw+fsync", rate("raw_out_synced")),
]
RESTART: list[Column] = [
    ("program", name),
    ("command", time_of("restart_command")),
    ("--server", time_of("restart_served")),
    ("mechanism", time_of("restart_mechanism")),
    ("runs again", time_of("restart_command_running")),
    ("(--server)", time_of("restart_served_running")),
    ("(mechanism)", time_of("restart_mechanism_running")),
    ("raw", time_of("raw_in")),
    ("runs again/raw", ratio("restart_command_running", "raw_in")),
]
NEXT: list[Column] = [
    ("program", name),
    ("first image", time_of("checkpoint_first")),
    ("next ones", time_of("checkpoint_next")),
    ("next/first", ratio("checkpoint_next", "checkpoint_first", 3)),
    ("(raw)", time_of("raw_next")),
    ("(smaps)", time_of("raw_looked")),
    ("stood still", time_of("checkpoint_next_stopped")),
    ("in the stop", time_of("checkpoint_next_in_stop")),
    ("bytes", lambda row: size(row["checkpoint_next_bytes"])),
    ("next/first", ratio("checkpoint_next_bytes", "checkpoint_first_bytes", 3)),
    ("command, compared", time_of("checkpoint_compared")),
]
LAZY: list[Column] = [
    ("program", name),
    ("runs again", time_of("restart_lazy_running")),
    ("(mechanism)", time_of("restart_lazily_running")),
    ("(all before)", time_of("restart_command_running")),
    ("all is there", time_of("restart_lazy_whole")),
    ("all is there/all before", ratio("restart_lazy_whole", "restart_command_running")),
]
STARTS: list[Column] = [
    ("Python starts and loads", name),
    ("as it comes", time_of("plain")),
    ("-I -S", time_of("isolated")),
]
SLOPES: list[Column] = [
    ("each", name),
    ("stood still", time_of("checkpoint_command_stopped")),
    ("in the stop", time_of("checkpoint_command_in_stop")),
    ("checkpoint", time_of("checkpoint_command")),
    ("(--server)", time_of("checkpoint_served")),
    ("(mechanism)", time_of("checkpoint_mechanism")),
    ("restart", time_of("restart_command")),
    ("(mechanism)", time_of("restart_mechanism")),
    ("image", lambda row: size(row["image_bytes"])),
]
SLOPE_KEYS = (
    "checkpoint_command_stopped", "checkpoint_command_in_stop", "checkpoint_command", "checkpoint_served", "checkpoint_mechanism",
    "restart_command", "restart_mechanism", "image_bytes",
)  # fmt: skip
LARGE = 256 << 20
"""Bytes of memory from which a rate says something."""


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
    cases = [row for row in cases if "restart_command" in row]
    for each, key, unit in (("thread", "threads", 1), ("process", "processes", 1), ("GiB", "memory", 1 << 30)):
        # Those that differ in nothing else.
        others = [other for other in ("threads", "processes", "memory") if other != key]
        if key == "memory":
            kind = [row for row in cases if all(row[other] == 1 for other in others) and not row["huge"]]
        else:
            kind = [row for row in cases if row["name"].partition(" ")[2].startswith(each)]
        kind.sort(key=lambda row: int(row[key]))
        # From a few MiB more one learns nothing.
        if kind and (kind[-1][key] - kind[0][key]) / unit > 1 / 32:
            low, high = kind[0], kind[-1]
            distance = (high[key] - low[key]) / unit
            found.append({"name": each, **{k: (high[k] - low[k]) / distance for k in SLOPE_KEYS}})
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
        "Stood still: the longest time between two of the program's own looks at the clock, during `torpor checkpoint` and with",
        "--server; in the stop: the longest of those times in which it was stopped, rather than without a processor; stop-and-",
        "copy: the same when torpor has no copy made, as with --kill; (stolen): for how long a host kept the processors from",
        "running meanwhile, which the program sees as well; (raw copy): stood still while as many bytes are moved without torpor,",
        "which stops nobody but wants both processors; (alone): while nothing is done to it.",
        *table(PAUSE, cases),
        "",
        "Checkpoint: until the command ends; the image is on disk then. mechanism: the function alone, in a process that",
        "has torpor loaded, for small programs several times in a row, and how much of that it waits in fsync, of the image and",
        "of its directory. raw: process_vm_readv and write of as many bytes on two threads, and with fsync. peak RSS: of the",
        "command.",
        *table(CHECKPOINT, cases),
        "",
    ]
    if large := [row for row in cases if row["memory"] >= LARGE]:
        lines += ["The same as a rate, in GB (1e9 bytes of incompressible image) a second.", *table(RATE, large), ""]
    if chains := [row for row in cases if "checkpoint_next" in row]:
        lines += [
            "One image after the other, a hundredth of the pages changed meanwhile, as `torpor watch` takes them (the function",
            "alone); compared: `torpor checkpoint --parent`, which nobody has told what has changed. (raw): to read smaps, which",
            "alone tells the flags of mappings, then to read, write and fsync as many pages; (smaps): of that, the first.",
            *table(NEXT, chains),
            "",
        ]
    if restarts := [row for row in cases if "restart_command" in row]:
        lines += [
            "Restart (--detach). runs again: from the start of the command to the program's next look at the clock.",
            "raw: first touch of fresh memory + read of as many bytes from the page cache.",
            *table(RESTART, restarts),
        ]
    if late := [row for row in cases if "restart_lazy_running" in row]:
        lines += ["", "Restart with --lazy: from the start of the command until it runs, and until all of its memory is there."]
        lines += table(LAZY, late)
    if costs := slopes(cases):
        lines += ["", "Each further one costs, from the smallest to the largest program of its kind:", *table(SLOPES, costs)]
    return "\n".join(lines)


def regressions(before: Row, found: Sequence[tuple[str, float, float]]) -> str:
    """What has become slower since the run `before`."""
    machine = before["machine"]
    where = f"commit {before['commit'][:12] or '?'}, Linux {machine['kernel']}, load {machine['load']:.1f}"
    since = f"the run of {before['date']} ({where})"
    if not found:
        return f"Nothing is slower, beyond noise, than in {since}."
    rows = [{"name": one, "before": old, "now": new} for one, old, new in sorted(found, key=lambda row: row[1] / row[2])]

    def shown(key: str) -> Callable[[Row], str]:
        return lambda row: size(row[key]) if row["name"].endswith(("_rss", "_bytes")) else ms(row[key])

    columns: list[Column] = [("slower (ms)", name), ("before", shown("before")), ("now", shown("now"))]
    columns.append(("", ratio("now", "before")))
    return "\n".join([f"Slower than in {since}:", *table(columns, rows)])

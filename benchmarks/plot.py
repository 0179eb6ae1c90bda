"""A plot of the figures that depend on the size of a program: log-log, as SVG, in a few lines of our own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.report import ms

Row = dict[str, Any]

WIDTH, HEIGHT = 900, 520
LEFT, RIGHT, TOP, BOTTOM = 80, 330, 50, 55

CURVES = [
    # (key, what it is, colour, dashes: a limit or a way that torpor does not go)
    ("checkpoint_command", "torpor checkpoint", "#1b6ca8", ""),
    ("checkpoint_served", "torpor checkpoint --server", "#5aa9e6", ""),
    ("raw_out_synced", "limit: process_vm_readv + write + fsync", "#1b6ca8", "6 4"),
    ("restart_command_running", "torpor restart, until it runs", "#2a9d4a", ""),
    ("raw_in", "limit: first touch + read", "#2a9d4a", "6 4"),
    ("checkpoint_standing_stopped", "stood still: all copied while stopped", "#c0392b", "6 4"),
    ("checkpoint_command_stopped", "stood still: torpor checkpoint", "#c0392b", ""),
    ("undisturbed", "stood still: nothing is done to it", "#999999", "2 3"),
]


def svg(rows: Sequence[Row], title: str) -> str:
    """The plot of programs with one thread that differ in their memory; "" where there are not two of them."""
    rows = sorted((row for row in rows if (row["threads"], row["processes"], row["huge"]) == (1, 1, False)), key=memory)
    rows = [row for row in rows if row["memory"] >= 1 << 20]
    points = {key: [(memory(row), row[key] / 1e6) for row in rows if row.get(key)] for key, *_ in CURVES}
    values = [value for curve in points.values() for _, value in curve]
    if len(rows) < 2 or not values:
        return ""
    least, most = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    first, end = math.log2(memory(rows[0])), math.log2(memory(rows[-1]))

    def x(size: float) -> float:
        return LEFT + (math.log2(size) - first) / (end - first) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (math.log10(value) - least) / (most - least) * (HEIGHT - TOP - BOTTOM)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="15">{escape(title)}</text>',
    ]
    for power in range(least, most + 1):
        at = y(10.0**power)
        out.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{10.0**power:g} ms</text>')
    for row in rows:
        at = x(memory(row))
        out.append(f'<path d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        out.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{escape(row["name"])}</text>')
    ends: list[tuple[float, str, str]] = []
    for key, label, colour, dashes in CURVES:
        curve = points[key]
        if not curve:
            continue
        path = " ".join(f"{x(size):.1f},{y(value):.1f}" for size, value in curve)
        stroke = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes or "none"}"'
        out.append(f'<polyline points="{path}" fill="none" {stroke}/>')
        out += [f'<circle cx="{x(size):.1f}" cy="{y(value):.1f}" r="3" fill="{colour}"/>' for size, value in curve]
        ends.append((y(curve[-1][1]), f"{label}: {ms(1e6 * curve[-1][1])} ms", colour))
    below = 0.0
    for at, label, colour in sorted(ends):  # next to the ends of their curves, but not over each other
        below = max(at, below + 16)
        out.append(f'<text x="{WIDTH - RIGHT + 10}" y="{below + 4:.1f}" fill="{colour}">{escape(label)}</text>')
    out.append(f'<text x="{LEFT}" y="{HEIGHT - 8}">memory of the program; medians, both scales logarithmic</text>')
    return "\n".join([*out, "</svg>", ""])


def memory(row: Row) -> int:
    """Bytes."""
    return int(row["memory"])

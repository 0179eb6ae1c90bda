"""The kernel's objects, one file per kind, both directions side by side."""

from __future__ import annotations

ALL = tuple(
    f"torpor.objects.{name}" for name in ("nodes", "files", "tables", "memory", "signals", "processes", "threads", "timers")
)
"""The modules that declare records (docs/image-format.md is made from them)."""

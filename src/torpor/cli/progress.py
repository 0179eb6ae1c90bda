"""A line of progress on standard error, on a terminal, for anything that takes over a second."""

from __future__ import annotations

import sys
import time


class Progress:
    """Call it with the bytes done and the bytes in all; `close` wipes the line."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._begun = time.monotonic()
        self._next = self._begun + 1.0
        self._shown = False
        self._terminal = sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self._terminal or now < self._next or not total:
            return
        self._next, self._shown = now + 0.2, True
        rate = done / (now - self._begun) / 1e6
        print(f"\r{self.what}: {done / 1e6:.0f} of {total / 1e6:.0f} MB, {rate:.0f} MB/s ", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Wipe the line, if there is one."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

"""When a process ran and when it did not, seen from outside in /proc."""

from __future__ import annotations

import threading
import time

from tests.torture.harness import status

GLIMPSE = 0.04  # s; a process that is being made again may be seen untraced for less than this


class Watch:
    """Looks at /proc every so many seconds until told to stop, and keeps every change between running, traced and gone."""

    def __init__(self, pid: int, every: float = 0.0003) -> None:
        self.pid, self._every = pid, every
        self.changes: list[tuple[float, str]] = []
        self._end = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _look(self) -> str:
        now = status(self.pid)
        if not now or now.get("State", "Z")[0] in "ZX":
            return "gone"
        return "traced" if now.get("TracerPid", "0") != "0" else "running"

    def _run(self) -> None:
        before, last = time.time(), ""
        while not self._end:
            seen = self._look()
            now = time.time()
            if seen != last:
                self.changes.append(((before + now) / 2, seen))
                last = seen
            before = now
            time.sleep(self._every)

    def stop(self) -> None:
        self._end = True
        self._thread.join()

    def dead(self, until: float) -> float:
        """Seconds before `until` in which it was gone, from the freeze before to the end of the restart after.

        On its way back the process may be seen untraced for a moment; stops in which it was never gone do not count.
        """
        total = start = 0.0
        was_gone = False
        for (when, state), (then, _) in zip(self.changes, [*self.changes[1:], (until, "")], strict=True):
            if when > until:
                break
            if state != "running":
                start = start or when
                was_gone = was_gone or state == "gone"
            elif (start and min(then, until) - when > GLIMPSE) or then >= until:
                total += when - start if was_gone and start else 0.0
                start, was_gone = 0.0, False
        return total

    def standstill(self, until: float) -> float:
        """Seconds before `until` in which it did not run."""
        total = 0.0
        for (when, state), (then, _) in zip(self.changes, self.changes[1:], strict=False):
            if state != "running" and when < until:
                total += min(then, until) - when
        return total

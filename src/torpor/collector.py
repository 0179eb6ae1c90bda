"""Python's garbage collector, and when it is not wanted."""

from __future__ import annotations

import gc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType


class Paused:
    """Inside of the `with` block garbage is not looked for.

    That goes through everything a process has, again and again as records are made by the thousand, and in a process that calls
    torpor as a library this can be much: a program would stand still so long. (What two threads pause is on again when the first
    of them is through: nothing is wrong then but the time.)
    """

    def __enter__(self) -> None:
        self._was_on = gc.isenabled()
        gc.disable()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._was_on:
            gc.enable()

"""What torpor says when it will not or cannot do something.

Every refusal is a sentence that names the pid, the object, the reason and the remedy (requirements, part E). An
`Obstacle` is one such sentence; a `TorporError` carries one or more of them and the exit code of the command line.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class Obstacle:
    """One reason why something cannot be done, in four parts that make one sentence."""

    __slots__ = ("object", "pid", "reason", "remedy")

    def __init__(self, object: str, reason: str, remedy: str = "", *, pid: int | None = None) -> None:
        self.pid, self.object, self.reason, self.remedy = pid, object, reason, remedy

    def __str__(self) -> str:
        who = f"pid {self.pid}: " if self.pid is not None else ""
        text = f"{who}{self.object}: {self.reason}"
        return f"{text}; {self.remedy}" if self.remedy else text

    def __repr__(self) -> str:
        return f"Obstacle({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Obstacle) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))


class TorporError(Exception):
    """Something failed (exit code 1). `obstacles` holds every reason that was found, not only the first."""

    exit_code = 1

    def __init__(self, what: str | Obstacle | Iterable[Obstacle]) -> None:
        if isinstance(what, str):
            what = Obstacle("torpor", what)
        self.obstacles: list[Obstacle] = [what] if isinstance(what, Obstacle) else list(what)
        super().__init__("\n".join(str(o) for o in self.obstacles))


class UsageError(TorporError):
    """The command line or the arguments of a call make no sense (exit code 2)."""

    exit_code = 2


class Unsupported(TorporError):
    """The program, or this kernel, has something torpor cannot save or restart here (exit code 4)."""

    exit_code = 4


class BadImage(TorporError):
    """The image is cut short, altered, hostile, of a newer format or for another machine (exit code 5)."""

    exit_code = 5


class NoPermission(TorporError):
    """The kernel does not let this user do it (exit code 6)."""

    exit_code = 6

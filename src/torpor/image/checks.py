"""Small checks that can be put together, and what is raised when one says no.

A check is a function that answers with a reason, or with None when all is well.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Check = Callable[[Any], str | None]


class Refusal(ValueError):
    """A value that its declaration does not admit: where it lies (`runs[2].start`), and why not."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}" if where else reason)
        self.where, self.reason = where, reason

    def within(self, outer: str) -> Refusal:
        """The same refusal, seen from outside of the field `outer` that holds the offender."""
        return Refusal(f"{outer}.{self.where}" if self.where else outer, self.reason)


def brief(value: object) -> str:
    """`value` for a sentence: never longer than a line, whatever the image holds."""
    text = repr(value[:40]) if isinstance(value, str | bytes | list) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class Rule:
    """A check that can also say what it admits (`meaning`), for the format page."""

    __slots__ = ("meaning", "test")

    def __init__(self, meaning: str, test: Check) -> None:
        self.meaning, self.test = meaning, test

    def __call__(self, value: Any) -> str | None:
        return self.test(value)


def in_range(low: int, high: int) -> Rule:
    """Admits `low` to `high`, both included."""
    return Rule(
        f"{spell(low)} to {spell(high)}",
        lambda v: None if low <= v <= high else f"{v} is not between {spell(low)} and {spell(high)}",
    )


def aligned(to: int) -> Rule:
    """Admits multiples of `to`."""
    return Rule(f"a multiple of {to}", lambda v: f"{v:#x} is not a multiple of {to}" if v % to else None)


def one_of(*values: int) -> Rule:
    """Admits the values given."""
    listed = ", ".join(map(str, values))
    return Rule(f"one of {listed}", lambda v: None if v in values else f"{brief(v)} is none of {listed}")


def all_of(*checks: Check) -> Rule:
    """Admits what every one of `checks` admits; the first that does not gives the reason."""

    def test(value: Any) -> str | None:
        return next((reason for check in checks if (reason := check(value))), None)

    return Rule("; ".join(filter(None, map(meaning_of, checks))), test)


non_empty = Rule("not empty", lambda v: None if v else "is empty")
non_zero = Rule("not 0", lambda v: None if v else "is 0")


def meaning_of(check: Check) -> str:
    """What `check` admits, in words: a Rule says it, any other function has it as its docstring."""
    return check.meaning if isinstance(check, Rule) else (check.__doc__ or "").strip().partition("\n")[0]


def spell(number: int) -> str:
    """A number as people write it: sizes and limits that are round in binary are unreadable in decimal."""
    return hex(number) if abs(number) > 0xFFFF else str(number)

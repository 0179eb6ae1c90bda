"""What the registers of a restarted thread may hold (R-D1): what the rules of all processor families have in common.

A family's table has a row for every field of every register record. A rule answers with the rest of a sentence that begins
"register NAME VALUE", or with None.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from torpor.image.record import Record

    Rule = Callable[[Any, Any], str | None]
    Rules = dict[type[Record], dict[str, Rule]]

CALL_LIMIT = 1024
"""No system call has this number or a higher one; the tables end below 600 and grow by a few a year."""


class Facts:
    """What a rule may look at besides the value itself: `record` is the one it stands in."""

    __slots__ = ("call", "ip", "is_executable", "record", "syscall_before", "user_limit", "word")

    record: Record
    call: int
    """The number of the call that the thread is in, or -1 in its word size ..."""
    ip: int
    """... and its instruction pointer."""
    word: int

    def __init__(self, user_limit: int, is_executable: Callable[[int], bool], syscall_before: Callable[[int], bool]) -> None:
        self.user_limit, self.is_executable, self.syscall_before = user_limit, is_executable, syscall_before


def row(record: type[Record], **special: Rule) -> Rules:
    """The rules of `record`, one for each field in the order of declaration; a field not named may hold anything."""
    names = [field.name for field in record.declared]
    unknown = special.keys() - names
    if unknown:
        raise TypeError(f"{record.__name__} has no field {unknown}")
    return {record: {name: special.get(name, anything) for name in names}}


def faults(record: Record, rules: Mapping[str, Rule], facts: Facts) -> list[str]:
    """What is wrong with one record: a sentence for each field, naming the register."""
    found = []
    facts.record = record
    for name, rule in rules.items():
        value = getattr(record, name)
        if reason := rule(value, facts):
            shown = f" {value:#x}" if isinstance(value, int) else ""
            found.append(f"register {name}{shown} {reason}")
    return found


def asks_again(result: int, word: int) -> bool:
    """Whether the result register holds -ERESTART* (512 to 516): the kernel may then move the instruction pointer back."""
    return 512 <= (1 << 8 * word) - result <= 516


def anything(value: Any, facts: Facts) -> None:
    """A value of the program's own that neither CPU nor kernel interprets, or of which every one is good."""


def within(mask: int) -> Rule:
    """Nothing but the bits of `mask`."""
    return lambda value, facts: f"has bits set outside {mask:#x}" if value & ~mask else None


def stack(value: int, facts: Facts) -> str | None:
    """A stack pointer. An empty stack at the very top is in order; and a program may use the register for something else."""
    return None if value <= facts.user_limit else f"lies above user memory, which ends at {facts.user_limit:#x}"


def executable(value: int, facts: Facts) -> str | None:
    """An instruction pointer."""
    return None if facts.is_executable(value) else "does not lie in executable memory"


def call(value: int, facts: Facts) -> str | None:
    """The number of a call, or -1."""
    none = (1 << 8 * facts.word) - 1
    return None if value < CALL_LIMIT or value == none else "is neither -1 nor the number of a system call"


def result(value: int, facts: Facts) -> str | None:
    """What a call has given: it may only ask to be made again where it can be."""
    if facts.call >> (8 * facts.word - 1) or not asks_again(value, facts.word) or facts.syscall_before(facts.ip):
        return None
    return f"asks for a system call to be made again, but there is none in front of {facts.ip:#x}"


def numbers(count: int, limit: int) -> Rule:
    """A list of `count` values of at most `limit`."""

    def rule(value: Sequence[int], facts: Facts) -> str | None:
        if len(value) != count:
            return f"has {len(value)} values instead of {count}"
        return None if max(value) <= limit else f"has a value of {max(value)}, more than {limit}"

    return rule

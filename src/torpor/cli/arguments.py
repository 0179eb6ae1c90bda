"""The words of a command line, by the POSIX and GNU conventions, for a handful of options.

argparse would cost every checkpoint 6 ms of start-up (it brings `re` and `gettext`): as much as the mechanism itself needs.
"""

from __future__ import annotations

from torpor.errors import Obstacle, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


class Option:
    """An option: its names ("-o", "--output"), the name of its value or None for a switch, and what it does."""

    __slots__ = ("doc", "key", "names", "repeated", "value")

    def __init__(self, *names: str, value: str | None = None, doc: str, repeated: bool = False) -> None:
        self.names, self.value, self.doc, self.repeated = names, value, doc, repeated
        self.key = names[-1].lstrip("-").replace("-", "_")


SERVER = Option("--server", value="SOCKET", doc="have the server that listens on SOCKET do it (torpor serve)")
"""Of every verb that a server can carry out."""


class Verb:
    """What a verb takes: its summary, the names of its operands (a leading "?" marks one that may be left out), its options."""

    __slots__ = ("name", "operands", "options", "summary")

    def __init__(self, name: str, summary: str, operands: Sequence[str], options: Sequence[Option]) -> None:
        self.name, self.summary, self.operands, self.options = name, summary, operands, options

    def usage(self) -> str:
        """The help text."""
        words = [f"[{name[1:]}]" if name.startswith("?") else name for name in self.operands]
        lines = [f"usage: torpor {self.name} [options] {' '.join(words)}".rstrip(), "", self.summary, ""]
        for option in self.options:
            left = ", ".join(option.names) + (f" {option.value}" if option.value else "")
            lines.append(f"  {left:<26} {option.doc}")
        lines.append(f"  {'-h, --help':<26} show this text")
        return "\n".join(lines)

    def parse(self, words: Sequence[str]) -> Parsed:
        """Sort `words` into options and operands. Raises UsageError."""
        by_name = {name: option for option in self.options for name in option.names}
        parsed = Parsed(self)
        operands: list[str] = []
        waiting = list(words)
        while waiting:
            word = waiting.pop(0)
            if word == "--":
                operands += waiting
                break
            if word in ("-h", "--help"):
                parsed.help = True
                return parsed
            if not word.startswith("-") or word == "-":
                operands.append(word)
                continue
            name, equals, value = word.partition("=") if word.startswith("--") else (word[:2], word[2:], word[2:])
            option = by_name.get(name)
            if option is None:
                raise self._wrong(f"there is no option {name}")
            if option.value is None:
                if equals:
                    raise self._wrong(f"{name} takes no value")
                parsed.values[option.key] = True
                continue
            if not equals:
                if not waiting:
                    raise self._wrong(f"{name} needs a value ({option.value})")
                value = waiting.pop(0)
            if option.repeated:
                parsed.values.setdefault(option.key, []).append(value)
            else:
                parsed.values[option.key] = value
        required = [name for name in self.operands if not name.startswith("?")]
        if not len(required) <= len(operands) <= len(self.operands):
            raise self._wrong(f"it takes {' '.join(self.operands) or 'no operand'}, not {' '.join(operands) or 'nothing'}")
        parsed.operands = operands
        return parsed

    def _wrong(self, reason: str) -> UsageError:
        return UsageError(Obstacle(f"torpor {self.name}", reason, f"see torpor {self.name} --help"))


class Parsed:
    """The outcome: `values` by an option's longest name, and the operands."""

    __slots__ = ("help", "operands", "values", "verb")

    def __init__(self, verb: Verb) -> None:
        self.verb = verb
        self.help = False
        self.operands: list[str] = []
        self.values: dict[str, Any] = {}

    def switch(self, key: str) -> bool:
        """Whether a switch was given."""
        return bool(self.values.get(key))

    def text(self, key: str, default: str = "") -> str:
        """The value of an option, or `default`."""
        return str(self.values.get(key, default))

    def choice(self, key: str, choices: Sequence[str]) -> str:
        """The value of an option that is one of `choices`; the first is the default. Raises UsageError."""
        value = self.text(key, choices[0])
        if value not in choices:
            raise self.verb._wrong(f"--{key} is one of {', '.join(choices)}, not {value!r}")
        return value

    def several(self, key: str) -> list[str]:
        """All values of an option that may be repeated."""
        found = self.values.get(key, [])
        return list(found) if isinstance(found, list) else []

    def number(self, index: int, what: str) -> int:
        """Operand `index` as a number. Raises UsageError."""
        word = self.operands[index]
        if not word.isascii() or not word.isdigit():
            raise self.verb._wrong(f"{word!r} is no {what}")
        return int(word)

"""JSON for the client: as much of it as the protocol has, without the `json` module, which brings `re` and takes 7 ms to load.

The server, which reads what anybody of its user may send, has that module.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    Value = str | int | float | bool | None | list["Value"] | dict[str, "Value"]

_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_WORDS: dict[str, Value] = {"true": True, "false": False, "null": None}


def dumps(value: Value) -> str:
    """`value` as JSON, in ASCII; a lone surrogate stays one, so that any file name can be sent (PEP 383)."""
    if isinstance(value, str):
        return '"' + "".join(map(_escaped, value)) + '"'
    if isinstance(value, list):
        return "[" + ", ".join(map(dumps, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{dumps(name)}: {dumps(one)}" for name, one in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


def _escaped(char: str) -> str:
    code = ord(char)
    if 32 <= code < 127 and char not in '"\\':
        return char
    if code > 0xFFFF:  # JSON has 16 bits for a character (RFC 8259, section 7)
        code -= 0x10000
        return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
    return f"\\u{code:04x}"


def loads(text: str) -> Value:
    """The value that `text` is. Raises ValueError if it is none."""
    try:
        value, at = _value(text, _blank(text, 0))
    except (IndexError, RecursionError):
        raise ValueError("no JSON: it ends too early, or is nested too deeply") from None
    if _blank(text, at) != len(text):
        raise ValueError(f"no JSON: more follows at {at}")
    return value


def _blank(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _value(text: str, at: int) -> tuple[Value, int]:
    """The value at `at`, and where it ends."""
    char = text[at]
    if char == '"':
        return _string(text, at + 1)
    if char == "[":
        return _list(text, at + 1)
    if char == "{":
        return _object(text, at + 1)
    end = at
    while end < len(text) and text[end] not in ",]} \t\r\n":
        end += 1
    word = text[at:end]
    if word in _WORDS:
        return _WORDS[word], end
    if not (word[0] == "-" or word[0].isdigit()) or "_" in word:
        raise ValueError(f"no JSON: {word[:20]!r} at {at}")
    return float(word) if set(".eE") & set(word) else int(word), end


def _string(text: str, at: int) -> tuple[str, int]:
    """The string that begins at `at`, behind its quote."""
    parts = []
    while True:
        quote, escape = text.find('"', at), text.find("\\", at)
        if quote < 0:
            raise ValueError("no JSON: a string does not end")
        if escape < 0 or quote < escape:
            parts.append(text[at:quote])
            break
        parts.append(text[at:escape])
        kind, at = text[escape + 1], escape + 2
        if kind == "u":
            parts.append(chr(int(text[at : at + 4], 16)))
            at += 4
        elif kind in _ESCAPES:
            parts.append(_ESCAPES[kind])
        else:
            raise ValueError(f"no JSON: \\{kind} at {escape}")
    found = "".join(parts)
    if any("\ud800" <= char <= "\udbff" for char in found):  # two escapes for one character
        found = found.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return found, quote + 1


def _list(text: str, at: int) -> tuple[Value, int]:
    found: list[Value] = []
    at = _blank(text, at)
    if text[at] == "]":
        return found, at + 1
    while True:
        value, at = _value(text, _blank(text, at))
        found.append(value)
        at = _blank(text, at)
        if text[at] == "]":
            return found, at + 1
        at = _expect(text, at, ",")


def _object(text: str, at: int) -> tuple[Value, int]:
    found: dict[str, Value] = {}
    at = _blank(text, at)
    if text[at] == "}":
        return found, at + 1
    while True:
        name, at = _string(text, _expect(text, _blank(text, at), '"'))
        found[name], at = _value(text, _blank(text, _expect(text, _blank(text, at), ":")))
        at = _blank(text, at)
        if text[at] == "}":
            return found, at + 1
        at = _expect(text, at, ",")


def _expect(text: str, at: int, char: str) -> int:
    if text[at] != char:
        raise ValueError(f"no JSON: {text[at]!r} instead of {char!r} at {at}")
    return at + 1

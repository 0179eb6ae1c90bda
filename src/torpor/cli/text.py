"""Words for people: sizes, times, and text from an image that must not reach a terminal as it is."""

from __future__ import annotations

import os
import sys
import time

from torpor.image.failure import failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def put(text: str) -> None:
    """Write `text` and a newline to standard output, whatever its encoding. Raises TorporError, BrokenPipeError.

    Past the stream's buffer: what is left in there after an error would be tried again, and complained about, at exit.
    """
    stream = sys.stdout
    if stream is None:
        return  # it was closed before Python began
    try:
        fd = stream.fileno()
    except (OSError, ValueError):
        print(text)  # somebody has put a stream of their own in its place
        return
    view = memoryview(f"{text}\n".encode(stream.encoding, "backslashreplace"))
    try:
        stream.flush()
        while view:
            view = view[os.write(fd, view) :]
    except BrokenPipeError:
        raise
    except OSError as error:
        raise failure("standard output", "write to it", error) from error


def plain(text: str) -> str:
    """Text from an image without what a terminal would obey: control characters, a change of the reading direction."""
    return text if text.isprintable() else "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8 (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def brief(text: str, width: int = 300) -> str:
    """`plain`, cut off after `width` characters."""
    return plain(text) if len(text) <= width else plain(text[:width]) + f"... ({len(text)} characters)"


def command_line(words: Sequence[str]) -> str:
    """Arguments about as one would type them: those with blanks in quotes."""
    return brief(" ".join(f"'{word}'" if not word or " " in word else word for word in words))


def duration(ns: int) -> str:
    """Nanoseconds as seconds or milliseconds."""
    return f"{ns / 1e9:.3f} s" if abs(ns) >= 1_000_000_000 else f"{ns / 1e6:.3f} ms"


def size(count: int) -> str:
    """Bytes, rounded, with a binary unit."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= 10 * unit:
            return f"{count / unit:.0f} {name}"
        if count >= unit:
            return f"{count / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{count} bytes"


def instant(ns: int) -> str:
    """A wall clock time (ns since 1970) in UTC."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(ns // 1_000_000_000))
    except (OverflowError, ValueError, OSError):
        return f"{ns} ns since 1970"  # a year that no calendar has


def count(number: int, what: str, many: str = "") -> str:
    """ "1 process", "2 processes"."""
    return f"{number} {what if number == 1 else many or what + 's'}"


def wrapped(words: Iterable[str], width: int) -> list[str]:
    """`words` in as many lines of `width` characters as they need."""
    lines: list[str] = []
    line = ""
    for word in words:
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = ""
        line = f"{line} {word}" if line else word
    return [*lines, line] if line else lines

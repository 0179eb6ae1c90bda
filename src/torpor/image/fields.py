"""Field declarations: the words in which a record says what it holds.

    class Pipe(Record, type=0x0203):
        "A pipe; both of its ends refer to it."
        id: int = ident("the pipe")
        capacity: int = u32("bytes the pipe can hold", check=in_range(4096, 1 << 31))

The declaration is the code: packing, validation, `inspect` and the format page are all made from it. Everything is
little-endian and of explicit width (R-B3), and no value passes unchecked in either direction (R-D1): a bad one on the
way out is our own bug (ValueError), on the way in it is a hostile image (BadImage). `Refusal` serves both.

Every function takes `doc` (what the value means, for the format page) and, by keyword, `check` (a function that
answers with a reason, or with None when all is well), `since` (the format revision that added the field; 0 is the
first) and `default` (what the constructor, or an older image, leaves out; obligatory with `since`).
"""

from __future__ import annotations

from .checks import aligned, all_of, in_range, non_empty, non_zero, one_of
from .kinds import NUMBER_CODES, Address, Array, Blob, Choice, Field, Fixed, Flags, Ident, Pairs, Raw, Ref, Structs, Text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import TypeVar

    from .checks import Check
    from .record import Struct

    S = TypeVar("S", bound=Struct)
    T = TypeVar("T")

__all__ = [
    "address", "aligned", "all_of", "array", "blob", "choice", "flags", "i32", "i64", "ident", "in_range", "non_empty",
    "non_zero", "one_of", "pairs", "raw", "ref", "structs", "text", "u8", "u16", "u32", "u64",
]  # fmt: skip

# Each of these returns a Field. To a type checker it returns what the attribute of a record will hold, as
# dataclasses.field() does too; `_seen_as` is the one place where the two views meet.

if TYPE_CHECKING:

    def _seen_as(kind: type[T], field: Field) -> T: ...

else:

    def _seen_as(kind, field):
        return field


def _number(kind: str, doc: str, check: Check | None, since: int, default: int | None) -> int:
    return _seen_as(int, Fixed(kind, NUMBER_CODES[kind], doc, check, since, default))


def u8(doc: str, *, check: Check | None = None, since: int = 0, default: int | None = None) -> int:
    """An unsigned number of 8 bits."""
    return _number("u8", doc, check, since, default)


def u16(doc: str, *, check: Check | None = None, since: int = 0, default: int | None = None) -> int:
    """An unsigned number of 16 bits."""
    return _number("u16", doc, check, since, default)


def u32(doc: str, *, check: Check | None = None, since: int = 0, default: int | None = None) -> int:
    """An unsigned number of 32 bits."""
    return _number("u32", doc, check, since, default)


def u64(doc: str, *, check: Check | None = None, since: int = 0, default: int | None = None) -> int:
    """An unsigned number of 64 bits."""
    return _number("u64", doc, check, since, default)


def i32(doc: str, *, check: Check | None = None, since: int = 0, default: int | None = None) -> int:
    """A signed number of 32 bits."""
    return _number("i32", doc, check, since, default)


def i64(doc: str, *, check: Check | None = None, since: int = 0, default: int | None = None) -> int:
    """A signed number of 64 bits."""
    return _number("i64", doc, check, since, default)


def address(doc: str, *, check: Check | None = None, since: int = 0, default: int | None = None) -> int:
    """An unsigned number of 64 bits that people read in hexadecimal: an address, a register, a kernel mask."""
    return _seen_as(int, Address("u64", "Q", doc, check, since, default))


def flags(
    width: int,
    names: Mapping[int, str],
    doc: str,
    *,
    check: Check | None = None,
    since: int = 0,
    default: int | None = None,
) -> int:
    """A number of `width` bits whose bits are called `names` (bit number -> name); any other bit is refused."""
    known = sum(1 << bit for bit in names)

    def unknown_bits(value: int) -> str | None:
        if not value & ~known:
            return None
        unknown = [str(bit) for bit in range(width) if (value & ~known) >> bit & 1]
        return f"{value:#x} has unknown bits: {', '.join(unknown)}"

    rule = all_of(unknown_bits, check) if check else unknown_bits
    return _seen_as(int, Flags(f"u{width}", NUMBER_CODES[f"u{width}"], doc, rule, since, default, names))


def choice(
    width: int,
    names: Mapping[int, str],
    doc: str,
    *,
    check: Check | None = None,
    since: int = 0,
    default: int | None = None,
) -> int:
    """A number of `width` bits that is one of `names` (value -> name)."""
    rule = all_of(one_of(*names), check) if check else one_of(*names)
    return _seen_as(int, Choice(f"u{width}", NUMBER_CODES[f"u{width}"], doc, rule, since, default, names))


def raw(n: int, doc: str, *, check: Check | None = None, since: int = 0, default: bytes | None = None) -> bytes:
    """Exactly `n` bytes."""

    def exactly(value: bytes) -> str | None:
        return None if len(value) == n else f"has {len(value)} bytes instead of {n}"

    rule = all_of(exactly, check) if check else exactly
    return _seen_as(bytes, Raw(f"raw {n}", f"{n}s", doc, rule, since, default, align=1))


def blob(doc: str, *, max: int, check: Check | None = None, since: int = 0, default: bytes | None = None) -> bytes:
    """Bytes, at most `max` of them."""
    return _seen_as(bytes, Blob("blob", doc, check, since, default, max))


def text(doc: str, *, max: int, check: Check | None = None, since: int = 0, default: str | None = None) -> str:
    """Text without NUL, encoded in at most `max` bytes. Any Linux path fits, as `os.fsdecode` gives it."""
    return _seen_as(str, Text("text", doc, check, since, default, max))


def array(
    width: int,
    doc: str,
    *,
    max: int,
    signed: bool = False,
    check: Check | None = None,
    since: int = 0,
    default: Iterable[int] | None = None,
) -> list[int]:
    """At most `max` numbers of `width` bits. `check` sees the whole list."""
    number = f"{'i' if signed else 'u'}{width}"
    initial = None if default is None else tuple(default)
    return _seen_as(list, Array(number, doc, check, since, initial, max))


def structs(
    of: type[S],
    doc: str,
    *,
    max: int,
    check: Check | None = None,
    since: int = 0,
    default: Iterable[S] | None = None,
) -> list[S]:
    """At most `max` nested structs of the class `of`. `check` sees the whole list."""
    initial = None if default is None else tuple(default)
    return _seen_as(list, Structs(of, doc, check, since, initial, max))


def pairs(of: type[S], doc: str, *, max: int, check: Check | None = None) -> list[tuple[int, int]]:
    """The same, of a class of two u64s, that has no rules but those of each field."""
    return _seen_as(list, Pairs(of, doc, check, 0, None, max))


def ident(doc: str) -> int:
    """The id of this record: u64, not 0, unique in the image. A record has at most one."""
    return _seen_as(int, Ident("ident", "Q", doc, non_zero, 0, None))


def ref(
    doc: str,
    *,
    to: str | tuple[str, ...] = (),
    optional: bool = False,
    since: int = 0,
    default: int | None = None,
) -> int:
    """The id of a record earlier in the image: u64; 0 for none where `optional`.

    `to` names the record class or classes that it may refer to (a base class admits all of its subclasses);
    without it any record will do. Writer and reader hold both (R-B4).
    """
    names = (to,) if isinstance(to, str) else to
    return _seen_as(int, Ref(doc, None if optional else non_zero, since, default, names, optional))

"""The kinds of field: how each is packed, taken from an image again, shown, and described on the format page."""

from __future__ import annotations

import struct

from .checks import Refusal, brief, meaning_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from .checks import Check
    from .record import Struct

NUMBER_CODES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i8": "b", "i16": "h", "i32": "i", "i64": "q"}

# In front of everything of variable length: u32 count of bytes or elements, u32 bytes of one element.
COUNT = struct.Struct("<II")


def pad8(length: int) -> int:
    """How many zero bytes bring `length` to a multiple of 8."""
    return -length & 7


class Field:
    """What all kinds share. `name` is given by the class that the field is declared in."""

    __slots__ = ("check", "default", "doc", "kind", "name", "since")

    def __init__(self, kind: str, doc: str, check: Check | None, since: int, default: Any) -> None:
        if since and default is None:
            raise TypeError(f"a field added in revision {since} needs a default for the images before it")
        self.kind, self.doc, self.check, self.since, self.default = kind, doc, check, since, default
        self.name = ""

    def initial(self) -> Any:
        """The default, fresh for every record."""
        return list(self.default) if isinstance(self.default, list | tuple) else self.default

    def show(self, value: Any) -> str:
        """`value` in readable form."""
        return str(value)

    def values(self) -> str:
        """What values are admitted, for the format page."""
        return meaning_of(self.check) if self.check else ""


class Fixed(Field):
    """A field of fixed width: one item of a `struct.Struct`, at its natural alignment."""

    __slots__ = ("align", "code", "size")

    def __init__(self, kind: str, code: str, doc: str, check: Check | None, since: int, default: Any, align: int = 0) -> None:
        super().__init__(kind, doc, check, since, default)
        self.code, self.size = code, struct.calcsize("<" + code)
        self.align = align or self.size


class Address(Fixed):
    """A u64 that people read in hexadecimal."""

    __slots__ = ()

    def show(self, value: int) -> str:
        return hex(value)


class Raw(Fixed):
    """Bytes of fixed number."""

    __slots__ = ()

    def show(self, value: bytes) -> str:
        return value.hex()


class Flags(Fixed):
    """A number whose bits have names."""

    __slots__ = ("names",)

    def __init__(self, kind: str, code: str, doc: str, check: Check, since: int, default: Any, names: Mapping[int, str]) -> None:
        super().__init__(kind, code, doc, check, since, default)
        self.names = dict(names)

    def show(self, value: int) -> str:
        return " | ".join(name for bit, name in self.names.items() if value >> bit & 1) or "0"

    def values(self) -> str:
        return ", ".join(f"bit {bit} {name}" for bit, name in self.names.items()) or "no bit has a meaning yet"


class Choice(Fixed):
    """A number whose values have names."""

    __slots__ = ("names",)

    def __init__(self, kind: str, code: str, doc: str, check: Check, since: int, default: Any, names: Mapping[int, str]) -> None:
        super().__init__(kind, code, doc, check, since, default)
        self.names = dict(names)

    def show(self, value: int) -> str:
        return self.names.get(value, str(value))

    def values(self) -> str:
        return ", ".join(f"{value} {name}" for value, name in self.names.items())


class Ident(Fixed):
    """The id under which later records refer to this one."""

    __slots__ = ()

    def show(self, value: int) -> str:
        return f"#{value}"


class Ref(Fixed):
    """The id of a record that was written earlier; `to` are the names of the classes it may be of, () for any."""

    __slots__ = ("optional", "to")

    def __init__(self, doc: str, check: Check | None, since: int, default: Any, to: tuple[str, ...], optional: bool) -> None:
        super().__init__("ref", "Q", doc, check, since, default)
        self.to, self.optional = to, optional

    def show(self, value: int) -> str:
        return f"#{value}" if value else "none"

    def values(self) -> str:
        return f"id of {' or '.join(self.to) or 'any record'}" + (", 0 for none" if self.optional else "")


class Variable(Field):
    """A field of variable length: a COUNT, then so many bytes or elements, then zeros up to a multiple of 8."""

    __slots__ = ("max",)

    def __init__(self, kind: str, doc: str, check: Check | None, since: int, default: Any, max: int) -> None:
        super().__init__(kind, doc, check, since, default)
        self.max = max

    def put(self, out: bytearray, value: Any) -> None:
        """Append `value` to `out`, which is a multiple of 8 long before and after."""
        raise NotImplementedError

    def take(self, view: memoryview, at: int, end: int) -> tuple[Any, int]:
        """The value that starts at `at` in `view` and ends before `end`, and where the next one starts."""
        raise NotImplementedError

    def count(self, view: memoryview, at: int, end: int, size: int) -> tuple[int, int]:
        """Read the COUNT at `at`, of elements of `size` bytes: how many there are, and where the next field starts."""
        count, said = self.head(view, at, end)
        if said != size:
            raise Refusal(self.name, f"has elements of {said} bytes instead of {size}")
        after = at + COUNT.size + count * size + pad8(count * size)
        if after > end:
            raise Refusal(self.name, f"claims {count * size} bytes, but only {end - at - COUNT.size} are left")
        return count, after

    def head(self, view: memoryview, at: int, end: int) -> tuple[int, int]:
        """The two words of the COUNT at `at`; the first is never above `max`."""
        if end - at < COUNT.size:
            raise Refusal(self.name, "lies behind the end of the record")
        count, size = COUNT.unpack_from(view, at)
        return self.fits(count), size

    def fits(self, count: int) -> int:
        """`count`, refused when above `max`."""
        if count > self.max:
            raise Refusal(self.name, f"has {count} {self.unit()}, more than the {self.max} allowed")
        return count

    def unit(self) -> str:
        """What `max` counts."""
        return "bytes"

    def values(self) -> str:
        return "; ".join(filter(None, (f"at most {self.max} {self.unit()}", super().values())))


class Blob(Variable):
    """Bytes of any number."""

    __slots__ = ()

    def put(self, out: bytearray, value: bytes) -> None:
        out += COUNT.pack(self.fits(len(value)), 1)
        out += value
        out += bytes(pad8(len(value)))

    def take(self, view: memoryview, at: int, end: int) -> tuple[Any, int]:
        count, after = self.count(view, at, end, 1)
        at += COUNT.size
        return bytes(view[at : at + count]), after

    def show(self, value: bytes) -> str:
        return value.hex() if len(value) <= 64 else f"{value[:64].hex()}... ({len(value)} bytes)"


class Text(Blob):
    """UTF-8 without NUL. Linux names are bytes: what is not UTF-8 passes as lone surrogates (PEP 383)."""

    __slots__ = ()

    def put(self, out: bytearray, value: str) -> None:  # type: ignore[override]
        try:
            encoded = value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise Refusal(self.name, f"{brief(value)} has no encoding") from None
        if 0 in encoded:
            raise Refusal(self.name, f"{brief(value)} has a NUL inside")
        super().put(out, encoded)

    def take(self, view: memoryview, at: int, end: int) -> tuple[Any, int]:
        encoded, after = super().take(view, at, end)
        if 0 in encoded:
            raise Refusal(self.name, f"{brief(encoded)} has a NUL inside")
        return encoded.decode("utf-8", "surrogateescape"), after

    def show(self, value: str) -> str:  # type: ignore[override]
        return repr(value)


class Array(Variable):
    """Numbers of one width."""

    __slots__ = ("code", "size")

    def __init__(self, number: str, doc: str, check: Check | None, since: int, default: Any, max: int) -> None:
        super().__init__(f"{number}[]", doc, check, since, default, max)
        self.code = NUMBER_CODES[number]
        self.size = struct.calcsize("<" + self.code)

    def put(self, out: bytearray, value: list[int]) -> None:
        out += COUNT.pack(self.fits(len(value)), self.size)
        try:
            out += struct.pack(f"<{len(value)}{self.code}", *value)
        except struct.error as error:
            raise Refusal(self.name, f"{brief(value)}: {error}") from None
        out += bytes(pad8(len(value) * self.size))

    def take(self, view: memoryview, at: int, end: int) -> tuple[list[int], int]:
        count, after = self.count(view, at, end, self.size)
        return list(struct.unpack_from(f"<{count}{self.code}", view, at + COUNT.size)), after

    def unit(self) -> str:
        return "elements"


class Structs(Variable):
    """Nested structs. They can grow as records can, because the image says how long each of them is.

    The second word of the COUNT is the length of every element; where they differ in length it is 0, and each
    element has a COUNT of its own in front: its length in bytes, and 1.
    """

    __slots__ = ("of",)

    def __init__(self, of: type[Struct], doc: str, check: Check | None, since: int, default: Any, max: int) -> None:
        super().__init__(f"{of.__name__}[]", doc, check, since, default, max)
        if of.ident:
            raise TypeError(f"{of.__name__}.{of.ident}: only records have ids, nested structs have none")
        self.of = of

    def put(self, out: bytearray, value: list[Struct]) -> None:
        size = self.of.fixed_size
        out += COUNT.pack(self.fits(len(value)), size)
        for index, element in enumerate(value):
            try:
                packed = element.pack()
            except Refusal as refusal:
                raise refusal.within(f"{self.name}[{index}]") from None
            if not size:
                out += COUNT.pack(len(packed), 1)
            out += packed

    def take(self, view: memoryview, at: int, end: int) -> tuple[list[Struct], int]:
        count, size = self.head(view, at, end)
        at += COUNT.size
        # Either way an element takes at least 8 bytes, so the list stays in proportion to the image.
        if size % 8 or count * (size or COUNT.size) > end - at:
            raise Refusal(self.name, f"claims {count} elements of {size} bytes, but only {end - at} bytes are left")
        taken: list[Struct] = []
        for index in range(count):
            try:
                length = size
                if not size:
                    length, at = self.length(view, at, end)
                taken.append(self.of.take(view, at, at + length))
            except Refusal as refusal:
                raise refusal.within(f"{self.name}[{index}]") from None
            at += length
        return taken, at

    def length(self, view: memoryview, at: int, end: int) -> tuple[int, int]:
        """The length of an element that has a COUNT of its own at `at`, and where its first field starts."""
        if end - at < COUNT.size:
            raise Refusal("", "lies behind the end of the record")
        length, one = COUNT.unpack_from(view, at)
        at += COUNT.size
        if one != 1 or length % 8 or length > end - at:
            raise Refusal("", f"claims {length} bytes, but only {end - at} are left")
        return length, at

    def unit(self) -> str:
        return "elements"

    def show(self, value: list[Struct]) -> str:
        return f"[{', '.join(element.show() for element in value)}]"


class Pairs(Structs):
    """Structs of two u64s each, in memory tuples: there can be thousands in a record, and this takes a tenth of the time."""

    __slots__ = ()

    SIZE = 16

    def put(self, out: bytearray, value: list[tuple[int, int]]) -> None:  # type: ignore[override]
        flat = [number for pair in value for number in pair]
        try:
            packed = struct.pack(f"<{len(flat)}Q", *flat)
        except struct.error:
            packed = b""
        if packed and self._admitted(flat):
            out += COUNT.pack(self.fits(len(value)), self.SIZE) + packed
        else:
            super().put(out, self.structs(value))  # which says what is wrong

    def take(self, view: memoryview, at: int, end: int) -> tuple[list[tuple[int, int]], int]:  # type: ignore[override]
        count, size = self.head(view, at, end)
        start = at + COUNT.size
        after = start + count * self.SIZE
        if size == self.SIZE and after <= end:
            flat = struct.unpack_from(f"<{2 * count}Q", view, start)
            if self._admitted(flat):
                return list(zip(flat[::2], flat[1::2], strict=True)), after
        # Of a newer revision, or wrong.
        elements, after = super().take(view, at, end)
        first, second = (field.name for field in self.of.declared[:2])
        return [(getattr(each, first), getattr(each, second)) for each in elements], after

    def _admitted(self, flat: Sequence[int]) -> bool:
        return not any(any(map(check, flat[index::2])) for index, check in self.of.checks)

    def structs(self, value: list[tuple[int, int]]) -> list[Struct]:
        """The pairs as what they are in the image."""
        names = [field.name for field in self.of.declared]
        return [self.of(**dict(zip(names, pair, strict=True))) for pair in value]

    def show(self, value: list[tuple[int, int]]) -> str:  # type: ignore[override]
        return super().show(self.structs(value))

"""Records: a class with declared fields becomes a layout of bytes, with validation in both directions.

Layout (docs/image-format.md is generated from the declarations): the fields lie in the order of their declaration,
each number at a multiple of its own width, each field of variable length at a multiple of 8. A payload is a multiple of
8 bytes long. Fields that were added later (`since`) begin at a multiple of 8 too, because that is where the payloads
written before them end.

Records grow at their end only. A payload longer than the declaration is read by its known part; one that ends before
the fields of a later revision gets their defaults.
"""

from __future__ import annotations

import struct

from torpor.errors import BadImage, Obstacle

from . import fields as f
from .checks import Refusal, Rule, brief
from .kinds import Field, Fixed, Ident, Ref, Structs, Variable, pad8

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar, Self, dataclass_transform

    from .checks import Check
else:

    def dataclass_transform(**_):
        return lambda cls: cls


# Bit 31 of the type word: a reader that does not know the type must refuse the image rather than skip the record.
MUST_UNDERSTAND = 1 << 31


class Run:
    """Fields of fixed width that follow each other: one `struct.Struct`, padded to a multiple of 8."""

    __slots__ = ("fields", "first", "offsets", "packer", "since")

    def __init__(self, fields: list[Fixed], first: int) -> None:
        self.fields, self.first, self.since = fields, first, fields[0].since
        code, size = "<", 0
        self.offsets: list[int] = []
        for field in fields:
            gap = -size % field.align
            self.offsets.append(size + gap)
            code += f"{gap}x{field.code}"
            size += gap + field.size
        self.packer = struct.Struct(f"{code}{pad8(size)}x")

    def put(self, out: bytearray, values: list[Any]) -> None:
        """Append the values of this run's fields to `out`."""
        mine = values[self.first : self.first + len(self.fields)]
        try:
            out += self.packer.pack(*mine)
        except struct.error:
            for field, value in zip(self.fields, mine, strict=True):
                try:
                    struct.pack("<" + field.code, value)
                except struct.error as error:
                    raise Refusal(field.name, f"{brief(value)} does not fit {field.kind}: {error}") from None
            raise

    def take(self, view: memoryview, at: int, end: int, values: list[Any]) -> int:
        """Append the values at `at` to `values`; returns where the next part starts."""
        after = at + self.packer.size
        if after > end:
            raise Refusal(self.fields[0].name, "lies behind the end of the record")
        values += self.packer.unpack_from(view, at)
        return after


class Part:
    """One field of variable length, with the interface of a Run."""

    __slots__ = ("field", "first", "since")

    def __init__(self, field: Variable, first: int) -> None:
        self.field, self.first, self.since = field, first, field.since

    def put(self, out: bytearray, values: list[Any]) -> None:
        """Append the value of this field to `out`."""
        self.field.put(out, values[self.first])

    def take(self, view: memoryview, at: int, end: int, values: list[Any]) -> int:
        """Append the value at `at` to `values`; returns where the next part starts."""
        value, after = self.field.take(view, at, end)
        values.append(value)
        return after


def layout(fields: tuple[Field, ...]) -> list[Run | Part]:
    """The parts in which `fields` are packed: the longest possible runs between fields of variable length."""
    parts: list[Run | Part] = []
    run: list[Fixed] = []
    for index, field in enumerate(fields):
        if run and not (isinstance(field, Fixed) and field.since == run[0].since):
            parts.append(Run(run, index - len(run)))
            run = []
        if isinstance(field, Fixed):
            run.append(field)
        elif isinstance(field, Variable):
            parts.append(Part(field, index))
    if run:
        parts.append(Run(run, len(fields) - len(run)))
    return parts


class StructType(type):
    """Makes slots, a layout and the checks from the fields declared in the body of a class."""

    def __new__(mcls, name: str, bases: tuple[type, ...], body: dict[str, Any], **keywords: Any) -> StructType:
        inherited: tuple[Field, ...] = getattr(bases[0], "declared", ()) if bases else ()
        own = {key: value for key, value in body.items() if isinstance(value, Field)}
        for key, field in own.items():
            if any(hasattr(base, key) for base in bases):
                raise TypeError(f"{name}.{key}: the name is taken by {bases[0].__name__}")
            field.name = key
            del body[key]
        body.setdefault("__slots__", tuple(own))
        cls: Any = super().__new__(mcls, name, bases, body, **keywords)
        cls.declared = inherited + tuple(own.values())
        compile_class(cls)
        return cls  # type: ignore[no-any-return]


def compile_class(cls: type[Struct]) -> None:
    """Derive from `cls.declared` everything that packing and unpacking would otherwise look up for every record."""
    declared = cls.declared
    if [field.since for field in declared] != sorted(field.since for field in declared):
        raise TypeError(f"{cls.__name__}: fields of a later revision are only added at the end")
    cls.parts = layout(declared)
    checks = [(index, field.check) for index, field in enumerate(declared) if field.check]
    cls.checks = [(index, check.test if isinstance(check, Rule) else check) for index, check in checks]
    cls.names = {field.name for field in declared}
    cls.setters = [getattr(cls, field.name).__set__ for field in declared]
    cls.refs = [field for field in declared if isinstance(field, Ref)]
    cls.nested = [field for field in declared if isinstance(field, Structs) and (field.of.refs or field.of.nested)]
    idents = [field.name for field in declared if isinstance(field, Ident)]
    if len(idents) > 1:
        raise TypeError(f"{cls.__name__} has {len(idents)} ids; a record has at most one")
    cls.ident = idents[0] if idents else ""
    runs = [part for part in cls.parts if isinstance(part, Run)]
    cls.fixed_size = sum(run.packer.size for run in runs) if len(runs) == len(cls.parts) else 0


@dataclass_transform(
    kw_only_default=True,
    eq_default=False,
    field_specifiers=(
        f.u8, f.u16, f.u32, f.u64, f.i32, f.i64, f.address, f.flags, f.choice, f.raw,
        f.blob, f.text, f.array, f.structs, f.pairs, f.ident, f.ref,
    ),
)  # fmt: skip
class Struct(metaclass=StructType):
    """A nested struct: fields without a type number. Its length in bytes is always a multiple of 8."""

    __slots__ = ()

    declared: ClassVar[tuple[Field, ...]]
    parts: ClassVar[list[Run | Part]]
    checks: ClassVar[list[tuple[int, Check]]]
    names: ClassVar[set[str]]
    setters: ClassVar[list[Any]]
    refs: ClassVar[list[Ref]]
    nested: ClassVar[list[Structs]]
    ident: ClassVar[str]
    fixed_size: ClassVar[int]  # bytes, 0 when it varies

    def __init__(self, **values: Any) -> None:
        if values.keys() != self.names:
            self._complete(values)
        for name, value in values.items():
            setattr(self, name, value)

    def _complete(self, values: dict[str, Any]) -> None:
        """Add the defaults of what is missing."""
        if unknown := values.keys() - self.names:
            raise TypeError(f"{type(self).__name__} has no field {', '.join(unknown)}")
        for field in self.declared:
            if field.name not in values:
                if field.default is None:
                    raise TypeError(f"{type(self).__name__} needs a value for {field.name}")
                values[field.name] = field.initial()

    def validate(self) -> str | None:
        """What is wrong between the fields, each of which is in order by itself; None when nothing is.

        A class overrides this for rules that one field alone cannot hold, such as start < end.
        """
        return None

    def pack(self) -> bytes:
        """The payload, a multiple of 8 bytes. ValueError names field and value if one is not admitted."""
        values = [getattr(self, field.name) for field in self.declared]
        self.admit(values)
        out = bytearray()
        for part in self.parts:
            part.put(out, values)
        return bytes(out)

    @classmethod
    def unpack(cls, payload: bytes | bytearray | memoryview) -> Self:
        """Read a payload. BadImage names record, field and value if one is not admitted."""
        try:
            return cls.take(memoryview(payload), 0, len(payload))
        except Refusal as refusal:
            where = f"{cls.__name__}.{refusal.where}" if refusal.where else cls.__name__
            raise BadImage(Obstacle(where, refusal.reason)) from None

    @classmethod
    def take(cls, view: memoryview, at: int, end: int) -> Self:
        """Read the struct between `at` and `end`; what lies behind its known fields is of a newer revision."""
        values: list[Any] = []
        for part in cls.parts:
            if at == end and part.since:
                values += [field.initial() for field in cls.declared[part.first :]]
                break
            at = part.take(view, at, end, values)
        self = cls.__new__(cls)
        for put, value in zip(cls.setters, values, strict=True):
            put(self, value)
        self.admit(values)
        return self

    def admit(self, values: list[Any]) -> None:
        """Raise Refusal unless all checks admit `values`, which are those of this struct's fields."""
        for index, check in self.checks:
            if reason := check(values[index]):
                raise Refusal(self.declared[index].name, reason)
        if reason := self.validate():
            raise Refusal("", reason)

    def show(self) -> str:
        """All fields in readable form, on one line."""
        shown = (f"{field.name}={field.show(getattr(self, field.name))}" for field in self.declared)
        return f"{type(self).__name__}({', '.join(shown)})"

    def __repr__(self) -> str:
        shown = (f"{field.name}={getattr(self, field.name, None)!r}" for field in self.declared)
        return f"{type(self).__name__}({', '.join(shown)})"

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(getattr(self, field.name) == getattr(other, field.name) for field in self.declared)

    __hash__ = None  # type: ignore[assignment]


class Record(Struct):
    """A struct that stands in the image by itself, under a type number: `class Pipe(Record, type=0x0203)`.

    A class without a number is a base for others. `optional=True` clears the must-understand bit: a reader that does
    not know the type skips the record instead of refusing the image.
    """

    __slots__ = ()

    type_number: ClassVar[int] = 0  # of a base class
    type_word: ClassVar[int]
    optional: ClassVar[bool]

    def __init_subclass__(cls, *, type: int = 0, optional: bool = False) -> None:
        cls.type_number, cls.optional = type, optional
        cls.type_word = type | (0 if optional else MUST_UNDERSTAND)
        if type:
            register(cls)


# All record classes by type number, and by name, which is how references name them.
RECORDS: dict[int, type[Record]] = {}
NAMES: dict[str, type[Record]] = {}
# Who can import the classes of a range of numbers when they are first needed.
LOADERS: list[tuple[range, Callable[[int], None]]] = []


def register(cls: type[Record]) -> None:
    """Enter `cls` under its number and its name. TypeError if either is taken: nobody could tell the two apart."""
    taken = RECORDS.get(cls.type_number) or NAMES.get(cls.__name__)
    if taken:
        raise TypeError(f"record {cls.__name__} ({cls.type_number:#06x}) collides with {taken!r} of {taken.__module__}")
    if not 0 < cls.type_number < MUST_UNDERSTAND:
        raise TypeError(f"record {cls.__name__}: type number {cls.type_number:#x} is not of 31 bits")
    RECORDS[cls.type_number] = NAMES[cls.__name__] = cls


def class_of(type_word: int) -> type[Record] | None:
    """The record class that `type_word` stands for; None for a record that may be skipped.

    Raises Refusal for a must-understand type that is not known, and for a known one with the wrong bit.
    """
    number = type_word & ~MUST_UNDERSTAND
    cls = RECORDS.get(number)
    if cls is None:
        for numbers, load in LOADERS:
            if number in numbers:
                load(number)
        cls = RECORDS.get(number)
    if cls is None:
        if type_word & MUST_UNDERSTAND:
            raise Refusal("", f"type {type_word & ~MUST_UNDERSTAND:#06x} is not known here, and must be understood")
        return None
    if type_word != cls.type_word:
        raise Refusal("", f"type word {type_word:#010x} is not that of {cls.__name__}, {cls.type_word:#010x}")
    return cls


class References:
    """The ids seen so far, while an image is written or read in order: every reference must point backwards."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[int, type[Record]] = {}

    def admit(self, record: Record) -> None:
        """Take in `record`. Refusal if its id is taken, or a reference points nowhere or at the wrong kind."""
        if record.refs or record.nested:
            self._follow(record)
        if record.ident:
            identity = getattr(record, record.ident)
            if identity in self._known:
                raise Refusal(record.ident, f"#{identity} is already the id of a {self._known[identity].__name__}")
            self._known[identity] = type(record)

    def _follow(self, struct: Struct) -> None:
        """Refusal if a reference in `struct`, or in a struct nested in it, points nowhere or at the wrong kind."""
        for ref in struct.refs:
            target = getattr(struct, ref.name)
            if not target:
                continue  # the field's own check has let the 0 pass, so it is optional
            found = self._known.get(target)
            if found is None:
                raise Refusal(ref.name, f"refers to #{target}, which is not an earlier record")
            if ref.to and not any(base.__name__ in ref.to for base in found.__mro__):
                raise Refusal(ref.name, f"refers to #{target}, a {found.__name__} instead of {' or '.join(ref.to)}")
        for outer in struct.nested:
            for index, element in enumerate(getattr(struct, outer.name)):
                try:
                    self._follow(element)
                except Refusal as refusal:
                    raise refusal.within(f"{outer.name}[{index}]") from None

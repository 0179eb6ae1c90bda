"""Records as classes: construction, layout, growth, the registry, and references that only point backwards."""

from __future__ import annotations

from typing import Any

import pytest

from tests.image.samples import SampleElement, SampleEverything, SampleNamed, SampleObject, SampleSkippable
from torpor.errors import BadImage
from torpor.image.checks import Refusal
from torpor.image.fields import array, ident, in_range, pairs, raw, ref, structs, text, u8, u16, u32, u64
from torpor.image.record import MUST_UNDERSTAND, RECORDS, Record, References, Struct, class_of


class SampleFirst(Record):
    """A record as revision 1.0 knew it."""

    a: int = u32("a number")
    b: list[int] = array(8, "numbers", max=10)


class SampleGrown(SampleFirst):
    """The same record in revision 1.2."""

    c: int = u16("a number", since=1, default=7)
    d: str = text("a word", max=10, since=2, default="none")
    e: int = u8("a number", since=2, default=9)
    f: list[int] = array(16, "numbers", max=3, since=2, default=(1, 2))


class SampleRange(Struct):
    """A struct with a rule between its fields."""

    start: int = u64("first")
    end: int = u64("behind the last")

    def validate(self) -> str | None:
        return None if self.start < self.end else f"{self.start} is not below {self.end}"


class SampleOwner(Record, type=0x7F000011):
    """References at every depth."""

    id: int = ident("this one")
    parent: int = ref("the parent", to="SampleOwner", optional=True, default=0)
    elements: list[SampleElement] = structs(SampleElement, "with an owner each", max=10, default=())


class SampleAnyOwner(SampleOwner, type=0x7F000012):
    """A subclass, which may stand where its base may."""


def test_constructor_wants_every_field_by_its_name() -> None:
    with pytest.raises(TypeError, match="SampleObject needs a value for size"):
        SampleObject(id=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="SampleObject has no field colour"):
        SampleObject(id=1, size=1, colour=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        SampleObject(1, 1)  # type: ignore[call-arg]


def test_records_are_light_compare_by_value_and_show_themselves() -> None:
    record = SampleObject(id=1, size=4096)
    assert not hasattr(record, "__dict__")
    with pytest.raises(AttributeError):
        record.colour = 3  # type: ignore[attr-defined]
    assert record == SampleObject(id=1, size=4096)
    assert record != SampleObject(id=1, size=4097)
    assert record != SampleElement(start=1, kind=1)
    assert repr(record) == "SampleObject(id=1, size=4096)"


def test_a_default_list_is_not_shared() -> None:
    one, other = SampleNamed(name="a"), SampleNamed(name="b")
    one.sizes.append(1)
    assert other.sizes == []


def test_numbers_are_aligned_to_their_width_and_payloads_to_8() -> None:
    class Gaps(Struct):
        a: int = u8("1")
        b: int = u32("4")
        c: int = u16("2")
        d: bytes = raw(3, "3")
        e: int = u64("8")
        f: int = u8("1")

    packed = Gaps(a=1, b=2, c=3, d=b"ddd", e=4, f=5).pack()
    assert packed.hex(" ", 8) == "0100000002000000 0300646464000000 0400000000000000 0500000000000000"


def test_fields_of_variable_length_begin_at_8() -> None:
    packed = SampleFirst(a=0xAAAAAAAA, b=[1, 2, 3]).pack()
    assert packed.hex(" ", 8) == "aaaaaaaa00000000 0300000001000000 0102030000000000"


def test_elements_of_one_length_say_so_once_others_each() -> None:
    class Lists(Struct):
        a: list[SampleRange] = structs(SampleRange, "of fixed length", max=10)
        b: list[SampleNamed] = structs(SampleNamed, "of any length", max=10)

    packed = Lists(a=[SampleRange(start=1, end=2)], b=[SampleNamed(name="x", sizes=[5])]).pack()
    assert packed.hex(" ", 8).split() == [
        "0100000010000000", "0100000000000000", "0200000000000000",
        "0100000000000000", "2000000001000000", "0100000001000000", "7800000000000000",
        "0100000002000000", "0500000000000000",
    ]  # fmt: skip


def test_rules_between_fields_hold_in_both_directions() -> None:
    class Ranges(Struct):
        ranges: list[SampleRange] = structs(SampleRange, "ranges", max=2)

    with pytest.raises(Refusal, match=r"^ranges\[1\]: 5 is not below 5$"):
        Ranges(ranges=[SampleRange(start=1, end=2), SampleRange(start=5, end=5)]).pack()
    packed = Ranges(ranges=[SampleRange(start=3, end=4)]).pack().replace(b"\3", b"\4")
    with pytest.raises(BadImage, match=r"^Ranges\.ranges\[0\]: 4 is not below 4$"):
        Ranges.unpack(packed)


# --- Growth ---------------------------------------------------------------------------------------------------------


def test_an_old_payload_gets_the_defaults_of_the_fields_it_lacks() -> None:
    old = SampleFirst(a=1, b=[2]).pack()
    assert SampleGrown.unpack(old) == SampleGrown(a=1, b=[2], c=7, d="none", e=9, f=[1, 2])
    between = SampleGrown(a=1, b=[2], c=3).pack()[: len(old) + 8]
    assert SampleGrown.unpack(between) == SampleGrown(a=1, b=[2], c=3, d="none", e=9, f=[1, 2])


def test_a_newer_payload_is_read_by_its_known_part() -> None:
    new = SampleGrown(a=1, b=[2], c=3, d="x").pack()
    assert SampleFirst.unpack(new) == SampleFirst(a=1, b=[2])
    assert SampleGrown.unpack(new + bytes(16)) == SampleGrown(a=1, b=[2], c=3, d="x")


def test_nested_structs_grow_too() -> None:
    class Short(Struct):
        a: int = u64("a")

    class Long(Struct):
        a: int = u64("a")
        b: int = u64("b", since=1, default=5)

    class Named(Struct):
        a: int = u64("a")
        b: str = text("b", max=10, since=1, default="none")

    def of(element: type[Struct]) -> type[Struct]:
        class Outer(Struct):
            elements: list[Struct] = structs(element, "elements", max=5)
            end: int = u8("behind them")

        return Outer

    short, long, named = of(Short), of(Long), of(Named)
    written = {
        short: short(elements=[Short(a=1), Short(a=2)], end=9).pack(),
        long: long(elements=[Long(a=1, b=5), Long(a=2, b=5)], end=9).pack(),
        named: named(elements=[Named(a=1, b="none"), Named(a=2, b="none")], end=9).pack(),
    }
    for payload in written.values():
        assert short.unpack(payload).elements == [Short(a=1), Short(a=2)]  # type: ignore[attr-defined]
    assert long.unpack(written[short]).elements == [Long(a=1, b=5), Long(a=2, b=5)]  # type: ignore[attr-defined]
    assert named.unpack(written[short]).elements == [Named(a=1, b="none"), Named(a=2, b="none")]  # type: ignore[attr-defined]
    assert named.unpack(written[short]).end == 9  # type: ignore[attr-defined]


def test_pairs_are_structs_in_memory_as_tuples() -> None:
    class Pair(Struct):
        first: int = u64("any")
        second: int = u64("not much", check=in_range(1, 9))

    class Longer(Struct):
        first: int = u64("any")
        second: int = u64("not much")
        third: int = u64("later", since=1, default=5)

    class Plain(Struct):
        pairs: list[Pair] = structs(Pair, "the same", max=3)
        end: int = u8("behind them")

    class Quick(Struct):
        pairs: list[tuple[int, int]] = pairs(Pair, "the same", max=3)
        end: int = u8("behind them")

    class Newer(Struct):
        pairs: list[Longer] = structs(Longer, "the same", max=3)
        end: int = u8("behind them")

    for some in ([], [(1, 2)], [((1 << 64) - 1, 9), (0, 1), (3, 4)]):
        packed = Plain(pairs=[Pair(first=first, second=second) for first, second in some], end=7).pack()
        assert Quick(pairs=some, end=7).pack() == packed
        assert (Quick.unpack(packed).pairs, Quick.unpack(packed).end) == (some, 7)
    grown = Newer(pairs=[Longer(first=1, second=2, third=3)] * 2, end=7).pack()
    assert (Quick.unpack(grown).pairs, Quick.unpack(grown).end) == ([(1, 2), (1, 2)], 7)

    for wrong, said in (
        ([(1, 2), (1, 10)], r"pairs\[1\]\.second: 10 is not between 1 and 9"),
        ([(1 << 64, 2)], r"pairs\[0\]\.first: .* does not fit u64"),
        ([(-1, 2)], r"pairs\[0\]\.first: .* does not fit u64"),
        ([(1, 2)] * 4, "pairs: has 4 elements, more than the 3 allowed"),
    ):
        with pytest.raises(Refusal, match=said):
            Quick(pairs=wrong, end=7).pack()
    for index, byte in ((8 + 8, 10), (8 + 8, 0), (0, 4), (4, 8), (4, 17)):  # a value, the count, the length of an element
        altered = bytearray(Quick(pairs=[(1, 2)], end=7).pack())
        altered[index] = byte
        with pytest.raises(BadImage) as quick:
            Quick.unpack(altered)
        with pytest.raises(BadImage) as plain:
            Plain.unpack(altered)
        assert str(quick.value) == str(plain.value).replace("Plain", "Quick")


def test_growth_in_the_middle_or_without_a_default_is_an_error_at_import() -> None:
    with pytest.raises(TypeError, match="only added at the end"):

        class Middle(Struct):
            a: int = u8("a", since=2, default=0)
            b: int = u8("b")

    with pytest.raises(TypeError, match="needs a default"):
        u8("no default", since=1)


# --- Types ----------------------------------------------------------------------------------------------------------


def test_must_understand_is_bit_31() -> None:
    assert SampleObject.type_word == SampleObject.type_number | 1 << 31
    assert SampleSkippable.type_word == SampleSkippable.type_number
    assert class_of(SampleObject.type_word) is SampleObject
    assert class_of(SampleSkippable.type_word) is SampleSkippable
    assert class_of(0x7FFFFFFE) is None
    with pytest.raises(Refusal, match="type 0x7ffffffe is not known here"):
        class_of(0x7FFFFFFE | MUST_UNDERSTAND)
    with pytest.raises(Refusal, match="is not that of SampleObject"):
        class_of(SampleObject.type_number)


def test_a_number_or_a_name_that_is_taken_is_an_error_at_import() -> None:
    before = dict(RECORDS)
    with pytest.raises(TypeError, match="collides with"):

        class SampleThief(Record, type=SampleObject.type_number):
            """Takes a number."""

    with pytest.raises(TypeError, match="collides with"):
        make: Any = type(Record)
        make("SampleObject", (Record,), {}, type=0x7F000099)
    with pytest.raises(TypeError, match="not of 31 bits"):

        class SampleTooHigh(Record, type=1 << 31):
            """Takes the bit."""

    assert before == RECORDS


def test_a_field_cannot_hide_what_the_class_needs() -> None:
    with pytest.raises(TypeError, match="pack: the name is taken"):

        class Hides(Struct):
            pack: int = u8("a number")  # type: ignore[assignment]


def test_one_id_is_enough() -> None:
    with pytest.raises(TypeError, match="at most one"):

        class Twice(Struct):
            one: int = ident("one")
            two: int = ident("two")

    class Nested(Struct):
        id: int = ident("nobody would know it")

    with pytest.raises(TypeError, match="only records have ids"):
        structs(Nested, "of them", max=1)


# --- References -----------------------------------------------------------------------------------------------------


def test_references_point_backwards_to_the_right_kind() -> None:
    seen = References()
    seen.admit(SampleObject(id=1, size=1))
    seen.admit(SampleOwner(id=2, parent=0, elements=[SampleElement(start=0, kind=0, owner=1)]))
    seen.admit(SampleOwner(id=3, parent=2))
    with pytest.raises(Refusal, match=r"^parent: refers to #5, which is not an earlier record$"):
        seen.admit(SampleOwner(id=5, parent=5))
    with pytest.raises(Refusal, match=r"^parent: refers to #1, a SampleObject instead of SampleOwner$"):
        seen.admit(SampleOwner(id=6, parent=1))
    bad = [SampleElement(start=0, kind=0), SampleElement(start=0, kind=0, owner=3)]
    with pytest.raises(Refusal, match=r"^elements\[1\]\.owner: refers to #3, a SampleOwner instead of SampleObject$"):
        seen.admit(SampleOwner(id=7, elements=bad))


def test_ids_are_unique() -> None:
    seen = References()
    seen.admit(SampleObject(id=1, size=1))
    with pytest.raises(Refusal, match=r"^id: #1 is already the id of a SampleObject$"):
        seen.admit(SampleOwner(id=1))


def test_a_subclass_may_stand_where_its_base_may() -> None:
    seen = References()
    seen.admit(SampleAnyOwner(id=1))
    seen.admit(SampleOwner(id=2, parent=1))


def test_references_are_found_at_every_depth() -> None:
    seen = References()
    seen.admit(SampleOwner(id=9))
    with pytest.raises(Refusal, match=r"^elements\[0\]\.owner: refers to #8, which is not an earlier record$"):
        seen.admit(SampleOwner(id=1, parent=9, elements=[SampleElement(start=0, kind=0, owner=8)]))
    assert [field.name for field in SampleEverything.refs] == ["owner", "other"]

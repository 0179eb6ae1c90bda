"""Every kind of field: what goes in comes out, and what is not admitted is refused in both directions, by name."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.image.samples import SampleElement, SampleEverything, SampleNamed
from torpor.errors import BadImage
from torpor.image.checks import Refusal, aligned, all_of, brief, in_range, meaning_of, non_empty, one_of
from torpor.image.fields import text
from torpor.image.record import Struct


def numbers(width: int, *, signed: bool = False) -> st.SearchStrategy[int]:
    low = -1 << (width - 1) if signed else 0
    return st.integers(low, low + (1 << width) - 1)


# What Linux calls text: any bytes but NUL.
names = st.binary(max_size=50).map(lambda b: b.replace(b"\0", b"/").decode("utf-8", "surrogateescape"))

elements = st.builds(SampleElement, start=numbers(64), kind=numbers(8), owner=numbers(64))
named = st.builds(SampleNamed, name=names, sizes=st.lists(numbers(16), max_size=5))
everything = st.builds(
    SampleEverything,
    id=st.integers(1, (1 << 64) - 1),
    owner=st.integers(1, (1 << 64) - 1),
    other=numbers(64),
    a=numbers(8),
    b=numbers(16),
    c=numbers(32),
    d=numbers(32, signed=True),
    e=numbers(64),
    f=numbers(64, signed=True),
    g=st.integers(0, (1 << 52) - 1).map(lambda page: page * 4096),
    h=st.sampled_from([0, 1, 2, 3, 0x8000, 0x8003]),
    i=st.sampled_from([1, 2]),
    j=st.binary(min_size=5, max_size=5),
    k=st.binary(max_size=100),
    l=names,
    m=st.lists(numbers(32), max_size=20),
    n=st.lists(numbers(64, signed=True), max_size=20),
    o=st.lists(elements, max_size=10),
    p=st.lists(named, max_size=10),
    z=numbers(8),
)


def sample(**changed: Any) -> SampleEverything:
    values: dict[str, Any] = {
        "id": 2, "owner": 1, "other": 0, "a": 0, "b": 0, "c": 0, "d": 0, "e": 0, "f": 0, "g": 0, "h": 0, "i": 1,
        "j": b"12345", "k": b"", "l": "", "m": [], "n": [], "o": [], "p": [], "z": 0,
    }  # fmt: skip
    return SampleEverything(**(values | changed))


@given(everything)
def test_what_goes_in_comes_out(before: SampleEverything) -> None:
    payload = before.pack()
    assert len(payload) % 8 == 0
    assert SampleEverything.unpack(payload) == before


@given(everything)
def test_reading_does_not_depend_on_where_the_payload_lies(before: SampleEverything) -> None:
    payload = before.pack()
    view = memoryview(b"x" * 3 + payload + b"y" * 9)
    assert SampleEverything.take(view, 3, 3 + len(payload)) == before


@given(everything, st.data())
def test_every_shorter_payload_is_refused(before: SampleEverything, data: st.DataObject) -> None:
    payload = before.pack()
    with pytest.raises(BadImage):
        SampleEverything.unpack(payload[: data.draw(st.integers(0, len(payload) // 8 - 1)) * 8])


@given(everything, st.data())
def test_any_bytes_make_a_record_or_a_sentence(before: SampleEverything, data: st.DataObject) -> None:
    payload = bytearray(before.pack())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(payload) // 4 - 1)) * 4
        struct.pack_into("<I", payload, at, data.draw(numbers(32) | st.sampled_from([0, 1, 0xFFFFFFFF, 1 << 31])))
    try:
        after = SampleEverything.unpack(payload)
    except BadImage as error:
        assert str(error).startswith("SampleEverything")
        assert len(str(error)) < 300
    else:
        assert SampleEverything.unpack(after.pack()) == after


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"id": 0}, "id: is 0"),
        ({"owner": 0}, "owner: is 0"),
        ({"a": 256}, "a: 256 does not fit u8"),
        ({"a": -1}, "a: -1 does not fit u8"),
        ({"b": 1 << 16}, "b: 65536 does not fit u16"),
        ({"d": 1 << 31}, "d: 2147483648 does not fit i32"),
        ({"c": "many"}, "c: 'many' does not fit u32"),
        ({"g": 4097}, "g: 0x1001 is not a multiple of 4096"),
        ({"h": 0b1101}, "h: 0xd has unknown bits: 2, 3"),
        ({"i": 3}, "i: 3 is none of 1, 2"),
        ({"j": b"1234"}, "j: has 4 bytes instead of 5"),
        ({"k": bytes(101)}, "k: has 101 bytes, more than the 100 allowed"),
        ({"l": "é" * 51}, "l: has 102 bytes, more than the 100 allowed"),
        ({"l": "a\0b"}, "l: 'a\\x00b' has a NUL inside"),
        ({"l": "\ud800"}, "l: '\\ud800' has no encoding"),
        ({"m": [0] * 21}, "m: has 21 elements, more than the 20 allowed"),
        ({"m": [-1]}, "m: [-1]: "),
        ({"o": [SampleElement(start=0, kind=256)]}, "o[0].kind: 256 does not fit u8"),
        ({"o": [SampleElement(start=0, kind=0)] * 11}, "o: has 11 elements, more than the 10 allowed"),
        ({"p": [SampleNamed(name="x"), SampleNamed(name="y" * 51)]}, "p[1].name: has 51 bytes, more than the 50"),
    ],
)
def test_our_own_mistakes_are_named_before_they_are_written(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        sample(**changed).pack()
    assert str(error.value).startswith(sentence)


# (offset, struct format, value): what is put into the payload of sample(). Offsets as docs/image-format.md counts them.
@pytest.mark.parametrize(
    ("at", "code", "value", "sentence"),
    [
        (0, "<Q", 0, "SampleEverything.id: is 0"),
        (8, "<Q", 0, "SampleEverything.owner: is 0"),
        (56, "<Q", 5, "SampleEverything.g: 0x5 is not a multiple of 4096"),
        (64, "<H", 4, "SampleEverything.h: 0x4 has unknown bits: 2"),
        (66, "<B", 9, "SampleEverything.i: 9 is none of 1, 2"),
        (72, "<I", 101, "SampleEverything.k: has 101 bytes, more than the 100 allowed"),
        (72, "<I", 100, "SampleEverything.k: claims 100 bytes, but only 48 are left"),
        (76, "<I", 2, "SampleEverything.k: has elements of 2 bytes instead of 1"),
        (88, "<I", 20, "SampleEverything.m: claims 80 bytes, but only 32 are left"),
        (88, "<I", 0xFFFFFFFF, "SampleEverything.m: has 4294967295 elements, more than the 20 allowed"),
        (92, "<I", 8, "SampleEverything.m: has elements of 8 bytes instead of 4"),
        (104, "<I", 10, "SampleEverything.o: claims 10 elements of 24 bytes, but only 16 bytes are left"),
        (108, "<I", 0xFFFFFFF8, None),  # nothing is read of a list without elements
        (104, "<II", (1, 0), "SampleEverything.o[0]: claims 0 bytes, but only 8 are left"),
        (112, "<I", 1, "SampleEverything.p[0]: claims 0 bytes, but only 0 are left"),
        (112, "<II", (1, 8), "SampleEverything.p[0].name: has elements of 0 bytes instead of 1"),
        (112, "<II", (1, 4), "SampleEverything.p: claims 1 elements of 4 bytes, but only 8 bytes are left"),
    ],
)
def test_a_hostile_payload_is_refused_by_name(at: int, code: str, value: Any, sentence: str | None) -> None:
    payload = bytearray(sample().pack())
    struct.pack_into(code, payload, at, *(value if isinstance(value, tuple) else (value,)))
    if sentence is None:
        assert SampleEverything.unpack(payload) == sample()
        return
    with pytest.raises(BadImage) as error:
        SampleEverything.unpack(payload)
    assert str(error.value) == sentence


def test_text_with_a_nul_inside_is_refused() -> None:
    payload = sample(l="a/b").pack().replace(b"a/b", b"a\0b")
    with pytest.raises(BadImage, match="has a NUL inside"):
        SampleEverything.unpack(payload)


def test_any_linux_path_fits() -> None:
    path = b"/tmp/\xff\xfe\xc3\xa9".decode("utf-8", "surrogateescape")
    assert SampleEverything.unpack(sample(l=path).pack()).l == path


@pytest.mark.parametrize(
    ("check", "good", "bad", "meaning"),
    [
        (in_range(1, 5), 5, 6, "1 to 5"),
        (in_range(0, 1 << 20), 1 << 20, -1, "0 to 0x100000"),
        (aligned(8), 16, 9, "a multiple of 8"),
        (one_of(1, 4), 4, 2, "one of 1, 4"),
        (non_empty, "x", "", "not empty"),
        (all_of(in_range(0, 100), aligned(4)), 96, 97, "0 to 100; a multiple of 4"),
    ],
)
def test_checks_say_what_they_admit(check: Any, good: object, bad: object, meaning: str) -> None:
    assert check(good) is None
    assert check(bad)
    assert meaning_of(check) == meaning


def test_a_function_is_a_check_too_and_its_docstring_the_meaning() -> None:
    def polite(value: str) -> str | None:
        """a polite word"""
        return None if value == "please" else f"{value!r} is not polite"

    class Word(Struct):
        word: str = text("the word", max=10, check=polite)

    assert meaning_of(polite) == "a polite word"
    assert Word.unpack(Word(word="please").pack()).word == "please"
    with pytest.raises(Refusal, match="word: 'now' is not polite"):
        Word(word="now").pack()


@given(st.binary() | st.text() | st.integers() | st.lists(st.integers()))
def test_values_in_sentences_are_short(value: object) -> None:
    assert len(brief(value)) <= 80


def test_values_are_shown_as_people_read_them() -> None:
    shown = sample(g=0x7F0000, h=0x8001, i=2, l="/tmp", o=[SampleElement(start=16, kind=1)]).show()
    for part in ("id=#2", "other=none", "g=0x7f0000", "h=READ | LAST", "i=two", "j=3132333435", "l='/tmp'"):
        assert part in shown
    assert "o=[SampleElement(start=0x10, kind=1, owner=none)]" in shown

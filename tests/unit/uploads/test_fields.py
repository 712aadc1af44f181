"""Structured fields (RFC 9651): what parses, what does not, and that nothing else can happen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailboat.protocol.errors import WireError
from mailboat.protocol.uploads.fields import (
    MAX_INTEGER,
    OTHER,
    FieldError,
    Value,
    parse_boolean,
    parse_dictionary,
    parse_integer,
    serialise_boolean,
    serialise_dictionary,
    serialise_integer,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("-0", 0),
        ("42", 42),
        ("007", 7),
        ("  42  ", 42),
        ("42;a", 42),
        ('42;a=1;b="x";c', 42),
        ("42; a=?1", 42),
        ("999999999999999", MAX_INTEGER),
    ],
)
def test_integers(text: str, value: int) -> None:
    assert parse_integer(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-1",
        "+1",
        "1.0",
        "1.",
        "1e3",
        "0x10",
        "1000000000000000",
        "1,2",
        "1 2",
        "\t1",
        "1\t",
        "?1",
        '"1"',
        "one",
        "1;",
        "1;A",
        "1;a=",
        "1 ;a",
        "٣",
        "1\n",
    ],
)
def test_no_integers(text: str) -> None:
    with pytest.raises(FieldError):
        parse_integer(text)


@pytest.mark.parametrize(("text", "value"), [("?1", True), ("?0", False), (" ?1 ", True), ("?0;why=late", False)])
def test_booleans(text: str, value: bool) -> None:
    assert parse_boolean(text) is value


@pytest.mark.parametrize("text", ["", "1", "0", "true", "?", "?2", "?1?1", "?1, ?1", "? 1"])
def test_no_booleans(text: str) -> None:
    with pytest.raises(FieldError):
        parse_boolean(text)


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("", {}),
        ("a=1", {"a": 1}),
        ("a=1,b=2", {"a": 1, "b": 2}),
        ("a=1 \t, \tb=2", {"a": 1, "b": 2}),
        ("a=1\t", {"a": 1}),
        ("a=1, a=2", {"a": 2}),
        ("max-size=1000, min-size=0;why=none", {"max-size": 1000, "min-size": 0}),
        ("a", {"a": True}),
        ("a;b=1, c=?0", {"a": True, "c": False}),
        ('a="x, \\" y\\\\", b=1', {"a": OTHER, "b": 1}),
        ("a=token/x:y, b=1", {"a": OTHER, "b": 1}),
        ('a=:YQ==:, b=-1.5, c=@17, d=%"%c3%bc"', {"a": b"a", "b": OTHER, "c": OTHER, "d": OTHER}),
        ("a=(1 ?1;x), b=(), c=( 1  2 );y=1", {"a": OTHER, "b": OTHER, "c": OTHER}),
        ("*a_.-1=-7", {"*a_.-1": -7}),
    ],
)
def test_dictionaries(text: str, members: dict[str, Value]) -> None:
    assert parse_dictionary(text) == members


@pytest.mark.parametrize(
    "text",
    [
        ",",
        "a=1,",
        "a=1, ",
        "a=1 b=2",
        "a=1,,b=2",
        "A=1",
        "=1",
        "a=",
        "a= 1",
        "a=1000000000000000",
        "a=(1",
        "a=(1 2",
        "a=(1,2)",
        "a=(1?1)",
        'a="x',
        'a="\\x"',
        "a=:*:",
        "ä=1",
    ],
)
def test_no_dictionaries(text: str) -> None:
    with pytest.raises(FieldError):
        parse_dictionary(text)


def test_errors_show_the_field_but_not_all_of_it() -> None:
    with pytest.raises(FieldError, match=r"no end at character 1 of the field '1x+'") as caught:
        parse_integer("1" + "x" * 10_000)
    assert len(str(caught.value)) < 200
    assert isinstance(caught.value, WireError)


# fmt: off
_PIECES = st.sampled_from([
    "1", "0", "-", "?0", "?1", "?", ".", "123456789012345", "a", "max-size", "=", " ", "\t", ";", ",", "(", ")",
    '"x"', '"', "\\", ":YQ==:", ":", "@1", '%"a"', "%", "to/ken", "*", "_", "A", "é", "\x00", "\U0001f600",
])
# fmt: on
_TEXTS = st.text(max_size=40) | st.lists(_PIECES, max_size=12).map("".join)


@given(_TEXTS)
def test_parsers_raise_nothing_but_field_errors(text: str) -> None:
    for parse in (parse_integer, parse_boolean, parse_dictionary):
        try:
            parse(text)
        except FieldError as refused:
            assert len(str(refused)) < 500  # noqa: PT017 - raising is as good as not raising here


@given(st.integers(0, MAX_INTEGER))
def test_integers_come_back(value: int) -> None:
    assert parse_integer(serialise_integer(value)) == value


@given(st.booleans())
def test_booleans_come_back(value: bool) -> None:
    assert parse_boolean(serialise_boolean(value)) is value


@given(st.dictionaries(st.from_regex(r"[a-z*][a-z0-9_.*-]{0,10}", fullmatch=True), st.integers(0, MAX_INTEGER)))
def test_dictionaries_come_back(members: dict[str, int]) -> None:
    assert parse_dictionary(serialise_dictionary(members)) == members


@pytest.mark.parametrize("value", [-1, MAX_INTEGER + 1])
def test_integers_that_cannot_be_stated(value: int) -> None:
    with pytest.raises(FieldError):
        serialise_integer(value)

"""JSON for whatever agents say."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailboat.server.json_text import encode, encode_lines, exact, plain

odd_texts = st.text(st.characters(codec=None), max_size=9)  # half surrogate pairs included
odd = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | odd_texts | st.binary(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.none() | st.integers() | odd_texts, inner, max_size=3)
    ),
    max_leaves=9,
)


@given(odd)
def test_everything_has_a_form_that_a_strict_reader_takes(value: object) -> None:
    def refuse(text: str) -> None:
        pytest.fail(f"{text} is no JSON")

    for made in (encode(value), encode(exact(value))):
        json.loads(made.decode("utf-8"), parse_constant=refuse)


@given(st.lists(odd, min_size=1, max_size=9))
def test_each_line_is_what_one_value_becomes(values: list[object]) -> None:
    assert encode_lines(values).split(b"\n") == list(map(encode, values))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"\ud800": "\udfff and more"}, {"?": "? and more"}),
        ({None: 1, 2: 3}, {"None": 1, "2": 3}),
        ({"a": [b"\xff", float("nan"), (1, 2)]}, {"a": ["/w==", None, [1, 2]]}),
        ({"a": {1, 2}}, {"a": [1, 2]}),
        ({"a": ValueError("x"), "b": "\ud800"}, {"a": "x", "b": "?"}),
    ],
)
def test_what_json_has_no_form_for_becomes_the_nearest(value: object, expected: object) -> None:
    assert json.loads(encode(value)) == expected


def test_plain_values_are_plain_all_the_way_down() -> None:
    assert plain({1: [{None: ("\ud800", {2: b"x"})}]}) == {"1": [{"None": ["?", {"2": b"x"}]}]}

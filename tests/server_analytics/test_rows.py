"""What becomes of a record on its way to a table."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailboat.protocol import SegmentError, SegmentReader
from mailboat.protocol.limits import MIB
from mailboat.protocol.reader import raw_records
from mailboat.protocol.records import Kind, Schema, decode
from mailboat.protocol.sealing import Keyring
from mailboat.server import rows
from mailboat.server.decoder import rows_in
from mailboat.server.rows import Rows, encode_rows, rows_at_once, rows_of
from testkit.loading import told
from testkit.segments import (
    CLOCK,
    Segment,
    event,
    exception,
    feature,
    installation,
    pack,
    positional,
    timing,
    value,
)

texts = st.text(max_size=12)
plain_values = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False), texts
)
attributes = st.dictionaries(
    texts, st.recursive(plain_values, lambda inner: st.lists(inner, max_size=3), max_leaves=5), max_size=4
)
times = st.integers(0, 2**55)
numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
levels = st.integers(0, 60)
stacks = st.lists(st.tuples(texts, st.integers(0, 9), texts), max_size=3)
records = st.one_of(
    st.tuples(st.just(Kind.FEATURE), times, texts, attributes),
    st.tuples(st.just(Kind.VALUE), times, texts, attributes, numbers, st.none() | texts),
    st.tuples(st.just(Kind.TIMING), times, texts, attributes, st.integers(0, 2**60)),
    st.tuples(st.just(Kind.EVENT), times, texts, attributes, levels, st.none() | texts),
    st.tuples(st.just(Kind.EXCEPTION), times, texts, attributes, levels, texts, st.none() | texts, stacks, st.just([])),
    st.tuples(st.just(Kind.INSTALLATION), times, texts, attributes),
    st.tuples(st.just(Kind.POSITIONAL), times, st.just(3), plain_values, plain_values),
)  # fmt: skip
SCHEMAS = {3: Schema(3, Kind.FEATURE, "order.placed", ("user_id", "price"))}


def lines_of(raws: list[Any], schemas: dict[int, Schema] | None = None) -> dict[str, list[dict[str, Any]]]:
    lines: dict[str, list[dict[str, Any]]] = {}
    for each in rows_of(raws, 100, CLOCK, schemas or {}):
        lines.setdefault(each.table, []).extend(told(encode_rows(each, 5)))
    return {table: sorted(found, key=lambda line: int(line["q"])) for table, found in lines.items()}


@given(st.lists(records, min_size=1, max_size=20))
def test_rows_say_what_the_protocol_reads(raws: list[tuple[Any, ...]]) -> None:
    """The bulk path and the protocol's own decoder are two; this holds them together."""
    plain = [json.loads(json.dumps(raw)) for raw in raws]
    here = {line["q"]: (table, line) for table, lines in lines_of(plain, SCHEMAS).items() for line in lines}
    assert sorted(here) == list(range(100, 100 + len(raws)))
    for sequence, raw in enumerate(plain, 100):
        table, line = here[sequence]
        record = decode(raw, sequence, CLOCK, SCHEMAS)
        assert (table, line["n"], line["s"]) == (record.kind, record.name, 5)
        assert line["t"] == (raw[1] + CLOCK) // 1000
        assert line["a"] == record.attributes
        assert line.get("v") == (record.duration if table == "timing" else record.value)
        assert (line.get("u"), line.get("m"), line.get("c")) == (record.unit, record.message, record.context)
        assert line.get("l") == record.level
        assert line.get("k", []) == list(record.stack)


def alone(raw: Sequence[Any], sequence: int = 100) -> tuple[str, dict[str, Any]]:
    """The row of a record that is looked at by itself, and its table."""
    (made,) = rows._one_by_one([sequence], [raw], CLOCK, SCHEMAS)
    (line,) = told(encode_rows(made, 5))
    return made.table, line


def at_once(raws: Sequence[Any], clock: int = CLOCK) -> list[tuple[str, dict[str, Any]]] | None:
    """The rows, each with its table, of records that are as agents make them."""
    found = rows_at_once(msgpack.packb(raws), 100, clock)
    if found is None:
        return None
    lines = [(each.table, line) for each in found for line in told(encode_rows(each, 5))]
    return sorted(lines, key=lambda line: int(line[1]["q"]))


@given(st.lists(records, min_size=1, max_size=10))
def test_records_at_once_become_what_each_becomes_alone(raws: list[tuple[Any, ...]]) -> None:
    plain = [json.loads(json.dumps(raw)) for raw in raws]
    expected = [alone(raw, sequence) for sequence, raw in enumerate(plain, 100)]
    positional = any(raw[0] == Kind.POSITIONAL for raw in raws)
    assert at_once(plain) == (None if positional else expected)
    lines = {line["q"]: (table, line) for table, found in lines_of(plain, SCHEMAS).items() for line in found}
    assert [lines[sequence] for sequence in sorted(lines)] == expected


@pytest.mark.parametrize("clock", [-(2**62), 2**62, 2**62 + 1])
def test_a_clock_that_no_machine_has_costs_no_row(clock: int) -> None:
    raws = [feature("a"), value("size", 1.5)]
    assert at_once(raws, clock) is None
    found = [line for each in rows_of(raws, 100, clock, {}) for line in told(encode_rows(each, 5))]
    assert [line["t"] for line in found] == [min(max(clock, 0), rows._LATEST) // 1000] * 2


def test_times_that_the_engine_cannot_add_are_none_of_an_agents() -> None:
    most = 2**62 - 1
    assert at_once([[Kind.FEATURE, most + 1, "a", {}]], most) is None
    assert at_once([[Kind.FEATURE, most, "a", {}]], most) is not None


@given(st.lists(records, min_size=1, max_size=10), st.booleans())
def test_the_fast_way_through_a_block_gives_what_the_thorough_one_gives(
    raws: list[tuple[Any, ...]], declared: bool
) -> None:
    segment = Segment()
    declaration = [[Kind.SCHEMA, 0, "order.placed", ["user_id", "price"], 3, Kind.FEATURE]] if declared else []
    segment.block([pack(raw) for raw in [*declaration, *raws]], counts=[len(raws), *([0] * 10), int(declared)])
    (block,) = SegmentReader(segment.data).blocks()
    schemas: dict[int, Schema] = {}
    thorough = rows_of(raw_records(block, schemas), 0, CLOCK, schemas)
    found: dict[int, Schema] = {}
    made, lost, reason = rows_in(block, found, Keyring(()).unlock)
    assert (_lines(made), lost[1] - lost[0], reason) == (_lines(thorough), 0, "")
    assert found == schemas


def _lines(made: list[Rows]) -> dict[tuple[str, int], dict[str, Any]]:
    return {(each.table, line["q"]): line for each in made for line in told(encode_rows(each, 5))}


@pytest.mark.parametrize(
    "raws",
    [
        [feature("a"), [*feature("b"), "of a later version"]],
        [[*value("size", 1.5), "MB"], [Kind.VALUE, 0, "size", {}, 3.5], value("size", 2)],
        [[*event("a", 20, "x"), 1], [Kind.EVENT, 0, "b", {}, 300], event("c", -1, "y")],
        [timing("parse", 0.5), [Kind.TIMING, 0, "parse", {}, 1.5e9]],
        [feature("now"), [Kind.FEATURE, -(2**62), "early", {}]],
        [feature("now"), [Kind.FEATURE, 2**64 - 1, "late", {}], [Kind.FEATURE, 1e30, "later still", {}]],
    ],
)
def test_records_together_become_what_each_becomes_alone(raws: list[list[Any]]) -> None:
    (table,) = together = lines_of(raws)
    assert [(table, line) for line in together[table]] == [alone(raw, at) for at, raw in enumerate(raws, 100)]


def test_a_record_of_many_fields_costs_the_others_nothing() -> None:
    raws = [*(feature("a") for _ in range(2_000)), [*feature("b"), *range(20_000)]]
    tracemalloc.start()
    try:
        (made,) = rows_of(raws, 100, CLOCK, {})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [len(column) for column in made.columns] == [2_001] * 4
    assert peak < 2 * MIB


def test_each_kind_has_its_table() -> None:
    raws = [
        feature(),
        value("size", 3),
        timing("parse", 0.5),
        event("cache.miss", 30, "no entry"),
        exception(),
        installation("inst-42", plan="pro"),
        positional(1, 7),
        [99, 0, "of a later version", 1, 2],
        positional(2, "declared nowhere"),
    ]
    lines = lines_of(raws, {1: Schema(1, Kind.FEATURE, "order.placed", ("user_id",))})
    assert {table: [line["q"] for line in found] for table, found in lines.items()} == {
        "feature": [100, 106],
        "value": [101],
        "timing": [102],
        "event": [103],
        "exception": [104],
        "installation": [105],
        "other": [107, 108],
    }
    assert lines["feature"][1]["a"] == {"user_id": 7}
    assert [(line["k"], line["f"]) for line in lines["other"]] == [
        ("99", ["of a later version", 1, 2]),
        ("positional", [2, "declared nowhere"]),
    ]


@pytest.mark.parametrize(
    ("time", "expected"),
    [(-(2**63), 0), (1e30, rows._LATEST // 1000), (1.5e9, (CLOCK + 1_500_000_000) // 1000)],
)
def test_times_outside_any_calendar_are_moved_to_its_bounds(time: float, expected: int) -> None:
    (line,) = lines_of([[Kind.FEATURE, time, "a", {}]])["feature"]
    assert line["t"] == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [(True, 1.0), (2**64 - 1, 2.0**64), (float("nan"), None), (float("-inf"), None), ("7", None), (None, None)],
)
def test_a_value_is_a_finite_number_or_nothing(given: object, expected: float | None) -> None:
    (line,) = lines_of([value("size", given)])["value"]
    assert line["v"] == expected


@pytest.mark.parametrize(
    "raw",
    [
        [],
        [Kind.FEATURE],
        [Kind.FEATURE, 0],
        [Kind.FEATURE, "noon", "a", {}],
        [Kind.FEATURE, 0, "a", [1]],
        [Kind.FEATURE, float("inf"), "a", {}],
        [Kind.VALUE, 0, "a", {}],
        [Kind.TIMING, 0, "a", {}, "long"],
        [Kind.EVENT, 0, "a", {}],
        [[], 0, "a"],
    ],
)
def test_fields_that_are_no_record_are_refused_with_the_record_named(raw: list[Any]) -> None:
    with pytest.raises(SegmentError, match="record 101"):
        rows_of([feature(), raw], 100, CLOCK, {})
    with pytest.raises(SegmentError, match="record 100"):
        rows_of([raw], 100, CLOCK, {})


def test_what_json_has_no_form_for_becomes_something_it_has() -> None:
    odd = {"bytes": b"\x00\xff", "nan": float("nan"), None: 1, 5: 2, "deep": {None: [b"x"]}}
    (line,) = lines_of([[Kind.FEATURE, 0, "a", odd]])["feature"]
    assert line["a"] == {"bytes": "AP8=", "nan": None, "None": 1, "5": 2, "deep": {"None": ["eA=="]}}


def test_a_row_that_the_loader_could_not_read_at_once_is_cut() -> None:
    huge = {"text": "\x00" * (rows.MAX_LINE // 6 + 1)}
    first, second, third = lines_of([feature("before"), [Kind.FEATURE, 0, "big", huge], feature("after")])["feature"]
    assert (first["n"], second["n"], third["n"]) == ("before", "big", "after")
    assert second["a"] == {"$cut": True}


def test_long_rows_are_whole_among_short_ones_and_cut_where_all_are_long() -> None:
    long = {"text": "x" * 2 * rows.MAX_ROW}
    short, big = feature("short"), [Kind.FEATURE, 0, "big", long]
    assert [row["a"] for row in lines_of([short, short, big])["feature"]] == [{}, {}, long]
    assert [row["a"] for row in lines_of([short, big, big])["feature"]] == [{}, {"$cut": True}, {"$cut": True}]


def test_rows_that_are_too_long_together_go_into_several_lines() -> None:
    (together,) = rows_of([event(str(at), 20, "\x00" * 10_000) for at in range(300)], 100, CLOCK, {})
    lines = encode_rows(together, 5)
    assert max(len(each.line) for each in lines) <= rows.MAX_LINE < sum(len(each.line) for each in lines)
    assert [(row["s"], row["q"], row["n"]) for row in told(lines)] == [(5, 100 + at, str(at)) for at in range(300)]

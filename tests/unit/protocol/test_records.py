"""Records: what each kind reads back as, how each is counted, and that nothing in one can stop a reader."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailboat.protocol.errors import SegmentError
from mailboat.protocol.records import (
    COUNTED_KINDS,
    COUNTERS,
    KIND_COUNTERS,
    LEVELS,
    SCHEMA_COUNTER,
    Kind,
    Level,
    Record,
    Schema,
    count_raw,
    counter,
    decode,
    level_counter,
    records_counted,
    schema_of,
)
from testkit.segments import Raw, event, exception, feature, installation, positional, schema, timing, value

CLOCK = 10**18
ORDER = Schema(4, Kind.FEATURE, "order.placed", ("user", "price"))

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5) | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def read(raw: Raw, schemas: dict[int, Schema] | None = None) -> Record:
    return decode(raw, 7, CLOCK, schemas or {})


def counted(*records: Raw, schemas: dict[int, Schema] | None = None) -> dict[str, int]:
    counts = [0] * len(COUNTERS)
    for raw in records:
        count_raw(raw, counts, schemas or {})
    return {name: count for name, count in zip(COUNTERS, counts, strict=True) if count}


def test_a_feature_reads_back() -> None:
    assert read(feature("import.csv", at=2.5, rows=3)).to_dict() == {
        "sequence": 7,
        "time": CLOCK / 1e9 + 2.5,
        "kind": "feature",
        "name": "import.csv",
        "attributes": {"rows": 3},
    }


def test_a_value_reads_back() -> None:
    record = read(value("import.size", 18_230, "bytes", source="drive"))
    assert (record.kind, record.value, record.unit, record.attributes) == (
        "value",
        18_230,
        "bytes",
        {"source": "drive"},
    )


def test_a_timing_reads_back_in_seconds() -> None:
    assert (read(timing("parse", 1.5)).duration, read(timing("parse", 1.5)).kind) == (1.5, "timing")


def test_an_event_reads_back() -> None:
    record = read(event("cache.miss", Level.WARNING, "gone", key="k1"))
    assert (record.kind, record.level, record.message, record.attributes) == ("event", 30, "gone", {"key": "k1"})


def test_an_exception_reads_back() -> None:
    cause = ["cause", "KeyError", "'x'", [["/srv/b.py", 3, "g"]]]
    record = read(exception("ValueError", "bad", causes=[cause]))
    assert (record.kind, record.name, record.level, record.message) == ("exception", "ValueError", 40, "bad")
    assert list(record.stack) == [["/srv/app/main.py", 10, "main"]]
    assert list(record.causes) == [cause]


def test_an_installation_reads_back() -> None:
    record = read(installation("inst-42", plan="pro"))
    assert (record.kind, record.name, record.attributes) == ("installation", "inst-42", {"plan": "pro"})


def test_a_positional_record_reads_back_as_the_declared_kind() -> None:
    record = read(positional(4, 7, 9.5), {4: ORDER})
    assert (record.kind, record.name, record.attributes) == ("feature", "order.placed", {"user": 7, "price": 9.5})


@pytest.mark.parametrize(("values", "attributes"), [((7,), {"user": 7}), ((7, 1, 2), {"user": 7, "price": 1})])
def test_a_positional_record_may_have_more_or_fewer_values_than_declared(
    values: Raw, attributes: dict[str, object]
) -> None:
    assert read(positional(4, *values), {4: ORDER}).attributes == attributes


def test_a_positional_record_without_its_declaration_keeps_its_values() -> None:
    record = read(positional(9, "a", 2))
    assert (record.kind, record.name, record.rest) == ("positional", "9", ("a", 2))


def test_a_kind_to_come_is_handed_out_raw() -> None:
    record = read([99, 0, "later", {"x": 1}, [2]])
    assert (record.kind, record.rest) == ("99", ("later", {"x": 1}, [2]))


@pytest.mark.parametrize(
    "raw", [feature("a"), value("a", 1), timing("a", 1), event("a"), exception(), installation("a")]
)
def test_fields_to_come_are_ignored(raw: Raw) -> None:
    assert read([*raw, "later", {"more": 1}]).to_dict() == read(raw).to_dict()


@pytest.mark.parametrize(
    "raw",
    [
        [Kind.VALUE, 0, "a", {}, 1],
        [Kind.EVENT, 0, "a", {}, 20],
        [Kind.EXCEPTION, 0, "a", {}, 40],
    ],
)
def test_fields_that_are_missing_at_the_end_take_their_default(raw: Raw) -> None:
    record = read(raw)
    assert (record.unit, record.message, record.context, list(record.stack), list(record.causes)) == (
        None,
        None,
        None,
        [],
        [],
    )


@pytest.mark.parametrize(
    "raw",
    [
        [Kind.FEATURE, 0, "a"],
        [Kind.FEATURE, 0, "a", [1]],
        [Kind.VALUE, 0, "a", {}],
        [Kind.TIMING, 0, "a", {}, "long"],
        [Kind.FEATURE, "noon", "a", {}],
        [Kind.SCHEMA, 0, "a", None, 1, 1],
    ],
)
def test_wrong_fields_are_an_error_that_names_the_record(raw: Raw) -> None:
    with pytest.raises(SegmentError, match="record 7"):
        read(raw)


@given(st.lists(JUNK, min_size=3, max_size=7))
def test_no_fields_whatsoever_raise_anything_else(raw: list[Any]) -> None:
    """The reader calls these with what is a list that begins with a whole number (`reader.unpack`)."""
    raw[0] = raw[0] if isinstance(raw[0], int) else Kind.EVENT
    counts = [0] * len(COUNTERS)
    count_raw(raw, counts, {4: ORDER})
    assert records_counted(counts) + counts[SCHEMA_COUNTER] == 1
    with contextlib.suppress(SegmentError):
        assert isinstance(decode(raw, 0, CLOCK, {4: ORDER}), Record)
    with contextlib.suppress(SegmentError):
        schema_of(raw)


def test_each_kind_is_counted_under_its_name() -> None:
    assert counted(feature(), value("a", 1), timing("a", 1), installation("x")) == {
        "feature": 1,
        "value": 1,
        "timing": 1,
        "installation": 1,
    }
    assert counted(event("a", Level.WARNING), exception()) == {"event": 1, "exception": 1, "warning": 1, "error": 1}
    assert counted(schema(0, "a", "b")) == {"schema": 1}


def test_a_positional_record_is_counted_under_its_declared_kind_and_no_level() -> None:
    declared = {number: Schema(number, kind, "a", ("b",)) for number, kind in enumerate(COUNTED_KINDS)}
    for number, kind in enumerate(COUNTED_KINDS):
        assert counted(positional(number, "x"), schemas=declared) == {kind.name.lower(): 1}
        assert counted(positional(number, "x", 50), schemas=declared) == {kind.name.lower(): 1}


@pytest.mark.parametrize("raw", [[99, 0, "a"], [True, 0, "a", {}], [Kind.EVENT, 0, "a"], [Kind.EVENT, 0, "a", {}, "x"]])
def test_whatever_has_a_sequence_number_is_counted_as_one_record(raw: Raw) -> None:
    counts = [0] * len(COUNTERS)
    count_raw(raw, counts, {})
    assert records_counted(counts) == 1


def test_records_counted_leaves_out_levels_and_declarations() -> None:
    assert records_counted([1] * len(COUNTERS)) == KIND_COUNTERS == len(COUNTED_KINDS)


@pytest.mark.parametrize("level", [-(2**40), 0, 9, 10, 11, 20, 29, 30, 39, 40, 49, 50, 51, 2**40])
def test_a_level_is_counted_under_the_highest_that_it_reaches(level: int) -> None:
    reached = [known for known in LEVELS if known <= level] or [Level.DEBUG]
    assert COUNTERS[level_counter(level)] == reached[-1].name.lower()


def test_counters_are_named_after_what_they_count() -> None:
    assert [COUNTERS[counter(kind)] for kind in COUNTED_KINDS] == [kind.name.lower() for kind in COUNTED_KINDS]
    assert counter(Kind.SCHEMA) == SCHEMA_COUNTER
    for kind in (Kind.POSITIONAL, 0, 99):
        with pytest.raises(SegmentError, match="unknown kind"):
            counter(kind)


@pytest.mark.parametrize(
    "raw", [[7, 0, "a"], [7, 0, "a", 5, 1, 1], [7, 0, "a", [], "x", 1], [7, 0, "a", [], float("inf"), 1]]
)
def test_a_malformed_declaration_is_an_error(raw: Raw) -> None:
    with pytest.raises(SegmentError, match="schema record is malformed"):
        schema_of(raw)


def test_empty_fields_are_left_out_of_the_map_but_not_the_five_of_every_record() -> None:
    assert set(read(feature("a")).to_dict()) == {"sequence", "time", "kind", "name", "attributes"}
    assert read(value("a", 0)).to_dict()["value"] == 0

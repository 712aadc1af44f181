"""Summaries: what is told of a session without its records, cut to what every reader of them can carry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mailboat.protocol import wire
from mailboat.protocol.errors import WireError
from mailboat.protocol.limits import (
    MAX_PREAMBLE,
    MAX_PROPERTIES,
    MAX_PROPERTY_BYTES,
    MAX_PROPERTY_TEXT,
    MAX_SEAL,
    MAX_SEGMENT,
)
from mailboat.protocol.records import COUNTERS
from mailboat.protocol.segment import Preamble, Seal, SealReason
from mailboat.protocol.summary import (
    INFO_TEXTS,
    Info,
    SegmentState,
    Status,
    Summary,
    cut_properties,
    cut_text,
    summarise,
)
from mailboat.protocol.wire import Fields
from testkit.segments import SESSION

ENCODABLE = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.integers(0, 2**40)
COUNTS = st.lists(NUMBERS, min_size=len(COUNTERS), max_size=len(COUNTERS)).map(tuple)
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | ENCODABLE
    | st.floats(allow_nan=False).filter(lambda number: abs(number) < 1e300)
)
PROPERTIES = st.dictionaries(ENCODABLE, PLAIN, max_size=6)

infos = st.builds(
    Info,
    **dict.fromkeys(INFO_TEXTS, ENCODABLE),
    test=st.booleans(),
    anonymous=st.booleans(),
    parent=st.none() | st.uuids().map(str),
    properties=PROPERTIES,
)
states = st.builds(
    SegmentState,
    index=st.integers(0, 99_999),
    size=st.integers(0, MAX_SEGMENT),
    records=NUMBERS,
    sealed=st.booleans(),
    sha256=st.just("") | st.binary(min_size=32, max_size=32).map(bytes.hex),
)
summaries = st.builds(
    Summary,
    session_id=st.uuids().map(str),
    info=infos,
    started=st.floats(0, 1e10),
    ended=st.floats(0, 1e10),
    duration=st.floats(0, 1e10),
    status=st.sampled_from(Status),
    counts=COUNTS,
    segments=st.lists(states, max_size=3).map(tuple),
    installation=ENCODABLE,
    installation_properties=PROPERTIES,
    lost=st.dictionaries(ENCODABLE, NUMBERS, max_size=3),
)


class Odd:
    """A value whose text is not to be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


ANYTHING = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary(max_size=9)
    | st.lists(st.integers(), max_size=3)
    | st.just(Odd())
)


@pytest.mark.parametrize("media_type", wire.MEDIA_TYPES)
@given(summary=summaries)
def test_a_summary_survives_the_wire(summary: Summary, media_type: str) -> None:
    body = wire.encode(summary.to_wire(), media_type)
    assert Summary.read(Fields(wire.decode(body, media_type), "summary")) == summary


@given(infos)
def test_a_description_survives_a_preamble(info: Info) -> None:
    preamble = Preamble(SESSION, 0, 1, 0, 0, 0, info=info.to_wire())
    assert Info.from_wire(dict(Preamble.decode(preamble.encode()).info)) == info


@given(st.dictionaries(st.text() | st.integers() | st.just(Odd()), ANYTHING, max_size=8))
def test_properties_are_cut_to_what_every_encoding_carries(values: dict[Any, Any]) -> None:
    cut = cut_properties(values)
    for media_type in wire.MEDIA_TYPES:
        assert wire.decode(wire.encode(cut, media_type), media_type) == cut
    assert cut_properties(cut) == cut


def test_plain_properties_stay_what_they_are() -> None:
    plain = {"a": None, "b": True, "c": 2**63 - 1, "d": -(2**63), "e": 1.5, "f": "é", "g": 0}
    cut = cut_properties(plain)
    assert cut == plain
    assert [type(value) for value in cut.values()] == [type(value) for value in plain.values()]


def test_other_properties_become_text() -> None:
    odd = {"int": 2**63, "nan": float("nan"), "inf": float("-inf"), "list": [1], "half": "\ud800", "bytes": b"x"}
    assert cut_properties({**odd, "odd": Odd()}) == {
        "int": str(2**63),
        "nan": "nan",
        "inf": "-inf",
        "list": "[1]",
        "half": "\\ud800",
        "bytes": "b'x'",
        "odd": "<Odd: no text, RuntimeError>",
    }


def test_many_and_long_properties_are_cut() -> None:
    assert len(cut_properties({str(at): at for at in range(1000)})) == MAX_PROPERTIES
    assert cut_properties({"x": "é" * 5000}) == {"x": "é" * (MAX_PROPERTY_TEXT // 2)}
    assert list(cut_properties({"k" * 5000: 1})) == ["k" * MAX_PROPERTY_TEXT]
    long = cut_properties({f"{at:04}" * 300: "é" * 5000 for at in range(1000)})
    assert 1 < len(long) < MAX_PROPERTIES
    assert sum(len(key.encode()) + len(value.encode()) for key, value in long.items()) <= MAX_PROPERTY_BYTES


def test_the_largest_description_fits_a_preamble_and_the_largest_installation_a_seal() -> None:
    text, properties = cut_text("\U0001f6a2" * 5000), cut_properties({f"{at}" * 400: "x" * 5000 for at in range(99)})
    info = Info(**dict.fromkeys(INFO_TEXTS, text), parent=SESSION, properties=properties)  # type: ignore[arg-type]
    assert len(Preamble(SESSION, 2**31, 2**31, 2**62, 2**62, 2**62, info=info.to_wire()).encode()) < MAX_PREAMBLE
    installation = {"id": text, "properties": properties}
    assert len(ended(installation=installation).encode()) < MAX_SEAL


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 6, 7, 8])
def test_a_text_is_cut_between_characters(size: int) -> None:
    assert cut_text("a\U0001f6a2é", size) == {0: "", 5: "a\U0001f6a2", 6: "a\U0001f6a2"}.get(
        size, "a" if size < 5 else "a\U0001f6a2é"
    )


def ended(reason: SealReason = SealReason.STOPPED, installation: Mapping[str, Any] | None = None) -> Seal:
    counts = (2, *[0] * 8, 1, 0, 0)
    return Seal(reason, 5, 1, 100, counts, 12 * 10**9, 7 * 10**9, b"\1" * 32, installation, {"journal_full": 3})


FIRST = Preamble(SESSION, 0, 1, 0, 10 * 10**9, 5 * 10**9, info=Info(product="Acme").to_wire())


def test_a_session_is_summed_up_from_the_ends_of_its_segments() -> None:
    installed = {"id": "inst-42", "properties": {"plan": "pro"}}
    later = replace(FIRST, index=1, first=5)
    summary = summarise([(FIRST, ended(SealReason.ROTATED, installed), 1000), (later, ended(SealReason.CRASHED), 500)])
    assert (summary.session_id, summary.info.product, summary.status) == (SESSION, "Acme", Status.CRASHED)
    assert (summary.started, summary.ended, summary.duration) == (10.0, 12.0, 2.0)
    assert (summary.records, summary.errors, summary.size) == (4, 2, 1500)
    assert [(each.index, each.size, each.records, each.sealed) for each in summary.segments] == [
        (0, 1000, 2, True),
        (1, 500, 2, True),
    ]
    assert (summary.installation, dict(summary.installation_properties)) == ("inst-42", {"plan": "pro"})
    assert dict(summary.lost) == {"journal_full": 3}


@pytest.mark.parametrize("reason", [SealReason.STOPPED, SealReason.ROTATED, SealReason.ABANDONED])
def test_a_session_that_did_not_crash_was_stopped(reason: SealReason) -> None:
    assert summarise([(FIRST, ended(reason), 1)]).status is Status.STOPPED


@pytest.mark.parametrize(
    "installation",
    [
        {"id": "x" * 5000, "properties": {"p": "y" * 100_000}},
        {"id": ["odd"], "properties": [1, 2]},
        {"properties": None},
        {"id": "\ud800"[:0], "properties": {"a": {"b": 1}}},
    ],
)
@pytest.mark.parametrize("clock", [-(10**19), 0, 10**18])
def test_whatever_an_application_or_a_clock_said_a_server_can_read_the_summary(
    installation: dict[str, Any], clock: int
) -> None:
    first = replace(FIRST, started_wall=clock)
    seal = replace(ended(installation=installation), ended_wall=clock, ended_monotonic=-clock)
    summary = summarise([(first, seal, 10)])
    body = wire.encode(summary.to_wire(), wire.JSON_MEDIA_TYPE)
    assert Summary.read(Fields(wire.decode(body, wire.JSON_MEDIA_TYPE), "summary")) == summary


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"session": "../../x"}, r"s\.session"),
        ({"session": None}, r"s\.session"),
        ({"info": 5}, r"s\.info"),
        ({"info": {"product": 5}}, r"s\.info\.product"),
        ({"info": {"product": "x" * 2000}}, r"s\.info\.product"),
        ({"info": {"product": "\ud800"}}, r"s\.info\.product"),
        ({"info": {"parent": "me"}}, r"s\.info\.parent"),
        ({"info": {"test": 1}}, r"s\.info\.test"),
        ({"started": -1.0}, r"s\.started"),
        ({"started": float("nan")}, r"s\.started"),
        ({"ended": "noon"}, r"s\.ended"),
        ({"duration": None}, r"s\.duration"),
        ({"status": 1}, r"s\.status"),
        ({"counts": {"feature": -1}}, r"s\.counts\.feature"),
        ({"counts": {"feature": True}}, r"s\.counts\.feature"),
        ({"segments": "0"}, r"s\.segments"),
        ({"segments": [5]}, r"s\.segments\[0\]"),
        (
            {"segments": [{"index": 0, "size": MAX_SEGMENT + 1, "records": 0, "sealed": True}]},
            r"s\.segments\[0\]\.size",
        ),
        ({"lost": {"x": "many"}}, r"s\.lost\.x"),
    ],
)
def test_a_wrong_summary_is_refused_with_the_place(changes: dict[str, object], place: str) -> None:
    right = summarise([(FIRST, ended(), 1)]).to_wire()
    with pytest.raises(WireError, match=place):
        Summary.read(Fields({**right, **changes}, "s"))


def test_a_status_to_come_reads_as_running() -> None:
    right = summarise([(FIRST, ended(), 1)]).to_wire()
    assert Summary.read(Fields({**right, "status": "hibernating"}, "s")).status is Status.RUNNING


def test_what_is_missing_has_a_default() -> None:
    least = {"session": SESSION, "started": 1, "ended": 2, "duration": 1, "status": "stopped"}
    summary = Summary.read(Fields(least, "s"))
    assert (summary.info, summary.counts, summary.segments) == (Info(), (0,) * len(COUNTERS), ())

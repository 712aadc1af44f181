"""Packed records taken apart, also around bytes that are none."""

from __future__ import annotations

import pytest

from mailboat.protocol.reader import SegmentReader, legible
from mailboat.protocol.records import Kind
from mailboat.protocol.unpacking import around_damage, unpack, whole_pieces
from testkit.segments import TAKING_IN, around, pack

NOW = 10**15
JUNK = b"\xc1"


def packed(at: int, *, time: int = NOW) -> bytes:
    return pack([Kind.FEATURE, time + at, f"n{at}", {"a": at}])


DECLARED = pack([Kind.SCHEMA, NOW, "declared", ["n"], 0, Kind.FEATURE])
POSITIONAL = pack([Kind.POSITIONAL, NOW, 0, 7])
BEGINNING = b"\x93\x01\xcf" + NOW.to_bytes(8, "big")
"""That of a record, and nothing of it behind."""


def names(raw: bytes) -> list[object]:
    return [record[2] for record in unpack(raw)]


def around_it(raw: bytes, count: int) -> tuple[list[object], list[object]]:
    end, start = around_damage(raw, count)
    return names(raw[:end]), names(raw[start:])


@pytest.mark.parametrize("evil", TAKING_IN)
def test_the_records_of_a_block_have_their_numbers_around_what_is_none(evil: bytes) -> None:
    reader = SegmentReader(around(evil).seal())
    block = next(iter(reader.blocks()))
    found = legible(block, {})
    numbered = [(number, fields[2]) for number, fields in found.numbered(10) if fields is not None]
    assert [each for each in numbered if each[0] != 12] == [(10 + at, f"n{at}") for at in (0, 1, 3, 4, 5)]
    assert numbered == [(number + at, raw[2]) for number, run in found.runs(10) for at, raw in enumerate(run)]
    assert len(numbered) + found.lost == 6
    assert bool(found.reason) == (evil != b"{}")


def test_what_goes_on_by_position_is_found() -> None:
    assert around_it(packed(0) + JUNK + POSITIONAL * 2, 4) == (["n0"], [0, 0])
    assert whole_pieces(packed(0) + JUNK + POSITIONAL) == (packed(0) + POSITIONAL, 1)


@pytest.mark.parametrize("declared", [b"", DECLARED])
def test_of_too_many_records_the_last_ones_are_those_behind(declared: bytes) -> None:
    raw = packed(0) + packed(1) + JUNK + declared + packed(99) + packed(2)
    assert around_it(raw, 3) == (["n0", "n1"], ["n2"])


def test_where_more_stand_before_it_than_there_should_be_nothing_is_told() -> None:
    assert around_it(packed(0) * 3 + JUNK + packed(4), 2) == ([], [])
    assert around_it(packed(0) * 3, 2) == ([], []), "all are records, and one of them was forged"


def test_a_record_of_another_time_is_none() -> None:
    assert around_it(packed(0) + packed(1, time=NOW * 100) + packed(2), 2) == (["n0"], ["n2"])


def test_what_only_looks_like_beginnings_is_not_tried_for_ever() -> None:
    before, many = packed(0), JUNK + BEGINNING * 100
    assert around_it(before + many + packed(1), 3) == (["n0"], [])
    assert whole_pieces(before + many) == (before, 1)
    assert whole_pieces(before + many + packed(1)) == (before, 1)


def test_a_half_of_very_many_pieces_is_read_up_to_some_of_them() -> None:
    raw, breaks = whole_pieces((packed(0) + JUNK) * 100)
    assert breaks == 64
    assert names(raw) == ["n0"] * 64


def test_behind_many_records_it_goes_on_as_well() -> None:
    many = b"".join(map(packed, range(500)))
    assert whole_pieces(many + JUNK + many) == (many + many, 1)
    assert whole_pieces(JUNK + many) == (many, 1)
    assert whole_pieces(many + JUNK) == (many, 1)


def test_a_forged_one_just_before_it_is_none() -> None:
    assert whole_pieces(packed(0) + packed(1, time=NOW * 100) + JUNK + packed(2)) == (packed(0) + packed(2), 1)

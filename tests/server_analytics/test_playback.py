"""A session's records, page by page, from the bytes of its segments."""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailboat.protocol import Record, SegmentReader
from mailboat.protocol.records import COUNTERS
from mailboat.server import playback
from mailboat.server.json_text import encode
from mailboat.server.playback import Page, PageQuery, Playback, as_json
from mailboat.server.unsealing import FOLDER, SUFFIX, Unsealing
from testkit.loading import segment_row
from testkit.sealed import PRIVATE, SealedSegment
from testkit.segments import TAKING_IN, Raw, Segment, around, event, feature, pack, positional, schema


class Held:
    """Segment bytes in memory, counted as they are read."""

    def __init__(self, *segments: bytes, complete: bool = True) -> None:
        self.rows = [segment_row(data, index=index, complete=complete) for index, data in enumerate(segments)]
        self.content = {row.upload_id: data for row, data in zip(self.rows, segments, strict=True)}
        self.read_bytes = 0

    def read(self, upload_id: str, offset: int, length: int) -> bytes:
        if upload_id not in self.content:
            raise FileNotFoundError(upload_id)
        piece = self.content[upload_id][offset : offset + length]
        self.read_bytes += len(piece)
        return piece

    def playback(self, unsealing: Unsealing | None = None) -> Playback:
        return Playback(self, unsealing)  # type: ignore[arg-type] # of a store of blobs, only `read` is used


def pages(held: Held, limit: int, **filters: str) -> list[Page]:
    """All pages, as a client asks for them."""
    reader, after, made = held.playback(), -1, list[Page]()
    while True:
        page = reader.page(held.rows, PageQuery(after, limit, **filters))
        made.append(page)
        assert len(page.records) <= limit
        if page.next is None:
            return made
        assert page.next > after
        after = page.next


def sequences(found: Sequence[Page]) -> list[int]:
    return [record.sequence for page in found for record in page.records]


def numbered(at: int) -> Raw:
    if at % 5 == 0:
        return positional(1, at)
    return feature(f"n{at % 3}") if at % 2 else event(f"n{at % 3}")


def session(*sizes: Sequence[int]) -> list[bytes]:
    """A session of several segments, given the records of each block of each."""
    made, number = [], 0
    for index, blocks in enumerate(sizes):
        segment = Segment(index=index, first=number, salt=index + 1)
        for records in blocks:
            declared = [] if segment.ends else [schema(1, "declared", "n")]
            segment.block([*declared, *(numbered(at) for at in range(number, number + records))])
            number += records
        made.append(segment.seal())
    return made


shapes = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=4)


@given(shapes, st.integers(1, 12))
def test_the_pages_together_are_the_session(shape: list[list[int]], limit: int) -> None:
    segments = session(*shape)
    expected: list[Record] = [record for data in segments for record in SegmentReader(data)]
    found = pages(Held(*segments), limit)
    assert [record for page in found for record in page.records] == expected
    assert all(not page.gaps for page in found)
    assert found[-1].next is None


@given(
    shapes, st.integers(1, 5), st.sampled_from(["feature", "event", "value"]), st.sampled_from([None, "n1", "declared"])
)
def test_filters_choose_among_them(shape: list[list[int]], limit: int, kind: str, name: str | None) -> None:
    segments = session(*shape)
    filters = {"kind": kind} | ({"name": name} if name else {})
    expected = [
        record.sequence
        for data in segments
        for record in SegmentReader(data)
        if record.kind == kind and name in (None, record.name)
    ]
    assert sequences(pages(Held(*segments), limit, **filters)) == expected


@given(shapes, st.integers(1, 6), st.integers(0, 10**6), st.integers(0, 7))
def test_damage_is_a_gap_between_the_records_that_are_left(
    shape: list[list[int]], limit: int, at: int, bit: int
) -> None:
    segments = session(*shape)
    whole = sum(map(sum, shape))
    broken = bytearray(segments[0])
    broken[at % len(broken)] ^= 1 << bit
    segments[0] = bytes(broken)
    reader = SegmentReader(segments[0])
    expected = {record.sequence for record in reader} | {
        r.sequence for data in segments[1:] for r in SegmentReader(data)
    }
    found = pages(Held(*segments), limit)
    assert sequences(found) == sorted(expected)
    gaps = [gap for page in found for gap in page.gaps]
    told = {sequence for gap in gaps for sequence in range(gap.first, gap.first + (gap.records or 0))}
    unsealed = {gap.first for gap in gaps if gap.records is None}
    assert told | expected | {each for first in unsealed for each in range(first, whole)} == set(range(whole))
    assert told.isdisjoint(expected)
    assert len({(gap.segment, gap.offset, gap.first) for gap in gaps}) == len(gaps)


def test_a_page_begins_in_the_middle_without_reading_what_is_before() -> None:
    segments = session([400] * 30, [400] * 30, [400] * 30)
    held = Held(*segments)
    reader = held.playback()
    reader.page(held.rows, PageQuery(limit=1))
    held.read_bytes = 0
    page = reader.page(held.rows, PageQuery(after=30_000, limit=10))
    assert [record.sequence for record in page.records] == list(range(30_001, 30_011))
    assert held.read_bytes < len(segments[2]) * 1.2 + 3 * 70_000
    held.read_bytes = 0
    reader.page(held.rows, PageQuery(after=30_010, limit=10))
    assert held.read_bytes < 20_000, "where the blocks are is remembered"


def test_a_filtered_page_costs_a_bounded_amount_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playback, "MAX_DECODED", 50_000)
    segment = Segment()
    for _ in range(20):
        segment.block([feature("a", text="x" * 2000) for _ in range(10)])
    segment.block([feature("rare")])
    held = Held(segment.seal())
    found = pages(held, 100, name="rare")
    assert sequences(found) == [200]
    assert len(found) > 5
    assert [page.records for page in found[:-1]] == [[]] * (len(found) - 1)


def test_blocks_without_the_kind_are_passed_over_unread() -> None:
    segment = Segment()
    for _ in range(20):
        segment.block([event("e", text=uuid.uuid4().hex * 50) for _ in range(10)])
    segment.block([feature("rare")])
    held = Held(segment.seal())
    reader = held.playback()
    reader.page(held.rows, PageQuery(limit=1))
    held.read_bytes = 0
    page = reader.page(held.rows, PageQuery(kind="feature"))
    assert [record.sequence for record in page.records] == [200]
    assert held.read_bytes < 1000


def test_a_running_session_is_read_as_far_as_it_is_whole() -> None:
    segment = Segment()
    segment.block([feature("a"), feature("b")])
    whole = len(segment.data)
    segment.block([feature("c")])
    held = Held(segment.data[: whole + 30], complete=False)
    (page,) = pages(held, 10)
    assert (sequences([page]), page.gaps, page.next) == ([0, 1], [], None)
    grown = Held(segment.data, complete=False)
    assert sequences([grown.playback().page(grown.rows, PageQuery(after=1))]) == [2]


def test_a_record_that_two_segments_hold_is_given_once() -> None:
    first, second = Segment(), Segment(index=1, first=1, salt=2)
    first.block([feature("a"), feature("b")])
    second.block([feature("b"), feature("c")])
    (page,) = pages(Held(first.seal(), second.seal()), 10)
    assert [(record.sequence, record.name) for record in page.records] == [(0, "a"), (1, "b"), (2, "c")]


def test_a_segment_that_is_not_here_yet_is_a_gap() -> None:
    first, last = session([3], [4], [5])[::2]
    held = Held(first, last)
    (page,) = pages(held, 100)
    assert sequences([page]) == [0, 1, 2, 7, 8, 9, 10, 11]
    assert [(gap.first, gap.records, gap.reason) for gap in page.gaps] == [
        (3, 4, "the records before this segment are not here")
    ]


def test_a_segment_whose_bytes_are_lost_is_a_gap() -> None:
    held = Held(*session([3], [4], [5]))
    del held.content[held.rows[1].upload_id]
    (page,) = pages(held, 100)
    assert sequences([page]) == [0, 1, 2, 7, 8, 9, 10, 11]
    assert [(gap.segment, gap.first, gap.records, gap.reason) for gap in page.gaps] == [
        (1, 3, None, "its bytes are lost"),
        (2, 3, 4, "the records before this segment are not here"),
    ]


def test_a_block_that_cannot_be_unpacked_is_a_gap() -> None:
    segment = Segment()
    segment.block([feature("a")])
    counts = [1, *([0] * (len(COUNTERS) - 1))]
    segment.block([pack({(1, 2): "no map has such a key"})], counts=counts)
    segment.block([pack([1, "noon", "b", {}])], counts=counts)
    segment.block([feature("c")])
    (page,) = pages(Held(segment.seal()), 10)
    assert sequences([page]) == [0, 3]
    assert [(gap.first, gap.records) for gap in page.gaps] == [(1, 1), (2, 1)]


@pytest.mark.parametrize("limit", [1, 2, 3, 10])
@pytest.mark.parametrize("evil", TAKING_IN)
def test_what_is_no_msgpack_costs_its_record_and_no_other(evil: bytes, limit: int) -> None:
    found = pages(Held(around(evil).seal()), limit)
    assert [each for each in sequences(found) if each != 2] == [0, 1, 3, 4, 5, 6]
    gaps = [(gap.first, gap.records) for page in found for gap in page.gaps]
    assert gaps == ([] if 2 in sequences(found) else [(2, 1)])


def test_a_block_whose_declaration_is_malformed_is_a_gap() -> None:
    segment = Segment()
    segment.block([feature("a")])
    counts = [1, *([0] * (len(COUNTERS) - 2)), 1]
    segment.block([pack([7, 0, "declared"]), pack(feature("b"))], counts=counts)
    segment.block([feature("c")])
    (page,) = pages(Held(segment.seal()), 10)
    assert sequences([page]) == [0, 2]
    assert [(gap.first, gap.records) for gap in page.gaps] == [(1, 1)]


def test_a_session_of_which_nothing_is_here_has_no_records() -> None:
    held = Held(b"", complete=False)
    assert held.playback().page(held.rows, PageQuery()) == Page()
    assert held.playback().page([], PageQuery()) == Page()


# -- as JSON -----------------------------------------------------------------------------------------------------------


def record_of(*fields: object) -> Record:
    segment = Segment()
    segment.block([pack(fields)], counts=[0, 0, 0, 1, *([0] * 8)])
    (record,) = SegmentReader(segment.data)
    return record


def test_values_that_json_cannot_hold_are_marked() -> None:
    odd = {"bytes": b"\x00\xff", "nan": float("nan"), "less": [float("-inf")], 5: {None: 2**64 - 1}}
    made = json.loads(encode(as_json(record_of(4, 1_500_000_000, "odd", odd, 20, "text"))))
    assert made["attributes"] == {
        "bytes": {"$bytes": "AP8="},
        "nan": {"$float": "nan"},
        "less": [{"$float": "-inf"}],
        "5": {"None": 2**64 - 1},
    }
    assert (made["sequence"], made["time"], made["kind"], made["level"], made["message"]) == (
        0,
        1_790_000_001.5,
        "event",
        20,
        "text",
    )


def test_an_extension_type_is_marked_with_its_code() -> None:
    packed = pack([4, 0, "odd", {}, 20])[:-2] + b"\x81\xa1x\xd4\x05\x07\x14"
    segment = Segment()
    segment.block([packed], counts=[0, 0, 0, 1, *([0] * 8)])
    (record,) = SegmentReader(segment.data)
    assert as_json(record)["attributes"] == {"x": {"$ext": [5, "Bw=="]}}


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=9,
)


@given(json_values)
def test_everything_else_is_given_back_as_it_was(value: object) -> None:
    made = json.loads(encode(as_json(record_of(4, 0, "same", {"value": value}, 20))))
    assert made["attributes"] == {"value": value}


def test_nesting_that_no_agent_makes_is_cut() -> None:
    packed = b"\x95\x04\x00\xa1n\x81\xa1d" + b"\x91" * 600 + b"\xc0" + b"\x14"
    segment = Segment()
    segment.block([packed], counts=[0, 0, 0, 1, *([0] * 8)])
    (page,) = pages(Held(segment.seal()), 10)
    assert [json.loads(encode(as_json(record)))["sequence"] for record in page.records] == [0]


def test_a_key_that_has_just_come_opens_what_is_asked_for(tmp_path: Path) -> None:
    sealed = SealedSegment()
    sealed.block([feature("secret")])
    held = Held(sealed.seal())
    reader = held.playback(Unsealing(tmp_path))
    (gap,) = reader.page(held.rows, PageQuery()).gaps
    assert "which is not here" in gap.reason
    keep(tmp_path, "x")
    assert "which is not here" in reader.page(held.rows, PageQuery()).gaps[0].reason, "that is no key"
    keep(tmp_path, PRIVATE.text)
    page = reader.page(held.rows, PageQuery())
    assert ([record.name for record in page.records], page.gaps) == (["secret"], [])


def test_a_server_that_lacks_the_library_shows_what_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path, PRIVATE.text)
    monkeypatch.setitem(sys.modules, "nacl", None)
    monkeypatch.setitem(sys.modules, "nacl.bindings", None)
    plain, unsealing = Segment(), Unsealing(tmp_path)
    plain.block([feature("plain")])
    held = Held(plain.seal())
    page = held.playback(unsealing).page(held.rows, PageQuery())
    assert ([record.name for record in page.records], page.gaps) == (["plain"], [])
    assert unsealing.unread == 1


def keep(data: Path, text: str) -> None:
    """Have a private key in a server's folder, as it is when another process has just made it."""
    path = data / FOLDER / f"{PRIVATE.public.id}{SUFFIX}"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    os.utime(path, (len(text), len(text)))

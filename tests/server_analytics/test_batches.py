"""The order in which segments are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest
from msgspec.structs import replace

from mailboat.server import batches
from mailboat.server.analytics_store import Progress
from mailboat.server.batches import BATCH_BYTES, BATCH_SEGMENTS, LEAST_BYTES, Known, Order
from mailboat.server.catalog import SegmentRow
from testkit.loading import segment_row


def row(number: int, size: int = 10) -> SegmentRow:
    return replace(segment_row(b"", f"018f0000-0000-7000-8000-{number:012}"), offset=size)


def loaded(segment: SegmentRow, consumed: int, failed: str | None = None) -> Known:
    progress = Progress(segment.index, consumed=consumed, failed=failed)
    return {(segment.product, segment.session_id): {segment.upload_id: progress}}


def rest(order: Order) -> Iterator[list[SegmentRow]]:
    while (batch := order.next()) is not None:
        yield list(batch.segments)


def test_batches_are_bounded_in_segments_and_bytes_and_keep_the_order() -> None:
    small = [row(number) for number in range(2 * BATCH_SEGMENTS + 1)]
    assert [len(each) for each in rest(Order(small, {}))] == [BATCH_SEGMENTS, BATCH_SEGMENTS, 1]
    assert [each for batch in rest(Order(small, {})) for each in batch] == small
    large = [row(number, BATCH_BYTES // 4) for number in range(40)]
    found = list(rest(Order(large, {})))
    assert max(map(len, found)) == 4
    assert [each for batch in found for each in batch] == large
    assert list(rest(Order([row(1, BATCH_BYTES + 1), row(2)], {}))) == [[row(1, BATCH_BYTES + 1)], [row(2)]]


def test_batches_are_small_where_nothing_goes_on_beside_them() -> None:
    """The first ones of an order, beside which nothing is loaded yet, and the last ones, beside which nothing is
    decoded any more.
    """
    sizes = [len(each) for each in rest(Order([row(number, LEAST_BYTES) for number in range(60)], {}))]
    assert sizes == [1, 2, 4, 8, 8, 8, 8, 8, 6, 3, 2, 2]


def test_only_what_is_still_to_be_loaded_counts() -> None:
    one, other, grown = row(1), row(2), row(3, 2 * BATCH_BYTES)
    known = {**loaded(one, 10), **loaded(other, 0, "the decoder died"), **loaded(grown, 2 * BATCH_BYTES - 5)}
    assert list(rest(Order([one, other, grown, row(4)], known))) == [[grown, row(4)]]
    assert list(rest(Order([one, other], known))) == []


def test_what_came_last_and_what_waits_longest_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH_SEGMENTS", 1)
    order = Order([row(number) for number in range(5)], {})
    order.put_latest([row(9), row(8)])
    assert list(islice(rest(order), 3)) == [[row(9)], [row(0)], [row(8)]]
    order.put_latest([row(7)])
    assert list(rest(order)) == [[row(1)], [row(7)], [row(2)], [row(3)], [row(4)]]


def test_what_waits_longest_has_half_of_the_batches_however_much_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH_SEGMENTS", 1)
    waiting = [row(number) for number in range(10)]
    order = Order(waiting, {})
    chosen: list[SegmentRow] = []
    for number in range(100, 119):
        order.put_latest([row(number), row(1000)])
        batch = order.next()
        assert batch is not None
        chosen += batch.segments
    assert chosen[1::2] == waiting[:9]
    assert all(each not in waiting for each in chosen[::2])


def test_what_was_loaded_as_the_latest_is_not_loaded_again_in_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH_SEGMENTS", 1)
    known: Known = {}
    order = Order([row(0), row(1), row(2)], known)
    order.put_latest([row(2), row(1)])
    first = order.next()
    assert first is not None
    assert first.segments == [row(2)]
    known.update(loaded(row(2), 10))
    assert list(rest(order)) == [[row(0)], [row(1)], [row(1)]], "nobody has decoded it"

"""Packages are taken apart where segments end, whatever else is in them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailboat.protocol import Preamble, SealReason, SegmentReader, SegmentWriter, Summary
from mailboat.protocol.limits import MIB
from mailboat.protocol.packages import Span, spans
from mailboat.protocol.segment import BLOCK_START
from mailboat.protocol.summary import Info, joined, summarise
from testkit.serverkit import make_segment

IDS = [f"018f0000-0000-7000-8000-00000000000{number}" for number in range(4)]


def reading(content: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, most: content[offset : offset + most]


def found_in(content: bytes, most: int = 100) -> list[bytes] | None:
    found = spans(reading(content), len(content), most)
    return None if found is None else [content[span.start : span.end] for span in found]


SEGMENTS = [make_segment(IDS[number], size=3_000 * number) for number in range(3)]


def test_segments_are_found_where_they_end() -> None:
    assert found_in(b"".join(SEGMENTS)) == SEGMENTS
    assert found_in(SEGMENTS[0]) == [SEGMENTS[0]]
    assert found_in(b"") == []


def test_one_that_is_not_sealed_ends_where_the_next_begins() -> None:
    reader = SegmentReader(SEGMENTS[1])
    list(reader.blocks())
    assert reader.seal is not None
    unsealed = SEGMENTS[1][: -len(reader.seal.encode())]
    assert found_in(unsealed + SEGMENTS[2]) == [unsealed, SEGMENTS[2]]


def test_what_cannot_be_followed_is_kept_apart() -> None:
    for noise in (b"x", b"noise, and more than the head of any frame has: " * 4, bytes(MIB - 3), bytes(MIB + 5)):
        assert found_in(SEGMENTS[0] + noise) == [SEGMENTS[0], noise]
        assert found_in(noise + SEGMENTS[0]) == [noise, SEGMENTS[0]]
    damaged = bytearray(SEGMENTS[2])
    damaged[damaged.index(BLOCK_START) + len(BLOCK_START)] ^= 255
    assert found_in(bytes(damaged) + SEGMENTS[0]) == [bytes(damaged), SEGMENTS[0]]
    cut = SEGMENTS[1][:-1]
    assert found_in(SEGMENTS[0] + cut) == [SEGMENTS[0], cut]


def test_no_more_are_looked_for_than_may_be() -> None:
    content = SEGMENTS[0] * 5
    assert found_in(content, 5) == [SEGMENTS[0]] * 5
    assert found_in(content, 4) is None
    assert found_in(SEGMENTS[0] * 4 + b"x", 4) is None


@given(st.lists(st.sampled_from([*SEGMENTS, b"noise", SEGMENTS[2][:100], SEGMENTS[2][-100:]]), max_size=6), st.binary())
def test_every_byte_is_in_one_span(parts: list[bytes], tail: bytes) -> None:
    content = b"".join(parts) + tail
    found = spans(reading(content), len(content), 100)
    assert found is not None
    edges = [Span(0, 0), *found]
    assert all(before.end == after.start < after.end for before, after in pairwise(edges))
    assert edges[-1].end == len(content)


# -- what is known of a session whose segments come one by one ---------------------------------------------------------


def of_three_segments() -> list[Summary]:
    """The summaries of each of a session's segments alone, then that of all."""
    parts = []
    for index, reason in enumerate([SealReason.ROTATED, SealReason.ROTATED, SealReason.CRASHED]):
        info = Info(product="Acme Studio", application="importer", version="2.4.1")
        writer = SegmentWriter(Preamble(IDS[0], index, 7, index, 10**18, 10**9, info=info.to_wire()))
        content = writer.preamble()
        writer.add(content)
        installation = {"id": f"inst-{index}", "properties": {"at": index}}
        content += writer.seal(reason, 10**18 + index, 2 * 10**9 + index, installation, {"quota": index})
        reader = SegmentReader(content)
        list(reader.blocks())
        assert reader.preamble is not None
        assert reader.seal is not None
        parts.append((reader.preamble, reader.seal, len(content)))
    return [*(summarise([part]) for part in parts), summarise(parts)]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_summaries_of_segments_join_to_that_of_the_session(order: tuple[int, int, int]) -> None:
    *each, whole = of_three_segments()
    first, second, third = (each[at] for at in order)
    assert joined(joined(first, second), third) == whole

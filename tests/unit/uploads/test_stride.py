"""How much goes into one append, by what cuts have cost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mailboat.protocol.limits import KIB, MAX_SEGMENT, MIB
from mailboat.protocol.uploads.stride import SMALLEST, Stride

SENT = st.integers(0, MAX_SEGMENT)


def test_a_good_line_takes_everything_at_once() -> None:
    assert Stride().size is None
    assert Stride().went_through(MAX_SEGMENT) == Stride()


def test_where_cut_bodies_are_kept_nothing_changes() -> None:
    assert Stride().cut(16 * MIB, MIB) == Stride()
    assert Stride(MIB).cut(MIB, 1) == Stride(MIB)
    assert Stride().cut(0, 0) == Stride()


def test_a_cut_that_costs_all_makes_appends_small_and_success_large_again() -> None:
    stride = Stride().cut(8 * MIB, 0)
    assert stride.size == 2 * MIB
    sizes = []
    while stride.size is not None:
        sizes.append(stride.size)
        stride = stride.went_through(stride.size)
    assert sizes == [2 * MIB, 4 * MIB, 8 * MIB, 16 * MIB, 32 * MIB]


def test_what_was_smaller_than_it_might_have_been_says_nothing() -> None:
    assert Stride(MIB).went_through(MIB - 1) == Stride(MIB)


@given(SENT, SENT)
def test_an_append_never_gets_too_small_nor_larger_by_a_cut(sent: int, kept: int) -> None:
    for before in (Stride(), Stride(SMALLEST), Stride(3 * MIB)):
        after = before.cut(sent, min(kept, sent))
        assert after.size is None or after.size >= SMALLEST
        if before.size is not None:
            assert after.size is not None
            assert after.size <= before.size
        if sent and not kept:
            assert after.size is not None
            assert after.size <= max(SMALLEST, sent // 4)


def test_some_size_gets_through_whatever_the_line() -> None:
    """Every connection ends after so many bytes, and only whole bodies count."""
    for bound in (SMALLEST, 100 * KIB, MIB, 5 * MIB):
        stride, left, sent = Stride(), 8 * MIB, 0
        for _ in range(1000):
            size = min(left, stride.size or left)
            if size <= bound:
                left, sent, stride = left - size, sent + size, stride.went_through(size)
            else:
                sent, stride = sent + bound, stride.cut(bound, 0)
            if not left:
                break
        assert left == 0
        assert sent <= 4 * 8 * MIB

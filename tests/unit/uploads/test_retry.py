"""Backoff: 1 s doubled to 5 min, full jitter, reset by success."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailboat.protocol.limits import MAX_RETRY_AFTER
from mailboat.protocol.uploads.retry import Backoff


def failed(times: int, backoff: Backoff) -> Backoff:
    for _ in range(times):
        backoff = backoff.failed()
    return backoff


@pytest.mark.parametrize(
    ("failures", "window"), [(0, 0.0), (1, 1.0), (2, 2.0), (3, 4.0), (9, 256.0), (10, 300.0), (5000, 300.0)]
)
def test_windows_double_up_to_the_longest(failures: int, window: float) -> None:
    assert failed(failures, Backoff()).window == window


def test_each_failure_gives_a_new_value_and_success_the_first() -> None:
    first = Backoff(first=2.0, longest=10.0, limit=7)
    assert first.failed() == Backoff(first=2.0, longest=10.0, limit=7, failures=1)
    assert first.failures == 0
    assert failed(4, first).succeeded() == first


@pytest.mark.parametrize(("limit", "failures", "exhausted"), [(None, 10**6, False), (3, 2, False), (3, 3, True)])
def test_the_callers_bound(limit: int | None, failures: int, exhausted: bool) -> None:
    assert Backoff(limit=limit, failures=failures).exhausted is exhausted


@given(st.integers(0, 100), st.floats(0, 1), st.floats(-1e12, 1e12))
def test_a_pause_is_the_floor_and_a_share_of_the_window(failures: int, entropy: float, floor: float) -> None:
    backoff = Backoff(failures=failures)
    pause = backoff.pause(entropy, floor)
    kept = min(max(floor, 0.0), MAX_RETRY_AFTER)
    assert kept <= pause <= kept + backoff.window
    assert backoff.pause(0.0, floor) == kept
    assert backoff.pause(1.0, floor) == kept + backoff.window

"""How many segments are on their way."""

from __future__ import annotations

import pytest

from mailboat.agent.flights import Flights


def flown(limit: int) -> tuple[Flights, list[int]]:
    """Flights, and how often it was told that there may be room."""
    told: list[int] = []
    return Flights(limit, lambda: told.append(1)), told


def test_one_that_only_waits_for_its_answer_makes_room_for_another() -> None:
    flights, told = flown(1)
    first = flights.begin(10)
    assert flights.full
    first.moved(9)
    assert flights.full
    assert told == []
    first.moved(1)
    assert not flights.full
    assert told == [1]


def test_as_many_may_wait_as_go() -> None:
    flights, _ = flown(2)
    for _number in range(3):
        assert not flights.full
        flights.begin(5).moved(5)
    assert not flights.full
    fourth = flights.begin(5)
    assert flights.full, "one goes, and three wait"
    fourth.moved(5)
    assert flights.full, "four wait"


def test_one_that_lasts_holds_back_only_itself() -> None:
    """Beside a slow one, whose bytes still go, the others go on one after the other."""
    flights, _ = flown(2)
    flights.begin(1000)
    for _number in range(10):
        other = flights.begin(5)
        assert flights.full
        other.moved(5)
        assert not flights.full
        other.end(None)
    assert (flights.going, flights.waiting) == (1, 0)


@pytest.mark.parametrize(
    ("left", "moved"),
    [
        (5, [5]),
        pytest.param(5, [2], id="cut"),
        pytest.param(5, [3, 5], id="cut, and sent again in part"),
        pytest.param(5, [5, 5, 5], id="and more than once"),
        pytest.param(0, [0], id="nothing was left to send"),
        (5, []),
    ],
)
def test_whatever_becomes_of_one_its_room_is_free_again(left: int, moved: list[int]) -> None:
    flights, told = flown(1)
    flight = flights.begin(left)
    for count in moved:
        flight.moved(count)
    flight.end(None)
    assert (flights.going, flights.waiting) == (0, 0)
    assert not flights.full
    assert told[-1:] == [1]

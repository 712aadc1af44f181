"""Retry-After: seconds or a date, a day at most, junk is nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailboat.protocol.limits import MAX_RETRY_AFTER
from mailboat.protocol.uploads.http_dates import format_http_date, parse_http_date, retry_after

NINETY_FOUR = 784111777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110
NOW = 1795294800.0  # 21 November 2026, 21:00
IN_A_MINUTE = "Sat, 21 Nov 2026 21:01:00 GMT"


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", NINETY_FOUR),
        ("Sunday, 06-Nov-94 08:49:37 GMT", NINETY_FOUR),
        ("Sun Nov  6 08:49:37 1994", NINETY_FOUR),
        ("Wed Nov 16 08:49:37 1994", NINETY_FOUR + 10 * 86400),
        ("Thursday, 06-Nov-76 08:49:37 GMT", 3371878177.0),  # 50 years ahead: still this century
        ("Sunday, 06-Nov-77 08:49:37 GMT", 247654177.0),  # 51 years ahead: rather the last one
        ("Sat, 31 Dec 2016 23:59:60 GMT", 1483228799.0),
    ],
)
def test_the_three_forms_of_a_date(text: str, moment: float) -> None:
    assert parse_http_date(text, NOW) == moment


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tomorrow",
        "Sun, 06 Nov 1994 08:49:37",
        "Sun, 06 Nov 1994 08:49:37 CET",
        "Sun, 31 Feb 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 25:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:61 GMT",
        "Sun, 06 Nov 0000 08:49:37 GMT",
        "Sun, 6 Nov 1994 08:49:37 GMT",
        "sun, 06 nov 1994 08:49:37 gmt",
    ],
)
def test_no_dates(text: str) -> None:
    assert parse_http_date(text, NOW) is None


def test_a_wall_clock_out_of_all_bounds_makes_a_short_year_unreadable() -> None:
    assert parse_http_date("Sunday, 06-Nov-94 08:49:37 GMT", 1e300) is None


@pytest.mark.parametrize(
    ("value", "date", "seconds"),
    [
        (None, None, 0.0),
        ("0", None, 0.0),
        ("120", None, 120.0),
        (" 120\t", None, 120.0),
        ("86400", None, MAX_RETRY_AFTER),
        ("1000000000", None, MAX_RETRY_AFTER),
        ("9" * 10_000, None, MAX_RETRY_AFTER),
        ("-1", None, 0.0),
        ("1.5", None, 0.0),
        ("1e3", None, 0.0),
        ("soon", None, 0.0),
        ("", None, 0.0),
        (IN_A_MINUTE, None, 60.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", None, 0.0),
        ("Fri, 21 Nov 2036 21:00:00 GMT", None, MAX_RETRY_AFTER),
        # the server's clock is ten years off, and so is its date: what counts is the difference
        ("Fri, 21 Nov 2036 21:02:00 GMT", "Fri, 21 Nov 2036 21:00:00 GMT", 120.0),
        (IN_A_MINUTE, "no date", 60.0),
    ],
)
def test_retry_after(value: str | None, date: str | None, seconds: float) -> None:
    assert retry_after(value, date, NOW) == seconds


@given(st.text(max_size=60), st.none() | st.text(max_size=60), st.floats())
def test_whatever_comes_the_pause_is_bounded(value: str, date: str | None, wall: float) -> None:
    assert 0.0 <= retry_after(value, date, wall) <= MAX_RETRY_AFTER


def test_a_wall_clock_that_is_no_number_pauses_nothing() -> None:
    assert retry_after(IN_A_MINUTE, None, float("nan")) == 0.0


@given(st.datetimes().map(lambda moment: moment.strftime("%a, %d %b %Y %H:%M:%S GMT")), st.floats())
def test_any_date_and_any_clock_give_a_bounded_pause(value: str, wall: float) -> None:
    assert 0.0 <= retry_after(value, None, wall) <= MAX_RETRY_AFTER


@given(st.integers(0, 253_402_300_799))
def test_a_date_survives_its_field(moment: int) -> None:
    assert parse_http_date(format_http_date(float(moment)), 0.0) == moment


def test_moments_beyond_what_a_date_can_say_are_the_last_one_it_can() -> None:
    assert format_http_date(1e300) == "Fri, 31 Dec 9999 23:59:59 GMT"
    assert format_http_date(-1.0) == "Thu, 01 Jan 1970 00:00:00 GMT"

"""HTTP-dates, and Retry-After in both of its forms (RFC 9110, sections 5.6.7 and 10.2.3).

Not `email.utils`: it opens the socket and random modules to read a date.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from mailboat.protocol.limits import MAX_RETRY_AFTER

_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_LAST: Final = 253_402_300_799.0
_CLOCK: Final = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_MONTH: Final = rf"(?P<month>{'|'.join(_MONTHS)})"
_FORMS: Final = (
    # Sun, 06 Nov 1994 08:49:37 GMT
    rf"[A-Z][a-z]{{2}}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_CLOCK} GMT",
    # Sunday, 06-Nov-94 08:49:37 GMT (obsolete, but a recipient must read it)
    rf"[A-Z][a-z]{{5,8}}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_CLOCK} GMT",
    # Sun Nov  6 08:49:37 1994 (obsolete as well)
    rf"[A-Z][a-z]{{2}} {_MONTH} (?P<day>[ 0-9][0-9]) {_CLOCK} (?P<year>[0-9]{{4}})",
)
"""Compiled when the first date is read: it takes 1 ms, and most agents never see one."""
_CENTURY_SPLIT: Final = 50
_LEAP_SECOND: Final = 60
_SECONDS: Final = re.compile(r"[0-9]+")
_LONGEST_SECONDS: Final = 15
"""Digits of a delay that are worth reading: beyond them it is longer than any bound anyway."""


def parse_http_date(text: str, wall: float) -> float | None:
    """The Unix time that `text` states, None when it is no HTTP-date.

    `wall` is the time now: a year of two digits that seems more than 50 years ahead means the century before.
    """
    for form in _FORMS:
        found = re.fullmatch(form, text)
        if found is not None:
            return _timestamp(found, wall)
    return None


def format_http_date(moment: float) -> str:
    """Unix time as an HTTP-date, in the one form that is still written; years beyond 9999 are that year's end."""
    at = datetime.fromtimestamp(min(max(moment, 0.0), _LAST), UTC)
    return f"{_DAYS[at.weekday()]}, {at.day:02} {_MONTHS[at.month - 1]} {at.year:04} {at:%H:%M:%S} GMT"


def _timestamp(found: re.Match[str], wall: float) -> float | None:
    try:
        year = int(found["year"])
        if len(found["year"]) == len("94"):
            this_year = datetime.fromtimestamp(wall, UTC).year
            year += this_year - this_year % 100
            if year > this_year + _CENTURY_SPLIT:
                year -= 100
        second = int(found["second"])
        moment = datetime(
            year,
            _MONTHS.index(found["month"]) + 1,
            int(found["day"]),
            int(found["hour"]),
            int(found["minute"]),
            # datetime has no leap seconds; a second less is no harm to a pause
            second - (second == _LEAP_SECOND),
            tzinfo=UTC,
        )
    except (ValueError, OverflowError, OSError):  # the 31st of February, hour 25, a wall clock out of range
        return None
    return moment.timestamp()


def retry_after(value: str | None, date: str | None, wall: float) -> float:
    """Seconds that the field value `value` of Retry-After asks to wait: 0 when absent or junk, at most a day.

    `date` is the same answer's Date field: a date to wait for is measured against the server's clock where it told its
    own, because the local wall clock (`wall`, Unix seconds) may be years off.
    """
    if value is None:
        return 0.0
    text = value.strip(" \t")
    if _SECONDS.fullmatch(text):
        seconds = float(text[:_LONGEST_SECONDS]) if len(text) <= _LONGEST_SECONDS else MAX_RETRY_AFTER
        return min(seconds, MAX_RETRY_AFTER)
    until = parse_http_date(text, wall)
    if until is None:
        return 0.0
    answered = parse_http_date(date.strip(" \t"), wall) if date is not None else None
    return min(max(0.0, until - (wall if answered is None else answered)), MAX_RETRY_AFTER)

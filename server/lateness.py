"""How late records come, and how complete a day is likely to be.

A record is as late as the last bytes of its segment came after the end of its session. What has not come yet is of two
kinds: what summaries have announced (*known*), and what no agent has told of so far. The second is judged by how late
others were: if nine tenths of all records are here within three days of their session, the announced records of a day
that is three days old are likely nine tenths of all that there will be.
"""

# ruff: noqa: S608 - what is put into SQL here are fragments of this package; values are always bound

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from math import exp
from typing import Final

from mailboat.server.reports import MAX_DAYS, Answer, Question, Scope, claimed

DAY: Final = 24 * 3600.0
HORIZON: Final = 30
"""Days after which nothing more is to be expected: agents give up older sessions, and servers refuse them."""
ENOUGH: Final = 1000
"""Records below which lateness tells nothing: a day is then taken for as complete as its summaries say."""


_STEPS: Final = 20
"""Lateness is told in steps of a twentieth of its own size: a month has 300 of them."""


def share_by(age: float, shares: Sequence[float]) -> float:
    """Which part of the records of a day is likely known of when it is `age` seconds over.

    `shares` are, for each number of days from zero on, the part of all records that came within them, growing to 1;
    empty when nothing is known. A day that is not over yet is held to what comes at once.
    """
    if not shares:
        return 1.0
    days = int(max(0.0, age) // DAY)
    return shares[min(days, len(shares) - 1)]


def completeness(here: int, announced: int, share: float) -> float | None:
    """The likely part of a day's records that are here; None for a day without any."""
    expected = max(here, announced) / share if share else 0.0
    return min(1.0, here / expected) if expected else None


def delivery(scope: Scope, now: float, question: Question) -> Answer:
    """How late records come, and each day of recording with what is here of it; `now` is Unix seconds."""
    lateness, shares = _lateness(scope, now, question)
    days = [_judged(row, now, shares) for row in _days(scope, question)]
    return {"lateness": lateness, "days": days}


def _lateness(scope: Scope, now: float, question: Question) -> tuple[Answer, list[float]]:
    """Percentiles of the seconds that records came late, and the share of them within each number of days.

    Of sessions that ended before the `HORIZON`, if there are enough: of younger ones the late part is still missing.
    """
    rows = question.rows(
        f"""
        SELECT floor(ln(1 + greatest(0, epoch(arrived - ended))) * {_STEPS})::INTEGER AS step,
               ended < make_timestamp($settled) AS settled, sum(l.records)::BIGINT AS records
        FROM loaded l JOIN (SELECT product, session_id, ended FROM session WHERE {scope.where("started")}) s
             USING (product, session_id)
        WHERE l.records > 0 AND ended < make_timestamp($now) GROUP BY ALL ORDER BY step
        """,
        {**scope.values, "settled": int((now - HORIZON * DAY) * 1e6), "now": int(now * 1e6)},
    )
    settled = [row for row in rows if row["settled"]]
    return spread(settled if sum(row["records"] for row in settled) >= ENOUGH else rows)


def spread(rows: Sequence[Answer]) -> tuple[Answer, list[float]]:
    """Percentiles, and shares within days, of `records` by their `step` of lateness, in ascending order."""
    late = [exp((row["step"] + 1) / _STEPS) - 1 for row in rows]
    reached = list(accumulate(row["records"] for row in rows))
    total = reached[-1] if reached else 0
    percentiles = {
        name: late[min(bisect_left(reached, total * share), len(late) - 1)] if late else None
        for name, share in (("50", 0.5), ("90", 0.9), ("95", 0.95), ("99", 0.99))
    }
    shares = []
    if total >= ENOUGH:
        within = (bisect_right(late, (days + 1) * DAY) for days in range(HORIZON + 1))
        shares = [reached[count - 1] / total if count else 0.0 for count in within]
    return {"records": total, "percentiles": percentiles}, shares


def _days(scope: Scope, question: Question) -> list[Answer]:
    """By day on which sessions started, in UTC, the latest first: what was announced of them and what is here."""
    return question.rows(
        f"""
        WITH s AS (SELECT product, session_id, started::DATE AS day, records, state, status FROM session
                   WHERE {scope.where("started")}),
             l AS (SELECT product, session_id, sum(records)::BIGINT AS here FROM loaded GROUP BY ALL)
        SELECT strftime(day, '%Y-%m-%d') AS day, epoch(day) AS begun, count(*) AS sessions,
               count(*) FILTER (status = 'running') AS running,
               {claimed("records", "state = 'wanted'")} AS announced,
               coalesce(sum(here) FILTER (state = 'wanted'), 0)::BIGINT AS here,
               {claimed("records", "state = 'declined'")} AS declined,
               {claimed("records", "state = 'rejected'")} AS rejected
        FROM s LEFT JOIN l USING (product, session_id) GROUP BY day ORDER BY day DESC LIMIT {MAX_DAYS}
        """,
        scope.values,
    )


def _judged(row: Answer, now: float, shares: Sequence[float]) -> Answer:
    begun = row.pop("begun")
    share = share_by(now - begun - DAY, shares)
    return {**row, "complete": completeness(row["here"], row["announced"], share)}

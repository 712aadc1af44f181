"""Late records, days that are not complete, and machines whose clocks are wrong."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from msgspec.structs import replace

from mailboat.protocol import Info
from mailboat.server.catalog import SessionRow, SessionState
from mailboat.server.lateness import DAY, ENOUGH, HORIZON, completeness, delivery, share_by, spread
from mailboat.server.reports import Scope
from mailboat.server.skew import FARTHEST, TOLERATED, correction
from testkit.loading import Bench, segment_row, session_row
from testkit.segments import START, Segment, feature
from testkit.serverkit import fresh_session_id, summary_of
from testkit.sites import SERVER_TIME, Site, session

NOW = START + 100 * DAY


@pytest.mark.parametrize(
    ("skew", "expected"),
    [
        (None, 0.0),
        (0.4, 0.0),
        (-TOLERATED + 1, 0.0),
        (TOLERATED, TOLERATED),
        (-7200.0, -7200.0),
        (-1e300, 0.0),
        (FARTHEST * 2, 0.0),
    ],
)
def test_what_is_a_wrong_clock(skew: float | None, expected: float) -> None:
    assert correction(skew) == expected


async def test_times_of_a_machine_whose_clock_is_wrong_are_corrected(site: Site) -> None:
    """Its clock is two days ahead of the server's: the session shows on the day on which it was, its records too."""
    segments = session()
    ahead = SERVER_TIME + 2 * DAY
    (decision,) = await site.agent.negotiate(summary_of(*segments), sent=ahead)
    for data, upload in zip(segments, decision.segments, strict=True):
        await site.agent.append(upload.url, data, 0, complete=True)
    await site.settled()
    shown = await site.get(f"/api/v1/sessions/{decision.session_id}")
    assert shown["corrected"]["started"] == pytest.approx(shown["started"] - 2 * DAY)
    (day,) = (await site.get("/api/v1/overview"))["days"]
    assert day["day"] == dt.datetime.fromtimestamp(shown["started"] - 2 * DAY, dt.UTC).date().isoformat()
    assert (day["sessions"], day["records"]) == (1, 6)
    (feature_, _) = (await site.get("/api/v1/features"))["features"]
    assert feature_["first"] == pytest.approx(START + 1 - 2 * DAY)
    (record, *_) = (await site.get(f"/api/v1/sessions/{decision.session_id}/records"))["records"]
    assert record["time"] == pytest.approx(START + 1), "records themselves are given as they were made"


def test_a_day_is_held_to_how_late_others_were() -> None:
    shares = [0.5, 0.8, 1.0]
    assert share_by(-3600.0, shares) == 0.5
    assert share_by(0.5 * DAY, shares) == 0.5
    assert share_by(1.5 * DAY, shares) == 0.8
    assert share_by(99 * DAY, shares) == 1.0
    assert share_by(0.0, []) == 1.0
    assert completeness(40, 40, 0.5) == pytest.approx(0.5)
    assert completeness(40, 80, 1.0) == pytest.approx(0.5)
    assert completeness(40, 40, 1.0) == 1.0
    assert completeness(50, 40, 1.0) == 1.0
    assert completeness(0, 0, 0.5) is None


def test_percentiles_are_of_records_not_of_segments() -> None:
    lateness, shares = spread([{"step": 0, "records": 98}, {"step": 100, "records": 2}])
    assert lateness["records"] == 100
    assert lateness["percentiles"]["95"] < 1.0 < lateness["percentiles"]["99"]
    assert shares == []
    assert spread([]) == ({"records": 0, "percentiles": dict.fromkeys(("50", "90", "95", "99"))}, [])


def load(bench: Bench, days_ago: float, late: float, records: int, declared: int | None = None) -> SessionRow:
    """A session that ended so many days ago, whose records came so many seconds late, as far as they have."""
    session_id, started = fresh_session_id(), NOW - days_ago * DAY - 60
    row = session_row(
        session_id, info=Info(product="Acme Studio"), started=started, counts={"feature": declared or records}
    )
    bench.analytics.load_sessions([row], 1)
    if records:
        segment = Segment(session_id, info=Info(product="Acme Studio"))
        segment.block([feature("a", at=number) for number in range(records)])
        data = segment.seal()
        bench.load((replace(segment_row(data, session_id), updated=row.summary.ended + late), data))
    return row


def asked(bench: Bench, scope: Scope | None = None) -> dict[str, Any]:
    return bench.ask(lambda question: delivery(scope or Scope(), NOW, question))


def test_delivery_tells_what_is_late_and_how_complete_days_are(bench: Bench) -> None:
    load(bench, 60, 10.0, ENOUGH // 2)
    load(bench, 60, 3.5 * DAY, ENOUGH // 2)
    load(bench, 1.5, 5.0, 30, declared=60)
    load(bench, 10.5, 5.0, 80)
    load(bench, 2.9, 5.0, 40)
    said = asked(bench)
    assert said["lateness"]["records"] == ENOUGH, "what ended within the horizon is still incomplete, and left out"
    assert said["lateness"]["percentiles"]["50"] == pytest.approx(10.0, rel=0.1)
    assert said["lateness"]["percentiles"]["99"] == pytest.approx(3.5 * DAY, rel=0.1)
    young, between, old, *_ = said["days"]
    assert (between["here"], between["complete"]) == (40, pytest.approx(0.5)), "begun three days ago, over for two"
    assert (young["announced"], young["here"], young["complete"]) == (60, 30, pytest.approx(0.25))
    assert (old["announced"], old["here"], old["complete"]) == (80, 80, 1.0)


def test_without_enough_to_judge_by_a_day_is_as_complete_as_was_announced(bench: Bench) -> None:
    load(bench, 1.5, 5.0, 30, declared=60)
    declined = load(bench, 1.4, 5.0, 0, declared=7)
    bench.analytics.load_sessions([replace(declined, state=SessionState.DECLINED)], 2)
    said = asked(bench)
    (day,) = said["days"]
    assert (day["announced"], day["here"], day["declined"], day["complete"]) == (60, 30, 7, pytest.approx(0.5))
    assert said["lateness"]["records"] == 30
    assert asked(bench, Scope(until=NOW - HORIZON * DAY))["days"] == []

"""Versions, installations, warnings, and tables taken away as files."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import pytest
from msgspec.structs import replace

from mailboat.protocol import Info, Status
from mailboat.protocol.segment import SealReason
from mailboat.server.context import CATALOG, CONFIG
from mailboat.server.products import put_plan
from testkit.segments import START, Segment, feature, pack
from testkit.serverkit import eventually, fresh_session_id, summary_of
from testkit.sites import OTHER, SERVER_TIME, Site, session

DAY = 86_400.0


async def ran(site: Site, version: str, installation: str, *, ended: bool = True) -> None:
    """A session of one record, that has `ended` in order or has crashed."""
    info = Info(product="Acme Studio", application="importer", version=version, os=f"OS of {version}")
    segment = Segment(fresh_session_id(), info=info)
    segment.block([feature("start", at=1)])
    reason = SealReason.STOPPED if ended else SealReason.CRASHED
    await site.send(segment.seal(reason, {"id": installation, "properties": {}}))


async def test_versions_are_told_with_their_share_and_how_they_end(site: Site) -> None:
    for version, installation, ended in (
        ("1.0", "a", True),
        ("1.0", "b", False),
        ("1.0", "a", True),
        ("2.0", "a", True),
    ):
        await ran(site, version, installation, ended=ended)
    await site.send(*session(OTHER), client=site.other_agent)
    runs = Segment(fresh_session_id(), info=Info(product="Acme Studio", application="importer", version="1.0"))
    running = replace(summary_of(runs.seal()), status=Status.RUNNING, installation="c")
    await site.agent.negotiate(running)
    await site.settled()
    said = await site.get("/api/v1/versions")
    assert [
        (row["version"], row["sessions"], row["installations"], row["crashed"], row["share"], row["crash_free"])
        for row in said["versions"]
    ] == [("1.0", 4, 3, 1, 0.8, pytest.approx(2 / 3)), ("2.0", 1, 1, 0, 0.2, 1.0)]
    assert [(row["version"], row["sessions"], row["installations"]) for row in said["days"]] == [
        ("1.0", 4, 3),
        ("2.0", 1, 1),
    ]
    assert (await site.get("/api/v1/versions", to=START - DAY))["versions"] == []


async def test_installations_are_told_as_they_were_last(site: Site) -> None:
    for version, installation in (("1.0", "a"), ("1.0", "b"), ("2.0", "a")):
        await ran(site, version, installation)
    await site.settled()
    rows = (await site.get("/api/v1/installations"))["installations"]
    assert {row["installation"]: (row["sessions"], row["records"]) for row in rows} == {"a": (2, 2), "b": (1, 1)}
    page = await site.get("/api/v1/installations", limit=1)
    rest = await site.get("/api/v1/installations", limit=1, cursor=page["next"])
    assert [each["installation"] for each in (*page["installations"], *rest["installations"])] == [
        row["installation"] for row in rows
    ]
    assert rest["next"] is None
    assert (await site.get("/api/v1/installations", site.other_reader))["installations"] == []


async def test_what_could_not_be_used_is_told(site: Site) -> None:
    segment = Segment(fresh_session_id(), info=Info(product="Acme Studio"))
    segment.block([feature("well", at=1)])
    segment.block([pack({"no": "record"})], counts=[1, *([0] * 11)])
    data = segment.seal()
    (decision,) = await site.agent.negotiate(summary_of(data), sent=SERVER_TIME - DAY)
    await site.agent.append(decision.segments[0].url, data, 0, complete=True)
    await site.settled()
    said = await site.get("/api/v1/warnings")
    assert [(row["count"], row["sessions"], row["records"]) for row in said["gaps"]] == [(1, 1, 1)]
    assert (said["clocks_corrected"], said["worst_clock"], said["rejected"]) == (1, pytest.approx(DAY), 0)
    assert (await site.get("/api/v1/warnings", site.other_reader))["gaps"] == []


async def test_rejections_are_told_with_their_reasons(site: Site) -> None:
    """Of the plan, and of the bytes; by the sessions asked about."""
    await put_plan(site.server.app[CATALOG], "Acme Studio", {"records_per_month": 2, "max_age_days": 10}, SERVER_TIME)
    offers = []
    for records in (1, 1, 3, 1):
        segment = Segment(fresh_session_id(), info=Info(product="Acme Studio"))
        segment.block([feature("a", at=1) for _ in range(records)])
        offers.append(summary_of(segment.seal()))
    taken, late, over, broken = offers
    late = replace(late, started=late.started - 20 * DAY, ended=late.started - 20 * DAY)
    decisions = await site.agent.negotiate(taken, late, over, broken)
    assert [each.reason for each in decisions] == ["", "too_old", "over_plan", ""]
    await site.agent.append(decisions[3].segments[0].url, b"no segment", 0, complete=True)
    await site.settled()
    said = await site.get("/api/v1/warnings")
    told = {each["reason"]: (each["sessions"], each["records"]) for each in said["rejections"]}
    assert told == {"too_old": (1, 1), "over_plan": (1, 3), "corrupted": (1, 1)}
    assert said["rejected"] == 3
    early = await site.get("/api/v1/warnings", to=late.started + DAY)
    assert [(each["reason"], each["last"]) for each in early["rejections"]] == [("too_old", late.started)]
    assert (await site.get("/api/v1/warnings", origin="internal"))["rejections"] == []
    assert (await site.get("/api/v1/warnings", site.other_reader))["rejections"] == []


@pytest.mark.parametrize("test", [False, True])
async def test_warnings_are_of_the_sessions_asked_about(site: Site, test: bool) -> None:
    """By their start and their origin, as all that is told of sessions."""
    for records in ([feature("well", at=1)], []):
        segment = Segment(fresh_session_id(), info=Info(product="Acme Studio", test=test))
        if records:
            segment.block(records)
        segment.block([pack({"no": "record"})], counts=[1, *([0] * 11)])
        await site.send(segment.seal())
    await site.settled()

    async def told(**scope: object) -> tuple[int, int]:
        said = await site.get("/api/v1/warnings", None, **scope)
        return sum(row["count"] for row in said["gaps"]), sum(row["segments"] for row in said["failed"])

    (started,) = {each["started"] for each in (await site.get("/api/v1/sessions", origin="all"))["sessions"]}
    all_of_them = await told(origin="all")
    assert all_of_them[0] == 2
    assert await told(origin="internal" if test else "public") == all_of_them
    assert await told(origin="public" if test else "internal") == (0, 0)
    assert await told(origin="all", from_=started, to=started + 1) == all_of_them
    assert await told(origin="all", from_=started + 1) == await told(origin="all", to=started) == (0, 0)


async def test_a_table_is_taken_away_as_a_file(site: Site, tmp_path: Path) -> None:
    await site.send(*session())
    await site.send(*session(OTHER), client=site.other_agent)
    await site.settled()
    for table, expected in (("feature", 1), ("exception", 1), ("session", 1), ("other", 0)):
        answer = await site.ask(f"/api/v1/export/{table}")
        assert (answer.status, answer.headers["Content-Type"]) == (200, "application/vnd.apache.parquet")
        path = tmp_path / f"{table}.parquet"
        path.write_bytes(answer.body)
        rows = duckdb.sql(f"SELECT product FROM '{path}'").fetchall()
        assert rows == [("Acme Studio",)] * expected
    both = await site.ask("/api/v1/export/feature", site.admin, limit=1)
    (tmp_path / "one.parquet").write_bytes(both.body)
    assert len(duckdb.sql(f"SELECT * FROM '{tmp_path / 'one.parquet'}'").fetchall()) == 1
    await eventually(lambda: not list((site.server.app[CONFIG].data / "exports").iterdir()))


async def test_only_tables_with_records_are_taken_away(site: Site) -> None:
    for table in ("loaded", "state", "keys", "feature;drop"):
        answer = await site.ask(f"/api/v1/export/{table}")
        assert (answer.status, json.loads(answer.body)["detail"].startswith("table: ")) == (400, True)

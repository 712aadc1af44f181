"""The JSON API of a real server: what arrives over the wire comes back, to those who may see it."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from msgspec import structs

from mailboat.protocol import Info, SegmentReader, Status, Summary, wire
from mailboat.protocol.negotiation import Request
from mailboat.protocol.records import COUNTERS
from mailboat.protocol.summary import SegmentState
from mailboat.server.ingest import REPORTS
from mailboat.server.operations import OPERATIONS
from testkit.segments import CLOCK, START, Segment, feature, pack
from testkit.serverkit import AGENT, fresh_session_id, summary_of
from testkit.sites import OTHER, PRODUCT, Site, session

ENDPOINTS = (
    "/api/v1/sessions",
    "/api/v1/overview",
    "/api/v1/features",
    "/api/v1/values",
    "/api/v1/exceptions",
    "/api/v1/ledger",
    "/metrics",
)


def running_summary(segment: Segment) -> Summary:
    """What an agent offers of a session that runs, in one segment."""
    info = Info.from_wire(dict(segment.writer.description.info))
    state = SegmentState(0, len(segment.data), segment.writer.records, sealed=False)
    return Summary(
        session_id=segment.writer.description.session_id,
        info=info,
        started=float(START),
        ended=START + 10.0,
        duration=10.0,
        status=Status.RUNNING,
        counts=tuple(segment.writer.counts),
        segments=(state,),
    )


async def test_what_was_sent_comes_back_record_by_record(site: Site) -> None:
    segments = session()
    session_id = await site.send(*segments)
    said = await site.get(f"/api/v1/sessions/{session_id}/records")
    assert (said["session"], said["next"], said["gaps"]) == (session_id, None, [])
    expected = [record.to_dict() for data in segments for record in SegmentReader(data)]
    expected[0]["attributes"]["raw"] = {"$bytes": "AP8="}
    expected[3]["attributes"]["odd"] = {"$float": "inf"}
    assert said["records"] == expected


async def test_records_come_in_pages_and_by_kind_and_name(site: Site) -> None:
    path = f"/api/v1/sessions/{await site.send(*session())}/records"
    page = await site.get(path, limit=4)
    assert ([record["sequence"] for record in page["records"]], page["next"]) == ([0, 1, 2, 3], "3")
    page = await site.get(path, limit=4, cursor=page["next"])
    assert ([record["sequence"] for record in page["records"]], page["next"]) == ([4, 5], None)
    assert [each["sequence"] for each in (await site.get(path, after=3))["records"]] == [4, 5]
    assert [each["name"] for each in (await site.get(path, kind="timing"))["records"]] == ["parse"]
    assert [each["kind"] for each in (await site.get(path, name="size"))["records"]] == ["value"]
    assert (await site.get(path, kind="feature", name="size"))["records"] == []


async def test_a_running_session_can_be_read_as_it_grows(site: Site) -> None:
    segment = Segment(fresh_session_id(), info=Info(product=PRODUCT))
    segment.block([feature("a", at=1)])
    (decision,) = await site.agent.negotiate(running_summary(segment))
    url, session_id = decision.segments[0].url, decision.session_id
    await site.agent.append(url, segment.data, 0, complete=False)
    path = f"/api/v1/sessions/{session_id}"
    assert [each["name"] for each in (await site.get(f"{path}/records"))["records"]] == ["a"]
    await site.settled()
    assert (await site.get("/api/v1/features"))["features"][0]["uses"] == 1
    sent = len(segment.data)
    segment.block([feature("b", at=2), feature("a", at=3)])
    await site.agent.append(url, segment.data[sent:], sent, complete=False)
    assert [each["name"] for each in (await site.get(f"{path}/records", after=0))["records"]] == ["b", "a"]
    await site.settled()
    features = (await site.get("/api/v1/features"))["features"]
    assert {row["name"]: row["uses"] for row in features} == {"a": 2, "b": 1}
    shown = await site.get(path)
    assert (shown["status"], shown["loaded"], shown["delivered"]) == ("running", 3, False)


async def test_who_waits_for_records_of_a_running_session_has_them_as_they_come(site: Site) -> None:
    segment = Segment(fresh_session_id(), info=Info(product=PRODUCT))
    segment.block([feature("a", at=1)])
    (decision,) = await site.agent.negotiate(running_summary(segment))
    url, path = decision.segments[0].url, f"/api/v1/sessions/{decision.session_id}/records"
    first = asyncio.create_task(site.get(path, wait=25))
    await site.agent.append(url, segment.data, 0, complete=False)
    assert [each["name"] for each in (await first)["records"]] == ["a"]
    second = asyncio.create_task(site.get(path, after=0, wait=25))
    sent = len(segment.data)
    segment.block([feature("b", at=2)])
    await site.agent.append(url, segment.data[sent:], sent, complete=False)
    assert [each["name"] for each in (await second)["records"]] == ["b"]
    assert (await site.get(path, after=1, wait=0))["records"] == []


async def test_nobody_waits_for_a_session_that_has_ended_or_longer_than_asked(site: Site) -> None:
    ended = await site.send(*session())
    async with asyncio.timeout(20):
        assert (await site.get(f"/api/v1/sessions/{ended}/records", after=99, wait=25))["records"] == []
    segment = Segment(fresh_session_id(), info=Info(product=PRODUCT))
    segment.block([feature("a", at=1)])
    (decision,) = await site.agent.negotiate(running_summary(segment))
    assert (await site.get(f"/api/v1/sessions/{decision.session_id}/records", wait=1))["records"] == []


async def test_a_session_shows_its_summary_and_what_is_held_of_it(site: Site) -> None:
    segments = session()
    session_id = await site.send(*segments)
    await site.settled()
    shown = await site.get(f"/api/v1/sessions/{session_id}")
    assert (shown["session"], shown["product"], shown["status"], shown["state"]) == (
        session_id,
        PRODUCT,
        "stopped",
        "wanted",
    )
    assert (shown["records"], shown["errors"], shown["loaded"], shown["delivered"], shown["gaps"]) == (
        6,
        1,
        6,
        True,
        [],
    )
    assert shown["info"]["version"] == "2.4.1"
    assert (shown["installation"], shown["installation_properties"]) == ("inst-42", {"plan": "pro"})
    assert [each["index"] for each in shown["segments"]] == [0, 1]
    assert [(each["offset"], each["complete"], each["verification"]) for each in shown["segments"]] == [
        (len(data), True, "verified") for data in segments
    ]
    assert shown["bytes"] == sum(map(len, segments))


async def test_sessions_are_listed_newest_first_in_pages(site: Site) -> None:
    ids = []
    for number in range(5):
        segment = Segment(fresh_session_id(), info=Info(product=PRODUCT, version=str(number % 2)))
        segment.writer.description = structs.replace(segment.writer.description, started_wall=CLOCK + number * 10**9)
        summary = structs.replace(running_summary(segment), started=START + number)
        await site.agent.negotiate(summary)
        ids.append(summary.session_id)
    found, cursor = [], None
    while True:
        page = await site.get("/api/v1/sessions", limit=2, **({"cursor": cursor} if cursor else {}))
        found += [each["session"] for each in page["sessions"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert found == ids[::-1]
    chosen = await site.get("/api/v1/sessions", from_=START + 1, to=START + 3)
    assert [each["session"] for each in chosen["sessions"]] == ids[1:3][::-1]
    assert len((await site.get("/api/v1/sessions", version="1"))["sessions"]) == 2
    assert len((await site.get("/api/v1/sessions", status="crashed"))["sessions"]) == 0
    assert len((await site.get("/api/v1/sessions", status="running", state="wanted"))["sessions"]) == 5


async def test_reports_of_what_was_sent(site: Site) -> None:
    await site.send(*session())
    await site.send(*session(version="2.5"))
    await site.send(*session(test=True))
    await site.settled()
    overview = await site.get("/api/v1/overview")
    assert (overview["sessions"], overview["crashed"], overview["crash_free"], overview["installations"]) == (
        2,
        0,
        1.0,
        1,
    )
    assert overview["records"] == {
        "feature": 2, "value": 2, "timing": 2, "event": 2, "exception": 2, "installation": 2, "other": 0,
    }  # fmt: skip
    assert {row["version"] for row in overview["versions"]} == {"2.4.1", "2.5"}
    assert (await site.get("/api/v1/overview", origin="all"))["sessions"] == 3
    assert (await site.get("/api/v1/overview", origin="internal"))["sessions"] == 1
    assert (await site.get("/api/v1/overview", from_="2026-09-22"))["sessions"] == 0
    assert (await site.get("/api/v1/overview", from_="2026-09-21", to="2026-09-21T14:13:30Z"))["records"][
        "feature"
    ] == 2
    features = (await site.get("/api/v1/features"))["features"]
    assert [(row["name"], row["uses"], row["share"]) for row in features] == [
        ("import", 2, 1.0),
        ("import.csv", 2, 1.0),
    ]
    values = (await site.get("/api/v1/values"))["values"]
    assert [(row["kind"], row["name"], row["unit"], row["sum"]) for row in values] == [
        ("timing", "parse", "s", 0.5),
        ("value", "size", "bytes", 36_460.0),
    ]
    assert len((await site.get("/api/v1/values", kind="timing"))["values"]) == 1
    (group,) = (await site.get("/api/v1/exceptions"))["exceptions"]
    assert (group["type"], group["count"], group["versions"], group["message"]) == (
        "ValueError",
        2,
        ["2.4.1", "2.5"],
        "bad",
    )
    assert group["stack"] == [["/srv/app/main.py", 10, "main"]]


async def test_the_ledger_holds_what_agents_said_against_what_is_here(site: Site) -> None:
    summary = summary_of(*session())
    ledger = {"recorded": 9, "accepted": 6, "lost": {"disk_full": 3}}
    body = Request(AGENT, (summary,), 0.0, ledger).encode(wire.JSON_MEDIA_TYPE)
    answer = await site.agent.ask("POST", "/v1/negotiate", data=body, Content_Type=wire.JSON_MEDIA_TYPE)
    assert answer.status == 200
    await site.send(*session())
    await site.settled()
    said = await site.get("/api/v1/ledger")
    (reported,) = said["reported"]
    assert (reported["product"], reported["agent"], reported["ledger"]) == (PRODUCT, AGENT, ledger)
    (here,) = said["here"]
    assert (here["product"], here["sessions"], here["declared"], here["loaded"], here["missing"]) == (
        PRODUCT,
        2,
        12,
        6,
        0,
    )
    assert (await site.get("/api/v1/ledger", site.other_reader)) == {"reported": [], "here": [], "next": None}


async def test_the_ledger_is_asked_for_by_period_origin_and_page(site: Site) -> None:
    for source in range(5):
        ledger = {"store": f"store {source}", "recorded": source}
        body = Request(AGENT, (summary_of(*session()),), 0.0, ledger).encode(wire.JSON_MEDIA_TYPE)
        answer = await site.agent.ask("POST", "/v1/negotiate", data=body, Content_Type=wire.JSON_MEDIA_TYPE)
        assert answer.status == 200
    await site.send(*session(test=True))
    await site.settled()
    whole = await site.get("/api/v1/ledger")
    assert [each["ledger"]["recorded"] for each in whole["reported"]] == [0, 1, 2, 3, 4]
    pages: list[list[Any]] = []
    following: dict[str, str] | None = {}
    while following is not None:
        page = await site.get("/api/v1/ledger", None, limit="2", **following)
        assert page["here"] == whole["here"]
        pages.append(page["reported"])
        following = None if page["next"] is None else {"cursor": page["next"]}
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [each for page in pages for each in page] == whole["reported"]
    for origin, sessions in (("all", 6), ("public", 5), ("internal", 1)):
        (here,) = (await site.get("/api/v1/ledger", origin=origin))["here"]
        assert (origin, here["sessions"], here["loaded"]) == (origin, sessions, 6 if origin != "public" else 0)
    last = whole["reported"][-1]["updated"]
    begun = (await site.get("/api/v1/sessions", origin="all"))["sessions"][0]["started"]
    assert (await site.get("/api/v1/ledger", to=str(min(last, begun) - 86400.0))) == {
        "reported": [],
        "here": [],
        "next": None,
    }
    since = await site.get("/api/v1/ledger", from_=str(last))
    assert whole["reported"][-1] in since["reported"]


async def test_metrics_are_in_the_format_of_prometheus(site: Site) -> None:
    await site.send(*session())
    await site.send(*session(OTHER), client=site.other_agent)
    await site.settled()
    own = await site.ask("/metrics")
    assert own.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert 'mailboat_loaded{product="Acme Studio"} 6\n' in own.body.decode()
    assert "Other" not in own.body.decode()
    assert "_total" not in own.body.decode(), "the server's own counters are for its admin"
    lines = (await site.ask("/metrics", site.admin)).body.decode().splitlines()
    assert 'mailboat_sessions{product="Other \\"Product\\\\"} 1' in lines
    assert "mailboat_ingest_records_total 12" in lines
    for line in lines:
        assert line.startswith("# ") or float(line.rpartition(" ")[2]) >= 0


# -- who may see what --------------------------------------------------------------------------------------------------


async def test_two_products_never_see_each_other(site: Site) -> None:
    """Every endpoint with the other's key, the same session id included."""
    session_id, client = await site.send(*session()), site.other_reader
    await site.settled()
    assert (await site.get("/api/v1/sessions", client))["sessions"] == []
    assert (await site.get("/api/v1/overview", client, origin="all"))["sessions"] == 0
    assert sum((await site.get("/api/v1/overview", client))["records"].values()) == 0
    for name in ("features", "values", "exceptions"):
        assert (await site.get(f"/api/v1/{name}", client, origin="all"))[name] == []
    for path in (f"/api/v1/sessions/{session_id}", f"/api/v1/sessions/{session_id}/records"):
        assert (await site.ask(path, client)).status == 404
    assert "Acme" not in (await site.ask("/metrics", client)).body.decode()
    await site.send(*session(OTHER, session_id=session_id), client=site.other_agent)
    await site.settled()
    for client, product in ((site.reader, PRODUCT), (site.other_reader, OTHER)):
        assert [each["product"] for each in (await site.get("/api/v1/sessions", client))["sessions"]] == [product]
        assert (await site.get(f"/api/v1/sessions/{session_id}", client))["product"] == product
        assert sum((await site.get("/api/v1/overview", client))["records"].values()) == 6
        assert [each["product"] for each in (await site.get("/api/v1/ledger", client))["here"]] == [product]


async def test_agents_and_strangers_see_nothing(site: Site) -> None:
    session_id = await site.send(*session())
    stranger = replace(site.reader, key="mbk_wrong")
    for path in (*ENDPOINTS, f"/api/v1/sessions/{session_id}", f"/api/v1/sessions/{session_id}/records"):
        assert (path, (await site.ask(path, site.agent)).status) == (path, 403)
        assert (path, (await site.ask(path, stranger)).status) == (path, 401)


async def test_a_product_is_asked_for_within_the_key(site: Site) -> None:
    for path in ENDPOINTS[:-1]:
        assert (path, (await site.ask(path, product=OTHER)).status) == (path, 403)
        assert (path, (await site.ask(path, product=PRODUCT)).status) == (path, 200)
        assert (path, (await site.ask(path, site.admin, product=OTHER)).status) == (path, 200)


async def test_an_admin_sees_all_products_or_one(site: Site) -> None:
    await site.send(*session())
    await site.send(*session(OTHER), client=site.other_agent)
    await site.settled()
    assert (await site.get("/api/v1/overview", site.admin))["sessions"] == 2
    assert (await site.get("/api/v1/overview", site.admin, product=OTHER))["sessions"] == 1
    assert {each["product"] for each in (await site.get("/api/v1/sessions", site.admin))["sessions"]} == {
        PRODUCT,
        OTHER,
    }


# -- what was asked wrongly --------------------------------------------------------------------------------------------


RECORDS = "sessions/018f0000-0000-7000-8000-000000000001/records"
WRONG: list[tuple[str, dict[str, str], str]] = [
    ("sessions", {"limit": "0"}, "limit"),
    ("sessions", {"limit": "1001"}, "limit"),
    ("sessions", {"limit": "ten"}, "limit"),
    ("sessions", {"limit": "٣"}, "limit"),
    ("sessions", {"cursor": "made up"}, "cursor"),
    ("sessions", {"cursor": "bnVsbA=="}, "cursor"),
    ("sessions", {"from_": "yesterday"}, "from"),
    ("sessions", {"from_": "2026-02-30"}, "from"),
    ("sessions", {"to": "-1"}, "to"),
    ("sessions", {"to": "nan"}, "to"),
    ("sessions", {"to": "1" + "0" * 400}, "to"),
    ("sessions", {"from_": "2026-02-02", "to": "2026-02-02"}, "to"),
    ("sessions", {"origin": "everywhere"}, "origin"),
    ("sessions", {"status": "sleeping"}, "status"),
    ("sessions", {"state": "lost"}, "state"),
    ("sessions", {"colour": "red"}, "colour"),
    ("sessions", {"application": "x" * 2000}, "application"),
    ("sessions/no-id", {}, "id"),
    ("sessions/018F0000-0000-7000-8000-000000000001", {}, "id"),
    (RECORDS, {"after": "-2"}, "after"),
    (RECORDS, {"limit": "5001"}, "limit"),
    (RECORDS, {"wait": "26"}, "wait"),
    (RECORDS, {"origin": "all"}, "origin"),
    (RECORDS, {"cursor": "1", "after": "1"}, "cursor"),
    ("overview", {"limit": "1"}, "limit"),
    ("features", {"cursor": "-1"}, "cursor"),
    ("features", {"cursor": "1000001"}, "cursor"),
    ("values", {"kind": "feature"}, "kind"),
    ("exceptions", {"cursor": "x"}, "cursor"),
    ("ledger", {"from_": "yesterday"}, "from"),
    ("ledger", {"limit": "0"}, "limit"),
    ("ledger", {"wait": "1"}, "wait"),
]


async def test_a_wrong_parameter_is_refused_by_its_name(site: Site) -> None:
    for path, parameters, named in WRONG:
        answer = await site.ask(f"/api/v1/{path}", None, **parameters)
        assert (path, parameters, answer.status) == (path, parameters, 400)
        assert answer.headers["Content-Type"].startswith("application/problem+json")
        problem = json.loads(answer.body)
        assert (problem["code"], problem["status"]) == ("bad_request", 400)
        assert problem["detail"].startswith(f"{named}: "), problem


async def test_a_parameter_given_twice_is_refused(site: Site) -> None:
    answer = await site.reader.ask("GET", "/api/v1/sessions?limit=1&limit=2")
    assert (answer.status, json.loads(answer.body)["detail"]) == (400, "limit: it is given twice")


async def test_a_session_that_is_not_here_is_not_found(site: Site) -> None:
    for path in ("", "/records"):
        answer = await site.ask(f"/api/v1/sessions/{fresh_session_id()}{path}")
        assert (answer.status, json.loads(answer.body)["code"]) == (404, "not_found")


async def test_a_question_that_takes_too_long_is_answered_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site.server.app[REPORTS], "_time_limit", 0.0)
    for path in ENDPOINTS:
        answer = await site.ask(path)
        if path == "/api/v1/sessions":
            assert answer.status == 200, "which is asked of the catalog"
            continue
        assert (answer.status, json.loads(answer.body)["code"]) == (503, "unavailable")


async def test_odd_texts_and_numbers_in_a_summary_are_shown(site: Site) -> None:
    properties = {"nan": math.nan, "zero": "\x00", "big": 2**63 - 1}
    segment = Segment(fresh_session_id(), info=Info(product=PRODUCT))
    summary = running_summary(segment)
    odd = structs.replace(summary, info=structs.replace(summary.info, version="\x00", properties=properties))
    body = Request(AGENT, (odd,), 0.0).encode(wire.JSON_MEDIA_TYPE)
    answer = await site.agent.ask("POST", "/v1/negotiate", data=body, Content_Type=wire.JSON_MEDIA_TYPE)
    assert answer.status == 200
    await site.settled()
    shown = await site.get(f"/api/v1/sessions/{summary.session_id}")
    assert shown["info"]["properties"]["big"] == 2**63 - 1
    assert (await site.get("/api/v1/overview"))["versions"][0]["sessions"] == 1


@pytest.mark.parametrize("state", [Status.RUNNING, Status.STOPPED])
async def test_numbers_that_an_agent_makes_up_refuse_no_report(site: Site, state: Status) -> None:
    """They are beyond what a column holds, in sum; a report of all products is for others, too."""
    for _ in range(2):
        summary = running_summary(Segment(fresh_session_id(), info=Info(product=PRODUCT)))
        counts = (wire.MOST, *summary.counts[1:])
        (decision,) = await site.agent.negotiate(structs.replace(summary, counts=counts, status=state))
        assert decision.verdict == "send"
    await site.settled()
    for operation in site.server.app[OPERATIONS]:
        if operation.method == "GET" and "{" not in operation.path:
            answer = await site.ask(operation.path, site.admin)
            assert answer.status == 200, (operation.path, answer)
    assert (await site.get("/api/v1/overview", site.admin))["declared"]["feature"] == wire.MOST


async def test_a_corrupt_segment_shows_in_its_session_and_in_the_metrics(site: Site) -> None:
    segment = Segment(fresh_session_id(), info=Info(product=PRODUCT))
    segment.block([pack({"no": "record"})], counts=[1, *([0] * (len(COUNTERS) - 1))])
    assert msgpack.unpackb(pack({"no": "record"})) == {"no": "record"}
    session_id = await site.send(segment.seal())
    await site.settled()
    shown = await site.get(f"/api/v1/sessions/{session_id}")
    assert (shown["state"], shown["reason"], shown["segments"][0]["verification"]) == (
        "rejected",
        "corrupted",
        "rejected",
    )
    assert [(gap["first"], gap["records"]) for gap in shown["gaps"]] == [(0, 1)]
    records = await site.get(f"/api/v1/sessions/{session_id}/records")
    assert (records["records"], [gap["records"] for gap in records["gaps"]]) == ([], [1])

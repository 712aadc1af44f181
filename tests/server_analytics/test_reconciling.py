"""What agents say became of their records, beside what is here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mailboat.agent import Agent
from mailboat.protocol import Info, wire
from mailboat.protocol.negotiation import Request
from mailboat.server.adoption import warnings
from mailboat.server.catalog import Deletion, LedgerRow, Origin
from mailboat.server.reconciling import Account, reconcile
from mailboat.server.reports import Question, Scope, holdings
from testkit.loading import Bench, session_row
from testkit.serverkit import AGENT, summary_of
from testkit.sites import OTHER, PRODUCT, Site, session


@pytest.mark.parametrize(
    ("ledger", "balanced"),
    [
        (
            {"recorded": 10, "accepted": 4, "declined": 1, "rejected": {"too_old": 2}, "lost": {"a": 1}, "pending": 2},
            True,
        ),
        ({"recorded": 10, "accepted": 4, "evicted": {"size": 3, "age": 3}}, True),
        ({"recorded": 10, "accepted": 4}, False),
        ({}, True),
        ({"recorded": "many", "accepted": None, "lost": [1], "rejected": {"x": -5, "y": 2**70, "z": True}}, True),
    ],
)
def test_an_account_is_balanced_if_it_tells_of_each_record(ledger: dict[str, Any], balanced: bool) -> None:
    assert Account.of(ledger).balanced is balanced


async def said(site: Site, ledger: dict[str, Any], *segments: bytes) -> None:
    """One negotiation of a store."""
    body = Request(AGENT, (summary_of(*segments),), 0.0, ledger).encode(wire.JSON_MEDIA_TYPE)
    answer = await site.agent.ask("POST", "/v1/negotiate", data=body, Content_Type=wire.JSON_MEDIA_TYPE)
    assert answer.status == 200, answer


async def test_records_that_were_accepted_and_are_not_here_are_missing(site: Site) -> None:
    segments = session()
    await site.send(*segments)
    await site.settled()
    await said(site, {"store": "s-1", "recorded": 6, "accepted": 6}, *segments)
    await site.settled()
    (store,) = (await site.get("/api/v1/accounts"))["stores"]
    assert (store["source"], store["balanced"], store["missing"]) == ("s-1", True, 0)
    assert store["installation"] == "inst-42"
    assert store["here"] == {"sessions": 1, "records": 6, "declined": 0, "rejected": 0}
    await said(site, {"store": "s-1", "recorded": 50, "accepted": 46, "evicted": {"age": 4}}, *segments)
    (store,) = (await site.get("/api/v1/accounts"))["stores"]
    assert (store["said"]["evicted"], store["balanced"], store["missing"]) == (4, True, 40)
    assert (await site.get("/api/v1/accounts", site.other_reader))["stores"] == []
    assert len((await site.get("/api/v1/accounts", site.admin))["stores"]) == 1
    assert (await site.get("/api/v1/accounts", site.admin, product=OTHER))["stores"] == []


@pytest.mark.parametrize(("path", "rows"), [("/api/v1/accounts", "stores"), ("/api/v1/ledger", "reported")])
async def test_they_come_in_pages(site: Site, path: str, rows: str) -> None:
    """A product has as many of them as its application has installations; names are of any script."""
    stores = [f"{letter * 200}{number}"[:200] for number, letter in enumerate("aäж€🌍")]
    for store in stores:
        await said(site, {"store": store, "recorded": 6, "accepted": 6}, *session())
    found: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = await site.get(path, site.admin, limit=2, **cursor)
        assert len(page[rows]) <= 2
        found += [each["source"] for each in page[rows]]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert found == stores
    assert len((await site.get(path))[rows]) == 5
    for made_up in ("abc", "W10=", "WzEsMl0=", "W" * 2000, "W" * 4097, "é"):
        answer = await site.ask(path, cursor=made_up)
        assert (answer.status, b"cursor: " in answer.body) == (400, True), made_up


def test_losses_beyond_what_a_column_holds_refuse_no_report(bench: Bench) -> None:
    lost = session_row(counts={"feature": 5})
    bench.analytics.load_sessions([lost], 1)
    for segment in range(3):
        bench.sql(
            "INSERT INTO gap (product, session_id, segment, reason, records) "
            "VALUES ($product, $id::UUID, $at, 'x', $all)",
            product=PRODUCT,
            id=lost.summary.session_id,
            at=segment,
            all=wire.MOST,
        )
    row = LedgerRow(PRODUCT, lost.source, AGENT, {"recorded": 5, "accepted": 5}, 1.0)
    (store,) = bench.ask(lambda question: reconcile([row], frozenset(), question))["stores"]
    (held,) = bench.ask(lambda question: holdings(Scope(), question))["products"]
    (gap,) = bench.ask(lambda question: warnings(Scope(), question))["gaps"]
    assert store["here"]["records"] == held["missing"] == gap["records"] == wire.MOST


def test_segments_that_failed_are_those_of_the_sessions_asked_about(bench: Bench) -> None:
    row = session_row(info=Info(test=True))
    bench.analytics.load_sessions([row], 1)
    bench.sql(
        "INSERT INTO loaded (product, session_id, failed) VALUES ($product, $id::UUID, 'it killed the decoder')",
        product=PRODUCT,
        id=row.summary.session_id,
    )

    def told(scope: Scope) -> object:
        return bench.ask(lambda question: warnings(scope, question))["failed"]

    failed = [{"reason": "it killed the decoder", "segments": 1}]
    assert [told(Scope(origin=each)) for each in (Origin.PUBLIC, Origin.INTERNAL, Origin.ALL)] == [[], failed, failed]
    assert told(Scope(since=row.summary.started + 1, origin=Origin.ALL)) == []


def test_where_some_was_deleted_for_its_age_nobody_can_tell(bench: Bench) -> None:
    row = LedgerRow(PRODUCT, "s-1", AGENT, {"recorded": 5, "accepted": 5}, 1.0)
    cursor = bench.analytics.cursor()
    try:
        (gone,) = reconcile([row], {Deletion(PRODUCT, 0.0, 1, 1, 5, 9).product}, Question(cursor))["stores"]
        (kept,) = reconcile([row], frozenset(), Question(cursor))["stores"]
    finally:
        cursor.close()
    assert (gone["missing"], kept["missing"]) == (None, 5)


async def test_the_account_of_a_real_agent_is_balanced_and_nothing_is_missing(site: Site, tmp_path: Path) -> None:
    """With its next negotiation it says that the session of before was accepted."""
    for number in (5, 6):
        agent = Agent(
            server=site.server.url,
            api_key=site.agent.key,
            product=PRODUCT,
            application="importer",
            store=tmp_path / "store",
            min_free_bytes=0,
        )
        async with agent:
            for _ in range(number):
                agent.feature("import.csv")
            await agent.stop(timeout=30.0)
        await site.settled()
    (store,) = (await site.get("/api/v1/accounts"))["stores"]
    assert (store["said"]["accepted"], store["said"]["recorded"]) == (5, 11)
    assert (store["balanced"], store["missing"], store["here"]["records"]) == (True, 0, 11)

"""History windows: what is older goes from the catalog, the analytics store and the segments, and it is said what went;
also when the server is killed on the way, or the session is still being sent.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from mailboat.server import ServerConfig, retention
from mailboat.server.app import create_app
from mailboat.server.catalog import Doomed, ProductRow, Role, SessionRow
from mailboat.server.context import BLOBS, CATALOG, COUNTERS
from mailboat.server.ingest import INGEST, LOADER
from mailboat.server.keys import create_key
from mailboat.server.serving import RunningServer, running
from mailboat.server.sqlite_catalog import SqliteCatalog
from testkit.serverkit import PRODUCT, RawAppend, Wire, eventually, fresh_session_id, make_segment, summary_of, wired

DAY = 86_400.0


class Clock:
    """The server's wall clock, set forward by hand."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def server(config: ServerConfig, key: str, clock: Clock) -> AsyncIterator[RunningServer]:
    async with running(config, create_app(config, clock=clock)) as started:
        yield started


async def keep(server: RunningServer, days: float | None, product: str = PRODUCT) -> None:
    await server.app[CATALOG].put_product(ProductRow(product, 0.0, {"history_days": days}))


async def delivered(client: Wire, *, days_ago: float = 0.0, parts: int = 1) -> tuple[str, int]:
    """A session that is here whole; its id and its records."""
    session_id, wall = fresh_session_id(), time.time() - days_ago * DAY
    first, segments = 0, []
    for index in range(parts):
        data = make_segment(session_id, index=index, wall=wall, first=first)
        segments.append(data)
        first += summary_of(data).records
    summary = summary_of(*segments)
    (decision,) = await client.negotiate(summary)
    for decided, data in zip(decision.segments, segments, strict=True):
        assert (await client.append(decided.url, data, 0, complete=True)).complete
    return session_id, summary.records


async def listed(server: RunningServer) -> set[str]:
    rows = await server.app[CATALOG].changed_sessions(0, 1000)
    return {row.summary.session_id for row in rows[0]}


def in_analytics(server: RunningServer) -> dict[str, int]:
    """Sessions of which anything is there, with their rows."""
    return {each.session_id: each.rows for each in server.app[LOADER].analytics.holdings()}


def blobs_of(config: ServerConfig) -> list[Path]:
    return [path for path in (config.data / "segments").rglob("*") if path.is_file()]


async def test_what_is_older_goes_everywhere_and_the_rest_stays(
    server: RunningServer, config: ServerConfig, client: Wire
) -> None:
    other = await asyncio.to_thread(create_key, config.data, "Other")
    old, records = await delivered(client, days_ago=8, parts=3)
    young, young_records = await delivered(client, days_ago=6)
    async with wired(server.url, other) as stranger:
        data = make_segment(fresh_session_id(), product="Other", wall=time.time() - 20 * DAY)
        foreign = summary_of(data)
        path = await stranger.upload_of(data)
        assert (await stranger.append(path, data, 0, complete=True)).complete
    await server.app[INGEST].settled()
    assert in_analytics(server).keys() == {old, young, foreign.session_id}
    await keep(server, 7)
    assert await retention.sweep(server.app) == 1
    assert await listed(server) == {young, foreign.session_id}
    assert in_analytics(server) == {young: young_records, foreign.session_id: foreign.records}
    assert len(blobs_of(config)) == 2
    assert server.app[COUNTERS]["retention_segments"] == 3
    assert server.app[COUNTERS]["retention_records"] == records
    (deletion,) = await server.app[CATALOG].deletions(None)
    assert (deletion.product, deletion.sessions, deletion.segments, deletion.records) == (PRODUCT, 1, 3, records)
    assert deletion.bytes > 0
    assert await server.app[CATALOG].doomed() == ()
    assert await retention.sweep(server.app) == 0


async def test_it_is_told_to_those_who_may_know(server: RunningServer, config: ServerConfig, client: Wire) -> None:
    await delivered(client, days_ago=8)
    await keep(server, 7)
    await retention.sweep(server.app)
    told = {}
    for product in (PRODUCT, "Other"):
        key = await asyncio.to_thread(create_key, config.data, product, Role.READER)
        async with wired(server.url, key) as reader:
            told[product] = json.loads((await reader.ask("GET", "/api/v1/deletions")).body)["deletions"]
    assert [(each["sessions"], each["segments"]) for each in told[PRODUCT]] == [(1, 1)]
    assert told["Other"] == []


async def test_a_session_that_was_deleted_does_not_come_back(server: RunningServer, client: Wire) -> None:
    session_id, wall = fresh_session_id(), time.time() - 8 * DAY
    data = make_segment(session_id, wall=wall)
    path = await client.upload_of(data)
    assert (await client.append(path, data, 0, complete=True)).complete
    await keep(server, 7)
    await retention.sweep(server.app)
    (decision,) = await client.negotiate(summary_of(data))
    assert (decision.verdict, decision.reason) == ("reject", "too_old")
    assert (await client.ask("HEAD", path)).status == 404
    await server.app[INGEST].settled()
    await retention.sweep(server.app)
    assert session_id not in in_analytics(server) or in_analytics(server)[session_id] == 0


async def test_age_is_by_the_servers_clock(server: RunningServer, client: Wire) -> None:
    """A machine whose clock stands ten years behind, and one ten years ahead: both have just recorded."""
    summary = summary_of(make_segment(fresh_session_id()))
    now = time.time()
    for years in (-10, 10):
        wrong = years * 365 * DAY
        odd = structs.replace(
            summary, session_id=fresh_session_id(), started=summary.started + wrong, ended=summary.ended + wrong
        )
        assert [each.verdict for each in await client.negotiate(odd, sent=now + wrong)] == ["send"]
    await keep(server, 7)
    assert await retention.sweep(server.app) == 0


async def test_the_window_moves_on_with_the_clock(server: RunningServer, client: Wire, clock: Clock) -> None:
    ids = [(await delivered(client, days_ago=days))[0] for days in (0, 3, 6)]
    await keep(server, 8)
    left = []
    for _ in range(3):
        clock.ahead += 3.5 * DAY
        await retention.sweep(server.app)
        left.append(len((await listed(server)) & set(ids)))
    assert left == [2, 1, 0]


async def test_a_long_session_is_kept_until_its_end_is_old(server: RunningServer, client: Wire) -> None:
    """Many of them, more than are looked at at once, stand before one that is to go."""
    now, summary = time.time(), summary_of(make_segment(fresh_session_id()))
    long = [
        structs.replace(summary, session_id=fresh_session_id(), started=now - 60 * DAY, ended=now - DAY)
        for _ in range(retention.AT_ONCE + 5)
    ]
    for start in range(0, len(long), 100):
        await client.negotiate(*long[start : start + 100], sent=now)
    gone, _ = await delivered(client, days_ago=8)
    await keep(server, 7)
    assert await retention.sweep(server.app) == 1
    assert await listed(server) == {each.session_id for each in long}
    assert gone not in await listed(server)


async def test_an_upload_under_way_ends_with_its_session(
    server: RunningServer, config: ServerConfig, client: Wire
) -> None:
    data = make_segment(fresh_session_id(), size=200_000, wall=time.time() - 8 * DAY)
    path = await client.upload_of(data)
    upload_id = path.rpartition("/")[2]
    append = await RawAppend.begin(client, path, len(data))
    await append.send(data[:100_000])
    await eventually(lambda: server.app[BLOBS].size(upload_id) == 100_000)
    await keep(server, 7)
    assert await retention.sweep(server.app) == 1
    async with asyncio.timeout(20):
        assert await append.status() == 409
    await append.close()
    assert blobs_of(config) == []
    assert (await client.ask("HEAD", path)).status == 404


class Dying(SqliteCatalog):
    """A catalog that is killed before it can note that what was doomed has gone."""

    async def strike(self, gone: Sequence[Doomed]) -> None:
        raise OSError("killed")


class DyingEarlier(SqliteCatalog):
    """A catalog that is killed right after it has removed sessions."""

    async def remove_sessions(self, rows: Sequence[SessionRow], now: float) -> tuple[Doomed, ...]:
        await super().remove_sessions(rows, now)
        raise OSError("killed")


@pytest.mark.parametrize("dying", [Dying, DyingEarlier])
async def test_a_server_killed_on_the_way_goes_on_at_its_start(
    config: ServerConfig, key: str, dying: type[SqliteCatalog]
) -> None:
    async with running(config) as server, wired(server.url, key) as client:
        old, _ = await delivered(client, days_ago=8)
        await server.app[INGEST].settled()
        await keep(server, 7)
    quiet = replace(config, retention_interval=1e6)
    async with running(quiet, create_app(quiet, open_catalog=dying)) as server:
        await eventually(lambda: server.app[COUNTERS]["retention_failures"] > 0)
        assert [each.session_id for each in await server.app[CATALOG].doomed()] == [old]
    async with running(quiet) as server:
        await eventually(lambda: server.app[COUNTERS]["retention_sessions"] > 0)
        assert await server.app[CATALOG].doomed() == ()
        assert in_analytics(server) == {}
        assert blobs_of(config) == []
        (deletion,) = await server.app[CATALOG].deletions(PRODUCT)
        assert deletion.sessions == 1

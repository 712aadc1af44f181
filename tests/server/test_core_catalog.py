"""The SQLite catalog: grouped commits, the fence, listings, what changed since."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from mailboat.protocol import Summary, WireError
from mailboat.protocol.uploads.state import Event, Phase, UploadState
from mailboat.server.catalog import (
    CatalogError,
    Origin,
    Registration,
    SessionQuery,
    SessionState,
    UploadRow,
    Verification,
)
from mailboat.server.catalog_schema import STEPS
from mailboat.server.sqlite_catalog import SqliteCatalog, fresh_id
from mailboat.server.sqlite_engine import Engine
from testkit.serverkit import PRODUCT, fresh_session_id, make_segment, summary_of


@pytest.fixture
async def catalog(tmp_path: Path) -> AsyncIterator[SqliteCatalog]:
    made = SqliteCatalog(tmp_path / "catalog.sqlite")
    await made.open()
    yield made
    await made.close()


@pytest.fixture(scope="module")
def summary() -> Summary:
    return summary_of(make_segment(fresh_session_id()))


def offered(summary: Summary, *, started: float = 1.0, test: bool = False, product: str = PRODUCT) -> Registration:
    """A wanted session of its own."""
    info = replace(summary.info, test=test)
    fresh = replace(summary, session_id=fresh_session_id(), started=started, info=info)
    return Registration(product, fresh, SessionState.WANTED)


# -- the engine --------------------------------------------------------------------------------------------------------


def make_numbers(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE numbers (n INTEGER PRIMARY KEY)")


def insert(db: sqlite3.Connection, n: int) -> int:
    return db.execute("INSERT INTO numbers VALUES (?)", (n,)).rowcount


async def table(path: Path) -> Engine:
    """An engine on a table of one column."""
    engine = Engine(path)
    await engine.open(make_numbers)
    return engine


async def test_changes_asked_for_together_share_commits(tmp_path: Path) -> None:
    engine = await table(tmp_path / "db")
    try:
        await asyncio.gather(*(engine.write(partial(insert, n=n)) for n in range(1_000)))
        assert engine.commits < 100
        assert await engine.read(lambda db: db.execute("SELECT count(*) FROM numbers").fetchone()) == (1_000,)
    finally:
        await engine.close()


async def test_a_change_that_fails_harms_none_of_its_group(tmp_path: Path) -> None:
    engine = await table(tmp_path / "db")

    def insert_and_fail(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO numbers VALUES (77)")
        raise LookupError("made up")

    try:
        results = await asyncio.gather(
            engine.write(partial(insert, n=1)),
            engine.write(insert_and_fail),
            engine.write(partial(insert, n=1)),
            engine.write(partial(insert, n=2)),
            return_exceptions=True,
        )
        assert results[0] == results[3] == 1
        assert isinstance(results[1], LookupError)
        assert isinstance(results[2], CatalogError)
        assert await engine.read(lambda db: db.execute("SELECT n FROM numbers").fetchall()) == [(1,), (2,)]
    finally:
        await engine.close()


async def test_a_full_disk_fails_the_change_and_is_over_when_space_returns(tmp_path: Path) -> None:
    engine = await table(tmp_path / "db")
    try:
        pages = await engine.write(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
        await engine.write(lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchone())
        with pytest.raises(CatalogError, match="full"):
            await engine.write(
                lambda db: db.executemany("INSERT INTO numbers VALUES (?)", [(n,) for n in range(10_000)])
            )
        await engine.write(lambda db: db.execute("PRAGMA max_page_count = 100000").fetchone())
        await engine.write(partial(insert, n=1))
        assert await engine.read(lambda db: db.execute("SELECT n FROM numbers").fetchall()) == [(1,)]
    finally:
        await engine.close()


async def test_a_cancelled_change_does_not_stop_the_writer(tmp_path: Path) -> None:
    engine = await table(tmp_path / "db")
    try:
        asked = asyncio.ensure_future(engine.write(partial(insert, n=1)))
        await asyncio.sleep(0)
        asked.cancel()
        await engine.write(partial(insert, n=2))
        assert asked.cancelled()
        assert await engine.read(lambda db: db.execute("SELECT n FROM numbers").fetchall()) == [(1,), (2,)]
    finally:
        await engine.close()


async def test_a_closed_catalog_says_so(tmp_path: Path) -> None:
    engine = await table(tmp_path / "db")
    await engine.close()
    await engine.close()
    with pytest.raises(CatalogError):
        await engine.read(lambda db: db.execute("SELECT 1"))
    with pytest.raises(CatalogError):
        await engine.write(lambda db: db.execute("SELECT 1"))


async def test_a_file_that_is_no_catalog_says_so(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(CatalogError, match=r"catalog\.sqlite"):
        await SqliteCatalog(path).open()


async def test_a_catalog_of_a_later_mailboat_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 999")
    db.close()
    with pytest.raises(CatalogError, match="update it"):
        await SqliteCatalog(path).open()


async def test_the_disk_is_flushed_for_every_commit(catalog: SqliteCatalog) -> None:
    engine = catalog._engine
    assert await engine.write(lambda db: db.execute("PRAGMA synchronous").fetchone()) == (2,)
    assert await engine.write(lambda db: db.execute("PRAGMA journal_mode").fetchone()) == ("wal",)


# -- uploads -----------------------------------------------------------------------------------------------------------


async def test_an_upload_is_read_back_as_it_was_kept(catalog: SqliteCatalog) -> None:
    row = UploadRow(
        UploadState(fresh_id(), 5, 10, epoch=3, expires=9.5, dialect="rufh-9"), PRODUCT, created=1, updated=1
    )
    await catalog.make_upload(row)
    assert await catalog.upload(row.id) == row
    grown = replace(row.state, offset=7, epoch=4)
    assert await catalog.store(grown, 2.0)
    assert await catalog.upload(row.id) == replace(row, state=grown, updated=2.0)


async def test_the_fence_refuses_what_was_overtaken(catalog: SqliteCatalog) -> None:
    state = UploadState(fresh_id(), offset=100, epoch=5)
    await catalog.make_upload(UploadRow(state, PRODUCT))
    assert not await catalog.store(replace(state, offset=200, epoch=4), 1.0)
    assert not await catalog.store(replace(state, offset=99, epoch=6), 1.0)
    gone = replace(state, epoch=6).after(Event.CANCEL)
    assert await catalog.store(gone, 1.0)
    assert not await catalog.store(replace(state, offset=300, epoch=9), 1.0)
    found = await catalog.upload(state.id)
    assert found is not None
    assert (found.state.offset, found.state.phase) == (100, Phase.CANCELLED)


async def test_a_rejection_is_not_undone_by_a_late_verification(catalog: SqliteCatalog, summary: Summary) -> None:
    """Ingest may find a live segment spoilt before it is complete."""
    offer = offered(summary)
    ((segment,),) = await catalog.register([offer], 1.0)
    row = await catalog.upload(segment.upload_id)
    assert row is not None
    await catalog.mark_rejected(row.id, "corrupted", "records that do not decode", 2.0)
    complete = replace(row.state, offset=10, length=10, phase=Phase.COMPLETE)
    assert await catalog.finish_upload(replace(row, state=complete, verification=Verification.VERIFIED, updated=3.0))
    session = await catalog.session(PRODUCT, offer.summary.session_id)
    assert session is not None
    assert (session.state, session.reason) == (SessionState.REJECTED, "corrupted")
    assert session.segments[0].verification is Verification.REJECTED
    assert await catalog.segments_to_load() == ()


async def test_segments_wait_until_they_are_loaded(catalog: SqliteCatalog, summary: Summary) -> None:
    ((segment,),) = await catalog.register([offered(summary)], 1.0)
    assert await catalog.segments_to_load() == ()
    row = await catalog.upload(segment.upload_id)
    assert row is not None
    await catalog.store(replace(row.state, offset=50), 2.0)
    (waiting,) = await catalog.segments_to_load()
    assert (waiting.upload_id, waiting.offset, waiting.loaded, waiting.complete) == (row.id, 50, 0, False)
    await catalog.mark_loaded({row.id: 50})
    assert await catalog.segments_to_load() == ()
    await catalog.store(replace(row.state, offset=60), 3.0)
    assert [each.loaded for each in await catalog.segments_to_load()] == [50]
    await catalog.forget_loaded()
    assert [each.loaded for each in await catalog.segments_to_load()] == [0]


async def test_two_offers_of_one_segment_make_one_upload(catalog: SqliteCatalog, summary: Summary) -> None:
    offer = offered(summary)
    answers = await asyncio.gather(*(catalog.register([offer, offer], 1.0) for _ in range(10)))
    assert len({segment.upload_id for answer in answers for segments in answer for segment in segments}) == 1


# -- sessions ----------------------------------------------------------------------------------------------------------


async def test_pages_show_every_session_once(catalog: SqliteCatalog, summary: Summary) -> None:
    offers = [offered(summary, started=float(number // 7)) for number in range(50)]
    await catalog.register(offers, 1.0)
    seen: list[str] = []
    starts: list[float] = []
    query = SessionQuery(PRODUCT, limit=6)
    while True:
        page = await catalog.sessions(query)
        seen += [row.summary.session_id for row in page.sessions]
        starts += [row.summary.started for row in page.sessions]
        if page.cursor is None:
            break
        query = replace(query, cursor=page.cursor)
    assert sorted(seen) == sorted(offer.summary.session_id for offer in offers)
    assert starts == sorted(starts, reverse=True)


async def test_a_listing_shows_what_was_asked_for(catalog: SqliteCatalog, summary: Summary) -> None:
    early, late = offered(summary, started=10.0), offered(summary, started=20.0)
    internal, foreign = offered(summary, started=30.0, test=True), offered(summary, started=40.0, product="Other")
    await catalog.register([early, late, internal, foreign], 1.0)

    async def listed(query: SessionQuery) -> list[float]:
        return [row.summary.started for row in (await catalog.sessions(query)).sessions]

    assert await listed(SessionQuery(PRODUCT)) == [30.0, 20.0, 10.0]
    assert await listed(SessionQuery(None)) == [40.0, 30.0, 20.0, 10.0]
    assert await listed(SessionQuery(PRODUCT, since=20.0, until=30.0)) == [20.0]
    assert await listed(SessionQuery(PRODUCT, origin=Origin.PUBLIC)) == [20.0, 10.0]
    assert await listed(SessionQuery(PRODUCT, origin=Origin.INTERNAL)) == [30.0]
    assert await listed(SessionQuery(PRODUCT, application="importer", version="2.4.1", status="stopped")) == [
        30.0,
        20.0,
        10.0,
    ]
    assert await listed(SessionQuery(PRODUCT, application="\ud800")) == []
    assert await listed(SessionQuery(PRODUCT, state=SessionState.REJECTED)) == []


@pytest.mark.parametrize("cursor", ["", "x", "bm9uZQ==", "WzEsMl0=", "\ud800", "[" * 1000])
async def test_a_made_up_cursor_is_refused(catalog: SqliteCatalog, cursor: str) -> None:
    with pytest.raises(WireError, match="cursor"):
        await catalog.sessions(SessionQuery(PRODUCT, cursor=cursor))


async def test_a_session_is_shown_to_its_product_only(catalog: SqliteCatalog, summary: Summary) -> None:
    offer = offered(summary)
    await catalog.register([offer], 1.0)
    assert await catalog.session("Other", offer.summary.session_id) is None
    found = await catalog.session(None, offer.summary.session_id)
    assert found is not None
    assert (found.product, found.summary) == (PRODUCT, offer.summary)


async def test_what_changed_since_is_told_once_and_in_order(catalog: SqliteCatalog, summary: Summary) -> None:
    offers = [offered(summary) for _ in range(5)]
    ((segment,), *_) = await catalog.register(offers, 1.0)
    rows, last = await catalog.changed_sessions(0)
    assert [row.summary for row in rows] == [offer.summary for offer in offers]
    assert await catalog.changed_sessions(last) == ((), last)
    await catalog.register([offers[3]], 2.0)
    await catalog.mark_rejected(segment.upload_id, "corrupted", "noise", 3.0)
    rows, after = await catalog.changed_sessions(last, limit=1)
    assert [row.summary for row in rows] == [offers[3].summary]
    rows, after = await catalog.changed_sessions(after)
    assert [(row.summary, row.state) for row in rows] == [(offers[0].summary, SessionState.REJECTED)]


async def test_a_catalog_of_the_first_layout_is_brought_up_to_date(tmp_path: Path) -> None:
    file = tmp_path / "catalog.sqlite"
    db = sqlite3.connect(file)
    for statement in STEPS[0].split(";"):
        db.execute(statement)
    upload_id = fresh_session_id()
    db.execute(
        "INSERT INTO uploads VALUES (?, 'p', NULL, NULL, 3, NULL, 'open', 1, '[null, null, null, null, null]', NULL, "
        "'rufh-9', 'pending', '', '', '', 0, 0, 1.0, 2.0)",
        (upload_id,),
    )
    db.execute("PRAGMA user_version = 1")
    db.commit()
    db.close()
    catalog = SqliteCatalog(file)
    await catalog.open()
    try:
        row = await catalog.upload(upload_id)
        assert row is not None
        assert (row.state, row.created, row.updated) == (UploadState(upload_id, 3, epoch=1, dialect="rufh-9"), 1.0, 2.0)
    finally:
        await catalog.close()

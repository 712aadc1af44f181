"""What is the SQLite catalog's own: grouped commits, failures, layouts. For the rest see `testkit.catalog_contract`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from mailboat.protocol.uploads.state import Creation, UploadState
from mailboat.server.catalog import (
    CatalogError,
)
from mailboat.server.catalog_schema import STEPS
from mailboat.server.sqlite_catalog import SqliteCatalog
from mailboat.server.sqlite_engine import Engine
from mailboat.server.sqlite_rows import creation_text
from testkit.serverkit import fresh_session_id


@pytest.fixture
async def catalog(tmp_path: Path) -> AsyncIterator[SqliteCatalog]:
    made = SqliteCatalog(tmp_path / "catalog.sqlite")
    await made.open()
    yield made
    await made.close()


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


@pytest.mark.parametrize("failure", [ValueError("no"), sqlite3.IntegrityError("no")], ids=["its own", "of SQLite"])
async def test_a_change_that_is_alone_and_fails_leaves_nothing_behind(tmp_path: Path, failure: Exception) -> None:
    def half(db: sqlite3.Connection) -> None:
        insert(db, 1)
        raise failure

    engine = await table(tmp_path / "db")
    try:
        with pytest.raises(CatalogError if isinstance(failure, sqlite3.Error) else ValueError, match="no"):
            await engine.write(half)
        assert engine.commits == 0
        assert await engine.write(partial(insert, n=2)) == 1
        assert await engine.read(lambda db: db.execute("SELECT n FROM numbers").fetchall()) == [(2,)]
        assert engine.commits == 1
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
    with pytest.raises(CatalogError):
        engine.read_here(lambda db: db.execute("SELECT 1"))


async def test_who_reads_in_a_thread_of_its_own_sees_what_is_durable(tmp_path: Path) -> None:
    def rows(db: sqlite3.Connection) -> int:
        return int(db.execute("SELECT count(*) FROM numbers").fetchone()[0])

    engine = await table(tmp_path / "db")
    try:
        for number in range(3):
            assert await asyncio.to_thread(engine.read_here, rows) == number
            await engine.write(partial(insert, n=number))
        with pytest.raises(CatalogError, match="no such table"):
            await asyncio.to_thread(engine.read_here, lambda db: db.execute("SELECT 1 FROM letters"))
        assert await engine.read(rows) == 3
    finally:
        await engine.close()


async def test_a_file_that_is_no_catalog_says_so(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(CatalogError, match=r"catalog\.sqlite: .*bring back a backup") as raised:
        await SqliteCatalog(path).open()
    if sys.platform == "linux":
        assert str(path) not in open_files(), f"{raised.value} left it open"


def open_files() -> list[str]:
    """What this process has open."""
    found = []
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names are enough
        with contextlib.suppress(FileNotFoundError):  # the folder that was just listed
            found.append(str(Path(f"/proc/self/fd/{number}").readlink()))
    return found


async def test_a_damaged_catalog_says_so(tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    catalog = SqliteCatalog(path)
    await catalog.open()
    await catalog.close()
    content = bytearray(path.read_bytes())
    place = content.index(b"CREATE TABLE notes")
    content[place : place + 6] = b"\0" * 6
    path.write_bytes(content)
    with pytest.raises(CatalogError, match=r"catalog\.sqlite: .*bring back a backup"):
        await SqliteCatalog(path).open()


async def test_a_catalog_that_cannot_be_opened_is_no_damaged_one(tmp_path: Path) -> None:
    (tmp_path / "catalog.sqlite").mkdir()
    with pytest.raises(CatalogError, match=r"catalog\.sqlite") as raised:
        await SqliteCatalog(tmp_path / "catalog.sqlite").open()
    assert "backup" not in str(raised.value)


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


# -- layouts -----------------------------------------------------------------------------------------------------------


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


async def test_what_was_made_of_parts_before_they_were_listed_is_found(tmp_path: Path) -> None:
    file, listed = tmp_path / "catalog.sqlite", next(n for n, step in enumerate(STEPS) if "TABLE parts" in step)
    db = sqlite3.connect(file)
    for statement in ";".join(STEPS[:listed]).split(";"):
        db.execute(statement)
    part, plain, whole = (fresh_session_id() for _ in range(3))
    for upload_id, creation in ((plain, ""), (whole, creation_text(Creation(parts=("another", part, part))))):
        db.execute(
            "INSERT INTO uploads VALUES (?, 'p', NULL, NULL, 3, NULL, 'open', 1, '[null, null, null, null, null]', "
            "NULL, 'tus', 'pending', '', '', '', 0, 0, 1.0, 2.0, ?)",
            (upload_id, creation),
        )
    db.execute(f"PRAGMA user_version = {listed}")
    db.commit()
    db.close()
    catalog = SqliteCatalog(file)
    await catalog.open()
    try:
        assert [row.id for row in await catalog.made_of(part)] == [whole]
        assert await catalog.made_of(plain) == ()
    finally:
        await catalog.close()

"""The catalog in one SQLite file: `Catalog` carried out by `sqlite_engine` and the SQL beside it."""

# ruff: noqa: S608 - what is put into SQL here are lists of column names from this package; values are always bound

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from pathlib import Path

from mailboat.protocol.ids import ENTROPY_BYTES, new_id
from mailboat.protocol.summary import Summary
from mailboat.protocol.uploads.state import UploadState
from mailboat.server import (
    sqlite_expiry,
    sqlite_leases,
    sqlite_retention,
    sqlite_sessions,
    sqlite_triage,
    sqlite_uploads,
    sqlite_usage,
)
from mailboat.server.catalog import (
    Deletion,
    Doomed,
    KeyRow,
    LedgerRow,
    ProductRow,
    Queue,
    Registration,
    SegmentRow,
    SessionPage,
    SessionQuery,
    SessionRow,
    SessionState,
    UploadRow,
    Usage,
)
from mailboat.server.catalog_schema import bring_up_to_date
from mailboat.server.sqlite_engine import Engine
from mailboat.server.sqlite_engine import faults as sqlite_faults
from mailboat.server.sqlite_rows import KEY_COLUMNS, fetch, key_row, ledger_row, product_row, storable
from mailboat.server.triage_rows import TriageRow


def fresh_id() -> str:
    """A new UUID of version 7, from the clock and the system's entropy."""
    return new_id(time.time_ns() // 1_000_000, os.urandom(ENTROPY_BYTES))


class SqliteCatalog:
    """`Catalog` in the SQLite file `path`; the promises stand there."""

    def __init__(self, path: Path, new_id: Callable[[], str] = fresh_id) -> None:
        """`new_id` names the uploads that `register` makes."""
        self._engine = Engine(path)
        self._new_id = new_id

    async def open(self) -> None:
        """See `Catalog.open`."""
        await self._engine.open(bring_up_to_date)

    async def close(self) -> None:
        """See `Catalog.close`."""
        await self._engine.close()

    @property
    def commits(self) -> int:
        """Transactions committed so far, for measurements."""
        return self._engine.commits

    async def products(self) -> tuple[ProductRow, ...]:
        """See `Catalog.products`."""
        sql = "SELECT name, created, plan FROM products ORDER BY name"
        return tuple(map(product_row, await self._engine.read(lambda db: fetch(db, sql))))

    async def product(self, name: str) -> ProductRow | None:
        """See `Catalog.product`."""
        return await self._engine.read(partial(product, name=name))

    def product_and_note(self, name: str, note: str) -> tuple[ProductRow | None, str | None]:
        """See `Catalog.product_and_note`."""
        return self._engine.read_here(lambda db: (product(db, name), note_of(db, note)))

    async def put_product(self, row: ProductRow) -> None:
        """See `Catalog.put_product`."""
        await self._engine.write(partial(put_product, row=row))

    async def key(self, digest: bytes) -> KeyRow | None:
        """See `Catalog.key`."""
        sql = f"SELECT {KEY_COLUMNS} FROM keys WHERE digest = ?"
        found = await self._engine.read(lambda db: fetch(db, sql, digest))
        return key_row(found[0]) if found else None

    async def keys(self) -> tuple[KeyRow, ...]:
        """See `Catalog.keys`."""
        sql = f"SELECT {KEY_COLUMNS} FROM keys ORDER BY created, id"
        return tuple(map(key_row, await self._engine.read(lambda db: fetch(db, sql))))

    async def put_key(self, row: KeyRow) -> None:
        """See `Catalog.put_key`."""
        await self._engine.write(partial(put_key, row=row))

    async def revoke_key(self, key_id: str, now: float) -> bool:
        """See `Catalog.revoke_key`."""
        sql = "UPDATE keys SET revoked = ? WHERE id = ? AND revoked IS NULL"
        return await self._engine.write(lambda db: db.execute(sql, (now, key_id)).rowcount == 1)

    async def register(
        self, offers: Sequence[Registration], now: float, ledger: LedgerRow | None = None
    ) -> tuple[tuple[SegmentRow, ...], ...]:
        """See `Catalog.register`."""
        return await self._engine.write(lambda db: sqlite_sessions.register(db, offers, now, ledger, self._new_id))

    async def arrivals(self, product: str, now: float) -> int:
        """See `Catalog.arrivals`."""
        return await self._engine.read(lambda db: sqlite_usage.arrivals(db, product, now))

    async def usage(self, product: str, month: int, session_ids: Sequence[str] = ()) -> Usage:
        """See `Catalog.usage`."""
        return await self._engine.read(lambda db: sqlite_usage.usage(db, product, month, session_ids))

    async def ledgers(
        self,
        product: str | None,
        after: tuple[str, str] = ("", ""),
        limit: int = 500,
        period: tuple[float | None, float | None] = (None, None),
    ) -> tuple[LedgerRow, ...]:
        """See `Catalog.ledgers`."""
        sql = (
            "SELECT product, source, agent, ledger, updated FROM ledgers WHERE (product, source) > (?, ?) "
            f"AND updated >= ? AND updated < ? {'' if product is None else 'AND product = ?'} "
            "ORDER BY product, source LIMIT ?"
        )
        since, until = period
        within = (-inf if since is None else since, inf if until is None else until)
        values = (*map(storable, after), *within, *(() if product is None else (product,)), limit)
        return tuple(map(ledger_row, await self._engine.read(lambda db: fetch(db, sql, *values))))

    async def upload(self, upload_id: str) -> UploadRow | None:
        """See `Catalog.upload`."""
        return await self._engine.read(partial(sqlite_uploads.upload, upload_id=upload_id))

    async def make_upload(self, row: UploadRow) -> None:
        """See `Catalog.make_upload`."""
        await self._engine.write(partial(sqlite_uploads.insert_uploads, rows=[row]))

    async def store(self, state: UploadState, now: float) -> bool:
        """See `Catalog.store`."""
        return await self._engine.write(partial(sqlite_uploads.store, state=state, now=now))

    async def finish_upload(self, row: UploadRow) -> bool:
        """See `Catalog.finish_upload`."""
        return await self._engine.write(partial(sqlite_uploads.finish_upload, row=row))

    async def any_upload(self, first: str, beyond: str) -> bool:
        """See `Catalog.any_upload`."""
        return await self._engine.read(partial(sqlite_uploads.any_upload, first=first, beyond=beyond))

    async def open_uploads(self) -> tuple[UploadRow, ...]:
        """See `Catalog.open_uploads`."""
        return await self._engine.read(sqlite_uploads.open_uploads)

    async def made_of(self, part_id: str) -> tuple[UploadRow, ...]:
        """See `Catalog.made_of`."""
        return await self._engine.read(partial(sqlite_uploads.made_of, part_id=part_id))

    async def strangers(self, product: str) -> tuple[int, int]:
        """See `Catalog.strangers`."""
        return await self._engine.read(partial(sqlite_expiry.strangers, product=product))

    async def expired(self, now: float, quarantine: float, limit: int) -> tuple[str, ...]:
        """See `Catalog.expired`."""
        return await self._engine.read(lambda db: sqlite_expiry.expired(db, now, quarantine, limit))

    async def long_gone(self, before: float, limit: int) -> tuple[str, ...]:
        """See `Catalog.long_gone`."""
        return await self._engine.read(partial(sqlite_expiry.long_gone, before=before, limit=limit))

    async def forget_uploads(self, upload_ids: Sequence[str]) -> None:
        """See `Catalog.forget_uploads`."""
        await self._engine.write(partial(sqlite_expiry.forget_uploads, upload_ids=upload_ids))

    async def quarantined(self, product: str | None, after: str | None, limit: int) -> tuple[UploadRow, ...]:
        """See `Catalog.quarantined`."""
        return await self._engine.read(lambda db: sqlite_expiry.quarantined(db, product, after, limit))

    async def adopt(self, row: UploadRow, summary: Summary) -> bool:
        """See `Catalog.adopt`."""
        return await self._engine.write(partial(_adopt, row=row, summary=summary))

    async def segments_to_load(self, limit: int = 100) -> tuple[SegmentRow, ...]:
        """See `Catalog.segments_to_load`."""
        return await self._engine.read(partial(sqlite_uploads.segments_to_load, limit=limit))

    async def latest_to_load(self, limit: int, size: int) -> tuple[SegmentRow, ...]:
        """See `Catalog.latest_to_load`."""
        return await self._engine.read(partial(sqlite_uploads.latest_to_load, limit=limit, size=size))

    async def mark_loaded(self, loaded: Mapping[str, int]) -> None:
        """See `Catalog.mark_loaded`."""
        await self._engine.write(partial(sqlite_uploads.mark_loaded, loaded=loaded))

    async def mark_rejected(self, upload_id: str, reason: str, detail: str, now: float) -> None:
        """See `Catalog.mark_rejected`."""
        await self._engine.write(lambda db: sqlite_uploads.mark_rejected(db, upload_id, reason, detail, now))

    async def readmit(self, row: UploadRow) -> bool:
        """See `Catalog.readmit`."""
        return await self._engine.write(partial(sqlite_uploads.readmit, row=row))

    async def forget_loaded(self) -> None:
        """See `Catalog.forget_loaded`."""
        await self._engine.write(sqlite_uploads.forget_loaded)

    async def changed_sessions(self, after: int, limit: int = 500) -> tuple[tuple[SessionRow, ...], int]:
        """See `Catalog.changed_sessions`."""
        return await self._engine.read(partial(sqlite_sessions.changed_sessions, after=after, limit=limit))

    async def sessions(self, query: SessionQuery) -> SessionPage:
        """See `Catalog.sessions`."""
        return await self._engine.read(partial(sqlite_sessions.sessions, query=query))

    async def session(self, product: str | None, session_id: str) -> SessionRow | None:
        """See `Catalog.session`."""
        return await self._engine.read(partial(sqlite_sessions.session, product=product, session_id=session_id))

    async def begun_before(
        self, product: str, before: float, limit: int = 500, skip: int = 0
    ) -> tuple[SessionRow, ...]:
        """See `Catalog.begun_before`."""
        return await self._engine.read(lambda db: sqlite_retention.begun_before(db, product, before, limit, skip))

    async def remove_sessions(self, rows: Sequence[SessionRow], now: float) -> tuple[Doomed, ...]:
        """See `Catalog.remove_sessions`."""
        return await self._engine.write(partial(sqlite_retention.remove_sessions, rows=rows, now=now))

    async def doomed(self, limit: int = 500) -> tuple[Doomed, ...]:
        """See `Catalog.doomed`."""
        return await self._engine.read(partial(sqlite_retention.doomed, limit=limit))

    async def strike(self, gone: Sequence[Doomed]) -> None:
        """See `Catalog.strike`."""
        await self._engine.write(partial(sqlite_retention.strike, gone=gone))

    async def deletions(self, product: str | None, limit: int = 400) -> tuple[Deletion, ...]:
        """See `Catalog.deletions`."""
        return await self._engine.read(partial(sqlite_retention.deletions, product=product, limit=limit))

    async def all_uploads(self, after: str = "", limit: int = 500) -> tuple[UploadRow, ...]:
        """See `Catalog.all_uploads`."""
        return await self._engine.read(partial(sqlite_uploads.all_uploads, after=after, limit=limit))

    async def queue(self) -> Queue:
        """See `Catalog.queue`."""
        return await self._engine.read(sqlite_uploads.queue)

    async def faults(self) -> tuple[str, ...]:
        """See `Catalog.faults`."""
        return await self._engine.read(sqlite_faults)

    async def triages(self, product: str | None) -> tuple[TriageRow, ...]:
        """See `Catalog.triages`."""
        return await self._engine.read(partial(sqlite_triage.triages, product=product))

    async def put_triage(self, row: TriageRow) -> None:
        """See `Catalog.put_triage`."""
        await self._engine.write(partial(sqlite_triage.put_triage, row=row))

    async def note(self, name: str) -> str | None:
        """See `Catalog.note`."""
        return await self._engine.read(partial(note_of, name=name))

    async def put_note(self, name: str, text: str) -> None:
        """See `Catalog.put_note`."""
        await self._engine.write(
            lambda db: db.execute("INSERT OR REPLACE INTO notes (name, text) VALUES (?, ?)", (name, text))
        )

    async def lease(self, name: str, holder: str, now: float, seconds: float) -> bool:
        """See `Catalog.lease`."""
        return await self._engine.write(lambda db: sqlite_leases.lease(db, name, holder, now, seconds))

    async def release(self, name: str, holder: str) -> None:
        """See `Catalog.release`."""
        await self._engine.write(partial(sqlite_leases.release, name=name, holder=holder))


def product(db: sqlite3.Connection, name: str) -> ProductRow | None:
    """See `Catalog.product`."""
    found = fetch(db, "SELECT name, created, plan FROM products WHERE name = ?", name)
    return product_row(found[0]) if found else None


def note_of(db: sqlite3.Connection, name: str) -> str | None:
    """See `Catalog.note`."""
    found = fetch(db, "SELECT text FROM notes WHERE name = ?", name)
    return str(found[0][0]) if found else None


def put_product(db: sqlite3.Connection, row: ProductRow) -> None:
    """See `Catalog.put_product`."""
    sql = (
        "INSERT INTO products (name, created, plan) VALUES (?, ?, ?) "
        "ON CONFLICT (name) DO UPDATE SET plan = excluded.plan"
    )
    db.execute(sql, (row.name, row.created, json.dumps(dict(row.plan))))


def put_key(db: sqlite3.Connection, row: KeyRow) -> None:
    """See `Catalog.put_key`."""
    if row.product is not None:
        sql = "INSERT INTO products (name, created, plan) VALUES (?, ?, '{}') ON CONFLICT (name) DO NOTHING"
        db.execute(sql, (row.product, row.created))
    values = (row.id, row.digest, row.product, row.role.value, row.created, row.revoked)
    db.execute(f"INSERT INTO keys ({KEY_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", values)


def _adopt(db: sqlite3.Connection, row: UploadRow, summary: Summary) -> bool:
    if row.session_id is None or row.index is None:
        raise ValueError(f"upload {row.id} names no segment that it could be adopted as")
    sqlite_sessions.give_up_unfinished(db, row.product, row.session_id, row.index, row.updated)
    if sqlite_uploads.has_upload(db, row.product, row.session_id, row.index):
        return False
    sqlite_sessions.ensure_session(db, Registration(row.product, summary, SessionState.WANTED), row.updated)
    return sqlite_uploads.finish_upload(db, row)

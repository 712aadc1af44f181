"""The catalog's SQL for uploads that are nobody's: how many there are, and which have had their time. Functions of a
connection; each query has an index of its own, which holds only what it is about.
"""

# ruff: noqa: S608 - what is put into SQL here are lists of column names from this package; values are always bound

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from mailboat.server.catalog import UploadRow
from mailboat.server.sqlite_rows import UPLOAD_COLUMNS, fetch, upload_row


def strangers(db: sqlite3.Connection, product: str) -> tuple[int, int]:
    """See `Catalog.strangers`."""
    ours = "FROM uploads WHERE product = ? AND session_id IS NULL"
    ((unfinished,),) = fetch(db, f"SELECT count(*) {ours} AND phase = 'open'", product)
    ((size,),) = fetch(db, f"SELECT coalesce(sum(\"offset\"), 0) {ours} AND phase = 'complete'", product)
    return int(unfinished), int(size)


def expired(db: sqlite3.Connection, now: float, quarantine: float, limit: int) -> tuple[str, ...]:
    """See `Catalog.expired`."""
    over = "SELECT id FROM uploads WHERE phase IN ('open', 'complete') AND expires IS NOT NULL AND expires <= ? LIMIT ?"
    old = "SELECT id FROM uploads WHERE phase = 'complete' AND verification = 'quarantined' AND updated <= ? LIMIT ?"
    found = {row[0] for row in (*fetch(db, over, now, limit), *fetch(db, old, now - quarantine, limit))}
    return tuple(sorted(found)[:limit])


def long_gone(db: sqlite3.Connection, before: float, limit: int) -> tuple[str, ...]:
    """See `Catalog.long_gone`."""
    sql = (
        "SELECT id FROM uploads WHERE phase IN ('cancelled', 'expired', 'invalid') AND session_id IS NULL "
        "AND updated <= ? LIMIT ?"
    )
    return tuple(row[0] for row in fetch(db, sql, before, limit))


def forget_uploads(db: sqlite3.Connection, upload_ids: Sequence[str]) -> None:
    """See `Catalog.forget_uploads`."""
    db.executemany("DELETE FROM uploads WHERE id = ?", [(upload_id,) for upload_id in upload_ids])


def quarantined(db: sqlite3.Connection, product: str | None, after: str | None, limit: int) -> tuple[UploadRow, ...]:
    """See `Catalog.quarantined`."""
    kept = " UNION ALL ".join(
        f"SELECT {UPLOAD_COLUMNS} FROM uploads WHERE phase = 'complete' AND verification = '{each}' AND id > :after"
        for each in ("quarantined", "rejected")
    )
    sql = f"SELECT * FROM ({kept}) WHERE :product IS NULL OR product = :product ORDER BY id LIMIT :limit"
    found = db.execute(sql, {"product": product, "after": after or "", "limit": limit}).fetchall()
    return tuple(upload_row(columns) for columns in found)

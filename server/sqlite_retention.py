"""The catalog's SQL for what is older than a product's history window. Functions of a connection.

A session that is removed leaves ``doomed`` behind in the same transaction: what still has to go from the analytics
store and the blobs. It is struck from there when that has happened, and found there by the next start when it has not.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Final

from mailboat.server.catalog import Deletion, Doomed, SessionRow
from mailboat.server.policy import DAY
from mailboat.server.sqlite_rows import SESSION_COLUMNS, fetch, session_row

_AGE: Final = "started + coalesce(skew, 0.0)"
"""When a session began by the server's clock; there is an index of exactly this."""

_DELETION_COLUMNS: Final = "product, day, sessions, segments, records, bytes"


def begun_before(db: sqlite3.Connection, product: str, before: float, limit: int, skip: int) -> tuple[SessionRow, ...]:
    """See `Catalog.begun_before`."""
    sql = (
        f"SELECT {SESSION_COLUMNS} FROM sessions WHERE product = ? AND {_AGE} < ? "  # noqa: S608 - constants from above
        f"ORDER BY {_AGE}, session_id LIMIT ? OFFSET ?"
    )
    return tuple(session_row(columns, ()) for columns in fetch(db, sql, product, before, limit, skip))


def remove_sessions(db: sqlite3.Connection, rows: Sequence[SessionRow], now: float) -> tuple[Doomed, ...]:
    """See `Catalog.remove_sessions`."""
    removed = []
    for row in rows:
        key = (row.product, row.summary.session_id)
        same = "DELETE FROM sessions WHERE product = ? AND session_id = ? AND updated = ?"
        if not db.execute(same, (*key, row.updated)).rowcount:
            continue  # offered again meanwhile
        held = fetch(db, 'SELECT id, "offset", records FROM uploads WHERE product = ? AND session_id = ?', *key)
        db.execute("DELETE FROM uploads WHERE product = ? AND session_id = ?", key)
        doomed = Doomed(*key, tuple(upload_id for upload_id, _, _ in held))
        db.execute("INSERT OR REPLACE INTO doomed VALUES (?, ?, ?)", (*key, json.dumps(doomed.upload_ids)))
        _note(db, row.product, now, (1, len(held), sum(each[2] for each in held), sum(each[1] for each in held)))
        removed.append(doomed)
    return tuple(removed)


def doomed(db: sqlite3.Connection, limit: int) -> tuple[Doomed, ...]:
    """See `Catalog.doomed`."""
    found = fetch(db, "SELECT product, session_id, uploads FROM doomed LIMIT ?", limit)
    return tuple(Doomed(product, session_id, tuple(json.loads(uploads))) for product, session_id, uploads in found)


def strike(db: sqlite3.Connection, gone: Sequence[Doomed]) -> None:
    """See `Catalog.strike`."""
    db.executemany(
        "DELETE FROM doomed WHERE product = ? AND session_id = ?", [(each.product, each.session_id) for each in gone]
    )


def deletions(db: sqlite3.Connection, product: str | None, limit: int) -> tuple[Deletion, ...]:
    """See `Catalog.deletions`."""
    sql = (
        f"SELECT {_DELETION_COLUMNS} FROM deletions WHERE ? IS NULL OR product = ? "  # noqa: S608 - constants from above
        "ORDER BY day DESC, product LIMIT ?"
    )
    return tuple(Deletion(name, day * DAY, *counts) for name, day, *counts in fetch(db, sql, product, product, limit))


def _note(db: sqlite3.Connection, product: str, now: float, counts: tuple[int, ...]) -> None:
    db.execute(
        f"INSERT INTO deletions ({_DELETION_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?) "  # noqa: S608 - constants from above
        "ON CONFLICT (product, day) DO UPDATE SET sessions = sessions + excluded.sessions, "
        "segments = segments + excluded.segments, records = records + excluded.records, "
        "bytes = bytes + excluded.bytes",
        (product, int(now // DAY), *counts),
    )

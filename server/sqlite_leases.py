"""Leases in the SQLite catalog."""

from __future__ import annotations

import sqlite3
from typing import Final

_TAKE: Final = (
    "INSERT INTO leases (name, holder, until) VALUES (:name, :holder, :until) ON CONFLICT (name) "
    "DO UPDATE SET holder = excluded.holder, until = excluded.until "
    "WHERE holder = excluded.holder OR until <= :now OR until > excluded.until"
)


def lease(db: sqlite3.Connection, name: str, holder: str, now: float, seconds: float) -> bool:
    """See `Catalog.lease`."""
    values = {"name": name, "holder": holder, "now": now, "until": now + seconds}
    return db.execute(_TAKE, values).rowcount == 1


def release(db: sqlite3.Connection, name: str, holder: str) -> None:
    """See `Catalog.release`."""
    db.execute("DELETE FROM leases WHERE name = ? AND holder = ?", (name, holder))

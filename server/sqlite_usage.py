"""The catalog's SQL for plans: how many records of wanted sessions a product has had in a month; and how many new
sessions in a day.

A session counts in the month in which its records were first offered: what it grows by is added to the month of that
offer. ``counted`` in its row tells how many were, so that offering a session again counts nothing twice.
"""

# ruff: noqa: S608 - what is put into SQL here are marks for bound values

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from mailboat.server.catalog import Registration, SessionState, Usage
from mailboat.server.policy import DAY, month_of
from mailboat.server.sqlite_rows import fetch

_IDS_AT_ONCE: Final = 500
"""Ids in one IN list: SQLite takes 999 variables at least."""
_MOST_OF_SESSION: Final = 2**53
_MOST_OF_MONTH: Final = 2**62
"""What clients claim may be any number, what SQLite adds may not."""


def usage(db: sqlite3.Connection, product: str, month: int, session_ids: Sequence[str]) -> Usage:
    """See `Catalog.usage`."""
    used = fetch(db, "SELECT records FROM usage WHERE product = ? AND month = ?", product, month)
    taken: set[str] = set()
    for some in _parts(session_ids):
        marks = ", ".join("?" * len(some))
        sql = f"SELECT session_id FROM sessions WHERE product = ? AND state = ? AND session_id IN ({marks})"
        taken.update(row[0] for row in fetch(db, sql, product, SessionState.WANTED.value, *some))
    return Usage(used[0][0] if used else 0, frozenset(taken))


def arrivals(db: sqlite3.Connection, product: str, now: float) -> int:
    """See `Catalog.arrivals`."""
    found = fetch(db, "SELECT sessions FROM arrivals WHERE product = ? AND day = ?", product, now // DAY)
    return int(found[0][0]) if found else 0


def count_new(db: sqlite3.Connection, product: str, sessions: int, now: float) -> None:
    """Add so many new sessions to the day."""
    if sessions:
        db.execute(
            "INSERT INTO arrivals (product, day, sessions) VALUES (?, ?, ?) ON CONFLICT (product) DO UPDATE SET "
            "sessions = iif(day = excluded.day, sessions, 0) + excluded.sessions, day = excluded.day "
            "WHERE day <= excluded.day",
            (product, now // DAY, sessions),
        )


Counted = Mapping[tuple[str, str], int]
"""How many records of a session are counted, by (product, session id)."""


def count(db: sqlite3.Connection, offers: Sequence[Registration], now: float) -> Counted:
    """Add to the month what the wanted ones of these sessions, which are kept after this, have more than was counted;
    how many that are, for those that are new.
    """
    records: dict[str, dict[str, int]] = {}
    for offer in offers:
        if offer.state is SessionState.WANTED:
            of_product = records.setdefault(offer.product, {})
            session_id = offer.summary.session_id
            of_product[session_id] = max(min(offer.summary.records, _MOST_OF_SESSION), of_product.get(session_id, 0))
    for product, by_session in records.items():
        _count(db, product, by_session, month_of(now))
    return {(product, each): count for product, found in records.items() for each, count in found.items()}


def _count(db: sqlite3.Connection, product: str, records: dict[str, int], month: int) -> None:
    grown: list[tuple[int, str, str]] = []
    added = sum(records.values())
    for some in _parts(list(records)):
        marks = ", ".join("?" * len(some))
        sql = f"SELECT session_id, counted FROM sessions WHERE product = ? AND session_id IN ({marks})"
        for session_id, counted in fetch(db, sql, product, *some):
            added -= min(records[session_id], counted)
            if records[session_id] > counted:
                grown.append((records[session_id], product, session_id))
    if not added:
        return
    db.executemany("UPDATE sessions SET counted = ? WHERE product = ? AND session_id = ?", grown)
    db.execute(
        "INSERT INTO usage (product, month, records) VALUES (?, ?, ?) "
        "ON CONFLICT (product, month) DO UPDATE SET records = min(records + excluded.records, ?)",
        (product, month, min(added, _MOST_OF_MONTH), _MOST_OF_MONTH),
    )


def _parts(session_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(session_ids), _IDS_AT_ONCE):
        yield session_ids[start : start + _IDS_AT_ONCE]

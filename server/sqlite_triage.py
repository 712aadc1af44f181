"""The catalog's SQL for what people say of groups of exceptions. Functions of a connection."""

from __future__ import annotations

import sqlite3

from mailboat.server.sqlite_rows import fetch, storable
from mailboat.server.triage_rows import Standing, TriageRow


def triages(db: sqlite3.Connection, product: str | None) -> tuple[TriageRow, ...]:
    """See `Catalog.triages`."""
    sql = 'SELECT product, "group", standing, version, changed FROM triages WHERE ? IS NULL OR product = ?'
    return tuple(
        TriageRow(name, group, Standing(standing), version, changed)
        for name, group, standing, version, changed in fetch(db, sql, product, product)
    )


def put_triage(db: sqlite3.Connection, row: TriageRow) -> None:
    """See `Catalog.put_triage`."""
    if row.standing is Standing.NEW:
        db.execute('DELETE FROM triages WHERE product = ? AND "group" = ?', (row.product, row.group))
        return
    db.execute(
        "INSERT OR REPLACE INTO triages VALUES (?, ?, ?, ?, ?)",
        (row.product, row.group, row.standing.value, storable(row.version), row.changed),
    )

"""How numbers and sums are kept (see `sums`): functions of a connection to the analytics store, in a transaction.

Whatever takes records of summed generations out, or changes what they count for, calls `spoil` before: the sums of
their weeks go in the same transaction, and are made again by the next `sum_up`.
"""

# ruff: noqa: S608 - what is put into SQL here are fragments of this package; values are always bound

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import duckdb

from mailboat.server.analytics_rows import as_text, key_columns
from mailboat.server.analytics_schema import KEY_COLUMNS, NUMBERED_COLUMNS, PART_COLUMNS, given
from mailboat.server.analytics_store import Key
from mailboat.server.sums import PART, SCOPED, STORED, SUMS, TAIL, is_stale, stale_records, week_of

_IDENTIFIED: Final = {**KEY_COLUMNS, "installation": "INTEGER"}
_NAMED: Final = {**KEY_COLUMNS, "installation": "VARCHAR"}

Fresh = tuple[str, str, str]
"""A session that something is loaded of for the first time: product, session id, installation (or no text)."""


# -- numbers -------------------------------------------------------------------------------------------------------


def number(db: duckdb.DuckDBPyConnection, numbering: Numbering, sessions: Iterable[Fresh]) -> dict[Key, int]:
    """Give each of these sessions, which have none, a number, and their installations; the numbers."""
    fresh = sorted(sessions)
    if not fresh:
        return {}
    numbers, installations = numbering.sessions(db), _installations(db, numbering, fresh)
    given_now = {(product, session_id): numbers.next(product) for product, session_id, _ in fresh}
    rows = [
        {"product": product, "session_id": session_id, "number": given_now[product, session_id], "installation": known}
        for product, session_id, name in fresh
        for known in (installations.get(name),)
    ]
    db.execute(f"INSERT INTO numbered FROM {given(NUMBERED_COLUMNS)}", {"rows": as_text(rows)})
    begun = numbers.take_begun()
    if begun:
        db.execute(f"INSERT INTO part FROM {given(PART_COLUMNS)}", {"rows": as_text(begun)})
    return given_now


def identify(db: duckdb.DuckDBPyConnection, keys: Sequence[Key]) -> None:
    """Have the numbers of these sessions' installations agree with table ``session``."""
    bound = {"rows": as_text(key_columns(keys))}
    these = f"{given(KEY_COLUMNS)} old WHERE numbered.product = old.product AND numbered.session_id = old.session_id"
    # What they had is the number of another installation, perhaps.
    db.execute(f"UPDATE numbered SET installation = NULL FROM {these}", bound)
    named = db.execute(
        f"SELECT product, session_id::VARCHAR, installation FROM session JOIN {given(KEY_COLUMNS)} "
        "USING (product, session_id) WHERE installation != ''",
        bound,
    ).fetchall()
    installations = _installations(db, Numbering(), named)
    rows = [
        {"product": product, "session_id": session_id, "installation": installations[name]}
        for product, session_id, name in named
    ]
    db.execute(
        f"UPDATE numbered SET installation = known.installation FROM {given(_IDENTIFIED)} known "
        "WHERE numbered.product = known.product AND numbered.session_id = known.session_id",
        {"rows": as_text(rows)},
    )


def _installations(db: duckdb.DuckDBPyConnection, numbering: Numbering, sessions: Iterable[Fresh]) -> dict[str, int]:
    """The numbers of these sessions' installations by their names; new ones where needed."""
    names = {name: product for product, _, name in sessions if name}
    if not names:
        return {}
    known = db.execute(
        f"SELECT name, any_value(numbered.installation) FROM {given({'name': 'VARCHAR'})} "
        "JOIN session ON session.installation = name JOIN numbered USING (product, session_id) "
        "WHERE numbered.installation IS NOT NULL GROUP BY name",
        {"rows": as_text([{"name": name} for name in names])},
    ).fetchall()
    found: dict[str, int] = dict(known)
    numbers = numbering.installations(db)
    for name in names.keys() - found.keys():
        found[name] = numbers.next(names[name])
    return found


def renamed(db: duckdb.DuckDBPyConnection, installations: Iterable[tuple[Key, str]]) -> list[Key]:
    """The numbered sessions of which the installation is, or was, another one than is known of them."""
    rows = [{"product": key[0], "session_id": key[1], "installation": name} for key, name in installations]
    return db.execute(
        f"SELECT product, session_id::VARCHAR FROM {given(_NAMED)} said JOIN numbered USING (product, session_id) "
        "LEFT JOIN session USING (product, session_id) "
        "WHERE said.installation != coalesce(session.installation, '')",
        {"rows": as_text(rows)},
    ).fetchall()


class Numbering:
    """The last numbers that were given, as one transaction has left them; each kind is read when it is first wanted."""

    def __init__(self) -> None:
        self._sessions: _Numbers | None = None
        self._installations: _Numbers | None = None

    def sessions(self, db: duckdb.DuckDBPyConnection) -> _Numbers:
        """Those of sessions."""
        if self._sessions is None:
            parts = db.execute("SELECT product, part FROM part ORDER BY part").fetchall()
            self._sessions = _Numbers(db, "number", parts)
        return self._sessions

    def installations(self, db: duckdb.DuckDBPyConnection) -> _Numbers:
        """Those of installations."""
        if self._installations is None:
            self._installations = _Numbers(db, "installation")
        return self._installations


class _Numbers:
    """Numbers that nobody has: in the part that a product had the last one of, or in a new part.

    `parts` are kept for a product, also when nobody is left in one.
    """

    def __init__(self, db: duckdb.DuckDBPyConnection, column: str, parts: Iterable[tuple[str, int]] = ()) -> None:
        found = db.execute(
            f"SELECT product, {column} // {PART} AS part, max({column}) FROM numbered WHERE {column} IS NOT NULL "
            "GROUP BY ALL ORDER BY part"
        ).fetchall()
        self._part: dict[str, int] = {product: part for product, part, _ in found}
        self._last: dict[int, int] = {}
        for _, part, last in found:
            self._last[part] = max(last, self._last.get(part, last))
        for product, part in parts:
            self._part[product] = part
            self._last.setdefault(part, part * PART - 1)
        self._begun: list[dict[str, Any]] = []
        self._new = 1 + max(self._last, default=-1)

    def next(self, product: str) -> int:
        """Take one."""
        part = self._part.get(product)
        if part is None or self._last[part] == (part + 1) * PART - 1:
            part = self._part[product] = self._new
            self._last[part] = part * PART - 1
            self._begun.append({"part": part, "product": product})
            self._new += 1
        self._last[part] += 1
        return self._last[part]

    def take_begun(self) -> list[dict[str, Any]]:
        """The parts that were not yet kept for a product, told once."""
        begun, self._begun = self._begun, []
        return begun


# -- sums ----------------------------------------------------------------------------------------------------------


def spoil(db: duckdb.DuckDBPyConnection, keys: Iterable[Key]) -> None:
    """Have no sums of the weeks in which these sessions have records."""
    records = " UNION ALL ".join(f"SELECT number, time, generation FROM {table}" for table in STORED.values())
    db.execute(
        f"INSERT INTO stale SELECT DISTINCT product, {week_of('time')} FROM ({records}) JOIN "
        f"(SELECT product, number FROM numbered JOIN {given(KEY_COLUMNS)} USING (product, session_id)) USING (number) "
        "WHERE generation <= (SELECT summed FROM state) EXCEPT FROM stale",
        {"rows": as_text(key_columns(sorted(set(keys))))},
    )
    for each in SUMS:
        db.execute(f"DELETE FROM {each.table} WHERE (product, week) IN (FROM stale)")


def due(db: duckdb.DuckDBPyConnection, *, idle: bool) -> bool:
    """Whether so much waits to be summed that it is worth it; when idle, weeks without sums alone are."""
    sql = "SELECT waiting >= $tail OR ($idle AND waiting >= 0 AND EXISTS (FROM stale)) FROM state"
    return db.execute(sql, {"tail": TAIL, "idle": idle}).fetchone() == (True,)


def sum_up(db: duckdb.DuckDBPyConnection) -> None:
    """Have all records in the sums."""
    summed, stale = _state(db)
    for each in SUMS:
        weeks = "(product, week) IN (SELECT DISTINCT product, week FROM delta)"
        db.execute(f"CREATE OR REPLACE TEMP TABLE delta AS {each.gathered_by_scope(f'generation > {summed}')}")
        if stale is not None:
            db.execute(f"INSERT INTO delta {each.gathered_by_scope(stale)}")
        db.execute(f"INSERT INTO delta FROM {each.table} WHERE {weeks}")
        db.execute(f"DELETE FROM {each.table} WHERE {weeks}")
        db.execute(f"INSERT INTO {each.table} {each.merged('delta', scoped=True)}")
    db.execute("DROP TABLE delta")
    db.execute("DELETE FROM stale")
    db.execute("UPDATE state SET summed = generation, waiting = 0")


def postpone(db: duckdb.DuckDBPyConnection) -> None:
    """Let more records come before the next attempt, also when idle."""
    db.execute("UPDATE state SET waiting = $tail", {"tail": -TAIL})


def disagreements(db: duckdb.DuckDBPyConnection) -> Iterator[tuple[str, int, str]]:
    """Product and week of sums that are not those of the records, with the name of their table."""
    summed, _ = _state(db)
    for each in SUMS:
        exact = ", ".join((*SCOPED, *each.keys, *(name for name, value in each.values.items() if value.exact)))
        gathered = each.gathered_by_scope(f"generation <= {summed} AND NOT {is_stale()}")
        made = f"SELECT {exact} FROM ({each.merged(f'({gathered})', scoped=True)})"
        kept = f"SELECT {exact} FROM {each.table}"
        rows = db.execute(
            f"SELECT DISTINCT product, week FROM (({kept} EXCEPT ALL {made}) UNION ALL ({made} EXCEPT ALL {kept})) "
            "ORDER BY ALL"
        ).fetchall()
        for product, week in rows:
            yield product, week, each.table


def _state(db: duckdb.DuckDBPyConnection) -> tuple[int, str | None]:
    """Up to which generation is summed, and the condition for those records up to it that are in no sum."""
    summed, low, high = db.execute(
        "SELECT summed, min(week), max(week) FROM state LEFT JOIN stale ON true GROUP BY 1"
    ).fetchall()[0]
    return summed, None if low is None else stale_records(summed, low, high)

"""The analytics store: a DuckDB file in which the records of all sessions can be asked about.

`Analytics` carries out `analytics_store.SqlStore`, whose promises it keeps, and owns the file. The tables are told in
`analytics_schema`.
"""

# ruff: noqa: S608 - what is put into SQL here are fragments of `analytics_schema`; values are always bound

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import duckdb

from mailboat.protocol.records import COUNTERS, Schema
from mailboat.protocol.summary import INFO_TEXTS
from mailboat.server import summing
from mailboat.server.analytics_file import Commits, Transaction, open_existing, open_or_make
from mailboat.server.analytics_schema import (
    BATCH_COLUMNS,
    GAP_COLUMNS,
    KEY_COLUMNS,
    LOADED_COLUMNS,
    RANGE_COLUMNS,
    SESSION_COLUMNS,
    given,
    insert_rows,
)
from mailboat.server.analytics_store import (
    AnalyticsError,
    Holding,
    Key,
    Mark,
    Progress,
    StaleLoad,
    Step,
    TooMuchToSum,
    require_known,
)
from mailboat.server.catalog import SegmentRow, SessionRow
from mailboat.server.config import ANALYTICS_MEMORY
from mailboat.server.decoder import schemas_from
from mailboat.server.decoding import Decoded
from mailboat.server.json_text import encode
from mailboat.server.skew import correction
from mailboat.server.sums import STORED

_NOBODY: Final = UUID(int=0)
"""In place of a session's id, with no product, for records with a number that is no session's."""

_FETCHED: Final = 10_000
"""Rows taken from the engine at a time."""

_LATEST: Final = 253_402_300_799.0
"""The end of the year 9999, in seconds: no calendar takes more."""


class Analytics:
    """The store in the file `path`, made when it is not there.

    A file that is damaged or of another layout is moved aside (``NAME.old``) and begun anew: `generation` is zero
    then. Raises `AnalyticsError` when the file cannot be used, or another process has it open.
    """

    def __init__(self, path: Path, memory: int = ANALYTICS_MEMORY, *, make: bool = True) -> None:
        """`memory` are the bytes that the engine may take; beyond them it goes on in files beside its own.

        Without `make` a file that is damaged, of another layout or not there is an `AnalyticsError`.
        """
        self._path = path
        self._memory = memory
        self._lock = threading.Lock()
        self._commits = Commits()
        self._root = open_or_make(path, memory) if make else open_existing(path, memory)
        self._writer = self._root.cursor()

    def close(self) -> None:
        """Release the file; every cursor must have been closed."""
        self._writer.close()
        self._root.close()

    def reopen(self) -> None:
        """Open the file anew: after a failed write the engine takes no more. Readers under way fail."""
        with self._lock:
            self.close()
            self._root = open_or_make(self._path, self._memory)
            self._writer = self._root.cursor()

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection for one thread to read with, to be closed by it; it can be interrupted from any other."""
        with self._lock:
            return self._root.cursor()

    def cursors(self, most: int) -> list[duckdb.DuckDBPyConnection]:
        """See `SqlStore.cursors`."""
        before, made = self._commits.ended(), [self.cursor() for _ in range(most)]
        for each in made:
            each.begin()
            each.execute("FROM state")  # what a transaction sees is settled by its first statement
        if before is None or self._commits.ended() != before:
            while len(made) > 1:
                made.pop().close()
        return made

    # -- what is there, for the thread that writes ---------------------------------------------------------------

    @property
    def generation(self) -> int:
        """Loads so far; see ``state``."""
        return self._state()[0]

    @property
    def revision(self) -> int:
        """The revision of the catalog's sessions that was copied last."""
        return self._state()[1]

    def _state(self) -> tuple[int, int]:
        row = self._writer.execute("SELECT generation, revision FROM state").fetchone()
        return (row[0], row[1]) if row else (0, 0)

    def progress(self, sessions: Iterable[Key]) -> dict[Key, dict[str, Progress]]:
        """What was loaded of the uploads of each of these sessions, by upload id."""
        columns = "segment, consumed, next, records, ranges, schemas, failed"
        found = self._writer.execute(
            f"SELECT product, session_id::VARCHAR, upload_id::VARCHAR, {columns} FROM loaded "
            f"JOIN {given(KEY_COLUMNS)} USING (product, session_id)",
            {"rows": _rows(_keys(sorted(set(sessions))))},
        ).fetchall()
        known: dict[Key, dict[str, Progress]] = {}
        for product, session_id, upload_id, *rest in found:
            known.setdefault((product, session_id), {})[upload_id] = _progress(*rest)
        return known

    def _marks(self, sessions: Iterable[Key]) -> dict[Key, dict[str, Mark]]:
        """As `progress`, in brief."""
        found = self._writer.execute(
            "SELECT product, session_id::VARCHAR, upload_id::VARCHAR, consumed, records, failed FROM loaded "
            f"JOIN {given(KEY_COLUMNS)} USING (product, session_id)",
            {"rows": _rows(_keys(sorted(set(sessions))))},
        ).fetchall()
        marks: dict[Key, dict[str, Mark]] = {}
        for product, session_id, upload_id, consumed, records, failed in found:
            marks.setdefault((product, session_id), {})[upload_id] = (consumed, records, failed)
        return marks

    # -- loading -------------------------------------------------------------------------------------------------

    def load(self, decoded: Decoded, steps: Sequence[Step]) -> None:
        """Add the rows of a batch and what is to be known of the segments that they came from.

        All or nothing, and durable on return. Raises `RowsRefused` when it is the rows' fault, `OutOfMemory`, and
        `StaleLoad`.
        """
        with self._transaction():
            require_known(steps, self._marks({(step.segment.product, step.segment.session_id) for step in steps}))
            self._batch(steps)
            for table in decoded.tables:
                self._writer.execute(insert_rows(table), {"file": str(decoded.folder / f"{table}.json")})
            self._add_gaps(steps)
            self._replace_loaded([(step.segment, step.progress) for step in steps])
            records = sum(step.outcome.records for step in steps)
            self._writer.execute("UPDATE state SET waiting = waiting + $records", {"records": records})

    def load_failed(self, segment: SegmentRow, before: Progress | None, reason: str) -> None:
        """See `AnalyticsStore.load_failed`."""
        known, key = before or Progress(segment.index), (segment.product, segment.session_id)
        failed = Progress(known.segment, known.consumed, known.next, known.records, known.ranges, (), reason)
        with self._transaction():
            there = self._marks([key]).get(key, {})
            if there.get(segment.upload_id, Progress(segment.index).mark) != known.mark:
                raise StaleLoad(segment.session_id)
            self._replace_loaded([(segment, failed)])

    def load_sessions(self, rows: Sequence[SessionRow], revision: int) -> None:
        """Put these sessions in place of what was known of them, and note the revision."""
        installations = {(row.product, row.summary.session_id): row.summary.installation for row in rows}
        keys = _keys(installations)
        with self._transaction():
            renamed = summing.renamed(self._writer, installations.items())
            if renamed:
                summing.spoil(self._writer, renamed)
            self._writer.execute(
                f"DELETE FROM session USING {given(KEY_COLUMNS)} old "
                "WHERE session.product = old.product AND session.session_id = old.session_id",
                {"rows": _rows(keys)},
            )
            columns = _rows([session_columns(row) for row in rows])
            self._writer.execute(f"INSERT INTO session FROM {given(SESSION_COLUMNS)}", {"rows": columns})
            if renamed:
                summing.identify(self._writer, renamed)
            self._writer.execute("UPDATE state SET revision = $revision", {"revision": revision})

    def sum_up(self, *, idle: bool) -> bool:
        """See `AnalyticsStore.sum_up`."""
        if not summing.due(self._writer, idle=idle):
            return False
        try:
            with self._transaction():
                summing.sum_up(self._writer)
        except AnalyticsError as error:
            if not isinstance(error.__cause__, duckdb.OutOfMemoryException):
                raise
            with self._transaction():
                summing.postpone(self._writer)
            raise TooMuchToSum(f"there is too much to be summed: {error.__cause__}") from error
        return True

    # -- taking out, and counting --------------------------------------------------------------------------------

    def forget(self, sessions: Iterable[Key]) -> int:
        """See `AnalyticsStore.forget`."""
        keys = sorted(set(sessions))
        bound = {"rows": _rows(_keys(keys))}
        records = 0
        with self._transaction():
            summing.spoil(self._writer, keys)
            for table in STORED.values():
                found = self._writer.execute(
                    f"DELETE FROM {table} WHERE number IN "
                    f"(SELECT number FROM numbered JOIN {given(KEY_COLUMNS)} USING (product, session_id))",
                    bound,
                ).fetchone()
                records += int(found[0]) if found is not None else 0
            for table in ("gap", "loaded", "session", "numbered"):
                self._writer.execute(
                    f"DELETE FROM {table} USING {given(KEY_COLUMNS)} old "
                    f"WHERE {table}.product = old.product AND {table}.session_id = old.session_id",
                    bound,
                )
        return records

    def unload(self, segments: Iterable[SegmentRow]) -> int:
        """See `AnalyticsStore.unload`."""
        taken = list(segments)
        known = self.progress((each.product, each.session_id) for each in taken)
        ranges = [
            {**_of_segment(each), "first": first, "end": end}
            for each in taken
            if (progress := known.get((each.product, each.session_id), {}).get(each.upload_id)) is not None
            for first, end in progress.ranges
        ]
        records = 0
        with self._transaction():
            summing.spoil(self._writer, known)
            for table in STORED.values():
                found = self._writer.execute(
                    f"DELETE FROM {table} USING (SELECT * FROM {given(RANGE_COLUMNS)} JOIN numbered "
                    f"USING (product, session_id)) old WHERE {table}.number = old.number "
                    'AND sequence >= old."first" AND sequence < old."end"',
                    {"rows": _rows(ranges)},
                ).fetchone()
                records += int(found[0]) if found is not None else 0
            for table in ("gap", "loaded"):
                self._writer.execute(
                    f"DELETE FROM {table} USING {given(RANGE_COLUMNS)} old WHERE {table}.upload_id = old.upload_id",
                    {"rows": _rows([{**_of_segment(each), "first": 0, "end": 0} for each in taken])},
                )
        return records

    def holdings(self) -> Iterator[Holding]:
        """See `AnalyticsStore.holdings`."""
        records = " UNION ALL ".join(f"SELECT number, sequence FROM {table}" for table in STORED.values())
        sql = f"""
            WITH counted AS (
                SELECT product, session_id, n, d
                FROM (SELECT number, count(*) AS n, count(DISTINCT sequence) AS d FROM ({records}) GROUP BY number)
                LEFT JOIN numbered USING (number)
            ), noted AS (
                SELECT product, session_id, sum(records) AS n FROM loaded GROUP BY ALL
            )
            SELECT coalesce(product, ''), coalesce(session_id, '{_NOBODY}')::VARCHAR, coalesce(noted.n, 0),
                coalesce(counted.n, 0), coalesce(counted.d, 0), session.session_id IS NOT NULL
            FROM noted FULL JOIN counted USING (product, session_id) FULL JOIN session USING (product, session_id)
            ORDER BY product, session_id
        """
        cursor = self.cursor()
        try:
            cursor.execute(sql)
            while rows := cursor.fetchmany(_FETCHED):
                for product, session_id, noted, there, numbers, listed in rows:
                    yield Holding(product, session_id, int(noted), int(there), int(numbers), bool(listed))
        finally:
            cursor.close()

    def disagreements(self) -> Iterator[str]:
        """See `AnalyticsStore.disagreements`."""
        cursor = self.cursor()
        try:
            for product, week, table in summing.disagreements(cursor):
                yield f"{product}: the sums in {table} of week {week} since 1970 are not those of its records"
        finally:
            cursor.close()

    def _batch(self, steps: Sequence[Step]) -> None:
        """Lay table ``batch``; whether a session is internal is known from its summary, or else from its preamble."""
        rows = [
            {
                **_of_segment(step.segment),
                "number": step.outcome.number,
                "said": None if step.outcome.info is None else step.outcome.info.get("test") is True,
            }
            for step in steps
        ]
        summing.number(self._writer, {(step.segment.product, step.segment.session_id) for step in steps})
        self._writer.execute(
            "CREATE OR REPLACE TEMP TABLE batch AS SELECT n.*, coalesce(s.internal, n.said, false) AS internal, "
            "CAST(coalesce(s.skew, 0) * 1e6 AS BIGINT) AS shift, numbered.number AS own, "
            "state.generation + 1 AS generation "
            f"FROM {given(BATCH_COLUMNS)} n JOIN numbered USING (product, session_id) "
            "LEFT JOIN session s USING (product, session_id) CROSS JOIN state",
            {"rows": _rows(rows)},
        )

    def _add_gaps(self, steps: Sequence[Step]) -> None:
        names = ("offset", "length", "reason", "first", "records")
        rows = [
            {**_of_segment(step.segment), **dict(zip(names, gap, strict=True))}
            for step in steps
            for gap in step.outcome.gaps
        ]
        if rows:
            self._writer.execute(f"INSERT INTO gap FROM {given(GAP_COLUMNS)}", {"rows": _rows(rows)})

    def _replace_loaded(self, found: Sequence[tuple[SegmentRow, Progress]]) -> None:
        rows = [
            {
                **_of_segment(segment),
                "consumed": progress.consumed,
                "next": progress.next,
                "records": progress.records,
                "ranges": json.dumps(progress.ranges),
                "schemas": _schemas_text(progress.schemas),
                "failed": progress.failed,
                "arrived": _micros(segment.updated),
            }
            for segment, progress in found
        ]
        bound = {"rows": _rows(rows)}
        self._writer.execute(
            f"DELETE FROM loaded USING {given(LOADED_COLUMNS)} old WHERE loaded.upload_id = old.upload_id", bound
        )
        self._writer.execute(f"INSERT INTO loaded FROM {given(LOADED_COLUMNS)}", bound)
        self._writer.execute("UPDATE state SET generation = generation + 1")

    def _transaction(self) -> Transaction:
        return Transaction(self._writer, self._commits)


def session_columns(row: SessionRow) -> dict[str, Any]:
    """One row of ``session``."""
    summary, info, skew = row.summary, row.summary.info, correction(row.skew)
    return {
        "product": row.product,
        "session_id": summary.session_id,
        **{name: getattr(info, name) for name in INFO_TEXTS if name in SESSION_COLUMNS and name != "product"},
        "internal": info.test,
        "anonymous": info.anonymous,
        "parent": info.parent,
        "properties": dict(info.properties),
        "installation": summary.installation,
        "installation_properties": dict(summary.installation_properties),
        "started": _micros(summary.started + skew),
        "ended": _micros(summary.ended + skew),
        "duration": summary.duration,
        "status": summary.status.value,
        "state": row.state.value,
        "reason": row.reason,
        "skew": skew,
        "source": row.source,
        "records": summary.records,
        **{f"n_{name}": count for name, count in zip(COUNTERS, summary.counts, strict=True)},
    }


def _micros(seconds: float) -> int:
    return int(min(max(seconds, 0.0), _LATEST) * 1e6)


def _of_segment(segment: SegmentRow) -> dict[str, Any]:
    return {
        "product": segment.product,
        "session_id": segment.session_id,
        "segment": segment.index,
        "upload_id": segment.upload_id,
    }


def _keys(sessions: Iterable[Key]) -> list[dict[str, Any]]:
    return [{"product": product, "session_id": session_id} for product, session_id in sessions]


def _rows(rows: Sequence[dict[str, Any]]) -> str:
    return encode(rows).decode()


def _schemas_text(schemas: Iterable[Schema]) -> str:
    return json.dumps([[each.number, each.kind, each.name, each.fields] for each in schemas])


def _progress(
    segment: int, consumed: int, following: int, records: int, ranges: str, schemas: str, failed: str | None
) -> Progress:
    spans = tuple((first, end) for first, end in json.loads(ranges))
    return Progress(segment, consumed, following, records, spans, schemas_from(json.loads(schemas)), failed)

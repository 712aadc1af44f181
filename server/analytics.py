"""The analytics store: a DuckDB file in which the records of all sessions can be asked about.

`Analytics` carries out `analytics_store.SqlStore`, whose promises it keeps, and owns the file. The tables are told in
`analytics_schema`.
"""

# ruff: noqa: S608 - what is put into SQL here are fragments of `analytics_schema`; values are always bound

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from uuid import UUID

import duckdb

from mailboat.server import summing
from mailboat.server.analytics_file import Commits, Transaction, as_written, open_existing, open_or_make
from mailboat.server.analytics_rows import (
    as_text,
    gap_columns,
    key_columns,
    loaded_columns,
    progress_from,
    segment_columns,
    session_columns,
)
from mailboat.server.analytics_schema import (
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
from mailboat.server.decoder import Outcome
from mailboat.server.decoding import Decoded
from mailboat.server.sums import STORED

_NOBODY: Final = UUID(int=0)
"""In place of a session's id, with no product, for records with a number that is no session's."""

_FETCHED: Final = 10_000
"""Rows taken from the engine at a time."""


_State = tuple[int, int]
"""Generation and revision."""


@dataclass(slots=True)
class _There:
    """What there is of a session: its number (None: nothing was loaded of it), what table ``session`` has of it, and
    the marks of its uploads.
    """

    number: int | None
    internal: bool | None
    skew: float
    installation: str
    marks: dict[str, Mark] = field(default_factory=dict)

    def is_internal(self, outcome: Outcome) -> bool:
        """Whether the session is internal: its summary says so, or else the preamble, if it was among the bytes."""
        said = outcome.info is not None and outcome.info.get("test") is True
        return said if self.internal is None else self.internal


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
        self._numbering: tuple[_State, summing.Numbering] | None = None

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

    def _state(self) -> _State:
        row = self._writer.execute("SELECT generation, revision FROM state").fetchone()
        return (row[0], row[1]) if row else (0, 0)

    def _numbering_of(self, state: _State) -> summing.Numbering:
        """The numbers that were given until `state`, read once where all changes since are this object's."""
        known, self._numbering = self._numbering, None  # of a transaction that fails nothing is kept
        return known[1] if known is not None and known[0] == state else summing.Numbering()

    def progress(self, sessions: Iterable[Key]) -> dict[Key, dict[str, Progress]]:
        """What was loaded of the uploads of each of these sessions, by upload id."""
        columns = "segment, consumed, next, records, ranges, schemas, failed"
        found = self._writer.execute(
            f"SELECT product, session_id::VARCHAR, upload_id::VARCHAR, {columns} FROM loaded "
            f"JOIN {given(KEY_COLUMNS)} USING (product, session_id)",
            {"rows": as_text(key_columns(sorted(set(sessions))))},
        ).fetchall()
        known: dict[Key, dict[str, Progress]] = {}
        for product, session_id, upload_id, *rest in found:
            known.setdefault((product, session_id), {})[upload_id] = progress_from(*rest)
        return known

    def _there(self, sessions: Iterable[Key]) -> dict[Key, _There]:
        """What is there of these sessions."""
        found = self._writer.execute(
            "SELECT product, session_id::VARCHAR, number, internal, skew, session.installation, upload_id::VARCHAR, "
            f"consumed, loaded.records, failed FROM {given(KEY_COLUMNS)} "
            "LEFT JOIN numbered USING (product, session_id) LEFT JOIN session USING (product, session_id) "
            "LEFT JOIN loaded USING (product, session_id)",
            {"rows": as_text(key_columns(sorted(set(sessions))))},
        ).fetchall()
        there: dict[Key, _There] = {}
        for product, session_id, number, internal, skew, installation, upload_id, *mark in found:
            each = there.setdefault((product, session_id), _There(number, internal, skew or 0.0, installation or ""))
            if upload_id is not None:
                consumed, records, failed = mark
                each.marks[upload_id] = (consumed, records, failed)
        return there

    # -- loading -------------------------------------------------------------------------------------------------

    def load(self, decoded: Decoded, steps: Sequence[Step]) -> None:
        """Add the rows of a batch and what is to be known of the segments that they came from.

        All or nothing, and durable on return. Raises `RowsRefused` when it is the rows' fault, `OutOfMemory`, and
        `StaleLoad`.
        """
        with self._transaction():
            state, there = self._state(), self._there(step.segment.key for step in steps)
            require_known(steps, {key: each.marks for key, each in there.items()})
            numbering = self._numbering_of(state)
            self._batch(steps, there, numbering)
            with as_written(self._writer):
                for table in decoded.tables:
                    lines, texts = decoded.files(table)
                    self._writer.execute(insert_rows(table), {"lines": str(lines), "texts": str(texts)})
            self._add_gaps(steps)
            records = sum(step.outcome.records for step in steps)
            self._replace_loaded([(step.segment, step.progress) for step in steps], there, records)
        self._numbering = ((state[0] + 1, state[1]), numbering)

    def load_failed(self, segment: SegmentRow, before: Progress | None, reason: str) -> None:
        """See `AnalyticsStore.load_failed`."""
        known, key = before or Progress(segment.index), segment.key
        failed = Progress(known.segment, known.consumed, known.next, known.records, known.ranges, (), reason)
        with self._transaction():
            there = self._there([key])
            if there[key].marks.get(segment.upload_id, Progress(segment.index).mark) != known.mark:
                raise StaleLoad(segment.session_id)
            self._replace_loaded([(segment, failed)], there, 0)

    def load_sessions(self, rows: Sequence[SessionRow], revision: int) -> None:
        """Put these sessions in place of what was known of them, and note the revision."""
        installations = {(row.product, row.summary.session_id): row.summary.installation for row in rows}
        keys = key_columns(installations)
        with self._transaction():
            renamed = summing.renamed(self._writer, installations.items())
            if renamed:
                summing.spoil(self._writer, renamed)
            self._writer.execute(
                f"DELETE FROM session USING {given(KEY_COLUMNS)} old "
                "WHERE session.product = old.product AND session.session_id = old.session_id",
                {"rows": as_text(keys)},
            )
            columns = as_text([session_columns(row) for row in rows])
            self._writer.execute(f"INSERT INTO session FROM {given(SESSION_COLUMNS)}", {"rows": columns})
            if renamed:
                summing.identify(self._writer, renamed)
                self._numbering = None
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
        bound = {"rows": as_text(key_columns(keys))}
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
        self._numbering = None  # their numbers are free
        return records

    def unload(self, segments: Iterable[SegmentRow]) -> int:
        """See `AnalyticsStore.unload`."""
        taken = list(segments)
        known = self.progress(each.key for each in taken)
        ranges = [
            {**segment_columns(each), "first": first, "end": end}
            for each in taken
            if (progress := known.get(each.key, {}).get(each.upload_id)) is not None
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
                    {"rows": as_text(ranges)},
                ).fetchone()
                records += int(found[0]) if found is not None else 0
            for table in ("gap", "loaded"):
                self._writer.execute(
                    f"DELETE FROM {table} USING {given(RANGE_COLUMNS)} old WHERE {table}.upload_id = old.upload_id",
                    {"rows": as_text([{**segment_columns(each), "first": 0, "end": 0} for each in taken])},
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

    def _batch(self, steps: Sequence[Step], there: Mapping[Key, _There], numbering: summing.Numbering) -> None:
        """Lay table ``batch``, and number the sessions that are new."""
        fresh = ((*key, each.installation) for key, each in there.items() if each.number is None)
        numbers = summing.number(self._writer, numbering, fresh)
        rows = ", ".join(
            f"({step.outcome.number}, {numbers.get(step.segment.key, known.number)}, "
            f"{known.is_internal(step.outcome)}, {round(known.skew * 1e6)})"
            for step in steps
            for known in (there[step.segment.key],)
        )
        self._writer.execute(
            "CREATE OR REPLACE TEMP TABLE batch AS SELECT n.*, state.generation + 1 AS generation "
            f"FROM (VALUES {rows}) n(number, own, internal, shift) CROSS JOIN state"
        )

    def _add_gaps(self, steps: Sequence[Step]) -> None:
        rows = [each for step in steps for each in gap_columns(step)]
        if rows:
            self._writer.execute(f"INSERT INTO gap FROM {given(GAP_COLUMNS)}", {"rows": as_text(rows)})

    def _replace_loaded(
        self, found: Sequence[tuple[SegmentRow, Progress]], there: Mapping[Key, _There], records: int
    ) -> None:
        """Note the progress of these segments, of whose sessions is `there` what is, with so many records more."""
        bound = {"rows": as_text([loaded_columns(segment, progress) for segment, progress in found])}
        if any(segment.upload_id in there[segment.key].marks for segment, _ in found):
            self._writer.execute(
                f"DELETE FROM loaded USING {given(LOADED_COLUMNS)} old WHERE loaded.upload_id = old.upload_id", bound
            )
        self._writer.execute(f"INSERT INTO loaded FROM {given(LOADED_COLUMNS)}", bound)
        self._writer.execute(
            "UPDATE state SET generation = generation + 1, waiting = waiting + $records", {"records": records}
        )

    def _transaction(self) -> Transaction:
        return Transaction(self._writer, self._commits)

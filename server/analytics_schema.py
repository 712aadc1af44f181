"""The tables of the analytics store, and how they are filled from JSON.

::

    session       one row a session, as its summary said last              (catalog -> here, by revision)
    feature, value, timing, event, exception, installation, other
                  views, with one row a record, by kind; a session's records are numbered by `sequence`
    feature_row, value_row and so on
                  the tables behind them: a record has the number of its session in place of product and session id
    loaded        one row an upload: the bytes taken over, the sequence numbers that got rows, declarations so far, when
                  the last of these bytes came
    gap           what in an upload could not be read
    numbered      one row a session of which something was loaded: its number, and that of its installation
    part          one row for each `sums.PART` numbers of sessions: the product that they are kept for
    kind_sum, feature_sum, installation_sum, value_sum
                  what the records of each product and week come to (`sums`)
    stale         products and weeks that have no sums for now
    state         one row: layout of these tables, generation (grows with each load), revision (of the catalog's
                  sessions as copied last), the generation up to which records are summed, records that wait for it

Nothing here is the only copy: all of it is made again from the catalog and the segments, so a layout is changed by
starting anew. Each record tells the number of its session, by which sessions are told apart in a fraction of the time,
and the generation that it came with. Product and session id in each record would cost an eighth of the time that
loading takes; attributes are texts, since the engine would look through each JSON again. There are no keys or indexes,
since a DuckLake has none; one writer keeps rows unique. Times are UTC, and corrected where a machine's clock was wrong
(`skew`): those of a session as it was offered last, those of records as was known when they were loaded. `internal`
repeats the session's `test` in each record, so that the default origin needs no join; as a column of one value it takes
no room.
"""

from __future__ import annotations

from typing import Final

from mailboat.protocol.records import COUNTERS
from mailboat.server.sums import STORED, SUMS

LAYOUT: Final = 6


def _definition(columns: dict[str, str]) -> str:
    return ", ".join(f'"{name}" {kind}' for name, kind in columns.items())


OWN_COLUMNS: Final = {"number": "INTEGER", "generation": "BIGINT"}
"""Columns of records that mean something to this store alone."""
_RECORD: Final = {**OWN_COLUMNS, "internal": "BOOLEAN", "sequence": "BIGINT", "time": "TIMESTAMP"}
_NAMED: Final = {**_RECORD, "name": "VARCHAR", "attributes": "VARCHAR"}
_EVENT: Final = {**_NAMED, "level": "UTINYINT", "message": "VARCHAR"}
_RECORDS: Final = {
    "feature": _NAMED,
    "value": {**_NAMED, "value": "DOUBLE", "unit": "VARCHAR"},
    "timing": {**_NAMED, "seconds": "DOUBLE"},
    "event": _EVENT,
    "exception": {**_EVENT, "context": "VARCHAR", "stack": "JSON", "causes": "JSON", "group": "VARCHAR"},
    "installation": _NAMED,
    "other": {**_RECORD, "kind": "VARCHAR", "fields": "JSON"},
}
"""Columns of the tables of records and their types."""
_TEXTS: Final = (
    "application", "version", "environment", "agent", "user", "host", "os", "runtime", "time_zone", "locale",
)  # fmt: skip

SESSION_COLUMNS: Final = {
    "product": "VARCHAR",
    "session_id": "UUID",
    **dict.fromkeys(_TEXTS, "VARCHAR"),
    "internal": "BOOLEAN",
    "anonymous": "BOOLEAN",
    "parent": "UUID",
    "properties": "JSON",
    "installation": "VARCHAR",
    "installation_properties": "JSON",
    "started": "TIMESTAMP",
    "ended": "TIMESTAMP",
    "duration": "DOUBLE",
    "status": "VARCHAR",
    "state": "VARCHAR",
    "reason": "VARCHAR",
    "skew": "DOUBLE",
    "source": "VARCHAR",
    "records": "BIGINT",
    **{f"n_{name}": "BIGINT" for name in COUNTERS},
}
"""Columns of `session` and their types; in JSON, times are microseconds."""

LOADED_COLUMNS: Final = {
    "product": "VARCHAR",
    "session_id": "UUID",
    "segment": "INTEGER",
    "upload_id": "UUID",
    "consumed": "BIGINT",
    "next": "BIGINT",
    "records": "BIGINT",
    "ranges": "VARCHAR",
    "schemas": "VARCHAR",
    "failed": "VARCHAR",
    "arrived": "TIMESTAMP",
}
"""Columns of `loaded` and their types."""

GAP_COLUMNS: Final = {
    "product": "VARCHAR",
    "session_id": "UUID",
    "segment": "INTEGER",
    "upload_id": "UUID",
    "offset": "BIGINT",
    "length": "BIGINT",
    "reason": "VARCHAR",
    "first": "BIGINT",
    "records": "BIGINT",
}
"""Columns of `gap` and their types."""

KEY_COLUMNS: Final = {"product": "VARCHAR", "session_id": "UUID"}
"""What tells sessions apart."""

NUMBERED_COLUMNS: Final = {**KEY_COLUMNS, "number": "INTEGER", "installation": "INTEGER"}
"""Columns of `numbered` and their types."""

PART_COLUMNS: Final = {"part": "INTEGER", "product": "VARCHAR"}
"""Columns of `part` and their types."""

RANGE_COLUMNS: Final = {**KEY_COLUMNS, "segment": "INTEGER", "upload_id": "UUID", "first": "BIGINT", "end": "BIGINT"}
"""Sequence numbers from `first` to before `end` that came from an upload."""


TABLES: Final = {
    "state": "layout INTEGER, generation BIGINT, revision BIGINT, summed BIGINT, waiting BIGINT",
    "session": _definition(SESSION_COLUMNS),
    **{stored: _definition(_RECORDS[table]) for table, stored in STORED.items()},
    "loaded": _definition(LOADED_COLUMNS),
    "gap": _definition(GAP_COLUMNS),
    "numbered": _definition(NUMBERED_COLUMNS),
    "part": _definition(PART_COLUMNS),
    "stale": "product VARCHAR, week INTEGER",
    **{each.table: _definition(each.columns) for each in SUMS},
}
"""Every table with its columns."""


def _view(table: str) -> str:
    columns = ", ".join(
        "TRY_CAST(attributes AS JSON) AS attributes" if name == "attributes" else f'"{name}"'
        for name in _RECORDS[table]
        if name not in OWN_COLUMNS
    )
    own = ", ".join(OWN_COLUMNS)
    return f"SELECT product, session_id, {own}, {columns} FROM {STORED[table]} JOIN numbered USING (number)"  # noqa: S608 - names from above


VIEWS: Final = {table: _view(table) for table in STORED}
"""The query of each view."""

SCALARS: Final = {"i": "INTEGER", "s": "INTEGER", "b": "BIGINT", "o": "BIGINT"}
"""Members of a line that are one value for all of its rows; ``i`` is the number of its text in the file of texts."""
_ROW: Final = {**SCALARS, "q": "BIGINT", "t": "BIGINT"}
LINES: Final = "LINES"
"""In place of a type: not in the line but beside it, a text with a line for each row."""
_NAMED_ROW: Final = {**_ROW, "n": "VARCHAR", "a": LINES}
_EVENT_ROW: Final = {**_NAMED_ROW, "l": "UTINYINT", "m": "VARCHAR"}

ROWS: Final[dict[str, dict[str, str]]] = {
    "feature": _NAMED_ROW,
    "value": {**_NAMED_ROW, "v": "DOUBLE", "u": "VARCHAR"},
    "timing": {**_NAMED_ROW, "v": "DOUBLE"},
    "event": _EVENT_ROW,
    "exception": {**_EVENT_ROW, "c": "VARCHAR", "k": "JSON", "x": "JSON", "g": "VARCHAR"},
    "installation": _NAMED_ROW,
    "other": {**_ROW, "k": "VARCHAR", "f": "JSON"},
}
"""The tables of records: one for each kind, and one for kinds that this version does not know. For each, the members of
the lines that `rows` makes, in the order of the table's columns from `sequence` on, and the types of their values."""

BETWEEN: Final = b"\x1d"
"""Between the texts of a file; there is none in JSON."""

_MAX_LINE: Final = 16 * 1024 * 1024
"""Bytes: what the parser takes as one line; `rows.MAX_LINE` stays below."""


def insert_rows(table: str) -> str:
    """The statement that fills a table of records: parameters for the files of lines and of texts; table ``batch``
    names the segments.

    All lists of a line are as long: its rows are their first values, their second, and so on. The joins are in the
    order in which they are to be made: ``batch``, and the texts, are kept while lines go by.
    """
    members = ROWS[table]
    chosen = ", ".join(_each(name, kind) for name, kind in members.items() if name not in SCALARS)
    return (
        f"INSERT INTO {STORED[table]} SELECT b.own, b.generation, b.internal, {chosen} "  # noqa: S608 - names from above
        f"FROM {_read(members)} r JOIN batch b ON b.number = r.s "
        f"CROSS JOIN (SELECT string_split(content, chr({BETWEEN[0]})) AS texts FROM read_text($texts)) x"
    )


def _each(name: str, kind: str) -> str:
    """A member's values, one after the other."""
    if name == "q":
        return "r.b + unnest(r.q)"
    if name == "t":
        return "make_timestamp(greatest(0, (r.o + unnest(r.t)) // 1000 + b.shift))"
    return "unnest(string_split(x.texts[r.i + 1], chr(10)))" if kind == LINES else f"unnest(r.{name})"


def given(columns: dict[str, str]) -> str:
    """A table of rows that are given as the parameter ``rows``: a text, a JSON list of maps with these columns.

    One text is bound a hundred times faster than lists of values are.
    """
    structure = ", ".join(f'"{name}": "{_as_json(kind)}"' for name, kind in columns.items())
    chosen = ", ".join(
        f'make_timestamp("{name}") AS "{name}"' if kind == "TIMESTAMP" else f'"{name}"'
        for name, kind in columns.items()
    )
    unpacked = f"SELECT unnest(from_json_strict($rows, '[{{{structure}}}]'), max_depth := 2)"
    return f"(SELECT {chosen} FROM ({unpacked}))"  # noqa: S608 - names from above


def _as_json(kind: str) -> str:
    return "BIGINT" if kind == "TIMESTAMP" else kind


def _read(members: dict[str, str]) -> str:
    types = ", ".join(f"'{name}': '{_in_line(name, kind)}'" for name, kind in members.items() if kind != LINES)
    return f"read_json($lines, format='newline_delimited', maximum_object_size={_MAX_LINE}, columns={{{types}}})"


def _in_line(name: str, kind: str) -> str:
    """The type of a member in a line."""
    return kind if name in SCALARS else f"{kind}[]"

"""From the records of a block to rows of the analytics tables, column by column in lines of JSON.

One line holds rows of one block for one table (`analytics_schema.ROWS`): the loader reads a file of them per table in
less than half of the time that a line for each row takes. Its members have names of one letter. The number of the
segment in its batch is ``s``; each other is a list with one value a row::

    q  sequence number      t  time, microseconds since the epoch      n  name (type, id)
    a  attributes (properties)      v  value (seconds)      u  unit      l  level      m  message      c  context
    k  stack (kind)      x  causes      g  group      f  fields

Bytes become base64 text here and numbers that are not finite become null: rows are for questions about many records.
The records themselves are given back exactly from their segments (`playback`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from mailboat.protocol.errors import SegmentError
from mailboat.protocol.limits import MIB
from mailboat.protocol.records import KIND_NAMES, Kind, Schema
from mailboat.server.analytics_schema import ROWS
from mailboat.server.grouping import group_of
from mailboat.server.json_text import encode

MAX_LINE: Final = 8 * MIB
"""Bytes of one line: the loader's parser takes no more than 16 MiB. More rows go into several; attributes of a row that
is longer by itself are left out."""

_EARLIEST: Final = 0
_LATEST: Final = 253_402_300_799_000_000
"""The end of the year 9999: times outside are moved to the nearest bound, for no calendar takes them."""

_COLUMNS: Final = {table: tuple(name for name in members if name != "s") for table, members in ROWS.items()}

Row = tuple[Any, ...]
"""The values of one row in the order of its table's members from ``q`` on: sequence number, time and so on."""


def rows_of(
    records: Sequence[Sequence[Any]], first: int, clock: int, schemas: Mapping[int, Schema]
) -> dict[str, list[Row]]:
    """The rows of a block's raw records (`reader.raw_records`) by table; the first has sequence number `first`.

    Declarations (SCHEMA) have no row. Raises `SegmentError` where the fields are not those of a record.
    """
    made: dict[str, list[Row]] = {table: [] for table in ROWS}
    add_feature = made["feature"].append
    sequence = first
    try:
        for raw in records:
            kind = raw[0]
            time = (raw[1] + clock) // 1000
            if not _EARLIEST <= time <= _LATEST or type(time) is not int:
                time = min(max(int(time), _EARLIEST), _LATEST)
            # What most records are goes without the calls: this loop is a third of all decoding.
            if kind == 1 and type(raw[2]) is str and type(raw[3]) is dict:  # Kind.FEATURE
                add_feature((sequence, time, raw[2], raw[3]))
            elif (maker := _MAKERS.get(kind)) is not None:
                table, make = maker
                made[table].append((sequence, time, *make(raw)))
            elif kind == Kind.POSITIONAL:
                table, values = _positional(raw, schemas)
                made[table].append((sequence, time, *values))
            elif kind != Kind.SCHEMA:
                made["other"].append((sequence, time, str(kind), list(raw[2:])))
            sequence += 1
    except (IndexError, TypeError, KeyError, ValueError, OverflowError) as error:
        raise SegmentError(f"record {sequence} has the wrong fields: {error!r}") from error
    return made


def encode_rows(table: str, segment: int, rows: Sequence[Row]) -> bytes:
    """The rows of the segment with this number in its batch as lines of JSON; there must be some."""
    line = encode({"s": segment, **dict(zip(_COLUMNS[table], zip(*rows, strict=True), strict=True))})
    if len(line) <= MAX_LINE:
        return line + b"\n"
    if len(rows) > 1:
        half = len(rows) // 2
        return encode_rows(table, segment, rows[:half]) + encode_rows(table, segment, rows[half:])
    return encode_rows(table, segment, [tuple(map(_cut, rows[0]))])


def _cut(value: object) -> object:
    """A value that is short for sure, of a type that the table takes."""
    if isinstance(value, str):
        return value[:1024]
    return {"$cut": True} if isinstance(value, dict | list | tuple | bytes) else value


# -- by kind -------------------------------------------------------------------------------------------------------


def _map(value: object) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"attributes are a {type(value).__name__}, not a map")
    return value


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _level(value: object) -> int | None:
    return min(max(value, 0), 255) if isinstance(value, int) else None


def _text(raw: Sequence[Any], at: int) -> str | None:
    value = raw[at] if len(raw) > at else None
    return value if value is None or isinstance(value, str) else str(value)


def _name(raw: Sequence[Any]) -> str:
    name = raw[2]
    return name if isinstance(name, str) else str(name)


def _feature(raw: Sequence[Any]) -> Row:
    return _name(raw), _map(raw[3])


def _value(raw: Sequence[Any]) -> Row:
    name, attributes, value, unit = raw[2], raw[3], raw[4], raw[5] if len(raw) > 5 else None  # noqa: PLR2004 - see `records`
    if type(name) is str and type(attributes) is dict and type(value) is float and (unit is None or type(unit) is str):
        return name, attributes, value, unit
    return _name(raw), _map(raw[3]), _number(raw[4]), _text(raw, 5)


def _timing(raw: Sequence[Any]) -> Row:
    name, attributes = raw[2], raw[3]
    if type(name) is str and type(attributes) is dict:
        return name, attributes, raw[4] / 1e9
    return _name(raw), _map(raw[3]), raw[4] / 1e9


def _event(raw: Sequence[Any]) -> Row:
    name, attributes, level, message = raw[2], raw[3], raw[4], raw[5] if len(raw) > 5 else None  # noqa: PLR2004 - see `records`
    if type(name) is str and type(attributes) is dict and type(level) is int and type(message) is str:
        return name, attributes, level if 0 <= level <= 255 else _level(level), message  # noqa: PLR2004 - a byte
    return _name(raw), _map(raw[3]), _level(raw[4]), _text(raw, 5)


def _exception(raw: Sequence[Any]) -> Row:
    name, message = _name(raw), _text(raw, 5)
    stack = raw[7] if len(raw) > 7 and isinstance(raw[7], list) else []  # noqa: PLR2004 - see `records`
    causes = raw[8] if len(raw) > 8 and isinstance(raw[8], list) else []  # noqa: PLR2004 - see `records`
    group = group_of(name, stack, causes, message)
    return name, _map(raw[3]), _level(raw[4]), message, _text(raw, 6), stack, causes, group


def _positional(raw: Sequence[Any], schemas: Mapping[int, Schema]) -> tuple[str, Row]:
    schema = schemas.get(raw[2])
    if schema is None:
        return "other", (KIND_NAMES[Kind.POSITIONAL], list(raw[2:]))
    attributes = dict(zip(schema.fields, raw[3:], strict=False))
    if schema.kind == Kind.FEATURE:
        return "feature", (schema.name, attributes)
    if schema.kind == Kind.EVENT:
        return "event", (schema.name, attributes, None, None)
    return "other", (KIND_NAMES.get(schema.kind, str(schema.kind)), [schema.name, attributes])


_MAKERS: Final[dict[int, tuple[str, Callable[[Sequence[Any]], Row]]]] = {
    Kind.FEATURE: ("feature", _feature),
    Kind.VALUE: ("value", _value),
    Kind.TIMING: ("timing", _timing),
    Kind.EVENT: ("event", _event),
    Kind.EXCEPTION: ("exception", _exception),
    Kind.INSTALLATION: ("installation", _feature),
}

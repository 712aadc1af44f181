"""From the records of a block to rows of the analytics tables, as lines of JSON.

One line is one row; the loader reads a file of them per table (`analytics`). Its members have names of one letter,
since they are written and parsed a million times::

    s  number of the segment in its batch      q  sequence number      t  time, microseconds since the epoch
    n  name (type, id)      a  attributes (properties)      v  value (seconds)      u  unit
    l  level      m  message      c  context      k  stack (kind)      x  causes      g  group      f  fields

Bytes become base64 text here and numbers that are not finite become null: rows are for questions about many records.
The records themselves are given back exactly from their segments (`playback`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from mailboat.protocol.errors import SegmentError
from mailboat.protocol.limits import MIB
from mailboat.protocol.records import KIND_NAMES, Kind, Schema
from mailboat.server.grouping import group_of
from mailboat.server.json_text import UNSUITED, encode

TABLES: Final = ("feature", "value", "timing", "event", "exception", "installation", "other")
"""The tables of records: one for each kind, and one for kinds that this version does not know."""

MAX_ROW: Final = 8 * MIB
"""Bytes of one line: the loader's parser takes no more than 16 MiB. Attributes beyond it are left out of the row."""

_EARLIEST: Final = 0
_LATEST: Final = 253_402_300_799_000_000
"""The end of the year 9999: times outside are moved to the nearest bound, for no calendar takes them."""

_encoder = msgspec.json.Encoder(enc_hook=str)


class Row(msgspec.Struct, gc=False):
    """What every row has; see the module's table of members."""

    s: int
    q: int
    t: int


class _Row(Row, gc=False):
    n: str
    a: Any


class _Value(_Row, gc=False):
    v: float | None
    u: str | None


class _Timing(_Row, gc=False):
    v: float | None


class _Event(_Row, gc=False):
    l: int | None  # noqa: E741 - see the module's table
    m: str | None


class _Exception(_Event, gc=False):
    c: str | None
    k: Any
    x: Any
    g: str


class _Other(Row, gc=False):
    k: str
    f: Any


_Made = tuple[str, Row]


def rows_of(
    records: Sequence[Sequence[Any]], segment: int, first: int, clock: int, schemas: Mapping[int, Schema]
) -> dict[str, list[Row]]:
    """The rows of a block's raw records (`reader.raw_records`) by table; the first has sequence number `first`.

    Declarations (SCHEMA) have no row. Raises `SegmentError` where the fields are not those of a record.
    """
    made: dict[str, list[Row]] = {table: [] for table in TABLES}
    add_feature = made["feature"].append
    sequence = first
    try:
        for raw in records:
            kind = raw[0]
            time = (raw[1] + clock) // 1000
            if not _EARLIEST <= time <= _LATEST or type(time) is not int:
                time = min(max(int(time), _EARLIEST), _LATEST)
            # What most records are goes without the calls: this loop is half of all decoding.
            if kind == 1 and type(raw[2]) is str and type(raw[3]) is dict:  # Kind.FEATURE
                add_feature(_Row(segment, sequence, time, raw[2], raw[3]))
            elif (make := _MAKERS.get(kind)) is not None:
                table, row = make(raw, segment, sequence, time)
                made[table].append(row)
            elif kind == Kind.POSITIONAL:
                table, row = _positional(raw, segment, sequence, time, schemas)
                made[table].append(row)
            elif kind != Kind.SCHEMA:
                made["other"].append(_Other(segment, sequence, time, str(kind), list(raw[2:])))
            sequence += 1
    except (IndexError, TypeError, KeyError, ValueError, OverflowError) as error:
        raise SegmentError(f"record {sequence} has the wrong fields: {error!r}") from error
    return made


def encode_rows(rows: Sequence[Row]) -> bytes:
    """The rows as lines of JSON."""
    try:
        lines = _encoder.encode_lines(rows)
    except UNSUITED:
        # Rare, so the row that it is about is found by going through them.
        return b"".join(_encode_row(row) for row in rows)
    return lines if len(lines) <= MAX_ROW else b"".join(_encode_row(row) for row in rows)


def _encode_row(row: Row) -> bytes:
    line = encode(msgspec.structs.asdict(row))
    if len(line) > MAX_ROW:
        line = encode({name: _cut(value) for name, value in msgspec.structs.asdict(row).items()})
    return line + b"\n"


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


def _feature(raw: Sequence[Any], segment: int, sequence: int, time: int) -> _Made:
    return "feature", _Row(segment, sequence, time, _name(raw), _map(raw[3]))


def _value(raw: Sequence[Any], segment: int, sequence: int, time: int) -> _Made:
    name, attributes, value, unit = raw[2], raw[3], raw[4], raw[5] if len(raw) > 5 else None  # noqa: PLR2004 - see `records`
    if type(name) is str and type(attributes) is dict and type(value) is float and (unit is None or type(unit) is str):
        return "value", _Value(segment, sequence, time, name, attributes, value, unit)
    return "value", _Value(segment, sequence, time, _name(raw), _map(raw[3]), _number(raw[4]), _text(raw, 5))


def _timing(raw: Sequence[Any], segment: int, sequence: int, time: int) -> _Made:
    return "timing", _Timing(segment, sequence, time, _name(raw), _map(raw[3]), raw[4] / 1e9)


def _event(raw: Sequence[Any], segment: int, sequence: int, time: int) -> _Made:
    return "event", _Event(segment, sequence, time, _name(raw), _map(raw[3]), _level(raw[4]), _text(raw, 5))


def _exception(raw: Sequence[Any], segment: int, sequence: int, time: int) -> _Made:
    name, message = _name(raw), _text(raw, 5)
    stack = raw[7] if len(raw) > 7 and isinstance(raw[7], list) else []  # noqa: PLR2004 - see `records`
    causes = raw[8] if len(raw) > 8 and isinstance(raw[8], list) else []  # noqa: PLR2004 - see `records`
    group = group_of(name, stack, causes, message)
    attributes, level = _map(raw[3]), _level(raw[4])
    row = _Exception(segment, sequence, time, name, attributes, level, message, _text(raw, 6), stack, causes, group)
    return "exception", row


def _installation(raw: Sequence[Any], segment: int, sequence: int, time: int) -> _Made:
    return "installation", _Row(segment, sequence, time, _name(raw), _map(raw[3]))


def _positional(raw: Sequence[Any], segment: int, sequence: int, time: int, schemas: Mapping[int, Schema]) -> _Made:
    schema = schemas.get(raw[2])
    if schema is None:
        return "other", _Other(segment, sequence, time, KIND_NAMES[Kind.POSITIONAL], list(raw[2:]))
    attributes = dict(zip(schema.fields, raw[3:], strict=False))
    if schema.kind == Kind.FEATURE:
        return "feature", _Row(segment, sequence, time, schema.name, attributes)
    if schema.kind == Kind.EVENT:
        return "event", _Event(segment, sequence, time, schema.name, attributes, None, None)
    fields = [schema.name, attributes]
    return "other", _Other(segment, sequence, time, KIND_NAMES.get(schema.kind, str(schema.kind)), fields)


_MAKERS: Final[dict[int, Callable[[Sequence[Any], int, int, int], _Made]]] = {
    Kind.FEATURE: _feature,
    Kind.VALUE: _value,
    Kind.TIMING: _timing,
    Kind.EVENT: _event,
    Kind.EXCEPTION: _exception,
    Kind.INSTALLATION: _installation,
}

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

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import compress, islice, zip_longest
from typing import Any, Final

from mailboat.protocol.errors import SegmentError
from mailboat.protocol.limits import KIB, MIB
from mailboat.protocol.records import KIND_NAMES, Kind, Schema
from mailboat.server.analytics_schema import ROWS
from mailboat.server.grouping import group_of
from mailboat.server.json_text import encode

MAX_LINE: Final = 8 * MIB
"""Bytes of one line: the loader's parser takes no more than 16 MiB. More rows go into several."""
MAX_ROW: Final = 64 * KIB
"""Bytes of a row, on average over those of a line: the engine brings 2048 rows into its memory at once. A row that is
longer by itself, with no short ones beside it, loses its attributes and the ends of its texts."""

_EARLIEST: Final = 0
_LATEST: Final = 253_402_300_799_000_000
"""The end of the year 9999: times outside are moved to the nearest bound, for no calendar takes them."""

_MOST_OF_BYTE: Final = 255

_COLUMNS: Final = {table: tuple(name for name in members if name != "s") for table, members in ROWS.items()}

Row = tuple[Any, ...]
"""The values of one row in the order of its table's members from ``q`` on: sequence number, time and so on."""

Columns = Sequence[Sequence[Any]]
"""Rows the other way round: all their sequence numbers, all their times and so on."""


def rows_of(
    records: Sequence[Sequence[Any]], first: int, clock: int, schemas: Mapping[int, Schema]
) -> list[tuple[str, Columns]]:
    """The rows of a block's raw records (`reader.raw_records`), each with its table; `first` is the first one's number.

    Declarations (SCHEMA) have no row. Raises `SegmentError` where the fields are not those of a record.
    """
    kinds: dict[Any, tuple[list[int], list[Sequence[Any]]]] = {}
    sequence = first
    try:
        for sequence, raw in enumerate(records, first):
            kind = raw[0]
            if kind not in kinds:
                kinds[kind] = [], []
            numbers, raws = kinds[kind]
            numbers.append(sequence)
            raws.append(raw)
    except (IndexError, TypeError) as error:
        raise SegmentError(f"record {sequence} has the wrong fields: {error!r}") from error
    made = []
    for kind, (numbers, raws) in kinds.items():
        columns = _in_bulk(kind, numbers, raws, clock)
        made += _one_by_one(numbers, raws, clock, schemas) if columns is None else [(_TABLES[kind], columns)]
    return made


def _in_bulk(kind: Any, numbers: list[int], raws: list[Sequence[Any]], clock: int) -> Columns | None:  # noqa: ANN401
    """The rows of records of one kind, column by column, which spares a call and a row for each. None where some
    record is not quite as agents make them.
    """
    fields = _FIELDS.get(kind)
    if fields is None:
        return None
    # No more of them than there are fields: one long record would have all others filled up to its length.
    found = list(islice(zip_longest(*raws), 2 + len(fields)))
    if len(found) < 2 + len(fields) or not _are(found[1], _WHOLE):
        return None
    _, times, *values = found
    if (min(times) + clock) // 1000 < _EARLIEST:  # the whole numbers of msgpack end long before `_LATEST`
        return None
    columns: list[Sequence[Any]] = [numbers, [(time + clock) // 1000 for time in times]]
    if not all(map(_are, values, fields)):
        return None
    columns += values
    if kind == Kind.TIMING:
        columns[-1] = [nanoseconds / 1e9 for nanoseconds in columns[-1]]
    elif kind == Kind.EVENT and not 0 <= min(columns[-2]) <= max(columns[-2]) <= _MOST_OF_BYTE:
        return None
    return columns


def _are(values: Iterable[object], types: frozenset[type]) -> bool:
    return types.issuperset(map(type, values))


def _one_by_one(
    numbers: Sequence[int], raws: Sequence[Sequence[Any]], clock: int, schemas: Mapping[int, Schema]
) -> list[tuple[str, Columns]]:
    """The rows of records that may be anything."""
    made: dict[str, list[Row]] = {}
    for sequence, raw in zip(numbers, raws, strict=True):
        try:
            kind = raw[0]
            time = min(max(int((raw[1] + clock) // 1000), _EARLIEST), _LATEST)
            if (maker := _MAKERS.get(kind)) is not None:
                table, make = maker
                values = make(raw)
            elif kind == Kind.POSITIONAL:
                table, values = _positional(raw, schemas)
            elif kind == Kind.SCHEMA:
                continue
            else:
                table, values = "other", (str(kind), list(raw[2:]))
        except (IndexError, TypeError, KeyError, ValueError, OverflowError) as error:
            raise SegmentError(f"record {sequence} has the wrong fields: {error!r}") from error
        made.setdefault(table, []).append((sequence, time, *values))
    return [(table, tuple(zip(*rows, strict=True))) for table, rows in made.items()]


def those(columns: Columns, wanted: Callable[[int], bool]) -> Columns:
    """The rows whose sequence numbers are `wanted`."""
    chosen = list(map(wanted, columns[0]))
    return [list(compress(column, chosen)) for column in columns]


def encode_rows(table: str, segment: int, columns: Columns) -> bytes:
    """The rows of the segment with this number in its batch as lines of JSON; there must be some."""
    line = encode({"s": segment, **dict(zip(_COLUMNS[table], columns, strict=True))})
    count = len(columns[0])
    if len(line) <= min(MAX_LINE, MAX_ROW * count):
        return line + b"\n"
    if count > 1:
        half = count // 2
        parts = [column[:half] for column in columns], [column[half:] for column in columns]
        return b"".join(encode_rows(table, segment, part) for part in parts)
    return encode_rows(table, segment, [(_cut(column[0]),) for column in columns])


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
    return min(max(value, 0), _MOST_OF_BYTE) if isinstance(value, int) else None


def _text(raw: Sequence[Any], at: int) -> str | None:
    value = raw[at] if len(raw) > at else None
    return value if value is None or isinstance(value, str) else str(value)


def _name(raw: Sequence[Any]) -> str:
    name = raw[2]
    return name if isinstance(name, str) else str(name)


def _feature(raw: Sequence[Any]) -> Row:
    return _name(raw), _map(raw[3])


def _value(raw: Sequence[Any]) -> Row:
    return _name(raw), _map(raw[3]), _number(raw[4]), _text(raw, 5)


def _timing(raw: Sequence[Any]) -> Row:
    return _name(raw), _map(raw[3]), raw[4] / 1e9


def _event(raw: Sequence[Any]) -> Row:
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

_WHOLE: Final[frozenset[type]] = frozenset((int,))
_NAMED: Final[tuple[frozenset[type], ...]] = (frozenset((str,)), frozenset((dict,)))
_MAYBE_TEXT: Final[frozenset[type]] = frozenset((str, type(None)))
_FIELDS: Final[dict[int, tuple[frozenset[type], ...]]] = {
    Kind.FEATURE: _NAMED,
    Kind.VALUE: (*_NAMED, frozenset((float,)), _MAYBE_TEXT),
    Kind.TIMING: (*_NAMED, _WHOLE),
    Kind.EVENT: (*_NAMED, _WHOLE, _MAYBE_TEXT),
    Kind.INSTALLATION: _NAMED,
}
"""The types that the fields after kind and time have in nearly all records."""

_TABLES: Final = {kind: table for kind, (table, _) in _MAKERS.items()}

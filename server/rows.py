"""From the records of a block to rows of the analytics tables, column by column in lines of JSON.

One line holds rows of one block for one table (`analytics_schema.ROWS`): the loader reads a file of them per table in
less than half of the time that a line for each row takes. Its members have names of one letter. The number of the
segment in its batch is ``s``, the number from which its rows are numbered ``b``, the time from which their times count
``o``, nanoseconds since the epoch. Each other member is a list with one value a row::

    q  sequence number, from ``b`` on      t  time, nanoseconds from ``o`` on      n  name (type, id)
    v  value (seconds)      u  unit      l  level      m  message      c  context      k  stack (kind)
    x  causes      g  group      f  fields

Attributes (properties) go beside the line, as a text with the JSON of each row on a line of its own: what the engine
need not understand it only copies, and a text within JSON would have to be written and read with escapes.

Records as agents make them are read straight into what their kind has (`_Feature` and so on), which checks the types on
the way. Others may be anything, and are looked at one by one.

Bytes become base64 text here and numbers that are not finite become null: rows are for questions about many records.
The records themselves are given back exactly from their segments (`playback`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from operator import attrgetter
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta, Struct

from mailboat.protocol.errors import SegmentError
from mailboat.protocol.limits import KIB, MIB
from mailboat.protocol.records import KIND_NAMES, Kind, Schema
from mailboat.server.analytics_schema import LINES, ROWS, SCALARS
from mailboat.server.grouping import group_of
from mailboat.server.json_text import encode, encode_lines

MAX_LINE: Final = 8 * MIB
"""Bytes of one line: the loader's parser takes no more than 16 MiB. More rows go into several."""
MAX_ROW: Final = 64 * KIB
"""Bytes of a row, on average over those of a line: the engine brings 2048 rows into its memory at once. A row that is
longer by itself, with no short ones beside it, loses its attributes and the ends of its texts."""

_EARLIEST: Final = 0
_LATEST: Final = 2**63 - 1
"""In the year 2262, in nanoseconds: times outside are moved to the nearest bound."""

_MOST_OF_BYTE: Final = 255

_COLUMNS: Final = {table: tuple(name for name in members if name not in SCALARS) for table, members in ROWS.items()}
_TEXTS: Final = {table: tuple(name for name in members if members[name] == LINES) for table, members in ROWS.items()}
"""The columns that go beside the line: one, or none."""

Row = tuple[Any, ...]
"""The values of one row in the order of its table's members from ``q`` on: sequence number, time and so on."""

Columns = Sequence[Sequence[Any]]
"""Rows the other way round: all their sequence numbers, all their times and so on."""


class Rows(NamedTuple):
    """Rows for one table, numbered from `first` on; their times count from `origin` on."""

    table: str
    first: int
    origin: int
    columns: Columns


class Lines(NamedTuple):
    """Rows as the loader reads them: a line of JSON without its end, and the text that goes beside it."""

    line: bytes
    text: bytes


# -- records as agents make them -----------------------------------------------------------------------------------

_SAFE: Final = 2**62 - 1
"""Two times within this, added, are a number of 64 bits, in the analytics engine, too."""
_Time = Annotated[int, Meta(ge=-_SAFE, le=_SAFE)]
_Level = Annotated[int, Meta(ge=0, le=_MOST_OF_BYTE)]


class _Feature(Struct, array_like=True, tag=int(Kind.FEATURE), gc=False):
    t: _Time
    n: str
    a: dict[str, Any]


class _Installation(_Feature, tag=int(Kind.INSTALLATION), gc=False):
    pass


class _Value(_Feature, tag=int(Kind.VALUE), gc=False):
    v: float
    u: str | None = None


class _Timing(_Feature, tag=int(Kind.TIMING), gc=False):
    v: int


class _Event(_Feature, tag=int(Kind.EVENT), gc=False):
    l: _Level  # noqa: E741 - the name of its column
    m: str | None = None


class _Exception(_Event, tag=int(Kind.EXCEPTION), gc=False):
    c: str | None = None
    k: list[Any] | None = None
    x: list[Any] | None = None


_Plain = _Feature | _Installation | _Value | _Timing | _Event | _Exception
_SHAPES: Final[dict[int, type[_Feature]]] = {
    Kind.FEATURE: _Feature,
    Kind.INSTALLATION: _Installation,
    Kind.VALUE: _Value,
    Kind.TIMING: _Timing,
    Kind.EVENT: _Event,
    Kind.EXCEPTION: _Exception,
}
_KINDS: Final = {shape: KIND_NAMES[kind] for kind, shape in _SHAPES.items()}
_plain: Final = msgspec.msgpack.Decoder(list[_Plain])


def rows_at_once(packed: bytes, first: int, clock: int) -> list[Rows] | None:
    """The rows of a block's records, packed as one array; `first` is the first one's number. None where some record
    is not quite as agents make them.
    """
    if not -_SAFE <= clock <= _SAFE:
        return None
    try:
        records = _plain.decode(packed)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    kinds: defaultdict[type[_Feature], list[int]] = defaultdict(list)
    for at, shape in enumerate(map(type, records)):
        kinds[shape].append(at)
    return [_in_bulk(shape, first, places, [records[at] for at in places], clock) for shape, places in kinds.items()]


def _in_bulk(shape: type[_Feature], first: int, numbers: list[int], records: Sequence[Any], clock: int) -> Rows:
    """The rows of records of one shape, column by column, which spares a call and a row for each."""
    columns = [
        numbers,
        [record.t for record in records],
        [record.n for record in records],
        [record.a for record in records],
    ]
    columns += [list(map(attrgetter(name), records)) for name in shape.__struct_fields__[3:]]
    if shape is _Timing:
        columns[-1] = [nanoseconds / 1e9 for nanoseconds in columns[-1]]
    elif shape is _Exception:
        columns[-2:] = [stack or [] for stack in columns[-2]], [causes or [] for causes in columns[-1]]
        _, _, names, _, _, messages, _, stacks, causes = columns
        columns.append(list(map(group_of, names, stacks, causes, messages)))
    return Rows(_KINDS[shape], first, clock, columns)


# -- records that may be anything ----------------------------------------------------------------------------------


def rows_of(records: Sequence[Sequence[Any]], first: int, clock: int, schemas: Mapping[int, Schema]) -> list[Rows]:
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
    made: list[Rows] = []
    for kind, (numbers, raws) in kinds.items():
        plain = _as_plain(kind, numbers, raws, clock)
        made += _one_by_one(numbers, raws, clock, schemas) if plain is None else [plain]
    return made


def _as_plain(kind: Any, numbers: list[int], raws: list[Sequence[Any]], clock: int) -> Rows | None:  # noqa: ANN401
    """The rows of records of one kind, where they are as agents make them in spite of the others."""
    shape = _SHAPES.get(kind)
    if shape is None or not -_SAFE <= clock <= _SAFE:
        return None
    try:
        return _in_bulk(shape, 0, numbers, msgspec.convert(raws, list[shape]), clock)  # type: ignore[valid-type]
    except (msgspec.MsgspecError, RecursionError):
        return None


def _one_by_one(
    numbers: Sequence[int], raws: Sequence[Sequence[Any]], clock: int, schemas: Mapping[int, Schema]
) -> list[Rows]:
    """The rows of records that may be anything."""
    made: dict[str, list[Row]] = {}
    for sequence, raw in zip(numbers, raws, strict=True):
        try:
            kind = raw[0]
            time = min(max(int(raw[1] + clock), _EARLIEST), _LATEST)
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
    return [Rows(table, 0, 0, tuple(zip(*rows, strict=True))) for table, rows in made.items()]


def those(rows: Rows, wanted: Callable[[int], bool]) -> Rows:
    """The rows whose sequence numbers are `wanted`."""
    chosen = [wanted(rows.first + number) for number in rows.columns[0]]
    return rows._replace(columns=[list(compress(column, chosen)) for column in rows.columns])


def encode_rows(rows: Rows, segment: int) -> list[Lines]:
    """The rows of the segment with this number in its batch; there must be some."""
    table, first, origin, columns = rows
    members = dict(zip(_COLUMNS[table], columns, strict=True))
    text = b"".join(encode_lines(members.pop(name)) for name in _TEXTS[table])
    line, count = encode({"s": segment, "b": first, "o": origin, **members}), len(columns[0])
    if len(line) <= MAX_LINE and len(line) + len(text) <= MAX_ROW * count:
        return [Lines(line, text)]
    if count > 1:
        half = count // 2
        parts = [column[:half] for column in columns], [column[half:] for column in columns]
        return [each for part in parts for each in encode_rows(Rows(table, first, origin, part), segment)]
    return encode_rows(Rows(table, first, origin, [(_cut(column[0]),) for column in columns]), segment)


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

"""Records: what an application can say, and how it is laid out in msgpack.

Every record is one msgpack array that begins with ``[kind, time, name, attributes]`` and goes on by kind::

    FEATURE       [1, time, name, attributes]
    VALUE         [2, time, name, attributes, value, unit]
    TIMING        [3, time, name, attributes, duration]
    EVENT         [4, time, name, attributes, level, message]
    EXCEPTION     [5, time, type, attributes, level, message, context, stack, causes]
    INSTALLATION  [6, time, id, properties]
    SCHEMA        [7, time, name, fields, number, kind]
    POSITIONAL    [8, time, number, value, value, ...]

* *time* is nanoseconds of the monotonic clock of the recording machine; the block that holds the record knows how far
  the wall clock was from it (see `segment`).
* A date with a time zone, anywhere in the attributes, is a timestamp of msgpack (the extension -1); it is read back as
  text by ISO 8601, in UTC, like all other dates.
* *duration* is nanoseconds; *unit*, *message* and *context* are text or nil; *level* is a `Level`.
* *stack* is an array of ``[file, line, function]``, outermost call first; *causes* an array of
  ``[relation, type, message, stack]`` with the relation ``cause`` or ``context`` (PEP 3134).
* SCHEMA declares the field names of an emitter once; POSITIONAL records of that number carry the values alone and are
  read back as records of the declared kind. A declaration is nobody's record: it is not counted as one and has no
  sequence number.

Evolution: fields are only ever added at the end. A reader ignores fields it does not know, takes the default for
those that are missing, and hands out a kind it does not know with its raw fields, never failing over it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import asdict

from mailboat.protocol.errors import SegmentError


class Kind(IntEnum):
    """What a record is about."""

    FEATURE = 1
    VALUE = 2
    TIMING = 3
    EVENT = 4
    EXCEPTION = 5
    INSTALLATION = 6
    SCHEMA = 7
    POSITIONAL = 8


class Level(IntEnum):
    """How serious an event or exception is, with the numbers of the standard library's logging."""

    DEBUG = 10
    INFO = 20
    WARNING = 30
    ERROR = 40
    CRITICAL = 50


KIND_NAMES: Final = {kind.value: kind.name.lower() for kind in Kind}

COUNTED_KINDS: Final = (Kind.FEATURE, Kind.VALUE, Kind.TIMING, Kind.EVENT, Kind.EXCEPTION, Kind.INSTALLATION)

COUNTERS: Final = (
    *(kind.name.lower() for kind in COUNTED_KINDS),
    *(level.name.lower() for level in Level),
    "schema",
)
"""What is counted of a block, a segment and a session, in this order: records by kind (positional ones under the kind
they were declared with), then events and exceptions by level, then declarations.
"""

KIND_COUNTERS: Final = len(COUNTED_KINDS)
"""The first so many counters are by kind and add up to the number of records."""

SCHEMA_COUNTER: Final = len(COUNTERS) - 1

LEVELS: Final = tuple(Level)

LEVELLED_KINDS: Final = (Kind.EVENT, Kind.EXCEPTION)


def counter(kind: int) -> int:
    """The index in `COUNTERS` under which a record of `kind` is counted; `SegmentError` for a kind that is unknown."""
    if kind == Kind.SCHEMA:
        return SCHEMA_COUNTER
    if kind not in COUNTED_KINDS:
        raise SegmentError(f"a record of the unknown kind {kind!r} cannot be counted")
    return kind - 1


def level_counter(level: int) -> int:
    """The index in `COUNTERS` under which a record of `level` is counted: the highest level that it reaches."""
    return KIND_COUNTERS + max(bisect_right(LEVELS, level), 1) - 1


def records_counted(counts: Sequence[int]) -> int:
    """The number of records that `counts` (in the order of `COUNTERS`) stands for."""
    return sum(counts[:KIND_COUNTERS])


def count_raw(raw: Sequence[Any], counts: list[int], schemas: Mapping[int, Schema]) -> None:
    """Add one record, as unpacked, to `counts`; used where no counter was kept (recovery).

    Whatever it holds, it is counted as one record (or declaration), under an event where nothing better is known: it
    has its sequence number.
    """
    kind = raw[0]
    if kind == Kind.SCHEMA:
        counts[SCHEMA_COUNTER] += 1
        return
    if kind == Kind.POSITIONAL:  # has no level, whatever its kind
        schema = schemas.get(raw[2]) if isinstance(raw[2], int) else None
        kind = schema.kind if schema else Kind.FEATURE
    elif kind in LEVELLED_KINDS and isinstance(_at(raw, 4), int):
        counts[level_counter(raw[4])] += 1
    counts[counter(kind if kind in COUNTED_KINDS else Kind.EVENT)] += 1


class Schema(Struct, frozen=True):
    """The declaration behind an emitter: `kind` and `name` of its records, and what their values are called."""

    number: int
    kind: int
    name: str
    fields: tuple[str, ...]


class Record(Struct, frozen=True):
    """One record as read back.

    `sequence` counts the session's records from zero; `time` is seconds since the Unix epoch by the recording machine's
    clock; `duration` is seconds. A kind that this version does not know has `kind` as its number in text, and its
    fields in `rest`.
    """

    sequence: int
    time: float
    kind: str
    name: str
    attributes: Mapping[str, Any]
    value: float | int | None = None
    unit: str | None = None
    duration: float | None = None
    level: int | None = None
    message: str | None = None
    context: str | None = None
    stack: Sequence[Sequence[Any]] = ()
    causes: Sequence[Sequence[Any]] = ()
    rest: Sequence[Any] = ()

    def to_dict(self) -> dict[str, Any]:
        """The record as a plain map without the fields that are empty; always with sequence, time, kind, name,
        attributes.
        """
        always = {"sequence", "time", "kind", "name", "attributes"}
        return {key: value for key, value in asdict(self).items() if key in always or value not in (None, (), [])}


def raw_of(schema: Schema) -> tuple[Any, ...]:
    """The raw SCHEMA record that says a declaration again, at no time of its own."""
    return Kind.SCHEMA, 0, schema.name, list(schema.fields), schema.number, schema.kind


def schema_of(raw: Sequence[Any]) -> Schema:
    """The declaration in a raw SCHEMA record; `SegmentError` if it is malformed."""
    try:
        _, _, name, fields, number, kind = raw[:6]
        return Schema(int(number), int(kind), str(name), tuple(map(str, fields)))
    except (ValueError, TypeError, OverflowError) as error:
        raise SegmentError(f"a schema record is malformed: {error}") from error


def decode(raw: Sequence[Any], sequence: int, clock: int, schemas: Mapping[int, Schema]) -> Record:
    """The raw fields of one record as a `Record`.

    `clock` is what to add to the record's time to have nanoseconds since the Unix epoch. Raises `SegmentError` when the
    fields are not those of a record.
    """
    try:
        kind, time = raw[0], (raw[1] + clock) / 1e9
        if kind == Kind.POSITIONAL:
            return _decode_positional(raw, sequence, time, schemas)
        if kind not in KIND_NAMES:
            return Record(sequence, time, str(kind), "", {}, rest=tuple(raw[2:]))
        return Record(sequence, time, KIND_NAMES[kind], str(raw[2]), *_DECODERS[kind](raw))
    except (IndexError, TypeError, KeyError, ValueError, OverflowError) as error:
        raise SegmentError(f"record {sequence} has the wrong fields: {error!r}") from error


def _decode_positional(raw: Sequence[Any], sequence: int, time: float, schemas: Mapping[int, Schema]) -> Record:
    number, values = raw[2], raw[3:]
    schema = schemas.get(number)
    if schema is None:
        return Record(sequence, time, KIND_NAMES[Kind.POSITIONAL], str(number), {}, rest=tuple(values))
    attributes = dict(zip(schema.fields, values, strict=False))
    return Record(sequence, time, KIND_NAMES.get(schema.kind, str(schema.kind)), schema.name, attributes)


def _at(raw: Sequence[Any], index: int) -> Any:  # noqa: ANN401 - a field of a record may hold anything
    return raw[index] if len(raw) > index else None


def _map(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"attributes are a {type(value).__name__}, not a map")
    return value


def _feature(raw: Sequence[Any]) -> tuple[Any, ...]:
    return (_map(raw[3]),)


def _value(raw: Sequence[Any]) -> tuple[Any, ...]:
    return (_map(raw[3]), raw[4], _at(raw, 5))


def _timing(raw: Sequence[Any]) -> tuple[Any, ...]:
    return (_map(raw[3]), None, None, raw[4] / 1e9)


def _event(raw: Sequence[Any]) -> tuple[Any, ...]:
    return (_map(raw[3]), None, None, None, raw[4], _at(raw, 5))


def _exception(raw: Sequence[Any]) -> tuple[Any, ...]:
    stack, causes = _at(raw, 7) or (), _at(raw, 8) or ()
    return (_map(raw[3]), None, None, None, raw[4], _at(raw, 5), _at(raw, 6), stack, causes)


def _schema(raw: Sequence[Any]) -> tuple[Any, ...]:
    return ({"fields": list(raw[3]), "number": raw[4], "kind": KIND_NAMES.get(raw[5], str(raw[5]))},)


_DECODERS: Final = {
    Kind.FEATURE: _feature,
    Kind.VALUE: _value,
    Kind.TIMING: _timing,
    Kind.EVENT: _event,
    Kind.EXCEPTION: _exception,
    Kind.INSTALLATION: _feature,
    Kind.SCHEMA: _schema,
}

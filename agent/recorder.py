"""The recording calls of one session: pack a record, put it in the journal, return.

Each call is a closure made by `hotpaths`. What it does: pack a tuple, copy the bytes into the active half of the
journal with one call, and store where they end. That is a memory copy and no system call, and once the call returns the
kernel has the record.

Anything out of the ordinary lands in `intake`, which may take its time: a value or a name has to be looked at first,
the record does not pack, the half is full, nothing is being recorded.
"""

from __future__ import annotations

import operator
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from mailboat.agent.hotpaths import attributed, declaration, emitter, feature
from mailboat.agent.intake import Intake, Lost
from mailboat.agent.journal import Half, Journal
from mailboat.agent.scrub import kept_properties
from mailboat.agent.values import exception_fields, said_by, text_of
from mailboat.protocol.limits import MAX_PROPERTY_TEXT, MAX_SCHEMA_FIELDS, MAX_SCHEMAS
from mailboat.protocol.records import (
    COUNTED_KINDS,
    COUNTERS,
    KIND_COUNTERS,
    LEVELS,
    SCHEMA_COUNTER,
    Kind,
    Level,
    Schema,
    counter,
    level_counter,
    records_counted,
)
from mailboat.protocol.summary import cut_text

OnUrgent = Callable[..., None]

_HIGHEST_LEVEL: Final = 2**31


class Recorder(Intake):
    """The recording calls of one session. Plain functions: any thread, never waiting for the disk, never raising.

    `feature` and its like are attributes that hold closures. `on_urgent` is called after a record of level error and
    up, with its fields but for the time; see `Intake` for the rest.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        on_full: Callable[[Half], None],
        on_urgent: OnUrgent,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        super().__init__(journal, on_full=on_full, clock=clock)
        self.installation: dict[str, Any] | None = None
        self._forgone = [0] * len(COUNTERS)
        self._on_urgent = on_urgent
        self._unsaid: list[Schema] = []
        self._emitters: dict[tuple[str, tuple[str, ...], Kind], Callable[..., None]] = {}
        around, by_level = self._around, [level_counter(level) for level in LEVELS]
        self.feature = self._add(feature(around, (counter(Kind.FEATURE),)))
        self._value = self._add(attributed(around, (counter(Kind.VALUE),), Kind.VALUE, plain=True))
        self._timing = self._add(attributed(around, (counter(Kind.TIMING),), Kind.TIMING, plain=True))
        self._installation = self._add(attributed(around, (counter(Kind.INSTALLATION),), Kind.INSTALLATION))
        self._events, self._exceptions = (
            [self._add(attributed(around, (counter(kind), level), kind)) for level in by_level]
            for kind in (Kind.EVENT, Kind.EXCEPTION)
        )
        self._schema = declaration(around, (SCHEMA_COUNTER,))
        self._add(self._schema)

    # -- the calls that are not closures -------------------------------------------------------------------------

    def value(self, name: str, number: float, /, unit: str | None = None, **attributes: object) -> None:
        """Record a number to be aggregated."""
        self.value_of(name, number, unit, attributes)

    def value_of(self, name: str, number: float, unit: str | None, attributes: dict[str, Any]) -> None:
        """`value`, with the attributes as a map, whatever their names."""
        self._value(name, attributes, number, unit)

    def timing(self, name: str, duration: int, attributes: dict[str, Any]) -> None:
        """Record how long something took, in nanoseconds."""
        self._timing(name, attributes, duration)

    def event(self, name: str, /, level: int = Level.INFO, message: str | None = None, **attributes: object) -> None:
        """Record anything else."""
        self.event_of(name, level, message, attributes)

    def event_of(self, name: str, level: int, message: str | None, attributes: dict[str, Any]) -> None:
        """`event`, with the attributes as a map, whatever their names."""
        number, text = _level(level), _text(message)
        self._events[level_counter(number) - KIND_COUNTERS](name, attributes, number, text)
        if number >= Level.ERROR:
            self._alarm(Kind.EVENT, name, attributes, number, text)

    def exception(
        self, error: BaseException | None, context: str | None, attributes: dict[str, Any], level: int = Level.ERROR
    ) -> None:
        """Record an exception: `error`, or the one being handled; nothing if there is none."""
        error = error if error is not None else sys.exc_info()[1]
        if error is None:
            return
        try:
            name, message, stack, causes = exception_fields(error)
        except Exception:  # noqa: BLE001 - an exception class of the host's may do anything; counted
            self.faults += 1
            name, message, stack, causes = type(error).__name__, text_of(error), [], []
        number = _level(level)
        call = self._exceptions[level_counter(number) - KIND_COUNTERS]
        call(name, attributes, number, message, _text(context), stack, causes)
        if number >= Level.ERROR:
            self._alarm(Kind.EXCEPTION, name, attributes, number, message, _text(context), stack, causes)

    def set_installation(self, installation_id: str, properties: dict[str, Any]) -> None:
        """Record which installation this is."""
        self.installation = {"id": cut_text(installation_id), "properties": kept_properties(properties)}
        self._installation(text_of(installation_id), properties)

    def emitter(self, name: str, fields: Sequence[str], kind: Kind = Kind.FEATURE) -> Callable[..., None]:
        """A function that records `fields` by position under `name`; see `hotpaths.emitter`. The same one for the same
        declaration.

        Raises `ValueError` for a declaration that cannot be: a mistake in the application's source.
        """
        called = declaration_of(name, fields, kind)
        with self.lock:
            known = self._emitters.get(called)
            if known is None:
                known = self._emitters[called] = self._declared(*called)
            return known

    def _declared(self, name: str, fields: tuple[str, ...], kind: Kind) -> Callable[..., None]:
        if len(self.schemas) >= MAX_SCHEMAS:
            raise one_too_many(name)
        schema = Schema(len(self.schemas), int(kind), name, fields)
        path = emitter(self._around, (counter(kind),), schema)
        self.schemas.append(schema)
        self._declare(schema)
        return self._add(path)

    def _declare(self, schema: Schema) -> None:
        said = self._schema.count
        self._schema.call(schema.name, list(schema.fields), schema.number, schema.kind)
        if self._schema.count == said and self.recording:
            self._unsaid.append(schema)

    def begin_anew(
        self, journal: Journal, *, on_full: Callable[[Half], None], on_urgent: OnUrgent | None = None
    ) -> None:
        """See `Intake`. `on_urgent` takes the place of the one before."""
        super().begin_anew(journal, on_full=on_full)
        self._on_urgent = on_urgent if on_urgent is not None else self._on_urgent
        self._forgone = [0] * len(COUNTERS)
        self._unsaid.clear()
        for schema in self.schemas:
            self._declare(schema)
        if self.installation is not None:
            self._installation(self.installation["id"], self.installation["properties"])

    # -- what was taken, and is not to be had any more -------------------------------------------------------------

    def forgo(self, counts: Sequence[int], reason: Lost) -> None:
        """Count records as lost that were taken: `counts` of them, in the order of `records.COUNTERS`. Declarations
        among them are said again, in the segments that follow.
        """
        lost = records_counted(counts)
        if lost:
            with self.lock:
                self._forgone = [*map(operator.add, self._forgone, counts[:SCHEMA_COUNTER]), 0]
                self._lose(reason, lost)

    @property
    def kept_counts(self) -> list[int]:
        """`counts` without what was taken and is lost."""
        with self.lock:
            return list(map(operator.sub, self.counts, self._forgone))

    @property
    def kept(self) -> int:
        """Records taken so far that are not lost."""
        return records_counted(self.kept_counts)

    def _catch_up(self) -> None:
        super()._catch_up()
        unsaid, self._unsaid = self._unsaid, []
        for schema in unsaid:
            self._declare(schema)

    def _alarm(self, *fields: object) -> None:
        try:
            self._on_urgent(*fields)
        except Exception:  # noqa: BLE001 - whatever it is, it is not the host's; counted
            self.faults += 1


def one_too_many(name: str) -> ValueError:
    """For an emitter beyond `MAX_SCHEMAS`."""
    return ValueError(f"emitter {name!r} is one too many, {MAX_SCHEMAS} are taken: are names made up as it runs?")


def declaration_of(name: str, fields: Sequence[str], kind: Kind) -> tuple[str, tuple[str, ...], Kind]:
    """What an emitter declares, as it is recorded. Raises `ValueError` for what cannot be."""
    if len(fields) > MAX_SCHEMA_FIELDS:
        raise ValueError(f"emitter {name!r} declares {len(fields)} fields, at most {MAX_SCHEMA_FIELDS} are taken")
    if kind not in COUNTED_KINDS:
        raise ValueError(f"emitter {name!r} is of kind {kind!r}, which is none that can be recorded by position")
    return text_of(name, MAX_PROPERTY_TEXT), tuple(text_of(each, MAX_PROPERTY_TEXT) for each in fields), Kind(kind)


def _level(level: Any) -> int:  # noqa: ANN401 - a value of the host's
    """The number of a level, by number or name; INFO for what is neither. Only its type is asked what it is: what a
    value says of itself may be code of the host's.
    """
    kind = type(level)
    if issubclass(kind, int):
        return max(0, min(int.__index__(level), _HIGHEST_LEVEL))
    named = {known.name: known for known in Level}
    return named.get(str.upper(level), Level.INFO) if issubclass(kind, str) else Level.INFO


def _text(value: Any) -> str | None:  # noqa: ANN401 - a value of the host's
    return value if value is None or issubclass(type(value), str) else said_by(value)

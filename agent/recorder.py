"""The hot path: pack a record, put it in the journal, return.

Each recording call is a closure made by a small factory in `hotpaths`. What it does, under one lock: pack a tuple
with a packer that is used again and again, copy the bytes into the active half with one call, store where they end.
That is a memory copy and no system call, and once the call returns the kernel has the record.

Anything out of the ordinary raises inside the closure and lands in `Recorder._slow`, which may take its time: the
half is full, a value does not pack, the record is too large, nothing is being recorded. The ordinary path pays
nothing for it.

Re-entrance (a signal handler or a finalizer that records while its own thread is recording) is harmless: the lock
lets the thread in again, each step is one indivisible call, and where a record ends is read back from the mapping,
not computed. Only the counts by kind may then be credited to the wrong half, so a half that saw it is counted anew
from its content.
"""

from __future__ import annotations

import inspect
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Final

import msgpack

from mailboat.agent.hotpaths import HotPath, Surroundings, emitter, feature, plain
from mailboat.agent.journal import Half, Journal
from mailboat.agent.values import exception_fields, packable, shrink
from mailboat.protocol.limits import MAX_RECORD, MAX_SCHEMA_FIELDS, PACE
from mailboat.protocol.reader import unpack
from mailboat.protocol.records import (
    COUNTERS,
    KIND_COUNTERS,
    SCHEMA_COUNTER,
    Kind,
    Level,
    Schema,
    count_raw,
    counter,
    level_counter,
    records_counted,
)

_END: Final = 4
_PLAIN: Final = (Kind.VALUE, Kind.TIMING, Kind.EVENT, Kind.EXCEPTION, Kind.INSTALLATION, Kind.SCHEMA)


class Lost(Enum):
    """Why a record was not kept; each is counted."""

    FULL = "journal_full"
    """Neither the disk nor the memory set aside for it could take more."""
    UNPACKABLE = "unpackable"
    """Its values could not be turned into text either."""
    FORKED = "forked"
    """It was made in a forked child, which has no session of its own."""
    INTERNAL = "internal"
    """A fault of mailboat's own, which must not become the host's."""


class Recorder:
    """The recording calls of one session. Plain functions: any thread, never waiting for the disk, never raising.

    `feature`, `value` and the rest are attributes that hold closures. `on_full` is called (under the lock, so it must
    be quick) when a half was closed; `on_urgent` after a record of level error and up.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        on_full: Callable[[Half], None],
        on_urgent: Callable[[], None],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.journal = journal
        self.lock = threading.RLock()
        self.lost: Counter[str] = Counter()
        self.recording = True
        self.schemas: list[Schema] = []
        self.installation: dict[str, Any] | None = None
        self._on_full, self._on_urgent = on_full, on_urgent
        self._total = [0] * len(COUNTERS)
        self._levels = [0] * len(Level)
        self._irregular = False
        self._freed = threading.Event()
        pack = msgpack.Packer(use_bin_type=True).pack
        self._around = Surroundings(pack, clock, self.lock, self._slow, self._torn)
        self._paths = [feature(self._around), *(plain(kind, self._around) for kind in _PLAIN)]
        self.feature, self._value, self._timing, self._event, self._exception, self._installation, self._schema = (
            path.call for path in self._paths
        )
        self._bind()

    # -- the calls that are not closures -------------------------------------------------------------------------

    def value(self, name: str, number: float, /, unit: str | None = None, **attributes: object) -> None:
        """Record a number to be aggregated."""
        self._value(name, attributes, number, unit)

    def timing(self, name: str, duration: int, attributes: dict[str, Any]) -> None:
        """Record how long something took, in nanoseconds."""
        self._timing(name, attributes, duration)

    def event(self, name: str, /, level: int = Level.INFO, message: str | None = None, **attributes: object) -> None:
        """Record anything else."""
        self._event(name, attributes, int(level), message)
        self._at_level(level)

    def exception(
        self, error: BaseException | None, context: str | None, attributes: dict[str, Any], level: int = Level.ERROR
    ) -> None:
        """Record an exception: `error`, or the one being handled; nothing if there is none."""
        error = error if error is not None else sys.exc_info()[1]
        if error is None:
            return
        name, message, stack, causes = exception_fields(error)
        self._exception(name, attributes, int(level), message, context, stack, causes)
        self._at_level(level)

    def set_installation(self, installation_id: str, properties: dict[str, Any]) -> None:
        """Record which installation this is."""
        self.installation = {"id": str(installation_id), "properties": packable(properties)}
        self._installation(str(installation_id), properties)

    def emitter(self, name: str, fields: Sequence[str], kind: Kind = Kind.FEATURE) -> Callable[..., None]:
        """A function that records `fields` by position under `name`; see `hotpaths.emitter`."""
        if len(fields) > MAX_SCHEMA_FIELDS:
            raise ValueError(f"emitter {name!r} declares {len(fields)} fields, at most {MAX_SCHEMA_FIELDS} are taken")
        with self.lock:
            schema = Schema(len(self.schemas), kind, name, tuple(fields))
            self.schemas.append(schema)
            path = emitter(schema, self._around)
            self._schema(name, list(fields), schema.number, int(kind))
            self._paths.append(path)
            self._bind_one(path)
        return path.call

    def _at_level(self, level: int) -> None:
        with self.lock:
            self._levels[level_counter(level) - KIND_COUNTERS] += 1
        if level >= Level.ERROR:
            self._on_urgent()

    # -- counts --------------------------------------------------------------------------------------------------

    @property
    def recorded(self) -> int:
        """Records taken so far."""
        with self.lock:
            return records_counted(self._total) + records_counted(self._counts_now())

    @property
    def counts(self) -> list[int]:
        """Records so far in the order of `records.COUNTERS`."""
        with self.lock:
            return [total + now for total, now in zip(self._total, self._counts_now(), strict=True)]

    def _counts_now(self) -> list[int]:
        counts = [0] * len(COUNTERS)
        for path in self._paths:
            counts[counter(path.kind)] += path.count()
        counts[KIND_COUNTERS:SCHEMA_COUNTER] = self._levels
        return counts

    # -- halves --------------------------------------------------------------------------------------------------

    def turn(self) -> bool:
        """Close the active half, if it holds anything, and let another take over.

        Returns False when no other half can be had; the active one goes on then.
        """
        with self.lock:
            active = self.journal.active
            return not active.words[_END] or self._turn(0)

    def _turn(self, needed: int) -> bool:
        counts = self._counts_now()
        following = records_counted(self._total) + records_counted(counts)
        closed = self.journal.advance(needed, following)
        if closed is None:
            return False
        self._hand_over(closed, counts)
        self._bind()
        return True

    def _hand_over(self, closed: Half, counts: list[int]) -> None:
        """Give a closed half to the writer, with its records counted."""
        nested = self._nested()
        if self._irregular or nested:
            counts = self._count_anew(closed)
            if self.journal.active is not closed:
                self.journal.restart(closed.first + records_counted(counts))
        self._irregular = nested
        closed.counts = counts
        self._total = [total + now for total, now in zip(self._total, counts, strict=True)]
        self._levels = [0] * len(Level)
        if closed.end:
            self._on_full(closed)
        else:
            self.journal.release(closed)

    def _count_anew(self, half: Half) -> list[int]:
        counts = [0] * len(COUNTERS)
        with half.content() as content:
            schemas = {schema.number: schema for schema in self.schemas}
            for raw in unpack(bytes(content)):
                count_raw(raw, counts, schemas)
        return counts

    def _bind(self) -> None:
        for path in self._paths:
            self._bind_one(path)

    def _bind_one(self, path: HotPath) -> None:
        active = self.journal.active
        path.bind(active.memory.write, active.memory.tell, active.words)

    def _nested(self) -> bool:
        """Whether this thread is within more than one recording call."""
        calls = {path.code for path in self._paths}
        depth, frame = 0, inspect.currentframe()
        while frame is not None:
            depth += frame.f_code in calls
            frame = frame.f_back
        return depth > 1

    # -- out of the ordinary -------------------------------------------------------------------------------------

    def _slow(self, fields: Sequence[Any]) -> bool:
        """Record `fields` though something was out of the ordinary. Called under the lock; True if the record was
        taken.
        """
        if not self.recording:
            return False
        try:
            return self._keep(self._pack_any(fields))
        except Exception:  # noqa: BLE001 - recording never raises; counted, and seen in the agent's status
            self.lost[Lost.INTERNAL.value] += 1
            return False

    def _keep(self, packed: bytes | None) -> bool:
        if packed is None:
            self.lost[Lost.UNPACKABLE.value] += 1
            return False
        active = self.journal.active
        if len(packed) > active.size - active.memory.tell() and not self._make_room(len(packed)):
            self.lost[Lost.FULL.value] += 1
            return False
        active = self.journal.active
        active.memory.write(packed)
        active.words[_END] = active.memory.tell()
        return True

    def _pack_any(self, fields: Sequence[Any]) -> bytes | None:
        try:
            packed = msgpack.packb(fields)
        except (TypeError, ValueError, OverflowError, RecursionError):
            try:
                fields = [*fields[:2], *map(packable, fields[2:])]
                packed = msgpack.packb(fields)
            except Exception:  # noqa: BLE001 - the host's own types may raise anything; counted by the caller
                return None
        if len(packed) > MAX_RECORD:
            packed = msgpack.packb(shrink(fields, len(packed)))
        return bytes(packed)

    def _make_room(self, needed: int) -> bool:
        if self._turn(needed):
            return True
        if self.journal.refused is not None:
            return False
        # Too far ahead of the writer: give it the processor, once, for a time that no event loop minds.
        self._freed.clear()
        self.lock.release()
        try:
            self._freed.wait(PACE)
        finally:
            self.lock.acquire()
        return self._turn(needed)

    def freed(self) -> None:
        """The writer has taken a half off the journal."""
        self._freed.set()

    def _torn(self) -> None:
        """A recording call was left by an exception from outside (KeyboardInterrupt); its record may or may not be
        complete.
        """
        active = self.journal.active
        active.words[_END] = active.memory.tell()
        self._irregular = True

    # -- the end -------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Take no more records; the last half is handed over."""
        with self.lock:
            if not self.recording:
                return
            self.recording = False
            last = self.journal.active
            last.close()
            self._hand_over(last, self._counts_now())
            for path in self._paths:
                path.bind(_refuse, _refuse, None)

    def forget_after_fork(self) -> None:
        """In a forked child: never touch the parent's mapping again. Called before any other code of the child runs."""
        self.lock = threading.RLock()
        self.recording = False
        for path in self._paths:
            path.relock(self.lock.acquire, self.lock.release)
            path.bind(_refuse, _refuse, None)


def _refuse(*_: object) -> int:
    raise ValueError("nothing is being recorded")

"""The intake: how packed records get into the journal, half by half, whatever comes in between.

It is what the recording calls (`hotpaths`) fall back on, and what the writer empties. The calls take no lock; what is
done here is done under one. A turn to another half is prepared, then done in one step that nothing can come between,
and then finished (the closed half is counted and given to the writer). What may come at any moment:

* *Records*, out of other threads, signal handlers and finalizers. Before the step they go to the old half, after it to
  the new one, and a signal handler may itself turn to yet another half. Each step is given its number; a turn that was
  overtaken while it was prepared begins anew, and turns are finished in the order of their steps.
* *An exception from outside* (KeyboardInterrupt, an alarm): the call that it hits ends with it. A turn that it hits is
  finished first, for finishing may be done twice; if it is hit again, the next one who comes finishes it.
"""

from __future__ import annotations

import inspect
import operator
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from enum import Enum
from itertools import chain, repeat
from types import CellType
from typing import Any, Final, TypeVar

import msgpack
import msgspec
from msgspec import Struct

from mailboat.agent.hotpaths import HotPath, Surroundings
from mailboat.agent.intrusion import from_outside, value_at_fault, write_refused
from mailboat.agent.journal import Half, Journal
from mailboat.agent.scrub import Scrubber, scrubbed_entry
from mailboat.agent.values import pack_any, simple
from mailboat.protocol.errors import SegmentError
from mailboat.protocol.limits import MAX_RECORD, PACE
from mailboat.protocol.records import COUNTERS, Kind, Schema, count_raw, records_counted
from mailboat.protocol.unpacking import unpack

T = TypeVar("T")

_count: Final = operator.attrgetter("cell_contents")


class Lost(Enum):
    """Why a record was not kept; each is counted, in the journal by its place here."""

    FULL = "journal_full"
    """Neither the disk nor the memory set aside for it could take more."""
    UNPACKABLE = "unpackable"
    """Its values could not be turned into text either."""
    FORKED = "forked"
    """It was made in a forked child, which has no session of its own (yet)."""
    INTERNAL = "internal"
    """A fault of mailboat's own, which must not become the host's."""
    SCRUB_FAILED = "scrub_failed"
    """The application's `scrub` raised, or gave no map: better no record than one with a secret in it."""
    DELETED = "deleted"
    """Somebody has deleted the file that it was in, and it could not be read any more."""


LOST_PLACES: Final = {reason: place for place, reason in enumerate(Lost)}


class _Turn(Struct, eq=False):
    """The active half being closed, until the writer has it. `reached` is what the intake had counted shortly before.

    `total` is the intake's when it was begun to be finished.
    """

    closing: Half
    successor: Half | None
    reached: list[int]
    begun: bool = False
    total: Sequence[int] = ()


class Intake:
    """Takes packed records into the journal. `add` makes the recording calls that feed it.

    `on_full` is called (under the lock, so it must be quick; perhaps twice for the same generation of a half) when a
    half was closed. No method waits for the disk, and none raises, but for what comes from outside.
    """

    def __init__(self, journal: Journal, *, on_full: Callable[[Half], None], clock: Callable[[], int]) -> None:
        self.journal = journal
        self.lock = threading.RLock()
        self.lost: Counter[str] = Counter()
        self.faults = 0
        """Failures of mailboat's own, or of what it was told to call, that cost no record."""
        self.recording = True
        self.schemas: list[Schema] = []
        self._on_full = on_full
        self._forked = False
        self._revive: Callable[[], None] | None = None
        self._total = [0] * len(COUNTERS)
        """What is in the halves that are closed."""
        self._turns = 0
        self._preparing = 0
        """How many prepare a turn, or were interrupted in that."""
        self._unfinished: tuple[_Turn, ...] = ()
        self._freed = threading.Lock()  # no Event: a signal handler that records would wait for its inner lock for ever
        self._freed.acquire()
        self._paced = False
        self._scrubber = Scrubber()
        self._pack: Callable[[object], bytes] = msgspec.msgpack.Encoder().encode
        self._around = Surroundings(
            pack=self._pack,
            known=self._scrubber.harmless.issuperset,
            clock=clock,
            lock=self.lock,
            odd=self._odd,
            slow=self._slow,
        )
        self._cells: list[CellType] = []
        self._counters: list[tuple[int, ...]] = []
        self._counted: tuple[list[int], list[int]] = [], [0] * len(COUNTERS)
        """What each call had counted when it was last looked at, and their sums in the order of `records.COUNTERS`."""
        self._around.bind(journal.active)

    def _add(self, path: HotPath) -> Callable[..., None]:
        self._counters.append(path.counters)
        self._cells.append(path.counted)
        return path.call

    # -- counts --------------------------------------------------------------------------------------------------

    @property
    def recorded(self) -> int:
        """Records taken so far."""
        return records_counted(self.counts)

    @property
    def counts(self) -> list[int]:
        """Records so far in the order of `records.COUNTERS`."""
        with self.lock:
            return self._reached().copy()

    def _reached(self) -> list[int]:
        before, counts = self._counted
        now = list(map(_count, self._cells))
        if now != before:
            counts = counts.copy()
            for counters, count, known in zip(self._counters, now, chain(before, repeat(0)), strict=False):
                if count != known:
                    for index in counters:
                        counts[index] += count - known
            self._counted = now, counts
        return counts

    # -- turning to another half ---------------------------------------------------------------------------------

    def turn(self) -> bool:
        """Close the active half, if it holds anything (or could be in the journal's file, and is not), and let another
        take over.

        Returns False when no other half can be had; the active one goes on then.
        """
        with self.lock:
            self._finish()
            idle = not self.recording or not (self.journal.active.memory.tell() or self.journal.exposed)
            return idle or self._turn(0)

    def _turn(self, needed: int) -> bool:
        """Have an active half with room for `needed` bytes, another one than now (or than a moment ago)."""
        if self._preparing and not self._unfinished and self._on_stack(Intake._turn) == 1:
            self.journal.free_reserved()
            self._preparing = 0
        self._preparing += 1
        while True:
            step = self._turns
            successor = self.journal.reserve(needed, records_counted(self._reached()))
            if successor is None:
                self._preparing -= 1
                return False
            # Only now: others may have recorded while the disk made room, and to count a half anew takes 50 ms.
            turn = _Turn(self.journal.active, successor, self._reached())
            memory, words = successor.memory, successor.words
            if self._turns == step:
                # No call from here to the end of this block: this is the one step.
                self._turns = step + 1
                self._unfinished = (*self._unfinished, turn)
                self.journal.active, around = successor, self._around
                around.write.cell_contents, around.tell.cell_contents = memory.write, memory.tell
                around.words.cell_contents, around.end.cell_contents = words, 0
                break
            self.journal.give_back(successor)
            if self._room() >= needed:
                self._preparing -= 1
                return True
        self._preparing -= 1
        self._finish(turn)
        self._catch_up()
        return True

    def _finish(self, latest: _Turn | None = None) -> None:
        """Finish all turns that were begun, unless that is being done further down on this thread's stack: what is done
        there is not the `latest`, if that is the only one.
        """
        if not self._unfinished or (self._unfinished != (latest,) and self._on_stack(Intake._finish_turns)):
            return
        try:
            self._finish_turns()
        except BaseException:
            self._finish_turns()
            raise

    def _finish_turns(self) -> None:
        while self._unfinished:
            self._finish_turn(self._unfinished[0])
            self._unfinished = self._unfinished[1:]

    def _finish_turn(self, turn: _Turn) -> None:
        """Count the closed half, and give it to the writer. Every step may be done twice."""
        closing, successor, again = turn.closing, turn.successor, turn.begun
        if not again:
            turn.total, turn.begun = self._total, True
        closing.end_here()
        reached = self._reached()
        counts = _difference(reached, turn.total)
        if again or reached != turn.reached:  # somebody recorded between, and nobody knows where that went
            counts = self._count_anew(closing, counts)
            reached = _sum(turn.total, counts)
        self._total = reached
        if successor is not None:
            successor.renumber(records_counted(self._total))
            self.journal.taken(successor)
        closing.counts = counts
        if closing.end:
            self._on_full(closing)
        elif closing.in_use:
            self.journal.release(closing)

    def _catch_up(self) -> None:
        """What was put off until there is room; for those that put something off."""

    def _count_anew(self, half: Half, otherwise: list[int]) -> list[int]:
        counts = [0] * len(COUNTERS)
        schemas = {schema.number: schema for schema in self.schemas}
        try:
            with half.content() as content:
                for raw in unpack(bytes(content)):
                    count_raw(raw, counts, schemas)
        except SegmentError:
            self.faults += 1
            return otherwise
        return counts

    def _on_stack(self, function: Callable[..., object]) -> int:
        """How many calls of one of our functions stand on this thread's stack."""
        code, depth, frame = function.__code__, 0, inspect.currentframe()
        while frame is not None:
            depth += frame.f_code is code
            frame = frame.f_back
        return depth

    # -- out of the ordinary -------------------------------------------------------------------------------------

    def _odd(self, fields: Sequence[Any], error: Exception | None = None, /) -> bytes | None:
        """The packed record of `fields`, which does not fit or did not pack; None if it is not to be had."""
        packed, again = None, None
        try:
            packed = self._packed(fields)
            if packed is None and error is not None:
                self._pack(fields)  # a date asks its time zone, which may be the host's
        except Exception as second:
            if error is None:
                raise  # to the call, which comes back with it
            again = second
        if error is not None and not value_at_fault(error, again):
            raise error
        if packed is not None and len(packed) <= MAX_RECORD:
            return packed
        try:
            return pack_any(fields, self._without_secrets)
        except Exception as fault:
            if from_outside(fault):
                raise
            self._lose(Lost.UNPACKABLE)
            return None

    def _packed(self, fields: Sequence[Any]) -> bytes | None:
        """The packed record of `fields` without its secrets, as long as that is quickly said."""
        if not all(map(simple, fields)):
            return None
        packed: bytes = msgpack.packb(self._without_secrets(fields))
        return packed

    def _without_secrets(self, fields: Sequence[Any]) -> Sequence[Any]:
        """The fields of a record, which must be bounded, without what is secret among them."""
        kind, time, name, *rest = fields
        if kind == Kind.SCHEMA:
            return fields
        if kind == Kind.POSITIONAL:
            return [kind, time, name, *map(scrubbed_entry, self.schemas[name].fields, rest)]
        attributes, *others = rest
        return [
            kind,
            time,
            name,
            self._scrubber.scrub(name, attributes),
            *(scrubbed_entry("", each) for each in others),
        ]

    def _slow(self, packed: bytes, error: BaseException, counted: CellType) -> None:
        """Keep a record that could not be written; `counted` counts it then."""
        if not write_refused(error):
            counted.cell_contents += 1  # a ValueError from outside: the record was written, and counted
            self._around.commit()
            raise error
        try:
            if self._forked and not self.revive():
                self._lose(Lost.FORKED)
                return
            with self.lock:
                self._finish()
                kept = not self.recording or self._put(packed, counted)
            if not kept:
                self._lose(Lost.FULL)
        except BaseException as fault:
            if from_outside(fault):
                raise
            self._lose(Lost.INTERNAL)

    def _put(self, packed: bytes, counted: CellType) -> bool:
        needed = len(packed)
        while self._room() >= needed or self._make_room(needed):
            try:
                counted.cell_contents += 1
                self.journal.active.memory.write(packed)
            except ValueError:
                counted.cell_contents -= 1  # somebody has taken the room
                continue
            self._around.commit()
            return True
        return False

    def _room(self) -> int:
        active = self.journal.active
        return active.size - active.memory.tell()

    def _make_room(self, needed: int) -> bool:
        if self._turn(needed):
            return True
        if self.journal.refused is not None or self._paced:
            return False
        # Too far ahead of the writer: give it the processor, once, for a time that no event loop minds.
        self._freed.acquire(blocking=False)
        if self._turn(needed):
            return True
        self._paced = not self._unlocked(lambda: self._freed.acquire(timeout=PACE))
        return self.recording and (self._room() >= needed or self._turn(needed))

    def freed(self) -> None:
        """The writer has taken a half off the journal."""
        self._paced = False
        if self._freed.locked():
            self._freed.release()

    def _lose(self, reason: Lost, records: int = 1) -> None:
        with self.lock:
            self.lost[reason.value] += records
            if self.recording:
                self.journal.count_lost(LOST_PLACES[reason], records)

    # -- the lock ------------------------------------------------------------------------------------------------

    def _unlocked(self, call: Callable[[], T]) -> T:
        """`call` without the lock, if this thread holds it once; whatever comes, it holds it again afterwards."""
        try:
            self.lock.release()
            return call()
        finally:
            try:
                self.lock.acquire()
            except BaseException:
                if not self.lock._is_owned():  # type: ignore[attr-defined] # noqa: SLF001 - as threading.Condition asks
                    self.lock.acquire()  # torn from the wait for it, but somebody is bound to release it
                raise

    def drop(self, reason: Lost) -> None:
        """Count a record that somebody else could not let through."""
        if self._forked:
            self.revive()  # so that it is counted in the child's own session
        self._lose(reason)

    # -- for the writer ------------------------------------------------------------------------------------------

    def attach(self, fd: int) -> None:
        """Let the journal be in the file `fd` from now on. Raises `OSError`."""
        with self.lock:
            self.journal.attach(fd)

    def detach(self) -> None:
        """Somebody has deleted the journal's file: let it be in memory from now on. Raises `OSError`; it is so then."""
        with self.lock:
            self.journal.detach()

    def surplus(self) -> list[Half]:
        """Halves that are no longer needed, for the caller to close."""
        with self.lock:
            return self.journal.surplus() if self.recording else []

    # -- the end -------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Take no more records; the last half is handed over."""
        try:
            with self.lock:
                self._revive = None
                while self.recording:
                    step = self._turns
                    turn, around = _Turn(self.journal.active, None, self._reached()), self._around
                    if self._turns == step:
                        # As in `_turn`: the one step.
                        self._turns = step + 1
                        self._unfinished = (*self._unfinished, turn)
                        self.recording = False
                        around.write.cell_contents, around.tell.cell_contents = around.refuse, int
                        around.words.cell_contents, around.end.cell_contents = None, 0
                self._finish()
        except Exception as fault:
            if from_outside(fault):
                raise
            self.faults += 1

    # -- after a fork --------------------------------------------------------------------------------------------

    def forget_after_fork(self, revive: Callable[[], None] | None = None) -> None:
        """In a forked child: never touch the parent's mapping again. Called before any other code of the child runs.

        `revive` is for the first record made here: called under the lock, it is to call `begin_anew`. What is recorded
        until then, from within it, is lost and counted.
        """
        self._forked, self.recording, self._revive = True, False, revive
        self._around.unbind()
        self._around.unlock()
        self.lock = threading.RLock()
        self._turns += 1
        self._unfinished = ()
        self._reached()
        self._total, self._counted, self.lost = [0] * len(COUNTERS), (self._counted[0], [0] * len(COUNTERS)), Counter()
        self.journal.forget()

    def revive(self) -> bool:
        """In a forked child: have it record for itself, as its first record does; whether it does now.

        Waits for another thread that is just doing that.
        """
        with self.lock:
            revive, self._revive = self._revive, None
            if self._forked and revive is not None:
                try:
                    revive()
                except BaseException as fault:
                    self._revive = revive
                    if from_outside(fault):
                        raise
                    self.faults += 1
            return not self._forked

    def begin_anew(self, journal: Journal, *, on_full: Callable[[Half], None]) -> None:
        """In a forked child, under the lock: record into `journal` from now on, with every call made before the fork.

        What the application has declared is said again.
        """
        self.journal, self._on_full = journal, on_full
        self._freed = threading.Lock()
        self._freed.acquire()
        self._paced = False
        for reason, place in LOST_PLACES.items():
            if self.lost[reason.value]:
                journal.count_lost(place, self.lost[reason.value])
        self._around.lock(self.lock)
        self._forked, self.recording = False, True
        self._around.bind(journal.active)


def _sum(left: Sequence[int], right: Sequence[int]) -> list[int]:
    return [a + b for a, b in zip(left, right, strict=True)]


def _difference(left: Sequence[int], right: Sequence[int]) -> list[int]:
    return [a - b for a, b in zip(left, right, strict=True)]

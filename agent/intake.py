"""The intake: how packed records get into the journal, half by half, whatever comes in between.

It is what the recording calls (`hotpaths`) fall back on, and what the writer empties. What may come at any moment, and
what is made of it:

* *Re-entrance*: a signal handler or a finalizer records while its own thread is recording. The lock lets it in again,
  each step is one indivisible call, and where a record ends is read back from the mapping, not computed. It may turn to
  another half even then, but only to one that was never used, so that what the interrupted call still stores about the
  old half falls on no new one. In the middle of a turn it may not turn again; what has no room is written at its end.
* *An exception from outside* (KeyboardInterrupt, an alarm): the call that it hits ends with it. A turn that it hits is
  completed first: each of its steps may be done twice.
* *A count that cannot be trusted* after either: the half is counted anew, from its content.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from types import CodeType
from typing import Any, Final, TypeVar

import msgpack

from mailboat.agent.hotpaths import HotPath, Pack, Surroundings
from mailboat.agent.intrusion import from_outside, value_at_fault
from mailboat.agent.journal import Half, Journal
from mailboat.agent.values import pack_any
from mailboat.protocol.errors import SegmentError
from mailboat.protocol.limits import MAX_RECORD, PACE
from mailboat.protocol.reader import unpack
from mailboat.protocol.records import COUNTERS, Schema, count_raw, records_counted

T = TypeVar("T")


class Lost(Enum):
    """Why a record was not kept; each is counted, in the journal by its place here."""

    FULL = "journal_full"
    """Neither the disk nor the memory set aside for it could take more."""
    UNPACKABLE = "unpackable"
    """Its values could not be turned into text either."""
    FORKED = "forked"
    """It was made in a forked child, which has no session of its own."""
    INTERNAL = "internal"
    """A fault of mailboat's own, which must not become the host's."""


LOST_PLACES: Final = {reason: place for place, reason in enumerate(Lost)}


@dataclass(slots=True)
class _Turn:
    """The active half being closed, from its begin until the writer has it.

    `total` and `tallied` are the recorder's when it began; `tally` all counts then. It is `disturbed` when the counts
    cannot be trusted afterwards: something was recorded, or raised, in its midst.
    """

    closing: Half
    successor: Half | None
    total: list[int]
    tallied: list[int]
    tally: list[int]
    irregular: bool
    disturbed: bool
    begun: bool = False


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
        self._total = [0] * len(COUNTERS)
        self._tallied = [0] * len(COUNTERS)
        self._irregular = False
        self._turning: _Turn | None = None
        self._late: deque[bytes] = deque()
        self._freed = threading.Lock()  # no Event: a signal handler that records would wait for its inner lock for ever
        self._freed.acquire()
        self._paced = False
        self._around = Surroundings(
            pack=_packer(), spare=msgpack.packb, clock=clock, lock=self.lock, odd=self._odd, slow=self._slow
        )
        self._paths: list[HotPath] = []
        self._codes: set[CodeType] = set()
        self._around.bind(journal.active)

    def _add(self, path: HotPath) -> Callable[..., None]:
        self._codes.add(path.code)
        self._paths.append(path)
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
            return _sum(self._total, _difference(self._tally(), self._tallied))

    def _tally(self) -> list[int]:
        """All that the calls have counted since the beginning."""
        counts = [0] * len(COUNTERS)
        for path in self._paths:
            count = path.count
            if count:
                for index in path.counters:
                    counts[index] += count
        return counts

    # -- turning to another half ---------------------------------------------------------------------------------

    def turn(self) -> bool:
        """Close the active half, if it holds anything, and let another take over.

        Returns False when no other half can be had; the active one goes on then.
        """
        with self.lock:
            self._mend()
            return not self.recording or not self.journal.active.memory.tell() or self._turn(0, own_calls=0)

    def _turn(self, needed: int, own_calls: int = 1) -> bool:
        """`own_calls` is how many recording calls of this thread know of the turn; any more are caught unawares."""
        nested = self._calls_under_way() > own_calls
        successor = self.journal.candidate(needed, fresh=nested)
        if successor is None:
            return False
        tally = self._tally()
        following = records_counted(_sum(self._total, _difference(tally, self._tallied)))
        self.journal.prepare(successor, following)
        self._complete_whatever_comes(self._turn_to(successor, tally, nested=nested))
        self._catch_up()
        return True

    def _turn_to(self, successor: Half | None, tally: list[int], *, nested: bool) -> _Turn:
        active = self.journal.active
        return _Turn(active, successor, self._total, self._tallied, tally, self._irregular, nested)

    def _complete_whatever_comes(self, turn: _Turn) -> None:
        self._turning = turn
        try:
            self._complete(turn)
        except BaseException:
            self._complete(turn)
            raise

    def _complete(self, turn: _Turn) -> None:
        """Carry out a turn, or what is left of it: every step may be done twice."""
        turn.disturbed |= turn.begun
        turn.begun = True
        if turn.successor is None:
            self._around.unbind()
        else:
            self.journal.activate(turn.successor)
            self._around.bind(turn.successor)
        turn.closing.settle()
        tally = self._tally()
        turn.disturbed |= tally != turn.tally
        counts = _difference(tally, turn.tallied)
        if turn.irregular or turn.disturbed:
            counts = self._count_anew(turn.closing, counts)
        total = _sum(turn.total, counts)
        self._total, self._tallied, self._irregular = total, tally, turn.disturbed
        if turn.successor is not None and turn.successor.first != records_counted(total):
            turn.successor.renumber(records_counted(total))
        turn.closing.counts = counts
        self._hand_over(turn.closing)
        self._turning = None

    def _hand_over(self, closed: Half) -> None:
        if closed.end:
            self._on_full(closed)
        elif closed.in_use:
            self.journal.release(closed)

    def _mend(self) -> None:
        """Complete a turn that was left half done, unless it is being done further down on this thread's stack."""
        turn = self._turning
        if turn is not None and not self._turn_under_way():
            self._complete(turn)

    def _catch_up(self) -> None:
        """Write what came in the middle of a turn and had no room."""
        self._around.restore_packer(_packer)
        while self._late:
            self._irregular = True
            packed = self._late.popleft()
            if not self._put(packed):
                self._lose(Lost.FULL)

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

    def _calls_under_way(self) -> int:
        """How many recording calls stand on this thread's stack."""
        return self._on_stack(self._codes)

    def _turn_under_way(self) -> bool:
        return self._on_stack((Intake._complete.__code__,)) > 0

    def _on_stack(self, codes: Collection[CodeType]) -> int:
        depth, frame = 0, inspect.currentframe()
        while frame is not None:
            depth += frame.f_code in codes
            frame = frame.f_back
        return depth

    # -- out of the ordinary -------------------------------------------------------------------------------------

    def _odd(self, fields: Sequence[Any], error: BaseException) -> bytes | None:
        """The packed record of `fields`, which did not pack; None if it is not to be had. Called without the lock."""
        packed, again = None, None
        if isinstance(error, Exception):
            try:
                packed = msgpack.packb(fields)
            except Exception as second:  # noqa: BLE001 - looked at below
                again = second
        if not value_at_fault(error, again):
            raise error
        if not self.recording or (packed is not None and len(packed) <= MAX_RECORD):
            return packed
        try:
            return pack_any(fields)
        except Exception as fault:
            if from_outside(fault):
                raise
            self._lose(Lost.UNPACKABLE)
            return None

    def _slow(self, packed: bytes, error: BaseException, fields: Sequence[Any]) -> bool:
        """Keep a record that could not be written. Called under the lock; True if the record was taken."""
        if self._forked:
            self._lose(Lost.FORKED)
            return False
        if not self._holding():
            self._hold()  # it was torn from the wait for the lock, which the caller will release
            raise error
        try:
            self._mend()
            if from_outside(error):
                raise error
            return self.recording and self._keep(packed, fields)
        except BaseException as fault:
            if self.recording:
                self.journal.active.settle()  # the record may be there or not: its call did not return
                self._irregular = True
            if from_outside(fault):
                raise
            self._lose(Lost.INTERNAL)
            return False

    def _keep(self, packed: bytes, fields: Sequence[Any]) -> bool:
        if len(packed) > MAX_RECORD:
            packed = self._unlocked(lambda: pack_any(fields))
            self._around.repack(_packer())  # the one that packed it has grown with it
        if self.recording and self._put(packed):
            return True
        self._lose(Lost.FULL)
        return False

    def _put(self, packed: bytes) -> bool:
        needed = len(packed)
        if self._turning is not None:  # in the middle of a turn: whatever comes here comes unawares
            self._turning.disturbed = True
            if self._room() < needed:
                self._late.append(packed)
                return True
        elif self._room() < needed and not self._make_room(needed):
            return False
        active = self.journal.active
        active.memory.write(packed)
        active.settle()
        return True

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

    def _holding(self) -> bool:
        return bool(self.lock._is_owned())  # type: ignore[attr-defined] # noqa: SLF001 - as threading.Condition asks

    def _hold(self) -> None:
        """Take the lock, come what may: somebody is bound to release it."""
        try:
            self.lock.acquire()
        except BaseException:
            if not self._holding():
                self._hold()
            raise

    def _unlocked(self, call: Callable[[], T]) -> T:
        """`call` without the lock, if this thread holds it once."""
        self.lock.release()
        try:
            return call()
        finally:
            self._hold()

    # -- for the writer ------------------------------------------------------------------------------------------

    def attach(self, fd: int) -> None:
        """Let the journal be in the file `fd` from now on. Raises `OSError`."""
        with self.lock:
            self.journal.attach(fd)

    def surplus(self) -> list[Half]:
        """Halves that are no longer needed, for the caller to close."""
        with self.lock:
            return self.journal.surplus() if self.recording else []

    def give_up(self, half: Half) -> None:
        """Count the records of a half that neither the disk nor a later process will have."""
        self._lose(Lost.FULL, records_counted(half.counts))

    # -- the end -------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Take no more records; the last half is handed over."""
        try:
            with self.lock:
                self._mend()
                if self.recording and self._turning is None:
                    turn = self._turn_to(None, self._tally(), nested=self._calls_under_way() > 0)
                    self.recording = False
                    self._complete_whatever_comes(turn)
        except Exception as fault:
            if from_outside(fault):
                raise
            self.faults += 1

    def forget_after_fork(self) -> None:
        """In a forked child: never touch the parent's mapping again. Called before any other code of the child runs."""
        self._forked, self.recording = True, False
        self._around.unbind()
        self._around.unlock()
        self.lock = threading.RLock()
        self._turning = None
        self.journal.forget()


def _packer() -> Pack:
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return msgpack.packb  # without the interpreter lock, taking a packer out of its cell is not one step
    return msgpack.Packer(use_bin_type=True).pack


def _sum(left: Sequence[int], right: Sequence[int]) -> list[int]:
    return [a + b for a, b in zip(left, right, strict=True)]


def _difference(left: Sequence[int], right: Sequence[int]) -> list[int]:
    return [a - b for a, b in zip(left, right, strict=True)]

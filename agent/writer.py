"""The writer: one thread that turns halves of the journal into blocks of the segment, and syncs what is due.

It sleeps until it is told of a closed half or asked for something, and wakes by itself once a second to look whether
something is due. Whatever the disk refuses stays in the journal and is tried again; nothing here is ever reported by
raising.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Final

from msgspec import Struct, field

from mailboat.agent.clocks import Clocks
from mailboat.agent.intake import Lost
from mailboat.agent.intrusion import from_outside
from mailboat.agent.journal import Half
from mailboat.agent.journal_place import JournalPlace, OnDisk
from mailboat.agent.log import log
from mailboat.agent.quota import Quota
from mailboat.agent.recorder import Recorder
from mailboat.agent.room import Disk, Room
from mailboat.agent.segment_file import SegmentFile
from mailboat.agent.segments import Begin, Limits, Segments
from mailboat.agent.store import SessionFolder, Store
from mailboat.protocol.errors import StoreError
from mailboat.protocol.records import SCHEMA_COUNTER, Kind, counter
from mailboat.protocol.sealing import Note
from mailboat.protocol.segment import SealReason
from mailboat.protocol.summary import SegmentState

TICK: Final = 1.0
"""Seconds between looks at what is due; also how soon a disk that refused is tried again."""

URGENT_PAUSE: Final = 0.1
"""Seconds between syncs for the sake of errors: a flood of them must not become a flood of syncs."""

CLOCK_JUMP: Final = 1_000_000_000
"""Nanoseconds by which the wall clock has to leave the monotonic one, between two looks, to have been set (or the
machine to have slept). What was recorded before keeps the clock that it was recorded by."""

_INSTALLATION: Final = counter(Kind.INSTALLATION)

SEAL_TRIES: Final = 2
"""A segment whose file fails at the last moment is repeated in another one, once."""


class WriterSettings(Struct, frozen=True):
    """`save_interval` and `segment_age` are seconds, `segment_bytes` bytes, `level` zstd's."""

    save_interval: float = 5.0
    segment_bytes: int = 16 * 1024 * 1024
    segment_age: float = 24 * 3600.0
    level: int = 1


class _Request(Struct, frozen=True):
    """What the agent asks for: everything in blocks; then synced if `durable`; then sealed if `seal` says why."""

    durable: bool
    seal: SealReason | None
    done: Future[bool] = field(default_factory=Future)

    def answer(self, *, done: bool) -> None:
        """Tell the result, unless whoever asked no longer waits for it."""
        if self.done.set_running_or_notify_cancel():
            self.done.set_result(done)


class _Closed(Struct, frozen=True):
    """A half as it was closed: it is used again, its `generation` is not. `clock` is as in a block's header."""

    half: Half
    generation: int
    clock: int


class Writer:
    """Writes one session. `closed` and `urgent` are for the recorder, the rest for the agent; all return at once."""

    def __init__(
        self,
        store: Store,
        begin: Begin,
        settings: WriterSettings,
        clocks: Clocks,
        place: JournalPlace | None = None,
        room: Room | None = None,
    ) -> None:
        """`begin` makes the session's folder and first segment; it is called on the writer's thread until it
        succeeds, unless `adopt` was given what it makes. `place` is where the journal is (None: on the disk), `room`
        what may be written (None: without bounds).
        """
        self._store, self._settings, self._clocks = store, settings, clocks
        self._place: JournalPlace = place if place is not None else OnDisk(store.files)
        self._undeclared = False
        self.room = room or Room(Quota(max_bytes=None, max_age=math.inf, min_free=0))
        self._disk = Disk(store.files, store.folder, clocks.now)
        limits = Limits(settings.segment_bytes, settings.segment_age, settings.level)
        self._segments = Segments(
            store, begin, limits, clocks, self._refused, lambda counts: self._recorder.forgo(counts, Lost.DELETED)
        )
        self._inbox: deque[_Closed | _Request | None] = deque()
        self._bell = threading.Lock()
        """Free when there may be something in the inbox."""
        self._bell.acquire()
        self._full: deque[_Closed] = deque()
        self._requests: deque[_Request] = deque()
        self._recorder: Recorder
        self._taken = self._appended = 0
        self._filled = False
        self._clock = clocks.offset
        self._synced_at = clocks.now()
        self._unsynced_at = -math.inf
        self._tended_at = clocks.now() - TICK
        self._refusals = 0
        self._refusal: Exception | None = None
        self._told: set[str] = set()
        self._urgent = self._ended = self._gone = False
        self._thread = threading.Thread(target=self._run, name="mailboat-writer", daemon=True)
        self.trouble = self._exposed = ""

    @property
    def states(self) -> tuple[SegmentState, ...]:
        """The session's segments, as far as they are on the disk."""
        return self._segments.states

    @property
    def folder(self) -> Path | None:
        """The session's folder; None as long as the disk has not taken it."""
        return self._segments.folder

    # -- for the recorder (under its lock) -----------------------------------------------------------------------

    def closed(self, half: Half) -> None:
        """A half was closed: make a block of it. May be said twice."""
        self._put(_Closed(half, half.generation, self._clock))

    def urgent(self) -> None:
        """An error was recorded: sync at once."""
        if not self._urgent:
            self._urgent = True
            self._put(None)

    def _put(self, entry: _Closed | _Request | None) -> None:
        self._inbox.append(entry)
        try:
            self._bell.release()
        except RuntimeError as error:  # the bell rings already; or a signal handler of the host has raised just now
            if from_outside(error):
                raise

    # -- for the agent -------------------------------------------------------------------------------------------

    def adopt(self, session: SessionFolder, segment: SegmentFile) -> None:
        """Use a session that was begun already. Before `start`."""
        self._segments.adopt(session, segment)

    def lack_journal(self, why: str) -> None:
        """The journal is in plain memory, unless `why` is empty: trouble for as long as that lasts. Before `start`."""
        self.trouble = self._exposed = why

    def start(self, recorder: Recorder) -> None:
        """Begin to write what `recorder` takes. Raises `RuntimeError` where the process gets no thread."""
        self._recorder = recorder
        self._segments.schemas = recorder.schemas
        self._thread.start()

    def undo(self) -> None:
        """There is no thread that would write, and nothing was recorded: leave nothing open, and nothing to recover."""
        self._recorder.stop()
        session = self._segments.session
        made = () if session is None else (partial(self._store.unmake, session.path),)
        self._let_go_of_all(*made)

    def flush(self, *, durable: bool) -> Future[bool]:
        """Make a block of what was recorded so far and, if `durable`, sync it. The result says whether the disk took
        it; False at once when nobody writes any more.
        """
        return self._ask(_Request(durable, seal=None))

    def seal(self, reason: SealReason) -> Future[bool]:
        """Write what is left, seal the session, and move it to those that wait. Stops the recorder."""
        return self._ask(_Request(durable=True, seal=reason))

    def forget_after_fork(self) -> None:
        """In a forked child: the session is the parent's, and its files are no longer open here (see `descriptors`)."""
        self._gone = True
        self._segments.session = None

    def _ask(self, request: _Request) -> Future[bool]:
        self._put(request)
        if self._gone:  # looked at after the request is in: else it might come just behind the thread's last look
            self._turn_away()
        return request.done

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive() and not self._gone

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._ended:
                self._take()
                self._step()
        finally:
            self._gone = True
            self._turn_away()

    def _step(self) -> None:
        self._refusal = None
        written = self._write()
        if not written and self._sealing and self._store.reserve.spend(self._refusal):
            written = self._write()
        self._answer(written=written)

    def _take(self) -> None:
        """Wait for something to do, then take all there is."""
        self._bell.acquire(timeout=self._pause())
        self._take_waiting()

    def _pause(self) -> float:
        """Seconds until something may be due by itself."""
        return min(TICK, max(0.0, self._urgent_at - self._clocks.now())) if self._urgent else TICK

    def _take_waiting(self) -> None:
        self._bell.acquire(blocking=False)  # first: what comes from here on rings again
        while self._inbox:
            self._sort(self._inbox.popleft())

    def _sort(self, entry: _Closed | _Request | None) -> None:
        if isinstance(entry, _Request):
            self._requests.append(entry)
        elif entry is not None and entry.generation > self._taken:
            self._taken = entry.generation
            self._full.append(entry)

    def _turn_away(self) -> None:
        """Answer what is still asked for, after the end; on whatever thread asks."""
        with contextlib.suppress(IndexError):  # another one was quicker
            self._take_waiting()
            while True:
                self._requests.popleft().answer(done=False)

    def _write(self) -> bool:
        """Write whatever waits, and sync if that is due; False if the disk refused some of it."""
        refusals = self._refusals
        turned, synced = self._tried(self._advance), self._tried(self._sync_if_due)
        if refusals == self._refusals and not self._segments.astray:
            self.trouble = self._exposed = self._recorder.journal.exposure(self._exposed)
            if self._synced_at >= self._unsynced_at:
                self._told.clear()
        return turned and synced

    def _tried(self, step: Callable[[], bool]) -> bool:
        try:
            return step()
        except Exception as error:  # noqa: BLE001 - the thread must outlive any fault; it is told in the status
            self._refused(error)
            return False

    def _advance(self) -> bool:
        if self._requests:
            self._look_after_files()  # nothing is promised of what nobody will find
        self._tend()
        self._drain()
        return not self._requests or self._turn()

    @property
    def _sealing(self) -> bool:
        return any(request.seal is not None for request in self._requests)

    def _turn(self) -> bool:
        """Have all that was recorded so far in blocks, and before what is taken just behind the turn, too."""
        turned, before = False, -1
        while len(self._requests) > before:
            before = len(self._requests)
            if self._sealing:
                self._recorder.stop()
            turned = self._recorder.turn()
            self._take_waiting()
            self._drain()
        return turned

    def _drain(self) -> None:
        while self._full:
            closed = self._full[0]
            if closed.generation > self._appended:
                self._append(closed)
                self._appended = closed.generation
                self._filled |= closed.half.end > closed.half.size // 2
            if closed.half.checkpoints:
                self._segments.sync()  # what was promised to survive the machine no longer depends on the journal
            self._keep_declared(closed.half.counts[SCHEMA_COUNTER])
            self._full.popleft()
            self._recorder.journal.release(closed.half)
            self._recorder.freed()

    def _append(self, closed: _Closed) -> None:
        self._ask_for_room()
        segment, half = self._segments.ready(), closed.half
        named = self._recorder.installation if half.counts[_INSTALLATION] else None
        with half.content() as content:
            segment.block(content, half.counts, closed.clock, half.first, Note(self._clocks.monotonic(), named))

    def _keep_declared(self, fresh: int) -> None:
        """Have all declarations where a recovery can read them, if any is `fresh`. Where that cannot be done just now,
        a crash would cost the later records the names of their fields, and nothing else: no reason to keep a half.
        """
        self._undeclared |= bool(fresh)
        session = self._segments.session
        if self._undeclared and session is not None:
            try:
                self._place.declare(session.path, list(self._recorder.schemas))
                self._undeclared = False
            except OSError as error:
                self._refused(error)

    def _ask_for_room(self) -> None:
        """Return if there is room for a block. Raises `OSError`. What is left at the end is written in any case."""
        journal = self._recorder.journal
        try:
            if not self._sealing:
                self.room.ask(self._segments.size, *self._disk.room())
        except StoreError:
            journal.confined = True
            raise
        journal.confined = False

    # -- what is due every second --------------------------------------------------------------------------------

    def _tend(self) -> None:
        if (now := self._clocks.now()) - self._tended_at < TICK:
            return
        self._tended_at = now
        self._watch_clock()
        self._look_after_files()
        session = self._segments.session
        if session is None and self._recorder.recorded:
            self._segments.ready()
        for half in self._recorder.surplus() if not self._full else ():
            half.close()
        journal = self._recorder.journal
        if journal.fd is None and session is not None and self._recorder.recording:
            self._regain_journal(session)
        elif journal.exposed and not self._full:
            self._recorder.turn()
        if not journal.volatile:
            journal.checkpoint(durable=False)

    def _look_after_files(self) -> None:
        """Make anew what somebody has deleted of the session's files. Until that succeeds no block is made; a journal
        whose file is gone is in memory then, and takes no more than on any disk that refuses.
        """
        session, journal = self._segments.session, self._recorder.journal
        try:
            self._segments.look()
            if session is not None and journal.fd is not None and not self._place.holds(session.path, journal.fd):
                self._recorder.detach()
            if self._segments.astray:
                self._segments.ready()
        except OSError as error:
            self._refused(error)  # where it cannot be told, it is taken to be there

    def _watch_clock(self) -> None:
        clock = self._clocks.offset
        if abs(clock - self._clock) > CLOCK_JUMP:
            self._recorder.turn()  # gets the clock of before
        self._clock = clock

    def _regain_journal(self, session: SessionFolder) -> None:
        """Have the journal in a file, which could not be done before; blocks can be written meanwhile."""
        fd = None
        try:
            if (fd := self._place.create(session.path)) is None:
                return
            self._segments.unsettle()
            self._recorder.attach(fd)
        except OSError as error:
            if fd is not None:
                self._store.files.close(fd)
            self._refused(error)
        else:
            self._recorder.turn()
            self._keep_declared(len(self._recorder.schemas))

    # -- syncing -------------------------------------------------------------------------------------------------

    def _sync_if_due(self) -> bool:
        """Also where blocks are refused: what the journal holds may survive the machine all the same."""
        now = self._clocks.now()
        urgent = self._urgent and now >= self._urgent_at
        due = now - self._synced_at >= self._settings.save_interval
        if urgent or due or any(request.durable for request in self._requests):
            return self._sync()
        return True

    @property
    def _urgent_at(self) -> float:
        """When an error may be synced: not at once after the last sync, and later if the disk has just refused one."""
        return max(self._synced_at + URGENT_PAUSE, self._unsynced_at + TICK)

    def _sync(self) -> bool:
        """Make all that was recorded survive the machine: the segment first, since without its beginning and its
        folder the journal is nobody's. False if that cannot be: the journal is no use, and blocks are refused already
        (no more halves are closed then, each would take its room whatever it holds).

        Where a half was filled since the last sync, what is left in the journal becomes a block as well, and the
        journal is not synced: each page of it that a sync writes would cost the host a page fault when it records there
        again, which takes some 0.05 ms, and one that fills halves records in all of them.
        """
        urgent, self._urgent = self._urgent, False
        synced = False
        try:
            in_blocks = self._filled and not self._full and self._turn()
            self._segments.sync()
            synced = in_blocks or self._sync_journal()
            if not synced and not self._full:
                turned = self._turn()
                self._segments.sync()
                synced = turned
        finally:
            self._urgent |= urgent and not synced
            if synced:
                self._synced_at, self._filled = self._clocks.now(), False
            else:
                self._unsynced_at = self._clocks.now()
        return synced

    def _sync_journal(self) -> bool:
        """Sync what the journal holds; False where that is no use, and blocks must be made of it."""
        journal = self._recorder.journal
        if journal.distrusted or journal.volatile or not journal.crash_proof:
            return False
        try:
            if journal.checkpoint(durable=True):
                journal.sync()
        except OSError as error:
            self._refused(error)
            return False
        return True

    # -- answers -------------------------------------------------------------------------------------------------

    def _refused(self, error: Exception) -> None:
        self._refusals += 1
        self._refusal = self._refusal or error
        told = f"{type(error).__name__}: {error}"
        if told not in self._told:
            self._told.add(told)
            log.warning("the store cannot be written, records are kept in the journal meanwhile: %s", told)
        self.trouble = told

    def _answer(self, *, written: bool) -> None:
        while self._requests:
            request = self._requests.popleft()
            done = written
            if request.seal is not None and not self._ended:
                done = self._end(request.seal, written=written)
            request.answer(done=done)

    def _end(self, reason: SealReason, *, written: bool) -> bool:
        """Seal and retire the session. What the disk refuses stays in the journal, for a later process to recover."""
        self._ended = True
        if written:
            self.trouble = ""  # also that there was no journal: there is nothing left to lose
        for _ in range(SEAL_TRIES if written else 0):
            try:
                self._store.reserve.backing(
                    lambda: self._segments.end(reason, self._recorder.installation, self._recorder.lost)
                )
                break
            except Exception as error:  # noqa: BLE001 - whatever it is, the rest must be let go of; told in the status
                self._refused(error)
        retired = written and self._segments.session is None
        self._recorder.stop()
        self._take_waiting()
        for closed in [each for each in self._full if not each.half.file_backed]:
            self._recorder.forgo(closed.half.counts, Lost.FULL)
        self._let_go_of_all()
        return retired

    def _let_go_of_all(self, *first: Callable[[], object]) -> None:
        journal, segments = self._recorder.journal, self._segments
        for let_go in (segments.give_up, *first, journal.close, segments.close, segments.unlock):
            try:
                let_go()
            except OSError as error:
                self._refused(error)

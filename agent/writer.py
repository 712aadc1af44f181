"""The writer: one thread that turns halves of the journal into blocks of the segment, and syncs what is due.

It sleeps until it is told of a closed half or asked for something, and wakes by itself once a second to look whether
something is due. Whatever the disk refuses stays in the journal and is tried again; nothing here is ever reported by
raising.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from mailboat.agent.clocks import Clocks
from mailboat.agent.journal import Half
from mailboat.agent.recorder import Recorder
from mailboat.agent.recovery import write_schemas
from mailboat.agent.segment_file import SegmentFile, segment_paths
from mailboat.agent.store import SessionFolder, Store
from mailboat.protocol.errors import SegmentError
from mailboat.protocol.segment import SealReason
from mailboat.protocol.summary import SegmentState

log = logging.getLogger("mailboat")

TICK: Final = 1.0
"""Seconds between looks at what is due; also how soon a disk that refused is tried again."""


@dataclass(frozen=True, slots=True)
class WriterSettings:
    """`save_interval` and `segment_age` are seconds, `segment_bytes` bytes, `level` zstd's."""

    save_interval: float = 5.0
    segment_bytes: int = 16 * 1024 * 1024
    segment_age: float = 24 * 3600.0
    level: int = 1


@dataclass(frozen=True, slots=True)
class _Request:
    """What the agent asks for: everything in blocks; then synced if `durable`; then sealed if there is a reason to
    `seal`.
    """

    durable: bool
    seal: SealReason | None
    done: Future[bool] = field(default_factory=Future)


Begin = Callable[[], tuple[SessionFolder, SegmentFile]]


class Writer:
    """Writes one session. `closed` and `urgent` are for the recorder, the rest for the agent; all of them return at
    once.
    """

    def __init__(self, store: Store, begin: Begin, settings: WriterSettings, clocks: Clocks) -> None:
        """`begin` makes the session's folder and first segment; it is called on the writer's thread until it
        succeeds, unless `adopt` was given what it makes.
        """
        self._store, self._begin, self._settings, self._clocks = store, begin, settings, clocks
        self._inbox: queue.SimpleQueue[Half | _Request | None] = queue.SimpleQueue()
        self._full: deque[Half] = deque()
        self._requests: deque[_Request] = deque()
        self._session: SessionFolder | None = None
        self._segment: SegmentFile | None = None
        self._recorder: Recorder
        self._begun = clocks.monotonic()
        self._synced_at = clocks.now()
        self._urgent = False
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="mailboat-writer", daemon=True)
        self.states: tuple[SegmentState, ...] = ()
        self.folder: Path | None = None
        self.trouble = ""

    # -- for the recorder (under its lock) -----------------------------------------------------------------------

    def closed(self, half: Half) -> None:
        """A half was closed: make a block of it."""
        self._inbox.put(half)

    def urgent(self) -> None:
        """An error was recorded: sync at once."""
        if not self._urgent:
            self._urgent = True
            self._inbox.put(None)

    # -- for the agent -------------------------------------------------------------------------------------------

    def adopt(self, session: SessionFolder, segment: SegmentFile) -> None:
        """Use a session that was begun already. Before `start`."""
        self._session, self._segment, self.folder = session, segment, session.path

    def start(self, recorder: Recorder) -> None:
        """Begin to write what `recorder` takes."""
        self._recorder = recorder
        self._thread.start()

    def flush(self, *, durable: bool) -> Future[bool]:
        """Make a block of what was recorded so far and, if `durable`, sync it. The result says whether the disk took
        it.
        """
        return self._ask(_Request(durable, seal=None))

    def seal(self, reason: SealReason) -> Future[bool]:
        """Write what is left, seal the session, and move it to those that wait. The recorder must have stopped."""
        return self._ask(_Request(durable=True, seal=reason))

    def forget_after_fork(self) -> None:
        """In a forked child: let go of the lock, or the parent's session would look alive for as long as the child
        is.
        """
        session, self._session = self._session, None
        if session is not None:
            self._store.files.close(session.lock_fd)

    def _ask(self, request: _Request) -> Future[bool]:
        self._inbox.put(request)
        return request.done

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._ended:
            self._take()
            try:
                written = self._write()
            except Exception as error:  # noqa: BLE001 - the thread must outlive any fault; it is told in the status
                written = False
                self._refused(error)
            self._answer(written=written)

    def _take(self) -> None:
        """Wait for something to do, then take all there is."""
        try:
            self._sort(self._inbox.get(timeout=TICK))
            self._take_waiting()
        except queue.Empty:
            return  # nothing was asked for: only look at what is due

    def _take_waiting(self) -> None:
        while not self._inbox.empty():
            self._sort(self._inbox.get_nowait())  # this thread alone takes

    def _sort(self, entry: Half | _Request | None) -> None:
        if isinstance(entry, _Request):
            self._requests.append(entry)
        elif entry is not None:
            self._full.append(entry)

    def _write(self) -> bool:
        """Write whatever waits, and sync if that is due; False if the disk refused some of it."""
        try:
            self._drain()
            if self._requests:
                self._recorder.turn()
                self._take_waiting()
                self._drain()
            if self._sync_due():
                self._sync()
        except (OSError, SegmentError) as error:
            self._refused(error)
            return False
        self.trouble = ""
        return True

    def _drain(self) -> None:
        while self._full:
            half = self._full[0]
            self._append(half)
            if half.checkpoints:
                self._sync_segment()  # what was promised to survive the machine no longer depends on the journal
            self._full.popleft()
            self._recorder.journal.release(half)
            self._recorder.freed()

    def _append(self, half: Half) -> None:
        segment = self._ready_segment()
        try:
            with half.content() as content:
                segment.block(content, half.counts, self._clocks.offset)
        except SegmentError:
            self._abandon(segment)
            raise

    def _ready_segment(self) -> SegmentFile:
        """The segment to append to, rotated if it is large or old."""
        segment = self._segment
        if segment is None:
            session, segment = self._begin()
            self.adopt(session, segment)
        age = (self._clocks.monotonic() - self._begun) / 1e9
        if segment.writer.size >= self._settings.segment_bytes or age >= self._settings.segment_age:
            if not segment.sealed:
                self._end_segment(segment, SealReason.ROTATED)
            segment = self._follow(segment)
        return segment

    def _follow(self, before: SegmentFile) -> SegmentFile:
        """Begin the segment after `before`."""
        last = before.writer.description
        salt = int.from_bytes(self._clocks.entropy(4), "little")
        description = replace(last, index=last.index + 1, first=before.writer.next, salt=salt)
        made = SegmentFile.create(self._store.files, before.path.parent, description, self._settings.level)
        write_schemas(made, {schema.number: schema for schema in self._recorder.schemas}, self._clocks.offset)
        before.close()
        self._segment, self._begun = made, self._clocks.monotonic()
        return made

    def _end_segment(self, segment: SegmentFile, reason: SealReason) -> None:
        clocks, recorder = self._clocks, self._recorder
        final = reason is not SealReason.ROTATED
        segment.seal(
            reason,
            clocks.wall(),
            clocks.monotonic(),
            recorder.installation if final else None,
            recorder.lost if final else None,
        )
        self._publish()

    # -- syncing -------------------------------------------------------------------------------------------------

    def _sync_due(self) -> bool:
        wanted = self._urgent or any(request.durable for request in self._requests)
        return wanted or self._clocks.now() - self._synced_at >= self._settings.save_interval

    def _sync(self) -> None:
        """Make all that was recorded survive the machine."""
        self._urgent = False
        journal = self._recorder.journal
        if journal.checkpoint():
            journal.sync()
        self._sync_segment()
        self._synced_at = self._clocks.now()

    def _sync_segment(self) -> None:
        segment = self._segment
        if segment is None:
            return
        fresh = not segment.synced
        try:
            segment.sync()
        except OSError:
            self._abandon(segment)
            raise
        if fresh:
            self._store.files.sync_folder(segment.path.parent)
        self._publish()

    def _abandon(self, segment: SegmentFile) -> None:
        """Go on in another segment, for this one's file has failed; it is sealed when the session ends."""
        self._follow(segment)

    def _publish(self) -> None:
        if self._segment is not None:
            state = self._segment.state
            self.states = (*(known for known in self.states if known.index != state.index), state)

    # -- answers -------------------------------------------------------------------------------------------------

    def _refused(self, error: Exception) -> None:
        told = f"{type(error).__name__}: {error}"
        if told != self.trouble:
            log.warning("the store cannot be written, records are kept in the journal meanwhile: %s", told)
        self.trouble = told

    def _answer(self, *, written: bool) -> None:
        while self._requests:
            request = self._requests.popleft()
            done = written
            if request.seal is not None:
                done = self._end(request.seal, written=written)
            request.done.set_result(done)

    def _end(self, reason: SealReason, *, written: bool) -> bool:
        """Seal and retire the session. What the disk refuses stays in the journal, for a later process to recover."""
        self._ended = True
        try:
            if written:
                self._retire(reason)
        except (OSError, SegmentError) as error:
            self._refused(error)
            written = False
        self._recorder.journal.unmap()
        if not written and self._session is not None:
            self._store.files.close(self._session.lock_fd)
        return written

    def _retire(self, reason: SealReason) -> None:
        segment = self._ready_segment()
        self._end_segment(segment, reason)
        segment.close()
        for path in segment_paths(self._store.files, segment.path.parent)[:-1]:
            self._seal_abandoned(path)
        assert self._session is not None  # noqa: S101 - `_ready_segment` saw to it
        self.folder = self._store.retire(self._session)
        self._session = None

    def _seal_abandoned(self, path: Path) -> None:
        segment, _ = SegmentFile.reopen(self._store.files, path, self._settings.level)
        if not segment.sealed:
            segment.seal(SealReason.ABANDONED, self._clocks.wall(), self._clocks.monotonic())
        segment.close()

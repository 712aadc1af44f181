"""One running session: journal, recorder and writer put together, and its summary as it stands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Final

from msgspec.structs import replace

from mailboat.agent.clocks import Clocks
from mailboat.agent.config import AgentConfig
from mailboat.agent.host import boot_id, describe, process_start
from mailboat.agent.journal import Journal
from mailboat.agent.journal_place import InMemory, JournalPlace, OnDisk, memory_folder
from mailboat.agent.last_words import LastWords
from mailboat.agent.log import log
from mailboat.agent.loops import running_loop
from mailboat.agent.quota import Quota
from mailboat.agent.recorder import OnUrgent, Recorder
from mailboat.agent.room import Room
from mailboat.agent.segment_file import SegmentFile
from mailboat.agent.sources import Live
from mailboat.agent.store import SessionFolder, Store
from mailboat.agent.writer import Writer, WriterSettings
from mailboat.protocol.disclosure import boxed_installation, sealed_info
from mailboat.protocol.sealing import PublicKey
from mailboat.protocol.segment import Preamble, SealReason
from mailboat.protocol.summary import Info, Status, Summary

SALT_BYTES: Final = 4

SEAL_TIMEOUT: Final = 10.0
"""Longest wait for the disk when a session is sealed; what is not done by then is left to recovery."""


class Session:
    """The session of this run of the application."""

    def __init__(
        self, info: Info, preamble: Preamble, recorder: Recorder, writer: Writer, last_words: LastWords | None
    ) -> None:
        """Use `open_session`. `info` is the whole description, of which the preamble of a sealed session tells a
        part.
        """
        self.info = info
        self.preamble = preamble
        self.recorder = recorder
        self.writer = writer
        self.last_words = last_words
        self._sealing: Future[bool] | None = None

    @property
    def id(self) -> str:
        """The session's id."""
        return self.preamble.session_id

    async def flush(self, *, durable: bool) -> bool:
        """Have all that was recorded so far in blocks (and synced, if `durable`); False if the disk refused."""
        return await asyncio.wrap_future(self.writer.flush(durable=durable))

    def end(self, reason: SealReason) -> Future[bool]:
        """Take no more records, seal, and move the session to those that wait; False if that is left to recovery."""
        self.recorder.stop()
        if self._sealing is None:  # else it was asked for by a stop that was broken off
            self._sealing = self.writer.seal(reason)
        return self._sealing

    async def seal(self) -> bool:
        """`end` the session as stopped; whether that succeeded in time, else the log says so."""
        sealing = self.end(SealReason.STOPPED)
        if running_loop() is None:
            # A forked child, on its way out of what its parent's loop was just doing: there is nothing to wait with.
            done = bool(wait([sealing], SEAL_TIMEOUT).done)
        else:
            done = bool((await asyncio.wait([asyncio.wrap_future(sealing)], timeout=SEAL_TIMEOUT))[0])
        sealed = done and sealing.result()
        if not sealed:
            log.warning("session %s could not be sealed, a later run will: %s", self.id, self.writer.trouble)
        return sealed

    def listen(self) -> None:
        """Have last words written into the session's folder; on the main thread where possible."""
        if self.last_words is not None:
            self.last_words.listen()

    def listen_no_more(self) -> None:
        """The end of `listen`."""
        if self.last_words is not None:
            self.last_words.end()

    def forget_after_fork(self) -> None:
        """In a forked child: the session is the parent's."""
        self.writer.forget_after_fork()
        if self.last_words is not None:
            self.last_words.forget()

    def leaving(self, *, crashed: bool) -> Future[bool]:
        """The process is about to end, in order unless it `crashed`, and nobody has stopped: have all on the disk that
        was recorded so far.

        Recording goes on; what comes now stays in the journal.
        """
        with self.recorder.lock:
            if self.recorder.recording and not crashed:
                self.recorder.journal.note_leaving()
        return self.writer.flush(durable=True)

    def summary(self, clocks: Clocks) -> Summary:
        """The session as it stands: as it may be offered, hence in boxes where it is sealed."""
        installation, sealed = self.recorder.installation or {}, self.preamble.sealed
        boxed = boxed_installation(PublicKey(sealed.to), self.id, installation) if sealed and installation else b""
        shown = {} if sealed else installation
        return Summary(
            session_id=self.id,
            info=Info.from_wire(dict(self.preamble.info)),
            started=max(0, self.preamble.started_wall) / 1e9,
            ended=max(0, clocks.wall()) / 1e9,
            duration=max(0, clocks.monotonic() - self.preamble.started_monotonic) / 1e9,
            status=Status.RUNNING,
            counts=tuple(self.recorder.kept_counts),
            segments=self.writer.states,
            installation=shown.get("id", ""),
            installation_properties=shown.get("properties", {}),
            lost=dict(self.recorder.lost),
            boxed_info=sealed.info if sealed else b"",
            boxed_installation=boxed,
        )

    async def live(self, clocks: Clocks) -> Live | None:
        """The session as it may be offered: flushed and synced first; None if nothing of it is on disk."""
        await self.flush(durable=True)
        folder = self.writer.folder
        return Live(self.summary(clocks), folder) if folder is not None and self.writer.states else None


def open_session(config: AgentConfig, store: Store, clocks: Clocks, pid: int, urgent: OnUrgent) -> Session:
    """Begin a session. Blocks, and never raises for the disk's sake: what it refuses is kept in memory, and tried
    again; the writer's `trouble` says why.

    `urgent` is called after each record of level error and up, on the thread that recorded it, as a recorder does it.
    """
    return _open(describe(config), config, store, clocks, pid, urgent)


def open_in_child(
    parent: Session, config: AgentConfig, store: Store, clocks: Clocks, pid: int, urgent: OnUrgent
) -> Session:
    """Begin the session of a forked child, that names its `parent`, with the parent's recorder; under its lock.

    Blocks for a millisecond or two, and never raises for the disk's sake, as `open_session`.
    """
    info = replace(parent.info, parent=parent.id)
    return _open(info, config, store, clocks, pid, urgent, parent.recorder)


def _preamble(clocks: Clocks, pid: int, info: Info, seal_to: str | None) -> Preamble:
    session_id, sealed = clocks.new_id(), None
    if seal_to is not None:
        info, sealed = sealed_info(info, PublicKey.parse(seal_to), session_id)
    return Preamble(
        session_id=session_id,
        index=0,
        salt=int.from_bytes(clocks.entropy(SALT_BYTES), "little"),
        first=0,
        started_wall=clocks.wall(),
        started_monotonic=clocks.monotonic(),
        pid=pid,
        process_started=process_start(),
        boot_id=boot_id(),
        info=info.to_wire(),
        sealed=sealed,
    )


def _open(
    info: Info,
    config: AgentConfig,
    store: Store,
    clocks: Clocks,
    pid: int,
    urgent: OnUrgent,
    recorder: Recorder | None = None,
) -> Session:
    settings = WriterSettings(config.save_interval, config.segment_bytes, config.segment_age, config.compression_level)
    preamble = _preamble(clocks, pid, info, config.seal_to)
    place: JournalPlace = OnDisk(store.files)
    if preamble.sealed is not None:
        place = InMemory(store.files, memory_folder(config.sealed_journal))

    def begin() -> tuple[SessionFolder, SegmentFile]:
        return store.begin(preamble, config.compression_level, clocks.entropy)

    room = Room(Quota(config.max_store_bytes, config.max_store_age, config.min_free_bytes))
    writer = Writer(store, begin, settings, clocks, place, room)
    journal, trouble = _journal(config, store, writer, begin, preamble.boot_id, place)

    def on_urgent(*fields: object) -> None:
        writer.urgent()
        urgent(*fields)

    in_child = recorder is not None
    if recorder is None:
        recorder = Recorder(journal, on_full=writer.closed, on_urgent=on_urgent, clock=clocks.monotonic)
    else:
        recorder.begin_anew(journal, on_full=writer.closed, on_urgent=on_urgent)
    writer.lack_journal(trouble)
    try:
        writer.start(recorder)
    except RuntimeError:
        if not in_child:  # what that records goes into the journal all the same, for a recovery
            writer.undo()
        raise
    folder = writer.folder if config.hooks and config.seal_to is None else None  # they would lie there as they are
    last_words = LastWords.prepare(store.files, folder) if folder is not None else None
    return Session(info, preamble, recorder, writer, last_words)


def _journal(
    config: AgentConfig,
    store: Store,
    writer: Writer,
    begin: Callable[[], tuple[SessionFolder, SegmentFile]],
    boot: str,
    place: JournalPlace,
) -> tuple[Journal, str]:
    """The journal in its `place`, or in plain memory together with the reason."""
    fd, trouble = None, ""
    try:
        session, segment = begin()
        writer.adopt(session, segment)
        fd = place.create(session.path)
        if fd is not None:
            return Journal(store.files, fd, config.journal_bytes, boot, volatile=place.volatile), ""
    except OSError as error:
        trouble = f"{type(error).__name__}: {error}"
        if fd is not None:
            store.files.close(fd)
    return Journal(store.files, None, config.journal_bytes, boot, volatile=place.volatile), trouble


def end_unwanted(beginning: asyncio.Future[Session]) -> None:
    """The start was cancelled while the session was being made: it ends as it began, empty."""
    if not beginning.cancelled() and beginning.exception() is None:
        beginning.result().end(SealReason.STOPPED)

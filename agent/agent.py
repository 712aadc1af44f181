"""The agent: what an application embeds.

It records through plain functions that never wait and never raise, and delivers in the background. Its life: `start`
(or ``async with``), any number of records from any thread, `stop`. Records before and after are ignored.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self

from mailboat.agent.backlog import Backlog, Running, read
from mailboat.agent.clocks import Clocks
from mailboat.agent.config import AgentConfig
from mailboat.agent.eviction import evict_as_sender
from mailboat.agent.files import FileSystem, OsFileSystem
from mailboat.agent.host import boot_id
from mailboat.agent.http import Http
from mailboat.agent.quota import Quota
from mailboat.agent.recovery import bring_to_rest
from mailboat.agent.report import AgentState, SessionOutcome, Status, SyncProgress, SyncReport, one_line
from mailboat.agent.rounds import Live, Sources
from mailboat.agent.scrub import Scrubber
from mailboat.agent.scrubbed import Recording, ScrubbedRecorder
from mailboat.agent.session import Opened, Session, open_session
from mailboat.agent.store import SessionFolder, Store
from mailboat.agent.synchronizer import Synchronizer
from mailboat.agent.timing import Timing
from mailboat.agent.tus_sink import connect
from mailboat.protocol.errors import ConfigError
from mailboat.protocol.records import Kind, Level
from mailboat.protocol.segment import SealReason

log = logging.getLogger("mailboat")

RECORDS_TRIGGER: Final = 20_000
"""So many records since the running session was last offered make it eligible."""

AGE_TRIGGER: Final = 24 * 3600.0
"""So many seconds since it was last offered do, too."""

LEAVE_TIMEOUT: Final = 1.0
"""Longest wait, at the end, for what the store's thread still does; it ends by itself."""

EVICTION_INTERVAL: Final = 60.0
"""Seconds between looks at the store's quotas, each of which reads the sizes of all that is kept."""

SEAL_TIMEOUT: Final = 10.0
"""Longest wait for the disk when a session is sealed; what is not done by then is left to recovery."""


class Agent:
    """Records one session at a time and delivers all that wait.

    Arguments are those of `AgentConfig.load`, or a ready `AgentConfig` as `config`. Raises `ConfigError` for settings
    that cannot work; nothing else it does raises for the sake of disk or network.
    """

    def __init__(self, config: AgentConfig | None = None, **settings: Any) -> None:  # noqa: ANN401 - fields of AgentConfig
        if config is not None and settings:
            raise ConfigError(f"config is given, so {', '.join(sorted(settings))} must be set in it")
        self.config = config if config is not None else AgentConfig.load(**settings)
        self._clocks = Clocks()
        self._files: FileSystem = OsFileSystem()
        self._state = AgentState.NEW if self.config.active else AgentState.DISABLED
        self._session: Session | None = None
        self._store: Store | None = None
        self._disk: ThreadPoolExecutor | None = None
        self._http: Http | None = None
        self._sync: Synchronizer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._offered_records = 0
        self._offered_at = 0.0
        self._alerted_at: float | None = None
        self._evicted_at: float | None = None
        self._alert_timer: asyncio.TimerHandle | None = None
        self._recovered: asyncio.Task[None]
        self._backlog = Backlog(self._running)
        self._trouble = ""
        self._point_at(None)

    # -- life ----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """`start`."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """`stop`."""
        await self.stop()

    async def start(self) -> None:
        """Begin a session, and delivering. Sessions that earlier runs left, crashed ones included, are taken up.

        Nothing happens when the agent is disabled or was started before.
        """
        if self._state is not AgentState.NEW:
            return
        self._loop = asyncio.get_running_loop()
        config = self.config
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="mailboat-store")
        store = self._store = Store(self._files, config.store_root, config.product, config.application)
        opening = self._loop.run_in_executor(
            self._disk, open_session, config, store, self._clocks, os.getpid(), self._urgent
        )
        try:
            opened = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_end_unwanted)
            self._disk.shutdown(wait=False)
            raise
        self._session = opened.session
        self._offered_at = self._clocks.now()
        self._state = AgentState.RUNNING
        self._point_at(opened.session)
        _LIVING.add(self)
        self._deliver(store, self._disk)

    def _deliver(self, store: Store, disk: ThreadPoolExecutor) -> None:
        config, agent = self.config, str(self._session.preamble.info["agent"]) if self._session is not None else ""
        if config.server is not None:
            self._http, sink = connect(config, agent, self._clocks, self._files, disk)
            sources = Sources(store, self._live, disk, self._running, self._take_up)
            self._sync = Synchronizer(
                self._http,
                sources,
                self._clocks,
                agent=agent,
                concurrency=config.upload_concurrency,
                interval=config.sync_interval,
                purge=config.purge_sent,
                sink=sink,
            )
            self._backlog = self._sync.backlog
        self._recovered = asyncio.create_task(self._recover(), name="mailboat-recovery")
        self._tasks.append(self._recovered)
        if self._sync is not None and config.synchronize_automatically and config.sender:
            self._tasks.append(asyncio.create_task(self._automatic(self._sync), name="mailboat-sync"))
            self._tasks.append(asyncio.create_task(self._watch(self._sync), name="mailboat-watch"))

    async def stop(self, timeout: float | None = None) -> None:
        """End the session: flush and seal it, then try to deliver for at most `timeout` seconds (None: as configured;
        zero: not).

        Nothing is lost when the time runs out. Without effect when the agent does not run.
        """
        if self._state is not AgentState.RUNNING or self._session is None or self._disk is None:
            return
        self._state = AgentState.STOPPED
        self._point_at(None)
        _LIVING.discard(self)
        seconds = self.config.stop_timeout if timeout is None else timeout
        try:
            if self._sync is not None:
                await self._sync.close()
            await self._seal(self._session)
            if self._sync is not None and self.config.sender and seconds > 0:
                await self._sync.window(seconds)
        finally:
            await self._let_go()

    async def _seal(self, session: Session) -> None:
        sealed = asyncio.wrap_future(session.end(SealReason.STOPPED))
        done, _ = await asyncio.wait([sealed], timeout=SEAL_TIMEOUT)
        if not done or not sealed.result():
            log.warning("session %s could not be sealed, a later run will: %s", session.id, session.writer.trouble)

    async def _let_go(self) -> None:
        if self._alert_timer is not None:
            self._alert_timer.cancel()
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, Exception):  # a fault of our own, which must not become the host's
                log.error("a task of the agent failed: %r", outcome, exc_info=outcome)
        self._tasks.clear()
        if self._sync is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_TIMEOUT):
                    await self._sync.finish()
        if self._http is not None:
            await self._http.close()
        if self._disk is not None and self._store is not None:
            left = asyncio.wrap_future(self._disk.submit(self._store.cease_sending))
            self._disk.shutdown(wait=False)
            await asyncio.wait([left], timeout=LEAVE_TIMEOUT)  # so that whoever starts next may send at once

    # -- recording -----------------------------------------------------------------------------------------------

    def _point_at(self, session: Session | None) -> None:
        """Make the recording calls those of `session`, or calls without effect."""
        recorder: Recording | None = session.recorder if session is not None else None
        if session is not None and self.config.scrub is not None:
            recorder = ScrubbedRecorder(session.recorder, Scrubber(self.config.scrub))
        self.feature: Callable[..., None] = recorder.feature if recorder is not None else _ignore
        self._recorder = recorder

    def value(self, name: str, number: float, /, unit: str | None = None, **attributes: object) -> None:
        """Record a number to be aggregated, in `unit`."""
        if self._recorder is not None:
            self._recorder.value(name, number, unit, **attributes)

    def timing(self, name: str, /, **attributes: object) -> Timing:
        """A context manager that records how long its block took; ``cancel()`` on it discards."""
        return Timing(self._time, name, attributes)

    def _time(self, name: str, nanoseconds: int, attributes: dict[str, Any]) -> None:
        if self._recorder is not None:
            self._recorder.timing(name, nanoseconds, attributes)

    def event(self, name: str, /, level: int = Level.INFO, message: str | None = None, **attributes: object) -> None:
        """Record anything else, with a `level` of `Level` and an optional text."""
        if self._recorder is not None:
            self._recorder.event(name, level, message, **attributes)

    def exception(
        self, error: BaseException | None = None, /, context: str | None = None, **attributes: object
    ) -> None:
        """Record `error`, or the exception being handled; `context` says what was being done."""
        if self._recorder is not None:
            self._recorder.exception(error, context, attributes=attributes)

    def set_installation(self, installation_id: str, /, **properties: object) -> None:
        """Say which installation this is, and what is known of it."""
        if self._recorder is not None:
            self._recorder.set_installation(installation_id, properties)

    def emitter(self, name: str, /, *fields: str, kind: Kind = Kind.FEATURE) -> Callable[..., None]:
        """Declare a record once; the function returned records its `fields` by position, at half the cost.

        It belongs to the running session: outside of one it does nothing.
        """
        return _ignore if self._recorder is None else self._recorder.emitter(name, fields, kind)

    # -- delivering ----------------------------------------------------------------------------------------------

    @property
    def session_id(self) -> str | None:
        """The id of the running (or last) session."""
        return self._session.id if self._session is not None else None

    async def flush(self, *, durable: bool = False) -> bool:
        """Have all that was recorded so far in the segment, and with `durable` on the disk, so that it survives the
        machine.

        False when the disk refuses (the records are kept in the journal then), or nothing is running.
        """
        if self._state is not AgentState.RUNNING or self._session is None:
            return False
        return await self._session.flush(durable=durable)

    async def force_sync(
        self, timeout: float | None = None, progress: Callable[[SyncProgress], None] | None = None
    ) -> SyncReport:
        """Use a connectivity window: deliver everything that waits, and the running session so far, until done or
        `timeout`.

        Goes on at the very byte where the last window ended. It ends a pause, never waits for one; while automatic
        delivery is under way it takes its place. It may be cancelled at any point. `timeout` is seconds; without one
        it gives up at the first failure.
        """
        if self._state is not AgentState.RUNNING:
            return SyncReport(error=f"the agent is {self._state}")
        if self._sync is None:
            return SyncReport(error="no server is configured")
        begun = self._clocks.now()
        recovered, _ = await asyncio.wait([self._recovered], timeout=timeout)
        if not recovered or self._state is not AgentState.RUNNING:
            why = "the agent was stopped" if recovered else "recovery of crashed sessions took all the time"
            return SyncReport(duration=self._clocks.now() - begun, error=why)
        left = None if timeout is None else max(0.0, timeout - (self._clocks.now() - begun))
        report = await self._sync.window(left, progress)
        self._note_offered()
        return report

    async def delivered(self, session_id: str, timeout: float | None = None) -> SessionOutcome:
        """The final outcome of a session, as soon as it has one. Raises `TimeoutError` after `timeout` seconds, and at
        once when it can have none any more, because the agent has stopped.
        """
        if self._sync is None:
            raise TimeoutError("no server is configured, so nothing will ever be delivered")
        async with asyncio.timeout(timeout):
            return await self._sync.delivered(session_id)

    def pause(self) -> None:
        """Say that there is no connection to be used: nothing is sent by itself until `resume`."""
        self._in_loop(lambda sync: sync.pause())

    def resume(self) -> None:
        """Say that the connection is back."""
        self._in_loop(lambda sync: sync.resume())

    @property
    def status(self) -> Status:
        """How things stand."""
        session, sync = self._session, self._sync
        if session is None:
            return Status(self._state)
        recorder = session.recorder
        status = Status(
            state=self._state,
            session_id=session.id,
            recorded=recorder.recorded,
            lost=dict(recorder.lost),
            crash_proof=recorder.journal.crash_proof,
            trouble=session.writer.trouble or self._trouble,
            waiting_sessions=self._backlog.sessions,
            waiting_bytes=self._backlog.bytes,
            ledger=self._backlog.ledger,
        )
        return status if sync is None else self._with_delivery(status, sync)

    def _with_delivery(self, status: Status, sync: Synchronizer) -> Status:
        until = sync.link.until
        return replace(
            status,
            trouble=status.trouble or sync.trouble,
            connectivity=sync.link.link.value,
            reason=sync.link.reason,
            next_attempt=None if until is None else max(0.0, until - self._clocks.now()),
        )

    # -- behind the scenes ---------------------------------------------------------------------------------------

    async def _live(self) -> Live | None:
        session = self._session
        return await session.live(self._clocks) if session is not None and self._state is AgentState.RUNNING else None

    def _running(self) -> Running | None:
        session = self._session
        if session is None:
            return None
        return Running(session.id, session.recorder.recorded, session.recorder.lost)

    async def _recover(self) -> None:
        """Take up what earlier runs left."""
        await self._take_up()
        if self._sync is None and self._store is not None:
            store, loop = self._store, asyncio.get_running_loop()
            try:
                self._backlog.seen(*await loop.run_in_executor(self._disk, lambda: read(store, sender=False)))
            except OSError as error:
                self._note_trouble([error])

    async def _take_up(self) -> None:
        """Bring the sessions of dead processes to rest, one after the other."""
        store, loop = self._store, asyncio.get_running_loop()
        if store is None:
            return
        failures: list[OSError] = []
        try:
            crashed = await loop.run_in_executor(self._disk, _crashed, store)
            while self._state is AgentState.RUNNING:
                if not await loop.run_in_executor(self._disk, _recover_next, store, crashed, failures):
                    break
            await self._keep_quota(store)
        except OSError as error:
            failures.append(error)
        self._note_trouble(failures)

    async def _keep_quota(self, store: Store) -> None:
        """Give up sessions where the store is too large, too old or its disk too full; at most once a minute."""
        now, config = self._clocks.now(), self.config
        if self._evicted_at is not None and now - self._evicted_at < EVICTION_INTERVAL:
            return
        self._evicted_at = now
        quota = Quota(config.max_store_bytes, config.max_store_age, config.min_free_bytes)
        wall = self._clocks.wall() / 1e9
        await asyncio.get_running_loop().run_in_executor(self._disk, evict_as_sender, store, quota, wall)

    def _note_trouble(self, failures: Sequence[OSError]) -> None:
        error = next(iter(failures), None)
        told = one_line(f"sessions of earlier runs cannot be taken up now: {type(error).__name__}: {error}")
        if error is not None and told != self._trouble:
            log.warning("%s", told)
        self._trouble = told if error is not None else ""

    async def _automatic(self, sync: Synchronizer) -> None:
        await asyncio.wait([self._recovered])
        await sync.run(self.config.startup_delay)

    async def _watch(self, sync: Synchronizer) -> None:
        """Make the running session eligible when it has grown or aged enough."""
        while True:
            await asyncio.sleep(1.0)
            grown = (
                self._session is not None and self._session.recorder.recorded - self._offered_records >= RECORDS_TRIGGER
            )
            if grown or self._clocks.now() - self._offered_at >= AGE_TRIGGER:
                self._note_offered()
                sync.wake(include_live=True)

    def _note_offered(self) -> None:
        self._offered_at = self._clocks.now()
        self._offered_records = self._session.recorder.recorded if self._session is not None else 0

    def _urgent(self) -> None:
        """An error was recorded, on whatever thread."""
        if self.config.send_on_error and self.config.synchronize_automatically:
            self._in_loop(self._alert)

    def _alert(self, sync: Synchronizer) -> None:
        now = self._clocks.now()
        due = 0.0 if self._alerted_at is None else self._alerted_at + self.config.alert_interval - now
        if due <= 0:
            self._alerted_at = now
            sync.wake(include_live=True)
        elif self._alert_timer is None and self._loop is not None:
            self._alert_timer = self._loop.call_later(due, self._alert_later, sync)

    def _alert_later(self, sync: Synchronizer) -> None:
        self._alert_timer = None
        self._alert(sync)

    def _in_loop(self, call: Callable[[Synchronizer], None]) -> None:
        sync, loop = self._sync, self._loop
        if sync is not None and loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing will be sent by this process anyway
                loop.call_soon_threadsafe(call, sync)

    def _forked(self) -> None:
        """In a forked child: the session is the parent's."""
        session, self._session = self._session, None
        self._state = AgentState.STOPPED
        self._point_at(None)
        self._sync = self._loop = None
        self._tasks.clear()
        if session is not None:
            session.recorder.forget_after_fork()
            session.writer.forget_after_fork()


def _end_unwanted(opening: asyncio.Future[Opened]) -> None:
    """The start was cancelled while the session was being made: it ends as it began, empty."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().session.end(SealReason.STOPPED)


def _crashed(store: Store) -> Iterator[SessionFolder]:
    store.sweep()
    return iter(store.crashed())


def _recover_next(store: Store, crashed: Iterator[SessionFolder], failures: list[OSError]) -> bool:
    """Recover one crashed session; False when there is none left. One that the disk refuses stops no other."""
    session = next(crashed, None)
    if session is None:
        return False
    error = bring_to_rest(store, session, boot_id())
    if isinstance(error, OSError):
        failures.append(error)
    elif error is not None:
        log.warning("crashed session %s is put aside: %s", session.path.name, error)
    return True


def _ignore(*_: object, **__: object) -> None:
    """What recording does when nothing is being recorded."""


_LIVING: weakref.WeakSet[Agent] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for agent in tuple(_LIVING):
        agent._forked()  # noqa: SLF001 - this module's own class
    _LIVING.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

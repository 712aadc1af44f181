"""The agent: what an application embeds.

It records through plain functions that never wait and never raise, and delivers in the background. Its life: `start`
(or ``async with``), any number of records from any thread, `stop`. Records before and after are ignored.

A forked child has a copy of it that belongs to the parent. What the child records with it goes into a session of the
child's own, begun with the first record, which names the parent's; it is delivered by the parent, or whoever else
sends, once the child has ended. `start` makes the copy an agent like any other, which delivers by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from mailboat.agent import process
from mailboat.agent.alerts import Alerts, OnAlert
from mailboat.agent.backlog import Backlog, Running
from mailboat.agent.calls import RecordingCalls
from mailboat.agent.clocks import Clocks
from mailboat.agent.config import AgentConfig
from mailboat.agent.files import FileSystem, OsFileSystem
from mailboat.agent.integrations.hooks import Hooks
from mailboat.agent.link_policy import LinkState
from mailboat.agent.log import log
from mailboat.agent.loops import LEAVE_TIMEOUT, LOOP_ENDED, LoopEnded, UnderWay, elsewhere, owned, running_loop
from mailboat.agent.report import FORKED, NO_SERVER, AgentState, SessionOutcome, Status, SyncProgress, SyncReport
from mailboat.agent.sending import Sending
from mailboat.agent.session import Session, end_unwanted, open_in_child, open_session
from mailboat.agent.sources import Live, Sources
from mailboat.agent.store import Store
from mailboat.agent.stores import Stores
from mailboat.agent.upkeep import Upkeep
from mailboat.protocol.errors import ConfigError

if TYPE_CHECKING:
    from mailboat.agent.synchronizer import Synchronizer


class Agent(RecordingCalls):
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
        self._stores: Stores | None = None
        self._listeners: list[Callable[[SessionOutcome], None]] = []
        self._disk: ThreadPoolExecutor | None = None
        self._sending: Sending | None = None
        self._alerts = Alerts(self._clocks)
        self._upkeep: Upkeep | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._recovered: asyncio.Task[None]
        self._seen = Backlog(self._running)
        self._hooks = Hooks(self, enabled=self.config.hooks)
        self._crashing, self._failed = False, ""
        self._parent: Session | None = None
        self._under_way: UnderWay | None = None
        self._said: dict[str, Callable[[Synchronizer], None]] = {}
        super().__init__()

    # -- life ----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """`start`."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """`stop`; an exception that leaves the block is recorded first, see `integrations.hooks`."""
        self._hooks.left(error)
        await self.stop()

    async def start(self) -> None:
        """Begin a session, and delivering. Sessions that earlier runs left, crashed ones included, are taken up.

        Nothing happens when the agent is disabled or runs already. One that was stopped begins another session, and so
        do one whose loop has ended (with `asyncio.run`, perhaps) and the copy in a forked child. Where the process gets
        no thread, the log and `status.trouble` say so, and it may be started later.
        """
        await self._end_earlier_run()
        if self._state not in (AgentState.NEW, AgentState.FORKED):
            return
        starting = self._under_way = UnderWay()
        try:
            await self._start(asyncio.get_running_loop())
        finally:
            self._is_done(starting)

    async def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        process.enter(self)  # a child that is forked from now on has no part in this start
        disk = ThreadPoolExecutor(1, thread_name_prefix="mailboat-store")
        store = Store(self._files, self.config.store_root, self.config.product, self.config.application)
        sending = Sending(self.config, self._clocks, disk) if self.config.server is not None else None
        beginning: asyncio.Future[Session] | None = None
        try:
            beginning = loop.run_in_executor(disk, self._begin, store, sending)
            session = await asyncio.shield(beginning)
        except (asyncio.CancelledError, RuntimeError, MemoryError) as error:
            disk.shutdown(wait=False)
            self._loop = None
            if not isinstance(error, asyncio.CancelledError):  # no thread is to be had: the host goes on without us
                self._failed = f"the agent cannot be started: {error!r}"
                log.exception("%s", self._failed)
                return
            if beginning is not None and self._parent is None:
                beginning.add_done_callback(end_unwanted)
            raise
        self._disk, self._session, self._failed = disk, session, ""
        self._state = AgentState.RUNNING
        self._record_with(session.recorder, self.config.scrub)
        self._hooks.install(loop)
        session.listen()
        self._deliver(session, store, disk, sending)

    async def _end_earlier_run(self) -> None:
        await self._settled()
        if self._state is AgentState.RUNNING and self._loop is not None and self._loop.is_closed():
            await self.stop(0.0)
        if self._state is AgentState.STOPPED:
            self._state = AgentState.NEW if self.config.active else AgentState.DISABLED
            self._session = self._parent = self._loop = self._sending = self._upkeep = self._disk = self._stores = None
            self._tasks, self._seen, self._crashing = [], Backlog(self._running), False

    async def _settled(self) -> None:
        """Wait for a start or a stop that is under way; one whose loop was closed is undone, or brought to its end."""
        while (under_way := self._under_way) is not None:
            try:
                await under_way.wait()
            except LoopEnded:
                if under_way is self._under_way and self._state is AgentState.STOPPED:
                    await self._stop_without_loop()
                elif under_way is self._under_way:
                    self._under_way = self._loop = None

    def _is_done(self, under_way: UnderWay) -> None:
        if self._under_way is under_way and not under_way.abandoned:
            self._under_way = None
            if self._state is AgentState.STOPPED:
                process.leave(self)
        under_way.end()

    def _begin(self, store: Store, sending: Sending | None) -> Session:
        """A session, in a forked child the one that its first record has begun, or would have; and what delivers."""
        session = self._session if self._parent is not None and self._parent.recorder.revive() else None
        if session is None:
            session = open_session(self.config, store, self._clocks, os.getpid(), self._alerts.noted)
        if sending is not None:
            sending.load()
        return session

    def _deliver(self, session: Session, store: Store, disk: ThreadPoolExecutor, sending: Sending | None) -> None:
        config, agent = self.config, str(session.preamble.info["agent"])
        stores = self._stores = Stores(store, everyones=config.send_all_applications)
        room, going = session.writer.room, lambda: self._state is AgentState.RUNNING
        upkeep = self._upkeep = Upkeep(stores, disk, self._clocks, room, session.id, going)
        self._recovered = owned(self._recover(upkeep), "mailboat-recovery")
        watching = upkeep.watch(self._recovered, lambda: self._in_loop(lambda sync: sync.store_has_room()))
        living = owned(self._outlive_loop(), "mailboat-life")
        self._tasks += [self._recovered, owned(watching, "mailboat-upkeep"), living]
        self._sending, recorded = sending, lambda: session.recorder.recorded
        if sending is not None:
            sources = Sources(stores, self._live, disk, self._running, upkeep.take_up)
            self._tasks += sending.begin(agent, sources, recorded, tuple(self._listeners), self._recovered)
            while self._said:
                sending.tell(self._said.popitem()[1])
        self._alerts.enter(asyncio.get_running_loop(), sending.on_errors if sending is not None else None)

    async def _outlive_loop(self) -> None:
        """When the loop ends, and nobody has stopped: let others send, and go on recording."""
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            if self._state is AgentState.RUNNING:
                self._give_way()
                if self._sending is not None:
                    await self._sending.close()
            raise

    async def stop(self, timeout: float | None = None) -> None:
        """End the session: flush and seal it, then try to deliver for at most `timeout` seconds (None: as configured;
        zero: not). A pause and the policy for links hold.

        Nothing is lost when the time runs out. Without effect when the agent does not run, but it waits for a stop
        that is under way, and for a start, which it then undoes.
        """
        await self._settled()
        if self._state is AgentState.RUNNING and self._loop is not running_loop():
            await self._stop_elsewhere(timeout)
        elif self._state in (AgentState.RUNNING, AgentState.FORKED):
            await self._stop(timeout if timeout is not None else self.config.stop_timeout or 0.0)

    async def _stop(self, seconds: float) -> None:
        stopping = self._under_way = UnderWay()
        sync, session = self._sync, self._close_session()
        try:
            if sync is not None:
                await sync.close()
            if session is not None and await session.seal():
                self._backlog.joined(session.summary(self._clocks))
            if sync is not None and self.config.sender and seconds > 0:
                await sync.last_window(seconds)
        finally:
            try:
                if not stopping.abandoned:
                    await self._let_go()
            finally:
                self._is_done(stopping)

    async def _stop_elsewhere(self, timeout: float | None) -> None:
        """`stop`, asked for in another loop than the agent was started in."""
        try:
            await elsewhere(self._loop, lambda: self.stop(timeout))
        except LoopEnded:
            if self._state is AgentState.RUNNING:
                await self._stop_without_loop()
            else:
                await self._settled()

    async def _stop_without_loop(self) -> None:
        """`stop` where the loop has ended in which the agent was started."""
        self._tasks.clear()  # nobody can wait for them any more
        if self._sending is not None:
            self._sending.abandon()
        await self._stop(0.0)

    def _close_session(self) -> Session | None:
        """Take no more records; returns the session, which is still to be sealed."""
        self._state = AgentState.STOPPED
        self._record_with(None)
        if self._parent is not None:
            self._parent.recorder.stop()
        return self._session

    async def _let_go(self) -> None:
        self._alerts.leave()
        self._hooks.remove()
        if self._sending is not None:
            self._sending.errors_no_more()
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True) if self._tasks else ():
            if isinstance(outcome, Exception) and not process.ends_work(outcome):  # a fault of our own, not the host's
                log.error("a task of the agent failed: %r", outcome, exc_info=outcome)
        self._tasks.clear()
        if self._sync is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_TIMEOUT):
                    await self._sync.finish()
        if self._sending is not None:
            await self._sending.close()
        if self._session is not None:
            self._session.listen_no_more()
        left = self._give_way()
        if self._disk is not None:
            self._disk.shutdown(wait=False)
        if left is not None:  # whoever starts next may send at once
            await asyncio.wait([asyncio.wrap_future(left)], timeout=LEAVE_TIMEOUT)

    def _give_way(self) -> Future[None] | None:
        """Leave the place of the sender to another process."""
        if self._disk is None or self._stores is None:
            return None
        with contextlib.suppress(RuntimeError):  # the interpreter ends, which frees the place, too
            return self._disk.submit(self._stores.cease_sending)
        return None

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
        it gives up at the first failure. `progress` is called in the agent's loop.
        """
        if self._state is not AgentState.RUNNING:
            return SyncReport(error=f"the agent is {self._state}")
        if self._sending is None:
            return SyncReport(error=NO_SERVER)
        if self._loop is not running_loop():
            try:
                return await elsewhere(self._loop, lambda: self.force_sync(timeout, progress))
            except LoopEnded as ended:
                return SyncReport(error=str(ended))
        begun = self._clocks.now()
        recovered, _ = await asyncio.wait([self._recovered], timeout=timeout)
        if not recovered or self._state is not AgentState.RUNNING:
            why = "the agent was stopped" if recovered else "recovery of crashed sessions took all the time"
            return SyncReport(duration=self._clocks.now() - begun, error=why)
        left = None if timeout is None else max(0.0, timeout - (self._clocks.now() - begun))
        return await self._sending.window(left, progress)

    async def delivered(self, session_id: str, timeout: float | None = None) -> SessionOutcome:
        """The final outcome of a session, once it has one; of the running one how it stands, once the server has all
        recorded so far. Raises `TimeoutError` after `timeout` seconds, or at once when the agent has stopped before.
        """
        if self._sync is None:
            raise TimeoutError(f"this process sends nothing: {self._why_silent or 'the agent was not started'}")
        if self._state is AgentState.RUNNING and self._loop is not running_loop():
            try:
                return await elsewhere(self._loop, lambda: self.delivered(session_id, timeout))
            except LoopEnded as ended:
                raise TimeoutError(str(ended)) from None
        async with asyncio.timeout(timeout):
            return await self._sync.delivered(session_id)

    def pause(self) -> None:
        """Say that there is no connection to be used: nothing is sent by itself until `resume`."""
        self._say("pause", lambda sync: sync.pause())

    def resume(self) -> None:
        """Say that the connection is back."""
        self._say("pause", lambda sync: sync.resume())

    def on_alert(self, callback: OnAlert) -> None:
        """Have `callback` told of errors: records of level error and up, and exceptions, those of one moment together.

        It is called in the agent's loop, so it must be quick, with an `Alert`, whether or not a server is configured.
        What it returns says what becomes of the send that errors cause: False forbids it, a number puts it off by so
        many seconds, None lets it go on. The records themselves are kept in any case, and sent with the session later.
        If it raises, that is logged, and the session is sent. Errors that it records itself raise no alert.
        """
        self._alerts.add(callback)

    def set_link(self, name: str = "", *, metered: bool = False) -> None:
        """Say what kind of link there is now: a name of your own, and whether its bytes cost money. The configured
        `policy` is asked anew, and a pause after failures ends, as the way to the server has changed.
        """
        way = LinkState(metered, name)
        self._say("link", lambda sync: sync.set_way(way))

    def on_outcome(self, callback: Callable[[SessionOutcome], None]) -> None:
        """Have `callback` called, within the agent's loop, with the final outcome of each session that this process
        sends. It must not wait; one that raises is not called again.
        """
        self._listeners.append(callback)
        self._in_loop(lambda sync: sync.listeners.append(callback))

    @property
    def status(self) -> Status:
        """How things stand."""
        session, sync = self._session, self._sync
        if session is None:
            lost = dict(self._parent.recorder.lost) if self._parent is not None else {}
            return Status(self._state, reason=self._why_silent, lost=lost, trouble=self._failed)
        recorder = session.recorder
        status = Status(
            state=self._state,
            session_id=session.id,
            recorded=recorder.recorded,
            lost=dict(recorder.lost),
            crash_proof=recorder.journal.crash_proof,
            trouble=session.writer.trouble or (self._upkeep.trouble if self._upkeep else "") or self._not_sending,
            waiting_sessions=self._backlog.sessions,
            waiting_bytes=self._backlog.bytes,
            ledger=self._backlog.ledger,
            reason=self._why_silent,
        )
        return status if sync is None else sync.completed(status)

    # -- behind the scenes ---------------------------------------------------------------------------------------

    async def _live(self) -> Live | None:
        session = self._session
        return await session.live(self._clocks) if session is not None and self._state is AgentState.RUNNING else None

    def _running(self) -> Running | None:
        session = self._session
        return None if session is None else Running(session.id, session.recorder.kept, session.recorder.lost)

    async def _recover(self, upkeep: Upkeep) -> None:
        """Take up what earlier runs left, and say what waits: whoever sends only when there is a connection looks at
        that before.
        """
        await upkeep.take_up()
        found = await upkeep.waiting()
        if found is not None and self._state is AgentState.RUNNING:  # else the session that has just ended waits, too
            self._backlog.seen(found)

    @property
    def _sync(self) -> Synchronizer | None:
        return self._sending.synchronizer if self._sending is not None else None

    @property
    def _not_sending(self) -> str:
        return self._sending.trouble if self._sending is not None else ""

    @property
    def _why_silent(self) -> str:
        """Why this agent sends nothing at all; empty where it does, or did before it was stopped."""
        if self._state is AgentState.FORKED:
            return FORKED
        if self.config.server is None:
            return NO_SERVER
        ended = self._state is AgentState.RUNNING and self._loop is not None and self._loop.is_closed()
        return LOOP_ENDED if ended else self._not_sending

    @property
    def _backlog(self) -> Backlog:
        return self._seen if self._sync is None else self._sync.backlog

    def _say(self, about: str, call: Callable[[Synchronizer], None]) -> None:
        """Tell what delivers; what is said while nothing runs is told once it does, the last word `about` each."""
        if self._state in (AgentState.NEW, AgentState.STOPPED):
            self._said[about] = call
        else:
            self._in_loop(call)

    def _in_loop(self, call: Callable[[Synchronizer], None]) -> None:
        sending, loop = self._sending, self._loop
        if sending is not None and loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing will be sent by this process anyway
                loop.call_soon_threadsafe(sending.tell, call)

    # -- what happens to the process -----------------------------------------------------------------------------

    def forked(self) -> None:
        """In a forked child: the session is the parent's, and so is all that belongs to its loop."""
        self._parent, self._session = self._session or self._parent, None
        if self._parent is not None:  # before anything else that may go wrong
            revive = None
            if self._state in (AgentState.RUNNING, AgentState.FORKED):
                self._state, revive = AgentState.FORKED, functools.partial(self._begin_in_child, self._parent)
            self._parent.recorder.forget_after_fork(revive)
            self._parent.forget_after_fork()
        if self._loop is not None:
            process.part_from_parent(self._loop)
        _PARENTS.append((self._loop, self._sending, self._tasks, self._upkeep, self._disk))
        self._loop = self._sending = self._upkeep = self._disk = self._stores = None
        self._tasks, self._seen, self._under_way = [], Backlog(self._running), None
        self._alerts.leave()
        self._hooks.forget_loop()

    def _begin_in_child(self, parent: Session) -> None:
        """The first record of a forked child begins a session of its own."""
        store = Store(self._files, self.config.store_root, self.config.product, self.config.application)
        self._session = open_in_child(parent, self.config, store, self._clocks, os.getpid(), self._alerts.noted)
        self._session.listen()
        process.enter(self)

    def leaving(self) -> Future[bool] | None:
        """The process is about to end, and nobody has stopped: have all on the disk."""
        running = self._state in (AgentState.RUNNING, AgentState.FORKED)
        return self._session.leaving(crashed=self._crashing) if running and self._session is not None else None

    def crashing(self) -> None:
        """The process is about to die of an exception: have all on the disk, unless this is where the loop runs."""
        self._crashing = True
        if self._session is not None and running_loop() is None:
            wait([self._session.writer.flush(durable=True)], process.EXIT_TIMEOUT)


_PARENTS: Final[list[object]] = []
"""In a forked child, what belongs to its parent's loop. It is never let go of: to close a connection here would end the
parent's, for both have the same one.
"""

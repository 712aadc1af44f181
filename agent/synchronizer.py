"""The synchronizer: decides when rounds of delivery take place, by itself or within a connectivity window.

Rounds come from two sides: the automatic part begins one when a trigger fires, `window` runs them until its deadline.
There is one at a time: a window ends the automatic round under way (uploads go on at their byte) and takes its place,
so nothing is ever sent twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from mailboat.agent.allowance import DAY
from mailboat.agent.backlog import Backlog
from mailboat.agent.clocks import Clocks
from mailboat.agent.config import AgentConfig
from mailboat.agent.connectivity import Connectivity, Link
from mailboat.agent.http import Http
from mailboat.agent.link_policy import LinkState, Priority
from mailboat.agent.log import log
from mailboat.agent.negotiator import probe
from mailboat.agent.report import SessionOutcome, SessionState, Status, SyncProgress, SyncReport, one_line
from mailboat.agent.rounds import OTHER_SENDS, BudgetSpent, LinkDown, Rounds, Sink
from mailboat.agent.routes import Ways
from mailboat.agent.sources import Sources
from mailboat.agent.traffic import Traffic
from mailboat.agent.uploader import Uploader
from mailboat.agent.window import Window
from mailboat.protocol.limits import BACKOFF_FIRST
from mailboat.protocol.uploads.outcomes import Retry, Unauthorised
from mailboat.protocol.uploads.retry import Backoff

WINDOW_BACKOFF: Final = Backoff(first=0.05, longest=1.0)
"""Within a window every second counts: short pauses, for the time of the window only."""

OTHER_PAUSE: Final = 0.25
OTHER_TRIES: Final = 4
"""Within a window: seconds before it is looked again whether another process still sends, and how often. That may have
taken the sender's place for a moment only, to give up sessions (see `eviction`).
"""

SHORTEST_REST: Final = 0.05
"""Seconds between two automatic rounds, whatever wants the next one at once."""


LONGEST_REST: Final = 3600.0
"""Seconds after which a spent budget is looked at again: the clock on the wall may have been set. And the rest of who
has nothing to do but to be woken."""

ONLY_RECORDS: Final = "this agent only records (sender=False); another one sends"


class Synchronizer:
    """Delivers the sessions of one sender to one server."""

    def __init__(
        self,
        http: Http,
        sources: Sources,
        clocks: Clocks,
        config: AgentConfig,
        *,
        agent: str,
        traffic: Traffic,
        sink: Sink | None = None,
        ways: Ways | None = None,
    ) -> None:
        """`agent` names this agent to the server, `traffic` says how much may be sent; `sink`: as `Rounds` has it.
        `ways` hears of new ways to others, for the automatic part while there is no connection.
        """
        self._http, self._sources, self._clocks, self._config, self._sink = http, sources, clocks, config, sink
        self._rounds = Rounds(
            http,
            sources,
            clocks,
            Uploader(http, clocks, sources.disk, traffic),
            Backlog(sources.running),
            agent,
            config.upload_concurrency,
            config.purge_sent,
            traffic,
            self._reached,
            self._tell,
            sink,
        )
        self._wanted = asyncio.Event()
        self._one_round = asyncio.Lock()
        self._automatic: asyncio.Task[None] | None = None
        self._windows: dict[asyncio.Timeout, Window] = {}
        self._include_live = False
        self._due: float | None = None
        self._spent_until: float | None = None
        self._closed = False
        self._ways, self._way_found = ways, False
        self._way = LinkState()
        self._held = _not_by_itself(config)
        self._policy_failed = ""
        self.link = Connectivity()
        self.backlog = self._rounds.backlog
        self.outcomes = self._rounds.outcomes
        self.listeners: list[Callable[[SessionOutcome], None]] = []
        """Told the final outcome of each session, within the loop."""
        self.trouble = ""
        """Why the store cannot be used, while that lasts."""

    # -- the automatic part --------------------------------------------------------------------------------------

    async def run(self, startup_delay: float) -> None:
        """Send by itself, until cancelled."""
        try:
            await self._until_wanted(startup_delay)
            while True:
                self._wanted.clear()
                if self._way_found:
                    self.link, self._way_found = self.link.way_found(), False
                if self.link.open_at(self._clocks.now()):
                    await self._automatic_round()
                self._listen(offline=self.link.link is Link.OFFLINE)
                await self._rest()
        finally:
            self._listen(offline=False)

    def _listen(self, *, offline: bool) -> None:
        """Hear of new ways to others while there is no connection, during tries as well as between them."""
        if self._ways is None:
            return
        if not offline:
            self._ways.leave()
            return

        def found() -> None:
            self._way_found = True
            self.wake()

        self._ways.listen(found)

    async def _automatic_round(self) -> None:
        """One round in a task of its own, so that a window or a pause can end it and not this."""
        window = Window(include_live=self._include_live)
        self._include_live, self._due = False, None
        self._automatic = asyncio.create_task(self._guarded_round(window), name="mailboat-round")
        try:
            await asyncio.wait([self._automatic])
        finally:
            self._automatic.cancel()
            await asyncio.wait([self._automatic])
            if self._automatic.cancelled() or window.error is not None:
                self._include_live |= window.include_live
            self._automatic = None

    async def _guarded_round(self, window: Window) -> None:
        async with self._one_round:
            try:
                await self._probe(window)
                self._due = await self._round(window)
            except LinkDown as down:
                window.error = str(down)
                self._note_trouble("")
                self._note_down(down)
            except BudgetSpent:
                pass  # it is noted where it was found
            except Exception as error:  # noqa: BLE001 - whatever it is, the host must not see it, and tomorrow is another day
                window.error = self._note_failure(error)

    async def _probe(self, window: Window) -> None:
        """After a failure, before a whole backlog is offered: a request of a few hundred bytes. A tus server is asked
        what it offers in any case.
        """
        something = self.backlog.sessions or window.include_live
        if self.link.link is Link.OFFLINE and something and self._sink is None:
            down = await probe(self._http, self._clocks)
            if down is not None:
                raise LinkDown(down)

    async def _round(self, window: Window) -> float | None:
        """One round, and what it says of the next ones."""
        planner = self._rounds.planner
        planner.permits = self._permits if not window.everything else _everything
        before, gained = len(window.ended), planner.gained
        try:
            due = await self._rounds.run(window)
        except LinkDown:
            if planner.gained > gained:
                self.link = self.link.served()
            raise
        except BudgetSpent as spent:
            window.error = str(spent)
            self._spent_until = self._clocks.now() + spent.after
            self._note_held(str(spent))
            raise
        self._note_trouble("")
        self.link = self.link.served()
        self._spent_until = None
        if planner.held and window.error is None:
            window.error = f"{planner.held} sessions are held back by the policy for this link"
        self._note_held(window.error or "")
        log.debug("a round: %d sessions ended, %d wait", len(window.ended) - before, self.backlog.sessions)
        if self._rounds.again:
            self._rounds.again = False
            return self._clocks.now()
        return due

    def _permits(self, priority: Priority) -> bool:
        """What the application's policy says of it, here and now; one that fails forbids nothing."""
        policy = self._config.policy
        if policy is None:
            return True
        try:
            return bool(policy(replace(self._way, hour=self._clocks.local() % DAY / 3600.0), priority))
        except Exception as error:  # noqa: BLE001 - the application's own callable; its fault must not stop the delivery
            self._note_policy(one_line(f"{type(error).__name__}: {error}"))
            return True

    async def _rest(self) -> None:
        """Until something is wanted, or time has come."""
        pause, now = self._rounds.policy.sync_interval or self._config.sync_interval, self._clocks.now()
        if self.link.link is Link.PAUSED:
            pause = LONGEST_REST  # who paused it will resume it, and wakes this
        elif self.link.until is not None and self.link.until > now:
            pause = self.link.until - now
        elif self._spent_until is not None:
            pause = min(max(pause, self._spent_until - now), LONGEST_REST)
        elif self._due is not None:
            pause = min(pause, self._due - now)
        await self._until_wanted(max(SHORTEST_REST, pause))

    async def _until_wanted(self, seconds: float) -> None:
        """Until a round is wanted, for so many seconds at most. Up to Python 3.11, `wait_for` would lose the end of the
        agent that comes in the very moment in which a round is wanted.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wanted.wait()

    def wake(self, *, include_live: bool = False) -> None:
        """Something is to be sent; begin a round soon. The running session is offered too if `include_live`."""
        self._include_live |= include_live
        self._wanted.set()

    def store_has_room(self) -> None:
        """The store's disk has room after it had none: do what it has refused."""
        if self.trouble:
            self.wake()

    def pause(self) -> None:
        """The application says that there is no connection to be used."""
        self.link = self.link.paused()
        if self._automatic is not None:
            self._automatic.cancel()

    def resume(self) -> None:
        """The application says that the connection is back."""
        self.link = self.link.resumed()
        self.wake()

    def set_way(self, way: LinkState) -> None:
        """The application says what kind of link there is now. What the policy forbids on it ends."""
        self._way = way
        if self.link.link is not Link.PAUSED:
            self.link = self.link.resumed()
        if self._automatic is not None and self._config.policy is not None:
            self._automatic.cancel()
        self.wake()

    # -- windows -------------------------------------------------------------------------------------------------

    async def window(self, seconds: float | None, progress: Callable[[SyncProgress], None] | None = None) -> SyncReport:
        """Send everything there is, until it is done or `seconds` are over. May be cancelled at any point."""
        window = Window(include_live=True, everything=True, patient=seconds is not None, progress=progress)
        return await self._window(window, seconds)

    async def last_window(self, seconds: float) -> SyncReport:
        """The same at the end of the agent's life, which asks nobody: within what pause and policy allow."""
        if self.link.link is Link.PAUSED:
            return SyncReport(error=self.link.reason)
        return await self._window(Window(patient=True), seconds)

    async def _window(self, window: Window, seconds: float | None) -> SyncReport:
        begun = self._clocks.now()
        window.deadline = None if seconds is None else begun + seconds
        if not self._config.sender:
            return SyncReport(error=ONLY_RECORDS)
        scope = asyncio.timeout(seconds)
        try:
            async with scope:
                self._windows[scope] = window
                await self._take_over(window)
        except TimeoutError:
            window.error = window.error or "the time was over"
        except LinkDown as down:
            window.error = str(down)
        except BudgetSpent:
            pass  # it is noted where it was found
        except Exception as error:  # noqa: BLE001 - it is told in the report
            window.error = self._note_failure(error)
        finally:
            self._windows.pop(scope, None)
        return await window.report(self._rounds.planner, self._clocks.now() - begun, self.outcomes)

    async def _take_over(self, window: Window) -> None:
        if self._automatic is not None:
            self._automatic.cancel()
        async with self._one_round:
            backoff, tries = WINDOW_BACKOFF, OTHER_TRIES if window.everything and window.patient else 0
            while True:
                before = self._rounds.planner.gained
                try:
                    due = await self._round(window)
                    if window.error == OTHER_SENDS and tries:
                        tries -= 1
                        await asyncio.sleep(OTHER_PAUSE)
                        continue
                    if due is None or not window.patient or due > self._clocks.now():
                        return
                except LinkDown as down:
                    self._note_trouble("")
                    self._note_down(down)
                    window.error = str(down)
                    if not window.patient or isinstance(down.outcome, Unauthorised):
                        raise
                    backoff = (backoff if self._rounds.planner.gained == before else WINDOW_BACKOFF).failed()
                    floor = down.outcome.after if isinstance(down.outcome, Retry) else 0.0
                    await asyncio.sleep(max(backoff.pause(self._clocks.chance()), min(floor, backoff.longest)))

    async def close(self) -> None:
        """No window or round will be begun any more, and those under way end now."""
        loop = asyncio.get_running_loop()
        for scope, window in self._windows.items():
            window.error = "the agent was stopped"
            with contextlib.suppress(RuntimeError):  # it is ending already
                scope.reschedule(loop.time())
        if self._automatic is not None:
            self._automatic.cancel()

    async def finish(self) -> None:
        """The end: return when what is under way has ended, and let go of whoever waits for what will not come."""
        self._closed = True
        async with self._rounds.ended:
            self._rounds.ended.notify_all()
        async with self._one_round:
            await self._rounds.settled()

    async def delivered(self, session_id: str) -> SessionOutcome:
        """The final outcome of a session, once it has one; of earlier runs, too, as long as it is kept. Of the running
        session, how it stands once the server holds what was recorded until now. Raises `TimeoutError` when there will
        be none any more.
        """
        if session_id not in self.outcomes and not self._closed:
            if session_id not in self.backlog:
                await self._look_up(session_id)
            stands = await self._running_so_far(session_id)
            async with self._rounds.ended:
                await self._rounds.ended.wait_for(lambda: session_id in self.outcomes or self._closed or stands())
            if session_id not in self.outcomes and (outcome := stands()) is not None:
                return outcome
        if session_id not in self.outcomes:
            raise TimeoutError(f"the agent has stopped before session {session_id} came to an end")
        return self.outcomes[session_id]

    async def _running_so_far(self, session_id: str) -> Callable[[], SessionOutcome | None]:
        """What tells how the running session stands, once the server holds what is on the disk by now; nothing of any
        other session. It is sent soon, for somebody waits for it.
        """
        running = self._sources.running()
        live = await self._sources.live() if running is not None and running.session_id == session_id else None
        if live is None:
            return lambda: None
        segments = live.summary.segments
        if self._rounds.so_far(session_id, segments) is None:
            self.wake(include_live=True)
        return lambda: self._rounds.so_far(session_id, segments)

    async def _look_up(self, session_id: str) -> None:
        """Know what became of a session in an earlier run."""
        loop, stores = asyncio.get_running_loop(), self._sources.stores
        try:
            said = await loop.run_in_executor(self._sources.disk, stores.receipt, session_id)
        except OSError as error:
            self._note_failure(error)
            return
        if said is not None and session_id not in self.outcomes:
            state = SessionState(said.fate)
            self.outcomes[session_id] = SessionOutcome(session_id, state, one_line(said.reason), said.records)

    # -- how things stand ----------------------------------------------------------------------------------------

    @property
    def why(self) -> str:
        """Why nothing is being sent, in one line; empty while nothing is in the way."""
        return self.link.reason or self._held

    def completed(self, status: Status) -> Status:
        """`status` with how the delivery stands."""
        until = self.link.until
        return replace(
            status,
            trouble=status.trouble or self.trouble,
            connectivity=self.link.link.value,
            reason=status.reason or self.why,
            next_attempt=None if until is None else max(0.0, until - self._clocks.now()),
        )

    def _reached(self) -> None:
        self.link = self.link.succeeded()

    def _tell(self, outcome: SessionOutcome) -> None:
        for listener in tuple(self.listeners):
            try:
                listener(outcome)
            except Exception as error:  # noqa: BLE001 - the application's own callable; its fault must not stop the delivery
                log.warning(
                    "a callback for outcomes failed, it is not called again: %s: %s", type(error).__name__, error
                )
                self.listeners.remove(listener)

    def _note_held(self, why: str) -> None:
        if why and why != self._held:
            log.info("nothing is sent for now: %s", why)
        self._held = why

    def _note_policy(self, why: str) -> None:
        if why != self._policy_failed:
            log.warning("the policy for links failed, everything may be sent: %s", why)
        self._policy_failed = why

    def _note_down(self, down: LinkDown) -> None:
        now, chance, outcome = self._clocks.now(), self._clocks.chance(), down.outcome
        before = self.link
        if isinstance(outcome, Unauthorised):
            self.link = self.link.refused(str(down), now, chance)
        else:
            asked = outcome.after if isinstance(outcome, Retry) else 0.0
            floor = self._rounds.policy.backoff_floor
            self.link = self.link.failed(str(down), now, chance, max(asked, floor if floor > BACKOFF_FIRST else 0.0))
        if before.reason != self.link.reason:
            log.info("nothing is sent for now: %s", down)

    def _note_failure(self, error: Exception) -> str:
        """A failure that is not the connection's: the disk's, or a fault of our own."""
        told = one_line(f"{type(error).__name__}: {error}")
        if isinstance(error, OSError):
            told = f"the store cannot be used: {told}"
            self._note_trouble(told)
        else:
            log.error("sending failed: %s", told, exc_info=error)
            self.trouble = f"sending failed: {told}"
        return told

    def _note_trouble(self, trouble: str) -> None:
        if trouble and trouble != self.trouble:
            log.warning("%s", trouble)
        self.trouble = trouble


def _everything(_priority: Priority) -> bool:
    """The application has asked for it."""
    return True


def _not_by_itself(config: AgentConfig) -> str:
    """Why nothing is sent before anybody asks."""
    if not config.sender:
        return ONLY_RECORDS
    if not config.synchronize_automatically:
        return "only force_sync sends (synchronize_automatically=False)"
    return f"the first attempt comes {config.startup_delay:g} s after the start"

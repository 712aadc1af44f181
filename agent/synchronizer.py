"""The synchronizer: decides when rounds of delivery take place, by itself or within a connectivity window.

Rounds come from two sides: the automatic part begins one when a trigger fires, `window` runs them until its deadline.
There is one at a time: a window ends the automatic round under way (uploads go on at their byte) and takes its place,
so nothing is ever sent twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

from mailboat.agent.clocks import Clocks
from mailboat.agent.connectivity import Connectivity
from mailboat.agent.http import Http
from mailboat.agent.report import SessionOutcome, SyncProgress, SyncReport, one_line
from mailboat.agent.rounds import LinkDown, Live, Rounds, Sources
from mailboat.agent.tus_sink import TusSink
from mailboat.agent.window import Window
from mailboat.protocol.limits import BACKOFF_FIRST
from mailboat.protocol.uploads.outcomes import Retry, Unauthorised
from mailboat.protocol.uploads.retry import Backoff

__all__ = ["Live", "Sources", "Synchronizer"]

log = logging.getLogger("mailboat")

WINDOW_BACKOFF: Final = Backoff(first=0.05, longest=1.0)
"""Within a window every second counts: short pauses, for the time of the window only."""

SHORTEST_REST: Final = 0.05
"""Seconds between two automatic rounds, whatever wants the next one at once."""


class Synchronizer:
    """Delivers the sessions of one store to one server."""

    def __init__(
        self,
        http: Http,
        sources: Sources,
        clocks: Clocks,
        *,
        agent: str,
        concurrency: int,
        interval: float,
        purge: bool,
        sink: TusSink | None = None,
    ) -> None:
        """`agent` names this agent to the server; `interval`: seconds between rounds while something waits; `sink`: as
        `Rounds` has it.
        """
        self._clocks, self._interval = clocks, interval
        self._rounds = Rounds(http, sources, clocks, agent, concurrency, purge, self._reached, sink)
        self._wanted = asyncio.Event()
        self._one_round = asyncio.Lock()
        self._automatic: asyncio.Task[None] | None = None
        self._windows: dict[asyncio.Timeout, Window] = {}
        self._include_live = False
        self._due: float | None = None
        self._closed = False
        self.link = Connectivity()
        self.backlog = self._rounds.backlog
        self.outcomes = self._rounds.outcomes
        self.trouble = ""
        """Why the store cannot be used, while that lasts."""

    # -- the automatic part --------------------------------------------------------------------------------------

    async def run(self, startup_delay: float) -> None:
        """Send by itself, until cancelled."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wanted.wait(), startup_delay)
        while True:
            self._wanted.clear()
            if self.link.open_at(self._clocks.now()):
                await self._automatic_round()
            await self._rest()

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
                self._due = await self._rounds.run(window)
                self._note_trouble("")
            except LinkDown as down:
                window.error = str(down)
                self._note_trouble("")
                self._note_down(down)
            except Exception as error:  # noqa: BLE001 - whatever it is, the host must not see it, and tomorrow is another day
                window.error = self._note_failure(error)

    async def _rest(self) -> None:
        """Until something is wanted, or time has come."""
        pause, now = self._rounds.policy.sync_interval or self._interval, self._clocks.now()
        if self.link.until is not None:
            pause = self.link.until - now
        elif self._due is not None:
            pause = min(pause, self._due - now)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wanted.wait(), max(SHORTEST_REST, pause))

    def wake(self, *, include_live: bool = False) -> None:
        """Something is to be sent; begin a round soon. The running session is offered too if `include_live`."""
        self._include_live |= include_live
        self._wanted.set()

    def pause(self) -> None:
        """The application says that there is no connection to be used."""
        self.link = self.link.paused()
        if self._automatic is not None:
            self._automatic.cancel()

    def resume(self) -> None:
        """The application says that the connection is back."""
        self.link = self.link.resumed()
        self.wake()

    # -- windows -------------------------------------------------------------------------------------------------

    async def window(self, seconds: float | None, progress: Callable[[SyncProgress], None] | None = None) -> SyncReport:
        """Send everything there is, until it is done or `seconds` are over. May be cancelled at any point."""
        begun = self._clocks.now()
        deadline = None if seconds is None else begun + seconds
        window = Window(include_live=True, deadline=deadline, patient=seconds is not None, progress=progress)
        scope = asyncio.timeout(seconds)
        try:
            async with scope:
                self._windows[scope] = window
                await self._take_over(window)
        except TimeoutError:
            window.error = window.error or "the time was over"
        except LinkDown as down:
            window.error = str(down)
        except Exception as error:  # noqa: BLE001 - it is told in the report
            window.error = self._note_failure(error)
        finally:
            self._windows.pop(scope, None)
        return window.report(self._rounds.planner, self._clocks.now() - begun)

    async def _take_over(self, window: Window) -> None:
        if self._automatic is not None:
            self._automatic.cancel()
        async with self._one_round:
            backoff = WINDOW_BACKOFF
            while True:
                before = window.sent.total()
                try:
                    await self._rounds.run(window)
                    self._note_trouble("")
                    return
                except LinkDown as down:
                    self._note_trouble("")
                    self._note_down(down)
                    window.error = str(down)
                    if not window.patient or isinstance(down.outcome, Unauthorised):
                        raise
                    backoff = (backoff if window.sent.total() == before else WINDOW_BACKOFF).failed()
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
        """The final outcome of a session, once it has one. Raises `TimeoutError` when there will be none any more."""
        async with self._rounds.ended:
            await self._rounds.ended.wait_for(lambda: session_id in self.outcomes or self._closed)
        if session_id not in self.outcomes:
            raise TimeoutError(f"the agent has stopped before session {session_id} came to an end")
        return self.outcomes[session_id]

    # -- how things stand ----------------------------------------------------------------------------------------

    def _reached(self) -> None:
        self.link = self.link.succeeded()

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

"""The synchronizer: the task that runs planner, negotiator and uploader, by itself or within a connectivity window.

Each *round* looks into the store, offers what is there, sends what is wanted, and has it confirmed, until the planner
has nothing more to do or the connection fails. Rounds come from two sides: the automatic part begins one when a
trigger fires, `window` runs them until its deadline. There is one at a time: a window ends the automatic round under
way (uploads go on at their byte) and takes its place, so nothing is ever sent twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from mailboat.agent.clocks import Clocks
from mailboat.agent.connectivity import Connectivity, Link
from mailboat.agent.http import Http
from mailboat.agent.ledger import Ending, Ledger
from mailboat.agent.negotiator import Replied, negotiate
from mailboat.agent.planner import Entry, Fate, Idle, Negotiate, Phase, Planner, Send, Task, Wait
from mailboat.agent.report import SessionOutcome, SessionState, SyncProgress, SyncReport
from mailboat.agent.segment_file import segment_name
from mailboat.agent.store import Found, Store
from mailboat.agent.uploader import Uploader
from mailboat.protocol.summary import Summary
from mailboat.protocol.uploads.outcomes import NotOurs, Outcome, Refused, Retry, Unauthorised
from mailboat.protocol.uploads.retry import Backoff

log = logging.getLogger("mailboat")

WINDOW_BACKOFF: Final = Backoff(first=0.05, longest=1.0)
"""Within a window every second counts: short pauses, for the time of the window only."""

T = TypeVar("T")


class _LinkDown(Exception):
    """Ends a round: the server cannot be used now."""

    def __init__(self, outcome: Retry | Unauthorised | NotOurs) -> None:
        super().__init__(_told(outcome))
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class Live:
    """The running session as it stands on disk."""

    summary: Summary
    folder: Path


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the synchronizer gets what it needs from.

    `live` flushes the running session and gives it as it stands (None when there is none); `ledger_lost` what the
    running session lost so far; `disk` is the executor on which the store is used.
    """

    store: Store
    live: Callable[[], Awaitable[Live | None]]
    lost: Callable[[], dict[str, int]]
    disk: Executor


@dataclass(slots=True)
class _Window:
    """One call of `window`, or one automatic round: what it sent, and whom it tells."""

    include_live: bool
    progress: Callable[[SyncProgress], None] | None = None
    sent: dict[str, int] = field(default_factory=dict)
    error: str | None = None

    @property
    def bytes_sent(self) -> int:
        return sum(self.sent.values())


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
    ) -> None:
        """`agent` names this agent to the server; `interval` is seconds between rounds while something waits."""
        self._http, self._sources, self._clocks = http, sources, clocks
        self._agent, self._concurrency, self._interval, self._purge = agent, concurrency, interval, purge
        self._uploader = Uploader(http, clocks, sources.disk)
        self._planner = Planner()
        self._folders: dict[str, Path] = {}
        self._wanted = asyncio.Event()
        self._changed = asyncio.Event()
        self._ended = asyncio.Condition()
        self._one_round = asyncio.Lock()
        self._automatic: asyncio.Task[None] | None = None
        self._include_live = False
        self.link = Connectivity()
        self.found = Found()
        self.ledger = Ledger()
        self.outcomes: dict[str, SessionOutcome] = {}

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
        include_live, self._include_live = self._include_live, False
        self._automatic = asyncio.create_task(self._guarded_round(include_live), name="mailboat-round")
        try:
            await asyncio.shield(self._automatic)
        except asyncio.CancelledError:
            if not self._automatic.cancelled():  # it is this task that is cancelled, and the round with it
                self._automatic.cancel()
                raise
        finally:
            await asyncio.wait([self._automatic])
            self._automatic = None

    async def _guarded_round(self, include_live: bool) -> None:  # noqa: FBT001 - the one argument of a private call
        async with self._one_round:
            window = _Window(include_live)
            try:
                await self._round(window)
            except _LinkDown as down:
                self._note_down(down)
            except Exception as error:  # noqa: BLE001 - whatever it is, the host must not see it, and tomorrow is another day
                log.warning("sending failed: %s: %s", type(error).__name__, error)
                self.link = self.link.failed(
                    f"{type(error).__name__}: {error}", self._clocks.now(), self._clocks.chance()
                )

    async def _rest(self) -> None:
        """Until something is wanted, or time has come."""
        pause = self._interval
        if self.link.until is not None:
            pause = max(0.0, self.link.until - self._clocks.now())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wanted.wait(), pause)

    def wake(self, *, include_live: bool = False) -> None:
        """Something is to be sent; begin a round soon. The running session is offered too if `include_live`."""
        self._include_live |= include_live
        self._wanted.set()

    def pause(self) -> None:
        """The application says that there is no connection to be used."""
        self.link = self.link.paused()

    def resume(self) -> None:
        """The application says that the connection is back."""
        self.link = self.link.resumed()
        self.wake()

    # -- windows -------------------------------------------------------------------------------------------------

    async def window(self, seconds: float | None, progress: Callable[[SyncProgress], None] | None = None) -> SyncReport:
        """Send everything there is, until it is done or `seconds` are over. May be cancelled at any point."""
        begun = self._clocks.now()
        window = _Window(include_live=True, progress=progress)
        try:
            async with asyncio.timeout(seconds):
                await self._take_over(window, patient=seconds is not None)
        except TimeoutError:
            window.error = window.error or "the time was over"
        except _LinkDown as down:
            window.error = str(down)
        return self._report(window, self._clocks.now() - begun)

    async def _take_over(self, window: _Window, *, patient: bool) -> None:
        if self._automatic is not None:
            self._automatic.cancel()
        async with self._one_round:
            backoff = WINDOW_BACKOFF
            while True:
                before = window.bytes_sent
                try:
                    return await self._round(window)
                except _LinkDown as down:
                    self._note_down(down)
                    window.error = str(down)
                    if not patient or isinstance(down.outcome, Unauthorised):
                        raise
                    backoff = (backoff if window.bytes_sent == before else WINDOW_BACKOFF).failed()
                    floor = down.outcome.after if isinstance(down.outcome, Retry) else 0.0
                    await asyncio.sleep(max(backoff.pause(self._clocks.chance()), min(floor, backoff.longest)))

    def _report(self, window: _Window, duration: float) -> SyncReport:
        outcomes = [self._outcome(entry, window.sent.get(name, 0)) for name, entry in self._planner.entries.items()]
        left = sum(outcome.bytes_left for outcome in outcomes)
        pending = [
            entry for entry in self._planner.entries.values() if entry.fate is Fate.PENDING and not entry.running
        ]
        complete = not left and not pending and window.error is None
        return SyncReport(tuple(outcomes), window.bytes_sent, left, duration, complete, window.error)

    def _outcome(self, entry: Entry, sent: int) -> SessionOutcome:
        return SessionOutcome(
            session_id=entry.summary.session_id,
            state=SessionState(entry.fate.value),
            reason=entry.reason,
            records=entry.summary.records,
            bytes_sent=sent,
            bytes_left=entry.bytes_left,
        )

    async def delivered(self, session_id: str) -> SessionOutcome:
        """The final outcome of a session, once it has one."""
        async with self._ended:
            await self._ended.wait_for(lambda: session_id in self.outcomes)
        return self.outcomes[session_id]

    # -- one round -----------------------------------------------------------------------------------------------

    async def _on_disk(self, call: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._sources.disk, lambda: call(*args))

    async def _round(self, window: _Window) -> None:
        """Until the planner has nothing more to do; `_LinkDown` when the server cannot be used."""
        if not await self._on_disk(self._sources.store.become_sender):
            window.error = "another process sends for this store"
            return
        await self.look(include_live=window.include_live)
        self._planner.offer_again()
        window.error = None
        try:
            async with asyncio.TaskGroup() as group:
                await self._work(window, group)
        except* _LinkDown as downs:
            first = downs.exceptions[0]
            assert isinstance(first, _LinkDown)  # noqa: S101 - that is what was caught
            raise first from None

    async def _work(self, window: _Window, group: asyncio.TaskGroup) -> None:
        under_way = 0

        def landed(_: asyncio.Task[None]) -> None:
            nonlocal under_way
            under_way -= 1
            self._changed.set()

        while True:
            self._changed.clear()
            if under_way >= self._concurrency:
                await self._changed.wait()
                continue
            task: Task = self._planner.next(self._clocks.now())
            match task:
                case Negotiate():
                    await self._negotiate(task, window)
                case Send():
                    under_way += 1
                    group.create_task(self._send(task, window)).add_done_callback(landed)
                case Wait(until):
                    await asyncio.sleep(max(0.0, until - self._clocks.now()))
                case Idle():
                    return
                case _:
                    await self._changed.wait()

    async def look(self, *, include_live: bool) -> None:
        """See what there is to deliver."""
        live = await self._sources.live() if include_live else None
        self.found = await self._on_disk(self._sources.store.look)
        for session_id, reason in self.found.unreadable.items():
            await self._set_aside(session_id, reason)
        summaries = [waiting.summary for waiting in self.found.waiting]
        self._folders = {waiting.summary.session_id: waiting.path for waiting in self.found.waiting}
        if live is not None and live.summary.session_id not in self._folders:
            summaries.append(live.summary)
            self._folders[live.summary.session_id] = live.folder
        self._planner.refresh(summaries)
        self._account()

    def _account(self) -> None:
        pending = sum(waiting.summary.records for waiting in self.found.waiting)
        self.ledger = self._sources.store.ledger.account(pending, self._sources.lost())

    async def _negotiate(self, task: Negotiate, window: _Window) -> None:
        outcome = await negotiate(self._http, self._clocks, self._agent, task.offers, self.ledger)
        match outcome:
            case Replied(reply):
                self.link = self.link.succeeded()
                await self._finish(self._planner.negotiated(task, reply, self._clocks.now()))
                self._tell(window)
            case Refused():
                raise _LinkDown(Retry(0.0, f"the server refuses the negotiation: {outcome.status} {outcome.detail}"))
            case down:
                raise _LinkDown(down)

    async def _send(self, task: Send, window: _Window) -> None:
        path = self._folders[task.session_id] / segment_name(task.segment.index)

        def progress(sent: int, held: int) -> None:
            window.sent[task.session_id] = window.sent.get(task.session_id, 0) + sent
            self._planner.progressed(task, held)
            self._tell(window)

        outcome: Outcome = await self._uploader.send(task, path, progress)
        if isinstance(outcome, Retry | Unauthorised | NotOurs):
            raise _LinkDown(outcome)
        ended = self._planner.sent(task, outcome, self._clocks.now())
        if ended is not None:
            await self._finish([ended])

    # -- endings -------------------------------------------------------------------------------------------------

    async def _finish(self, ended: Sequence[Entry]) -> None:
        """Act on final words: the ledger first, then the folders, then whoever waits for them."""
        final = [entry for entry in ended if entry.fate is not Fate.QUARANTINED]
        endings = [
            Ending(each.summary.session_id, each.fate.value, each.reason, each.summary.records, each.summary.lost)
            for each in final
        ]
        await self._on_disk(lambda: self._sources.store.finish(endings, purge=self._purge))
        for entry in ended:
            if entry.fate is Fate.QUARANTINED:
                await self._set_aside(entry.summary.session_id, entry.reason)
        gone = {entry.summary.session_id for entry in ended}
        if gone:
            kept = tuple(waiting for waiting in self.found.waiting if waiting.summary.session_id not in gone)
            self.found = Found(kept)
            self._account()
            async with self._ended:
                self.outcomes.update((each.summary.session_id, self._outcome(each, 0)) for each in ended)
                self._ended.notify_all()

    async def _set_aside(self, session_id: str, reason: str) -> None:
        log.warning("session %s is put aside: %s", session_id, reason)
        await self._on_disk(self._sources.store.quarantine, session_id, reason)

    def _tell(self, window: _Window) -> None:
        if window.progress is None:
            return
        entries = self._planner.entries.values()
        done = sum(entry.phase is Phase.ENDED for entry in entries)
        left = sum(entry.bytes_left for entry in entries)
        try:
            window.progress(SyncProgress(done, len(entries), window.bytes_sent, left))
        except Exception as error:  # noqa: BLE001 - the application's own callable; its fault must not stop the delivery
            log.warning("the progress callback failed, it is not called again: %s: %s", type(error).__name__, error)
            window.progress = None

    def _note_down(self, down: _LinkDown) -> None:
        now, chance, outcome = self._clocks.now(), self._clocks.chance(), down.outcome
        before = self.link
        if isinstance(outcome, Unauthorised):
            self.link = self.link.refused(str(down), now, chance)
        else:
            self.link = self.link.failed(str(down), now, chance, outcome.after if isinstance(outcome, Retry) else 0.0)
        if before.reason != self.link.reason:
            log.info("nothing is sent for now: %s", down)

    @property
    def offline(self) -> bool:
        """Whether the last attempt failed."""
        return self.link.link in (Link.OFFLINE, Link.REFUSED)


def _told(outcome: Retry | Unauthorised | NotOurs) -> str:
    match outcome:
        case Retry(_, reason):
            return reason
        case Unauthorised(status):
            return f"the server refuses the key (status {status}): check api_key or MAILBOAT_API_KEY"
        case NotOurs(_, reason):
            return reason

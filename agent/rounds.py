"""One round of delivery: look into the store, offer what is there, send what is wanted, have it confirmed, act on the
answers; until there is nothing more to do, or the server cannot be used.

A round may be cancelled at any point: uploads go on at their byte in the next one, and what follows from a final word
(the ledger, the folders, whoever waits for it) is carried through.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final, Protocol, TypeAlias, TypeVar

from msgspec import Struct, field

from mailboat.agent import riding
from mailboat.agent.backlog import Backlog, read
from mailboat.agent.clocks import Clocks
from mailboat.agent.entries import Entry, Fate
from mailboat.agent.flights import Flight, Flights
from mailboat.agent.http import Http
from mailboat.agent.ledger import LOST, Ending
from mailboat.agent.log import log
from mailboat.agent.loops import LEAVE_TIMEOUT
from mailboat.agent.negotiator import Outcome as Answered
from mailboat.agent.negotiator import Replied, negotiate
from mailboat.agent.planner import Idle, Negotiate, Planner, Send, Wait
from mailboat.agent.report import SessionOutcome, one_line
from mailboat.agent.segment_file import segment_name
from mailboat.agent.sources import Sources
from mailboat.agent.traffic import Held, Traffic
from mailboat.agent.uploader import Broken, Progress, Uploader
from mailboat.agent.window import SLICE, Window, outcome_of
from mailboat.protocol.negotiation import Policy, Rider, Wish
from mailboat.protocol.summary import SegmentState, Summary
from mailboat.protocol.uploads.outcomes import Exhausted, NotOurs, Outcome, Refused, Retry, Unauthorised

FAILED_UPLOADS: Final = 3
"""So many uploads in a row that the server answered but could not take mean that it is the server, not the upload."""

OTHER_SENDS: Final = "another process sends for this store"
"""Why a round did nothing, where that is so."""

GATHERED: Final = 200
GATHERING: Final = 0.05
"""So many endings are entered together, if they come within so many seconds: as many flushes of the disk are needed for
one ending as for all of them, and the next riders are read by the same thread. A server that knows of the ends will say
the same again, should the machine end before they are entered.
"""

PUT_AWAY: Final = 100
"""Sessions put away before the store's thread has time for something else: two milliseconds, for which what is to be
read for the next request waits at most, while the server has the other ones. Each turn costs two changes of threads.
"""

MOST_OUTCOMES: Final = 10_000
"""Outcomes kept in memory; older ones are read from what is kept of their sessions."""

ABOUT_OFFERS: Final = frozenset({400, 413, 422})
"""The refusals of a negotiation that one of its offers may have caused."""

T = TypeVar("T")

Reading: TypeAlias = asyncio.Future[tuple[Rider, ...]]
"""The segments of one request, on their way from the disk."""


class LinkDown(Exception):
    """Ends a round: the server cannot be used now, for a reason that is no session's own."""

    def __init__(self, outcome: Retry | Unauthorised | NotOurs) -> None:
        """The reason is for people."""
        super().__init__(one_line(_reason(outcome)))
        self.outcome = outcome


def _reason(outcome: Retry | Unauthorised | NotOurs) -> str:
    match outcome:
        case Unauthorised(status):
            return f"the server refuses the key (status {status}): check api_key or MAILBOAT_API_KEY"
        case Retry(_, reason) | NotOurs(_, reason):
            return reason


class BudgetSpent(Exception):
    """Ends a round: nothing more may be sent before `after` seconds from now."""

    def __init__(self, held: Held) -> None:
        """The reason is for people."""
        super().__init__(held.reason)
        self.after = held.after


class Sink(Protocol):
    """What takes the place of negotiation and uploads where the server is none of ours (`tus_sink`)."""

    async def negotiate(self, offers: Iterable[Summary], homes: Mapping[str, Path]) -> Answered:
        """What a server of ours would answer to these offers; each session is in a folder of its id below its home."""

    async def send(self, task: Send, path: Path, progress: Progress) -> Outcome | Broken | Held:
        """As `Uploader.send`."""


class Rounds(Struct):
    """The rounds of one sender and one server; there is one at a time. `reached` is called at each proper answer,
    `told` with the final outcome of each session.
    """

    http: Http
    sources: Sources
    clocks: Clocks
    uploader: Uploader
    backlog: Backlog
    agent: str
    concurrency: int
    purge: bool
    traffic: Traffic
    reached: Callable[[], None]
    told: Callable[[SessionOutcome], None]
    sink: Sink | None = None
    planner: Planner = field(default_factory=Planner)
    outcomes: dict[str, SessionOutcome] = field(default_factory=dict)
    ended: asyncio.Condition = field(default_factory=asyncio.Condition)
    policy: Policy = field(default_factory=Policy)
    again: bool = False
    _spent: Held | None = None
    _homes: dict[str, Path] = field(default_factory=dict)
    _sent: Counter[str] = field(default_factory=Counter)
    _landed: asyncio.Event = field(default_factory=asyncio.Event)
    _unentered: dict[str, Entry] = field(default_factory=dict)
    _entering: set[asyncio.Task[None]] = field(default_factory=set)
    _to_enter: list[tuple[Sequence[Entry], Window]] = field(default_factory=list)
    _enters: asyncio.Lock = field(default_factory=asyncio.Lock)
    _answering: int = 0
    _more_to_enter: asyncio.Event = field(default_factory=asyncio.Event)
    _stuck: set[str] = field(default_factory=set)

    async def run(self, window: Window) -> float | None:
        """One round; returns when to begin another one at the latest (monotonic seconds), if there is such a time.

        Raises `LinkDown`, `BudgetSpent`, and `OSError` when the store cannot be used.
        """
        window.begin()
        self._spent = None
        was_sender, sender = await self._on_disk(self._become_sender)
        if not was_sender:
            self.traffic.reread()
        await self.settled()  # else sessions of an earlier round would be seen that are entered and still lie there
        if sender:
            await self.sources.recover()
        await self._look(window, sender=sender)
        if not sender:
            window.error = OTHER_SENDS
            return None
        task = asyncio.current_task()
        cancelled = task.cancelling() if task is not None else 0
        try:
            async with asyncio.TaskGroup() as group:
                due = await self._work(window, group)
        except BaseExceptionGroup as failures:
            if task is not None and task.cancelling() > cancelled:
                raise asyncio.CancelledError from None  # a failure at the same moment would swallow the cancellation
            raise _first(failures) from None
        if self._spent is not None:
            raise BudgetSpent(self._spent)
        return due

    def _become_sender(self) -> tuple[bool, bool]:
        """Whether this process was the sender until now, and whether it is. Both on the store's thread, where nothing
        comes in between: who was not the sender for a moment does not know what another has spent in it.
        """
        stores = self.sources.stores
        return bool(stores.served), stores.become_sender(self.clocks.new_id)

    async def settled(self) -> None:
        """Return when what followed from the last final words is carried through."""
        if self._entering:
            await asyncio.wait(self._entering)

    async def _on_disk(self, call: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.sources.disk, lambda: call(*args))

    # -- looking -------------------------------------------------------------------------------------------------

    async def _look(self, window: Window, *, sender: bool) -> None:
        """See what there is to deliver."""
        # A running session is in the account of its store, which is that of whoever sends for the store. Its flush and
        # the look are two threads' work.
        with_live = window.include_live and self.sources.stores.own.sending
        live, look = await asyncio.gather(
            self.sources.live() if with_live else _no_session(), self._on_disk(read, self.sources.stores)
        )
        self.backlog.seen(look)
        if not sender:
            return
        await self._set_aside([Ending(each, LOST, "unreadable", 0, why=why) for each, why in look.unreadable.items()])
        await self._look_again_at_unentered()
        # The newest first, in which order they are offered: so none of thousands has to pass others in the queue.
        homes, summaries = look.homes, list(reversed(look.summaries.values()))
        if live is not None and live.summary.session_id not in homes and self._wants(live.summary, window):
            summaries.append(live.summary)
            homes[live.summary.session_id] = live.folder.parent
        self._homes = homes
        self.planner.begin(look.owners)
        rest = iter(summaries)
        while some := list(islice(rest, SLICE)):
            self.planner.meet(some)
            await asyncio.sleep(0)
        more = True
        while more:
            more = self.planner.forget_absent(SLICE)
            await asyncio.sleep(0)

    def _wants(self, running: Summary, window: Window) -> bool:
        """Whether it is of any use to offer the running session before it has ended."""
        match self.policy.details:
            case Wish.NONE:
                return window.everything
            case Wish.ERRORS:
                return window.everything or running.errors > 0
        return True

    async def _look_again_at_unentered(self) -> None:
        """Ends that the disk refused to take down: either they are entered by now, or the session still waits."""
        unentered, self._unentered = self._unentered, {}
        for session_id, entry in unentered.items():
            if session_id in self.backlog:
                self.planner.reconsider(session_id)
            else:
                await self._announce([entry], Window())

    # -- working -------------------------------------------------------------------------------------------------

    async def _work(self, window: Window, group: asyncio.TaskGroup) -> float | None:
        flights = Flights(self.concurrency, self._landed.set)
        while True:
            self._landed.clear()
            if self._spent is not None:
                return None  # what is under way has been granted its bytes, and goes on to its end
            if flights.full:
                await self._landed.wait()
                continue
            match self.planner.next(self.clocks.now()):
                case Negotiate() as task if task.aboard:
                    negotiating = group.create_task(self._negotiate(task, window, self._riders(task)))
                    negotiating.add_done_callback(lambda _: self._landed.set())
                case Negotiate() as task:
                    await self._negotiate(task, window)
                case Send() as task:
                    flight = flights.begin(task.segment.size - task.offset)
                    sending = group.create_task(self._send(task, window, flight))
                    sending.add_done_callback(flight.end)
                case Wait(until):
                    # A window has time up to its deadline and nothing better to do; otherwise the round is over.
                    if not window.patient or window.deadline is None or until >= window.deadline:
                        return until
                    await asyncio.sleep(max(0.0, until - self.clocks.now()))
                case Idle():
                    return None
                case _:
                    await self._landed.wait()

    async def _negotiate(self, task: Negotiate, window: Window, reading: Reading | None = None) -> None:
        outcome: Answered | Held
        if self.sink is not None:
            outcome = await self.sink.negotiate(task.offers, self._homes)
        else:
            riders = await reading if reading is not None else ()
            ledger = self.backlog.account(task.owner)
            self._answering += 1
            try:
                outcome = await negotiate(self.http, self.clocks, self.agent, task.offers, ledger, self.traffic, riders)
            finally:
                self._answered()
            if isinstance(outcome, Replied):
                self._count_riders(riders, window)
        match outcome:
            case Replied(reply):
                self.reached()
                self.policy = reply.policy
                self.traffic.ask(reply.policy.max_rate)
                await self._take_back(reply.wanted)
                ended = self.planner.negotiated(task, reply, self.clocks.now())
                self._landed.set()  # the next request is made while what follows from this one goes to the disk
            case Refused(status, _, detail):
                ended = self._refused(task, status, f"the server refuses the offer: {status} {detail}".rstrip())
            case Held():
                if not self.planner.offer_fewer(task):
                    self._spent = outcome
                return
            case down:
                raise LinkDown(down)
        await self._tell_of_running(offer.session_id for offer in task.offers)
        await self._finish(ended, window)
        window.tell(self.planner)

    def _riders(self, task: Negotiate) -> Reading:
        """The segments that ride along, being read. Asked for before anything is awaited: the store's thread does one
        thing after the other, and what follows from the answer that made room for this request can wait, but not the
        server.
        """
        aboard = [offer for offer in task.offers if offer.session_id in task.aboard]
        loop, files = asyncio.get_running_loop(), self.sources.stores.own.files
        return loop.run_in_executor(self.sources.disk, riding.read, files, self._homes, aboard)

    def _answered(self) -> None:
        """A request has its answer, or gets none."""
        self._answering -= 1
        self._more_to_enter.set()

    def _count_riders(self, riders: Iterable[Rider], window: Window) -> None:
        for rider in riders:
            self._sent[rider.session_id] += len(rider.content)
            window.sent[rider.session_id] += len(rider.content)

    async def _take_back(self, wanted: Sequence[str]) -> None:
        """The server asks for sessions that it had declined; those that are still kept wait again."""
        if not wanted:
            return
        back = await self._on_disk(self.sources.stores.take_back, wanted)
        for session_id in back:
            self.planner.drop(session_id)
            self.outcomes.pop(session_id, None)
        self.again |= bool(back)
        log.info("the server asks for %d sessions that it had declined, %d are still here", len(wanted), len(back))

    def _refused(self, task: Negotiate, status: int, reason: str) -> list[Entry]:
        """An offer may be what the server cannot take; a fault of the request as such would be that of all of them."""
        log.info("%s (of %d sessions)", reason, len(task.offers))
        about_offers = status in ABOUT_OFFERS
        ended = self.planner.refused(task, reason, self.clocks.now()) if about_offers else None
        if ended is None:
            raise LinkDown(Retry(0.0, reason))
        return ended

    async def _send(self, task: Send, window: Window, flight: Flight) -> None:
        path = self._homes[task.session_id] / task.session_id / segment_name(task.segment.index)

        def progress(sent: int, held: int) -> None:
            self._sent[task.session_id] += sent
            window.moved(task, sent)
            flight.moved(sent)
            self.planner.progressed(task, held)
            window.tell(self.planner)

        outcome = await (self.sink or self.uploader).send(task, path, progress)
        match outcome:
            case Broken(after, reason):
                raise LinkDown(Retry(after, reason))
            case Held():
                self._spent = outcome
                return
            case Unauthorised() | NotOurs():
                raise LinkDown(outcome)
            case Retry() | Exhausted():
                self._failed(outcome, window)
            case _:
                window.failed = 0
        ended = self.planner.sent(task, outcome, self.clocks.now())
        await self._tell_of_running([task.session_id])
        if ended is not None:
            await self._finish([ended], window)

    def so_far(self, session_id: str, segments: Iterable[SegmentState]) -> SessionOutcome | None:
        """How a running session stands once the server holds these `segments` of it, as far as they go, or does not
        want it; None before.
        """
        entry = self.planner.entries.get(session_id)
        if entry is None or not entry.running:
            return None
        history = entry.history
        arrived = not history.stalls and all(history.held.get(each.index, 0) >= each.size for each in segments)
        return outcome_of(entry, self._sent[session_id]) if arrived or history.unwanted else None

    async def _tell_of_running(self, session_ids: Iterable[str]) -> None:
        """Have those who wait for a running session see how it stands now, if it is one of these."""
        entries = map(self.planner.entries.get, session_ids)
        if any(entry is not None and entry.running for entry in entries):
            async with self.ended:
                self.ended.notify_all()

    def _failed(self, outcome: Outcome, window: Window) -> None:
        """The server answered, but could not take an upload: the others go on, unless it takes none."""
        window.failed += 1
        if window.failed >= FAILED_UPLOADS:
            raise LinkDown(outcome if isinstance(outcome, Retry) else Retry(0.0, "the server takes no upload"))

    # -- endings -------------------------------------------------------------------------------------------------

    async def _finish(self, ended: Sequence[Entry], window: Window) -> None:
        """Act on final words; carried through even when the round is cancelled, which waits for no disk that hangs."""
        if not ended:
            return
        self._to_enter.append((ended, window))
        self._more_to_enter.set()
        entering = asyncio.create_task(self._enter(), name="mailboat-endings")
        self._entering.add(entering)
        entering.add_done_callback(self._is_entered)
        try:
            await asyncio.shield(entering)
        except asyncio.CancelledError:
            await asyncio.wait([entering], timeout=LEAVE_TIMEOUT)
            raise

    def _is_entered(self, entering: asyncio.Task[None]) -> None:
        self._entering.discard(entering)
        if not entering.cancelled() and entering.exception() is not None:  # seen here: perhaps nobody waits any more
            log.info("what sessions have come to cannot be entered now: %s", one_line(repr(entering.exception())))

    async def _enter(self) -> None:
        """The ledger first, then the folders, then whoever waits for them. What comes while that is under way is done
        together, for it costs two flushes of the disk; and so is what is about to come.
        """
        async with self._enters:
            await self._gather()
            together, self._to_enter = self._to_enter, []
            if together:
                await self._enter_together(together)

    async def _gather(self) -> None:
        """Let the ends of further sessions come, as long as some may and they are few."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GATHERING):
                while self._answering and 0 < sum(len(ended) for ended, _ in self._to_enter) < GATHERED:
                    self._more_to_enter.clear()
                    await self._more_to_enter.wait()

    async def _enter_together(self, together: Sequence[tuple[Sequence[Entry], Window]]) -> None:
        endings = [_ending(each) for ended, _ in together for each in ended]
        try:
            final = [each for each in endings if each.fate != Fate.QUARANTINED.value]
            await self._on_disk(self.sources.stores.enter, final)
            rest = iter(final)
            while some := list(islice(rest, PUT_AWAY)):
                await self._on_disk(partial(self.sources.stores.put_away, some, purge=self.purge))
        except OSError:
            # Whether they are entered shows when the ledger is read anew, by whoever becomes the sender next.
            self._unentered.update((entry.summary.session_id, entry) for ended, _ in together for entry in ended)
            await self._on_disk(self.sources.stores.cease_sending)
            raise
        stuck = await self._set_aside([each for each in endings if each.fate == Fate.QUARANTINED.value])
        for ended, window in together:
            await self._announce([entry for entry in ended if entry.summary.session_id not in stuck], window)

    async def _announce(self, ended: Sequence[Entry], window: Window) -> None:
        for entry in ended:
            session_id = entry.summary.session_id
            outcome, sent = window.end(entry), self._sent.pop(session_id, 0)
            self.outcomes[session_id] = outcome if outcome.bytes_sent == sent else outcome_of(entry, sent)
            if entry.fate is Fate.REJECTED:
                said = f"{entry.history.reason} {entry.history.explanation}"
                log.warning("session %s is rejected: %s", session_id, one_line(said))
        self.backlog.ended(map(_ending, ended))
        for entry in ended:
            self.told(self.outcomes[entry.summary.session_id])
        async with self.ended:
            self.ended.notify_all()
        while len(self.outcomes) > MOST_OUTCOMES:
            del self.outcomes[next(iter(self.outcomes))]

    async def _set_aside(self, endings: Sequence[Ending]) -> set[str]:
        """Put sessions into quarantine; returns those with which that could not be done: they stop nothing else."""
        stuck = set()
        for ending in endings:
            session_id, reason = ending.session_id, one_line(ending.why or ending.reason)
            try:
                counted = await self._on_disk(self.sources.stores.set_aside, ending)
                if counted is not None and counted.fate == LOST:
                    self.backlog.entered([counted])
                log.warning("session %s is put aside: %s", session_id, reason)
            except OSError as error:
                stuck.add(session_id)
                if session_id not in self._stuck:
                    log.warning("session %s (%s) cannot be put aside: %s", session_id, reason, error)
        self._stuck |= stuck
        return stuck


def _ending(entry: Entry) -> Ending:
    """How a session ended, for the ledger."""
    summary = entry.summary
    return Ending(summary.session_id, entry.fate.value, entry.history.reason, summary.records, summary.lost)


async def _no_session() -> None:
    """The running session is not asked for."""


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure that says most: of several at once, that of the connection."""
    chosen: BaseException = failures.subgroup(LinkDown) or failures
    while isinstance(chosen, BaseExceptionGroup):
        chosen = chosen.exceptions[0]
    return chosen

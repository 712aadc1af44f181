"""The planner: what is the next task, and what follows from its result. Pure: no clock, no I/O, every time is passed
in.

A session goes through these phases::

    OFFER ──negotiated: send──────────► SEND ──all segments held──► OFFER (to have it confirmed)
      │  ▲                               │
      │  └──gone, out of step, refused───┘      (`POISON_ATTEMPTS` refusals: ENDED, quarantined)
      ├──have, digests match──► ENDED accepted
      ├──decline──────────────► ENDED declined
      ├──reject───────────────► ENDED rejected
      └──later────────────────► OFFER, not before

Local data is given up only by the server's explicit word: ``have`` with the very size and digest of each segment,
``decline``, or ``reject``. An upload that went through proves nothing yet; the session is offered once more and the
answer decides.

Whatever a server says, no session is tried without end at full speed: an answer that brings it no further (a *stall*:
later, gone, failed, wanted again though all was sent) makes the pause before the next try longer, and only bytes that
the server never held before make it short again. A *refusal* is the session's own fault, and after a few of them, far
enough apart to outlast a server's short illness, it is put aside.

Small sessions that have ended may ride along with their offers (`riding`): then they go from OFFER to ENDED at once.

Sessions have *owners*, the applications whose stores they lie in. One request offers sessions of one owner, since it
carries the account of one store.

A running session never ends here: what it has so far is sent, and the next `refresh` brings what came since.

What is asked for often (`next`, `sent`, `progressed`) costs the same whether ten sessions wait or ten thousand.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from msgspec import Struct

from mailboat.agent.entries import Entry, Fate, Order, Phase
from mailboat.agent.link_policy import Priority
from mailboat.agent.riding import Room
from mailboat.protocol.limits import BACKOFF_LONGEST, MAX_RETRY_AFTER, POISON_ATTEMPTS
from mailboat.protocol.negotiation import Decision, Reply, Verdict
from mailboat.protocol.summary import SegmentState, Summary
from mailboat.protocol.uploads.outcomes import Advanced, Completed, Exhausted, Gone, Outcome, OutOfSync, Refused, Retry

AGAIN: Final = 1.0
"""Seconds before a session is offered again after its first stall; doubled by each further one."""

AFTER_REFUSAL: Final = (1.0, 300.0)
"""Seconds before a session is offered again after its first and each later refusal: the first may be an accident that
a fresh upload mends; a server that refuses everything by mistake gets minutes to be mended before data is put aside."""

MOST_OFFERS: Final = 200
"""Sessions offered in one request: few enough that building it and reading the answer hold the event loop for no more
than two or three milliseconds (500 took 3.4 and 5.0)."""

FIRST_OFFERS: Final = 20
"""The same of the first request, by whose answer the server tells its terms. What it offers is offered twice where it
may ride along, and until it is answered nobody rides."""

BESIDE: Final = 5
"""Negotiations at the same time while sessions ride along: the server flushes some and looks into others while the
agent reads and packs the next, also where it answers those together that it has flushed together.
"""

CONFIRM_AT: Final = 50
"""So many sessions are sent before they are confirmed together: a window that closes loses little, and requests stay
few."""


class Negotiate(Struct, frozen=True):
    """Ask the server about these sessions of one `owner`, those in `aboard` with all their bytes."""

    offers: tuple[Summary, ...]
    aboard: frozenset[str] = frozenset()
    owner: str = ""


class Send(Struct, frozen=True):
    """Append one segment of a session at `url`; the server holds `offset` bytes of it."""

    session_id: str
    segment: SegmentState
    url: str
    offset: int


class Wait(Struct, frozen=True):
    """Nothing to do before `until` (monotonic seconds)."""

    until: float


class Idle(Struct, frozen=True):
    """Nothing to do until something new is recorded or asked for."""


class Busy(Struct, frozen=True):
    """Nothing to add to what is under way."""


Task = Negotiate | Send | Wait | Idle | Busy


def _all(_priority: Priority) -> bool:
    """Everything may be sent."""
    return True


class Planner:
    """The sessions to be delivered, and what to do next about them."""

    def __init__(self) -> None:
        """Knows nothing yet; see `refresh`. `open` sessions have not ended, and `left` bytes of them are to be sent;
        `gained` only grows, with each byte that the server never held before, or does not want any more.

        Of sessions with a priority that `permits` does not let pass, nothing is said or sent; `held` counts how often
        that was so since the last `begin`.
        """
        self.entries: dict[str, Entry] = {}
        self.permits: Callable[[Priority], bool] = _all
        self.held = 0
        self.open = 0
        self.left = 0
        self.gained = 0
        self._negotiating = 0
        self._max_offers = FIRST_OFFERS
        self._understood = False
        self._alone = 0
        self._room = Room()
        self._aboard: set[str] = set()
        self._unmet: set[str] = set()
        self._to_confirm: set[str] = set()
        self._flights: set[tuple[str, int]] = set()
        self._sending: list[Order] = []
        self._owners: Mapping[str, str] = {}
        self._asking: dict[str, list[Order]] = {}
        self._later: list[tuple[float, str]] = []

    # -- what there is -------------------------------------------------------------------------------------------

    def refresh(self, summaries: Iterable[Summary]) -> None:
        """Tell what there is to deliver now: new sessions, those that grew or ended, and by their absence those that
        are gone. All that is pending is offered anew.
        """
        self.begin()
        self.meet(summaries)
        self.forget_absent(len(self._unmet))

    def begin(self, owners: Mapping[str, str] | None = None) -> None:
        """Begin a `refresh` in pieces: then `meet` all sessions, some at a time, and `forget_absent` ones likewise.
        `owners` names the owner of those that have one.
        """
        self._owners = owners or {}
        self._negotiating = self.held = 0
        if self._aboard:
            self._room = self._room.broke()
            self._aboard.clear()
        self._unmet = set(self.entries)
        self._to_confirm.clear()
        self._flights.clear()
        for queue in (self._sending, self._asking, self._later):
            queue.clear()

    def meet(self, summaries: Iterable[Summary]) -> None:
        """Some of the sessions there are."""
        for summary in summaries:
            self._unmet.discard(summary.session_id)
            entry = self.entries.get(summary.session_id)
            if entry is None:
                entry = self.entries[summary.session_id] = Entry(summary)
            elif entry.summary is not summary and (
                entry.summary.segments != summary.segments or entry.summary.status is not summary.status
            ):
                entry.grew_to(summary)
            self._note(entry)
            if entry.phase is not Phase.ENDED:
                self._offer(entry)

    def forget_absent(self, most: int) -> bool:
        """Those that were not met since `begin` are gone: forget up to `most` of them; True while there are more."""
        for _ in range(min(most, len(self._unmet))):
            self.drop(self._unmet.pop())
        return bool(self._unmet)

    def drop(self, session_id: str) -> None:
        """What is known of a session is out of date: it begins anew with the next `refresh`."""
        entry = self.entries.pop(session_id, None)
        if entry is not None:
            self.left -= entry.left
            self.open -= entry.open

    def reconsider(self, session_id: str) -> None:
        """What followed from a session's end could not be carried out: take it for pending again."""
        entry = self.entries.get(session_id)
        if entry is not None:
            entry.reopen()
            self._note(entry)

    # -- what to do ----------------------------------------------------------------------------------------------

    def next(self, now: float) -> Task:
        """The next task. `Negotiate` and `Send` count as under way until their result is told."""
        if self._negotiating >= (BESIDE if self._aboard else 1):
            return Busy()
        sending = self._next_send() if len(self._to_confirm) < CONFIRM_AT else None
        if sending is not None:
            self._flights.add((sending.session_id, sending.segment.index))
            return sending
        if (task := self._offers(now)) is not None:
            self._negotiating += 1
            self._aboard |= task.aboard
            return task
        return self._waiting()

    def _next_send(self) -> Send | None:
        while self._sending:
            entry = self.entries.get(self._sending[0].session_id)
            segment = None if entry is None or entry.phase is not Phase.SEND else next(self._to_send(entry), None)
            if entry is None or segment is None:
                heapq.heappop(self._sending)
                continue
            if not self._permitted(entry):
                heapq.heappop(self._sending)
                entry.phase, entry.asked = Phase.OFFER, True
                continue
            held = entry.history.held.get(segment.index, 0)
            return Send(entry.summary.session_id, segment, entry.history.urls[segment.index], held)
        return None

    def _to_send(self, entry: Entry) -> Iterator[SegmentState]:
        """The segments of which the server lacks something, or the end, and that are not under way."""
        for segment in entry.unsent():
            if (entry.summary.session_id, segment.index) not in self._flights:
                yield segment

    def _offers(self, now: float) -> Negotiate | None:
        """What to offer of the owner that has the most pressing session; None where there is nothing."""
        while self._later and self._later[0][0] <= now:
            session_id = heapq.heappop(self._later)[1]
            if session_id in self.entries:
                self._ask(self.entries[session_id])
        for owner in sorted(self._asking, key=lambda each: self._asking[each][0]):
            offers, aboard = self._offers_of(self._asking[owner], now)
            if not self._asking[owner]:
                del self._asking[owner]
            if offers:
                return Negotiate(offers, aboard, owner)
        return None

    def _offers_of(self, asking: list[Order], now: float) -> tuple[tuple[Summary, ...], frozenset[str]]:
        """What to offer, and which of it rides along; the rest of what may ride waits for the next request."""
        offers: dict[str, Summary] = {}
        aboard: set[str] = set()
        room = self._room.size
        while asking and len(offers) < self._max_offers:
            order = heapq.heappop(asking)
            session_id = order.session_id
            entry = self.entries.get(session_id)
            if entry is None or session_id in offers or not entry.due(now) or not self._permitted(entry):
                continue
            if self._may_ride(entry):
                size = entry.summary.size
                if size > room:
                    heapq.heappush(asking, order)
                    break
                room -= size
                aboard.add(session_id)
                entry.note(rode=True)
            offers[session_id] = entry.summary
        return tuple(offers.values()), frozenset(aboard)

    def _may_ride(self, entry: Entry) -> bool:
        fresh = not (entry.history.rode or entry.history.uploaded or any(entry.history.held.values()))
        return fresh and (entry.history.wanted or self._room.wants(entry.summary)) and self._room.takes(entry.summary)

    def _permitted(self, entry: Entry) -> bool:
        """Whether anything may be said of it now; if not, it waits for the next `refresh`."""
        if self.permits(entry.urgency):
            return True
        self.held += 1
        entry.note(reason="held back by the policy for this link")
        return False

    def _waiting(self) -> Task:
        if self._flights or self._negotiating:
            return Busy()
        while self._later:
            until, session_id = self._later[0]
            entry = self.entries.get(session_id)
            if entry is not None and entry.due(until) and entry.history.not_before == until:
                return Wait(until)
            heapq.heappop(self._later)
        return Idle()

    # -- what follows from a negotiation -------------------------------------------------------------------------

    def negotiated(self, task: Negotiate, reply: Reply, now: float) -> list[Entry]:
        """The server answered; returns the sessions that ended by it. An offer without an answer is asked about with
        the next `refresh`.
        """
        self._negotiating -= 1
        self._understood, self._alone = True, 0
        self._max_offers = min(reply.policy.max_offers, MOST_OFFERS)
        self._room = self._room.under(reply.policy)
        if task.aboard:
            self._room = self._room.went_through()
            self._aboard -= task.aboard
        decisions = {decision.session_id: decision for decision in reply.decisions}
        ended = []
        for offer in task.offers:
            entry, decision = self.entries.get(offer.session_id), decisions.get(offer.session_id)
            if entry is None or entry.summary is not offer:
                continue
            entry.asked = True
            self._to_confirm.discard(offer.session_id)
            if decision is not None and self._decided(entry, decision, now):
                ended.append(entry)
            else:
                self._note(entry)
        return ended

    def offer_fewer(self, task: Negotiate) -> bool:
        """The request is too large to be sent; False when it could not be smaller. First of all nobody rides."""
        self._negotiating -= 1
        if task.aboard:
            self._room = self._room.broke()
            self._aboard -= task.aboard
        else:
            self._max_offers = max(1, len(task.offers) // 2)
            if len(task.offers) == 1:
                return False
        for offer in task.offers:
            if offer.session_id in self.entries:
                self._offer(self.entries[offer.session_id])
        return True

    def refused(self, task: Negotiate, reason: str, now: float) -> list[Entry] | None:
        """The server refuses the request as a whole. Fewer are offered at a time then, until the one that it cannot
        take stands alone; returns that one if it is put aside.

        None when it is not about one session: the server has understood no offer yet, or refuses one after the other.
        """
        if self.offer_fewer(task):
            return []
        entries = [self.entries[offer.session_id] for offer in task.offers if offer.session_id in self.entries]
        self._alone += 1
        if self._understood and self._alone == 1:
            return [entry for entry in entries if self._refuse(entry, reason, now)]
        for entry in entries:
            self._stall(entry, reason, now)
        return None

    def _decided(self, entry: Entry, decision: Decision, now: float) -> bool:
        entry.told(decision.priority, decision.explanation)
        if decision.verdict is Verdict.LATER:
            self._stall(entry, decision.explanation or "the server wants it later", now, decision.after)
        elif decision.verdict is Verdict.SEND:
            return self._wanted(entry, decision, now)
        elif entry.running:
            # Nothing is given up of a session that still grows, but what is not wanted is not left to be sent either.
            entry.note(reason=decision.reason, unwanted=decision.verdict is not Verdict.HAVE)
        elif decision.verdict is Verdict.HAVE:
            return self._confirmed(entry, decision, now)
        else:
            rejected = decision.verdict is Verdict.REJECT
            return self._end(entry, Fate.REJECTED if rejected else Fate.DECLINED, decision.reason)
        return False

    def _wanted(self, entry: Entry, decision: Decision, now: float) -> bool:
        urls = {each.index: each.url for each in decision.segments if each.url and not each.complete}
        held = {each.index: each.offset for each in decision.segments}
        if any(held.get(each.index, 0) > each.size for each in entry.summary.segments):
            entry.note(urls=urls, held={})
            return self._refuse(entry, "the server claims more bytes of a segment than there are", now)
        rest = entry.history.rest
        entry.note(urls=urls, held=held, rest=0)
        if entry.history.uploaded or 0 < rest < entry.lacking:
            self._stall(entry, "the server wants again what was sent", now)
        elif self._rides_next(entry):
            self._offer(entry)
        elif any(True for _ in entry.unsent()):
            entry.phase = Phase.SEND
            entry.note(reason="")
            heapq.heappush(self._sending, entry.order)
        elif not entry.running:
            self._stall(entry, "the server wants it, and does not say where to", now)
        return False

    def _rides_next(self, entry: Entry) -> bool:
        """Whether it is sent with its next offer, at once, rather than by an upload of its own."""
        entry.note(wanted=True)
        return not entry.history.not_before and self._may_ride(entry)

    def _confirmed(self, entry: Entry, decision: Decision, now: float) -> bool:
        theirs = {each.index: (each.complete, each.offset, each.sha256) for each in decision.segments}
        ours = {each.index: (each.sealed, each.size, each.sha256) for each in entry.summary.segments}
        if ours and theirs == ours:
            return self._end(entry, Fate.ACCEPTED, "")
        return self._refuse(entry, "the server's copy has another size or digest", now)

    # -- what follows from an upload -----------------------------------------------------------------------------

    def sent(self, task: Send, outcome: Outcome, now: float) -> Entry | None:
        """A segment was sent, or not; returns the session if it ended by that (quarantined)."""
        entry, index = self.entries.get(task.session_id), task.segment.index
        self._flights.discard((task.session_id, index))
        if entry is None or entry.phase is not Phase.SEND:
            return None
        ended = False
        match outcome:
            case Completed(offset) | Advanced(offset):
                entry.hold(index, offset)
                entry.done(index)
                self._all_sent(entry)
            case Gone():
                self._stall(entry, "the server has lost the upload", now, at_once=not entry.history.stalls)
            case OutOfSync(reason=reason):
                ended = self._refuse(entry, reason, now)
            case Refused(status, _, detail):
                ended = self._refuse(entry, f"{status or ''} {detail}".strip(), now)
            case Retry(after, reason):
                self._stall(entry, reason, now, after)
            case Exhausted(reason):
                self._stall(entry, reason, now)
        self._note(entry)
        return entry if ended else None

    def _all_sent(self, entry: Entry) -> None:
        if any(True for _ in entry.unsent()):
            return
        if entry.running:
            entry.phase, entry.asked = Phase.OFFER, True
            return
        # Of very many segments a server asks for some at a time.
        entry.note(rest=entry.lacking, uploaded=not entry.lacking)
        if entry.history.uploaded:
            self._to_confirm.add(entry.summary.session_id)
        self._offer(entry)

    def progressed(self, task: Send, held: int) -> None:
        """The server is known to hold `held` bytes of a segment."""
        entry = self.entries.get(task.session_id)
        if entry is not None and entry.phase is Phase.SEND and entry.history.held.get(task.segment.index) != held:
            entry.hold(task.segment.index, held)
            self._note(entry)

    # -- changing an entry ---------------------------------------------------------------------------------------

    def _offer(self, entry: Entry) -> None:
        """Ask about it as soon as its time has come."""
        entry.phase, entry.asked = Phase.OFFER, False
        if entry.history.not_before:
            heapq.heappush(self._later, (entry.history.not_before, entry.summary.session_id))
        else:
            self._ask(entry)

    def _ask(self, entry: Entry) -> None:
        """Ask about it next, among those of its owner."""
        owner = self._owners.get(entry.summary.session_id, "")
        heapq.heappush(self._asking.setdefault(owner, []), entry.order)

    def _stall(self, entry: Entry, reason: str, now: float, floor: float = 0.0, *, at_once: bool = False) -> None:
        """Count a try that brought it no further, and put off the next one, by `floor` seconds at least."""
        stalls = entry.history.stalls + 1
        pause = 0.0 if at_once else min(BACKOFF_LONGEST, AGAIN * 2.0 ** min(stalls - 1, 20))
        not_before = now + max(pause, min(floor, MAX_RETRY_AFTER))
        entry.note(stalls=stalls, not_before=not_before, reason=reason, uploaded=False)
        self._offer(entry)

    def _refuse(self, entry: Entry, reason: str, now: float) -> bool:
        """Count a failure that is the session's own; True once it has had its tries."""
        refusals = entry.history.refusals + 1
        not_before = now + AFTER_REFUSAL[min(refusals, len(AFTER_REFUSAL)) - 1]
        entry.note(refusals=refusals, not_before=not_before, reason=reason, uploaded=False)
        if refusals >= POISON_ATTEMPTS and not entry.running:
            return self._end(entry, Fate.QUARANTINED, reason)
        self._offer(entry)
        return False

    def _end(self, entry: Entry, fate: Fate, reason: str) -> bool:
        entry.end(fate, reason)
        self._note(entry)
        return True

    def _note(self, entry: Entry) -> None:
        """Keep the sums, after any change of what the server holds."""
        is_open = entry.phase is not Phase.ENDED
        left = entry.lacking if is_open and not entry.history.unwanted else 0
        self.left += left - entry.left
        self.open += is_open - entry.open
        entry.left, entry.open = left, is_open
        held = entry.summary.size - left
        if held > entry.history.best and not entry.history.unwanted:
            self.gained += held - entry.history.best
            entry.note(best=held, stalls=0)

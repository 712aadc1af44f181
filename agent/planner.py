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

A running session never ends here: what it has so far is sent, and `refresh` brings what came since.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from mailboat.protocol.limits import MAX_OFFERS, POISON_ATTEMPTS
from mailboat.protocol.negotiation import Decision, Reply, Verdict
from mailboat.protocol.summary import SegmentState, Status, Summary
from mailboat.protocol.uploads.outcomes import Advanced, Completed, Gone, Outcome, OutOfSync, Refused

AGAIN: Final = 1.0
"""Seconds before a session that the server could not answer for, or that it refused, is offered again; times its
attempts."""

CONFIRM_AT: Final = 50
"""So many sessions are sent before they are confirmed together: a window that closes loses little, and requests stay
few."""


class Phase(Enum):
    """Where a session stands; see the module."""

    OFFER = "offer"
    SEND = "send"
    ENDED = "ended"


class Fate(Enum):
    """How a session ended, or did not yet."""

    PENDING = "pending"
    ACCEPTED = "accepted"
    DECLINED = "declined"
    REJECTED = "rejected"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class Negotiate:
    """Ask the server about these sessions."""

    offers: tuple[Summary, ...]


@dataclass(frozen=True, slots=True)
class Send:
    """Append one segment of a session at `url`; the server holds `offset` bytes of it."""

    session_id: str
    segment: SegmentState
    url: str
    offset: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before `until` (monotonic seconds)."""

    until: float


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing to do until something new is recorded or asked for."""


@dataclass(frozen=True, slots=True)
class Busy:
    """Nothing to add to what is under way."""


Task = Negotiate | Send | Wait | Idle | Busy


@dataclass(slots=True)
class Entry:
    """What the planner knows of one session."""

    summary: Summary
    phase: Phase = Phase.OFFER
    fate: Fate = Fate.PENDING
    reason: str = ""
    priority: int = 0
    not_before: float = 0.0
    attempts: int = 0
    uploaded: bool = False
    asked: bool = False
    urls: dict[int, str] = field(default_factory=dict)
    held: dict[int, int] = field(default_factory=dict)
    under_way: set[int] = field(default_factory=set)

    @property
    def running(self) -> bool:
        """Whether the session still grows."""
        return self.summary.status is Status.RUNNING

    @property
    def bytes_left(self) -> int:
        """Bytes that the server does not hold, as far as is known; none once the session has ended."""
        if self.phase is Phase.ENDED:
            return 0
        return sum(max(0, segment.size - self.held.get(segment.index, 0)) for segment in self.summary.segments)

    @property
    def order(self) -> tuple[int, int, float]:
        """Errors first, then what the server wants most, then the newest."""
        return (-int(self.summary.errors > 0), -self.priority, -self.summary.started)

    def to_send(self) -> Iterator[SegmentState]:
        """The segments of which the server lacks something, or the end."""
        for segment in self.summary.segments:
            held = self.held.get(segment.index, 0)
            wanted = segment.index in self.urls and segment.index not in self.under_way
            if wanted and (held < segment.size or segment.sealed):
                yield segment


class Planner:
    """The sessions to be delivered, and what to do next about them."""

    def __init__(self) -> None:
        """Knows nothing yet; see `refresh`."""
        self.entries: dict[str, Entry] = {}
        self._negotiating = False
        self._max_offers = MAX_OFFERS

    def refresh(self, summaries: Iterable[Summary]) -> None:
        """Tell what there is to deliver now: new sessions, those that grew or ended, and by their absence those that
        are gone.
        """
        known, self.entries = self.entries, {}
        for summary in summaries:
            entry = known.get(summary.session_id, None) or Entry(summary)
            if entry.summary.segments != summary.segments or entry.summary.status is not summary.status:
                entry.summary, entry.phase, entry.uploaded, entry.asked = summary, Phase.OFFER, False, False
            self.entries[summary.session_id] = entry

    def offer_again(self) -> None:
        """Begin anew with all that is pending: the connection was lost, or time has passed."""
        self._negotiating = False
        for entry in self.entries.values():
            entry.under_way.clear()
            if entry.phase is not Phase.ENDED:
                entry.phase, entry.asked = Phase.OFFER, False

    # -- what to do ----------------------------------------------------------------------------------------------

    def next(self, now: float) -> Task:
        """The next task. `Negotiate` and `Send` count as under way until their result is told."""
        if self._negotiating:
            return Busy()
        sending = self._next_send()
        confirm = sum(entry.uploaded and entry.phase is Phase.OFFER for entry in self.entries.values())
        if sending is not None and confirm < CONFIRM_AT:
            sending_entry = self.entries[sending.session_id]
            sending_entry.under_way.add(sending.segment.index)
            return sending
        offers = self._offers(now)
        if offers:
            self._negotiating = True
            return Negotiate(offers)
        return self._waiting(now)

    def _next_send(self) -> Send | None:
        wanted = sorted(
            (entry for entry in self.entries.values() if entry.phase is Phase.SEND), key=lambda each: each.order
        )
        for entry in wanted:
            for segment in entry.to_send():
                url, held = entry.urls[segment.index], entry.held.get(segment.index, 0)
                return Send(entry.summary.session_id, segment, url, held)
        return None

    def _offers(self, now: float) -> tuple[Summary, ...]:
        due = (entry for entry in self.entries.values() if self._to_offer(entry) and entry.not_before <= now)
        return tuple(entry.summary for entry in sorted(due, key=lambda each: each.order)[: self._max_offers])

    def _to_offer(self, entry: Entry) -> bool:
        return entry.phase is Phase.OFFER and not entry.asked

    def _waiting(self, now: float) -> Task:
        if any(entry.under_way for entry in self.entries.values()):
            return Busy()
        later = [
            entry.not_before for entry in self.entries.values() if self._to_offer(entry) and entry.not_before > now
        ]
        return Wait(min(later)) if later else Idle()

    # -- what follows --------------------------------------------------------------------------------------------

    def negotiated(self, task: Negotiate, reply: Reply, now: float) -> list[Entry]:
        """The server answered; returns the sessions that ended by it. An offer without an answer is asked about
        later.
        """
        self._negotiating = False
        self._max_offers = reply.policy.max_offers
        decisions = {decision.session_id: decision for decision in reply.decisions}
        ended = []
        for offer in task.offers:
            entry, decision = self.entries.get(offer.session_id), decisions.get(offer.session_id)
            if entry is None or entry.summary is not offer:
                continue
            entry.asked = True
            if decision is not None and self._decided(entry, decision, now):
                ended.append(entry)
        return ended

    def _decided(self, entry: Entry, decision: Decision, now: float) -> bool:
        entry.priority = decision.priority
        if decision.verdict is Verdict.LATER:
            entry.not_before, entry.asked = now + decision.after, False
        elif decision.verdict is Verdict.SEND:
            return self._wanted(entry, decision, now)
        elif entry.running:
            entry.reason = decision.reason  # nothing is given up of a session that still grows
        elif decision.verdict is Verdict.HAVE:
            return self._confirmed(entry, decision, now)
        else:
            rejected = decision.verdict is Verdict.REJECT
            return self._end(entry, Fate.REJECTED if rejected else Fate.DECLINED, decision.reason)
        return False

    def _wanted(self, entry: Entry, decision: Decision, now: float) -> bool:
        entry.urls = {each.index: each.url for each in decision.segments if each.url and not each.complete}
        entry.held = {each.index: each.offset for each in decision.segments}
        if any(entry.held.get(each.index, 0) > each.size for each in entry.summary.segments):
            return self._refuse(entry, "the server claims more bytes of a segment than there are", now)
        if any(True for _ in entry.to_send()):
            entry.phase = Phase.SEND
        elif not entry.running:
            entry.not_before, entry.asked = now + AGAIN, False  # it has everything, and is still busy with it
        return False

    def _confirmed(self, entry: Entry, decision: Decision, now: float) -> bool:
        theirs = {each.index: (each.complete, each.offset, each.sha256) for each in decision.segments}
        ours = {each.index: (each.sealed, each.size, each.sha256) for each in entry.summary.segments}
        if theirs == ours:
            return self._end(entry, Fate.ACCEPTED, "")
        return self._refuse(entry, "the server's copy has another size or digest", now)

    def _end(self, entry: Entry, fate: Fate, reason: str) -> bool:
        entry.phase, entry.fate, entry.reason = Phase.ENDED, fate, reason
        return True

    def _refuse(self, entry: Entry, reason: str, now: float) -> bool:
        """Count a failure that is the session's own; True once it has had its tries."""
        entry.attempts += 1
        entry.phase, entry.asked, entry.reason = Phase.OFFER, False, reason
        entry.not_before = now + AGAIN * entry.attempts
        if entry.attempts < POISON_ATTEMPTS or entry.running:
            return False
        return self._end(entry, Fate.QUARANTINED, reason)

    def sent(self, task: Send, outcome: Outcome, now: float) -> Entry | None:
        """A segment was sent, or not; returns the session if it ended by that (quarantined)."""
        entry = self.entries.get(task.session_id)
        if entry is None or entry.phase is not Phase.SEND:
            return None
        index = task.segment.index
        entry.under_way.discard(index)
        if isinstance(outcome, Completed | Advanced):
            entry.held[index] = outcome.offset
            entry.urls.pop(index, None)
            self._all_sent(entry)
        elif isinstance(outcome, Gone):
            entry.phase, entry.asked = Phase.OFFER, False
        elif isinstance(outcome, OutOfSync | Refused):
            told = outcome.reason if isinstance(outcome, OutOfSync) else f"{outcome.status} {outcome.detail}".strip()
            return entry if self._refuse(entry, told, now) else None
        return None

    def _all_sent(self, entry: Entry) -> None:
        if not entry.under_way and not any(True for _ in entry.to_send()):
            entry.uploaded = not entry.running
            entry.phase, entry.asked = Phase.OFFER, entry.running

    def progressed(self, task: Send, held: int) -> None:
        """The server is known to hold `held` bytes of a segment."""
        entry = self.entries.get(task.session_id)
        if entry is not None:
            entry.held[task.segment.index] = held

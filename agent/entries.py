"""What the planner knows of one session that is to be delivered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from mailboat.agent.link_policy import Priority
from mailboat.protocol.records import COUNTERS
from mailboat.protocol.summary import SegmentState, Status, Summary

_NONE: Final[Mapping[int, Any]] = MappingProxyType({})
"""Of no segment; one for all, for nearly all of ten thousand sessions have just been found."""
_ERROR: Final = COUNTERS.index("error")
_CRITICAL: Final = COUNTERS.index("critical")


class Order(Struct, frozen=True, order=True, gc=False):
    """By which one session comes before another, the first field first; a tuple would take half as much again."""

    rank: int
    unpressing: int
    age: float
    session_id: str


class Phase(Enum):
    """Where a session stands; see `planner`."""

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


class History(Struct, frozen=True, gc=False):
    """What a session has come to since it was found. It `rode` once it was aboard of a request, and is `wanted` once
    the server said so; `best` is the most bytes that the server ever held, and `rest` those that were left when all was
    sent that the server had asked for (0: nothing was, or it was not so yet).
    """

    reason: str = ""
    explanation: str = ""
    priority: int = 0
    not_before: float = 0.0
    refusals: int = 0
    stalls: int = 0
    uploaded: bool = False
    unwanted: bool = False
    rode: bool = False
    wanted: bool = False
    best: int = 0
    rest: int = 0
    urls: Mapping[int, str] = _NONE
    held: Mapping[int, int] = _NONE


_NEW: Final = History()
"""Of a session that nothing has happened to yet; one for all, for that is so of nearly all of ten thousand."""


class Entry(Struct, gc=False):
    """What the planner knows of one session. It keeps `left`, the bytes that the server does not hold as far as is
    known (none once the session has ended).
    """

    summary: Summary
    phase: Phase = Phase.OFFER
    fate: Fate = Fate.PENDING
    asked: bool = False
    left: int = 0
    open: bool = False
    history: History = _NEW

    def note(self, **changes: Any) -> None:  # noqa: ANN401 - fields of `History`
        """This has happened to it."""
        self.history = replace(self.history, **changes)

    def told(self, priority: int, explanation: str) -> None:
        """The server has answered, as nearly always with neither."""
        if priority != self.history.priority or explanation != self.history.explanation:
            self.note(priority=priority, explanation=explanation)

    def end(self, fate: Fate, reason: str) -> None:
        """It has come to its end."""
        self.phase, self.fate = Phase.ENDED, fate
        if reason != self.history.reason:
            self.note(reason=reason)

    def reopen(self) -> None:
        """It is pending after all."""
        self.phase, self.fate = Phase.OFFER, Fate.PENDING
        self.note(uploaded=False)

    @property
    def running(self) -> bool:
        """Whether the session still grows."""
        return self.summary.status is Status.RUNNING

    def due(self, now: float) -> bool:
        """Whether it is to be offered now."""
        return self.phase is Phase.OFFER and not self.asked and self.history.not_before <= now

    @property
    def urgency(self) -> Priority:
        """How much it matters."""
        counts = self.summary.counts
        if counts[_ERROR] or counts[_CRITICAL]:
            return Priority.URGENT
        return Priority.WANTED if self.history.priority > 0 else Priority.ORDINARY

    @property
    def order(self) -> Order:
        """What only has to be confirmed comes first, then errors, then what the server wants most, then the newest."""
        urgent = self.urgency is Priority.URGENT
        rank = 2 * (not self.history.uploaded) + (not urgent)
        return Order(rank, -self.history.priority, -self.summary.started, self.summary.session_id)

    def hold(self, index: int, offset: int) -> None:
        """The server has so many bytes of a segment."""
        self.note(held={**self.history.held, index: offset})

    def done(self, index: int) -> None:
        """A segment was sent, as far as it goes."""
        self.note(urls={each: url for each, url in self.history.urls.items() if each != index})

    def unsent(self) -> Iterator[SegmentState]:
        """The segments of which the server lacks something, or the end."""
        urls, held = self.history.urls, self.history.held
        for segment in self.summary.segments:
            if segment.index in urls and (segment.sealed or held.get(segment.index, 0) < segment.size):
                yield segment

    @property
    def lacking(self) -> int:
        """Bytes that the server does not hold."""
        held = self.history.held
        if not held:
            return self.summary.size
        return sum(max(0, segment.size - held.get(segment.index, 0)) for segment in self.summary.segments)

    def grew_to(self, summary: Summary) -> None:
        """The session has more now than it had."""
        self.summary, self.phase = summary, Phase.OFFER
        if self.history is not _NEW:
            self.note(uploaded=False, rode=False, unwanted=False, stalls=0, refusals=0, rest=0)

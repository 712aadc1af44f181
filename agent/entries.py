"""What the planner knows of one session that is to be delivered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Any, Final

from msgspec import Struct

from mailboat.agent.link_policy import Priority
from mailboat.protocol.records import COUNTERS
from mailboat.protocol.summary import SegmentState, Status, Summary

_NONE: Final[Mapping[int, Any]] = MappingProxyType({})
"""Of no segment; one for all, for nearly all of ten thousand sessions have just been found."""
_ERROR: Final = COUNTERS.index("error")
_CRITICAL: Final = COUNTERS.index("critical")


Order = tuple[bool, bool, int, float, str]
"""By which one session comes before another; its id is the last of it."""


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


class Entry(Struct, gc=False):
    """What the planner knows of one session. It `rode` once it was aboard of a request, and is `wanted` once the server
    said so. It keeps `left`, the bytes that the server does not hold as far as is known (none once the session has
    ended), `best`, the most that it ever held, and `rest`, the bytes that were left when all was sent that the server
    had asked for (0: nothing was, or it was not so yet).
    """

    summary: Summary
    phase: Phase = Phase.OFFER
    fate: Fate = Fate.PENDING
    reason: str = ""
    explanation: str = ""
    priority: int = 0
    not_before: float = 0.0
    refusals: int = 0
    stalls: int = 0
    uploaded: bool = False
    asked: bool = False
    unwanted: bool = False
    rode: bool = False
    wanted: bool = False
    left: int = 0
    best: int = 0
    rest: int = 0
    open: bool = False
    urls: Mapping[int, str] = _NONE
    held: Mapping[int, int] = _NONE

    @property
    def running(self) -> bool:
        """Whether the session still grows."""
        return self.summary.status is Status.RUNNING

    def due(self, now: float) -> bool:
        """Whether it is to be offered now."""
        return self.phase is Phase.OFFER and not self.asked and self.not_before <= now

    @property
    def urgency(self) -> Priority:
        """How much it matters."""
        counts = self.summary.counts
        if counts[_ERROR] or counts[_CRITICAL]:
            return Priority.URGENT
        return Priority.WANTED if self.priority > 0 else Priority.ORDINARY

    @property
    def order(self) -> Order:
        """What only has to be confirmed comes first, then errors, then what the server wants most, then the newest."""
        urgent = self.urgency is Priority.URGENT
        return (not self.uploaded, not urgent, -self.priority, -self.summary.started, self.summary.session_id)

    def hold(self, index: int, offset: int) -> None:
        """The server has so many bytes of a segment."""
        self.held = {**self.held, index: offset}

    def done(self, index: int) -> None:
        """A segment was sent, as far as it goes."""
        self.urls = {each: url for each, url in self.urls.items() if each != index}

    def unsent(self) -> Iterator[SegmentState]:
        """The segments of which the server lacks something, or the end."""
        for segment in self.summary.segments:
            if segment.index in self.urls and (segment.sealed or self.held.get(segment.index, 0) < segment.size):
                yield segment

    @property
    def lacking(self) -> int:
        """Bytes that the server does not hold."""
        held = self.held
        if not held:
            return self.summary.size
        return sum(max(0, segment.size - held.get(segment.index, 0)) for segment in self.summary.segments)

    def grew_to(self, summary: Summary) -> None:
        """The session has more now than it had."""
        self.summary, self.phase = summary, Phase.OFFER
        self.uploaded = self.rode = self.unwanted = False
        self.stalls = self.refusals = self.rest = 0

"""Negotiation: the agent offers sessions, the server says of each what it wants.

One request carries up to `limits.MAX_OFFERS` summaries; one reply answers for each, so a whole backlog costs one
round trip. Messages are msgpack (compressed with zstd) or JSON, with the same members. The worked wire is in
``docs/protocol.md``.

The verdicts:

===========  ===================================================================================================
``send``     the details are wanted: append each listed segment at its ``url`` from ``offset`` on
``have``     the server has the whole session, and states each segment's size and digest: it may be purged
``decline``  the summary is enough; final for this session, though the server may come back and ask (``wanted``)
``reject``   the session will never be taken, for the ``reason`` given
``later``    ask again, not before ``after`` seconds
===========  ===================================================================================================

Small segments may *ride along*: where the server has said that it wants the details anyway (`Policy.details` and
`riding`, in an earlier reply), a request carries whole segments beside the offers (`Rider`). The server keeps them as
durably as uploads, and its reply says ``have`` of each session that is complete by that. A server that knows nothing of
riders passes them over and answers ``send``, and so does one that cannot use them: nothing is lost, but sent once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from msgspec import Struct, field

from mailboat.protocol import wire
from mailboat.protocol.errors import WireError
from mailboat.protocol.limits import (
    BACKOFF_FIRST,
    MAX_OFFERS,
    MAX_RETRY_AFTER,
    MAX_RIDER,
    MAX_RIDING,
    MAX_SEGMENT,
    MAX_SEGMENTS,
    SLOWEST_RATE,
)
from mailboat.protocol.summary import Summary
from mailboat.protocol.wire import Fields

VERSION: Final = 1
SERVER_HEADER: Final = "Mailboat-Version"
"""The header on every answer of a mailboat server, by which an agent tells it from a captive portal."""


class Verdict(StrEnum):
    """What the server says of an offer."""

    SEND = "send"
    HAVE = "have"
    DECLINE = "decline"
    REJECT = "reject"
    LATER = "later"


class Reason(StrEnum):
    """Why a session is rejected; each is final."""

    UNKNOWN_PRODUCT = "unknown_product"
    OVER_PLAN = "over_plan"
    WRONG_AGENT_TYPE = "wrong_agent_type"
    TOO_OLD = "too_old"
    CORRUPTED = "corrupted"
    UNSUPPORTED_VERSION = "unsupported_version"


class Wish(StrEnum):
    """Which sessions a server will want in full; of the others the summary is enough."""

    ALL = "all"
    ERRORS = "errors"
    SOME = "some"
    """Told of each only when it is offered."""
    NONE = "none"


class Riding(Struct, frozen=True):
    """How much may ride along: `segment` bytes of each segment, `request` bytes in one request. Nothing may where a
    server does not say so.
    """

    segment: int = 0
    request: int = 0

    def to_wire(self) -> dict[str, Any]:
        """The terms as a map of plain values."""
        return {"segment": self.segment, "request": self.request}

    @classmethod
    def read(cls, fields: Fields) -> Riding:
        """What `to_wire` made."""
        return cls(min(fields.whole("segment", 0), MAX_RIDER), min(fields.whole("request", 0), MAX_RIDING))


class Policy(Struct, frozen=True):
    """What the server asks of its agents, so that it can calm them. Times are seconds.

    `sync_interval` is how often to negotiate while something waits (None: as the agent is set); `backoff_floor` the
    shortest pause after a failure; `max_offers` the most sessions in one request; `max_rate` the most bytes a second
    that one agent sends (None: as it is set); `details` says beforehand which sessions will be wanted in full, so that
    a running one that will not be need not be offered before it has ended, and small ones that will be may come along
    at once, as `riding` allows.
    """

    sync_interval: float | None = None
    backoff_floor: float = BACKOFF_FIRST
    max_offers: int = MAX_OFFERS
    max_rate: int | None = None
    details: Wish = Wish.ALL
    riding: Riding = field(default_factory=Riding)

    def to_wire(self) -> dict[str, Any]:
        """The policy as a map of plain values."""
        return {
            "sync_interval": self.sync_interval,
            "backoff_floor": self.backoff_floor,
            "max_offers": self.max_offers,
            "max_rate": self.max_rate,
            "details": self.details.value,
            "riding": self.riding.to_wire(),
        }

    @classmethod
    def read(cls, fields: Fields) -> Policy:
        """What `to_wire` made; `details` that this version does not know read as some."""
        interval = fields.number("sync_interval", high=MAX_RETRY_AFTER) if "sync_interval" in fields else None
        details = fields.text("details", Wish.ALL.value)
        return cls(
            sync_interval=interval,
            backoff_floor=fields.number("backoff_floor", BACKOFF_FIRST, high=MAX_RETRY_AFTER),
            max_offers=fields.whole("max_offers", MAX_OFFERS, low=1, high=MAX_OFFERS),
            max_rate=fields.whole("max_rate", low=SLOWEST_RATE) if "max_rate" in fields else None,
            details=Wish(details) if details in list(Wish) else Wish.SOME,
            riding=Riding.read(Fields(fields.mapping("riding"), fields.place("riding"))),
        )


class SegmentDecision(Struct, frozen=True):
    """Where one segment stands at the server: its upload resource (a path, or an absolute URL), the bytes held
    durably, and whether it is complete; then `sha256` (hex) is the digest in the seal of the bytes that the server
    verified.
    """

    index: int
    url: str
    offset: int
    complete: bool
    sha256: str = ""

    def to_wire(self) -> dict[str, Any]:
        """The decision as a map of plain values."""
        return {
            "index": self.index,
            "url": self.url,
            "offset": self.offset,
            "complete": self.complete,
            "sha256": self.sha256,
        }

    @classmethod
    def read(cls, fields: Fields) -> SegmentDecision:
        """What `to_wire` made."""
        return cls(
            index=fields.whole("index", high=MAX_SEGMENTS),
            url=fields.text("url", "", limit=2048),
            offset=fields.whole("offset", 0, high=MAX_SEGMENT),
            complete=fields.flag("complete", default=False),
            sha256=fields.text("sha256", "", limit=64),
        )


class Decision(Struct, frozen=True):
    """The server's answer for one session.

    `reason` and `explanation` go with a rejection (the reason may be one that this version does not know); `after` is
    seconds, with ``later``; a higher `priority` is sent first; `segments` lists those offered, with ``send`` and
    ``have``.
    """

    session_id: str
    verdict: Verdict
    reason: str = ""
    explanation: str = ""
    after: float = 0.0
    priority: int = 0
    segments: tuple[SegmentDecision, ...] = ()

    def to_wire(self) -> dict[str, Any]:
        """The decision as a map of plain values."""
        return {
            "session": self.session_id,
            "verdict": self.verdict.value,
            "reason": self.reason,
            "explanation": self.explanation,
            "after": self.after,
            "priority": self.priority,
            "segments": [segment.to_wire() for segment in self.segments],
        }

    @classmethod
    def read(cls, fields: Fields) -> Decision:
        """What `to_wire` made; a verdict that this version does not know reads as ``later``."""
        text = fields.text("verdict")
        return cls(
            session_id=fields.id("session"),
            verdict=Verdict(text) if text in list(Verdict) else Verdict.LATER,
            reason=fields.text("reason", ""),
            explanation=fields.text("explanation", ""),
            after=min(fields.number("after", 0.0), MAX_RETRY_AFTER),
            priority=fields.whole("priority", 0, low=-(2**31), high=2**31),
            segments=fields.each("segments", MAX_SEGMENTS, SegmentDecision.read),
        )


class Rider(Struct, frozen=True):
    """A whole segment of an offered session, with all its bytes."""

    session_id: str
    index: int
    content: bytes

    def to_wire(self) -> dict[str, Any]:
        """The rider as a map of plain values."""
        return {"session": self.session_id, "index": self.index, "bytes": self.content}

    @classmethod
    def read(cls, fields: Fields) -> Rider:
        """What `to_wire` made."""
        return cls(fields.id("session"), fields.whole("index", high=MAX_SEGMENTS), fields.content("bytes"))


class Request(Struct, frozen=True):
    """What an agent says: `agent` is its kind and version (``mailboat-python/0.1.0``), `offers` the sessions that
    wait, `sent` the wall clock in seconds when this was sent (the server measures the machine's clock by it),
    `ledger` the account of the store that they lie in (all in one, then), `riders` segments of the offers.
    """

    agent: str
    offers: tuple[Summary, ...]
    sent: float = 0.0
    ledger: Mapping[str, Any] = field(default_factory=dict)
    riders: tuple[Rider, ...] = ()

    def encode(self, media_type: str = wire.MSGPACK_MEDIA_TYPE) -> bytes:
        """The message, uncompressed."""
        riders = {"riders": [rider.to_wire() for rider in self.riders]} if self.riders else {}
        return wire.encode({**self._brief(), **riders}, media_type)

    def compressed(self) -> bytes:
        """The message in msgpack, compressed but for the riders, which are already."""
        brief = wire.encode(self._brief(), wire.MSGPACK_MEDIA_TYPE)
        if not self.riders:
            return wire.compress(brief)
        # One more member, behind the others: a small map's first byte counts them.
        riders = wire.encode({"riders": [rider.to_wire() for rider in self.riders]}, wire.MSGPACK_MEDIA_TYPE)
        return wire.compress(bytes((brief[0] + 1,)) + brief[1:], stored=riders[1:])

    def _brief(self) -> dict[str, Any]:
        """All members but the riders."""
        offers = [offer.to_wire() for offer in self.offers]
        return {"v": VERSION, "agent": self.agent, "sent": self.sent, "offers": offers, "ledger": dict(self.ledger)}

    @classmethod
    def decode(cls, body: bytes, media_type: str = wire.MSGPACK_MEDIA_TYPE) -> Request:
        """What `encode` made; `WireError` for anything else."""
        fields = _message(body, media_type, "request")
        return cls(
            agent=fields.text("agent", ""),
            offers=fields.each("offers", MAX_OFFERS, Summary.read),
            sent=fields.number("sent", 0.0),
            ledger=fields.mapping("ledger"),
            riders=fields.each("riders", MAX_OFFERS, Rider.read),
        )


class Reply(Struct, frozen=True):
    """What the server answers: a decision for each offer, sessions it now wants that it had declined, and its
    policy.
    """

    decisions: tuple[Decision, ...]
    wanted: tuple[str, ...] = ()
    policy: Policy = field(default_factory=Policy)

    def encode(self, media_type: str = wire.MSGPACK_MEDIA_TYPE) -> bytes:
        """The message, uncompressed."""
        message = {
            "v": VERSION,
            "decisions": [decision.to_wire() for decision in self.decisions],
            "wanted": [{"session": session_id} for session_id in self.wanted],
            "policy": self.policy.to_wire(),
        }
        return wire.encode(message, media_type)

    @classmethod
    def decode(cls, body: bytes, media_type: str = wire.MSGPACK_MEDIA_TYPE) -> Reply:
        """What `encode` made; `WireError` for anything else."""
        fields = _message(body, media_type, "reply")
        return cls(
            decisions=fields.each("decisions", MAX_OFFERS, Decision.read),
            wanted=fields.each("wanted", MAX_OFFERS, lambda each: each.id("session")),
            policy=Policy.read(Fields(fields.mapping("policy"), fields.place("policy"))),
        )


def _message(body: bytes, media_type: str, name: str) -> Fields:
    fields = Fields(wire.decode(body, media_type), name)
    version = fields.whole("v", high=2**31)
    if version != VERSION:
        raise WireError(f"{name}.v: this mailboat speaks version {VERSION} of the negotiation, not {version}")
    return fields

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

import contextlib
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Final, Generic, Literal, TypeAlias, TypeVar

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

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
from mailboat.protocol.summary import Offer, Summary
from mailboat.protocol.wire import DIGEST, Digest, Fields, Id, Number, Text

VERSION: Final = 1
SERVER_HEADER: Final = "Mailboat-Version"
"""The header on every answer of a mailboat server, by which an agent tells it from a captive portal."""

_URL: Final = 2048
"""Characters of an upload's URL."""
_PRIORITY: Final = 2**31

_Seconds: TypeAlias = Annotated[float, Meta(ge=0.0, le=MAX_RETRY_AFTER)]


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

    segment: Annotated[int, Meta(ge=0, le=MAX_RIDER)] = 0
    request: Annotated[int, Meta(ge=0, le=MAX_RIDING)] = 0

    @classmethod
    def read(cls, fields: Fields) -> Riding:
        """The same, member by member; `WireError` for what it cannot be."""
        return cls(min(fields.whole("segment", 0), MAX_RIDER), min(fields.whole("request", 0), MAX_RIDING))


class Policy(Struct, frozen=True):
    """What the server asks of its agents, so that it can calm them. Times are seconds.

    `sync_interval` is how often to negotiate while something waits (None: as the agent is set); `backoff_floor` the
    shortest pause after a failure; `max_offers` the most sessions in one request; `max_rate` the most bytes a second
    that one agent sends (None: as it is set); `details` says beforehand which sessions will be wanted in full, so that
    a running one that will not be need not be offered before it has ended, and small ones that will be may come along
    at once, as `riding` allows.
    """

    sync_interval: _Seconds | None = None
    backoff_floor: _Seconds = BACKOFF_FIRST
    max_offers: Annotated[int, Meta(ge=1, le=MAX_OFFERS)] = MAX_OFFERS
    max_rate: Annotated[int, Meta(ge=SLOWEST_RATE, le=2**63 - 1)] | None = None
    details: Wish = Wish.ALL
    riding: Riding = field(default_factory=Riding)

    @classmethod
    def read(cls, fields: Fields) -> Policy:
        """The same, member by member; `details` that this version does not know read as some."""
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


class SegmentDecision(Struct, frozen=True, gc=False):
    """Where one segment stands at the server: its upload resource (a path, or an absolute URL), the bytes held
    durably, and whether it is complete; then `sha256` (hex) is the digest in the seal of the bytes that the server
    verified.
    """

    index: Annotated[int, Meta(ge=0, le=MAX_SEGMENTS)]
    url: Annotated[str, Meta(max_length=_URL)]
    offset: Annotated[int, Meta(ge=0, le=MAX_SEGMENT)]
    complete: bool
    sha256: Digest = ""

    @classmethod
    def read(cls, fields: Fields) -> SegmentDecision:
        """The same, member by member; `WireError` for what it cannot be."""
        return cls(
            index=fields.whole("index", high=MAX_SEGMENTS),
            url=fields.text("url", "", limit=_URL),
            offset=fields.whole("offset", 0, high=MAX_SEGMENT),
            complete=fields.flag("complete", default=False),
            sha256=fields.text("sha256", "", limit=DIGEST),
        )


class Decision(Struct, frozen=True, gc=False, rename={"session_id": "session"}):
    """The server's answer for one session.

    `reason` and `explanation` go with a rejection (the reason may be one that this version does not know); `after` is
    seconds, with ``later``; a higher `priority` is sent first; `segments` lists those offered, with ``send`` and
    ``have``.
    """

    session_id: Id
    verdict: Verdict
    reason: Text = ""
    explanation: Text = ""
    after: _Seconds = 0.0
    priority: Annotated[int, Meta(ge=-_PRIORITY, le=_PRIORITY)] = 0
    segments: Annotated[tuple[SegmentDecision, ...], Meta(max_length=MAX_SEGMENTS)] = ()

    @classmethod
    def read(cls, fields: Fields) -> Decision:
        """The same, member by member; a verdict that this version does not know reads as ``later``."""
        text = fields.text("verdict")
        return cls(
            session_id=fields.id("session"),
            verdict=Verdict(text) if text in list(Verdict) else Verdict.LATER,
            reason=fields.text("reason", ""),
            explanation=fields.text("explanation", ""),
            after=min(fields.number("after", 0.0), MAX_RETRY_AFTER),
            priority=fields.whole("priority", 0, low=-_PRIORITY, high=_PRIORITY),
            segments=fields.each("segments", MAX_SEGMENTS, SegmentDecision.read),
        )


class Rider(Struct, frozen=True, rename={"session_id": "session", "content": "bytes"}):
    """A whole segment of an offered session, with all its bytes, which are those of the request that brought it."""

    session_id: Id
    index: Annotated[int, Meta(ge=0, le=MAX_SEGMENTS)]
    content: memoryview

    @classmethod
    def read(cls, fields: Fields) -> Rider:
        """The same, member by member; `WireError` for what it cannot be."""
        return cls(fields.id("session"), fields.whole("index", high=MAX_SEGMENTS), memoryview(fields.content("bytes")))


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
        return _encoded(self._said(self.riders or UNSET), media_type)

    def compressed(self) -> bytes:
        """The message in msgpack, compressed but for the riders, which are already."""
        brief = wire.pack(self._said(UNSET))
        if not self.riders:
            return wire.compress(brief)
        # One more member, behind the others: a small map's first byte counts them.
        riders = memoryview(wire.pack({"riders": self.riders}))[1:]
        return wire.compress(bytes((brief[0] + 1,)) + brief[1:], stored=riders)

    def _said(self, riders: tuple[Rider, ...] | UnsetType) -> _Request[Mapping[str, Any]]:
        offers = tuple(offer.to_offer() for offer in self.offers)
        return _Request(v=VERSION, agent=self.agent, sent=self.sent, offers=offers, ledger=self.ledger, riders=riders)

    @classmethod
    def decode(cls, body: bytes, media_type: str = wire.MSGPACK_MEDIA_TYPE) -> Request:
        """What `encode` made; `WireError` for anything else."""
        if media_type == wire.MSGPACK_MEDIA_TYPE:
            with contextlib.suppress(wire.Untyped):
                return cls._heard(wire.typed(_Request[Raw], body))
        fields = _message(body, media_type, "request")
        return cls(
            agent=fields.text("agent", ""),
            offers=fields.each("offers", MAX_OFFERS, Summary.read),
            sent=fields.number("sent", 0.0),
            ledger=fields.mapping("ledger"),
            riders=fields.each("riders", MAX_OFFERS, Rider.read),
        )

    @classmethod
    def _heard(cls, said: _Request[Raw]) -> Request:
        ledger = Fields({"ledger": wire.decode(bytes(said.ledger), wire.MSGPACK_MEDIA_TYPE)}, "request")
        return cls(
            said.agent,
            tuple(map(Summary.from_offer, said.offers)),
            said.sent,
            ledger.mapping("ledger"),
            () if said.riders is UNSET else said.riders,
        )


L = TypeVar("L", Raw, Mapping[str, Any])


class _Request(Struct, Generic[L], frozen=True, kw_only=True):
    """A request as it is said. The ledger that comes is anything at all: taken apart with care, and on its own."""

    v: Literal[1]
    agent: Text
    sent: Number
    offers: Annotated[tuple[Offer, ...], Meta(max_length=MAX_OFFERS)]
    ledger: L
    riders: Annotated[tuple[Rider, ...], Meta(max_length=MAX_OFFERS)] | UnsetType = UNSET


class Reply(Struct, frozen=True):
    """What the server answers: a decision for each offer, sessions it now wants that it had declined, and its
    policy.
    """

    decisions: tuple[Decision, ...]
    wanted: tuple[str, ...] = ()
    policy: Policy = field(default_factory=Policy)

    def encode(self, media_type: str = wire.MSGPACK_MEDIA_TYPE) -> bytes:
        """The message, uncompressed."""
        wanted = tuple(map(_Wanted, self.wanted))
        return _encoded(_Reply(v=VERSION, decisions=self.decisions, wanted=wanted, policy=self.policy), media_type)

    @classmethod
    def decode(cls, body: bytes, media_type: str = wire.MSGPACK_MEDIA_TYPE) -> Reply:
        """What `encode` made; `WireError` for anything else."""
        if media_type == wire.MSGPACK_MEDIA_TYPE:
            with contextlib.suppress(wire.Untyped):
                said = wire.typed(_Reply, body)
                return cls(said.decisions, tuple(each.session for each in said.wanted), said.policy)
        fields = _message(body, media_type, "reply")
        return cls(
            decisions=fields.each("decisions", MAX_OFFERS, Decision.read),
            wanted=fields.each("wanted", MAX_OFFERS, lambda each: each.id("session")),
            policy=Policy.read(Fields(fields.mapping("policy"), fields.place("policy"))),
        )


class _Wanted(Struct, frozen=True):
    """A session that is wanted after all."""

    session: Id


class _Reply(Struct, frozen=True):
    """A reply as it is said."""

    v: Literal[1]
    decisions: Annotated[tuple[Decision, ...], Meta(max_length=MAX_OFFERS)] = ()
    wanted: Annotated[tuple[_Wanted, ...], Meta(max_length=MAX_OFFERS)] = ()
    policy: Policy = field(default_factory=Policy)


def _encoded(said: Struct, media_type: str) -> bytes:
    if media_type == wire.MSGPACK_MEDIA_TYPE:
        return wire.pack(said)
    return wire.encode(wire.plain(said), media_type)


def _message(body: bytes, media_type: str, name: str) -> Fields:
    fields = Fields(wire.decode(body, media_type), name)
    version = fields.whole("v", high=2**31)
    if version != VERSION:
        raise WireError(f"{name}.v: this mailboat speaks version {VERSION} of the negotiation, not {version}")
    return fields

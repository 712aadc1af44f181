"""A server in virtual time: the real policy, decisions and upload cores over plain dictionaries, and its bad days."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec.structs import replace

from mailboat.agent.http import Answer
from mailboat.protocol import wire
from mailboat.protocol.limits import MAX_SEAL, MAX_SEGMENT
from mailboat.protocol.negotiation import SERVER_HEADER, Reply, Request
from mailboat.protocol.segment import Seal
from mailboat.protocol.summary import Summary
from mailboat.protocol.uploads.messages import HttpAnswer
from mailboat.protocol.uploads.rufh import CURRENT
from mailboat.protocol.uploads.state import UploadState
from mailboat.protocol.uploads.values import Limits
from mailboat.server.catalog import SegmentRow, SessionState, Verification
from mailboat.server.deciding import Ruled, decide
from mailboat.server.policy import Plan, advice, rule
from testkit.uploads import PLACE, MemoryServer, Transfer, Upload

OURS = {SERVER_HEADER.lower(): "0.1.0"}
WAITS = ("0", "-1", "5", "90", "soon", "Wed, 21 Oct 2026 07:28:00 GMT", "1000000000")
"""What a troubled server says in Retry-After."""
TROUBLES = (408, 429, 500, 502, 503, 504)
REFUSALS = (401, 403)
FRESH = 1
"""Uploads that an offer gets at a time: sessions of several segments are asked for in parts."""


@dataclass
class SimServer:
    """`now` is its wall clock; `trouble` the share of requests that it fails, while `refusing` any key is wrong. An
    `unreasonable` one wants to be left alone for decades.
    """

    draw: random.Random
    now: Callable[[], float]
    product: str
    unreasonable: bool
    plan: Plan = field(default_factory=Plan)
    trouble: float = 0.0
    refusing: bool = False
    poison: set[str] = field(default_factory=set)
    wanted: set[str] = field(default_factory=set)
    started: int = 0
    registered: dict[str, dict[int, str]] = field(default_factory=dict)
    declined: set[str] = field(default_factory=set)
    told: dict[str, str] = field(default_factory=dict)
    ledgers: dict[str, object] = field(default_factory=dict)
    received: int = 0

    def __post_init__(self) -> None:
        self.core = MemoryServer(Limits(max_size=MAX_SEGMENT), self.now())

    # -- its bad days --------------------------------------------------------------------------------------------

    def failure(self) -> Answer | None:
        """How it fails this request, if it does."""
        if self.refusing:
            return Answer(self.draw.choice(REFUSALS), dict(OURS), b"")
        if self.draw.random() >= self.trouble:
            return None
        headers = dict(OURS) if self.draw.random() < 0.5 else {}
        if self.draw.random() < 0.5:
            headers["retry-after"] = self.draw.choice(WAITS if self.unreasonable else WAITS[:-1])
        return Answer(self.draw.choice(TROUBLES), headers, b"")

    def restart(self) -> None:
        """Killed, and started again: what was not durable is lost."""
        self.started += 1
        self.core.restart()

    def forget(self) -> None:
        """Lose an upload that is not complete, as an expiry would."""
        open_ones = [each for each, upload in self.core.uploads.items() if not upload.state.complete]
        if open_ones:
            lost = self.draw.choice(sorted(open_ones))
            del self.core.uploads[lost]
            for segments in self.registered.values():
                for index in [index for index, upload_id in segments.items() if upload_id == lost]:
                    del segments[index]

    # -- negotiation ---------------------------------------------------------------------------------------------

    def negotiate(self, body: bytes) -> Answer:
        asked = Request.decode(wire.decompress(body))
        decisions = []
        for offer in asked.offers:
            ruling = rule(offer, self.plan, asked.agent, asked.sent)
            if offer.session_id in self.wanted:
                ruling = replace(ruling, state=SessionState.WANTED)
            rows = self._rows(offer, fresh=ruling.state is SessionState.WANTED)
            decision = decide(Ruled(offer, ruling, self.product), rows, room=True)
            self.told[offer.session_id] = decision.verdict.value
            decisions.append(decision)
            declined = ruling.state is SessionState.DECLINED
            (self.declined.add if declined else self.declined.discard)(offer.session_id)
        if asked.ledger:
            self.ledgers[str(asked.ledger.get("store"))] = asked.ledger
        versions = [(self.plan, version) for version in {offer.info.version for offer in asked.offers}]
        back = tuple(sorted(self.wanted & self.declined))
        reply = Reply(tuple(decisions), back, advice(versions))
        headers = {**OURS, "content-type": wire.MSGPACK_MEDIA_TYPE, "content-encoding": "zstd"}
        return Answer(200, headers, wire.compress(reply.encode()))

    def _rows(self, offer: Summary, *, fresh: bool) -> list[SegmentRow]:
        segments = self.registered.setdefault(offer.session_id, {})
        room = FRESH if fresh else 0
        for state in offer.segments:
            if room and state.index not in segments:
                room -= 1
                upload_id = f"0190a000-0000-7000-8000-{self.draw.getrandbits(48):012x}"
                self.core.uploads[upload_id] = Upload(
                    UploadState(id=upload_id, limits=self.core.limits, dialect=CURRENT.tag)
                )
                segments[state.index] = upload_id
        return [self._row(offer.session_id, index) for index in sorted(segments)]

    def _row(self, session_id: str, index: int) -> SegmentRow:
        upload_id = self.registered[session_id][index]
        upload = self.core.uploads[upload_id]
        sha256 = digest_of(bytes(upload.blob)) if upload.state.complete else ""
        return SegmentRow(
            upload_id=upload_id,
            product=self.product,
            session_id=session_id,
            index=index,
            offset=upload.state.offset,
            complete=upload.state.complete,
            verification=_verdict(complete=upload.state.complete, sha256=sha256),
            sha256=sha256,
            reason="",
            detail="",
            records=0,
            loaded=0,
            created=0.0,
            updated=0.0,
        )

    # -- uploads -------------------------------------------------------------------------------------------------

    def begin(self, method: str, path: str, headers: dict[str, str]) -> Transfer | HttpAnswer:
        self.core.now = self.now()
        if any(path.endswith(each) for name in self.poison for each in self.registered.get(name, {}).values()):
            return HttpAnswer(400)
        return self.core.begin(method, path, headers)

    def knows(self, transfer: Transfer, life: int) -> bool:
        """Whether this transfer can still go on, that began in the `life` of the server."""
        return self.started == life and transfer._accepted.state.id in self.core.uploads

    def holds(self, session_id: str, segments: list[bytes]) -> bool:
        """Whether it has exactly these segments of a session, complete."""
        held = self.registered.get(session_id, {})
        uploads = [self.core.uploads[held[index]] for index in sorted(held)]
        return [bytes(each.blob) for each in uploads if each.state.complete] == segments


def _verdict(*, complete: bool, sha256: str) -> Verification:
    if not complete:
        return Verification.PENDING
    return Verification.VERIFIED if sha256 else Verification.REJECTED


def digest_of(segment: bytes) -> str:
    """The digest in the seal, if it is that of the bytes before it; empty if not."""
    found = Seal.at_end_of(segment[-MAX_SEAL:])
    if found is None:
        return ""
    seal, length = found
    return seal.sha256.hex() if hashlib.sha256(segment[: len(segment) - length]).digest() == seal.sha256 else ""


__all__ = ["OURS", "PLACE", "SimServer"]

"""What each behaviour of a server leads to: what is kept, what is removed, and when it is tried again (testing.md, rows
10 to 12). One table, each row of which is played to a real synchronizer over a real store in virtual time.

The server behaves like that for as long as `LASTS`, and well from then on. Whatever it does, nothing is removed but by
its explicit word, it is not asked in a hurry, and what was kept is delivered once it behaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

import aiohttp
import pytest

from mailboat.agent.http import SILENCE_TIMEOUT, Answer
from mailboat.agent.store import QUARANTINED, SENT, WAITING
from mailboat.protocol import wire
from mailboat.protocol.limits import BACKOFF_LONGEST, MAX_RETRY_AFTER
from mailboat.protocol.negotiation import Decision, Reply, Request, SegmentDecision, Verdict
from mailboat.protocol.summary import SegmentState, Summary
from mailboat.protocol.uploads.messages import HttpAnswer
from testkit.simnet import PORTAL
from testkit.simserver import OURS, SimServer
from testkit.stories import QUIET, story, until
from testkit.uploads import Transfer
from testkit.world import SimAgent

LASTS: Final = 2 * 3600.0
MOST_REQUESTS: Final = 130
"""In that time, of one session: about one a minute."""
NEXT_ROUND: Final = QUIET.sync_interval
AT_ONCE: Final = 0.0
CROSSING: Final = 0.5
"""Seconds that requests and answers take on the way, beside a pause."""
OTHER: Final = "018f0000-0000-7000-8000-000000000001"

Decide = Callable[[Summary], Decision | None]


@dataclass(frozen=True)
class Leads:
    """What becomes of a session: where it is left, and as what; when it is tried `again` (seconds after the first such
    answer; None: never), and the longest pause between requests while that lasts.
    """

    left: str
    fate: str
    again: float | None = None
    longest: float = 0.0


ACCEPTED, DECLINED, REJECTED = Leads(SENT, "accepted"), Leads(SENT, "declined"), Leads(SENT, "rejected")


def kept(again: float | None, longest: float = BACKOFF_LONGEST) -> Leads:
    """It waits."""
    return Leads(WAITING, "pending", again, longest)


def aside(again: float) -> Leads:
    """It is put aside in the end, as it is: after three tries, minutes apart."""
    return Leads(QUARANTINED, "quarantined", again, BACKOFF_LONGEST)


UNAVAILABLE = kept(1.0)
"""Pauses that double from a second to five minutes; chance is at its highest here."""
SHUT_OUT = kept(BACKOFF_LONGEST + 1.0, 2 * BACKOFF_LONGEST)
SILENCED = kept(None, MAX_RETRY_AFTER)


@dataclass(frozen=True)
class Row:
    """How a server behaves to negotiations, to uploads, or what the way to it is like; and what that leads to."""

    leads: Leads
    negotiation: Answer | Exception | Decide | None = None
    upload: Answer | Exception | None = None
    line: dict[str, object] = field(default_factory=dict)


class Behaving(SimServer):
    """Behaves like its `row`, and well where there is none."""

    row: Row | None = None
    misbehaved: float | None = None
    """When it first did."""

    def negotiate(self, body: bytes) -> Answer:
        told = self.row.negotiation if self.row is not None else None
        if callable(told):
            offers = Request.decode(wire.decompress(body)).offers
            decisions = tuple(decision for decision in map(told, offers) if decision is not None)
            told = answer(200, Reply(decisions).encode(), content_type=wire.MSGPACK_MEDIA_TYPE)
        return self._said(told) or super().negotiate(body)

    def begin(self, method: str, path: str, headers: dict[str, str]) -> Transfer | HttpAnswer:
        said = self._said(self.row.upload if self.row is not None else None)
        return super().begin(method, path, headers) if said is None else HttpAnswer(said.status, said.headers)

    def _said(self, told: Answer | Exception | None) -> Answer | None:
        if told is not None and self.misbehaved is None:
            self.misbehaved = asyncio.get_running_loop().time()
        if isinstance(told, Exception):
            raise told
        return told


def answer(status: int, body: bytes = b"", **headers: str) -> Answer:
    return Answer(status, {**OURS, **{name.replace("_", "-"): text for name, text in headers.items()}}, body)


def says(verdict: Verdict, *, after: float = 0.0, reason: str = "") -> Decide:
    return lambda offer: Decision(offer.session_id, verdict, reason, after=after)


def has(**lie: object) -> Decide:
    """All is here, it says, but for a lie."""

    def say(each: SegmentState) -> SegmentDecision:
        truth = {"index": each.index, "url": "", "offset": each.size, "complete": True, "sha256": each.sha256}
        return SegmentDecision(**{**truth, **lie})  # type: ignore[arg-type] # a lie may have any shape

    return lambda offer: Decision(offer.session_id, Verdict.HAVE, segments=tuple(map(say, offer.segments)))


def wants(offset: int = 0, url: str = "/v1/uploads/x", *, complete: bool = False) -> Decide:
    def decide(offer: Summary) -> Decision:
        segments = tuple(SegmentDecision(each.index, url, offset, complete) for each in offer.segments)
        return Decision(offer.session_id, Verdict.SEND, segments=segments)

    return decide


CUT = aiohttp.ClientPayloadError("the answer is cut")

TABLE: dict[str, Row] = {
    "does all that it should": Row(ACCEPTED),
    # -- verdicts
    "has it, with size and digest": Row(ACCEPTED, has()),
    "declines": Row(DECLINED, says(Verdict.DECLINE)),
    "rejects": Row(REJECTED, says(Verdict.REJECT, reason="too_old")),
    "wants it later, at once": Row(kept(1.0), says(Verdict.LATER)),
    "wants it in 90 s": Row(kept(90.0), says(Verdict.LATER, after=90.0)),
    "wants it in a hundred years": Row(SILENCED, says(Verdict.LATER, after=3e9)),
    "says nothing of it": Row(kept(NEXT_ROUND, NEXT_ROUND), lambda _: None),
    "speaks of another session": Row(kept(NEXT_ROUND, NEXT_ROUND), lambda _: Decision(OTHER, Verdict.REJECT)),
    # -- lies
    "has it with another digest": Row(aside(1.0), has(sha256="00" * 32)),
    "has it with another size": Row(aside(1.0), has(offset=1)),
    "has it, and not all of it": Row(aside(1.0), has(complete=False)),
    "has more of it than there is": Row(aside(1.0), wants(10**7)),
    "wants it, and says not where": Row(kept(1.0), wants(url="")),
    "wants it elsewhere": Row(UNAVAILABLE, wants(url="http://elsewhere.example/x")),
    "wants what it has": Row(kept(1.0), wants(10, complete=True)),
    "takes all, and wants it again": Row(kept(AT_ONCE), upload=answer(204, upload_complete="?1")),
    "acknowledges nothing": Row(kept(1.0), upload=answer(204, upload_offset="0", upload_complete="?0")),
    "acknowledges more than there is": Row(aside(AT_ONCE), upload=answer(204, upload_offset="99999999")),
    "acknowledges less than nothing": Row(aside(AT_ONCE), upload=answer(204, upload_offset="-1")),
    # -- statuses of a negotiation
    **{f"answers {status} to an offer": Row(SHUT_OUT, answer(status)) for status in (401, 403)},
    **{
        f"answers {status} to an offer": Row(UNAVAILABLE, answer(status))
        for status in (302, 400, 404, 408, 409, 410, 413, 422, 423, 429, 500, 502, 503, 504)
    },
    **{
        f"is not available, retry after {said}": Row(UNAVAILABLE, answer(503, retry_after=said))
        for said in ("0", "-1", "soon")
    },
    "is not available, retry after 90": Row(kept(91.0, 390.0), answer(503, retry_after="90")),
    **{
        f"is not available, retry after {said}": Row(SILENCED, answer(429, retry_after=said))
        for said in ("1000000000", "Fri, 31 Dec 9999 23:59:59 GMT")
    },
    "cuts its answers": Row(UNAVAILABLE, CUT),
    "answers half a message": Row(UNAVAILABLE, answer(200, b"\x84\xa1v", content_type=wire.MSGPACK_MEDIA_TYPE)),
    "answers in another language": Row(UNAVAILABLE, answer(200, b"<x/>", content_type="text/xml")),
    # -- statuses of an upload
    **{f"answers {status} to an upload": Row(SHUT_OUT, upload=answer(status)) for status in (401, 403)},
    **{f"answers {status} to an upload": Row(kept(AT_ONCE), upload=answer(status)) for status in (404, 410)},
    **{
        f"answers {status} to an upload": Row(kept(1.0), upload=answer(status))
        for status in (302, 408, 409, 423, 429, 460, 500, 503, 507)
    },
    **{
        f"answers {status} to an upload": Row(aside(1.0), upload=answer(status))
        for status in (400, 405, 411, 413, 415, 422, 431, 451)
    },
    "is at odds about the offset": Row(kept(AT_ONCE), upload=answer(409, upload_offset="3", upload_complete="?0")),
    "takes no upload for 90 s": Row(kept(91.0), upload=answer(503, retry_after="90")),
    "cuts every upload": Row(kept(3.0, BACKOFF_LONGEST + 2.0), upload=CUT),
    "has a portal before its uploads": Row(UNAVAILABLE, upload=PORTAL),
    # -- the way
    "cannot be reached": Row(UNAVAILABLE, line={"up": False}),
    "is behind a portal": Row(UNAVAILABLE, line={"portal": True}),
    "is silent": Row(kept(SILENCE_TIMEOUT + 1.0, SILENCE_TIMEOUT + BACKOFF_LONGEST), line={"silent": True}),
}


@pytest.mark.parametrize("does", TABLE)
def test_what_it_leads_to(tmp_path: Path, does: str) -> None:
    row = TABLE[does]
    leads = row.leads

    async def tell(agent: SimAgent) -> None:
        assert isinstance(agent.server, Behaving)
        agent.server.row = row
        for name, value in row.line.items():
            setattr(agent.line, name, value)
        made = agent.record()
        await asyncio.sleep(LASTS)
        times = [at for at, _ in agent.seen.bodies]
        assert standing(agent, made.session_id) == (leads.left, leads.fate)
        assert agent.sync.backlog.ledger.recorded == made.records
        assert len(times) <= MOST_REQUESTS
        after = [at for at in times if at > (agent.server.misbehaved or times[0])]
        if leads.again is None:
            assert not after or leads is ACCEPTED
        else:
            first = agent.server.misbehaved or times[0]
            assert leads.again <= after[0] - first + 0.01 <= leads.again + CROSSING
            assert leads.longest <= max(b - a for a, b in pairwise(times)) + CROSSING
            assert max(b - a for a, b in pairwise(times)) <= leads.longest + CROSSING

        agent.server.row = None
        agent.line.up, agent.line.portal, agent.line.silent = True, False, False
        await until(agent, lambda: agent.idle, MAX_RETRY_AFTER)
        if leads.left == WAITING:
            assert standing(agent, made.session_id) == (SENT, "accepted")
            assert agent.server.holds(made.session_id, made.segments)
        else:
            assert standing(agent, made.session_id) == (leads.left, leads.fate)

    story(tmp_path, tell, Behaving)


def standing(agent: SimAgent, session_id: str) -> tuple[str, str]:
    """Where a session lies, and as what."""
    (place,) = (each for each in (WAITING, SENT, QUARANTINED) if session_id in agent.files.names(agent.folder / each))
    said = agent.stores.receipt(session_id)
    return place, said.fate if said is not None else "pending"

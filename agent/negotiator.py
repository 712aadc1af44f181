"""Asks the server which sessions it wants: one request, and what its answer means as a value."""

from __future__ import annotations

import json
from typing import Final

from msgspec import Struct

from mailboat.agent.clocks import Clocks
from mailboat.agent.http import TRANSPORT_FAILURES, Answer, Body, Http, told
from mailboat.agent.ledger import Ledger
from mailboat.agent.report import one_line
from mailboat.agent.traffic import Held, Traffic
from mailboat.protocol import wire
from mailboat.protocol.errors import PROBLEM_MEDIA_TYPE, WireError
from mailboat.protocol.limits import KIB, MAX_REPLY
from mailboat.protocol.negotiation import SERVER_HEADER, Reply, Request, Rider
from mailboat.protocol.summary import Summary
from mailboat.protocol.uploads.http_dates import retry_after
from mailboat.protocol.uploads.outcomes import NotOurs, Refused, Retry, Unauthorised

PATH: Final = "/v1/negotiate"
STATUS_PATH: Final = "/v1/status"
_MOST_OF_STATUS: Final = 4 * KIB
_TOO_MANY, _TIMED_OUT, _SERVER_ERRORS = 429, 408, 500

_MOST_FOR_OFFER: Final = 4 * KIB
_MOST_FOR_SEGMENT: Final = KIB
_MOST_BESIDES: Final = 64 * KIB


class Replied(Struct, frozen=True):
    """The server answered."""

    reply: Reply


Outcome = Replied | Retry | Unauthorised | Refused | NotOurs


async def probe(http: Http, clocks: Clocks) -> Retry | NotOurs | None:
    """Ask whether the server is there, at the cost of a few hundred bytes; None if it is. Never raises but for
    cancellation.
    """
    url = http.url(STATUS_PATH)
    assert url is not None  # noqa: S101 - a path of our own is always of this server
    try:
        answer = await http.request("GET", url, {}, limit=_MOST_OF_STATUS)
    except TRANSPORT_FAILURES as error:
        return Retry(0.0, told(error))
    match understand(answer, clocks.wall() / 1e9):
        case Retry() | NotOurs() as down if SERVER_HEADER.lower() not in answer.headers or isinstance(down, Retry):
            return down
    return None  # whatever it says of the request: it is ours, and it answers


async def negotiate(
    http: Http,
    clocks: Clocks,
    agent: str,
    offers: tuple[Summary, ...],
    ledger: Ledger,
    traffic: Traffic,
    riders: tuple[Rider, ...] = (),
) -> Outcome | Held:
    """Offer sessions, with the segments that ride along; never raises but for cancellation. `Held`: the day's budget
    has no room for that many.
    """
    request = Request(agent, offers, sent=clocks.wall() / 1e9, ledger=ledger.to_wire(), riders=riders)
    body = request.compressed()
    granted = await traffic.grant(len(body), least=len(body))
    if isinstance(granted, Held):
        return granted
    headers = {
        "Content-Type": wire.MSGPACK_MEDIA_TYPE,
        "Content-Encoding": "zstd",
        "Accept": wire.MSGPACK_MEDIA_TYPE,
        "Accept-Encoding": "zstd",
        "Content-Length": str(len(body)),
    }
    url, limit = http.url(PATH), most_of_a_reply(offers)
    assert url is not None  # noqa: S101 - a path of our own is always of this server
    try:
        answer = await http.request("POST", url, headers, _pieces(body, traffic), limit)
    except TRANSPORT_FAILURES as error:
        return Retry(0.0, told(error))
    return understand(answer, clocks.wall() / 1e9, limit)


async def _pieces(content: bytes, traffic: Traffic) -> Body:
    """A body in pieces, at its rate: each one that is taken shows that the line lives, and aiohttp is slow with large
    bytes.
    """
    view, piece = memoryview(content), traffic.piece
    for at in range(0, len(content), piece):
        part = view[at : at + piece]
        await traffic.pace(len(part))
        yield part


def most_of_a_reply(offers: tuple[Summary, ...]) -> int:
    """Bytes that the answer to these offers may have, compressed or not.

    In step with what was asked: a reply is decoded on the event loop, and eight megabytes of nothing but empty maps
    would hold it for a second.
    """
    segments = sum(len(offer.segments) for offer in offers)
    return min(MAX_REPLY, _MOST_BESIDES + _MOST_FOR_OFFER * len(offers) + _MOST_FOR_SEGMENT * segments)


def understand(answer: Answer, wall: float, limit: int = MAX_REPLY) -> Outcome:
    """What an answer to a negotiation means; `wall` is Unix time, for a Retry-After that names a date; `limit` the most
    bytes that its body may decompress to.

    Without the header of a mailboat server it is no refusal: the portal of a hotel answers with any status.
    """
    status, ours = answer.status, SERVER_HEADER.lower() in answer.headers
    if status in (_TIMED_OUT, _TOO_MANY) or status >= _SERVER_ERRORS:
        floor = retry_after(answer.headers.get("retry-after"), answer.headers.get("date"), wall)
        return Retry(floor, one_line(f"the server is not available: status {status} {_detail(answer)}"))
    if not ours:
        place = answer.headers.get("location", "")
        sends = f" (it sends to {place})" if place else ""
        return NotOurs(status, one_line(f"what answers with status {status} is no mailboat server{sends}"))
    if status in (401, 403):
        return Unauthorised(status)
    if status != 200:  # noqa: PLR2004 - the one success there is
        return Refused(status, None, _detail(answer))
    return _decode(answer, limit)


def _detail(answer: Answer) -> str:
    """What the server says about a refusal; empty where it says nothing to be understood."""
    if _media_type(answer) != PROBLEM_MEDIA_TYPE:
        return ""
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError):
        return ""
    return one_line(str(document.get("detail", ""))) if isinstance(document, dict) else ""


def _media_type(answer: Answer) -> str:
    return answer.headers.get("content-type", "").split(";")[0].strip().lower()


def _decode(answer: Answer, limit: int) -> Outcome:
    media_type = _media_type(answer)
    try:
        compressed = answer.headers.get("content-encoding") == "zstd"
        body = wire.decompress(answer.body, limit) if compressed else answer.body
        if media_type not in wire.MEDIA_TYPES:
            raise WireError(f"the reply is {media_type or 'of no type'}")
        return Replied(Reply.decode(body, media_type))
    except WireError as error:
        return NotOurs(answer.status, one_line(f"the server's reply cannot be understood: {error}"))

"""Asks the server which sessions it wants: one request, and what its answer means as a value."""

from __future__ import annotations

from dataclasses import dataclass

from mailboat.agent.clocks import Clocks
from mailboat.agent.http import TRANSPORT_FAILURES, Answer, Http
from mailboat.agent.ledger import Ledger
from mailboat.protocol import wire
from mailboat.protocol.errors import WireError
from mailboat.protocol.negotiation import SERVER_HEADER, Reply, Request
from mailboat.protocol.summary import Summary
from mailboat.protocol.uploads.http_dates import retry_after
from mailboat.protocol.uploads.outcomes import NotOurs, Refused, Retry, Unauthorised

PATH = "/v1/negotiate"
_TOO_MANY, _TIMED_OUT, _SERVER_ERRORS = 429, 408, 500


@dataclass(frozen=True, slots=True)
class Replied:
    """The server answered."""

    reply: Reply


Outcome = Replied | Retry | Unauthorised | Refused | NotOurs


async def negotiate(http: Http, clocks: Clocks, agent: str, offers: tuple[Summary, ...], ledger: Ledger) -> Outcome:
    """Offer sessions; never raises but for cancellation."""
    request = Request(agent, offers, sent=clocks.wall() / 1e9, ledger=ledger.to_wire())
    headers = {
        "Content-Type": wire.MSGPACK_MEDIA_TYPE,
        "Content-Encoding": "zstd",
        "Accept": wire.MSGPACK_MEDIA_TYPE,
        "Accept-Encoding": "zstd",
    }
    url = http.url(PATH)
    assert url is not None  # noqa: S101 - a path is always of this origin
    try:
        answer = await http.request("POST", url, headers, wire.compress(request.encode()))
    except TRANSPORT_FAILURES as error:
        return Retry(0.0, f"no connection to the server: {type(error).__name__}: {error}".rstrip(": "))
    return understand(answer, clocks.wall() / 1e9)


def understand(answer: Answer, wall: float) -> Outcome:
    """What an answer to a negotiation means; `wall` is Unix time, for a Retry-After that names a date."""
    ours = SERVER_HEADER.lower() in answer.headers
    if answer.status in (_TIMED_OUT, _TOO_MANY) or answer.status >= _SERVER_ERRORS:
        floor = retry_after(answer.headers.get("retry-after"), answer.headers.get("date"), wall)
        return Retry(floor, f"the server is not available: status {answer.status}")
    if answer.status in (401, 403):
        return Unauthorised(answer.status)
    if not ours:
        return NotOurs(answer.status, f"what answers with status {answer.status} is no mailboat server")
    if answer.status != 200:  # noqa: PLR2004 - the one success there is
        return Refused(answer.status, None, answer.body[:500].decode("utf-8", "replace"))
    return _decode(answer)


def _decode(answer: Answer) -> Outcome:
    media_type = answer.headers.get("content-type", "").split(";")[0].strip()
    try:
        compressed = answer.headers.get("content-encoding") == "zstd"
        body = wire.decompress(answer.body) if compressed else answer.body
        if media_type not in wire.MEDIA_TYPES:
            raise WireError(f"the reply is {media_type or 'of no type'}")
        return Replied(Reply.decode(body, media_type))
    except WireError as error:
        return NotOurs(answer.status, f"the server's reply cannot be understood: {error}")

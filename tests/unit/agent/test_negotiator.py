"""What an answer to a negotiation means, whoever gave it."""

from __future__ import annotations

import pytest

from mailboat.agent.http import Answer
from mailboat.agent.negotiator import Outcome, Replied, understand
from mailboat.protocol import wire
from mailboat.protocol.negotiation import SERVER_HEADER, Reply
from mailboat.protocol.uploads.outcomes import NotOurs, Refused, Retry, Unauthorised

OURS = {SERVER_HEADER.lower(): "0.1.0"}
REPLY = Reply(()).encode()
MSGPACK = {"content-type": wire.MSGPACK_MEDIA_TYPE}
PROBLEM = {"content-type": "application/problem+json"}


def answer(status: int, body: bytes = b"", **headers: str) -> Answer:
    return Answer(status, {name.replace("_", "-"): text for name, text in headers.items()}, body)


def ours(status: int, body: bytes = b"", **headers: str) -> Answer:
    return answer(status, body, **{**OURS, **headers})


@pytest.mark.parametrize(
    "given",
    [
        ours(200, REPLY, **MSGPACK),
        ours(200, wire.compress(REPLY), **MSGPACK, content_encoding="zstd"),
        ours(200, Reply(()).encode(wire.JSON_MEDIA_TYPE), content_type="application/json; charset=utf-8"),
    ],
)
def test_replies(given: Answer) -> None:
    assert understand(given, 0.0) == Replied(Reply(()))


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (ours(401), Unauthorised),
        (ours(403), Unauthorised),
        (answer(401), NotOurs),
        (answer(403), NotOurs),
        (answer(200, REPLY, **MSGPACK), NotOurs),
        (answer(302, location="https://portal.example/"), NotOurs),
        (answer(404), NotOurs),
        (ours(404), Refused),
        (ours(413), Refused),
        (ours(200, REPLY), NotOurs),
        (ours(200, REPLY, content_type="text/html"), NotOurs),
        (ours(200, REPLY[:-1], **MSGPACK), NotOurs),
        (ours(200, b"", **MSGPACK), NotOurs),
        (ours(200, REPLY, **MSGPACK, content_encoding="zstd"), NotOurs),
        (ours(200, wire.compress(bytes(10**6)), **MSGPACK, content_encoding="zstd"), NotOurs),
        (answer(408), Retry),
        (answer(429), Retry),
        (answer(500), Retry),
        (answer(503), Retry),
        (ours(599), Retry),
    ],
)
def test_everything_else(given: Answer, kind: type[Outcome]) -> None:
    assert type(understand(given, 0.0, limit=10_000)) is kind


@pytest.mark.parametrize(
    ("told", "after"), [("120", 120.0), ("-1", 0.0), ("soon", 0.0), ("1" * 40, 86_400.0), ("0", 0.0)]
)
def test_a_server_that_asks_for_time_gets_it(told: str, after: float) -> None:
    outcome = understand(answer(503, retry_after=told), 0.0)
    assert isinstance(outcome, Retry)
    assert outcome.after == after


def test_what_the_server_says_of_a_refusal_is_told_in_one_line() -> None:
    body = b'{"detail": "offers[3]: \\u001b[31m is\\n missing", "code": "bad_request"}'
    outcome = understand(ours(400, body, **PROBLEM), 0.0)
    assert outcome == Refused(400, None, "offers[3]: [31m is missing")


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 10_000, b"[]", b'{"detail": {"a": 1}}', b"\xff"])
def test_a_refusal_that_explains_nothing(body: bytes) -> None:
    outcome = understand(ours(400, body, **PROBLEM), 0.0)
    assert isinstance(outcome, Refused)

"""Requests drawn at random: whatever is asked, nobody gets a 500, and what goes on beside it is not harmed."""

from __future__ import annotations

import json
import random
from typing import TypeAlias

import msgpack

from mailboat.protocol import wire
from mailboat.protocol.negotiation import Request
from mailboat.server.context import COUNTERS
from mailboat.server.serving import RunningServer
from testkit.serverkit import AGENT, PARTIAL, Wire, fresh_session_id, make_segment, summary_of

Drawn: TypeAlias = "bool | int | float | str | bytes | list[Drawn] | dict[str, Drawn] | None"

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "MKCOL", "patch"]
VALUES = [
    "?0",
    "?1",
    "1",
    "0",
    "-1",
    "9" * 15,
    "9" * 16,
    "9" * 400,
    "1.5",
    "",
    "(1 2)",
    "a=1, b",
    '"x"',
    ":AA==:",
    "@1",
    "?2",
    "\xff",
    "x;y",
]
NAMES = [
    "Upload-Offset",
    "Upload-Complete",
    "Upload-Incomplete",
    "Upload-Length",
    "Upload-Draft-Interop-Version",
    "Upload-Limit",
]
TYPES = [PARTIAL, "application/partial-upload; x=y", *wire.MEDIA_TYPES, "text/plain", "/", "a", ""]
ENCODINGS = ["zstd", "identity", "gzip", "deflate", "br", "", "zstd, zstd"]


def drawn_headers(chance: random.Random) -> dict[str, str]:
    headers = {name: chance.choice(VALUES) for name in NAMES if chance.random() < 0.5}
    if chance.random() < 0.8:
        headers["Content-Type"] = chance.choice(TYPES)
    if chance.random() < 0.3:
        headers["Content-Encoding"] = chance.choice(ENCODINGS)
    if chance.random() < 0.3:
        headers["Accept-Encoding"] = chance.choice(ENCODINGS)
    return headers


def drawn_value(chance: random.Random, depth: int = 0) -> Drawn:
    odd: list[Drawn] = [None, True, -1, 2**63, 2**64 - 1, 1e300, float("nan"), "", "\0", "x" * 2_000, b"\xff", [], {}]
    if depth > 3 or chance.random() < 0.6:
        return chance.choice(odd)
    if chance.random() < 0.5:
        return [drawn_value(chance, depth + 1) for _ in range(chance.randrange(4))]
    return {chance.choice(["v", "offers", "info", "x"]): drawn_value(chance, depth + 1) for _ in range(3)}


def spoilt(chance: random.Random, message: Drawn) -> Drawn:
    """A message with one value in it replaced by something odd."""
    if isinstance(message, dict) and message and chance.random() < 0.9:
        name = chance.choice(list(message))
        return {**message, name: spoilt(chance, message[name])}
    if isinstance(message, list) and message and chance.random() < 0.9:
        at = chance.randrange(len(message))
        return [*message[:at], spoilt(chance, message[at]), *message[at + 1 :]]
    return drawn_value(chance)


async def test_requests_drawn_at_random(server: RunningServer, client: Wire, seed: int) -> None:
    chance = random.Random(seed)
    data = make_segment(fresh_session_id(), size=20_000)
    calm = await client.upload_of(data)
    await client.append(calm, data[:5_000], 0, complete=False)
    paths = [
        "/v1/negotiate",
        "/v1/uploads",
        "/v1/status",
        "/v1/uploads/",
        "/v1/uploads/x/y",
        "/%2e%2e",
        "/v1/uploads/%ff",
    ]
    for _ in range(400):
        if chance.random() < 0.1:
            paths.append(await client.upload_of(make_segment(fresh_session_id(), size=100)))
        method, path = chance.choice(METHODS), chance.choice(paths)
        body = chance.randbytes(chance.randrange(200)) if chance.random() < 0.7 else None
        headers = {name.replace("-", "_"): text for name, text in drawn_headers(chance).items()}
        answer = await client.ask(method, path, data=body, **headers)
        assert answer.status < 500, (method, path, headers, answer)
        assert answer.headers["Mailboat-Version"]
        if answer.status >= 400 and method != "HEAD":
            assert json.loads(answer.body)["status"] == answer.status
    assert server.app[COUNTERS]["problems_internal"] == 0
    assert (await client.append(calm, data[5_000:], 5_000, complete=True)).complete


async def test_negotiations_spoilt_at_random(server: RunningServer, client: Wire, seed: int) -> None:
    chance = random.Random(seed)
    good = json.loads(Request(AGENT, (summary_of(make_segment(fresh_session_id())),)).encode(wire.JSON_MEDIA_TYPE))
    answered = set()
    for _ in range(400):
        message = spoilt(chance, good)
        body = msgpack.packb(message) if chance.random() < 0.5 else json.dumps(message, default=str).encode()
        media_type = chance.choice(wire.MEDIA_TYPES)
        if chance.random() < 0.5:
            place = chance.randrange(len(body))
            body = body[:place] + chance.randbytes(1) + body[place + 1 :]
        answer = await client.ask("POST", "/v1/negotiate", data=body, Content_Type=media_type)
        answered.add(answer.status)
        assert answer.status in (200, 400), (message, answer)
    assert answered == {200, 400}
    assert server.app[COUNTERS]["problems_internal"] == 0

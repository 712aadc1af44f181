"""The test vectors of the wire: what is in ``tests/vectors``, made from the protocol and from a real server.

`made` gives every file by its name, but for what zstd has compressed: its output differs from one release to the next.
So the payloads of blocks are taken from the files that are there, and only their content is held against ours.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
from msgspec.structs import replace

from mailboat.protocol import Info, Preamble, SealReason, SegmentReader, SegmentWriter, wire
from mailboat.protocol.negotiation import (
    Decision,
    Policy,
    Reply,
    Request,
    Rider,
    Riding,
    SegmentDecision,
    Verdict,
)
from mailboat.protocol.records import COUNTERS, Kind, Level
from mailboat.protocol.summary import SegmentState, Status, Summary, summarise
from mailboat.protocol.uploads.rufh_client import RufhDialect
from mailboat.protocol.uploads.tus_client import TusDialect
from mailboat.protocol.uploads.values import Append, Create, Query
from mailboat.protocol.uploads.values import Request as UploadRequest
from mailboat.server import ServerConfig, context
from mailboat.server.app import create_app
from mailboat.server.catalog import KeyRow, Role
from mailboat.server.keys import digest_of
from mailboat.server.serving import running
from mailboat.server.sqlite_catalog import SqliteCatalog
from testkit.serverkit import eventually

FOLDER = Path(__file__).parents[2] / "vectors"

SESSION = "01a1f5a3-7000-7000-8000-000000000001"
UPLOADS = [f"01a1f5a3-7064-7000-8000-0000000000a{number}" for number in range(3)]
SECOND = 1_000_000_000
STARTED = 1_800_000_000
MONOTONIC = 5_000 * SECOND
SALT = 0x01020304
KEY = "mbk_the-key-of-the-worked-example"
PRODUCT = "Acme Studio"
AGENT = "mailboat-python/0.1.0"

JSON = wire.JSON_MEDIA_TYPE
MSGPACK = wire.MSGPACK_MEDIA_TYPE


# -- segments ----------------------------------------------------------------------------------------------------------


def _at(second: float) -> int:
    """A record's time: nanoseconds of the monotonic clock."""
    return MONOTONIC + int(second * SECOND)


BLOCKS: list[list[list[Any]]] = [
    [
        [Kind.INSTALLATION, _at(0.5), "inst-42", {"plan": "pro"}],
        [Kind.FEATURE, _at(1), "import.csv", {"rows": 1200, "source": "drive"}],
        [Kind.VALUE, _at(2), "import.size", {}, 18_230, "bytes"],
        [Kind.TIMING, _at(3), "import.parse", {}, 250_000_000],
    ],
    [
        [Kind.SCHEMA, _at(4), "order.placed", ["user_id", "price"], 1, Kind.FEATURE],
        [Kind.POSITIONAL, _at(4.5), 1, 7, 9.5],
        [Kind.EVENT, _at(5), "cache.miss", {"key": "k1"}, Level.WARNING, "not found"],
        [
            Kind.EXCEPTION,
            _at(6),
            "ZeroDivisionError",
            {},
            Level.ERROR,
            "division by zero",
            "while importing",
            [["importer.py", 12, "parse"]],
            [["cause", "ValueError", "no number", [["numbers.py", 3, "read"]]]],
        ],
    ],
]
"""The records of the example session, as they are packed, block by block."""


def _counts(records: list[list[Any]]) -> list[int]:
    """What the header of a block of these records counts."""
    counts = [0] * len(COUNTERS)
    for kind, *rest in records:
        if kind == Kind.SCHEMA:
            counts[COUNTERS.index("schema")] += 1
            continue
        counted = Kind.FEATURE if kind == Kind.POSITIONAL else kind
        counts[counted - 1] += 1
        if kind in (Kind.EVENT, Kind.EXCEPTION):
            counts[COUNTERS.index(Level(rest[3]).name.lower())] += 1
    return counts


def _written(
    payloads: list[bytes] | None, index: int = 0, blocks: list[list[list[Any]]] | None = None, *, sealed: bool = True
) -> bytes:
    """A segment of the example session; `payloads` are its blocks as compressed before, None to compress them now."""
    info = Info(product=PRODUCT, application="importer", version="2.4.1", agent=AGENT, properties={"channel": "beta"})
    preamble = Preamble(SESSION, index, SALT, 0, STARTED * SECOND, MONOTONIC, info=info.to_wire())
    writer = SegmentWriter(preamble)
    content = bytearray(writer.preamble())
    writer.add(bytes(content))
    for number, block in enumerate(BLOCKS if blocks is None else blocks):
        raw = b"".join(msgpack.packb(record) for record in block)
        header, frame = writer.block(raw, _counts(block), STARTED * SECOND - MONOTONIC)
        if payloads is not None:
            header, frame = writer.framed(header, payloads[number])
        writer.add(frame, header)
        content += frame
    if sealed:
        installation = {"id": "inst-42", "properties": {"plan": "pro"}}
        content += writer.seal(SealReason.STOPPED, (STARTED + 7) * SECOND, _at(7), installation)
    return bytes(content)


def segments(payloads: list[bytes] | None = None) -> dict[str, bytes]:
    """The segments, with `payloads` as in `_written`."""
    whole, unsealed = _written(payloads), _written(payloads, sealed=False)
    reader = SegmentReader()
    reader.feed(whole)
    first = next(iter(reader.blocks()))
    damaged = bytearray(whole)
    damaged[first.end - 1] ^= 0x01
    return {
        "whole.zst": whole,
        "empty.zst": _written([], blocks=[]),
        "unsealed.zst": unsealed,
        "torn.zst": unsealed[:-10],
        "damaged.zst": bytes(damaged),
        "package.zst": whole + _written([], 1, []),
    }


def payloads_of(segment: bytes) -> list[bytes]:
    """What zstd made of the blocks of a segment."""
    reader = SegmentReader()
    reader.feed(segment)
    return [block.payload for block in reader.blocks()]


def outline(content: bytes) -> dict[str, Any]:
    """All that a reader finds in a segment, as plain values."""
    reader = SegmentReader()
    reader.feed(content)
    reader.close()
    blocks = list(reader.blocks())
    assert reader.preamble is not None
    preamble, seal = reader.preamble, reader.seal
    return {
        "size": len(content),
        "session": preamble.session_id,
        "index": preamble.index,
        "salt": preamble.salt,
        "first": preamble.first,
        "started": [preamble.started_wall, preamble.started_monotonic],
        "info": dict(preamble.info),
        "blocks": [
            {
                "offset": block.offset,
                "first": block.header.first,
                "records": block.header.records,
                "raw_bytes": block.header.raw_length,
                "payload_bytes": block.header.length,
                "clock": block.header.clock,
                "counts": dict(zip(COUNTERS, block.header.counts, strict=True)),
            }
            for block in blocks
        ],
        "records": [record.to_dict() for block in blocks for record in reader.records(block)],
        "gaps": [
            {"offset": gap.offset, "length": gap.length, "first": gap.first, "records": gap.records}
            for gap in reader.gaps
        ],
        "torn": reader.torn,
        "intact": reader.intact,
        "seal": None
        if seal is None
        else {
            "reason": seal.reason.value,
            "next": seal.next,
            "blocks": seal.blocks,
            "raw_bytes": seal.raw_bytes,
            "counts": dict(zip(COUNTERS, seal.counts, strict=True)),
            "ended": [seal.ended_wall, seal.ended_monotonic],
            "sha256": seal.sha256.hex(),
            "installation": None if seal.installation is None else dict(seal.installation),
            "lost": dict(seal.lost),
        },
    }


# -- negotiations ------------------------------------------------------------------------------------------------------


def whole_summary(segment: bytes) -> Summary:
    """The summary of the example session, which has this one segment."""
    reader = SegmentReader(segment)
    list(reader.blocks())
    assert reader.preamble is not None
    assert reader.seal is not None
    return summarise([(reader.preamble, reader.seal, len(segment))])


def _running(summary: Summary) -> Summary:
    state = SegmentState(0, 300, 4, sealed=False)
    return replace(
        summary,
        session_id=SESSION[:-1] + "2",
        status=Status.RUNNING,
        segments=(state,),
        installation="",
        installation_properties={},
        lost={"quota": 3},
    )


def request_of(segment: bytes) -> Request:
    """A request with an ended session and a running one."""
    summary = whole_summary(segment)
    ledger = {"recorded": 11, "accepted": 0, "pending": 8, "lost": {"quota": 3}}
    return Request(AGENT, (summary, _running(summary)), float(STARTED + 10), ledger)


def with_rider(segment: bytes) -> Request:
    """A request whose one session comes along with its offer, whole."""
    riders = (Rider(SESSION, 0, memoryview(segment)),)
    return Request(AGENT, (whole_summary(segment),), float(STARTED + 10), riders=riders)


def reply_of(segment: bytes) -> Reply:
    """A reply with every verdict."""
    digest = whole_summary(segment).segments[0].sha256
    name = SESSION[:-1]
    url = f"/v1/uploads/{UPLOADS[0]}"
    return Reply(
        (
            Decision(name + "1", Verdict.SEND, priority=1, segments=(SegmentDecision(0, url, 200, complete=False),)),
            Decision(
                name + "2",
                Verdict.HAVE,
                segments=(SegmentDecision(0, url, len(segment), complete=True, sha256=digest),),
            ),
            Decision(name + "3", Verdict.DECLINE),
            Decision(name + "4", Verdict.REJECT, reason="too_old", explanation="the session ended 31 days ago"),
            Decision(name + "5", Verdict.LATER, after=60.0),
        ),
        wanted=(name + "6",),
        policy=Policy(sync_interval=120.0, backoff_floor=2.0, max_offers=100, riding=Riding(65_536, 1_048_576)),
    )


def _of_tomorrow(reply: Reply) -> bytes:
    """The same reply from a server that knows more than we do."""
    message = json.loads(reply.encode(JSON))
    message["weather"] = "fair"
    message["decisions"][2]["verdict"] = "postpone"
    message["decisions"][3]["reason"] = "wrong_moon"
    message["policy"]["tide"] = [1, 2]
    return wire.encode(message, JSON)


def negotiations(segment: bytes) -> dict[str, bytes]:
    request, reply = request_of(segment), reply_of(segment)
    return {
        "request.json": request.encode(JSON),
        "request.msgpack": request.encode(MSGPACK),
        "request-with-rider.json": with_rider(segment).encode(JSON),
        "request-with-rider.msgpack": with_rider(segment).encode(MSGPACK),
        "reply.json": reply.encode(JSON),
        "reply.msgpack": reply.encode(MSGPACK),
        "reply-of-tomorrow.json": _of_tomorrow(reply),
    }


# -- exchanges ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sent:
    """One request of an exchange: `body` is all that is sent of it, `cut` that the connection ends then."""

    name: str
    head: str
    body: bytes = b""
    cut: bool = False

    @property
    def message(self) -> bytes:
        return self.head.encode() + self.body


def _head(method: str, target: str, headers: dict[str, str]) -> str:
    fields = {"Host": "collect.example.com", "Authorization": f"Bearer {KEY}", **headers}
    return "\r\n".join([f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""])


def _upload(dialect: RufhDialect | TusDialect, request: UploadRequest, resource: str | None = None) -> str:
    asked = dialect.render(request, target="/v1/uploads", resource=resource)
    return _head(asked.method, asked.url, dict(asked.headers))


def _offer(segment: bytes) -> bytes:
    return Request(AGENT, (whole_summary(segment),), float(STARTED + 10)).encode(JSON)


def delivery(segment: bytes) -> Iterator[Sent]:
    """A session is offered, sent, cut, resumed and confirmed, as an agent does it."""
    body, rufh, url, size = _offer(segment), RufhDialect(), f"/v1/uploads/{UPLOADS[0]}", len(segment)
    offer = _head("POST", "/v1/negotiate", {"Content-Type": JSON, "Content-Length": str(len(body))})
    yield Sent("1-offer", offer, body)
    whole = Append(0, complete=True, length=size, content_length=size)
    yield Sent("2-append-cut-after-200-bytes", _upload(rufh, whole, url), segment[:200], cut=True)
    yield Sent("3-query", _upload(rufh, Query(), url))
    rest = Append(200, complete=True, length=size, content_length=size - 200)
    yield Sent("4-append-the-rest", _upload(rufh, rest, url), segment[200:])
    yield Sent("5-offer-again", offer, body)


def by_tus(segment: bytes) -> Iterator[Sent]:
    """Any tus client sends any file; this one turns out to be a segment that nobody asked for."""
    tus, url, size = TusDialect({"filename": "session.zst"}), f"/v1/uploads/{UPLOADS[0]}", len(segment)
    yield Sent("1-create", _upload(tus, Create(complete=False, length=size)))
    whole = Append(0, complete=False, length=size, content_length=size, length_known=True)
    yield Sent("2-append-cut-after-200-bytes", _upload(tus, whole, url), segment[:200], cut=True)
    yield Sent("3-query", _upload(tus, Query(), url))
    wrong = Append(100, complete=False, length=size, content_length=0, length_known=True)
    yield Sent("4-append-elsewhere", _upload(tus, wrong, url))
    rest = Append(200, complete=False, length=size, content_length=size - 200, length_known=True)
    yield Sent("5-append-the-rest", _upload(tus, rest, url), segment[200:])


def riding(segment: bytes) -> Iterator[Sent]:
    """A session that is small enough comes along with its offer, and that is all."""
    body = with_rider(segment).encode(JSON)
    yield Sent(
        "1-offer", _head("POST", "/v1/negotiate", {"Content-Type": JSON, "Content-Length": str(len(body))}), body
    )


SCENARIOS: dict[str, Callable[[bytes], Iterator[Sent]]] = {"delivery": delivery, "riding": riding, "tus": by_tus}


async def exchanged(scenario: str, segment: bytes, folder: Path) -> dict[str, bytes]:
    """A scenario played to a real server with its data in `folder`: every message by its name."""
    made = iter(UPLOADS)
    app = create_app(
        ServerConfig(data=folder, port=0),
        clock=lambda: float(STARTED + 10),
        open_catalog=lambda file: SqliteCatalog(file, new_id=lambda: next(made)),
    )
    app[context.NEW_ID] = lambda: next(made)
    messages: dict[str, bytes] = {}
    async with running(app=app, config=ServerConfig(data=folder, port=0)) as server:
        await app[context.CATALOG].put_key(KeyRow("key-example", digest_of(KEY), PRODUCT, Role.AGENT, STARTED))
        for sent in SCENARIOS[scenario](segment):
            messages[f"{sent.name}.request"] = sent.message
            answer = await _answered(server.url, sent)
            if sent.cut:
                await eventually(lambda: app[context.COUNTERS]["bytes_received"] == len(sent.body))  # noqa: B023
            else:
                messages[f"{sent.name}.answer"] = steady(answer, server.url)
    return messages


async def _answered(url: str, sent: Sent) -> bytes:
    host, _, port = url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(sent.message)
        await writer.drain()
        if sent.cut:
            writer.write_eof()
            return await reader.read()  # what it says to a request that is not whole, nobody hears
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\nContent-Length: (\d+)\r\n", head)
        has_body = length is not None and not sent.head.startswith("HEAD")
        return head + (await reader.readexactly(int(length[1])) if has_body and length is not None else b"")
    finally:
        writer.close()
        await writer.wait_closed()


def steady(answer: bytes, url: str) -> bytes:
    """An answer without what differs from one moment, library and release to the next."""
    head, separator, body = answer.partition(b"\r\n\r\n")
    head = re.sub(rb"\r\n(Date|Server): [^\r]*", b"", head)
    head = re.sub(rb"Mailboat-Version: [^\r]*", b"Mailboat-Version: 0.1.0", head)
    # What rides along has an upload whose name is of the server's own making.
    body = re.sub(rb"/v1/uploads/[0-9a-f-]{36}", f"/v1/uploads/{UPLOADS[0]}".encode(), body)
    return head.replace(url.encode(), b"http://collect.example.com") + separator + body


# -- as files ----------------------------------------------------------------------------------------------------------


def kept(part: str) -> dict[str, bytes]:
    """The files of one part, by name."""
    return {path.name: path.read_bytes() for path in sorted((FOLDER / part).iterdir())}


def outlines(found: dict[str, bytes]) -> bytes:
    """What is in each of these segments, as a file; a package is none."""
    outline_of = {name: outline(content) for name, content in found.items() if name != "package.zst"}
    return json.dumps(outline_of, indent=1).encode() + b"\n"


# -- in the documentation ----------------------------------------------------------------------------------------------

DOCUMENT = FOLDER.parents[1] / "docs" / "protocol.md"
GENERATED = re.compile(r"(<!-- from (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_WIDTH = 16


def filled(document: str) -> str:
    """The document with each block that stands for a vector made anew from it."""
    return GENERATED.sub(lambda found: found[1] + "\n" + _shown(found[2]) + "\n" + found[3], document)


def _shown(name: str) -> str:
    content = (FOLDER / name).read_bytes()
    lines = _dumped(content) if name.endswith(".zst") else _message(content)
    return "\n".join(f"    {line}".rstrip() for line in lines) + "\n"


def _dumped(content: bytes, start: int = 0) -> Iterator[str]:
    for at in range(0, len(content), _WIDTH):
        row = content[at : at + _WIDTH]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        yield f"{start + at:06x}  {row.hex(' '):{3 * _WIDTH}} {text}"


def _message(content: bytes) -> Iterator[str]:
    """An HTTP message: its head, and its body as JSON, or as a dump where it is none."""
    head, _, body = content.partition(b"\r\n\r\n")
    yield from head.decode().split("\r\n")
    yield ""
    if body.startswith(b"{"):
        yield from json.dumps(json.loads(body), indent=1).splitlines()
    else:
        yield from _dumped(body)

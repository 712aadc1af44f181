"""Bytes and fields made wrong at random, tens of thousands of times: whatever comes, it is read or refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import pytest

from mailboat.protocol import WireError, wire
from mailboat.protocol.negotiation import Reply, Request
from mailboat.protocol.packages import spans
from mailboat.protocol.uploads.messages import HttpAnswer
from testkit import vectors
from testkit.uploads import PLACE, TUS, MemoryServer, made, patch, tus_made, tus_patch

SOAK = [pytest.mark.soak, pytest.mark.timeout(0)]
TRIES = pytest.mark.parametrize("tries", [10_000, pytest.param(1_000_000, marks=SOAK)])

SEGMENTS = [content for name, content in vectors.kept("segments").items() if name.endswith(".zst")]
MESSAGES = vectors.kept("negotiations")

EXTREMES = [b"\0", b"\xff", b"\xff" * 4, b"\xff" * 8, b"\x7f" + b"\xff" * 3, b"\xdf\xff\xff\xff\xff", b"\x91" * 40]


def spoilt(draw: random.Random, content: bytes, corpus: list[bytes]) -> bytes:
    """`content` after one to four changes of any kind."""
    found = bytearray(content)
    for _ in range(draw.randrange(1, 5)):
        at = draw.randrange(len(found) + 1)
        size = draw.choice((1, 2, 4, 8, 30))
        match draw.randrange(7):
            case 0 if at < len(found):
                found[at] ^= 1 << draw.randrange(8)
            case 1:
                del found[at : at + size]
            case 2:
                found[at:at] = draw.randbytes(size)
            case 3:
                found[at:at] = found[at : at + 10 * size]
            case 4:
                del found[at:]
            case 5:
                other = draw.choice(corpus)
                found[at:] = other[draw.randrange(len(other)) :]
            case _:
                extreme = draw.choice(EXTREMES)
                found[at : at + len(extreme)] = extreme
    return bytes(found)


@TRIES
def test_packages(seed: int, tries: int) -> None:
    """Every byte of whatever comes is in one span; what is read of the segments themselves: see `test_reader_fuzz`."""
    draw = random.Random(seed)
    for _ in range(tries):
        content = spoilt(draw, draw.choice(SEGMENTS), SEGMENTS)
        found = spans(partial(_part, content), len(content), 1000)
        assert found is not None
        assert [span.start for span in found] == [0, *(span.end for span in found)][: len(found)]
        assert sum(span.size for span in found) == len(content)


def _part(content: bytes, offset: int, most: int) -> bytes:
    return content[offset : offset + most]


@TRIES
@pytest.mark.parametrize("suffix", ["json", "msgpack"])
def test_negotiations(seed: int, tries: int, suffix: str) -> None:
    draw = random.Random(seed)
    media_type = wire.JSON_MEDIA_TYPE if suffix == "json" else wire.MSGPACK_MEDIA_TYPE
    corpus = [content for name, content in MESSAGES.items() if name.endswith(suffix)]
    decoders: list[Callable[[bytes, str], Request | Reply]] = [Request.decode, Reply.decode]
    understood = refused = 0
    for _ in range(tries):
        body = spoilt(draw, draw.choice(corpus), corpus)
        for decode in decoders:
            try:
                message = decode(body, media_type)
            except WireError:
                refused += 1
                continue
            understood += 1
            message.encode(media_type)  # what was understood can be said again
    assert min(understood, refused) > tries // 100


METHODS = ["POST", "PUT", "PATCH", "PATCH", "PATCH", "HEAD", "GET", "DELETE", "OPTIONS", "TRACE", "patch", ""]
ODD = [
    "",
    "0",
    "-1",
    "1",
    "3",
    "9" * 15,
    "9" * 16,
    "?0",
    "?1",
    "?2",
    "1.0.0",
    "0.2.2",
    "a",
    ":AA==:",
    "sha1 AAAA",
    "\xff",
]


def spoilt_fields(draw: random.Random, fields: dict[str, str], names: list[str]) -> dict[str, str]:
    changed = dict(fields)
    for _ in range(draw.randrange(4)):
        name = draw.choice(names)
        match draw.randrange(3):
            case 0:
                changed.pop(name, None)
            case 1:
                changed[name] = draw.choice(ODD)
            case _:
                text = changed.get(name, "1")
                at = draw.randrange(len(text) + 1)
                changed[name] = text[:at] + draw.choice((" ", ",", ";", "=", "\t", "1", '"', "\xe9")) + text[at:]
    return changed


@TRIES
def test_upload_requests(seed: int, tries: int) -> None:
    """A server never fails over one; what was announced is never taken back."""
    draw = random.Random(seed)
    bases = [
        patch(0),
        tus_patch(0),
        {"Upload-Complete": "?1", "Upload-Length": "3"},
        TUS | {"Upload-Length": "3", "Upload-Metadata": "a YQ==", "Content-Type": "application/offset+octet-stream"},
        TUS | {"Upload-Concat": "partial", "Upload-Defer-Length": "1"},
    ]
    extra = [
        "Trailer",
        "Transfer-Encoding",
        "X-HTTP-Method-Override",
        "Content-Digest",
        "Repr-Digest",
        "Want-Repr-Digest",
        "Upload-Checksum",
    ]
    names = sorted({name for base in bases for name in base} | {*extra, "Upload-Incomplete", "Content-Length"})
    statuses: set[int] = set()
    server, url = made(MemoryServer())
    offset = 0
    for number in range(tries):
        if number % 50 == 0:
            server, url = (made if number % 100 else tus_made)(MemoryServer())
            offset = 0
        headers = spoilt_fields(draw, draw.choice(bases), names)
        body = draw.randbytes(draw.randrange(5))
        answer: HttpAnswer = server.handle(draw.choice(METHODS), draw.choice((url, url, PLACE)), headers, body)
        statuses.add(answer.status)
        assert answer.status < 500
        upload = server.uploads[url.removeprefix(f"{PLACE}/")]
        assert offset <= upload.state.offset <= len(upload.blob)
        offset = upload.state.offset
    assert statuses > {200, 201, 204, 400, 405, 409, 412, 415}

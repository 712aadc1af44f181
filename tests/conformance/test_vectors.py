"""The test vectors are what the protocol reads and writes, and what a real server answers.

Whoever changes the wire, and means to, runs ``tests/vectors/regenerate.py`` and tells of it in ``docs/protocol.md``.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mailboat.protocol import negotiation, wire
from mailboat.protocol.negotiation import Reply, Request, Verdict
from mailboat.protocol.packages import spans
from mailboat.protocol.segment import BLOCK_HEADER_SIZE, SKIPPABLE
from mailboat.protocol.uploads.rufh_client import RufhDialect
from mailboat.protocol.uploads.values import Query
from testkit import vectors

SEGMENTS = vectors.kept("segments")
WHOLE = SEGMENTS["whole.zst"]
NEGOTIATIONS = vectors.kept("negotiations")


# -- segments ----------------------------------------------------------------------------------------------------------


def test_segments_are_written_as_they_are_kept() -> None:
    made = vectors.segments(vectors.payloads_of(WHOLE))
    assert {name: content.hex() for name, content in made.items()} == {
        name: content.hex() for name, content in SEGMENTS.items() if name.endswith(".zst")
    }


def test_what_zstd_compresses_now_says_the_same() -> None:
    for name, content in vectors.segments().items():
        if name in ("whole.zst", "unsealed.zst", "empty.zst"):
            found, kept = vectors.outline(content), vectors.outline(SEGMENTS[name])
            assert (found["records"], found["info"], found["gaps"]) == (kept["records"], kept["info"], [])
            assert found["intact"] == kept["intact"]


def test_segments_are_read_as_their_outlines_say() -> None:
    assert json.loads(vectors.outlines({n: c for n, c in SEGMENTS.items() if n.endswith(".zst")})) == json.loads(
        SEGMENTS["outlines.json"]
    )


def test_damage_and_cuts_cost_what_the_outlines_say() -> None:
    kept = json.loads(SEGMENTS["outlines.json"])
    assert [gap["records"] for gap in kept["damaged.zst"]["gaps"]] == [4]
    assert len(kept["whole.zst"]["records"]) == 7
    assert len(kept["damaged.zst"]["records"]) == 3
    assert len(kept["torn.zst"]["records"]) == 4
    assert kept["torn.zst"]["torn"] > 0
    assert kept["unsealed.zst"]["seal"] is None


def test_a_package_is_taken_apart() -> None:
    package = SEGMENTS["package.zst"]
    found = spans(lambda at, most: package[at : at + most], len(package), 10)
    assert found is not None
    assert package[found[0].start : found[0].end] == WHOLE
    assert vectors.outline(package[found[1].start : found[1].end])["index"] == 1


# -- negotiations ------------------------------------------------------------------------------------------------------


def test_negotiations_are_written_as_they_are_kept() -> None:
    assert vectors.negotiations(WHOLE) == NEGOTIATIONS, "the wire has changed: see above"


@pytest.mark.parametrize(("suffix", "media_type"), [("json", vectors.JSON), ("msgpack", vectors.MSGPACK)])
def test_negotiations_are_read_as_they_were_meant(suffix: str, media_type: str) -> None:
    assert Request.decode(NEGOTIATIONS[f"request.{suffix}"], media_type) == vectors.request_of(WHOLE)
    assert Request.decode(NEGOTIATIONS[f"request-with-rider.{suffix}"], media_type) == vectors.with_rider(WHOLE)
    assert Reply.decode(NEGOTIATIONS[f"reply.{suffix}"], media_type) == vectors.reply_of(WHOLE)


def test_a_server_of_tomorrow_is_understood_today() -> None:
    reply = Reply.decode(NEGOTIATIONS["reply-of-tomorrow.json"], vectors.JSON)
    assert [decision.verdict for decision in reply.decisions] == ["send", "have", "later", "reject", "later"]
    assert reply.decisions[3].reason == "wrong_moon"


def test_the_reply_has_every_verdict() -> None:
    assert {decision.verdict for decision in vectors.reply_of(WHOLE).decisions} == set(Verdict)
    assert {wire.JSON_MEDIA_TYPE, wire.MSGPACK_MEDIA_TYPE} == set(wire.MEDIA_TYPES)
    assert negotiation.VERSION == 1


# -- exchanges ---------------------------------------------------------------------------------------------------------


def parsed(message: bytes) -> tuple[str, dict[str, str], bytes]:
    """First line, fields and body: the order of fields is the library's."""
    head, _, body = message.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return first, dict(line.split(": ", 1) for line in lines), body


@pytest.mark.parametrize("scenario", vectors.SCENARIOS)
async def test_a_real_server_answers_as_is_kept(scenario: str, tmp_path: Path) -> None:
    kept = vectors.kept(f"exchanges/{scenario}")
    made = await vectors.exchanged(scenario, WHOLE, tmp_path / "data")
    assert list(made) != []
    assert {name: parsed(message) for name, message in made.items()} == {
        name: parsed(message) for name, message in kept.items()
    }


def test_an_agent_understands_the_answers() -> None:
    kept = vectors.kept("exchanges/delivery")
    _, _, body = parsed(kept["1-offer.answer"])
    (decision,) = Reply.decode(body, vectors.JSON).decisions
    assert (decision.verdict, decision.segments[0].offset) == (Verdict.SEND, 0)
    first, fields, _ = parsed(kept["3-query.answer"])
    reply = RufhDialect().read(Query(), int(first.split()[1]), fields, b"")
    assert (reply.offset, reply.complete) == (200, False)
    _, _, body = parsed(kept["5-offer-again.answer"])
    (decision,) = Reply.decode(body, vectors.JSON).decisions
    (segment,) = vectors.whole_summary(WHOLE).segments
    assert (decision.verdict, decision.segments[0].offset) == (Verdict.HAVE, segment.size)
    assert decision.segments[0].sha256 == segment.sha256


# -- the document ------------------------------------------------------------------------------------------------------


def test_the_document_shows_the_vectors() -> None:
    document = vectors.DOCUMENT.read_text("utf-8")
    assert vectors.filled(document) == document
    shown = set(vectors.GENERATED.findall(document))
    assert len(shown) > 10


def test_the_table_of_a_block_adds_up() -> None:
    document = vectors.DOCUMENT.read_text("utf-8")
    table = document.partition("| block | bytes | |")[2].partition("| seal |")[0]
    sizes = [line.split("|")[2].strip() for line in table.splitlines() if line.startswith("| ")]
    assert sizes.pop() == "*length*"
    assert sum(math.prod(map(int, size.split(" * "))) for size in sizes) == BLOCK_HEADER_SIZE
    assert f"| {BLOCK_HEADER_SIZE - SKIPPABLE.size}: of the header that follows |" in table

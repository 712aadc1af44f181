"""Agents that lie, or are mad: whatever they say, the server says `have` of nothing but what it holds and has verified,
announces no offset that it does not have, and fails for nobody.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import random
from collections.abc import Callable, Mapping
from typing import Any
from zlib import crc32

import msgpack
import pytest
from msgspec.structs import replace

from mailboat.protocol import Summary, wire
from mailboat.protocol.negotiation import Request
from mailboat.protocol.records import COUNTERS as COUNTS
from mailboat.protocol.segment import PREAMBLE_MAGIC, PREAMBLE_TAG, SEAL_MAGIC, SEAL_TAG, SKIPPABLE, Seal
from mailboat.protocol.summary import SegmentState
from mailboat.server.catalog import SessionQuery, UploadRow, Verification
from mailboat.server.context import CATALOG, COUNTERS
from mailboat.server.ingest import INGEST
from mailboat.server.serving import RunningServer
from testkit.serverkit import AGENT, PARTIAL, PRODUCT, Wire, fresh_session_id, make_segment, summary_of

HUGE = 2**63 - 1


def segment(index: int = 0, size: int = 10, *, sealed: bool = True, sha256: str = "ab" * 32) -> SegmentState:
    return SegmentState(index, size, 1, sealed, sha256)


LIES: Mapping[str, Callable[[Summary], Summary]] = {
    "the digest of nothing": lambda told: replace(told, segments=(replace(told.segments[0], sha256="0" * 64),)),
    "no digest": lambda told: replace(told, segments=(replace(told.segments[0], sha256=""),)),
    "a digest that is none": lambda told: replace(told, segments=(replace(told.segments[0], sha256="../../x"),)),
    "another size": lambda told: replace(told, segments=(replace(told.segments[0], size=1),)),
    "no segments": lambda told: replace(told, segments=()),
    "a segment twice": lambda told: replace(told, segments=told.segments * 2),
    "more segments": lambda told: replace(told, segments=(*told.segments, segment(1), segment(99_999))),
    "many segments": lambda told: replace(told, segments=tuple(segment(index) for index in range(3000))),
    "countless records": lambda told: replace(told, counts=(HUGE,) * len(told.counts)),
    "an end before the start": lambda told: replace(told, ended=0.0),
    "an end in the far future": lambda told: replace(told, ended=1e15, started=1e15),
    "an endless duration": lambda told: replace(told, duration=1e15),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_lie_is_no_reason_to_have_anything(server: RunningServer, client: Wire, lie: str) -> None:
    data = make_segment(fresh_session_id())
    honest = summary_of(data)
    told = LIES[lie](honest)
    for _ in range(2):
        (decision,) = await client.negotiate(told)
        assert decision.verdict in ("send", "reject")
        for each in decision.segments:
            assert (each.offset, each.complete, each.sha256) == (0, False, "")
    # Nothing of it keeps the truth from arriving.
    (decision,) = await client.negotiate(honest)
    assert decision.verdict == "send"
    (wanted,) = [each for each in decision.segments if each.index == 0]
    assert (await client.append(wanted.url, data, 0, complete=True)).complete
    (decision,) = await client.negotiate(honest)
    assert decision.verdict == "have"
    assert decision.segments[0].sha256 == honest.segments[0].sha256
    assert server.app[COUNTERS]["problems_internal"] == 0


# -- segments that lie of themselves -----------------------------------------------------------------------------------

ENDLESS = "9" * 4000

# What is changed in the preamble, and in the seal; digest and checksums are right all the same.
SEGMENTS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "a number for a digest": ({}, {"sha256": 2**40}),
    "countless records": ({}, {"counts": [2**63] * len(COUNTS)}),
    "fewer records than none": ({}, {"counts": [-1] * len(COUNTS)}),
    "an endless count": ({}, {"counts": [ENDLESS] * len(COUNTS)}),
    "a last record beyond all": ({}, {"next": ENDLESS}),
    "countless losses": ({}, {"lost": {"full": 2**63}}),
    "an endless loss": ({}, {"lost": {"full": ENDLESS}}),
    "a text for an installation": ({}, {"installation": "x"}),
    "a box that is too large": ({}, {"boxed": b"x" * 60_000}),
    "an end at no time": ({}, {"wall": ENDLESS}),
    "no monotonic clock": ({}, {"monotonic": ENDLESS}),
    "a start at no time": ({"wall": ENDLESS}, {}),
    "an endless index": ({"index": ENDLESS}, {}),
    "an index beyond all": ({"index": 2**53}, {}),
    "a number for a name": ({"info": {"product": PRODUCT, "application": 5}}, {}),
}


def lying(honest: bytes, preamble: Mapping[str, Any], seal: Mapping[str, Any]) -> bytes:
    """An honest segment whose preamble and seal say something else."""
    begun, ending = SKIPPABLE.size + SKIPPABLE.unpack_from(honest)[1], Seal.at_end_of(honest)
    assert ending is not None
    said = msgpack.packb({**msgpack.unpackb(honest[22:begun]), **preamble})
    version = (1).to_bytes(2, "little")
    head = PREAMBLE_TAG + version + crc32(said, 1).to_bytes(4, "little") + said
    data = SKIPPABLE.pack(PREAMBLE_MAGIC, len(head)) + head + honest[begun : -ending[1]]
    digest = {"sha256": hashlib.sha256(data).digest()}
    said = msgpack.packb({**msgpack.unpackb(honest[-ending[1] :][8:-12]), **digest, **seal})
    tail = len(said).to_bytes(4, "little") + crc32(said).to_bytes(4, "little") + SEAL_TAG
    return data + SKIPPABLE.pack(SEAL_MAGIC, len(said) + len(tail)) + said + tail


async def row_of(server: RunningServer, path: str) -> UploadRow:
    row = await server.app[CATALOG].upload(path.rpartition("/")[2])
    assert row is not None
    return row


async def loaded_beside(server: RunningServer, client: Wire) -> None:
    """What others send is loaded all the same, and listed."""
    honest = make_segment(fresh_session_id())
    path = await client.upload_of(honest)
    assert (await client.append(path, honest, 0, complete=True)).complete
    async with asyncio.timeout(20):
        await server.app[INGEST].settled()
    assert (await row_of(server, path)).loaded == len(honest)
    listed = await server.app[CATALOG].sessions(SessionQuery(PRODUCT))
    assert summary_of(honest).session_id in {row.summary.session_id for row in listed.sessions}
    assert server.app[COUNTERS]["problems_internal"] == server.app[COUNTERS]["ingest_failures"] == 0


@pytest.mark.parametrize("asked", [True, False])
async def test_a_segment_that_lies_of_itself_stops_nobody(server: RunningServer, client: Wire, asked: bool) -> None:
    taken = set()
    for lie, (preamble, seal) in SEGMENTS.items():
        honest = make_segment(fresh_session_id())
        told = lying(honest, preamble, seal)
        if asked:
            path = await client.upload_of(honest)
            answer = await client.append(path, told, 0, complete=True)
        else:
            answer = await client.ask("POST", "/v1/uploads", data=told, Content_Type=PARTIAL, Upload_Complete="?1")
            path = answer.headers["Location"]
        assert answer.status < 300, (lie, answer)
        if (await row_of(server, path)).verification is Verification.VERIFIED:
            taken.add(lie)
    # An upload that was asked for is not asked what its session is: the offer said that.
    assert taken == ({"a number for a name", "a box that is too large"} if asked else set())
    await loaded_beside(server, client)


async def test_a_segment_added_to_countless_records_stops_nobody(server: RunningServer, client: Wire) -> None:
    """Nobody asked for it, but it is of a session whose offer leaves no room for one more."""
    session_id = fresh_session_id()
    first, second = make_segment(session_id), make_segment(session_id, index=1)
    told = replace(summary_of(first), counts=(HUGE,) * len(COUNTS))
    (decision,) = await client.negotiate(told)
    assert (await client.append(decision.segments[0].url, first, 0, complete=True)).complete
    answer = await client.ask("POST", "/v1/uploads", data=second, Content_Type=PARTIAL, Upload_Complete="?1")
    assert answer.status < 300
    row = await server.app[CATALOG].session(PRODUCT, session_id)
    assert row is not None
    assert [each.index for each in row.segments] == [0, 1]
    assert set(row.summary.counts) == {HUGE}
    await loaded_beside(server, client)


async def test_bytes_of_another_session_are_not_taken_for_it(server: RunningServer, client: Wire) -> None:
    mine, other = make_segment(fresh_session_id()), make_segment(fresh_session_id())
    path = await client.upload_of(mine)
    assert (await client.append(path, other, 0, complete=True)).status == 204
    (decision,) = await client.negotiate(summary_of(mine))
    assert (decision.verdict, decision.reason) == ("reject", "corrupted")
    row = await server.app[CATALOG].session(PRODUCT, summary_of(other).session_id)
    assert row is None


async def test_offsets_and_lengths_are_believed_when_they_are_right(server: RunningServer, client: Wire) -> None:
    for offset, length in itertools.product(
        ["0", "-1", "1", str(HUGE), "9" * 30, "", "x"], ["0", "1", "-1", str(HUGE), "9" * 30, "x", "", "1.5", "1, 1"]
    ):
        path = await client.upload_of(make_segment(fresh_session_id(), size=2000))
        headers = {"Content_Type": "application/partial-upload", "Upload_Complete": "?0", "Upload_Length": length}
        answer = await client.ask("PATCH", path, data=b"abc", Upload_Offset=offset, **headers)
        assert answer.status < 500, (offset, length)
        told = (await client.ask("HEAD", path)).offset
        assert told == (3 if answer.status < 300 else 0), (offset, length)
        row = await server.app[CATALOG].upload(path.rpartition("/")[2])
        assert row is not None
        assert row.state.offset == told


async def test_an_append_repeated_and_one_forgotten_are_told_the_offset(client: Wire) -> None:
    data = make_segment(fresh_session_id(), size=9000)
    path = await client.upload_of(data)
    assert (await client.append(path, data[:5000], 0, complete=False)).offset == 5000
    for offset in (0, 2500, 5001, 8000):
        answer = await client.append(path, data[offset : offset + 100], offset, complete=False)
        assert (answer.status, answer.offset) == (409, 5000)
        assert json.loads(answer.body)["expected-offset"] == 5000
    assert (await client.append(path, data[5000:], 5000, complete=True)).complete
    again = await client.append(path, data[5000:], 5000, complete=True)
    assert again.status >= 400
    assert [each.verdict for each in await client.negotiate(summary_of(data))] == ["have"]


async def test_a_ledger_may_say_what_it_likes(server: RunningServer, client: Wire) -> None:
    summary = summary_of(make_segment(fresh_session_id()))
    for ledger in (
        {"recorded": -1},
        {"recorded": "many", "store": ["x"]},
        {"recorded": 10**300, "accepted": {"a": {"b": {}}}},
        {str(number): number for number in range(1000)},
        {"rejected": {"\x00": 1e308}},
    ):
        body = Request(AGENT, (summary,), 0.0, ledger).encode(wire.JSON_MEDIA_TYPE)
        answer = await client.ask("POST", "/v1/negotiate", data=body, Content_Type=wire.JSON_MEDIA_TYPE)
        assert answer.status in (200, 400), (ledger, answer)
    assert server.app[COUNTERS]["problems_internal"] == 0


async def test_lies_at_random_leave_the_truth_alone(server: RunningServer, client: Wire, seed: int) -> None:
    """An honest session beside forty that change their story with each offer."""
    chance = random.Random(seed)
    data = make_segment(fresh_session_id(), size=30_000)
    path = await client.upload_of(data)
    assert (await client.append(path, data, 0, complete=True)).complete
    liars = [replace(summary_of(data), session_id=fresh_session_id()) for _ in range(40)]
    for _ in range(5):
        offers = [LIES[chance.choice(list(LIES))](liar) for liar in liars]
        offers = [each for each in offers if len(each.segments) < 10]
        decisions = await client.negotiate(*offers, summary_of(data))
        assert decisions[-1].verdict == "have"
        assert {each.verdict for each in decisions[:-1]} <= {"send", "reject"}
    assert server.app[COUNTERS]["problems_internal"] == 0

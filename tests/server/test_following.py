"""The digest that is computed while the bytes come: the right one, ahead of the end, in the way of no refusal."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol

from mailboat.protocol.limits import MAX_SEAL, MIB
from mailboat.protocol.uploads.decisions import BodyEnd
from mailboat.server import direct
from mailboat.server.blobs import LocalBlobs, LocalBlobWriter
from mailboat.server.bodies import Superseded, Transfer
from mailboat.server.catalog import Verification
from mailboat.server.context import CATALOG
from mailboat.server.direct import Direct, paged
from mailboat.server.following import Followed, Held, Passing
from mailboat.server.serving import RunningServer
from mailboat.server.taps import LEAST
from testkit.serverkit import RawAppend, Wire, blob_path, eventually, fresh_session_id, make_segment


@pytest.fixture
def beside() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


@pytest.mark.parametrize("size", [0, 1, MAX_SEAL - 1, MAX_SEAL, MAX_SEAL + 1, 3 * MIB])
def test_it_is_that_of_the_bytes_wherever_the_seal_begins(
    tmp_path: Path, beside: Executor, seed: int, size: int
) -> None:
    draw = random.Random(seed)
    content = draw.randbytes(size)
    blobs, blob_id = LocalBlobs(tmp_path), fresh_session_id()
    passing = Passing(size)
    writer = Followed(blobs.append(blob_id, 0), passing.take, beside)
    rooms = [bytearray(300_000), bytearray(300_000)]  # the same for all pieces, as a thread has them
    at = 0
    while at < size:
        assert not passing.whole
        piece = content[at : at + draw.randrange(1, len(rooms[0]))]
        if draw.randrange(4):
            rooms[0][: len(piece)] = piece
            writer.begin(memoryview(rooms[0])[: len(piece)])
            rooms.reverse()
        else:
            writer.settle()
            writer.write(piece)
        at += len(piece)
    writer.settle()
    writer.sync()
    writer.close()
    assert passing.whole
    assert bytes(passing.end) == content[max(0, size - MAX_SEAL) :]
    for _ in range(3):
        end = size - draw.randrange(min(size, MAX_SEAL) + 1)
        digest = hashlib.sha256(content[:end]).digest()
        assert passing.digest(end) == Held(memoryview(content)).digest(end) == digest


class Told(LocalBlobWriter):
    """A real writer that does `before` each of its writes, and tells them."""

    def __init__(self, folder: Path, before: Callable[[], object], events: list[str]) -> None:
        super().__init__(os.open(folder / "blob", os.O_WRONLY | os.O_CREAT, 0o600), 0, Direct())
        self._before, self._events = before, events

    def write(self, piece: bytes | memoryview) -> None:
        self._before()
        super().write(piece)
        self._events.append("written")


def test_what_a_thread_has_received_is_written_while_it_is_looked_into(tmp_path: Path, beside: Executor) -> None:
    looked, events = threading.Event(), list[str]()

    def look(_: bytes | memoryview) -> None:
        events.append("looked into")
        looked.set()

    writer = Followed(Told(tmp_path, lambda: looked.wait(30), events), look, beside)
    writer.begin(paged(direct.LEAST))
    writer.settle()
    assert (events, writer.offset) == (["looked into", "written"], direct.LEAST)
    writer.write(bytes(direct.LEAST))  # of the event loop
    writer.begin(paged(direct.LEAST)[: direct.LEAST - 1])  # too little
    assert events[2:] == ["written", "looked into"] * 2
    writer.close()


def test_it_is_written_while_what_follows_is_received_and_before_that_is(tmp_path: Path, beside: Executor) -> None:
    received, events = threading.Event(), list[str]()
    writer = Followed(Told(tmp_path, lambda: received.wait(30), events), lambda _: events.append("taken"), beside)
    writer.begin(memoryview(bytearray(b"a" * direct.LEAST)))
    assert (events, writer.offset) == (["taken"], 0)
    received.set()
    writer.begin(memoryview(bytearray(b"b" * direct.LEAST)))
    writer.settle()
    assert (tmp_path / "blob").read_bytes() == b"a" * direct.LEAST + b"b" * direct.LEAST
    assert sorted(events) == ["taken", "taken", "written", "written"]
    assert events[1] == "written", "the first one, before the second was begun"
    writer.close()


def test_its_memory_is_its_owner_s_again_whatever_fails(tmp_path: Path, beside: Executor) -> None:
    looked, events = threading.Event(), list[str]()

    def fail(_: bytes | memoryview) -> None:
        looked.set()
        raise ValueError("it cannot be looked into")

    writer = Followed(Told(tmp_path, lambda: looked.wait(30), events), fail, beside)
    with pytest.raises(ValueError, match="looked into"):
        writer.begin(paged(direct.LEAST))
    writer.settle()
    assert (events, writer.offset) == (["written"], direct.LEAST)
    writer.close()


def test_what_the_disk_refuses_is_told(tmp_path: Path, beside: Executor) -> None:
    def refuse() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    taken = list[int]()
    writer = Followed(Told(tmp_path, refuse, []), lambda piece: taken.append(len(piece)), beside)
    writer.begin(paged(direct.LEAST))
    for refused in (
        partial(writer.begin, paged(direct.LEAST)[: direct.LEAST - 1]),  # told of the one before, and not begun
        partial(writer.begin, paged(direct.LEAST)[: direct.LEAST - 2]),  # too little to be written beside
        partial(writer.write, b"x"),
    ):
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            refused()
    assert (writer.offset, taken) == (0, [direct.LEAST])
    writer.begin(paged(direct.LEAST))
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        writer.settle()
    writer.settle()  # it is told once
    writer.close()


@pytest.mark.parametrize("damage", ["none", "at its start", "near its end", "cut short", "seal of another"])
async def test_a_large_segment_is_held_to_its_seal(server: RunningServer, client: Wire, damage: str) -> None:
    data = make_segment(fresh_session_id(), size=2 * LEAST + 300_000)
    path = await client.upload_of(data)
    sent = bytearray(data)
    match damage:
        case "at its start":
            sent[2_000] ^= 1
        case "near its end":
            sent[-MAX_SEAL - 1_000] ^= 1
        case "cut short":
            del sent[-300:]
        case "seal of another":
            other = make_segment(fresh_session_id(), size=len(data))
            sent[-200:] = other[-200:]
    assert (await client.append(path, bytes(sent), 0, complete=True)).status == 204
    row = await server.app[CATALOG].upload(path.rpartition("/")[2])
    assert row is not None
    assert row.verification is (Verification.VERIFIED if damage == "none" else Verification.REJECTED)


async def test_one_that_is_resumed_is_held_to_its_seal_too(server: RunningServer, client: Wire) -> None:
    data = make_segment(fresh_session_id(), size=2 * LEAST + 300_000)
    path = await client.upload_of(data)
    first = await RawAppend.begin(client, path, len(data))
    await first.send(data[: LEAST + 200_000])
    blob = blob_path(server.app, path)
    await eventually(lambda: blob.exists() and blob.stat().st_size == LEAST + 200_000)
    first.abort()
    offset = (await client.ask("HEAD", path)).offset
    assert offset == LEAST + 200_000
    assert (await client.append(path, data[offset:], offset, complete=True)).complete
    row = await server.app[CATALOG].upload(path.rpartition("/")[2])
    assert row is not None
    assert row.verification is Verification.VERIFIED


async def test_a_body_that_never_ceases_is_ended_all_the_same(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    protocol = BaseProtocol(loop)
    protocol.connection_made(asyncio.Transport())  # which carries nothing
    content = StreamReader(protocol, 1 << 16, loop=loop)
    transfer, blobs = Transfer(content), LocalBlobs(tmp_path)

    def feed() -> None:
        if transfer.ended is None:
            content.feed_data(b"x")
            loop.call_soon(feed)

    feed()
    writer = blobs.append(fresh_session_id(), 0)
    transfer.end_soon(Superseded("a newer one"))
    async with asyncio.timeout(20):
        assert await transfer.receive(writer, None, patience=60, minimum=1) is BodyEnd.CUT
    writer.close()
    assert isinstance(transfer.ended, Superseded)
    assert writer.offset == content.total_bytes > 0

"""Large bodies that a thread takes from the socket: kept, cut, taken over and refused as any other."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import random
import socket
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from blockbuster import blockbuster_ctx
from msgspec import structs

from mailboat.protocol.uploads.decisions import Accepted, BodyEnd
from mailboat.server import ServerConfig, create_app, dealings, taps
from mailboat.server.blobs import LocalBlobs, LocalBlobWriter
from mailboat.server.bodies import Transfer
from mailboat.server.catalog import Verification
from mailboat.server.connections import Connection
from mailboat.server.context import BLOBS, CATALOG, COUNTERS
from mailboat.server.serving import RunningServer, running
from mailboat.server.taps import LEAST, Drawn, Source, Tap, tap_of
from mailboat.server.turns import TURNS
from testkit.serverkit import RawAppend, Wire, blob_path, eventually, fresh_session_id, make_segment, wired

SIZE = 3 * LEAST
SENT = LEAST + 300_001


@pytest.fixture(params=["direct", "through the page cache"])
async def server(config: ServerConfig, key: str, request: pytest.FixtureRequest) -> AsyncIterator[RunningServer]:
    """A running server, which writes large pieces in either way."""
    assert key
    app = create_app(config, open_blobs=partial(LocalBlobs, direct=request.param == "direct"))
    with blockbuster_ctx("mailboat.server"):
        async with running(config, app) as started:
            yield started


@pytest.fixture
def data() -> bytes:
    return make_segment(fresh_session_id(), size=SIZE)


def stored(server: RunningServer, path: str) -> bytes:
    return blob_path(server.app, path).read_bytes()


def held(server: RunningServer, path: str) -> int:
    """Bytes in the blob, noted or not."""
    blob = blob_path(server.app, path)
    return blob.stat().st_size if blob.exists() else 0


async def stalled(server: RunningServer, client: Wire, path: str, data: bytes) -> RawAppend:
    """An append of all of `data` that stops after `SENT` bytes, every one of them taken."""
    append = await RawAppend.begin(client, path, len(data))
    await append.send(data[:SENT])
    await eventually(lambda: held(server, path) == SENT)
    return append


async def go_on(server: RunningServer, client: Wire, path: str, data: bytes) -> None:
    """Ask, and append from there; all is there in the end."""
    offset = (await client.ask("HEAD", path)).offset
    assert (await client.append(path, data[offset:], offset, complete=True)).complete
    assert stored(server, path) == data


async def test_it_is_kept_and_its_connection_serves_nothing_else(
    server: RunningServer, client: Wire, data: bytes
) -> None:
    path = await client.upload_of(data)
    append = await RawAppend.begin(client, path, len(data))
    await append.send(data)
    await append.send(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")  # for whoever takes it for a request
    said = await append.reader.read()
    await append.close()
    assert said.startswith(b"HTTP/1.1 204 ")
    assert b"\r\nConnection: close\r\n" in said
    assert said.count(b"HTTP/1.1") == 1
    assert stored(server, path) == data
    assert (await client.ask("HEAD", path)).complete


async def test_a_small_one_leaves_its_connection(client: Wire) -> None:
    small = make_segment(fresh_session_id(), size=100_000)
    path = await client.upload_of(small)
    assert "Connection" not in (await client.append(path, small, 0, complete=True)).headers


class Gated(LocalBlobs):
    """Blobs that begin no writer before `gate` is set."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.gate, self.at_gate = threading.Event(), threading.Event()

    def append(self, blob_id: str, offset: int) -> LocalBlobWriter:
        self.at_gate.set()
        assert self.gate.wait(30)
        return super().append(blob_id, offset)


@pytest.mark.parametrize("taken", ["by a thread", "by aiohttp", "not at all"])
async def test_it_waits_in_its_socket_until_it_is_known_who_takes_it(
    config: ServerConfig, key: str, data: bytes, monkeypatch: pytest.MonkeyPatch, taken: str
) -> None:
    received = list[int]()

    def told(request: web.Request, accepted: Accepted, executor: Executor) -> Tap | None:
        received.append(request.content.total_bytes)
        if taken == "by aiohttp":
            accepted = structs.replace(accepted, max_bytes=len(data) - 1)
        return tap_of(request, accepted, executor)

    monkeypatch.setattr(dealings, "tap_of", told)
    app = create_app(config, open_blobs=Gated)
    async with running(config, app) as server, wired(server.url, key) as client:
        path = await client.upload_of(data)
        blobs = server.app[BLOBS]
        assert isinstance(blobs, Gated)
        if taken == "not at all":
            refused = await RawAppend.begin(client, path, len(data), 7)
            await refused.send(data)  # it is read, and dropped
            assert await refused.status() == 409
            await refused.close()
            assert received == []
            blobs.gate.set()
            await go_on(server, client, path, data)
            return
        append = await RawAppend.begin(client, path, len(data))
        await eventually(blobs.at_gate.is_set)
        append.writer.write(data)
        for _ in range(5):
            await asyncio.sleep(0)  # the kernel has some of it, which a loop that looked would find in each turn
        blobs.gate.set()
        assert await append.status() == 204
        await append.close()
        assert received == [0]
        assert stored(server, path) == data


def test_what_is_held_is_handed_on_again() -> None:
    class Line(asyncio.Transport):
        """What one end of a connection was told."""

        def __init__(self) -> None:
            super().__init__()
            self.reading, self.told = True, list[str]()

        def is_reading(self) -> bool:
            return self.reading

        def pause_reading(self) -> None:
            self.reading = False
            self.told.append("pause")

        def resume_reading(self) -> None:
            self.reading = True
            self.told.append("resume")

    connection, line = Connection(asyncio.Protocol()), Line()
    connection.hold()  # before there is any
    connection.let_go()
    connection.connection_made(line)
    connection.let_go()
    assert line.told == []
    connection.hold()
    connection.let_go()
    connection.let_go()
    assert line.told == ["pause", "resume"]
    line.pause_reading()  # aiohttp has enough
    connection.hold()
    connection.let_go()
    assert line.told == ["pause", "resume", "pause"], "which is for aiohttp to end"
    line.resume_reading()
    connection.hold()
    connection.connection_lost(None)
    connection.let_go()
    assert line.told[4:] == ["pause"]


async def test_many_at_once(server: RunningServer, client: Wire) -> None:
    many = [make_segment(fresh_session_id(), size=SIZE) for _ in range(8)]
    paths = [await client.upload_of(each) for each in many]
    done = await asyncio.gather(*(client.append(*pair, 0, complete=True) for pair in zip(paths, many, strict=True)))
    assert all(each.complete for each in done)
    assert [stored(server, path) for path in paths] == many


@pytest.mark.parametrize("how", ["reset", "closed"])
async def test_what_came_before_a_cut_is_kept(server: RunningServer, client: Wire, data: bytes, how: str) -> None:
    path = await client.upload_of(data)
    append = await stalled(server, client, path, data)
    if how == "reset":
        append.abort()
    else:
        await append.close()
    await eventually(lambda: server.app[TURNS].transfers == 0)
    assert (await client.ask("HEAD", path)).offset == SENT
    await go_on(server, client, path, data)


async def test_a_query_takes_over_at_once_and_finds_what_had_arrived(
    server: RunningServer, client: Wire, data: bytes
) -> None:
    path = await client.upload_of(data)
    older = await stalled(server, client, path, data)
    older.writer.write(data[SENT : SENT + 100_000])
    assert older.writer.transport.get_write_buffer_size() == 0  # the kernel has them, and the server has read none
    async with asyncio.timeout(10):
        assert (await client.ask("HEAD", path)).offset == SENT + 100_000
        assert await older.status() == 409
        await older.ended()
    older.writer.write(b"\0" * 50_000)  # and what comes later is not taken
    await older.close()
    assert server.app[COUNTERS]["transfers_ended_superseded"] == 1
    await go_on(server, client, path, data)


async def test_one_that_never_ceases_is_taken_over_all_the_same(config: ServerConfig, key: str) -> None:
    large = replace(config, max_upload_bytes=1 << 30)
    async with running(large) as server, wired(server.url, key) as client:
        path = (await client.ask("POST", "/v1/uploads", Upload_Complete="?0")).headers["Location"]
        older = await RawAppend.begin(client, path, 1 << 30)

        async def flood() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    await older.send(b"\0" * 1_000_000)

        flooding = asyncio.create_task(flood())
        await eventually(lambda: held(server, path) > 2 * LEAST)
        async with asyncio.timeout(20):
            offset = (await client.ask("HEAD", path)).offset
            assert offset == held(server, path)
            await flooding
        assert server.app[COUNTERS]["transfers_ended_superseded"] == 1
        await older.close()


async def test_a_newer_append_takes_over(server: RunningServer, client: Wire, data: bytes) -> None:
    path = await client.upload_of(data)
    older = await stalled(server, client, path, data)
    async with asyncio.timeout(10):
        assert (await client.append(path, data[SENT:], SENT, complete=True)).complete
    await older.close()
    assert stored(server, path) == data


async def test_one_append_after_another_takes_over_in_the_middle_of_a_page(
    server: RunningServer, client: Wire, seed: int
) -> None:
    draw = random.Random(seed)
    data = make_segment(fresh_session_id(), size=8 * LEAST)
    path = await client.upload_of(data)
    offset, older = 0, []
    for _ in range(3):
        append = await RawAppend.begin(client, path, len(data) - offset, offset)
        sent = LEAST + draw.randrange(LEAST)
        await append.send(data[offset : offset + sent])
        offset += sent
        await eventually(partial(lambda at: held(server, path) == at, offset))
        older.append(append)
    async with asyncio.timeout(20):
        assert (await client.append(path, data[offset:], offset, complete=True)).complete
    for each in older:
        await each.close()
    assert stored(server, path) == data
    row = await server.app[CATALOG].upload(path.rpartition("/")[2])
    assert row is not None
    assert row.verification is Verification.VERIFIED


async def test_who_brings_next_to_nothing_is_ended(config: ServerConfig, key: str, data: bytes) -> None:
    async with running(replace(config, body_timeout=0.2)) as server, wired(server.url, key) as client:
        path = await client.upload_of(data)
        slow = await stalled(server, client, path, data)
        async with asyncio.timeout(10):
            await slow.ended()
        await slow.close()
        assert server.app[COUNTERS]["transfers_ended_tooslow"] == 1
        assert (await client.ask("HEAD", path)).offset == SENT
        await go_on(server, client, path, data)


async def test_a_server_that_stops_keeps_it(config: ServerConfig, key: str, data: bytes) -> None:
    async with running(config) as server, wired(server.url, key) as client:
        path = await client.upload_of(data)
        older = await stalled(server, client, path, data)
        server.app[TURNS].stop()
        assert await older.status() == 503
        await older.close()
    async with running(config) as server, wired(server.url, key) as client:
        assert (await client.ask("HEAD", path)).offset == SENT
        await go_on(server, client, path, data)


@pytest.mark.parametrize("right", [True, False])
async def test_it_is_held_to_the_digest_of_its_body(
    server: RunningServer, client: Wire, data: bytes, right: bool
) -> None:
    path = await client.upload_of(data)
    said = base64.b64encode(hashlib.sha256(data if right else b"other").digest()).decode()
    answer = await client.ask(
        "PATCH",
        path,
        data=data,
        Content_Type="application/partial-upload",
        Upload_Offset="0",
        Upload_Complete="?1",
        Content_Digest=f"sha-256=:{said}:",
    )
    assert answer.status == (204 if right else 400)
    assert (await client.ask("HEAD", path)).offset == (len(data) if right else 0)
    if not right:
        await go_on(server, client, path, data)


async def test_one_of_unknown_length_is_taken_without(server: RunningServer, client: Wire, data: bytes) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 70_001):
            yield data[start : start + 70_001]

    path = await client.upload_of(data)
    assert (await client.append(path, pieces(), 0, complete=True)).complete
    assert stored(server, path) == data


async def test_of_one_whose_connection_is_lost_what_had_come_is_kept(tmp_path: Path) -> None:
    protocol = BaseProtocol(asyncio.get_running_loop())
    protocol.connection_made(asyncio.Transport())  # which carries nothing
    content = StreamReader(protocol, 1 << 16, loop=asyncio.get_running_loop())
    content.feed_data(b"x" * 300)
    content.feed_data(b"y" * 200)
    writer = LocalBlobs(tmp_path).append(fresh_session_id(), 0)
    with ThreadPoolExecutor(1) as executor:
        tap = Tap(Connection(asyncio.Protocol()), SIZE, executor)
        assert await Transfer(content, tap).receive(writer, None, patience=60, minimum=1) is BodyEnd.CUT
    assert writer.offset == 500
    writer.close()


def test_a_line_slower_than_a_thread_holds_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taps, "_LONGEST", 0.0)
    writer = LocalBlobs(tmp_path).append(fresh_session_id(), 0)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        for sent in (1000, 2000):
            theirs.sendall(bytes(1000))
            assert taps._draw(Source(ours.fileno(), b""), SIZE, writer) == Drawn(), "more is to come, in another turn"
            assert writer.offset == sent
    writer.close()


def test_a_thread_takes_what_there_is_of_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        source, room = Source(ours.fileno(), b"abcdefgh"), memoryview(bytearray(6))
        assert (source.fill(room), bytes(room)) == ((6, None), b"abcdef")
        theirs.sendall(b"ij")
        assert (source.fill(room), bytes(room[:4])) == ((4, Drawn(dry=True)), b"ghij")
        assert source.fill(room) == (0, Drawn(dry=True))
        monkeypatch.setattr(taps, "_LONGEST", 0.0)
        theirs.sendall(b"kl")
        assert (source.fill(room), bytes(room[:2])) == ((2, None), b"kl"), "it is written, and more is waited for"
        theirs.sendall(b"mn")
        theirs.close()
        assert (source.fill(room), bytes(room[:2])) == ((2, Drawn(gone=True)), b"mn")
    assert source.fill(room) == (0, Drawn(gone=True))

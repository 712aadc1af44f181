"""The fault proxy against a real server on loopback."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator

import pytest

from mailboat.cli.demo.faults import LOOPBACK, Cut, FaultProxy, Pace


class Sink:
    """A server that keeps what it receives, and answers each connection with `ok` when the client has ended."""

    def __init__(self) -> None:
        self.received: list[bytearray] = []
        self.begun = asyncio.Queue[int]()
        self.ended = asyncio.Queue[int]()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        content = bytearray()
        self.received.append(content)
        try:
            while piece := await reader.read(4096):
                content += piece
                self.begun.put_nowait(len(piece))
            writer.write(b"ok")
        except ConnectionError:
            pass
        finally:
            writer.close()
            self.ended.put_nowait(len(content))


@pytest.fixture
async def sink() -> AsyncIterator[tuple[Sink, FaultProxy]]:
    found = Sink()
    server = await asyncio.start_server(found.connected, LOOPBACK, 0)
    async with server, FaultProxy(server.sockets[0].getsockname()) as proxy:
        yield found, proxy


async def send(proxy: FaultProxy, content: bytes) -> bytes:
    """What comes back for `content`, sent over a connection of its own."""
    reader, writer = await asyncio.open_connection(LOOPBACK, proxy.port)
    try:
        writer.write(content)
        writer.write_eof()
        return await reader.read()
    finally:
        writer.transport.abort()


async def test_bytes_pass_in_both_directions_and_are_counted(sink: tuple[Sink, FaultProxy]) -> None:
    found, proxy = sink
    assert await send(proxy, b"x" * 100_000) == b"ok"
    assert [len(content) for content in found.received] == [100_000]
    assert (proxy.up, proxy.down, proxy.accepted) == (100_000, 2, 1)


async def test_all_connections_are_cut_at_the_very_byte(sink: tuple[Sink, FaultProxy]) -> None:
    found, proxy = sink
    head = b"PATCH /v1/uploads/1 HTTP/1.1\r\nContent-Length: 200000\r\n\r\n"
    proxy.cut_after(50_000)
    idle_reader, idle_writer = await asyncio.open_connection(LOOPBACK, proxy.port)
    with pytest.raises(ConnectionError):
        await send(proxy, head + b"x" * 200_000)
    assert proxy.cuts == [Cut(50_000, ("PATCH", "/v1/uploads/1"))]
    assert proxy.up == 50_000
    with pytest.raises(ConnectionError):
        await idle_reader.read()
    idle_writer.transport.abort()
    await found.ended.get()
    await found.ended.get()
    assert sum(map(len, found.received)) == 50_000


async def test_each_cut_comes_once(sink: tuple[Sink, FaultProxy]) -> None:
    _, proxy = sink
    proxy.cut_after(10, 30)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            await send(proxy, b"x" * 20)
    assert await send(proxy, b"x" * 100) == b"ok"
    assert [cut.after for cut in proxy.cuts] == [10, 30]


async def test_a_closed_network_refuses_and_the_port_stays_taken(sink: tuple[Sink, FaultProxy]) -> None:
    _, proxy = sink
    await proxy.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(LOOPBACK, proxy.port)
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((LOOPBACK, proxy.port))
    port = proxy.port
    await proxy.open()
    assert proxy.port == port
    assert await send(proxy, b"x") == b"ok"


async def test_closing_the_network_ends_what_is_under_way(sink: tuple[Sink, FaultProxy]) -> None:
    found, proxy = sink
    reader, writer = await asyncio.open_connection(LOOPBACK, proxy.port)
    writer.write(b"x" * 10)
    await found.begun.get()
    await proxy.close()
    with pytest.raises(ConnectionError):
        await reader.read()
    writer.transport.abort()
    assert await found.ended.get() == 10


async def test_a_server_that_is_gone_ends_the_connection() -> None:
    with socket.socket() as unused:
        unused.bind((LOOPBACK, 0))
        async with FaultProxy(unused.getsockname()) as proxy:
            reader, writer = await asyncio.open_connection(LOOPBACK, proxy.port)
            with pytest.raises(ConnectionError):
                await reader.read()
            writer.transport.abort()


def test_the_pace_holds_back_what_is_too_fast() -> None:
    pace = Pace(100.0)
    assert pace.wait(now=10.0, count=50) == 0.5
    assert pace.wait(now=10.0, count=50) == 1.0
    assert pace.wait(now=11.5, count=100) == 1.0
    assert Pace().wait(now=10.0, count=10**9) == 0.0


async def test_a_server_that_resets_a_connection_resets_it_for_the_client() -> None:
    async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    server = await asyncio.start_server(reset, LOOPBACK, 0)
    async with server, FaultProxy(server.sockets[0].getsockname()) as proxy:
        reader, writer = await asyncio.open_connection(LOOPBACK, proxy.port)
        with pytest.raises(ConnectionError):
            await reader.read()
        writer.transport.abort()

"""A relay between agents and a server, which tells a test of each piece before it passes it on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

_PIECE = 16 * 1024

Passed = Callable[[bool, int, bytes], Awaitable[None]]
"""Told before a piece is passed on: whether it goes to the server, how many bytes went that way before, and the piece.
What it raises ends the connection."""


class Cut(Exception):
    """Ends the connection."""


@dataclass
class Relay:
    """Between agents and the server."""

    url: str
    passed: Passed | None = None


@asynccontextmanager
async def relayed(address: tuple[str, int]) -> AsyncIterator[Relay]:
    relay = Relay("")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there: asyncio.StreamWriter | None = None
        try:
            back, there = await asyncio.open_connection(*address)

            async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter, *, up: bool) -> None:
                count = 0
                while piece := await source.read(_PIECE):
                    if relay.passed is not None:
                        await relay.passed(up, count, piece)
                    count += len(piece)
                    target.write(piece)
                    await target.drain()
                raise Cut

            async with asyncio.TaskGroup() as group:
                group.create_task(carry(reader, there, up=True))
                group.create_task(carry(back, writer, up=False))
        except* (Cut, OSError):
            pass
        finally:
            for each in (writer, there):
                if each is not None:
                    each.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    relay.url = f"http://{host}:{port}"
    try:
        yield relay
    finally:
        server.close()

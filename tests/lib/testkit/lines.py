"""A line between a client and a server that is cut where a test wants it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

READ = 16 * 1024


class Line:
    """Passes connections on to `port` of this machine.

    Each entry of `cuts` is a number of bytes: when a connection has brought so many to the server, it is cut on both
    sides, `on_cut` is awaited, and only then the next connection is passed on.
    """

    def __init__(
        self,
        port: int,
        cuts: list[int],
        on_cut: Callable[[], Awaitable[object]] | None = None,
        on_bytes: Callable[[bytes], object] | None = None,
    ) -> None:
        """`on_bytes` is shown what goes to the server."""
        self._on_bytes = on_bytes
        self._port = port
        self._cuts = cuts
        self._on_cut = on_cut
        self._clear = asyncio.Event()
        self._clear.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""

    @property
    def cuts_left(self) -> int:
        return len(self._cuts)

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            await self._clear.wait()
            theirs, ours = await asyncio.open_connection("127.0.0.1", self._port)
            self._writers.add(ours)
            back = asyncio.create_task(self._copy(theirs, writer))
            try:
                await self._forward(reader, ours)
            finally:
                # what the server still says to a client that has stopped sending comes through
                with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                    await back
                ours.transport.abort()
                self._writers.discard(ours)
        except ConnectionError:
            pass  # one of the two has gone: that is what lines are for
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _forward(self, reader: asyncio.StreamReader, ours: asyncio.StreamWriter) -> None:
        passed = 0
        while piece := await reader.read(READ):
            if self._on_bytes is not None:
                self._on_bytes(piece)
            if self._cuts and passed + len(piece) >= self._cuts[0]:
                ours.write(piece[: self._cuts.pop(0) - passed])
                await ours.drain()
                await self._cut()
                return
            passed += len(piece)
            ours.write(piece)
            await ours.drain()
        ours.write_eof()

    async def _cut(self) -> None:
        self._clear.clear()
        for each in tuple(self._writers):
            # closed, not reset, towards the server: what was sent arrives
            each.close()
        if self._on_cut is not None:
            await self._on_cut()
        self._clear.set()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(READ):
            writer.write(piece)
            await writer.drain()
        writer.close()

    async def stop(self) -> None:
        self._clear.set()
        for writer in tuple(self._writers):
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def line_to(
    to: int,
    cuts: list[int] | None = None,
    on_cut: Callable[[], Awaitable[object]] | None = None,
    *,
    port: int = 0,
    on_bytes: Callable[[bytes], object] | None = None,
) -> AsyncIterator[Line]:
    """A line to the server on port `to`; its own address is `url`, with `port` if that is given."""
    line = Line(to, list(cuts or ()), on_cut, on_bytes)
    server = await asyncio.start_server(line.pass_on, "127.0.0.1", port)
    line.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield line
    finally:
        server.close()
        await line.stop()
        await server.wait_closed()

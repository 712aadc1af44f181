"""A bad network on loopback: a TCP proxy that can be slow, cut every connection in mid-transfer, or refuse new ones."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

from mailboat.cli.demo.meter import Meter

LOOPBACK: Final = "127.0.0.1"
_PIECE: Final = 16 * 1024
"""Bytes forwarded at a time: small, so that little is under way when a connection is cut."""
_RECEIVE_BUFFER: Final = 64 * 1024
"""What the kernel takes ahead of the proxy; its usual megabytes would hide a slow link from the sender."""
_BACKLOG: Final = 64
_TURNS_TO_BEGIN: Final = 5
"""Of the event loop, from a connection that is taken to the task that serves it."""
_NO_LINGERING: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Cut:
    """One cut of all connections: after how many bytes from clients in all, and the request whose body was under way on
    the connection that carried the last of them.
    """

    after: int
    during: tuple[str, str] | None


class Pace:
    """How long to hold bytes back so that no more than `rate` a second pass; None lets all pass."""

    def __init__(self, rate: float | None = None) -> None:
        self.rate = rate
        self._free_at = 0.0

    def wait(self, now: float, count: int) -> float:
        """Seconds from `now` until `count` more bytes have passed."""
        if self.rate is None:
            return 0.0
        self._free_at = max(self._free_at, now) + count / self.rate
        return self._free_at - now


class FaultProxy:
    """Forwards connections to `target` (host, port); use as an async context manager.

    It begins with the network open. `port` on loopback stays the same, and stays taken, while the network is closed.
    `up` and `down` count the bytes forwarded to the server and to clients; `bodies` those of them that were bodies of
    requests, by method and path.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.pace = Pace()
        self.delay = 0.0
        self.bodies: Counter[tuple[str, str]] = Counter()
        self.up = 0
        self.down = 0
        self.accepted = 0
        self.cuts: list[Cut] = []
        self._cut_at: list[int] = []
        self._reserved = _bound(0)
        self._server: asyncio.Server | None = None
        self._transports: set[asyncio.StreamWriter] = set()
        self._to_server: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """The port that clients connect to."""
        return int(self._reserved.getsockname()[1])

    @property
    def url(self) -> str:
        """The address for clients."""
        return f"http://{LOOPBACK}:{self.port}"

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
        self._reserved.close()

    async def open(self) -> None:
        """Take connections from now on."""
        if self._server is None:
            listener = _bound(self.port)
            self._server = await asyncio.start_server(self._connected, sock=listener, backlog=_BACKLOG)

    async def close(self) -> None:
        """Cut every connection, and refuse new ones from now on. What was planned to be cut is forgotten."""
        server, self._server = self._server, None
        self._cut_at.clear()
        self._abort_all()
        if server is not None:
            await _let_accepted_begin(server)
            server.close()
        if self._connections:
            await asyncio.wait(self._connections)

    def cut_after(self, *counts: int) -> None:
        """Cut all connections whenever so many more bytes, counted from now, have come from clients."""
        self._cut_at = sorted(self.up + count for count in counts)

    # -- one connection ------------------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:  # it was taken in the moment in which the network was closed
            _reset(writer)
            return
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        self.accepted += 1
        self._transports.add(writer)
        try:
            # A cut connection, or a server that is not there, is what this proxy is for: nothing to be told to anybody.
            with suppress(OSError):
                await self._forward(reader, writer)
        finally:
            self._transports.discard(writer)
            _reset(writer)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(*self.target)
        self._to_server.add(server_writer)
        for each in (writer, server_writer):
            each.transport.set_write_buffer_limits(high=0)
        back = asyncio.create_task(self._downwards(server_reader, writer))
        try:
            await self._upwards(reader, server_writer)
            await back
        finally:
            back.cancel()
            await asyncio.gather(back, return_exceptions=True)
            self._to_server.discard(server_writer)
            self._end_at_server(server_writer)

    async def _upwards(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        meter = Meter(self.bodies)
        while piece := await reader.read(_PIECE):
            await self._hold(len(piece))
            if self._cut_at and self.up + len(piece) >= self._cut_at[0]:
                await self._cut(meter, writer, piece)
                return
            await self._send_up(meter, writer, piece)
        with suppress(OSError):
            writer.write_eof()

    async def _cut(self, meter: Meter, writer: asyncio.StreamWriter, piece: bytes) -> None:
        mark = self._cut_at.pop(0)
        await self._send_up(meter, writer, piece[: mark - self.up])
        self.cuts.append(Cut(mark, meter.under_way))
        self._abort_all()

    async def _send_up(self, meter: Meter, writer: asyncio.StreamWriter, piece: bytes) -> None:
        writer.write(piece)
        await writer.drain()
        self.up += len(piece)
        meter.feed(piece)

    async def _downwards(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # However the server ends the connection, the client sees the same, even if it still sends.
        try:
            while piece := await reader.read(_PIECE):
                await asyncio.sleep(self.delay)
                writer.write(piece)
                await writer.drain()
                self.down += len(piece)
            writer.close()
        except OSError:
            _reset(writer)
            raise

    async def _hold(self, count: int) -> None:
        now = asyncio.get_running_loop().time()
        await asyncio.sleep(self.delay + self.pace.wait(now, count))

    def _abort_all(self) -> None:
        for writer in list(self._transports):
            _reset(writer)
        for writer in list(self._to_server):
            self._end_at_server(writer)

    def _end_at_server(self, writer: asyncio.StreamWriter) -> None:
        """End the server's side of a connection that was cut."""
        _reset(writer)


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection at once, unless it has ended, so that the other side sees a reset and no orderly end."""
    if not writer.transport.is_closing():
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGERING)
        writer.transport.abort()


def _bound(port: int) -> socket.socket:
    """A socket bound to a port of loopback, not yet listening. Several may be bound to one, which keeps it taken."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        bound.bind((LOOPBACK, port))
    except OSError:
        bound.close()
        raise
    return bound


async def _let_accepted_begin(server: asyncio.Server) -> None:
    """Have whatever the event loop has taken just now begin, and find the network closed: asyncio leaves a connection
    to the garbage collector whose server is closed between the two.
    """
    with suppress(NotImplementedError):  # of a loop on Windows, which takes no connection in this way
        for listener in server.sockets:
            asyncio.get_running_loop().remove_reader(listener)
    for _ in range(_TURNS_TO_BEGIN):
        await asyncio.sleep(0)

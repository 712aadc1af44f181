"""Large bodies, taken from the socket itself by a thread that writes and hashes them on the way.

aiohttp hands out a body in pieces of a quarter of a MiB: each is received into new memory, copied by the parser, and
brought by a few turns of the event loop; a digest then takes reading it back. A thread receives up to two MiB into
memory that it has, and hashes them while they are in the processor's cache; another one writes them meanwhile, and
while the next two are received. That takes the interpreter's lock a few times for two MiB, and about half of the
processor time.

aiohttp's parser is not told of those bytes, so such a connection serves no other request (`connections`). That is why
it is done for large bodies only; and for those of known length on a plain socket, where the system can do it at all.
"""

from __future__ import annotations

import asyncio
import os
import select
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, wait
from contextlib import contextmanager
from typing import Final

from aiohttp import web
from msgspec import Struct

from mailboat.protocol.limits import MIB
from mailboat.protocol.uploads.decisions import Accepted
from mailboat.server.blobs import BlobWriter
from mailboat.server.connections import Connection, connection_of
from mailboat.server.direct import PAGE, paged

LEAST: Final = 2 * MIB
"""Bytes still to come below which it is not worth a connection."""

STRETCH: Final = 16 * MIB
"""Bytes after which a thread turns to others that wait for one."""

_PIECE: Final = 2 * MIB
"""Bytes received at a time, at most: what is in a cache, and in one large page. The less at a time, the more often do
both ends of a connection wait for each other.
"""

_PATIENCE: Final = 2
"""Milliseconds for which a thread waits for more: less than to be sent for again costs."""

_LONGEST: Final = 0.005
"""Seconds after which what has come is written although a piece is not full, as on any line but a very fast one."""

_OWN: Final = threading.local()


class WriteFailed(Exception):
    """The disk refused a piece; its `OSError` is the cause. What was written before stays."""


class Drawn(Struct, frozen=True):
    """Why a thread has ceased to take: nothing more was there; or nothing will come any more."""

    dry: bool = False
    gone: bool = False


class Source:
    """Where a body comes from: what aiohttp had of it already, and then the socket `fd`."""

    def __init__(self, fd: int, begun: bytes) -> None:
        self.fd, self._begun = fd, memoryview(begun)

    def fill(self, room: memoryview) -> tuple[int, Drawn | None]:
        """Receive into `room` what comes, for a few milliseconds; how much, and why that was not more if it is over."""
        filled, until = 0, 0.0
        while filled < len(room):
            try:
                length = self._receive(room[filled:])
            except BlockingIOError:
                now = time.monotonic()
                until = until or now + _LONGEST
                if now >= until:
                    return filled, None
                if not _comes(self.fd):
                    return filled, Drawn(dry=True)
                continue
            except OSError:  # the connection's
                return filled, Drawn(gone=True)
            if not length:
                return filled, Drawn(gone=True)
            filled += length
        return filled, None

    def _receive(self, room: memoryview) -> int:
        if not self._begun:
            return os.readv(self.fd, (room,))
        piece, self._begun = self._begun[: len(room)], self._begun[len(room) :]
        room[: len(piece)] = piece
        return len(piece)


class Tap:
    """What is still to come of one body, on the socket of its connection."""

    def __init__(self, connection: Connection, length: int, executor: Executor) -> None:
        """`length` is that of the whole body; threads are taken from `executor`."""
        self._connection, self._length, self._executor = connection, length, executor
        self._ready = asyncio.Event()
        self._job: Future[Drawn] | None = None
        self._source = Source(-1, b"")
        self.left = length

    def open(self, begun: bytes) -> None:
        """Take over what comes, of a body whose first bytes aiohttp has: all that it had of it is `begun`, which is
        written before. Raises `OSError`; the connection is as it was then.
        """
        self._source = Source(self._connection.take_over(), begun)

    def close(self) -> None:
        """Let go of an open one."""
        if self._job is not None and not self._job.cancel():
            wait((self._job,))  # of a request that was cancelled: a stretch at most
        asyncio.get_running_loop().remove_reader(self._source.fd)
        os.close(self._source.fd)
        self._connection.give_back()

    async def draw(self, writer: BlobWriter) -> Drawn:
        """Have a thread write what is there, a `STRETCH` at most. Raises `WriteFailed`."""
        before, most = writer.offset, min(self.left, STRETCH)
        self._job = self._executor.submit(_draw, self._source, most, writer)
        try:
            return await asyncio.wrap_future(self._job)
        finally:
            self.left -= writer.offset - before

    async def more(self) -> None:
        """Wait until something comes, or `wake`."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._source.fd, self._ready.set)
        try:
            await self._ready.wait()
        finally:
            loop.remove_reader(self._source.fd)
            self._ready.clear()

    def wake(self) -> None:
        """Let `more` return."""
        self._ready.set()


@contextmanager
def left_in_socket(request: web.Request) -> Iterator[None]:
    """A large body stays in its socket until it is known how it is taken (`Connection.let_go`), at the latest for as
    long as the context lasts: what aiohttp received of it by then would have to be copied twice more.
    """
    connection = connection_of(request) if (request.content_length or 0) >= LEAST else None
    if connection is None or not connection.plain:
        yield
        return
    connection.hold()
    try:
        yield
    finally:
        connection.let_go()


def tap_of(request: web.Request, accepted: Accepted, executor: Executor) -> Tap | None:
    """The tap for a body that was accepted; None where it does as well without, or cannot be: aiohttp receives it."""
    length, connection = accepted.request.content_length, connection_of(request)
    if connection is None:
        return None
    coded = "Transfer-Encoding" in request.headers or "Content-Encoding" in request.headers
    bounded = accepted.max_bytes is not None and length is not None and accepted.max_bytes < length
    possible = connection.plain and not coded and not bounded
    if not possible or length is None or length - request.content.total_bytes < LEAST:
        connection.let_go()
        return None
    return Tap(connection, length, executor)


def _draw(source: Source, most: int, writer: BlobWriter) -> Drawn:
    """Write what comes, `most` bytes of it. For a thread. Raises `WriteFailed`."""
    start, taken, over, rooms = writer.offset, 0, None, _memory()
    try:
        try:
            while taken < most and over is None:
                at = (start + taken) % PAGE  # as in the file, so that the disk may read whole pages from here
                piece = rooms[0][at : min(_PIECE, at + most - taken)]
                length, over = source.fill(piece)
                writer.begin(piece[:length])
                rooms.reverse()
                taken += length
                if length < len(piece):
                    break  # the line is slower than this thread, which may be of more use to others
        finally:
            writer.settle()  # the memory is the next one's
    except OSError as error:
        raise WriteFailed from error
    return over or Drawn()


def _comes(fd: int) -> bool:
    """Whether something is there, or comes within `_PATIENCE`."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(_PATIENCE))


def _memory() -> list[memoryview]:
    """This thread's own: two pieces, one to receive into while the other one is written."""
    if not hasattr(_OWN, "rooms"):
        _OWN.rooms = [paged(_PIECE), paged(_PIECE)]
    rooms: list[memoryview] = _OWN.rooms
    return rooms

"""A stretch of a file as the body of a request, moved by the kernel from the file to the socket where it can do that.

Nothing is copied through this process then, which is more than half of what sending costs. It takes a system with
sendfile (Linux, macOS) and a connection that carries the bytes as they stand in the file: with TLS they are read and
written.

The file is read on an executor, for a disk must not hold up the event loop; the socket does not block, and is waited
for by the loop. A descriptor of our own stands for the socket, so that the thread never writes to another connection
that has got the number of one which was closed meanwhile.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor, Future
from typing import Final

from aiohttp import payload
from aiohttp.abc import AbstractStreamWriter
from msgspec import Struct

from mailboat.protocol.limits import UPLOAD_READ

_UNABLE: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSOCK})
"""What a system says that cannot do it with this file, or with this socket."""


class Stretch(Struct, frozen=True):
    """`length` bytes of the open file `fd` from `offset` on. `taken` is told of bytes that went to the connection.

    `copied` gives the same bytes for a connection that has to see them; it tells `taken` by itself. Read on `executor`.
    `failed` is told what was wrong with the file, if that ended the request.
    """

    fd: int
    offset: int
    length: int
    executor: Executor
    taken: Callable[[int], None]
    failed: Callable[[OSError | EOFError], None]
    copied: AsyncGenerator[bytes | memoryview, None]


class StretchPayload(payload.Payload):
    """What aiohttp sends of a `Stretch`; `alive` is called each time that bytes were taken.

    The write raises `OSError` (the file's or the connection's), and `EOFError` when the file is shorter.
    """

    _autoclose = True

    def __init__(self, stretch: Stretch, alive: Callable[[], None]) -> None:
        super().__init__(stretch)
        self._stretch, self._alive = stretch, alive
        self._size = stretch.length

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """It is not text. Raises `TypeError`."""
        raise TypeError(f"a stretch of a file has no text ({encoding}, {errors})")

    async def write(self, writer: AbstractStreamWriter) -> None:
        """See `aiohttp.payload.Payload`."""
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: AbstractStreamWriter, _content_length: int | None) -> None:
        """See `aiohttp.payload.Payload`; the request has the stretch's length for its Content-Length."""
        writer.send_headers()
        try:
            moved = await self._moved(writer.transport)
        except (OSError, EOFError) as error:
            if isinstance(error, EOFError) or error.errno == errno.EIO:  # all else is the connection's
                self._stretch.failed(error)
            raise
        if not moved:
            async for piece in self._stretch.copied:
                await writer.write(piece)
                self._alive()

    async def _moved(self, transport: asyncio.WriteTransport | None) -> bool:
        """Have the kernel move the bytes; False, with none moved, where it cannot."""
        socket = None if transport is None or sys.platform == "win32" else transport.get_extra_info("socket")
        if transport is None or socket is None or transport.is_closing() or transport.get_extra_info("sslcontext"):
            return False
        if transport.get_write_buffer_size():
            return False  # the head is still on its way, and must go first
        stretch, at = self._stretch, self._stretch.offset
        end, own, moving = at + stretch.length, os.dup(socket.fileno()), None
        try:
            while at < end:
                limit = min(end, at + UPLOAD_READ)
                moving = stretch.executor.submit(_move, own, stretch.fd, at, limit)
                before, at = at, await asyncio.wrap_future(moving)
                stretch.taken(at - before)
                self._alive()
                if transport.is_closing():
                    raise ConnectionResetError(errno.ECONNRESET, "the connection was closed")
                if at < limit:
                    await _writable(own)
        except OSError as error:
            if at > stretch.offset or error.errno not in _UNABLE:
                raise
            return False
        finally:
            _close_after(moving, own)
        return True


def _move(socket: int, file: int, at: int, end: int) -> int:
    """Move bytes until the socket takes no more, or all are moved; returns how far it came."""
    while at < end:
        try:
            moved = os.sendfile(socket, file, at, end - at)
        except BlockingIOError:
            break
        if not moved:
            raise EOFError(f"it has {end - at} bytes less than it had")
        at += moved
    return at


async def _writable(socket: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(socket, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(socket)


def _close_after(moving: Future[int] | None, socket: int) -> None:
    """Close the descriptor when no thread uses it any more: we may have been cancelled."""
    if moving is None:
        os.close(socket)
    else:
        moving.add_done_callback(lambda _: os.close(socket))

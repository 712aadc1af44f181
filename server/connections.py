"""Connections as this server takes them: aiohttp's own, with an eye on the last bytes that came.

That eye is for trailers (RFC 9112, 7.1.2): fields after a chunked body, which aiohttp reads and does not hand out. When
a body has ended, what came last on its connection is the end of its message, so they are read from there.

They need care for another reason. aiohttp's parser (3.14, the compiled one) hands the last field of a trailer to the
*next* request on the same connection, as if it had come with its head: a way to put fields into requests of others,
where a proxy shares connections between them. So a connection that brought a chunked body is not used again.

Nor is one on which a body was taken past aiohttp (`taps`): its parser still waits for that body.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from typing import Final, cast

from aiohttp import web

MAX_TRAILERS: Final = 4096
"""Bytes kept of what came last: a checksum takes a hundred."""

_LAST_CHUNK: Final = re.compile(rb"0+[ \t]*(?:;.*)?")
_END: Final = b"\r\n\r\n"


class Connection(asyncio.Protocol):
    """Stands between the transport and aiohttp's protocol, and hands everything on."""

    __slots__ = ("_held", "_inner", "_last", "_transport", "taken")

    def __init__(self, inner: asyncio.Protocol) -> None:
        self._inner = inner
        self._last = b""
        self._transport: asyncio.Transport | None = None
        self._held = False
        self.taken = False

    @property
    def plain(self) -> bool:
        """Whether its bytes are those of a socket, as they stand, and a thread can take them from there."""
        transport = self._transport
        return (
            sys.platform != "win32"
            and transport is not None
            and transport.get_extra_info("socket") is not None
            and transport.get_extra_info("sslcontext") is None
        )

    def hold(self) -> None:
        """Leave what still comes in the socket until `let_go`, or until somebody takes over."""
        if self._transport is not None and self._transport.is_reading():  # else it was aiohttp that had enough
            self._transport.pause_reading()
            self._held = True

    def let_go(self) -> None:
        """Hand on again what comes, if it was held."""
        if self._held and self._transport is not None:
            self._transport.resume_reading()
        self._held = False

    def take_over(self) -> int:
        """A descriptor of the socket, to be closed by the caller: aiohttp is told of nothing that still comes."""
        if self._transport is None:
            raise ConnectionResetError("the connection is lost")
        fd = os.dup(self._transport.get_extra_info("socket").fileno())
        self.taken, self._held = True, False
        self._transport.pause_reading()
        return fd

    def give_back(self) -> None:
        """Notice again when the connection ends; what still comes is dropped."""
        if self._transport is not None:
            self._transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self.taken:
            return
        last = data if len(data) >= MAX_TRAILERS else self._last + data
        self._last = last[-MAX_TRAILERS:]
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """See `asyncio.Protocol`."""
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._transport = None
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._inner.resume_writing()

    @property
    def trailers(self) -> dict[str, str] | None:
        """The trailers of the chunked body that has just ended, by names in lower case; None when they cannot be told:
        more bytes have come since, or they are too long.
        """
        return trailers_at_end_of(self._last)


def trailers_at_end_of(message: bytes) -> dict[str, str] | None:
    """The trailers of a chunked message of which these are the last bytes; None when it does not end so."""
    if not message.endswith(_END):
        return None
    fields: dict[str, str] = {}
    for line in reversed(message[: -len(_END)].split(b"\r\n")):
        if _LAST_CHUNK.fullmatch(line):
            return fields
        name, colon, value = line.partition(b":")
        if not colon:
            return None
        fields.setdefault(name.decode("latin-1").lower(), value.decode("latin-1").strip(" \t"))
    return None


async def listen(runner: web.AppRunner, host: str, port: int) -> asyncio.Server:
    """Take connections for `runner`, which is set up. Raises `OSError` when the address cannot be used."""
    handlers = runner.server
    if handlers is None:
        raise RuntimeError("the runner is not set up")
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: Connection(handlers()), host, port)


def trailers(request: web.Request) -> dict[str, str]:
    """The trailers that came after the body of `request`, which has been read to its end, by names in lower case."""
    connection = connection_of(request)
    return {} if connection is None else connection.trailers or {}


def connection_of(request: web.BaseRequest) -> Connection | None:
    """The connection that `request` came on; None when it is lost, or of another kind (in tests of single handlers)."""
    transport = request.transport
    connection = None if transport is None else transport.get_protocol()
    return connection if isinstance(connection, Connection) else None


async def no_reuse(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Close a connection that brought a chunked body, or whose bytes aiohttp was not told: see above."""
    connection = connection_of(request)
    if "Transfer-Encoding" in request.headers or (connection is not None and connection.taken):
        response.force_close()
        response.headers["Connection"] = "close"  # aiohttp has decided about this field by now

"""Answers that are too large to be held: sent piece by piece, not for ever, and to a HEAD without their body."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web

from mailboat.protocol.limits import KIB
from mailboat.server.context import COUNTERS

SLOWEST: Final = 256 * KIB
"""Bytes a second at which the whole must be taken: what is sent holds a file, and others who wait for theirs."""

GRACE: Final = 60.0
"""Seconds beyond that."""


async def send(
    request: web.Request, response: web.StreamResponse, size: int, pieces: AsyncIterator[bytes]
) -> web.StreamResponse:
    """Send `response` with `pieces` of `size` bytes in all as its body; whoever takes them too slowly is cut off.

    A HEAD gets none of them: they would be taken for the next answer on the connection, and are bytes of strangers.
    """
    response.content_length = size
    await response.prepare(request)
    if request.method != "HEAD":
        try:
            async with asyncio.timeout(GRACE + size / SLOWEST):
                async for piece in pieces:
                    await response.write(piece)
        except (ConnectionError, TimeoutError):
            request.app[COUNTERS]["answers_cut"] += 1
            if request.transport is not None:
                request.transport.abort()
            return response
    await response.write_eof()
    return response

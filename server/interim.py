"""Interim answers (104, RUFH 5): what is told to a sender while its body still comes. Off unless configured.

Where an upload is costs nothing to tell. How much of a body is durable does: an offset is a promise, whatever answer it
stands in, so the blob is synced and the catalog told first, as at the body's end. That is why it is told seldom.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import HttpVersion11, web

from mailboat.protocol.uploads.messages import HttpAnswer
from mailboat.server.context import CONFIG, COUNTERS

EVERY: Final = 1.0
"""Seconds between two accounts of a body's progress: each costs a flush and a commit."""


def may_be_told(request: web.Request) -> bool:
    """Whether interim answers are given at all, and in this version of HTTP (RFC 9110, 15.2: not before 1.1)."""
    return request.app[CONFIG].interim_answers and request.version >= HttpVersion11


async def tell(request: web.Request, interim: HttpAnswer) -> None:
    """Send `interim` ahead of the final answer, of which nothing may have been sent; `OSError` when nobody is there."""
    lines = [f"HTTP/1.1 {interim.status} Upload Resumption Supported"]
    lines += [f"{name}: {value}" for name, value in interim.headers.items()]
    await request.writer.write("\r\n".join([*lines, "", ""]).encode("ascii"))
    request.writer.output_size = 0  # of the final answer nothing is written yet, as aiohttp has it after a 100
    request.app[COUNTERS]["interim_answers"] += 1


@asynccontextmanager
async def once_in_a_while(account: Callable[[], Awaitable[bool]]) -> AsyncIterator[None]:
    """For as long as the context lasts, and it gives True: call `account` `EVERY` so often, and not at once. Outside of
    the context no call is under way.
    """
    over = asyncio.Event()

    async def go_on() -> None:
        while not await _set_within(over, EVERY) and await account():
            pass

    going = asyncio.create_task(go_on())
    try:
        yield
    finally:
        over.set()
        await going


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False

"""What a server does again and again for as long as it runs, whatever becomes of one time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web

from mailboat.protocol.errors import MailboatError
from mailboat.server.context import COUNTERS


async def every(
    app: web.Application,
    seconds: float,
    work: Callable[[web.Application], Awaitable[object]],
    *,
    failures: str,
    log: logging.Logger,
) -> AsyncIterator[None]:
    """A cleanup context: do `work` at once, and again when so many `seconds` are over, until the application ends.

    A failure is counted under `failures` and told in `log`; what is not the machine's, with its traceback.
    """
    task = asyncio.create_task(_for_ever(app, seconds, work, failures, log), name=f"mailboat {failures}")
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _for_ever(
    app: web.Application,
    seconds: float,
    work: Callable[[web.Application], Awaitable[object]],
    failures: str,
    log: logging.Logger,
) -> None:
    while True:
        try:
            await work(app)
        except Exception as error:
            app[COUNTERS][failures] += 1
            unexpected = None if isinstance(error, MailboatError | OSError) else error
            log.warning("%s, and will be tried again: %s", failures, error, exc_info=unexpected)
        await asyncio.sleep(seconds)

"""Who waits for more of a running session is woken when bytes have become durable; of whose they are, they look."""

from __future__ import annotations

import asyncio
from typing import Final

MAX_WAITING: Final = 200
"""Requests that wait at a time; what is asked beyond is answered at once."""

PAUSE: Final = 0.25
"""Seconds between two looks of one who waits: a busy server has news a thousand times a second."""


class News:
    """One for a server; for its event loop alone."""

    def __init__(self) -> None:
        """There are none yet."""
        self._next = asyncio.Event()
        self._waiting = 0

    def tell(self) -> None:
        """There are some: wake all who wait."""
        self._next.set()
        self._next = asyncio.Event()

    @property
    def next(self) -> asyncio.Event:
        """What is set by the next news; to be taken before one looks, so that none is missed."""
        return self._next

    async def wait(self, event: asyncio.Event, seconds: float) -> bool:
        """Wait for `event`, one of `next`; False when it did not come in time, or too many wait already."""
        if self._waiting >= MAX_WAITING or seconds <= 0:
            return False
        self._waiting += 1
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
                await asyncio.sleep(PAUSE)
        except TimeoutError:
            return event.is_set()
        finally:
            self._waiting -= 1
        return True

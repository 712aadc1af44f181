"""What one key, and one product, may have under way at the same time; beyond it requests are sent away for a while."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from aiohttp import web

from mailboat.protocol.errors import Code
from mailboat.server.context import CATALOG, CONFIG, ProblemError
from mailboat.server.policy import DAY, month_of

_SOON: Final = {"Retry-After": "10"}
"""A transfer takes seconds."""
_LATER: Final = {"Retry-After": "600"}
"""An unfinished upload goes when it is completed, cancelled, or expires."""
_HOURLY: Final = {"Retry-After": "3600"}
"""The next day may be far, and somebody may have set another bound by then."""


class Transfers:
    """The bodies of uploads that are coming in, by key."""

    def __init__(self) -> None:
        self._under_way: Counter[str] = Counter()

    def of(self, key_id: str) -> int:
        """How many one key sends now."""
        return self._under_way[key_id]

    @contextmanager
    def one_more(self, key_id: str, most: int) -> Iterator[None]:
        """For as long as one body of this key comes; `ProblemError` 429 when `most` come already."""
        if self._under_way[key_id] >= most:
            detail = f"this key sends {most} uploads at the moment, as many as may be: go on when one has ended"
            raise ProblemError(Code.TOO_MANY_REQUESTS, detail, _SOON)
        self._under_way[key_id] += 1
        try:
            yield
        finally:
            self._under_way[key_id] -= 1
            if not self._under_way[key_id]:
                del self._under_way[key_id]


class Rates:
    """How often each key has asked lately: a bucket for each, filled at `rate` requests a second; it holds `burst`."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left: dict[str, tuple[float, float]] = {}

    def wait(self, key_id: str, now: float) -> float:
        """Seconds that this key has to wait before it may ask; zero, and the request is counted, where it may.

        `now` is monotonic seconds.
        """
        left, then = self._left.get(key_id, (self._burst, now))
        left = min(self._burst, left + (now - then) * self._rate)
        if left < 1:
            self._left[key_id] = (left, now)
            return (1 - left) / self._rate
        self._left[key_id] = (left - 1, now)
        return 0.0


class Arrivals:
    """How many new sessions the products have had today, at the most: the catalog is asked where that might be too
    many, for what is offered is mostly known by then, or is offered again.
    """

    def __init__(self) -> None:
        self._most: dict[str, tuple[float, int]] = {}

    def reserve(self, product: str, number: int, most: int, now: float) -> bool:
        """Count so many, as long as it is not known how many they are; False, and nothing is counted, where that might
        be too many.
        """
        known_of, so_far = self._most.get(product, (-1.0, 0))
        if known_of != now // DAY or so_far + number > most:
            return False
        self._most[product] = (known_of, so_far + number)
        return True

    def give_back(self, product: str, number: int) -> None:
        """So many of those that were reserved did not come."""
        day, so_far = self._most[product]
        self._most[product] = (day, max(0, so_far - number))

    async def require_room(self, app: web.Application, product: str, offered: Sequence[str], now: float) -> None:
        """`ProblemError` 429 when the product has had as many today as may be, and one of these sessions is new."""
        most, day = app[CONFIG].max_sessions, now // DAY
        known_of, so_far = self._most.get(product, (-1.0, 0))
        if known_of != day or so_far + len(offered) > most:
            so_far = await app[CATALOG].arrivals(product, now)
            if so_far + len(offered) > most:
                known = (await app[CATALOG].usage(product, month_of(now), offered)).taken
                if so_far + len(set(offered) - known) > most:
                    detail = f"the product has {so_far} new sessions of today, {most} may be: offer more tomorrow"
                    raise ProblemError(Code.TOO_MANY_REQUESTS, detail, _HOURLY)
        self._most[product] = (day, so_far + len(offered))


def require_patience(rates: Rates, key_id: str, now: float) -> None:
    """`ProblemError` 429 when a key asks too often."""
    wait = rates.wait(key_id, now)
    if wait > 0:
        detail = "this key asks too often: wait as long as Retry-After says"
        raise ProblemError(Code.TOO_MANY_REQUESTS, detail, {"Retry-After": str(math.ceil(wait))})


ARRIVALS: Final = web.AppKey("arrivals", Arrivals)
RATES: Final = web.AppKey("rates", Rates)
TRANSFERS: Final = web.AppKey("transfers", Transfers)


async def require_room_for_another(app: web.Application, product: str) -> None:
    """`ProblemError` 429 when the product has as many unfinished uploads, that no negotiation asked for, as may be, or
    keeps as much that is of no session.
    """
    most = app[CONFIG].max_unfinished
    unfinished, size = await app[CATALOG].strangers(product)
    if size >= app[CONFIG].max_stray_bytes:
        detail = f"the product has {size} bytes of uploads that are of no session: some must go before another is begun"
        raise ProblemError(Code.TOO_MANY_REQUESTS, detail, _LATER)
    if unfinished >= most:
        detail = f"the product has {most} unfinished uploads: complete or cancel some before another is begun"
        raise ProblemError(Code.TOO_MANY_REQUESTS, detail, _LATER)

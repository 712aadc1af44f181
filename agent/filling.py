"""How fast records fill the active half of the journal, and when to turn to another one before it is full.

A recording call that finds the half full turns to another one and wakes the writer. Where that happens some times a
second, nothing of its code is in a cache, and a host's event loop stands still for a tenth of a millisecond. So the
writer foresees when a half will be full and turns a little before, on its own thread. Records that come faster than
foreseen find a full half, as ever.
"""

from __future__ import annotations

import math
from typing import Final

LEAD: Final = 0.02
"""Seconds before a half is full: enough for a thread to be given the processor on a machine with something to do."""

_SHARE: Final = 4
"""At most one in so many parts of a half is left unused for that."""

SOONEST: Final = 0.01
"""Seconds in which a half is filled, at least, for anything to be foreseen: a tight loop fills it sooner, and a second
thread that asks for the interpreter would only be in its way.
"""

NEAR: Final = 0.002
"""Seconds before its time that it is time: a thread does not wake to the millisecond."""

_PATIENCE: Final = 1.0
"""Seconds until it is tried again to turn where that could not be."""


class Filling:
    """What the writer has seen of it. `now` is monotonic seconds, `filled` and `size` are bytes of the active half."""

    def __init__(self, now: float) -> None:
        """The first half is active since just now."""
        self._since = self._not_before = now
        self._rate = 0.0

    def turned(self, now: float, filled: int) -> None:
        """The next half is active since just now; `filled` bytes went into the one before."""
        taken, self._since = now - self._since, now
        self._rate = filled / taken if taken > 0 else 0.0

    def put_off(self, now: float) -> None:
        """There was nothing to turn to, or nothing to turn."""
        self._not_before = now + _PATIENCE

    def wait(self, now: float, filled: int, size: int) -> float:
        """Seconds until it is time to turn; infinity where nothing is foreseen."""
        active, rate = now - self._since, self._rate
        if active <= 0 or now < self._not_before:
            return math.inf
        if not rate or active * rate > size / 2:  # this half has shown by itself how fast it is filled
            rate = filled / active
        if not rate or size / rate < SOONEST:
            return math.inf
        return max(0.0, (size - filled) / rate - min(LEAD, size / rate / _SHARE))

    def due(self, now: float, filled: int, size: int) -> bool:
        """Whether it is time to turn."""
        return self.wait(now, filled, size) <= NEAR

"""The clocks, the timers and the entropy that the agent runs on, passed in so that a test can hold them."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from mailboat.protocol.ids import ENTROPY_BYTES, new_id


def _east(wall: float) -> float:
    try:
        return float(time.localtime(wall).tm_gmtoff)
    except (OverflowError, ValueError, OSError):  # a clock beyond the years that the system can name
        return 0.0


class Clocks(Struct, frozen=True):
    """`monotonic` and `wall` give nanoseconds, `entropy` so many random bytes, `chance` a number in [0, 1)."""

    monotonic: Callable[[], int] = time.monotonic_ns
    wall: Callable[[], int] = time.time_ns
    entropy: Callable[[int], bytes] = os.urandom
    chance: Callable[[], float] = random.random
    east: Callable[[float], float] = _east

    @property
    def offset(self) -> int:
        """What to add to the monotonic clock to have the wall clock, now, in nanoseconds."""
        return self.wall() - self.monotonic()

    def now(self) -> float:
        """Monotonic seconds."""
        return self.monotonic() / 1e9

    def local(self) -> float:
        """Seconds since the epoch by the clock on the wall of this place: whole days of it begin at local midnight."""
        wall = self.wall() / 1e9
        return wall + self.east(wall)

    def new_id(self) -> str:
        """A new id for a session."""
        return new_id(self.wall() // 1_000_000, self.entropy(ENTROPY_BYTES))


class Timer(Protocol):
    """Something that will be called, unless it is cancelled before."""

    def cancel(self) -> None:
        """Do not call it."""


class Timers(Protocol):
    """What is used of an event loop to have something called there later."""

    def call_later(self, delay: float, callback: Callable[[], None], /) -> Timer:
        """Call after `delay` seconds."""

    def call_soon_threadsafe(self, callback: Callable[[], None], /) -> object:
        """Call soon; may be asked on any thread. Raises `RuntimeError` when the loop is closed."""

"""The clocks and the entropy that the agent runs on, passed in so that a test can hold them."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from mailboat.protocol.ids import ENTROPY_BYTES, new_id


@dataclass(frozen=True, slots=True)
class Clocks:
    """`monotonic` and `wall` give nanoseconds, `entropy` so many random bytes, `chance` a number in [0, 1)."""

    monotonic: Callable[[], int] = time.monotonic_ns
    wall: Callable[[], int] = time.time_ns
    entropy: Callable[[int], bytes] = os.urandom
    chance: Callable[[], float] = random.random

    @property
    def offset(self) -> int:
        """What to add to the monotonic clock to have the wall clock, now, in nanoseconds."""
        return self.wall() - self.monotonic()

    def now(self) -> float:
        """Monotonic seconds."""
        return self.monotonic() / 1e9

    def new_id(self) -> str:
        """A new id for a session."""
        return new_id(self.wall() // 1_000_000, self.entropy(ENTROPY_BYTES))

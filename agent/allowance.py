"""How much may be sent: bytes a day, and bytes a second. Immutable values; each event gives the next one."""

from __future__ import annotations

from typing import Final

from msgspec import Struct
from msgspec.structs import replace

DAY: Final = 24 * 3600.0

BURST: Final = 0.25
"""Seconds of the rate that may go at once: so short that nobody on the same line notices, so long that pieces are worth
a system call."""


def day_of(local: float) -> int:
    """The day of local wall-clock seconds, as a number."""
    return int(local // DAY)


class Budget(Struct, frozen=True):
    """`limit` bytes a day, of which `spent` are spent on `day`."""

    limit: int
    day: int = 0
    spent: int = 0

    def on(self, day: int) -> Budget:
        """As it stands on `day`. A new day begins anew; a clock that was set back gives nothing back, and one that
        wavers about midnight does not begin the same day twice.
        """
        if self.day - 1 <= day <= self.day:
            return self
        return replace(self, day=day, spent=0 if day > self.day else self.spent)

    @property
    def left(self) -> int:
        """Bytes that may still be spent today."""
        return max(0, self.limit - self.spent)

    def spend(self, count: int) -> Budget:
        """So many bytes were, or will be, spent; negative: were not after all."""
        return replace(self, spent=max(0, self.spent + count))


class Rate(Struct, frozen=True):
    """A bucket that fills with `per_second` bytes a second up to `BURST` seconds' worth, `level` of them there at
    `since` (monotonic seconds). The level may be below zero: then what was sent is still being paid for.
    """

    per_second: float
    level: float = 0.0
    since: float = 0.0

    @property
    def piece(self) -> int:
        """The most bytes that may go at once."""
        return max(1, int(self.per_second * BURST))

    def at(self, now: float) -> Rate:
        """As it stands at `now`."""
        elapsed = max(0.0, now - self.since)
        return replace(self, level=min(float(self.piece), self.level + elapsed * self.per_second), since=now)

    def take(self, count: int, now: float) -> tuple[Rate, float]:
        """Take `count` bytes out: what is left, and the seconds to wait before they may go."""
        then = self.at(now)
        level = then.level - count
        return replace(then, level=level), max(0.0, -level / self.per_second)

"""How long to wait before trying again: an immutable value, each failure gives the next one.

Exponential backoff with full jitter (the whole pause is random, not only its edge: many agents cut off at the same
moment come back spread over the whole window). The random number is passed in, so a test decides it.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from mailboat.protocol.limits import BACKOFF_FIRST, BACKOFF_LONGEST, MAX_RETRY_AFTER

# 2.0 ** 60 seconds are beyond any `longest`; without a bound the power itself would overflow after a thousand failures.
_MAX_DOUBLINGS = 60


class Backoff(Struct, frozen=True):
    """The pauses between attempts.

    `first` and `longest`: seconds of the first and of the largest window. `limit`: failures in a row after which it is
    `exhausted`, None for never. `failures`: failures in a row so far.
    """

    first: float = BACKOFF_FIRST
    longest: float = BACKOFF_LONGEST
    limit: int | None = None
    failures: int = 0

    def failed(self) -> Backoff:
        """The value after one more failure."""
        return replace(self, failures=self.failures + 1)

    def succeeded(self) -> Backoff:
        """The value after a success: as new."""
        return replace(self, failures=0)

    @property
    def exhausted(self) -> bool:
        """Whether the caller's bound of failures in a row is reached."""
        return self.limit is not None and self.failures >= self.limit

    @property
    def window(self) -> float:
        """Seconds within which the next attempt falls; 0 while nothing has failed."""
        if self.failures == 0:
            return 0.0
        return min(self.longest, self.first * 2.0 ** min(self.failures - 1, _MAX_DOUBLINGS))

    def pause(self, entropy: float, floor: float = 0.0) -> float:
        """Seconds to wait: `floor`, and of the window the share `entropy` (0 to 1).

        `floor` is a server's Retry-After, of which at most a day is obeyed. The window is added to it, not hidden by
        it: agents sent away together must not come back together.
        """
        return min(max(0.0, floor), MAX_RETRY_AFTER) + entropy * self.window

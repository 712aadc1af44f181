"""When the running session is worth sending, though it has not ended: it has grown, it has aged, or an error was
recorded in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from mailboat.agent.clocks import Clocks, Timer, Timers

RECORDS_TRIGGER: Final = 20_000
"""So many records since the running session was last offered make it eligible."""

AGE_TRIGGER: Final = 24 * 3600.0
"""So many seconds since it was last offered do, too."""

LOOK_INTERVAL: Final = 1.0
"""Seconds between looks at what it has grown to."""


class ErrorSends(Struct, frozen=True):
    """When the running session is sent for the sake of errors: an immutable value, each event gives the next one.

    Times are monotonic seconds. Between two sends there are at least `interval` seconds; errors that come meanwhile
    are held together until then.
    """

    interval: float
    sent_at: float | None = None
    due: float | None = None
    """When to send next, if anything is to be sent."""

    def wanted(self, now: float, delay: float = 0.0) -> ErrorSends:
        """There were errors, which are to be sent after `delay` seconds at the earliest.

        What was wanted before, sooner, is not put off.
        """
        free = now if self.sent_at is None else self.sent_at + self.interval
        due = max(now + delay, free)
        return replace(self, due=due if self.due is None else min(due, self.due))

    def sent(self, now: float) -> ErrorSends:
        """They are being sent."""
        return replace(self, sent_at=now, due=None)


class Eligibility:
    """Used within the loop that sends; `wake` is called there, whenever the running session is to be offered."""

    def __init__(
        self,
        clocks: Clocks,
        recorded: Callable[[], int],
        wake: Callable[[], None],
        alert_interval: float,
        timers: Timers | None = None,
    ) -> None:
        """`recorded` tells how many records the session has; `timers` are the running loop's if not given."""
        self._clocks, self._recorded, self._wake = clocks, recorded, wake
        self._timers = timers if timers is not None else asyncio.get_running_loop()
        self._offered_records, self._offered_at = 0, clocks.now()
        self._errors = ErrorSends(alert_interval)
        self._timer: Timer | None = None
        self._closed = False

    def offered(self) -> None:
        """All that was recorded so far has been offered."""
        self._offered_at, self._offered_records = self._clocks.now(), self._recorded()

    async def watch(self) -> None:
        """Look whether it has grown or aged enough, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL)
            grown = self._recorded() - self._offered_records >= RECORDS_TRIGGER
            if grown or self._clocks.now() - self._offered_at >= AGE_TRIGGER:
                self.offered()
                self._wake()

    def errors(self, delay: float) -> None:
        """There were errors, to be sent after `delay` seconds at the earliest."""
        self._errors = self._errors.wanted(self._clocks.now(), delay)
        self._look()

    def _look(self) -> None:
        """Send if that is due, else when it will be."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due, now = self._errors.due, self._clocks.now()
        if due is None or self._closed:
            return
        if due > now:
            self._timer = self._timers.call_later(due - now, self._look)
            return
        self._errors = self._errors.sent(now)
        self.offered()
        self._wake()

    def close(self) -> None:
        """No error matters any more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

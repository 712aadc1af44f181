"""When the running session is worth sending, though it has not ended: it has grown, it has aged, or an error was
recorded in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from mailboat.agent.clocks import Clocks

RECORDS_TRIGGER: Final = 20_000
"""So many records since the running session was last offered make it eligible."""

AGE_TRIGGER: Final = 24 * 3600.0
"""So many seconds since it was last offered do, too."""

LOOK_INTERVAL: Final = 1.0
"""Seconds between looks at what it has grown to."""


class Eligibility:
    """Made within the loop that sends; `wake` is called there, whenever the running session is to be offered."""

    def __init__(
        self, clocks: Clocks, recorded: Callable[[], int], wake: Callable[[], None], alert_interval: float
    ) -> None:
        """`recorded` tells how many records the session has; errors within `alert_interval` seconds count as one."""
        self._clocks, self._recorded, self._wake, self._alert_interval = clocks, recorded, wake, alert_interval
        self._loop = asyncio.get_running_loop()
        self._offered_records, self._offered_at = 0, clocks.now()
        self._alerted_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._told = False

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

    def urgent(self) -> None:
        """An error was recorded, on whatever thread. A flood of them reaches the loop as one."""
        if self._told:
            return
        self._told = True
        try:
            self._loop.call_soon_threadsafe(self._alert)
        except RuntimeError:
            return  # the loop is closed: nothing will be sent by this process anyway

    def _alert(self) -> None:
        now = self._clocks.now()
        due = 0.0 if self._alerted_at is None else self._alerted_at + self._alert_interval - now
        if due > 0:
            self._timer = self._loop.call_later(due, self._alert)
            return
        self._timer, self._told, self._alerted_at = None, False, now
        self._wake()

    def close(self) -> None:
        """No error matters any more."""
        self._told = True
        if self._timer is not None:
            self._timer.cancel()

"""Timers that run in the time of a test: nothing happens until it is told to go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from testkit.recording import SECOND, Time


@dataclass
class Pending:
    due: int
    callback: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class VirtualTimers:
    """What is called when, by the clocks of `time`."""

    time: Time
    pending: list[Pending] = field(default_factory=list)
    closed: bool = False

    def call_later(self, delay: float, callback: Callable[[], None], /) -> Pending:
        entry = Pending(self.time.monotonic + round(delay * SECOND), callback)
        self.pending.append(entry)
        return entry

    def call_soon_threadsafe(self, callback: Callable[[], None], /) -> Pending:
        if self.closed:
            raise RuntimeError("Event loop is closed")
        return self.call_later(0.0, callback)

    @property
    def armed(self) -> int:
        """How many calls are still to come."""
        return sum(not entry.cancelled for entry in self.pending)

    def go_on(self, seconds: float = 0.0) -> None:
        """Let so much time pass, and do what is due in it, in its order."""
        end = self.time.monotonic + round(seconds * SECOND)
        while due := [entry for entry in self.pending if not entry.cancelled and entry.due <= end]:
            entry = min(due, key=lambda each: each.due)
            self.pending.remove(entry)
            self.time.monotonic = max(self.time.monotonic, entry.due)
            entry.callback()
        self.time.monotonic = end

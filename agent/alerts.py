"""Alerts: what the application is told of its own errors, and what it may say of their sending.

Errors come in bursts: one fault shows in several places within milliseconds. So those of one short window are grouped,
and told as one `Alert`. Records come from any thread and from signal handlers; all the rest happens in the loop.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, overload

from mailboat.agent.clocks import Clocks, Timer, Timers
from mailboat.agent.log import log
from mailboat.protocol.errors import SegmentError
from mailboat.protocol.limits import ALERT_WINDOW, MAX_ALERT_RECORDS
from mailboat.protocol.records import Record, decode

UNNUMBERED: Final = -1
"""The sequence number of a record in an alert: it gets its own only when it is in a block."""


@dataclass(frozen=True, slots=True)
class Alert(Sequence[Record]):
    """Errors that came together, the first one first: the sequence of their records.

    Their `sequence` is -1, for it is not known yet. `omitted` counts those beyond `limits.MAX_ALERT_RECORDS`; they are
    recorded like all others, only not told here.
    """

    records: tuple[Record, ...]
    omitted: int = 0

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        return self.records[index]


OnAlert = Callable[[Alert], bool | float | None]
"""Says what is to become of the send: False, no send for these; a number, not before so many seconds; anything else,
send."""


class Alerts:
    """Groups the errors of one agent, asks `callbacks`, and has the session sent if they agree."""

    def __init__(self, clocks: Clocks) -> None:
        """Nothing is told before `enter`."""
        self._clocks = clocks
        self._callbacks: tuple[OnAlert, ...] = ()
        self._loop: Timers | None = None
        self._send: Callable[[float], None] | None = None
        self._noted: deque[Sequence[Any]] = deque()
        self._numbers = itertools.count()
        self._mark = next(self._numbers)
        self._told = False
        self._window: Timer | None = None
        self._asking: int | None = None
        self.failures = 0
        """How often a callback raised, or answered what is no answer."""

    def add(self, callback: OnAlert) -> None:
        """Tell `callback`, too."""
        self._callbacks = (*self._callbacks, callback)

    def enter(self, loop: Timers, send: Callable[[float], None] | None) -> None:
        """Tell of errors in this loop from now on; `send` is called there with the seconds to wait before sending."""
        self._loop, self._send, self._told, self._window = loop, send, False, None
        self._noted.clear()

    def leave(self) -> None:
        """Tell of no more errors. To be called in the loop, or in a forked child."""
        window, self._loop, self._send, self._window = self._window, None, None, None
        if window is not None:
            window.cancel()

    def noted(self, *fields: Any) -> None:  # noqa: ANN401 - a raw record of level error or up, as `protocol.records` has it
        """An error was recorded, on whatever thread. A flood of them reaches the loop as one."""
        loop = self._loop
        if loop is None or self._asking == threading.get_ident():
            return  # what a callback itself records would raise the next alert, for ever
        next(self._numbers)
        if len(self._noted) < MAX_ALERT_RECORDS:
            self._noted.append((fields[0], self._clocks.monotonic(), *fields[1:]))
        if not self._told:
            self._told = True
            try:
                loop.call_soon_threadsafe(self._open)
            except RuntimeError:
                self._loop = None  # it is closed: nobody is there to be told any more

    def _open(self) -> None:
        """Begin a window, if somebody is to be told."""
        if self._loop is None or self._window is not None:
            return
        if self._callbacks:
            self._window = self._loop.call_later(ALERT_WINDOW, self._close)
        else:
            self._close()

    def _close(self) -> None:
        """The window is over: ask, and have it sent."""
        self._window, self._told = None, False  # who comes from now on opens another one
        alert = self._grouped()
        if alert is None:
            return
        delay = self._ask(alert)
        if delay is not None and self._send is not None:
            self._send(delay)

    def _grouped(self) -> Alert | None:
        mark, self._mark = self._mark, next(self._numbers)
        raw = [self._noted.popleft() for _ in range(len(self._noted))]
        clock, records = self._clocks.offset, []
        for fields in raw if self._callbacks else ():
            try:
                records.append(decode(fields, UNNUMBERED, clock, {}))
            except SegmentError:  # of values that are no record's: it was kept converted, and is only counted here
                continue
        return Alert(tuple(records), max(0, self._mark - mark - 1 - len(records))) if raw else None

    def _ask(self, alert: Alert) -> float | None:
        """Seconds to wait before sending; None when a callback forbids it. Of several delays the longest counts."""
        delay: float | None = 0.0
        self._asking = threading.get_ident()
        try:
            for callback in self._callbacks:
                answer = self._answer(callback, alert)
                delay = None if delay is None or answer is None else max(delay, answer)
        finally:
            self._asking = None
        return delay

    def _answer(self, callback: OnAlert, alert: Alert) -> float | None:
        try:
            answer = callback(alert)
            if answer is False:
                return None
            return 0.0 if answer is None or answer is True else _seconds(answer)
        except Exception as error:  # noqa: BLE001 - the application's own callable may raise anything
            self.failures += 1
            log.warning("an on_alert callback failed, the session is sent: %r", error, exc_info=error)
            return 0.0


def _seconds(answer: object) -> float:
    if not isinstance(answer, int | float) or not 0 <= answer < float("inf"):
        raise TypeError(
            f"on_alert: {answer!r} is no answer; return False, a number of seconds to wait, or None to send"
        )
    return float(answer)

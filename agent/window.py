"""One connectivity window, or one automatic round: what it may do, what it achieved, and whom it tells."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Container
from itertools import islice
from typing import Final

from msgspec import Struct, field

from mailboat.agent.entries import Entry, Fate
from mailboat.agent.log import log
from mailboat.agent.planner import Planner, Send
from mailboat.agent.report import SessionOutcome, SessionState, SyncProgress, SyncReport, one_line

SLICE: Final = 200
"""Sessions dealt with before the event loop gets a turn: about a millisecond of work."""


_STATES: Final = {fate: SessionState(fate.value) for fate in Fate}


def outcome_of(entry: Entry, sent: int) -> SessionOutcome:
    """Where a session stands, `sent` bytes of it having been sent."""
    return SessionOutcome(
        session_id=entry.summary.session_id,
        state=_STATES[entry.fate],
        reason=one_line(entry.history.reason),
        records=entry.summary.records,
        bytes_sent=sent,
        bytes_left=entry.left,
    )


class Window(Struct):
    """`deadline` is monotonic seconds. A `patient` one tries again until then, others end with the first failure. One
    for `everything` was asked for by the application, whatever policies say.

    `ended` are the sessions that came to an end in it, `sent` the bytes sent in it by session, `failed` the uploads in
    a row that the server could not take. `error` says why it could not do all.
    """

    include_live: bool = False
    everything: bool = False
    deadline: float | None = None
    patient: bool = False
    progress: Callable[[SyncProgress], None] | None = None
    ended: dict[str, SessionOutcome] = field(default_factory=dict)
    sent: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    error: str | None = None
    _on_the_way: Counter[tuple[str, int]] = field(default_factory=Counter)

    def begin(self) -> None:
        """A round begins, within it."""
        self.error, self.failed = None, 0
        self._on_the_way.clear()

    def moved(self, task: Send, sent: int) -> None:
        """So many bytes of a segment were handed to the connection; zero: the server has told where it stands."""
        flight = (task.session_id, task.segment.index)
        if sent:
            self.sent[task.session_id] += sent
            self._on_the_way[flight] += sent
        else:
            self._on_the_way.pop(flight, None)

    def end(self, entry: Entry) -> SessionOutcome:
        """A session came to an end; which one, with the bytes sent in this window."""
        session_id = entry.summary.session_id
        outcome = self.ended[session_id] = outcome_of(entry, self.sent[session_id])
        return outcome

    def tell(self, planner: Planner) -> None:
        """Tell how far it is."""
        if self.progress is None:
            return
        left = max(0, planner.left - self._on_the_way.total())
        done = len(self.ended)
        try:
            self.progress(SyncProgress(done, done + planner.open, self.sent.total(), left))
        except Exception as error:  # noqa: BLE001 - the application's own callable; its fault must not stop the delivery
            log.warning("the progress callback failed, it is not called again: %s: %s", type(error).__name__, error)
            self.progress = None

    async def report(self, planner: Planner, duration: float, known: Container[str] = ()) -> SyncReport:
        """What it achieved, with what is still to be done; not the outcomes that are `known` of earlier windows: where
        there was no time to look, the planner has such sessions still.
        """
        outcomes = dict(self.ended)
        pending = False
        rest = iter(list(planner.entries.items()))
        while some := list(islice(rest, SLICE)):
            for session_id, entry in some:
                if session_id not in outcomes and session_id not in known:
                    outcomes[session_id] = outcome_of(entry, self.sent[session_id])
                    pending |= entry.fate is Fate.PENDING and not entry.running
            await asyncio.sleep(0)
        left = sum(outcome.bytes_left for outcome in outcomes.values())
        return SyncReport(
            tuple(outcomes.values()),
            self.sent.total(),
            left,
            duration,
            complete=not left and not pending and self.error is None,
            error=self.error,
        )

"""What the server asks of an analytics store, and the values that go in and come out.

The store holds the records of all sessions and is never the only copy of anything: it can always be made again from the
catalog and the segments. What it must be trusted with is to know exactly what it holds, since it alone says what was
loaded. `analytics` carries this out with DuckDB; another engine can take its place.

The promises:

* Each of the changing functions is one transaction, durable on return: with an exception nothing of it was changed.
* `load` adds the rows and what `progress` and `holdings` tell of them in the same transaction, so that whatever is
  killed when, every record is loaded exactly once.
* `load` and `load_failed` are refused (`StaleLoad`) where something else has been loaded of a session since `progress`
  told of it, and of two transactions at once that load, one fails: two loaders on one store double nothing, whatever a
  lease promises them.
* `generation` grows with each load; a store that was begun anew has generation zero.

All functions block. Those that change something are for one thread; `cursor` (of `SqlStore`) is for any.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mailboat.protocol.errors import StoreError
from mailboat.protocol.records import Schema
from mailboat.server.catalog import SegmentRow, SessionRow
from mailboat.server.decoder import Outcome, Range, add_range
from mailboat.server.decoding import Decoded

if TYPE_CHECKING:
    import duckdb


class AnalyticsError(StoreError):
    """The analytics store cannot be used; the message names the reason."""


class RowsRefused(AnalyticsError):
    """The engine does not take some of the rows; nothing of the batch was kept."""


class TooMuchToSum(AnalyticsError):
    """The engine's memory does not suffice to sum records up; they wait, with those that come, for another attempt."""


class OutOfMemory(AnalyticsError):
    """The engine lacked memory for it, or room for what it would keep elsewhere meanwhile; nothing was kept. It is to
    be opened anew, and may take fewer rows.
    """


class StaleLoad(AnalyticsError):
    """Something else was loaded of these sessions, or taken out, since `progress` told of them; nothing was kept."""

    def __init__(self, session_id: str) -> None:
        """`session_id` is that of one of them."""
        super().__init__(f"something else was loaded meanwhile of session {session_id}")


Key = tuple[str, str]
"""Product and session id."""

Mark = tuple[int, int, str | None]
"""What tells one state of an upload from every other one: bytes taken over, records, and why no more will be."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What was loaded of one upload; see ``loaded`` in `analytics_schema`. `failed` tells why no more will be."""

    segment: int
    consumed: int = 0
    next: int = 0
    records: int = 0
    ranges: tuple[Range, ...] = ()
    schemas: tuple[Schema, ...] = ()
    failed: str | None = None

    @property
    def mark(self) -> Mark:
        """See `Mark`."""
        return self.consumed, self.records, self.failed


@dataclass(frozen=True, slots=True)
class Step:
    """One segment of a batch: what became of its task, its progress with that, and that of all uploads of its session
    `before`, by upload id.
    """

    segment: SegmentRow
    outcome: Outcome
    progress: Progress
    before: Mapping[str, Progress]

    @property
    def unreadable(self) -> bool:
        """Whether the segment was to hold records, and not one could be read."""
        return self.outcome.claimed > 0 and not self.outcome.read and not self.progress.ranges


@dataclass(frozen=True, slots=True)
class Holding:
    """What the store holds of one session, counted: `noted` records were loaded by its own account, `rows` are there,
    with `numbers` different sequence numbers. `listed`: the session itself was copied from the catalog.
    """

    product: str
    session_id: str
    noted: int
    rows: int
    numbers: int
    listed: bool


class AnalyticsStore(Protocol):
    """What loading, retention and checking ask of a store. Every function raises `AnalyticsError`."""

    @property
    def generation(self) -> int:
        """Loads so far; zero for a store that was begun anew."""

    @property
    def revision(self) -> int:
        """The revision of the catalog's sessions that was copied last."""

    def progress(self, sessions: Iterable[Key]) -> dict[Key, dict[str, Progress]]:
        """What was loaded of the uploads of each of these sessions, by upload id."""

    def load(self, decoded: Decoded, steps: Sequence[Step]) -> None:
        """Add the rows of a batch and what is to be known of the segments that they came from.

        Raises `RowsRefused` when it is the rows' fault, `OutOfMemory` when there may be too many of them, `StaleLoad`
        where what is there of their sessions is not what the steps were made with.
        """

    def load_failed(self, segment: SegmentRow, before: Progress | None, reason: str) -> None:
        """Note that nothing more of this segment is to be loaded, of which `before` was (None: nothing). Raises
        `StaleLoad` where that is not so.
        """

    def load_sessions(self, rows: Sequence[SessionRow], revision: int) -> None:
        """Put these sessions in place of what was known of them, and note the revision."""

    def forget(self, sessions: Iterable[Key]) -> int:
        """Take everything of these sessions out: records, progress, gaps; the number of records that there were."""

    def unload(self, segments: Iterable[SegmentRow]) -> int:
        """Take out what was loaded of these segments (records, progress, gaps) and nothing else of their sessions; the
        number of records that there were. They can be loaded again.
        """

    def holdings(self) -> Iterator[Holding]:
        """Every session of which anything is here, counted; in order of product and session id."""

    def sum_up(self, *, idle: bool) -> bool:
        """Bring what is summed up to date, if it is worth it by now: more is when nothing else is to be done (`idle`).
        Whether it was. Answers are the same before and after; only how long they take is not. Raises `TooMuchToSum`.
        """

    def disagreements(self) -> Iterator[str]:
        """What is summed and is not what the records come to."""

    def reopen(self) -> None:
        """Open the store anew after a failed write; readers under way may fail."""

    def close(self) -> None:
        """Release the store."""


class SqlStore(AnalyticsStore, Protocol):
    """A store whose tables (`analytics_schema`) can be asked about in DuckDB's SQL, as the reports do."""

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection for one thread to read with, to be closed by it; it can be interrupted from any other."""

    def cursors(self, most: int) -> list[duckdb.DuckDBPyConnection]:
        """As `cursor`, so many of them, for as many threads, each in a transaction: all see the same. Only one where
        something is written in this very moment.
        """


def require_known(steps: Sequence[Step], there: Mapping[Key, Mapping[str, Mark]]) -> None:
    """Raise `StaleLoad` unless what is `there` of the sessions is what the steps were made with."""
    first = {step.segment.key: step.before for step in reversed(steps)}
    for key, before in first.items():
        if there.get(key, {}) != {upload_id: progress.mark for upload_id, progress in before.items()}:
            raise StaleLoad(key[1])


def advanced(known: Progress, outcome: Outcome) -> Progress:
    """The progress after a task's outcome."""
    ranges = list(known.ranges)
    for span in outcome.loaded:
        add_range(ranges, span)
    return Progress(
        segment=known.segment,
        consumed=outcome.consumed,
        next=outcome.next,
        records=known.records + outcome.records,
        ranges=tuple(ranges),
        schemas=outcome.schemas,
    )

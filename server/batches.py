"""Which segments are loaded together, in which order, and from where on. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from mailboat.protocol.limits import KIB, MIB
from mailboat.server.analytics_store import Key, Progress, Step, advanced
from mailboat.server.catalog import SegmentRow
from mailboat.server.decoder import Outcome, Task

BATCH_SEGMENTS: Final = 200
BATCH_BYTES: Final = 2 * MIB
"""Compressed bytes of one batch: 40,000 to 200,000 records, whose rows take some 20 MiB on their way. A batch costs the
engine 10 to 20 ms beside its rows; larger ones would have what came last wait longer for its turn."""
LEAST_BYTES: Final = 256 * KIB
"""Those of the first batch of a round, and twice those of the last one: while one is decoded, and the other loaded,
nothing else is."""

Known = dict[Key, dict[str, Progress]]
"""What was loaded, by session and upload id."""


@dataclass(slots=True)
class Batch:
    """Segments that are loaded in one transaction.

    `known` is shared by the batches of a round and runs ahead of the store: `done` adds to it what a task has decoded,
    so that the next one goes on from there. When something fails, it is of no more use.
    """

    segments: Sequence[SegmentRow]
    known: Known
    steps: list[Step] = field(default_factory=list)

    def task(self, number: int) -> Task:
        """What to decode of segment `number`."""
        segment = self.segments[number]
        uploads = self.known.get(segment.key, {})
        before = uploads.get(segment.upload_id, Progress(segment.index))
        others = [each for upload_id, each in uploads.items() if upload_id != segment.upload_id]
        present = tuple(span for each in others for span in each.ranges)
        return Task(
            number,
            before.consumed,
            before.next,
            before.schemas,
            present,
            segment.complete,
            segment.session_id,
            segment.index,
        )

    def done(self, outcome: Outcome) -> None:
        """Note what became of a task."""
        segment = self.segments[outcome.number]
        uploads = self.known.setdefault(segment.key, {})
        before = dict(uploads)
        progress = advanced(before.get(segment.upload_id, Progress(segment.index)), outcome)
        uploads[segment.upload_id] = progress
        self.steps.append(Step(segment, outcome, progress, before))


class Order:
    """The order in which segments are loaded, while what comes meanwhile does not wait for what was there.

    A batch of what came last and a batch of what waits longest, by turns: so the one is at most a batch behind, and
    half of the time is the other's, however much comes.
    """

    def __init__(self, waiting: Iterable[SegmentRow], known: Known) -> None:
        """`waiting` in their order; `known` is shared with the batches (see `Batch`)."""
        self.known = known
        self._waiting = deque(waiting)
        self._latest: deque[SegmentRow] = deque()
        self._turn = False
        self._most = LEAST_BYTES

    def put_latest(self, segments: Iterable[SegmentRow]) -> None:
        """Have these in their order as what came last, in place of what was before."""
        self._latest = deque(segments)

    def next(self) -> Batch | None:
        """The next batch; None when nothing is left. Those before it must have been decoded."""
        self._turn = not self._turn
        lines = (self._latest, self._waiting) if self._turn else (self._waiting, self._latest)
        for line in lines:
            some = self._take(line)
            if some:
                self._most = min(2 * self._most, BATCH_BYTES)
                return Batch(some, self.known)
        return None

    def _take(self, line: deque[SegmentRow]) -> list[SegmentRow]:
        """Take as many from a line as a batch may hold, and what has been loaded since along with them."""
        some: list[SegmentRow] = []
        size, left = 0, sum(map(self._fresh, islice(line, 2 * BATCH_SEGMENTS)))
        most = min(self._most, max(2 * LEAST_BYTES, left // 2))
        while line and len(some) < BATCH_SEGMENTS:
            fresh = self._fresh(line[0])
            if some and size + fresh > most:
                break
            segment = line.popleft()
            if fresh > 0:
                some.append(segment)
                size += fresh
        return some

    def _fresh(self, segment: SegmentRow) -> int:
        """Bytes of a segment that are still to be loaded."""
        progress = self.known.get(segment.key, {}).get(segment.upload_id)
        if progress is None:
            return segment.offset
        return 0 if progress.failed is not None else segment.offset - progress.consumed

"""Which segments are loaded together, and from where on. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from mailboat.protocol.limits import MIB
from mailboat.server.analytics_store import Key, Progress, Step, advanced
from mailboat.server.catalog import SegmentRow
from mailboat.server.decoder import Outcome, Task

BATCH_SEGMENTS: Final = 200
BATCH_BYTES: Final = 1 * MIB
"""Compressed bytes of one batch: 20,000 to 100,000 records, whose rows take some 10 MiB on their way. Smaller ones cost
more commits, larger ones leave less to do side by side."""

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
        uploads = self.known.get((segment.product, segment.session_id), {})
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
        uploads = self.known.setdefault((segment.product, segment.session_id), {})
        progress = advanced(uploads.get(segment.upload_id, Progress(segment.index)), outcome)
        uploads[segment.upload_id] = progress
        self.steps.append(Step(segment, outcome, progress))


def batches(segments: Sequence[SegmentRow], known: Known) -> Iterator[Batch]:
    """The segments in batches of bounded size, in their order."""
    some: list[SegmentRow] = []
    size = 0
    for segment in segments:
        uploads = known.get((segment.product, segment.session_id), {})
        progress = uploads.get(segment.upload_id)
        fresh = segment.offset - (progress.consumed if progress else 0)
        if some and (size + fresh > BATCH_BYTES or len(some) >= BATCH_SEGMENTS):
            yield Batch(some, known)
            some, size = [], 0
        some.append(segment)
        size += fresh
    if some:
        yield Batch(some, known)

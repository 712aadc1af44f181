"""An analytics store in this process's memory: `AnalyticsStore` carried out without SQL, to prove that its contract can
be met by another engine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace

from mailboat.server.analytics_store import Holding, Key, Progress, RowsRefused, StaleLoad, Step, require_known
from mailboat.server.catalog import SegmentRow, SessionRow
from mailboat.server.decoding import Decoded


@dataclass
class _Kept:
    """What is kept, so that it can be put back as a whole."""

    generation: int = 0
    revision: int = 0
    progress: dict[Key, dict[str, Progress]] = field(default_factory=dict)
    numbers: dict[Key, list[int]] = field(default_factory=dict)
    sessions: set[Key] = field(default_factory=set)


class MemoryAnalytics:
    """`AnalyticsStore` in dictionaries; of a row it keeps the number."""

    def __init__(self) -> None:
        self._kept = _Kept()

    @property
    def generation(self) -> int:
        return self._kept.generation

    @property
    def revision(self) -> int:
        return self._kept.revision

    def progress(self, sessions: Iterable[Key]) -> dict[Key, dict[str, Progress]]:
        return {key: dict(self._kept.progress[key]) for key in sessions if key in self._kept.progress}

    def load(self, decoded: Decoded, steps: Sequence[Step]) -> None:
        there = {key: {each: progress.mark for each, progress in of.items()} for key, of in self._kept.progress.items()}
        require_known(steps, there)
        after = deepcopy(self._kept)
        keys = {step.outcome.number: step.segment.key for step in steps}
        for table in decoded.tables:
            for line in decoded.files(table)[0].read_text("utf-8").splitlines():
                try:
                    rows = json.loads(line)
                    after.numbers.setdefault(keys[rows["s"]], []).extend(rows["b"] + int(each) for each in rows["q"])
                except (ValueError, TypeError, KeyError) as error:
                    raise RowsRefused(f"a line is no row: {error}") from error
        for step in steps:
            key = step.segment.key
            after.progress.setdefault(key, {})[step.segment.upload_id] = step.progress
        after.generation += 1
        self._kept = after

    def load_failed(self, segment: SegmentRow, before: Progress | None, reason: str) -> None:
        nothing = Progress(segment.index)
        there = self._kept.progress.get(segment.key, {}).get(segment.upload_id, nothing)
        if there.mark != (before or nothing).mark:
            raise StaleLoad(segment.session_id)
        failed = replace(before or nothing, schemas=(), failed=reason)
        self._kept.progress.setdefault(segment.key, {})[segment.upload_id] = failed
        self._kept.generation += 1

    def load_sessions(self, rows: Sequence[SessionRow], revision: int) -> None:
        self._kept.sessions |= {(row.product, row.summary.session_id) for row in rows}
        self._kept.revision = revision

    def forget(self, sessions: Iterable[Key]) -> int:
        records = 0
        for key in set(sessions):
            records += len(self._kept.numbers.pop(key, ()))
            self._kept.progress.pop(key, None)
            self._kept.sessions.discard(key)
        return records

    def unload(self, segments: Iterable[SegmentRow]) -> int:
        records = 0
        for each in segments:
            key = (each.product, each.session_id)
            progress = self._kept.progress.get(key, {}).pop(each.upload_id, None)
            if progress is not None:
                numbers = self._kept.numbers.get(key, [])
                left = [number for number in numbers if not any(a <= number < b for a, b in progress.ranges)]
                records += len(numbers) - len(left)
                self._kept.numbers[key] = left
        return records

    def holdings(self) -> Iterator[Holding]:
        kept = self._kept
        for key in sorted(kept.numbers.keys() | kept.progress.keys() | kept.sessions):
            noted = sum(each.records for each in kept.progress.get(key, {}).values())
            numbers = kept.numbers.get(key, [])
            yield Holding(*key, noted, len(numbers), len(set(numbers)), key in kept.sessions)

    def sum_up(self, *, idle: bool) -> bool:
        """Nothing is summed here."""
        return False

    def disagreements(self) -> Iterator[str]:
        return iter(())

    def reopen(self) -> None:
        """Nothing to be done."""

    def close(self) -> None:
        """Nothing to be done."""

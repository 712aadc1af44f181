"""Segments into an analytics store, without a server around it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mailboat.protocol import Info, Summary
from mailboat.protocol.records import COUNTERS
from mailboat.protocol.summary import Status
from mailboat.server.analytics import Analytics
from mailboat.server.analytics_schema import BETWEEN
from mailboat.server.analytics_store import Step
from mailboat.server.batches import Batch
from mailboat.server.catalog import SegmentRow, SessionRow, SessionState, Verification
from mailboat.server.decoding import Decoded, Decoder
from mailboat.server.reports import Answer, Question
from mailboat.server.rows import Lines
from testkit.segments import SESSION, START

PRODUCT = "Acme Studio"


def segment_row(
    data: bytes,
    session_id: str = SESSION,
    index: int = 0,
    *,
    complete: bool = True,
    product: str = PRODUCT,
    upload_id: str | None = None,
) -> SegmentRow:
    """A row of the catalog for a segment of which `data` is here."""
    known = uuid.uuid5(uuid.UUID(session_id), f"{product} {index}")
    return SegmentRow(
        upload_id=upload_id or str(known),
        product=product,
        session_id=session_id,
        index=index,
        offset=len(data),
        complete=complete,
        verification=Verification.VERIFIED if complete else Verification.PENDING,
        sha256="",
        reason="",
        detail="",
        records=0,
        loaded=0,
        created=0.0,
        updated=0.0,
    )


def session_row(
    session_id: str = SESSION,
    product: str = PRODUCT,
    *,
    info: Info | None = None,
    status: Status = Status.STOPPED,
    state: SessionState = SessionState.WANTED,
    started: float = START,
    counts: Mapping[str, int] | None = None,
    installation: str = "",
) -> SessionRow:
    """A session as the catalog lists it."""
    summary = Summary(
        session_id=session_id,
        info=info or Info(product=product, application="importer", version="1.0"),
        started=started,
        ended=started + 60,
        duration=60.0,
        status=status,
        counts=tuple((counts or {}).get(name, 0) for name in COUNTERS),
        segments=(),
        installation=installation,
    )
    return SessionRow(product, summary, state, "", "", None, started, started)


def told(lines: Iterable[Lines]) -> list[dict[str, Any]]:
    """The rows in lines of columns (`server.rows`), one map each; all lists of a line must be as long."""
    rows: list[dict[str, Any]] = []
    for line, text in lines:
        columns: dict[str, Any] = json.loads(line)
        segment, first, origin = columns.pop("s"), columns.pop("b"), columns.pop("o")
        columns["q"] = [first + number for number in columns["q"]]
        columns["t"] = [(time + origin) // 1000 for time in columns["t"]]
        if text:
            columns["a"] = [json.loads(each) for each in text.split(b"\n")]
        rows += [{"s": segment, **dict(zip(columns, row, strict=True))} for row in zip(*columns.values(), strict=True)]
    return rows


def written(decoded: Decoded, table: str) -> list[Lines]:
    """The lines of a table in the files that the decoder has written."""
    lines, texts = (path.read_bytes() for path in decoded.files(table))
    numbered = [json.loads(line) for line in lines.splitlines()]
    assert [line.pop("i") for line in numbered] == list(range(len(numbered)))
    return [Lines(json.dumps(line).encode(), text) for line, text in zip(numbered, texts.split(BETWEEN), strict=True)]


@dataclass
class Bench:
    """A store and a decoder: loads what it is given, as `Loader` does, and answers SQL."""

    analytics: Analytics
    decoder: Decoder
    folder: Path
    batches: int = field(default=0)

    def load(self, *given: tuple[SegmentRow, bytes]) -> list[Step]:
        """Load what is new in these segments, in one batch."""
        decoded, steps = self.decode(*given)
        self.analytics.load(decoded, steps)
        return steps

    def decode(self, *given: tuple[SegmentRow, bytes]) -> tuple[Decoded, list[Step]]:
        """A batch of what is new in these segments, to be loaded."""
        rows = [row for row, _ in given]
        batch = Batch(rows, self.analytics.progress({(row.product, row.session_id) for row in rows}))
        self.batches += 1
        folder = self.folder / f"batch-{self.batches}"
        folder.mkdir()
        tasks = (
            (task, [given[task.number][1][task.offset : given[task.number][0].offset]])
            for task in map(batch.task, range(len(rows)))
        )
        return self.decoder.decode(folder, tasks, batch.done), batch.steps

    def ask(self, question: Callable[[Question], Answer]) -> Answer:
        """The answer, found as `Reports` finds it."""
        cursors = self.analytics.cursors(2)
        try:
            with ThreadPoolExecutor(1) as threads:
                return question(Question(*cursors, threads=threads))
        finally:
            for each in cursors:
                each.close()

    def sql(self, text: str, **values: object) -> list[tuple[Any, ...]]:
        cursor = self.analytics.cursor()
        try:
            return cursor.execute(text, values).fetchall()
        finally:
            cursor.close()

    def sequences(self, session_id: str = SESSION, product: str = PRODUCT) -> list[int]:
        """The sequence numbers of all records of a session, in all tables."""
        tables = ("feature", "value", "timing", "event", "exception", "installation", "other")
        union = " UNION ALL ".join(f"SELECT sequence, session_id, product FROM {table}" for table in tables)
        found = self.sql(
            f"SELECT sequence FROM ({union}) WHERE session_id = $session::UUID AND product = $product ORDER BY 1",
            session=session_id,
            product=product,
        )
        return [row[0] for row in found]

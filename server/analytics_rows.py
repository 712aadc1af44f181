"""Values of the server as rows of the analytics store, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from mailboat.protocol.records import COUNTERS, Schema
from mailboat.protocol.summary import INFO_TEXTS
from mailboat.server.analytics_schema import SESSION_COLUMNS
from mailboat.server.analytics_store import Key, Progress, Step
from mailboat.server.catalog import SegmentRow, SessionRow
from mailboat.server.decoder import schemas_from
from mailboat.server.json_text import encode
from mailboat.server.skew import correction

_LATEST: Final = 253_402_300_799.0
"""The end of the year 9999, in seconds: no calendar takes more."""

_GAP: Final = ("offset", "length", "reason", "first", "records")
"""What a gap of `Outcome.gaps` is made of."""


def as_text(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as `analytics_schema.given` takes them."""
    return encode(rows).decode()


def key_columns(sessions: Iterable[Key]) -> list[dict[str, Any]]:
    """What tells these sessions apart."""
    return [{"product": product, "session_id": session_id} for product, session_id in sessions]


def segment_columns(segment: SegmentRow) -> dict[str, Any]:
    """What tells a segment from others."""
    return {
        "product": segment.product,
        "session_id": segment.session_id,
        "segment": segment.index,
        "upload_id": segment.upload_id,
    }


def session_columns(row: SessionRow) -> dict[str, Any]:
    """One row of ``session``."""
    summary, info, skew = row.summary, row.summary.info, correction(row.skew)
    return {
        "product": row.product,
        "session_id": summary.session_id,
        **{name: getattr(info, name) for name in INFO_TEXTS if name in SESSION_COLUMNS and name != "product"},
        "internal": info.test,
        "anonymous": info.anonymous,
        "parent": info.parent,
        "properties": dict(info.properties),
        "installation": summary.installation,
        "installation_properties": dict(summary.installation_properties),
        "started": _micros(summary.started + skew),
        "ended": _micros(summary.ended + skew),
        "duration": summary.duration,
        "status": summary.status.value,
        "state": row.state.value,
        "reason": row.reason,
        "skew": skew,
        "source": row.source,
        "records": summary.records,
        **{f"n_{name}": count for name, count in zip(COUNTERS, summary.counts, strict=True)},
    }


def loaded_columns(segment: SegmentRow, progress: Progress) -> dict[str, Any]:
    """One row of ``loaded``."""
    return {
        **segment_columns(segment),
        "consumed": progress.consumed,
        "next": progress.next,
        "records": progress.records,
        "ranges": json.dumps(progress.ranges),
        "schemas": _schemas_text(progress.schemas),
        "failed": progress.failed,
        "arrived": _micros(segment.updated),
    }


def gap_columns(step: Step) -> Iterator[dict[str, Any]]:
    """The rows of ``gap`` of a segment of a batch."""
    for gap in step.outcome.gaps:
        yield {**segment_columns(step.segment), **dict(zip(_GAP, gap, strict=True))}


def progress_from(
    segment: int, consumed: int, following: int, records: int, ranges: str, schemas: str, failed: str | None
) -> Progress:
    """What a row of ``loaded`` says."""
    spans = tuple((first, end) for first, end in json.loads(ranges))
    return Progress(segment, consumed, following, records, spans, schemas_from(json.loads(schemas)), failed)


def _schemas_text(schemas: Iterable[Schema]) -> str:
    return json.dumps([[each.number, each.kind, each.name, each.fields] for each in schemas])


def _micros(seconds: float) -> int:
    return int(min(max(seconds, 0.0), _LATEST) * 1e6)

"""Rows of the catalog in memory: what their states mean, which match a query, and where a page of them goes on."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable

from mailboat.protocol import Summary, WireError
from mailboat.protocol.summary import Status
from mailboat.protocol.uploads.state import UploadState
from mailboat.server.catalog import Origin, SegmentRow, SessionQuery, SessionRow, SessionState, UploadRow, Verification


def segment_of(row: UploadRow) -> SegmentRow:
    """An upload as the segment that it carries."""
    assert row.session_id is not None
    assert row.index is not None
    return SegmentRow(
        upload_id=row.id,
        product=row.product,
        session_id=row.session_id,
        index=row.index,
        offset=row.state.offset,
        complete=row.state.complete or row.verification is Verification.VERIFIED,
        verification=row.verification,
        sha256=row.sha256,
        reason=row.reason,
        detail=row.detail,
        records=row.records,
        loaded=row.loaded,
        created=row.created,
        updated=row.updated,
    )


def overtaken(stored: UploadState, state: UploadState) -> bool:
    """Whether what is stored is newer than what is to be stored."""
    return stored.gone or stored.epoch > state.epoch or stored.offset > state.offset


def is_quarantined(row: UploadRow) -> bool:
    """Whether a whole upload lies in quarantine."""
    return row.state.complete and row.verification is Verification.QUARANTINED


def is_apart(row: UploadRow) -> bool:
    """Whether a whole upload is kept beside the sessions."""
    return row.state.complete and row.verification in (Verification.QUARANTINED, Verification.REJECTED)


def by_id(rows: Iterable[UploadRow]) -> list[UploadRow]:
    """Uploads in the order in which pages list them."""
    return sorted(rows, key=lambda row: row.id)


def adds_to(known: SessionRow, summary: Summary) -> bool:
    """Whether a summary lists only segments that an ended session has not listed so far."""
    listed = {state.index for state in known.summary.segments}
    ended = known.summary.status is not Status.RUNNING and known.state is SessionState.WANTED
    return ended and bool(listed) and listed.isdisjoint(state.index for state in summary.segments)


def listing_order(row: SessionRow) -> tuple[float, str, str]:
    """What listings sort sessions by."""
    return row.summary.started, row.product, row.summary.session_id


def matches(row: SessionRow, query: SessionQuery) -> bool:
    """Whether a session is one of those asked for."""
    info, summary = row.summary.info, row.summary
    asked: list[tuple[object, object]] = [
        (query.product, row.product),
        (query.application, info.application),
        (query.version, info.version),
        (query.status, summary.status.value),
        (query.state, row.state),
    ]
    origin = query.origin is Origin.ALL or (query.origin is Origin.INTERNAL) == info.test
    after = query.since is None or summary.started >= query.since
    before = query.until is None or summary.started < query.until
    return origin and after and before and all(wanted in (None, there) for wanted, there in asked)


def cursor_after(row: SessionRow) -> str:
    """The cursor that leads to the sessions behind this one."""
    return base64.urlsafe_b64encode(json.dumps(listing_order(row)).encode()).decode()


def read_cursor(cursor: str) -> tuple[float, str, str]:
    """The place that a cursor names; `WireError` unless it is one."""
    try:
        place = json.loads(base64.urlsafe_b64decode(cursor.encode()))
    except (ValueError, RecursionError) as error:
        raise WireError("cursor: it was not handed out here") from error
    match place:
        case [int() | float() as started, str() as product, str() as session_id]:
            return float(started), product, session_id
    raise WireError("cursor: it was not handed out here")

"""The catalog's SQL for sessions: keeping what is offered, listing what is there. Functions of a connection."""

# ruff: noqa: S608 - what is put into SQL here are lists of column names from this package; values are always bound

from __future__ import annotations

import base64
import binascii
import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from msgspec.structs import replace

from mailboat.protocol.errors import WireError
from mailboat.protocol.limits import MAX_SEGMENT
from mailboat.protocol.negotiation import Reason
from mailboat.protocol.summary import SegmentState, Status, joined
from mailboat.protocol.uploads.rufh import CURRENT
from mailboat.protocol.uploads.state import Phase, UploadState
from mailboat.protocol.uploads.values import Limits
from mailboat.server import sqlite_usage
from mailboat.server.catalog import (
    Arrival,
    LedgerRow,
    Origin,
    Registration,
    SegmentRow,
    SessionPage,
    SessionQuery,
    SessionRow,
    SessionState,
    UploadRow,
    Verification,
)
from mailboat.server.sqlite_rows import (
    SEGMENT_COLUMNS,
    SESSION_COLUMNS,
    fetch,
    pack_summary,
    segment_row,
    session_row,
    storable,
)
from mailboat.server.sqlite_uploads import insert_uploads, new_revisions, reject_session

# A session that ended does not run again: a summary that says so was overtaken on its way. And a session found corrupt
# stays so, whatever the policy says of it.
_UPSERT: Final = f"""
    INSERT INTO sessions (product, session_id, application, version, status, test, started, state, reason,
                          explanation, skew, first_seen, updated, revision, summary, source, counted)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (product, session_id) DO UPDATE SET
        application = excluded.application, version = excluded.version, status = excluded.status,
        test = excluded.test, started = excluded.started,
        state       = iif(sessions.reason = '{Reason.CORRUPTED}', sessions.state, excluded.state),
        explanation = iif(sessions.reason = '{Reason.CORRUPTED}', sessions.explanation, excluded.explanation),
        reason      = iif(sessions.reason = '{Reason.CORRUPTED}', sessions.reason, excluded.reason),
        skew = coalesce(excluded.skew, sessions.skew), updated = excluded.updated,
        revision = excluded.revision, summary = excluded.summary, source = excluded.source
    WHERE sessions.status = 'running' OR excluded.status != 'running'
"""

_SEGMENT: Final = Limits(max_size=MAX_SEGMENT)

_IDS_AT_ONCE: Final = 500
"""Ids in one IN list: SQLite takes 999 variables at least."""

Known = dict[tuple[str, str], dict[int, SegmentRow]]


def register(
    db: sqlite3.Connection,
    offers: Sequence[Registration],
    now: float,
    ledger: LedgerRow | None,
    new_id: Callable[[], str],
) -> tuple[tuple[SegmentRow, ...], ...]:
    """See `Catalog.register`."""
    first, counted = new_revisions(db, len(offers)), sqlite_usage.count(db, offers, now)
    rows = [_session_columns(offer, now, first + place, counted) for place, offer in enumerate(offers)]
    _keep(db, rows, now)
    if ledger is not None:
        _put_ledger(db, ledger)
    known = _known(db, {(offer.product, offer.summary.session_id) for offer in offers})
    fresh: list[UploadRow] = []
    for offer in offers:
        segments = known.setdefault((offer.product, offer.summary.session_id), {})
        if offer.state is not SessionState.WANTED:
            continue
        room = offer.fresh_uploads - sum(not held.complete for held in segments.values())
        for state in offer.summary.segments:
            held, arrival = segments.get(state.index), offer.arrivals.get(state.index)
            if held is not None and not held.complete and (arrival is not None or _outgrown(held, state)):
                _detach(db, held, now)
                held = None
            if held is None and (room > 0 or arrival is not None):
                room -= arrival is None
                made = _made(offer, state.index, arrival, new_id, now)
                fresh.append(made)
                segments[state.index] = _as_segment(made, offer.summary.session_id, state.index)
    insert_uploads(db, fresh)
    _reject_corrupted(db, fresh)
    return tuple(_in_order(known[offer.product, offer.summary.session_id]) for offer in offers)


def ensure_session(db: sqlite3.Connection, offer: Registration, now: float) -> None:
    """Make the session of `offer`, or add to it the segments of `offer` that it does not list; what an agent has said
    of a running session, or of these segments, stays.
    """
    known = session(db, offer.product, offer.summary.session_id)
    if known is not None:
        if not _adds_to(known, offer):
            return
        offer = replace(offer, summary=joined(known.summary, offer.summary))
    counted = sqlite_usage.count(db, [offer], now)
    _keep(db, [_session_columns(offer, now, new_revisions(db, 1), counted)], now)


def _adds_to(known: SessionRow, offer: Registration) -> bool:
    listed = {state.index for state in known.summary.segments}
    ended = known.summary.status is not Status.RUNNING and known.state is SessionState.WANTED
    return ended and bool(listed) and listed.isdisjoint(state.index for state in offer.summary.segments)


def give_up_unfinished(db: sqlite3.Connection, product: str, session_id: str, index: int, now: float) -> None:
    """Detach the upload that carries a segment, if it is not complete: the segment has come by another way."""
    held = _known(db, {(product, session_id)}).get((product, session_id), {}).get(index)
    if held is not None and held.verification is Verification.PENDING:
        _detach(db, held, now)


def changed_sessions(db: sqlite3.Connection, after: int, limit: int) -> tuple[tuple[SessionRow, ...], int]:
    """See `Catalog.changed_sessions`."""
    sql = f"SELECT {SESSION_COLUMNS}, revision FROM sessions WHERE revision > ? ORDER BY revision LIMIT ?"
    found = fetch(db, sql, after, limit)
    return tuple(session_row(row[:-1], ()) for row in found), found[-1][-1] if found else after


def session(db: sqlite3.Connection, product: str | None, session_id: str) -> SessionRow | None:
    """See `Catalog.session`."""
    sql = f"SELECT {SESSION_COLUMNS} FROM sessions WHERE session_id = ?"
    if product is None:
        found = fetch(db, f"{sql} ORDER BY product LIMIT 1", session_id)
    else:
        found = fetch(db, f"{sql} AND product = ?", session_id, product)
    if not found:
        return None
    held = _known(db, {(found[0][0], session_id)})
    return session_row(found[0], _in_order(held.get((found[0][0], session_id), {})))


def sessions(db: sqlite3.Connection, query: SessionQuery) -> SessionPage:
    """See `Catalog.sessions`."""
    conditions, values = _conditions(query)
    if query.cursor is not None:
        conditions.append("(started, product, session_id) < (?, ?, ?)")
        values += _read_cursor(query.cursor)
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    found = fetch(
        db,
        f"SELECT {SESSION_COLUMNS}, started, session_id FROM sessions {where} "
        "ORDER BY started DESC, product DESC, session_id DESC LIMIT ?",
        *values,
        query.limit + 1,
    )
    page = found[: query.limit]
    held = _known(db, {(row[0], row[-1]) for row in page})
    rows = tuple(session_row(row[:-2], _in_order(held.get((row[0], row[-1]), {}))) for row in page)
    more = len(found) > len(page)
    return SessionPage(rows, _cursor(page[-1][-2], page[-1][0], page[-1][-1]) if more else None)


# -- keeping -----------------------------------------------------------------------------------------------------------


def _keep(db: sqlite3.Connection, sessions: Iterable[tuple[Any, ...]], now: float) -> None:
    """Keep sessions, the first of whose columns is their product, and count those that are new."""
    by_product: dict[str, list[tuple[Any, ...]]] = {}
    for columns in sessions:
        by_product.setdefault(columns[0], []).append(columns)
    for product, some in by_product.items():
        before = _last_row(db)
        db.executemany(_UPSERT, some)
        sqlite_usage.count_new(db, product, _last_row(db) - before, now)


def _last_row(db: sqlite3.Connection) -> int:
    """The number of the last row of a session: each new one has the next."""
    ((last,),) = fetch(db, "SELECT coalesce(max(rowid), 0) FROM sessions")
    return int(last)


def _session_columns(offer: Registration, now: float, revision: int, counted: sqlite_usage.Counted) -> tuple[Any, ...]:
    summary, info = offer.summary, offer.summary.info
    return (
        offer.product,
        summary.session_id,
        storable(info.application),
        storable(info.version),
        summary.status.value,
        info.test,
        summary.started,
        offer.state.value,
        offer.reason,
        offer.explanation,
        offer.skew,
        now,
        now,
        revision,
        pack_summary(summary),
        storable(offer.source),
        counted.get((offer.product, summary.session_id), 0),
    )


def _put_ledger(db: sqlite3.Connection, row: LedgerRow) -> None:
    db.execute(  # one account, whichever agent tells it: another version of it, or the command line
        "INSERT OR REPLACE INTO ledgers (product, source, agent, ledger, updated) VALUES (?, ?, ?, ?, ?)",
        (row.product, storable(row.source), storable(row.agent), json.dumps(dict(row.ledger)), row.updated),
    )


def _known(db: sqlite3.Connection, wanted: Iterable[tuple[str, str]]) -> Known:
    """The segments of some sessions, by (product, session id) and index."""
    by_product: dict[str, list[str]] = {}
    for product, session_id in wanted:
        by_product.setdefault(product, []).append(session_id)
    known: Known = {}
    for product, ids in by_product.items():
        for start in range(0, len(ids), _IDS_AT_ONCE):
            some = ids[start : start + _IDS_AT_ONCE]
            sql = f"SELECT {SEGMENT_COLUMNS} FROM uploads WHERE product = ? AND session_id IN ({_marks(some)})"
            for columns in fetch(db, sql, product, *some):
                row = segment_row(columns)
                known.setdefault((product, row.session_id), {})[row.index] = row
    return known


def _outgrown(held: SegmentRow, state: SegmentState) -> bool:
    """Whether more bytes are here than the sealed segment has: what was sent got lost on the machine, and it sealed
    something else.
    """
    return state.sealed and held.offset > state.size


def _detach(db: sqlite3.Connection, held: SegmentRow, now: float) -> None:
    db.execute(
        "UPDATE uploads SET session_id = NULL, segment = NULL, phase = ?, epoch = epoch + 1, updated = ? WHERE id = ?",
        (Phase.INVALID.value, now, held.upload_id),
    )


def _made(offer: Registration, index: int, arrival: Arrival | None, new_id: Callable[[], str], now: float) -> UploadRow:
    """A fresh upload, or what has arrived as one that is complete."""
    session_id, limits = offer.summary.session_id, _SEGMENT
    if arrival is None:
        state = UploadState(id=new_id(), limits=limits, dialect=CURRENT.tag)
        return UploadRow(state, offer.product, session_id, index, created=now, updated=now)
    return UploadRow(
        UploadState(arrival.upload_id, arrival.size, arrival.size, Phase.COMPLETE, limits=limits, dialect=CURRENT.tag),
        offer.product,
        session_id,
        index,
        verification=arrival.verification,
        sha256=arrival.sha256,
        reason=arrival.reason,
        detail=arrival.detail,
        records=arrival.records,
        created=now,
        updated=now,
    )


def _reject_corrupted(db: sqlite3.Connection, made: Sequence[UploadRow]) -> None:
    for row in made:
        if row.verification is Verification.REJECTED:
            reject_session(db, row.id, row.reason, row.detail, row.updated)


def _as_segment(row: UploadRow, session_id: str, index: int) -> SegmentRow:
    return SegmentRow(
        upload_id=row.id,
        product=row.product,
        session_id=session_id,
        index=index,
        offset=row.state.offset,
        complete=row.state.complete,
        verification=row.verification,
        sha256=row.sha256,
        reason=row.reason,
        detail=row.detail,
        records=row.records,
        loaded=row.loaded,
        created=row.created,
        updated=row.updated,
    )


def _in_order(segments: dict[int, SegmentRow]) -> tuple[SegmentRow, ...]:
    return tuple(segments[index] for index in sorted(segments))


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


# -- listing -----------------------------------------------------------------------------------------------------------


def _conditions(query: SessionQuery) -> tuple[list[str], list[Any]]:
    asked: list[tuple[str, Any]] = [
        ("product = ?", query.product),
        ("started >= ?", query.since),
        ("started < ?", query.until),
        ("application = ?", query.application),
        ("version = ?", query.version),
        ("status = ?", query.status),
        ("state = ?", query.state),
        ("test = ?", None if query.origin is Origin.ALL else query.origin is Origin.INTERNAL),
    ]
    given = [(condition, value) for condition, value in asked if value is not None]
    return [condition for condition, _ in given], [
        storable(value) if isinstance(value, str) else value for _, value in given
    ]


def _cursor(started: float, product: str, session_id: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([started, product, session_id]).encode()).decode()


def _read_cursor(cursor: str) -> list[Any]:
    try:
        place = json.loads(base64.urlsafe_b64decode(cursor.encode()))
    except (ValueError, binascii.Error, RecursionError) as error:
        raise WireError("cursor: it was not handed out here") from error
    match place:
        case [int() | float(), str(), str()]:
            return [place[0], storable(place[1]), storable(place[2])]
        case _:
            raise WireError("cursor: it was not handed out here")

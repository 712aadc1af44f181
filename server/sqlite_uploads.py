"""The catalog's SQL for uploads. Functions of a connection."""

# ruff: noqa: S608 - what is put into SQL here are lists of column names from this package; values are always bound

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Final

from mailboat.protocol.uploads.state import UploadState
from mailboat.server.catalog import Queue, SegmentRow, SessionState, UploadRow, Verification
from mailboat.server.sqlite_rows import (
    SEGMENT_COLUMNS,
    UPLOAD_COLUMNS,
    creation_text,
    fetch,
    limits_text,
    segment_row,
    storable,
    upload_columns,
    upload_row,
)

_INSERT: Final = f"INSERT INTO uploads ({UPLOAD_COLUMNS}) VALUES ({', '.join('?' * len(UPLOAD_COLUMNS.split(',')))})"

# The fence: a state that was decided under an older epoch, or knows of fewer bytes, changes nothing.
_NOT_OVERTAKEN: Final = """epoch <= :epoch AND "offset" <= :offset AND phase IN ('open', 'complete')"""

_STORE: Final = f"""
    UPDATE uploads SET "offset" = :offset, length = :length, phase = :phase, epoch = :epoch, limits = :limits,
        expires = :expires, creation = :creation, updated = :now,
        session_id = iif(:gone AND verification = 'pending', NULL, session_id),
        segment = iif(:gone AND verification = 'pending', NULL, segment)
    WHERE id = :id AND {_NOT_OVERTAKEN}
"""

_FINISH: Final = f"""
    UPDATE uploads SET "offset" = :offset, length = :length, phase = :phase, epoch = :epoch, limits = :limits,
        expires = :expires, creation = :creation, updated = :now, session_id = :session_id, segment = :segment,
        sha256 = :sha256, records = :records,
        reason = iif(verification = '{Verification.REJECTED}', reason, :reason),
        detail = iif(verification = '{Verification.REJECTED}', detail, :detail),
        verification = iif(verification = '{Verification.REJECTED}', verification, :verification)
    WHERE id = :id AND {_NOT_OVERTAKEN}
"""

_WAITS: Final = "session_id IS NOT NULL AND loaded < \"offset\" AND verification != 'rejected'"
_TO_LOAD: Final = f"SELECT {SEGMENT_COLUMNS} FROM uploads WHERE {_WAITS} ORDER BY updated LIMIT ?"
_GOING_ON: Final = f"""
    SELECT {SEGMENT_COLUMNS} FROM uploads WHERE phase = 'open' AND {_WAITS} AND loaded >= 0
    ORDER BY "offset" - loaded, updated LIMIT ?
"""
_LATEST: Final = f"""
    SELECT {SEGMENT_COLUMNS} FROM uploads WHERE phase != 'open' AND {_WAITS} AND loaded >= 0 AND "offset" - loaded <= ?
    ORDER BY updated DESC LIMIT ?
"""


def insert_uploads(db: sqlite3.Connection, rows: Sequence[UploadRow]) -> None:
    """Keep new uploads."""
    db.executemany(_INSERT, [upload_columns(row) for row in rows])
    made = [(part, row.id) for row in rows for part in set(row.state.creation.parts)]
    db.executemany("INSERT INTO parts (part, upload) VALUES (?, ?)", made)


def upload(db: sqlite3.Connection, upload_id: str) -> UploadRow | None:
    """See `Catalog.upload`."""
    found = fetch(db, f"SELECT {UPLOAD_COLUMNS} FROM uploads WHERE id = ?", upload_id)
    return upload_row(found[0]) if found else None


def any_upload(db: sqlite3.Connection, first: str, beyond: str) -> bool:
    """See `Catalog.any_upload`."""
    return bool(fetch(db, "SELECT 1 FROM uploads WHERE id >= ? AND id < ? LIMIT 1", first, beyond))


def open_uploads(db: sqlite3.Connection) -> tuple[UploadRow, ...]:
    """See `Catalog.open_uploads`."""
    found = fetch(db, f"SELECT {UPLOAD_COLUMNS} FROM uploads WHERE phase = 'open'")
    return tuple(upload_row(columns) for columns in found)


def all_uploads(db: sqlite3.Connection, after: str, limit: int) -> tuple[UploadRow, ...]:
    """See `Catalog.all_uploads`."""
    found = fetch(db, f"SELECT {UPLOAD_COLUMNS} FROM uploads WHERE id > ? ORDER BY id LIMIT ?", after, limit)
    return tuple(upload_row(columns) for columns in found)


def made_of(db: sqlite3.Connection, part_id: str) -> tuple[UploadRow, ...]:
    """See `Catalog.made_of`."""
    sql = f"SELECT {UPLOAD_COLUMNS} FROM parts JOIN uploads ON id = upload WHERE part = ? AND phase = 'open'"
    return tuple(upload_row(columns) for columns in fetch(db, sql, part_id))


def store(db: sqlite3.Connection, state: UploadState, now: float) -> bool:
    """See `Catalog.store`."""
    return db.execute(_STORE, {**_state_values(state), "now": now, "gone": state.gone}).rowcount == 1


def finish_upload(db: sqlite3.Connection, row: UploadRow) -> bool:
    """See `Catalog.finish_upload`."""
    values = {
        **_state_values(row.state),
        "now": row.updated,
        "session_id": row.session_id,
        "segment": row.index,
        "sha256": row.sha256,
        "records": row.records,
        "reason": row.reason,
        "detail": storable(row.detail),
        "verification": row.verification.value,
    }
    finished = db.execute(_FINISH, values).rowcount == 1
    if finished and row.verification is Verification.REJECTED:
        reject_session(db, row.id, row.reason, row.detail, row.updated)
    return finished


def has_upload(db: sqlite3.Connection, product: str, session_id: str, index: int) -> bool:
    """Whether some upload carries this segment."""
    sql = "SELECT 1 FROM uploads WHERE product = ? AND session_id = ? AND segment = ?"
    return bool(fetch(db, sql, product, session_id, index))


def segments_to_load(db: sqlite3.Connection, limit: int) -> tuple[SegmentRow, ...]:
    """See `Catalog.segments_to_load`."""
    return tuple(segment_row(columns) for columns in fetch(db, _TO_LOAD, limit))


def latest_to_load(db: sqlite3.Connection, limit: int, size: int) -> tuple[SegmentRow, ...]:
    """See `Catalog.latest_to_load`."""
    rows = fetch(db, _GOING_ON, limit)
    rows += fetch(db, _LATEST, size, limit - len(rows))
    return tuple(segment_row(columns) for columns in rows)


def queue(db: sqlite3.Connection) -> Queue:
    """See `Catalog.queue`."""
    ((unfinished,),) = fetch(db, "SELECT count(*) FROM uploads WHERE phase = 'open'")
    ((segments, size, since),) = fetch(
        db,
        f'SELECT count(*), coalesce(sum("offset" - max(loaded, 0)), 0), min(updated) FROM uploads WHERE {_WAITS}',
    )
    return Queue(unfinished, segments, size, since)


def mark_loaded(db: sqlite3.Connection, loaded: Mapping[str, int]) -> None:
    """See `Catalog.mark_loaded`."""
    db.executemany(
        "UPDATE uploads SET loaded = max(loaded, ?) WHERE id = ?",
        [(offset, upload_id) for upload_id, offset in loaded.items()],
    )


def forget_loaded(db: sqlite3.Connection) -> None:
    """See `Catalog.forget_loaded`."""
    db.execute("UPDATE uploads SET loaded = 0 WHERE loaded > 0")


def mark_rejected(db: sqlite3.Connection, upload_id: str, reason: str, detail: str, now: float) -> None:
    """See `Catalog.mark_rejected`."""
    db.execute(
        "UPDATE uploads SET verification = ?, reason = ?, detail = ?, updated = ? WHERE id = ?",
        (Verification.REJECTED.value, reason, storable(detail), now, upload_id),
    )
    reject_session(db, upload_id, reason, detail, now)


def readmit(db: sqlite3.Connection, row: UploadRow) -> bool:
    """See `Catalog.readmit`."""
    known = upload(db, row.id)
    if known is None or not known.state.complete or known.verification is not Verification.REJECTED:
        return False
    db.execute(
        "UPDATE uploads SET verification = ?, sha256 = ?, records = ?, reason = '', detail = '', loaded = -1, "
        "updated = ? WHERE id = ?",
        (Verification.VERIFIED.value, row.sha256, row.records, row.updated, row.id),
    )
    db.execute(
        "UPDATE sessions SET state = ?, reason = '', explanation = '', updated = ?, revision = ? "
        "WHERE product = ? AND session_id = ? AND state = ? AND reason = ? AND NOT EXISTS (SELECT 1 FROM uploads other "
        "WHERE other.product = ? AND other.session_id = ? AND other.verification = ?)",
        (
            *(SessionState.WANTED.value, row.updated, new_revisions(db, 1)),
            *(known.product, known.session_id, SessionState.REJECTED.value, known.reason),
            *(known.product, known.session_id, Verification.REJECTED.value),
        ),
    )
    return True


def new_revisions(db: sqlite3.Connection, number: int) -> int:
    """The first of so many new revisions of sessions."""
    db.execute("UPDATE revision SET last = last + ?", (number,))
    ((last,),) = fetch(db, "SELECT last FROM revision")
    return int(last) - number + 1


def reject_session(db: sqlite3.Connection, upload_id: str, reason: str, detail: str, now: float) -> None:
    """The session whose segment this upload carries is rejected."""
    db.execute(
        "UPDATE sessions SET state = ?, reason = ?, explanation = ?, updated = ?, revision = ? "
        "WHERE (product, session_id) = (SELECT product, session_id FROM uploads WHERE id = ?)",
        (SessionState.REJECTED.value, reason, storable(detail), now, new_revisions(db, 1), upload_id),
    )


def _state_values(state: UploadState) -> dict[str, object]:
    return {
        "id": state.id,
        "offset": state.offset,
        "length": state.length,
        "phase": state.phase.value,
        "epoch": state.epoch,
        "limits": limits_text(state.limits),
        "expires": state.expires,
        "creation": creation_text(state.creation),
    }

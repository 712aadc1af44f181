"""Between the catalog's rows and SQLite's columns."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from functools import lru_cache
from typing import Any, Final

import msgpack

from mailboat.protocol.summary import Offer, Summary
from mailboat.protocol.uploads.digests import BY_LABEL, Digest
from mailboat.protocol.uploads.state import PLAIN, Creation, Phase, UploadState
from mailboat.protocol.uploads.values import Limits
from mailboat.protocol.wire import Fields, Untyped, pack, typed
from mailboat.server.catalog import (
    KeyRow,
    LedgerRow,
    ProductRow,
    Role,
    SegmentRow,
    SessionRow,
    SessionState,
    UploadRow,
    Verification,
)

KEY_COLUMNS: Final = "id, digest, product, role, created, revoked"

SESSION_COLUMNS: Final = "product, summary, state, reason, explanation, skew, first_seen, updated, source"

SEGMENT_COLUMNS: Final = (
    'id, product, session_id, segment, "offset", phase, verification, sha256, reason, detail, records, loaded, '
    "created, updated"
)

UPLOAD_COLUMNS: Final = (
    'id, product, session_id, segment, "offset", length, phase, epoch, limits, expires, dialect, creation, '
    "verification, sha256, reason, detail, records, loaded, created, updated"
)

_LIMITS: Final = ("max_size", "min_size", "max_append_size", "min_append_size", "max_age")


def storable(text: str) -> str:
    """`text` without lone surrogates, which JSON can bring and SQLite cannot hold."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def key_row(columns: tuple[Any, ...]) -> KeyRow:
    """A key from `KEY_COLUMNS`."""
    key_id, digest, product, role, created, revoked = columns
    return KeyRow(key_id, bytes(digest), product, Role(role), created, revoked)


def product_row(columns: tuple[Any, ...]) -> ProductRow:
    """A product from its name, creation and plan."""
    name, created, plan = columns
    return ProductRow(name, created, json.loads(plan))


def ledger_row(columns: tuple[Any, ...]) -> LedgerRow:
    """A ledger from product, source, agent, ledger, updated."""
    product, source, agent, ledger, updated = columns
    return LedgerRow(product, source, agent, json.loads(ledger), updated)


def session_row(columns: tuple[Any, ...], segments: tuple[SegmentRow, ...]) -> SessionRow:
    """A session from `SESSION_COLUMNS`."""
    product, summary, state, reason, explanation, skew, first_seen, updated, source = columns
    return SessionRow(
        product=product,
        summary=unpack_summary(summary),
        state=SessionState(state),
        reason=reason,
        explanation=explanation,
        skew=skew,
        first_seen=first_seen,
        updated=updated,
        segments=segments,
        source=source,
    )


def pack_summary(summary: Summary) -> bytes:
    """A summary as it is stored: msgpack, with whatever lone surrogates JSON has brought."""
    try:
        return pack(summary.to_offer())
    except UnicodeEncodeError:
        return bytes(msgpack.packb(summary.to_wire(), unicode_errors="surrogatepass"))


def unpack_summary(packed: bytes) -> Summary:
    """What `pack_summary` made."""
    with contextlib.suppress(Untyped):
        return Summary.from_offer(typed(Offer, packed))
    return Summary.read(Fields(msgpack.unpackb(packed, unicode_errors="surrogatepass"), "summary"))


def segment_row(columns: tuple[Any, ...]) -> SegmentRow:
    """A segment from `SEGMENT_COLUMNS`."""
    (upload_id, product, session_id, index, offset, phase, verification, *rest) = columns
    # A complete upload may have been cancelled since: the resource is gone, the segment is not.
    complete = phase == Phase.COMPLETE.value or verification == Verification.VERIFIED.value
    return SegmentRow(upload_id, product, session_id, index, offset, complete, Verification(verification), *rest)


def upload_row(columns: tuple[Any, ...]) -> UploadRow:
    """An upload from `UPLOAD_COLUMNS`."""
    upload_id, product, session_id, index, *state, verification, sha256, reason, detail, records, loaded = columns[:-2]
    offset, length, phase, epoch, limits, expires, dialect, creation = state
    return UploadRow(
        state=UploadState(
            id=upload_id,
            offset=offset,
            length=length,
            phase=Phase(phase),
            epoch=epoch,
            limits=Limits(**dict(zip(_LIMITS, json.loads(limits), strict=True))),
            expires=expires,
            dialect=dialect,
            creation=_creation(creation),
        ),
        product=product,
        session_id=session_id,
        index=index,
        verification=Verification(verification),
        sha256=sha256,
        reason=reason,
        detail=detail,
        records=records,
        loaded=loaded,
        created=columns[-2],
        updated=columns[-1],
    )


@lru_cache(maxsize=64)  # there are as many as dialects and settings make: a handful
def limits_text(limits: Limits) -> str:
    """`limits` as `upload_row` reads it."""
    return json.dumps([getattr(limits, name) for name in _LIMITS])


def creation_text(creation: Creation) -> str:
    """`creation` as `upload_row` reads it."""
    if creation == PLAIN:
        return ""
    said = {
        "partial": creation.partial,
        "parts": creation.parts,
        "whole": _digest_values(creation.whole),
        "notes": creation.notes,
    }
    if creation.wanted is not None:
        said |= {"wanted": creation.wanted.label, "computed": _digest_values(creation.computed)}
    return json.dumps(said)


def _digest_values(digest: Digest | None) -> list[str] | None:
    return None if digest is None else [digest.algorithm.label, digest.value.hex()]


def _digest(values: list[str] | None) -> Digest | None:
    return None if values is None else Digest(BY_LABEL[values[0]], bytes.fromhex(values[1]))


def _creation(text: str) -> Creation:
    if not text:
        return PLAIN
    said = json.loads(text)
    notes = tuple((name, value) for name, value in said["notes"])
    wanted = None if "wanted" not in said else BY_LABEL[said["wanted"]]
    computed = _digest(said.get("computed"))
    return Creation(said["partial"], tuple(said["parts"]), _digest(said["whole"]), notes, wanted, computed)


def upload_columns(row: UploadRow) -> tuple[Any, ...]:
    """The values of `UPLOAD_COLUMNS` for `row`."""
    state = row.state
    return (
        row.id,
        row.product,
        row.session_id,
        row.index,
        state.offset,
        state.length,
        state.phase.value,
        state.epoch,
        limits_text(state.limits),
        state.expires,
        state.dialect,
        creation_text(state.creation),
        row.verification.value,
        row.sha256,
        row.reason,
        storable(row.detail),
        row.records,
        row.loaded,
        row.created,
        row.updated,
    )


def fetch(db: sqlite3.Connection, sql: str, *values: object) -> list[tuple[Any, ...]]:
    """All rows that a query gives."""
    return db.execute(sql, values).fetchall()

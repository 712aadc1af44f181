"""Is everything that the catalog says here, and is everything here that it says? Nothing is repaired by looking.

Every upload is held against its blob (bytes that were announced, digests of what was verified), every blob against the
uploads, every session against the analytics store and back: each record once, none of a session that is unknown. What
that store has added up is held against its records.

Two kinds of faults can be put right without losing anything, when asked to: a blob that nobody knows is laid aside, and
an analytics store that does not agree is begun anew, since all of it is made again from the segments.

A server that was killed leaves nothing to be found here; what it leaves (blobs beyond what was announced, segments not
loaded yet, doomed sessions) is within the rules, and put in order by its next start.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import Final

from mailboat.protocol.errors import SegmentError
from mailboat.protocol.limits import MAX_SEAL
from mailboat.protocol.segment import SKIPPABLE, Seal
from mailboat.server.analytics_store import AnalyticsStore, Holding, Key, Progress
from mailboat.server.blobs import Blobs
from mailboat.server.catalog import Catalog, SessionQuery, UploadRow, Verification
from mailboat.server.ingest import GENERATION_NOTE
from mailboat.server.verification import verify

PAGE: Final = 500
"""Rows, and sessions of the analytics store, held against something at a time."""


class Kind(StrEnum):
    """What can be wrong; told to programs, so the values do not change."""

    CATALOG = "catalog"
    """The catalog's engine finds fault with its own files."""
    BYTES_LOST = "bytes_lost"
    """Fewer bytes are here than were announced."""
    BYTES_BEYOND = "bytes_beyond"
    """A complete upload has more bytes than it may."""
    SPOILT = "spoilt"
    """A verified segment is not what was verified."""
    NO_SESSION = "no_session"
    """A segment is of a session that the catalog does not know."""
    UNKNOWN_BLOB = "unknown_blob"
    """A blob is here that belongs to no upload."""
    RECORDS_MISSING = "records_missing"
    """The analytics store has fewer records than it says it has loaded, or has loaded too few."""
    RECORDS_TWICE = "records_twice"
    """It has a record more than once."""
    RECORDS_STRANGE = "records_strange"
    """It has records that it does not say it has loaded, or of a session that the catalog does not know."""
    NOT_LISTED = "not_listed"
    """A session is not in the reports, though the store says that it has copied it."""
    SUMS_WRONG = "sums_wrong"
    """What reports add up is not what the records come to."""


ANALYTICS_KINDS: Final = frozenset(
    {Kind.RECORDS_MISSING, Kind.RECORDS_TWICE, Kind.RECORDS_STRANGE, Kind.NOT_LISTED, Kind.SUMS_WRONG}
)
"""What is put right by beginning the analytics store anew."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is wrong: with what (an upload's id, a product and session id), and what was found."""

    kind: Kind
    subject: str
    detail: str


@dataclass(slots=True)
class Findings:
    """What was looked at, and what was wrong. `notes` are no faults, but worth knowing."""

    uploads: int = 0
    blobs: int = 0
    sessions: int = 0
    records: int = 0
    bytes: int = 0
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, kind: Kind, subject: str, detail: str) -> None:
        """Note a fault."""
        self.faults.append(Fault(kind, subject, detail))


async def check(catalog: Catalog, blobs: Blobs, store: AnalyticsStore | None, *, deep: bool = True) -> Findings:
    """Look at everything. `store` None leaves the analytics store out; without `deep` segments are not read.

    Nobody may change any of the three meanwhile, but for a running server, whose store is left out.
    """
    findings = Findings()
    for text in await catalog.faults():
        findings.add(Kind.CATALOG, "catalog", text)
    # Blobs first: what comes later has an upload by then, and what goes later is asked for once more.
    names = await asyncio.to_thread(lambda: list(blobs.ids()))
    sessions: dict[Key, bool] = {key: locked async for key, locked in _sessions(catalog)}
    findings.sessions = len(sessions)
    await _check_uploads(catalog, blobs, sessions, findings, deep=deep)
    await _check_blobs(catalog, blobs, names, findings)
    if store is not None:
        await _check_store(catalog, blobs, store, sessions, findings)
    return findings


async def _sessions(catalog: Catalog) -> AsyncIterator[tuple[Key, bool]]:
    """Every session, and whether it is sealed to a key that is not here."""
    cursor: str | None = None
    while True:
        page = await catalog.sessions(SessionQuery(None, limit=PAGE, cursor=cursor))
        for row in page.sessions:
            yield (row.product, row.summary.session_id), bool(row.summary.boxed_info)
        cursor = page.cursor
        if cursor is None:
            return


# -- uploads and blobs -------------------------------------------------------------------------------------------------


async def _check_uploads(
    catalog: Catalog, blobs: Blobs, sessions: Mapping[Key, bool], findings: Findings, *, deep: bool
) -> None:
    after = ""
    while rows := await catalog.all_uploads(after, PAGE):
        after = rows[-1].id
        for row in rows:
            findings.uploads += 1
            if row.session_id is not None and (row.product, row.session_id) not in sessions:
                known = await catalog.session(row.product, row.session_id)
                if known is None and await catalog.upload(row.id) is not None:
                    text = f"segment {row.index} is of session {row.session_id}, which is unknown"
                    findings.add(Kind.NO_SESSION, row.id, text)
            fault = await asyncio.to_thread(look_at, blobs, row, deep=deep)
            # Asked once more: it may have gone since the row was read.
            if fault is not None and _same(row, await catalog.upload(row.id)):
                findings.faults.append(fault)
            elif fault is None and is_kept(row):
                findings.bytes += row.state.offset


def _same(row: UploadRow, now: UploadRow | None) -> bool:
    return now is not None and now.state.phase is row.state.phase and now.verification is row.verification


def is_kept(row: UploadRow) -> bool:
    """Whether the bytes up to the upload's offset must be here."""
    if row.state.gone and row.verification is not Verification.VERIFIED:
        return False  # cancelled or expired: the bytes went with it, or are about to
    return row.state.offset > 0 and not (row.state.creation.parts and not row.state.complete)


def look_at(blobs: Blobs, row: UploadRow, *, deep: bool) -> Fault | None:
    """What is wrong with an upload's bytes. Blocks; for a thread."""
    if not is_kept(row):
        return None
    size, offset = blobs.size(row.id), row.state.offset
    if size < offset:
        return Fault(Kind.BYTES_LOST, row.id, f"{offset} bytes were announced, {size} are here")
    verified = row.verification is Verification.VERIFIED
    if size > offset and (row.state.complete or verified):
        return Fault(Kind.BYTES_BEYOND, row.id, f"the complete upload has {offset} bytes, {size} are here")
    return _look_into(blobs, row) if verified and deep else None


def _look_into(blobs: Blobs, row: UploadRow) -> Fault | None:
    """What is wrong with a verified segment, read from its first byte to its last."""
    found = verify(blobs, row)
    if found.verification is not Verification.VERIFIED:
        return Fault(Kind.SPOILT, row.id, found.detail)
    if found.sha256 != row.sha256:
        return Fault(Kind.SPOILT, row.id, f"the digest was {row.sha256}, and is {found.sha256}")
    return None


async def _check_blobs(catalog: Catalog, blobs: Blobs, names: list[str], findings: Findings) -> None:
    doomed: set[str] | None = None
    for name in names:
        findings.blobs += 1
        if await catalog.upload(name) is not None:
            continue
        if doomed is None:
            doomed = {each for row in await catalog.doomed(2**31) for each in row.upload_ids}
        size = await asyncio.to_thread(blobs.size, name)
        if name not in doomed and size:
            findings.add(Kind.UNKNOWN_BLOB, name, f"{size} bytes belong to no upload")


# -- the analytics store -----------------------------------------------------------------------------------------------


async def _check_store(
    catalog: Catalog, blobs: Blobs, store: AnalyticsStore, sessions: Mapping[Key, bool], findings: Findings
) -> None:
    noted = int(await catalog.note(GENERATION_NOTE) or 0)
    if await asyncio.to_thread(lambda: store.generation) < noted:
        findings.notes.append("the analytics store is older than the catalog: the next start loads it anew")
        return
    doomed = {(each.product, each.session_id) for each in await catalog.doomed(2**31)}
    listed: set[Key] = set()
    holdings = store.holdings()
    while some := await asyncio.to_thread(lambda: list(islice(holdings, PAGE))):
        for holding in some:
            key = (holding.product, holding.session_id)
            if holding.listed:
                listed.add(key)
            if key not in doomed:
                _check_holding(holding, findings, known=key in sessions)
            findings.records += holding.rows
        await _check_progress(catalog, blobs, store, some, sessions, findings)
    await _check_listed(catalog, store, set(sessions) - listed, findings)
    for text in await asyncio.to_thread(lambda: list(store.disagreements())):
        findings.add(Kind.SUMS_WRONG, "analytics store", text)


def _check_holding(holding: Holding, findings: Findings, *, known: bool) -> None:
    subject = f"{holding.product} {holding.session_id}"
    if not known and (holding.rows or holding.noted):
        findings.add(Kind.RECORDS_STRANGE, subject, f"{holding.rows} records are of a session that is unknown")
        return
    if holding.rows > holding.numbers:
        findings.add(Kind.RECORDS_TWICE, subject, f"{holding.rows} rows have {holding.numbers} different numbers")
    elif holding.rows < holding.noted:
        findings.add(Kind.RECORDS_MISSING, subject, f"{holding.noted} records were loaded, {holding.rows} are here")
    elif holding.rows > holding.noted:
        findings.add(Kind.RECORDS_STRANGE, subject, f"{holding.noted} records were loaded, {holding.rows} are here")


async def _check_progress(
    catalog: Catalog,
    blobs: Blobs,
    store: AnalyticsStore,
    holdings: list[Holding],
    sessions: Mapping[Key, bool],
    findings: Findings,
) -> None:
    """Hold what the store says it took of each segment against the segment."""
    keys = [(each.product, each.session_id) for each in holdings]
    progress = await asyncio.to_thread(store.progress, keys)
    for key, uploads in progress.items():
        for upload_id, taken in uploads.items():
            row = await catalog.upload(upload_id)
            if row is None or (row.product, row.session_id) != key:
                continue  # it made room for another upload of the same segment, and was forgotten since
            over = sessions.get(key, False) or await asyncio.to_thread(_only_seal_left, blobs, row, taken.consumed)
            findings.faults.extend(_of_progress(row, taken, over=over))


def _only_seal_left(blobs: Blobs, row: UploadRow, consumed: int) -> bool:
    """Whether nothing was left unread but, at most, the seal: a segment that was loaded to its last block while it was
    incomplete, and completed by a request without bytes, has nothing to be loaded any more. Blocks.
    """
    left = row.state.offset - consumed
    if not 0 < left <= MAX_SEAL + SKIPPABLE.size:
        return left <= 0
    try:
        return Seal.decode(blobs.read(row.id, consumed, left)) is not None
    except (OSError, SegmentError):
        return False  # what is wrong with the blob is told elsewhere


def _of_progress(row: UploadRow, taken: Progress, *, over: bool) -> Iterator[Fault]:
    """`over`: what was not taken holds nothing to be loaded, or waits for its key."""
    if taken.consumed > row.state.offset:
        text = f"{taken.consumed} bytes were loaded, {row.state.offset} were announced"
        yield Fault(Kind.RECORDS_STRANGE, row.id, text)
    numbers = sum(end - first for first, end in taken.ranges)
    if numbers != taken.records:
        yield Fault(Kind.RECORDS_MISSING, row.id, f"{taken.records} records were loaded under {numbers} numbers")
    through = row.verification is Verification.VERIFIED and row.loaded >= row.state.offset
    if through and not over and taken.failed is None and taken.consumed < row.state.offset:
        text = f"the catalog has it as loaded, the store has {taken.consumed} of {row.state.offset} bytes"
        yield Fault(Kind.RECORDS_MISSING, row.id, text)


async def _check_listed(catalog: Catalog, store: AnalyticsStore, missing: set[Key], findings: Findings) -> None:
    """Sessions that the store should have copied by now, and has not."""
    revision = await asyncio.to_thread(lambda: store.revision)
    while True:
        rows, last = await catalog.changed_sessions(revision, PAGE)
        missing -= {(row.product, row.summary.session_id) for row in rows}
        if not rows:
            break
        revision = last
    for product, session_id in sorted(missing):
        findings.add(Kind.NOT_LISTED, f"{product} {session_id}", "the session is not in the reports")

"""A catalog in this process's memory: `Catalog` carried out without SQL, to prove that its contract can be met by
another engine, and to run a server on. Nothing of it survives; everything else is as promised.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from msgspec import structs
from msgspec.structs import replace

from mailboat.protocol import Summary
from mailboat.protocol.limits import MAX_SEGMENT
from mailboat.protocol.negotiation import Reason
from mailboat.protocol.summary import Status, joined
from mailboat.protocol.uploads.rufh import CURRENT
from mailboat.protocol.uploads.state import Phase, UploadState
from mailboat.protocol.uploads.values import Limits
from mailboat.server.catalog import (
    Arrival,
    Deletion,
    Doomed,
    KeyRow,
    LedgerRow,
    ProductRow,
    Queue,
    Registration,
    SegmentRow,
    SessionPage,
    SessionQuery,
    SessionRow,
    SessionState,
    UploadRow,
    Usage,
    Verification,
)
from mailboat.server.policy import DAY, month_of
from mailboat.server.triage_rows import Standing, TriageRow
from testkit.memory_rows import (
    adds_to,
    by_id,
    cursor_after,
    is_apart,
    is_quarantined,
    listing_order,
    matches,
    overtaken,
    read_cursor,
    segment_of,
)
from testkit.serverkit import fresh_session_id

Key = tuple[str, str]


@dataclass
class _Session:
    """A session with what the catalog keeps beside its row."""

    row: SessionRow
    revision: int
    counted: int = 0


@dataclass
class MemoryCatalog:
    """`Catalog` in dictionaries; a coroutine here never waits, so each call is one transaction."""

    new_id: Callable[[], str] = fresh_session_id
    _products: dict[str, ProductRow] = field(default_factory=dict)
    _keys: dict[bytes, KeyRow] = field(default_factory=dict)
    _sessions: dict[Key, _Session] = field(default_factory=dict)
    _uploads: dict[str, UploadRow] = field(default_factory=dict)
    _ledgers: dict[tuple[str, str], LedgerRow] = field(default_factory=dict)
    _usage: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))
    _arrivals: dict[tuple[str, float], int] = field(default_factory=lambda: defaultdict(int))
    _doomed: dict[Key, Doomed] = field(default_factory=dict)
    _deletions: dict[tuple[str, float], Deletion] = field(default_factory=dict)
    _triages: dict[Key, TriageRow] = field(default_factory=dict)
    _notes: dict[str, str] = field(default_factory=dict)
    _leases: dict[str, tuple[str, float]] = field(default_factory=dict)
    _revision: int = 0

    async def open(self) -> None:
        """Nothing to be done."""

    async def close(self) -> None:
        """Nothing to be done."""

    # -- products and keys ---------------------------------------------------------------------------------------

    async def products(self) -> tuple[ProductRow, ...]:
        return tuple(self._products[name] for name in sorted(self._products))

    async def product(self, name: str) -> ProductRow | None:
        return self._products.get(name)

    def product_and_note(self, name: str, note: str) -> tuple[ProductRow | None, str | None]:
        return self._products.get(name), self._notes.get(note)

    async def put_product(self, row: ProductRow) -> None:
        known = self._products.get(row.name)
        self._products[row.name] = row if known is None else replace(known, plan=row.plan)

    async def key(self, digest: bytes) -> KeyRow | None:
        return self._keys.get(digest)

    async def keys(self) -> tuple[KeyRow, ...]:
        return tuple(sorted(self._keys.values(), key=lambda row: (row.created, row.id)))

    async def put_key(self, row: KeyRow) -> None:
        if row.product is not None:
            self._products.setdefault(row.product, ProductRow(row.product, row.created))
        self._keys[row.digest] = row

    async def revoke_key(self, key_id: str, now: float) -> bool:
        for digest, row in self._keys.items():
            if row.id == key_id and row.revoked is None:
                self._keys[digest] = replace(row, revoked=now)
                return True
        return False

    # -- negotiation ---------------------------------------------------------------------------------------------

    async def arrivals(self, product: str, now: float) -> int:
        return self._arrivals[product, now // DAY]

    async def register(
        self, offers: Sequence[Registration], now: float, ledger: LedgerRow | None = None
    ) -> tuple[tuple[SegmentRow, ...], ...]:
        for offer in offers:
            self._upsert(offer, now)
        if ledger is not None:
            self._put_ledger(ledger)
        for offer in offers:
            if offer.state is SessionState.WANTED:
                self._make_uploads(offer, now)
        return tuple(self._segments(offer.product, offer.summary.session_id) for offer in offers)

    def _upsert(self, offer: Registration, now: float) -> None:
        self._revision += 1
        key = (offer.product, offer.summary.session_id)
        known = self._sessions.get(key)
        row = SessionRow(
            offer.product,
            offer.summary,
            offer.state,
            offer.reason,
            offer.explanation,
            offer.skew,
            now,
            now,
            source=offer.source,
        )
        if known is None:
            known = self._sessions[key] = _Session(row, self._revision)
            self._arrivals[offer.product, now // DAY] += 1
        elif known.row.summary.status is Status.RUNNING or offer.summary.status is not Status.RUNNING:
            before = known.row
            if before.reason == Reason.CORRUPTED:
                row = replace(row, state=before.state, reason=before.reason, explanation=before.explanation)
            skew = before.skew if offer.skew is None else offer.skew
            known.row, known.revision = replace(row, first_seen=before.first_seen, skew=skew), self._revision
        if offer.state is SessionState.WANTED and offer.summary.records > known.counted:
            self._usage[offer.product, month_of(now)] += offer.summary.records - known.counted
            known.counted = offer.summary.records

    def _make_uploads(self, offer: Registration, now: float) -> None:
        session_id = offer.summary.session_id
        held_open = [each for each in self._segments(offer.product, session_id) if not each.complete]
        room = offer.fresh_uploads - len(held_open)
        for state in offer.summary.segments:
            held, arrival = self._upload_of(offer.product, session_id, state.index), offer.arrivals.get(state.index)
            outgrown = held is not None and state.sealed and held.state.offset > state.size
            if held is not None and not segment_of(held).complete and (arrival is not None or outgrown):
                self._detach(held, now)
                held = None
            if held is None and (arrival is not None or room > 0):
                room -= 0 if arrival else 1
                self._make_upload(offer, state.index, arrival, now)

    def _make_upload(self, offer: Registration, index: int, arrival: Arrival | None, now: float) -> None:
        state = UploadState(self.new_id(), limits=Limits(max_size=MAX_SEGMENT), dialect=CURRENT.tag)
        row = UploadRow(state, offer.product, offer.summary.session_id, index, created=now, updated=now)
        if arrival is not None:
            done = structs.replace(
                state, id=arrival.upload_id, offset=arrival.size, length=arrival.size, phase=Phase.COMPLETE
            )
            row = replace(
                row,
                state=done,
                verification=arrival.verification,
                sha256=arrival.sha256,
                records=arrival.records,
                reason=arrival.reason,
                detail=arrival.detail,
            )
        self._uploads[row.id] = row
        if row.verification is Verification.REJECTED:
            self._reject(row.product, row.session_id, row.reason, row.detail, now)

    def _put_ledger(self, row: LedgerRow) -> None:
        self._ledgers[row.product, row.source] = row

    async def usage(self, product: str, month: int, session_ids: Sequence[str] = ()) -> Usage:
        known = ((session_id, self._sessions.get((product, session_id))) for session_id in session_ids)
        taken = frozenset(each for each, found in known if found and found.row.state is SessionState.WANTED)
        return Usage(self._usage.get((product, month), 0), taken)

    async def ledgers(
        self,
        product: str | None,
        after: tuple[str, str] = ("", ""),
        limit: int = 500,
        period: tuple[float | None, float | None] = (None, None),
    ) -> tuple[LedgerRow, ...]:
        since, until = period
        rows = [row for place, row in sorted(self._ledgers.items()) if place > after and product in (None, place[0])]
        rows = [row for row in rows if since is None or row.updated >= since]
        return tuple(row for row in rows if until is None or row.updated < until)[:limit]

    # -- uploads -------------------------------------------------------------------------------------------------

    async def upload(self, upload_id: str) -> UploadRow | None:
        return self._uploads.get(upload_id)

    async def make_upload(self, row: UploadRow) -> None:
        self._uploads[row.id] = row

    async def store(self, state: UploadState, now: float) -> bool:
        row = self._uploads.get(state.id)
        if row is None or overtaken(row.state, state):
            return False
        row = replace(row, state=structs.replace(state, dialect=row.state.dialect), updated=now)
        if state.gone and row.verification is Verification.PENDING:
            row = replace(row, session_id=None, index=None)
        self._uploads[state.id] = row
        return True

    async def finish_upload(self, row: UploadRow) -> bool:
        known = self._uploads.get(row.id)
        if known is None or overtaken(known.state, row.state):
            return False
        if known.verification is Verification.REJECTED:
            row = replace(row, verification=known.verification, reason=known.reason, detail=known.detail)
        self._uploads[row.id] = replace(row, product=known.product, loaded=known.loaded, created=known.created)
        if row.verification is Verification.REJECTED:
            self._reject(row.product, row.session_id, row.reason, row.detail, row.updated)
        return True

    async def any_upload(self, first: str, beyond: str) -> bool:
        return any(first <= upload_id < beyond for upload_id in self._uploads)

    async def open_uploads(self) -> tuple[UploadRow, ...]:
        return tuple(row for row in self._uploads.values() if row.state.phase is Phase.OPEN)

    async def made_of(self, part_id: str) -> tuple[UploadRow, ...]:
        return tuple(row for row in await self.open_uploads() if part_id in row.state.creation.parts)

    async def strangers(self, product: str) -> tuple[int, int]:
        rows = [row for row in self._uploads.values() if row.product == product and row.session_id is None]
        size = sum(row.state.offset for row in rows if row.state.complete)
        return sum(row.state.phase is Phase.OPEN for row in rows), size

    async def expired(self, now: float, quarantine: float, limit: int) -> tuple[str, ...]:
        def over(row: UploadRow) -> bool:
            expires = row.state.expires
            done = expires is not None and expires <= now and not row.state.gone
            return done or (is_quarantined(row) and row.updated <= now - quarantine)

        return tuple(sorted(row.id for row in self._uploads.values() if over(row))[:limit])

    async def long_gone(self, before: float, limit: int) -> tuple[str, ...]:
        rows = self._uploads.values()
        gone = [row.id for row in rows if row.state.gone and row.session_id is None and row.updated <= before]
        return tuple(gone[:limit])

    async def forget_uploads(self, upload_ids: Sequence[str]) -> None:
        for upload_id in upload_ids:
            self._uploads.pop(upload_id, None)

    async def quarantined(self, product: str | None, after: str | None, limit: int) -> tuple[UploadRow, ...]:
        rows = [row for row in self._uploads.values() if is_apart(row) and product in (None, row.product)]
        return tuple([row for row in by_id(rows) if row.id > (after or "")][:limit])

    async def adopt(self, row: UploadRow, summary: Summary) -> bool:
        if row.session_id is None or row.index is None:
            raise ValueError("no segment")
        held = self._upload_of(row.product, row.session_id, row.index)
        if held is not None and held.verification is not Verification.PENDING:
            return False
        if held is not None and held.id != row.id:
            self._detach(held, row.updated)
        known = self._sessions.get((row.product, row.session_id))
        offer = Registration(row.product, summary, SessionState.WANTED)
        if known is None:
            self._upsert(offer, row.updated)
        elif adds_to(known.row, summary):
            self._upsert(replace(offer, summary=joined(known.row.summary, summary)), row.updated)
        return await self.finish_upload(row)

    # -- ingest --------------------------------------------------------------------------------------------------

    def _waiting(self) -> list[SegmentRow]:
        rows = [row for row in self._uploads.values() if row.session_id is not None]
        rows = [row for row in rows if row.loaded < row.state.offset and row.verification != Verification.REJECTED]
        return [segment_of(row) for row in sorted(rows, key=lambda row: row.updated)]

    async def segments_to_load(self, limit: int = 100) -> tuple[SegmentRow, ...]:
        return tuple(self._waiting()[:limit])

    async def latest_to_load(self, limit: int, size: int) -> tuple[SegmentRow, ...]:
        waiting = [row for row in self._waiting() if row.loaded >= 0]
        going_on = [row for row in waiting if self._uploads[row.upload_id].state.phase is Phase.OPEN]
        others = [row for row in waiting if row not in going_on and row.offset - row.loaded <= size]
        chosen = (*sorted(going_on, key=lambda row: row.offset - row.loaded), *reversed(others))
        return chosen[:limit]

    async def mark_loaded(self, loaded: Mapping[str, int]) -> None:
        for upload_id, offset in loaded.items():
            row = self._uploads.get(upload_id)
            if row is not None:
                self._uploads[upload_id] = replace(row, loaded=max(row.loaded, offset))

    async def forget_loaded(self) -> None:
        self._uploads = {upload_id: replace(row, loaded=min(row.loaded, 0)) for upload_id, row in self._uploads.items()}

    async def mark_rejected(self, upload_id: str, reason: str, detail: str, now: float) -> None:
        row = self._uploads[upload_id]
        row = replace(row, verification=Verification.REJECTED, reason=reason, detail=detail, updated=now)
        self._uploads[upload_id] = row
        self._reject(row.product, row.session_id, reason, detail, now)

    async def readmit(self, row: UploadRow) -> bool:
        known = self._uploads.get(row.id)
        if known is None or not known.state.complete or known.verification is not Verification.REJECTED:
            return False
        found = {"sha256": row.sha256, "records": row.records, "updated": row.updated}
        verified = {"verification": Verification.VERIFIED, "reason": "", "detail": "", "loaded": -1}
        self._uploads[row.id] = replace(known, **found, **verified)
        held = self._sessions.get((known.product, known.session_id or ""))
        others = self._segments(known.product, known.session_id or "")
        spoilt = any(each.verification is Verification.REJECTED for each in others)
        if held and not spoilt and (held.row.state, held.row.reason) == (SessionState.REJECTED, known.reason):
            self._revision += 1
            wanted = {"state": SessionState.WANTED, "reason": "", "explanation": "", "updated": row.updated}
            held.row, held.revision = replace(held.row, **wanted), self._revision
        return True

    # -- reading -------------------------------------------------------------------------------------------------

    async def sessions(self, query: SessionQuery) -> SessionPage:
        rows = [known.row for known in self._sessions.values() if matches(known.row, query)]
        rows = sorted(rows, key=listing_order, reverse=True)
        if query.cursor is not None:
            before = read_cursor(query.cursor)
            rows = [row for row in rows if listing_order(row) < before]
        page = [self._whole(row) for row in rows[: query.limit]]
        more = len(rows) > query.limit
        return SessionPage(tuple(page), cursor_after(page[-1]) if more else None)

    async def session(self, product: str | None, session_id: str) -> SessionRow | None:
        for key in sorted(self._sessions):
            if key[1] == session_id and product in (None, key[0]):
                return self._whole(self._sessions[key].row)
        return None

    async def changed_sessions(self, after: int, limit: int = 500) -> tuple[tuple[SessionRow, ...], int]:
        changed = sorted((each.revision, key) for key, each in self._sessions.items() if each.revision > after)[:limit]
        rows = tuple(self._sessions[key].row for _, key in changed)
        return rows, changed[-1][0] if changed else after

    # -- history windows -----------------------------------------------------------------------------------------

    async def begun_before(
        self, product: str, before: float, limit: int = 500, skip: int = 0
    ) -> tuple[SessionRow, ...]:
        rows = [known.row for key, known in self._sessions.items() if key[0] == product]
        aged = sorted((row.summary.started + (row.skew or 0.0), row.summary.session_id, row) for row in rows)
        return tuple([row for began, _, row in aged if began < before][skip : skip + limit])

    async def remove_sessions(self, rows: Sequence[SessionRow], now: float) -> tuple[Doomed, ...]:
        removed = []
        for row in rows:
            key = (row.product, row.summary.session_id)
            known = self._sessions.get(key)
            if known is None or known.row.updated != row.updated:
                continue
            del self._sessions[key]
            held = [each for each in self._uploads.values() if (each.product, each.session_id) == key]
            for each in held:
                del self._uploads[each.id]
            self._doomed[key] = Doomed(*key, tuple(each.id for each in held))
            self._count_deletion(row.product, now, held)
            removed.append(self._doomed[key])
        return tuple(removed)

    def _count_deletion(self, product: str, now: float, held: Sequence[UploadRow]) -> None:
        day = now // DAY * DAY
        known = self._deletions.get((product, day), Deletion(product, day, 0, 0, 0, 0))
        self._deletions[product, day] = replace(
            known,
            sessions=known.sessions + 1,
            segments=known.segments + len(held),
            records=known.records + sum(each.records for each in held),
            bytes=known.bytes + sum(each.state.offset for each in held),
        )

    async def doomed(self, limit: int = 500) -> tuple[Doomed, ...]:
        return tuple(self._doomed.values())[:limit]

    async def strike(self, gone: Sequence[Doomed]) -> None:
        for each in gone:
            self._doomed.pop((each.product, each.session_id), None)

    async def deletions(self, product: str | None, limit: int = 400) -> tuple[Deletion, ...]:
        rows = [row for row in self._deletions.values() if product in (None, row.product)]
        return tuple(sorted(rows, key=lambda row: (-row.day, row.product))[:limit])

    # -- looking at everything -----------------------------------------------------------------------------------

    async def all_uploads(self, after: str = "", limit: int = 500) -> tuple[UploadRow, ...]:
        return tuple([row for row in by_id(self._uploads.values()) if row.id > after][:limit])

    async def queue(self) -> Queue:
        waiting = self._waiting()
        size = sum(each.offset - max(each.loaded, 0) for each in waiting)
        return Queue(len(await self.open_uploads()), len(waiting), size, waiting[0].updated if waiting else None)

    async def faults(self) -> tuple[str, ...]:
        return ()

    # -- exceptions, notes ---------------------------------------------------------------------------------------

    async def triages(self, product: str | None) -> tuple[TriageRow, ...]:
        return tuple(row for row in self._triages.values() if product in (None, row.product))

    async def put_triage(self, row: TriageRow) -> None:
        self._triages.pop((row.product, row.group), None)
        if row.standing is not Standing.NEW:
            self._triages[row.product, row.group] = row

    async def note(self, name: str) -> str | None:
        return self._notes.get(name)

    async def put_note(self, name: str, text: str) -> None:
        self._notes[name] = text

    async def lease(self, name: str, holder: str, now: float, seconds: float) -> bool:
        other, until = self._leases.get(name, (holder, now))
        if other != holder and now < until <= now + seconds:
            return False
        self._leases[name] = holder, now + seconds
        return True

    async def release(self, name: str, holder: str) -> None:
        if self._leases.get(name, ("", 0.0))[0] == holder:
            del self._leases[name]

    # -- what several of them need -------------------------------------------------------------------------------

    def _upload_of(self, product: str, session_id: str, index: int) -> UploadRow | None:
        wanted = (product, session_id, index)
        rows = self._uploads.values()
        return next((row for row in rows if (row.product, row.session_id, row.index) == wanted), None)

    def _segments(self, product: str, session_id: str) -> tuple[SegmentRow, ...]:
        rows = [row for row in self._uploads.values() if (row.product, row.session_id) == (product, session_id)]
        return tuple(sorted(map(segment_of, rows), key=lambda each: each.index))

    def _whole(self, row: SessionRow) -> SessionRow:
        return replace(row, segments=self._segments(row.product, row.summary.session_id))

    def _detach(self, row: UploadRow, now: float) -> None:
        state = structs.replace(row.state, phase=Phase.INVALID, epoch=row.state.epoch + 1)
        self._uploads[row.id] = replace(row, state=state, session_id=None, index=None, updated=now)

    def _reject(self, product: str, session_id: str | None, reason: str, detail: str, now: float) -> None:
        known = self._sessions.get((product, session_id or ""))
        if known is not None:
            self._revision += 1
            rejected = {"state": SessionState.REJECTED, "reason": reason, "explanation": detail, "updated": now}
            known.row, known.revision = replace(known.row, **rejected), self._revision

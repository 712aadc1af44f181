"""The catalog: what the server knows of products, keys, sessions and uploads, behind a narrow interface.

Everything but segment bytes (`blobs`) and loaded records (`analytics`) is kept here. `Catalog` is what the rest of the
server may rely on; `sqlite_catalog` carries it out on one machine, and another engine can take its place.

The promises:

* A coroutine that changes something returns when the change survives power loss, and not before. Changes that are
  asked for at the same time share one commit.
* One call is one transaction: all of it happens or none.
* Rows are frozen values. Times are Unix seconds by the server's clock unless the name says otherwise.
* A product's rows are never touched or shown under another product's name: session ids are made by clients, so they
  mean something only within a product.

Raises `CatalogError` when the engine cannot do as asked (disk full, file damaged); nothing was changed then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol

from msgspec import Struct, field

from mailboat.protocol.errors import StoreError
from mailboat.protocol.limits import MAX_SEGMENTS
from mailboat.protocol.summary import Summary
from mailboat.protocol.uploads.state import UploadState
from mailboat.server.triage_rows import TriageRow


class CatalogError(StoreError):
    """The catalog cannot be read or written; the message names the reason."""


class Role(StrEnum):
    """What a key may do: agents send, readers read (both within one product), admins everything everywhere."""

    AGENT = "agent"
    READER = "reader"
    ADMIN = "admin"


class KeyRow(Struct, frozen=True):
    """A key, without its text: `digest` is the SHA-256 of that, `product` None for an admin's key."""

    id: str
    digest: bytes
    product: str | None
    role: Role
    created: float
    revoked: float | None = None


class ProductRow(Struct, frozen=True):
    """A product and its policy as plain values (see `policy.Plan`)."""

    name: str
    created: float
    plan: Mapping[str, Any] = field(default_factory=dict)


class SessionState(StrEnum):
    """What the server has decided about a session's details."""

    WANTED = "wanted"
    DECLINED = "declined"
    REJECTED = "rejected"


class Verification(StrEnum):
    """Whether an upload's bytes are what they should be; the values are stored and do not change."""

    PENDING = "pending"
    """It is not complete yet."""
    VERIFIED = "verified"
    """An intact, sealed segment, of the session and index that it was made for."""
    REJECTED = "rejected"
    """Made for a segment, and no intact one; `reason` tells the negotiation's reason. The bytes are kept."""
    QUARANTINED = "quarantined"
    """Complete, and no segment at all: kept, and of no session."""
    IMPORTED = "imported"
    """Complete, and every segment in it is here as an upload of its own: kept a little longer, and of no session."""


class UploadRow(Struct, frozen=True, gc=False):
    """One upload resource. `session_id` and `index` are None unless it carries a segment.

    ``state.offset`` is the announced offset: durable in `blobs`, and never lowered. `sha256` (hex) is that in the seal
    of a verified segment, `records` the records in it; `loaded` the bytes that ingest has dealt with (-1: what
    was loaded of it is to be taken out first).
    """

    state: UploadState
    product: str
    session_id: str | None = None
    index: int | None = None
    verification: Verification = Verification.PENDING
    sha256: str = ""
    reason: str = ""
    detail: str = ""
    records: int = 0
    loaded: int = 0
    created: float = 0.0
    updated: float = 0.0

    @property
    def id(self) -> str:
        """The upload's id, a canonical UUID; also the blob's name."""
        return self.state.id


class SegmentRow(Struct, frozen=True, gc=False):
    """An upload that carries a segment, as reports and ingest need it.

    `offset` bytes are durable in blob `upload_id`; `complete` says that no more will come. Of a live session's segment
    the last block may still be cut: only whole blocks are to be loaded.
    """

    upload_id: str
    product: str
    session_id: str
    index: int
    offset: int
    complete: bool
    verification: Verification
    sha256: str
    reason: str
    detail: str
    records: int
    loaded: int
    created: float
    updated: float

    @property
    def key(self) -> tuple[str, str]:
        """Its session: product and session id."""
        return self.product, self.session_id


class SessionRow(Struct, frozen=True):
    """One session as offered last, with the segments that the server has or wants.

    `skew` is to be added to the recording machine's wall clock to get the server's (None: unknown). `source` is whose
    account it is in (`LedgerRow`).
    """

    product: str
    summary: Summary
    state: SessionState
    reason: str
    explanation: str
    skew: float | None
    first_seen: float
    updated: float
    segments: tuple[SegmentRow, ...] = ()
    source: str = ""

    @property
    def delivered(self) -> bool:
        """Whether every segment of the summary is here and verified, and no more will come."""
        verified = {each.index for each in self.segments if each.verification is Verification.VERIFIED}
        listed = self.summary.segments
        return all(each.sealed and each.index in verified for each in listed) and self.summary.status != "running"


class Origin(StrEnum):
    """Which sessions are shown: those of test runs are internal."""

    PUBLIC = "public"
    INTERNAL = "internal"
    ALL = "all"


class SessionQuery(Struct, frozen=True):
    """Which sessions to list, newest start first. `product` None: of all products (an admin's view).

    `since` <= start < `until`, by the recording machine's clock. `cursor` is what the page before gave.
    """

    product: str | None
    since: float | None = None
    until: float | None = None
    origin: Origin = Origin.ALL
    application: str | None = None
    version: str | None = None
    status: str | None = None
    state: SessionState | None = None
    limit: int = 100
    cursor: str | None = None


class SessionPage(Struct, frozen=True):
    """A page of a listing; `cursor` leads to the next one, None at the end."""

    sessions: tuple[SessionRow, ...]
    cursor: str | None


class Arrival(Struct, frozen=True):
    """A whole segment that came with its offer: `size` durable bytes in blob `upload_id`, and what they were found to
    be; see `UploadRow`.
    """

    upload_id: str
    size: int
    verification: Verification
    sha256: str = ""
    records: int = 0
    reason: str = ""
    detail: str = ""


class Registration(Struct, frozen=True, gc=False):
    """One offer as the policy has decided it: to be kept, and, if wanted, to be given an upload per listed segment.

    It has at most `fresh_uploads` unfinished uploads then, unless it had more; new ones are made for the first segments
    that have none. `arrivals` are segments that came with it, by index.
    """

    product: str
    summary: Summary
    state: SessionState
    reason: str = ""
    explanation: str = ""
    skew: float | None = None
    fresh_uploads: int = MAX_SEGMENTS
    source: str = ""
    arrivals: Mapping[int, Arrival] = field(default_factory=dict)


class Usage(Struct, frozen=True):
    """How much of its plan a product has used: records of wanted sessions in a month, and which of the sessions that
    were asked about had been taken before.
    """

    records: int = 0
    taken: frozenset[str] = frozenset()


class LedgerRow(Struct, frozen=True):
    """What the agent at `source` (host or installation) last said of its records; see the protocol's `Request`."""

    product: str
    source: str
    agent: str
    ledger: Mapping[str, Any]
    updated: float


class Queue(Struct, frozen=True):
    """What the server has still to do: uploads that take more bytes, segments whose bytes are not loaded yet, how many
    bytes those are, and since when the first of them has waited (None: none does).
    """

    unfinished: int = 0
    segments: int = 0
    bytes: int = 0
    since: float | None = None


class Doomed(Struct, frozen=True):
    """A session that was removed from the catalog: its rows in the analytics store and its uploads' blobs are to go."""

    product: str
    session_id: str
    upload_ids: tuple[str, ...]


class Deletion(Struct, frozen=True):
    """What was deleted of a product on one `day` (its first moment, UTC, as Unix seconds) because of its age."""

    product: str
    day: float
    sessions: int
    segments: int
    records: int
    bytes: int


class Catalog(Protocol):
    """What the server asks of a catalog. Every coroutine may be called at any time between `open` and `close`."""

    async def open(self) -> None:
        """Make or open the catalog and bring its layout up to date."""

    async def close(self) -> None:
        """Finish what was asked for, and release the engine."""

    # -- products and keys ---------------------------------------------------------------------------------------

    async def products(self) -> tuple[ProductRow, ...]:
        """All products, by name."""

    async def product(self, name: str) -> ProductRow | None:
        """One product."""

    def product_and_note(self, name: str, note: str) -> tuple[ProductRow | None, str | None]:
        """`product` and `note`, for a thread that has something to do with them. Blocks."""

    async def put_product(self, row: ProductRow) -> None:
        """Make a product, or give it another plan."""

    async def key(self, digest: bytes) -> KeyRow | None:
        """The key with this SHA-256, revoked ones included."""

    async def keys(self) -> tuple[KeyRow, ...]:
        """All keys, oldest first."""

    async def put_key(self, row: KeyRow) -> None:
        """Add a key; its product is made if there is none of that name."""

    async def revoke_key(self, key_id: str, now: float) -> bool:
        """Make a key useless; False when there is none of that id, or it was revoked before."""

    # -- negotiation ---------------------------------------------------------------------------------------------

    async def register(
        self, offers: Sequence[Registration], now: float, ledger: LedgerRow | None = None
    ) -> tuple[tuple[SegmentRow, ...], ...]:
        """Keep the summaries and the ledger, make the uploads that are missing, all in one transaction.

        For each offer: the segments that the server knows of that session, in order of index. An upload that was
        cancelled, expired or lost no longer counts as the segment's, nor does an unfinished one that holds more bytes
        than its sealed segment has (the machine lost what it had sent): a fresh one is made.

        A segment that arrived with its offer takes the place of an unfinished upload, and becomes a complete one; where
        the segment is here already, that one stays, and the blob that has arrived is the caller's to remove.
        """

    async def arrivals(self, product: str, now: float) -> int:
        """How many sessions of a product were new on the day (UTC) of `now`, whatever became of them since."""

    async def usage(self, product: str, month: int, session_ids: Sequence[str] = ()) -> Usage:
        """What a product has used in `month` (`policy.month_of`), and which of these sessions are wanted already.

        `register` and `adopt` count: each record of a wanted session once, in the month it was first told of.
        """

    async def ledgers(
        self,
        product: str | None,
        after: tuple[str, str] = ("", ""),
        limit: int = 500,
        period: tuple[float | None, float | None] = (None, None),
    ) -> tuple[LedgerRow, ...]:
        """What the agents of a product (None: all) said last, within a period, by product and source beyond `after`."""

    # -- uploads -------------------------------------------------------------------------------------------------

    async def upload(self, upload_id: str) -> UploadRow | None:
        """One upload."""

    async def make_upload(self, row: UploadRow) -> None:
        """Keep a new upload."""

    async def store(self, state: UploadState, now: float) -> bool:
        """Replace an upload's state; False, and nothing changed, when a newer epoch or a larger offset is stored.

        An unfinished upload that is gone with that no longer stands for a segment.
        """

    async def finish_upload(self, row: UploadRow) -> bool:
        """Like `store`, with the outcome of the verification. A rejection noted before stays."""

    async def any_upload(self, first: str, beyond: str) -> bool:
        """Whether there is an upload with an id from `first` on and before `beyond`."""

    async def open_uploads(self) -> tuple[UploadRow, ...]:
        """The uploads that take more bytes."""

    async def made_of(self, part_id: str) -> tuple[UploadRow, ...]:
        """The unfinished uploads that this one is a part of."""

    async def strangers(self, product: str) -> tuple[int, int]:
        """Of a product's uploads that are of no session: how many take more bytes, and bytes of the complete ones."""

    async def expired(self, now: float, quarantine: float, limit: int) -> tuple[str, ...]:
        """Ids of uploads whose time is over, and of those quarantined for more than `quarantine` seconds."""

    async def long_gone(self, before: float, limit: int) -> tuple[str, ...]:
        """Ids of uploads that have been gone since `before`, and stand for no segment."""

    async def forget_uploads(self, upload_ids: Sequence[str]) -> None:
        """Forget uploads altogether."""

    async def quarantined(self, product: str | None, after: str | None, limit: int) -> tuple[UploadRow, ...]:
        """Complete uploads that are no segments, or are rejected, of a product (None: all), by id, beyond `after`."""

    async def adopt(self, row: UploadRow, summary: Summary) -> bool:
        """`finish_upload` for one that turned out to be a verified segment, of a session that may never have been
        offered: it is made from `summary` then, or added to by it. An unfinished upload of that segment is given up for
        it. False, and nothing changed, when that segment has a complete one already.
        """

    # -- ingest --------------------------------------------------------------------------------------------------

    async def segments_to_load(self, limit: int = 100) -> tuple[SegmentRow, ...]:
        """Segments with durable bytes beyond what was loaded, none of them rejected, those waiting longest first."""

    async def latest_to_load(self, limit: int, size: int) -> tuple[SegmentRow, ...]:
        """Of the same segments those that should not wait for the others: what goes on (of a session that runs, say),
        first that with the fewest bytes to load; then what is complete and has at most `size` of them, the latest
        first. None that are to be loaded anew.
        """

    async def mark_loaded(self, loaded: Mapping[str, int]) -> None:
        """Note up to which offset each upload was dealt with: a hint that saves work, the truth is in analytics.

        A block that is still cut at that offset is to be looked at again when more bytes have come.
        """

    async def forget_loaded(self) -> None:
        """Have every segment loaded anew: analytics was lost, or is older than this catalog."""

    async def mark_rejected(self, upload_id: str, reason: str, detail: str, now: float) -> None:
        """A segment that was taken for good is not: its session is rejected for `reason`; the bytes are kept."""

    async def readmit(self, row: UploadRow) -> bool:
        """A rejected segment is what it should be after all: it is verified (digest and records as in `row`), to be
        taken out of analytics (`loaded` below zero) and loaded anew, and its session is wanted again, if nothing else
        speaks against it. False, and nothing changed, when it is not rejected any more.
        """

    # -- reading -------------------------------------------------------------------------------------------------

    async def sessions(self, query: SessionQuery) -> SessionPage:
        """A page of sessions; `WireError` for a cursor that was not handed out here."""

    async def session(self, product: str | None, session_id: str) -> SessionRow | None:
        """One session; with product None the one of any product (an admin's view)."""

    async def changed_sessions(self, after: int, limit: int = 500) -> tuple[tuple[SessionRow, ...], int]:
        """Sessions made or changed (offered, rejected, adopted) after revision `after`, in the order of their changes,
        and the revision of the last of them (`after` when there is none). Their `segments` are left out.
        """

    # -- history windows -----------------------------------------------------------------------------------------

    async def begun_before(
        self, product: str, before: float, limit: int = 500, skip: int = 0
    ) -> tuple[SessionRow, ...]:
        """Sessions of a product that began before a time (by the server's clock), the oldest first, after so many that
        are skipped. Their `segments` are left out.
        """

    async def remove_sessions(self, rows: Sequence[SessionRow], now: float) -> tuple[Doomed, ...]:
        """Remove sessions and their uploads, unless one has changed since the row was read; what of them has to go
        elsewhere is kept (`doomed`) until it is struck, and what was deleted is counted (`deletions`).
        """

    async def doomed(self, limit: int = 500) -> tuple[Doomed, ...]:
        """What was removed here and perhaps not yet elsewhere."""

    async def strike(self, gone: Sequence[Doomed]) -> None:
        """Say that these have gone everywhere."""

    async def deletions(self, product: str | None, limit: int = 400) -> tuple[Deletion, ...]:
        """What was deleted, by day, newest first, of a product (None: of all)."""

    # -- looking at everything -----------------------------------------------------------------------------------

    async def all_uploads(self, after: str = "", limit: int = 500) -> tuple[UploadRow, ...]:
        """Uploads in whatever state, by id, from the one after `after` on."""

    async def queue(self) -> Queue:
        """How much is still to be done."""

    async def faults(self) -> tuple[str, ...]:
        """What the engine finds wrong with its own files, in sentences; nothing where all is well."""

    # -- exceptions ----------------------------------------------------------------------------------------------

    async def triages(self, product: str | None) -> tuple[TriageRow, ...]:
        """What was said of the exceptions of a product (None: of all); groups that are new have none."""

    async def put_triage(self, row: TriageRow) -> None:
        """Keep it in place of what was said before; one that is `Standing.NEW` again is forgotten."""

    # -- the server itself ---------------------------------------------------------------------------------------

    async def note(self, name: str) -> str | None:
        """A text that the server keeps for itself (such as the boot it ran under)."""

    async def put_note(self, name: str, text: str) -> None:
        """Keep such a text."""

    async def lease(self, name: str, holder: str, now: float, seconds: float) -> bool:
        """Give the work called `name` to `holder` for so many seconds, or prolong that; False while another has it.

        One that would last longer than `seconds` from `now` was taken by a wrong clock, and keeps nobody off.
        """

    async def release(self, name: str, holder: str) -> None:
        """Give the work back, if it is `holder`'s."""

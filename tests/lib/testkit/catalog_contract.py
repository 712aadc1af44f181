"""What any catalog must do: a suite to be run for each implementation of `Catalog`.

Take it as a base class, and give it a fixture ``catalog`` of an open and empty one::

    class TestPostgres(CatalogContract):
        @pytest.fixture
        async def catalog(self) -> AsyncIterator[Catalog]: ...
"""

from __future__ import annotations

import asyncio

import pytest
from msgspec import structs
from msgspec.structs import replace

from mailboat.protocol import Summary, WireError
from mailboat.protocol.records import COUNTERS
from mailboat.protocol.summary import SegmentState, Status
from mailboat.protocol.uploads.state import Creation, Event, Phase, UploadState
from mailboat.server.catalog import (
    Arrival,
    Catalog,
    Deletion,
    Doomed,
    KeyRow,
    LedgerRow,
    Origin,
    ProductRow,
    Queue,
    Registration,
    Role,
    SessionQuery,
    SessionState,
    UploadRow,
    Verification,
)
from mailboat.server.policy import month_of
from mailboat.server.triage_rows import Standing, TriageRow
from testkit.serverkit import PRODUCT, fresh_session_id, make_segment, summary_of

DAY = 86_400.0


def offered(
    summary: Summary, *, started: float = 1.0, test: bool = False, product: str = PRODUCT, records: int | None = None
) -> Registration:
    """A wanted session of its own."""
    info = structs.replace(summary.info, test=test)
    fresh = structs.replace(summary, session_id=fresh_session_id(), started=started, info=info)
    if records is not None:
        fresh = structs.replace(fresh, counts=tuple(records if name == "feature" else 0 for name in COUNTERS))
    return Registration(product, fresh, SessionState.WANTED)


def complete(row: UploadRow, size: int = 10) -> UploadRow:
    """The upload with all its bytes, verified."""
    state = structs.replace(row.state, offset=size, length=size, phase=Phase.COMPLETE)
    return replace(row, state=state, verification=Verification.VERIFIED, sha256="ab" * 32, records=3, updated=5.0)


async def upload_of(catalog: Catalog, offer: Registration) -> UploadRow:
    """Register an offer of one segment; its upload."""
    ((segment,),) = await catalog.register([offer], 1.0)
    row = await catalog.upload(segment.upload_id)
    assert row is not None
    return row


class CatalogContract:
    """The suite."""

    @pytest.fixture
    def summary(self) -> Summary:
        """A summary of a session of one segment."""
        return summary_of(make_segment(fresh_session_id()))

    # -- products and keys ---------------------------------------------------------------------------------------

    async def test_a_product_keeps_its_birth_and_takes_another_plan(self, catalog: Catalog) -> None:
        assert await catalog.product("B") is None
        await catalog.put_product(ProductRow("B", 1.0, {"details": "none"}))
        await catalog.put_product(ProductRow("A", 2.0))
        await catalog.put_product(ProductRow("B", 3.0, {"share": 0.5, "versions": {"1.*": "all"}}))
        assert await catalog.product("B") == ProductRow("B", 1.0, {"share": 0.5, "versions": {"1.*": "all"}})
        assert [row.name for row in await catalog.products()] == ["A", "B"]

    async def test_a_key_is_found_by_its_digest_and_revoked_once(self, catalog: Catalog) -> None:
        agent = KeyRow("key-2", b"a" * 32, PRODUCT, Role.AGENT, 2.0)
        admin = KeyRow("key-1", b"b" * 32, None, Role.ADMIN, 1.0)
        for row in (agent, admin):
            await catalog.put_key(row)
        assert await catalog.key(b"a" * 32) == agent
        assert await catalog.key(b"c" * 32) is None
        assert await catalog.keys() == (admin, agent)
        assert await catalog.product(PRODUCT) == ProductRow(PRODUCT, 2.0), "its product is made with it"
        assert await catalog.revoke_key("key-2", 9.0)
        assert not await catalog.revoke_key("key-2", 10.0)
        assert not await catalog.revoke_key("key-3", 10.0)
        assert await catalog.key(b"a" * 32) == replace(agent, revoked=9.0)

    # -- plans ---------------------------------------------------------------------------------------------------

    async def test_records_are_counted_once_in_their_month(self, catalog: Catalog, summary: Summary) -> None:
        january, february = 40 * DAY, 75 * DAY  # of 1970
        first, second = offered(summary, records=5), offered(summary, records=7)
        declined = replace(offered(summary, records=100), state=SessionState.DECLINED)
        foreign = offered(summary, records=1000, product="Other")
        month = 1970 * 12
        for _ in range(3):
            await catalog.register([first, declined, foreign], 30 * DAY)
        assert (await catalog.usage(PRODUCT, month)).records == 5
        grown = replace(first, summary=structs.replace(first.summary, counts=second.summary.counts))
        await catalog.register([grown, grown, second], january)
        assert (await catalog.usage(PRODUCT, month + 1)).records == 9
        await catalog.register([first, second], february)
        assert (await catalog.usage(PRODUCT, month + 2)).records == 0
        ids = [each.summary.session_id for each in (first, declined, foreign)]
        assert (await catalog.usage(PRODUCT, month, [*ids, fresh_session_id()])).taken == {ids[0]}
        assert (await catalog.usage("Nobody", month, ids)).taken == frozenset()

    async def test_a_ledger_takes_the_place_of_the_one_before(self, catalog: Catalog, summary: Summary) -> None:
        before = LedgerRow(PRODUCT, "host", "agent", {"recorded": 1, "by": {"x": [1]}}, 1.0)
        row = replace(before, ledger={"recorded": 2}, updated=2.0)
        for each in (before, row):
            await catalog.register([offered(summary)], 1.0, each)
        await catalog.register([], 1.0, LedgerRow("Other", "host", "agent", {}, 3.0))
        assert await catalog.ledgers(PRODUCT) == (row,)
        assert [each.product for each in await catalog.ledgers(None)] == [PRODUCT, "Other"]
        other = replace(row, agent="another agent", ledger={"recorded": 3})
        await catalog.register([], 1.0, other)
        assert await catalog.ledgers(PRODUCT) == (other,), "one account, whoever tells it"

    async def test_pages_show_every_ledger_once(self, catalog: Catalog) -> None:
        rows = [LedgerRow(p, s, "agent", {}, 1.0) for p in ("A", "B", "Ö") for s in ("", "host", "z\U0001f30d", "ö")]
        for row in rows[::-1]:
            await catalog.register([], 1.0, row)
        for product in (None, "B"):
            found: list[LedgerRow] = []
            while page := await catalog.ledgers(
                product, (found[-1].product, found[-1].source) if found else ("", ""), 3
            ):
                found += page
            assert found == [row for row in rows if product in (None, row.product)]
        await catalog.register([], 1.0, replace(rows[2], updated=5.0))
        for period, updated in (
            ((5.0, None), {5.0}),
            ((None, 5.0), {1.0}),
            ((1.0, 6.0), {1.0, 5.0}),
            ((6.0, 7.0), set()),
        ):
            assert {row.updated for row in await catalog.ledgers(None, period=period)} == updated

    # -- uploads ---------------------------------------------------------------------------------------------------

    async def test_an_upload_is_read_back_as_it_was_kept(self, catalog: Catalog) -> None:
        row = UploadRow(
            UploadState(fresh_session_id(), 5, 10, epoch=3, expires=9.5, dialect="rufh-9"),
            PRODUCT,
            created=1,
            updated=1,
        )
        await catalog.make_upload(row)
        assert await catalog.upload(row.id) == row
        grown = structs.replace(row.state, offset=7, epoch=4)
        assert await catalog.store(grown, 2.0)
        assert await catalog.upload(row.id) == replace(row, state=grown, updated=2.0)

    async def test_the_fence_refuses_what_was_overtaken(self, catalog: Catalog) -> None:
        state = UploadState(fresh_session_id(), offset=100, epoch=5)
        await catalog.make_upload(UploadRow(state, PRODUCT))
        assert not await catalog.store(structs.replace(state, offset=200, epoch=4), 1.0)
        assert not await catalog.store(structs.replace(state, offset=99, epoch=6), 1.0)
        gone = structs.replace(state, epoch=6).after(Event.CANCEL)
        assert await catalog.store(gone, 1.0)
        assert not await catalog.store(structs.replace(state, offset=300, epoch=9), 1.0)
        found = await catalog.upload(state.id)
        assert found is not None
        assert (found.state.offset, found.state.phase) == (100, Phase.CANCELLED)

    async def test_a_rejection_is_not_undone_by_a_late_verification(self, catalog: Catalog, summary: Summary) -> None:
        """Ingest may find a live segment spoilt before it is complete."""
        offer = offered(summary)
        ((segment,),) = await catalog.register([offer], 1.0)
        row = await catalog.upload(segment.upload_id)
        assert row is not None
        await catalog.mark_rejected(row.id, "corrupted", "records that do not decode", 2.0)
        complete = structs.replace(row.state, offset=10, length=10, phase=Phase.COMPLETE)
        assert await catalog.finish_upload(
            replace(row, state=complete, verification=Verification.VERIFIED, updated=3.0)
        )
        session = await catalog.session(PRODUCT, offer.summary.session_id)
        assert session is not None
        assert (session.state, session.reason) == (SessionState.REJECTED, "corrupted")
        assert session.segments[0].verification is Verification.REJECTED
        assert await catalog.segments_to_load() == ()

    async def test_a_rejected_segment_that_is_well_after_all_is_loaded_anew(
        self, catalog: Catalog, summary: Summary
    ) -> None:
        offer = offered(summary, records=7)
        row = complete(await upload_of(catalog, offer))
        assert await catalog.finish_upload(row)
        await catalog.mark_loaded({row.id: 6})
        assert not await catalog.readmit(row), "it is not rejected"
        await catalog.mark_rejected(row.id, "corrupted", "the decoder died", 6.0)
        assert [each.id for each in await catalog.quarantined(PRODUCT, None, 10)] == [row.id]
        assert await catalog.expired(1e9, 0.0, 10) == (), "it goes with its session"
        revision = (await catalog.changed_sessions(0))[1]
        assert await catalog.readmit(replace(row, sha256="cd" * 32, records=4, updated=7.0))
        assert not await catalog.readmit(row)
        assert await catalog.quarantined(None, None, 10) == ()
        session = await catalog.session(PRODUCT, offer.summary.session_id)
        assert session is not None
        assert (session.state, session.reason, session.explanation) == (SessionState.WANTED, "", "")
        assert len((await catalog.changed_sessions(revision))[0]) == 1, "the reports are told"
        (again,) = await catalog.segments_to_load()
        assert (again.verification, again.sha256, again.records) == (Verification.VERIFIED, "cd" * 32, 4)
        assert (again.loaded, again.reason, again.detail) == (-1, "", "")
        assert (await catalog.queue()).bytes == 10
        await catalog.forget_loaded()
        assert (await catalog.segments_to_load())[0].loaded == -1
        await catalog.mark_loaded({row.id: 0})
        assert (await catalog.segments_to_load())[0].loaded == 0
        assert (await catalog.usage(PRODUCT, month_of(1.0))).records == 7, "nothing counts twice"

    async def test_a_session_stays_rejected_for_another_segment_or_another_reason(
        self, catalog: Catalog, summary: Summary
    ) -> None:
        both = structs.replace(summary, segments=(summary.segments[0], structs.replace(summary.segments[0], index=1)))
        offer = offered(both)
        ((first, second),) = await catalog.register([offer], 1.0)
        rows = [await catalog.upload(each.upload_id) for each in (first, second)]
        for row in rows:
            assert row is not None
            assert await catalog.finish_upload(complete(row))
            await catalog.mark_rejected(row.id, "corrupted", "noise", 6.0)
        assert await catalog.readmit(complete(rows[0]))  # type: ignore[arg-type] # looked at above
        session = await catalog.session(PRODUCT, offer.summary.session_id)
        assert session is not None
        assert session.state is SessionState.REJECTED
        await catalog.mark_rejected(second.upload_id, "unsupported_version", "of tomorrow", 7.0)
        await catalog.register([replace(offer, state=SessionState.REJECTED, reason="too_old")], 8.0)
        assert await catalog.readmit(complete(rows[1]))  # type: ignore[arg-type]
        session = await catalog.session(PRODUCT, offer.summary.session_id)
        assert session is not None
        assert (session.state, session.reason) == (SessionState.REJECTED, "too_old")

    async def test_segments_wait_until_they_are_loaded(self, catalog: Catalog, summary: Summary) -> None:
        ((segment,),) = await catalog.register([offered(summary)], 1.0)
        assert await catalog.segments_to_load() == ()
        row = await catalog.upload(segment.upload_id)
        assert row is not None
        await catalog.store(structs.replace(row.state, offset=50), 2.0)
        (waiting,) = await catalog.segments_to_load()
        assert (waiting.upload_id, waiting.offset, waiting.loaded, waiting.complete) == (row.id, 50, 0, False)
        await catalog.mark_loaded({row.id: 50})
        assert await catalog.segments_to_load() == ()
        await catalog.store(structs.replace(row.state, offset=60), 3.0)
        assert [each.loaded for each in await catalog.segments_to_load()] == [50]
        await catalog.forget_loaded()
        assert [each.loaded for each in await catalog.segments_to_load()] == [0]

    async def test_new_sessions_are_counted_once_by_product_and_day(self, catalog: Catalog, summary: Summary) -> None:
        first, second = offered(summary), replace(offered(summary), state=SessionState.DECLINED)
        await catalog.register([first, first, second], 10.0)
        await catalog.register([first], 20.0)
        other = replace(offered(summary), product="Other")
        await catalog.register([other, offered(summary)], DAY - 1)
        assert [await catalog.arrivals(name, 30.0) for name in (PRODUCT, "Other", "none")] == [3, 1, 0]
        assert await catalog.arrivals(PRODUCT, DAY) == 0
        await catalog.register([first, offered(summary)], DAY)
        assert [await catalog.arrivals(name, DAY + 5) for name in (PRODUCT, "Other")] == [1, 0]
        await catalog.register([offered(summary)], DAY - 1)
        assert await catalog.arrivals(PRODUCT, DAY + 5) == 1, "the clock was wrong, or is"

    async def test_what_goes_on_and_what_came_last_need_not_wait_for_the_rest(
        self, catalog: Catalog, summary: Summary
    ) -> None:
        rows = [await upload_of(catalog, offered(summary)) for _ in range(7)]
        for number, row in enumerate(rows[:3]):  # complete: two small ones, a large one between them
            done = complete(row, 1000 if number == 1 else 10)
            assert await catalog.finish_upload(replace(done, updated=2.0 + number))
        for row, offset in zip(rows[3:6], (50, 500, 60), strict=True):
            await catalog.store(structs.replace(row.state, offset=offset), 1.0)
        await catalog.mark_loaded({rows[4].id: 480})

        async def latest(limit: int = 10) -> list[int]:
            ids = [row.id for row in rows]
            return [ids.index(each.upload_id) for each in await catalog.latest_to_load(limit, 100)]

        assert await latest() == [4, 3, 5, 2, 0], "what goes on by its size, then the latest; not what is large"
        assert [await latest(limit) for limit in (1, 3, 4)] == [[4], [4, 3, 5], [4, 3, 5, 2]]
        await catalog.mark_loaded({rows[4].id: 500, rows[2].id: 10})
        await catalog.mark_rejected(rows[0].id, "corrupted", "noise", 6.0)
        assert await latest() == [3, 5]
        assert await catalog.readmit(replace(complete(rows[0]), updated=7.0))
        assert await latest() == [3, 5], "something is to be taken out first"
        await catalog.mark_loaded({rows[0].id: 0})
        assert await latest() == [3, 5, 0]

    async def test_two_offers_of_one_segment_make_one_upload(self, catalog: Catalog, summary: Summary) -> None:
        offer = offered(summary)
        answers = await asyncio.gather(*(catalog.register([offer, offer], 1.0) for _ in range(10)))
        assert len({segment.upload_id for answer in answers for segments in answer for segment in segments}) == 1

    # -- sessions --------------------------------------------------------------------------------------------------

    async def test_pages_show_every_session_once(self, catalog: Catalog, summary: Summary) -> None:
        offers = [offered(summary, started=float(number // 7)) for number in range(50)]
        await catalog.register(offers, 1.0)
        seen: list[str] = []
        starts: list[float] = []
        query = SessionQuery(PRODUCT, limit=6)
        while True:
            page = await catalog.sessions(query)
            seen += [row.summary.session_id for row in page.sessions]
            starts += [row.summary.started for row in page.sessions]
            if page.cursor is None:
                break
            query = replace(query, cursor=page.cursor)
        assert sorted(seen) == sorted(offer.summary.session_id for offer in offers)
        assert starts == sorted(starts, reverse=True)

    async def test_a_listing_shows_what_was_asked_for(self, catalog: Catalog, summary: Summary) -> None:
        early, late = offered(summary, started=10.0), offered(summary, started=20.0)
        internal, foreign = offered(summary, started=30.0, test=True), offered(summary, started=40.0, product="Other")
        await catalog.register([early, late, internal, foreign], 1.0)

        async def listed(query: SessionQuery) -> list[float]:
            return [row.summary.started for row in (await catalog.sessions(query)).sessions]

        assert await listed(SessionQuery(PRODUCT)) == [30.0, 20.0, 10.0]
        assert await listed(SessionQuery(None)) == [40.0, 30.0, 20.0, 10.0]
        assert await listed(SessionQuery(PRODUCT, since=20.0, until=30.0)) == [20.0]
        assert await listed(SessionQuery(PRODUCT, origin=Origin.PUBLIC)) == [20.0, 10.0]
        assert await listed(SessionQuery(PRODUCT, origin=Origin.INTERNAL)) == [30.0]
        assert await listed(SessionQuery(PRODUCT, application="importer", version="2.4.1", status="stopped")) == [
            30.0,
            20.0,
            10.0,
        ]
        assert await listed(SessionQuery(PRODUCT, application="\ud800")) == []
        assert await listed(SessionQuery(PRODUCT, state=SessionState.REJECTED)) == []

    @pytest.mark.parametrize("cursor", ["", "x", "bm9uZQ==", "WzEsMl0=", "\ud800", "[" * 1000])
    async def test_a_made_up_cursor_is_refused(self, catalog: Catalog, cursor: str) -> None:
        with pytest.raises(WireError, match="cursor"):
            await catalog.sessions(SessionQuery(PRODUCT, cursor=cursor))

    async def test_a_session_is_shown_to_its_product_only(self, catalog: Catalog, summary: Summary) -> None:
        offer = offered(summary)
        await catalog.register([offer], 1.0)
        assert await catalog.session("Other", offer.summary.session_id) is None
        found = await catalog.session(None, offer.summary.session_id)
        assert found is not None
        assert (found.product, found.summary) == (PRODUCT, offer.summary)

    async def test_what_changed_since_is_told_once_and_in_order(self, catalog: Catalog, summary: Summary) -> None:
        offers = [offered(summary) for _ in range(5)]
        ((segment,), *_) = await catalog.register(offers, 1.0)
        rows, last = await catalog.changed_sessions(0)
        assert [row.summary for row in rows] == [offer.summary for offer in offers]
        assert await catalog.changed_sessions(last) == ((), last)
        await catalog.register([offers[3]], 2.0)
        await catalog.mark_rejected(segment.upload_id, "corrupted", "noise", 3.0)
        rows, after = await catalog.changed_sessions(last, limit=1)
        assert [row.summary for row in rows] == [offers[3].summary]
        rows, after = await catalog.changed_sessions(after)
        assert [(row.summary, row.state) for row in rows] == [(offers[0].summary, SessionState.REJECTED)]

    async def test_what_is_offered_again_is_what_counts(self, catalog: Catalog, summary: Summary) -> None:
        offer = offered(summary)
        await catalog.register([replace(offer, skew=5.0)], 1.0)
        rejected = replace(offer, state=SessionState.REJECTED, reason="too_old", explanation="why")
        await catalog.register([rejected], 2.0)
        row = await catalog.session(PRODUCT, offer.summary.session_id)
        assert row is not None
        assert (row.state, row.reason, row.explanation) == (SessionState.REJECTED, "too_old", "why")
        assert (row.skew, row.first_seen, row.updated) == (5.0, 1.0, 2.0)

    async def test_a_session_that_ended_does_not_run_again(self, catalog: Catalog, summary: Summary) -> None:
        offer = offered(summary)
        await catalog.register([offer], 1.0)
        running = structs.replace(offer.summary, status=Status.RUNNING, duration=0.5)
        await catalog.register([replace(offer, summary=running)], 2.0)
        row = await catalog.session(PRODUCT, offer.summary.session_id)
        assert row is not None
        assert row.summary == offer.summary

    async def test_without_room_no_upload_is_made(self, catalog: Catalog, summary: Summary) -> None:
        offer = offered(summary)
        assert await catalog.register([replace(offer, fresh_uploads=0)], 1.0) == ((),)
        ((made,),) = await catalog.register([offer], 1.0)
        ((held,),) = await catalog.register([replace(offer, fresh_uploads=0)], 1.0)
        assert held.upload_id == made.upload_id

    async def test_no_more_uploads_are_made_at_once_than_allowed(self, catalog: Catalog, summary: Summary) -> None:
        states = tuple(SegmentState(index, 10, 1, sealed=True, sha256="ab" * 32) for index in range(5))
        offer = offered(structs.replace(summary, segments=states))
        came = {4: Arrival(fresh_session_id(), 10, Verification.VERIFIED)}
        for allowed, arrivals, there in ((2, {}, [0, 1]), (2, came, [0, 1, 4]), (3, {}, [0, 1, 2, 4])):
            (held,) = await catalog.register([replace(offer, fresh_uploads=allowed, arrivals=arrivals)], 1.0)
            assert [each.index for each in held] == there

    async def test_an_upload_that_is_gone_makes_room_for_another(self, catalog: Catalog, summary: Summary) -> None:
        offer = offered(summary)
        row = await upload_of(catalog, offer)
        assert await catalog.store(row.state.after(Event.CANCEL), 2.0)
        found = await catalog.upload(row.id)
        assert found is not None
        assert (found.session_id, found.index) == (None, None)
        assert (await upload_of(catalog, offer)).id != row.id

    async def test_an_upload_beyond_its_sealed_segment_makes_room(self, catalog: Catalog, summary: Summary) -> None:
        offer = offered(summary)
        row = await upload_of(catalog, offer)
        assert await catalog.store(structs.replace(row.state, offset=summary.segments[0].size + 1), 2.0)
        fresh = await upload_of(catalog, offer)
        assert (fresh.id != row.id, fresh.state.offset) == (True, 0)
        assert not await catalog.store(structs.replace(row.state, offset=10**6), 3.0), "the old one is fenced"

    async def test_what_arrives_with_its_offer_is_complete(self, catalog: Catalog, summary: Summary) -> None:
        """In place of an unfinished upload; where the segment is here already, that one stays."""
        offer, unfinished = offered(summary), offered(summary)
        begun = await upload_of(catalog, unfinished)
        arrivals = [Arrival(fresh_session_id(), 10, Verification.VERIFIED, "ab" * 32, 3) for _ in range(2)]
        for each, arrival in zip((offer, unfinished), arrivals, strict=True):
            ((held,),) = await catalog.register([replace(each, fresh_uploads=0, arrivals={0: arrival})], 2.0)
            assert (held.upload_id, held.complete, held.offset, held.records) == (arrival.upload_id, True, 10, 3)
            second = replace(arrival, upload_id=fresh_session_id())
            ((held,),) = await catalog.register([replace(each, arrivals={0: second})], 3.0)
            assert held.upload_id == arrival.upload_id
        gone = await catalog.upload(begun.id)
        assert gone is not None
        assert gone.session_id is None
        assert await catalog.any_upload(arrivals[0].upload_id, arrivals[0].upload_id + "x")
        assert not await catalog.any_upload("", min(row.id for row in await catalog.all_uploads()))

    async def test_what_arrives_spoilt_rejects_its_session(self, catalog: Catalog, summary: Summary) -> None:
        offer = offered(summary)
        arrival = Arrival(fresh_session_id(), 10, Verification.REJECTED, reason="corrupted", detail="noise")
        await catalog.register([replace(offer, arrivals={0: arrival}, source="host")], 2.0)
        row = await catalog.session(PRODUCT, offer.summary.session_id)
        assert row is not None
        assert (row.state, row.reason, row.source) == (SessionState.REJECTED, "corrupted", "host")

    # -- strangers -----------------------------------------------------------------------------------------------

    async def test_a_segment_that_nobody_offered_brings_its_session(self, catalog: Catalog, summary: Summary) -> None:
        upload = UploadRow(UploadState(fresh_session_id()), PRODUCT, created=1.0, updated=1.0)
        await catalog.make_upload(upload)
        whole = replace(complete(upload), session_id=summary.session_id, index=0)
        assert await catalog.adopt(whole, summary)
        row = await catalog.session(PRODUCT, summary.session_id)
        assert row is not None
        assert (row.delivered, row.segments[0].upload_id) == (True, upload.id)
        again = UploadRow(UploadState(fresh_session_id()), PRODUCT, created=1.0, updated=1.0)
        await catalog.make_upload(again)
        assert not await catalog.adopt(replace(complete(again), session_id=summary.session_id, index=0), summary)
        ((held,),) = await catalog.register([Registration(PRODUCT, summary, SessionState.WANTED)], 9.0)
        assert held.complete

    # -- what is done away with ----------------------------------------------------------------------------------

    async def test_uploads_expire_and_are_forgotten(self, catalog: Catalog, summary: Summary) -> None:
        lasting = await upload_of(catalog, offered(summary))
        ending = UploadRow(UploadState(fresh_session_id(), expires=10.0), PRODUCT, created=1.0, updated=1.0)
        strange = UploadRow(UploadState(fresh_session_id()), PRODUCT, created=1.0, updated=1.0)
        for row in (ending, strange):
            await catalog.make_upload(row)
        assert await catalog.strangers(PRODUCT) == (2, 0)
        assert await catalog.finish_upload(replace(complete(strange), verification=Verification.QUARANTINED))
        assert await catalog.strangers(PRODUCT) == (1, 10)
        assert await catalog.strangers("Other") == (0, 0)
        assert await catalog.finish_upload(complete(lasting))
        assert await catalog.strangers(PRODUCT) == (1, 10), "a segment is of a session"
        assert await catalog.expired(9.0, 100.0, 10) == ()
        assert await catalog.expired(10.0, 100.0, 10) == (ending.id,)
        assert set(await catalog.expired(105.0, 100.0, 10)) == {ending.id, strange.id}
        assert [row.id for row in await catalog.quarantined(PRODUCT, None, 10)] == [strange.id]
        assert await catalog.quarantined("Other", None, 10) == await catalog.quarantined(None, strange.id, 10) == ()
        assert await catalog.store(ending.state.after(Event.EXPIRE), 20.0)
        assert await catalog.long_gone(19.0, 10) == ()
        assert await catalog.long_gone(20.0, 10) == (ending.id,)
        await catalog.forget_uploads([ending.id])
        assert [row.id for row in await catalog.all_uploads()] == sorted([lasting.id, strange.id])
        assert await catalog.all_uploads(max(lasting.id, strange.id)) == ()
        assert len(await catalog.all_uploads("", 1)) == 1

    async def test_parts_know_what_is_made_of_them(self, catalog: Catalog) -> None:
        part = UploadRow(UploadState(fresh_session_id()), PRODUCT)
        whole = UploadRow(UploadState(fresh_session_id(), creation=Creation(parts=(part.id, part.id))), PRODUCT)
        for row in (part, whole):
            await catalog.make_upload(row)
        assert await catalog.made_of(part.id) == (whole,)
        assert await catalog.made_of(whole.id) == ()
        assert {row.id for row in await catalog.open_uploads()} == {part.id, whole.id}
        assert await catalog.store(whole.state.after(Event.EXPIRE), 20.0)
        assert await catalog.made_of(part.id) == ()
        await catalog.forget_uploads([whole.id, part.id])
        assert await catalog.all_uploads() == ()

    async def test_what_is_old_goes_and_is_counted_unless_it_changed(self, catalog: Catalog, summary: Summary) -> None:
        old, changed, young = (offered(summary, started=started) for started in (10.0, 20.0, 30.0))
        behind = replace(offered(summary, started=5.0), skew=100.0)
        row = await upload_of(catalog, old)
        assert await catalog.finish_upload(complete(row))
        await catalog.register([changed, young, behind], 1.0)
        rows = await catalog.begun_before(PRODUCT, 25.0)
        assert [each.summary.started for each in rows] == [10.0, 20.0]
        assert await catalog.begun_before(PRODUCT, 25.0, 1, 1) == rows[1:]
        assert await catalog.begun_before("Other", 25.0) == ()
        await catalog.register([changed], 2.0)
        key = (PRODUCT, old.summary.session_id)
        (doomed,) = await catalog.remove_sessions(rows, 3 * DAY + 5.0)
        assert doomed == Doomed(*key, (row.id,))
        assert await catalog.session(*key) is None
        assert await catalog.upload(row.id) is None
        assert await catalog.doomed() == (doomed,)
        assert await catalog.deletions(PRODUCT) == (Deletion(PRODUCT, 3 * DAY, 1, 1, 3, 10),)
        assert await catalog.deletions("Other") == ()
        await catalog.strike([doomed])
        assert await catalog.doomed() == ()
        assert await catalog.remove_sessions(rows[:1], 9.0) == ()
        assert not await catalog.store(structs.replace(row.state, epoch=99, offset=99), 9.0), "its upload is no more"

    # -- the rest ------------------------------------------------------------------------------------------------

    async def test_the_queue_is_what_waits(self, catalog: Catalog, summary: Summary) -> None:
        assert await catalog.queue() == Queue()
        rows = [await upload_of(catalog, offered(summary)) for _ in range(2)]
        await catalog.store(structs.replace(rows[0].state, offset=50), 7.0)
        await catalog.store(structs.replace(rows[1].state, offset=20), 6.0)
        assert await catalog.queue() == Queue(2, 2, 70, 6.0)
        await catalog.mark_loaded({rows[1].id: 20, rows[0].id: 30})
        assert await catalog.queue() == Queue(2, 1, 20, 7.0)

    async def test_notes_and_triages_are_kept_by_name(self, catalog: Catalog) -> None:
        assert await catalog.note("boot") is None
        for text in ("a", "b"):
            await catalog.put_note("boot", text)
        assert await catalog.note("boot") == "b"
        both = await asyncio.to_thread(catalog.product_and_note, PRODUCT, "boot")
        assert both == (await catalog.product(PRODUCT), "b")
        assert await asyncio.to_thread(catalog.product_and_note, "Nobody's", "none") == (None, None)
        row = TriageRow(PRODUCT, "g", Standing.RESOLVED, "2.0", 1.0)
        await catalog.put_triage(replace(row, standing=Standing.OPEN))
        await catalog.put_triage(row)
        assert await catalog.triages(PRODUCT) == await catalog.triages(None) == (row,)
        assert await catalog.triages("Other") == ()
        await catalog.put_triage(replace(row, standing=Standing.NEW))
        assert await catalog.triages(None) == ()

    async def test_a_lease_is_one_holders_until_it_is_over_or_given_back(self, catalog: Catalog) -> None:
        assert await catalog.lease("work", "a", 100.0, 60.0)
        assert not await catalog.lease("work", "b", 159.0, 60.0)
        assert await catalog.lease("other work", "b", 159.0, 60.0)
        assert await catalog.lease("work", "a", 150.0, 60.0), "prolonged"
        assert not await catalog.lease("work", "b", 209.0, 60.0)
        assert await catalog.lease("work", "b", 210.0, 60.0), "over"
        assert not await catalog.lease("work", "a", 211.0, 60.0)
        await catalog.release("work", "a")
        assert not await catalog.lease("work", "a", 211.0, 60.0), "it was not a's to give back"
        await catalog.release("work", "b")
        assert await catalog.lease("work", "a", 211.0, 60.0)
        assert await catalog.lease("work", "b", 150.0, 60.0), "a's clock was ahead, or b's is behind"
        held = await asyncio.gather(*(catalog.lease("new work", each, 1.0, 60.0) for each in "abcdefgh"))
        assert sorted(held) == [False] * 7 + [True]

    async def test_a_sound_catalog_finds_no_fault(self, catalog: Catalog, summary: Summary) -> None:
        await catalog.register([offered(summary)], 1.0)
        assert await catalog.faults() == ()

    async def test_calls_at_the_same_time_are_one_after_the_other(self, catalog: Catalog, summary: Summary) -> None:
        """Of many that would overtake each other exactly the newest stands."""
        row = await upload_of(catalog, offered(summary))
        states = [structs.replace(row.state, epoch=epoch, offset=10 * epoch) for epoch in range(1, 40)]
        outcomes = await asyncio.gather(*(catalog.store(state, 1.0) for state in states))
        found = await catalog.upload(row.id)
        assert found is not None
        assert found.state.epoch == max(state.epoch for state, done in zip(states, outcomes, strict=True) if done)
        assert outcomes[-1]

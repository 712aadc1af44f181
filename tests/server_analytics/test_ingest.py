"""Loading as the server does it: with its catalog and its segments, and with what can go wrong."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import duckdb
import pytest
from msgspec.structs import replace

from mailboat.protocol import Info
from mailboat.protocol.limits import MIB
from mailboat.protocol.records import COUNTERS
from mailboat.server import batches, ingest, summing
from mailboat.server.analytics import Analytics
from mailboat.server.analytics_store import AnalyticsError, Key, OutOfMemory, Progress, RowsRefused, Step
from mailboat.server.catalog import CatalogError, Registration, SessionRow, SessionState, Verification
from mailboat.server.decoding import Decoded, Decoder
from mailboat.server.loader import ATTEMPTS
from mailboat.server.sqlite_catalog import SqliteCatalog
from testkit.ingesting import Rig
from testkit.loading import PRODUCT, Bench, session_row
from testkit.segments import SESSION, Segment, feature, pack
from testkit.serverkit import eventually

OTHERS = [f"018f0000-0000-7000-8000-{number:012}" for number in range(100, 110)]


@pytest.fixture(scope="session")
def segments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the segments of all tests: making its 256 folders durable takes longer than most tests."""
    return tmp_path_factory.mktemp("segments")


@pytest.fixture
async def rig(tmp_path: Path, segments: Path) -> AsyncIterator[Rig]:
    made = Rig(tmp_path, segments=segments)
    await made.start()
    yield made
    await made.stop()


def bench(rig: Rig) -> Bench:
    return Bench(rig.loader.analytics, None, rig.folder)  # type: ignore[arg-type] # it only asks


def of(count: int, session_id: str = SESSION, version: str = "1.0") -> Segment:
    """A segment of three blocks with so many records each."""
    segment = Segment(session_id, info=Info(version=version))
    for _ in range(3):
        segment.block([feature("a") for _ in range(count)])
    return segment


def corrupt(session_id: str = SESSION) -> bytes:
    """A segment whose checksums are right, and whose records are none."""
    segment = Segment(session_id)
    segment.block([pack({"no": "record"})], counts=[1, *([0] * (len(COUNTERS) - 1))])
    return segment.seal()


async def state_of(rig: Rig, upload_id: str) -> tuple[Verification, str]:
    row = await rig.catalog.upload(upload_id)
    assert row is not None
    return row.verification, row.reason


async def test_complete_segments_are_loaded_and_asked_for_no_more(rig: Rig) -> None:
    for session_id in OTHERS:
        await rig.add(session_id, of(5, session_id).seal())
    await rig.ingest.settled()
    assert [bench(rig).sequences(session_id) for session_id in OTHERS] == [list(range(15))] * 10
    assert await rig.waiting() == ()
    assert rig.counters["ingest_records"] == 150


async def test_a_running_session_is_loaded_as_far_as_it_is_durable(rig: Rig) -> None:
    segment = of(5)
    data, ends = segment.seal(), segment.ends
    upload_id = await rig.add(SESSION, data, durable=ends[0] + 10)
    await rig.ingest.settled()
    assert bench(rig).sequences() == list(range(5))
    assert await rig.waiting() == (), "the torn tail is not listed until more has come"
    await rig.grow(upload_id, ends[1])
    await rig.ingest.settled()
    assert bench(rig).sequences() == list(range(10))
    await rig.grow(upload_id, len(data), complete=True)
    await rig.ingest.settled()
    assert bench(rig).sequences() == list(range(15))


async def test_what_an_earlier_life_left_is_loaded_before_there_is_news(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.stop_loading()
    await rig.add(SESSION, of(5).seal())
    monkeypatch.setattr(ingest, "SOON", 3600.0)
    await rig.start_loading()
    await rig.ingest.settled()
    assert bench(rig).sequences() == list(range(15))


async def test_batches_of_bounded_size_overlap_and_lose_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH_SEGMENTS", 3)
    monkeypatch.setattr(ingest, "LISTED", 7)
    for number, session_id in enumerate(OTHERS):
        await rig.add(session_id, of(number + 1, session_id).seal())
    await rig.ingest.settled()
    assert [len(bench(rig).sequences(session_id)) for session_id in OTHERS] == [3 * number for number in range(1, 11)]
    assert bench(rig).sql("SELECT count(*) FROM loaded") == [(10,)]


async def test_what_comes_while_a_backlog_is_loaded_waits_for_a_batch_of_it_at_most(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that runs: what it brings comes after the batches that are chosen already, and one more."""
    live, loop, load, loads = of(5), asyncio.get_running_loop(), Analytics.load, list[str]()
    backlog = [f"018f0000-0000-7000-8000-{number:012}" for number in range(200, 240)]
    arrivals = {10: live.ends[0], 20: live.ends[1]}

    def watched(self: Analytics, decoded: Decoded, steps: Sequence[Step]) -> None:
        (step,) = steps
        if len(loads) in arrivals:
            asyncio.run_coroutine_threadsafe(rig.grow(upload_id, arrivals[len(loads)]), loop).result(30)
        loads.append(step.segment.session_id)
        load(self, decoded, steps)

    monkeypatch.setattr(batches, "BATCH_SEGMENTS", 1)
    monkeypatch.setattr(ingest, "LOOK_AGAIN", 0.0)
    upload_id = await rig.add(SESSION, live.data, durable=0)
    async with rig.ingest._in_round:
        for session_id in backlog:
            await rig.add(session_id, of(5, session_id).seal())
        await rig.add(OTHERS[0], of(5, OTHERS[0]).seal())
        monkeypatch.setattr(Analytics, "load", watched)
    await rig.ingest.settled()
    places = [place for place, session_id in enumerate(loads) if session_id == SESSION]
    on_the_way = 2  # beside the one that is written
    assert len(places) == 2
    assert all(place - arrived <= on_the_way + 2 for place, arrived in zip(places, arrivals, strict=True)), places
    oldest = [backlog.index(each) for each in loads if each in backlog[:20]]
    assert oldest == sorted(oldest), "what waits longest has its turns"
    assert bench(rig).sequences() == list(range(10))
    assert [len(bench(rig).sequences(each)) for each in (*backlog, OTHERS[0])] == [15] * 41
    assert len(loads) == 43
    assert rig.counters["ingest_batches_failed"] == rig.counters["ingest_failures"] == 0


async def test_the_session_of_what_comes_meanwhile_is_shown_along_with_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loop, seen = Analytics.load, asyncio.get_running_loop(), list[tuple[str, int]]()

    async def arrive() -> None:
        await rig.catalog.register([Registration(PRODUCT, session_row(SESSION).summary, SessionState.WANTED)], 1.0)
        await rig.add(SESSION, of(5).data, index=1, durable=of(5).ends[0])

    def watched(self: Analytics, decoded: Decoded, steps: Sequence[Step]) -> None:
        if not seen:
            asyncio.run_coroutine_threadsafe(arrive(), loop).result(30)
        (session_id,) = {step.segment.session_id for step in steps}
        seen.append((session_id, sum(each.listed for each in self.holdings())))
        load(self, decoded, steps)

    monkeypatch.setattr(batches, "BATCH_SEGMENTS", 1)
    monkeypatch.setattr(ingest, "LOOK_AGAIN", 0.0)
    async with rig.ingest._in_round:
        for session_id in OTHERS:
            await rig.add(session_id, of(5, session_id).seal())
        monkeypatch.setattr(Analytics, "load", watched)
    await rig.ingest.settled()
    assert (SESSION, 1) in seen[:5]


async def test_a_load_that_another_one_has_overtaken_is_made_anew(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    load = Analytics.load

    def overtaken(self: Analytics, decoded: Decoded, steps: Sequence[Step]) -> None:
        if not rig.counters["rivals"]:
            rig.counters["rivals"] += 1
            load(self, decoded, steps)  # by another server, say
        load(self, decoded, steps)

    monkeypatch.setattr(Analytics, "load", overtaken)
    await rig.add(SESSION, of(5).seal())
    await rig.ingest.settled()
    assert bench(rig).sequences() == list(range(15))
    assert await rig.waiting() == ()
    assert rig.counters["ingest_batches_stale"] == 1
    assert rig.counters["ingest_failures"] == 0


async def test_loading_goes_on_where_the_engine_lacks_memory_for_sums(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are put off by as many records as are summed at a time."""
    sum_up, lacking = summing.sum_up, [True]

    def greedy(db: duckdb.DuckDBPyConnection) -> None:
        sum_up(db)
        if lacking and lacking.pop():
            raise duckdb.OutOfMemoryException("could not allocate block")

    monkeypatch.setattr(summing, "TAIL", 15)
    monkeypatch.setattr(summing, "sum_up", greedy)
    told = []
    for session_id in OTHERS[:3]:
        await rig.add(session_id, of(5, session_id).seal())
        await rig.ingest.settled()
        async with rig.ingest._in_round:
            pass  # sums are made at its end
        told.append((rig.counters["ingest_sums_failed"], rig.counters["ingest_sums"]))
        assert bench(rig).sequences(session_id) == list(range(15))
    assert told == [(1, 0), (1, 0), (1, 1)]
    assert bench(rig).sql("SELECT sum(n) FROM kind_sum") == [(45,)]
    assert list(rig.loader.analytics.disagreements()) == []
    assert rig.counters["ingest_failures"] == 0


@pytest.mark.parametrize(("unsummed", "in_the_round"), [(30, 3), (10_000, 0)])
async def test_sums_wait_until_rows_are_there_but_for_so_many(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, unsummed: int, in_the_round: int
) -> None:
    """In a round they are made each time that so many records wait for them, and otherwise at its end, if there are any
    (a batch that was written meanwhile is in the sums before it).
    """
    sum_up, seen = summing.sum_up, list[int]()

    def watched(db: duckdb.DuckDBPyConnection) -> None:
        seen.append(rig.ingest._settled)
        sum_up(db)

    monkeypatch.setattr(summing, "TAIL", 1)
    monkeypatch.setattr(summing, "sum_up", watched)
    monkeypatch.setattr(ingest, "UNSUMMED", unsummed)
    monkeypatch.setattr(batches, "BATCH_SEGMENTS", 1)
    async with rig.ingest._in_round:
        for session_id in OTHERS[:7]:
            await rig.add(session_id, of(5, session_id).seal())
    before = rig.ingest._settled
    await rig.ingest.settled()
    async with rig.ingest._in_round:
        pass
    late = [each > before for each in seen]
    assert late in ([False] * in_the_round, [False] * in_the_round + [True])
    assert late
    assert bench(rig).sql("SELECT sum(n) FROM kind_sum") == [(7 * 15,)]


async def test_what_was_decoded_ahead_of_a_batch_that_fails_is_neither_written_nor_left(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was decoded as if the batch before it had been loaded."""
    load, loads = Analytics.load, []

    def refusing(self: Analytics, decoded: Decoded, steps: Sequence[Step]) -> None:
        loads.append([step.segment.session_id for step in steps])
        if loads[-1] == [SESSION]:
            raise RowsRefused("no such number")
        load(self, decoded, steps)

    monkeypatch.setattr(batches, "BATCH_SEGMENTS", 1)
    monkeypatch.setattr(Analytics, "load", refusing)
    async with rig.ingest._in_round:
        for session_id in (OTHERS[0], SESSION, *OTHERS[1:]):
            await rig.add(session_id, of(5, session_id).seal())
    await rig.ingest.settled()
    alone = [[OTHERS[0]], *([[SESSION]] * (1 + ATTEMPTS)), *([each] for each in OTHERS[1:])]
    assert loads == alone, "after the refusal, one by one"
    assert [len(bench(rig).sequences(each)) for each in (SESSION, *OTHERS)] == [0, *([15] * 10)]
    assert list((rig.folder / "ingest").iterdir()) == []


async def test_a_segment_that_expands_beyond_bounds_is_loaded_in_several_rounds(tmp_path: Path, segments: Path) -> None:
    program = (
        "import mailboat.server.decoder as d; d.MAX_RAW = 100_000; "
        "import sys; sys.exit(d.main())"
    )  # fmt: skip
    rig = Rig(tmp_path, Decoder([sys.executable, "-c", program]), segments)
    await rig.start()
    segment = Segment()
    for _ in range(8):
        segment.block([feature("a", text="x" * 60_000)])
    await rig.add(SESSION, segment.seal())
    await rig.ingest.settled()
    assert bench(rig).sequences() == list(range(8))
    assert rig.counters["ingest_segments"] == 8
    await rig.stop()


async def test_rows_beyond_what_a_batch_may_hold_follow_in_other_rounds(tmp_path: Path, segments: Path) -> None:
    program = (
        "import mailboat.server.decoder as d; d.MAX_ROWS = 100_000; "
        "import sys; sys.exit(d.main())"
    )  # fmt: skip
    rig = Rig(tmp_path, Decoder([sys.executable, "-c", program]), segments)
    await rig.start()
    for session_id in OTHERS:
        segment = Segment(session_id=session_id)
        for _ in range(3):
            segment.block([feature("a", text="x" * 60_000)])
        await rig.add(session_id, segment.seal())
    await rig.ingest.settled()
    assert [bench(rig).sequences(session_id) for session_id in OTHERS] == [[0, 1, 2]] * len(OTHERS)
    assert rig.counters["ingest_records"] == 3 * len(OTHERS)
    assert rig.counters["ingest_segments"] > len(OTHERS)
    assert await rig.waiting() == ()
    await rig.stop()


async def test_long_rows_take_no_more_memory_than_the_engine_has(tmp_path: Path, segments: Path) -> None:
    """It brings 2048 rows into its memory at once: the records of an agent must not be able to fill that."""
    rig = Rig(tmp_path, segments=segments, opening=partial(Analytics, memory=128 * MIB))
    await rig.start()
    segment = Segment()
    for at in range(80):
        segment.block([feature(f"a{at}-{part}", text="x" * 900_000) for part in range(4)])
    await rig.add(SESSION, segment.seal())
    await rig.add(OTHERS[0], of(5, OTHERS[0]).seal())
    await rig.ingest.settled()
    assert bench(rig).sequences() == list(range(320))
    assert len(bench(rig).sequences(OTHERS[0])) == 15
    assert rig.counters["ingest_failures"] == 0
    bench(rig).sql("CHECKPOINT")
    await rig.stop()


async def test_a_corrupt_segment_is_set_aside_and_stops_nothing(rig: Rig) -> None:
    await rig.add(OTHERS[0], of(5, OTHERS[0]).seal())
    bad = await rig.add(SESSION, corrupt())
    await rig.add(OTHERS[1], of(5, OTHERS[1]).seal())
    await rig.ingest.settled()
    assert await state_of(rig, bad) == (Verification.REJECTED, "corrupted")
    assert [len(bench(rig).sequences(each)) for each in (SESSION, *OTHERS[:2])] == [0, 15, 15]
    assert await rig.waiting() == ()


async def test_a_block_that_cannot_be_read_does_not_condemn_its_segment(rig: Rig) -> None:
    segment = of(5)
    segment.block([pack({"no": "record"})], counts=[1, *([0] * (len(COUNTERS) - 1))])
    upload_id = await rig.add(SESSION, segment.seal())
    await rig.ingest.settled()
    assert await state_of(rig, upload_id) == (Verification.VERIFIED, "")
    assert bench(rig).sequences() == list(range(15))
    assert bench(rig).sql('SELECT "first", records FROM gap') == [(15, 1)]


class Deadly(Decoder):
    """A decoder that dies whenever it gets a segment holding a certain word."""

    def __init__(self) -> None:
        program = (
            "import os, mailboat.server.decoder as d\n"
            "feed = d.Decoding.feed\n"
            "d.Decoding.feed = lambda self, piece: os._exit(9) if b'deadly' in piece else feed(self, piece)\n"
            "d.main()\n"
        )
        super().__init__([sys.executable, "-c", program])


async def test_a_segment_on_which_the_decoder_dies_costs_itself_alone(tmp_path: Path, segments: Path) -> None:
    rig = Rig(tmp_path, Deadly(), segments)
    await rig.start()
    for session_id in OTHERS[:5]:
        await rig.add(session_id, of(5, session_id).seal())
    bad = await rig.add(SESSION, of(5, version="deadly").seal())
    live = await rig.add(OTHERS[9], of(5, OTHERS[9], version="deadly").data, durable=500)
    for session_id in OTHERS[5:9]:
        await rig.add(session_id, of(5, session_id).seal())
    await rig.ingest.settled()
    assert [len(bench(rig).sequences(each)) for each in OTHERS[:9]] == [15] * 9
    assert await state_of(rig, bad) == (Verification.REJECTED, "corrupted")
    assert await state_of(rig, live) == (Verification.PENDING, ""), "nothing is said of a session that goes on"
    assert rig.counters["ingest_segments_failed"] == 2
    assert await rig.waiting() == ()
    await rig.grow(live, len(of(5, OTHERS[9], version="deadly").data), complete=True)
    await rig.ingest.settled()
    assert await state_of(rig, live) == (Verification.REJECTED, "corrupted")
    await rig.stop()


async def test_a_decoder_that_was_killed_by_accident_costs_nothing(rig: Rig) -> None:
    await rig.add(OTHERS[0], of(5, OTHERS[0]).seal())
    await rig.ingest.settled()
    process = rig.loader._decoder._process
    assert process is not None
    process.kill()
    process.wait()
    upload_id = await rig.add(SESSION, of(5).seal())
    await rig.ingest.settled()
    assert bench(rig).sequences() == list(range(15))
    assert await state_of(rig, upload_id) == (Verification.VERIFIED, "")


@pytest.mark.parametrize("lost", ["all", "end"])
async def test_a_segment_whose_bytes_are_lost_is_set_aside(rig: Rig, lost: str) -> None:
    await rig.stop_loading()
    bad = await rig.add(SESSION, of(5).seal())
    good = await rig.add(OTHERS[0], of(5, OTHERS[0]).seal())
    if lost == "all":
        rig.blobs.remove(bad)
    else:
        rig.blobs.settle(bad, 300)
    await rig.start_loading()
    await rig.ingest.settled()
    assert await state_of(rig, bad) == (Verification.REJECTED, "corrupted")
    assert await state_of(rig, good) == (Verification.VERIFIED, "")
    assert bench(rig).sequences(OTHERS[0]) == list(range(15))


async def test_rows_that_the_store_refuses_are_found_and_set_aside(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    load = Analytics.load

    def refusing(self: Analytics, decoded: Decoded, steps: Sequence[Step]) -> None:
        if any(step.segment.session_id == SESSION for step in steps):
            raise RowsRefused("no such number")
        load(self, decoded, steps)

    monkeypatch.setattr(Analytics, "load", refusing)
    for session_id in (*OTHERS[:4], SESSION, *OTHERS[4:]):
        await rig.add(session_id, of(5, session_id).seal())
    await rig.ingest.settled()
    assert [len(bench(rig).sequences(each)) for each in (SESSION, *OTHERS)] == [0, *([15] * 10)]
    assert rig.counters["ingest_segments_failed"] == 1
    assert list((rig.folder / "ingest").iterdir()) == [], "no rows are left lying about"


@pytest.mark.parametrize("killed", [False, True])
async def test_a_segment_that_was_set_aside_is_loaded_anew_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """What had been loaded of it is taken out first; killed between store and catalog, that is done once more."""

    def refusing(self: Analytics, decoded: Decoded, steps: Sequence[Step]) -> None:
        raise RowsRefused("no such number")

    segment = of(5)
    data = segment.seal()
    upload_id = await rig.add(SESSION, data, durable=segment.ends[0])
    await rig.ingest.settled()
    assert bench(rig).sequences() == list(range(5))
    with monkeypatch.context() as patch:
        patch.setattr(Analytics, "load", refusing)
        await rig.grow(upload_id, len(data), complete=True)
        await rig.ingest.settled()
    assert await state_of(rig, upload_id) == (Verification.REJECTED, "corrupted")
    row = await rig.catalog.upload(upload_id)
    assert row is not None
    assert await rig.catalog.readmit(row)
    if killed:
        (waiting,) = await rig.waiting()
        await rig.loader.unload([waiting])
        assert bench(rig).sequences() == []
        await rig.stop_loading()
        await rig.start_loading()
    rig.wake.set()
    await rig.ingest.settled()
    assert bench(rig).sequences() == list(range(15))
    assert [(each.noted, each.rows) for each in rig.loader.analytics.holdings()] == [(15, 15)]
    assert await state_of(rig, upload_id) == (Verification.VERIFIED, "")
    assert await rig.waiting() == ()


async def test_when_the_machine_refuses_it_is_tried_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    load, refusals = Analytics.load, [AnalyticsError("no space left on device"), OSError(28, "no space left")]

    def full(self: Analytics, decoded: Decoded, steps: Sequence[Step]) -> None:
        if refusals:
            raise refusals.pop()
        load(self, decoded, steps)

    monkeypatch.setattr(Analytics, "load", full)
    monkeypatch.setattr(ingest, "RETRY_LONGEST", 0.01)
    upload_id = await rig.add(SESSION, of(5).seal())
    await rig.ingest.settled()
    assert bench(rig).sequences() == list(range(15))
    assert await state_of(rig, upload_id) == (Verification.VERIFIED, "")
    assert rig.counters["ingest_failures"] == 2


@pytest.mark.parametrize("tries", [3, ingest.STARVED + 1, 10**6])
async def test_a_segment_that_is_too_much_for_the_engine_keeps_no_other_one_back(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, tries: int
) -> None:
    """In its batch first, then alone, round after round; what takes its memory away may pass."""
    load, refused = Analytics.load, list[int]()

    def greedy(self: Analytics, decoded: Decoded, steps: Sequence[Step]) -> None:
        with self._transaction():
            if any(step.segment.session_id == SESSION for step in steps) and len(refused) < tries:
                refused.append(len(steps))
                raise duckdb.OutOfMemoryException("could not allocate block")
        load(self, decoded, steps)

    monkeypatch.setattr(Analytics, "load", greedy)
    monkeypatch.setattr(ingest, "RETRY_LONGEST", 0.01)
    async with rig.ingest._in_round:
        upload_id = await rig.add(SESSION, of(5).seal())
        for session_id in OTHERS:
            await rig.add(session_id, of(5, session_id).seal())
    await rig.ingest.settled()
    assert [len(bench(rig).sequences(each)) for each in OTHERS] == [15] * 10
    given_up = tries > ingest.STARVED + 1
    assert bench(rig).sequences() == ([] if given_up else list(range(15)))
    kept = (Verification.REJECTED, "corrupted") if given_up else (Verification.VERIFIED, "")
    assert await state_of(rig, upload_id) == kept
    assert len(refused) <= 2 * ingest.STARVED
    assert rig.counters["ingest_out_of_memory"] == len(refused)
    assert rig.counters["ingest_segments_failed"] == given_up
    assert await rig.waiting() == ()


async def test_sessions_that_are_too_many_for_the_engine_are_copied_in_parts(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, refusals = Analytics.load_sessions, [3]

    def greedy(self: Analytics, rows: Sequence[SessionRow], revision: int) -> None:
        with self._transaction():
            if len(rows) > 3 or (len(rows) == 1 and refusals and refusals.pop()):
                raise duckdb.OutOfMemoryException("could not allocate block")
        load(self, rows, revision)

    monkeypatch.setattr(Analytics, "load_sessions", greedy)
    monkeypatch.setattr(ingest, "RETRY_LONGEST", 0.01)
    await rig.catalog.register(
        [Registration(PRODUCT, session_row(each).summary, SessionState.WANTED) for each in OTHERS], 1.0
    )
    rig.wake.set()
    await rig.ingest.settled()
    assert bench(rig).sql("SELECT count(*) FROM session") == [(10,)]
    assert rig.counters["ingest_sessions_refused"] == 0
    assert rig.counters["ingest_failures"] <= 1


def test_a_lack_of_the_engines_memory_is_told_from_other_troubles_of_its(tmp_path: Path) -> None:
    """The engine itself refuses here; opened anew it takes fewer of them."""
    info = Info(product=PRODUCT, properties={"what": "x" * 16_000})
    rows = [session_row(f"018f0000-0000-7000-8000-{number:012}", info=info) for number in range(1000)]
    analytics = Analytics(tmp_path / "analytics.duckdb", memory=32 * MIB)
    with pytest.raises(OutOfMemory):
        analytics.load_sessions(rows, 1)
    analytics.reopen()
    assert analytics.revision == 0
    analytics.load_sessions(rows[:3], 1)
    assert analytics.revision == 1
    analytics.close()


async def lose(rig: Rig) -> None:
    (rig.folder / "analytics.duckdb").unlink()


async def spoil(rig: Rig) -> None:
    (rig.folder / "analytics.duckdb").write_bytes(b"no database" * 99)


@pytest.mark.parametrize("harm", [lose, spoil])
async def test_a_store_that_is_lost_is_made_again(rig: Rig, harm: Callable[[Rig], Awaitable[None]]) -> None:
    await rig.catalog.register([Registration(PRODUCT, session_row().summary, SessionState.WANTED)], 1.0)
    await rig.add(SESSION, of(5).seal(), index=1)
    await rig.ingest.settled()
    await rig.stop_loading()
    await harm(rig)
    await rig.start_loading()
    await rig.ingest.settled()
    assert bench(rig).sequences() == list(range(15))
    assert bench(rig).sql("SELECT count(*) FROM session") == [(1,)]
    assert rig.counters["ingest_stores_rebuilt"] == 1


async def test_an_older_copy_of_the_store_is_brought_up_to_date(rig: Rig) -> None:
    await rig.add(SESSION, of(5).seal())
    await rig.ingest.settled()
    await rig.stop_loading()
    older = (rig.folder / "analytics.duckdb").read_bytes()
    await rig.start_loading()
    await rig.add(OTHERS[0], of(5, OTHERS[0]).seal())
    await rig.ingest.settled()
    await rig.stop_loading()
    (rig.folder / "analytics.duckdb").write_bytes(older)
    await rig.start_loading()
    await rig.ingest.settled()
    assert [bench(rig).sequences(each) for each in (SESSION, OTHERS[0])] == [list(range(15))] * 2


async def test_a_store_of_another_catalog_takes_over_this_ones_sessions(rig: Rig) -> None:
    """The catalog was lost, and its revisions begin anew."""
    await rig.catalog.register(
        [Registration(PRODUCT, session_row(each).summary, SessionState.WANTED) for each in OTHERS], 1.0
    )
    await rig.add(SESSION, of(5).seal())
    await rig.ingest.settled()
    await rig.stop()
    for file in rig.folder.glob("catalog.sqlite*"):
        file.unlink()
    rig.catalog = SqliteCatalog(rig.folder / "catalog.sqlite")
    await rig.start()
    await rig.catalog.register([Registration(PRODUCT, session_row(SESSION).summary, SessionState.WANTED)], 2.0)
    await rig.ingest.settled()
    assert bench(rig).sql("SELECT count(*) FROM session WHERE session_id = $id::UUID", id=SESSION) == [(1,)]


async def test_an_error_that_nobody_thought_of_does_not_end_the_loading(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress, errors = Analytics.progress, [KeyError("a bug")]

    def buggy(self: Analytics, sessions: Iterable[Key]) -> dict[Key, dict[str, Progress]]:
        if errors:
            raise errors.pop()
        return progress(self, sessions)

    monkeypatch.setattr(Analytics, "progress", buggy)
    monkeypatch.setattr(ingest, "RETRY_LONGEST", 0.01)
    await rig.add(SESSION, of(5).seal())
    await rig.ingest.settled()
    assert bench(rig).sequences() == list(range(15))
    assert rig.counters["ingest_failures"] == 1


async def test_of_the_servers_on_one_catalog_one_loads_until_it_stops(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "LEASE", 0.02)
    monkeypatch.setattr(SqliteCatalog, "lease", patient(SqliteCatalog.lease))
    await rig.stop_loading()
    assert await rig.catalog.lease(ingest.LEASE_NAME, "another", time.time(), 0.0)
    await rig.start_loading()
    await rig.add(SESSION, of(5).seal())
    await eventually(lambda: rig.counters["ingest_turns_of_others"] > 2)
    assert bench(rig).sql("SELECT count(*) FROM feature") == [(0,)], "it was not its turn"
    await rig.catalog.release(ingest.LEASE_NAME, "another")
    await rig.ingest.settled()
    assert bench(rig).sequences() == list(range(15))
    assert not await rig.catalog.lease(ingest.LEASE_NAME, "another", time.time(), 0.0)
    await rig.stop_loading()
    assert await rig.catalog.lease(ingest.LEASE_NAME, "another", time.time(), 0.0), "who has stopped gave it back"
    await rig.start_loading()


def patient(lease: Callable[..., Awaitable[bool]]) -> Callable[..., Awaitable[bool]]:
    """So that what lasts for a thousand seconds is not taken for what a wrong clock has left."""

    async def asked(self: SqliteCatalog, name: str, holder: str, now: float, _: float) -> bool:
        return await lease(self, name, holder, now, 1000.0)

    return asked


async def test_a_server_that_was_killed_goes_on_with_its_own_lease(rig: Rig) -> None:
    """Nobody has given it back; and it is not over yet."""
    await rig.ingest.settled()
    assert rig.ingest._task is not None
    rig.ingest._task.cancel()
    await asyncio.wait([rig.ingest._task])
    rig.ingest = rig.loading_of("a", rig.wake)
    await rig.ingest.start()
    await rig.add(SESSION, of(5).seal())
    await rig.ingest.settled()
    assert bench(rig).sequences() == list(range(15))
    assert rig.counters["ingest_turns_of_others"] == 0


async def test_who_loses_the_lease_in_a_round_ends_it_and_goes_on_when_it_is_back(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [True, False, False, True]  # at the beginning, after the first batch, at the next look, at the one after

    async def asked(*_: object) -> bool:
        return answers.pop(0) if answers else True

    async with rig.ingest._in_round:
        monkeypatch.setattr(SqliteCatalog, "lease", asked)
        monkeypatch.setattr(ingest, "LEASE", 0.0)
        monkeypatch.setattr(batches, "BATCH_SEGMENTS", 2)
        for session_id in OTHERS:
            await rig.add(session_id, of(5, session_id).seal())
    await rig.ingest.settled()
    assert answers == []
    assert rig.counters["ingest_turns_of_others"] == 1
    assert [bench(rig).sequences(each) for each in OTHERS] == [list(range(15))] * len(OTHERS)


async def test_a_lease_that_cannot_be_given_back_is_counted(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(*_: object) -> None:
        raise CatalogError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(SqliteCatalog, "release", failing)
        await rig.ingest.stop()
    assert rig.counters["ingest_leases_kept"] == 1


async def test_it_looks_by_itself_when_nobody_tells(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "LOOK", 0.01)
    await rig.ingest.settled()
    await rig.add(SESSION, of(5).seal())
    rig.wake.clear()
    async with rig.ingest._round_ended:
        await rig.ingest._round_ended.wait_for(lambda: rig.counters["ingest_records"] == 15)


async def test_sessions_are_copied_as_they_change(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "LISTED", 3)
    offers = [Registration(PRODUCT, session_row(each).summary, SessionState.WANTED) for each in OTHERS]
    await rig.catalog.register(offers, 1.0)
    await rig.ingest.settled()
    declined = [replace(offer, state=SessionState.DECLINED) for offer in offers[:4]]
    await rig.catalog.register(declined, 2.0)
    await rig.ingest.settled()
    assert bench(rig).sql("SELECT state, count(*) FROM session GROUP BY 1 ORDER BY 1") == [
        ("declined", 4),
        ("wanted", 6),
    ]


async def test_a_session_that_the_store_refuses_is_passed_over(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    load = Analytics.load_sessions

    def refusing(self: Analytics, rows: Sequence[SessionRow], revision: int) -> None:
        if any(row.summary.session_id == SESSION for row in rows):
            raise RowsRefused("what a name")
        load(self, rows, revision)

    monkeypatch.setattr(Analytics, "load_sessions", refusing)
    ids = (*OTHERS[:4], SESSION, *OTHERS[4:])
    await rig.catalog.register(
        [Registration(PRODUCT, session_row(each).summary, SessionState.WANTED) for each in ids], 1.0
    )
    await rig.ingest.settled()
    assert bench(rig).sql("SELECT count(*) FROM session") == [(10,)]
    assert rig.counters["ingest_sessions_refused"] == 1


async def test_stopping_in_the_middle_of_a_batch_is_prompt_and_loses_nothing(rig: Rig) -> None:
    for number in range(40):
        session_id = f"018f0000-0000-7000-8000-{number:012}"
        await rig.add(session_id, of(1000, session_id).seal())
    rig.wake.set()
    await rig.stop_loading()
    await rig.start_loading()
    await rig.ingest.settled()
    assert bench(rig).sql("SELECT count(*), count(DISTINCT (session_id, sequence)) FROM feature") == [
        (120_000, 120_000)
    ]

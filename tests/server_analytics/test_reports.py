"""The reports against the same questions answered in plain Python."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import math
import random
import statistics
import threading
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pytest

from mailboat.protocol import Info, SegmentReader, Status
from mailboat.protocol.limits import MIB
from mailboat.protocol.records import COUNTERS
from mailboat.server import reports, summing, triage, usage
from mailboat.server.analytics import Analytics
from mailboat.server.catalog import Origin, SessionState
from mailboat.server.decoding import Decoder
from mailboat.server.reports import Answer, Paging, Question, Reports, Scope, TooSlow
from mailboat.server.sums import RECORD_TABLES
from testkit.loading import PRODUCT, Bench, segment_row, session_row
from testkit.segments import START, Raw, Segment, event, exception, feature, timing, value

DAY = 86_400
NAMES = ["import", "import.csv", "import.csv.fast", "import.xml", "export", "export.pdf", "a.b.c.d.e.f.g.h.i.j"]
STACKS = [
    [["/srv/app/main.py", 10, "main"], ["/srv/app/load.py", 20, "load"]],
    [["/srv/app/main.py", 99, "main"], ["/srv/app/load.py", 21, "load"]],
    [["/srv/app/main.py", 10, "main"], ["/srv/app/save.py", 5, "save"]],
]


@dataclass
class Seen:
    """One record as it was recorded, with its session."""

    session: str
    product: str
    internal: bool
    version: str
    installation: str
    record: Any


@dataclass
class World:
    """A store with many sessions, and all that is in it."""

    bench: Bench
    sessions: list[Any] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)

    def records(self, scope: Scope, *kinds: str) -> list[Seen]:
        return [
            each
            for each in self.seen
            if each.record.kind in kinds
            and scope.product in (None, each.product)
            and (scope.origin is Origin.ALL or each.internal == (scope.origin is Origin.INTERNAL))
            and (scope.since is None or each.record.time >= scope.since)
            and (scope.until is None or each.record.time < scope.until)
        ]

    def sessions_in(self, scope: Scope) -> list[Any]:
        return [
            each
            for each in self.sessions
            if scope.product in (None, each.product)
            and (scope.origin is Origin.ALL or each.summary.info.test == (scope.origin is Origin.INTERNAL))
            and (scope.since is None or each.summary.started >= scope.since)
            and (scope.until is None or each.summary.started < scope.until)
        ]


def random_record(chance: random.Random, at: float) -> Raw:
    name, kind = chance.choice(NAMES), chance.randrange(5)
    if kind == 0:
        return feature(name, at=at)
    if kind == 1:
        number = chance.choice([chance.uniform(-5, 5), chance.randrange(100), math.nan])
        return value(name, number, chance.choice([None, "bytes"]), at=at)
    if kind == 2:
        return timing(name, chance.uniform(0, 3), at=at)
    if kind == 3:
        return event(name, at=at)
    return exception(chance.choice(["ValueError", "KeyError"]), f"bad {at}", at=at, stack=chance.choice(STACKS))


def add_session(world: World, chance: random.Random) -> None:
    session_id = str(uuid.UUID(int=chance.getrandbits(128), version=4))
    product, day = chance.choice([PRODUCT, PRODUCT, "Other"]), chance.randrange(5)
    info = Info(
        product=product,
        application="importer",
        version=chance.choice(["1.0", "1.1", ""]),
        user=chance.choice(["ann", "bob", ""]),
        os=chance.choice(["Linux", "Windows"]),
        test=chance.random() < 0.25,
    )
    state = chance.choice([SessionState.WANTED, SessionState.WANTED, SessionState.DECLINED])
    segment, counts = Segment(session_id, info=info), Counter[str]()
    for _ in range(3):
        segment.block([random_record(chance, day * DAY + number) for number in range(chance.randrange(1, 12))])
    data = segment.seal()
    found = list(SegmentReader(data))
    counts.update(record.kind for record in found)
    row = session_row(
        session_id,
        product,
        info=info,
        status=chance.choice(list(Status)),
        state=state,
        started=START + day * DAY,
        counts=counts,
        installation=chance.choice(["inst-1", "inst-2", "inst-3", ""]),
    )
    world.sessions.append(row)
    if state is SessionState.WANTED:
        installation = row.summary.installation
        world.seen += [Seen(session_id, product, info.test, info.version, installation, record) for record in found]
        world.bench.load((segment_row(data, session_id, product=product), data))


@pytest.fixture(scope="module", params=[None, 40, 60], ids=["records alone", "some sums", "sums"])
def world(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[World]:
    folder, decoder = tmp_path_factory.mktemp("world"), Decoder()
    analytics = Analytics(folder / "analytics.duckdb")
    made, chance = World(Bench(analytics, decoder, folder)), random.Random(7)
    for count in range(1, 61):
        add_session(made, chance)
        if count == request.param:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(summing, "TAIL", 0)
                assert analytics.sum_up(idle=False)
    analytics.load_sessions(made.sessions, 1)
    yield made
    decoder.close()
    analytics.close()


SCOPES = [
    Scope(),
    Scope(PRODUCT),
    Scope("Other", origin=Origin.ALL),
    Scope(origin=Origin.INTERNAL),
    Scope(PRODUCT, START + DAY, START + 3 * DAY),
    Scope(None, START + 2 * DAY + 3, None, Origin.ALL),
    Scope("nobody's"),
]
scopes = pytest.mark.parametrize("scope", SCOPES)


def distinct(values: Iterable[str]) -> int:
    return len({value for value in values if value != ""})


@scopes
def test_overview(world: World, scope: Scope) -> None:
    said = world.bench.ask(lambda question: reports.overview(scope, question))
    inside = world.sessions_in(scope)
    crashed = sum(each.summary.status is Status.CRASHED for each in inside)
    ended = sum(each.summary.status is not Status.RUNNING for each in inside)
    assert (said["sessions"], said["crashed"], said["ended"], said["running"]) == (
        len(inside),
        crashed,
        ended,
        len(inside) - ended,
    )
    assert said["crash_free"] == (pytest.approx(1 - crashed / ended) if ended else None)
    assert said["installations"] == distinct(each.summary.installation for each in inside)
    assert said["users"] == distinct(each.summary.info.user for each in inside)
    assert said["declined"] == sum(each.state is SessionState.DECLINED for each in inside)
    kinds = ("feature", "value", "timing", "event", "exception", "installation")
    assert said["records"] == {**{kind: len(world.records(scope, kind)) for kind in kinds}, "other": 0}
    assert said["declared"] == {
        name: sum(each.summary.counts[COUNTERS.index(name)] for each in inside) for name in said["declared"]
    }
    versions = Counter(each.summary.info.version for each in inside)
    assert {row["version"]: row["sessions"] for row in said["versions"]} == versions
    assert {row["os"]: row["sessions"] for row in said["environment"]["os"]} == Counter(
        each.summary.info.os for each in inside
    )


@scopes
@pytest.mark.parametrize("most", [2, 400])
def test_overview_by_day(world: World, scope: Scope, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = world.bench.ask(lambda question: reports.overview(scope, question))["records"]
    monkeypatch.setattr(reports, "MAX_DAYS", most)
    overview = world.bench.ask(lambda question: reports.overview(scope, question))
    assert overview["records"] == whole
    said = overview["days"]

    def day(seconds: float) -> str:
        return dt.datetime.fromtimestamp(seconds, dt.UTC).date().isoformat()

    sessions = Counter(day(each.summary.started) for each in world.sessions_in(scope))
    records = Counter(day(each.record.time) for each in world.records(scope, *RECORD_TABLES))
    days = sorted(sessions.keys() | records.keys(), reverse=True)[:most]
    assert [row["day"] for row in said] == days
    assert [row["sessions"] for row in said] == [sessions[day] for day in days]
    assert [row["records"] for row in said] == [records[day] for day in days]


@scopes
def test_features_and_the_categories_above_them(world: World, scope: Scope) -> None:
    said = world.bench.ask(lambda question: usage.features(scope, Paging(1000), question))
    uses, own, sessions, installations = Counter[str](), Counter[str](), defaultdict(set), defaultdict(set)
    for each in world.records(scope, "feature"):
        name = each.record.name
        own[name] += 1
        steps = name.split(".")
        for node in {name, *(".".join(steps[:depth]) for depth in range(1, min(len(steps), usage.MAX_LEVELS + 1)))}:
            uses[node] += 1
            sessions[node].add((each.product, each.session))
            installations[node].add(each.installation)
    assert {row["name"]: row["uses"] for row in said["features"]} == uses
    assert {row["name"]: row["own"] for row in said["features"] if row["own"]} == own
    for row in said["features"]:
        assert row["sessions"] == len(sessions[row["name"]])
        assert row["installations"] == distinct(installations[row["name"]])
        assert row["parent"] == (row["name"].rpartition(".")[0] or None)
        assert row["share"] == pytest.approx(row["sessions"] / said["sessions"])
        assert 0 < row["share"] <= 1
    assert [row["uses"] for row in said["features"]] == sorted(uses.values(), reverse=True)


@scopes
@pytest.mark.parametrize("kind", [None, "value", "timing"])
def test_values_and_timings(world: World, scope: Scope, kind: str | None) -> None:
    said = world.bench.ask(lambda question: usage.values(scope, kind, Paging(1000), question))
    numbers: dict[tuple[str, str, str | None], list[float]] = defaultdict(list)
    for each in world.records(scope, *([kind] if kind else ["value", "timing"])):
        record = each.record
        number = record.value if record.kind == "value" else record.duration
        unit = record.unit if record.kind == "value" else "s"
        numbers[record.kind, record.name, unit] += [] if math.isnan(number) else [number]
    assert {(row["kind"], row["name"], row["unit"]): row["count"] for row in said["values"]} == {
        key: len(found) for key, found in numbers.items()
    }
    for row in said["values"]:
        found = sorted(numbers[row["kind"], row["name"], row["unit"]])
        if not found:
            assert (row["sum"], row["percentiles"]["50"]) == (None, None)
            continue
        assert (row["min"], row["max"]) == (found[0], found[-1])
        assert row["sum"] == pytest.approx(sum(found))
        assert row["mean"] == pytest.approx(statistics.fmean(found))
        assert row["percentiles"]["50"] == pytest.approx(statistics.median(found))
        if len(found) > 1:
            assert row["percentiles"]["90"] == pytest.approx(statistics.quantiles(found, n=100, method="inclusive")[89])


@scopes
def test_exceptions_grouped_by_type_and_way(world: World, scope: Scope) -> None:
    said = world.bench.ask(lambda question: triage.exceptions(scope, Paging(1000), (), None, question))["exceptions"]
    groups = defaultdict(list)
    for each in world.records(scope, "exception"):
        groups[each.product, each.record.name, tuple(frame[0] for frame in each.record.stack)].append(each)
    assert len(said) == len(groups), "two stacks that differ in line numbers alone are one"
    for row in said:
        group = groups[row["product"], row["type"], tuple(frame[0] for frame in row["stack"])]
        latest = max(group, key=lambda each: each.record.time)
        assert row["count"] == len(group)
        assert row["sessions"] == len({(each.product, each.session) for each in group})
        assert row["versions"] == sorted({each.version for each in group} - {""})
        assert row["first"] == pytest.approx(min(each.record.time for each in group), abs=1e-5)
        assert row["last"] == pytest.approx(latest.record.time, abs=1e-5)
        times = {each.record.message for each in group if each.record.time == latest.record.time}
        assert row["message"] in times
        assert (row["level"], row["causes"]) == (40, [])


def test_pages_of_an_aggregate_are_the_aggregate(world: World) -> None:
    scope = Scope(origin=Origin.ALL)
    whole = world.bench.ask(lambda question: usage.features(scope, Paging(1000), question))
    assert whole["next"] is None
    found, cursor = [], "0"
    while cursor is not None:
        page = world.bench.ask(lambda question, at=int(cursor): usage.features(scope, Paging(3, at), question))  # type: ignore[misc]
        assert len(page["features"]) <= 3
        found += page["features"]
        cursor = page["next"]
    assert found == whole["features"]


def test_holdings_say_what_is_here_of_each_product(world: World) -> None:
    said = world.bench.ask(lambda question: reports.holdings(Scope(), question))["products"]
    assert [row["product"] for row in said] == [PRODUCT, "Other"]
    for row in said:
        inside = world.sessions_in(Scope(row["product"], origin=Origin.ALL))
        declined = [each for each in inside if each.state is SessionState.DECLINED]
        assert (row["sessions"], row["declined_sessions"]) == (len(inside), len(declined))
        assert row["declared"] == sum(each.summary.records for each in inside)
        assert row["declined_records"] == sum(each.summary.records for each in declined)
        assert row["loaded"] == row["declared"] - row["declined_records"]
        assert (row["missing"], row["failed_segments"]) == (0, 0)
    assert world.bench.ask(lambda question: reports.holdings(Scope("Other"), question))["products"] == said[1:]


# -- in threads ------------------------------------------------------------------------------------------------------


def endless(question: Question) -> Answer:
    return question.row("SELECT sum(a.range * b.range) AS n FROM range(1000000000) a, range(1000000000) b", {})


async def test_a_question_that_takes_too_long_is_ended(world: World) -> None:
    asked = Reports(world.bench.analytics, time_limit=0.05)
    with pytest.raises(TooSlow, match=r"0\.05 s"):
        await asked.ask(endless)
    await asyncio.to_thread(asked.close)  # which waits for the threads: the engine really has ended it


async def test_a_question_that_takes_too_much_memory_is_ended(tmp_path: Path) -> None:
    analytics = Analytics(tmp_path / "analytics.duckdb", memory=32 * MIB)
    asked = Reports(analytics)
    with pytest.raises(TooSlow, match="more memory"):
        await asked.ask(lambda question: question.row("SELECT len(list(i)) AS n FROM range(100_000_000) t(i)", {}))
    assert await asked.ask(lambda question: question.row("SELECT 1 AS n", {})) == {"n": 1}
    asked.close()
    analytics.close()


def nothing(_: Question) -> Answer:
    return {}


@pytest.mark.parametrize("two", [(endless, nothing), (nothing, endless), (endless, endless)])
async def test_of_two_answers_at_a_time_whichever_takes_too_long_is_ended(
    world: World, two: tuple[Callable[[Question], Answer], Callable[[Question], Answer]]
) -> None:
    asked = Reports(world.bench.analytics, time_limit=0.05)
    with pytest.raises(TooSlow):
        await asked.ask(lambda question: {"both": question.both(*two)})
    await asyncio.to_thread(asked.close)


async def test_two_answers_at_a_time_are_found_in_two_threads_and_the_error_of_each_is_told(world: World) -> None:
    asked = Reports(world.bench.analytics)
    meeting = threading.Barrier(2, timeout=30)

    def counted(question: Question) -> Answer:
        meeting.wait()
        return question.row("SELECT count(*) AS n FROM feature", {})

    def failing(question: Question) -> Answer:
        return question.row("SELECT error('there is none')", {})

    (expected,) = world.bench.sql("SELECT count(*) FROM feature")
    answer = await asked.ask(lambda question: {"both": question.both(counted, counted)})
    assert [each["n"] for each in answer["both"]] == [*expected, *expected]
    for two in ((failing, nothing), (nothing, failing), (failing, failing)):
        with pytest.raises(duckdb.Error, match="there is none"):
            await asked.ask(lambda question, two=two: {"both": question.both(*two)})  # type: ignore[misc]
    asked.close()


def test_with_one_connection_two_answers_are_found_one_after_the_other(world: World) -> None:
    def asked(question: Question) -> Answer:
        return usage.features(Scope(), Paging(1000), question)

    cursor = world.bench.analytics.cursor()
    try:
        assert asked(Question(cursor)) == world.bench.ask(asked)
    finally:
        cursor.close()


async def test_a_question_that_nobody_waits_for_is_ended(world: World) -> None:
    asked = Reports(world.bench.analytics)
    tasks = [asyncio.create_task(asked.ask(endless)) for _ in range(5)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    assert all(
        isinstance(each, asyncio.CancelledError) for each in await asyncio.gather(*tasks, return_exceptions=True)
    )
    await asyncio.to_thread(asked.close)


async def test_many_ask_at_once(world: World) -> None:
    asked = Reports(world.bench.analytics)
    answers = await asyncio.gather(
        *(asked.ask(lambda question: reports.overview(Scope(), question)) for _ in range(20))
    )
    assert len({json.dumps(answer, sort_keys=True) for answer in answers}) == 1
    await asyncio.to_thread(asked.close)

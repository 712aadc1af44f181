"""Reports that come from sums against the same questions answered from the records, after any history of a store."""

from __future__ import annotations

import random
import statistics
import uuid
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from mailboat.protocol import Info
from mailboat.server import reports, summing, usage
from mailboat.server.analytics_store import TooMuchToSum
from mailboat.server.catalog import Origin, SegmentRow, SessionRow
from mailboat.server.reports import Paging, Scope
from mailboat.server.sums import PART, SUMS, WEEK
from testkit.loading import PRODUCT, Bench, segment_row, session_row
from testkit.segments import SESSION, START, Raw, Segment, event, feature, timing, value

WEEKS = 4
SECONDS = WEEK // 10**6
BEGIN = (START // SECONDS) * SECONDS
"""A week begins."""
NAMES = ["import", "import.csv", "import.csv.fast", "export.pdf"]
PRODUCTS = [PRODUCT, "Other"]
INSTALLATIONS = ["", "inst-1", "inst-2", "inst-3"]


@dataclass
class Store:
    """A store that something happens to: the sessions it was told of, what is loaded of each, and how many records each
    of their segments has ever had.
    """

    bench: Bench
    chance: random.Random
    sessions: dict[tuple[str, str], SessionRow] = field(default_factory=dict)
    loaded: dict[tuple[str, str], list[SegmentRow]] = field(default_factory=dict)
    made: defaultdict[tuple[str, str], list[int]] = field(default_factory=lambda: defaultdict(list))

    # -- what may happen -----------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Records of a new session, or more of one that is there, of any time."""
        chance = self.chance
        known = sorted(self.loaded)
        if known and chance.random() < 0.3:
            product, session_id = chance.choice(known)
        else:
            product, session_id = chance.choice(PRODUCTS), str(uuid.UUID(int=chance.getrandbits(128), version=4))
            if chance.random() < 0.8:
                self.tell(product, session_id)
        number = len(self.made[product, session_id])
        first = sum(self.made[product, session_id])
        info = Info(product=product, application="a", test=chance.random() < 0.3)
        segment = Segment(session_id, number, first=first, info=info)
        begun = BEGIN - START + chance.uniform(0, WEEKS) * SECONDS
        for _ in range(chance.randrange(1, 3)):
            made = [self._record(begun + number * chance.choice([1, 3600])) for number in range(chance.randrange(1, 9))]
            segment.block(made)
            first += len(made)
        self.made[product, session_id].append(first - sum(self.made[product, session_id]))
        data = segment.seal()
        row = segment_row(data, session_id, number, product=product)
        self.bench.load((row, data))
        self.loaded.setdefault((product, session_id), []).append(row)

    def _record(self, at: float) -> Raw:
        chance, name = self.chance, self.chance.choice(NAMES)
        kind = chance.randrange(4)
        if kind == 0:
            return value(name, chance.choice([chance.uniform(-5, 5), float("nan")]), chance.choice([None, "m"]), at=at)
        if kind == 1:
            return timing(name, chance.uniform(0, 3), at=at)
        return event(name, at=at) if kind == 2 else feature(name, at=at)

    def tell(self, product: str, session_id: str) -> None:
        """What is known of a session, its installation first of all."""
        chance = self.chance
        row = session_row(
            session_id,
            product,
            info=Info(product=product, application="a", test=chance.random() < 0.3),
            installation=chance.choice(INSTALLATIONS),
            started=BEGIN + chance.uniform(0, WEEKS) * SECONDS,
        )
        self.sessions[product, session_id] = row
        self.bench.analytics.load_sessions([row], 1)

    def tell_again(self) -> None:
        """A session that is there is told of anew, or for the first time."""
        for key in self.some(2):
            self.tell(*key)

    def forget(self) -> None:
        """Some sessions go."""
        keys = self.some(3)
        self.bench.analytics.forget(keys)
        for key in keys:
            self.loaded.pop(key)
            self.sessions.pop(key, None)

    def unload(self) -> None:
        """Some segments go."""
        for key in self.some(1):
            segments = self.loaded[key]
            if segments:
                self.bench.analytics.unload([segments.pop()])

    def sum_up(self) -> None:
        self.bench.analytics.sum_up(idle=self.chance.random() < 0.5)

    def some(self, most: int) -> list[tuple[str, str]]:
        known = sorted(self.loaded)
        return self.chance.sample(known, min(len(known), self.chance.randrange(most + 1)))

    # -- what there is -------------------------------------------------------------------------------------------------

    def records(self, table: str, columns: str, scope: Scope) -> list[dict[str, Any]]:
        """The records of the scope, looked for one by one."""
        names = ["product", "session", "internal", "time", *columns.split(", ")]
        sql = f"SELECT product, session_id::VARCHAR, internal, epoch_us(time), {columns} FROM {table}"
        return [
            row
            for row in (dict(zip(names, found, strict=True)) for found in self.bench.sql(sql))
            if scope.product in (None, row["product"])
            and (scope.origin is Origin.ALL or row["internal"] == (scope.origin is Origin.INTERNAL))
            and (scope.since is None or row["time"] >= int(scope.since * 1e6))
            and (scope.until is None or row["time"] < int(scope.until * 1e6))
        ]

    def installation(self, row: dict[str, Any]) -> str:
        session = self.sessions.get((row["product"], row["session"]))
        return "" if session is None else session.summary.installation


def random_scope(chance: random.Random) -> Scope:
    """Any, with ends that cut weeks and ends that do not."""

    def end() -> float | None:
        kind, week = chance.randrange(3), chance.randrange(-1, WEEKS + 2)
        return None if kind == 0 else BEGIN + week * SECONDS + (chance.randrange(SECONDS) if kind == 1 else 0)

    since, until = end(), end()
    if since is not None and until is not None and until <= since:
        since, until = (until, since) if until < since else (since, None)
    return Scope(chance.choice([None, *PRODUCTS]), since, until, chance.choice(list(Origin)))


def check(store: Store, scope: Scope) -> None:
    """Every report of sums says what the records say."""
    check_overview(store, scope)
    check_features(store, scope)
    check_values(store, scope)


def check_overview(store: Store, scope: Scope) -> None:
    said = store.bench.ask(lambda question: reports.overview(scope, question))
    days = Counter[str]()
    for kind, count in said["records"].items():
        found = store.records(kind, "sequence", scope)
        assert count == len(found)
        days.update(datetime.fromtimestamp(row["time"] / 1e6, UTC).date().isoformat() for row in found)
    assert {row["day"]: row["records"] for row in said["days"] if row["records"]} == days


def check_features(store: Store, scope: Scope) -> None:
    said = store.bench.ask(lambda question: usage.features(scope, Paging(1000), question))["features"]
    rows = defaultdict[str, list[dict[str, Any]]](list)
    for row in store.records("feature", "name", scope):
        steps = row["name"].split(".")
        for depth in range(1, len(steps) + 1):
            rows[".".join(steps[:depth])].append(row)
    assert {row["name"] for row in said} == rows.keys()
    for row in said:
        found = rows[row["name"]]
        assert (row["uses"], row["own"]) == (len(found), sum(each["name"] == row["name"] for each in found))
        assert row["sessions"] == len({(each["product"], each["session"]) for each in found})
        assert row["installations"] == len({store.installation(each) for each in found} - {""})
        times = [each["time"] / 1e6 for each in found]
        assert (row["first"], row["last"]) == (min(times), max(times))


def check_values(store: Store, scope: Scope) -> None:
    said = store.bench.ask(lambda question: usage.values(scope, None, Paging(1000), question))["values"]
    rows = defaultdict[Any, list[dict[str, Any]]](list)
    for row in store.records("value", "name, unit, value", scope):
        rows["value", row["name"], row["unit"]].append(row)
    for row in store.records("timing", "name, seconds", scope):
        rows["timing", row["name"], "s"].append({**row, "value": row["seconds"]})
    assert {(row["kind"], row["name"], row["unit"]) for row in said} == rows.keys()
    for row in said:
        found = rows[row["kind"], row["name"], row["unit"]]
        numbers = [each["value"] for each in found if each["value"] is not None]
        assert row["count"] == len(numbers)
        assert row["sessions"] == len({(each["product"], each["session"]) for each in found})
        assert (row["min"], row["max"]) == (min(numbers, default=None), max(numbers, default=None))
        if numbers:
            assert row["sum"] == pytest.approx(sum(numbers))
            assert row["mean"] == pytest.approx(statistics.fmean(numbers))
            assert row["percentiles"]["50"] == pytest.approx(statistics.median(numbers))


@pytest.mark.parametrize("part", range(3))
def test_reports_say_the_same_whatever_is_summed(
    bench: Bench, seed: int, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(f"{seed} {part}")
    monkeypatch.setattr(summing, "TAIL", chance.choice([0, 20, 60]))
    store = Store(bench, chance)
    if chance.random() < 0.7:  # numbers that go on in another part soon
        bench.sql("INSERT INTO numbered VALUES ($product, uuid(), $number, $number)", product=PRODUCT, number=PART - 3)
        bench.sql("INSERT INTO part VALUES (0, $product)", product=PRODUCT)
    happenings = [store.load] * 8 + [store.sum_up] * 4 + [store.tell_again, store.forget, store.unload]
    for _ in range(40):
        chance.choice(happenings)()
        if chance.random() < 0.3:
            check(store, random_scope(chance))
    for _ in range(6):
        check(store, random_scope(chance))
    assert list(bench.analytics.disagreements()) == []


def test_what_is_too_much_to_be_summed_waits_and_reports_are_right_without(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summing, "TAIL", 10)
    store = Store(bench, random.Random(1))
    for _ in range(10):
        store.load()
    memory = bench.sql("SELECT current_setting('memory_limit')")[0][0]
    (used,) = bench.sql("SELECT sum(memory_usage_bytes) FROM duckdb_memory()")[0]
    bench.sql(f"SET memory_limit = '{used // 1024 + 1024}KiB'")  # which is less than one hash table takes
    with pytest.raises(TooMuchToSum):
        bench.analytics.sum_up(idle=False)
    bench.sql(f"SET memory_limit = '{memory}'")
    assert bench.sql("SELECT summed, waiting FROM state") == [(0, -10)]
    check(store, Scope(origin=Origin.ALL))
    assert not bench.analytics.sum_up(idle=True)
    while not bench.analytics.sum_up(idle=False):
        store.load()
    assert bench.sql("SELECT summed = generation, waiting FROM state") == [(True, 0)]
    check(store, Scope(origin=Origin.ALL))


def test_weeks_without_sums_have_them_again_when_nothing_else_is_to_be_done(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(bench, random.Random(2))
    for _ in range(10):
        store.load()
    assert not bench.analytics.sum_up(idle=True), "few records are not worth it"
    monkeypatch.setattr(summing, "TAIL", 1)
    assert bench.analytics.sum_up(idle=False)
    key = min(store.loaded)
    bench.analytics.forget([key])
    assert bench.sql("SELECT count(*) > 0 FROM stale") == [(True,)]
    assert not bench.analytics.sum_up(idle=False)
    assert bench.analytics.sum_up(idle=True)
    assert bench.sql("SELECT count(*) FROM stale") == [(0,)]
    check(store, Scope(origin=Origin.ALL))


def test_numbers_stay_with_a_product_when_none_of_its_sessions_is_left(bench: Bench) -> None:
    segment = Segment()
    segment.block([feature()])
    data = segment.seal()
    for product in ("One", "Two", "One", "Two"):
        bench.load((segment_row(data, product=product), data))
        own = 0 if product == "One" else PART
        assert bench.sql("SELECT product, number FROM numbered") == [(product, own)]
        assert bench.sql("SELECT product, count(*) FROM feature GROUP BY ALL") == [(product, 1)]
        assert bench.analytics.forget([(product, SESSION)]) == 1
    assert bench.sql("FROM part ORDER BY part") == [(0, "One"), (1, "Two")]


def test_a_sum_that_disagrees_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summing, "TAIL", 1)
    store = Store(bench, random.Random(3))
    for _ in range(30):
        store.load()
    assert bench.analytics.sum_up(idle=False)
    assert list(bench.analytics.disagreements()) == []
    for each in SUMS:
        (week,) = bench.sql(f"SELECT any_value(week) FROM {each.table} WHERE product = 'Other'")[0]
        bench.sql(f"DELETE FROM {each.table} WHERE product = 'Other' AND week = {week}")
        (told,) = bench.analytics.disagreements()
        assert told == f"Other: the sums in {each.table} of week {week} since 1970 are not those of its records"
        bench.sql(f"DELETE FROM {each.table}")
        bench.sql(f"INSERT INTO {each.table} {each.gathered_by_scope('true')}")

"""The store: one transaction for rows and progress, and nothing that an agent can say breaks it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailboat.protocol import Info, Status
from mailboat.server import summing
from mailboat.server.analytics import Analytics
from mailboat.server.analytics_store import AnalyticsError, Key, RowsRefused, StaleLoad
from mailboat.server.decoding import Decoded
from testkit.loading import PRODUCT, Bench, segment_row, session_row
from testkit.segments import (
    SESSION,
    Segment,
    event,
    exception,
    feature,
    installation,
    pack,
    positional,
    schema,
    timing,
    value,
)

OTHER = "018f0000-0000-7000-8000-000000000002"


def mixed() -> Segment:
    segment = Segment(info=Info(test=True))
    segment.block([feature("import.csv", at=1.5, rows=1200), value("size", 18_230, "bytes"), timing("parse", 0.25)])
    segment.block([schema(1, "order.placed", "user_id"), event("cache.miss", 30, "no entry", key="k1")])
    segment.block([exception("ValueError", "bad"), installation("inst-42", plan="pro"), positional(1, 7)])
    return segment


def test_each_record_is_a_row_of_its_table(bench: Bench) -> None:
    data = mixed().seal()
    bench.load((segment_row(data), data))
    assert bench.sequences() == list(range(7))
    (row,) = bench.sql("SELECT * EXCLUDE (number, generation) FROM feature WHERE name = 'import.csv'")
    product, session_id, internal, sequence, time, name, attributes = row
    assert (product, str(session_id), internal, sequence, name) == (PRODUCT, SESSION, True, 0, "import.csv")
    assert (time, json.loads(attributes)) == (datetime.fromisoformat("2026-09-21 14:13:21.5"), {"rows": 1200})
    assert bench.sql("SELECT value, unit FROM value") == [(18_230.0, "bytes")]
    assert bench.sql("SELECT seconds FROM timing") == [(0.25,)]
    assert bench.sql("SELECT level, message, attributes FROM event") == [(30, "no entry", '{"key":"k1"}')]
    ((name, level, message, stack, causes, group),) = bench.sql(
        'SELECT name, level, message, stack, causes, "group" FROM exception'
    )
    assert (name, level, message, json.loads(stack), causes) == (
        "ValueError",
        40,
        "bad",
        [["/srv/app/main.py", 10, "main"]],
        "[]",
    )
    assert len(group) == 16
    assert bench.sql("SELECT name, attributes FROM installation") == [("inst-42", '{"plan":"pro"}')]
    assert bench.sql("SELECT attributes FROM feature WHERE name = 'order.placed'") == [('{"user_id":7}',)]


def test_attributes_of_any_text_are_those_of_their_own_record(bench: Bench) -> None:
    texts = ["\n", '"\\"', "\\n", "\r\n\x1e\x00", "\u2028", "", "'", "{}\n{}"]
    segment = Segment()
    attributes: list[dict[str, Any]] = [{text: text} for text in texts]
    segment.block([feature(f"name {at}\n", **each) for at, each in enumerate(attributes)])
    data = segment.seal()
    bench.load((segment_row(data), data))
    rows = bench.sql("SELECT name, attributes, attributes->>'$.*' FROM feature ORDER BY sequence")
    assert [(name, json.loads(attributes)) for name, attributes, _ in rows] == [
        (f"name {at}\n", each) for at, each in enumerate(attributes)
    ]
    assert [values for _, _, values in rows] == [[text] for text in texts]


def test_a_growing_segment_goes_on_where_it_was_left_even_by_another_process(bench: Bench, tmp_path: Path) -> None:
    segment = mixed()
    half = segment.data[: segment.ends[1] + 50]
    bench.load((segment_row(half, complete=False), half))
    assert bench.sequences() == [0, 1, 2, 3]
    bench.analytics.close()
    bench.analytics.__init__(tmp_path / "analytics.duckdb")  # type: ignore[misc] # the next start of the server
    data = segment.seal()
    (step,) = bench.load((segment_row(data), data))
    assert step.outcome.records == 3
    assert bench.sequences() == list(range(7))
    assert bench.sql("SELECT attributes FROM feature WHERE name = 'order.placed'") == [('{"user_id":7}',)]


def test_loading_the_same_bytes_again_adds_nothing(bench: Bench) -> None:
    data = mixed().seal()
    bench.load((segment_row(data), data))
    (step,) = bench.load((segment_row(data), data))
    assert (step.outcome.records, bench.sequences()) == (0, list(range(7)))


def test_the_same_segment_under_another_upload_adds_only_what_is_new(bench: Bench) -> None:
    """The first upload expired, and the segment was sent anew."""
    segment = mixed()
    half = segment.data[: segment.ends[0]]
    bench.load((segment_row(half, complete=False), half))
    data = segment.seal()
    bench.load((segment_row(data, upload_id=OTHER), data))
    assert bench.sequences() == list(range(7))


def test_an_abandoned_segment_and_the_next_one_give_each_record_once(bench: Bench) -> None:
    first, second = Segment(), Segment(index=1, first=2, salt=9)
    first.block([feature("a"), feature("b")])
    first.block([feature("c"), feature("d")])
    second.block([feature("c"), feature("d"), feature("e")])
    one, two = first.seal(), second.seal()
    bench.load((segment_row(two, index=1), two), (segment_row(one), one))
    assert bench.sql("SELECT sequence, name FROM feature ORDER BY 1") == list(enumerate("abcde"))


def test_products_do_not_share_sessions_of_the_same_id(bench: Bench) -> None:
    data = mixed().seal()
    bench.load((segment_row(data), data), (segment_row(data, product="Other"), data))
    assert bench.sequences() == bench.sequences(product="Other") == list(range(7))


def test_a_load_that_fails_leaves_nothing_behind(bench: Bench, tmp_path: Path) -> None:
    data = mixed().seal()
    bench.load((segment_row(data), data))
    before = bench.sql("SELECT * FROM loaded")
    generation = bench.analytics.generation
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "feature.json").write_bytes(b'{"i":0,"s":0,"b":7,"o":0,"q":[0],"t":[1],"n":["a"]}\n')
    (folder / "event.json").write_bytes(b'{"i":0,"s":0,"b":8,"o":0,"q":[0],"t":[1],"n":["a"],"l":[900],"m":[null]}\n')
    for table in ("feature", "event"):
        (folder / f"{table}.txt").write_bytes(b"{}")
    _, steps = bench.decode((segment_row(data, OTHER), data))
    with pytest.raises(RowsRefused, match="900"):
        bench.analytics.load(Decoded(folder, ("feature", "event")), steps)
    assert bench.sequences() == list(range(7))
    assert bench.sql("SELECT * FROM loaded") == before
    assert bench.analytics.generation == generation
    assert _optimizes(bench)
    bench.load((segment_row(data, OTHER), data))
    assert _optimizes(bench)


def _optimizes(bench: Bench) -> bool:
    """Whether what is asked of many sessions is planned before it is carried out."""
    plan = bench.analytics._writer.execute("EXPLAIN FROM numbered WHERE true").fetchall()[0][1]
    return "FILTER" not in plan


def test_cursors_see_the_same_or_there_is_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    data = mixed().seal()
    rows = iter([segment_row(data), segment_row(data, OTHER), segment_row(data, OTHER, product="Other")])

    def seen(cursors: list[duckdb.DuckDBPyConnection]) -> list[int]:
        found = [each.execute("SELECT count(*) FROM loaded").fetchall()[0][0] for each in cursors]
        for each in cursors:
            each.close()
        return found

    before = bench.analytics.cursors(2)
    bench.load((next(rows), data))
    assert (seen(before), seen(bench.analytics.cursors(2))) == ([0, 0], [1, 1])
    with bench.analytics._commits.one():
        assert seen(bench.analytics.cursors(2)) == [1], "something is being written"
    cursor, made = Analytics.cursor, list[duckdb.DuckDBPyConnection]()

    def overtaken(self: Analytics) -> duckdb.DuckDBPyConnection:
        made.append(cursor(self))
        if len(made) == 2:
            bench.load((next(rows), data))
        return made[-1]

    monkeypatch.setattr(Analytics, "cursor", overtaken)
    assert seen(bench.analytics.cursors(2)) == [2], "something was written meanwhile"
    assert seen(bench.analytics.cursors(2)) == [2, 2]


def test_of_two_loads_at_once_one_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both begin, and find what they expect, before one of them commits."""
    data = mixed().seal()
    (one, steps), (other, again) = (bench.decode((segment_row(data), data)) for _ in range(2))
    number, rival = summing.number, Analytics(bench.folder / "analytics.duckdb")

    def overtaken(
        db: duckdb.DuckDBPyConnection, numbering: summing.Numbering, sessions: Iterable[summing.Fresh]
    ) -> dict[Key, int]:
        monkeypatch.setattr(summing, "number", number)
        rival.load(other, again)
        return number(db, numbering, sessions)

    monkeypatch.setattr(summing, "number", overtaken)
    with pytest.raises(AnalyticsError, match="onflict"):
        bench.analytics.load(one, steps)
    assert bench.sequences() == list(range(7))
    assert bench.sql("SELECT count(*) FROM numbered") == [(1,)]
    rival.close()


def test_a_machine_that_fails_is_told_from_rows_that_are_bad(bench: Bench, tmp_path: Path) -> None:
    data = mixed().seal()
    bench.load((segment_row(data), data))
    _, steps = bench.decode((segment_row(data, OTHER), data))
    with pytest.raises(AnalyticsError) as failed:
        bench.analytics.load(Decoded(tmp_path / "gone", ("feature",)), steps)
    assert not isinstance(failed.value, RowsRefused | StaleLoad)
    bench.analytics.reopen()
    assert bench.sequences() == list(range(7))


def test_gaps_are_noted_with_the_rows(bench: Bench) -> None:
    segment = mixed()
    data = bytearray(segment.seal())
    data[segment.ends[1] - 3] ^= 1
    bench.load((segment_row(bytes(data)), bytes(data)))
    assert bench.sequences() == [0, 1, 2, 4, 5, 6]
    (gap,) = bench.sql('SELECT "first", records, reason, segment FROM gap')
    assert gap == (3, 1, "the payload does not match its checksum", 0)


# -- sessions ------------------------------------------------------------------------------------------------------


def test_sessions_take_the_place_of_what_was_known_of_them(bench: Bench, tmp_path: Path) -> None:
    running = session_row(status=Status.RUNNING, counts={"feature": 1})
    bench.analytics.load_sessions([running, session_row(OTHER), session_row(product="Other")], 3)
    ended = session_row(status=Status.CRASHED, counts={"feature": 5, "error": 2}, installation="i")
    bench.analytics.load_sessions([ended], 4)
    found = bench.sql(
        "SELECT product, session_id::VARCHAR, status, n_feature, n_error, records, installation FROM session "
        "ORDER BY 1, 2"
    )
    assert found == [
        (PRODUCT, SESSION, "crashed", 5, 2, 5, "i"),
        (PRODUCT, OTHER, "stopped", 0, 0, 0, ""),
        ("Other", SESSION, "stopped", 0, 0, 0, ""),
    ]
    assert bench.analytics.revision == 4


def test_whether_a_session_is_internal_comes_from_its_summary_before_its_preamble(bench: Bench, tmp_path: Path) -> None:
    bench.analytics.load_sessions([session_row(info=Info(test=False))], 1)
    data = mixed().seal()
    bench.load((segment_row(data), data), (segment_row(data, OTHER), data))
    assert bench.sql("SELECT session_id::VARCHAR, any_value(internal) FROM feature GROUP BY 1 ORDER BY 1") == [
        (SESSION, False),
        (OTHER, True),
    ]


odd_texts = st.text(st.characters(codec=None), max_size=20)  # half surrogate pairs and NUL included
odd_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), odd_texts, st.binary(max_size=9)
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.one_of(odd_texts, st.none(), st.integers(-9, 9)), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(odd_texts, odd_values), min_size=1, max_size=8))
def test_whatever_an_agent_packs_is_loaded(bench: Bench, said: list[tuple[str, Any]]) -> None:
    bench.sql("DELETE FROM loaded")
    bench.sql("DELETE FROM event_row")
    segment = Segment()
    segment.block(
        [pack([4, 0, name, {name: content}, 20, name]) for name, content in said],
        counts=[0, 0, 0, len(said), *([0] * 8)],
    )
    segment.seal()
    (step,) = bench.load((segment_row(segment.data), segment.data))
    assert step.outcome.gaps == []
    assert bench.sequences() == list(range(len(said)))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    odd_texts,
    st.dictionaries(odd_texts, st.one_of(odd_texts, st.floats(), st.integers(-(2**63), 2**63 - 1)), max_size=4),
)
def test_whatever_a_summary_says_is_loaded(bench: Bench, tmp_path: Path, text: str, properties: dict[str, Any]) -> None:
    info = Info(version=text, user=text, time_zone=text, properties=properties)
    bench.analytics.load_sessions([session_row(info=info, started=1e15)], 1)
    assert bench.sql("SELECT count(*) FROM session") == [(1,)]


# -- the file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["noise", "layout", "truncated"])
def test_a_file_that_is_of_no_use_is_moved_aside_and_begun_anew(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "analytics.duckdb"
    made = Analytics(path)
    made.load_sessions([session_row()], 5)
    made.close()
    if damage == "noise":
        path.write_bytes(b"no database" * 1000)
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        with duckdb.connect(path) as connection:
            connection.execute("UPDATE state SET layout = 999")
    again = Analytics(path)
    assert (again.generation, again.revision) == (0, 0)
    again.close()
    assert (tmp_path / "analytics.duckdb.old").exists()


def test_a_file_that_another_process_holds_is_left_alone(tmp_path: Path, analytics: Analytics) -> None:
    import subprocess
    import sys

    program = (
        "import sys; from pathlib import Path; from mailboat.server.analytics import Analytics; "
        "from mailboat.server.analytics_store import AnalyticsError\n"
        "try: Analytics(Path(sys.argv[1]))\n"
        "except AnalyticsError as error: print('refused', 'lock' in str(error))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "analytics.duckdb"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "refused True"
    assert not (tmp_path / "analytics.duckdb.old").exists()


def test_a_folder_that_is_not_there_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(AnalyticsError, match="nowhere"):
        Analytics(tmp_path / "nowhere" / "analytics.duckdb")


def test_the_engine_leaves_a_processor_to_the_thread_that_asks(analytics: Analytics, bench: Bench) -> None:
    with duckdb.connect() as plain:
        [(all_of_them,)] = plain.execute("SELECT current_setting('threads')").fetchall()
    for _ in range(2):
        assert bench.sql("SELECT current_setting('threads')") == [(max(1, all_of_them - 1),)]
        analytics.reopen()

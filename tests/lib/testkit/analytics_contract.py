"""What any analytics store must do: a suite to be run for each implementation of `AnalyticsStore`.

Take it as a base class, and give it a fixture ``store`` of an empty one; ``decoder`` and ``tmp_path`` are needed, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from mailboat.server.analytics_store import AnalyticsError, AnalyticsStore, Holding, RowsRefused, StaleLoad, Step
from mailboat.server.batches import Batch
from mailboat.server.catalog import SegmentRow
from mailboat.server.decoding import Decoded, Decoder
from testkit.loading import PRODUCT, segment_row, session_row
from testkit.segments import SESSION, Segment, event, exception, feature, timing, value

OTHER = "018f0000-0000-7000-8000-000000000002"


@dataclass
class Loading:
    """Loads what it is given, as the server's loader does."""

    store: AnalyticsStore
    decoder: Decoder
    folder: Path
    count: int = 0

    def decode(self, *given: tuple[SegmentRow, bytes]) -> tuple[Decoded, list[Step]]:
        rows = [row for row, _ in given]
        batch = Batch(rows, self.store.progress({(row.product, row.session_id) for row in rows}))
        self.count += 1
        folder = self.folder / f"contract-{self.count}"
        folder.mkdir()
        tasks = (
            (task, [given[task.number][1][task.offset : given[task.number][0].offset]])
            for task in map(batch.task, range(len(rows)))
        )
        return self.decoder.decode(folder, tasks, batch.done), batch.steps

    def load(self, *given: tuple[SegmentRow, bytes]) -> None:
        decoded, steps = self.decode(*given)
        self.store.load(decoded, steps)


def some_records(session_id: str = SESSION, index: int = 0, first: int = 0) -> Segment:
    segment = Segment(session_id, index, first)
    segment.block([feature(), value("size", 1.0), timing("parse", 0.25)])
    segment.block([event("cache.miss"), exception()])
    return segment


class AnalyticsContract:
    """The suite."""

    @pytest.fixture
    def loading(self, store: AnalyticsStore, decoder: Decoder, tmp_path: Path) -> Loading:
        """A loader into the store."""
        return Loading(store, decoder, tmp_path)

    def test_a_new_store_holds_nothing(self, store: AnalyticsStore) -> None:
        assert (store.generation, store.revision, list(store.holdings())) == (0, 0, [])
        assert store.progress([(PRODUCT, SESSION)]) == {}

    def test_every_record_is_loaded_once_whatever_comes_again(self, store: AnalyticsStore, loading: Loading) -> None:
        data = some_records().seal()
        row = segment_row(data)
        for _ in range(3):
            loading.load((row, data))
        (holding,) = store.holdings()
        assert holding == Holding(PRODUCT, SESSION, 5, 5, 5, listed=False)
        progress = store.progress([(PRODUCT, SESSION), (PRODUCT, OTHER)])[PRODUCT, SESSION][row.upload_id]
        assert (progress.consumed, progress.records, progress.ranges) == (len(data), 5, ((0, 5),))

    def test_a_segment_that_grows_is_gone_on_with(self, store: AnalyticsStore, loading: Loading) -> None:
        segment = some_records()
        data, half = segment.seal(), segment.ends[0]
        loading.load((segment_row(data[:half], complete=False), data))
        before = store.generation
        assert next(iter(store.holdings())).rows == 3
        loading.load((segment_row(data), data))
        assert next(iter(store.holdings())).rows == 5
        assert store.generation > before

    def test_sessions_and_products_are_kept_apart(self, store: AnalyticsStore, loading: Loading) -> None:
        one, other = some_records().seal(), some_records(OTHER).seal()
        loading.load((segment_row(one), one), (segment_row(other, OTHER), other))
        foreign = segment_row(one, product="Zeta")
        loading.load((foreign, one))
        assert [(each.product, each.session_id, each.rows) for each in store.holdings()] == [
            (PRODUCT, SESSION, 5),
            (PRODUCT, OTHER, 5),
            ("Zeta", SESSION, 5),
        ]

    def test_what_is_forgotten_can_be_loaded_again(self, store: AnalyticsStore, loading: Loading) -> None:
        one, other = some_records().seal(), some_records(OTHER).seal()
        loading.load((segment_row(one), one), (segment_row(other, OTHER), other))
        store.load_sessions([session_row(SESSION), session_row(OTHER)], 7)
        assert store.forget([(PRODUCT, SESSION), ("Zeta", OTHER)]) == 5
        assert [each.session_id for each in store.holdings()] == [OTHER]
        assert store.progress([(PRODUCT, SESSION)]) == {}
        assert store.forget([(PRODUCT, SESSION)]) == 0
        assert store.forget([]) == 0
        loading.load((segment_row(one), one))
        assert [each.rows for each in store.holdings()] == [5, 5]

    def test_one_segment_is_taken_out_and_loaded_again(self, store: AnalyticsStore, loading: Loading) -> None:
        first, second, other = some_records(), some_records(index=1, first=5), some_records(OTHER)
        data = [each.seal() for each in (first, second, other)]
        rows = [segment_row(data[0]), segment_row(data[1], index=1), segment_row(data[2], OTHER)]
        loading.load(*zip(rows, data, strict=True))
        store.load_failed(rows[1], store.progress([(PRODUCT, SESSION)])[PRODUCT, SESSION][rows[1].upload_id], "why")
        assert store.unload([rows[1]]) == 5
        assert [each.rows for each in store.holdings()] == [5, 5]
        progress = store.progress([(PRODUCT, SESSION)])[PRODUCT, SESSION]
        assert list(progress) == [rows[0].upload_id]
        assert store.unload([rows[1]]) == store.unload([]) == 0
        loading.load((rows[1], data[1]))
        assert [(each.noted, each.rows, each.numbers) for each in store.holdings()] == [(10, 10, 10), (5, 5, 5)]

    def test_rows_that_are_none_change_nothing(self, store: AnalyticsStore, loading: Loading) -> None:
        data = some_records().seal()
        decoded, steps = loading.decode((segment_row(data), data))
        with decoded.files(decoded.tables[-1])[0].open("a") as lines:
            lines.write("this is no row\n")
        with pytest.raises(RowsRefused):
            store.load(decoded, steps)
        assert (store.generation, list(store.holdings())) == (0, [])
        loading.load((segment_row(data), data))
        assert [each.rows for each in store.holdings()] == [5]

    def test_of_two_that_read_the_same_progress_one_loads(self, store: AnalyticsStore, loading: Loading) -> None:
        """Two loaders, each of which takes itself for the only one."""
        segment = some_records()
        data, half = segment.seal(), segment.ends[0]
        row, other = segment_row(data), segment_row(data, OTHER)
        first, second = loading.decode((row, data)), loading.decode((row, data), (other, data))
        store.load(*first)
        before = store.generation
        with pytest.raises(StaleLoad):
            store.load(*second)
        assert (store.generation, [each.session_id for each in store.holdings()]) == (before, [SESSION])
        assert [(each.noted, each.rows, each.numbers) for each in store.holdings()] == [(5, 5, 5)]
        grown = segment_row(data[:half], OTHER, complete=False)
        loading.load((grown, data))
        ahead = loading.decode((other, data))
        loading.load((other, data))
        with pytest.raises(StaleLoad):
            store.load(*ahead)
        assert [each.rows for each in store.holdings()] == [5, 5]

    def test_what_another_upload_of_the_session_brought_meanwhile_is_not_doubled(
        self, store: AnalyticsStore, loading: Loading
    ) -> None:
        """The same records, in another upload: which of them are there already is known from all uploads."""
        data = some_records().seal()
        row, again = segment_row(data), segment_row(data, upload_id=OTHER)
        decoded = loading.decode((again, data))
        loading.load((row, data))
        with pytest.raises(StaleLoad):
            store.load(*decoded)
        loading.load((again, data))
        assert [(each.rows, each.numbers) for each in store.holdings()] == [(5, 5)]

    def test_what_was_taken_out_meanwhile_is_not_gone_on_with(self, store: AnalyticsStore, loading: Loading) -> None:
        segment = some_records()
        data, half = segment.seal(), segment.ends[0]
        row = segment_row(data)
        for forgotten in (False, True):
            loading.load((segment_row(data[:half], complete=False), data))
            rest = loading.decode((row, data))
            assert (store.forget([(PRODUCT, SESSION)]) if forgotten else store.unload([row])) == 3
            with pytest.raises(StaleLoad):
                store.load(*rest)
        loading.load((row, data))
        assert [(each.noted, each.rows, each.numbers) for each in store.holdings()] == [(5, 5, 5)]

    def test_what_was_loaded_meanwhile_is_not_given_up(self, store: AnalyticsStore, loading: Loading) -> None:
        data = some_records().seal()
        row, key = segment_row(data), (PRODUCT, SESSION)
        loading.load((row, data))
        with pytest.raises(StaleLoad):
            store.load_failed(row, None, "the decoder died")
        progress = store.progress([key])[key][row.upload_id]
        store.load_failed(row, progress, "the decoder died")
        with pytest.raises(AnalyticsError):
            store.load_failed(row, progress, "it died again")
        assert store.progress([key])[key][row.upload_id].failed == "the decoder died"

    def test_a_segment_that_failed_is_noted_with_what_there_was(self, store: AnalyticsStore, loading: Loading) -> None:
        segment = some_records()
        data, half = segment.seal(), segment.ends[0]
        row = segment_row(data[:half], complete=False)
        loading.load((row, data))
        key = (PRODUCT, SESSION)
        store.load_failed(row, store.progress([key])[key][row.upload_id], "the decoder died")
        failed = store.progress([key])[key][row.upload_id]
        assert (failed.failed, failed.records, failed.consumed) == ("the decoder died", 3, half)
        assert [(each.noted, each.rows) for each in store.holdings()] == [(3, 3)]
        store.load_failed(segment_row(b"", OTHER), None, "never read")
        assert store.progress([(PRODUCT, OTHER)])[PRODUCT, OTHER]

    def test_sessions_are_copied_with_their_revision(self, store: AnalyticsStore) -> None:
        store.load_sessions([session_row(SESSION)], 3)
        store.load_sessions([session_row(SESSION), session_row(OTHER)], 8)
        assert store.revision == 8
        assert [(each.session_id, each.listed, each.rows) for each in store.holdings()] == [
            (SESSION, True, 0),
            (OTHER, True, 0),
        ]
        store.load_sessions([], 0)
        assert store.revision == 0

    def test_reopened_it_holds_the_same(self, store: AnalyticsStore, loading: Loading) -> None:
        data = some_records().seal()
        loading.load((segment_row(data), data))
        store.load_sessions([session_row(SESSION)], 3)
        before = (store.generation, store.revision, list(store.holdings()), store.progress([(PRODUCT, SESSION)]))
        store.reopen()
        assert before == (
            store.generation,
            store.revision,
            list(store.holdings()),
            store.progress([(PRODUCT, SESSION)]),
        )

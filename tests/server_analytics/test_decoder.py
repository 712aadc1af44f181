"""The decoder: tasks in this process, and the process itself."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailboat.protocol import SegmentReader
from mailboat.protocol.records import COUNTERS, Kind
from mailboat.server import decoder as decoder_module
from mailboat.server.decoder import Decoding, Files, Outcome, Service, Task, read_frame, write_frame
from mailboat.server.decoding import Decoded, Decoder, DecoderDied, DecoderRefused
from mailboat.server.rows import Lines
from testkit.loading import told, written
from testkit.segments import TAKING_IN, Segment, around, event, feature, pack, positional, schema


class Kept(Files):
    """Files that stay in memory."""

    def __init__(self) -> None:
        super().__init__(Path("nowhere"))
        self.lines: dict[str, list[Lines]] = {}

    def write(self, table: str, lines: Iterable[Lines]) -> None:
        for each in lines:
            self.lines.setdefault(table, []).append(each)
            self.size += len(each.line) + len(each.text)

    def close(self) -> list[str]:
        return list(self.lines)

    def names(self, table: str = "feature") -> list[tuple[int, str]]:
        return [(row["q"], row["n"]) for row in told(self.lines.get(table, ()))]


def decoded(task: Task, *pieces: bytes) -> tuple[Outcome, Kept]:
    files = Kept()
    decoding = Decoding(task, files)
    for piece in pieces:
        decoding.feed(piece)
    return decoding.finish(), files


def example() -> Segment:
    """Four blocks; the emitter of the last one is declared in the first."""
    segment = Segment()
    segment.block([schema(1, "order.placed", "user_id"), feature("a")])
    segment.block([feature("b"), event("c")])
    segment.block([feature("d")])
    segment.block([positional(1, 42), feature("e")])
    segment.seal()
    return segment


def test_a_whole_segment() -> None:
    segment = example()
    outcome, files = decoded(Task(0, complete=True), segment.data)
    assert (outcome.consumed, outcome.next, outcome.records) == (len(segment.data), 6, 6)
    assert (outcome.loaded, outcome.gaps, outcome.more) == ([(0, 6)], [], False)
    assert files.names() == [(0, "a"), (1, "b"), (3, "d"), (4, "order.placed"), (5, "e")]
    assert files.names("event") == [(2, "c")]
    assert outcome.info is not None
    assert outcome.info["product"] == "Acme Studio"


@given(st.lists(st.integers(0, len(example().data)), max_size=6))
def test_bytes_may_come_in_any_pieces(cuts: list[int]) -> None:
    data = example().data
    ends = [0, *sorted(cuts), len(data)]
    pieces = [data[low:high] for low, high in pairwise(ends)]
    assert decoded(Task(0, complete=True), *pieces)[1].lines == decoded(Task(0, complete=True), data)[1].lines


@given(st.lists(st.integers(0, len(example().data)), max_size=6))
def test_a_segment_that_grows_is_taken_block_by_block_and_once(cuts: list[int]) -> None:
    """Each task gets what is durable by then, from where the one before it ended."""
    data = example().data
    files, task = Kept(), Task(0)
    loaded: list[tuple[int, int]] = []
    for end in [*sorted(cuts), len(data)]:
        complete = end == len(data)
        task = Task(0, task.offset, task.next, task.schemas, (), complete)
        decoding = Decoding(task, files)
        decoding.feed(data[task.offset : end])
        outcome = decoding.finish()
        assert task.offset <= outcome.consumed <= end
        loaded += outcome.loaded
        task = Task(0, outcome.consumed, outcome.next, outcome.schemas)
    assert [sequence for first, end in loaded for sequence in range(first, end)] == list(range(6))
    assert files.names() == [(0, "a"), (1, "b"), (3, "d"), (4, "order.placed"), (5, "e")]


@given(st.integers(0, len(example().data) * 8 - 1), st.lists(st.integers(0, len(example().data)), max_size=3))
def test_damage_costs_its_block_and_is_told_once_however_the_bytes_come(bit: int, cuts: list[int]) -> None:
    data = bytearray(example().data)
    data[bit // 8] ^= 1 << (bit % 8)
    files, task = Kept(), Task(0)
    loaded: list[tuple[int, int]] = []
    gaps: list[Any] = []
    for end in [*sorted(cuts), len(data)]:
        complete = end == len(data) and end not in cuts
        decoding = Decoding(Task(0, task.offset, task.next, task.schemas, (), complete), files)
        decoding.feed(bytes(data[task.offset : end]))
        outcome = decoding.finish()
        loaded += outcome.loaded
        gaps += outcome.gaps
        task = Task(0, outcome.consumed, outcome.next, outcome.schemas)
    decoding = Decoding(Task(0, task.offset, task.next, task.schemas, (), complete=True), files)
    decoding.feed(bytes(data[task.offset :]))
    outcome = decoding.finish()
    loaded += outcome.loaded
    gaps += outcome.gaps
    here = [sequence for first, end in loaded for sequence in range(first, end)]
    whole = SegmentReader(bytes(data))
    assert here == [record.sequence for record in whole]
    told = {sequence for gap in gaps for sequence in range(gap[3], gap[3] + (gap[4] or 0))}
    assert told.isdisjoint(here)
    assert told | set(here) >= {
        sequence for gap in whole.gaps for sequence in range(gap.first, gap.first + (gap.records or 0))
    }
    assert len({gap[0] for gap in gaps if gap[4]}) == len([gap for gap in gaps if gap[4]]), "a gap is told once"


@pytest.mark.parametrize("evil", TAKING_IN)
def test_what_is_no_msgpack_costs_its_record_and_no_other(evil: bytes) -> None:
    outcome, files = decoded(Task(0, complete=True), around(evil).seal())
    others = [(at, f"n{at}") for at in range(7) if at != 2]
    assert [each for each in files.names() if each[0] != 2] == others
    lost = [(gap[3], gap[4]) for gap in outcome.gaps]
    assert lost == ([] if len(files.names()) == 7 else [(2, 1)])
    assert outcome.loaded == ([(0, 7)] if not lost else [(0, 2), (3, 7)])
    assert (outcome.claimed, outcome.read, outcome.records) == (7, 7 - len(lost), 7 - len(lost))


def test_of_what_another_segment_has_brought_nothing_is_loaded_again_around_it() -> None:
    outcome, files = decoded(Task(0, present=((0, 1), (4, 5)), complete=True), around(b"\xc1").seal())
    assert files.names() == [(1, "n1"), (3, "n3"), (5, "n5"), (6, "n6")]
    assert outcome.loaded == [(1, 2), (3, 4), (5, 7)]


def test_a_block_that_cannot_be_read_is_a_gap_between_its_neighbours() -> None:
    segment = Segment()
    segment.block([feature("a")])
    bad = [2, *([0] * (len(COUNTERS) - 1))]
    segment.block([pack([Kind.FEATURE, "noon", "b", {}]), pack(feature("c"))], counts=bad)
    segment.block([pack({"no": "record"}), pack({(1, 2): "a key that no map can have"})], counts=bad)
    segment.block([feature("d")])
    segment.seal()
    outcome, files = decoded(Task(0, complete=True), segment.data)
    assert files.names() == [(0, "a"), (5, "d")]
    assert (outcome.loaded, outcome.records, outcome.claimed, outcome.read) == ([(0, 1), (5, 6)], 2, 6, 2)
    assert [(gap[3], gap[4]) for gap in outcome.gaps] == [(1, 2), (3, 2)]
    assert "record 1 has the wrong fields" in outcome.gaps[0][2]


def test_records_that_another_segment_brought_are_left_out() -> None:
    segment = Segment(first=10)
    segment.block([feature("a"), feature("b"), feature("c")])
    segment.block([feature("d")])
    outcome, files = decoded(Task(0, present=((11, 12), (0, 5), (13, 20))), segment.data)
    assert files.names() == [(10, "a"), (12, "c")]
    assert (outcome.loaded, outcome.records, outcome.read, outcome.next) == ([(10, 11), (12, 13)], 2, 4, 14)


def test_a_bomb_is_taken_in_bounded_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_module, "MAX_RAW", 200_000)
    segment = Segment()
    for at in range(9):
        segment.block([feature(f"a{at}", text="x" * 90_000)])
    segment.seal()
    files, task, tasks = Kept(), Task(0, complete=True), 0
    while True:
        decoding = Decoding(task, files)
        decoding.feed(segment.data[task.offset :])
        outcome = decoding.finish()
        tasks += 1
        task = Task(0, outcome.consumed, outcome.next, outcome.schemas, (), complete=True)
        if not outcome.more:
            break
    assert tasks == 5
    assert files.names() == [(at, f"a{at}") for at in range(9)]
    assert outcome.consumed == len(segment.data)


def test_rows_of_a_batch_are_bounded_and_the_first_task_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_module, "MAX_ROWS", 100_000)
    segment = Segment()
    for at in range(4):
        segment.block([feature(f"a{at}", text="x" * 60_000)])
    segment.seal()
    files, outcomes = Kept(), []
    for number in range(2):
        decoding = Decoding(Task(number, complete=True), files)
        decoding.feed(segment.data)
        outcomes.append(decoding.finish())
    assert files.names() == [(0, "a0"), (1, "a1")]
    assert [(each.more, each.records, each.next) for each in outcomes] == [(True, 2, 2), (True, 0, 0)]
    assert outcomes[1].consumed == 0
    outcome, rest = decoded(Task(0, outcomes[0].consumed, 2, complete=True), segment.data[outcomes[0].consumed :])
    assert rest.names() == [(2, "a2"), (3, "a3")]
    assert outcome.consumed == len(segment.data)


def test_what_is_told_survives_the_wire() -> None:
    outcome, _ = decoded(Task(3), example().data)
    outcome.gaps = [(1, 2, "why", 3, None)]
    stream = io.BytesIO()
    write_frame(stream, {"decoded": outcome.to_wire()})
    stream.seek(0)
    frame = read_frame(stream)
    assert frame is not None
    assert Outcome.from_wire(frame["decoded"]) == outcome
    task = Task(3, 10, 4, outcome.schemas, ((1, 2), (5, 9)), complete=True)
    assert Task.from_wire(json.loads(json.dumps(task.to_wire()))) == task


@pytest.mark.parametrize("cut", range(9))
def test_the_end_of_the_stream_ends_the_talk_wherever_it_comes(cut: int) -> None:
    stream = io.BytesIO()
    write_frame(stream, {"end": True})
    assert read_frame(io.BytesIO(stream.getvalue()[: min(cut, len(stream.getvalue()) - 1)])) is None


def test_frames_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="no batch has begun"):
        Service().answer({"end": True})
    service = Service()
    service.answer({"begin": "/nowhere"})
    with pytest.raises(ValueError, match="no segment has begun"):
        service.answer({"bytes": b""})


# -- the process -------------------------------------------------------------------------------------------------------


def rows_in(folder: Path) -> dict[str, int]:
    tables = sorted({path.stem for path in folder.iterdir()})
    return {table: len(told(written(Decoded(folder, ()), table))) for table in tables}


def test_the_process_writes_a_file_for_each_table(decoder: Decoder, folder: Callable[[], Path]) -> None:
    data, outcomes, into = example().data, list[Outcome](), folder()
    tasks = [(Task(number, complete=True), [data[:100], data[100:]]) for number in range(3)]
    made = decoder.decode(into, tasks, outcomes.append)
    assert rows_in(into) == {"feature": 15, "event": 3}
    assert sorted(made.tables) == ["event", "feature"]
    assert [(each.number, each.records) for each in outcomes] == [(0, 6), (1, 6), (2, 6)]


def test_a_process_started_ahead_is_the_one_that_decodes(folder: Callable[[], Path]) -> None:
    decoder, into = Decoder(), folder()
    try:
        decoder.start()
        ahead = decoder._process
        decoder.decode(into, [(Task(0), [example().data])], lambda _: None)
        assert decoder._process is ahead is not None
        assert rows_in(into) == {"feature": 5, "event": 1}
    finally:
        decoder.close()


def test_a_process_that_cannot_be_started_is_told_of_where_it_is_needed(folder: Callable[[], Path]) -> None:
    decoder = Decoder([str(folder() / "no such program")])
    decoder.start()
    with pytest.raises(FileNotFoundError, match="no such program"):
        decoder.decode(folder(), [(Task(0), [example().data])], lambda _: None)


def test_a_process_that_died_is_replaced(folder: Callable[[], Path]) -> None:
    decoder, data = Decoder(), example().data

    def pieces() -> Iterator[bytes]:
        yield data[:200]
        assert decoder._process is not None
        decoder._process.kill()
        decoder._process.wait()
        yield from (data for _ in range(100))

    try:
        decoder.decode(folder(), [(Task(0), [data])], lambda _: None)
        with pytest.raises(DecoderDied, match=str(-signal.SIGKILL)) as died:
            decoder.decode(folder(), [(Task(0), [data]), (Task(7), pieces())], lambda _: None)
        assert died.value.number == 7
        into = folder()
        decoder.decode(into, [(Task(0), [data])], lambda _: None)
        assert rows_in(into) == {"feature": 5, "event": 1}
    finally:
        decoder.close()


def test_a_process_that_died_between_batches_is_nobodys_fault(folder: Callable[[], Path]) -> None:
    decoder, data = Decoder(), example().data
    try:
        decoder.decode(folder(), [(Task(0), [data])], lambda _: None)
        assert decoder._process is not None
        os.kill(decoder._process.pid, signal.SIGKILL)
        decoder._process.wait()
        into = folder()
        decoder.decode(into, [(Task(0), [data])], lambda _: None)
        assert rows_in(into) == {"feature": 5, "event": 1}
    finally:
        decoder.close()


def test_it_ends_without_a_word_when_its_server_dies(folder: Callable[[], Path]) -> None:
    command = [sys.executable, "-P", "-m", "mailboat.server.decoder"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        begin, segment = {"begin": str(folder())}, {"segment": Task(0).to_wire()}
        for frame in (begin, segment, {"bytes": example().data}, {"end": True}):
            write_frame(process.stdin, frame)  # type: ignore[arg-type] # a pipe is a binary stream
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_a_decoder_that_takes_for_ever_is_ended(folder: Callable[[], Path]) -> None:
    decoder = Decoder([sys.executable, "-c", "import sys; sys.stdin.buffer.read()"], time_limit=0.05)
    with pytest.raises(DecoderDied) as died:
        decoder.decode(folder(), [(Task(4), [b"x"])], lambda _: None)
    assert died.value.number == 4


def test_a_disk_that_takes_no_rows_is_no_fault_of_the_segment(decoder: Decoder, tmp_path: Path) -> None:
    with pytest.raises(DecoderRefused, match="No such file"):
        decoder.decode(tmp_path / "gone", [(Task(0), [example().data])], lambda _: None)


def test_whatever_reading_the_bytes_raises_is_passed_on(decoder: Decoder, folder: Callable[[], Path]) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"x"
        raise FileNotFoundError("lost")

    with pytest.raises(FileNotFoundError, match="lost"):
        decoder.decode(folder(), [(Task(0), pieces())], lambda _: None)
    into = folder()
    decoder.decode(into, [(Task(0), [example().data])], lambda _: None)
    assert rows_in(into) == {"feature": 5, "event": 1}


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=3000))
def test_noise_is_a_gap_and_nothing_more(
    decoder: Decoder, tmp_path_factory: pytest.TempPathFactory, noise: bytes
) -> None:
    outcomes: list[Outcome] = []
    decoder.decode(tmp_path_factory.mktemp("noise"), [(Task(0, complete=True), [noise])], outcomes.append)
    (outcome,) = outcomes
    assert (outcome.records, outcome.consumed) == (0, len(noise))


def test_memory_stays_bounded_for_maps_that_are_nothing_but_overhead(
    decoder: Decoder, folder: Callable[[], Path]
) -> None:
    """4 MiB of empty maps: some 300 MiB as objects, in a process that may take 2 GiB."""
    segment = Segment()
    inner = b"\xdd" + (4_000_000).to_bytes(4, "big") + b"\x80" * 4_000_000
    record = b"\x94\x01\x00\xa1a\x81\xa1m" + inner
    segment.block([record], counts=[1, *([0] * (len(COUNTERS) - 1))])
    segment.block([feature("after")])
    segment.seal()
    assert len(segment.data) < 5000
    outcomes: list[Outcome] = []
    into = folder()
    decoder.decode(into, [(Task(0, complete=True), [segment.data])], outcomes.append)
    assert outcomes[0].loaded == [(0, 2)]
    assert outcomes[0].gaps == []
    assert rows_in(into) == {"feature": 2}


def test_dates_are_read_as_they_are_by_everybody_else() -> None:
    aware = datetime(2026, 11, 25, 7, 30, 0, 25, tzinfo=UTC)
    segment = Segment()
    segment.block([feature("a", made=msgpack.Timestamp.from_datetime(aware))])
    data = segment.seal()
    _, files = decoded(Task(1, complete=True), data)
    [row] = told(files.lines["feature"])
    [record] = SegmentReader(data)
    assert row["a"] == record.attributes == {"made": "2026-11-25T07:30:00.000025Z"}

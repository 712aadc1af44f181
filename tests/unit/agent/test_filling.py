"""Turning to another half before one is full: on the writer's thread, where that can be foreseen."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest

from mailboat.agent.filling import LEAD, NEAR, SOONEST, Filling
from mailboat.protocol.limits import MIN_JOURNAL
from mailboat.protocol.reader import SegmentReader
from testkit.recording import Rig, only, waiting

SIZE = 1_000_000
HALF = MIN_JOURNAL // 2
TEXT = "x" * 100


def test_a_half_is_turned_a_little_before_it_is_full() -> None:
    filling = Filling(10.0)
    filling.turned(10.2, SIZE)  # in a fifth of a second
    assert filling.wait(10.25, SIZE // 4, SIZE) == pytest.approx(0.15 - LEAD)
    assert not filling.due(10.25, SIZE // 4, SIZE)
    assert filling.due(10.4 - LEAD - NEAR / 2, SIZE * 9 // 10, SIZE)
    assert filling.wait(10.5, SIZE, SIZE) == 0.0  # woken late


def test_no_more_than_a_quarter_is_left_unused() -> None:
    filling = Filling(10.0)
    filling.turned(10.0 + 2 * SOONEST, SIZE)
    assert filling.wait(10.0 + 2.1 * SOONEST, 0, SIZE) == pytest.approx(1.5 * SOONEST)


def test_a_half_that_is_filled_more_slowly_is_foreseen_anew() -> None:
    filling = Filling(10.0)
    filling.turned(10.1, SIZE)
    assert filling.wait(10.2, SIZE // 10, SIZE) == pytest.approx(0.9 - LEAD)


def test_the_first_half_is_foreseen_by_itself() -> None:
    filling = Filling(10.0)
    assert filling.wait(11.0, SIZE // 2, SIZE) == pytest.approx(1.0 - LEAD)


@pytest.mark.parametrize(("seconds", "filled"), [(SOONEST / 2, SIZE // 2), (5.0, 0), (0.0, SIZE // 2)])
def test_nothing_is_foreseen_of_a_burst_of_silence_or_without_a_clock(seconds: float, filled: int) -> None:
    filling = Filling(10.0)
    filling.turned(10.0 + seconds / 2, filled)
    assert filling.wait(10.0 + seconds, filled, SIZE) == math.inf


def test_what_could_not_be_turned_is_left_alone_for_a_while() -> None:
    filling = Filling(10.0)
    assert filling.due(11.0, SIZE, SIZE)
    filling.put_off(11.0)
    assert not filling.due(11.9, SIZE, SIZE)
    assert filling.due(12.1, SIZE, SIZE)


def fill(rig: Rig, steps: int, records: int, seconds: float) -> int:
    """Record steadily, the writer looking at each step; how many records that were."""
    for number in range(steps * records):
        rig.recorder.feature("step", number=number, text=TEXT)
        if number % records == records - 1:
            rig.step(seconds)
    return steps * records


def blocks_of(folder: Path) -> list[int]:
    reader = SegmentReader((folder / "000000.zst").read_bytes())
    return [block.header.raw_length for block in reader.blocks()]


def test_the_writer_turns_before_a_recording_call_has_to(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    recorded = fill(rig, steps=400, records=10, seconds=0.002)
    rig.end()
    story = only(waiting(rig.store))
    assert story.numbers == list(range(recorded))
    assert story.lost == {}
    foreseen = blocks_of(story.folder)[:-1]
    assert len(foreseen) > 5
    assert all(HALF // 2 < length < HALF - 10 * 150 for length in foreseen)  # each step still had room


def test_what_fills_a_half_at_once_is_turned_by_who_records_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    recorded = fill(rig, steps=40, records=300, seconds=SOONEST / 3)
    rig.end()
    story = only(waiting(rig.store))
    assert story.numbers == list(range(recorded))
    *full, last = blocks_of(story.folder)
    assert len(full) > 10
    assert all(HALF - 200 < length <= HALF for length in full)
    assert last <= HALF


def test_a_recorder_that_has_stopped_is_not_turned_again_and_again(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    active = rig.journal.active
    fill(rig, steps=1, records=HALF // 150, seconds=0.0)
    rig.recorder.stop()
    rig.step(0.05)
    assert rig.journal.active is active
    assert rig.writer._filling.wait(rig.time.clocks.now(), active.memory.tell(), active.size) == math.inf


def test_generations_follow_each_other_where_both_turn(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    recorded = 0
    for seconds in (0.002, SOONEST / 50, 0.003, 0.0):
        recorded += fill(rig, steps=100, records=10, seconds=seconds)
    rig.end()
    story = only(waiting(rig.store))
    assert story.numbers == list(range(recorded))
    assert all(later > earlier for earlier, later in pairwise(story.numbers))

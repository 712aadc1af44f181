"""The writer's thread among others: what is asked of it at any moment, and what it does when something in it fails."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import pytest

from mailboat.agent.segment_file import segment_paths
from mailboat.protocol import SegmentReader
from testkit.disk import Disk
from testkit.recording import Rig
from testkit.sealed import KEYS, PRIVATE

T = TypeVar("T")


def segments_of(rig: Rig) -> list[Path]:
    assert rig.writer.folder is not None
    return segment_paths(rig.store.files, rig.writer.folder)


def in_blocks(rig: Rig) -> list[str]:
    """The names of the records that stand in the session's segments by now."""
    return [record.name for path in segments_of(rig) for record in SegmentReader(path.read_bytes(), KEYS.unlock)]


def vouched_for(rig: Rig) -> list[tuple[int, int]]:
    """Of each half that is in use, how much would survive the machine, and how much there is."""
    return [(half.durable, half.end) for half in rig.journal.halves if half.in_use]


def then(call: Callable[[], T], following: Callable[[], object]) -> Callable[[], T]:
    """`call`, and what another thread does just after it."""

    def called() -> T:
        result = call()
        following()
        return result

    return called


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("turn", [1, 2])
@pytest.mark.parametrize("durable", [False, True])
def test_what_is_flushed_just_after_a_turn_is_in_a_block_when_that_is_answered(
    sealed: bool, turn: int, durable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, seal_to=PRIVATE.public if sealed else None)
    asked: list[Future[bool]] = []
    turns = 0

    def another() -> None:
        nonlocal turns
        turns += 1
        if turns == turn:
            rig.recorder.feature("late")
            asked.append(rig.writer.flush(durable=durable))

    monkeypatch.setattr(rig.recorder, "turn", then(rig.recorder.turn, another))
    rig.recorder.feature("early")
    rig.flush(durable=True)
    while not asked or not asked[0].done():
        rig.flush(durable=True)
    assert asked[0].result(0)
    assert in_blocks(rig) == ["early", "late"]


@pytest.mark.parametrize("fault", [MemoryError("no memory"), ValueError("a fault of our own")])
def test_whatever_keeps_blocks_from_being_made_an_error_is_synced_and_nothing_is_tried_without_a_pause(
    fault: Exception, tmp_path: Path
) -> None:
    disk = Disk()
    rig = Rig(tmp_path, files=disk.files)
    disk.plan = lambda _, name: fault if name == "append" else None
    rig.recorder.event("error", level=40)
    assert not rig.flush()
    calls = len(disk.calls)
    rig.step(1.0)
    assert "sync" in disk.calls[calls:]
    assert rig.writer._pause() > 0.05
    assert str(fault) in rig.writer.trouble
    disk.plan = lambda _number, _name: None
    assert rig.flush(durable=True)
    assert rig.writer.trouble == ""
    assert in_blocks(rig) == ["error"]


def test_where_a_half_was_filled_a_sync_makes_a_block_of_the_rest_and_leaves_the_journal_alone(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    third = "x" * (rig.journal.half_size // 3)
    rig.recorder.feature("slow", text=third)
    rig.step(5.0)
    end = rig.journal.active.end
    assert (in_blocks(rig), vouched_for(rig)) == ([], [(end, end)])
    for name in ("fast", "faster", "rest"):
        rig.recorder.feature(name, text=third)
    rig.step(5.0)
    everything = ["slow", "fast", "faster", "rest"]
    assert (in_blocks(rig), vouched_for(rig)) == (everything, [(0, 0)])
    assert [state.size for state in rig.writer.states] == [path.stat().st_size for path in segments_of(rig)]
    rig.recorder.feature("slow again")
    rig.step(5.0)
    end = rig.journal.active.end
    assert (in_blocks(rig), vouched_for(rig)) == (everything, [(end, end)])


def test_where_no_block_can_be_made_though_a_half_was_filled_the_journal_is_synced(tmp_path: Path) -> None:
    disk = Disk()
    rig = Rig(tmp_path, files=disk.files)
    rig.recorder.feature("early", text="x" * (rig.journal.half_size - 100))
    rig.recorder.feature("filled", text="x" * 100)
    rig.step()
    end = rig.journal.active.end
    assert (in_blocks(rig), vouched_for(rig)) == (["early"], [(0, end)])
    disk.plan = lambda _, name: OSError("no room") if name == "append" else None
    rig.step(5.0)
    rig.step(1.0)
    assert (in_blocks(rig), vouched_for(rig)) == (["early"], [(end, end), (0, 0)])
    disk.plan = lambda _number, _name: None
    assert rig.flush(durable=True)
    assert in_blocks(rig) == ["early", "filled"]


def test_a_sync_for_which_no_half_was_free_is_made_up_for_at_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, seal_to=PRIVATE.public)
    rig.recorder.feature("early")
    with monkeypatch.context() as full:
        full.setattr(rig.journal, "reserve", lambda *_: None)
        rig.step(5.0)
        assert in_blocks(rig) == []
    rig.step(1.0)
    assert in_blocks(rig) == ["early"]

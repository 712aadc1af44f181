"""Clocks that are wrong, jump or stand still: no record is lost or reordered, each keeps the time of the clock that it
was recorded by, and nothing is given up on their word.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from mailboat.agent.config import AgentConfig
from mailboat.agent.eviction import evict_as_sender
from mailboat.agent.quota import Quota
from mailboat.agent.store import WAITING, Store
from mailboat.agent.writer import TICK, WriterSettings
from mailboat.protocol.ids import is_canonical
from testkit.disk import Unsynced
from testkit.recording import SECOND, Rig, Story, Time, only, read_session, recovered

HOUR, YEAR = 3600, 365 * 24 * 3600
JUMPS = {
    "an hour ahead": HOUR,
    "an hour back": -HOUR,
    "ten years ahead": 10 * YEAR,
    "ten years back": -10 * YEAR,
    "to zero": None,
    "suspended for eight hours": 8 * HOUR,
}
"""By how many seconds the wall clock leaves the monotonic one: a machine that sleeps stops the monotonic one alone."""
DEFAULTS = AgentConfig()
QUOTA = Quota(DEFAULTS.max_store_bytes, DEFAULTS.max_store_age, 0)


def jump(time: Time, seconds: int | None) -> None:
    time.offset = -time.monotonic if seconds is None else time.offset + seconds * SECOND


def wall(time: Time) -> float:
    return time.clocks.wall() / 1e9


def rig_at(root: Path, time: Time) -> Rig:
    return Rig(root, files=Unsynced(), time=time, settings=WriterSettings(segment_bytes=300))


def times(story: Story) -> list[float]:
    return [record.time for record in story.records]


class Recording:
    """A session that records one thing a second; `at` are the times by the wall clock of that moment."""

    def __init__(self, root: Path, time: Time) -> None:
        self.rig, self.time, self.at = rig_at(root, time), time, list[float]()

    def record(self, count: int) -> None:
        for _ in range(count):
            self.rig.recorder.feature(f"r{len(self.at)}")
            self.at.append(wall(self.time))
            self.rig.step(1.0)

    @property
    def names(self) -> list[str]:
        return [f"r{number}" for number in range(len(self.at))]

    def holds(self, story: Story) -> None:
        assert (story.names, story.gaps) == (self.names, [])
        assert times(story) == pytest.approx(self.at, abs=1e-3)


@pytest.fixture(params=list(JUMPS.values()), ids=list(JUMPS))
def seconds(request: pytest.FixtureRequest) -> int | None:
    chosen: int | None = request.param
    return chosen


def test_a_jump_in_the_midst_of_a_session(tmp_path: Path, seconds: int | None) -> None:
    told = Recording(tmp_path, Time())
    told.record(10)
    jump(told.time, seconds)
    told.rig.step(TICK)  # what comes before this look still has the clock of before
    told.record(10)
    assert told.rig.end()
    story = read_session(told.rig.store.folder / WAITING / told.rig.id)
    told.holds(story)


def test_a_jump_before_a_crash(tmp_path: Path, seconds: int | None) -> None:
    told = Recording(tmp_path, Time())
    told.record(10)
    jump(told.time, seconds)
    told.rig.step(TICK)
    told.record(10)
    told.rig.let_go()
    story = only(recovered(tmp_path))
    assert (story.names, story.numbers) == (told.names, list(range(20)))
    # What was still in the journal has the last clock that a block tells of.
    assert times(story)[:10] == pytest.approx(told.at[:10], abs=1e-3)


def test_a_clock_that_was_wrong_from_the_start(tmp_path: Path, seconds: int | None) -> None:
    time = Time()
    jump(time, seconds)
    told = Recording(tmp_path, time)
    assert is_canonical(told.rig.id)
    told.record(5)
    assert told.rig.end()
    told.holds(read_session(told.rig.store.folder / WAITING / told.rig.id))
    (waiting,) = told.rig.store.look().waiting
    assert waiting.summary.started == pytest.approx(told.at[0], abs=1e-3)
    assert waiting.summary.ended >= waiting.summary.started
    assert waiting.summary.duration == pytest.approx(5.0, abs=1.0)


def test_a_sealed_session_ends_with_its_last_record_whatever_the_time_of_its_recovery(
    tmp_path: Path, seconds: int | None
) -> None:
    told = Recording(tmp_path, Time())
    told.record(5)
    told.rig.let_go()
    jump(told.time, seconds)
    only(recovered(tmp_path))
    store = Store(Unsynced(), tmp_path, "product", "application")
    (waiting,) = store.look().waiting
    assert waiting.summary.ended == pytest.approx(told.at[-1], abs=1.0)


def test_flushes_syncs_and_rotation_go_by_the_monotonic_clock(tmp_path: Path, seconds: int | None) -> None:
    told = Recording(tmp_path, Time())
    told.record(3)
    jump(told.time, seconds)
    told.rig.step(TICK)
    synced = told.rig.writer._synced_at
    told.record(7)
    assert told.rig.writer._synced_at > synced
    assert told.rig.flush(durable=True)
    assert told.rig.writer.trouble == ""
    assert told.rig.end()


def test_nothing_is_given_up_because_the_clock_has_jumped(tmp_path: Path, seconds: int | None) -> None:
    """Sessions of before, and one of afterwards that runs; the same when the clock is right again."""
    time = Time()
    before = [Recording(tmp_path, time) for _ in range(3)]
    for each in before:
        each.record(2)
        assert each.rig.end()
    right = time.offset + 60 * SECOND
    jump(time, seconds)
    running = Recording(tmp_path, time)
    running.record(2)
    store = running.rig.store
    assert evict_as_sender(store, QUOTA, wall(time)).evicted == {}
    time.offset = right
    running.rig.step(TICK)
    running.record(2)
    assert running.rig.end()
    assert evict_as_sender(store, QUOTA, wall(time)).evicted == {}
    assert len(store.look().waiting) == 4


def test_a_session_begun_before_the_clock_was_set_is_as_old_as_its_end(tmp_path: Path) -> None:
    """As on a device that begins in 1970 and asks the net for the time."""
    time = Time()
    right, time.offset = time.offset, -time.monotonic
    early = Recording(tmp_path, time)
    early.record(2)
    time.offset = right
    early.rig.step(TICK)
    early.record(2)
    assert early.rig.end()
    late = Recording(tmp_path, time)
    late.record(2)
    assert late.rig.end()
    assert evict_as_sender(late.rig.store, QUOTA, wall(time)).evicted == {}
    assert len(late.rig.store.look().waiting) == 2


def test_sessions_that_are_really_old_are_given_up(tmp_path: Path) -> None:
    time = Time()
    old = Recording(tmp_path, time)
    old.record(2)
    assert old.rig.end()
    jump(time, 31 * 24 * HOUR)
    young = Recording(tmp_path, time)
    young.record(2)
    assert young.rig.end()
    assert evict_as_sender(young.rig.store, QUOTA, wall(time)).evicted == {"age": 1}
    assert [each.summary.session_id for each in young.rig.store.look().waiting] == [young.rig.id]

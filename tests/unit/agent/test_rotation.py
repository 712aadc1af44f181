"""Segments end by their size, and by their age, on the clock that only runs forward: nothing is lost, doubled or
reordered by it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from mailboat.agent.config import AgentConfig
from mailboat.agent.segment_file import segment_paths
from mailboat.agent.store import LIVE, WAITING
from mailboat.agent.writer import WriterSettings
from mailboat.protocol.segment import SealReason
from testkit.disk import Disk, Unsynced, always
from testkit.recording import SECOND, Rig, Time, only, read_session, recovered

HOUR, DAY, YEAR = 3600.0, 24 * 3600.0, 365 * 24 * 3600.0


def rig_at(root: Path, time: Time, disk: Disk | None = None) -> Rig:
    return Rig(root, files=disk.files if disk is not None else Unsynced(), time=time)


def record(rig: Rig, name: str, after: float) -> int:
    """Record once so much later; how many segments there are then."""
    rig.time.pass_seconds(after)
    rig.recorder.feature(name)
    assert rig.flush()
    return len(segment_paths(rig.store.files, rig.store.folder / LIVE / rig.id))


def test_a_day_is_what_is_promised() -> None:
    assert AgentConfig().segment_age == WriterSettings().segment_age == DAY


def test_a_segment_that_has_its_size_is_followed_by_another(tmp_path: Path) -> None:
    settings = WriterSettings(segment_bytes=10_000)
    rig = Rig(tmp_path, files=Unsynced(), settings=settings)
    told = [f"r{number}" for number in range(60)]
    for name in told:
        rig.recorder.feature(name, noise=rig.time.chance.randbytes(1000))
        assert rig.flush()
    assert rig.end()
    folder = rig.store.folder / WAITING / rig.id
    sizes = [path.stat().st_size for path in segment_paths(rig.store.files, folder)]
    assert len(sizes) == 7
    assert all(settings.segment_bytes <= size < settings.segment_bytes + 2000 for size in sizes[:-1])
    story = read_session(folder)
    assert (story.names, story.numbers, story.gaps) == (told, list(range(60)), [])
    assert story.reasons == [*[SealReason.ROTATED] * 6, SealReason.STOPPED]


def test_a_segment_of_a_day_is_followed_by_another(tmp_path: Path) -> None:
    rig = rig_at(tmp_path, Time())
    assert [record(rig, *each) for each in (("a", 0), ("b", DAY - 1), ("c", 2), ("d", DAY - 1), ("e", 1))] == [
        1,
        1,
        2,
        2,
        3,
    ], "the age is that of each segment, not of the session"
    assert rig.end()
    story = read_session(rig.store.folder / WAITING / rig.id)
    assert (story.names, story.numbers, story.gaps) == (list("abcde"), list(range(5)), [])
    assert story.reasons == [SealReason.ROTATED, SealReason.ROTATED, SealReason.STOPPED]


def test_what_is_declared_goes_on_in_the_segment_of_the_next_day(tmp_path: Path) -> None:
    rig = rig_at(tmp_path, Time())
    placed = rig.recorder.emitter("order.placed", ["user"])
    for user in range(3):
        placed(user)
        assert rig.flush()
        rig.time.pass_seconds(DAY)
    assert rig.end()
    story = read_session(rig.store.folder / WAITING / rig.id)
    assert [(each.name, dict(each.attributes)) for each in story.records] == [
        ("order.placed", {"user": user}) for user in range(3)
    ]
    assert len(story.reasons) == 4, "the end of it is on the fourth day"


@pytest.mark.parametrize("jump", [-10 * YEAR, -DAY, DAY, 10 * YEAR])
def test_a_wall_clock_that_jumps_neither_makes_a_segment_old_nor_young(tmp_path: Path, jump: float) -> None:
    rig = rig_at(tmp_path, Time())
    assert record(rig, "a", HOUR) == 1
    rig.time.offset += int(jump * SECOND)
    assert record(rig, "b", HOUR) == 1
    rig.time.offset -= int(jump * SECOND)
    assert record(rig, "c", DAY) == 2
    assert rig.end()
    story = read_session(rig.store.folder / WAITING / rig.id)
    assert (story.names, story.gaps) == (["a", "b", "c"], [])


def test_after_a_crash_the_next_run_counts_its_own_day(tmp_path: Path) -> None:
    time = Time()
    first = rig_at(tmp_path, time)
    assert record(first, "a", 0) == 1
    assert record(first, "b", DAY) == 2
    first.recorder.feature("c")
    first.let_go()
    time.pass_seconds(DAY / 2)
    story = only(recovered(tmp_path))
    assert (story.session_id, story.names, story.numbers, story.gaps) == (first.id, ["a", "b", "c"], [0, 1, 2], [])
    assert story.reasons == [SealReason.ROTATED, SealReason.CRASHED]
    second = rig_at(tmp_path, time)
    assert record(second, "d", DAY - 1) == 1
    assert record(second, "e", 1) == 2
    assert second.end()


def test_a_disk_that_refuses_just_then_only_puts_it_off(tmp_path: Path) -> None:
    disk = Disk(real=Unsynced())
    rig = rig_at(tmp_path, Time(), disk)
    assert record(rig, "a", 0) == 1
    rig.time.pass_seconds(DAY)
    disk.plan = always("create")
    rig.recorder.feature("b")
    rig.step(10.0)
    assert len(segment_paths(rig.store.files, rig.store.folder / LIVE / rig.id)) == 1
    disk.plan = lambda _number, _name: None
    assert record(rig, "c", 10.0) == 2
    assert rig.end()
    story = read_session(rig.store.folder / WAITING / rig.id)
    assert (story.names, story.gaps) == (["a", "b", "c"], [])


def test_a_segment_that_could_only_be_begun_late_has_its_day_from_then_on(tmp_path: Path) -> None:
    """The disk refused for a day and a half, and the session went on in memory."""
    disk = Disk(always("make_folder"), real=Unsynced())
    rig = rig_at(tmp_path, Time(), disk)
    rig.recorder.feature("a")
    rig.step(1.5 * DAY)
    disk.plan = lambda _number, _name: None
    assert record(rig, "b", 60.0) == 1
    assert record(rig, "c", DAY - 1) == 1
    assert record(rig, "d", 60.0) == 2
    assert rig.end()
    story = read_session(rig.store.folder / WAITING / rig.id)
    assert (story.names, story.gaps) == (list("abcd"), [])

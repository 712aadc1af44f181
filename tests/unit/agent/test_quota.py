"""Quotas: the order of eviction, and that no more is given up than needed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailboat.agent.files import OsFileSystem
from mailboat.agent.quota import ANCIENT, LARGEST_FLOOR, Evicted, Kept, Quota, Standing, evictions
from mailboat.agent.room import PLENTY, Disk
from testkit.recording import Time

DAY = 24 * 3600.0
YEAR = 365 * DAY
NOW = 1_800_000_000.0
DISK = 10**12
FOLDER = Path("store")
WIDE = Quota(max_bytes=None, max_age=1e9, min_free=0)

sessions = st.lists(
    st.builds(
        Kept,
        session_id=st.uuids().map(str),
        standing=st.sampled_from(Standing),
        size=st.integers(0, 1000),
        since=st.floats(0, 2 * NOW) | st.floats(NOW - 2e6, NOW + 1e6),
    ),
    unique_by=lambda each: each.session_id,
    max_size=30,
)
quotas = st.builds(
    Quota,
    max_bytes=st.none() | st.integers(0, 10_000),
    max_age=st.floats(0, 2e6) | st.floats(0, NOW),
    min_free=st.integers(0, 10_000),
)


def chosen(
    kept: list[Kept], quota: Quota, live: int = 0, free: int = DISK, disk: int = DISK
) -> list[tuple[str, Evicted]]:
    found = evictions(kept, quota, live_bytes=live, free_bytes=free, disk_bytes=disk, now=NOW)
    return [(each.session_id, reason) for each, reason in found]


def test_the_order() -> None:
    kept = [
        Kept("errors-old", Standing.WAITING_WITH_ERRORS, 10, 1.0),
        Kept("waiting-new", Standing.WAITING, 10, 9.0),
        Kept("waiting-old", Standing.WAITING, 10, 2.0),
        Kept("aside", Standing.QUARANTINED, 10, 3.0),
        Kept("declined", Standing.DECLINED, 10, 2.5),
        Kept("sent-new", Standing.SENT, 10, 8.0),
        Kept("sent-old", Standing.SENT, 10, 4.0),
    ]
    order = ["sent-old", "sent-new", "declined", "aside", "waiting-old", "waiting-new", "errors-old"]
    for room in range(0, 80, 10):
        quota = Quota(max_bytes=room, max_age=1e9, min_free=0)
        assert chosen(kept, quota) == [(name, Evicted.SIZE) for name in order[: 7 - room // 10]]


def test_running_sessions_count_but_are_never_given_up() -> None:
    assert chosen([Kept("a", Standing.WAITING, 10, 1.0)], Quota(100, 1e9, 0), live=90) == []
    assert chosen([Kept("a", Standing.WAITING, 10, 1.0)], Quota(100, 1e9, 0), live=91) == [("a", Evicted.SIZE)]
    assert chosen([], Quota(100, 1e9, 0), live=10**9) == []


def test_a_full_disk_is_relieved_just_enough() -> None:
    kept = [Kept(str(at), Standing.WAITING, 10, float(at)) for at in range(5)]
    assert chosen(kept, Quota(None, 1e9, 100), free=75) == [
        ("0", Evicted.DISK),
        ("1", Evicted.DISK),
        ("2", Evicted.DISK),
    ]


def test_age_goes_first_and_its_room_is_counted() -> None:
    kept = [Kept("old", Standing.WAITING_WITH_ERRORS, 50, NOW - 101), Kept("sent", Standing.SENT, 50, NOW - 99)]
    assert chosen(kept, Quota(50, 100.0, 0)) == [("old", Evicted.AGE)]


def test_no_more_is_left_free_than_a_share_of_a_small_disk() -> None:
    kept = [Kept("a", Standing.WAITING, 10, NOW)]
    quota = Quota(None, 1e9, 256)
    assert chosen(kept, quota, free=200, disk=1600) == []
    assert chosen(kept, quota, free=99, disk=1600) == [("a", Evicted.DISK)]
    assert chosen(kept, quota, free=255, disk=256 * LARGEST_FLOOR) == [("a", Evicted.DISK)]


@pytest.mark.parametrize("wrong", [0.0, 3600.0, NOW - 10 * YEAR])
def test_what_a_clock_dates_that_was_never_set_is_not_old(wrong: float) -> None:
    kept = [Kept("wrong", Standing.WAITING, 1, wrong), Kept("right", Standing.WAITING, 1, NOW - 1)]
    assert chosen(kept, Quota(None, 30 * DAY, 0)) == []


def test_a_clock_by_which_every_session_is_old_is_not_believed_at_once() -> None:
    """It may have been set ten years ahead; the next session that ends under it decides."""
    kept = [Kept(str(at), Standing.WAITING, 1, NOW - 10 * YEAR + YEAR * at) for at in range(5)]
    quota = Quota(None, 30 * DAY, 0)
    believable = [each for each in kept if each.since >= ANCIENT]
    assert believable
    assert chosen(kept, quota) == []
    assert {name for name, _ in chosen([*kept, Kept("new", Standing.WAITING, 1, NOW - 60)], quota)} == {
        each.session_id for each in believable
    }


def test_a_session_from_the_future_is_not_old() -> None:
    assert chosen([Kept("a", Standing.SENT, 1, NOW + 1e6)], Quota(None, 10.0, 0)) == []


@given(sessions, quotas, st.integers(0, 20_000), st.integers(0, 20_000))
def test_what_is_left_fits_and_the_last_one_was_needed(kept: list[Kept], quota: Quota, live: int, free: int) -> None:
    found = list(evictions(kept, quota, live_bytes=live, free_bytes=free, disk_bytes=DISK, now=NOW))
    gone = {each.session_id for each, _ in found}
    assert len(gone) == len(found)
    left = [each for each in kept if each.session_id not in gone]
    used = live + sum(each.size for each in left)
    now_free = free + sum(each.size for each, _ in found)
    fits = (quota.max_bytes is None or used <= quota.max_bytes) and now_free >= quota.min_free
    assert fits or not left
    young = [each for each in kept if 0 <= NOW - each.since <= quota.max_age]
    assert not young or all(NOW - each.since <= quota.max_age or each.since < ANCIENT for each in left)
    assert all(each not in young for each, reason in found if reason is Evicted.AGE)
    if found and found[-1][1] is not Evicted.AGE:
        last = found[-1][0].size
        too_large = quota.max_bytes is not None and used + last > quota.max_bytes
        assert too_large or now_free - last < quota.min_free


@given(sessions)
def test_nothing_is_given_up_without_need(kept: list[Kept]) -> None:
    assert chosen(kept, WIDE) == []


# -- how much is left on the disk ------------------------------------------------------------------------------------


class Shrinking(OsFileSystem):
    """A disk that has one byte less each time it is asked, and may refuse to tell."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.refuses = False

    def room(self, path: Path) -> tuple[int, int]:
        assert path == FOLDER
        if self.refuses:
            raise OSError("refused")
        self.left -= 1
        return self.left, DISK


def test_a_disk_with_plenty_of_room_is_asked_once_a_second() -> None:
    files, time = Shrinking(PLENTY + 3), Time()
    disk = Disk(files, FOLDER, time.clocks.now)
    assert disk.room() == (PLENTY + 2, DISK)
    time.pass_seconds(0.9)
    assert disk.room() == (PLENTY + 2, DISK)
    time.pass_seconds(0.2)
    assert disk.room() == (PLENTY + 1, DISK)
    time.pass_seconds(0.2)
    assert disk.room() == (PLENTY + 1, DISK)


def test_a_disk_without_plenty_of_room_is_asked_each_time() -> None:
    files, time = Shrinking(PLENTY + 1), Time()
    disk = Disk(files, FOLDER, time.clocks.now)
    assert disk.room() == (PLENTY, DISK)
    time.pass_seconds(1.0)
    assert [disk.room()[0] for _ in range(3)] == [PLENTY - 1, PLENTY - 2, PLENTY - 3]
    files.left = 2 * PLENTY
    assert disk.room()[0] == 2 * PLENTY - 1
    assert disk.room()[0] == 2 * PLENTY - 1


def test_what_a_disk_refuses_to_tell_is_asked_again() -> None:
    files, time = Shrinking(2 * PLENTY), Time()
    disk = Disk(files, FOLDER, time.clocks.now)
    assert disk.room() == (2 * PLENTY - 1, DISK)
    files.refuses = True
    time.pass_seconds(1.0)
    for _ in range(2):
        with pytest.raises(OSError, match="refused"):
            disk.room()
    files.refuses = False
    assert disk.room() == (2 * PLENTY - 2, DISK)

"""Quotas: which sessions to give up when the store is too large, too old, or its disk too full. Pure.

In this order, and never a live one:

1. whatever is older than the age limit: servers refuse it by then;
2. sessions that the server has accepted, oldest first: they are only kept while there is room;
3. sessions that it has answered for and has not (declined: it may ask for them after all; rejected), oldest first;
4. sessions put aside (quarantined), oldest first;
5. waiting sessions without errors, oldest first;
6. waiting sessions with errors, oldest first.

Ages are by the wall clock, which may be wrong: a device without one begins in 1970, and a flat battery or a hand may
set it years ahead. So no session is old that ended before mailboat was (`ANCIENT`); and none is while there is not a
single session within the age limit, for then it may be the present clock that errs. If it does not, the next session
tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum, StrEnum
from typing import Final

from msgspec import Struct

ANCIENT: Final = 1_577_836_800.0
"""The year 2020: what a clock says that was never set."""


LARGEST_FLOOR: Final = 16
"""The part of a disk that is left free at most: the sixteenth."""


class Standing(IntEnum):
    """Where a session stands in the order of eviction: the lowest goes first."""

    SENT = 0
    DECLINED = 1
    QUARANTINED = 2
    WAITING = 3
    WAITING_WITH_ERRORS = 4


class Evicted(StrEnum):
    """Why a session was given up."""

    AGE = "age"
    """Older than `Quota.max_age`."""
    SIZE = "size"
    """The store was larger than `Quota.max_bytes`."""
    DISK = "disk"
    """The disk had less than `Quota.min_free` left."""


class Kept(Struct, frozen=True):
    """A session that may be given up: `size` is bytes on disk, `since` the wall clock at its end, or at the last that
    is known of it, in seconds.
    """

    session_id: str
    standing: Standing
    size: int
    since: float


class Quota(Struct, frozen=True):
    """`max_bytes` for the whole store (None: no bound), `max_age` in seconds, `min_free` bytes to leave on the disk."""

    max_bytes: int | None
    max_age: float
    min_free: int

    def floor(self, disk_bytes: int) -> int:
        """Bytes to leave free on a disk of that size: on a small one no more than a share, else nothing could ever be
        kept there.
        """
        return min(self.min_free, disk_bytes // LARGEST_FLOOR)


def evictions(
    kept: Iterable[Kept], quota: Quota, *, live_bytes: int, free_bytes: int, disk_bytes: int, now: float
) -> Iterator[tuple[Kept, Evicted]]:
    """The sessions to give up, in order, each with its reason; nothing more than is needed.

    `live_bytes` are those of running sessions, which count but are never given up; `free_bytes` and `disk_bytes` tell
    of the disk; `now` is the wall clock in seconds. A session that lies in the future (the clock was set back) is not
    old.
    """
    ordered = sorted(kept, key=lambda each: (each.standing, each.since, each.session_id))
    old = _old(ordered, quota.max_age, now)
    yield from ((each, Evicted.AGE) for each in old)
    gone = {each.session_id for each in old}
    left = [each for each in ordered if each.session_id not in gone]
    free = free_bytes + sum(each.size for each in old)
    used = live_bytes + sum(each.size for each in left)
    yield from _for_room(left, quota.max_bytes, quota.floor(disk_bytes), used, free)


def _old(kept: Sequence[Kept], max_age: float, now: float) -> list[Kept]:
    if not any(0 <= now - each.since <= max_age for each in kept):
        return []
    return [each for each in kept if now - each.since > max_age and each.since >= ANCIENT]


def _for_room(
    left: Sequence[Kept], max_bytes: int | None, floor: int, used: int, free: int
) -> Iterator[tuple[Kept, Evicted]]:
    for each in left:
        if max_bytes is not None and used > max_bytes:
            reason = Evicted.SIZE
        elif free < floor:
            reason = Evicted.DISK
        else:
            return
        used -= each.size
        free += each.size
        yield each, reason

"""Quotas: which sessions to give up when the store is too large, too old, or its disk too full. Pure.

In this order, and never a live one:

1. whatever is older than the age limit: servers refuse it by then;
2. sessions that the server has answered for, oldest first: they are only kept while there is room;
3. sessions put aside (quarantined), oldest first;
4. waiting sessions without errors, oldest first;
5. waiting sessions with errors, oldest first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum


class Standing(IntEnum):
    """Where a session stands in the order of eviction: the lowest goes first."""

    SENT = 0
    QUARANTINED = 1
    WAITING = 2
    WAITING_WITH_ERRORS = 3


class Evicted(StrEnum):
    """Why a session was given up."""

    AGE = "age"
    """Older than `Quota.max_age`."""
    SIZE = "size"
    """The store was larger than `Quota.max_bytes`."""
    DISK = "disk"
    """The disk had less than `Quota.min_free` left."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A session that may be given up: `size` is bytes on disk, `since` the wall clock at its start in seconds."""

    session_id: str
    standing: Standing
    size: int
    since: float


@dataclass(frozen=True, slots=True)
class Quota:
    """`max_bytes` for the whole store (None: no bound), `max_age` in seconds, `min_free` bytes to leave on the disk."""

    max_bytes: int | None
    max_age: float
    min_free: int


def evictions(
    kept: Iterable[Kept], quota: Quota, *, live_bytes: int, free_bytes: int, now: float
) -> Iterator[tuple[Kept, Evicted]]:
    """The sessions to give up, in order, each with its reason; nothing more than is needed.

    `live_bytes` are those of running sessions, which count but are never given up; `now` is the wall clock in
    seconds. A session that lies in the future (the clock was set back) is not old.
    """
    ordered = sorted(kept, key=lambda each: (each.standing, each.since, each.session_id))
    old = [each for each in ordered if now - each.since > quota.max_age]
    yield from ((each, Evicted.AGE) for each in old)
    gone = {each.session_id for each in old}
    left = [each for each in ordered if each.session_id not in gone]
    free = free_bytes + sum(each.size for each in old)
    yield from _for_room(left, quota, live_bytes + sum(each.size for each in left), free)


def _for_room(left: Sequence[Kept], quota: Quota, used: int, free: int) -> Iterator[tuple[Kept, Evicted]]:
    for each in left:
        if quota.max_bytes is not None and used > quota.max_bytes:
            reason = Evicted.SIZE
        elif free < quota.min_free:
            reason = Evicted.DISK
        else:
            return
        used -= each.size
        free += each.size
        yield each, reason

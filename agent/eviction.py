"""Eviction: giving up sessions where `quota` says so.

Only the process that sends for a store evicts, for the ledger is its own. A waiting session is counted there, under
the reason, before it is deleted; a crash in between leaves it to the next sender, who moves it to ``sent/``, where it
goes before all that waits. The others have been counted when they were put where they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct, field

from mailboat.agent.ended import Waiting
from mailboat.agent.files import FileSystem
from mailboat.agent.ledger import EVICTED, LOST, Ending
from mailboat.agent.log import log
from mailboat.agent.quota import Evicted, Kept, Quota, Standing, evictions
from mailboat.agent.segment_file import segment_paths, segments_among
from mailboat.agent.store import LIVE, QUARANTINED, RECEIPT, SENT, Store
from mailboat.protocol.ids import is_canonical

_PUT_AWAY: Final = {Standing.SENT: SENT, Standing.DECLINED: SENT, Standing.QUARANTINED: QUARANTINED}
_ID_LENGTH: Final = 36
_AT_ONCE: Final = 500
"""Sessions entered into the ledger with one writing: about 30 KiB, which the reserve must hold on a full disk."""


class Survey(Struct, frozen=True):
    """What a store holds: sessions that may be given up, and the bytes of each live one."""

    waiting: Mapping[str, Waiting]
    kept: tuple[Kept, ...]
    live: Mapping[str, int]

    def bytes_beside(self, session_id: str) -> int:
        """All bytes but those of one live session."""
        return sum(each.size for each in self.kept) + sum(self.live.values()) - self.live.get(session_id, 0)


class Relief(Struct, frozen=True):
    """What an eviction gave up, by reason, and what it left."""

    evicted: Mapping[Evicted, int] = field(default_factory=dict)
    left: Survey = field(default_factory=lambda: Survey({}, (), {}))


def survey(store: Store) -> Survey:
    """Look at all that the store holds. Blocks. Raises `OSError`."""
    waiting = {each.summary.session_id: each for each in store.look().waiting}
    kept = (*map(_waiting, waiting.values()), *_put_away(store, SENT), *_put_away(store, QUARANTINED))
    live = {name: _size(store.files, store.folder / LIVE / name) for name in store.files.names(store.folder / LIVE)}
    return Survey(waiting, kept, live)


def evict(store: Store, quota: Quota, now: float) -> Relief:
    """Give up what must be. The caller is the sender. Blocks.

    `now` is the wall clock in seconds. Raises `OSError`; what was given up by then is counted.
    """
    for session_id, reason in store.look().unreadable.items():
        store.set_aside(Ending(session_id, LOST, "unreadable", 0, why=reason))  # else nobody would give it up
    found, (free, disk) = survey(store), store.files.room(store.folder)
    live = sum(found.live.values())
    chosen = list(evictions(found.kept, quota, live_bytes=live, free_bytes=free, disk_bytes=disk, now=now))
    for session, _ in chosen:
        if session.standing in _PUT_AWAY:
            store.files.remove_tree(store.folder / _PUT_AWAY[session.standing] / session.session_id)
    waiting = [(found.waiting[each.session_id], reason) for each, reason in chosen if each.standing not in _PUT_AWAY]
    endings = [_ending(each, reason) for each, reason in waiting]
    for at in range(0, len(endings), _AT_ONCE):
        store.finish(endings[at : at + _AT_ONCE], purge=True)
    evicted = dict(Counter(reason for _, reason in chosen))
    if evicted:
        log.warning("sessions given up for want of room or for their age: %s", _told(evicted))
    gone = {session for session, _ in chosen}
    kept = tuple(each for each in found.kept if each not in gone)
    return Relief(evicted, Survey({}, kept, found.live))


def evict_as_sender(store: Store, quota: Quota, now: float) -> Relief:
    """`evict`, in the sender's place if that is free: while another process has it, nothing is given up."""
    was_sending = store.sending
    if not store.become_sender():
        return Relief(left=survey(store))
    try:
        return evict(store, quota, now)
    finally:
        if not was_sending:
            store.cease_sending()


def _waiting(waiting: Waiting) -> Kept:
    summary = waiting.summary
    standing = Standing.WAITING_WITH_ERRORS if summary.errors else Standing.WAITING
    return Kept(summary.session_id, standing, summary.size, max(summary.started, summary.ended))


def _put_away(store: Store, folder: str) -> Iterator[Kept]:
    """What lies in ``sent/`` or ``quarantined/``. How old it is tells its id, whose first 48 bits are its time (RFC
    9562); that it was sent and is not at the server, that there is a receipt.
    """
    for name in store.files.names(store.folder / folder):
        session_id = name[:_ID_LENGTH]
        if is_canonical(session_id):
            since = int(session_id[:8] + session_id[9:13], 16) / 1000
            path = store.folder / folder / name
            held = store.files.names(path)
            unsent = Standing.DECLINED if RECEIPT in held else Standing.SENT
            standing = unsent if folder == SENT else Standing.QUARANTINED
            yield Kept(name, standing, _sum(store.files, segments_among(path, held)), since)


def _ending(waiting: Waiting, reason: Evicted) -> Ending:
    summary = waiting.summary
    return Ending(summary.session_id, EVICTED, reason.value, summary.records, summary.lost)


def _size(files: FileSystem, folder: Path) -> int:
    """Bytes of a session's segments, as far as they can be seen; its journal is room set aside, not kept."""
    return _sum(files, segment_paths(files, folder))


def _sum(files: FileSystem, segments: Iterable[Path]) -> int:
    total = 0
    for path in segments:
        try:
            total += files.size(path)
        except FileNotFoundError:
            continue  # a live session's file, just renamed or removed by its process
    return total


def _told(evicted: Mapping[Evicted, int]) -> str:
    return ", ".join(f"{count} ({reason.value})" for reason, count in evicted.items())

"""Eviction: giving up sessions where `quota` says so.

Only the process that sends for a store evicts, for the ledger is its own. A waiting session is counted there, under
the reason, before it is deleted; a crash in between leaves it to the next sender, who moves it to ``sent/``, where it
is the first to go.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from mailboat.agent.ended import Waiting
from mailboat.agent.files import FileSystem
from mailboat.agent.ledger import Ending
from mailboat.agent.quota import Evicted, Kept, Quota, Standing, evictions
from mailboat.agent.segment_file import segment_paths
from mailboat.agent.store import LIVE, QUARANTINED, SENT, Store
from mailboat.protocol.ids import is_canonical

log = logging.getLogger("mailboat")


def evict(store: Store, quota: Quota, now: float) -> dict[Evicted, int]:
    """Give up what must be, and return how many sessions for which reason. The caller is the sender. Blocks.

    `now` is the wall clock in seconds. Raises `OSError`; what was given up by then is counted.
    """
    waiting = {each.summary.session_id: each for each in store.look().waiting}
    kept = [*map(_waiting, waiting.values()), *_put_away(store, SENT), *_put_away(store, QUARANTINED)]
    live = sum(_size(store.files, store.folder / LIVE / name) for name in store.files.names(store.folder / LIVE))
    free = store.files.free_bytes(store.folder)
    evicted: dict[Evicted, int] = {}
    for session, reason in evictions(kept, quota, live_bytes=live, free_bytes=free, now=now):
        if session.standing in (Standing.WAITING, Standing.WAITING_WITH_ERRORS):
            summary = waiting[session.session_id].summary
            ending = Ending(session.session_id, "evicted", reason.value, summary.records, summary.lost)
            store.finish([ending], purge=True)
        else:
            folder = SENT if session.standing is Standing.SENT else QUARANTINED
            store.files.remove_tree(store.folder / folder / session.session_id)
        evicted[reason] = evicted.get(reason, 0) + 1
    if evicted:
        log.warning("sessions given up for want of room or for their age: %s", _told(evicted))
    return evicted


def evict_as_sender(store: Store, quota: Quota, now: float) -> dict[Evicted, int]:
    """`evict`, in the sender's place if that is free: while another process has it, nothing is given up."""
    was_sending = store.sending
    if not store.become_sender():
        return {}
    try:
        return evict(store, quota, now)
    finally:
        if not was_sending:
            store.cease_sending()


def _waiting(waiting: Waiting) -> Kept:
    summary = waiting.summary
    standing = Standing.WAITING_WITH_ERRORS if summary.errors else Standing.WAITING
    return Kept(summary.session_id, standing, summary.size, summary.started)


def _put_away(store: Store, folder: str) -> Iterator[Kept]:
    """What lies in ``sent/`` or ``quarantined/``. How old it is tells its id, whose first 48 bits are its time (RFC
    9562).
    """
    standing = Standing.SENT if folder == SENT else Standing.QUARANTINED
    for name in store.files.names(store.folder / folder):
        session_id = name[:36]
        if is_canonical(session_id):
            since = int(session_id[:8] + session_id[9:13], 16) / 1000
            yield Kept(name, standing, _size(store.files, store.folder / folder / name), since)


def _size(files: FileSystem, folder: Path) -> int:
    """Bytes of a session's segments, as far as they can be seen; its journal is room set aside, not kept."""
    total = 0
    for path in segment_paths(files, folder):
        try:
            total += files.size(path)
        except FileNotFoundError:
            continue  # a live session's file, just renamed or removed by its process
    return total


def _told(evicted: dict[Evicted, int]) -> str:
    return ", ".join(f"{count} ({reason.value})" for reason, count in evicted.items())

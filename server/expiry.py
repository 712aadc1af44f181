"""What is done away with after its time: unfinished uploads, parts, quarantined files, and the rows of all that.

An upload that has expired is refused from that moment on, whatever is still there of it (`UploadState.at`); the sweep
only frees the room. It removes the bytes first and notes it after: killed in between, it does so again. The rows of
what is gone stay for a while, so that whoever asks is told "gone" rather than "unknown", and are then forgotten; a blob
that a kill has left behind goes with its row.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web
from msgspec.structs import replace

from mailboat.server import riding
from mailboat.server.catalog import Verification
from mailboat.server.context import BLOBS, CATALOG, CLOCK, CONFIG, COUNTERS, run_in_worker
from mailboat.server.periodic import every
from mailboat.server.turns import TURNS

TOMBSTONE_AGE: Final = 30 * 24 * 3600.0
"""Seconds for which the row of an upload that is gone stays: clients that come back after a month begin anew anyway."""

AT_ONCE: Final = 200
"""Uploads that one look into the catalog gives: bounded work between two turns of the event loop."""

_LOG: Final = logging.getLogger("mailboat.server")


def sweeping(app: web.Application) -> AsyncIterator[None]:
    """Sweep every `sweep_interval`, from the start of the application to its end."""
    return every(app, app[CONFIG].sweep_interval, sweep, failures="sweeps_failed", log=_LOG)


async def sweep(app: web.Application) -> int:
    """Remove what has expired; how many uploads that were. Raises `CatalogError` and `OSError`; what was removed by
    then is.
    """
    removed, now = 0, app[CLOCK]()
    while expired := await app[CATALOG].expired(now, app[CONFIG].quarantine_max_age, AT_ONCE):
        done = 0
        for upload_id in expired:
            done += await _remove(app, upload_id, now)
        removed += done
        if done == 0:
            break  # all of them are in use at the moment
    while gone := await app[CATALOG].long_gone(now - TOMBSTONE_AGE, AT_ONCE):
        for upload_id in gone:
            await run_in_worker(app, app[BLOBS].remove, upload_id)
        await app[CATALOG].forget_uploads(gone)
    app[COUNTERS]["packs_removed"] += await riding.sweep(app[CATALOG], app[BLOBS])
    if removed:
        _LOG.info("%d uploads have expired and are removed", removed)
    return removed


async def _remove(app: web.Application, upload_id: str, now: float) -> bool:
    """Remove one upload, unless it is being used: a long transfer prolongs its upload only when it ends, and a part
    stays as long as something unfinished is made of it.
    """
    if app[TURNS].busy(upload_id) or await app[CATALOG].made_of(upload_id):
        return False
    async with app[TURNS].take(upload_id):
        row = await app[CATALOG].upload(upload_id)
        if row is None:
            return False
        old = row.verification is Verification.QUARANTINED and row.updated <= now - app[CONFIG].quarantine_max_age
        state = replace(row.state, expires=now).at(now) if old else row.state.at(now)
        if not state.gone or row.state.gone:
            return False
        await run_in_worker(app, app[BLOBS].remove, upload_id)
        app[COUNTERS]["uploads_expired"] += 1
        return await app[CATALOG].store(state.fenced(), now)

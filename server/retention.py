"""History windows: what is older than a product's plan keeps goes, everywhere, and it is said what went.

In this order, so that a kill at any point leaves nothing behind and loses nothing that is still shown:

1. The catalog removes the session with its uploads and notes both as doomed, in one transaction. From here on nobody is
   told of it, and if it is offered again it is too old.
2. The analytics store forgets its records, after the loading under way has ended.
3. Each upload's blob is removed in that upload's turn, which ends a transfer still under way.
4. The catalog strikes what was doomed.

A start finds what was doomed and not struck, and goes on with 2.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from typing import Final

from aiohttp import web

from mailboat.protocol.errors import ConfigError
from mailboat.server.catalog import Doomed, ProductRow, SessionRow
from mailboat.server.context import BLOBS, CATALOG, CLOCK, CONFIG, COUNTERS, run_in_worker
from mailboat.server.ingest import INGEST
from mailboat.server.periodic import every
from mailboat.server.policy import DAY, Plan, outlived
from mailboat.server.turns import TURNS

AT_ONCE: Final = 200
"""Sessions removed in one transaction: it holds up those that wait for the catalog's writer."""

_LOG: Final = logging.getLogger("mailboat.server.retention")


def sweeping(app: web.Application) -> AsyncIterator[None]:
    """Have history windows kept for as long as the application runs."""
    return every(app, app[CONFIG].retention_interval, sweep, failures="retention_failures", log=_LOG)


async def sweep(app: web.Application) -> int:
    """Delete what is older than it may be now; the number of sessions deleted."""
    while doomed := await app[CATALOG].doomed(AT_ONCE):
        await _finish(app, doomed)
    removed = 0
    for product in await app[CATALOG].products():
        removed += await _sweep_product(app, product)
    return removed


async def _sweep_product(app: web.Application, product: ProductRow) -> int:
    try:
        plan = Plan.of(product.plan)
    except ConfigError as error:
        app[COUNTERS]["retention_failures"] += 1
        _LOG.warning("product %s: its plan cannot be read, so nothing of it is deleted: %s", product.name, error)
        return 0
    if plan.history_days is None:
        return 0
    now, removed, skip = app[CLOCK](), 0, 0
    before = now - plan.history_days * DAY
    while rows := await app[CATALOG].begun_before(product.name, before, AT_ONCE, skip):
        old = [row for row in rows if outlived(row.summary, row.skew or 0.0, plan, now)]
        gone = await _remove(app, old, now)
        removed += gone
        skip += len(rows) - gone  # long sessions that began before the window, and ended within it
    if removed:
        window = f"{plan.history_days:g}"
        _LOG.info("product %s: %d sessions older than %s days are deleted", product.name, removed, window)
    return removed


async def _remove(app: web.Application, rows: Sequence[SessionRow], now: float) -> int:
    if not rows:
        return 0
    doomed = await app[CATALOG].remove_sessions(rows, now)
    await _finish(app, doomed)
    return len(doomed)


async def _finish(app: web.Application, doomed: Sequence[Doomed]) -> None:
    """Have what the catalog has let go of gone everywhere."""
    counters = app[COUNTERS]
    counters["retention_records"] += await app[INGEST].forget([(each.product, each.session_id) for each in doomed])
    for each in doomed:
        for upload_id in each.upload_ids:
            async with app[TURNS].take(upload_id):
                await run_in_worker(app, app[BLOBS].remove, upload_id)
            counters["retention_segments"] += 1
    await app[CATALOG].strike(doomed)
    counters["retention_sessions"] += len(doomed)

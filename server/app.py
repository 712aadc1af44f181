"""The aiohttp application: which parts there are, in which order they begin and end, and the way of every request.

A request passes `problems` (anything that is raised becomes a problem document), then `authentication`, then its
handler. The parts begin as: folder lock, catalog and blobs, recovery, ingest; and end in reverse order, after the
transfers under way were ended at a durable offset.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from aiohttp import web

from mailboat.protocol import negotiation as said
from mailboat.protocol.limits import MAX_NEGOTIATION_WIRE, MAX_OFFERS
from mailboat.server import admin, api, expiry, exports, ingest, negotiation, quarantine, retention, riding, uploads
from mailboat.server.allowance import RATES, TRANSFERS, Rates, Transfers
from mailboat.server.blobs import Blobs, LocalBlobs
from mailboat.server.catalog import Catalog
from mailboat.server.config import ServerConfig
from mailboat.server.connections import no_reuse
from mailboat.server.context import (
    BLOBS,
    CATALOG,
    CLOCK,
    CONFIG,
    COUNTERS,
    INGEST_WAKE,
    NEGOTIATORS,
    NEW_ID,
    NEWS,
    RECEIVERS,
    REPLICA,
    VERIFIERS,
    WORKERS,
    WRITERS,
)
from mailboat.server.cors import allow, preflights
from mailboat.server.folder import BLOBS_FOLDER, CATALOG_FILE, hold
from mailboat.server.keys import KEYRING, Keyring
from mailboat.server.news import News
from mailboat.server.problems import VERSION, add_version, authentication, problems
from mailboat.server.recovery import recover
from mailboat.server.sqlite_catalog import SqliteCatalog, fresh_id
from mailboat.server.turns import TURNS, Turns
from mailboat.server.unsealing import UNSEALING, Unsealing

WORKER_THREADS: Final = 8
"""Threads that open, sync and decode; most of them wait for the disk."""

NEGOTIATOR_THREADS: Final = 2
"""Threads that take negotiations apart: one computes while another waits for the disk. A message can take up 200 MiB
while it is taken apart, and more at once are no faster."""

VERIFIER_THREADS: Final = 2
"""Threads that verify: bound by the processor, so more would only take it from the event loop."""

RECEIVER_THREADS: Final = min(max(2, os.cpu_count() or 1), 4)
"""Threads that take large bodies, and as many that write what those look into. They are bound by the processor: with
more of them than processors, more bodies are under way at a time, and each is complete later. One has four MiB, and is
held by a body for sixteen at a time.
"""

BURST: Final = 10.0
"""Seconds' worth of requests that a key may ask at once: a backlog of small sessions comes in thousands."""

LINGER: Final = 5.0
"""Seconds for which the rest of a refused body is read and dropped, so that its sender gets to read the answer."""


def create_app(
    config: ServerConfig,
    *,
    clock: Callable[[], float] = time.time,
    open_blobs: Callable[[Path], Blobs] = LocalBlobs,
    open_catalog: Callable[[Path], Catalog] = SqliteCatalog,
    replica: str = "the only one",
) -> web.Application:
    """The whole server as an application, to be run by `serving.run`, an aiohttp runner, or a test.

    `clock` is the wall clock in Unix seconds. `open_blobs` makes the blob store in a folder, and is called in a thread;
    `open_catalog` makes the catalog for a file, and its `open` does the work. Where several servers share one, each
    has a name of its own, `replica`, that stays the same when it is started anew. Nothing is touched before the
    application starts up.
    """
    app = web.Application(
        middlewares=[problems, preflights, authentication],
        # Bodies are taken as they were sent: what is compressed is decompressed within limits, by `negotiation`.
        handler_args={
            "auto_decompress": False,
            "keepalive_timeout": config.keepalive_timeout,
            "lingering_time": LINGER,
        },
    )
    app[CONFIG] = config
    app[CLOCK] = clock
    app[REPLICA] = replica
    app[NEW_ID] = fresh_id
    app[COUNTERS] = Counter()
    app[TURNS] = Turns()
    app[TRANSFERS] = Transfers()
    app[RATES] = Rates(config.max_requests, BURST * config.max_requests)
    app.on_response_prepare.append(add_version)
    app.on_shutdown.append(_end_transfers)
    app.cleanup_ctx.append(_threads)
    app.cleanup_ctx.append(partial(_store, open_blobs, open_catalog))
    app.cleanup_ctx.append(_ingest)
    app.cleanup_ctx.append(retention.sweeping)
    app.cleanup_ctx.append(expiry.sweeping)
    app.on_response_prepare.append(allow)
    app.on_response_prepare.append(no_reuse)
    app.router.add_get("/v1/status", status)
    negotiation.add_routes(app)
    uploads.add_routes(app)
    api.add_routes(app)
    exports.add_routes(app)
    admin.add_routes(app)
    quarantine.add_routes(app)
    return app


def create_store(config: ServerConfig) -> web.Application:
    """The parts that keep, without those that answer, load or sweep: for a command on a folder whose server does not
    run.
    """
    app = web.Application()
    app[CONFIG] = config
    app[CLOCK] = time.time
    app[NEW_ID] = fresh_id
    app[COUNTERS] = Counter()
    app[TURNS] = Turns()
    app.cleanup_ctx.append(_threads)
    app.cleanup_ctx.append(partial(_store, LocalBlobs, SqliteCatalog))
    return app


async def status(request: web.Request) -> web.StreamResponse:
    """``GET /v1/status``: who is here, and what it takes; for anybody."""
    config = request.app[CONFIG]
    answer = {
        "service": "mailboat",
        "version": VERSION,
        "negotiation": {"version": said.VERSION, "max_offers": MAX_OFFERS, "max_bytes": MAX_NEGOTIATION_WIRE},
        "uploads": {"dialects": ["rufh", "tus"], "max_size": config.max_upload_bytes},
    }
    return web.json_response(answer, headers={"Cache-Control": "no-store"})


# -- parts, in the order of their beginning ----------------------------------------------------------------------------


async def _threads(app: web.Application) -> AsyncIterator[None]:
    app[INGEST_WAKE] = asyncio.Event()
    app[NEWS] = News()
    app[WORKERS] = workers = ThreadPoolExecutor(WORKER_THREADS, "mailboat-worker")
    app[NEGOTIATORS] = negotiators = ThreadPoolExecutor(NEGOTIATOR_THREADS, "mailboat-negotiator")
    app[VERIFIERS] = verifiers = ThreadPoolExecutor(VERIFIER_THREADS, "mailboat-verifier")
    app[RECEIVERS] = receivers = ThreadPoolExecutor(RECEIVER_THREADS, "mailboat-receiver")
    app[WRITERS] = writers = ThreadPoolExecutor(RECEIVER_THREADS, "mailboat-writer")
    yield
    for pool in (workers, negotiators, verifiers, receivers, writers):
        await asyncio.to_thread(pool.shutdown)


async def _store(
    open_blobs: Callable[[Path], Blobs], open_catalog: Callable[[Path], Catalog], app: web.Application
) -> AsyncIterator[None]:
    config = app[CONFIG]
    lock = await asyncio.to_thread(hold, config.data)
    catalog = open_catalog(config.data / CATALOG_FILE)
    try:
        blobs = await asyncio.to_thread(open_blobs, config.data / BLOBS_FOLDER)
        await catalog.open()
        app[CATALOG] = catalog
        app[BLOBS] = blobs
        app[KEYRING] = Keyring(catalog, config.key_cache)
        app[UNSEALING] = Unsealing(config.data)
        await asyncio.to_thread(app[UNSEALING].refresh)
        app[COUNTERS]["uploads_recovered"] += await recover(catalog, blobs, app[CLOCK]())
        app[COUNTERS]["packs_removed"] += await riding.sweep(catalog, blobs)
        yield
    finally:
        await catalog.close()
        await asyncio.to_thread(lock.release)


async def _ingest(app: web.Application) -> AsyncIterator[None]:
    await ingest.start(app)
    yield
    await ingest.stop(app)


async def _end_transfers(app: web.Application) -> None:
    app[TURNS].stop()

"""Running a server: on a socket, until it is told to stop.

`run` is ``mailboat serve``; `running` is the same inside an event loop of somebody else (tests, the demo).
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from mailboat.server.access_log import AccessLogger
from mailboat.server.app import create_app
from mailboat.server.catalog import Catalog, Role
from mailboat.server.config import ServerConfig
from mailboat.server.connections import listen
from mailboat.server.context import CATALOG
from mailboat.server.keys import make_key
from mailboat.server.logs import set_up
from mailboat.server.memory import keep_memory

Echo = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that listens at `url` (``http://host:port``, with the port that was really taken)."""

    app: web.Application
    url: str


def run(config: ServerConfig, *, echo: Echo = print) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status.

    On the first start an admin token and a key of the first product are made and told through `echo`, as is the
    address. Raises `StoreError` when the data folder cannot be used, or is in use; `OSError` when the address cannot.
    """
    set_up(config.log_format)
    os.umask(0o077)  # what is written is for its owner only, also in a folder that was there before
    return asyncio.run(_serve(config, echo))


async def _serve(config: ServerConfig, echo: Echo) -> int:
    stop = asyncio.Event()
    _on_signals(stop)
    keep_swift()
    async with running(config) as server:
        for line in await first_keys(server.app[CATALOG], config, time.time()):
            echo(line)
        echo(f"listening on {server.url}")
        await stop.wait()
        echo("stopping")
    return 0


@asynccontextmanager
async def running(config: ServerConfig, app: web.Application | None = None) -> AsyncIterator[RunningServer]:
    """A server on a real socket, for as long as the context lasts; on leaving it, transfers are ended at a durable
    offset and requests in progress get `stop_timeout`. `app`: what `create_app` made of `config`, if not as usual.
    """
    app = create_app(config) if app is None else app
    runner = web.AppRunner(
        app, access_log_class=AccessLogger, handle_signals=False, shutdown_timeout=config.stop_timeout
    )
    try:
        await runner.setup()
        listener = await listen(runner, config.host, config.port)
        try:
            host, port = listener.sockets[0].getsockname()[:2]
            yield RunningServer(app, f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
        finally:
            listener.close()
    finally:
        await runner.cleanup()


async def first_keys(catalog: Catalog, config: ServerConfig, now: float) -> list[str]:
    """Make what a new server needs to be used, and say so: an admin token, and a key of the first product.

    Each is made only where there is none of its kind. The texts are not kept: this is the one time they can be seen.
    """
    keys = [row for row in await catalog.keys() if row.revoked is None]
    lines = []
    if not any(row.role is Role.ADMIN for row in keys):
        token, row = make_key(None, Role.ADMIN, now)
        await catalog.put_key(row)
        lines.append(f"admin token: {token}")
    if not any(row.role is Role.AGENT for row in keys):
        key, row = make_key(config.first_product, Role.AGENT, now)
        await catalog.put_key(row)
        lines.append(f"key of product {config.first_product}: {key}")
    if lines:
        lines.append("they are shown this once; more are made with `mailboat keys create`")
    return lines


def keep_swift() -> None:
    """Let the event loop wait less for what worker threads do: measured with a full negotiation every 40 ms, delays of
    30-80 ms become 5-15 ms. And keep the memory that bodies of a megabyte come in (`keep_memory`).

    Collections that look at all objects, long-lived modules included, hold every thread; and a thread that computes
    keeps the interpreter for 5 ms each time unless told otherwise. For a process of our own only, so not in `running`.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 100)
    sys.setswitchinterval(0.001)
    keep_memory()


def _on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, stop.set)
        except NotImplementedError:  # Windows: the handler runs between bytecodes, and has to wake the loop itself
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))

"""Servers to upload to, each in a process of its own: ``python -m bench.serving KIND --folder FOLDER``.

``bare`` is the reference for large uploads, ``posts`` that for small ones; ``unsynced-posts`` is the same without its
syncs. ``mailboat`` is our server as it comes; ``receiving`` is the same without the loading of
records into the analytics store, which is another job, done at leisure after the upload and measured on its own;
``portable`` is that one as it is where no thread can take bodies from their sockets.

The process tells in one line of JSON where it listens, then answers each line of its input with the processor time it
has used, and ends when its input does, however the bench ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sqlite3
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from aiohttp import web

PRODUCT = "bench"
_LINE = 64 * 1024
_BARE_LIMIT = 1 << 40


# -- the side of the bench -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Server:
    """A server process that runs: `url` without a slash at its end, `key` for uploads if it needs one."""

    url: str
    key: str
    process: asyncio.subprocess.Process

    async def cpu(self) -> float:
        """Seconds of user and system time that the process has used so far."""
        assert self.process.stdin is not None  # noqa: S101 - `serving` made the pipes
        assert self.process.stdout is not None  # noqa: S101
        self.process.stdin.write(b"\n")
        await self.process.stdin.drain()
        return float(json.loads(await self.process.stdout.readline())["cpu"])


@asynccontextmanager
async def serving(kind: str, folder: Path) -> AsyncIterator[Server]:
    """A server of `kind` with its files in `folder`. Raises `RuntimeError` when it does not come up."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.serving", kind, "--folder", str(folder)),
        stdin=pipe,
        stdout=pipe,
        limit=_LINE,
        cwd=Path(__file__).parent.parent,
    )
    assert process.stdin is not None  # noqa: S101 - made just now
    assert process.stdout is not None  # noqa: S101
    try:
        line = await process.stdout.readline()
        if not line:
            raise RuntimeError(f"the {kind} server did not come up, see above")
        told = json.loads(line)
        yield Server(told["url"], told["key"], process)
    finally:
        process.stdin.close()
        await process.wait()


# -- the side of the server ------------------------------------------------------------------------------------------


@asynccontextmanager
async def _mailboat(folder: Path) -> AsyncIterator[tuple[str, str]]:
    """Our server, as it comes."""
    from mailboat.server import ServerConfig  # noqa: PLC0415 - the bare one does without
    from mailboat.server.catalog import Role  # noqa: PLC0415
    from mailboat.server.keys import create_key  # noqa: PLC0415
    from mailboat.server.serving import keep_swift, running  # noqa: PLC0415

    keep_swift()  # as `mailboat serve` does in a process of its own
    async with running(ServerConfig(data=folder, port=0)) as server:
        yield server.url.rstrip("/"), await asyncio.to_thread(create_key, folder, PRODUCT, Role.AGENT)


@asynccontextmanager
async def _bare(folder: Path) -> AsyncIterator[tuple[str, str]]:
    """PUT /NAME: the body goes into a file as it comes, which is synced once before the answer. Nothing else."""
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, os.makedirs, folder)

    async def put(request: web.Request) -> web.Response:
        path = folder / request.match_info["name"]
        fd = await loop.run_in_executor(None, os.open, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            async for piece in request.content.iter_any():
                os.write(fd, piece)
            await loop.run_in_executor(None, getattr(os, "fdatasync", os.fsync), fd)
        finally:
            os.close(fd)
        return web.Response(status=204)

    app = web.Application(client_max_size=_BARE_LIMIT)
    app.router.add_put("/{name}", put)
    async with _listening(app) as url:
        yield url, ""


@asynccontextmanager
async def _listening(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def _posts(folder: Path, *, synced: bool = True) -> AsyncIterator[tuple[str, str]]:
    """POST /NAME: the body becomes a file and a row, both synced before the answer if `synced`. Nothing else."""
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, os.makedirs, folder)
    rows, writer = _rows(folder, synced=synced), ThreadPoolExecutor(1)

    def put(name: str, body: bytes) -> None:
        fd = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(fd, body)
            if synced:
                getattr(os, "fdatasync", os.fsync)(fd)
        finally:
            os.close(fd)

    async def post(request: web.Request) -> web.Response:
        body, name = await request.read(), request.match_info["name"]
        await loop.run_in_executor(None, put, name, body)
        await loop.run_in_executor(
            writer, rows.execute, "INSERT INTO bodies VALUES (?, ?, ?)", (name, len(body), time.time())
        )
        return web.Response(status=204)

    app = web.Application(client_max_size=_BARE_LIMIT)
    app.router.add_post("/{name}", post)
    async with _listening(app) as url:
        yield url, ""
    writer.shutdown()
    rows.close()


def _rows(folder: Path, *, synced: bool) -> sqlite3.Connection:
    """A table of bodies, in which each statement is a commit of its own."""
    rows = sqlite3.connect(folder / "rows", isolation_level=None, check_same_thread=False)
    rows.execute("PRAGMA journal_mode = WAL")
    rows.execute(f"PRAGMA synchronous = {'FULL' if synced else 'OFF'}")
    rows.execute("CREATE TABLE bodies (name TEXT PRIMARY KEY, size INTEGER, at REAL)")
    return rows


@asynccontextmanager
async def _receiving(folder: Path) -> AsyncIterator[tuple[str, str]]:
    """Our server, with nothing behind the uploads."""
    from mailboat.server import ingest  # noqa: PLC0415

    async def nothing(_: web.Application) -> None:
        pass

    with patch.multiple(ingest, start=nothing, stop=nothing):
        async with _mailboat(folder) as told:
            yield told


@asynccontextmanager
async def _portable(folder: Path) -> AsyncIterator[tuple[str, str]]:
    """The same where aiohttp has to hand out large bodies, which then go through the page cache as any other."""
    from mailboat.server.connections import Connection  # noqa: PLC0415

    with patch.object(Connection, "plain", new=False):
        async with _receiving(folder) as told:
            yield told


_KINDS: dict[str, Callable[[Path], AbstractAsyncContextManager[tuple[str, str]]]] = {
    "mailboat": _mailboat,
    "receiving": _receiving,
    "portable": _portable,
    "bare": _bare,
    "posts": _posts,
    "unsynced-posts": partial(_posts, synced=False),
}


async def _serve(kind: str, folder: Path) -> None:
    async with _KINDS[kind](folder) as (url, key):
        _tell({"url": url, "key": key})
        ended, loop = asyncio.Event(), asyncio.get_running_loop()
        threading.Thread(target=_answer, args=(loop, ended), daemon=True).start()
        await ended.wait()


def _answer(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    for _ in sys.stdin.buffer:
        _tell({"cpu": time.process_time()})
    loop.call_soon_threadsafe(ended.set)


def _tell(values: dict[str, Any]) -> None:
    print(json.dumps(values), flush=True)


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.serving")
    parser.add_argument("kind", choices=sorted(_KINDS))
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.kind, arguments.folder))


if __name__ == "__main__":
    _main()

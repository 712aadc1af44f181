"""P3: one large session to the server, durable there, over the loopback interface.

The agent's side is the whole job: a session waits in a store, ``force_sync`` negotiates, sends its segments to our
server in a process of its own, has it confirmed, and notes so in the store. The reference sends the very same bytes
with one PUT of plain aiohttp to a handler that writes them to a file and calls fdatasync once. What both take is read
from files in the page cache. Our server loads no records into its analytics store meanwhile, which is another job
(P10); a peer shows what it is like when it does.

Where the disk is slow or shared, its flush is most of the time and all of the spread: ``--folder`` on a memory file
system (such as /dev/shm) shows what the software costs.
"""

from __future__ import annotations

import errno
import gc
import os
import shutil
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import aiohttp

from bench.harness import BYTE, Budget, Comparison, Contender, Measured, Sense, Settings, Stopwatch
from bench.serving import Server, serving
from bench.sessions import Made, make, sender
from mailboat.agent.report import SessionState
from mailboat.protocol.limits import MAX_SEGMENT, MIB

NAME = "upload"
ABOUT = "upload of one large session, durable (P3)"
REPETITIONS = 7

SEGMENT = 16 * MIB
"""As agents make them by default."""

PIECE = MIB // 2
"""Bytes that the reference hands to aiohttp at a time: neither smaller nor larger ones are faster."""

WINDOW = 600.0
"""Seconds for one upload; far more than any takes."""


PORTABLE = Budget(0.95, Sense.SPEED)
FAST = Budget(1.4, Sense.SPEED)


async def comparisons(settings: Settings) -> AsyncGenerator[Comparison, None]:
    """P3 with a session of many segments, as it is on this system and as it is on any (P3p), and with one of a single
    segment as large as they may be (P3b).
    """
    folder = settings.folder / "many"
    session = make(folder / "session", settings.size, min(SEGMENT, settings.size))
    about = f"one session in segments of 16 MiB, {session.size / MIB:.0f} MiB in all"
    uploads = Uploads(folder, session)
    others = (
        Contender("mailboat, one at a time", uploads.one_at_a_time),
        Contender("mailboat, loading meanwhile", uploads.loading),
    )
    yield _compared("P3", about, uploads, uploads.ours, others, FAST if sys.platform == "linux" else PORTABLE)
    yield _compared("P3p", f"{about}, portably", uploads, uploads.portable, (), PORTABLE)
    shutil.rmtree(folder)
    folder = settings.folder / "one"
    one = min(settings.size, MAX_SEGMENT)
    uploads = Uploads(folder, make(folder / "session", one, one))
    yield _compared("P3b", f"one segment of {one / MIB:.0f} MiB", uploads, uploads.ours, (), None)
    shutil.rmtree(folder)


def _compared(
    row: str,
    about: str,
    uploads: Uploads,
    ours: Callable[[], Awaitable[Measured]],
    others: tuple[Contender, ...],
    budget: Budget | None,
) -> Comparison:
    reference, subject = Contender("aiohttp PUT", uploads.bare), Contender("mailboat", ours)
    return Comparison(row, about, BYTE, Sense.SPEED, reference, subject, others, budget)


class Uploads:
    """The contenders. Each run has a new server, a new store, and an empty queue of the disk."""

    def __init__(self, folder: Path, session: Made) -> None:
        self._folder = folder
        self._session = session

    async def bare(self) -> Measured:
        """The reference."""
        async with self._server("bare") as server, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout()) as client:
            began = await server.cpu()
            with Stopwatch() as watch:
                headers = {"Content-Length": str(self._session.size)}
                async with client.put(f"{server.url}/upload", data=self._pieces(), headers=headers) as response:
                    response.raise_for_status()
            held = (self._folder / "server" / "upload").stat().st_size
            if held != self._session.size:
                raise RuntimeError(f"the reference received {held} of {self._session.size} bytes")
            return self._measured(watch, await server.cpu() - began)

    async def _pieces(self) -> AsyncIterator[bytes]:
        for piece in self._session.pieces(PIECE):
            yield piece

    async def ours(self) -> Measured:
        """The agent as it comes."""
        return await self._ours("receiving")

    async def loading(self) -> Measured:
        """The same, to a server that begins to load the records as soon as they have come."""
        return await self._ours("mailboat")

    async def portable(self) -> Measured:
        """An agent whose system moves no file to a socket, to a server that takes bodies as aiohttp hands them out."""
        refusal = OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        with patch.object(os, "sendfile", side_effect=refusal, create=True):
            return await self._ours("portable")

    async def one_at_a_time(self) -> Measured:
        """The agent sending one segment after the other."""
        return await self._ours("receiving", upload_concurrency=1)

    async def _ours(self, kind: str, **settings: Any) -> Measured:  # noqa: ANN401 - fields of AgentConfig
        async with self._server(kind) as server:
            store = self._folder / "store"
            self._session.put_into(store)
            agent = sender(server.url, server.key, store, **settings)
            async with agent:
                began = await server.cpu()
                with Stopwatch() as watch:
                    report = await agent.force_sync(timeout=WINDOW)
                measured = self._measured(watch, await server.cpu() - began)
            states = {outcome.session_id: outcome.state for outcome in report.sessions}
            if states.get(self._session.session_id) is not SessionState.ACCEPTED or not report.complete:
                raise RuntimeError(f"the session was not delivered: {report}")
            return measured

    def _measured(self, watch: Stopwatch, server: float) -> Measured:
        parts = {"client": watch.cpu, "server": server}
        return Measured(self._session.size, watch.wall, watch.cpu + server, parts)

    @asynccontextmanager
    async def _server(self, kind: str) -> AsyncIterator[Server]:
        gc.collect()
        try:
            async with serving(kind, self._folder / "server") as server:
                os.sync()  # what others have written must not be flushed on this run's time
                yield server
        finally:
            shutil.rmtree(self._folder / "server", ignore_errors=True)
            shutil.rmtree(self._folder / "store", ignore_errors=True)

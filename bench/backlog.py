"""P4: thousands of small sessions that wait, delivered in one window, durable at the server.

The agent runs, and waits for its connectivity window: it has looked into its store, as its start does, and says how
many sessions wait. Then the window opens, and the agent's side is the whole job: it offers the sessions, sends them,
has them confirmed, and notes so in the store. A peer is a *cold start*: an agent that has just begun in a full store,
whose window is open from the first moment on, so that all of its looking is counted, too.

The reference posts the same bodies, read from the same files, by plain aiohttp, 32 at a time, to a handler that keeps a
file and a row for each: as durable as ours, which is a file synced and a row committed before each answer. A peer does
without any sync, for a picture of what the software alone costs.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from bench.harness import SESSION, Budget, Comparison, Contender, Measured, Sense, Settings, Stopwatch
from bench.serving import Server, serving
from bench.sessions import Made, make, sender, waiting_in
from mailboat.agent import Agent
from mailboat.agent.report import SessionState
from mailboat.protocol.limits import KIB

NAME = "backlog"
ABOUT = "thousands of small sessions that wait (P4)"
REPETITIONS = 5

SIZE = 20 * 1000
"""Bytes of each session."""

CONCURRENCY = 32
"""Requests of the reference under way at a time."""

WINDOW = 600.0
"""Seconds for all of them; far more than it takes."""

POLL = 0.01
"""Seconds between two looks at what the agent says of itself, before its window opens."""


async def comparisons(settings: Settings) -> AsyncGenerator[Comparison, None]:
    """P4."""
    folder = settings.folder / "P4"
    made = [make(folder / "sessions" / str(each), SIZE, 64 * KIB, each) for each in range(settings.sessions)]
    backlog = Backlog(folder, made)
    yield Comparison(
        "P4",
        f"{settings.sessions} waiting sessions of {SIZE / 1000:.0f} KB",
        SESSION,
        Sense.SPEED,
        Contender("aiohttp POST each, synced", backlog.posts),
        Contender("mailboat", backlog.ours),
        (
            Contender("aiohttp POST each, not synced", backlog.unsynced_posts),
            Contender("mailboat, cold start", backlog.cold),
            Contender("mailboat, loading meanwhile", backlog.loading),
        ),
        Budget(5.0, Sense.SPEED),
    )
    shutil.rmtree(folder)


class Backlog:
    """The contenders. Each run has a new server, a new store, and an empty queue of the disk."""

    def __init__(self, folder: Path, sessions: Sequence[Made]) -> None:
        self._folder = folder
        self._sessions = sessions

    async def posts(self) -> Measured:
        """The reference."""
        return await self._posts("posts")

    async def unsynced_posts(self) -> Measured:
        """The same, keeping nothing for sure."""
        return await self._posts("unsynced-posts")

    async def _posts(self, kind: str) -> Measured:
        async with self._server(kind) as server, aiohttp.ClientSession() as client:
            began = await server.cpu()
            with Stopwatch() as watch:
                queue = iter(self._sessions)
                async with asyncio.TaskGroup() as group:
                    for _ in range(CONCURRENCY):
                        group.create_task(_post_all(client, server.url, queue))
            return self._measured(watch, await server.cpu() - began)

    async def ours(self) -> Measured:
        """The agent as it comes."""
        return await self._ours("receiving")

    async def cold(self) -> Measured:
        """The same, looking into its store within the window."""
        return await self._ours("receiving", cold=True)

    async def loading(self) -> Measured:
        """The same, to a server that begins to load the records as soon as they have come."""
        return await self._ours("mailboat")

    async def _ours(self, kind: str, *, cold: bool = False) -> Measured:
        async with self._server(kind) as server:
            store = self._folder / "store"
            waiting = waiting_in(store)
            for session in self._sessions:
                session.link_into(waiting)
            agent = sender(server.url, server.key, store)
            async with agent:
                if not cold:
                    await self._looked(agent)
                began = await server.cpu()
                with Stopwatch() as watch:
                    report = await agent.force_sync(timeout=WINDOW)
                measured = self._measured(watch, await server.cpu() - began)
            states = {outcome.session_id: outcome.state for outcome in report.sessions}
            if not report.complete or any(
                states.get(session.session_id) is not SessionState.ACCEPTED for session in self._sessions
            ):
                raise RuntimeError(f"not all sessions were delivered: {report.error}")
            return measured

    async def _looked(self, agent: Agent) -> None:
        """Return when the agent knows what waits."""
        async with asyncio.timeout(WINDOW):
            while agent.status.waiting_sessions < len(self._sessions):  # noqa: ASYNC110 - the agent tells of no event
                await asyncio.sleep(POLL)

    def _measured(self, watch: Stopwatch, server: float) -> Measured:
        return Measured(len(self._sessions), watch.wall, watch.cpu + server, {"client": watch.cpu, "server": server})

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


async def _post_all(client: aiohttp.ClientSession, url: str, queue: Iterator[Made]) -> None:
    for session in queue:
        body = session.paths[0].read_bytes()
        async with client.post(f"{url}/{session.session_id}", data=body) as response:
            response.raise_for_status()

"""P5: what cuts of the connection cost, and how soon bytes flow when the network is back.

*Cuts*: a session goes through a proxy that ends the connection whenever it has carried another MiB, and what it carries
of segments in all is held against the session's bytes: the rest was sent twice. What stands for the time of a run are
those bytes.

*Back*: a session waits and the network is away. It comes back, the application says so (`force_sync`), and what is
measured is the time until the first byte of a segment has come to the proxy: by then the store was looked into, the
session negotiated, and its upload begun. The reference is a bare aiohttp PUT of the same bytes that begins at the same
moment. The budget is 50 ms, not a ratio.
"""

from __future__ import annotations

import asyncio
import fcntl
import shutil
import struct
import termios
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from bench.harness import Budget, Comparison, Contender, Measured, Sense, Settings, Unit
from bench.serving import serving
from bench.sessions import Made, make, sender
from mailboat.agent.report import SyncReport
from mailboat.cli.demo.faults import FaultProxy
from mailboat.cli.demo.meter import Meter, uploaded
from mailboat.protocol.limits import MIB

NAME = "cuts"
ABOUT = "what cuts cost, and how soon bytes flow when the network is back (P5)"
REPETITIONS = 5

EVERY = MIB
"""Bytes between two cuts."""

SEGMENT = 16 * MIB
MOST = 64 * MIB
"""A larger session would only take longer: one cut is as any other."""

WINDOW = 300.0
_LOOK_AGAIN = 0.0005

SENT = Unit("session", "MB", 1e-6)
BACK = Unit("start", "ms", 1e3)


async def comparisons(settings: Settings) -> AsyncGenerator[Comparison, None]:
    """P5."""
    size = min(settings.size, MOST)
    folder = settings.folder / "P5"
    session = make(folder / "session", size, min(SEGMENT, size))
    cuts = _Cuts(folder, session)
    yield Comparison(
        "P5",
        f"{session.size / MIB:.0f} MiB in segments of 16 MiB, cut at every MiB: bytes sent",
        SENT,
        Sense.COST,
        Contender("bytes of the session", cuts.nothing_twice),
        Contender("mailboat", cuts.ours),
        budget=Budget(1.01, Sense.COST),
    )
    back = _Back(folder, session)
    yield Comparison(
        "P5b",
        "from 'the network is back' to the first byte of a segment (budget: 50 ms)",
        BACK,
        Sense.COST,
        Contender("aiohttp PUT", back.bare),
        Contender("mailboat force_sync", back.ours),
    )
    shutil.rmtree(folder)


class _Proxy(FaultProxy):
    """Tells when the first byte of a body has come. A piece counts as carried when the server's machine has it: a cut
    would otherwise discard, in this process's own kernel, what was counted and never sent.
    """

    first: float | None = None

    async def _send_up(self, meter: Meter, writer: asyncio.StreamWriter, piece: bytes) -> None:
        await super()._send_up(meter, writer, piece)
        while not writer.transport.is_closing() and _waiting(writer):  # noqa: ASYNC110 - nobody tells when it is gone
            await asyncio.sleep(_LOOK_AGAIN)
        if self.first is None and (uploaded(self.bodies) or any(method == "PUT" for method, _ in self.bodies)):
            self.first = time.perf_counter()


def _waiting(writer: asyncio.StreamWriter) -> int:
    """Bytes that the other side's kernel has not confirmed."""
    try:
        answer = fcntl.ioctl(writer.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        return 0  # it is over
    return int(struct.unpack("i", answer)[0])


@asynccontextmanager
async def _proxied(kind: str, folder: Path) -> AsyncIterator[tuple[_Proxy, str]]:
    """A server behind a proxy, and the key for it."""
    try:
        async with serving(kind, folder / "server") as server:
            place = urlsplit(server.url)
            async with _Proxy((str(place.hostname), int(place.port or 0))) as proxy:
                yield proxy, server.key
    finally:
        shutil.rmtree(folder / "server", ignore_errors=True)
        shutil.rmtree(folder / "store", ignore_errors=True)


async def _delivered(
    folder: Path, session: Made, proxy: _Proxy, key: str, begin: Callable[[], Awaitable[None]]
) -> None:
    """Have an agent deliver the session through the proxy, from when `begin` returns."""
    store = folder / "store"
    session.put_into(store)
    agent = sender(proxy.url, key, store)
    async with agent:
        await begin()
        report: SyncReport = await agent.force_sync(timeout=WINDOW)
    if not report.complete:
        raise RuntimeError(f"the session was not delivered: {report.error}")


class _Cuts:
    """The session's bytes, and what is sent of them."""

    def __init__(self, folder: Path, session: Made) -> None:
        self._folder, self._session = folder, session

    async def nothing_twice(self) -> Measured:
        """The reference."""
        return Measured(1, self._session.size, 0.0)

    async def ours(self) -> Measured:
        """The agent."""
        async with _proxied("receiving", self._folder) as (proxy, key):

            async def begin() -> None:
                proxy.cut_after(*range(EVERY, 4 * self._session.size, EVERY))

            await _delivered(self._folder, self._session, proxy, key, begin)
            if len(proxy.cuts) < self._session.size // EVERY - 1:
                raise RuntimeError(f"the connection was cut only {len(proxy.cuts)} times")
            return Measured(1, uploaded(proxy.bodies), 0.0)


class _Back:
    """How long it takes until something comes."""

    def __init__(self, folder: Path, session: Made) -> None:
        self._folder, self._session = folder, session

    async def bare(self) -> Measured:
        """The reference."""
        async with _proxied("bare", self._folder) as (proxy, _), aiohttp.ClientSession() as client:
            await proxy.close()
            began = await self._open(proxy)
            async with client.put(f"{proxy.url}/upload", data=self._session.paths[0].open("rb")) as response:
                response.raise_for_status()
            return self._measured(proxy, began)

    async def ours(self) -> Measured:
        """The agent."""
        async with _proxied("receiving", self._folder) as (proxy, key):
            await proxy.close()
            began = 0.0

            async def begin() -> None:
                nonlocal began
                began = await self._open(proxy)

            await _delivered(self._folder, self._session, proxy, key, begin)
            return self._measured(proxy, began)

    async def _open(self, proxy: _Proxy) -> float:
        await proxy.open()
        return time.perf_counter()

    def _measured(self, proxy: _Proxy, began: float) -> Measured:
        if proxy.first is None:
            raise RuntimeError("no byte has come")
        return Measured(1, proxy.first - began, 0.0)

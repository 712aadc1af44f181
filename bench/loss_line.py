"""The network of the loss benchmark: a line that is cut, slow or held, and a collector for the peers' events.

All contenders go over the same line, and none is told of it. The collector takes whatever is posted to it, answers as
each of them expects, and counts the events in it by their number.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import re
import zlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from aiohttp import web

from bench.loss_hosts import ID

READ = 64 * 1024
_NUMBER = re.compile(rf'"{ID}"\s*:\s*"?(\d+)'.encode())
_LARGEST = 64 * 1024 * 1024


@dataclass
class Line:
    """Passes connections on to a port of this machine, as `down`, `delay` and `held` say."""

    to: int
    down: bool = False
    """New connections are reset."""
    delay: float = 0.0
    """Seconds before anything that the server says comes through."""
    url: str = ""
    _free: asyncio.Event = field(default_factory=asyncio.Event)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def cut(self) -> None:
        """The network is gone, for what is under way, too."""
        self.down = True
        for writer in tuple(self._writers):
            writer.transport.abort()

    def hold(self) -> None:
        """What the server says does not come through until `release`."""
        self._free.clear()

    def release(self) -> None:
        """The end of `hold`."""
        self._free.set()

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with contextlib.suppress(OSError):
            if self.down:
                return writer.transport.abort()
            theirs, ours = await asyncio.open_connection("127.0.0.1", self.to)
            both = {writer, ours}
            self._writers |= both
            try:
                back = asyncio.create_task(self._copy(theirs, writer, back=True))
                await self._copy(reader, ours, back=False)
                await back
            finally:
                self._writers -= both
                for each in both:
                    each.transport.abort()
        return None

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, back: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(READ):
                if back:
                    await asyncio.sleep(self.delay)
                    await self._free.wait()
                writer.write(piece)
                await writer.drain()
            writer.write_eof()


@asynccontextmanager
async def line_to(url: str) -> AsyncIterator[Line]:
    """A line to the server at `url`."""
    port = urlsplit(url).port
    if port is None:
        raise ValueError(f"{url} names no port")
    line = Line(port)
    line.release()
    server = await asyncio.start_server(line.pass_on, "127.0.0.1", 0)
    line.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield line
    finally:
        server.close()
        line.cut()


@asynccontextmanager
async def collecting(seen: Counter[int]) -> AsyncIterator[str]:
    """A collector that counts in `seen` how often each event has come; its URL."""

    async def take(request: web.Request) -> web.Response:
        body = _unpacked(await request.read(), request.headers.get("Content-Encoding", ""))
        seen.update(int(number) for number in _NUMBER.findall(body))
        return web.json_response({"status": 1, "id": "0" * 32})

    app = web.Application(client_max_size=_LARGEST)
    app.router.add_route("*", "/{path:.*}", take)
    runner = web.AppRunner(app, auto_decompress=False, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def _unpacked(body: bytes, encoding: str) -> bytes:
    if encoding == "gzip":
        return gzip.decompress(body)
    return zlib.decompress(body) if encoding == "deflate" else body

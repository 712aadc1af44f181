"""The way from one agent to the server in virtual time: requests that arrive, are cut, lost, or met by a portal."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

import aiohttp

from mailboat.agent.http import SILENCE_TIMEOUT, Answer, Body, Http
from mailboat.agent.stretch import Stretch
from mailboat.protocol.limits import MAX_REPLY
from mailboat.protocol.uploads.decisions import BodyEnd
from testkit.simserver import OURS, SimServer
from testkit.uploads import Transfer

BASE: Final = "http://server.example"
PORTAL: Final = Answer(200, {"content-type": "text/html"}, b"<title>Welcome</title>")


@dataclass
class Line:
    """What the network is like now. `loss`: the share of requests that a broken connection ends, at any moment."""

    draw: random.Random
    up: bool = True
    portal: bool = False
    silent: bool = False
    loss: float = 0.0
    latency: float = 0.05
    bandwidth: float = 100_000.0

    async def cross(self) -> None:
        """One way, or as far as one gets."""
        await asyncio.sleep(self.latency * self.draw.random())
        if self.silent:
            await asyncio.sleep(SILENCE_TIMEOUT)
            raise TimeoutError("nothing was heard of the server")
        if not self.up or self.draw.random() < self.loss:
            raise aiohttp.ClientConnectionError("the line is down")


@dataclass
class Seen:
    """What an agent sent: bodies of requests by moment, and whether any of it came at a forbidden time."""

    pieces: list[tuple[float, int]] = field(default_factory=list)
    bodies: list[tuple[float, int]] = field(default_factory=list)
    requests: int = 0
    forbidden: list[str] = field(default_factory=list)


class SimHttp(Http):
    """The agent's requests over a `Line`. `allowed` says why a request may not begin now, if so."""

    def __init__(self, server: SimServer, line: Line, seen: Seen) -> None:
        self._base = BASE
        self._server, self._line, self._seen = server, line, seen
        self.paused = False
        self.window_open = 0

    async def close(self) -> None:
        pass

    async def request(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        body: bytes | Body | Stretch | None = None,
        limit: int = MAX_REPLY,
    ) -> Answer:
        content = body.copied if isinstance(body, Stretch) else body
        self._seen.requests += 1
        if self.paused and not self.window_open:
            self._seen.forbidden.append(f"{method} {url}")
        loop = asyncio.get_running_loop()
        self._seen.bodies.append((loop.time(), 0))
        await self._line.cross()
        if self._line.portal:
            return PORTAL
        failure = self._server.failure()
        if failure is not None:
            return failure
        path = url.removeprefix(BASE)
        if path == "/v1/status":
            answer = Answer(200, dict(OURS), b"{}")
        elif path == "/v1/negotiate":
            answer = self._server.negotiate(await self._whole(content))
        else:
            answer = await self._upload(method, path, headers, content)
        await self._line.cross()
        return answer

    async def _whole(self, body: bytes | Body | None) -> bytes:
        assert body is not None
        assert not isinstance(body, bytes)
        content = bytearray()
        async with aclosing(body) as pieces:
            async for piece in pieces:
                await self._carry(len(piece))
                content += piece
        return bytes(content)

    async def _carry(self, count: int) -> None:
        at, so_far = self._seen.bodies[-1]
        self._seen.bodies[-1] = (at, so_far + count)
        self._seen.pieces.append((asyncio.get_running_loop().time(), count))
        await asyncio.sleep(count / self._line.bandwidth)
        if not self._line.up or self._line.draw.random() < self._line.loss / 4:
            raise aiohttp.ClientConnectionError("the line broke")

    async def _upload(self, method: str, path: str, headers: dict[str, str], body: bytes | Body | None) -> Answer:
        begun = self._server.begin(method, path, headers)
        if isinstance(begun, Transfer):
            await self._transfer(begun, body)
            begun = begun.end()
        return Answer(
            begun.status, {**OURS, **{name.lower(): text for name, text in begun.headers.items()}}, begun.body
        )

    async def _transfer(self, transfer: Transfer, body: bytes | Body | None) -> None:
        life, whole = self._server.started, False
        assert not isinstance(body, bytes)
        try:
            if body is not None:
                async for piece in body:
                    await self._carry(len(piece))
                    self._server.received += len(piece)
                    if not self._server.knows(transfer, life):
                        raise aiohttp.ServerDisconnectedError
                    transfer.feed(bytes(piece))
            whole = True
        finally:
            if body is not None:
                await body.aclose()
            if not whole and self._server.knows(transfer, life) and not transfer.over:
                transfer.end(BodyEnd.CUT)

"""P5t: how soon a newer request is answered while an older append on the same upload stalls.

A client whose connection died asks for the offset, or goes on, while the server still waits for the dead one: it takes
what has reached it, makes that durable, and answers. One run does it `ROUNDS` times, on a new upload each time, and
what stands for its time is the median of them (P5t) or the slowest (P5tw). The reference is the same question of an
upload that nobody sends to. The budget is 50 ms, not a ratio.

*Large* bodies are taken from the socket by a thread, small ones by aiohttp; of both half has come.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from urllib.parse import urlsplit

import aiohttp

from bench.harness import Comparison, Contender, Measured, Sense, Settings, Unit
from bench.serving import Server, serving
from mailboat.protocol.limits import KIB, MIB

NAME = "takeover"
ABOUT = "how soon a newer request takes over from a stalled append"
REPETITIONS = 5

ROUNDS = 40
"""Takeovers of one run: two hundred in the repetitions of a measurement."""

SMALL = 256 * KIB
LARGE = 8 * MIB

ANSWER = Unit("answer", "ms", 1e3)
Choice = Callable[[Sequence[float]], float]
_PLACE = "/v1/uploads"
_STALL = 0.02
"""Seconds for which nothing comes, before the newer request: the server has taken all there was."""


async def comparisons(settings: Settings) -> AsyncGenerator[Comparison, None]:
    """P5t and P5tw."""
    rounds = max(1, min(ROUNDS, settings.calls // 100))
    for row, of, choose in (("P5t", "median", statistics.median), ("P5tw", "slowest", max)):
        async with serving("receiving", settings.folder / row) as server, aiohttp.ClientSession() as http:
            made = _Takeovers(server, http, rounds, choose)
            yield Comparison(
                row,
                f"a newer request while an append stalls, the {of} of {rounds} (budget: 50 ms)",
                ANSWER,
                Sense.COST,
                Contender("HEAD of an idle upload", made.run("HEAD", 0)),
                Contender("HEAD, small body", made.run("HEAD", SMALL)),
                (
                    Contender("HEAD, large body", made.run("HEAD", LARGE)),
                    Contender("PATCH, small body", made.run("PATCH", SMALL)),
                    Contender("PATCH, large body", made.run("PATCH", LARGE)),
                ),
            )
        shutil.rmtree(settings.folder / row)


class _Takeovers:
    """The contenders, on one server."""

    def __init__(self, server: Server, http: aiohttp.ClientSession, rounds: int, choose: Choice) -> None:
        self._server, self._http, self._rounds, self._choose = server, http, rounds, choose
        self._headers = {"Authorization": f"Bearer {server.key}", "Upload-Draft-Interop-Version": "9"}

    def run(self, method: str, size: int) -> Callable[[], Awaitable[Measured]]:
        """Take over by `method` from appends of `size` bytes that have stalled; from none if that is zero."""

        async def run() -> Measured:
            began = await self._server.cpu()
            taken = [await self._once(method, os.urandom(size)) for _ in range(self._rounds)]
            return Measured(1, self._choose(taken), (await self._server.cpu() - began) / self._rounds)

        return run

    async def _once(self, method: str, body: bytes) -> float:
        _, made = await self._ask("POST", _PLACE, {"Upload-Complete": "?0"})
        path, sent = made["Location"], len(body) // 2
        older = await self._stall(path, body, sent) if body else None
        headers, rest = {}, b""
        if method == "PATCH":
            rest = body[sent : sent + KIB]
            headers = {
                "Content-Type": "application/partial-upload",
                "Upload-Complete": "?0",
                "Upload-Offset": str(sent),
            }
        began = time.perf_counter()
        status, told = await self._ask(method, path, headers, rest)
        taken = time.perf_counter() - began
        if (status, told["Upload-Offset"]) != (204, str(sent + len(rest))):
            raise RuntimeError(f"{method} took over at {told['Upload-Offset']} with {status}, {sent} bytes were sent")
        if older is not None:
            older.close()
        await self._ask("DELETE", path, {})
        return taken

    async def _stall(self, path: str, body: bytes, sent: int) -> asyncio.StreamWriter:
        """An append of all of `body` of which nothing comes after `sent` bytes."""
        place = urlsplit(self._server.url)
        _, writer = await asyncio.open_connection(place.hostname, place.port)
        said = {
            **self._headers,
            "Host": place.netloc,
            "Content-Type": "application/partial-upload",
            "Content-Length": str(len(body)),
            "Upload-Offset": "0",
            "Upload-Complete": "?1",
        }
        lines = [f"PATCH {path} HTTP/1.1", *(f"{name}: {value}" for name, value in said.items())]
        writer.transport.set_write_buffer_limits(0)
        writer.write("\r\n".join([*lines, "", ""]).encode("ascii") + body[:sent])
        await writer.drain()
        await asyncio.sleep(_STALL)
        return writer

    async def _ask(
        self, method: str, path: str, headers: dict[str, str], body: bytes = b""
    ) -> tuple[int, dict[str, str]]:
        sent = self._headers | headers
        async with self._http.request(method, self._server.url + path, data=body or None, headers=sent) as answer:
            return answer.status, dict(answer.headers)

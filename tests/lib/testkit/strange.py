"""A server that answers as a test says, byte by byte if need be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ssl import SSLContext

from mailboat.protocol import wire
from mailboat.protocol.negotiation import SERVER_HEADER, Decision, Policy, Reply, Request

NEGOTIATE = "/v1/negotiate"


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def offers(self) -> Request:
        """The negotiation in it."""
        return Request.decode(wire.decompress(self.body))


Answer = Callable[[Asked, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Strange:
    """A strange server: what it was asked, and how it answers; `answer` may be changed at any time."""

    answer: Answer
    port: int = 0
    scheme: str = "http"
    reads_bodies: bool = True
    asked: list[Asked] = field(default_factory=list)
    came: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    async def been_asked(self, times: int, method: str = "", path: str = "") -> None:
        """Return when so many such requests have come."""

        def enough() -> bool:
            return sum(method in each.method and path in each.path for each in self.asked) >= times

        async with self.came:
            await self.came.wait_for(enough)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                asked = await self._read(reader)
                self.asked.append(asked)
                async with self.came:
                    self.came.notify_all()
                await self.answer(asked, writer)
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> Asked:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ", 2)
        headers = {name.strip().lower(): text.strip() for name, _, text in (line.partition(":") for line in head[1:])}
        whole = self.reads_bodies or path == NEGOTIATE
        body = await reader.readexactly(int(headers.get("content-length", 0))) if whole else b""
        return Asked(method, path, headers, body)


@asynccontextmanager
async def strange(answer: Answer, port: int = 0, tls: SSLContext | None = None) -> AsyncIterator[Strange]:
    """A server on loopback that answers each request on a connection of its own; over TLS if it is given how."""
    made = Strange(answer, scheme="http" if tls is None else "https")
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(made.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", port, ssl=tls)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def http(status: int, body: bytes = b"", *, ours: bool = True, **headers: str) -> bytes:
    """A whole answer; header names are given with underscores."""
    fields = {name.replace("_", "-"): text for name, text in headers.items()}
    fields = {"Content-Length": str(len(body)), "Connection": "close", **fields}
    if ours:
        fields[SERVER_HEADER] = "0.1.0"
    lines = [f"HTTP/1.1 {status} As Told", *(f"{name}: {text}" for name, text in fields.items()), "", ""]
    return "\r\n".join(lines).encode() + body


def saying(content: bytes) -> Answer:
    """The same bytes to everybody."""

    async def answer(_: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(content)
        await writer.drain()

    return answer


async def silence(_: Asked, writer: asyncio.StreamWriter) -> None:
    """No answer, ever."""
    await asyncio.Event().wait()


def then_silence(content: bytes) -> Answer:
    """The beginning of an answer, and nothing more."""

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await saying(content)(asked, writer)
        await silence(asked, writer)

    return answer


def replied(decisions: Iterable[Decision], policy: Policy | None = None) -> bytes:
    """The answer to a negotiation."""
    body = Reply(tuple(decisions), policy=policy or Policy()).encode()
    return http(200, body, Content_Type=wire.MSGPACK_MEDIA_TYPE)

"""Our upload client delivers to @tus/server, through cuts and kills of it; nothing acknowledged is sent again."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import aiohttp
import pytest

from mailboat.protocol.uploads.client import UploadClient
from mailboat.protocol.uploads.outcomes import Completed
from mailboat.protocol.uploads.retry import Backoff
from mailboat.protocol.uploads.tasks import Done, Failed, Source, Wait
from mailboat.protocol.uploads.tus_client import TusDialect
from mailboat.protocol.uploads.values import Append, Create, Query
from testkit.lines import line_to
from testkit.peers import TusNode

CUTS = (150_000, 200_000, 100_000)
METADATA = {"session": "0190a000-0000-7000-8000-000000000000", "segment": "0", "product": "Acme Studio"}


@dataclass
class Pump:
    """Carries out what an `UploadClient` wants, over aiohttp; pauses are skipped, their number counts."""

    client: UploadClient
    content: bytes
    sent: list[tuple[int, int]] = field(default_factory=list)
    pauses: int = 0

    async def run(self, until: int | None = None) -> None:
        """Go on to the end, or until so many bytes are acknowledged."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as http:
            while until is None or self.client.offset < until:
                task = self.client.next_task(0.0)
                if isinstance(task, Done | Failed):
                    return
                if isinstance(task, Wait):
                    self.pauses += 1
                    assert self.pauses < 50
                    self.client.wake()
                    continue
                assert isinstance(task, Create | Query | Append)
                await self.carry_out(http, task)

    async def carry_out(self, http: aiohttp.ClientSession, task: Create | Query | Append) -> None:
        request = self.client.request(task)
        body = b""
        if isinstance(task, Append):
            body = self.content[task.offset : task.offset + (task.content_length or 0)]
            self.sent.append((task.offset, self.client.offset))
        try:
            async with http.request(
                request.method, request.url, headers=request.headers, data=body, allow_redirects=False
            ) as response:
                answer = await response.read()
                self.client.responded(response.status, response.headers, answer, now=0.0, wall=0.0, entropy=0.0)
        except aiohttp.ClientError:
            self.client.broken(now=0.0, entropy=0.0)


def uploader(url: str, content: bytes, resource: str | None = None, sealed: int | None = None) -> UploadClient:
    source = Source(len(content), sealed=True) if sealed is None else Source(sealed, sealed=False)
    return UploadClient(
        TusDialect(METADATA), source, target=url, resource=resource, append_bytes=300_000, backoff=Backoff(limit=20)
    )


def stored(node: TusNode, client: UploadClient) -> bytes:
    assert client.resource is not None
    return (node.data / client.resource.rpartition("/")[2]).read_bytes()


@pytest.mark.parametrize("accident", ["none", "cut", "kill"])
async def test_delivery(node: TusNode, content: bytes, accident: str) -> None:
    on_cut = node.kill_and_restart if accident == "kill" else None
    async with line_to(node.port, [] if accident == "none" else list(CUTS), on_cut) as line:
        pump = Pump(uploader(f"{line.url}/files", content), content)
        await pump.run()
        assert line.cuts_left == 0
    assert pump.client.outcome == Completed(len(content))
    assert await asyncio.to_thread(stored, node, pump.client) == content
    assert all(offset == acknowledged for offset, acknowledged in pump.sent)


async def test_another_client_goes_on_after_its_kill(node: TusNode, content: bytes) -> None:
    async with line_to(node.port) as line:
        first = Pump(uploader(f"{line.url}/files", content), content)
        await first.run(until=600_000)
        await node.kill_and_restart()
        second = Pump(uploader(f"{line.url}/files", content, first.client.resource), content)
        await second.run()
    assert second.sent[0][0] == 600_000
    assert second.client.outcome == Completed(len(content))
    assert await asyncio.to_thread(stored, node, second.client) == content


async def test_a_file_that_still_grows(node: TusNode, content: bytes) -> None:
    """Its length is deferred, and told when it is sealed; here with not a byte left to send."""
    async with line_to(node.port) as line:
        pump = Pump(uploader(f"{line.url}/files", content, sealed=400_000), content)
        await pump.run(until=400_000)
        pump.client.grown(Source(len(content), sealed=False))
        await pump.run(until=len(content))
        pump.client.grown(Source(len(content), sealed=True))
        await pump.run()
    assert pump.client.outcome == Completed(len(content))
    assert await asyncio.to_thread(stored, node, pump.client) == content

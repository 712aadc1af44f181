"""A stretch of a file as a body: moved by the kernel where it can, copied where it cannot, exact in both cases."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import ClientError, web

from mailboat.agent.http import Http
from mailboat.agent.stretch import Stretch
from mailboat.protocol.limits import MIB
from testkit.serverkit import eventually

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no sendfile")

SIZE = 9 * MIB + 4321


@dataclass
class Receiver:
    """Takes bodies, in its own time: `go` lets it begin."""

    go: asyncio.Event = field(default_factory=asyncio.Event)
    got: bytearray = field(default_factory=bytearray)
    began: asyncio.Event = field(default_factory=asyncio.Event)

    async def put(self, request: web.Request) -> web.Response:
        self.began.set()
        await self.go.wait()
        async for piece in request.content.iter_any():
            self.got += piece
        return web.Response(status=204)


@asynccontextmanager
async def listening(receiver: Receiver) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_put("/", receiver.put)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@dataclass
class Told:
    """What a stretch has told of itself."""

    taken: int = 0
    failures: list[OSError | EOFError] = field(default_factory=list)
    copies: int = 0
    some: asyncio.Event = field(default_factory=asyncio.Event)

    def stretch(self, fd: int, offset: int, length: int, executor: ThreadPoolExecutor, content: bytes) -> Stretch:
        def taken(count: int) -> None:
            self.taken += count
            self.some.set()

        async def copied() -> AsyncGenerator[bytes, None]:
            self.copies += 1
            yield content

        return Stretch(fd, offset, length, executor, taken, self.failures.append, copied())


@asynccontextmanager
async def sending(
    tmp_path: Path, receiver: Receiver, file: int | None = None
) -> AsyncIterator[tuple[Http, str, int, bytes, ThreadPoolExecutor]]:
    """An agent's HTTP, the server's URL, and a file with its content."""
    content = os.urandom(SIZE)
    (tmp_path / "file").write_bytes(content)
    fd = os.open(tmp_path / "file", os.O_RDONLY) if file is None else file
    with ThreadPoolExecutor(1) as executor:
        async with listening(receiver) as url:
            http = Http(url, "key", "test")
            try:
                yield http, f"{url}/", fd, content, executor
            finally:
                await http.close()
                executor.submit(os.close, fd)


async def put(http: Http, url: str, stretch: Stretch) -> int:
    return (await http.request("PUT", url, {"Content-Length": str(stretch.length)}, stretch)).status


async def test_the_very_bytes_arrive_without_a_copy(tmp_path: Path) -> None:
    receiver, told = Receiver(), Told()
    async with sending(tmp_path, receiver) as (http, url, fd, content, executor):
        # The receiver begins when the socket has been filled: the stretch has to wait for it.
        sent = asyncio.create_task(put(http, url, told.stretch(fd, 1234, SIZE - 2000, executor, b"")))
        await receiver.began.wait()
        await told.some.wait()
        assert told.taken < SIZE - 2000
        receiver.go.set()
        assert await sent == 204
        assert bytes(receiver.got) == content[1234 : SIZE - 766]
        assert (told.taken, told.copies, told.failures) == (SIZE - 2000, 0, [])
        # The connection goes on being used.
        receiver.got.clear()
        assert await put(http, url, told.stretch(fd, 0, 10, executor, b"")) == 204
        assert bytes(receiver.got) == content[:10]


async def test_a_file_that_is_shorter_is_told_as_what_it_is(tmp_path: Path) -> None:
    receiver, told = Receiver(), Told()
    receiver.go.set()
    async with sending(tmp_path, receiver) as (http, url, fd, _, executor):
        with pytest.raises(ClientError):
            await put(http, url, told.stretch(fd, SIZE - 100, 200, executor, b""))
    assert [type(error) for error in told.failures] == [EOFError]
    assert told.copies == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the file that cannot be moved is Linux's")
async def test_what_cannot_be_moved_is_copied(tmp_path: Path) -> None:
    generated = os.open("/proc/self/status", os.O_RDONLY)  # Linux refuses to move bytes from such a file
    receiver, told = Receiver(), Told()
    receiver.go.set()
    async with sending(tmp_path, receiver, generated) as (http, url, fd, content, executor):
        assert await put(http, url, told.stretch(fd, 0, SIZE, executor, content)) == 204
    assert bytes(receiver.got) == content
    assert (told.copies, told.failures) == (1, [])


async def test_cancelled_halfway_it_lets_go_of_the_socket(tmp_path: Path) -> None:
    receiver, told = Receiver(), Told()
    async with sending(tmp_path, receiver) as (http, url, fd, _, executor):
        before = descriptors()
        sent = asyncio.create_task(put(http, url, told.stretch(fd, 0, SIZE, executor, b"")))
        await receiver.began.wait()
        sent.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sent
        await http.close()
        receiver.go.set()
        await eventually(lambda: descriptors() <= before)


def descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))

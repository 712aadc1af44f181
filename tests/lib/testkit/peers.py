"""A server process that real peers upload to, behind a line that is cut, or the server killed, on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from mailboat.server.blobs import LocalBlobs
from testkit.lines import Line, line_to
from testkit.serverkit import ServerProcess, wired

PEERS = Path(__file__).parents[2] / "conformance" / "peers"
"""The folder of the programs of peers in other languages."""


@dataclass
class Target:
    """A server process behind a line that is cut."""

    data: Path
    key: str
    process: ServerProcess
    line: Line | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    @property
    def endpoint(self) -> str:
        assert self.line is not None
        return f"{self.line.url}/v1/uploads"

    async def kill_and_restart(self) -> None:
        await self.process.kill()
        self.process = await ServerProcess.start(self.data, self.process.port)

    @asynccontextmanager
    async def behind(self, accident: str, *cuts: int) -> AsyncIterator[None]:
        """Reach it by a line that meets with the accident ("none", "cut", "kill") after so many bytes each."""
        on_cut = self.kill_and_restart if accident == "kill" else None
        async with line_to(self.process.port, [] if accident == "none" else list(cuts), on_cut) as line:
            self.line = line
            yield
            assert line.cuts_left == 0, "the accident did not happen"
            self.line = None

    async def holds(self, url: str, content: bytes) -> None:
        """Check that the upload at `url` is complete and has these bytes."""
        path = url[url.index("/v1/uploads") :]
        async with wired(self.process.url, self.key) as client:
            head = await client.ask("HEAD", path, Upload_Draft_Interop_Version="9")
            assert (head.status, head.offset, head.complete) == (204, len(content), True)
        blob = LocalBlobs(self.data / "segments").path(path.rpartition("/")[2])
        assert await asyncio.to_thread(blob.read_bytes) == content

    async def asked(self, method: str, url: str, **headers: str) -> dict[str, str]:
        """The header fields of an answer."""
        async with wired(self.process.url, self.key) as client:
            answer = await client.ask(method, url[url.index("/v1/uploads") :], data=None, **headers)
            return answer.headers


@dataclass
class TusNode:
    """@tus/server in a process of its own."""

    npm_folder: Path
    data: Path
    port: int = 0
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        program = PEERS / "serve.cjs"
        self.process = await asyncio.create_subprocess_exec(
            "node",
            str(program),
            str(self.npm_folder),
            str(self.data),
            str(self.port),
            stdout=asyncio.subprocess.PIPE,
        )
        assert self.process.stdout is not None
        said = (await self.process.stdout.readline()).decode()
        assert said.startswith("listening on "), said
        self.port = int(said.rpartition(" ")[2])

    async def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        await self.process.communicate()

    async def kill_and_restart(self) -> None:
        await self.kill()
        await self.start()

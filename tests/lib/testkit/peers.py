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

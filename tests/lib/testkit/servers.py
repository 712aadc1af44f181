"""Servers for tests of the whole: a real one in a process of its own, and what it can give back."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from mailboat.protocol.limits import MAX_SEGMENT
from mailboat.server.blobs import LocalBlobs
from mailboat.server.catalog import Role
from mailboat.server.folder import BLOBS_FOLDER
from mailboat.server.keys import create_key
from testkit.serverkit import PRODUCT, ServerProcess

PAGE = 5000


@dataclass
class Given:
    """What a server can give back, through its JSON API and, for the bytes, from its folder."""

    url: str
    data: Path
    http: aiohttp.ClientSession
    admin: str

    async def received(self) -> int:
        """Bytes of segments received in all appends since the server was started, by its own count."""
        key = {"Authorization": f"Bearer {self.admin}"}
        async with self.http.get(f"{self.url}/metrics", headers=key) as response:
            assert response.status == 200, await response.text()
            counts = dict(line.split() for line in (await response.text()).splitlines() if line.count(" ") == 1)
        return int(counts.get("mailboat_bytes_received_total", 0))

    async def held(self) -> int:
        """Bytes of segments that it has, of all sessions."""
        return sum(int(session["bytes"]) for session in (await self.sessions()).values())

    async def get(self, path: str, **query: str | int) -> dict[str, Any]:
        async with self.http.get(f"{self.url}/api/v1/{path}", params=query) as response:
            assert response.status == 200, f"{path}: {response.status} {await response.text()}"
            answer: dict[str, Any] = await response.json()
            return answer

    async def sessions(self) -> dict[str, dict[str, Any]]:
        """All sessions of the product, by id."""
        found: dict[str, dict[str, Any]] = {}
        query: dict[str, str | int] = {"origin": "all", "limit": 500}
        while True:
            page = await self.get("sessions", **query)
            for session in page["sessions"]:
                assert session["session"] not in found, f"session {session['session']} is listed twice"
                found[session["session"]] = session
            if page["next"] is None:
                return found
            query["cursor"] = page["next"]

    async def records(self, session_id: str) -> list[dict[str, Any]]:
        """All records of a session, which must be without gaps."""
        found: list[dict[str, Any]] = []
        query: dict[str, str | int] = {"limit": PAGE}
        while True:
            page = await self.get(f"sessions/{session_id}/records", **query)
            assert page["gaps"] == []
            found += page["records"]
            if page["next"] is None:
                return found
            query["cursor"] = page["next"]

    async def segments(self, session_id: str) -> list[bytes]:
        """The bytes of a session's segments, in order."""
        answer = await self.get(f"sessions/{session_id}")
        rows = sorted(answer["segments"], key=lambda row: int(row["index"]))
        return [await asyncio.to_thread(self._blob, row["upload_id"]) for row in rows]

    def _blob(self, upload_id: str) -> bytes:
        return LocalBlobs(self.data / BLOBS_FOLDER).read(upload_id, 0, MAX_SEGMENT)


@asynccontextmanager
async def given_by(url: str, data: Path) -> AsyncIterator[Given]:
    """What the server at `url`, with its data there, gives to a reader of the product."""
    reader = await asyncio.to_thread(create_key, data, PRODUCT, Role.READER)
    admin = await asyncio.to_thread(create_key, data, None, Role.ADMIN)
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {reader}"}) as http:
        yield Given(url, data, http, admin)


@dataclass
class Served:
    """A server in a process of its own, which may be killed and started anew at the same address."""

    process: ServerProcess
    key: str

    @property
    def url(self) -> str:
        return self.process.url

    @property
    def data(self) -> Path:
        return self.process.data

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.process.port)

    async def kill_and_restart(self) -> None:
        """Kill -9, then the same again on the same folder and port."""
        await self.process.kill()
        self.process = await ServerProcess.start(self.data, self.process.port)


@asynccontextmanager
async def served(data: Path) -> AsyncIterator[Served]:
    """A server with a key of an agent; at the end it is stopped, and must end well."""
    key = await asyncio.to_thread(create_key, data, PRODUCT)
    made = Served(await ServerProcess.start(data), key)
    try:
        yield made
    except BaseException:
        await made.process.kill()
        raise
    assert await made.process.stop() == 0


def show(line: str) -> None:
    """A measurement, for whoever runs the test with ``-s``; nothing is asserted of it."""
    sys.stdout.write(f"\n{line}\n")


def stored(store: Path, session_id: str) -> list[bytes]:
    """The bytes of a session's segments in an agent's store, whatever folder they are in."""
    return [path.read_bytes() for path in sorted(store.glob(f"**/{session_id}/*.zst"))]


def digests(segments: list[bytes]) -> list[str]:
    """For comparisons whose failure can be read."""
    return [f"{len(each)}:{hashlib.sha256(each).hexdigest()[:16]}" for each in segments]

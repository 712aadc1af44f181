"""What the server gives back, through its JSON API and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import aiohttp

from mailboat.cli.demo.compare import Given

_API: Final = "/api/v1/sessions"
_PAGE: Final = 5000
_PAUSE: Final = 0.1
_PATIENCE: Final = 20.0
"""Seconds that the server has to load what it received into its reports; it promises ten."""


@dataclass(frozen=True, slots=True)
class Collected:
    """The records by session, the bytes of segments that held them, and the number of records in the reports."""

    records: Mapping[str, Sequence[Given]]
    size: int
    reported: int

    @property
    def given(self) -> int:
        """Records given back in all."""
        return sum(map(len, self.records.values()))


class Api:
    """The reading side of a server."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        """`session` has the server's address and a reader's key."""
        self._session = session

    async def get(self, path: str, **query: str | int) -> dict[str, Any]:
        """The JSON object at `path`; `aiohttp.ClientError` when there is none."""
        async with self._session.get(path, params=query) as response:
            response.raise_for_status()
            found: dict[str, Any] = await response.json()
            return found

    async def pages(self, path: str, member: str, limit: int) -> AsyncIterator[dict[str, Any]]:
        """The objects in the list `member`, of all pages."""
        query: dict[str, str | int] = {"limit": limit}
        while True:
            page = await self.get(path, **query)
            for each in page[member]:
                yield each
            if page["next"] is None:
                return
            query["cursor"] = page["next"]


async def collect(address: tuple[str, int], key: str) -> Collected:
    """Everything that the server at `address` has, once its reports count it too, or should by all means.

    Raises `aiohttp.ClientError` when the server does not answer as it should.
    """
    host, port = address
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(f"http://{host}:{port}", headers=headers) as session:
        api = Api(session)
        records: dict[str, Sequence[Given]] = {}
        size = 0
        async for found in api.pages(_API, "sessions", limit=100):
            path = f"{_API}/{found['session']}/records"
            records[found["session"]] = [Given.of(record) async for record in api.pages(path, "records", _PAGE)]
            size += found["bytes"]
        collected = Collected(records, size, 0)
        return replace(collected, reported=await _reported(api, collected.given))


async def _reported(api: Api, expected: int) -> int:
    """The records in the server's reports; asked again until there are as many as expected, or more."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + _PATIENCE
    while True:
        found = sum((await api.get("/api/v1/overview"))["records"].values())
        if found >= expected or clock() > deadline:
            return int(found)
        await asyncio.sleep(_PAUSE)

"""A server process: its first start, its end, and its end by kill -9 at any moment."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from mailboat.protocol import StoreError
from mailboat.server import ServerConfig
from mailboat.server.blobs import LocalBlobs
from mailboat.server.catalog import Role, SessionQuery
from mailboat.server.context import CATALOG
from mailboat.server.keys import create_key
from mailboat.server.serving import first_keys, running
from mailboat.server.sqlite_catalog import SqliteCatalog
from mailboat.server.upkeep import check_folder
from testkit.serverkit import (
    PRODUCT,
    RawAppend,
    ServerProcess,
    Wire,
    fresh_session_id,
    make_segment,
    of_product,
    summary_of,
    wired,
)
from testkit.servers import given_by

SESSIONS = 6
SENDERS = 3


async def test_the_first_start_makes_and_tells_what_is_needed(tmp_path: Path) -> None:
    data = tmp_path / "new" / "folder"
    first = await ServerProcess.start(data)
    told = dict(line.split(": ", 1) for line in first.lines if "mbk_" in line)
    assert set(told) == {"admin token", "key of product default"}
    async with wired(first.url, told["key of product default"]) as client:
        offer = of_product(summary_of(make_segment(fresh_session_id())), "default")
        assert [each.verdict for each in await client.negotiate(offer)] == ["send"]
    async with wired(first.url, told["admin token"]) as admin:
        assert (await admin.ask("OPTIONS", "/v1/uploads")).status == 204
    assert await first.stop() == 0
    assert data.stat().st_mode & 0o077 == 0
    second = await ServerProcess.start(data)
    assert not any("mbk_" in line for line in second.lines)
    assert await second.stop() == 0


async def test_where_no_key_is_of_use_any_more_a_start_makes_another(tmp_path: Path) -> None:
    """Or nobody could ever make one through the API again."""
    config = ServerConfig(data=tmp_path / "data", port=0)
    async with running(config) as server:
        catalog = server.app[CATALOG]
        assert len(await first_keys(catalog, config, 1.0)) == 3
        assert await first_keys(catalog, config, 2.0) == []
        (admin,) = [row for row in await catalog.keys() if row.role is Role.ADMIN]
        await catalog.revoke_key(admin.id, 3.0)
        told, _ = await first_keys(catalog, config, 4.0)
        assert told.startswith("admin token: ")
        assert await first_keys(catalog, config, 5.0) == []


async def test_two_servers_do_not_share_a_folder(tmp_path: Path) -> None:
    config = ServerConfig(data=tmp_path / "data", port=0)
    async with running(config):
        with pytest.raises(StoreError, match="another mailboat server"):
            async with running(config):
                pass
    async with running(config):
        pass


async def test_a_server_told_to_stop_keeps_what_was_sent(tmp_path: Path) -> None:
    data = make_segment(fresh_session_id(), size=400_000)
    folder = tmp_path / "data"
    key = create_key(folder, PRODUCT)
    server = await ServerProcess.start(folder)
    async with wired(server.url, key) as client:
        path = await client.upload_of(data)
        append = await RawAppend.begin(client, path, len(data))
        await append.send(data[:123_456])
        blob = LocalBlobs(folder / "segments").path(path.rpartition("/")[2])
        async with asyncio.timeout(20):
            while not (blob.exists() and blob.stat().st_size == 123_456):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.005)
        async with asyncio.timeout(20):
            stopping = asyncio.ensure_future(server.stop())
            assert await append.status() == 503
            assert await stopping == 0
        await append.close()
    again = await ServerProcess.start(folder)
    async with wired(again.url, key) as client:
        (decision,) = await client.negotiate(summary_of(data))
        assert decision.segments[0].offset == 123_456
        assert (await client.append(path, data[123_456:], 123_456, complete=True)).complete
    assert await again.stop() == 0
    assert blob.read_bytes() == data


# -- kill -9 -----------------------------------------------------------------------------------------------------------


@dataclass
class Steps:
    """What the senders do, one step at a time, so that a killer can strike at any of them."""

    taken: int = 0
    strike_at: int | None = None
    struck: asyncio.Event = field(default_factory=asyncio.Event)
    back: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self) -> None:
        """One step was taken."""
        self.taken += 1
        if self.strike_at is not None and self.taken >= self.strike_at:
            self.strike_at = None
            self.back.clear()
            self.struck.set()


class Sender:
    """Delivers sessions as an agent does: negotiates, asks the offset after any failure, goes on there, until told that
    the server has everything.
    """

    def __init__(self, client: Wire, steps: Steps, chance: random.Random) -> None:
        self.client = client
        self.steps = steps
        self.chance = chance
        self.announced: dict[str, int] = {}
        self.sent = 0

    async def deliver(self, parts: list[bytes]) -> None:
        while True:
            try:
                if await self._try(parts):
                    return
            except (aiohttp.ClientError, ConnectionError):
                await self.steps.back.wait()

    async def _try(self, parts: list[bytes]) -> bool:
        self.steps.take()
        (decision,) = await self.client.negotiate(summary_of(*parts))
        self.steps.take()
        if decision.verdict == "have":
            assert [each.sha256 for each in decision.segments] == [each.sha256 for each in summary_of(*parts).segments]
            return True
        assert decision.verdict == "send", decision
        for part, segment in zip(parts, decision.segments, strict=True):
            if not segment.complete:
                await self._send(segment.url, part, self._never_less(segment.url, segment.offset))
        return False

    async def _send(self, path: str, data: bytes, offset: int) -> None:
        if self.chance.random() < 0.5:
            offset = self._never_less(path, (await self.client.ask("HEAD", path)).offset)
        end = len(data) if self.chance.random() < 0.5 else self.chance.randrange(offset, len(data) + 1)
        answer = await self.client.append(path, self._pieces(data[offset:end]), offset, complete=end == len(data))
        self.steps.take()
        assert answer.status in (204, 409), answer
        self._never_less(path, answer.offset)

    def _never_less(self, path: str, offset: int) -> int:
        """An offset once announced is a promise."""
        assert offset >= self.announced.get(path, 0)
        self.announced[path] = offset
        return offset

    async def _pieces(self, data: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(data), 30_000):
            yield data[start : start + 30_000]
            self.sent += min(30_000, len(data) - start)
            self.steps.take()


async def kill_and_restart(server: ServerProcess, steps: Steps, chance: random.Random, kills: int) -> ServerProcess:
    """Kill the server at some step to come, so many times; look at what it left; start it again at the same place."""
    for _ in range(kills):
        steps.struck.clear()
        steps.strike_at = steps.taken + chance.randrange(1, 40)
        await steps.struck.wait()
        await server.kill()
        findings = await asyncio.to_thread(check_folder, server.data, deep=False)
        assert findings.faults == []
        server = await ServerProcess.start(server.data, server.port)
        steps.back.set()
    return server


BUSY = pytest.mark.timeout(300)  # each kill costs a start of the server, which takes seconds on a machine that is busy


@pytest.mark.parametrize(
    "kills",
    [pytest.param(20, marks=BUSY), pytest.param(200, marks=[pytest.mark.soak, pytest.mark.timeout(0)], id="200")],
)
async def test_a_server_killed_at_any_moment_loses_and_doubles_nothing(tmp_path: Path, seed: int, kills: int) -> None:
    chance = random.Random(seed)
    folder = tmp_path / "data"
    key = create_key(folder, PRODUCT)
    server = await ServerProcess.start(folder)
    steps = Steps()
    steps.back.set()
    delivered: list[list[bytes]] = []

    async def send(client: Wire) -> None:
        """Sessions without end, until the killer has had enough."""
        sender = Sender(client, steps, chance)
        while not killer.done() or len(delivered) < SESSIONS:
            session_id = fresh_session_id()
            part = make_segment(session_id, size=chance.randrange(2_000, 900_000))
            following = summary_of(part).records
            parts = [part, make_segment(session_id, index=1, first=following, size=chance.randrange(2_000, 900_000))]
            await sender.deliver(parts)
            delivered.append(parts)

    async with wired(server.url, key) as client, asyncio.timeout(10 * kills + 30), asyncio.TaskGroup() as group:
        killer = group.create_task(kill_and_restart(server, steps, chance, kills))
        for _ in range(SENDERS):
            group.create_task(send(client))
    server = killer.result()
    async with given_by(server.url, folder) as given, asyncio.timeout(60):
        recorded = sum(summary_of(*parts).records for parts in delivered)
        while (await given.get("overview", origin="all"))["records"]["feature"] < recorded:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
    assert await server.stop() == 0
    await check(folder, delivered)
    findings = await asyncio.to_thread(check_folder, folder)
    assert (findings.faults, findings.notes) == ([], [])
    assert (findings.sessions, findings.records) == (len(delivered), recorded)


async def check(folder: Path, delivered: list[list[bytes]]) -> None:
    """Each session is here once, each segment once, byte by byte."""
    blobs = LocalBlobs(folder / "segments")
    catalog = SqliteCatalog(folder / "catalog.sqlite")
    await catalog.open()
    try:
        page = await catalog.sessions(SessionQuery(PRODUCT, limit=1_000))
        assert sorted(row.summary.session_id for row in page.sessions) == sorted(
            summary_of(*parts).session_id for parts in delivered
        )
        assert all(row.delivered for row in page.sessions)
        held = {row.summary.session_id: row.segments for row in page.sessions}
        for parts in delivered:
            segments = held[summary_of(*parts).session_id]
            assert [blobs.path(each.upload_id).read_bytes() for each in segments] == parts
        assert await catalog.open_uploads() == ()
    finally:
        await catalog.close()

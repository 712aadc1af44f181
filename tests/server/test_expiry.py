"""What is done away with after its time, and what may be under way at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest
from yarl import URL

from mailboat.server import ServerConfig
from mailboat.server.allowance import TRANSFERS
from mailboat.server.app import create_app
from mailboat.server.catalog import Verification
from mailboat.server.context import BLOBS, CATALOG, COUNTERS
from mailboat.server.expiry import TOMBSTONE_AGE, sweep
from mailboat.server.keys import create_key
from mailboat.server.serving import RunningServer, running
from mailboat.server.turns import TURNS
from testkit.serverkit import RawAppend, Wire, blob_path, eventually, fresh_session_id, make_segment, wired

DAY = 24 * 3600.0


@dataclass
class Clock:
    """The server's wall clock; it goes where it is told to."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Bench:
    """A running server whose time is the test's, and a client of it."""

    server: RunningServer
    client: Wire
    clock: Clock

    async def begun(self, body: bytes = b"12345", **headers: str) -> str:
        """The path of an unfinished upload that nobody asked for."""
        made = await self.client.ask("POST", "/v1/uploads", data=body, Upload_Complete="?0", **headers)
        assert made.status == 201, made
        return made.headers["Location"]

    async def finished(self, body: bytes) -> str:
        made = await self.client.ask("POST", "/v1/uploads", data=body, Upload_Complete="?1")
        assert made.status == 201, made
        return made.headers["Location"]

    def there(self, path: str) -> bool:
        """Whether the bytes of an upload are kept."""
        return self.server.app[BLOBS].size(path.rpartition("/")[2]) > 0

    async def sweep(self, later: float) -> int:
        """How many uploads a sweep removes, so many seconds from now."""
        self.clock.now += later
        return await sweep(self.server.app)


@asynccontextmanager
async def benched(config: ServerConfig, key: str) -> AsyncIterator[Bench]:
    clock = Clock()
    async with running(config, create_app(config, clock=clock)) as server, wired(server.url, key) as client:
        yield Bench(server, client, clock)


@pytest.fixture
async def bench(config: ServerConfig, key: str) -> AsyncIterator[Bench]:
    async with benched(config, key) as made:
        yield made


# -- lifetimes ---------------------------------------------------------------------------------------------------------


async def test_an_unfinished_upload_goes_after_its_lifetime_and_not_before(bench: Bench) -> None:
    path = await bench.begun()
    assert await bench.sweep(7 * DAY - 1) == 0
    assert bench.there(path)
    assert await bench.sweep(1) == 1
    assert not bench.there(path)
    assert (await bench.client.ask("HEAD", path)).status == 410
    assert (await bench.client.append(path, b"6", 5, complete=True)).status == 410
    assert bench.server.app[COUNTERS]["uploads_expired"] == 1


async def test_one_that_expired_is_refused_before_any_sweep(bench: Bench) -> None:
    path = await bench.begun()
    bench.clock.now += 7 * DAY
    assert (await bench.client.ask("HEAD", path)).status == 410
    assert not bench.there(path)
    assert await bench.sweep(0) == 0


async def test_one_that_is_spoilt_keeps_no_room(bench: Bench) -> None:
    path = await bench.begun(Upload_Length="10")

    async def more() -> AsyncIterator[bytes]:
        yield b"6789012345"

    assert (await bench.client.append(path, more(), 5, complete=True)).status == 400
    assert (await bench.client.ask("HEAD", path)).status == 410
    assert not bench.there(path)


async def test_an_append_prolongs_it(bench: Bench) -> None:
    path = await bench.begun()
    bench.clock.now += 6 * DAY
    assert (await bench.client.append(path, b"6", 5, complete=False)).offset == 6
    assert await bench.sweep(6 * DAY) == 0
    assert await bench.sweep(1 * DAY) == 1


async def test_an_upload_that_a_negotiation_asked_for_has_no_lifetime(bench: Bench) -> None:
    data = make_segment(fresh_session_id(), wall=bench.clock.now)
    path = await bench.client.upload_of(data)
    await bench.client.append(path, data[:1_000], 0, complete=False)
    assert await bench.sweep(100 * DAY) == 0
    assert (await bench.client.append(path, data[1_000:], 1_000, complete=True)).complete


async def test_what_is_in_quarantine_goes_after_a_month_and_a_segment_stays(bench: Bench) -> None:
    noise = await bench.finished(b"no segment")
    segment = await bench.finished(make_segment(fresh_session_id(), wall=bench.clock.now))
    assert await bench.sweep(30 * DAY - 1) == 0
    assert await bench.sweep(1) == 1
    assert not bench.there(noise)
    assert bench.there(segment)
    assert await bench.sweep(1000 * DAY) == 0
    assert bench.there(segment)


async def test_an_upload_in_use_is_left_alone(bench: Bench) -> None:
    path = await bench.begun()
    upload_id = path.rpartition("/")[2]
    slow = await RawAppend.begin(bench.client, path, 100, 5)
    await slow.send(b"6")
    await eventually(lambda: bench.server.app[TURNS].transfers == 1)
    assert await bench.sweep(8 * DAY) == 0
    assert bench.there(path)
    assert bench.server.app[TURNS].transfers == 1, "and is not cut for a look at it"
    await slow.close()
    await eventually(lambda: not bench.server.app[TURNS].busy(upload_id))
    assert await bench.sweep(8 * DAY) == 1


async def test_a_part_stays_as_long_as_what_is_made_of_it_is_unfinished(bench: Bench) -> None:
    ask = bench.client.ask
    part = await ask("POST", "/v1/uploads", Upload_Length="3", Upload_Concat="partial", Tus_Resumable="1.0.0")
    first = part.headers["Location"].removeprefix(bench.client.url)
    bench.clock.now += 6 * DAY
    whole = await ask("POST", "/v1/uploads", Upload_Concat=f"final;{first}", Tus_Resumable="1.0.0")
    assert whole.status == 201, whole
    assert await bench.sweep(2 * DAY) == 0
    assert await bench.sweep(6 * DAY) == 2  # first what was to be made of it, for its own time is over, then the part
    assert (await ask("HEAD", first, Tus_Resumable="1.0.0")).status == 410


async def test_what_is_gone_is_forgotten_in_the_end(bench: Bench) -> None:
    path = await bench.begun()
    await bench.sweep(7 * DAY)
    await bench.sweep(TOMBSTONE_AGE - 1)
    assert (await bench.client.ask("HEAD", path)).status == 410
    await bench.sweep(1)
    assert (await bench.client.ask("HEAD", path)).status == 404


async def test_a_blob_left_by_a_kill_goes_with_its_row(bench: Bench) -> None:
    path = await bench.begun()
    await bench.client.ask("DELETE", path)
    blob = blob_path(bench.server.app, path)
    blob.write_bytes(b"left behind")
    await bench.sweep(TOMBSTONE_AGE)
    assert not blob.exists()


async def test_many_expire_at_once(bench: Bench) -> None:
    paths = [await bench.begun() for _ in range(205)]
    assert await bench.sweep(7 * DAY) == 205
    assert not any(map(bench.there, paths))


async def test_the_server_sweeps_by_itself(config: ServerConfig, key: str) -> None:
    async with benched(replace(config, sweep_interval=0.01), key) as bench:
        path = await bench.begun()
        bench.clock.now += 7 * DAY
        await eventually(lambda: not bench.there(path))


async def test_a_sweep_that_fails_is_counted_and_tried_again(
    config: ServerConfig, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with benched(replace(config, sweep_interval=0.01), key) as bench:
        path = await bench.begun()
        blobs = bench.server.app[BLOBS]
        remove, refusals = blobs.remove, [OSError(5, "no luck"), OSError(5, "again none")]

        def refuse(blob_id: str) -> None:
            if refusals:
                raise refusals.pop()
            remove(blob_id)

        monkeypatch.setattr(blobs, "remove", refuse)
        bench.clock.now += 7 * DAY
        await eventually(lambda: not bench.there(path))
        assert bench.server.app[COUNTERS]["sweeps_failed"] == 2


# -- how many at the same time -----------------------------------------------------------------------------------------


async def test_a_product_has_so_many_unfinished_uploads_at_most(config: ServerConfig, key: str) -> None:
    async with benched(replace(config, max_unfinished=2), key) as bench:
        first = await bench.begun()
        await bench.begun()
        refused = await bench.client.ask("POST", "/v1/uploads", Upload_Complete="?0")
        assert (refused.status, refused.headers["Retry-After"]) == (429, "600")
        whole = await bench.client.ask("POST", "/v1/uploads", Upload_Concat=f"final;{first}", Tus_Resumable="1.0.0")
        assert whole.status == 429
        # What is asked for by a negotiation is no stranger's, and another product's are its own.
        await bench.client.upload_of(make_segment(fresh_session_id(), wall=bench.clock.now))
        other = await asyncio.to_thread(create_key, config.data, "Other")
        async with wired(bench.server.url, other) as neighbour:
            assert (await neighbour.ask("POST", "/v1/uploads", Upload_Complete="?0")).status == 201
        assert (await bench.client.append(first, b"6", 5, complete=True)).complete
        await bench.begun()


async def test_a_product_keeps_so_much_of_no_session_at_most(config: ServerConfig, key: str) -> None:
    """One part of a few bytes of a request can be made into as many large files as one asks for."""
    async with benched(replace(config, max_stray_bytes=300), key) as bench:
        part = await bench.client.ask(
            "POST",
            "/v1/uploads",
            data=bytes(100),
            Tus_Resumable="1.0.0",
            Upload_Length="100",
            Upload_Concat="partial",
            Content_Type="application/offset+octet-stream",
        )
        assert part.status == 201
        concat = f"final;{part.headers['Location']}"
        made = [
            await bench.client.ask("POST", "/v1/uploads", Tus_Resumable="1.0.0", Upload_Concat=concat) for _ in "123"
        ]
        assert [each.status for each in made] == [201, 201, 429]
        assert made[-1].headers["Retry-After"] == "600"
        assert (await bench.client.ask("POST", "/v1/uploads", data=b"x", Upload_Complete="?1")).status == 429
        data = make_segment(fresh_session_id(), wall=bench.clock.now)  # agents are not held up
        assert (await bench.client.append(await bench.client.upload_of(data), data, 0, complete=True)).complete
        assert (
            await bench.client.ask("DELETE", URL(made[0].headers["Location"]).path, Tus_Resumable="1.0.0")
        ).status == 204
        assert (await bench.client.ask("POST", "/v1/uploads", data=b"x", Upload_Complete="?1")).status == 201


async def test_a_key_sends_so_many_bodies_at_the_same_time(config: ServerConfig, key: str) -> None:
    async with benched(replace(config, max_transfers=2), key) as bench:
        paths = [await bench.begun() for _ in range(3)]
        slow = [await RawAppend.begin(bench.client, path, 100, 5) for path in paths[:2]]
        await eventually(lambda: bench.server.app[TURNS].transfers == 2)
        refused = await bench.client.append(paths[2], b"6", 5, complete=False)
        assert (refused.status, refused.headers["Retry-After"]) == (429, "10")
        made = await bench.client.ask("POST", "/v1/uploads", data=b"x", Upload_Complete="?1")
        assert made.status == 429
        assert (await bench.client.ask("HEAD", paths[2])).offset == 5
        other = await asyncio.to_thread(create_key, config.data, "Other")
        async with wired(bench.server.url, other) as neighbour:
            assert (await neighbour.ask("POST", "/v1/uploads", data=b"x", Upload_Complete="?1")).status == 201
        await slow[0].close()
        await eventually(lambda: bench.server.app[TURNS].transfers == 1)
        key_row = await bench.server.app[CATALOG].keys()
        await eventually(lambda: sum(bench.server.app[TRANSFERS].of(row.id) for row in key_row) == 1)
        assert (await bench.client.append(paths[2], b"6", 5, complete=False)).offset == 6
        await slow[1].close()


# -- quarantine --------------------------------------------------------------------------------------------------------


async def test_an_empty_upload_is_in_quarantine_as_any_other(bench: Bench) -> None:
    path = await bench.finished(b"")
    row = await bench.server.app[CATALOG].upload(path.rpartition("/")[2])
    assert row is not None
    assert row.verification is Verification.QUARANTINED
    assert await bench.sweep(30 * DAY) == 1

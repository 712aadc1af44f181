"""When the disk refuses, forgets, or holds more or less than was announced."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from mailboat.protocol import SegmentReader
from mailboat.protocol.uploads.state import UploadState
from mailboat.server import ServerConfig, interim
from mailboat.server.app import create_app
from mailboat.server.blobs import BlobLost, LocalBlobs, LocalBlobWriter
from mailboat.server.catalog import CatalogError, ProductRow, UploadRow
from mailboat.server.context import BLOBS, CATALOG, COUNTERS
from mailboat.server.packs import sync_folder
from mailboat.server.recovery import BOOT_NOTE, boot_id
from mailboat.server.serving import RunningServer, running
from mailboat.server.sqlite_catalog import SqliteCatalog, fresh_id
from mailboat.server.taps import LEAST
from mailboat.server.turns import TURNS
from testkit.serverkit import RawAppend, Wire, eventually, fresh_session_id, make_segment, summary_of, wired


class FaultyBlobs(LocalBlobs):
    """A real folder on a disk that fails as told: after `room` bytes, at the next syncs, when a file is opened."""

    room: int | None = None
    failing_syncs = 0
    failing_opens = 0
    gate: threading.Event | None = None
    at_gate: threading.Event
    events: list[str]

    def append(self, blob_id: str, offset: int) -> LocalBlobWriter:
        if self.failing_opens:
            self.failing_opens -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return FaultyWriter(super().append(blob_id, offset), self)


class FaultyWriter(LocalBlobWriter):
    def __init__(self, writer: LocalBlobWriter, blobs: FaultyBlobs) -> None:
        super().__init__(os.dup(writer._fd), writer.offset, blobs._direct)
        writer.close()
        self._blobs = blobs

    def write(self, piece: bytes | memoryview) -> None:
        room = self._blobs.room
        if room is None:
            return super().write(piece)
        super().write(piece[:room])
        self._blobs.room = max(0, room - len(piece))
        if len(piece) > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return None

    def sync(self) -> int:
        if self._blobs.failing_syncs:
            self._blobs.failing_syncs -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if self._blobs.gate is not None:
            self._blobs.at_gate.set()
            assert self._blobs.gate.wait(30)
        offset = super().sync()
        self._blobs.events.append(f"synced {offset}")
        return offset


class ToldCatalog(SqliteCatalog):
    """A real catalog that tells what it has committed, and fails as told."""

    events: list[str]
    failing = 0

    async def store(self, state: UploadState, now: float) -> bool:
        if self.failing:
            self.failing -= 1
            raise CatalogError("made up")
        stored = await super().store(state, now)
        self.events.append(f"stored {state.offset}")
        return stored

    async def finish_upload(self, row: UploadRow) -> bool:
        finished = await super().finish_upload(row)
        self.events.append(f"finished {row.state.offset} {row.verification}")
        return finished


@asynccontextmanager
async def faulty(config: ServerConfig, key: str) -> AsyncIterator[tuple[RunningServer, Wire, FaultyBlobs]]:
    app = create_app(config, open_blobs=FaultyBlobs, open_catalog=ToldCatalog)
    async with running(config, app) as server, wired(server.url, key) as client:
        blobs, catalog = server.app[BLOBS], server.app[CATALOG]
        assert isinstance(blobs, FaultyBlobs)
        assert isinstance(catalog, ToldCatalog)
        blobs.events = catalog.events = []
        yield server, client, blobs


async def finish(client: Wire, path: str, data: bytes) -> None:
    """Go on as an agent does: ask, append from there."""
    offset = (await client.ask("HEAD", path)).offset
    assert (await client.append(path, data[offset:], offset, complete=True)).complete
    (decision,) = await client.negotiate(summary_of(data))
    assert decision.verdict == "have"


async def test_an_offset_is_told_after_its_sync_and_its_commit(config: ServerConfig, key: str) -> None:
    data = make_segment(fresh_session_id())
    size = len(data)
    async with faulty(config, key) as (_, client, blobs):
        path = await client.upload_of(data)
        blobs.events.append("asked")
        assert (await client.append(path, data[:100], 0, complete=False)).offset == 100
        blobs.events.append("told")
        assert (await client.append(path, data[100:], 100, complete=True)).offset == size
        assert blobs.events == [
            "asked",
            "synced 100",
            "stored 100",
            "told",
            f"synced {size}",
            f"finished {size} verified",
        ]


async def test_who_was_overtaken_while_waiting_holds_nobody(config: ServerConfig, key: str) -> None:
    """An append waits for the sync of an older one, and stalls; a query that came after it must not wait for that."""
    data = make_segment(fresh_session_id())
    async with faulty(config, key) as (server, client, blobs):
        path = await client.upload_of(data)
        line = server.app[TURNS]._lines
        name = path.rpartition("/")[2]
        blobs.gate, blobs.at_gate = threading.Event(), threading.Event()
        first = asyncio.ensure_future(client.append(path, data[:100], 0, complete=False))
        await eventually(blobs.at_gate.is_set)
        stalling = await RawAppend.begin(client, path, len(data) - 100, 100)
        await stalling.send(data[100:200])
        await eventually(lambda: line[name].present == 2)
        query = asyncio.ensure_future(client.ask("HEAD", path))
        await eventually(lambda: line[name].present == 3)
        blobs.gate.set()
        async with asyncio.timeout(10):
            assert (await first).offset == 100
            assert 100 <= (await query).offset <= 200
            assert await stalling.status() == 409
        await stalling.close()
        await finish(client, path, data)
        assert blobs.path(name).read_bytes() == data


class SlowCatalog(SqliteCatalog):
    """A real catalog whose first look at an upload takes longer than the second, if that comes meanwhile."""

    looks = 0
    second: asyncio.Event

    async def upload(self, upload_id: str) -> UploadRow | None:
        self.looks += 1
        if self.looks == 1:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.second.wait(), 0.3)
        row = await super().upload(upload_id)
        if self.looks == 2:
            self.second.set()
        return row


async def test_a_query_does_not_overtake_the_append_before_it(config: ServerConfig, key: str) -> None:
    app = create_app(config, open_catalog=SlowCatalog)
    async with running(config, app) as server, wired(server.url, key) as client:
        data = make_segment(fresh_session_id(), size=60_000)
        path = await client.upload_of(data)
        catalog = server.app[CATALOG]
        assert isinstance(catalog, SlowCatalog)
        catalog.looks, catalog.second = 0, asyncio.Event()
        append = await RawAppend.begin(client, path, len(data))
        await append.send(data[:30_000])
        await append.close()
        await eventually(lambda: catalog.looks == 1)
        assert (await client.ask("HEAD", path)).offset == 30_000


async def test_an_offset_that_could_not_be_noted_is_not_told(config: ServerConfig, key: str) -> None:
    data = make_segment(fresh_session_id())
    async with faulty(config, key) as (server, client, blobs):
        path = await client.upload_of(data)
        catalog = server.app[CATALOG]
        assert isinstance(catalog, ToldCatalog)
        catalog.failing = 1
        assert (await client.append(path, data[:500], 0, complete=False)).status == 503
        assert (await client.ask("HEAD", path)).offset == 0
        await finish(client, path, data)
        assert blobs.path(path.rpartition("/")[2]).read_bytes() == data


async def test_a_disk_that_fills_up_keeps_what_fitted(config: ServerConfig, key: str) -> None:
    data = make_segment(fresh_session_id(), size=200_000)
    async with faulty(config, key) as (_, client, blobs):
        path = await client.upload_of(data)
        blobs.room = 50_000
        assert (await client.append(path, data, 0, complete=True)).status == 507
        assert (await client.ask("HEAD", path)).offset == 50_000
        assert (await client.append(path, data[50_000:], 50_000, complete=True)).status == 507
        blobs.room = None
        await finish(client, path, data)
        assert blobs.path(path.rpartition("/")[2]).read_bytes() == data


async def test_a_disk_that_fills_up_under_a_large_body_keeps_what_fitted(config: ServerConfig, key: str) -> None:
    data = make_segment(fresh_session_id(), size=3 * LEAST)
    room = LEAST + 50_001
    async with faulty(config, key) as (_, client, blobs):
        path = await client.upload_of(data)
        blobs.room = room
        assert (await client.append(path, data, 0, complete=True)).status == 507
        assert (await client.ask("HEAD", path)).offset == room
        blobs.room = None
        await finish(client, path, data)
        assert blobs.path(path.rpartition("/")[2]).read_bytes() == data


async def test_a_disk_that_takes_no_file_is_full(config: ServerConfig, key: str) -> None:
    data = make_segment(fresh_session_id())
    async with faulty(config, key) as (_, client, blobs):
        path = await client.upload_of(data)
        blobs.failing_opens = 1
        assert (await client.append(path, data, 0, complete=True)).status == 507
        await finish(client, path, data)


async def test_bytes_whose_sync_failed_are_not_announced(config: ServerConfig, key: str) -> None:
    data = make_segment(fresh_session_id(), size=200_000)
    async with faulty(config, key) as (server, client, blobs):
        path = await client.upload_of(data)
        await client.append(path, data[:1_000], 0, complete=False)
        blobs.failing_syncs = 1
        assert (await client.append(path, data[1_000:], 1_000, complete=True)).status == 503
        assert (await client.ask("HEAD", path)).offset == 1_000
        assert blobs.size(path.rpartition("/")[2]) == 1_000
        assert server.app[COUNTERS]["storage_sync_failed"] == 1
        await finish(client, path, data)
        assert blobs.path(path.rpartition("/")[2]).read_bytes() == data


async def test_progress_is_told_after_its_sync_and_its_commit(
    config: ServerConfig, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interim, "EVERY", 0.005)
    data = make_segment(fresh_session_id(), size=200_000)
    async with faulty(replace(config, interim_answers=True), key) as (server, client, blobs):
        path = await client.upload_of(data)
        append = await RawAppend.begin(client, path, len(data), version=9)
        await append.send(data[:1_000])
        assert await append.status() == 104
        assert blobs.events == ["synced 1000", "stored 1000"]
        catalog = server.app[CATALOG]
        assert isinstance(catalog, ToldCatalog)
        catalog.failing = 1  # the next account is not given; the one after it is
        await append.send(data[1_000:2_000])
        while (line := await append.reader.readline()) != b"Upload-Offset: 2000\r\n":
            assert line, "it ended"
        assert server.app[COUNTERS]["progress_not_noted"] == 1
        blobs.failing_syncs = 1  # and nothing after it is to be trusted
        await append.send(data[2_000:150_000])
        while b" 503 " not in (line := await append.reader.readline()):
            assert line, "it was taken for durable"
        await append.close()
        assert server.app[COUNTERS]["storage_sync_failed"] == 1
        assert (await client.ask("HEAD", path)).offset == 2_000
        assert blobs.size(path.rpartition("/")[2]) == 2_000
        await finish(client, path, data)
        assert blobs.path(path.rpartition("/")[2]).read_bytes() == data


async def test_a_full_catalog_is_told_and_over_when_space_returns(config: ServerConfig, key: str) -> None:
    data = make_segment(fresh_session_id())
    async with running(config) as server, wired(server.url, key) as client:
        catalog = server.app[CATALOG]
        assert isinstance(catalog, SqliteCatalog)
        engine = catalog._engine
        pages = await engine.write(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
        await engine.write(lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchone())
        plan = {"agents": ["x" * 100] * 1_000}
        with pytest.raises(OSError, match="full"):
            await catalog.put_product(ProductRow("Large", 0.0, plan))
        made = await client.ask("POST", "/v1/uploads", data=b"x", Upload_Complete="?1")
        while made.status == 201:  # the pages there are still have some room
            made = await client.ask("POST", "/v1/uploads", data=b"x", Upload_Complete="?1")
        assert made.status == 507
        await engine.write(lambda db: db.execute("PRAGMA max_page_count = 1000000").fetchone())
        path = await client.upload_of(data)
        await finish(client, path, data)


# -- restarts ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def data() -> bytes:
    return make_segment(fresh_session_id(), size=700_000)


async def half_sent(config: ServerConfig, key: str, data: bytes, size: int) -> str:
    """A server that took `size` bytes, and stopped; the upload's path."""
    async with running(config) as server, wired(server.url, key) as client:
        path = await client.upload_of(data)
        assert (await client.append(path, data[:size], 0, complete=False)).offset == size
    return path


def blob(config: ServerConfig, path: str) -> Path:
    return LocalBlobs(config.data / "segments").path(path.rpartition("/")[2])


async def power_lost(config: ServerConfig) -> None:
    """Have the next start believe that the machine was switched off."""
    catalog = SqliteCatalog(config.data / "catalog.sqlite")
    await catalog.open()
    await catalog.put_note(BOOT_NOTE, "another boot")
    await catalog.close()


async def restarted(config: ServerConfig, key: str, path: str, then: Callable[[int], None], data: bytes) -> None:
    """Start again, look at the offset, and go on."""
    async with running(config) as server, wired(server.url, key) as client:
        offset = (await client.ask("HEAD", path)).offset
        then(offset)
        assert blob(config, path).read_bytes() == data[:offset]
        await finish(client, path, data)
    assert blob(config, path).read_bytes() == data


def frames(data: bytes) -> list[int]:
    """Where the frames of a segment end."""
    reader = SegmentReader(data)
    return [block.end for block in reader.blocks()]


def is_now(expected: int) -> Callable[[int], None]:
    def check(offset: int) -> None:
        assert offset == expected

    return check


@pytest.mark.skipif(
    not boot_id(), reason="this system does not tell its boots apart: each start is taken for power loss"
)
async def test_killed_before_announcing_what_was_written_is_kept(config: ServerConfig, key: str, data: bytes) -> None:
    path = await half_sent(config, key, data, 1_000)
    blob(config, path).write_bytes(data[:400_123])
    await restarted(config, key, path, is_now(400_123), data)


async def test_power_loss_keeps_the_frames_that_check(config: ServerConfig, key: str, data: bytes) -> None:
    first, second, *_ = frames(data)
    path = await half_sent(config, key, data, 1_000)
    blob(config, path).write_bytes(data[: second + 500])
    await power_lost(config)
    await restarted(config, key, path, is_now(second), data)
    assert first < second


@pytest.mark.parametrize("announced", [1_000, 300_000])
async def test_power_loss_never_goes_below_what_was_announced(
    config: ServerConfig, key: str, data: bytes, announced: int
) -> None:
    """The size of the file reached the disk, its bytes beyond the last sync did not."""
    path = await half_sent(config, key, data, announced)
    blob(config, path).write_bytes(data[:announced] + bytes(200_000))
    await power_lost(config)
    await restarted(config, key, path, is_now(announced), data)


async def test_killed_before_completion_was_noted_an_empty_append_completes(
    config: ServerConfig, key: str, data: bytes
) -> None:
    path = await half_sent(config, key, data, 1_000)
    blob(config, path).write_bytes(data)
    async with running(config) as server, wired(server.url, key) as client:
        found = await client.ask("HEAD", path)
        assert not found.complete
        await finish(client, path, data)


@pytest.mark.parametrize("left", [None, 10])
async def test_a_blob_that_is_lost_begins_anew(config: ServerConfig, key: str, data: bytes, left: int | None) -> None:
    path = await half_sent(config, key, data, 1_000)
    if left is None:
        blob(config, path).unlink()
    else:
        blob(config, path).write_bytes(data[:left])
    async with running(config) as server, wired(server.url, key) as client:
        assert (await client.append(path, data[1_000:], 1_000, complete=True)).status == 410
        assert server.app[COUNTERS]["uploads_lost"] == 1
        fresh = await client.upload_of(data)
        assert fresh != path
        await finish(client, fresh, data)


# -- the folder --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "../escape", "a/b", "01A2000F-192D-79F3-BE31-1E20A873A4FC", "\0"])
def test_a_name_that_is_no_id_leads_nowhere(tmp_path: Path, name: str) -> None:
    blobs = LocalBlobs(tmp_path / "segments")
    with pytest.raises(ValueError, match="no canonical UUID"):
        blobs.path(name)


def test_names_last_once_the_bytes_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, name = tmp_path / "segments", fresh_id()
    folder = root / name[-2:]
    synced: list[Path] = []

    def told(path: Path) -> None:
        synced.append(path)
        sync_folder(path)

    blobs = LocalBlobs(root)
    monkeypatch.setattr("mailboat.server.blobs.sync_folder", told)
    first = blobs.append(name, 0)
    first.write(b"hello")
    assert synced == []  # the body did not wait for them
    first.sync()
    assert synced == [folder, root]
    first.write(b" world")
    first.sync()
    first.close()
    blobs.append(name, 11).close()
    assert synced == [folder, root]
    # One that was never synced by a process that was killed: the next one cannot know what lasts.
    after = LocalBlobs(root)
    synced.clear()
    after.settle(name, 11)
    assert synced == [folder, root]
    again = after.append(name, 0)
    again.sync()
    again.close()
    assert synced == [folder, root, folder]


def test_a_blob_is_appended_to_and_read_back(tmp_path: Path) -> None:
    blobs, name = LocalBlobs(tmp_path / "segments"), fresh_id()
    assert blobs.size(name) == 0
    first = blobs.append(name, 0)
    first.write(b"hello wrld")
    assert (first.offset, first.sync()) == (10, 10)
    first.close()
    first.close()
    again = blobs.append(name, 7)
    again.write(b"orld")
    again.close()
    assert blobs.read(name, 0, 100) == b"hello world"
    assert blobs.read(name, 6, 3) == b"wor"
    shorter = blobs.append(name, 5)
    shorter.write(b"!")
    shorter.close()
    assert blobs.read(name, 0, 100) == b"hello!"
    assert blobs.path(name).stat().st_mode & 0o077 == 0
    with pytest.raises(BlobLost):
        blobs.append(name, 12)
    with pytest.raises(BlobLost):
        blobs.append(fresh_id(), 1)
    blobs.remove(name)
    blobs.remove(name)
    assert not blobs.path(name).exists()

"""Backups of a server that serves, and what a server restored from one has."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mailboat.cli.root import mailboat
from mailboat.server import ServerConfig, backup, retention
from mailboat.server.backup import back_up, restore
from mailboat.server.blobs import LocalBlobs
from mailboat.server.catalog import ProductRow
from mailboat.server.context import CATALOG
from mailboat.server.ingest import INGEST
from mailboat.server.serving import RunningServer, running
from mailboat.server.unsealing import public_key
from mailboat.server.upkeep import check_folder
from testkit.serverkit import (
    PRODUCT,
    RawAppend,
    Wire,
    blob_path,
    eventually,
    fresh_session_id,
    make_segment,
    summary_of,
    wired,
)
from testkit.servers import given_by


async def delivered(client: Wire, data: bytes) -> str:
    path = await client.upload_of(data)
    assert (await client.append(path, data, 0, complete=True)).complete
    return path.rpartition("/")[2]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(mailboat, [str(each) for each in arguments], catch_exceptions=False)


async def test_a_restored_server_has_what_was_there_and_goes_on(
    server: RunningServer, config: ServerConfig, client: Wire, key: str, tmp_path: Path
) -> None:
    whole, part = make_segment(fresh_session_id()), make_segment(fresh_session_id(), size=300_000)
    await delivered(client, whole)
    path = await client.upload_of(part)
    assert (await client.append(path, part[:100_000], 0, complete=False)).offset == 100_000
    # Bytes on their way, announced to nobody: they are none of the backup's.
    append = await RawAppend.begin(client, path, len(part) - 100_000, 100_000)
    await append.send(part[100_000:150_000])
    await eventually(lambda: blob_path(server.app, path).stat().st_size == 150_000)
    target, data = tmp_path / "backup", tmp_path / "restored"
    result = await asyncio.to_thread(run, "server", "backup", "--data", config.data, "--to", target)
    assert result.exit_code == 0, result.output
    append.abort()
    await delivered(client, make_segment(fresh_session_id()))  # after the backup: not in it
    result = await asyncio.to_thread(run, "server", "restore", "--from", target, "--data", data)
    assert result.exit_code == 0, result.output

    again = ServerConfig(data=data, port=0)
    async with running(again) as restored, wired(restored.url, key) as other, given_by(restored.url, data) as given:
        await restored.app[INGEST].settled()
        assert set(await given.sessions()) == {summary_of(whole).session_id, summary_of(part).session_id}
        assert len(await given.records(summary_of(whole).session_id)) == summary_of(whole).records
        assert (await given.get("overview", origin="all"))["records"]["feature"] >= summary_of(whole).records
        assert [each.verdict for each in await other.negotiate(summary_of(whole))] == ["have"]
        assert (await other.ask("HEAD", path)).offset == 100_000
        assert (await other.append(path, part[100_000:], 100_000, complete=True)).complete
    assert (await asyncio.to_thread(check_folder, data)).faults == []


async def test_backups_under_load_are_whole(
    server: RunningServer, config: ServerConfig, client: Wire, tmp_path: Path, seed: int
) -> None:
    """Uploads grow, complete and are cancelled, sessions are deleted for their age, while backups are made."""
    chance, stop = random.Random(seed), asyncio.Event()

    async def send() -> None:
        while not stop.is_set():
            data = make_segment(fresh_session_id(), size=chance.randrange(2_000, 300_000))
            (decision,) = await client.negotiate(summary_of(data))
            if decision.verdict == "reject":
                continue  # on a machine this busy it is too old already
            path, half = decision.segments[0].url, len(data) // 2
            await client.append(path, data[:half], 0, complete=False)
            if chance.random() < 0.3:
                await client.ask("DELETE", path)
            else:
                await client.append(path, data[half:], half, complete=True)

    async def age() -> None:
        """Everything goes a second after its end."""
        while not stop.is_set():
            await retention.sweep(server.app)
            await asyncio.sleep(0)

    await server.app[CATALOG].put_product(ProductRow(PRODUCT, 0.0, {"history_days": 1 / 86_400}))
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(send())
        group.create_task(age())
        for number in range(4):
            target, data = tmp_path / f"backup-{number}", tmp_path / f"restored-{number}"
            made = await asyncio.to_thread(back_up, config.data, target)
            assert made.lost == ()
            await asyncio.to_thread(restore, target, data)
            findings = await asyncio.to_thread(check_folder, data)
            assert findings.faults == []
            assert findings.bytes == made.bytes
        stop.set()


async def test_it_is_for_its_owner_only(
    server: RunningServer, config: ServerConfig, client: Wire, tmp_path: Path
) -> None:
    """Also where somebody has made its folder before, open to all; and so is what is restored from it."""
    await delivered(client, make_segment(fresh_session_id()))
    folders = [tmp_path / "backup", tmp_path / "restored"]
    for folder in folders:
        folder.mkdir(mode=0o755)
    await asyncio.to_thread(back_up, config.data, folders[0])
    await asyncio.to_thread(restore, *folders)
    for folder in folders:
        modes = await asyncio.to_thread(lambda at: {str(e): e.stat().st_mode & 0o077 for e in at.rglob("*")}, folder)
        assert {name for name, mode in modes.items() if mode} == set()
        assert len(modes) > 3


def test_the_keys_of_sealed_sessions_are_in_it_for_their_owner_only(
    config: ServerConfig, key: str, tmp_path: Path
) -> None:
    older, newer = public_key(config.data), public_key(config.data, fresh=True)
    assert older != newer
    back_up(config.data, tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "restored")
    assert public_key(tmp_path / "restored") == newer
    for folder in (tmp_path / "backup", tmp_path / "restored"):
        keys = list((folder / "sealing").iterdir())
        assert len(keys) == 2
        assert {path.stat().st_mode & 0o077 for path in (folder / "sealing", *keys)} == {0}


@pytest.fixture
async def made(config: ServerConfig, key: str, tmp_path: Path) -> Path:
    """A backup of a server with one session."""
    async with running(config) as server, wired(server.url, key) as client:
        await delivered(client, make_segment(fresh_session_id()))
    await asyncio.to_thread(back_up, config.data, tmp_path / "backup")
    return tmp_path / "backup"


def test_a_backup_that_is_none_is_refused(made: Path, config: ServerConfig, tmp_path: Path) -> None:
    data = tmp_path / "restored"
    unfinished = shutil.copytree(made, tmp_path / "unfinished")
    (unfinished / backup.MANIFEST_FILE).unlink()
    strange = shutil.copytree(made, tmp_path / "strange")
    with (strange / "catalog.sqlite").open("ab") as file:
        file.write(b"more")
    later = shutil.copytree(made, tmp_path / "later")
    said = json.loads((later / backup.MANIFEST_FILE).read_text())
    (later / backup.MANIFEST_FILE).write_text(json.dumps({**said, "format": 99}))
    for source, told, status in (
        (unfinished, "no finished backup", 2),
        (strange, "digest differs", 1),
        (later, "update it", 1),
    ):
        result = run("server", "restore", "--from", source, "--data", data)
        assert (result.exit_code, told in result.output) == (status, True), result.output
        assert not data.exists()


def test_neither_way_overwrites_anything(made: Path, config: ServerConfig, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in config.data.rglob("*") if path.is_file()}
    for arguments in (
        ("backup", "--data", config.data, "--to", made),
        ("restore", "--from", made, "--data", config.data),
    ):
        result = run("server", *arguments)
        assert result.exit_code == 2
        assert "empty folder" in result.output
    assert before == {path: path.read_bytes() for path in config.data.rglob("*") if path.is_file()}
    assert run("server", "backup", "--data", tmp_path / "nothing", "--to", tmp_path / "x").exit_code == 2
    assert not (tmp_path / "x").exists()


def test_a_backup_with_a_segment_missing_says_so(made: Path, config: ServerConfig, tmp_path: Path) -> None:
    (blob,) = LocalBlobs(config.data / "segments").ids()
    LocalBlobs(config.data / "segments").remove(blob)
    result = run("server", "backup", "--data", config.data, "--to", tmp_path / "second")
    assert result.exit_code == 1
    assert blob in result.output
    restored = run("server", "restore", "--from", tmp_path / "second", "--data", tmp_path / "restored")
    assert restored.exit_code == 1
    assert "bytes_lost" in restored.output

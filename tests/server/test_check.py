"""`mailboat server check`: every kind of damage is found and named, nothing is found where nothing is wrong, and what
can be put right without loss is.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pytest
from click.testing import CliRunner, Result

from mailboat.cli.root import mailboat
from mailboat.server import ServerConfig
from mailboat.server.blobs import LocalBlobs
from mailboat.server.check import Kind
from mailboat.server.folder import FolderInUse
from mailboat.server.ingest import INGEST
from mailboat.server.serving import running
from mailboat.server.upkeep import check_folder, repair_folder
from testkit.serverkit import Wire, fresh_session_id, make_segment, summary_of, wired

OPEN, WHOLE = 5_000, 20_000


@dataclass
class Left:
    """A folder that a server has left: two whole sessions, one upload that is not, one that was cancelled."""

    data: Path
    whole: list[str]
    unfinished: str
    sessions: list[str]
    records: int

    @property
    def blobs(self) -> LocalBlobs:
        return LocalBlobs(self.data / "segments")

    def sql(self, text: str, *values: object) -> None:
        db = sqlite3.connect(self.data / "catalog.sqlite")
        with db:
            assert db.execute(text, values).rowcount != 0
        db.close()

    def duck(self, text: str) -> None:
        db = duckdb.connect(self.data / "analytics.duckdb")
        db.execute(text)
        db.close()


async def upload(client: Wire, data: bytes) -> str:
    path = await client.upload_of(data)
    assert (await client.append(path, data, 0, complete=True)).complete
    return path.rpartition("/")[2]


@pytest.fixture
async def left(config: ServerConfig, key: str) -> Left:
    async with running(config) as server, wired(server.url, key) as client:
        segments = [make_segment(fresh_session_id(), size=WHOLE) for _ in range(2)]
        whole = [await upload(client, data) for data in segments]
        part = make_segment(fresh_session_id(), size=WHOLE)
        unfinished = await client.upload_of(part)
        await client.append(unfinished, part[:OPEN], 0, complete=False)
        cancelled = await client.upload_of(make_segment(fresh_session_id()))
        assert (await client.ask("DELETE", cancelled)).status == 204
        await server.app[INGEST].settled()
        held = await asyncio.to_thread(check_folder, config.data)
        assert held.faults == []
        assert "server is running" in held.notes[0]
    return Left(
        config.data,
        whole,
        unfinished.rpartition("/")[2],
        [summary_of(data).session_id for data in segments],
        sum(summary_of(data).records for data in segments),
    )


def found(left: Left) -> list[tuple[Kind, str]]:
    return [(fault.kind, fault.subject) for fault in check_folder(left.data).faults]


def test_where_nothing_is_wrong_nothing_is_found(left: Left) -> None:
    findings = check_folder(left.data)
    assert (findings.faults, findings.notes) == ([], [])
    assert (findings.uploads, findings.blobs, findings.sessions) == (4, 3, 4)
    assert findings.records >= left.records
    before = {path: path.read_bytes() for path in left.data.rglob("*") if path.is_file()}
    check_folder(left.data)
    assert before == {path: path.read_bytes() for path in left.data.rglob("*") if path.is_file()}


# What to do to the folder, what is found, and of what (None: whatever it is).
Damage = tuple[Callable[[Left], object], Kind, Callable[[Left], str | None]]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


DAMAGES: dict[str, Damage] = {
    "a segment's file is gone": (
        lambda left: left.blobs.path(left.whole[0]).unlink(),
        Kind.BYTES_LOST,
        lambda left: left.whole[0],
    ),
    "an unfinished file is too short": (
        lambda left: left.blobs.path(left.unfinished).write_bytes(b"x" * (OPEN - 1)),
        Kind.BYTES_LOST,
        lambda left: left.unfinished,
    ),
    "a segment's file is too long": (
        lambda left: append(left.blobs.path(left.whole[1])),
        Kind.BYTES_BEYOND,
        lambda left: left.whole[1],
    ),
    "a bit of a segment has flipped": (
        lambda left: flip(left.blobs.path(left.whole[0])),
        Kind.SPOILT,
        lambda left: left.whole[0],
    ),
    "a segment is another intact one": (
        lambda left: left.sql("UPDATE uploads SET sha256 = ? WHERE id = ?", "0" * 64, left.whole[0]),
        Kind.SPOILT,
        lambda left: left.whole[0],
    ),
    "a session's row is gone": (
        lambda left: left.sql("DELETE FROM sessions WHERE session_id = ?", left.sessions[0]),
        Kind.NO_SESSION,
        lambda left: left.whole[0],
    ),
    "an upload's row is gone": (
        lambda left: left.sql("DELETE FROM uploads WHERE id = ?", left.unfinished),
        Kind.UNKNOWN_BLOB,
        lambda left: left.unfinished,
    ),
    "a record is there twice": (
        lambda left: left.duck("INSERT INTO feature_row FROM (FROM feature_row LIMIT 1)"),
        Kind.RECORDS_TWICE,
        lambda _: None,
    ),
    "a record is gone": (
        lambda left: left.duck("DELETE FROM feature_row WHERE sequence = 3"),
        Kind.RECORDS_MISSING,
        lambda _: None,
    ),
    "a record is of nobody": (
        lambda left: left.duck("UPDATE feature_row SET number = 4711 WHERE sequence = 3"),
        Kind.RECORDS_STRANGE,
        lambda _: None,
    ),
    "a session is not in the reports": (lambda left: left.duck("DELETE FROM session"), Kind.NOT_LISTED, lambda _: None),
    "a sum is not that of its records": (
        lambda left: left.duck("INSERT INTO kind_sum VALUES ('p', false, 2000, 'feature', '2008-05-01', 3)"),
        Kind.SUMS_WRONG,
        lambda _: None,
    ),
    "the store has forgotten what it loaded": (
        lambda left: left.duck("UPDATE loaded SET consumed = 10"),
        Kind.RECORDS_MISSING,
        lambda _: None,
    ),
    "the store is no store": (
        lambda left: (left.data / "analytics.duckdb").write_bytes(b"noise" * 1000),
        Kind.RECORDS_MISSING,
        lambda _: "analytics.duckdb",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_found_and_named(left: Left, name: str) -> None:
    damage, kind, subject = DAMAGES[name]
    damage(left)
    faults = found(left)
    assert kind in {each for each, _ in faults}
    expected = subject(left)
    assert expected is None or (kind, expected) in faults
    assert faults == found(left), "looking changes nothing"


def test_a_damaged_catalog_is_told(left: Left) -> None:
    db = sqlite3.connect(left.data / "catalog.sqlite")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'uploads_of_segment'").fetchone()
    (size,) = db.execute("PRAGMA page_size").fetchone()
    db.close()
    file = left.data / "catalog.sqlite"
    data = bytearray(file.read_bytes())
    data[(page - 1) * size + 3 : (page - 1) * size + 5] = b"\0\0"  # an index without entries
    file.write_bytes(data)
    assert Kind.CATALOG in {kind for kind, _ in found(left)}


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(mailboat, [str(each) for each in arguments], catch_exceptions=False)


def test_the_command_says_what_is_wrong_and_ends_accordingly(left: Left) -> None:
    assert run("server", "check", "--data", left.data).exit_code == 0
    flip(left.blobs.path(left.whole[0]))
    assert run("server", "check", "--data", left.data, "--quick").exit_code == 0
    result = run("server", "check", "--data", left.data, "--json")
    assert result.exit_code == 1
    fault, totals = map(json.loads, result.output.splitlines())
    assert (fault["kind"], fault["subject"]) == ("spoilt", left.whole[0])
    assert totals["faults"] == 1
    told = run("server", "check", "--data", left.data)
    assert told.exit_code == 1
    assert f"spoilt\t{left.whole[0]}\t" in told.output
    assert run("server", "check", "--data", left.data / "nothing").exit_code == 2


async def test_what_can_be_is_put_right(left: Left, config: ServerConfig, key: str) -> None:
    left.sql("DELETE FROM uploads WHERE id = ?", left.unfinished)
    left.duck("INSERT INTO feature_row FROM (FROM feature_row LIMIT 1)")
    flip(left.blobs.path(left.whole[0]))
    result = await asyncio.to_thread(run, "server", "check", "--data", left.data, "--repair")
    assert result.exit_code == 1, "a spoilt segment cannot be put right"
    assert (left.data / "segments-aside" / left.unfinished).stat().st_size == OPEN
    assert {kind for kind, _ in await asyncio.to_thread(found, left)} == {Kind.SPOILT}
    flip(left.blobs.path(left.whole[0]))
    async with running(config) as server, wired(server.url, key):
        await server.app[INGEST].settled()
        with pytest.raises(FolderInUse):
            await asyncio.to_thread(repair_folder, left.data, await asyncio.to_thread(check_folder, left.data))
    findings = await asyncio.to_thread(check_folder, left.data)
    assert (findings.faults, findings.notes) == ([], [])
    assert findings.records == left.records


async def test_a_segment_that_was_loaded_before_it_was_completed_is_whole(config: ServerConfig, key: str) -> None:
    """Its last request brings no bytes, so there is nothing to load any more."""
    async with running(config) as server, wired(server.url, key) as client:
        data = make_segment(fresh_session_id(), size=WHOLE)
        path = await client.upload_of(data)
        await client.append(path, data, 0, complete=False)
        await server.app[INGEST].settled()
        assert (await client.append(path, b"", len(data), complete=True)).complete
        await server.app[INGEST].settled()
        assert (await asyncio.to_thread(check_folder, config.data, deep=False)).faults == []
    assert (await asyncio.to_thread(check_folder, config.data)).faults == []

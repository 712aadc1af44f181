"""The server is killed with -9 while it loads, at any moment: afterwards every record is there, once."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import uuid
from pathlib import Path

import pytest

from mailboat.server.analytics import Analytics
from testkit.ingesting import Rig
from testkit.loading import Bench
from testkit.segments import Raw, Segment, event, exception, feature, positional, schema, timing, value

LIB = Path(__file__).parents[1] / "lib"


def segments_of(session_id: str, chance: random.Random) -> tuple[list[bytes], list[str]]:
    """A session of a few segments, each repeating the end of the one before; and its records' names in order."""
    names: list[str] = []
    made: list[bytes] = []
    kinds = (feature, event, lambda name: value(name, 1.5), lambda name: timing(name, 0.1), exception)
    repeated: list[Raw | bytes] = []
    for index in range(chance.randrange(1, 4)):
        segment = Segment(session_id, index, first=len(names) - len(repeated), salt=index + 1)
        segment.block([schema(1, "declared", "n"), *repeated] if repeated else [schema(1, "declared", "n")])
        for _ in range(chance.randrange(2, 12)):
            block: list[Raw | bytes] = []
            for _ in range(chance.randrange(1, 400)):
                name = f"r.{len(names)}"
                block.append(positional(1, name) if chance.random() < 0.3 else chance.choice(kinds)(name))
                names.append(name)
            segment.block(block)
            repeated = block
        made.append(segment.seal())
    return made, names


async def fill(folder: Path, chance: random.Random, sessions: int) -> dict[str, list[str]]:
    """Segments in a folder, of which nothing is announced yet; the names of each session's records."""
    rig = Rig(folder)
    await rig.catalog.open()
    expected = {}
    for _ in range(sessions):
        session_id = str(uuid.UUID(int=chance.getrandbits(128), version=4))
        made, expected[session_id] = segments_of(session_id, chance)
        for index, data in enumerate(made):
            await rig.add(session_id, data, index=index, durable=0)
    await rig.catalog.close()
    return expected


async def run(folder: Path, seed: int, *, fuse: int = 0, kill_after: float | None = None) -> int | None:
    """Let a loader run; it dies at its statement `fuse`, or is killed some seconds from its start. Its exit status."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "testkit.ingesting", str(folder), str(seed), str(fuse)),
        env={**os.environ, "PYTHONPATH": str(LIB)},
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"started\n"
    rest = asyncio.ensure_future(process.stdout.read())
    if kill_after is not None:
        await asyncio.wait([rest], timeout=kill_after)
        if process.returncode is None:
            process.kill()
    said = await rest
    assert said in {b"done\n", b""}
    return await process.wait()


def check(folder: Path, expected: dict[str, list[str]], bench: Bench) -> None:
    for session_id, names in expected.items():
        assert bench.sequences(session_id) == list(range(len(names)))
        for table in ("feature", "value", "timing", "event", "exception"):
            found = bench.sql(
                f"SELECT sequence, CASE name WHEN 'declared' THEN attributes->>'n' ELSE name END FROM {table} "
                "WHERE session_id = $id::UUID ORDER BY 1",
                id=session_id,
            )
            assert all(names[sequence] == name for sequence, name in found)
    assert bench.sql("SELECT sum(records) FROM loaded") == [(sum(map(len, expected.values())),)]


async def killed(tmp_path: Path, seed: int, kills: int, sessions: int) -> None:
    """Kill it, half of the times between two statements and half at any moment, then let it end."""
    chance = random.Random(seed)
    expected = await fill(tmp_path, chance, sessions)
    died = 0
    for number in range(kills):
        how = {"fuse": chance.randrange(1, 60)} if number % 2 else {"kill_after": chance.uniform(0.0, 0.4)}
        died += await run(tmp_path, chance.getrandbits(32), **how) == -signal.SIGKILL
    assert await run(tmp_path, chance.getrandbits(32)) == 0
    analytics = Analytics(tmp_path / "analytics.duckdb")
    check(tmp_path, expected, Bench(analytics, None, tmp_path))  # type: ignore[arg-type] # nothing is decoded here
    analytics.close()
    assert died, "it was killed at least once before its end"


async def test_a_loader_killed_at_random_moments_loads_every_record_once(tmp_path: Path, seed: int) -> None:
    await killed(tmp_path, seed, kills=6, sessions=8)


@pytest.mark.soak
@pytest.mark.timeout(0)
async def test_a_loader_killed_two_hundred_times(tmp_path: Path, seed: int) -> None:
    for number in range(10):
        folder = tmp_path / str(number)
        folder.mkdir()
        await killed(folder, seed + number, kills=20, sessions=60)

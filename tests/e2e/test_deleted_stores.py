"""The store's folder is removed under a recording process, and all that it was told arrives, or is counted."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mailboat.agent import SessionState
from mailboat.agent.segment_file import segment_name
from testkit.agents import AgentMaker
from testkit.patience import TELL_WHEN_ASKED, Patience
from testkit.serverkit import PRODUCT
from testkit.servers import Given, Served

PROGRAM = """
import asyncio, json, os, sys
from pathlib import Path
from mailboat.agent import Agent
store, server, key, product, automatic, segment_bytes = sys.argv[1:]

async def main():
    agent = Agent(server=server, api_key=key, product=product, application="importer", store=Path(store),
                  synchronize_automatically=automatic == "yes", startup_delay=0.0, sync_interval=1.0, stop_timeout=30.0,
                  segment_bytes=int(segment_bytes), journal_bytes=128 * 1024)
    loop, number = asyncio.get_running_loop(), 0
    await agent.start()
    while True:
        word = await loop.run_in_executor(None, sys.stdin.readline)
        if word.startswith("record"):
            for _ in range(int(word.split()[1])):
                agent.feature("noise", number=number, noise=os.urandom(700))
                number += 1
        elif word == "sync\\n":
            await agent.force_sync(timeout=30.0)
        elif not word or word == "stop\\n":
            break
        flushed = await agent.flush(durable=True)
        print(json.dumps({"session": agent.session_id, "flushed": flushed}), flush=True)
    await agent.stop()
    status = agent.status
    print(json.dumps({"recorded": status.recorded, "lost": dict(status.lost), "trouble": status.trouble,
                      "ledger": status.ledger.to_wire()}), flush=True)

asyncio.run(main())
"""


class Recording:
    """A process that records as it is told, and says what came of it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def do(self, word: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{word}\n".encode())
        await self.process.stdin.drain()
        told: dict[str, Any] = json.loads(await self.process.stdout.readline())
        return told

    async def record(self, count: int) -> str:
        """Have it record so much and flush it; the session's id."""
        told = await self.do(f"record {count}")
        assert told["flushed"], told
        return str(told["session"])


@asynccontextmanager
async def recording(
    store: Path, server: Served, *, automatic: bool = False, segment_bytes: int = 2**24
) -> AsyncIterator[Recording]:
    settings = (str(store), server.url, server.key, PRODUCT, "yes" if automatic else "no", str(segment_bytes))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", TELL_WHEN_ASKED + PROGRAM, *settings),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    with Patience(process.pid) as patience:
        try:
            yield Recording(process)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
    patience.check()


def numbers(records: list[dict[str, Any]]) -> list[int]:
    return [record["attributes"]["number"] for record in records]


@pytest.mark.parametrize("deleted", ["store", "session", "segment"])
@pytest.mark.parametrize("automatic", [False, True])
async def test_what_was_recorded_before_and_after_arrives_once(
    tmp_path: Path, server: Served, given: Given, deleted: str, automatic: bool
) -> None:
    store = tmp_path / "store"
    async with recording(store, server, automatic=automatic) as process:
        session_id = await process.record(500)
        (folder,) = store.glob(f"**/{session_id}")
        for count in (300, 200):
            await process.do("sync")  # a part of it is at the server, which has to go on there
            match deleted:
                case "store":
                    shutil.rmtree(store)
                case "session":
                    shutil.rmtree(folder)
                case "segment":
                    (folder / segment_name(0)).unlink()
            await process.record(count)
        told = await process.do("stop")
        await process.process.wait()
    assert (told["recorded"], told["lost"], told["trouble"]) == (1000, {}, "")
    assert (told["ledger"]["recorded"], told["ledger"]["accepted"]) == (1000, 1000)
    assert numbers(await given.records(session_id)) == list(range(1000))


async def test_killed_afterwards_it_is_recovered_by_the_next_process(
    tmp_path: Path, server: Served, given: Given, make_agent: AgentMaker
) -> None:
    store = tmp_path / "store"
    async with recording(store, server) as process:
        session_id = await process.record(500)
        shutil.rmtree(store)
        await process.record(500)
        process.process.kill()
        await process.process.wait()
    async with make_agent() as agent:
        assert (await agent.force_sync(timeout=30.0)).complete
        outcome = await agent.delivered(session_id, timeout=5.0)
        assert (outcome.state, outcome.records) == (SessionState.ACCEPTED, 1000)
    assert numbers(await given.records(session_id)) == list(range(1000))


async def test_it_is_noticed_while_nothing_is_recorded_and_others_see_that_it_lives(
    tmp_path: Path, server: Served, given: Given, make_agent: AgentMaker
) -> None:
    store = tmp_path / "store"
    async with recording(store, server) as process:
        session_id = await process.record(500)
        (folder,) = store.glob(f"**/{session_id}")
        shutil.rmtree(store)
        segment = folder / segment_name(0)
        while not segment.exists():  # noqa: ASYNC110 - it is another process that makes it
            await asyncio.sleep(0.01)
        async with make_agent() as agent:  # which would take it up if it were a dead process's
            assert (await agent.force_sync(timeout=30.0)).error is None
            assert [path.name for path in store.glob("*/importer/live/*")].count(session_id) == 1
        assert (await process.do("stop"))["ledger"]["accepted"] >= 500
        await process.process.wait()
    assert numbers(await given.records(session_id)) == list(range(500))


@pytest.mark.parametrize("synced", [False, True])
async def test_what_is_lost_is_counted_and_the_account_balances(
    tmp_path: Path, server: Served, given: Given, synced: bool
) -> None:
    """Segments that had ended, of 100 records each, cannot be had any more; the server is told how many those are, also
    where it has them.
    """
    store = tmp_path / "store"
    async with recording(store, server, segment_bytes=65_536) as process:
        session_id = await process.record(100)
        for _ in range(3):
            await process.record(100)
        if synced:
            await process.do("sync")
        shutil.rmtree(store)
        await process.record(100)
        told = await process.do("stop")
        await process.process.wait()
    assert (told["recorded"], told["lost"], told["trouble"]) == (500, {"deleted": 300}, "")
    ledger = told["ledger"]
    assert (ledger["recorded"], ledger["accepted"], ledger["lost"]) == (500, 200, {"deleted": 300})
    row = (await given.sessions())[session_id]
    assert (row["records"], row["lost"], row["delivered"]) == (200, {"deleted": 300}, True)
    page = await given.get(f"sessions/{session_id}/records", limit=1000)
    assert numbers(page["records"]) == list(range(0 if synced else 300, 500))

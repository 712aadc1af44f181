"""P9: a backlog of ten thousand sessions is negotiated, every decision durable at the server.

The subject is all that happens between an agent's summaries and the decisions in its hands: requests of 500 offers, one
after the other, as an agent makes them, to a server in a process of its own. The reference is one bulk insert of the
same rows (the sessions, and an upload each) into tables of the same layout, committed once, as durable.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import aiohttp

from bench.harness import SESSION, Budget, Comparison, Contender, Measured, Sense, Settings, Stopwatch
from bench.serving import PRODUCT, serving
from mailboat.protocol import Info, Summary, wire
from mailboat.protocol.ids import ENTROPY_BYTES, new_id
from mailboat.protocol.limits import MAX_NEGOTIATION, MAX_OFFERS
from mailboat.protocol.negotiation import Reply, Request, Verdict
from mailboat.protocol.records import COUNTERS
from mailboat.protocol.summary import SegmentState, Status
from mailboat.server.catalog import Registration, SessionState
from mailboat.server.catalog_schema import bring_up_to_date
from mailboat.server.sqlite_sessions import register

NAME = "negotiating"
ABOUT = "negotiation of ten thousand sessions (P9)"
REPETITIONS = 5

SESSIONS = 10_000
AGENT = "mailboat-bench/1.0"


async def comparisons(settings: Settings) -> AsyncGenerator[Comparison, None]:
    """P9."""
    work = _Work(settings.folder, [_summary(number) for number in range(min(SESSIONS, settings.sessions * 2))])
    yield Comparison(
        "P9",
        f"{len(work.summaries)} sessions negotiated",
        SESSION,
        Sense.COST,
        Contender("one bulk insert of the rows", work.insert),
        Contender("mailboat", work.negotiate),
        budget=Budget(3.0, Sense.COST),
    )


class _Work:
    """The contenders; each run begins with nothing on the disk."""

    def __init__(self, folder: Path, summaries: Sequence[Summary]) -> None:
        self._folder = folder
        self.summaries = summaries

    async def insert(self) -> Measured:
        """The reference."""
        return await asyncio.to_thread(self._insert)

    def _insert(self) -> Measured:
        source, target = sqlite3.connect(":memory:", isolation_level=None), self._folder / "rows.sqlite"
        bring_up_to_date(source)
        chance, now = random.Random(1), time.time()
        offers = [Registration(PRODUCT, each, SessionState.WANTED) for each in self.summaries]
        register(source, offers, now, None, lambda: new_id(int(now * 1000), chance.randbytes(ENTROPY_BYTES)))
        rows = {table: source.execute(f"SELECT * FROM {table}").fetchall() for table in ("sessions", "uploads")}  # noqa: S608
        db = sqlite3.connect(target, isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        bring_up_to_date(db)
        os.sync()
        with Stopwatch() as watch:
            db.execute("BEGIN IMMEDIATE")
            for table, found in rows.items():
                marks = ", ".join("?" * len(found[0]))
                db.executemany(f"INSERT INTO {table} VALUES ({marks})", found)  # noqa: S608 - names from above
            db.execute("COMMIT")
        db.close()
        for path in self._folder.glob("rows.sqlite*"):
            path.unlink()
        return Measured(len(self.summaries), watch.wall, watch.cpu)

    async def negotiate(self) -> Measured:
        """Ours."""
        folder = self._folder / "server"
        try:
            async with serving("receiving", folder) as server, aiohttp.ClientSession(auto_decompress=False) as client:
                os.sync()
                began, wanted = await server.cpu(), 0
                with Stopwatch() as watch:
                    for start in range(0, len(self.summaries), MAX_OFFERS):
                        some = tuple(self.summaries[start : start + MAX_OFFERS])
                        wanted += await _negotiate(client, server.url, server.key, some)
                taken = await server.cpu() - began
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if wanted != len(self.summaries):
            raise RuntimeError(f"the server wants {wanted} of {len(self.summaries)} sessions")
        return Measured(wanted, watch.wall, watch.cpu + taken, {"client": watch.cpu, "server": taken})


async def _negotiate(client: aiohttp.ClientSession, url: str, key: str, offers: tuple[Summary, ...]) -> int:
    """One request; how many of the sessions are wanted."""
    headers = {
        "Authorization": f"Bearer {key}",
        "Content-Type": wire.MSGPACK_MEDIA_TYPE,
        "Content-Encoding": "zstd",
        "Accept-Encoding": "zstd",
    }
    body = wire.compress(Request(AGENT, offers, time.time()).encode())
    async with client.post(f"{url}/v1/negotiate", data=body, headers=headers) as response:
        response.raise_for_status()
        answer = await response.read()
    reply = Reply.decode(wire.decompress(answer, MAX_NEGOTIATION), wire.MSGPACK_MEDIA_TYPE)
    return sum(decision.verdict is Verdict.SEND for decision in reply.decisions)


def _summary(number: int) -> Summary:
    """A session as real ones are: a few hundred records, one sealed segment."""
    chance = random.Random(number)
    now, records = time.time() - chance.uniform(60, 86_400), chance.randrange(50, 2000)
    counts = {"feature": records, "event": records // 10, "info": records // 10}
    return Summary(
        session_id=new_id(int(now * 1000), chance.randbytes(ENTROPY_BYTES)),
        info=Info(
            product=PRODUCT,
            application="importer",
            version=f"2.{number % 7}",
            agent=AGENT,
            host=f"host-{number % 500}",
            os="Linux 6.1",
            runtime="CPython 3.11.7",
            locale="en_GB",
            properties={"edition": "pro"},
        ),
        started=now,
        ended=now + 60,
        duration=60.0,
        status=Status.STOPPED,
        counts=tuple(counts.get(name, 0) for name in COUNTERS),
        segments=(SegmentState(0, records * 40, records, sealed=True, sha256=chance.randbytes(32).hex()),),
        installation=f"inst-{number % 500}",
    )

"""QUERY: what the JSON API answers about ten million records, by HTTP, from a server as it comes.

Each question is asked about all that is there (90 days), the dearer ones also about other periods and with filters. The
reference is an answer without a question, so that what is compared is the question alone; the plan allows it 200 ms.

The store is filled by its engine, not by loading: sessions in the order of their start, records in that of their
sessions, as they would have arrived. A quarter of a million records are not summed yet, as on average. Lists of
sessions and the records of one session are not asked for: they come from the catalog and from the segments.
"""

# ruff: noqa: S608 - the SQL that fills tables is made of the constants below

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from http import HTTPStatus
from itertools import islice
from pathlib import Path
from typing import Final

import aiohttp
import duckdb

from bench.harness import Budget, Comparison, Contender, Measured, Sense, Settings, Unit
from bench.serving import PRODUCT, Server, serving
from mailboat.protocol import Info, Summary
from mailboat.protocol.ids import ENTROPY_BYTES, new_id
from mailboat.protocol.records import COUNTERS
from mailboat.protocol.summary import Status
from mailboat.server import summing
from mailboat.server.analytics import Analytics
from mailboat.server.catalog import Role, SessionRow, SessionState
from mailboat.server.keys import create_key
from mailboat.server.loader import ANALYTICS_FILE
from mailboat.server.sums import STORED, TAIL

NAME = "querying"
ABOUT = "questions about many records (QUERY)"
REPETITIONS = 9

ANSWER = Unit("answer", "ms", 1e3)
DAY: Final = 24 * 3600.0
DAYS: Final = 90
CRASHED: Final = 0.02
"""Share of the sessions that end so."""
COPIED: Final = 5000
"""Sessions put into the store at a time."""

RECORDS: Final = {
    "feature": (140, """
        'area' || (f // 100) || '.part' || (f // 10 % 10) || '.step' || (f % 10),
        '{"rows":' || (h % 9973) || ',"source":"' || ['drive', 'mail', 'disk'][h % 3 + 1] || '","ok":true}'"""),
    "value": (20, """
        'size.' || (h % 30), '{"ok":true}', (h % 1000003) / 7.0, 'bytes'"""),
    "timing": (20, """
        'parse.' || (h % 30), '{"ok":true}', (h % 1000003) / 1e6"""),
    "event": (19, """
        'miss.' || (h % 40), '{"key":' || (h % 1000) || '}', 20 + 10 * (h % 2), 'no entry for key ' || (h % 1000)"""),
    "exception": (1, """
        'Error' || (h % 40), '{}', 40, 'number ' || h || ' is not there', NULL,
        '[["/srv/app/main.py",10,"main"],["/srv/app/part' || (h % 300) || '.py",' || (h % 90) || ',"step"]]', '[]',
        printf('%016x', h % 300)"""),
}  # fmt: skip
"""For each table the number of records of one session, and their columns from the name on; `h` is a random number.
Of the 1,200 features few are used often: half of all uses are of 75 of them."""
PER_SESSION: Final = sum(number for number, _ in RECORDS.values())

QUESTIONS: Final = (
    "overview", "versions", "installations", "warnings", "features", "values", "exceptions", "delivery", "ledger",
    "accounts",
)  # fmt: skip
DEAR: Final = ("overview", "features", "values", "exceptions")
"""What is also asked about other periods: in days before now, from and to, none of them at the bounds of a week."""
PERIODS: Final = {
    "a week": (7.0, 0.0),
    "a month": (30.0, 0.0),
    "60 days, cut": (75.4, 15.4),
    "87 days, cut": (88.4, 1.4),
}
FILTERED: Final = {
    "overview": "origin=all",
    "features": "origin=all&limit=1000",
    "values": "origin=all&limit=20",
    "exceptions": "origin=internal",
}
"""And with filters, about all that is there."""


async def comparisons(settings: Settings) -> AsyncGenerator[Comparison, None]:
    """One for each question."""
    folder = settings.folder / "data"
    now = time.time()
    await asyncio.to_thread(_fill, folder, settings.records, now)
    key = await asyncio.to_thread(create_key, folder, PRODUCT, Role.READER)
    async with (
        serving("mailboat", folder) as server,
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as client,
    ):
        await _check(server, client, settings.records)
        bare = Contender("no question", _asking(server, client, "openapi.json"))
        for name, what, query in _questions(now):
            yield Comparison(
                "QUERY",
                f"/api/v1/{name} of {settings.records} records, {what}",
                ANSWER,
                Sense.EXTRA,
                bare,
                Contender(f"{name}, {what}", _asking(server, client, name + query)),
                budget=Budget(0.2, Sense.EXTRA),
            )


def _questions(now: float) -> Iterator[tuple[str, str, str]]:
    """Each with what it is about, in words and as a query."""
    for name in QUESTIONS:
        yield name, f"{DAYS} days", ""
    for name in DEAR:
        for what, (since, until) in PERIODS.items():
            yield name, what, f"?from={now - since * DAY:.0f}&to={now - until * DAY:.0f}"
        yield name, FILTERED[name], f"?{FILTERED[name]}"


async def _check(server: Server, client: aiohttp.ClientSession, records: int) -> None:
    """Raises where the answers are not about all records."""
    async with client.get(f"{server.url}/api/v1/overview?origin=all") as response:
        told = (await response.json())["records"]
    number = sum(told.values())
    if not records - PER_SESSION < number <= records:
        raise RuntimeError(f"{number} records of {records}: {told}")


def _asking(server: Server, client: aiohttp.ClientSession, path: str) -> Callable[[], Awaitable[Measured]]:
    async def run() -> Measured:
        cpu = await server.cpu()
        begun = time.perf_counter()
        async with client.get(f"{server.url}/api/v1/{path}") as response:
            body = await response.read()
        taken = time.perf_counter() - begun
        if response.status != HTTPStatus.OK:
            raise RuntimeError(f"{path}: {response.status} {body[:500]!r}")
        return Measured(1, taken, await server.cpu() - cpu)

    return run


def _fill(folder: Path, records: int, now: float) -> None:
    """A store with so many records."""
    folder.mkdir(parents=True)
    analytics = Analytics(folder / ANALYTICS_FILE)
    count = max(1, records // PER_SESSION)
    sessions = _sessions(count, now)
    while some := list(islice(sessions, COPIED)):
        analytics.load_sessions(some, 1)
    cursor = analytics.cursor()
    fresh = cursor.execute("SELECT product, session_id::VARCHAR, installation FROM session").fetchall()
    cursor.begin()
    summing.number(cursor, summing.Numbering(), fresh)
    cursor.commit()
    summed = count - min(count // 2, TAIL // PER_SESSION // 2)
    for generation, (begin, end) in enumerate(((0, summed), (summed, count)), 1):
        _load(cursor, generation, begin, end)
        analytics.sum_up(idle=generation == 1)
    cursor.execute("CHECKPOINT")
    cursor.close()
    analytics.close()


def _load(cursor: duckdb.DuckDBPyConnection, generation: int, begin: int, end: int) -> None:
    """Add the records of the sessions with numbers from `begin` to before `end`."""
    cursor.execute(
        f"""CREATE OR REPLACE TEMP TABLE fresh AS SELECT session.*, number FROM session
            JOIN numbered USING (product, session_id) WHERE number >= {begin} AND number < {end}"""
    )
    first = 0
    for table, (number, columns) in RECORDS.items():
        cursor.execute(
            f"""INSERT INTO {STORED[table]} SELECT number, {generation}, internal, {first} + i,
                started + to_microseconds(CAST(duration * 1e6 * i / {number} AS BIGINT)), {columns}
            FROM (SELECT s.*, i, (hash(session_id, i, '{table}') >> 1)::BIGINT AS h,
                         (1200 * pow(h % 100003 / 100003, 4))::INTEGER AS f
                  FROM (FROM fresh ORDER BY number) s, range({number}) r(i))"""
        )
        first += number
    cursor.execute(
        f"""INSERT INTO loaded SELECT product, session_id, 0, session_id, 10000, {first}, {first}, '[[0,{first}]]',
            '[]', NULL, ended + to_seconds(hash(session_id) % 5000) FROM fresh"""
    )
    cursor.execute(f"UPDATE state SET generation = {generation}, waiting = waiting + {first * (end - begin)}")


def _sessions(count: int, now: float) -> Iterator[SessionRow]:
    """Sessions over `DAYS`, of a few thousand installations whose versions grow."""
    chance = random.Random(1)
    counts = tuple(RECORDS[name][0] if name in RECORDS else 0 for name in COUNTERS)
    for at in range(count):
        started = now - DAYS * DAY * (count - at) / count
        person, length = chance.randrange(8000), chance.uniform(60, 7200)
        info = Info(
            product=PRODUCT,
            application="importer",
            version=f"2.{20 * at // count + chance.randrange(3)}.{chance.randrange(2)}",
            user=f"user-{person}",
            os=("Linux 6.1", "Windows 11", "macOS 15")[person % 3],
            runtime=("CPython 3.11.9", "CPython 3.12.4")[person % 2],
            locale=("de_DE", "en_GB", "fr_FR", "en_US")[person % 4],
            test=not person % 20,
        )
        summary = Summary(
            session_id=new_id(int(started * 1000), chance.randbytes(ENTROPY_BYTES)),
            info=info,
            started=started,
            ended=started + length,
            duration=length,
            status=Status.CRASHED if chance.random() < CRASHED else Status.STOPPED,
            counts=counts,
            segments=(),
            installation=f"installation-{person}",
        )
        yield SessionRow(PRODUCT, summary, SessionState.WANTED, "", "", None, started, started + length)

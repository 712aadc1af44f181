"""kill -9 at random moments of recording processes: what they were told was recorded arrives, once, in order.

One after the other, on many stores; and many at once, on one store, whose senders die too.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from mailboat.agent import Agent, SessionState
from mailboat.server.unsealing import public_key
from testkit.oracle import Habits, Told, complaints, killed
from testkit.serverkit import PRODUCT
from testkit.servers import Given, Served, digests, given_by, served, show, stored

STORES = 10
VICTIMS_EACH = 5
AT_ONCE = 4
PROCESSES, SENDERS = 16, 2
"""Of the many on one store: two at a time send, and each that is killed has a successor."""


async def lives_and_deaths(store: Path, server: Served, application: str, seed: int, seal_to: str) -> list[Told]:
    """Several victims on one store, some at the same time; each later one takes up what earlier ones left."""
    draw = random.Random(seed)
    gate = asyncio.Semaphore(2)

    async def one(own_seed: int, after: int) -> Told:
        async with gate:
            return await killed(Habits.drawn(own_seed, store, server.url, server.key, application, seal_to), after)

    lives = [(draw.randrange(2**32), draw.choice((1, 2, 3, draw.randrange(4, 1500)))) for _ in range(VICTIMS_EACH)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(*life)) for life in lives]
    return [task.result() for task in tasks]


async def recovered(store: Path, server: Served, application: str) -> Agent:
    """An agent that has brought everything in the store to the server, and has stopped."""
    agent = Agent(
        store=store,
        server=server.url,
        api_key=server.key,
        product=PRODUCT,
        application=application,
        synchronize_automatically=False,
        stop_timeout=60.0,  # its own session arrives, too
    )
    async with agent:
        report = await agent.force_sync(timeout=60.0)
        assert report.complete, report
        assert all(
            outcome.state is SessionState.ACCEPTED
            for outcome in report.sessions
            if outcome.session_id != agent.session_id
        ), report
    return agent


async def check(told: list[Told], store: Path, application: str, agent: Agent, given: Given) -> int:
    """Each session of this store at the server; returns how many records those hold."""
    here = {name: row for name, row in (await given.sessions()).items() if row["info"]["application"] == application}
    by_session = {each.session_id: each for each in told if each.session_id is not None}
    assert by_session.keys() <= here.keys(), "a session is missing"
    total = 0
    for session_id, row in here.items():
        records = await given.records(session_id)
        assert row["delivered"], row
        assert len(records) == row["records"]
        total += len(records)
        # One without a word in the pipe was killed as it began: it may hold what nobody was told, but of its own only.
        if session_id in by_session:
            assert complaints(by_session[session_id], records) == []
        assert digests(await given.segments(session_id)) == digests(stored(store, session_id))
    silent = len(here) - len(by_session) - 1
    assert silent <= sum(each.session_id is None for each in told)
    status = agent.status
    assert (status.ledger.accepted, status.ledger.pending, status.waiting_sessions) == (total, 0, 0)
    return total


async def fifty_lives_and_deaths(tmp_path: Path, seed: int) -> None:
    """`STORES` stores with `VICTIMS_EACH` victims each, one server."""
    draw = random.Random(seed)
    gate = asyncio.Semaphore(AT_ONCE // 2)
    async with served(tmp_path / "data") as server, given_by(server.url, server.data) as given:
        seal_to = (await asyncio.to_thread(public_key, server.data)).text

        async def one_store(number: int, own_seed: int) -> Counter[str]:
            store, application = tmp_path / f"store-{number}", f"application-{number}"
            async with gate:
                told = await lives_and_deaths(store, server, application, own_seed, seal_to)
                agent = await recovered(store, server, application)
                found = await check(told, store, application, agent, given)
            sealed = sum(each.habits.seal_to is not None for each in told)
            return Counter(killed=len(told), told=sum(each.records for each in told), found=found, sealed=sealed)

        async with asyncio.TaskGroup() as group:
            stores = [group.create_task(one_store(number, draw.randrange(2**32))) for number in range(STORES)]
    sums = sum((store.result() for store in stores), Counter[str]())
    show(f"kill -9: {dict(sums)}")
    assert sums["killed"] == STORES * VICTIMS_EACH
    assert sums["told"] <= sums["found"] <= sums["told"] + 4 * sums["killed"]
    assert sums["told"] > 100  # all but one in a million draws of so many lives have one that is long enough


@pytest.mark.timeout(180)
async def test_whatever_was_told_to_be_recorded_arrives_once_and_in_order(tmp_path: Path, seed: int) -> None:
    await fifty_lives_and_deaths(tmp_path, seed)


@pytest.mark.soak
@pytest.mark.parametrize("turn", range(200))
async def test_soak_whatever_was_told_to_be_recorded_arrives_once_and_in_order(
    tmp_path: Path, seed: int, turn: int
) -> None:
    await fifty_lives_and_deaths(tmp_path, seed)


async def sixteen_on_one_store(tmp_path: Path, seed: int) -> None:
    """All begin at once; two of them send. Each is killed at a moment of its own, and a sender's place is taken by a
    new process. In the end another one brings what is left.
    """
    draw, store = random.Random(seed), tmp_path / "store"
    async with served(tmp_path / "data") as server, given_by(server.url, server.data) as given:
        seal_to = (await asyncio.to_thread(public_key, server.data)).text

        async def one(own_seed: int, after: int, *, sends: bool) -> Told:
            habits = Habits.drawn(own_seed, store, server.url, server.key, "shared", seal_to)
            return await killed(replace(habits, sender=sends, automatic=sends, syncs=sends, threads=1), after)

        async def one_after_the_other(seeds: list[int]) -> list[Told]:
            return [await one(each, draw.randrange(100, 500), sends=True) for each in seeds]

        def seeds(count: int) -> list[int]:
            return [draw.randrange(2**32) for _ in range(count)]

        async with asyncio.TaskGroup() as group:
            recorders = [
                group.create_task(one(each, draw.choice((1, 2, draw.randrange(3, 400))), sends=False))
                for each in seeds(PROCESSES - SENDERS)
            ]
            senders = [group.create_task(one_after_the_other(seeds(2))) for _ in range(SENDERS)]
        told = [task.result() for task in recorders] + [each for task in senders for each in task.result()]
        agent = await recovered(store, server, "shared")
        found = await check(told, store, "shared", agent, given)
    records = sum(each.records for each in told)
    show(f"many on one store: {len(told)} killed, {records} told, {found} found")
    assert records <= found <= records + len(told)
    assert len(told) == PROCESSES + SENDERS
    assert records > 300  # each of the senders' four lives has a hundred lines, two of which are no record


@pytest.mark.timeout(180)
async def test_of_many_processes_on_one_store_each_session_arrives_once(tmp_path: Path, seed: int) -> None:
    await sixteen_on_one_store(tmp_path, seed)


@pytest.mark.soak
@pytest.mark.parametrize("turn", range(150))
async def test_soak_of_many_processes_on_one_store_each_session_arrives_once(
    tmp_path: Path, seed: int, turn: int
) -> None:
    await sixteen_on_one_store(tmp_path, seed)

"""A server killed with -9 during uploads, several times, and started again on its folder."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from mailboat.agent import SessionState
from testkit.agents import AgentMaker, left_behind
from testkit.proxies import CountingProxy
from testkit.servers import Given, Served, digests, show, stored

KIB, MIB = 1024, 1024 * 1024
KILLS = 4


@pytest.mark.parametrize("automatic", [True, False])
async def test_agents_go_on_where_it_was_killed(
    make_agent: AgentMaker, server: Served, given: Given, tmp_path: Path, seed: int, automatic: bool
) -> None:
    """Two applications at the same time: some large sessions, some of many segments, many small ones."""
    draw = random.Random(seed)
    sessions: dict[str, list[tuple[str, int]]] = {"importer": [], "exporter": []}
    for application, found in sessions.items():
        for size in (3 * MIB, 800 * KIB, *(draw.randrange(1, 60 * KIB) for _ in range(8))):
            settings = {"application": application, "segment_bytes": draw.choice((64 * KIB, 16 * MIB))}
            found.append(await left_behind(make_agent, size, draw.getrandbits(32), **settings))
    async with CountingProxy(server.address) as proxy:
        proxy.pace.rate = 8 * MIB

        async def deliver(application: str, found: list[tuple[str, int]]) -> int:
            timing = {"synchronize_automatically": automatic, "startup_delay": 0.0, "sync_interval": 1.0}
            async with make_agent(server=proxy.url, application=application, **timing) as agent:
                window = None if automatic else asyncio.create_task(agent.force_sync(timeout=90.0))
                outcomes = [await agent.delivered(session_id, timeout=90.0) for session_id, _ in found]
                assert {outcome.state for outcome in outcomes} == {SessionState.ACCEPTED}
                assert agent.status.ledger.accepted == sum(outcome.records for outcome in outcomes)
                assert window is None or (await window).complete
                return sum(outcome.records for outcome in outcomes)

        async with asyncio.TaskGroup() as group:
            agents = [group.create_task(deliver(*each)) for each in sessions.items()]
            for _ in range(KILLS):
                await proxy.passed(proxy.segment_bytes + draw.randrange(1, 1200 * KIB))
                await server.kill_and_restart()
        carried = proxy.segment_bytes
    for found in sessions.values():
        for session_id, recorded in found:
            assert len(await given.records(session_id)) == recorded
            assert digests(await given.segments(session_id)) == digests(stored(tmp_path, session_id))
    recorded = sum(each for found in sessions.values() for _, each in found)
    assert sum(agent.result() for agent in agents) == recorded
    listed = await given.sessions()
    assert {session_id for found in sessions.values() for session_id, _ in found} <= listed.keys()
    assert sum(int(session["records"]) for session in listed.values()) == recorded
    held = await given.held()
    show(f"a server killed {KILLS} times: {held} bytes, {carried - held} carried twice")

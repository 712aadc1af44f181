"""A network that comes and goes, over a real proxy and a real server (testing.md, row 13; rows L3 and T5).

Each schedule is a story of its own: connections are cut after random bytes, answers are lost, the line goes silent with
connections half open, slow and down by turns, and requests are torn anywhere. Once it heals, everything is there, and
what the server had acknowledged was not sent again.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from mailboat.agent import Agent, SessionState
from mailboat.agent.http import Answer
from testkit.agents import AgentMaker, left_behind
from testkit.proxies import LostLineProxy
from testkit.servers import Given, Served, digests, show, stored

KIB = 1024


async def misfortune(proxy: LostLineProxy, draw: random.Random) -> None:
    """What befalls the network next, for a moment."""
    match draw.choice(["cut", "cut", "down", "silent", "slow", "open"]):
        case "cut":
            proxy.cut_after(*(draw.randrange(1, 60 * KIB) for _ in range(draw.randrange(1, 4))))
        case "down":
            await proxy.close()
        case "silent":
            proxy.silent.clear()
        case "slow":
            proxy.pace.rate = draw.choice([200 * KIB, 2000 * KIB])
        case _:
            await healed(proxy)
    await asyncio.sleep(draw.uniform(0, 0.02))


async def healed(proxy: LostLineProxy) -> None:
    proxy.pace.rate = None
    proxy.silent.set()
    await proxy.open()


async def story(make_agent: AgentMaker, server: Served, given: Given, store: Path, seed: int) -> None:
    draw = random.Random(seed)
    sessions = [
        await left_behind(make_agent, draw.randrange(1, 80 * KIB), seed + at, segment_bytes=64 * KIB, store=store)
        for at in range(draw.randrange(1, 4))
    ]
    async with LostLineProxy(server.address) as proxy:
        automatic = {"synchronize_automatically": True, "startup_delay": 0.0, "sync_interval": 1.0}
        settings = automatic if draw.random() < 0.3 else {}
        async with make_agent(server=proxy.url, store=store, **settings) as agent:
            wrong = watched(agent)
            for _ in range(draw.randrange(3, 8)):
                window = asyncio.create_task(agent.force_sync(timeout=draw.uniform(0.01, 0.15)))
                await misfortune(proxy, draw)
                await window
            await healed(proxy)
            await all_delivered(agent, sessions)
    assert wrong == [], f"seed {seed}"
    for session_id, recorded in sessions:
        assert digests(await given.segments(session_id)) == digests(stored(store, session_id)), f"seed {seed}"
        assert len(await given.records(session_id)) == recorded, f"seed {seed}"


def watched(agent: Agent) -> list[str]:
    """Appends of the agent that begin before where the server stands by the last answer that has reached the agent."""
    assert agent._sync is not None
    http, wrong = agent._sync._http, list[str]()
    real, acknowledged = http.request, dict[str, int]()

    async def request(method: str, url: str, headers: dict[str, str], *rest: Any, **named: Any) -> Answer:  # noqa: ANN401 - as it is
        if method == "PATCH" and int(headers["Upload-Offset"]) < acknowledged.get(url, 0):
            wrong.append(f"{url}: {headers['Upload-Offset']} is sent again, {acknowledged[url]} was acknowledged")
        answer = await real(method, url, headers, *rest, **named)
        if "upload-offset" in answer.headers:
            acknowledged[url] = int(answer.headers["upload-offset"])
        return answer

    http.request = request  # type: ignore[method-assign]
    return wrong


async def all_delivered(agent: Agent, sessions: list[tuple[str, int]]) -> None:
    report = await agent.force_sync(timeout=60.0)
    assert report.complete, report
    states = {(await agent.delivered(session_id, timeout=10.0)).state for session_id, _ in sessions}
    assert states == {SessionState.ACCEPTED}


async def tell(make_agent: AgentMaker, server: Served, given: Given, tmp_path: Path, seed: int, schedules: int) -> None:
    for number in range(0, schedules, 5):
        some = range(number, min(number + 5, schedules))
        await asyncio.gather(
            *(story(make_agent, server, given, tmp_path / str(each), seed + 10 * each) for each in some)
        )
    # What had come to the server's machine, and was not read when the next request ended the transfer, comes again.
    show(f"{await given.received() - await given.held()} of {await given.held()} bytes came twice")


async def test_flapping(make_agent: AgentMaker, server: Served, given: Given, tmp_path: Path, seed: int) -> None:
    await tell(make_agent, server, given, tmp_path, seed, 50)


@pytest.mark.soak
async def test_flapping_for_long(
    make_agent: AgentMaker, server: Served, given: Given, tmp_path: Path, seed: int
) -> None:
    await tell(make_agent, server, given, tmp_path, seed, 500)

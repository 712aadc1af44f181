"""Small sessions that ride along, through a server that is killed, answers that are lost, and requests that are cut."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from mailboat.agent import SessionState
from testkit.agents import AgentMaker, left_behind
from testkit.relays import Cut, relayed
from testkit.servers import Given, Served, digests, stored

SESSIONS = 40


async def backlog(make_agent: AgentMaker, draw: random.Random) -> dict[str, int]:
    """Small sessions that wait; the records of each."""
    made = [await left_behind(make_agent, draw.randrange(1, 25_000), draw.getrandbits(32)) for _ in range(SESSIONS)]
    return dict(made)


async def all_there_once(given: Given, store: Path, sessions: dict[str, int]) -> None:
    """Each session is at the server, with its very bytes, each record once."""
    for session_id, recorded in sessions.items():
        assert digests(await given.segments(session_id)) == digests(stored(store, session_id))
        assert len(await given.records(session_id)) == recorded
    listed = await given.sessions()
    assert sum(int(listed[session_id]["records"]) for session_id in sessions) == sum(sessions.values())
    assert {session_id for session_id in sessions if not listed[session_id]["delivered"]} == set()


async def test_a_backlog_takes_few_requests_and_no_uploads(
    make_agent: AgentMaker, server: Served, given: Given, tmp_path: Path, seed: int
) -> None:
    sessions = await backlog(make_agent, random.Random(seed))
    requests: list[bytes] = []

    async def note(up: bool, _: int, piece: bytes) -> None:
        if up and b" HTTP/1.1\r\n" in piece:
            requests.append(piece.split(b" HTTP")[0])

    async with relayed(server.address) as relay, make_agent(server=relay.url) as agent:
        relay.passed = note
        report = await agent.force_sync(timeout=60.0)
        ledger = agent.status.ledger
    assert report.complete, report.error
    assert {each.state for each in report.sessions if each.session_id in sessions} == {SessionState.ACCEPTED}
    assert ledger.accepted == sum(sessions.values())
    size = sum(len(each) for session_id in sessions for each in stored(tmp_path, session_id))
    assert report.bytes_sent >= size
    assert await given.received() >= size
    assert sum(b"/v1/uploads" in each for each in requests) <= 1, requests  # of the running session
    assert len(requests) <= 10, requests
    await all_there_once(given, tmp_path, sessions)


@pytest.mark.parametrize("moment", ["before it is whole", "before it is kept", "before it is answered"])
async def test_a_server_killed_while_sessions_ride(
    make_agent: AgentMaker, server: Served, given: Given, tmp_path: Path, seed: int, moment: str
) -> None:
    """Each is there once, whether the kill came before its commit, or between that and the answer."""
    draw = random.Random(f"{seed} {moment}")
    sessions = await backlog(make_agent, draw)
    killed = False

    async def kill(up: bool, before: int, piece: bytes) -> None:
        nonlocal killed
        riding = before + len(piece) > 50_000 if up else before > 0  # the first answer is to offers alone
        if killed or not riding or up != (moment != "before it is answered"):
            return
        killed = True
        loop.call_later(draw.random() * 0.02 if moment == "before it is kept" else 0.0, time.set)
        if moment != "before it is kept":  # then what the server has done about it nobody knows
            raise Cut

    loop, time = asyncio.get_running_loop(), asyncio.Event()
    async with relayed(server.address) as relay, make_agent(server=relay.url) as agent:
        relay.passed = kill
        window = asyncio.create_task(agent.force_sync(timeout=60.0))
        await time.wait()
        await server.kill_and_restart()
        report = await window
        accepted = agent.status.ledger.accepted
    assert killed
    assert report.complete, report.error
    assert accepted == sum(sessions.values())
    await all_there_once(given, tmp_path, sessions)


async def test_requests_that_are_cut_again_and_again(
    make_agent: AgentMaker, server: Served, given: Given, tmp_path: Path, seed: int
) -> None:
    """Every connection ends after 60 KB: what does not get through aboard is uploaded, byte by byte."""
    sessions = await backlog(make_agent, random.Random(seed))

    async def cut(up: bool, before: int, piece: bytes) -> None:
        if up and before + len(piece) > 60_000:
            raise Cut

    async with relayed(server.address) as relay, make_agent(server=relay.url) as agent:
        relay.passed = cut
        report = await agent.force_sync(timeout=60.0)
    assert report.complete, report.error
    size = sum(len(each) for session_id in sessions for each in stored(tmp_path, session_id))
    assert await given.received() <= 1.5 * size
    await all_there_once(given, tmp_path, sessions)

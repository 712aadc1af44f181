"""A segment goes while the one before it waits for its answer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from testkit.agents import AgentMaker, left_behind
from testkit.relays import relayed
from testkit.servers import Given, Served, digests, stored

SESSIONS = 7
SIZE = 100_000
"""Bytes of each: too many to ride along."""


@pytest.mark.parametrize("concurrency", [1, 2])
async def test_a_segment_goes_while_the_one_before_it_waits_for_its_answer(
    make_agent: AgentMaker, server: Served, given: Given, tmp_path: Path, seed: int, concurrency: int
) -> None:
    sessions = [(await left_behind(make_agent, SIZE, seed + number))[0] for number in range(SESSIONS)]
    begun, answered, most = 0, 0, 0
    another = asyncio.Condition()

    async def hold(up: bool, _: int, piece: bytes) -> None:
        """No append is answered before so many others have begun as may."""
        nonlocal begun, answered, most
        async with another:
            if up and piece.startswith(b"PATCH "):
                begun += 1
                most = max(most, begun - answered)
                another.notify_all()
            elif not up and piece.startswith(b"HTTP/1.1 204 "):
                await another.wait_for(lambda: begun >= SESSIONS or begun - answered == 2 * concurrency)
                answered += 1

    async with relayed(server.address) as relay, make_agent(server=relay.url, upload_concurrency=concurrency) as agent:
        relay.passed = hold
        async with asyncio.timeout(60.0):
            report = await agent.force_sync()
    assert report.complete, report.error
    assert most == 2 * concurrency
    for session_id in sessions:
        assert digests(await given.segments(session_id)) == digests(stored(tmp_path, session_id))

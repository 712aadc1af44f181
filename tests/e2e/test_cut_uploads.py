"""Connections cut all the time: what the server has been told it holds is not sent again."""

from __future__ import annotations

import asyncio
import random
import re
from pathlib import Path

import pytest

from mailboat.agent import Agent
from testkit.agents import AgentMaker, left_behind
from testkit.proxies import CountingProxy, LostLineProxy
from testkit.servers import Given, Served, digests, show, stored

KIB, MIB = 1024, 1024 * 1024


async def same(given: Given, store: Path, session_id: str) -> int:
    """The server's copy is the agent's; the size of it."""
    ours = stored(store, session_id)
    assert digests(await given.segments(session_id)) == digests(ours)
    return sum(map(len, ours))


async def test_a_segment_of_16_mib_cut_every_64_kib(
    make_agent: AgentMaker, server: Served, given: Given, tmp_path: Path, seed: int
) -> None:
    session_id, recorded = await left_behind(make_agent, 16 * MIB - 200 * KIB, seed)
    (segment,) = stored(tmp_path, session_id)
    assert len(segment) > 15.5 * MIB
    async with CountingProxy(server.address) as proxy:
        proxy.cut_after(*range(64 * KIB, 64 * MIB, 64 * KIB))
        async with make_agent(server=proxy.url) as agent:
            report = await agent.force_sync(timeout=90.0)
        assert report.complete, report
        # The last cut stretch is the confirmation, and what the heads of requests add.
        assert len(proxy.cuts) >= len(segment) // (64 * KIB)
        carried = proxy.segment_bytes
    assert await same(given, tmp_path, session_id) == len(segment)
    held = await given.held()
    twice_here, twice_there = carried - held, await given.received() - held
    show(f"16 MiB cut {len(proxy.cuts)} times: {twice_here} bytes carried twice, {twice_there} received twice")
    assert 0 <= twice_there <= twice_here <= held // 100
    assert len(await given.records(session_id)) == recorded


async def test_cuts_at_random_while_many_sessions_are_sent(
    make_agent: AgentMaker, server: Served, given: Given, tmp_path: Path, seed: int
) -> None:
    """Also in negotiations, in answers, in heads, with two uploads at a time, and by the automatic part."""
    draw = random.Random(seed)
    sessions = [
        await left_behind(
            make_agent, draw.randrange(10 * KIB, 700 * KIB), draw.getrandbits(32), segment_bytes=128 * KIB
        )
        for _ in range(8)
    ]
    async with CountingProxy(server.address) as proxy:
        marks, at = [], 0
        for _ in range(60):
            at += draw.randrange(1, 120 * KIB)
            marks.append(at)
        proxy.cut_after(*marks)
        agent: Agent = make_agent(
            server=proxy.url, synchronize_automatically=True, startup_delay=0.0, sync_interval=1.0
        )
        async with agent:
            outcomes = await asyncio.gather(*(agent.delivered(session_id, timeout=90.0) for session_id, _ in sessions))
            assert {outcome.state for outcome in outcomes} == {"accepted"}
            assert sum(outcome.bytes_sent for outcome in outcomes) > 0
        total = 0
        for session_id, recorded in sessions:
            total += await same(given, tmp_path, session_id)
            assert len(await given.records(session_id)) == recorded
        held = await given.held()
        twice_here, twice_there = proxy.segment_bytes - held, await given.received() - held
        show(f"8 sessions cut {len(proxy.cuts)} times: {twice_here} bytes carried twice, {twice_there} received twice")
        assert held >= total
        # What a cut takes from the server's hands before it could look at it is the network's affair, not the agent's.
        assert 0 <= twice_there <= held // 100


@pytest.mark.parametrize("held_back", ["answers", "everything"])
async def test_answers_lost_after_the_server_took_all(
    make_agent: AgentMaker, server: Served, given: Given, tmp_path: Path, seed: int, held_back: str
) -> None:
    """The body has gone through, the answer has not: the agent asks, and sends no byte again."""
    session_id, _ = await left_behind(make_agent, 300 * KIB, seed)
    (segment,) = stored(tmp_path, session_id)
    async with LostLineProxy(server.address) as proxy:  # a reset would take back what the server has not read yet
        if held_back == "everything":
            proxy.delay = 0.02

        async def cut_when_all_is_through() -> None:
            await proxy.passed(len(segment))
            await proxy.close()
            await proxy.open()

        async with make_agent(server=proxy.url) as agent:
            cutting = asyncio.create_task(cut_when_all_is_through())
            report = await agent.force_sync(timeout=30.0)
            await cutting
        assert report.complete, report
        assert await same(given, tmp_path, session_id) == len(segment)
        assert proxy.segment_bytes == await given.received() == await given.held()


async def test_a_proxy_that_passes_on_whole_bodies_only(
    make_agent: AgentMaker, server: Served, given: Given, tmp_path: Path, seed: int
) -> None:
    """And every connection ends after 300 KB: no body arrives that is larger, until the agent makes them small."""
    session_id, recorded = await left_behind(make_agent, 2 * MIB, seed)
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        left = 300_000
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: *(\d+)", head.lower())
                body = int(length[1]) if length is not None else 0
                content = await reader.readexactly(min(body, left))
                left -= len(content)
                sent += len(content)
                if len(content) < body:
                    return
                back, there = await asyncio.open_connection(*server.address)
                there.write(head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) + content)
                writer.write(await back.read())
                there.close()
                return
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = "http://{}:{}".format(*proxy.sockets[0].getsockname()[:2])
    async with proxy, make_agent(server=url) as agent:
        report = await agent.force_sync(timeout=60.0)
    assert report.complete, report.error
    assert digests(await given.segments(session_id)) == digests(stored(tmp_path, session_id))
    assert len(await given.records(session_id)) == recorded
    assert sent < 3 * sum(len(each) for each in stored(tmp_path, session_id))

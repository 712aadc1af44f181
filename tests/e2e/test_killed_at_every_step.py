"""An agent, or a server, killed with -9 before and after everything that it does to disk and network in a delivery.

Whatever the moment: the server's copy is byte-identical in the end, and no session is there twice.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

import aiohttp
import pytest

from mailboat.agent import SessionState
from mailboat.server.keys import create_key
from testkit import strikes
from testkit.agents import AgentMaker, left_behind
from testkit.serverkit import PRODUCT, ServerProcess, Wire, fresh_session_id, make_segment, summary_of, wired
from testkit.servers import Given, Served, digests, given_by, show, stored

LIB = str(Path(strikes.__file__).parents[1])
ENVIRONMENT = {**os.environ, "PYTHONPATH": LIB}
SOAK = [pytest.mark.soak, pytest.mark.timeout(0)]
BUSY = pytest.mark.timeout(600)  # each kill costs two starts of a process, which take seconds on a machine that is busy


# -- agents ------------------------------------------------------------------------------------------------------------


async def agent_killed(store: Path, server: Served, at: int) -> tuple[int, str]:
    """Run an agent that dies at place `at`: its exit status, and what it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        strikes.agent_program,
        str(store),
        server.url,
        server.key,
        str(at),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=ENVIRONMENT,
    )
    said, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, (said or errors).decode()


@pytest.mark.parametrize("kills", [pytest.param(15, marks=BUSY), pytest.param(0, marks=SOAK, id="all")])
async def test_an_agent(
    make_agent: AgentMaker, server: Served, given: Given, tmp_path: Path, seed: int, kills: int
) -> None:
    draw = random.Random(seed)

    async def waiting() -> str:
        session_id, _ = await left_behind(make_agent, 100_000, draw.getrandbits(32), segment_bytes=64 * 1024)
        return session_id

    await waiting()
    status, said = await agent_killed(tmp_path / "store", server, 0)
    assert (status, said.startswith(strikes.PREPARED)) == (0, True), said
    places = int(said.split()[-1])
    assert places > 50
    struck = 0
    for at in sorted(draw.sample(range(1, places + 1), kills)) if kills else range(1, places + 1):
        session_id = await waiting()
        status, said = await agent_killed(tmp_path / "store", server, at)
        assert status in (-signal.SIGKILL, 0), said  # its own thread makes the number of places differ by a few
        struck += status != 0
        async with make_agent() as agent:
            report = await agent.force_sync(timeout=60.0)
            ledger = agent.status.ledger
        assert report.complete, (at, report)
        states = {outcome.session_id: outcome.state for outcome in report.sessions}
        assert states.get(session_id, SessionState.ACCEPTED) is SessionState.ACCEPTED
        assert digests(await given.segments(session_id)) == digests(stored(tmp_path / "store", session_id))
        assert ledger.recorded == ledger.accepted + ledger.pending
    listed = await given.sessions()  # which fails on a session that is listed twice
    show(f"an agent killed {struck} times, at {places} places; {len(listed)} sessions at the server")
    assert struck >= (kills or places) // 2


# -- servers -----------------------------------------------------------------------------------------------------------


async def started(data: Path, port: int, at: int) -> ServerProcess:
    """A server that dies at place `at` once it is armed."""
    with data.with_name("server.log").open("ab") as log:  # its decoder complains when it is left alone
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            strikes.server_program,
            str(data),
            str(port),
            str(at),
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            env=ENVIRONMENT,
        )
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode().strip()
    assert line.startswith("listening on "), line
    return ServerProcess(data, int(line.rpartition(":")[2]), process, [line])


async def delivered(client: Wire, parts: list[bytes]) -> None:
    """Deliver a session as an agent does, in several appends; raises when the server goes."""
    while True:
        (decision,) = await client.negotiate(summary_of(*parts))
        if decision.verdict == "have":
            assert [each.sha256 for each in decision.segments] == [each.sha256 for each in summary_of(*parts).segments]
            return
        for data, segment in zip(parts, decision.segments, strict=True):
            offset = segment.offset
            for end in sorted({len(data) // 2, len(data)}):
                if not segment.complete and offset <= end:
                    answer = await client.append(segment.url, data[offset:end], offset, complete=end == len(data))
                    assert answer.status == 204, answer
                    offset = answer.offset


@pytest.mark.parametrize("kills", [pytest.param(10, marks=BUSY), pytest.param(0, marks=SOAK, id="all")])
async def test_a_server(tmp_path: Path, seed: int, kills: int) -> None:
    draw = random.Random(seed)
    data = tmp_path / "data"
    key = await asyncio.to_thread(create_key, data, PRODUCT)
    sessions: dict[str, list[bytes]] = {}
    unfinished: list[bytes] | None = None
    struck, port = 0, 0
    # A delivery has seventy or eighty places: half of them are such as there are in any case.
    some = draw.sample(range(1, 60), kills // 2) + draw.sample(range(60, 90), kills - kills // 2)
    places = sorted(some) if kills else range(1, 10_000)
    for at in places:
        server = await started(data, port, at)
        port = server.port
        async with wired(server.url, key) as client:
            if unfinished is not None:
                await delivered(client, unfinished)
            session_id = fresh_session_id()
            first = make_segment(session_id, size=draw.randrange(3_000, 30_000))
            parts = [first, make_segment(session_id, index=1, first=summary_of(first).records, size=3_000)]
            sessions[session_id] = unfinished = parts
            server.process.send_signal(signal.SIGUSR1)
            try:
                await delivered(client, parts)
            except (aiohttp.ClientError, ConnectionError):
                struck += 1
                await server.process.wait()
                assert server.process.returncode == -signal.SIGKILL
                continue
        unfinished = None
        assert await server.stop() in (0, -signal.SIGKILL)  # the place to die at may lie behind the delivery
        if not kills:
            break  # a whole delivery has fewer places
    show(f"a server killed {struck} times in {len(sessions)} deliveries")
    assert struck >= (kills or 60) // 2
    last = await started(data, port, 0)
    async with wired(last.url, key) as client:
        if unfinished is not None:
            await delivered(client, unfinished)
    async with given_by(last.url, data) as given:
        for session_id, parts in sessions.items():
            assert digests(await given.segments(session_id)) == digests(parts)
        assert set(await given.sessions()) == set(sessions)
    assert await last.stop() == 0

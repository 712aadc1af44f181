"""Agents deliver to a plain tus server; here it is our own one, spoken to as any other. See also conformance/peers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest

from mailboat.agent import ConfigError
from mailboat.agent.places import NAME
from mailboat.protocol.uploads.tus import parse_metadata
from testkit.agents import AgentMaker, fill, left_behind
from testkit.lines import line_to
from testkit.serverkit import PRODUCT
from testkit.servers import Given, Served, digests, stored

MIB = 1024 * 1024
PLACE = "/v1/uploads/"


def sink(url: str) -> str:
    return f"tus+{url}{PLACE}"


def places(store: Path) -> list[Path]:
    return sorted(store.glob(f"**/{NAME}"))


async def holds(given: Given, store: Path, session_id: str) -> bool:
    return digests(await given.segments(session_id)) == digests(stored(store, session_id))


async def test_sessions_are_accepted_and_named(
    make_agent: AgentMaker, server: Served, given: Given, tmp_path: Path
) -> None:
    left = [await left_behind(make_agent, 200_000, seed) for seed in range(3)]
    async with make_agent(server=sink(server.url)) as agent:
        report = await agent.force_sync(timeout=30.0)
        running = agent.session_id
    ended = {each.session_id: each for each in report.sessions if each.session_id != running}
    assert {(session_id, each.state, each.records) for session_id, each in ended.items()} == {
        (session_id, "accepted", recorded) for session_id, recorded in left
    }
    for session_id, _ in left:
        assert await holds(given, tmp_path / "store", session_id)
        (note,) = (tmp_path / "store").glob(f"**/sent/{session_id}/{NAME}")
        metadata = await told_by(server, note.read_text())
        assert metadata["session"].decode() == session_id
        assert (metadata["segment"], metadata["product"]) == (b"0", PRODUCT.encode())
    received = await given.received()
    async with make_agent(server=sink(server.url)) as agent:
        await agent.force_sync(timeout=30.0)
    assert await given.received() - received < 10_000, "only the session of the agent itself"


async def told_by(server: Served, note: str) -> dict[str, bytes]:
    url = json.loads(note)["uploads"]["0"]["url"]
    headers = {"Authorization": f"Bearer {server.key}", "Tus-Resumable": "1.0.0"}
    async with aiohttp.ClientSession() as http, http.head(url, headers=headers) as answer:
        metadata = parse_metadata(answer.headers["Upload-Metadata"])
        assert metadata is not None
        return metadata


async def test_a_running_session_is_sent_and_continued(
    make_agent: AgentMaker, server: Served, given: Given, tmp_path: Path
) -> None:
    agent = make_agent(server=sink(server.url), stop_timeout=30.0)
    async with agent:
        session_id = agent.session_id
        assert session_id is not None
        for seed in range(3):
            fill(agent, 100_000, seed)
            report = await agent.force_sync(timeout=30.0)
            assert report.error is None
            assert report.bytes_left == 0
            assert [each.state for each in report.sessions] == ["pending"]
            assert (await agent.delivered(session_id, timeout=10.0)).bytes_left == 0
        received = await given.received()
    assert (await agent.delivered(session_id, timeout=0.1)).state == "accepted"
    assert await holds(given, tmp_path / "store", session_id)
    assert received > 300_000
    assert await given.received() == sum(map(len, stored(tmp_path / "store", session_id))), "no byte came twice"


@pytest.mark.parametrize("accident", ["cut", "kill"])
async def test_it_goes_on_where_the_server_stands(
    make_agent: AgentMaker, server: Served, given: Given, tmp_path: Path, accident: str
) -> None:
    session_id, _ = await left_behind(make_agent, 3 * MIB, 1)
    on_cut = server.kill_and_restart if accident == "kill" else None
    async with line_to(server.process.port, [MIB, MIB], on_cut) as line:
        async with make_agent(server=sink(line.url)) as agent:
            report = await agent.force_sync(timeout=60.0)
        assert line.cuts_left == 0
    assert {each.state for each in report.sessions if each.session_id == session_id} == {"accepted"}
    assert await holds(given, tmp_path / "store", session_id)


async def test_another_process_goes_on_at_the_very_byte(
    make_agent: AgentMaker, server: Served, given: Given, tmp_path: Path
) -> None:
    """The first one ends within an upload: what it had noted is all that the second one has."""
    session_id, _ = await left_behind(make_agent, 3 * MIB, 1)
    cut, stopped = asyncio.Event(), asyncio.Event()

    async def end() -> None:
        cut.set()
        await stopped.wait()

    async with line_to(server.process.port, [MIB], end) as line:
        agent = make_agent(server=sink(line.url))
        await agent.start()
        window = asyncio.create_task(agent.force_sync(timeout=60.0))
        await cut.wait()
        await agent.stop(timeout=0.0)
        await window
        stopped.set()
        assert len(places(tmp_path / "store")) >= 1
        address = line.url
    # The note names the line's address; the second process reaches the server by the same one.
    port = int(address.rpartition(":")[2])
    async with line_to(server.process.port, port=port), make_agent(server=sink(address)) as agent:
        report = await agent.force_sync(timeout=60.0)
    assert {each.state for each in report.sessions if each.session_id == session_id} == {"accepted"}
    assert await holds(given, tmp_path / "store", session_id)
    uploads = [path for path in (server.data / "segments").glob("*/*") if path.stat().st_size > MIB]
    assert len(uploads) == 1, "one upload for the segment, though two processes sent it"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"server": "http://elsewhere/", "uploads": {}}'])
async def test_a_note_that_is_damaged_costs_another_upload(
    make_agent: AgentMaker, server: Served, given: Given, tmp_path: Path, content: bytes
) -> None:
    session_id, _ = await left_behind(make_agent, 50_000, 1)
    (folder,) = (tmp_path / "store").glob(f"**/waiting/{session_id}")
    (folder / NAME).write_bytes(content)
    async with make_agent(server=sink(server.url)) as agent:
        report = await agent.force_sync(timeout=30.0)
    assert {each.state for each in report.sessions if each.session_id == session_id} == {"accepted"}


@pytest.mark.parametrize(
    "server_url", ["tus+ftp://host/", "tus+", "tus+https://", "tus+tus+https://host/", "tus+https://a:b@host/"]
)
def test_an_address_that_is_none_is_refused_at_once(make_agent: AgentMaker, server_url: str) -> None:
    with pytest.raises(ConfigError, match="server="):
        make_agent(server=server_url)

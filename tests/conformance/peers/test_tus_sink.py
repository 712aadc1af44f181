"""Agents deliver sessions to @tus/server, through cuts and kills of it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from mailboat.agent import Agent
from mailboat.agent.places import NAME
from testkit.agents import fill
from testkit.lines import line_to
from testkit.peers import TusNode
from testkit.serverkit import PRODUCT
from testkit.servers import digests, stored

SIZE = 1_000_000


def agent_of(store: Path, server: str | None) -> Agent:
    return Agent(
        store=store,
        server=server,
        product=PRODUCT,
        application="importer",
        synchronize_automatically=False,
        stop_timeout=0.0,
    )


def arrived(node: TusNode, store: Path, session_id: str) -> list[bytes]:
    """The files that the server has of the uploads noted beside a session's segments, in their order."""
    (note,) = store.glob(f"**/{session_id}/{NAME}")
    uploads = json.loads(note.read_text())["uploads"]
    assert all(each["complete"] for each in uploads.values())
    return [(node.data / uploads[index]["url"].rpartition("/")[2]).read_bytes() for index in sorted(uploads, key=int)]


async def left_behind(store: Path, seed: int) -> str:
    agent = agent_of(store, None)
    async with agent:
        fill(agent, SIZE, seed)
    assert agent.session_id is not None
    return agent.session_id


@pytest.mark.parametrize("accident", ["none", "cut", "kill"])
async def test_sessions_arrive(node: TusNode, tmp_path: Path, accident: str) -> None:
    store = tmp_path / "store"
    sessions = [await left_behind(store, seed) for seed in range(2)]
    on_cut = node.kill_and_restart if accident == "kill" else None
    async with line_to(node.port, [] if accident == "none" else [400_000, 300_000], on_cut) as line:
        async with agent_of(store, f"tus+{line.url}/files/") as agent:
            report = await agent.force_sync(timeout=60.0)
        assert line.cuts_left == 0
    assert {each.state for each in report.sessions if each.session_id in sessions} == {"accepted"}, report
    for session_id in sessions:
        files = await asyncio.to_thread(arrived, node, store, session_id)
        assert digests(files) == digests(stored(store, session_id))


async def test_a_running_session_is_continued_after_its_kill(node: TusNode, tmp_path: Path) -> None:
    """Its length is deferred; the agent that goes on after its end is another one."""
    store = tmp_path / "store"
    async with line_to(node.port) as line:
        server = f"tus+{line.url}/files"
        agent = agent_of(store, server)
        async with agent:
            fill(agent, SIZE, 1)
            assert (await agent.force_sync(timeout=60.0)).bytes_left == 0
            await node.kill_and_restart()
            fill(agent, SIZE, 2)
        session_id = agent.session_id
        assert session_id is not None
        before = len(list(node.data.glob("*.json")))
        async with agent_of(store, server) as later:
            report = await later.force_sync(timeout=60.0)
    assert {each.state for each in report.sessions if each.session_id == session_id} == {"accepted"}, report
    files = await asyncio.to_thread(arrived, node, store, session_id)
    assert digests(files) == digests(stored(store, session_id))
    assert len(list(node.data.glob("*.json"))) <= before + 1, "no upload was made anew but that of the later agent"

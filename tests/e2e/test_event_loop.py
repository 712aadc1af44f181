"""The host's event loop is never blocked by the agent: whatever may block, in a full life, does so elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from blockbuster import BlockBuster, BlockingError, blockbuster_ctx

from mailboat.agent import Agent
from mailboat.agent.host import boot_id
from testkit.agents import AgentMaker, fill, left_behind
from testkit.oracle import Habits, killed
from testkit.servers import Served
from testkit.strange import http, saying, silence, strange


@asynccontextmanager
async def unblocked() -> AsyncIterator[None]:
    """Whatever of the agent blocks the event loop raises `BlockingError` where it does."""
    with blockbuster_ctx("mailboat.agent") as guard:
        _permit(guard)
        yield


def _permit(guard: BlockBuster) -> None:
    """Settings are read once, when the agent is made: a mistake in them must raise then and there."""
    for function in guard.functions.values():
        function.can_block_in("mailboat/agent/config.py", "_from_files")


async def test_the_guard_sees_what_blocks() -> None:
    async with unblocked():
        with pytest.raises(BlockingError):
            boot_id()


async def life(agent: Agent, seconds: float = 30.0) -> None:
    """Everything an application does with an agent, with so much time for each thing that needs the server."""
    async with agent:
        record_one_of_each(agent)
        await agent.flush()
        await agent.force_sync(timeout=seconds)
        fill(agent, 400_000, 1)
        await agent.flush(durable=True)
        await agent.force_sync(timeout=seconds)
        agent.pause()
        agent.resume()
        assert agent.status.recorded > 20
        await agent.stop(timeout=seconds)


def record_one_of_each(agent: Agent) -> None:
    agent.feature("import.csv", rows=1200)
    agent.value("import.size", 18_230, unit="bytes")
    with agent.timing("import.parse"):
        agent.event("cache.miss", message="key k1")
    try:
        raise ValueError("on purpose")
    except ValueError:
        agent.exception(context="while importing")
    agent.set_installation("inst-42", plan="pro")
    agent.emitter("order.placed", "user_id", "price")(7, 9.5)


@pytest.mark.parametrize("automatic", [True, False])
async def test_a_full_life_with_crashed_sessions_to_recover(
    make_agent: AgentMaker, server: Served, tmp_path: Path, seed: int, automatic: bool, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "store"
    for at in range(3):
        await killed(Habits(seed + at, str(store), server.url, server.key, "importer"), 200)
    await left_behind(make_agent, 300_000, seed)
    async with unblocked():
        agent = make_agent(synchronize_automatically=automatic, startup_delay=0.0)
        await life(agent)
    assert agent.status.ledger.pending == 0
    assert agent.status.ledger.accepted > 600
    assert "BlockingError" not in caplog.text


@pytest.mark.parametrize(
    "answer", [silence, saying(http(500)), saying(http(401)), saying(b"<html>")], ids=["hangs", "500", "401", "no HTTP"]
)
async def test_a_full_life_with_a_server_that_fails(
    make_agent: AgentMaker, answer: object, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailboat.agent.http.SILENCE_TIMEOUT", 0.3)
    await left_behind(make_agent, 300_000, 1)
    async with strange(answer) as bad, unblocked():  # type: ignore[arg-type] # of a parametrised value
        await life(make_agent(server=bad.url, synchronize_automatically=True, startup_delay=0.0), seconds=0.5)
    assert "BlockingError" not in caplog.text


async def test_a_full_life_without_a_store(
    make_agent: AgentMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    async with unblocked():
        await life(make_agent(store=tmp_path / "file"))
    assert "BlockingError" not in caplog.text

"""Cancelled at any step of starting, flushing, delivering and stopping: no record is lost, none comes twice, and what
the agent was doing can be done again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest

from mailboat.agent import Agent
from testkit.agents import AgentMaker
from testkit.servers import Given

STEPS = (0, 1, 2, 3, 5, 8, 13, 30)
"""Turns of the event loop after which it is cancelled; the last ones come when some operations have ended."""

RECORDS = 20

OPERATIONS: dict[str, Callable[[Agent], Awaitable[object]]] = {
    "start": lambda agent: agent.start(),
    "flush": lambda agent: agent.flush(durable=True),
    "force_sync": lambda agent: agent.force_sync(timeout=30.0),
    "stop": lambda agent: agent.stop(timeout=30.0),
}


async def cancelled_after(operation: Awaitable[object], steps: int) -> bool:
    """Whether it was cancelled before it had ended."""
    task = asyncio.ensure_future(operation)
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
        return False
    return True


async def one_life(agent: Agent, name: str, steps: int) -> bool:
    """Records before and after the operation is cancelled, then ends in order."""
    operation = OPERATIONS[name]
    if name == "start":
        cancelled = await cancelled_after(operation(agent), steps)
        await agent.start()
        record(agent, 0, RECORDS)
    else:
        await agent.start()
        record(agent, 0, RECORDS // 2)
        cancelled = await cancelled_after(operation(agent), steps)
        if name != "stop":
            record(agent, RECORDS // 2, RECORDS)
    await agent.stop(timeout=30.0)
    return cancelled


def record(agent: Agent, first: int, end: int) -> None:
    for number in range(first, end):
        agent.feature("told", n=number)


@pytest.mark.parametrize("name", OPERATIONS)
async def test_cancelled_at_any_step_nothing_is_lost_or_doubled(
    make_agent: AgentMaker, given: Given, name: str
) -> None:
    cancelled, told = 0, dict[str, int]()
    for steps in STEPS:
        agent = make_agent()
        cancelled += await one_life(agent, name, steps)
        assert agent.session_id is not None
        told[agent.session_id] = RECORDS // 2 if name == "stop" else RECORDS
    async with make_agent(stop_timeout=60.0) as last:
        report = await last.force_sync(timeout=60.0)
        assert report.complete, report
    assert cancelled >= 3, "it was hardly ever under way"
    for session_id, count in told.items():
        records = await given.records(session_id)
        assert [each["attributes"]["n"] for each in records] == list(range(count))
    # A start that was cancelled may leave a session without a record, and no more than one.
    empty = (await given.sessions()).keys() - told.keys() - {last.session_id}
    assert len(empty) <= (len(STEPS) if name == "start" else 0)
    for session_id in empty:
        assert await given.records(session_id) == []

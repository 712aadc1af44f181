"""L5, T3: an error in the running session has it sent at once, unless the application says otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from mailboat.agent import Agent, Alert, Level
from testkit.agents import AgentMaker
from testkit.serverkit import PRODUCT
from testkit.servers import Given

AUTOMATIC = {"synchronize_automatically": True, "startup_delay": 3600.0, "sync_interval": 3600.0}
"""Nothing is sent by itself for an hour, but for the sake of errors."""


async def exceptions(given: Given, agent: Agent) -> list[str]:
    """Names of the errors that the server has of the running session, as soon as it has any."""
    async with asyncio.timeout(60.0):
        while True:
            if agent.session_id in await given.sessions():
                found = [each["name"] for each in await given.records(agent.session_id) if each.get("level", 0) >= 40]
                if found:
                    return found
            await asyncio.sleep(0.05)


def an_exception(agent: Agent) -> None:
    agent.exception(LookupError("no such order"))


def an_error(agent: Agent) -> None:
    agent.event("LookupError", level=Level.ERROR)


@pytest.mark.parametrize("record", [an_exception, an_error])
async def test_the_running_session_is_sent_at_once(
    make_agent: AgentMaker, given: Given, record: Callable[[Agent], None]
) -> None:
    async with make_agent(**AUTOMATIC) as agent:
        agent.feature("before")
        record(agent)
        assert await exceptions(given, agent) == ["LookupError"]
        assert agent.status.state == "running"


async def test_a_veto_holds_until_an_error_is_let_through(make_agent: AgentMaker, given: Given) -> None:
    told: list[Alert] = []
    vetoed = asyncio.Event()

    def decide(alert: Alert) -> bool | None:
        told.append(alert)
        if alert[0].name != "harmless":
            return None
        agent.event("in the callback", level=Level.CRITICAL)
        vetoed.set()
        return False

    agent = make_agent(**AUTOMATIC)
    agent.on_alert(decide)
    async with agent:
        await asyncio.to_thread(agent.event, "harmless", Level.ERROR)
        async with asyncio.timeout(30.0):
            await vetoed.wait()
        assert agent.session_id not in await given.sessions()
        agent.exception(LookupError("no such order"))
        assert await exceptions(given, agent) == ["harmless", "in the callback", "LookupError"]
    assert [[each.name for each in alert] for alert in told] == [["harmless"], ["LookupError"]]
    assert told[1][0].message == "no such order"


async def test_without_send_on_error_the_application_is_told_and_nothing_is_sent(
    make_agent: AgentMaker, given: Given
) -> None:
    told: asyncio.Queue[Alert] = asyncio.Queue()
    async with make_agent(**AUTOMATIC, send_on_error=False, product=PRODUCT) as agent:
        agent.on_alert(told.put_nowait)
        agent.exception(LookupError("no such order"))
        async with asyncio.timeout(30.0):
            alert = await told.get()
        assert [each.name for each in alert] == ["LookupError"]
        assert agent._sending is not None
        assert agent._sending.eligibility is not None
        assert agent._sending.eligibility._errors.due is None
        assert agent._sending.eligibility._errors.sent_at is None
        assert agent.session_id not in await given.sessions()

"""Agents for tests of the whole, and what they record."""

from __future__ import annotations

import random
from collections.abc import Callable

from mailboat.agent import Agent

AgentMaker = Callable[..., Agent]


def fill(agent: Agent, size: int, seed: int) -> int:
    """Record about `size` bytes that do not compress; the number of records."""
    draw, number = random.Random(seed), 0
    while size > 0:
        noise = draw.randbytes(draw.randrange(200, 20_000))
        agent.feature("noise", number=number, noise=noise)
        size -= len(noise)
        number += 1
    return number


async def left_behind(make_agent: AgentMaker, size: int, seed: int, **settings: object) -> tuple[str, int]:
    """A session of about `size` bytes that waits to be sent; its id, and how many records it has."""
    agent = make_agent(server=None, **settings)
    async with agent:
        recorded = fill(agent, size, seed)
    assert agent.session_id is not None
    return agent.session_id, recorded

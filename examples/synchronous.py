"""A program without asyncio: the agent is hosted by a thread, and recording is a plain call as everywhere.

Run it: python examples/synchronous.py
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

from mailboat.agent import Agent, AgentThread


def render(agent: Agent, page: int) -> int:
    """One piece of work, on whatever thread; its size."""
    with agent.timing("page.render", page=page):
        size = sum(random.randbytes(1000))
    agent.feature("page.rendered", page=page, size=size)
    return size


def main() -> None:
    """Work with threads, and deliver before the end."""
    with AgentThread(Agent(product="Acme Studio", application="renderer", version="1.0.0")) as host:
        agent = host.agent
        with ThreadPoolExecutor(4) as pool:
            total = sum(pool.map(lambda page: render(agent, page), range(100)))
        agent.value("book.size", total)
        report = host.call(agent.force_sync(timeout=10.0))
        print(f"recorded {agent.status.recorded} records in session {agent.session_id}")
        print("all delivered" if report.complete else f"some other time: {report.error}")


if __name__ == "__main__":
    main()

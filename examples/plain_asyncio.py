"""The least there is: an asyncio program that records while it works.

Run it with a server: MAILBOAT_SERVER=http://127.0.0.1:8787 MAILBOAT_API_KEY=mbk_... python examples/plain_asyncio.py
Without one it only records; `mailboat sessions list` shows what it did.
"""

from __future__ import annotations

import asyncio
import random

from mailboat.agent import Agent, Level


async def work(agent: Agent, order: int) -> None:
    """One piece of work, which fails now and then."""
    with agent.timing("order.process", order=order):
        await asyncio.sleep(0.01)
    agent.feature("order.placed", order=order, items=random.randint(1, 9))
    if order % 7 == 0:
        agent.event("stock.low", level=Level.WARNING, message="fewer than ten left", order=order)
    if order % 10 == 0:
        raise LookupError(f"order {order} has no customer")


async def main() -> None:
    """Work, and say what was recorded."""
    async with Agent(product="Acme Studio", application="orders", version="1.0.0") as agent:
        for order in range(1, 31):
            try:
                await work(agent, order)
            except LookupError as error:
                agent.exception(error, context="while placing an order")
        print(f"recorded {agent.status.recorded} records in session {agent.session_id}")


if __name__ == "__main__":
    asyncio.run(main())

"""A FastAPI application that records its requests: the agent lives as long as the application does.

Run it: uvicorn web_fastapi:app --app-dir examples, then open http://127.0.0.1:8000/orders/7
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException

from mailboat.agent import Agent
from mailboat.agent.integrations.asgi import AsgiMiddleware

agent = Agent(product="Acme Studio", application="orders-api", version="1.0.0")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Start the agent before the first request and stop it after the last."""
    async with agent:
        yield


app = FastAPI(lifespan=lifespan)
app.add_middleware(AsgiMiddleware, agent=agent)


@app.get("/orders/{number}")
async def order(number: int) -> dict[str, int]:
    """Look up an order."""
    if number == 0:
        raise HTTPException(404, "there is no order of that number")
    if number < 0:
        raise ArithmeticError(f"order {number} cannot be")
    agent.feature("order.shown", number=number)
    return {"number": number, "items": number % 9 + 1}

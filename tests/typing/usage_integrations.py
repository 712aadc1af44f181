"""The integrations and the hosted agent as a strictly typed application uses them; checked by mypy, never run."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

from aiohttp import web
from fastapi import FastAPI

from mailboat.agent import Agent, AgentThread, SyncReport
from mailboat.agent.integrations.aiohttp_web import agent_context, record_requests
from mailboat.agent.integrations.asgi import AsgiMiddleware
from mailboat.agent.integrations.logs import LogHandler


def aiohttp_application(agent: Agent) -> web.Application:
    app = web.Application(middlewares=[record_requests(agent)])

    async def context(_: web.Application) -> AsyncIterator[None]:
        async for none in agent_context(agent):
            yield none

    app.cleanup_ctx.append(context)
    return app


def asgi_application(agent: Agent) -> AsgiMiddleware:
    app = FastAPI()
    app.add_middleware(AsgiMiddleware, agent=agent)
    return AsgiMiddleware(app, agent)


def logger(agent: Agent) -> LogHandler:
    handler = LogHandler(agent, level="WARNING")
    logging.getLogger().addHandler(handler)
    assert handler.failures >= 0
    return handler


def synchronous(agent: Agent) -> bool:
    host = AgentThread(agent)
    host.start()
    host.stop(timeout=1.0)
    with AgentThread(Agent(hooks=False)) as other:
        other.agent.feature("a")
        report: SyncReport = other.call(other.agent.force_sync(timeout=1.0), timeout=5.0)
        return report.complete

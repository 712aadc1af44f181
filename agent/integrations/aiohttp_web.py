"""The requests of an aiohttp.web application, recorded by a middleware.

::

    agent = Agent(product="Acme Studio", application="web")
    app = web.Application(middlewares=[record_requests(agent)])
    app.cleanup_ctx.append(lambda _: agent_context(agent))

The outermost place is the best one: what other middlewares raise is recorded then, too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from mailboat.agent.agent import Agent
from mailboat.agent.integrations.requests import UNMATCHED, Request


def record_requests(agent: Agent) -> Middleware:
    """A middleware that records each request with `agent` (see `requests`), and changes nothing of it.

    Answers that are raised (`web.HTTPException`) are answers, not exceptions.
    """

    @web.middleware
    async def record(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        with Request(agent, request.method) as watched:
            watched.route = _route(request)
            try:
                response = await handler(request)
            except web.HTTPException as answer:
                watched.status = answer.status
                watched.answered(answer)
                raise
            watched.status = response.status
            return response

    return record


async def agent_context(agent: Agent) -> AsyncIterator[None]:
    """For `cleanup_ctx`: the agent runs from before the first request until after the last one."""
    async with agent:
        yield


def _route(request: web.Request) -> str:
    return str(getattr(request.match_info.route.resource, "canonical", UNMATCHED))

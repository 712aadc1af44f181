"""A web application that records its requests: the agent lives as long as the application does.

Each request is a feature and a timing of its route, and what a handler raises is an exception, by the middleware; what
the application's loggers say of level warning and up is recorded, too.

Run it: python examples/web_aiohttp.py, then open http://127.0.0.1:8080/hello/world
"""

from __future__ import annotations

import logging

from aiohttp import web

from mailboat.agent import Agent
from mailboat.agent.integrations.aiohttp_web import agent_context, record_requests
from mailboat.agent.integrations.logs import LogHandler

LONG_NAME = 20
AGENT = web.AppKey("agent", Agent)
log = logging.getLogger("acme.web")


async def hello(request: web.Request) -> web.Response:
    """Greet somebody."""
    name = request.match_info["name"]
    if name == "nobody":
        raise LookupError("there is nobody of that name")
    if len(name) > LONG_NAME:
        log.warning("a name of %d letters", len(name))
    request.app[AGENT].feature("greeting", language="en")
    return web.Response(text=f"Hello, {name}\n")


def create_app(agent: Agent) -> web.Application:
    """The application; `agent` is started and stopped with it."""
    app = web.Application(middlewares=[record_requests(agent)])
    app[AGENT] = agent
    app.cleanup_ctx.append(lambda _: agent_context(agent))
    app.router.add_get("/hello/{name}", hello)
    return app


if __name__ == "__main__":
    acme = Agent(product="Acme Studio", application="web", version="1.0.0")
    logging.getLogger("acme").addHandler(LogHandler(acme, level=logging.WARNING))
    web.run_app(create_app(acme), host="127.0.0.1", port=8080)

"""A web application that records its requests: the agent lives as long as the application does.

Run it: python examples/web_aiohttp.py, then open http://127.0.0.1:8080/hello/world
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web

from mailboat.agent import Agent

AGENT = web.AppKey("agent", Agent)


async def agent_context(app: web.Application) -> AsyncIterator[None]:
    """Start the agent before the first request and stop it after the last."""
    async with Agent(product="Acme Studio", application="web", version="1.0.0") as agent:
        app[AGENT] = agent
        yield


@web.middleware
async def record(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Time each request, and record what goes wrong in it."""
    agent = request.app[AGENT]
    route = request.match_info.route.resource
    with agent.timing("http.request", method=request.method, route=route.canonical if route else "none"):
        try:
            return await handler(request)
        except web.HTTPException:
            raise
        except Exception as error:
            agent.exception(error, context=f"{request.method} {request.path}")
            raise


async def hello(request: web.Request) -> web.Response:
    """Greet somebody."""
    request.app[AGENT].feature("greeting", language="en")
    return web.Response(text=f"Hello, {request.match_info['name']}\n")


def create_app() -> web.Application:
    """The application."""
    app = web.Application(middlewares=[record])
    app.cleanup_ctx.append(agent_context)
    app.router.add_get("/hello/{name}", hello)
    return app


if __name__ == "__main__":
    web.run_app(create_app(), host="127.0.0.1", port=8080)

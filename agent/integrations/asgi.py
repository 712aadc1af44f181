"""The requests of an ASGI application, recorded by a middleware that needs no framework.

::

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(AsgiMiddleware, agent=agent)        # or, for any application: app = AsgiMiddleware(app, agent)

The route's template is what the framework leaves in the scope: FastAPI and Starlette's ``route``, else the name of the
``endpoint``. Where there is neither, the request counts as unmatched.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from mailboat.agent.agent import Agent
from mailboat.agent.integrations.requests import UNMATCHED, Request

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


class AsgiMiddleware:
    """Passes everything on to `app` as it is, and records each request with `agent` (see `requests`).

    A websocket counts as one request of the method ``WEBSOCKET``, from its handshake to its end; its status is the code
    it was closed with by the application.
    """

    def __init__(self, app: Application, agent: Agent) -> None:
        self._app, self._agent = app, agent

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One connection, as ASGI has it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        async def watching(message: Message) -> None:
            if message["type"] == "http.response.start":
                watched.status = message.get("status")
            elif message["type"] == "websocket.close":
                watched.status = message.get("code", 1000)
            await send(message)

        with Request(self._agent, str(scope.get("method", "WEBSOCKET"))) as watched:
            try:
                await self._app(scope, receive, watching)
            finally:
                watched.route = _route(scope)


def _route(scope: Message) -> str:
    template = getattr(scope.get("route"), "path", None)
    endpoint = getattr(scope.get("endpoint"), "__qualname__", None)
    return str(template or endpoint or UNMATCHED)

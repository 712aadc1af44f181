"""What the JSON API can be asked: each operation says itself what it takes and what it answers.

The routes and the OpenAPI document are both made of these, so that no route is without its page, no parameter is taken
that is not told of, and none is told of that is not taken.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from mailboat.server.catalog import Role
from mailboat.server.context import Principal, require
from mailboat.server.json_text import encode
from mailboat.server.parameters import Parameter, Parameters, product_of
from mailboat.server.reports import Scope
from mailboat.server.shapes import Shape

JSON: Final = "application/json"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as its handler gets it: who asks, and the parameters, none of which is unknown."""

    request: web.Request
    principal: Principal
    given: Parameters

    @property
    def app(self) -> web.Application:
        """The application."""
        return self.request.app

    def scope(self) -> Scope:
        """What is asked about, within what the key may see; `ProblemError` for more, or for a period that is none."""
        return self.given.scope(self.principal)

    def product(self) -> str | None:
        """The product asked about (None: all), within what the key may see."""
        return product_of(self.principal, self.given.text("product"))


Handler = Callable[[Asked], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Operation:
    """`method` and `path` with the function that answers; what it is for is the first paragraph of its docstring.

    `answer` is the shape of a JSON answer, or the media type of another
    one; `body` the shape of the JSON body that it takes. `refusals` are the statuses of its problem documents beside
    those that any operation may give.
    """

    method: str
    path: str
    handler: Handler
    answer: Shape | str
    parameters: tuple[Parameter, ...] = ()
    role: Role = Role.READER
    body: Shape | None = None
    refusals: tuple[int, ...] = ()

    async def respond(self, request: web.Request) -> web.StreamResponse:
        """The answer to a request; `ProblemError` for one that may not ask, or asks wrongly."""
        principal = require(request, self.role)
        return await self.handler(Asked(request, principal, Parameters(request, self.parameters)))

    @property
    def name(self) -> str:
        """Its name in the document."""
        return str(getattr(self.handler, "__name__", ""))


def add_operations(app: web.Application, operations: Iterable[Operation]) -> None:
    """Add their routes."""
    for each in operations:
        if each.method == "GET":
            app.router.add_get(each.path, each.respond)
        else:
            app.router.add_route(each.method, each.path, each.respond)


def answered(answer: Mapping[str, Any]) -> web.Response:
    """An answer in JSON."""
    return answered_with(encode(answer))


def answered_with(body: bytes) -> web.Response:
    """An answer that is JSON already."""
    return web.Response(body=body, content_type=JSON, headers={"Cache-Control": "no-store"})

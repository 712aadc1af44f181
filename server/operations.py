"""What the JSON API can be asked: each operation says itself what it takes and what it answers.

The routes and the OpenAPI document are both made of these, so that no route is without its page, no parameter is taken
that is not told of, and none is told of that is not taken.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from mailboat.protocol.errors import Code
from mailboat.protocol.limits import KIB
from mailboat.server.bodies import read_whole
from mailboat.server.catalog import Role
from mailboat.server.context import CONFIG, Principal, ProblemError, require
from mailboat.server.json_text import encode
from mailboat.server.parameters import Parameter, Parameters, product_of
from mailboat.server.reports import Scope
from mailboat.server.shapes import Shape

JSON: Final = "application/json"

MAX_BODY: Final = 64 * KIB
"""Bytes of a body: a plan with a hundred patterns of versions fits."""


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

    async def body(self) -> dict[str, Any]:
        """The JSON object that the request carries; `ProblemError` for anything else."""
        if self.request.content_type != JSON:
            raise ProblemError(Code.UNSUPPORTED_MEDIA_TYPE, f"send a JSON object as {JSON}")
        body = await read_whole(self.request, MAX_BODY, self.app[CONFIG].body_timeout)
        try:
            given = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ProblemError(Code.BAD_REQUEST, f"the body is no JSON: {error}"[:300]) from error
        if not isinstance(given, dict):
            raise ProblemError(Code.BAD_REQUEST, "the body must be a JSON object")
        return given


Handler = Callable[[Asked], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Operation:
    """`method` and `path` with the function that answers; what it is for is the first paragraph of its docstring.

    `answer` is the shape of a JSON answer, or the media type of another one (None: it has no body), given with
    `status`; `body` the shape of the JSON body that it takes. `refusals` are the statuses of its problem documents
    beside those that any operation may give.
    """

    method: str
    path: str
    handler: Handler
    answer: Shape | str | None
    parameters: tuple[Parameter, ...] = ()
    role: Role = Role.READER
    body: Shape | None = None
    refusals: tuple[int, ...] = ()
    status: int = 200

    async def respond(self, request: web.Request) -> web.StreamResponse:
        """The answer to a request; `ProblemError` for one that may not ask, or asks wrongly."""
        principal = require(request, self.role)
        return await self.handler(Asked(request, principal, Parameters(request, self.parameters)))

    @property
    def name(self) -> str:
        """Its name in the document."""
        return str(getattr(self.handler, "__name__", ""))


OPERATIONS: Final[web.AppKey[list[Operation]]] = web.AppKey("operations")
"""All operations of the application, for the document."""


def add_operations(app: web.Application, operations: Iterable[Operation]) -> None:
    """Add their routes, and have them in the document."""
    for each in operations:
        app.setdefault(OPERATIONS, []).append(each)
        if each.method == "GET":
            app.router.add_get(each.path, each.respond)
        else:
            app.router.add_route(each.method, each.path, each.respond)


def answered(answer: Mapping[str, Any], status: int = 200) -> web.Response:
    """An answer in JSON."""
    return answered_with(encode(answer), status)


def answered_with(body: bytes, status: int = 200) -> web.Response:
    """An answer that is JSON already."""
    return web.Response(status=status, body=body, content_type=JSON, headers={"Cache-Control": "no-store"})

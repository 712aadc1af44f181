"""Pages of other origins may upload, where the configuration names them (the Fetch standard, "CORS protocol").

Off unless configured. The key goes in `Authorization`, which a page has to be given by its own server; cookies are
never asked for, so an origin that is allowed gains nothing but to read the answers to what it could send anyway.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from mailboat.protocol.negotiation import SERVER_HEADER
from mailboat.protocol.uploads import rufh, tus
from mailboat.server.context import CONFIG

ANY: Final = "*"

_METHODS: Final = "POST, HEAD, PATCH, DELETE, GET, OPTIONS"
_ASKED: Final = (
    "Authorization",
    "Content-Type",
    rufh.UPLOAD_COMPLETE,
    rufh.UPLOAD_INCOMPLETE,
    rufh.INTEROP_VERSION,
    rufh.CONTENT_DIGEST,
    rufh.REPR_DIGEST,
    rufh.WANT_REPR_DIGEST,
    tus.TUS_RESUMABLE,
    tus.UPLOAD_OFFSET,
    tus.UPLOAD_LENGTH,
    tus.UPLOAD_DEFER_LENGTH,
    tus.UPLOAD_METADATA,
    tus.UPLOAD_CONCAT,
    tus.UPLOAD_CHECKSUM,
    tus.METHOD_OVERRIDE,
    "X-Request-ID",  # tus-js-client sends it when it is told to number its requests
)
_TOLD: Final = (
    "Location",
    "Retry-After",
    SERVER_HEADER,
    rufh.UPLOAD_COMPLETE,
    rufh.UPLOAD_INCOMPLETE,
    rufh.UPLOAD_LIMIT,
    rufh.REPR_DIGEST,
    tus.TUS_RESUMABLE,
    tus.TUS_VERSION,
    tus.TUS_EXTENSION,
    tus.TUS_MAX_SIZE,
    tus.TUS_CHECKSUM_ALGORITHM,
    tus.UPLOAD_OFFSET,
    tus.UPLOAD_LENGTH,
    tus.UPLOAD_DEFER_LENGTH,
    tus.UPLOAD_METADATA,
    tus.UPLOAD_CONCAT,
    tus.UPLOAD_EXPIRES,
)
_REMEMBERED: Final = 3600
"""Seconds for which a browser need not ask again; they have bounds of their own, from ten minutes to a day."""


@web.middleware
async def preflights(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer a browser that asks before a page's request; it has no key yet, and is told what is allowed."""
    asks = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
    if not asks or _allowed(request) is None:
        return await handler(request)
    headers = {
        "Access-Control-Allow-Methods": _METHODS,
        "Access-Control-Allow-Headers": ", ".join(_ASKED),
        "Access-Control-Max-Age": str(_REMEMBERED),
    }
    return web.Response(status=204, headers=headers)


async def allow(request: web.Request, response: web.StreamResponse) -> None:
    """Let the page that asked read an answer, errors included."""
    if not request.app[CONFIG].cors_origins:
        return
    response.headers.add("Vary", "Origin")
    origin = _allowed(request)
    if origin is not None:
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = ", ".join(_TOLD)


def _allowed(request: web.Request) -> str | None:
    """The origin that is to be let in, as the answer names it; None for any other, and where no page asks."""
    origin, allowed = request.headers.get("Origin"), request.app[CONFIG].cors_origins
    if origin is None:
        return None
    if ANY in allowed:
        return ANY
    return origin if origin in allowed else None

"""The outermost layer of every request: who asks, and a problem document for whatever goes wrong.

A bad request costs its sender a clear answer, never a 500; what does end in a 500 is logged and counted, and tells
nothing of the inside.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from mailboat.protocol import __version__
from mailboat.protocol.errors import PROBLEM_MEDIA_TYPE, Code, Problem, WireError
from mailboat.protocol.negotiation import SERVER_HEADER
from mailboat.server.allowance import RATES, require_patience
from mailboat.server.catalog import CatalogError
from mailboat.server.context import COUNTERS, PRINCIPAL, ProblemError
from mailboat.server.keys import KEYRING

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

VERSION: Final = __version__

INERT: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
}
"""Have no browser run, load or frame anything of an answer, whatever strangers have put into what it shows."""
AGENTS: Final = "/v1/"
"""Where agents are answered, who run nothing; everything else may be opened in a browser."""

OPEN_PATHS: Final = frozenset({"/", "/v1/status"})
"""What may be asked without a key."""

_FULL: Final = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})
_LOG: Final = logging.getLogger("mailboat.server")


def problem_response(problem: Problem, headers: dict[str, str] | None = None) -> web.Response:
    """`problem` as an answer."""
    return web.Response(
        status=problem.status, body=problem.to_json(), content_type=PROBLEM_MEDIA_TYPE, headers=headers or {}
    )


async def add_version(request: web.Request, response: web.StreamResponse) -> None:
    """Every answer says that it is mailboat's, so that agents can tell it from a captive portal's page."""
    request.app[COUNTERS][f"requests_{response.status}"] += 1
    if not request.path.startswith(AGENTS):
        response.headers.update(INERT)
    response.headers[SERVER_HEADER] = VERSION
    response.headers["Server"] = "mailboat"  # and not which interpreter and library it is made of


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what a handler raises into a problem document."""
    try:
        return await handler(request)
    except ProblemError as error:
        return _counted(request, error.problem, error.headers)
    except WireError as error:
        return _counted(request, Problem(Code.BAD_REQUEST, str(error)))
    except web.HTTPException as error:
        return _counted(request, _of_http(request, error), _kept_headers(error))
    except OSError as error:
        return _for_system(request, error)
    except Exception:  # noqa: BLE001 - the last resort: logged, counted, answered
        _LOG.exception("%s %s failed", request.method, request.path)
        return _counted(request, Problem(Code.INTERNAL, "the server failed; its log tells more"))


@web.middleware
async def authentication(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Find out who asks; nothing but `OPEN_PATHS` is answered to a stranger."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        principal = await request.app[KEYRING].principal(key.strip(), time.monotonic())
        if principal is not None:
            require_patience(request.app[RATES], principal.key_id, time.monotonic())
            request[PRINCIPAL] = principal
    if PRINCIPAL not in request and request.path not in OPEN_PATHS:
        detail = "the key is not valid here" if scheme else "send the key as `Authorization: Bearer mbk_...`"
        raise ProblemError(Code.UNAUTHORISED, detail, {"WWW-Authenticate": 'Bearer realm="mailboat"'})
    return await handler(request)


def _counted(request: web.Request, problem: Problem, headers: dict[str, str] | None = None) -> web.Response:
    request.app[COUNTERS][f"problems_{problem.code.code}"] += 1
    return problem_response(problem, headers)


def _of_http(request: web.Request, error: web.HTTPException) -> Problem:
    """Aiohttp's own refusals (no such route, no such method, a body too large)."""
    codes = {code.status: code for code in Code}
    code = codes.get(error.status, Code.BAD_REQUEST if error.status < Code.INTERNAL.status else Code.INTERNAL)
    return Problem(code, f"{request.method} {request.path[:200]}: {error.reason}")


def _kept_headers(error: web.HTTPException) -> dict[str, str]:
    return {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}


def _for_system(request: web.Request, error: OSError) -> web.Response:
    if isinstance(error, ConnectionError) and (request.transport is None or request.transport.is_closing()):
        request.app[COUNTERS]["answers_cut"] += 1  # whoever asked has gone, and no storage is to blame
        return web.Response(status=Code.UNAVAILABLE.status)  # to nobody
    return _counted(request, _of_system(error))


def _of_system(error: OSError) -> Problem:
    """A disk that is full or fails; the cause stands in the log, the peer may try again later."""
    _LOG.error("the storage fails: %s", error)
    causes = (error, error.__cause__)
    full = any(getattr(cause, "errno", None) in _FULL for cause in causes) or "is full" in str(error)
    if full:
        return Problem(Code.STORAGE_FULL, "the server's disk is full; try again later")
    what = "catalog" if isinstance(error, CatalogError) else "storage"
    return Problem(Code.UNAVAILABLE, f"the server's {what} fails; try again later")

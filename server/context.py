"""What the handlers of one server share, under typed keys of the aiohttp application.

catalog = request.app[CATALOG]
principal = require(request, Role.READER)        # 401 or 403 as a problem document
notify_ingest(request.app)                       # durable bytes have grown
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final, TypeVar, TypeVarTuple

from aiohttp import web

from mailboat.protocol.errors import Code, Problem
from mailboat.server.blobs import Blobs
from mailboat.server.catalog import Catalog, Role
from mailboat.server.config import ServerConfig
from mailboat.server.news import News

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class ProblemError(Exception):
    """Raised by a handler to answer with a problem document."""

    def __init__(self, code: Code, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.problem = Problem(code, detail)
        self.headers = headers or {}


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: the key's id, role, and product (None: the whole server)."""

    key_id: str
    role: Role
    product: str | None

    def reaches(self, product: str) -> bool:
        """Whether rows of `product` may be touched or shown."""
        return self.product is None or self.product == product


CONFIG: Final = web.AppKey("config", ServerConfig)
CATALOG: Final[web.AppKey[Catalog]] = web.AppKey("catalog")
BLOBS: Final[web.AppKey[Blobs]] = web.AppKey("blobs")
CLOCK: Final[web.AppKey[Callable[[], float]]] = web.AppKey("clock")
"""Wall clock, Unix seconds."""
WORKERS: Final[web.AppKey[Executor]] = web.AppKey("workers")
"""Threads for bounded work that would hold the event loop (decoding, file calls)."""
NEGOTIATORS: Final[web.AppKey[Executor]] = web.AppKey("negotiators")
"""Threads that take negotiations apart and keep what rides along."""
VERIFIERS: Final[web.AppKey[Executor]] = web.AppKey("verifiers")
"""Threads for the verification of complete uploads, apart so that no sync waits behind one."""
RECEIVERS: Final[web.AppKey[Executor]] = web.AppKey("receivers")
"""Threads that take large bodies from their sockets, as long as those bring something."""
WRITERS: Final[web.AppKey[Executor]] = web.AppKey("writers")
"""Threads that write what those look into meanwhile."""
NEW_ID: Final[web.AppKey[Callable[[], str]]] = web.AppKey("new_id")
"""Makes upload ids."""
REPLICA: Final = web.AppKey("replica", str)
"""Tells this server from others that share its catalog."""
INGEST_WAKE: Final = web.AppKey("ingest_wake", asyncio.Event)
NEWS: Final = web.AppKey("news", News)
"""For those who wait for more of a running session."""
COUNTERS: Final[web.AppKey[Counter[str]]] = web.AppKey("counters")
"""What happened so far, by name; every swallowed failure is counted here."""

# Typed keys for requests came with aiohttp 3.14, which warns of plain ones.
PRINCIPAL: Final = (
    web.RequestKey("mailboat.principal", Principal) if hasattr(web, "RequestKey") else "mailboat.principal"
)


def require(request: web.Request, role: Role) -> Principal:
    """Who asks, if that key may act in `role` (an admin may in any); otherwise `ProblemError` 401 or 403."""
    principal = request.get(PRINCIPAL)
    if not isinstance(principal, Principal):
        detail = "send the key as `Authorization: Bearer mbk_...`"
        raise ProblemError(Code.UNAUTHORISED, detail, {"WWW-Authenticate": 'Bearer realm="mailboat"'})
    if principal.role not in (role, Role.ADMIN):
        raise ProblemError(Code.FORBIDDEN, f"a key of role {principal.role} may not do what {role} keys may")
    return principal


async def run_in_worker(app: web.Application, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
    """What `function` returns, run in one of the `WORKERS`."""
    return await asyncio.get_running_loop().run_in_executor(app[WORKERS], function, *arguments)


def notify_ingest(app: web.Application) -> None:
    """Say that durable bytes have grown: to ingest, which loads them, and to those who wait for them."""
    app[INGEST_WAKE].set()
    app[NEWS].tell()

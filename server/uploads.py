"""Uploads over HTTP: the routes, who may do what, and the dialect of each request; what follows is in `dealings`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Final

from aiohttp import web

from mailboat.protocol.errors import Code
from mailboat.protocol.ids import is_canonical
from mailboat.protocol.uploads import tus
from mailboat.protocol.uploads.decisions import (
    Appended,
    Refused,
    decide_append,
    decide_cancel,
    decide_create,
    decide_query,
)
from mailboat.protocol.uploads.detect import ServerDialect, answer_options, detect
from mailboat.protocol.uploads.joining import decide_join
from mailboat.protocol.uploads.state import UploadState
from mailboat.protocol.uploads.values import Append, Cancel, Create, Discover, Join, Limits, Query
from mailboat.server.allowance import TRANSFERS, require_room_for_another
from mailboat.server.catalog import Role, UploadRow
from mailboat.server.context import (
    BLOBS,
    CATALOG,
    CLOCK,
    CONFIG,
    COUNTERS,
    NEW_ID,
    Principal,
    ProblemError,
    require,
    run_in_worker,
)
from mailboat.server.dealings import Dealings, response_of
from mailboat.server.taps import left_in_socket
from mailboat.server.turns import TURNS, Turn

PATH: Final = "/v1/uploads"
_PLACE_TAKES: Final = ("OPTIONS", "POST", "PUT")


def add_routes(app: web.Application) -> None:
    """The place where uploads are made, and each upload; which methods they take is for the protocol to say."""
    app.router.add_route("*", PATH, create)
    app.router.add_route("*", PATH + "/", create)  # as tus clients are often told it
    app.router.add_route("*", PATH + "/{id}", act)
    app.on_response_prepare.append(_mark)


async def create(request: web.Request) -> web.StreamResponse:
    """POST (or PUT): make an upload, with the body as its first bytes. OPTIONS: what is supported."""
    with left_in_socket(request):
        return await _at_place(request, require(request, Role.AGENT))


async def _at_place(request: web.Request, principal: Principal) -> web.StreamResponse:
    dialect = detect(request.headers)
    limits = _limits_of_strangers(request)
    if request.headers.get(tus.METHOD_OVERRIDE, request.method).upper() not in _PLACE_TAKES:
        raise web.HTTPMethodNotAllowed(request.method, _PLACE_TAKES)
    asked = dialect.read(request.method, request.headers)
    match asked:
        case Discover():
            return response_of(answer_options(limits))
        case Refused():
            return response_of(dialect.answer(asked, now=request.app[CLOCK]()))
        case Create():
            return await _create(request, principal, asked, limits, dialect)
        case Join():
            return await _join(request, principal, asked, limits, dialect)
        case _:
            raise web.HTTPMethodNotAllowed(request.method, _PLACE_TAKES)


async def act(request: web.Request) -> web.StreamResponse:
    """PATCH, HEAD, GET, DELETE, OPTIONS on one upload."""
    with left_in_socket(request):
        return await _on_one(request, require(request, Role.AGENT))


async def _on_one(request: web.Request, principal: Principal) -> web.StreamResponse:
    catalog, upload_id = request.app[CATALOG], request.match_info["id"]
    # Before the turn: a stranger, or a request that cannot be understood, ends nobody's transfer.
    async with request.app[TURNS].in_order(upload_id):
        row = await catalog.upload(upload_id) if is_canonical(upload_id) else None
    if row is None or not principal.reaches(row.product):
        return response_of(detect(request.headers).answer_unknown())
    dialect = detect(request.headers, row.state.dialect)
    asked = dialect.read(request.method, request.headers)
    match asked:
        case Discover():
            return response_of(answer_options(row.state.limits, upload=True))
        case Refused():
            return response_of(dialect.answer(asked, now=request.app[CLOCK]()))
        case Create() | Join():
            raise web.HTTPMethodNotAllowed(request.method, ["OPTIONS", "HEAD", "GET", "PATCH", "DELETE"])
    # A body counts from before its turn: what waits holds a connection, too.
    with _allowed(request, principal) if isinstance(asked, Append) else nullcontext():
        return await _in_turn(request, upload_id, asked, dialect)


async def _in_turn(
    request: web.Request, upload_id: str, asked: Append | Query | Cancel, dialect: ServerDialect
) -> web.StreamResponse:
    async with request.app[TURNS].take(upload_id) as turn:
        row = await request.app[CATALOG].upload(upload_id)
        if row is None:
            return response_of(dialect.answer_unknown())
        return await _act(Dealings(request, row, turn, dialect), asked)


async def _act(upload: Dealings, asked: Append | Query | Cancel) -> web.StreamResponse:
    now = upload.request.app[CLOCK]()
    match asked:
        case Append():
            verdict = decide_append(upload.row.state, asked, now=now)
            return await (upload.refuse(verdict) if isinstance(verdict, Refused) else upload.append(verdict))
        case Query():
            spoilt = await upload.join()
            found = spoilt or decide_query(upload.row.state, asked, now=now)
            return await (upload.refuse(found) if isinstance(found, Refused) else upload.tell(found))
        case Cancel():
            cancelled = decide_cancel(upload.row.state, now=now)
            return await (upload.refuse(cancelled) if isinstance(cancelled, Refused) else upload.cancel(cancelled))


async def _create(
    request: web.Request, principal: Principal, asked: Create, limits: Limits, dialect: ServerDialect
) -> web.StreamResponse:
    app, now = request.app, request.app[CLOCK]()
    product = await _product_with_room(request, principal)
    verdict = decide_create(asked, upload_id=app[NEW_ID](), limits=limits, now=now, dialect=dialect.tag)
    if isinstance(verdict, Refused):
        return response_of(dialect.answer(verdict, now=now))
    with _allowed(request, principal):
        async with app[TURNS].take(verdict.state.id) as turn:
            upload = await _made(request, verdict.state, product, turn, dialect)
            if asked.content_length != 0:
                await upload.announce()
            return await upload.append(verdict)


async def _join(
    request: web.Request, principal: Principal, asked: Join, limits: Limits, dialect: ServerDialect
) -> web.StreamResponse:
    app, now = request.app, request.app[CLOCK]()
    product = await _product_with_room(request, principal)
    ids = [url.rpartition("/")[2] for url in asked.parts]
    rows = [await app[CATALOG].upload(each) if is_canonical(each) else None for each in ids]
    parts = [None if row is None or row.product != product else row.state for row in rows]
    verdict = decide_join(asked, parts, upload_id=app[NEW_ID](), limits=limits, now=now, dialect=dialect.tag)
    if isinstance(verdict, Refused):
        return response_of(dialect.answer(verdict, now=now))
    async with app[TURNS].take(verdict.state.id) as turn:
        upload = await _made(request, verdict.state, product, turn, dialect)
        spoilt = await upload.join()
        return await (upload.tell(Appended(upload.row.state)) if spoilt is None else upload.refuse(spoilt))


async def _product_with_room(request: web.Request, principal: Principal) -> str:
    """The product that a new upload belongs to; `ProblemError` when there is none, or no room for it."""
    app = request.app
    if principal.product is None:
        raise ProblemError(Code.FORBIDDEN, "an admin's key belongs to no product: upload with a key of the product")
    if await run_in_worker(app, app[BLOBS].free) < app[CONFIG].min_free_bytes:
        raise ProblemError(Code.STORAGE_FULL, "the server's disk is nearly full: it begins no new upload now")
    await require_room_for_another(app, principal.product)
    return principal.product


def _allowed(request: web.Request, principal: Principal) -> AbstractContextManager[None]:
    """For as long as a body comes: one of those that the key may send at the same time."""
    return request.app[TRANSFERS].one_more(principal.key_id, request.app[CONFIG].max_transfers)


async def _made(request: web.Request, state: UploadState, product: str, turn: Turn, dialect: ServerDialect) -> Dealings:
    app, now = request.app, request.app[CLOCK]()
    row = UploadRow(state, product, created=now, updated=now)
    await app[CATALOG].make_upload(row)
    app[COUNTERS]["uploads_made"] += 1
    return Dealings(request, row, turn, dialect, location=_location(request, row.id, absolute=dialect.absolute))


async def _mark(request: web.Request, response: web.StreamResponse) -> None:
    """Answers that no dialect has made (401, 500) bear its mark all the same (tus, Tus-Resumable)."""
    if tus.TUS_RESUMABLE in request.headers:
        response.headers.setdefault(tus.TUS_RESUMABLE, tus.VERSION)


def _location(request: web.Request, upload_id: str, *, absolute: bool) -> str:
    """The URL of an upload. Behind a proxy that ends TLS, it says by X-Forwarded-Proto what the client asked by."""
    if not absolute:
        return f"{PATH}/{upload_id}"
    forwarded = request.headers.get("X-Forwarded-Proto", "")
    scheme = forwarded if forwarded in ("http", "https") else request.scheme
    return f"{scheme}://{request.host}{PATH}/{upload_id}"


def _limits_of_strangers(request: web.Request) -> Limits:
    config = request.app[CONFIG]
    return Limits(max_size=config.max_upload_bytes, max_age=config.upload_max_age)

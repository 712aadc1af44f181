"""The JSON API for people and dashboards, and the metrics: ``/api/v1/*`` and ``/metrics``, all with a reader's key.

Common parameters: `product` (an admin's key sees all products and may choose one), `from` and `to` (a half-open period;
a date, a time or Unix seconds), `origin` (public, internal, all; public by default), `limit` and `cursor` (the `next`
of the page before; null at the end). Times in answers are Unix seconds, durations seconds.

===============================  =================================================================================
``sessions``                     newest start first; also `application`, `version`, `status`, `state`
``sessions/{id}``                summary, segments with what is held of them, gaps
``sessions/{id}/records``        `after` (a sequence number; `cursor` is the same), `limit` up to 5000, `kind`, `name`
``overview``                     totals, days, versions, environment
``features``                     uses, sessions, share; categories by dots
``values``                       values and timings with percentiles; `kind`
``exceptions``                   grouped by type and way
``ledger``                       what agents reported last, and what is here
===============================  =================================================================================

Values that JSON cannot hold are marked in records (see `json_text.exact`) and null elsewhere.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from typing import Any, Final

from aiohttp import web

from mailboat.protocol.errors import Code, WireError
from mailboat.protocol.ids import is_canonical
from mailboat.protocol.summary import Status
from mailboat.server import reports
from mailboat.server.catalog import LedgerRow, SegmentRow, SessionQuery, SessionRow, SessionState
from mailboat.server.context import CATALOG, WORKERS, ProblemError
from mailboat.server.ingest import PLAYBACK, REPORTS
from mailboat.server.json_text import encode
from mailboat.server.metrics import metrics
from mailboat.server.parameters import PAGING, SCOPE, Parameters, product_of, reader, refused
from mailboat.server.playback import Page, PageQuery, as_json
from mailboat.server.reports import Answer, Question, TooSlow

MAX_RECORDS: Final = 5000
"""Records of one page."""


class ValueKind(StrEnum):
    """What ``values`` can be asked for."""

    ALL = "all"
    VALUE = "value"
    TIMING = "timing"


def add_routes(app: web.Application) -> None:
    """Add the routes; `ingest.start` provides what they need."""
    get = app.router.add_get
    get("/api/v1/sessions", list_sessions)
    get("/api/v1/sessions/{id}", show_session)
    get("/api/v1/sessions/{id}/records", list_records)
    get("/api/v1/overview", show_overview)
    get("/api/v1/features", list_features)
    get("/api/v1/values", list_values)
    get("/api/v1/exceptions", list_exceptions)
    get("/api/v1/ledger", show_ledger)
    get("/metrics", metrics)


# -- sessions ------------------------------------------------------------------------------------------------------


async def list_sessions(request: web.Request) -> web.StreamResponse:
    """``GET /api/v1/sessions``."""
    principal = reader(request)
    given = Parameters(request, (*SCOPE, *PAGING, "application", "version", "status", "state"))
    scope = given.scope(principal)
    status = given.choice("status", Status, Status.RUNNING) if given.text("status") is not None else None
    state = given.choice("state", SessionState, SessionState.WANTED) if given.text("state") is not None else None
    query = SessionQuery(
        product=scope.product,
        since=scope.since,
        until=scope.until,
        origin=scope.origin,
        application=given.text("application"),
        version=given.text("version"),
        status=status,
        state=state,
        limit=given.limit(),
        cursor=given.text("cursor"),
    )
    try:
        page = await request.app[CATALOG].sessions(query)
    except WireError as error:
        raise refused("cursor", "it was not handed out here") from error
    return _json({"sessions": [session_json(row) for row in page.sessions], "next": page.cursor})


async def show_session(request: web.Request) -> web.StreamResponse:
    """``GET /api/v1/sessions/{id}``."""
    reader(request)
    row = await _session(request, Parameters(request, ("product",)))
    session_id = row.summary.session_id
    answer = await _ask(request, functools.partial(reports.gaps, row.product, session_id))
    return _json({**session_json(row), "segments": [asdict(each) for each in row.segments], **answer})


async def list_records(request: web.Request) -> web.StreamResponse:
    """``GET /api/v1/sessions/{id}/records``."""
    reader(request)
    given = Parameters(request, ("product", "after", *PAGING, "kind", "name"))
    if given.text("after") is not None and given.text("cursor") is not None:
        raise refused("cursor", "give either it or `after`: they mean the same")
    after = given.whole("cursor" if given.text("cursor") is not None else "after", -1, -1, 2**63 - 1)
    query = PageQuery(after, given.whole("limit", 1000, 1, MAX_RECORDS), given.text("kind"), given.text("name"))
    row = await _session(request, given)
    read = functools.partial(_records, request.app[PLAYBACK].page, row, query)
    body = await asyncio.get_running_loop().run_in_executor(request.app[WORKERS], read)
    return _answer(body)


def _records(read: Callable[[tuple[SegmentRow, ...], PageQuery], Page], row: SessionRow, query: PageQuery) -> bytes:
    """A page of records as JSON, made in a thread; record by record, for the event loop waits for each call."""
    page = read(row.segments, query)
    records = b",".join(encode(as_json(record)) for record in page.records)
    rest = encode({"next": None if page.next is None else str(page.next), "gaps": [asdict(each) for each in page.gaps]})
    return b'{"session":' + encode(row.summary.session_id) + b',"records":[' + records + b"]," + rest[1:]


async def _session(request: web.Request, given: Parameters) -> SessionRow:
    product = product_of(reader(request), given.text("product"))
    session_id = request.match_info["id"]
    if not is_canonical(session_id):
        raise refused("id", f"expected a session's id (a UUID in canonical form), got {session_id!r:.80}")
    row = await request.app[CATALOG].session(product, session_id)
    if row is None:
        raise ProblemError(Code.NOT_FOUND, f"id: there is no session {session_id} here")
    return row


def session_json(row: SessionRow) -> Answer:
    """A session as lists show it."""
    summary = row.summary.to_wire()
    return {
        **summary,
        "offered": summary["segments"],
        "segments": len(row.segments),
        "product": row.product,
        "records": row.summary.records,
        "errors": row.summary.errors,
        "state": row.state.value,
        "reason": row.reason,
        "explanation": row.explanation,
        "delivered": row.delivered,
        "skew": row.skew,
        "first_seen": row.first_seen,
        "updated": row.updated,
        "bytes": sum(each.offset for each in row.segments),
    }


# -- reports -------------------------------------------------------------------------------------------------------


async def show_overview(request: web.Request) -> web.StreamResponse:
    """``GET /api/v1/overview``."""
    scope = Parameters(request, SCOPE).scope(reader(request))
    return _json(await _ask(request, functools.partial(reports.overview, scope)))


async def list_features(request: web.Request) -> web.StreamResponse:
    """``GET /api/v1/features``."""
    principal = reader(request)
    given = Parameters(request, (*SCOPE, *PAGING))
    return _json(await _ask(request, functools.partial(reports.features, given.scope(principal), given.paging())))


async def list_values(request: web.Request) -> web.StreamResponse:
    """``GET /api/v1/values``."""
    principal = reader(request)
    given = Parameters(request, (*SCOPE, *PAGING, "kind"))
    kind = given.choice("kind", ValueKind, ValueKind.ALL)
    chosen = None if kind is ValueKind.ALL else kind.value
    return _json(await _ask(request, functools.partial(reports.values, given.scope(principal), chosen, given.paging())))


async def list_exceptions(request: web.Request) -> web.StreamResponse:
    """``GET /api/v1/exceptions``."""
    principal = reader(request)
    given = Parameters(request, (*SCOPE, *PAGING))
    return _json(await _ask(request, functools.partial(reports.exceptions, given.scope(principal), given.paging())))


async def show_ledger(request: web.Request) -> web.StreamResponse:
    """``GET /api/v1/ledger``: all that was ever received; periods do not apply to an account."""
    principal = reader(request)
    given = Parameters(request, ("product",))
    scope = reports.Scope(product_of(principal, given.text("product")))
    rows = await request.app[CATALOG].ledgers(scope.product)
    here = await _ask(request, functools.partial(reports.holdings, scope))
    return _json({"reported": [_ledger_json(row) for row in rows], "here": here["products"]})


def _ledger_json(row: LedgerRow) -> Answer:
    return asdict(row)


async def _ask(request: web.Request, question: Callable[[Question], Answer]) -> Answer:
    try:
        return await request.app[REPORTS].ask(question)
    except TooSlow as error:
        raise ProblemError(Code.UNAVAILABLE, str(error)) from error


def _json(answer: Any) -> web.Response:  # noqa: ANN401 - any JSON
    return _answer(encode(answer))


def _answer(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json", headers={"Cache-Control": "no-store"})

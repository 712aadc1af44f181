"""The JSON API for people and dashboards, and the metrics: ``/api/v1/*`` and ``/metrics``, with a reader's key.

Common parameters: `product` (an admin's key sees all products and may choose one), `from` and `to` (a half-open period;
a date, a time or Unix seconds), `origin` (public, internal, all; public by default), `limit` and `cursor` (the `next`
of the page before; null at the end). Times in answers are Unix seconds, durations seconds.

What there is to ask stands in `_OPERATIONS`; the shapes of the answers in `answers`.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from enum import StrEnum
from typing import Final

from aiohttp import web
from msgspec import structs

from mailboat.protocol.errors import Code, WireError
from mailboat.protocol.ids import is_canonical
from mailboat.protocol.summary import Status
from mailboat.server import adoption, answers, lateness, reconciling, reports, triage, usage, wanting
from mailboat.server.catalog import (
    LedgerRow,
    Origin,
    Role,
    SegmentRow,
    SessionQuery,
    SessionRow,
    SessionState,
)
from mailboat.server.context import CATALOG, CLOCK, NEWS, ProblemError, run_in_worker
from mailboat.server.ingest import PLAYBACK, REPORTS
from mailboat.server.json_text import encode
from mailboat.server.metrics import METRICS_TYPE, metrics
from mailboat.server.openapi import document
from mailboat.server.operations import OPERATIONS, Asked, Operation, add_operations, answered, answered_with
from mailboat.server.parameters import (
    CURSOR,
    LIMIT,
    MAX_TEXT,
    PAGING,
    PRODUCT,
    SCOPE,
    SCOPE_OF_ALL,
    WORD,
    Parameter,
    cursor_of,
    refused,
    whole,
)
from mailboat.server.playback import Page, PageQuery, as_json
from mailboat.server.reports import Answer, Question, TooSlow
from mailboat.server.shapes import ANYTHING, one_of
from mailboat.server.skew import correction
from mailboat.server.triage_rows import Standing, TriageRow
from mailboat.server.unsealing import UNSEALING

MAX_RECORDS: Final = 5000
"""Records of one page."""

MAX_WAIT: Final = 25
"""Seconds: proxies give up on an answer after half a minute."""


class ValueKind(StrEnum):
    """What ``values`` can be asked for."""

    ALL = "all"
    VALUE = "value"
    TIMING = "timing"


# -- sessions ------------------------------------------------------------------------------------------------------


async def list_sessions(asked: Asked) -> web.StreamResponse:
    """The sessions, newest start first."""
    given, scope = asked.given, asked.scope()
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
        page = await asked.app[CATALOG].sessions(query)
    except WireError as error:
        raise refused("cursor", "it was not handed out here") from error
    opened = asked.app[UNSEALING].row
    return answered({"sessions": [session_json(opened(row)) for row in page.sessions], "next": page.cursor})


async def show_session(asked: Asked) -> web.StreamResponse:
    """One session: its summary, its segments with what is held of them, its gaps."""
    row = await _session(asked)
    session_id = row.summary.session_id
    answer = await _ask(asked, functools.partial(reports.gaps, row.product, session_id))
    return answered({**session_json(row), "segments": [_segment_json(each) for each in row.segments], **answer})


def _segment_json(row: SegmentRow) -> Answer:
    return {**structs.asdict(row), "loaded": max(row.loaded, 0)}  # below zero it is to be loaded anew


async def want_session(asked: Asked) -> web.StreamResponse:
    """Want the details of a session that was declined: the agent that still has it is asked for it from now on."""
    row = await _session(asked)
    session_id = row.summary.session_id
    if not await wanting.want(asked.app[CATALOG], row.product, session_id):
        raise refused("id", f"{wanting.MOST} sessions of {row.product!r:.80} are wanted already; wait for some of them")
    return answered({"product": row.product, "session": session_id})


async def list_records(asked: Asked) -> web.StreamResponse:
    """The records of one session in order, exactly as they were made.

    Values that JSON cannot hold are marked: bytes as `{"$bytes": base64}`, numbers that are not finite as
    `{"$float": text}`. Of a session that runs these are the records so far; with `wait`, and nothing new, the answer
    comes when there is, or when so many seconds are over.
    """
    given = asked.given
    if given.text("after") is not None and given.text("cursor") is not None:
        raise refused("cursor", "give either it or `after`: they mean the same")
    after = given.whole("cursor" if given.text("cursor") is not None else "after", -1, -1, 2**63 - 1)
    query = PageQuery(after, given.whole("limit", 1000, 1, MAX_RECORDS), given.text("kind"), given.text("name"))
    wait, loop, news = given.whole("wait", 0, 0, MAX_WAIT), asyncio.get_running_loop(), asked.app[NEWS]
    deadline = loop.time() + wait
    while True:
        more = news.next
        row = await _session(asked)
        body, found = await run_in_worker(asked.app, _records, asked.app[PLAYBACK].page, row, query)
        over = found or row.summary.status is not Status.RUNNING
        if over or not await news.wait(more, deadline - loop.time()):
            return answered_with(body)


def _records(
    read: Callable[[tuple[SegmentRow, ...], PageQuery], Page], row: SessionRow, query: PageQuery
) -> tuple[bytes, bool]:
    """A page of records as JSON, and whether there is anything in it or behind it. Made in a thread; record by record,
    for the event loop waits for each call.
    """
    page = read(row.segments, query)
    records = b",".join(encode(as_json(record)) for record in page.records)
    rest = encode({"next": None if page.next is None else str(page.next), "gaps": [asdict(each) for each in page.gaps]})
    body = b'{"session":' + encode(row.summary.session_id) + b',"records":[' + records + b"]," + rest[1:]
    return body, bool(page.records) or page.next is not None


async def _session(asked: Asked) -> SessionRow:
    session_id = asked.request.match_info["id"]
    if not is_canonical(session_id):
        raise refused("id", f"expected a session's id (a UUID in canonical form), got {session_id!r:.80}")
    row = await asked.app[CATALOG].session(asked.product(), session_id)
    if row is None:
        raise ProblemError(Code.NOT_FOUND, f"id: there is no session {session_id} here")
    return asked.app[UNSEALING].row(row)


def session_json(row: SessionRow) -> Answer:
    """A session as lists show it."""
    summary, skew = row.summary.to_wire(), correction(row.skew)
    for box in ("boxed_info", "boxed_installation"):
        summary.pop(box, None)
    return {
        "locked": bool(row.summary.boxed_info),
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
        "corrected": {"started": row.summary.started + skew, "ended": row.summary.ended + skew},
        "first_seen": row.first_seen,
        "updated": row.updated,
        "bytes": sum(each.offset for each in row.segments),
    }


# -- reports -------------------------------------------------------------------------------------------------------


async def show_overview(asked: Asked) -> web.StreamResponse:
    """Totals of sessions and records, by day, by version and by environment."""
    return answered(await _ask(asked, functools.partial(reports.overview, asked.scope())))


async def list_features(asked: Asked) -> web.StreamResponse:
    """Every feature and every category above it (dots make the hierarchy), most used first."""
    return answered(await _ask(asked, functools.partial(usage.features, asked.scope(), asked.given.paging())))


async def list_versions(asked: Asked) -> web.StreamResponse:
    """Versions of applications, most used first, and by day how they are taken up."""
    return answered(await _ask(asked, functools.partial(adoption.versions, asked.scope())))


async def list_installations(asked: Asked) -> web.StreamResponse:
    """Installations that their applications have named, the one heard of last first."""
    return answered(await _ask(asked, functools.partial(adoption.installations, asked.scope(), asked.given.paging())))


async def list_warnings(asked: Asked) -> web.StreamResponse:
    """What came and could not be used as it came: gaps, segments that cannot be loaded, clocks that are wrong."""
    return answered(await _ask(asked, functools.partial(adoption.warnings, asked.scope())))


async def list_values(asked: Asked) -> web.StreamResponse:
    """Values by name and unit, and timings by name, with how they spread."""
    kind = asked.given.choice("kind", ValueKind, ValueKind.ALL)
    chosen = None if kind is ValueKind.ALL else kind.value
    return answered(await _ask(asked, functools.partial(usage.values, asked.scope(), chosen, asked.given.paging())))


async def list_exceptions(asked: Asked) -> web.StreamResponse:
    """Exceptions that went the same way through the code, most frequent first, each with its latest occurrence.

    A group is `new` until somebody says of it that it is open, resolved or ignored. One that was resolved in a version
    is open again (`reopened`) when it happens in a later one; one that was resolved without a version, when it happens
    again at all.
    """
    scope, given = asked.scope(), asked.given
    wanted = given.choice("state", Standing, Standing.NEW) if given.text("state") is not None else None
    triages = await asked.app[CATALOG].triages(scope.product)
    return answered(await _ask(asked, functools.partial(triage.exceptions, scope, given.paging(), triages, wanted)))


async def put_exception(asked: Asked) -> web.StreamResponse:
    """Say how a group of exceptions stands: new, open, resolved (in a `version`), or ignored."""
    product, group, said = asked.product(), asked.request.match_info["group"], await asked.body()
    for name in said:
        if name not in ("state", "version"):
            raise refused(name, "expected state and version only")
    if product is None:
        raise refused("product", "name the product whose group this is")
    state, version = said.get("state"), said.get("version", "")
    if state not in list(Standing):
        raise refused("state", f"expected one of {', '.join(Standing)}, got {state!r:.80}")
    if not isinstance(version, str) or len(version) > MAX_TEXT or (version and state != Standing.RESOLVED):
        raise refused("version", "expected the version in which it is resolved, with `resolved` only")
    if not (await _ask(asked, functools.partial(triage.known, product, group)))["known"]:
        raise ProblemError(Code.NOT_FOUND, f"group: no exception of {product!r:.80} has the group {group!r:.80}")
    row = TriageRow(product, group, Standing(state), version, asked.app[CLOCK]())
    await asked.app[CATALOG].put_triage(row)
    said_now = structs.asdict(row)
    return answered({"state": said_now.pop("standing"), **said_now})


async def show_delivery(asked: Asked) -> web.StreamResponse:
    """How late records come, and for each day what was announced, what is here, and how complete it is likely to be."""
    now = asked.app[CLOCK]()
    return answered(await _ask(asked, functools.partial(lateness.delivery, asked.scope(), now)))


async def show_ledger(asked: Asked) -> web.StreamResponse:
    """What agents said last of their records, by store; and what is here of each product: all that ever came.

    A period chooses the agents that said it within, and the sessions that began within; an origin, the sessions.
    """
    given = asked.given
    scope = replace(asked.scope(), origin=given.choice("origin", Origin, Origin.ALL))
    everything = all(given.text(name) is None for name in ("from", "to", "origin"))
    rows, following = await _ledgers(asked, scope)
    here = await _ask(asked, functools.partial(reports.holdings, scope, everything=everything))
    return answered({"reported": [structs.asdict(row) for row in rows], "here": here["products"], "next": following})


async def list_accounts(asked: Asked) -> web.StreamResponse:
    """What each store of an agent says of its records, beside what is here of them.

    `missing` are records that an agent was told are here, and are not: there should never be any. It is null where some
    were deleted for their age.
    """
    product = asked.product()
    rows, following = await _ledgers(asked, reports.Scope(product))
    deleted = {row.product for row in await asked.app[CATALOG].deletions(product)}
    accounts = await _ask(asked, functools.partial(reconciling.reconcile, rows, deleted))
    return answered({**accounts, "next": following})


async def _ledgers(asked: Asked, scope: reports.Scope) -> tuple[Sequence[LedgerRow], str | None]:
    """A page of what agents said last, within the period, and the cursor of the next page."""
    limit, period = asked.given.limit(), (scope.since, scope.until)
    rows = await asked.app[CATALOG].ledgers(scope.product, asked.given.place(), limit + 1, period)
    page = rows[:limit]
    return page, cursor_of((page[-1].product, page[-1].source)) if len(rows) > limit else None


async def show_document(asked: Asked) -> web.StreamResponse:
    """This document."""
    operations = asked.app[OPERATIONS]
    return answered(document(operations))


async def _ask(asked: Asked, question: Callable[[Question], Answer]) -> Answer:
    try:
        return await asked.app[REPORTS].ask(question)
    except TooSlow as error:
        raise ProblemError(Code.UNAVAILABLE, str(error)) from error


# -- the operations ------------------------------------------------------------------------------------------------

_AFTER: Final = {"type": "integer", "minimum": -1, "maximum": 2**63 - 1}

_OPERATIONS: Final = (
    Operation(
        "GET",
        "/api/v1/sessions",
        list_sessions,
        answers.SESSIONS,
        (
            *SCOPE,
            LIMIT,
            CURSOR,
            Parameter("application", WORD),
            Parameter("version", WORD),
            Parameter("status", one_of(*Status)),
            Parameter("state", one_of(*SessionState), "What the server has decided about its details"),
        ),
    ),
    Operation("GET", "/api/v1/sessions/{id}", show_session, answers.SESSION, (PRODUCT,), refusals=(404,)),
    Operation(
        "PUT",
        "/api/v1/sessions/{id}/wanted",
        want_session,
        answers.WANTED_SESSION,
        (PRODUCT,),
        role=Role.ADMIN,
        refusals=(404,),
    ),
    Operation(
        "GET",
        "/api/v1/sessions/{id}/records",
        list_records,
        answers.RECORDS,
        (
            PRODUCT,
            Parameter("after", _AFTER, "Only records with a sequence number above this"),
            Parameter("limit", whole(1, MAX_RECORDS, 1000)),
            Parameter("cursor", _AFTER, "The `next` of the page before; the same as `after`"),
            Parameter("kind", WORD, "Only records of this kind"),
            Parameter("name", WORD, "Only records of this name"),
            Parameter("wait", whole(0, MAX_WAIT, 0), "Seconds to wait for records of a running session"),
        ),
        refusals=(404,),
    ),
    Operation("GET", "/api/v1/overview", show_overview, answers.OVERVIEW, SCOPE),
    Operation("GET", "/api/v1/versions", list_versions, answers.VERSIONS, SCOPE),
    Operation("GET", "/api/v1/installations", list_installations, answers.INSTALLATIONS, (*SCOPE, *PAGING)),
    Operation("GET", "/api/v1/warnings", list_warnings, answers.WARNINGS, SCOPE),
    Operation("GET", "/api/v1/features", list_features, answers.FEATURES, (*SCOPE, *PAGING)),
    Operation(
        "GET",
        "/api/v1/values",
        list_values,
        answers.VALUES,
        (*SCOPE, *PAGING, Parameter("kind", {**one_of(*ValueKind), "default": ValueKind.ALL.value})),
    ),
    Operation(
        "GET",
        "/api/v1/exceptions",
        list_exceptions,
        answers.EXCEPTIONS,
        (*SCOPE, *PAGING, Parameter("state", one_of(*Standing), "Only groups that stand so")),
    ),
    Operation(
        "PUT",
        "/api/v1/exceptions/{group}",
        put_exception,
        answers.TRIAGE,
        (PRODUCT,),
        role=Role.ADMIN,
        body=answers.SAID_OF_EXCEPTION,
        refusals=(404, 413, 415),
    ),
    Operation("GET", "/api/v1/delivery", show_delivery, answers.DELIVERY, SCOPE),
    Operation("GET", "/api/v1/ledger", show_ledger, answers.LEDGER, (*SCOPE_OF_ALL, LIMIT, CURSOR)),
    Operation("GET", "/api/v1/accounts", list_accounts, answers.ACCOUNTS, (PRODUCT, LIMIT, CURSOR)),
    Operation("GET", "/api/v1/openapi.json", show_document, ANYTHING),
    Operation("GET", "/metrics", metrics, METRICS_TYPE),
)


def add_routes(app: web.Application) -> None:
    """Add the routes; `ingest.start` provides what they need."""
    add_operations(app, _OPERATIONS)

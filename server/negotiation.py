"""``POST /v1/negotiate``: offers in, decisions out, one transaction for all of them.

The body is msgpack or JSON (`Content-Type`), compressed with zstd or not; the reply has the same encoding, compressed
if the sender accepts that. Decoding, deciding and encoding of a full request take tens of milliseconds, so they run in
threads of their own. Each change of threads costs as much as to decide of some sessions, and while one thread waits for
another, that one waits for the interpreter's lock, or a processor: so a request changes them as seldom as can be.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar, TypeVarTuple

from aiohttp import web
from msgspec import Struct
from msgspec.structs import replace

from mailboat.protocol import wire
from mailboat.protocol.errors import Code, ConfigError
from mailboat.protocol.limits import MAX_NEGOTIATION, MAX_NEGOTIATION_WIRE, MAX_OFFERS
from mailboat.protocol.negotiation import Decision, Reply, Request, Verdict
from mailboat.server import riding, wanting
from mailboat.server.allowance import ARRIVALS, TRANSFERS, Arrivals
from mailboat.server.bodies import read_whole
from mailboat.server.catalog import ProductRow, Role, SegmentRow
from mailboat.server.context import (
    BLOBS,
    CATALOG,
    CLOCK,
    CONFIG,
    COUNTERS,
    NEGOTIATORS,
    Principal,
    ProblemError,
    notify_ingest,
    require,
)
from mailboat.server.deciding import Rulings, Standing, decide, rule_all
from mailboat.server.policy import Plan, month_of
from mailboat.server.riding import Boarded
from mailboat.server.unsealing import UNSEALING

OFFERS_FLOOR: Final = 4
"""Below this part of `min_free_bytes` offers are refused, too: each takes room in the catalog, and what is left is for
the uploads under way.
"""

MAX_UNDER_WAY: Final = 16
"""Messages taken apart and not answered yet: each holds up to 30 MiB until the catalog's commit, which as many share;
the next ones wait as they came."""

ANSWERED_AT_ONCE: Final = 100
"""Decisions that are made and written on the event loop: half a millisecond, where two changes of threads take a
quarter of one."""

PLANS: Final[web.AppKey[dict[str, tuple[Mapping[str, object], Plan]]]] = web.AppKey("plans")
"""Of products that were asked about: the plan as plain values, and what those mean."""
UNDER_WAY: Final = web.AppKey("negotiations_under_way", asyncio.Semaphore)

_ZSTD: Final = "zstd"

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class _Message(Struct, frozen=True):
    """A request as it came."""

    body: bytes
    media_type: str
    compressed: bool


class _Looked(Struct, frozen=True):
    """What was found of a request: what was decided of it, by which `standings`, and what came along."""

    rulings: Rulings
    boarded: Boarded
    standings: Mapping[str, Standing]


def add_routes(app: web.Application) -> None:
    """The one route of negotiation."""
    app[PLANS] = {}
    app[ARRIVALS] = Arrivals()
    app[UNDER_WAY] = asyncio.Semaphore(MAX_UNDER_WAY)
    app.router.add_post("/v1/negotiate", negotiate)


async def negotiate(request: web.Request) -> web.StreamResponse:
    """Answer for each offer what the server wants of it."""
    principal = require(request, Role.AGENT)
    app = request.app
    media_type, compressed = _media_type(request), _compressed(request)
    with app[TRANSFERS].one_more(principal.key_id, app[CONFIG].max_transfers):
        body = await read_whole(request, MAX_NEGOTIATION_WIRE, app[CONFIG].body_timeout)
    async with app[UNDER_WAY]:
        return await _deal(request, principal, _Message(body, media_type, compressed))


async def _deal(request: web.Request, principal: Principal, message: _Message) -> web.StreamResponse:
    app, now = request.app, request.app[CLOCK]()
    looked = await _looked_into(app, principal, message, now)
    rulings, boarded = looked.rulings, looked.boarded
    _count_riders(app[COUNTERS], boarded)
    registrations = boarded.registrations  # none, and hence no commit, if the key reaches no product that was named
    held = await app[CATALOG].register(registrations, now, rulings.ledger) if registrations else ()
    if boarded.arrived and (unused := riding.unused(registrations, held)):
        await _in_thread(app, riding.remove, app[BLOBS], unused)
    accepts = _ZSTD in request.headers.get("Accept-Encoding", "")
    if len(rulings.offers) <= ANSWERED_AT_ONCE:
        decisions, content = _answer(rulings, held, message.media_type, accepts)
    else:
        decisions, content = await _in_thread(app, _answer, rulings, held, message.media_type, accepts)
    _count(app[COUNTERS], decisions)
    for product, standing in looked.standings.items():
        settled = {each.session_id for each in decisions if each.verdict in (Verdict.HAVE, Verdict.REJECT)}
        if not settled.isdisjoint(standing.wished):
            await wanting.settle(app[CATALOG], product, settled)
    if held:
        notify_ingest(app)
    headers = {"Content-Encoding": _ZSTD} if accepts else {}
    return web.Response(body=content, content_type=message.media_type, headers={**headers, "Cache-Control": "no-store"})


async def _in_thread(app: web.Application, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
    return await asyncio.get_running_loop().run_in_executor(app[NEGOTIATORS], function, *arguments)


# -- reading and writing -----------------------------------------------------------------------------------------------


def _media_type(request: web.Request) -> str:
    if request.content_type not in wire.MEDIA_TYPES:
        detail = f"a negotiation is {' or '.join(wire.MEDIA_TYPES)}, not {request.content_type[:80]!r}"
        raise ProblemError(Code.UNSUPPORTED_MEDIA_TYPE, detail)
    return request.content_type


def _compressed(request: web.Request) -> bool:
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in (_ZSTD, "identity"):
        raise ProblemError(
            Code.UNSUPPORTED_MEDIA_TYPE,
            f"a negotiation is compressed with zstd or not at all, not with {encoding[:20]!r}",
            {"Accept-Encoding": _ZSTD},
        )
    return encoding == _ZSTD


def _decode(body: bytes, media_type: str, compressed: bool) -> Request:  # noqa: FBT001 - called through an executor
    return Request.decode(wire.decompress(body, MAX_NEGOTIATION) if compressed else body, media_type)


def _answer(
    rulings: Rulings,
    held: Sequence[Sequence[SegmentRow]],
    media_type: str,
    compressed: bool,  # noqa: FBT001 - called through an executor
) -> tuple[tuple[Decision, ...], bytes]:
    known = iter(held)
    decisions = tuple(
        decide(each, next(known) if each.product is not None else (), room=rulings.room) for each in rulings.offers
    )
    content = Reply(decisions, rulings.wanted, rulings.policy).encode(media_type)
    return decisions, wire.compress(content) if compressed else content


def _count_riders(counters: Counter[str], boarded: Boarded) -> None:
    if boarded.arrived or boarded.refused:
        counters["bytes_received"] += boarded.size
        counters["riders"] += boarded.arrived
        counters["riders_passed_over"] += boarded.refused


def _count(counters: Counter[str], decisions: Sequence[Decision]) -> None:
    counters["negotiations"] += 1
    counters["offers"] += len(decisions)
    for verdict, number in Counter(each.verdict for each in decisions).items():
        counters[f"decisions_{verdict}"] += number
    for reason, number in Counter(each.reason for each in decisions if each.verdict is Verdict.REJECT).items():
        counters[f"rejections_{reason}"] += number


# -- looking into a request --------------------------------------------------------------------------------------------


async def _looked_into(app: web.Application, principal: Principal, message: _Message, now: float) -> _Looked:
    """Take the message apart, decide of its offers, and keep what came along; in one go, if all that this takes can be
    had without the event loop: nearly all keys are of one product, and few products have a monthly plan.
    """
    own = principal.product
    if own is None or not app[ARRIVALS].reserve(own, MAX_OFFERS, app[CONFIG].max_sessions, now):
        asked = await _in_thread(app, _decode, message.body, message.media_type, message.compressed)
        return await _looked_into_by_steps(app, principal, asked, now)
    looked: Request | _Looked | None = None
    try:
        looked = await _in_thread(app, _look_into, app, message, own, now)
    finally:
        offered = len(looked.rulings.registrations) if isinstance(looked, _Looked) else 0
        app[ARRIVALS].give_back(own, MAX_OFFERS - offered)
    return looked if isinstance(looked, _Looked) else await _looked_into_by_steps(app, principal, looked, now)


async def _looked_into_by_steps(app: web.Application, principal: Principal, asked: Request, now: float) -> _Looked:
    """The same, where the loop has to ask for something between."""
    standings = {}
    for product in sorted({offer.info.product for offer in asked.offers}):
        standing = await _in_thread(app, _standing, app, product) if principal.reaches(product) else None
        if standing is not None:
            offered = [offer.session_id for offer in asked.offers if offer.info.product == product]
            await app[ARRIVALS].require_room(app, product, offered, now)
            standings[product] = await _with_usage(app, product, standing, offered, now)
    return await _in_thread(app, _rule_and_board, app, asked, standings, now)


def _standing(app: web.Application, product: str) -> Standing | None:
    """How a product stands but for what it has used; None if there is none of that name."""
    row, wished = wanting.product_and_wished(app[CATALOG], product)
    return None if row is None else Standing(_plan(row, app[PLANS]), wished)


async def _with_usage(
    app: web.Application, product: str, standing: Standing, offered: Sequence[str], now: float
) -> Standing:
    """The same with what the product has used of its month, if its plan is monthly, and which of the offered sessions
    were taken before.

    Requests that are decided at the same time do not see each other: together they may go beyond a plan, by what one
    request offers each.
    """
    if standing.plan.records_per_month is None:
        return standing
    return replace(standing, usage=await app[CATALOG].usage(product, month_of(now), offered))


def _plan(row: ProductRow, known: dict[str, tuple[Mapping[str, object], Plan]]) -> Plan:
    """The plan of a product, made anew when its values are others than last time: requests are many, changes few."""
    values, plan = known.get(row.name, (None, Plan()))
    if values != row.plan:
        try:
            plan = Plan.of(row.plan)
        except ConfigError as error:
            raise ProblemError(Code.UNAVAILABLE, f"the product's plan cannot be read: {error}") from error
        known[row.name] = row.plan, plan
    return plan


def _look_into(app: web.Application, message: _Message, own: str, now: float) -> Request | _Looked:
    """Look into the message of a key of the product `own`; no more than take it apart, where the plan is monthly."""
    asked, standing = _decode(message.body, message.media_type, message.compressed), _standing(app, own)
    if standing is None or standing.plan.records_per_month is not None:
        return asked
    return _rule_and_board(app, asked, {own: standing}, now)


def _rule_and_board(app: web.Application, asked: Request, standings: Mapping[str, Standing], now: float) -> _Looked:
    """Decide, and keep the segments that came along, which are durable by then."""
    free = app[BLOBS].free()
    if free < app[CONFIG].min_free_bytes / OFFERS_FLOOR:
        raise ProblemError(Code.STORAGE_FULL, "the server's disk is full but for its reserve: offer again later")
    rulings = rule_all(asked, standings, now, app[UNSEALING], room=free >= app[CONFIG].min_free_bytes)
    boarded = riding.board(asked.riders, rulings.registrations, app[BLOBS])
    return _Looked(rulings, boarded, standings)

"""``POST /v1/negotiate``: offers in, decisions out, one transaction for all of them.

The body is msgpack or JSON (`Content-Type`), compressed with zstd or not; the reply has the same encoding, compressed
if the sender accepts that. Decoding, deciding and encoding of a full request take tens of milliseconds, so they run in
a worker thread.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from aiohttp import web
from msgspec import Struct
from msgspec.structs import replace

from mailboat.protocol import wire
from mailboat.protocol.errors import Code, ConfigError, WireError
from mailboat.protocol.limits import KIB, MAX_NEGOTIATION, MAX_NEGOTIATION_WIRE, MAX_OFFERS
from mailboat.protocol.negotiation import (
    Decision,
    Policy,
    Reason,
    Reply,
    Request,
    SegmentDecision,
    Verdict,
)
from mailboat.protocol.summary import Summary
from mailboat.server import riding, wanting
from mailboat.server.allowance import ARRIVALS, TRANSFERS, Arrivals
from mailboat.server.bodies import read_whole
from mailboat.server.catalog import (
    Catalog,
    LedgerRow,
    ProductRow,
    Registration,
    Role,
    SegmentRow,
    SessionState,
    Usage,
    Verification,
)
from mailboat.server.context import (
    BLOBS,
    CATALOG,
    CLOCK,
    CONFIG,
    COUNTERS,
    Principal,
    ProblemError,
    notify_ingest,
    require,
    run_in_worker,
)
from mailboat.server.policy import Account, Plan, Ruling, advice, month_of, rule
from mailboat.server.unsealing import UNSEALING, Unsealing
from mailboat.server.uploads import PATH

LATER: Final = 60.0
"""Seconds after which to ask again when the disk is nearly full."""

MAX_LEDGER: Final = 64 * KIB
"""Characters of a ledger as JSON."""

MAX_SOURCE: Final = 200
"""Characters of what tells one account from another."""

OFFERS_FLOOR: Final = 4
"""Below this part of `min_free_bytes` offers are refused, too: each takes room in the catalog, and what is left is for
the uploads under way.
"""

MAX_FRESH: Final = 4096
"""Uploads made for one request, and unfinished ones of a session; of what is listed beyond, the answer is ``send`` for
a part, or ``later``. Sixty thousand would be 66 MB of the catalog and two seconds in which nobody else is answered.
"""

SOON: Final = 1.0
"""Seconds after which to ask for the rest, where no part of a session found room among those."""

MAX_DECODINGS: Final = 2
"""Messages taken apart at the same time: one can take up 200 MiB while that lasts, and more at once are no faster."""

MAX_UNDER_WAY: Final = 16
"""Messages taken apart and not answered yet: each holds up to 30 MiB until the catalog's commit, which as many share;
the next ones wait as they came."""

PLANS: Final[web.AppKey[dict[str, tuple[Mapping[str, object], Plan]]]] = web.AppKey("plans")
"""Of products that were asked about: the plan as plain values, and what those mean."""
DECODINGS: Final = web.AppKey("decodings", asyncio.Semaphore)
UNDER_WAY: Final = web.AppKey("negotiations_under_way", asyncio.Semaphore)

_ZSTD: Final = "zstd"


class _Ruled(Struct, frozen=True, gc=False):
    """An offer, what was decided of it, and its product if that may be touched."""

    offer: Summary
    ruling: Ruling
    product: str | None


class _Rulings(Struct, frozen=True):
    """What was decided of a whole request: of each offer, and what the catalog is to keep of it, where the disk has
    `room`.
    """

    offers: tuple[_Ruled, ...]
    registrations: tuple[Registration, ...]
    ledger: LedgerRow | None
    policy: Policy
    room: bool
    wanted: tuple[str, ...] = ()
    """Sessions that are wanted after all."""


def add_routes(app: web.Application) -> None:
    """The one route of negotiation."""
    app[PLANS] = {}
    app[DECODINGS] = asyncio.Semaphore(MAX_DECODINGS)
    app[ARRIVALS] = Arrivals()
    app[UNDER_WAY] = asyncio.Semaphore(MAX_UNDER_WAY)
    app.router.add_post("/v1/negotiate", negotiate)


async def negotiate(request: web.Request) -> web.StreamResponse:
    """Answer for each offer what the server wants of it."""
    principal = require(request, Role.AGENT)
    app = request.app
    media_type = _media_type(request)
    compressed = _compressed(request)
    with app[TRANSFERS].one_more(principal.key_id, app[CONFIG].max_transfers):
        body = await read_whole(request, MAX_NEGOTIATION_WIRE, app[CONFIG].body_timeout)
    async with app[UNDER_WAY]:
        return await _deal(request, principal, body, media_type, compressed=compressed)


async def _deal(
    request: web.Request, principal: Principal, body: bytes, media_type: str, *, compressed: bool
) -> web.StreamResponse:
    app = request.app
    async with app[DECODINGS]:
        asked = await run_in_worker(app, _decode, body, media_type, compressed)
    plans = await _plans(request, principal, asked)
    now = app[CLOCK]()
    for product in plans:
        await app[ARRIVALS].require_room(app, product, _offered(asked, product), now)
    used = await _used(app[CATALOG], asked, plans, now)
    wishes = {product: await wanting.wanted(app[CATALOG], product) for product in plans}
    ruled, boarded = await run_in_worker(app, _rule_and_board, app, asked, plans, used, wishes, now)
    if asked.riders:
        _count_riders(app[COUNTERS], boarded)
    registrations = boarded.registrations  # none, and hence no commit, if the key reaches no product that was named
    held = await app[CATALOG].register(registrations, now, ruled.ledger) if registrations else ()
    if asked.riders and (unused := riding.unused(registrations, held)):
        await run_in_worker(app, riding.remove, app[BLOBS], unused)
    accepts = _ZSTD in request.headers.get("Accept-Encoding", "")
    decisions, content = await run_in_worker(app, _answer, ruled, held, media_type, accepts)
    _count(app[COUNTERS], decisions)
    for product, wished in wishes.items():
        settled = {each.session_id for each in decisions if each.verdict in (Verdict.HAVE, Verdict.REJECT)}
        if not settled.isdisjoint(wished):
            await wanting.settle(app[CATALOG], product, settled)
    if held:
        notify_ingest(app)
    headers = {"Content-Encoding": _ZSTD} if accepts else {}
    return web.Response(body=content, content_type=media_type, headers={**headers, "Cache-Control": "no-store"})


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
    ruled: _Rulings,
    held: Sequence[Sequence[SegmentRow]],
    media_type: str,
    compressed: bool,  # noqa: FBT001 - called through an executor
) -> tuple[tuple[Decision, ...], bytes]:
    known = iter(held)
    decisions = tuple(
        _decide(each, next(known) if each.product is not None else (), room=ruled.room) for each in ruled.offers
    )
    content = Reply(decisions, ruled.wanted, ruled.policy).encode(media_type)
    return decisions, wire.compress(content) if compressed else content


def _count_riders(counters: Counter[str], boarded: riding.Boarded) -> None:
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


# -- deciding ----------------------------------------------------------------------------------------------------------


async def _plans(request: web.Request, principal: Principal, asked: Request) -> Mapping[str, Plan]:
    """The plans of the products that the offers name and the key reaches."""
    named = {offer.info.product for offer in asked.offers}
    plans = {}
    for name in sorted(named):
        row = await request.app[CATALOG].product(name) if principal.reaches(name) else None
        if row is not None:
            plans[name] = _plan(row, request.app[PLANS])
    return plans


async def _used(catalog: Catalog, asked: Request, plans: Mapping[str, Plan], now: float) -> dict[str, Usage]:
    """What the products with a monthly plan have used of it, and which of the offered sessions were taken before.

    Requests that are decided at the same time do not see each other: together they may go beyond a plan, by what one
    request offers each.
    """
    used = {}
    for product, plan in plans.items():
        if plan.records_per_month is not None:
            used[product] = await catalog.usage(product, month_of(now), _offered(asked, product))
    return used


def _offered(asked: Request, product: str) -> list[str]:
    """The sessions of a product in a request."""
    return [offer.session_id for offer in asked.offers if offer.info.product == product]


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


def _rule_and_board(
    app: web.Application,
    asked: Request,
    plans: Mapping[str, Plan],
    used: Mapping[str, Usage],
    wishes: Mapping[str, tuple[str, ...]],
    now: float,
) -> tuple[_Rulings, riding.Boarded]:
    """Decide, and keep the segments that came along, which are durable by then. In one go, since each change of threads
    costs as much as to decide of some sessions.
    """
    free = app[BLOBS].free()
    if free < app[CONFIG].min_free_bytes / OFFERS_FLOOR:
        raise ProblemError(Code.STORAGE_FULL, "the server's disk is full but for its reserve: offer again later")
    room = free >= app[CONFIG].min_free_bytes
    ruled = _rule_all(asked, plans, used, wishes, now, app[UNSEALING], room=room)
    if not asked.riders:
        return ruled, riding.Boarded(ruled.registrations)
    return ruled, riding.board(asked.riders, ruled.registrations, app[BLOBS])


def _rule_all(
    asked: Request,
    plans: Mapping[str, Plan],
    used: Mapping[str, Usage],
    wishes: Mapping[str, tuple[str, ...]],
    now: float,
    unsealing: Unsealing,
    *,
    room: bool,
) -> _Rulings:
    """Hold every offer against its product's plan; what one takes of the month, the next ones have not."""
    sent = asked.sent or now
    skew = now - asked.sent if asked.sent else None
    taken_here: Counter[str] = Counter()
    fresh = MAX_FRESH if room else 0
    offers, registrations = [], []
    for offer in asked.offers:
        product = offer.info.product
        plan, usage = plans.get(product), used.get(product, Usage())
        asked_for = offer.session_id in wishes.get(product, ())
        account = Account(usage.records + taken_here[product], offer.session_id in usage.taken, asked_for)
        ruling = rule(offer, plan, asked.agent, sent, account)
        if ruling.state is SessionState.WANTED and not account.taken:
            taken_here[product] += offer.records
        opened = unsealing.summary(offer) if plan is not None else offer
        offers.append(_Ruled(offer, ruling, None if plan is None else product))
        if plan is not None:
            reason = ruling.reason.value if ruling.reason else ""
            registrations.append(
                Registration(
                    product,
                    opened,
                    ruling.state,
                    reason,
                    ruling.explanation,
                    skew,
                    fresh_uploads=fresh,
                    source=_source(asked, offer),
                )
            )
            if ruling.state is SessionState.WANTED:
                fresh = max(0, fresh - len(offer.segments))
    asking = {(each.product, each.offer.info.version) for each in offers if each.product is not None}
    advised = advice((plans[product], version) for product, version in asking)
    offered = {offer.session_id for offer in asked.offers}
    return _Rulings(
        tuple(offers),
        tuple(registrations),
        _ledger(asked, offers, now),
        replace(advised, riding=riding.TERMS),
        room,
        tuple(each for wished in wishes.values() for each in wished if each not in offered)[:MAX_OFFERS],
    )


def _ledger(asked: Request, ruled: Sequence[_Ruled], now: float) -> LedgerRow | None:
    """The ledger as it is to be kept; None when there is none, or no product to keep it under."""
    known = [each for each in ruled if each.product is not None]
    if not asked.ledger or not known or known[0].product is None:
        return None
    text = json.dumps(asked.ledger, default=str, skipkeys=True)
    if len(text) > MAX_LEDGER:
        raise WireError(f"request.ledger: has {len(text)} characters, at most {MAX_LEDGER} are taken")
    return LedgerRow(known[0].product, _source(asked, known[0].offer), asked.agent, json.loads(text), now)


def _source(asked: Request, offer: Summary) -> str:
    """Whose account a session is in: the store's that the ledger names, or else its machine's."""
    return str(asked.ledger.get("store") or offer.info.host or offer.installation)[:MAX_SOURCE]


def _decide(ruled: _Ruled, held: Sequence[SegmentRow], *, room: bool) -> Decision:
    """The answer for one offer, given the segments that the server knows of."""
    session_id = ruled.offer.session_id
    segments = {each.index: each for each in held}
    listed = [segments.get(state.index) for state in ruled.offer.segments]
    spoilt = next((each for each in listed if each and each.verification is Verification.REJECTED), None)
    if spoilt is not None:
        reason = spoilt.reason or Reason.CORRUPTED.value
        return Decision(session_id, Verdict.REJECT, reason, f"segment {spoilt.index}: {spoilt.detail}"[:1000])
    stands = tuple(_stand(each) for each in listed if each is not None)
    sealed = all(state.sealed for state in ruled.offer.segments) and ruled.offer.segments
    if sealed and len(stands) == len(listed) and all(stand.complete for stand in stands):
        return Decision(session_id, Verdict.HAVE, segments=stands)
    if ruled.ruling.state is SessionState.REJECTED:
        reason = ruled.ruling.reason.value if ruled.ruling.reason else ""
        return Decision(session_id, Verdict.REJECT, reason, ruled.ruling.explanation)
    if ruled.ruling.state is SessionState.DECLINED:
        return Decision(session_id, Verdict.DECLINE)
    if len(stands) < len(listed) and (not room or all(stand.complete for stand in stands)):
        why = "more is offered than is taken up at once" if room else "the server's disk is nearly full"
        return Decision(session_id, Verdict.LATER, explanation=why, after=SOON if room else LATER)
    return Decision(session_id, Verdict.SEND, priority=int(ruled.offer.errors > 0), segments=stands)


def _stand(segment: SegmentRow) -> SegmentDecision:
    """Where one segment stands; complete only when its bytes were verified."""
    verified = segment.verification is Verification.VERIFIED
    return SegmentDecision(
        index=segment.index,
        url=f"{PATH}/{segment.upload_id}",
        offset=segment.offset,
        complete=verified,
        sha256=segment.sha256 if verified else "",
    )

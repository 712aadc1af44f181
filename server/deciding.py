"""What becomes of the offers of a request, given how their products stand: the policy's ruling of each, what the
catalog is to keep of it, and the answer once that is kept. Pure.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from mailboat.protocol.errors import WireError
from mailboat.protocol.limits import KIB, MAX_OFFERS
from mailboat.protocol.negotiation import Decision, Policy, Reason, Request, SegmentDecision, Verdict
from mailboat.protocol.summary import Summary
from mailboat.server import riding
from mailboat.server.catalog import LedgerRow, Registration, SegmentRow, SessionState, Usage, Verification
from mailboat.server.policy import Account, Plan, Ruling, advice, rule
from mailboat.server.unsealing import Unsealing
from mailboat.server.uploads import PATH

LATER: Final = 60.0
"""Seconds after which to ask again when the disk is nearly full."""

MAX_LEDGER: Final = 64 * KIB
"""Characters of a ledger as JSON."""

MAX_SOURCE: Final = 200
"""Characters of what tells one account from another."""

MAX_FRESH: Final = 4096
"""Uploads made for one request, and unfinished ones of a session; of what is listed beyond, the answer is ``send`` for
a part, or ``later``. Sixty thousand would be 66 MB of the catalog and two seconds in which nobody else is answered.
"""

SOON: Final = 1.0
"""Seconds after which to ask for the rest, where no part of a session found room among those."""


class Standing(Struct, frozen=True):
    """How a product stands when its sessions are offered: its plan, the sessions that are `wished` for after all, and
    what it has used of a monthly plan.
    """

    plan: Plan
    wished: tuple[str, ...] = ()
    usage: Usage = Usage()


class Ruled(Struct, frozen=True, gc=False):
    """An offer, what was decided of it, and its product if that may be touched."""

    offer: Summary
    ruling: Ruling
    product: str | None


class Rulings(Struct, frozen=True):
    """What was decided of a whole request: of each offer, and what the catalog is to keep of it, where the disk has
    `room`.
    """

    offers: tuple[Ruled, ...]
    registrations: tuple[Registration, ...]
    ledger: LedgerRow | None
    policy: Policy
    room: bool
    wanted: tuple[str, ...] = ()
    """Sessions that are wanted after all."""


def rule_all(
    asked: Request, standings: Mapping[str, Standing], now: float, unsealing: Unsealing, *, room: bool
) -> Rulings:
    """Hold every offer against its product's plan; what one takes of the month, the next ones have not. `standings` are
    those of the products that the key reaches.
    """
    sent = asked.sent or now
    skew = now - asked.sent if asked.sent else None
    taken_here: Counter[str] = Counter()
    fresh = MAX_FRESH if room else 0
    offers, registrations = [], []
    for offer in asked.offers:
        product, session_id = offer.info.product, offer.session_id
        standing = standings.get(product)
        if standing is None:
            offers.append(Ruled(offer, rule(offer, None, asked.agent, sent), None))
            continue
        usage = standing.usage
        account = Account(usage.records + taken_here[product], session_id in usage.taken, session_id in standing.wished)
        ruling = rule(offer, standing.plan, asked.agent, sent, account)
        offers.append(Ruled(offer, ruling, product))
        registrations.append(
            Registration(
                product,
                unsealing.summary(offer),
                ruling.state,
                ruling.reason.value if ruling.reason else "",
                ruling.explanation,
                skew,
                fresh_uploads=fresh,
                source=_source(asked, offer),
            )
        )
        if ruling.state is SessionState.WANTED:
            fresh = max(0, fresh - len(offer.segments))
            if not account.taken:
                taken_here[product] += offer.records
    asking = {(each.product, each.offer.info.version) for each in offers if each.product is not None}
    advised = advice((standings[product].plan, version) for product, version in asking)
    named = dict.fromkeys(product for product, _ in asking)
    offered = {offer.session_id for offer in asked.offers}
    return Rulings(
        tuple(offers),
        tuple(registrations),
        _ledger(asked, offers, now),
        replace(advised, riding=riding.TERMS),
        room,
        tuple(each for product in named for each in standings[product].wished if each not in offered)[:MAX_OFFERS],
    )


def _ledger(asked: Request, ruled: Sequence[Ruled], now: float) -> LedgerRow | None:
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


def decide(ruled: Ruled, held: Sequence[SegmentRow], *, room: bool) -> Decision:
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

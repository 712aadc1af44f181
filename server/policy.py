"""What the server takes, from whom: pure decisions with reasons.

A product has a *plan*, which says whose sessions are taken and how many details of them are wanted. `rule` holds one
offer against it; nothing here asks a clock or a catalog.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Final

from mailboat.protocol.errors import ConfigError
from mailboat.protocol.negotiation import Reason
from mailboat.protocol.summary import Summary
from mailboat.server.catalog import SessionState

DAY: Final = 24 * 3600.0

_NUMBER: Final = re.compile(r"\d{1,9}")


class Details(StrEnum):
    """Which sessions are wanted in full; of the others the summary is enough."""

    ALL = "all"
    ERRORS = "errors"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Plan:
    """A product's policy.

    `max_age`: seconds since a session's last sign of life, beyond which it is not taken. `details`: what is wanted in
    full. `agents`: the kinds of agent that may send (``mailboat-python``), empty for any. `oldest_agent`: the first
    version of them that is still taken, empty for any.
    """

    max_age: float = 30 * DAY
    details: Details = Details.ALL
    agents: tuple[str, ...] = ()
    oldest_agent: str = ""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Plan:
        """The plan that a catalog's plain values stand for; `ConfigError` for one that is unknown or impossible."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigError(f"plan.{name} is unknown; there are {', '.join(known)}")
        details = values.get("details", Details.ALL)
        if details not in list(Details):
            raise ConfigError(f"plan.details={details!r}: one of {', '.join(Details)} is needed")
        return cls(
            max_age=float(values.get("max_age", 30 * DAY)),
            details=Details(details),
            agents=tuple(map(str, values.get("agents", ()))),
            oldest_agent=str(values.get("oldest_agent", "")),
        )


@dataclass(frozen=True, slots=True)
class Ruling:
    """What was decided of one offer; `reason` and `explanation` go with a rejection."""

    state: SessionState
    reason: Reason | None = None
    explanation: str = ""


WANTED: Final = Ruling(SessionState.WANTED)
DECLINED: Final = Ruling(SessionState.DECLINED)


def rule(offer: Summary, plan: Plan | None, agent: str, now: float) -> Ruling:
    """What becomes of `offer`.

    `plan` is that of the offer's product, None when there is no such product or the key does not reach it. `agent` is
    the sender's kind and version (``mailboat-python/0.1.0``). `now` is Unix seconds by the *sender's* clock, so that a
    wrong clock does not make a session old.
    """
    if plan is None:
        product = offer.info.product
        return _rejected(Reason.UNKNOWN_PRODUCT, f"this key reaches no product {product!r:.100}")
    kind, _, version = agent.partition("/")
    if plan.agents and kind not in plan.agents:
        return _rejected(Reason.WRONG_AGENT_TYPE, f"the product takes sessions from {', '.join(plan.agents)} only")
    if _numbers(version) < _numbers(plan.oldest_agent):
        return _rejected(Reason.UNSUPPORTED_VERSION, f"agents before {plan.oldest_agent} are no longer taken")
    age = now - offer.ended
    if age > plan.max_age:
        days, most = age / DAY, plan.max_age / DAY
        return _rejected(Reason.TOO_OLD, f"the session ended {days:.0f} days ago, at most {most:.0f} are taken")
    wanted = plan.details is Details.ALL or (plan.details is Details.ERRORS and offer.errors > 0)
    return WANTED if wanted else DECLINED


def _rejected(reason: Reason, explanation: str) -> Ruling:
    return Ruling(SessionState.REJECTED, reason, explanation)


def _numbers(version: str) -> list[int]:
    """The leading numbers of a version, for comparison."""
    release = version.partition("+")[0].partition("-")[0]
    return [int(number) for number in _NUMBER.findall(release)]

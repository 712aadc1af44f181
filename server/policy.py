"""What the server takes, from whom: pure decisions with reasons.

A product has a *plan*, which says whose sessions are taken, how many details of them are wanted, and how long they are
kept. `rule` holds one offer against it; nothing here asks a clock or a catalog.

The plan as plain values, which is how the catalog keeps it and how people give it:

=====================  ==============================================================================================
``details``            which sessions are wanted in full: ``all``, ``errors`` (those with an error), ``share``, ``none``
``share``              with ``share``: which part of the sessions, from 0 to 1; the same ones each time they are offered
``versions``           exceptions from ``details`` by the application's version: ``{"2.4.1": "all", "1.*": "none"}``;
                       the first pattern that fits counts
``records_per_month``  records of wanted sessions in a calendar month (UTC); null: any number
``max_age_days``       days since a session's last sign of life, beyond which it is not taken
``history_days``       days after which what was taken is deleted; null: kept for good
``agents``             kinds of agent that may send (``mailboat-python``); empty: any
``oldest_agent``       the first version of agents that is taken; empty: any
``sync_interval``      seconds between an agent's negotiations while something waits; null: as the agent is set
``backoff_floor``      seconds of an agent's shortest pause after a failure
``max_rate``           bytes a second that one agent sends; null: as the agent is set
=====================  ==============================================================================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, Final

from msgspec import Struct

from mailboat.protocol.errors import ConfigError
from mailboat.protocol.limits import BACKOFF_FIRST, MAX_RETRY_AFTER, SLOWEST_RATE
from mailboat.protocol.negotiation import Policy, Reason, Wish
from mailboat.protocol.summary import Summary
from mailboat.server.catalog import SessionState
from mailboat.server.versions import numbers

DAY: Final = 24 * 3600.0

MAX_PATTERNS: Final = 100
"""Versions with a rule of their own: each offer is held against all of them."""
MAX_KINDS: Final = 100
"""Kinds of agent in a plan."""
MAX_DAYS: Final = 36_500.0
"""A hundred years: more is a mistake."""
_MAX_TEXT: Final = 200
_MAX_RECORDS: Final = 2**53


class Details(StrEnum):
    """Which sessions are wanted in full; of the others the summary is enough."""

    ALL = "all"
    ERRORS = "errors"
    SHARE = "share"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Plan:
    """A product's policy; the fields are told in the module's docstring."""

    details: Details = Details.ALL
    share: float = 1.0
    versions: Mapping[str, Details] = field(default_factory=dict)
    records_per_month: int | None = None
    max_age_days: float = 30.0
    history_days: float | None = None
    agents: tuple[str, ...] = ()
    oldest_agent: str = ""
    sync_interval: float | None = None
    backoff_floor: float = BACKOFF_FIRST
    max_rate: int | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Plan:
        """The plan that plain values stand for; `ConfigError` for one that is unknown or impossible, naming it."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigError(f"plan.{name:.80} is unknown; there are {', '.join(known)}")
        return cls(
            details=_details("details", values.get("details", Details.ALL)),
            share=_number("share", values.get("share", 1.0), 0.0, 1.0),
            versions=_versions(values.get("versions", {})),
            records_per_month=_whole("records_per_month", values.get("records_per_month")),
            max_age_days=_days("max_age_days", values.get("max_age_days", 30.0)),
            history_days=_days_or_none("history_days", values.get("history_days")),
            agents=_texts("agents", values.get("agents", ())),
            oldest_agent=_version("oldest_agent", values.get("oldest_agent", "")),
            sync_interval=_seconds_or_none("sync_interval", values.get("sync_interval")),
            backoff_floor=_number("backoff_floor", values.get("backoff_floor", BACKOFF_FIRST), 0.0, MAX_RETRY_AFTER),
            max_rate=_whole("max_rate", values.get("max_rate"), SLOWEST_RATE),
        )

    def values(self) -> dict[str, Any]:
        """The plan as plain values, all of them; `of` takes them back."""
        return {
            "details": self.details.value,
            "share": self.share,
            "versions": {pattern: details.value for pattern, details in self.versions.items()},
            "records_per_month": self.records_per_month,
            "max_age_days": self.max_age_days,
            "history_days": self.history_days,
            "agents": list(self.agents),
            "oldest_agent": self.oldest_agent,
            "sync_interval": self.sync_interval,
            "backoff_floor": self.backoff_floor,
            "max_rate": self.max_rate,
        }

    @property
    def oldest_days(self) -> float:
        """Days beyond which a session is not taken: nothing is taken that would be deleted at once."""
        return self.max_age_days if self.history_days is None else min(self.max_age_days, self.history_days)


class Account(Struct, frozen=True, gc=False):
    """How a product stands when a session is offered: `used` records of this month's `Plan.records_per_month`, and
    whether this session was `taken` before. What was taken once is taken to its end. One that was `asked` for is
    wanted, whatever the plan says of details.
    """

    used: int = 0
    taken: bool = False
    asked: bool = False


class Ruling(Struct, frozen=True):
    """What was decided of one offer; `reason` and `explanation` go with a rejection."""

    state: SessionState
    reason: Reason | None = None
    explanation: str = ""


WANTED: Final = Ruling(SessionState.WANTED)
DECLINED: Final = Ruling(SessionState.DECLINED)
NEW: Final = Account()


def rule(offer: Summary, plan: Plan | None, agent: str, now: float, account: Account = NEW) -> Ruling:
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
    if numbers(version) < numbers(plan.oldest_agent):
        return _rejected(Reason.UNSUPPORTED_VERSION, f"agents before {plan.oldest_agent} are no longer taken")
    days = (now - offer.ended) / DAY
    if days > plan.oldest_days:
        explanation = f"the session ended {days:.1f} days ago, at most {plan.oldest_days:g} are taken"
        return _rejected(Reason.TOO_OLD, explanation)
    if not account.asked and not wanted(offer, plan):
        return DECLINED
    return _within(offer, plan, account)


def outlived(session: Summary, skew: float, plan: Plan, now: float) -> bool:
    """Whether a session's last sign of life lies before the plan's history window.

    `skew` is what its machine's clock is behind the server's, whose time is `now` (Unix seconds).
    """
    return plan.history_days is not None and now - (session.ended + skew) > plan.history_days * DAY


def wanted(offer: Summary, plan: Plan) -> bool:
    """Whether the plan asks for the details of `offer`."""
    match _details_of(offer.info.version, plan):
        case Details.ALL:
            return True
        case Details.ERRORS:
            return offer.errors > 0
        case Details.SHARE:
            return place(offer.session_id) < plan.share
        case Details.NONE:
            return False


def _details_of(version: str, plan: Plan) -> Details:
    fitting = (details for pattern, details in plan.versions.items() if fnmatchcase(version, pattern))
    return next(fitting, plan.details)


_WISHES: Final = {
    Details.ALL: Wish.ALL,
    Details.ERRORS: Wish.ERRORS,
    Details.SHARE: Wish.SOME,
    Details.NONE: Wish.NONE,
}


def advice(asking: Iterable[tuple[Plan, str]]) -> Policy:
    """What an agent is asked to keep to that offered sessions of these plans and versions of applications: the calmest
    of the plans, and `Wish.SOME` where they want different things.
    """
    each = tuple(asking)
    plans = [plan for plan, _ in each]
    wishes = {_WISHES[_details_of(version, plan)] for plan, version in each}
    return Policy(
        sync_interval=max((plan.sync_interval for plan in plans if plan.sync_interval is not None), default=None),
        backoff_floor=max((plan.backoff_floor for plan in plans), default=BACKOFF_FIRST),
        max_rate=min((plan.max_rate for plan in plans if plan.max_rate is not None), default=None),
        details=wishes.pop() if len(wishes) == 1 else Wish.SOME,
    )


def place(session_id: str) -> float:
    """A session's own number from 0 (included) to 1 (not), evenly spread and always the same."""
    return int.from_bytes(hashlib.sha256(session_id.encode()).digest()[:6], "big") / 2**48


def month_of(now: float) -> int:
    """The calendar month (UTC) of Unix seconds, counted from the year 0."""
    day = datetime.fromtimestamp(now, UTC)
    return day.year * 12 + day.month - 1


def _within(offer: Summary, plan: Plan, account: Account) -> Ruling:
    """Whether the month has room for a wanted session."""
    most = plan.records_per_month
    if most is None or account.taken or account.used + offer.records <= most:
        return WANTED
    left = max(0, most - account.used)
    explanation = f"of {most} records a month {left} are left, and the session has {offer.records}"
    return _rejected(Reason.OVER_PLAN, explanation)


def _rejected(reason: Reason, explanation: str) -> Ruling:
    return Ruling(SessionState.REJECTED, reason, explanation)


# -- plain values ------------------------------------------------------------------------------------------------------


def _details(name: str, value: object) -> Details:
    if not isinstance(value, str) or value not in list(Details):
        raise ConfigError(f"plan.{name}={value!r:.80}: one of {', '.join(Details)} is needed")
    return Details(value)


def _number(name: str, value: object, low: float, high: float) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:  # type: ignore[operator] # a number by now
        raise ConfigError(f"plan.{name}={value!r:.80}: a number from {low:g} to {high:g} is needed")
    return float(value)  # type: ignore[arg-type]


def _days(name: str, value: object) -> float:
    """Zero is refused: who gives it for "no limit" would have everything rejected for good, or deleted."""
    days = _number(name, value, 0.0, MAX_DAYS)
    if not days:
        raise ConfigError(
            f"plan.{name}=0: a number of days above zero is needed; with none at all nothing would be left"
        )
    return days


def _days_or_none(name: str, value: object) -> float | None:
    return None if value is None else _days(name, value)


def _seconds_or_none(name: str, value: object) -> float | None:
    return None if value is None else _number(name, value, 1.0, MAX_RETRY_AFTER)


def _whole(name: str, value: object, low: int = 0) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= _MAX_RECORDS:
        raise ConfigError(
            f"plan.{name}={value!r:.80}: a whole number of at least {low} is needed, or null for any number"
        )
    return value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise ConfigError(f"plan.{name}={value!r:.80}: a text of at most {_MAX_TEXT} characters is needed")
    return value


def _version(name: str, value: object) -> str:
    text = _text(name, value)
    if text and not numbers(text):
        raise ConfigError(f"plan.{name}={text!r:.80}: a version such as 0.2.0 is needed, or an empty text for any")
    return text


def _texts(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or len(value) > MAX_KINDS:
        raise ConfigError(f"plan.{name}={value!r:.80}: a list of at most {MAX_KINDS} texts is needed")
    return tuple(_text(name, each) for each in value)


def _versions(value: object) -> dict[str, Details]:
    if not isinstance(value, Mapping) or len(value) > MAX_PATTERNS:
        raise ConfigError(f"plan.versions={value!r:.80}: a map of at most {MAX_PATTERNS} patterns to details is needed")
    return {_text("versions", pattern): _details(f"versions.{pattern}", each) for pattern, each in value.items()}

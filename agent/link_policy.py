"""Which sessions may be sent over which link: ready-made answers, and what an application's own has to look like. Pure.

The application tells what it knows of the link (`Agent.set_link`); a policy is asked for each priority before anything
of a session is said or sent by itself. `force_sync` is the application's own decision, and asks no policy.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from msgspec import Struct


class Priority(IntEnum):
    """How much a session matters."""

    ORDINARY = 0
    WANTED = 1
    """The server asked for it before others."""
    URGENT = 2
    """It holds an event of level error and up, or an exception."""


class LinkState(Struct, frozen=True):
    """The link as it stands: what the application said of it last, and the local time of day there in hours (13.5 is
    half past one).
    """

    metered: bool = False
    name: str = ""
    hour: float = 12.0


LinkPolicy = Callable[[LinkState, Priority], bool]
"""Whether sessions of this priority may be sent over this link now."""


def always(_link: LinkState, _priority: Priority) -> bool:
    """Everything, at any time."""
    return True


def urgent_when_metered(link: LinkState, priority: Priority) -> bool:
    """On a metered link only sessions with errors."""
    return not link.metered or priority is Priority.URGENT


def never_metered(link: LinkState, _priority: Priority) -> bool:
    """Nothing on a metered link."""
    return not link.metered


def quiet_hours(begin: float, end: float, least: Priority = Priority.URGENT) -> LinkPolicy:
    """From `begin` to `end` (hours of the local day; over midnight where `end` is the smaller) only sessions of the
    priority `least` and up. Raises `ValueError` for hours outside of 0 to 24.
    """
    for hour in (begin, end):
        if not 0.0 <= hour <= 24.0:  # noqa: PLR2004 - hours of a day
            raise ValueError(f"hour {hour!r}: expected one from 0 to 24")

    def policy(link: LinkState, priority: Priority) -> bool:
        within = begin <= link.hour < end if begin <= end else link.hour >= begin or link.hour < end
        return not within or priority >= least

    return policy


def both(*policies: LinkPolicy) -> LinkPolicy:
    """What all of `policies` allow."""
    return lambda link, priority: all(policy(link, priority) for policy in policies)

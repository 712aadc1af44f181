"""Machines whose clocks are wrong: what is to be added to their times, so that what happened shows where it belongs.

An agent says in each negotiation what its clock shows; the server compares that with its own. The difference holds the
time that the request was under way, too, so only what no request takes is taken for a wrong clock.
"""

from __future__ import annotations

from typing import Final

TOLERATED: Final = 60.0
"""Seconds: a difference within them may be the network's, and machines whose clocks are kept are closer than that."""


FARTHEST: Final = 200 * 366 * 24 * 3600.0
"""Seconds: a clock that stands at 1970, or was set a century ahead, is corrected; what is farther off is no clock."""


def correction(skew: float | None) -> float:
    """Seconds to be added to a machine's times; `skew` is the server's clock less the machine's, None if unknown."""
    return skew if skew is not None and TOLERATED <= abs(skew) <= FARTHEST else 0.0

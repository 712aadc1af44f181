"""How much to put into one append: everything, until a cut shows that this costs too much on the line there is.

One long request is the fastest, and a server that keeps what has come of a cut body loses next to nothing by it. But
what lies in buffers on the way is lost with the connection, and a proxy that passes on whole bodies only loses all of a
cut one: a body that never gets through whole never arrives. So what a cut has cost decides: the next appends are small,
and each that goes through doubles them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mailboat.protocol.limits import KIB, MAX_SEGMENT

SMALLEST: Final = 64 * KIB
"""Bytes of the smallest append: below, head fields and round trips would cost more than a cut."""

TOLERATED: Final = 16
"""A cut that has cost less than this part of what was sent is no reason for smaller appends."""

_SHRINK: Final = 4


@dataclass(frozen=True, slots=True)
class Stride:
    """At most `size` bytes go into the next append; None: as many as there are."""

    size: int | None = None

    def went_through(self, sent: int) -> Stride:
        """An append of `sent` bytes was acknowledged. One that was smaller than it might have been says little."""
        if self.size is None or sent < self.size:
            return self
        return Stride(self.size * 2 if self.size * 2 < MAX_SEGMENT else None)

    def cut(self, sent: int, kept: int) -> Stride:
        """An append broke off after `sent` bytes, of which the server has `kept`."""
        if (sent - kept) * TOLERATED <= sent:
            return self
        tried = sent if self.size is None else min(self.size, sent)
        return Stride(max(SMALLEST, tried // _SHRINK))

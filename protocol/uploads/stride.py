"""How much to put into one append: everything, until a cut shows that this costs too much on the line there is.

One long request is the fastest, and where the server keeps what has come of a cut body, small ones would lose more:
each begins anew. But a proxy that passes on whole bodies only loses all of a cut one, and a body that is never cut late
enough never arrives. So what a cut has cost decides: if nothing was kept, the next appends are small, and each that
goes through doubles them.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from mailboat.protocol.limits import KIB, MAX_SEGMENT

SMALLEST: Final = 64 * KIB
"""Bytes of the smallest append: below, head fields and round trips would cost more than a cut."""

_SHRINK: Final = 4


class Stride(Struct, frozen=True):
    """At most `size` bytes go into the next append; None: as many as there are."""

    size: int | None = None

    def went_through(self, sent: int) -> Stride:
        """An append of `sent` bytes was acknowledged. One that was smaller than it might have been says little."""
        if self.size is None or sent < self.size:
            return self
        return Stride(self.size * 2 if self.size * 2 < MAX_SEGMENT else None)

    def cut(self, sent: int, kept: int) -> Stride:
        """An append broke off after `sent` bytes, of which the server has `kept`."""
        if kept > 0 or sent == 0:
            return self
        tried = sent if self.size is None else min(self.size, sent)
        return Stride(max(SMALLEST, tried // _SHRINK))

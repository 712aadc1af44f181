"""Which sessions ride along with their offers, and what of them is read for that.

Only sessions that have ended ride, whole: all segments sealed and each within the server's terms. A session rides once;
if its server does not take it so, it is uploaded as any other one, and so is what was aboard when a request broke off:
an upload goes on at its byte, a request begins anew. `Room` is how many bytes a request may bring: more after each one
that went through, far less after one that did not, so that little is lost on a line that is cut often, and proxies with
a small bound are met.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct, field
from msgspec.structs import replace

from mailboat.agent.files import FileSystem
from mailboat.agent.segment_file import segment_name
from mailboat.protocol.limits import KIB, MAX_RIDING
from mailboat.protocol.negotiation import Policy, Rider, Riding, Wish
from mailboat.protocol.summary import Status, Summary

FIRST: Final = 256 * KIB
"""Bytes that the first request may bring: a quarter of a second at a megabyte a second."""
MOST: Final = MAX_RIDING - 128 * KIB
"""With the offers beside it a request stays below a megabyte, which is the bound of many proxies as they come."""
LEAST: Final = 32 * KIB
"""Below this nothing rides any more: an upload costs little more, and can be cut."""


class Room(Struct, frozen=True):
    """The server's `terms`, whose details it wants, and how many bytes a request may bring `now`."""

    terms: Riding = field(default_factory=Riding)
    details: Wish = Wish.SOME
    now: int = FIRST

    @property
    def size(self) -> int:
        """Bytes of all riders of the next request."""
        return min(self.now, self.terms.request)

    def under(self, policy: Policy) -> Room:
        """The same under the policy that the server has told now."""
        return replace(self, terms=policy.riding, details=policy.details)

    def went_through(self) -> Room:
        """A request with riders was answered."""
        return replace(self, now=min(MOST, self.now * 2))

    def broke(self) -> Room:
        """A request with riders was refused, or had no answer."""
        smaller = self.now // 4
        return replace(self, now=smaller if smaller >= LEAST else 0)

    def takes(self, summary: Summary) -> bool:
        """Whether this session may ride in some request, if the server wants its details."""
        sizes = [segment.size for segment in summary.segments if segment.sealed]
        return (
            summary.status is not Status.RUNNING
            and 0 < len(sizes) == len(summary.segments)
            and max(sizes) <= self.terms.segment
            and sum(sizes) <= self.size
        )

    def wants(self, summary: Summary) -> bool:
        """Whether the server wants the details of this session, as far as can be told without asking."""
        return self.details is Wish.ALL or (self.details is Wish.ERRORS and summary.errors > 0)


def read(files: FileSystem, homes: Mapping[str, Path], offers: Iterable[Summary]) -> tuple[Rider, ...]:
    """The segments of these sessions, each in a folder of its id below its home.

    Blocks. What cannot be read as it should be is left out: it stays behind, and is looked at more closely when it is
    uploaded.
    """
    riders: list[Rider] = []
    for offer in offers:
        for segment in offer.segments:
            try:
                folder = f"{homes[offer.session_id]}{os.sep}{offer.session_id}"
                content = files.read(f"{folder}{os.sep}{segment_name(segment.index)}")
            except OSError:
                continue
            if len(content) == segment.size:
                riders.append(Rider(offer.session_id, segment.index, memoryview(content)))
    return tuple(riders)

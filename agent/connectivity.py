"""Whether it is worth trying to reach the server: an immutable value; each event gives the next one.

Times are monotonic seconds. A pause after a failure is ended early by anything that makes success likely: the
application says so (`resume`), the machine has a new way to others (`routes`), or somebody asks for a connectivity
window (`force_sync`).
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace

from mailboat.protocol.uploads.retry import Backoff


class Link(StrEnum):
    """What is known of the way to the server."""

    UNKNOWN = "unknown"
    """Nothing was tried yet."""
    ONLINE = "online"
    """The last attempt reached it."""
    OFFLINE = "offline"
    """The last attempt did not; the next one is at `Connectivity.until`."""
    REFUSED = "refused"
    """It refuses the key."""
    PAUSED = "paused"
    """The application said that there is no connection to be used."""


class Connectivity(Struct, frozen=True):
    """`reason` says in a sentence why nothing is being sent, `until` when it is tried again (None: at once, or, of a
    link that is paused, not by itself). `asked`: the server has asked to be left alone until then.
    """

    link: Link = Link.UNKNOWN
    reason: str = ""
    until: float | None = None
    backoff: Backoff = Backoff()
    asked: bool = False

    def succeeded(self) -> Connectivity:
        """The server answered. Whether it is of any use shows later: the pauses do not begin anew by that."""
        return self if self.link is Link.PAUSED else Connectivity(Link.ONLINE, backoff=self.backoff)

    def served(self) -> Connectivity:
        """The server did what was asked of it, or part of that: should it fail after this, that is a new failure."""
        return replace(self, backoff=Backoff()) if self.link is Link.ONLINE else self

    def failed(self, reason: str, now: float, chance: float, floor: float = 0.0) -> Connectivity:
        """The server could not be reached, or asked to be left alone for `floor` seconds."""
        return self._off(Link.OFFLINE, reason, now, chance, floor)

    def refused(self, reason: str, now: float, chance: float) -> Connectivity:
        """The server refuses the key; a new key or a mended server may change that, so it is tried again, seldom."""
        return self._off(Link.REFUSED, reason, now, chance, self.backoff.longest)

    def _off(self, link: Link, reason: str, now: float, chance: float, floor: float) -> Connectivity:
        if self.link is Link.PAUSED:
            return self
        backoff = self.backoff.failed()
        return Connectivity(link, reason, now + backoff.pause(chance, floor), backoff, floor > 0)

    def paused(self) -> Connectivity:
        """The application says that there is no connection to be used."""
        return replace(self, link=Link.PAUSED, reason="paused by the application", until=None)

    def resumed(self) -> Connectivity:
        """The application says that the connection is back: whatever was waited for is over."""
        return Connectivity()

    def way_found(self) -> Connectivity:
        """The machine has a new way to others, which may or may not lead to the server: it is tried at once, and soon
        again. What the server, or the application, has asked for holds all the same.
        """
        if self.link is not Link.OFFLINE or self.asked:
            return self
        return replace(self, until=None, backoff=Backoff())

    def open_at(self, now: float) -> bool:
        """Whether the automatic part may try now."""
        return self.link is not Link.PAUSED and (self.until is None or now >= self.until)

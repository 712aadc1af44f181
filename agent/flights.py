"""How many segments are on their way: at most so many whose bytes still have to go, and as many beside them that only
wait for their answer.

What is durable and verified before it is answered takes the server some time after the last byte has come. The line
would rest for so long, if the next segment waited for that; and if more of them went at the same time instead, each
would be complete later, and more of them lack something when the line breaks.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct


class Flights(Struct):
    """Those of one round, `limit` of each kind. `changed` is called when there may be room for another one."""

    limit: int
    changed: Callable[[], None]
    going: int = 0
    waiting: int = 0

    @property
    def full(self) -> bool:
        """Whether no other one may begin now."""
        return self.going >= self.limit or self.going + self.waiting >= 2 * self.limit

    def begin(self, left: int) -> Flight:
        """Another one, of which `left` bytes have to go."""
        self.going += 1
        return Flight(self, left)


class Flight(Struct):
    """One segment on its way."""

    flights: Flights
    left: int
    gone: bool = False

    def moved(self, count: int) -> None:
        """The connection has taken so many bytes. Those that have to go again do not count: it has had its turn."""
        self.left -= count
        if count and self.left <= 0 and not self.gone:
            self.gone = True
            self.flights.going -= 1
            self.flights.waiting += 1
            self.flights.changed()

    def end(self, _: object) -> None:
        """It is answered, or has failed; for the task that sends it to call."""
        if self.gone:
            self.flights.waiting -= 1
        else:
            self.flights.going -= 1
        self.flights.changed()

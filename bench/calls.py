"""The calls that the hot path is measured with, each as a loop of its own: the loop's cost is in all of them alike.

The keyword record is ``import.csv`` with four attributes (a count, a text, a flag, a number), the positional one
``order.placed`` with four values; about sixty and thirty bytes packed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import repeat
from typing import Any

import msgpack

from bench.harness import Measured, Stopwatch

Loop = Callable[[int], None]
"""Makes so many calls."""

SLICE = 2_000
"""Calls in one slice: a quarter of a half of the journal, so that no slice has to change halves."""


def keyword(call: Callable[..., object]) -> Loop:
    """Calls with a name and four attributes."""

    def loop(calls: int) -> None:
        for _ in repeat(None, calls):
            call("import.csv", rows=1200, source="drive", ok=True, size=1.5)

    return loop


def positional(call: Callable[..., object]) -> Loop:
    """Calls with four values."""

    def loop(calls: int) -> None:
        for _ in repeat(None, calls):
            call(7, 9.5, "A1", True)  # noqa: FBT003 - positions are the point

    return loop


def bare_map() -> Loop:
    """The reference of P1: pack (name, time, attributes), and read the clock once. Nothing is kept."""
    pack, clock = msgpack.Packer().pack, time.monotonic_ns

    def loop(calls: int) -> None:
        for _ in repeat(None, calls):
            pack(("import.csv", clock(), {"rows": 1200, "source": "drive", "ok": True, "size": 1.5}))

    return loop


def bare_tuple() -> Loop:
    """The reference of P1b: pack a flat tuple, and read the clock once. Nothing is kept."""
    pack, clock = msgpack.Packer().pack, time.monotonic_ns

    def loop(calls: int) -> None:
        for _ in repeat(None, calls):
            pack((3, clock(), 7, 9.5, "A1", True))

    return loop


def nothing_by_keyword(name: str, /, **attributes: Any) -> None:  # noqa: ANN401 - as an application calls it
    """What calling alone costs."""


def nothing_by_position(a: object, b: object, c: object, d: object, /) -> None:
    """What calling alone costs."""


def in_one_go(loop: Loop, calls: int) -> Measured:
    """All calls without a pause; the processor time is that of all threads."""
    watch = Stopwatch()
    with watch:
        loop(calls)
    return Measured(calls, watch.wall, watch.cpu)


def slice_of(loop: Loop, calls: int, watch: Stopwatch) -> None:
    """A few calls, their time added to `watch`."""
    with watch:
        loop(calls)

"""Timings: how long a block of code took."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self


class Timing:
    """Made by `Agent.timing`; a context manager, or `begin` and `end` by hand. Records once, at its end."""

    __slots__ = ("_attributes", "_begun", "_cancelled", "_name", "_record")

    def __init__(
        self, record: Callable[[str, int, dict[str, Any]], None], name: str, attributes: dict[str, Any]
    ) -> None:
        """`record` takes name, nanoseconds and attributes."""
        self._record, self._name, self._attributes = record, name, attributes
        self._begun: int | None = None
        self._cancelled = False

    def begin(self) -> Self:
        """Start the clock; again, to start it anew."""
        self._begun = time.monotonic_ns()
        return self

    def end(self, name: str | None = None, /, **attributes: object) -> None:
        """Stop the clock and record, unless that was done before or the timing was cancelled; under another `name`, and
        with more `attributes`, where they are known only now.
        """
        begun, self._begun = self._begun, None
        if begun is not None and not self._cancelled:
            self._record(name or self._name, time.monotonic_ns() - begun, {**self._attributes, **attributes})

    def cancel(self) -> None:
        """Discard this timing."""
        self._cancelled = True

    def __enter__(self) -> Self:
        """`begin`."""
        return self.begin()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """`end`, also when the block raised."""
        self.end()

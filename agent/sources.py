"""Where the sessions come from that are delivered: what those who deliver are given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from pathlib import Path

from msgspec import Struct

from mailboat.agent.backlog import Running
from mailboat.agent.stores import Stores
from mailboat.protocol.summary import Summary


class Live(Struct, frozen=True):
    """The running session as it stands on disk."""

    summary: Summary
    folder: Path


async def _nothing() -> None:
    """No other session to take up."""


def _no_session() -> Running | None:
    """There is no session of this process."""
    return None


class Sources(Struct, frozen=True):
    """Where sessions come from.

    `live` flushes the running session and gives it as it stands (None when there is none), `running` how many records
    it has; `recover` takes up sessions whose process died; `disk` is the executor on which the stores are used.
    """

    stores: Stores
    live: Callable[[], Awaitable[Live | None]]
    disk: Executor
    running: Callable[[], Running | None] = _no_session
    recover: Callable[[], Awaitable[None]] = _nothing

"""Turns: of all requests on one upload the newest wins, and they never overlap.

A client that asks again has given up on what it asked before, perhaps over a connection that is dead without our
knowing. So a request that arrives ends the transfer that is under way, as soon as what has come of it is taken (a few
milliseconds), waits until its bytes are durable and noted, and then has its turn. A request that arrives while others
wait overtakes them: in their turn they are told so, and bring no bytes.

Newer is who came later, not who was looked into sooner: a query that overtook the append before it would tell an offset
that this append then leaves behind, and its sender would send those bytes again.

This, with one process for each data folder, is the fence: when a turn begins, no older transfer can write any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web

from mailboat.server.bodies import Stopping, Superseded, Transfer


@dataclass(slots=True)
class _Line:
    """Those who came for one upload."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    entrance: asyncio.Lock = field(default_factory=asyncio.Lock)
    newest: int = 0
    present: int = 0
    transfer: Transfer | None = None


class Turn:
    """One request's turn on an upload."""

    def __init__(self, turns: Turns, line: _Line, number: int) -> None:
        self._turns = turns
        self._line = line
        self._number = number

    @property
    def overtaken(self) -> bool:
        """Whether a newer request waits already."""
        return self._line.newest != self._number

    def begin(self, transfer: Transfer) -> None:
        """Say that `transfer` is under way from now on; it is ended soon when this turn is overtaken already."""
        self._line.transfer = transfer
        if self.overtaken:
            transfer.end_soon(Superseded("a newer request on this upload took over"))
        if self._turns.stopping:
            transfer.end(Stopping("the server stops"))

    def over(self) -> None:
        """Say that the transfer's body has ended: from here on it cannot be cut any more."""
        self._line.transfer = None


class Turns:
    """The turns on all uploads of a server."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self.stopping = False

    @property
    def transfers(self) -> int:
        """Transfers under way."""
        return sum(line.transfer is not None for line in self._lines.values())

    def busy(self, upload_id: str) -> bool:
        """Whether somebody has a turn on this upload, waits for one, or is looked into."""
        return upload_id in self._lines

    @asynccontextmanager
    async def in_order(self, upload_id: str) -> AsyncIterator[None]:
        """Look into whether one may take a turn, in the order in which requests came: who goes on to `take` without
        waiting in between is in line before whoever came later, although looking takes threads.
        """
        with self._present(upload_id) as line:
            async with line.entrance:
                yield

    @contextmanager
    def _present(self, upload_id: str) -> Iterator[_Line]:
        line = self._lines.setdefault(upload_id, _Line())
        line.present += 1
        try:
            yield line
        finally:
            line.present -= 1
            if not line.present:
                del self._lines[upload_id]

    @asynccontextmanager
    async def take(self, upload_id: str) -> AsyncIterator[Turn]:
        """End the transfer under way on this upload, and wait for one's turn."""
        with self._present(upload_id) as line:
            line.newest += 1
            turn = Turn(self, line, line.newest)
            if line.transfer is not None:
                line.transfer.end_soon(Superseded("a newer request on this upload took over"))
            async with line.lock:
                try:
                    yield turn
                finally:
                    turn.over()

    def stop(self) -> None:
        """End every transfer, now and to come: the server stops."""
        self.stopping = True
        for line in self._lines.values():
            if line.transfer is not None:
                line.transfer.end(Stopping("the server stops"))


TURNS: Final = web.AppKey("turns", Turns)

"""What the store needs beside delivery: sessions of dead processes are brought to rest, its quotas and its reserve are
kept, and it is noticed when a disk that was full has room again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Final

from mailboat.agent.backlog import Look, read
from mailboat.agent.clocks import Clocks
from mailboat.agent.eviction import evict_as_sender
from mailboat.agent.host import boot_id
from mailboat.agent.log import log
from mailboat.agent.recovery import bring_to_rest
from mailboat.agent.report import one_line
from mailboat.agent.room import Room
from mailboat.agent.store import SessionFolder, Store
from mailboat.agent.stores import Stores
from mailboat.protocol.errors import ConfigError

EVICTION_INTERVAL: Final = 60.0
"""Seconds between looks at the store's quotas, each of which reads the sizes of all that is kept."""

LOOK_INTERVAL: Final = 5.0
"""Seconds between looks whether there is room: so soon is it noticed that a full disk is full no longer."""


class Upkeep:
    """Of the stores that this process sends for, or of its own, on the executor `disk`; the event loop only waits.
    `room` is that of the running session, whose id is `running`; `going` tells whether to go on.
    """

    def __init__(
        self, stores: Stores, disk: Executor, clocks: Clocks, room: Room, running: str, going: Callable[[], bool]
    ) -> None:
        self._stores, self._disk, self._clocks, self._going = stores, disk, clocks, going
        self._room, self._running = room, running
        self._evicted_at: float | None = None
        self._had_room = True
        self.trouble = ""
        """Why sessions of earlier runs cannot be taken up, or quotas not be kept, while that lasts."""

    @property
    def _kept(self) -> Sequence[Store]:
        return self._stores.served or (self._stores.own,)

    async def take_up(self) -> None:
        """Bring the sessions of dead processes to rest, one after the other, so that one descriptor is held at a time
        and others get their turn on the disk.
        """
        loop, failures = asyncio.get_running_loop(), list[Exception]()
        for store in self._kept:
            try:
                await self._take_up(store, failures)
            except OSError as error:
                failures.append(error)
        await loop.run_in_executor(self._disk, self._keep_quotas, failures)
        self.note(*failures)

    async def _take_up(self, store: Store, failures: list[Exception]) -> None:
        loop = asyncio.get_running_loop()
        crashed = await loop.run_in_executor(self._disk, _crashed, store)
        while self._going():
            if not await loop.run_in_executor(self._disk, _recover_next, store, crashed, failures):
                break

    async def watch(self, after: asyncio.Task[None], on_room: Callable[[], None]) -> None:
        """Look every now and then once `after` is done, until cancelled; `on_room` is called when there is room after
        there was none.
        """
        await asyncio.wait([after])
        while True:
            if await self.look():
                on_room()
            await asyncio.sleep(LOOK_INTERVAL)

    async def look(self) -> bool:
        """Keep reserve and quotas, and try again what the disk has refused; whether there is room after there was
        none.
        """
        had_room, failures = self._had_room, list[Exception]()
        await asyncio.get_running_loop().run_in_executor(self._disk, self._keep, failures)
        if failures:
            self.note(*failures)
        elif self.trouble:
            await self.take_up()
        return self._had_room and not had_room

    def _keep(self, failures: list[Exception]) -> None:
        if self._room.wanted:
            self._evicted_at = None
        self._keep_quotas(failures)
        try:
            self._had_room = len(self._kept) == sum(store.reserve.keep() for store in self._kept)
        except OSError as error:
            failures.append(error)

    def _keep_quotas(self, failures: list[Exception]) -> None:
        """Give up sessions where a store is too large, too old or its disk too full; at most once a minute, but at
        once where the running session wants room.
        """
        now = self._clocks.now()
        if self._evicted_at is not None and now - self._evicted_at < EVICTION_INTERVAL:
            return
        try:
            for store in self._kept:
                relief = evict_as_sender(store, self._room.quota, self._clocks.wall() / 1e9)
                if store is self._stores.own:
                    self._room.measured(relief.left.bytes_beside(self._running))
        except OSError as error:
            failures.append(error)
        else:
            self._evicted_at = now

    async def waiting(self) -> Look | None:
        """What waits in the stores; None where the disk does not let us look, which is noted."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._disk, read, self._stores)
        except OSError as error:
            self.note(error)
            return None

    def note(self, *failures: Exception) -> None:
        """Remember the first failure, and say it once."""
        error = next(iter(failures), None)
        told = one_line(f"the store cannot be kept in order now: {type(error).__name__}: {error}")
        if error is not None and told != self.trouble:
            log.warning("%s", told)
        self.trouble = told if error is not None else ""


def _crashed(store: Store) -> Iterator[SessionFolder]:
    store.sweep()
    return iter(store.crashed())


def _recover_next(store: Store, crashed: Iterator[SessionFolder], failures: list[Exception]) -> bool:
    """Recover one crashed session; False when there is none left. Whatever comes of one stops no other."""
    session = next(crashed, None)
    if session is None:
        return False
    try:
        error = bring_to_rest(store, session, boot_id())
    except Exception as fault:  # noqa: BLE001 - whatever it is, it is told in the status
        error = None
        failures.append(fault)
    if isinstance(error, OSError | ConfigError):
        failures.append(error)
    elif error is not None:
        log.warning("crashed session %s is put aside: %s", session.path.name, error)
    return True

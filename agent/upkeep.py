"""What the store needs beside delivery: sessions of dead processes are brought to rest, and its quotas are kept."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Final

from mailboat.agent.clocks import Clocks
from mailboat.agent.eviction import evict_as_sender
from mailboat.agent.host import boot_id
from mailboat.agent.quota import Quota
from mailboat.agent.recovery import bring_to_rest
from mailboat.agent.report import one_line
from mailboat.agent.store import SessionFolder, Store
from mailboat.agent.stores import Stores
from mailboat.protocol.errors import ConfigError

log = logging.getLogger("mailboat")

EVICTION_INTERVAL: Final = 60.0
"""Seconds between looks at the store's quotas, each of which reads the sizes of all that is kept."""


class Upkeep:
    """Of the stores that this process sends for, or of its own, on the executor `disk`; the event loop only waits.
    `going` tells whether to go on.
    """

    def __init__(self, stores: Stores, disk: Executor, clocks: Clocks, quota: Quota, going: Callable[[], bool]) -> None:
        self._stores, self._disk, self._clocks, self._quota, self._going = stores, disk, clocks, quota, going
        self._evicted_at: float | None = None
        self.trouble = ""
        """Why sessions of earlier runs cannot be taken up, while that lasts."""

    async def take_up(self) -> None:
        """Bring the sessions of dead processes to rest, one after the other, so that one descriptor is held at a time
        and others get their turn on the disk.
        """
        failures = list[Exception]()
        due = self._evictions_due()
        for store in self._stores.served or (self._stores.own,):
            try:
                await self._take_up(store, failures)
                if due:
                    await self._keep_quota(store)
            except OSError as error:
                failures.append(error)
        self.note(*failures)

    async def _take_up(self, store: Store, failures: list[Exception]) -> None:
        loop = asyncio.get_running_loop()
        crashed = await loop.run_in_executor(self._disk, _crashed, store)
        while self._going():
            if not await loop.run_in_executor(self._disk, _recover_next, store, crashed, failures):
                break

    def _evictions_due(self) -> bool:
        """Whether to look at the quotas: at most once a minute."""
        now = self._clocks.now()
        if self._evicted_at is not None and now - self._evicted_at < EVICTION_INTERVAL:
            return False
        self._evicted_at = now
        return True

    async def _keep_quota(self, store: Store) -> None:
        """Give up sessions where the store is too large, too old or its disk too full."""
        wall = self._clocks.wall() / 1e9
        await asyncio.get_running_loop().run_in_executor(self._disk, evict_as_sender, store, self._quota, wall)

    def note(self, *failures: Exception) -> None:
        """Remember the first failure, and say it once."""
        error = next(iter(failures), None)
        told = one_line(f"sessions of earlier runs cannot be taken up now: {type(error).__name__}: {error}")
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

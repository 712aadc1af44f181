"""Traffic: holds what is sent to a rate and to a daily budget, which is kept over restarts.

Of the budget, bytes are set aside in the file before they are sent, some more at a time than are wanted at once. So
whatever a process dies of, no day's budget is exceeded; a death costs the day what was set aside and not yet used.
What counts are the bodies of requests: segments and offers. Head fields, which are a few hundred bytes, do not.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Final, TypeVar

from msgspec import Struct

from mailboat.agent.allowance import DAY, Budget, Rate, day_of
from mailboat.agent.clocks import Clocks
from mailboat.agent.files import FileSystem
from mailboat.agent.log import log
from mailboat.protocol.limits import KIB, UPLOAD_WRITE

T = TypeVar("T")

FILE_NAME: Final = "budget.json"

SET_ASIDE: Final = 64 * KIB
"""Least bytes set aside at a time: a write to the disk for each smaller piece would cost more than it saves."""

SET_ASIDE_SHARE: Final = 64
"""And this part of the budget, if that is more."""

LOOK_AGAIN: Final = 60.0
"""Seconds until a budget is read again that could not be."""


class Grant(Struct, frozen=True):
    """`count` bytes may be sent; they belong to the budget of `day`."""

    count: int
    day: int = 0


class Held(Struct, frozen=True):
    """Nothing may be sent now, for want of budget; `after` seconds from now there will be more."""

    after: float
    reason: str


class BudgetFile:
    """A day's budget in a small file of the store. Blocks."""

    def __init__(self, files: FileSystem, folder: Path, limit: int) -> None:
        """`limit` bytes a day."""
        self._files, self._path, self._limit = files, folder / FILE_NAME, limit

    def read(self) -> Budget:
        """As it was last written; a file that is missing or damaged has nothing spent. Raises `OSError`."""
        try:
            values = json.loads(self._files.read(self._path))
            return Budget(self._limit, int(values["day"]), max(0, int(values["spent"])))
        except FileNotFoundError:
            return Budget(self._limit)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            log.warning("the day's budget begins anew, its file %s is damaged: %s", self._path, error)
            return Budget(self._limit)

    def write(self, budget: Budget) -> None:
        """Durably. Raises `OSError`."""
        content = json.dumps({"version": 1, "day": budget.day, "spent": budget.spent}).encode()
        self._files.replace_content(self._path, content)


class Traffic:
    """What one sender may send."""

    def __init__(
        self, clocks: Clocks, rate: int | None = None, file: BudgetFile | None = None, disk: Executor | None = None
    ) -> None:
        """`rate`: bytes a second, None: as fast as it goes. `file` keeps the budget, on `disk`; None: none."""
        self._clocks, self._file, self._disk = clocks, file, disk
        self._own_rate = rate
        self._rate = None if rate is None else Rate(rate)
        self._budget: Budget | None = None
        self._aside = 0
        self._turn = asyncio.Lock()

    # -- the rate ------------------------------------------------------------------------------------------------

    def ask(self, rate: int | None) -> None:
        """The server asks for no more than `rate` bytes a second; None: it does not mind."""
        chosen = min((each for each in (rate, self._own_rate) if each is not None), default=None)
        if chosen is None:
            self._rate = None
        elif self._rate is None or self._rate.per_second != chosen:
            self._rate = Rate(chosen)

    @property
    def piece(self) -> int:
        """The most bytes to hand to the connection at a time."""
        return UPLOAD_WRITE if self._rate is None else min(UPLOAD_WRITE, self._rate.piece)

    @property
    def paced(self) -> bool:
        """Whether there is a rate to be kept to."""
        return self._rate is not None

    async def pace(self, count: int) -> None:
        """Return when so many bytes may go."""
        if self._rate is not None:
            self._rate, pause = self._rate.take(count, self._clocks.now())
            if pause > 0:
                await asyncio.sleep(pause)

    # -- the budget ----------------------------------------------------------------------------------------------

    @property
    def budgeted(self) -> bool:
        """Whether there is a budget to be kept to."""
        return self._file is not None

    def reread(self) -> None:
        """Another process may have spent some of it meanwhile."""
        self._budget, self._aside = None, 0

    async def grant(self, wanted: int, least: int = 1) -> Grant | Held:
        """How many bytes may be sent now, `wanted` at most; `Held` where there are not even `least` left of the day."""
        if self._file is None:
            return Grant(wanted)
        async with self._turn:
            try:
                await self._look(self._file)
            except OSError as error:
                return Held(LOOK_AGAIN, f"the day's budget cannot be read: {error}")
            if self._aside < wanted:
                await self._set_aside(self._file, wanted - self._aside)
            if self._aside < min(least, wanted):
                return Held(self._until_tomorrow(), f"the budget of {self._today.limit} bytes a day is spent")
            granted = min(wanted, self._aside)
            self._aside -= granted
            return Grant(granted, self._today.day)

    def give_back(self, grant: Grant, sent: int) -> None:
        """Only `sent` bytes of what was granted were sent."""
        if self._budget is not None and grant.day == self._budget.day:
            self._aside += max(0, grant.count - sent)

    @property
    def _today(self) -> Budget:
        assert self._budget is not None  # noqa: S101 - read by `_look` before
        return self._budget

    async def _look(self, file: BudgetFile) -> None:
        if self._budget is None:
            self._budget = await self._on_disk(file.read)
        today = self._budget.on(day_of(self._clocks.local()))
        if today.day != self._budget.day:
            self._aside = 0  # it was yesterday's
        self._budget = today

    async def _set_aside(self, file: BudgetFile, missing: int) -> None:
        today = self._today
        more = min(today.left, max(missing, SET_ASIDE, today.limit // SET_ASIDE_SHARE))
        if more > 0:
            self._budget = today.spend(more)
            self._aside += more
            budget = self._budget
            try:
                await self._on_disk(lambda: file.write(budget))
            except OSError as error:  # it is kept to all the same, by this process: to send may be what frees the disk
                log.info("the day's budget cannot be noted now: %s", error)

    async def _on_disk(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, call)

    def _until_tomorrow(self) -> float:
        local = self._clocks.local()
        return DAY - local % DAY

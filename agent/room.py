"""How much the running session may still write: the store's quota and the free space to leave on the disk bind it, too.

Sessions that have ended are given up to make room (`eviction`); a running one never is. But where nothing is left to
be given up, its records are kept in memory, up to a bound, until there is room again. Its end is always written.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mailboat.agent.files import FileSystem
from mailboat.agent.quota import Quota
from mailboat.protocol.errors import StoreError
from mailboat.protocol.limits import MIB

PLENTY: Final = 4096 * MIB
"""Bytes left on a disk, of which no disk takes so much in a second that it matters."""

_RECENT: Final = 1.0
"""Seconds for which it is not asked again how much is left, where it is plenty."""


class Disk:
    """How much is left on the disk that holds `folder`; for one thread. `now` is monotonic seconds.

    A host that records much has some ten blocks written a second, and whenever the writer waits for the system, the
    host's threads have to hand it the interpreter once more.
    """

    def __init__(self, files: FileSystem, folder: Path, now: Callable[[], float]) -> None:
        self._files, self._folder, self._now = files, folder, now
        self._asked = -math.inf
        self._room = (0, 0)

    def room(self) -> tuple[int, int]:
        """Bytes that are left, and the disk's size; of this second, where that is plenty. Raises `OSError`."""
        now = self._now()
        if self._room[0] < PLENTY or now - self._asked >= _RECENT:
            self._room, self._asked = self._files.room(self._folder), now
        return self._room


class Room:
    """The room of one running session. Measured on one thread and asked for on another: each is one assignment."""

    def __init__(self, quota: Quota) -> None:
        """Until it is first `measured`, the store is taken to hold nothing else."""
        self.quota = quota
        self.wanted = False
        """Whether some was refused since it was last measured."""
        self._others = 0

    def measured(self, others: int) -> None:
        """The rest of the store holds so many bytes."""
        self._others, self.wanted = others, False

    def ask(self, own: int, free: int, disk: int) -> None:
        """Return if a session that has `own` bytes may write, on a disk of `disk` bytes of which `free` are left.
        Raises `StoreError`.
        """
        quota, used, floor = self.quota, own + self._others, self.quota.floor(disk)
        if quota.max_bytes is not None and used >= quota.max_bytes:
            self.wanted = True
            raise StoreError(
                f"the store is full: it holds {used} bytes, of {quota.max_bytes} (max_store_bytes), and no session can "
                "be given up. Let it deliver, or allow it more"
            )
        if free < floor:
            self.wanted = True
            raise StoreError(
                f"the disk is nearly full: {free} bytes are left, {floor} are to be left (min_free_bytes). "
                "Make room on it, or keep the store on another one"
            )

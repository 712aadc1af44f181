"""How much the running session may still write: the store's quota and the free space to leave on the disk bind it, too.

Sessions that have ended are given up to make room (`eviction`); a running one never is. But where nothing is left to
be given up, its records are kept in memory, up to a bound, until there is room again. Its end is always written.
"""

from __future__ import annotations

from mailboat.agent.quota import Quota
from mailboat.protocol.errors import StoreError


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

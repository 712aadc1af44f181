"""The descriptors that the store has open in this process, and what a fork makes of them.

A forked child gets a copy of each. Some hold locks, and a lock is held for as long as any copy is open: the parent's
session would look alive, and its place as the sender taken, until the child ends too. So the child closes them all
before any of its own code runs, and knows none of them any more: whoever still has such a number cannot close with it
what has got the same number since.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from typing import Final

FORK_PATIENCE: Final = 1.0
"""Seconds that a fork waits for a file that is being opened or closed, or a module that is being loaded: a disk that
hangs must not hold the host.
"""


class Descriptors:
    """The open ones. Safe to use from any thread, and from a signal handler."""

    def __init__(self) -> None:
        """None is open yet; see `let_go_in_children`."""
        self._open: set[int] = set()
        self._changing = threading.RLock()
        self._forking = threading.local()

    def opened(self, call: Callable[[], int]) -> int:
        """`call` a function that opens a file, and note the descriptor that it returns: no fork comes in between."""
        with self._changing:
            fd = call()
            self._open.add(fd)
            return fd

    @contextlib.contextmanager
    def unforked(self) -> Iterator[None]:
        """No fork comes in between: it waits, as for a file that is being opened."""
        with self._changing:
            yield

    def close(self, fd: int) -> None:
        """Close a descriptor. Raises `OSError` as the system does when it is not open, or was opened by the parent."""
        with self._changing:
            if fd not in self._open:
                raise OSError(errno.EBADF, f"{os.strerror(errno.EBADF)}: {fd}")
            self._open.remove(fd)
            os.close(fd)

    def let_go_in_children(self) -> None:
        """From now on, close in each forked child what its parent has open."""
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._before, after_in_parent=self._in_parent, after_in_child=self._in_child)

    def _before(self) -> None:
        self._forking.holds = self._changing.acquire(timeout=FORK_PATIENCE)

    def _in_parent(self) -> None:
        if self._forking.holds:
            self._changing.release()

    def _in_child(self) -> None:
        self._changing = threading.RLock()
        parents, self._open = self._open, set()
        for fd in parents:
            with contextlib.suppress(OSError):  # it was being closed, on a disk that hangs
                os.close(fd)


DESCRIPTORS: Final = Descriptors()
DESCRIPTORS.let_go_in_children()

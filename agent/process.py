"""What happens to the process itself, and whom it concerns: it is forked, or it ends though nobody has stopped.

* *Fork*: the child's copies are told before any other code of the child runs. That goes for signal handlers, too,
  which may record: while a process forks, signals are held off in the thread that does it, and in the child.
* *End*: at the end of the interpreter, and of a child of `multiprocessing`, what was recorded is made safe. Recording
  goes on all the same: daemon threads may outlast this, and what they record stays in the journal.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import select
import selectors
import signal
import sys
import threading
import time
import weakref
from concurrent.futures import Future
from typing import Any, Final, Protocol

from mailboat.agent.log import log

EXIT_TIMEOUT: Final = 2.0
"""Seconds that the end of the process is put off for a disk that is slow; what is in the journal's file can wait."""


_NO_MORE_WORK: Final = "cannot schedule new futures"


class Inhabitant(Protocol):
    """Something that lives and dies with its process."""

    def forked(self) -> None:
        """This is a forked child, and a copy."""

    def leaving(self) -> Future[bool] | None:
        """The process is about to end in order: begin to make safe what there is."""


_INHABITANTS: Final = weakref.WeakSet[Inhabitant]()
_awaited_in: set[int] = set()
_forking: Final = threading.local()


def enter(inhabitant: Inhabitant) -> None:
    """Tell it what happens to the process, until `leave`."""
    _INHABITANTS.add(inhabitant)
    _await_end_of_child()


def leave(inhabitant: Inhabitant) -> None:
    """Tell it no more."""
    _INHABITANTS.discard(inhabitant)


def part_from_parent(loop: asyncio.AbstractEventLoop) -> None:
    """In a forked child: let nothing that becomes of its copy of the parent's loop reach the parent's.

    Both have the same epoll, so whoever closes the copy (`asyncio.run` on its way out, or the end of the interpreter)
    takes out of it what wakes the parent's loop: for ever after, no thread could tell that loop anything. The copy gets
    an epoll of its own, in which the same is registered. Other kinds of selectors are not shared by a fork.

    Where the system has no descriptor left for that, or refuses, it stays as it is, and the log says so.
    """
    selector: Any = getattr(loop, "_selector", None)
    epoll = hasattr(selectors, "EpollSelector") and isinstance(selector, selectors.EpollSelector)
    if not epoll or selector.get_map() is None:
        return
    try:
        with select.epoll() as own:
            for key in selector.get_map().values():
                wanted = (key.events & selectors.EVENT_READ and select.EPOLLIN) | (
                    key.events & selectors.EVENT_WRITE and select.EPOLLOUT
                )
                with contextlib.suppress(OSError):  # it was closed without having been taken out
                    own.register(key.fd, wanted)
            os.dup2(own.fileno(), selector.fileno(), inheritable=False)
    except OSError as error:
        log.warning("a forked child shares the selector of its parent's event loop: %s", error)


def ends_work(error: BaseException) -> bool:
    """Whether this is how an executor refuses work because the interpreter ends, which nobody needs to be told."""
    return isinstance(error, RuntimeError) and str(error).startswith(_NO_MORE_WORK)


def _before_fork() -> None:
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def _after_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _after_fork_in_child() -> None:
    try:
        for inhabitant in tuple(_INHABITANTS):
            inhabitant.forked()
    finally:
        _after_fork()


def _at_exit() -> None:
    deadline = time.monotonic() + EXIT_TIMEOUT
    for done in [inhabitant.leaving() for inhabitant in tuple(_INHABITANTS)]:
        if done is not None:
            try:
                done.result(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                return  # what the journal holds is left to recovery


def _await_end_of_child() -> None:
    """Children of `multiprocessing` end without `atexit` (up to Python 3.12), and forget what was asked before they
    began.
    """
    processes, util = (sys.modules.get(f"multiprocessing.{name}") for name in ("process", "util"))
    if processes is None or util is None or processes.parent_process() is None or os.getpid() in _awaited_in:
        return
    _awaited_in.add(os.getpid())
    util.Finalize(None, _at_exit, exitpriority=-100)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
atexit.register(_at_exit)

"""Which event loop this is, and how to have something done in another one."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Final, TypeVar

T = TypeVar("T")

LOOK_INTERVAL: Final = 0.1
"""Seconds between looks whether a loop in another thread is closed; nobody else would tell."""

LEAVE_TIMEOUT: Final = 1.0
"""Seconds that whoever has to leave, since he is cancelled or stopped, waits for what the store's thread still does for
him: some flushes of the disk. Where that hangs, it comes to its end by itself once it goes on.
"""

LOOP_ENDED: Final = "the event loop in which the agent was started has ended: start it again, it begins another session"


class LoopEnded(Exception):
    """What was asked for cannot be done any more."""

    def __init__(self) -> None:
        """The reason is for people."""
        super().__init__(LOOP_ENDED)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs in this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class UnderWay:
    """Something that is being done in the loop that runs here, and that others may wait for, in whatever loop."""

    def __init__(self) -> None:
        """It has just begun."""
        self._loop, self._ended = running_loop(), Future[None]()

    def end(self) -> None:
        """It is done; unless it is abandoned, which whoever waits for it is told."""
        if not self.abandoned:
            self._ended.set_result(None)

    @property
    def abandoned(self) -> bool:
        """Whether nobody goes on with it: its loop is closed."""
        return self._loop is not None and self._loop.is_closed()

    async def wait(self) -> None:
        """Until it has ended. Raises `LoopEnded` when its loop was closed before that."""
        await _settled(self._ended, self._loop)


async def _settled(done: Future[Any], loop: asyncio.AbstractEventLoop | None) -> None:
    """Until it is done, in `loop`. Raises `LoopEnded` once that is closed and it is not: nobody goes on with it."""
    here = asyncio.wrap_future(done)
    while not (await asyncio.wait([here], timeout=LOOK_INTERVAL))[0]:
        if loop is not None and loop.is_closed():
            raise LoopEnded


async def elsewhere(loop: asyncio.AbstractEventLoop | None, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """`call` in `loop`, which runs in another thread. Raises `LoopEnded` where it does not, or no more."""
    if loop is None or not loop.is_running():
        raise LoopEnded
    coroutine = call()
    try:
        there = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError:  # it was closed in this very moment
        coroutine.close()
        raise LoopEnded from None
    try:
        await _settled(there, loop)
    except asyncio.CancelledError:
        there.cancel()
        raise
    except LoopEnded:
        if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
            coroutine.close()
        raise
    if there.cancelled():
        raise LoopEnded  # what cancels all tasks of a loop is its end
    return there.result()


def owned(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """A task that an agent keeps, and that keeps nothing of the loop when it is cancelled with that.

    The error that ended it would hold the frames in which the loop ran, the host's among them, and keep what is in
    those alive as long as the agent is: a host's finalizers came too late then to tell that they failed.
    """
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_leave_no_frames)
    return task


def _leave_no_frames(task: asyncio.Task[None]) -> None:
    if task.cancelled():
        with contextlib.suppress(asyncio.CancelledError):
            task.exception()  # who asks for the error takes it out of the task

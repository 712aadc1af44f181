"""Which event loop this is, and how to have something done in another one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

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
        return await asyncio.wrap_future(there)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and not task.cancelling():
            raise LoopEnded from None  # what cancels all tasks of a loop is its end
        raise


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

"""An agent for a program without an event loop: it runs in a loop of its own, in a thread of its own."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from mailboat.agent.agent import Agent
from mailboat.agent.log import log

T = TypeVar("T")

EXIT_GRACE: Final = 15.0
"""Seconds, beyond the agent's own timeout, after which the end of the process waits for the thread no longer: it is a
daemon, and what it had not sealed is left to recovery."""


class AgentThread:
    """Hosts `agent` for synchronous code; a context manager.

    ::

        with AgentThread(Agent(product="Acme Studio", application="importer")) as host:
            host.agent.feature("import.csv", rows=1200)
            report = host.call(host.agent.force_sync(timeout=10.0))

    Recording goes through `agent`, whose recording methods may be called on any thread. Whatever of it is a coroutine
    is run by `call`. A program that ends without `stop` is stopped as it exits: its session is sealed then, and
    delivered by the next run, for at that point Python starts no more threads.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Event | None = None

    def start(self) -> None:
        """Start the thread, and the agent in it; returns when it runs. Nothing happens when it does already."""
        if self._alive:
            return
        started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="mailboat-agent", daemon=True)
        self._thread.start()
        started.result()
        atexit.register(self._at_exit)

    def call(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run one of the agent's coroutines, and return what it returns (or raise what it raises).

        Raises `TimeoutError` after `timeout` seconds, and cancels it; `RuntimeError` outside of `start` and `stop`, and
        within the thread itself (in an `on_alert` callback, say), where to wait would be to wait for ever.
        """
        loop = self._loop
        if not self._alive or loop is None or threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("AgentThread.call: the thread is not running, or this is the thread itself")
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise

    def stop(self, timeout: float | None = None) -> None:
        """`Agent.stop`, then end the thread. Without effect when it does not run; in a forked child, which has no such
        thread, only the child's own session is sealed.
        """
        atexit.unregister(self._at_exit)
        if self._alive:
            self.call(self.agent.stop(timeout))
            self._end()
        elif self._thread is not None:
            self._thread = None
            asyncio.run(self.agent.stop(0.0))

    def __enter__(self) -> Self:
        """`start`."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """`stop`; an exception that leaves the block is recorded first, as by ``async with`` the agent itself."""
        if self._alive:
            self.call(self.agent.__aexit__(kind, error, trace))
        self.stop()

    @property
    def _alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _run(self, started: concurrent.futures.Future[None]) -> None:
        try:
            asyncio.run(self._live(started))
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    async def _live(self, started: concurrent.futures.Future[None]) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        await self.agent.start()
        started.set_result(None)
        await self._ended.wait()

    def _end(self) -> None:
        thread, loop, ended, self._thread = self._thread, self._loop, self._ended, None
        if loop is not None and ended is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                loop.call_soon_threadsafe(ended.set)
        if thread is not None:
            thread.join(EXIT_GRACE)

    def _at_exit(self) -> None:
        if not self._alive:
            return
        try:
            self.call(self.agent.stop(0.0), EXIT_GRACE)
        except Exception as error:  # noqa: BLE001 - the process ends; what was recorded is in the journal
            log.warning("the agent could not be stopped as the program ended, a later run seals its session: %r", error)
        self._end()

"""P1 and P1b: what one recording call costs, with the record safe from ``kill -9`` when it returns.

*One call* (P1, P1b): slices of calls that fit into the half of the journal at hand; between them, with the watch
stopped, the writer makes its block. What is counted is what the caller waits for, and the processor time of its thread.

*Without a pause* (P1s, P1bs): the caller does nothing but record, so the writer compresses at the same time and both
share one interpreter lock. The processor time is that of all threads: call, compression and file.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from bench import calls as made
from bench.calls import Loop
from bench.harness import CALL, Absent, Budget, Comparison, Contender, Measured, Sense, Settings, Stopwatch
from bench.peers import PEERS, Call, Missing
from mailboat.agent import Agent

NAME = "hot_path"
ABOUT = "one recording call, crash-safe when it returns (P1, P1b)"
REPETITIONS = 31
"""Short turns, and many of them."""

FAR_BEHIND = ("PostHog", "Glean", "Sentry")
"""Peers that `agent.feature` is to be fifty times as fast as."""

PEER_SHARE = 10
"""Peers make so many times fewer calls: they take long enough as it is."""


async def comparisons(settings: Settings) -> AsyncGenerator[Comparison, None]:
    """P1 and P1b, each as one call and without a pause."""
    agent = Agent(store=settings.folder / "store", product="bench", application="hot-path")
    async with agent:
        with ExitStack() as stack:
            keyword = made.keyword(agent.feature)
            positional = made.positional(agent.emitter("order.placed", "user_id", "price", "sku", "ok"))
            peers = tuple(_peer(stack, *each, settings) for each in PEERS.items())
            plain = _Plain(settings.calls)
            ours = _Ours(agent, settings.calls)
            bare_map = plain.contender("bare pack of a map", made.bare_map())
            bare_tuple = plain.contender("bare pack of a tuple", made.bare_tuple())
            yield Comparison(
                "P1",
                "one call agent.feature(name, four attributes)",
                CALL,
                Sense.COST,
                bare_map,
                Contender("agent.feature", lambda: ours.by_slices(keyword)),
                (plain.contender("empty call", made.keyword(made.nothing_by_keyword)), *peers),
                Budget(1.6, Sense.COST, cpu=True),
            )
            for peer in peers:
                if isinstance(peer, Contender) and peer.name in FAR_BEHIND:
                    yield Comparison(
                        f"P1 {peer.name}",
                        f"one call of {peer.name}, which hands its record on, beside agent.feature",
                        CALL,
                        Sense.COST,
                        Contender("agent.feature", lambda: ours.by_slices(keyword)),
                        peer,
                        budget=Budget(50, Sense.SPEED, cpu=True),
                    )
            yield Comparison(
                "P1b",
                "one call of a declared emitter, four values",
                CALL,
                Sense.COST,
                bare_tuple,
                Contender("emitter", lambda: ours.by_slices(positional)),
                (plain.contender("empty call", made.positional(made.nothing_by_position)),),
                Budget(2.0, Sense.COST, cpu=True),
            )
            yield Comparison(
                "P1s",
                "agent.feature without a pause, processor time of all threads",
                CALL,
                Sense.COST,
                bare_map,
                Contender("agent.feature", lambda: ours.in_one_go(keyword)),
            )
            yield Comparison(
                "P1bs",
                "emitter without a pause, processor time of all threads",
                CALL,
                Sense.COST,
                bare_tuple,
                Contender("emitter", lambda: ours.in_one_go(positional)),
            )


class _Plain:
    """Contenders that need nothing done between their slices."""

    def __init__(self, calls: int) -> None:
        self._calls = calls

    def contender(self, name: str, loop: Loop) -> Contender:
        """One that makes all calls in slices, as the agent's does."""

        async def run() -> Measured:
            gc.collect()
            watch = Stopwatch(thread=True)
            for calls in _slices(self._calls):
                made.slice_of(loop, calls, watch)
            return Measured(self._calls, watch.wall, watch.cpu)

        return Contender(name, run)


class _Ours:
    """The agent's side; each run checks that every record was taken."""

    def __init__(self, agent: Agent, calls: int) -> None:
        self._agent = agent
        self._calls = calls

    async def by_slices(self, loop: Loop) -> Measured:
        """The calls alone."""
        before, watch = await self._before(), Stopwatch(thread=True)
        for calls in _slices(self._calls):
            made.slice_of(loop, calls, watch)
            await self._agent.flush()
        self._check(before)
        return Measured(self._calls, watch.wall, watch.cpu)

    async def in_one_go(self, loop: Loop) -> Measured:
        """The calls, and whatever is done with the records meanwhile."""
        before, watch = await self._before(), Stopwatch()
        with watch:
            loop(self._calls)
        with Stopwatch() as rest:
            await self._agent.flush()
        self._check(before)
        return Measured(self._calls, watch.wall, watch.cpu + rest.cpu)

    async def _before(self) -> int:
        gc.collect()
        await self._agent.flush()
        return self._agent.status.recorded

    def _check(self, before: int) -> None:
        status = self._agent.status
        if status.recorded - before != self._calls or status.lost or not status.crash_proof or status.trouble:
            raise RuntimeError(f"not what was to be measured: {self._calls} calls after {before} records, {status}")


def _slices(calls: int) -> list[int]:
    whole, rest = divmod(calls, made.SLICE)
    return [made.SLICE] * whole + [rest] * bool(rest)


def _peer(
    stack: ExitStack, name: str, begin: Callable[[Path], AbstractContextManager[Call]], settings: Settings
) -> Contender | Absent:
    try:
        call = stack.enter_context(begin(settings.folder))
    except Missing as error:
        return Absent(name, str(error))
    calls = max(1, settings.calls // PEER_SHARE)
    return _Plain(calls).contender(name, made.keyword(call))

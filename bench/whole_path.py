"""P2: what recording 100,000 times a second costs a host in all, and what its event loop notices of it.

The host is an event loop that makes the calls which are due each millisecond, and ticks each millisecond besides. The
same host runs with calls that do nothing, and what remains is the agent's: the calls themselves, compression, file.

*Processor time* (P2, P2b): that of all threads, above the host with empty calls, beside bare packing.

*Delay* (P2d, P2bd): by how much the tick comes late that is later than 99 of 100. A run in which recording causes the
garbage collector to run is an error.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from bench import calls as made
from bench.calls import Loop
from bench.harness import CALL, Budget, Comparison, Contender, Measured, Sense, Settings, Stopwatch, Unit
from mailboat.agent import Agent

NAME = "whole_path"
ABOUT = "a host that records 100,000 times a second (P2)"
REPETITIONS = 11

RATE = 100_000
"""Calls a second."""

CALLS_FACTOR = 5
"""So many times the calls that are asked for: a second's worth by default."""

_HOSTS_OWN = 5
"""Garbage collections in a run that are the event loop's; a call that left one container behind would cause 142."""

TICK = 0.001
DELAY = Unit("tick", "ms", 1e3)


@dataclass(frozen=True, slots=True)
class _Run:
    """What one run of the host took; `late` is in seconds."""

    calls: int
    cpu: float
    late: float
    collections: int


async def comparisons(settings: Settings) -> AsyncGenerator[Comparison, None]:
    """P2 with keywords, and by position."""
    agent = Agent(store=settings.folder / "store", product="bench", application="whole-path")
    async with agent:
        emitter = agent.emitter("order.placed", "user_id", "price", "sku", "ok")
        keyword, positional = made.keyword(agent.feature), made.positional(emitter)
        nothing = made.keyword(made.nothing_by_keyword), made.positional(made.nothing_by_position)
        calls = CALLS_FACTOR * settings.calls
        host = _Host(agent, calls)
        rows = (
            ("", "agent.feature", keyword, nothing[0], 3.2),
            ("b", "emitter", positional, nothing[1], 2.2),
        )
        for suffix, name, ours, empty, limit in rows:
            yield Comparison(
                f"P2{suffix}",
                f"{name} at {RATE:,} records/s, processor time of all threads above empty calls",
                CALL,
                Sense.COST,
                Contender("bare pack of a tuple", lambda: _bare(calls)),
                host.above(name, ours, empty),
                budget=Budget(limit, Sense.COST, cpu=True),
            )
            yield Comparison(
                f"P2{suffix}d",
                f"delay (p99) of a {TICK * 1e3:g} ms ticker, {name} at {RATE:,} records/s",
                DELAY,
                Sense.COST,
                host.delay("empty calls", empty, ours=False),
                host.delay(name, ours, ours=True),
                budget=Budget(1.3, Sense.COST),
            )


async def _bare(calls: int) -> Measured:
    gc.collect()
    return made.in_one_go(made.bare_tuple(), calls)


class _Host:
    """The contenders; each run with the agent checks that every record was taken."""

    def __init__(self, agent: Agent, calls: int) -> None:
        self._agent = agent
        self._calls = calls

    def above(self, name: str, ours: Loop, empty: Loop) -> Contender:
        """What `ours` takes above `empty`."""

        async def run() -> Measured:
            without = await _run(empty, self._calls)
            with_agent = await self._checked(ours)
            cpu = max(0.0, with_agent.cpu - without.cpu)
            return Measured(with_agent.calls, cpu, cpu)

        return Contender(name, run)

    def delay(self, name: str, loop: Loop, *, ours: bool) -> Contender:
        """By how much ticks are late."""

        async def run() -> Measured:
            done = await (self._checked(loop) if ours else _run(loop, self._calls))
            return Measured(1, done.late, done.cpu)

        return Contender(name, run)

    async def _checked(self, loop: Loop) -> _Run:
        await self._agent.flush()
        before = self._agent.status.recorded
        done = await _run(loop, self._calls, self._agent)
        status = self._agent.status
        if status.recorded - before != done.calls or status.lost or not status.crash_proof or status.trouble:
            raise RuntimeError(f"not what was to be measured: {done.calls} calls after {before} records, {status}")
        if done.collections > _HOSTS_OWN:
            raise RuntimeError(f"{done.collections} garbage collections in {done.calls} calls: records leave something")
        return done


async def _run(loop: Loop, calls: int, agent: Agent | None = None) -> _Run:
    late: list[float] = []
    gc.collect()
    before = _collections()
    with Stopwatch() as watch:
        recording = asyncio.create_task(_record(loop, calls))
        while not recording.done():
            begun = time.perf_counter()
            await asyncio.sleep(TICK)
            late.append(time.perf_counter() - begun - TICK)
        await recording
        if agent is not None:
            await agent.flush()
    late.sort()
    return _Run(calls, watch.cpu, max(late[len(late) * 99 // 100], 0.0), _collections() - before)


async def _record(loop: Loop, calls: int) -> None:
    done, begun = 0, time.perf_counter()
    while done < calls:
        await asyncio.sleep(TICK)
        due = min(calls, int((time.perf_counter() - begun) * RATE)) - done
        loop(due)
        done += due


def _collections() -> int:
    return sum(generation["collections"] for generation in gc.get_stats())

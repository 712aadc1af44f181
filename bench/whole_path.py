"""P2: what recording 100,000 times a second costs a host in all, and what its event loop notices of it.

The host is an event loop that makes the calls which are due, and ticks each millisecond besides. The same host runs
with calls that do nothing, and what remains is the agent's: the calls themselves, compression, file.

There are two hosts, which differ in when they make the calls:

* *Evenly* (P2e, P2be). An application records what happens to it, when it happens: 100,000 a second are one each 10 us.
  To wait for one, look which it is and call back takes a loop of asyncio about as long, so when it has dealt with one
  the next is there, and it never sleeps: each turn makes the calls that have become due since the last one. This is the
  host that the budget of the delay is held to. It does nothing besides, so that no work of its own hides what is late.
* *In bursts* (P2d, P2bd). The host collects what happens and records it once a millisecond: a hundred calls in one go,
  with nothing to do before and after. Whatever takes a microsecond a call holds this loop up for a tenth of a
  millisecond, and as the waits of asyncio end at whole milliseconds, that is added to each tick. A peer tells what of
  it would be anybody's who packs a record at all: a bare pack in place of each call, without an agent.

*Processor time* (P2, P2b): that of all threads, above the host with empty calls, beside bare packing. In bursts: a loop
that never sleeps takes all there is, with and without the agent.

*Delay*: by how much the tick comes late that is later than 99 of 100. A run in which recording
causes the garbage collector to run is an error.

*Delay beside as much Python* (P2dh, P2bdh): whatever takes time on the loop's thread delays what comes after it. So the
host of the bursts burns, in place of each burst of calls, as much processor time of its thread as those take, in plain
Python and without an agent.

*Calls by themselves*: a peer makes the same calls into a journal that is large enough for all of them, so that no half
is ever closed and no other thread runs. What it lacks is the turns from half to half and the writer.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import calls as made
from bench.calls import Loop
from bench.harness import CALL, Budget, Comparison, Contender, Measured, Sense, Settings, Stopwatch, Unit
from mailboat.agent import Agent
from mailboat.agent.files import OsFileSystem
from mailboat.agent.journal import Half, Journal
from mailboat.agent.recorder import Recorder

NAME = "whole_path"
ABOUT = "a host that records 100,000 times a second (P2)"
REPETITIONS = 21
"""The p99 of a ticker for a second is its tenth tick from the end, and differs by its nature: a pair of runs gave 0.57
to 7.37. The median of five such pairs says little, that of twenty is within a fifth. To take the ticks of several runs
together is no better: one during which others had the processor makes the tail of all.
"""

RATE = 100_000
"""Calls a second."""

CALLS_FACTOR = 5
"""So many times the calls that are asked for: a second's worth by default."""

_HOSTS_OWN = 5
"""Garbage collections in a run that are the event loop's; a call that left one container behind would cause 142."""

TICK = 0.001
DELAY = Unit("tick", "ms", 1e3)

_ROOM = 128
"""Bytes in a journal for each call, more than any of them records."""

_PAIRS = 5
"""So many times it is measured how much of its thread's time a host's calls take."""


@dataclass(frozen=True, slots=True)
class _Run:
    """What one run of the host took; `late` is in seconds, `own` the processor time of the loop's thread."""

    calls: int
    cpu: float
    own: float
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
        bare = made.bare_map(), made.bare_tuple()
        rows = (
            ("", "agent.feature", keyword, nothing[0], 3.2),
            ("b", "emitter", positional, nothing[1], 2.2),
        )
        alone = _Alone(settings.folder / "alone", calls)
        by_themselves = made.keyword(alone.recorder.feature), made.positional(alone.emitter)
        for (suffix, name, ours, empty, limit), by_itself, packing in zip(rows, by_themselves, bare, strict=True):
            yield Comparison(
                f"P2{suffix}",
                f"{name} at {RATE:,} records/s, processor time of all threads above empty calls",
                CALL,
                Sense.COST,
                Contender("bare pack of a tuple", lambda: _bare(calls)),
                host.above(name, ours, empty),
                budget=Budget(limit, Sense.COST, cpu=True),
            )
            for letter, when, pause in (("e", "evenly", 0.0), ("d", "in bursts", TICK)):
                alike = partial(host.delay, pause=pause)
                yield Comparison(
                    f"P2{suffix}{letter}",
                    f"delay (p99) of a {TICK * 1e3:g} ms ticker, {name} at {RATE:,} records/s, which come {when}",
                    DELAY,
                    Sense.COST,
                    alike("empty calls", empty, ours=False),
                    alike(name, ours, ours=True),
                    (
                        alike("bare packs, no agent", packing, ours=False),
                        alike(f"{name}, no turns, no writer", by_itself, ours=False, after=alone.emptied),
                    ),
                    Budget(1.3, Sense.COST),
                )
            each = await host.time_of(ours, empty)
            yield Comparison(
                f"P2{suffix}dh",
                f"P2{suffix}d, beside a host that burns {each * 1e9:.0f} ns of plain Python in place of each call",
                DELAY,
                Sense.COST,
                host.delay("as much plain Python", _burning(empty, each), ours=False),
                host.delay(name, ours, ours=True),
                budget=Budget(1.3, Sense.COST),
            )
    alone.close()


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

    def delay(
        self,
        name: str,
        loop: Loop,
        *,
        ours: bool,
        pause: float = TICK,
        after: Callable[[], object] = lambda: None,
    ) -> Contender:
        """By how much ticks are late, where the host waits `pause` seconds before it makes the calls that are due.
        `after` is called after each run.
        """

        async def run() -> Measured:
            done = await (self._checked(loop, pause) if ours else _run(loop, self._calls, pause))
            after()
            return Measured(1, done.late, done.cpu)

        return Contender(name, run)

    async def time_of(self, ours: Loop, empty: Loop) -> float:
        """Seconds of the loop's thread that a call of `ours` takes above one of `empty`, as the host makes them."""
        taken = []
        for _ in range(_PAIRS):
            without = await _run(empty, self._calls)
            taken.append((await self._checked(ours)).own - without.own)
        return max(0.0, statistics.median(taken) / self._calls)

    async def _checked(self, loop: Loop, pause: float = TICK) -> _Run:
        await self._agent.flush()
        before = self._agent.status.recorded
        done = await _run(loop, self._calls, pause, self._agent)
        status = self._agent.status
        if status.recorded - before != done.calls or status.lost or not status.crash_proof or status.trouble:
            raise RuntimeError(f"not what was to be measured: {done.calls} calls after {before} records, {status}")
        if done.collections > _HOSTS_OWN:
            raise RuntimeError(f"{done.collections} garbage collections in {done.calls} calls: records leave something")
        return done


class _Alone:
    """A recorder with a journal in a file that holds all calls of a run, and nobody who makes blocks of it."""

    def __init__(self, path: Path, calls: int) -> None:
        files = OsFileSystem()
        self._calls = calls
        self._journal = Journal(files, files.create(path), 2 * _ROOM * calls, "")
        for half in self._journal.halves:
            half.memory[:] = bytes(half.size)  # its pages are there, as those of the agent's halves are
            half.memory.seek(0)
        self.recorder = Recorder(self._journal, on_full=self._closed, on_urgent=lambda *_: None)
        self.emitter = self.recorder.emitter("order.placed", ("user_id", "price", "sku", "ok"))
        self._closings = self._before = 0

    def _closed(self, half: Half) -> None:
        self._closings += 1
        self._journal.release(half)

    def emptied(self) -> None:
        """Have room for another run. Raises `RuntimeError` when the last one was not all in one half."""
        self.recorder.turn()
        if self._closings != 1 or self.recorder.recorded - self._before != self._calls:
            raise RuntimeError(
                f"not what was to be measured: {self._closings} halves, {self.recorder.recorded} records"
            )
        self._closings, self._before = 0, self.recorder.recorded

    def close(self) -> None:
        """Let go of the journal."""
        self.recorder.stop()
        self._journal.close()


def _burning(empty: Loop, each: float) -> Loop:
    """Calls of `empty`, and then plain Python until the thread has had `each` seconds more for each of them."""

    def loop(calls: int) -> None:
        empty(calls)
        until = time.thread_time() + calls * each
        while time.thread_time() < until:
            pass

    return loop


async def _run(loop: Loop, calls: int, pause: float = TICK, agent: Agent | None = None) -> _Run:
    late: list[float] = []
    gc.collect()
    before, thread = _collections(), Stopwatch(thread=True)
    with Stopwatch() as watch, thread:
        recording = asyncio.create_task(_record(loop, calls, pause))
        while not recording.done():
            begun = time.perf_counter()
            await asyncio.sleep(TICK)
            late.append(time.perf_counter() - begun - TICK)
        await recording
        if agent is not None:
            await agent.flush()
    late.sort()
    return _Run(calls, watch.cpu, thread.cpu, max(late[len(late) * 99 // 100], 0.0), _collections() - before)


async def _record(loop: Loop, calls: int, pause: float) -> None:
    done, begun = 0, time.perf_counter()
    while done < calls:
        await asyncio.sleep(pause)
        due = min(calls, int((time.perf_counter() - begun) * RATE)) - done
        loop(due)
        done += due


def _collections() -> int:
    return sum(generation["collections"] for generation in gc.get_stats())

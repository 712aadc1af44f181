"""Agents in a process of their own, for `bench.load`: ``python -m bench.load_hosts --folder F --agents N ...``.

Each agent has a store of its own with ended sessions that wait, and delivers them as an application with connectivity
windows does: windows that are too short, until none is left. What a window cuts is asked for its offset (HEAD) by the
next, and gone on with.

Meanwhile one more agent of the process records, as that of an application at work would: how long its calls take is
told, and its session is delivered last.

The process makes the sessions, prints ``ready``, and begins when it gets a line. In the end it prints one line of JSON:
for each kind of request the seconds from its start to the head of its answer, and how many had no answer; the seconds
of each recording call; and what became of the others' sessions.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

import aiohttp

from bench.sessions import make, sender, waiting_in
from mailboat.agent import Agent
from mailboat.agent.report import SessionState

SIZES: Final = (4_000, 4_000, 20_000, 20_000, 20_000, 20_000, 50_000, 100_000, 200_000, 500_000)
"""Bytes of a session, one after the other: seven of ten ride along with their offers, three are uploaded."""

SEGMENT: Final = 16 * 1024 * 1024

BETWEEN_CALLS: Final = 0.005
"""Seconds between two recording calls of a process."""

CALL: Final = "call"
"""The name under which the calls are recorded."""

KINDS: Final = {"POST": "negotiation", "PATCH": "upload", "HEAD": "offset", "GET": "probe"}
"""What a request is for, by its method."""


class Latencies:
    """How long requests took, by kind; those that were cut or failed are counted."""

    def __init__(self) -> None:
        self.took: defaultdict[str, list[float]] = defaultdict(list)
        self.cut: Counter[str] = Counter()

    def trace(self) -> aiohttp.TraceConfig:
        """To be given to a client."""
        config = aiohttp.TraceConfig()
        config.on_request_start.append(self._begin)
        config.on_request_end.append(self._end)
        config.on_request_exception.append(self._fail)
        return config

    async def _begin(self, _: aiohttp.ClientSession, context: SimpleNamespace, __: object) -> None:
        context.began = time.perf_counter()

    async def _end(
        self, _: aiohttp.ClientSession, context: SimpleNamespace, ended: aiohttp.TraceRequestEndParams
    ) -> None:
        self.took[KINDS.get(ended.method, ended.method)].append(time.perf_counter() - context.began)

    async def _fail(
        self, _: aiohttp.ClientSession, __: SimpleNamespace, failed: aiohttp.TraceRequestExceptionParams
    ) -> None:
        self.cut[KINDS.get(failed.method, failed.method)] += 1


async def deliver(url: str, key: str, store: Path, chance: random.Random, window: float) -> Counter[str]:
    """One agent's windows, each up to `window` seconds, until nothing waits; its sessions by what became of them."""
    await asyncio.sleep(chance.uniform(0.0, window) / 10)
    states: Counter[str] = Counter()
    async with sender(url, key, store) as agent:
        while True:
            states["windows"] += 1
            report = await agent.force_sync(timeout=chance.uniform(0.25, 1.0) * window)
            accepted = [each for each in report.sessions if each.state is SessionState.ACCEPTED]
            states["accepted"] += len(accepted)
            states["records"] += sum(each.records for each in accepted)
            if report.complete:
                return states


async def record(agent: Agent) -> list[float]:
    """The seconds that each recording call took, until cancelled."""
    took: list[float] = []
    with suppress(asyncio.CancelledError):
        while True:
            began = time.perf_counter()
            agent.feature(CALL, number=len(took))
            took.append(time.perf_counter() - began)
            await asyncio.sleep(BETWEEN_CALLS)
    return took


async def deliver_all(asked: argparse.Namespace, stores: list[Path], chance: random.Random) -> Counter[str]:
    """What becomes of the sessions of all agents."""
    async with asyncio.TaskGroup() as group:
        agents = [
            group.create_task(deliver(asked.url, asked.key, store, random.Random(chance.random()), asked.window))
            for store in stores
        ]
    return sum((each.result() for each in agents), Counter[str]())


async def run(asked: argparse.Namespace) -> None:
    """Make the sessions, wait for the word, deliver."""
    chance = random.Random(asked.seed)
    stores = []
    for place in range(asked.agents):
        stores.append(store := asked.folder / f"store-{place}")
        waiting = waiting_in(store)
        for number in range(asked.sessions):
            made = asked.folder / f"made-{place}-{number}"
            size = SIZES[(place + number) % len(SIZES)]
            make(made, size, SEGMENT, seed=chance.getrandbits(48)).link_into(waiting)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    latencies, session = Latencies(), aiohttp.ClientSession

    def traced(*arguments: Any, **settings: Any) -> aiohttp.ClientSession:  # noqa: ANN401 - passed on
        return session(*arguments, **settings, trace_configs=[latencies.trace()])

    recorder = asked.folder / "recorder"
    with patch("mailboat.agent.http.aiohttp.ClientSession", traced):
        async with sender(asked.url, asked.key, recorder) as agent:
            recording = asyncio.create_task(record(agent))
            states = await deliver_all(asked, stores, chance)
            recording.cancel()
            calls = await recording
        await deliver(asked.url, asked.key, recorder, chance, asked.window)
    told = {"took": latencies.took, "cut": latencies.cut, "calls": calls, "states": states, "cpu": time.process_time()}
    print(json.dumps(told))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m bench.load_hosts")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--agents", type=int, required=True)
    parser.add_argument("--sessions", type=int, required=True, help="of each agent")
    parser.add_argument("--window", type=float, required=True, help="longest window, in seconds")
    parser.add_argument("--seed", type=int, required=True)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()

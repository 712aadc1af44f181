"""A host that records for hours, while every few seconds something breaks (testing.md, row 25)."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import random
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from mailboat.agent import Agent
from mailboat.cli.demo.faults import FaultProxy
from mailboat.protocol.records import Level
from testkit.agents import AgentMaker
from testkit.disk import Disk, from_then_on
from testkit.servers import Given, Served, show

KIB, MIB = 1024, 1024 * 1024
HOURS = float(os.environ.get("MAILBOAT_TEST_HOURS", "0.25"))
RATE = 500
PERIOD = 10.0
"""Seconds from one fault to the next; each lasts a tenth to a third of it."""

PERIODS_A_SESSION = 6
ROOM = 4 * MIB
"""What an allocator may keep more; 100 bytes left behind by each record would be 43 MiB in 15 minutes."""

CONNECTIONS = 4
"""Descriptors that come and go with connections; one left behind by each fault would be 45 of them in 15 minutes."""


class Run:
    """Records at `RATE`; `recorded` counts what was taken by agents that have ended."""

    def __init__(self, make_agent: AgentMaker, disk: Disk, proxy: FaultProxy) -> None:
        self._make_agent, self.disk, self.proxy = make_agent, disk, proxy
        self.agent: Agent
        self.called = 0

    async def begin(self) -> None:
        timing = {"synchronize_automatically": True, "startup_delay": 0.0, "sync_interval": 1.0}
        self.agent = self._make_agent(server=self.proxy.url, segment_bytes=128 * KIB, **timing)
        self.agent._files = self.disk.files
        await self.agent.start()

    async def record(self, until: float) -> None:
        begun, done = time.monotonic(), 0
        while (now := time.monotonic()) < until:
            due = int((now - begun) * RATE) - done
            for _ in range(due):
                self.agent.feature("soak", number=self.called, text=f"what {self.called} was about")
                self.called += 1
            done += due
            await asyncio.sleep(0.05)
        self.agent.event("period", level=Level.ERROR)
        self.called += 1


async def misfortune(run: Run, server: Served, draw: random.Random) -> str:
    """Something breaks for a while, and is whole again when this returns."""
    lasts = PERIOD * draw.uniform(0.1, 0.3)
    what = draw.choice(["cut", "down", "slow", "killed", "disk", "disk"])
    match what:
        case "cut":
            run.proxy.cut_after(*(draw.randrange(1, 60 * KIB) for _ in range(5)))
            await asyncio.sleep(lasts)
        case "down":
            await run.proxy.close()
            await asyncio.sleep(lasts)
            await run.proxy.open()
        case "slow":
            run.proxy.pace.rate = 20 * KIB
            await asyncio.sleep(lasts)
            run.proxy.pace.rate = None
        case "killed":
            await server.kill_and_restart()
        case _:
            run.disk.plan = from_then_on(1, draw.choice([errno.EIO, errno.ENOSPC, errno.EMFILE]))
            await asyncio.sleep(lasts)
            run.disk.plan = lambda _number, _name: None
    run.disk.calls.clear()
    return what


def resident() -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * KIB


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are enough


def grown(samples: Sequence[int]) -> float:
    """From the second quarter, when all is warm, to the last one."""
    quarter = len(samples) // 4
    return statistics.median(samples[-quarter:]) - statistics.median(samples[quarter : 2 * quarter])


@pytest.mark.soak
async def test_hours_of_faults(make_agent: AgentMaker, server: Served, given: Given, seed: int) -> None:
    draw, disk = random.Random(seed), Disk()
    memory, files, befell = list[int](), list[int](), list[str]()
    async with FaultProxy(server.address) as proxy:
        run = Run(make_agent, disk, proxy)
        await run.begin()
        for period in range(1, max(8, int(HOURS * 3600 / PERIOD)) + 1):
            until = time.monotonic() + PERIOD
            recording = asyncio.create_task(run.record(until))
            befell.append(await misfortune(run, server, draw))
            await recording
            if period % PERIODS_A_SESSION == 0:
                await run.agent.stop()
                await run.begin()
            gc.collect()
            memory.append(resident())
            files.append(descriptors())
            status = run.agent.status
            show(
                f"{period}: {befell[-1]}, {memory[-1] / MIB:.1f} MiB, {files[-1]} descriptors, "
                f"{run.called} called, {status.waiting_sessions} wait, lost {dict(status.lost)} {status.trouble}"
            )
        await run.agent.stop()
        await run.begin()
        report = await run.agent.force_sync(timeout=300.0)
        ledger = run.agent.status.ledger
        await run.agent.stop()
    show(f"grown by {grown(memory) / MIB:+.2f} MiB and {grown(files):+g} descriptors; {ledger.to_wire()}")
    assert report.complete, report
    sessions = await given.sessions()
    assert ledger.recorded == run.called
    assert sum(int(session["records"]) for session in sessions.values()) == ledger.accepted
    assert ledger.pending == 0
    assert grown(memory) < ROOM
    assert grown(files) <= CONNECTIONS

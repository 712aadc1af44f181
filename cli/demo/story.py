"""The whole job on this machine, from the first record to the comparison."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mailboat.cli import output
from mailboat.cli.demo.collected import Collected, collect
from mailboat.cli.demo.compare import Comparison, compare
from mailboat.cli.demo.faults import Cut, FaultProxy
from mailboat.cli.demo.meter import uploaded
from mailboat.cli.demo.oracle import Oracle
from mailboat.cli.demo.processes import Child
from mailboat.cli.demo.running import Place, Run, running
from mailboat.cli.demo.serving import create_key, serving
from mailboat.cli.demo.voice import Voice
from mailboat.cli.segments import SUFFIX, outline

PRODUCT: Final = "mailboat demo"
WINDOW: Final = 2.5
"""Seconds of a connectivity window."""
_WINDOWS_WANTED: Final = 1.6
"""The network is as slow as it takes to need so many windows for what waits."""
_MOST_WINDOWS: Final = 10
_CUTS: Final = (0.2, 0.45)
"""Where the connection is cut, as shares of what waits."""
_SLOWEST: Final = 16 * 1024.0
_KILL_AFTER: Final = 0.5
"""The share of all modules after which the first run is killed."""
_SYNC_TIMEOUT: Final = 20


@dataclass(slots=True)
class Findings:
    """What the demo has found out; complete at its end."""

    modules: int = 0
    told_before_kill: int = 0
    windows: int = 0
    faults: int = 0
    sent: int = 0
    cuts: list[Cut] = field(default_factory=list)
    seconds: float = 0.0
    raw_size: int = 0
    collected: Collected | None = None
    comparison: Comparison = field(default_factory=lambda: Comparison(()))

    @property
    def holds(self) -> bool:
        """Whether the server has each record once, and counts it once in its reports."""
        collected = self.collected
        return self.comparison.holds and collected is not None and collected.reported == collected.given


class Story:
    """One demo in an empty folder `folder`; `tell` does all of it."""

    def __init__(self, folder: Path, voice: Voice) -> None:
        self._folder = folder
        self._voice = voice
        self._oracle = Oracle()
        self._findings = Findings()

    async def tell(self) -> Findings:
        """Do the whole job. Raises `ChildFailed`, `OSError` or `aiohttp.ClientError` when a part of it fails."""
        voice, findings = self._voice, self._findings
        data, log = self._folder / "server", self._folder / "server.log"
        voice.step("A server, and a network that can fail")
        async with serving(data, log) as address, FaultProxy(address) as proxy:
            making = (create_key(data, PRODUCT, role, log) for role in ("agent", "reader"))
            agent_key, reader_key = await asyncio.gather(*making)
            voice.say(f"mailboat serve on port {address[1]}, reached through a proxy on port {proxy.port}")
            place = self._place(proxy, agent_key)
            await self._first_run(place)
            await self._second_run(place, proxy)
            await self._last_sync(place, proxy)
            findings.sent, findings.cuts = uploaded(proxy.bodies), proxy.cuts
            voice.step("What the server gives back")
            findings.collected = await collect(address, reader_key)
        findings.raw_size = raw_bytes(place.store)
        findings.comparison = compare(self._oracle.told, findings.collected.records, killed=self._oracle.killed)
        findings.faults = self._oracle.kinds.get("exception", 0)
        findings.seconds = voice.seconds
        return findings

    def _place(self, proxy: FaultProxy, key: str) -> Place:
        folder = self._folder
        return Place(folder / "store", folder / "done", folder / "program.log", proxy.url, key)

    # -- recording -----------------------------------------------------------------------------------------------

    async def _first_run(self, place: Place) -> None:
        voice, oracle, findings = self._voice, self._oracle, self._findings
        voice.step("A program examines the standard library, and is killed in the middle")
        async with running(oracle, place, automatic=True) as run:
            findings.modules = (await run.until("started"))["modules"]
            await self._parse(run, stop_at=int(findings.modules * _KILL_AFTER))
            await run.kill()
        findings.told_before_kill = oracle.records
        voice.say(f"kill -9 after {oracle.parsed} of {findings.modules} modules and {oracle.records:,} records")

    async def _parse(self, run: Run, *, stop_at: int | None = None) -> None:
        """Follow the program until it has examined all modules, or so many."""
        oracle = self._oracle
        with self._voice.progress(self._findings.modules, "modules") as update:
            async for said, _ in run.says():
                if said == "parsed":
                    update(oracle.parsed)
                if said == "examined" or (stop_at is not None and oracle.parsed >= stop_at):
                    return
        raise run.child.failed("ended too early")

    async def _second_run(self, place: Place, proxy: FaultProxy) -> None:
        voice, oracle = self._voice, self._oracle
        await proxy.close()
        voice.step("The network is gone; a second run takes over")
        async with running(oracle, place, automatic=False) as run:
            started = await run.until("started")
            voice.say(f"{started['left']} modules are left, one of them begun before")
            await self._parse(run)
            told = oracle.records - self._findings.told_before_kill
            voice.say(f"all examined, {told:,} more records, nothing sent")
            voice.step(f"There is a slow network now and then, for {WINDOW} s")
            await self._windows(run, place, proxy)
            await run.command(stop=0.0)
            await run.until("stopped")

    # -- sending -------------------------------------------------------------------------------------------------

    async def _windows(self, run: Run, place: Place, proxy: FaultProxy) -> None:
        """Open the network for a window at a time, until the program has nothing left to send."""
        voice, findings = self._voice, self._findings
        waiting = max(1, stored_bytes(place.store) - uploaded(proxy.bodies))
        voice.say(f"{output.size(waiting)} wait")
        proxy.pace.rate = max(_SLOWEST, waiting / (WINDOW * _WINDOWS_WANTED))
        for _ in range(_MOST_WINDOWS):
            findings.windows += 1
            before, cuts = uploaded(proxy.bodies), len(proxy.cuts)
            async with open_network(proxy):
                proxy.cut_after(*(int(share * waiting) for share in _CUTS[cuts:]))
                await run.command(window=WINDOW)
                report = await run.until("window")
            carried, left = output.size(uploaded(proxy.bodies) - before), output.size(report["left"])
            cut = {0: "", 1: ", cut once"}.get(len(proxy.cuts) - cuts, ", cut twice")
            voice.say(f"force_sync, window {findings.windows}: {carried} got through{cut}, {left} left")
            if report["complete"]:
                break
        proxy.pace.rate = None

    async def _last_sync(self, place: Place, proxy: FaultProxy) -> None:
        """The program has ended, and with it its session; what is left is sent from the command line."""
        self._voice.step("The program has ended; `mailboat sync` sends what is left")
        settings = {"MAILBOAT_SERVER": place.server, "MAILBOAT_API_KEY": place.key}
        arguments = ["mailboat.cli", "sync", f"--store={place.store}", f"--timeout={_SYNC_TIMEOUT}"]
        async with open_network(proxy), Child.started("sync", arguments, log=place.log, settings=settings) as child:
            for line in (await child.output()).splitlines():
                self._voice.say(line.replace("\t", "  "))


@asynccontextmanager
async def open_network(proxy: FaultProxy) -> AsyncIterator[None]:
    """A network that is there for as long as the context."""
    await proxy.open()
    try:
        yield
    finally:
        await proxy.close()


def stored_bytes(store: Path) -> int:
    """Bytes of all segments in a store."""
    return sum(path.stat().st_size for path in store.rglob(f"*{SUFFIX}"))


def raw_bytes(store: Path) -> int:
    """Bytes of all records in a store before compression."""
    return sum(outline(path).raw_bytes or 0 for path in store.rglob(f"*{SUFFIX}"))

"""What is lost, and what arrives twice: ``python -m bench.loss [--quick] [--only NAME ...] [--output F] [--plot F]``.

Four scripts, the same for all contenders: an outage of 30 s while events are recorded; kill -9 of the application; a
server that takes 3 s for each answer; a stop while the server has the events and its answer does not come. After each
the application is run once more, without an event, for at most `patience` seconds or until all has arrived.

*delivered* is the share of events whose call had returned that the server has; *duplicated* the share that it has more
than once; *worst call* the longest time any call took; *exit* the longest time from the application's last statement to
the end of its process. The agent talks to the real server, the others to a collector that takes all they send.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import aiohttp

from bench.loss_hosts import CONTENDERS, ID
from bench.loss_line import Line, collecting, line_to
from bench.machine import machine, versions
from bench.serving import PRODUCT, serving

POLL: Final = 0.25
PAGE: Final = 5000
SLOWEST_EXIT: Final = 120.0
"""Seconds after which an application that does not end is killed; its exit counts as this long."""


UNEVEN: Final = 17
"""More events before the kill: at a round number a batch of some contender would just have been sent."""

DRAIN: Final = 5.0
"""Seconds in which what a killed process has written is read."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What a script is run with. Times are seconds, `rate` events a second."""

    rate: float = 20.0
    before: float = 5.0
    outage: float = 30.0
    delay: float = 3.0
    slow: float = 10.0
    burst: int = 500
    held: float = 10.0
    patience: float = 30.0


QUICK: Final = Figures(before=1.0, outage=3.0, delay=0.3, slow=2.0, burst=200, held=2.0, patience=60.0)


@dataclass(slots=True)
class Result:
    """One script with one contender. `recorded`: calls that returned; times are seconds."""

    recorded: int
    delivered: float
    duplicated: float
    worst_call: float
    exit: float | None


# -- the application -------------------------------------------------------------------------------------------------


@dataclass
class Application:
    """Runs of one contender's application over one line."""

    name: str
    line: Line
    key: str
    folder: Path
    recorded: set[int] = field(default_factory=set)
    worst_call: float = 0.0
    exits: list[float] = field(default_factory=list)

    async def begin(self, *arguments: str) -> asyncio.subprocess.Process:
        """Start a run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        place = ("--url", self.line.url, "--key", self.key, "--folder", str(self.folder))
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.loss_hosts", self.name, *place, *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
        )

    async def follow(self, process: asyncio.subprocess.Process, until: int | None = None) -> None:
        """Note what it has recorded, to its last statement, or until it has recorded so many."""
        assert process.stdout is not None  # noqa: S101 - `begin` made the pipe
        while line := await process.stdout.readline():
            if line == b"end\n":
                return
            number, nanoseconds = map(int, line.split())
            self.recorded.add(number)
            self.worst_call = max(self.worst_call, nanoseconds / 1e9)
            if until is not None and len(self.recorded) >= until:
                return

    async def end(self, process: asyncio.subprocess.Process) -> None:
        """Wait for its end, and note how long that takes."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(SLOWEST_EXIT):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        self.exits.append(time.monotonic() - begun)

    async def record(self, events: float, rate: float) -> None:
        """A whole run with so many events."""
        process = await self.begin("--events", str(round(events)), "--rate", str(rate))
        await self.follow(process)
        await self.end(process)
        if len(self.recorded) != round(events):
            raise RuntimeError(f"the application of {self.name} ended before it had recorded all, see above")

    async def later(self, arrived: Callable[[], Awaitable[Counter[int]]], patience: float) -> None:
        """A run without events, until all has arrived or patience ends."""
        process = await self.begin("--later")
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and self.recorded - (await arrived()).keys():  # noqa: ASYNC110 - it is far away
            await asyncio.sleep(POLL)
        assert process.stdin is not None  # noqa: S101 - `begin` made the pipe
        process.stdin.close()
        await self.follow(process)
        await self.end(process)


# -- the scripts -----------------------------------------------------------------------------------------------------


async def outage(app: Application, figures: Figures) -> None:
    """The network is gone for a while in the middle of recording."""

    async def network() -> None:
        await asyncio.sleep(figures.before)
        app.line.cut()
        await asyncio.sleep(figures.outage)
        app.line.down = False

    async with asyncio.TaskGroup() as group:
        group.create_task(network())
        group.create_task(app.record(figures.rate * (2 * figures.before + figures.outage), figures.rate))


async def kill(app: Application, figures: Figures) -> None:
    """The application is killed with -9 in the middle of recording."""
    events = round(figures.rate * (figures.before + 1)) + UNEVEN
    process = await app.begin("--events", str(2 * events), "--rate", str(figures.rate))
    await app.follow(process, until=events)
    process.kill()
    with contextlib.suppress(TimeoutError):  # a process that it has started may have the pipe still open
        async with asyncio.timeout(DRAIN):
            await app.follow(process)  # what was written before the kill
    await process.wait()


async def slow(app: Application, figures: Figures) -> None:
    """The server takes its time for each answer."""
    app.line.delay = figures.delay
    await app.record(figures.rate * figures.slow, figures.rate)


async def stop(app: Application, figures: Figures) -> None:
    """The application stops while the server has its events and the answer does not come."""
    app.line.hold()
    recording = asyncio.create_task(app.record(figures.burst, 0.0))
    await asyncio.wait([recording], timeout=figures.held)
    app.line.release()
    await recording


SCRIPTS: Final = {"outage": outage, "kill -9": kill, "slow server": slow, "stop in flush": stop}


# -- the servers -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def server_of(name: str, folder: Path) -> AsyncIterator[tuple[str, str, Callable[[], Awaitable[Counter[int]]]]]:
    """The URL of what a contender sends to, its key, and how to learn how often each event has arrived."""
    if name != "mailboat":
        seen: Counter[int] = Counter()

        async def counted() -> Counter[int]:
            return seen

        async with collecting(seen) as url:
            yield url, "", counted
        return
    from mailboat.server.catalog import Role  # noqa: PLC0415 - not for the others
    from mailboat.server.keys import create_key  # noqa: PLC0415

    async with serving("mailboat", folder) as server:
        reader = await asyncio.to_thread(create_key, folder, PRODUCT, Role.READER)
        async with aiohttp.ClientSession(server.url, headers={"Authorization": f"Bearer {reader}"}) as http:
            yield server.url, server.key, lambda: _held(http)


async def _held(http: aiohttp.ClientSession) -> Counter[int]:
    """How often each event is in the sessions that the server gives."""
    seen: Counter[int] = Counter()
    for session in await _pages(http, "/api/v1/sessions", "sessions", origin="all"):
        for record in await _pages(http, f"/api/v1/sessions/{session['session']}/records", "records"):
            if record["name"] == "loss":
                seen[int(record["attributes"][ID])] += 1
    return seen


async def _pages(http: aiohttp.ClientSession, path: str, name: str, **query: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        asked = {**query, "limit": str(500 if name == "sessions" else PAGE), **({"cursor": cursor} if cursor else {})}
        async with http.get(path, params=asked) as response:
            response.raise_for_status()
            page = await response.json()
        found += page[name]
        cursor = page["next"]
    return found


# -- running them ----------------------------------------------------------------------------------------------------


async def measure(name: str, script: str, figures: Figures, folder: Path) -> Result:
    """One script with one contender, from the beginning to the end of the later run."""
    async with server_of(name, folder / "server") as (url, key, arrived), line_to(url) as line:
        app = Application(name, line, key, folder / "store")
        await SCRIPTS[script](app, figures)
        await app.later(arrived, figures.patience)
        seen = await arrived()
        recorded = len(app.recorded)
        twice = sum(count - 1 for count in seen.values())
        return Result(
            recorded=recorded,
            delivered=len(app.recorded & seen.keys()) / recorded if recorded else 0.0,
            duplicated=twice / recorded if recorded else 0.0,
            worst_call=app.worst_call,
            exit=max(app.exits, default=None),
        )


async def contend(name: str, figures: Figures) -> dict[str, Result]:
    """All scripts with one contender, at the same time: each waits more than it works."""
    with tempfile.TemporaryDirectory(prefix="mailboat-bench-") as folder:
        async with asyncio.TaskGroup() as group:
            tasks = {
                script: group.create_task(measure(name, script, figures, Path(folder) / str(index)))
                for index, script in enumerate(SCRIPTS)
            }
        return {script: task.result() for script, task in tasks.items()}


def table(results: dict[str, dict[str, Result] | None]) -> str:
    """A table in Markdown; who is not installed was not measured."""
    lines = ["| | " + " | ".join((*SCRIPTS, "worst call", "exit")) + " |", "|---" * (len(SCRIPTS) + 3) + "|"]
    for name, measured in results.items():
        if measured is None:
            lines.append(f"| {name} | " + " | ".join(["not measured"] * (len(SCRIPTS) + 2)) + " |")
            continue
        shares = [f"{each.delivered:.1%}, {each.duplicated:.1%} twice" for each in measured.values()]
        worst = max(each.worst_call for each in measured.values())
        ends = max(each.exit or 0.0 for each in measured.values())
        version = CONTENDERS[name].version
        lines.append(f"| {name} {version} | " + " | ".join((*shares, f"{worst * 1e3:.2f} ms", f"{ends:.1f} s")) + " |")
    return "\n".join(lines)


def to_json(results: dict[str, dict[str, Result] | None], figures: Figures, begun: datetime) -> dict[str, object]:
    """All figures, and what they were measured on and with."""
    packages = [CONTENDERS[name].package for name in results]
    return {
        "format": 1,
        "bench": "loss",
        "begun": begun.isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(packages),
        "settings": asdict(figures),
        "contenders": {
            name: None if measured is None else {script: asdict(each) for script, each in measured.items()}
            for name, measured in results.items()
        },
    }


async def run(names: Sequence[str], figures: Figures) -> dict[str, dict[str, Result] | None]:
    """Each contender after the other."""
    results: dict[str, dict[str, Result] | None] = {}
    for name in names:
        results[name] = await contend(name, figures) if CONTENDERS[name].version is not None else None
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m bench.loss", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short times, which say little of the others")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--output", type=Path, help="write all figures as JSON")
    parser.add_argument("--plot", type=Path, help="draw them (SVG); needs matplotlib")
    asked = parser.parse_args(arguments)
    figures, begun = QUICK if asked.quick else Figures(), datetime.now(UTC)
    results = asyncio.run(run(asked.only, figures))
    sys.stdout.write(table(results) + "\n")
    made = to_json(results, figures, begun)
    if asked.output is not None:
        asked.output.parent.mkdir(parents=True, exist_ok=True)
        asked.output.write_text(json.dumps(made, indent=1) + "\n")
    if asked.plot is not None:
        from bench.loss_plot import draw  # noqa: PLC0415 - matplotlib is optional

        draw(made, asked.plot)


if __name__ == "__main__":
    main()

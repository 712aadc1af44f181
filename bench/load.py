"""Many agents at one server: ``python -m bench.load [--agents N] [--sessions N] [--output F]``.

Two hundred agents in two processes (`bench.load_hosts`) deliver ten thousand sessions of 4 KB to 500 KB to one server
as it comes, which loads them meanwhile, in connectivity windows too short for all of it; in each process one more agent
records meanwhile. Told are: the server's memory before, at most and after (its decoder's, a process of its own, apart);
how long requests took, from their start at the agent to the head of the answer, by kind, and recording calls; sessions
a second, until agents know that all is accepted; and how long after that all records could be asked about, each once.
In the end ``mailboat server check`` must find nothing.

An upload's latency is that of its whole transfer. Where agents and server share the processors, latencies are those of
a machine that is overloaded as long as anything waits: look at the longest, and at what grows, rather than at the
median.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import aiohttp

from bench.load_hosts import CALL
from bench.machine import machine, versions
from bench.serving import PRODUCT, Server, serving
from bench.sessions import FEATURE

PROCESSES: Final = 2
WINDOW: Final = 20.0
"""Seconds of the longest window."""
MEMORY_POLL: Final = 0.1
QUERY_POLL: Final = 1.0
PATIENCE: Final = 300.0
"""Seconds for all records to be queryable."""
MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds; `requests` had an answer, `cut` had none, as their window had ended."""

    requests: int
    cut: int
    p50: float
    p95: float
    p99: float
    longest: float


@dataclass(slots=True)
class Memory:
    """Bytes resident."""

    before: int = 0
    peak: int = 0
    after: int = 0
    decoder_peak: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it; `seconds` until agents knew that all is accepted, `queryable` seconds after that."""

    agents: int
    sessions: int
    records: int
    windows: int
    bytes: int
    seconds: float
    queryable: float
    server_cpu: float
    agents_cpu: float
    memory: Memory
    latencies: dict[str, Latency]
    calls: Latency
    faults: int

    @property
    def rate(self) -> float:
        """Sessions a second."""
        return self.sessions / self.seconds


# -- memory ----------------------------------------------------------------------------------------------------------


def resident(pid: int) -> int:
    """Bytes of a process; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)


def children(pid: int) -> list[int]:
    """The processes that a process has begun."""
    return [int(each) for tasks in Path(f"/proc/{pid}/task").glob("*/children") for each in tasks.read_text().split()]


@asynccontextmanager
async def watched(server: Server) -> AsyncIterator[Memory]:
    """The server's memory while inside."""
    pid, memory = server.process.pid, Memory()
    memory.before = memory.peak = resident(pid)

    async def look() -> None:
        while True:
            memory.peak = max(memory.peak, resident(pid))
            memory.decoder_peak = max(memory.decoder_peak, *map(resident, children(pid)), 0)
            await asyncio.sleep(MEMORY_POLL)

    looking = asyncio.create_task(look())
    try:
        yield memory
    finally:
        looking.cancel()
        memory.after = resident(pid)


# -- agents ----------------------------------------------------------------------------------------------------------


async def agents(server: Server, folder: Path, number: int, sessions: int, seed: int) -> asyncio.subprocess.Process:
    """A process of so many agents with so many sessions each; it has made them."""
    await asyncio.to_thread(folder.mkdir)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.load_hosts", "--folder", str(folder), "--url", server.url, "--key", server.key),
        *("--agents", str(number), "--sessions", str(sessions), "--window", str(WINDOW), "--seed", str(seed)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=64 * MIB,
        cwd=Path(__file__).parent.parent,
    )
    assert process.stdout is not None  # noqa: S101 - made just now
    if await process.stdout.readline() != b"ready\n":
        raise RuntimeError("a process of agents did not come up, see above")
    return process


async def told_by(process: asyncio.subprocess.Process) -> dict[str, Any]:
    """What a process of agents tells after it was let go."""
    output, _ = await process.communicate(b"\n")
    if process.returncode:
        raise RuntimeError("a process of agents failed, see above")
    told: dict[str, Any] = json.loads(output)
    return told


def latencies(told: Sequence[dict[str, Any]]) -> dict[str, Latency]:
    """Of all processes together, by kind."""
    kinds = sorted({kind for each in told for kind in each["took"]})
    return {
        kind: latency(
            [seconds for each in told for seconds in each["took"].get(kind, ())],
            sum(each["cut"].get(kind, 0) for each in told),
        )
        for kind in kinds
    }


def latency(took: list[float], cut: int = 0) -> Latency:
    """Of what took so many seconds each; there must be some."""
    cuts = statistics.quantiles(took, n=100, method="inclusive") if len(took) > 1 else took * 99
    return Latency(len(took), cut, cuts[49], cuts[94], cuts[98], max(took))


# -- the run ---------------------------------------------------------------------------------------------------------


async def all_queryable(http: aiohttp.ClientSession, records: Mapping[str, int]) -> float:
    """Seconds until reports count so many records of each name; `RuntimeError` if they count more, or never as many."""
    began = time.perf_counter()
    counted: dict[str, int] = {}
    while time.perf_counter() - began < PATIENCE:
        async with http.get("/api/v1/features", params={"origin": "all"}) as response:
            response.raise_for_status()
            counted = {each["name"]: each["uses"] for each in (await response.json())["features"]}
        if all(counted.get(name, 0) >= number for name, number in records.items()):
            break
        await asyncio.sleep(QUERY_POLL)
    if counted != dict(records):
        raise RuntimeError(f"{records} were accepted, {counted} can be asked about")
    return time.perf_counter() - began


async def run(folder: Path, number: int, sessions: int) -> Result:
    """See the module."""
    from mailboat.server.catalog import Role  # noqa: PLC0415 - only here
    from mailboat.server.keys import create_key  # noqa: PLC0415
    from mailboat.server.upkeep import check_folder  # noqa: PLC0415

    data, each = folder / "server", sessions // number
    async with serving("mailboat", data) as server:
        reader = await asyncio.to_thread(create_key, data, PRODUCT, Role.READER)
        async with aiohttp.ClientSession(server.url, headers={"Authorization": f"Bearer {reader}"}) as http:
            hosts = await asyncio.gather(
                *(agents(server, folder / f"agents-{at}", number // PROCESSES, each, at) for at in range(PROCESSES))
            )
            cpu = await server.cpu()
            async with watched(server) as memory:
                began = time.perf_counter()
                told = await asyncio.gather(*map(told_by, hosts))
                seconds = time.perf_counter() - began
                states = sum((Counter(one["states"]) for one in told), Counter[str]())
                calls = [seconds for one in told for seconds in one["calls"]]
                queryable = await all_queryable(http, {FEATURE: states["records"], CALL: len(calls)})
            cpu = await server.cpu() - cpu
    findings = await asyncio.to_thread(check_folder, data)
    return Result(
        agents=number,
        sessions=states["accepted"],
        records=states["records"],
        windows=states["windows"],
        bytes=findings.bytes,
        seconds=seconds,
        queryable=queryable,
        server_cpu=cpu,
        agents_cpu=sum(one["cpu"] for one in told),
        memory=memory,
        latencies=latencies(told),
        calls=latency(calls),
        faults=len(findings.faults),
    )


def table(result: Result) -> str:
    """Tables in Markdown."""
    memory = result.memory
    sizes = (memory.before, memory.peak, memory.after, memory.decoder_peak)
    lines = [
        "| agents | sessions | MB | windows | s | sessions/s | queryable after | server CPU | agents CPU | faults |",
        "|---" * 10 + "|",
        (
            f"| {result.agents} | {result.sessions} | {result.bytes / 1e6:.0f} | {result.windows} | "
            f"{result.seconds:.1f} | {result.rate:.0f} | {result.queryable:.1f} s | {result.server_cpu:.1f} s | "
            f"{result.agents_cpu:.1f} s | {result.faults} |"
        ),
        "",
        "| the server's memory before | at most | after | its decoder at most |",
        "|---" * 4 + "|",
        "| " + " | ".join(f"{size / MIB:.0f} MiB" for size in sizes) + " |",
        "",
        "| request | answered | cut | p50 | p95 | p99 | longest |",
        "|---" * 7 + "|",
    ]
    for kind, each in result.latencies.items():
        lines.append(f"| {kind} | {each.requests} | {each.cut} | {times(each, 1e3, 'ms')} |")
    lines.append(f"| recording call | {result.calls.requests} | | {times(result.calls, 1e6, 'us')} |")
    return "\n".join(lines)


def times(each: Latency, scale: float, unit: str) -> str:
    """The columns of one line."""
    return " | ".join(f"{seconds * scale:,.0f} {unit}" for seconds in (each.p50, each.p95, each.p99, each.longest))


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module; status 1 when the check finds a fault."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--agents", type=int, default=200)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--output", type=Path, help="write all figures as JSON")
    parser.add_argument("--folder", type=Path, help="where to work: the disk to be measured (default: temporary files)")
    asked = parser.parse_args(arguments)
    if asked.agents < PROCESSES or asked.agents % PROCESSES or asked.sessions < asked.agents:
        parser.error(f"--agents must be a multiple of {PROCESSES}, and --sessions at least as many")
    begun = datetime.now(UTC)
    before = machine()
    with tempfile.TemporaryDirectory(prefix="mailboat-bench-", dir=asked.folder) as folder:
        result = asyncio.run(run(Path(folder), asked.agents, asked.sessions))
    print(table(result))
    if asked.output is not None:
        made = {
            "format": 1,
            "bench": "load",
            "begun": begun.isoformat(timespec="seconds"),
            "machine": before,
            "versions": versions(),
            "settings": {"agents": asked.agents, "sessions": asked.sessions, "window": WINDOW, "processes": PROCESSES},
            "result": asdict(result),
        }
        asked.output.parent.mkdir(parents=True, exist_ok=True)
        asked.output.write_text(json.dumps(made, indent=1) + "\n")
    return 1 if result.faults else 0


if __name__ == "__main__":
    sys.exit(main())

"""A small host in a process of its own, which tells what it took: ``python -m bench.host KIND [--store FOLDER ...]``.

``bare`` has an aiohttp client and no agent; ``agent`` has an agent that records a little; ``waiting`` starts one in a
store with sessions that wait; ``upload`` delivers them. ``read`` and ``take_up`` do that to a crashed segment
(``--segment``). It prints one line of JSON (`Told`).
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from bench.harness import Stopwatch
from bench.serving import PRODUCT

if TYPE_CHECKING:
    from mailboat.agent import Agent

WINDOW = 600.0
"""Seconds for whatever is waited for; far more than it takes."""

RECORDS = 1000


@dataclass(frozen=True, slots=True)
class Told:
    """Bytes of memory now and at most; the longest that the event loop was held up at the start, in seconds of its
    own thread's processor time and by the clock. Of a segment, how long it took.
    """

    resident: int
    peak: int
    cpu: float = 0.0
    wall: float = 0.0


def as_installed() -> dict[str, str]:
    """The environment for a Python that keeps what it compiles, as an installed package is kept: else each process
    would compile this repository anew, and that would be measured.
    """
    return {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


async def told_by(kind: str, *arguments: str) -> Told:
    """What a host of `kind` tells. Raises `RuntimeError` when it fails."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.host", kind, *arguments),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
        env=as_installed(),
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"the host {kind!r} failed, see above")
    return Told(**json.loads(output))


# -- the process -----------------------------------------------------------------------------------------------------


class _Turns:
    """The longest turn of the event loop between two looks of a task that looks at every turn."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """While inside."""
        looking = asyncio.create_task(self._look())
        try:
            yield
        finally:
            looking.cancel()

    async def _look(self) -> None:
        while True:
            cpu, wall = time.thread_time(), time.perf_counter()
            await asyncio.sleep(0)
            self.cpu = max(self.cpu, time.thread_time() - cpu)
            self.wall = max(self.wall, time.perf_counter() - wall)


async def _bare(_asked: argparse.Namespace, _turns: _Turns) -> None:
    async with aiohttp.ClientSession():
        _memory("VmRSS")


def _agent_of(asked: argparse.Namespace, *, automatic: bool = False) -> Agent:
    from mailboat.agent import Agent  # noqa: PLC0415 - the bare one does without

    return Agent(
        server=asked.server or "http://127.0.0.1:1",
        api_key=asked.key or "mbk_none",
        product=PRODUCT,
        application=asked.application,
        store=asked.store,
        synchronize_automatically=automatic,
        startup_delay=0.0,
        stop_timeout=0,
        max_store_bytes=None,
        min_free_bytes=0,
    )


async def _agent(asked: argparse.Namespace, turns: _Turns) -> None:
    agent = _agent_of(asked)
    async with agent:
        for number in range(RECORDS):
            agent.feature("import.csv", rows=number)
        await agent.flush()
        if agent.status.recorded != RECORDS:
            raise RuntimeError(f"not all was recorded: {agent.status}")
        _tell(turns)


async def _waiting(asked: argparse.Namespace, turns: _Turns) -> None:
    agent = _agent_of(asked, automatic=True)
    async with turns.watched():
        await agent.start()
        async with asyncio.timeout(WINDOW):
            while not _looked(agent, asked.sessions):  # noqa: ASYNC110 - the agent tells of no event
                await asyncio.sleep(0.01)
    _tell(turns)
    await agent.stop()


def _looked(agent: Agent, sessions: int) -> bool:
    """Whether so many sessions are known to wait, and the first round has found that there is no server to offer them
    to.
    """
    return agent.status.waiting_sessions >= sessions and (not sessions or agent.status.connectivity == "offline")


async def _upload(asked: argparse.Namespace, turns: _Turns) -> None:
    agent = _agent_of(asked)
    async with agent:
        report = await agent.force_sync(timeout=WINDOW)
        if not report.complete:
            raise RuntimeError(f"not all was delivered: {report}")
        _tell(turns)


async def _read(asked: argparse.Namespace, turns: _Turns) -> None:
    from mailboat.agent.files import OsFileSystem  # noqa: PLC0415 - the bare one does without

    with Stopwatch() as watch:
        content = OsFileSystem().read(asked.segment)
    if len(content) != asked.segment.stat().st_size:
        raise RuntimeError(f"read {len(content)} bytes of {asked.segment}")
    turns.cpu, turns.wall = watch.cpu, watch.wall
    _tell(turns)


async def _take_up(asked: argparse.Namespace, turns: _Turns) -> None:
    from mailboat.agent.files import OsFileSystem  # noqa: PLC0415 - the bare one does without
    from mailboat.agent.segment_file import SegmentFile  # noqa: PLC0415

    with Stopwatch() as watch:
        segment = SegmentFile.reopen(OsFileSystem(), asked.segment, 1)
    segment.close()
    if not segment.writer.blocks or segment.ending is not None:
        raise RuntimeError(f"not what was to be measured: {segment.writer.blocks} blocks, {segment.ending!r}")
    turns.cpu, turns.wall = watch.cpu, watch.wall
    _tell(turns)


def _tell(turns: _Turns) -> None:
    told = Told(_memory("VmRSS"), _memory("VmHWM"), turns.cpu, turns.wall)
    print(json.dumps(dataclasses.asdict(told)), flush=True)


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


_KINDS = {"bare": _bare, "agent": _agent, "waiting": _waiting, "upload": _upload, "read": _read, "take_up": _take_up}


def _main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.host")
    parser.add_argument("kind", choices=_KINDS)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--segment", type=Path)
    parser.add_argument("--application", default="host")
    parser.add_argument("--sessions", type=int, default=0)
    parser.add_argument("--server", default="")
    parser.add_argument("--key", default="")
    asked = parser.parse_args(arguments)
    turns = _Turns()
    asyncio.run(_KINDS[asked.kind](asked, turns))
    if asked.kind == "bare":
        _tell(turns)


if __name__ == "__main__":
    _main(sys.argv[1:])

"""P6, P7 and P8: what an agent takes of its host besides time: memory, and the time to import, to start, to recover.

*Memory* (P6): resident memory of a process with an agent, less that of one with a bare aiohttp client. What is mapped
of the journal counts. Of an upload it is the most that the process ever had.

*Import* (P7): processor time of the import, in processes that have imported nothing before, from compiled files.

*Start* (P7s): the longest turn of the event loop while an agent starts in a store with 10,000 waiting sessions, less
that of an empty store. The processor time of the loop's own thread is what counts: by the clock a turn also lasts while
others use the processor.

*Recovery* (P8): a crashed segment taken up again, beside reading the file; each in a process of its own, which has done
nothing of the kind before, as one that recovers when it starts. (In a process that has, reading takes a third of the
time: it finds the memory which it gave back.)
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

from bench.harness import BYTE, Budget, Comparison, Contender, Measured, Sense, Settings, Unit
from bench.host import as_installed, told_by
from bench.serving import serving
from bench.sessions import APPLICATION, make
from mailboat.protocol.limits import KIB, MIB

NAME = "footprint"
ABOUT = "memory, import, start and recovery (P6, P7, P8)"
REPETITIONS = 5

SEGMENT = 16 * MIB
SMALL = 2 * KIB
MEMORY = Unit("process", "MiB", 1 / MIB)
IMPORT = Unit("import", "ms", 1e3)
TURN = Unit("turn", "ms", 1e3)

Run = Callable[[], Awaitable[Measured]]


async def comparisons(settings: Settings) -> AsyncGenerator[Comparison, None]:
    """P6, P7, P8."""
    folder = settings.folder / "footprint"
    waiting = 2 * settings.sessions
    await _resident("agent", "--store", str(folder / "first"))()  # compiles what was not compiled yet
    bare = Contender("a bare aiohttp client", _resident("bare"))
    idle = folder / "idle"
    yield _extra("P6", "memory of an agent", bare, Contender("agent", _resident("agent", "--store", str(idle))), 8)
    store = folder / "many"
    for each in range(waiting):
        make(folder / "made" / str(each), SMALL, SMALL, each).put_into(store)
    many = ("--store", str(store), "--application", APPLICATION, "--sessions", str(waiting))
    about = f"{waiting} waiting sessions"
    yield _extra("P6w", f"memory with {about}", bare, Contender("agent", _resident("waiting", *many)), 16)
    yield Comparison(
        "P7s",
        f"longest turn of the event loop as an agent starts, with {about}",
        TURN,
        Sense.EXTRA,
        Contender("none waiting", _turn("waiting", "--store", str(folder / "none"))),
        Contender("agent", _turn("waiting", *many)),
        budget=Budget(0.005, Sense.EXTRA, cpu=True),
    )
    shutil.rmtree(folder)
    async for comparison in _upload(settings, bare):
        yield comparison
    yield Comparison(
        "P7",
        "importing",
        IMPORT,
        Sense.COST,
        Contender("import aiohttp", _importing("aiohttp")),
        Contender("import mailboat.agent", _importing("mailboat.agent")),
        budget=Budget(1.2, Sense.COST, cpu=True),
    )
    yield _recovery(settings)


def _extra(row: str, about: str, bare: Contender, subject: Contender, limit: int) -> Comparison:
    return Comparison(row, about, MEMORY, Sense.EXTRA, bare, subject, budget=Budget(limit * MIB, Sense.EXTRA))


def _resident(kind: str, *arguments: str, peak: bool = False) -> Run:
    async def run() -> Measured:
        told = await told_by(kind, *arguments)
        return Measured(1, told.peak if peak else told.resident, 0.0)

    return run


def _turn(kind: str, *arguments: str) -> Run:
    async def run() -> Measured:
        told = await told_by(kind, *arguments)
        return Measured(1, told.wall, told.cpu)

    return run


async def _upload(settings: Settings, bare: Contender) -> AsyncGenerator[Comparison, None]:
    folder, size = settings.folder / "P6u", 2 * settings.size
    session = make(folder / "session", size, SEGMENT)

    async def run() -> Measured:
        try:
            async with serving("receiving", folder / "server") as server:
                session.put_into(folder / "store")
                return await _resident(
                    *("upload", "--store", str(folder / "store"), "--application", APPLICATION),
                    *("--server", server.url, "--key", server.key),
                    peak=True,
                )()
        finally:
            shutil.rmtree(folder / "server", ignore_errors=True)
            shutil.rmtree(folder / "store", ignore_errors=True)

    about = f"most memory while {size / MIB:.0f} MiB are uploaded"
    yield _extra("P6u", about, bare, Contender("agent", run), 8)
    shutil.rmtree(folder)


def _importing(module: str) -> Run:
    program = (
        "import time; cpu, wall = time.process_time(), time.perf_counter(); "
        f"import {module}; print(time.process_time() - cpu, time.perf_counter() - wall)"
    )

    async def run() -> Measured:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program), stdout=asyncio.subprocess.PIPE, env=as_installed()
        )
        output, _ = await process.communicate()
        if process.returncode:
            raise RuntimeError(f"{module} cannot be imported, see above")
        cpu, wall = map(float, output.split())
        return Measured(1, wall, cpu)

    return run


def _recovery(settings: Settings) -> Comparison:
    folder = settings.folder / "P8"
    [whole] = make(folder / "session", SEGMENT, SEGMENT).paths
    crashed = folder / whole.name
    crashed.write_bytes(whole.read_bytes()[:-64])  # in the middle of its seal
    size, copy = crashed.stat().st_size, folder / "copy" / whole.name

    def of(kind: str) -> Run:
        async def run() -> Measured:
            _copy(crashed, copy)
            told = await told_by(kind, "--segment", str(copy))
            return Measured(size, told.wall, told.cpu)

        return run

    return Comparison(
        "P8",
        f"taking up a crashed segment of {SEGMENT / MIB:.0f} MiB, from the page cache",
        BYTE,
        Sense.SPEED,
        Contender("reading the file", of("read")),
        Contender("recovery scan", of("take_up")),
        budget=Budget(0.3, Sense.SPEED),
    )


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, target)

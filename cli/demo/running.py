"""One run of the demo's program, with the pipe through which it says what it was told."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mailboat.cli.demo.oracle import Oracle
from mailboat.cli.demo.processes import Child

_MODULE: Final = "mailboat.cli.demo.program"
_LONGEST_LINE: Final = 1024 * 1024
_MOST_PARSERS: Final = 4


@dataclass(frozen=True, slots=True)
class Place:
    """Where the program keeps what it keeps, and whom it sends to."""

    store: Path
    done: Path
    log: Path
    server: str
    key: str


class Run:
    """A program that runs. `says` yields what it says, after `oracle` has taken it."""

    def __init__(self, child: Child, told: asyncio.StreamReader, oracle: Oracle) -> None:
        self.child = child
        self.oracle = oracle
        self._told = told

    async def says(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """What the program says, until it has ended and all has been read."""
        while line := await self._told.readline():
            said = self.oracle.take(line)
            if said is not None:
                yield said

    async def until(self, what: str) -> dict[str, Any]:
        """Read up to a line that says `what`; its facts. `ChildFailed` when the program ends without it."""
        async for said, facts in self.says():
            if said == what:
                return facts
        await self.child.process.wait()
        raise self.child.failed(f"ended before it said {what!r}")

    async def command(self, **command: float) -> None:
        """Send a command; see `program`."""
        await self.child.send(json.dumps(command))

    async def kill(self) -> None:
        """``kill -9``, and read what the program had been told by then."""
        await self.child.kill()
        self.oracle.killed.add(self.oracle.session_id)
        async for _ in self.says():
            pass


@asynccontextmanager
async def running(oracle: Oracle, place: Place, *, automatic: bool) -> AsyncIterator[Run]:
    """The program, started; it has ended when the context does. `automatic` lets its agent synchronise by itself."""
    parsers = min(os.cpu_count() or 1, _MOST_PARSERS)
    reading, writing = os.pipe()
    told = asyncio.StreamReader(limit=_LONGEST_LINE)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(told), os.fdopen(reading, "rb", 0))
    try:
        arguments = [_MODULE, f"--store={place.store}", f"--done={place.done}", f"--told={writing}"]
        arguments += [f"--parsers={parsers}", *(["--automatic"] if automatic else [])]
        settings = {"MAILBOAT_SERVER": place.server, "MAILBOAT_API_KEY": place.key}
        starting = Child.started("program", arguments, log=place.log, settings=settings, pass_fds=[writing])
        async with starting as child:
            os.close(writing)
            writing = -1
            yield Run(child, told, oracle)
    finally:
        if writing >= 0:
            os.close(writing)
        transport.close()

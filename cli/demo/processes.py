"""The demo's child processes: each ended by its own id, whatever happens to the demo."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

_PATIENCE: Final = 5.0
"""Seconds that a process has to end after it was asked to, before it is asked more firmly."""
_LOG_END: Final = 2000


class ChildFailed(Exception):
    """A child did not do what it was started for; the message has the end of what it printed to its standard error."""


class Child:
    """One process of the demo, running a module of this package with the same interpreter.

    It is in a session of its own, so that Ctrl-C reaches the demo alone, which then ends it. Each child ends by itself
    when its standard input does, hence with the demo, even if that is killed.
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.process = process
        self._log = log

    @classmethod
    @asynccontextmanager
    async def started(
        cls,
        name: str,
        arguments: Sequence[str],
        *,
        log: Path,
        settings: Mapping[str, str],
        pass_fds: Sequence[int] = (),
    ) -> AsyncIterator[Child]:
        """Start ``python -m ARGUMENTS``; at the end of the context the process has ended.

        `log` gets its standard error, `settings` are its environment variables besides those of the demo.
        """
        with log.open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", *arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env={**_environment(), **settings},
                pass_fds=pass_fds,
                start_new_session=True,
            )
        child = cls(name, process, log)
        try:
            yield child
        finally:
            await child.end()

    async def end(self) -> None:
        """End the process: by the end of its input, then by SIGTERM, then by SIGKILL; return when it has ended."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        for step in (self.process.terminate, self.process.kill):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._exited(), _PATIENCE)
                return
            with suppress(ProcessLookupError):
                step()
        await self._exited()

    async def kill(self) -> None:
        """End the process as kill -9 does: nothing in it runs any more."""
        with suppress(ProcessLookupError):
            self.process.kill()
        await self._exited()

    async def _exited(self) -> None:
        """Wait for the end of the process; what it still prints is taken and left aside, or it might wait for us."""
        if self.process.stdout is not None:
            while await self.process.stdout.read(65_536):
                pass
        await self.process.wait()

    async def line(self) -> str:
        """The next line of its standard output; `ChildFailed` when it ends instead."""
        output = self.process.stdout
        line = await output.readline() if output is not None else b""
        if not line:
            raise self.failed("ended before it said what it had to say")
        return line.decode("utf-8", "replace").rstrip("\n")

    async def output(self) -> str:
        """All of its standard output, when it has ended well; `ChildFailed` otherwise."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        output = await self.process.stdout.read() if self.process.stdout is not None else b""
        if await self.process.wait():
            raise self.failed("failed")
        return output.decode("utf-8", "replace")

    async def send(self, line: str) -> None:
        """Write one line to its standard input."""
        if self.process.stdin is None:
            raise self.failed("has no standard input")
        self.process.stdin.write(f"{line}\n".encode())
        await self.process.stdin.drain()

    def failed(self, what: str) -> ChildFailed:
        """An error that says `what` the process did, with its exit status and the end of its log."""
        log = self._log.read_text("utf-8", "replace")[-_LOG_END:].strip()
        status = self.process.returncode
        ended = "" if status is None else f" (exit status {status})"
        return ChildFailed(f"the {self.name} {what}{ended}" + (f":\n{log}" if log else ""))


def _environment() -> dict[str, str]:
    """The demo's environment without the user's own settings of mailboat: those are for the user's applications, and
    DO_NOT_TRACK would rightly keep the demo from recording anything.
    """
    return {
        name: value for name, value in os.environ.items() if not name.startswith("MAILBOAT_") and name != "DO_NOT_TRACK"
    }

"""Killing a process with -9 right before or right after the n-th thing it does to the outside.

`Strikes` counts the calls of the objects it wraps; each counts twice, before and after. It counts when it is armed:
from the start, or from SIGUSR1 on. All this runs in the process that is to die; what starts it is `agent_program` and
`server_program`, for ``python -c``.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from msgspec import structs

PREPARED = "sent and confirmed"

agent_program = "import sys; from testkit.strikes import run_agent; run_agent(*sys.argv[1:])"
server_program = "import sys; from testkit.strikes import run_server; run_server(*sys.argv[1:])"


class Strikes:
    """Strikes at the `at`-th place; 0 never."""

    def __init__(self, at: int, *, armed: bool = True) -> None:
        self.at = at
        self.armed = armed
        self.count = 0

    def pass_by(self) -> None:
        self.count += self.armed
        if self.armed and self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, with a place before and after each call; a writer that it returns is wrapped, too."""
        if inspect.iscoroutinefunction(function):

            async def awaited(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
                self.pass_by()
                result = await function(*arguments, **named)
                self.pass_by()
                return result

            return awaited

        def called(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
            self.pass_by()
            result = function(*arguments, **named)
            self.pass_by()
            return Struck(result, self) if hasattr(result, "sync") and hasattr(result, "write") else result

        return called


class Struck:
    """Stands for an object, all of whose public methods have places around them."""

    def __init__(self, target: object, strikes: Strikes) -> None:
        self._target = target
        self._strikes = strikes

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        value = getattr(self._target, name)
        return self._strikes.around(value) if callable(value) and not name.startswith("_") else value


# -- an agent ----------------------------------------------------------------------------------------------------------


def run_agent(store: str, server: str, key: str, at: str) -> None:
    """Deliver what waits in `store`, dying at place `at` of the file system, the network, or a body on its way."""
    from mailboat.agent import Agent, files, http
    from mailboat.agent.stretch import Stretch

    strikes = Strikes(int(at))
    for name, function in inspect.getmembers(files.OsFileSystem, inspect.isfunction):
        if not name.startswith("_"):
            setattr(files.OsFileSystem, name, strikes.around(function))
    request = http.Http.request

    async def watched(body: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for piece in body:
            strikes.pass_by()
            yield piece
            strikes.pass_by()

    async def asked(self: http.Http, method: str, url: str, headers: Any, body: Any = None, *rest: Any) -> Any:  # noqa: ANN401
        if isinstance(body, Stretch):  # the kernel moves it: a place before and after each word of what it took
            body = structs.replace(body, taken=strikes.around(body.taken), copied=watched(body.copied))
        elif body is not None and not isinstance(body, bytes):
            body = watched(body)
        return await strikes.around(request)(self, method, url, headers, body, *rest)

    setattr(http.Http, "request", asked)  # noqa: B010 - of another type than mypy lets it have

    async def deliver() -> None:
        settings = {"product": "Acme Studio", "application": "importer", "synchronize_automatically": False}
        async with Agent(store=Path(store), server=server, api_key=key, **settings) as agent:  # type: ignore[arg-type]
            report = await agent.force_sync(timeout=60.0)
        print(PREPARED if report.complete else report, strikes.count, flush=True)  # noqa: T201

    asyncio.run(deliver())


# -- a server ----------------------------------------------------------------------------------------------------------


def run_server(data: str, port: str, at: str) -> None:
    """Serve, dying at place `at` of catalog and blobs after SIGUSR1 has come."""
    from mailboat.server import ServerConfig
    from mailboat.server.app import create_app
    from mailboat.server.blobs import LocalBlobs
    from mailboat.server.serving import running
    from mailboat.server.sqlite_catalog import SqliteCatalog

    strikes = Strikes(int(at), armed=False)

    def arm(*_: object) -> None:
        strikes.armed = True

    def struck(make: Callable[[Path], object]) -> Callable[[Path], Any]:
        return lambda place: Struck(make(place), strikes)

    async def serve() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, arm)
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        config = ServerConfig(data=Path(data), port=int(port))
        app = create_app(config, open_blobs=struck(LocalBlobs), open_catalog=struck(SqliteCatalog))
        async with running(config, app) as server:
            print(f"listening on {server.url}", flush=True)  # noqa: T201
            await stop.wait()

    asyncio.run(serve())

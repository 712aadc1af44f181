"""The demo's host application: an asyncio program that examines the standard library and records what it does.

It embeds `mailboat.agent` as any application would. What is special about it is that it can be held to account: after
each recording call has returned, and before anything else, it says so through a pipe (`oracle`).

It notes in a file which modules are done, so that the next run goes on where this one ended. When all are done it
takes commands, one JSON object a line, from its standard input: ``{"window": SECONDS}`` says that there is a connection
for so long, ``{"stop": SECONDS}`` ends the program.

The server and its key come from the environment (MAILBOAT_SERVER, MAILBOAT_API_KEY).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

from mailboat.agent import Agent, Level, SyncReport
from mailboat.cli.demo.oracle import Told
from mailboat.cli.demo.parsers import Parsers
from mailboat.cli.demo.parsing import Facts, Module, standard_library

PRODUCT: Final = "mailboat demo"
APPLICATION: Final = "standard library reader"
_BREATH: Final = 100
"""Definitions recorded before the event loop has its turn."""


class Account:
    """What the program records; every recording call is followed by saying that it returned."""

    def __init__(self, agent: Agent, told: Told) -> None:
        self._agent, self._told = agent, told
        self._definition = agent.emitter("definition", "module", "name", "line", "lines")

    def begin(self, modules: int, left: int) -> None:
        """The program begins; `left` of the `modules` are still to be examined."""
        python = platform.python_version()
        self._agent.set_installation("this machine", python=python)
        self._told.record("installation", "this machine", {"python": python})
        message = f"{left} of {modules} modules to examine"
        self._agent.event("program.begin", level=Level.INFO, message=message, left=left)
        self._told.record("event", "program.begin", {"left": left}, level=int(Level.INFO), message=message)

    async def examine(self, module: Module, parsers: Parsers) -> None:
        """Examine one module: how long it takes, and what is found."""
        with self._agent.timing("module.parse", module=module.name):
            facts = await parsers.examine(module)
        self._told.record("timing", "module.parse", {"module": module.name})
        feature = f"package.{module.package}"
        self._agent.feature(feature, module=module.name)
        self._told.record("feature", feature, {"module": module.name})
        self._value("module.bytes", facts.size, "bytes", module)
        self._value("module.lines", facts.lines, "lines", module)
        try:
            facts.raise_fault()
        except Exception as error:  # noqa: BLE001 - whatever parsing raised is what is to be recorded
            self._failed(error, module)
        else:
            self._value("module.nodes", facts.nodes, "nodes", module)
            await self._define(module, facts)

    def _value(self, name: str, number: int, unit: str, module: Module) -> None:
        self._agent.value(name, number, unit=unit, module=module.name)
        self._told.record("value", name, {"module": module.name}, value=number, unit=unit)

    def _failed(self, error: Exception, module: Module) -> None:
        context = f"parsing {module.name}"
        self._agent.exception(error, context=context)
        kind, level = type(error).__qualname__, int(Level.ERROR)
        self._told.record("exception", kind, {}, level=level, message=str(error), context=context)

    async def _define(self, module: Module, facts: Facts) -> None:
        for count, (name, line, lines) in enumerate(facts.definitions, 1):
            self._definition(module.name, name, line, lines)
            values = {"module": module.name, "name": name, "line": line, "lines": lines}
            self._told.record("feature", "definition", values)
            if count % _BREATH == 0:
                await asyncio.sleep(0)


class Done:
    """The modules that are done, in a file of one name a line, which only grows."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        # A last name without its line end was not done: the program was killed while it wrote it.
        self.names = frozenset(path.read_text("utf-8").split("\n")[:-1])

    def add(self, module: Module) -> None:
        """Remember `module`."""
        os.write(self._descriptor, f"{module.name}\n".encode())

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


async def examine_all(modules: Iterator[Module], account: Account, done: Done, told: Told, parsers: Parsers) -> None:
    """Take one module after the other until there are none; several may do so at once."""
    for module in modules:
        await account.examine(module, parsers)
        done.add(module)
        told.line("parsed", module=module.name)


async def commands() -> AsyncIterator[dict[str, float]]:
    """The commands that come through the standard input, until it ends."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    try:
        while line := await reader.readline():
            yield json.loads(line)
    finally:
        transport.close()


async def obey(agent: Agent, told: Told) -> float:
    """Carry out commands; returns how long the agent may take to stop."""
    async for command in commands():
        if "stop" in command:
            return command["stop"]
        report = await agent.force_sync(timeout=command["window"])
        told.line("window", **told_of(report))
    return 0.0


def told_of(report: SyncReport) -> dict[str, object]:
    """What is passed on of a report."""
    states = [outcome.state for outcome in report.sessions]
    return {
        "complete": report.complete,
        "sent": report.bytes_sent,
        "left": report.bytes_left,
        "duration": report.duration,
        "error": str(report.error or ""),
        "sessions": {str(state): states.count(state) for state in states},
    }


async def run(options: argparse.Namespace) -> None:
    """The whole program."""
    told, done = Told(options.told), Done(options.done)
    modules = standard_library()
    left = [module for module in modules if module.name not in done.names]
    agent = Agent(
        product=PRODUCT,
        application=APPLICATION,
        version=platform.python_version(),
        store=options.store,
        synchronize_automatically=options.automatic,
        startup_delay=0.0,
    )
    await agent.start()
    stop_timeout = 0.0
    try:
        told.line("started", session=agent.session_id, modules=len(modules), left=len(left))
        account = Account(agent, told)
        account.begin(len(modules), len(left))
        async with Parsers(options.parsers) as parsers, asyncio.TaskGroup() as tasks:
            queue = iter(left)
            for _ in range(options.parsers):
                tasks.create_task(examine_all(queue, account, done, told, parsers))
        await agent.flush(durable=True)
        told.line("examined")
        stop_timeout = await obey(agent, told)
    finally:
        await agent.stop(timeout=stop_timeout)
        done.close()
    told.line("stopped")


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--store", type=Path, required=True, help="the agent's store")
    parser.add_argument("--done", type=Path, required=True, help="the file that remembers which modules are done")
    parser.add_argument("--told", type=int, required=True, help="descriptor of the pipe that is told")
    parser.add_argument("--parsers", type=int, required=True, help="parsing processes")
    parser.add_argument("--automatic", action="store_true", help="let the agent synchronise by itself")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()

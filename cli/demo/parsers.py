"""Parsing without blocking the event loop: processes that parse, and a queue of those that are idle."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from typing import Final, Self

from mailboat.cli.demo.parsing import FRAME_HEAD, Facts, Module, read_content

_MODULE: Final = "mailboat.cli.demo.parsing"


class Parsers:
    """A number of parsing processes; use as an async context manager, which starts and ends them."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._idle: asyncio.Queue[_Parser] = asyncio.Queue()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for _ in range(self._number):
                self._idle.put_nowait(await stack.enter_async_context(_Parser()))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def examine(self, module: Module) -> Facts:
        """What is found in `module`, by the next idle process."""
        parser = await self._idle.get()
        try:
            return await parser.examine(module)
        finally:
            self._idle.put_nowait(parser)


class _Parser:
    """One process; see `parsing` for what it takes and answers."""

    _process: asyncio.subprocess.Process
    _input: asyncio.StreamWriter
    _output: asyncio.StreamReader

    async def __aenter__(self) -> Self:
        pipe = asyncio.subprocess.PIPE
        # -P: the folder that the program was started in must not provide modules.
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", _MODULE), stdin=pipe, stdout=pipe
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("asyncio made no pipes though it was asked to")
        self._input, self._output = self._process.stdin, self._process.stdout
        return self

    async def __aexit__(self, *_: object) -> None:
        self._input.close()
        await self._process.wait()

    async def examine(self, module: Module) -> Facts:
        self._input.write(json.dumps([module.name, module.path]).encode() + b"\n")
        await self._input.drain()
        (length,) = FRAME_HEAD.unpack(await self._output.readexactly(FRAME_HEAD.size))
        return read_content(await self._output.readexactly(length))

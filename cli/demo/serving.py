"""The demo's server: `mailboat serve` and `mailboat keys create`, each as anybody would run it, in its own process."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from mailboat.cli.demo.faults import LOOPBACK
from mailboat.cli.demo.processes import Child

_COMMAND_LINE: Final = "mailboat.cli"
_LISTENING: Final = re.compile(r"listening on (http://\S+)")


async def create_key(data: Path, product: str, role: str, log: Path) -> str:
    """A new key for `product`."""
    arguments = [_COMMAND_LINE, "keys", "create", f"--data={data}", f"--product={product}", f"--role={role}"]
    async with Child.started("making of a key", arguments, log=log, settings={}) as child:
        return (await child.output()).strip()


@asynccontextmanager
async def serving(data: Path, log: Path) -> AsyncIterator[tuple[str, int]]:
    """A server on a free port of loopback: yields host and port; it has ended when the context does."""
    arguments = [_COMMAND_LINE, "serve", f"--data={data}", f"--host={LOOPBACK}", "--port=0", "--stop-on-eof"]
    async with Child.started("server", arguments, log=log, settings={}) as child:
        found = None
        while found is None:
            found = _LISTENING.search(await child.line())
        address = urlsplit(found[1])
        yield address.hostname or LOOPBACK, address.port or 80

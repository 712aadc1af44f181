"""Stories of one agent in virtual time: real synchronizer, real store, simulated network; nobody sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from mailboat.agent.config import AgentConfig
from testkit import virtual
from testkit.simserver import SimServer
from testkit.virtual import VirtualLoop
from testkit.world import PRODUCT, SimAgent

QUIET = AgentConfig(server="http://server.example", product=PRODUCT, sync_interval=60.0, startup_delay=5.0)


class Steady:
    """In place of chance: nothing goes wrong by itself, and every pause is as long as it may be."""

    def random(self) -> float:
        return 0.999

    def choice(self, options: list[float]) -> float:
        return options[0]

    def uniform(self, low: float, _high: float) -> float:
        return low

    def randbytes(self, count: int) -> bytes:
        self.count = getattr(self, "count", 0) + 1
        return self.count.to_bytes(8, "big") * (count // 8 + 1) if count < 8 else self.count.to_bytes(count, "big")

    def getrandbits(self, _bits: int) -> int:
        return int.from_bytes(self.randbytes(6), "big")


def story(
    folder: Path,
    tell: Callable[[SimAgent], Coroutine[Any, Any, None]],
    kind: type[SimServer] = SimServer,
    **changes: object,
) -> None:
    """Tell a story of one agent, which has just been started, and a server of that `kind`."""

    async def main(loop: VirtualLoop) -> None:
        draw: Any = Steady()
        server = kind(draw, lambda: 0.0, PRODUCT, unreasonable=False)
        config = replace(QUIET, **changes)  # type: ignore[arg-type]
        agent = SimAgent("app", folder, loop, draw, server, config)
        agent.running.cancel()
        agent.running = asyncio.create_task(agent.sync.run(config.startup_delay))
        await tell(agent)
        await agent.kill()
        assert agent.sync.trouble == ""

    virtual.run(main)


async def until(agent: SimAgent, condition: Callable[[], bool], most: float) -> float:
    """When a condition came to hold, to a thousandth of the `most` seconds of virtual time that it may take."""
    end = agent.loop.now + most
    while not condition():
        assert agent.loop.now < end, "it did not come to hold"
        await asyncio.sleep(most / 1000.0)
    return agent.loop.now


def asked(agent: SimAgent, times: int = 1) -> Callable[[], bool]:
    return lambda: agent.seen.requests >= times

"""What a sealed store costs: the same records by an agent that seals and one that does not, and the reading of both.

*Recording* (SEAL): calls without a pause, and the flush of what they recorded; processor time of all threads, so that
packing, compression, sealing and the file are all in it. The records differ, so that blocks are of the usual size.

*Opening* (OPEN): the segments that came of it are decoded, block by block, as a server does before it loads them.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from itertools import islice
from pathlib import Path
from typing import Any

from bench.harness import CALL, Comparison, Contender, Measured, Sense, Settings, Stopwatch
from mailboat.agent import Agent
from mailboat.protocol.reader import SegmentReader, raw_records
from mailboat.protocol.sealing import KEY_BYTES, Keyring, PrivateKey

NAME = "sealing"
ABOUT = "a sealed store beside one that is not (SEAL, OPEN)"
REPETITIONS = 15

_BATCH = 5_000
"""Records between flushes: as many as blocks of the usual size hold."""


async def comparisons(settings: Settings) -> AsyncGenerator[Comparison, None]:
    """SEAL and OPEN."""
    private = PrivateKey(os.urandom(KEY_BYTES))
    plain_store, sealed_store = settings.folder / "plain", settings.folder / "sealed"
    attributes = _attributes(settings.calls)
    shared: dict[str, Any] = {"product": "bench", "application": "sealing", "save_interval": 3600.0}
    async with (
        Agent(store=plain_store, **shared) as plain,
        Agent(store=sealed_store, seal_to=private.public.text, **shared) as sealed,
    ):
        yield Comparison(
            "SEAL",
            "agent.feature without a pause, sealed; processor time of all threads",
            CALL,
            Sense.COST,
            Contender("agent.feature", _recording(plain, attributes)),
            Contender("agent.feature, sealed", _recording(sealed, attributes)),
        )
    keys = Keyring([private])
    yield Comparison(
        "OPEN",
        "decoding the records of sealed segments",
        CALL,
        Sense.COST,
        Contender("not sealed", _reading(plain_store, None)),
        Contender("sealed", _reading(sealed_store, keys)),
    )


def _attributes(count: int) -> list[dict[str, object]]:
    draw = random.Random(1)
    return [
        {
            "rows": draw.randrange(10**6),
            "source": draw.choice(("drive", "mail", "web")),
            "user": draw.randbytes(6).hex(),
        }
        for _ in range(count)
    ]


def _recording(agent: Agent, attributes: list[dict[str, object]]) -> Callable[[], Awaitable[Measured]]:
    async def run() -> Measured:
        before, given, watch = agent.status.recorded, iter(attributes), Stopwatch()
        with watch:
            while some := list(islice(given, _BATCH)):
                for each in some:
                    agent.feature("import.csv", **each)
                await agent.flush()
        status = agent.status
        if status.recorded - before != len(attributes) or status.lost or status.trouble:
            raise RuntimeError(f"not what was to be measured: {status}")
        return Measured(len(attributes), watch.wall, watch.cpu)

    return run


def _segments(store: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(store.rglob("*.zst"))]


def _reading(store: Path, keys: Keyring | None) -> Callable[[], Awaitable[Measured]]:
    async def run() -> Measured:
        segments = _segments(store)
        records, watch = 0, Stopwatch()
        with watch:
            for data in segments:
                reader = SegmentReader(data) if keys is None else SegmentReader(data, keys.unlock)
                for block in reader.blocks():
                    records += len(raw_records(block, reader.schemas, reader.unlock))
        if not records:
            raise RuntimeError(f"there is nothing to read in {store}")
        return Measured(records, watch.wall, watch.cpu)

    return run

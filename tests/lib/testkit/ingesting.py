"""The catalog, the segments and the loading of a server, without HTTP. As a program: a loader to be killed.

    python -m testkit.ingesting FOLDER SEED [N]

loads what lies in FOLDER while its segments go on growing, and prints ``done`` when all is loaded; with N, it kills
itself with -9 just before its N-th statement to the analytics store.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
from msgspec import structs
from msgspec.structs import replace

from mailboat.protocol.uploads.state import Phase, UploadState
from mailboat.server.analytics import Analytics
from mailboat.server.analytics_store import SqlStore
from mailboat.server.blobs import LocalBlobs
from mailboat.server.catalog import SegmentRow, UploadRow, Verification
from mailboat.server.decoding import Decoder
from mailboat.server.ingest import Ingest
from mailboat.server.loader import Loader
from mailboat.server.sqlite_catalog import SqliteCatalog
from mailboat.server.unsealing import Unsealing
from testkit.loading import PRODUCT


def upload_id_of(session_id: str, index: int, product: str = PRODUCT) -> str:
    return str(uuid.uuid5(uuid.UUID(session_id), f"{product} {index}"))


@dataclass
class Rig:
    """What of a server takes part in loading, on a folder; `segments` may lie elsewhere."""

    folder: Path
    decoder: Decoder | None = None
    segments: Path | None = None
    counters: Counter[str] = field(default_factory=Counter)
    opening: Callable[[Path], SqlStore] = Analytics

    def __post_init__(self) -> None:
        self.catalog = SqliteCatalog(self.folder / "catalog.sqlite")
        self.blobs = LocalBlobs(self.segments or self.folder / "segments")
        self.wake = asyncio.Event()

    async def start(self) -> None:
        await self.catalog.open()
        await self.start_loading()

    async def start_loading(self) -> None:
        self.loader = Loader(self.blobs, self.folder, self.decoder, self.opening)
        await self.loader.open()
        self.ingest = self.loading_of("a", self.wake)
        await self.ingest.start()

    def loading_of(self, replica: str, wake: asyncio.Event) -> Ingest:
        """The loading of one of the servers that share the catalog and the store."""
        unsealing = Unsealing(self.folder)
        return Ingest(self.catalog, self.loader, wake, self.counters, time.time, unsealing, replica)

    async def stop_loading(self) -> None:
        await self.ingest.stop()
        await self.loader.close()

    async def stop(self) -> None:
        await self.stop_loading()
        await self.catalog.close()

    async def add(
        self, session_id: str, data: bytes, *, index: int = 0, durable: int | None = None, product: str = PRODUCT
    ) -> str:
        """Have a segment of which `durable` bytes are announced (all of them: it is complete); its upload id."""
        upload_id = upload_id_of(session_id, index, product)
        writer = self.blobs.append(upload_id, 0)
        writer.write(data)
        writer.close()
        row = UploadRow(UploadState(upload_id), product, session_id, index, created=time.time(), updated=time.time())
        await self.catalog.make_upload(row)
        await self.grow(upload_id, len(data) if durable is None else durable, complete=durable is None)
        return upload_id

    async def grow(self, upload_id: str, offset: int, *, complete: bool = False) -> None:
        """Announce more bytes."""
        row = await self.catalog.upload(upload_id)
        assert row is not None
        state = structs.replace(row.state, offset=offset, phase=Phase.COMPLETE if complete else Phase.OPEN)
        if complete:
            done = replace(row, state=state, verification=Verification.VERIFIED, updated=time.time())
            assert await self.catalog.finish_upload(done)
        else:
            assert await self.catalog.store(state, time.time())
        self.wake.set()

    async def waiting(self) -> tuple[SegmentRow, ...]:
        return await self.catalog.segments_to_load()


class Fuse:
    """A connection to the store that ends the process before the last of `left` statements."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, left: int) -> None:
        self._connection = connection
        self._left = left

    def __getattr__(self, name: str) -> object:
        if name in {"execute", "begin", "commit"}:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)
        return getattr(self._connection, name)


async def load_while_it_grows(folder: Path, seed: int, fuse: int) -> None:
    """Announce a little more of random segments, again and again, until all of them are whole and loaded."""
    rig, chance = Rig(folder), random.Random(seed)
    await rig.start()
    if fuse:
        rig.loader.analytics._writer = Fuse(rig.loader.analytics._writer, fuse)  # type: ignore[attr-defined]
    print("started", flush=True)  # noqa: T201 - to the test that has started this program
    growing = list(await rig.catalog.open_uploads())
    while growing:
        row = chance.choice(growing)
        size = rig.blobs.size(row.id)
        offset = min(size, row.state.offset + chance.randrange(1, size // 2))
        await rig.grow(row.id, offset, complete=offset == size)
        growing = list(await rig.catalog.open_uploads())
        if chance.random() < 0.5:
            await rig.ingest.settled()
    await rig.ingest.settled()
    print("done", flush=True)  # noqa: T201 - to the test that has started this program
    await rig.stop()


if __name__ == "__main__":
    asyncio.run(load_while_it_grows(Path(sys.argv[1]), int(sys.argv[2]), int([*sys.argv, "0"][3])))

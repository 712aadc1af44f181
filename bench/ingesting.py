"""P10: from segments on the server's disk to rows that can be asked about.

The subject loads them as the server does: verified, decoded in a process of its own, inserted into the analytics store
with what is to be known of them, durable at the end. The reference decompresses and unpacks the same blocks in one
process and throws the records away: the least that anybody has to do who wants to look at them.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import shutil
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import msgpack
import zstandard

from bench.harness import Budget, Comparison, Contender, Measured, Sense, Settings, Stopwatch, Unit
from bench.serving import PRODUCT
from bench.sessions import BLOCK
from mailboat.protocol import Info
from mailboat.protocol.ids import ENTROPY_BYTES, new_id
from mailboat.protocol.reader import SegmentReader
from mailboat.protocol.records import COUNTERS, Kind, count_raw
from mailboat.protocol.segment import Preamble, SealReason
from mailboat.protocol.segment_writer import SegmentWriter
from mailboat.protocol.uploads.state import Phase, UploadState
from mailboat.server.blobs import LocalBlobs
from mailboat.server.catalog import UploadRow, Verification
from mailboat.server.decoding import Decoder
from mailboat.server.ingest import Ingest
from mailboat.server.loader import Loader
from mailboat.server.sqlite_catalog import SqliteCatalog
from mailboat.server.unsealing import Unsealing

NAME = "ingesting"
ABOUT = "from segments to rows (P10)"
REPETITIONS = 5

RECORD = Unit("record", "us", 1e6, "records/s")
RECORDS = 20_000
"""Records of each segment: about 1 MB of them."""
SEGMENTS = 60
"""Enough that the first batch, beside which nothing is loaded, takes little part in it."""


async def comparisons(settings: Settings) -> AsyncGenerator[Comparison, None]:
    """P10."""
    count = min(SEGMENTS, settings.sessions)
    work = _Work(settings.folder, [_segment(number) for number in range(count)])
    yield Comparison(
        "P10",
        f"{count} segments of {RECORDS} records",
        RECORD,
        Sense.COST,
        Contender("zstd and msgpack decoding alone", work.decode),
        Contender("mailboat", work.load),
        budget=Budget(2.0, Sense.COST),
    )


class _Work:
    """The contenders."""

    def __init__(self, folder: Path, segments: Sequence[tuple[str, bytes]]) -> None:
        self._folder = folder
        self._segments = segments

    async def decode(self) -> Measured:
        """The reference."""
        return await asyncio.to_thread(self._decode)

    def _decode(self) -> Measured:
        blocks = [[block.payload for block in SegmentReader(data).blocks()] for _, data in self._segments]
        records, decompressor = 0, zstandard.ZstdDecompressor()
        with Stopwatch() as watch:
            for payloads in blocks:
                for payload in payloads:
                    unpacker = msgpack.Unpacker(strict_map_key=False)
                    unpacker.feed(decompressor.decompress(payload))
                    records += sum(1 for _ in unpacker)
        return Measured(_checked(records, len(self._segments)), watch.wall, watch.cpu)

    async def load(self) -> Measured:
        """Ours."""
        folder = self._folder / "server"
        folder.mkdir()
        catalog, blobs = SqliteCatalog(folder / "catalog.sqlite"), LocalBlobs(folder / "segments")
        await catalog.open()
        for session_id, data in self._segments:
            await _keep(catalog, blobs, session_id, data)
        counters, decoder = Counter[str](), Decoder()
        await asyncio.to_thread(decoder.decode, folder, (), lambda _: None)  # it answers, as it does in a server's life
        loader = Loader(blobs, folder, decoder)
        await loader.open()
        ingest = Ingest(catalog, loader, asyncio.Event(), counters, time.time, Unsealing(folder), "bench")
        await asyncio.to_thread(os.sync)
        children = _children()
        with Stopwatch() as watch:
            await ingest.start()
            await ingest.settled()
        await ingest.stop()
        await loader.close()
        await catalog.close()
        taken = _children() - children
        shutil.rmtree(folder)
        records = _checked(counters["ingest_records"], len(self._segments))
        return Measured(records, watch.wall, watch.cpu + taken, {"server": watch.cpu, "decoder": taken})


def _checked(records: int, segments: int) -> int:
    if records != RECORDS * segments:
        raise RuntimeError(f"{records} records of {RECORDS * segments}")
    return records


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


async def _keep(catalog: SqliteCatalog, blobs: LocalBlobs, session_id: str, data: bytes) -> None:
    """Have a complete segment that is not loaded yet."""
    now, upload_id = time.time(), session_id
    writer = blobs.append(upload_id, 0)
    writer.write(data)
    writer.sync()
    writer.close()
    state = UploadState(upload_id, offset=len(data), length=len(data), phase=Phase.COMPLETE)
    await catalog.make_upload(
        UploadRow(state, PRODUCT, session_id, 0, verification=Verification.VERIFIED, created=now, updated=now)
    )


def _segment(number: int) -> tuple[str, bytes]:
    """A session's segment with records of every kind, as applications make them."""
    chance, began = random.Random(number), time.time_ns() - 3600 * 10**9
    session_id = new_id(began // 1_000_000, chance.randbytes(ENTROPY_BYTES))
    info = Info(product=PRODUCT, application="importer", version="2.4.1").to_wire()
    writer = SegmentWriter(
        Preamble(
            session_id=session_id,
            index=0,
            salt=number,
            first=0,
            started_wall=began,
            started_monotonic=0,
            pid=1,
            info=info,
        )
    )
    content = bytearray(writer.preamble())
    writer.add(bytes(content))
    raw, counts = bytearray(), [0] * len(COUNTERS)
    for at in range(RECORDS):
        record = _record(chance, at)
        raw += msgpack.packb(record)
        count_raw(record, counts, {})
        if len(raw) >= BLOCK or at == RECORDS - 1:
            header, block = writer.block(bytes(raw), counts, began)
            writer.add(block, header)
            content += block
            raw, counts = bytearray(), [0] * len(COUNTERS)
    ended = RECORDS * 1_000_000
    content += writer.seal(SealReason.STOPPED, began + ended, ended)
    return session_id, bytes(content)


def _record(chance: random.Random, at: int) -> list[object]:
    time_, name = at * 1_000_000, chance.choice(("import.csv", "import.xml", "export.pdf", "search", "login"))
    attributes = {"rows": chance.randrange(10_000), "source": chance.choice(("drive", "mail", "disk")), "ok": True}
    match chance.randrange(10):
        case 0:
            return [int(Kind.VALUE), time_, "import.size", attributes, chance.uniform(0, 1e6), "bytes"]
        case 1:
            return [int(Kind.TIMING), time_, "import.parse", attributes, chance.randrange(10**9)]
        case 2:
            return [int(Kind.EVENT), time_, "cache.miss", attributes, 20, f"key k{chance.randrange(1000)} is not there"]
        case _:
            return [int(Kind.FEATURE), time_, name, attributes]

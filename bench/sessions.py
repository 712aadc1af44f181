"""Sessions to be uploaded: real segments, made once, put into as many stores as there are repetitions.

Their records hold random bytes, which zstd leaves as they are: a segment on disk is compressed already, and neither
the network nor a disk finds anything in it to make smaller.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from bench.serving import PRODUCT
from mailboat.agent import Agent, AgentConfig
from mailboat.agent.files import OsFileSystem
from mailboat.agent.segment_file import segment_name
from mailboat.agent.store import WAITING, Store
from mailboat.protocol.ids import ENTROPY_BYTES, new_id
from mailboat.protocol.limits import KIB
from mailboat.protocol.records import COUNTERS, Kind
from mailboat.protocol.segment import Preamble, SealReason
from mailboat.protocol.segment_writer import SegmentWriter
from mailboat.protocol.summary import Info

APPLICATION = "upload"
FEATURE = "bulk"
"""The name of all their records."""
BLOCK = AgentConfig().journal_bytes // 2
"""Raw bytes of a block, as the agent's default makes them."""

_RECORD = 16 * KIB
_SEAL_ROOM = 2 * KIB


@dataclass(frozen=True, slots=True)
class Made:
    """The segments of one ended session, as files in a folder of their own."""

    session_id: str
    paths: tuple[Path, ...]

    @property
    def size(self) -> int:
        """Bytes of all segments."""
        return sum(path.stat().st_size for path in self.paths)

    def put_into(self, root: Path) -> None:
        """Have the session wait in the store at `root` (of an agent made by `config`), without copying a byte."""
        self.link_into(waiting_in(root))

    def link_into(self, waiting: Path) -> None:
        """The same for the folder that `waiting_in` gave."""
        folder = waiting / self.session_id
        folder.mkdir()
        for path in self.paths:
            os.link(path, folder / path.name)

    def pieces(self, length: int) -> Iterator[bytes]:
        """All bytes, in pieces of at most `length`."""
        for path in self.paths:
            with path.open("rb", buffering=0) as file:
                while piece := file.read(length):
                    yield piece


def waiting_in(root: Path) -> Path:
    """The folder of what waits in the store at `root`, which is made if it is not there."""
    config = AgentConfig(store=root, product=PRODUCT, application=APPLICATION)
    store = Store(OsFileSystem(), config.store_root, PRODUCT, APPLICATION)
    store.open()
    return store.folder / WAITING


def sender(url: str, key: str, store: Path, **settings: Any) -> Agent:  # noqa: ANN401 - fields of AgentConfig
    """An agent that delivers what waits in `store` when it is told to, and not by itself."""
    return Agent(
        server=url,
        api_key=key,
        product=PRODUCT,
        application=APPLICATION,
        store=store,
        synchronize_automatically=False,
        stop_timeout=0,
        **settings,
    )


def make(folder: Path, size: int, segment_size: int, seed: int = 0) -> Made:
    """A session of about `size` bytes in segments of at most `segment_size`; one for each `seed`."""
    chance, began = random.Random(f"{size} {seed}"), time.time_ns()
    session_id = new_id(began // 1_000_000, chance.randbytes(ENTROPY_BYTES))
    folder.mkdir(parents=True)
    paths: list[Path] = []
    left, first = size, 0
    while left > 0:
        path = folder / segment_name(len(paths))
        writer = SegmentWriter(_preamble(session_id, len(paths), first, began))
        path.write_bytes(_segment(writer, min(left, segment_size), chance))
        paths.append(path)
        left -= min(left, segment_size)
        first = writer.next
    return Made(session_id, tuple(paths))


def _preamble(session_id: str, index: int, first: int, began: int) -> Preamble:
    return Preamble(
        session_id=session_id,
        index=index,
        salt=began & 0xFFFF_FFFF,
        first=first,
        started_wall=began,
        started_monotonic=0,
        pid=1,
        info=Info(product=PRODUCT, application=APPLICATION).to_wire(),
    )


def _segment(writer: SegmentWriter, size: int, chance: random.Random) -> bytes:
    began = writer.description.started_wall
    content = bytearray(writer.preamble())
    writer.add(bytes(content))
    while (room := size - len(content) - _SEAL_ROOM) >= _RECORD or not writer.blocks:
        records = max(1, min(room, BLOCK) // _RECORD)
        raw = b"".join(
            msgpack.packb([Kind.FEATURE, writer.next + number, FEATURE, {"bytes": chance.randbytes(_RECORD - KIB)}])
            for number in range(records)
        )
        header, block = writer.block(raw, _counts(records), began)
        writer.add(block, header)
        content += block
    content += writer.seal(SealReason.STOPPED, began + writer.next, writer.next)
    return bytes(content)


def _counts(features: int) -> list[int]:
    counts = [0] * len(COUNTERS)
    counts[COUNTERS.index("feature")] = features
    return counts

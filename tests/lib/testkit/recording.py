"""A session without its thread and its clock: recorder, journal, writer and store, driven step by step; and the
oracle that reads what came of it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

from mailboat.agent.clocks import Clocks
from mailboat.agent.config import AgentConfig
from mailboat.agent.files import FileSystem, OsFileSystem
from mailboat.agent.journal_place import InMemory, JournalPlace, OnDisk
from mailboat.agent.recorder import Recorder
from mailboat.agent.recovery import recover
from mailboat.agent.segment_file import SegmentFile, segment_paths
from mailboat.agent.session import _journal
from mailboat.agent.store import LIVE, WAITING, SessionFolder, Store
from mailboat.agent.writer import Writer, WriterSettings
from mailboat.protocol.disclosure import sealed_info
from mailboat.protocol.limits import MIN_JOURNAL
from mailboat.protocol.reader import SegmentReader
from mailboat.protocol.records import COUNTERS, Kind, Record, count_raw, records_counted, schema_of
from mailboat.protocol.sealing import PublicKey
from mailboat.protocol.segment import Preamble, SealReason
from mailboat.protocol.summary import Info

BOOT = "5f0f2c1e-0000-4000-8000-000000000001"
OTHER_BOOT = "5f0f2c1e-0000-4000-8000-000000000002"
SECOND = 1_000_000_000


@dataclass
class Time:
    """Clocks that stand still until they are told to go on; entropy that can be repeated."""

    monotonic: int = 1000 * SECOND
    offset: int = 1_790_000_000 * SECOND
    chance: random.Random = field(default_factory=lambda: random.Random(1))

    def pass_seconds(self, seconds: float) -> None:
        self.monotonic += int(seconds * SECOND)

    @property
    def clocks(self) -> Clocks:
        return Clocks(
            monotonic=lambda: self.monotonic,
            wall=lambda: self.monotonic + self.offset,
            entropy=self.chance.randbytes,
            chance=self.chance.random,
        )


class Rig:
    """One session in `root`. Nothing happens but in `step`, where the writer looks at what is due."""

    def __init__(
        self,
        root: Path,
        *,
        files: FileSystem | None = None,
        time: Time | None = None,
        settings: WriterSettings | None = None,
        journal_bytes: int = MIN_JOURNAL,
        boot: str = BOOT,
        seal_to: PublicKey | None = None,
        product: str = "product",
    ) -> None:
        self.time = time or Time()
        clocks = self.time.clocks
        self.store = Store(files or OsFileSystem(), root, product, "application")
        session_id, info, sealed = clocks.new_id(), Info(product=product), None
        place: JournalPlace = OnDisk(self.store.files)
        if seal_to is not None:
            info, sealed = sealed_info(info, seal_to, session_id)
            place = InMemory(self.store.files, root / "memory")
        preamble = Preamble(
            session_id,
            0,
            int.from_bytes(clocks.entropy(4), "little"),
            0,
            clocks.wall(),
            clocks.monotonic(),
            boot_id=boot,
            info=info.to_wire(),
            sealed=sealed,
        )
        self.id = preamble.session_id

        def begin() -> tuple[SessionFolder, SegmentFile]:
            return self.store.begin(preamble, 1, clocks.entropy)

        self.writer = Writer(self.store, begin, settings or WriterSettings(), clocks, place)
        config = AgentConfig(journal_bytes=journal_bytes)
        self.journal, self.trouble = _journal(config, self.store, self.writer, begin, boot, place)
        self.writer.lack_journal(self.trouble)
        self.urgent = 0
        self.recorder = Recorder(
            self.journal, on_full=self.writer.closed, on_urgent=self._on_urgent, clock=clocks.monotonic
        )
        self.writer._recorder = self.recorder
        self.writer._segments.schemas = self.recorder.schemas

    def _on_urgent(self, *_: object) -> None:
        self.urgent += 1
        self.writer.urgent()

    @property
    def segments(self) -> Any:  # noqa: ANN401 - state behind the public face
        return self.writer._segments

    def step(self, seconds: float = 0.0) -> None:
        """Let so much time pass, then let the writer look once."""
        self.time.pass_seconds(seconds)
        self.writer._take_waiting()
        self.writer._step()

    def flush(self, *, durable: bool = False, seconds: float = 0.0) -> bool:
        done = self.writer.flush(durable=durable)
        self.step(seconds)
        return done.result(timeout=0)

    def end(self, reason: SealReason = SealReason.STOPPED) -> bool:
        self.recorder.stop()
        done = self.writer.seal(reason)
        self.step()
        return done.result(timeout=0)

    def let_go(self) -> None:
        """Close what the session holds, as the system does when the process dies."""
        self.writer._ended = True
        self.writer._let_go_of_all()


# -- what came of it -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Story:
    """One session as read back from its segments: `numbers` are the sequence numbers of the records."""

    session_id: str
    records: list[Record]
    reasons: list[SealReason]
    lost: dict[str, int]
    gaps: list[Any]
    folder: Path

    @property
    def names(self) -> list[str]:
        return [record.name for record in self.records]

    @property
    def numbers(self) -> list[int]:
        return [record.sequence for record in self.records]


def read_session(folder: Path) -> Story:
    """All records of an ended session; fails unless every segment is intact but for gaps that it states."""
    records: list[Record] = []
    reasons, lost, gaps = [], {}, []
    for path in segment_paths(OsFileSystem(), folder):
        reader = SegmentReader(path.read_bytes())
        for block in reader.blocks():
            found = reader.records(block)
            assert [0] * len(COUNTERS) != list(block.header.counts)
            records += found
        assert reader.preamble is not None
        assert reader.seal is not None, f"{path} is not sealed"
        assert reader._digest_checks, f"{path} does not match the digest in its seal"
        assert reader.torn == 0
        assert reader.seal.records == sum(block_records(path)), path
        reasons.append(reader.seal.reason)
        lost = dict(reader.seal.lost)
        gaps += reader.gaps
        assert_counts(path)
    return Story(folder.name, records, reasons, lost, gaps, folder)


def block_records(path: Path) -> list[int]:
    reader = SegmentReader(path.read_bytes())
    return [block.header.records for block in reader.blocks()]


def assert_counts(path: Path) -> None:
    """The counts in every header are those of the very records in the block."""
    from mailboat.protocol.reader import decompress
    from mailboat.protocol.unpacking import unpack

    reader = SegmentReader(path.read_bytes())
    schemas = {}
    for block in reader.blocks():
        counts = [0] * len(COUNTERS)
        raw = unpack(decompress(block))
        for each in raw:
            if each[0] == Kind.SCHEMA:
                schema = schema_of(each)
                schemas[schema.number] = schema
        for each in raw:
            count_raw(each, counts, schemas)
        assert tuple(counts) == block.header.counts
        assert records_counted(counts) == block.header.records


def waiting(store: Store) -> list[Story]:
    folder = store.folder / WAITING
    return [read_session(folder / name) for name in store.files.names(folder)]


def recovered(root: Path, boot: str = BOOT, files: FileSystem | None = None) -> list[Story]:
    """Recover every crashed session of the store in `root`, and read all that wait then."""
    store = Store(files or OsFileSystem(), root, "product", "application")
    store.open()
    for session in store.crashed():
        try:
            recover(store, session, boot)
        finally:
            store.files.close(session.lock_fd)
    assert not store.files.names(store.folder / LIVE)
    return waiting(store)


def only(stories: Iterable[Story]) -> Story:
    (story,) = stories
    return story


def unpacked(raw: bytes) -> list[Any]:
    unpacker = msgpack.Unpacker(strict_map_key=False)
    unpacker.feed(raw)
    return list(unpacker)

"""Recovery: what a dead process left in ``live/`` becomes a sealed session that waits.

In named passes, each of which may be cut short by another crash and is then done again from the beginning:

1. *read*: every segment block by block (checksums only, no decompression);
2. *drain*: the journal's records that no block holds yet are appended as blocks;
3. *seal*: unsealed segments get a seal, the last one with reason ``crashed`` and the time of the session's last record;
4. *retire*: the session moves to ``waiting/`` and its journal is deleted.

The journal's halves are told from the segment's blocks by sequence numbers: a half becomes one block, so it is either
in the segment as a whole or not at all, and a crash between append and release doubles nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack

from mailboat.agent.files import FileSystem
from mailboat.agent.journal import Left, left_behind
from mailboat.agent.segment_file import SegmentFile, segment_paths
from mailboat.agent.store import JOURNAL, SessionFolder, Store
from mailboat.protocol.errors import SegmentError
from mailboat.protocol.reader import SHORTEST_RECORD, Block, decompress, raw_records, unpack
from mailboat.protocol.records import COUNTERS, SCHEMA_COUNTER, Kind, Schema, count_raw, counter, schema_of
from mailboat.protocol.segment import SealReason


def recover(store: Store, session: SessionFolder, boot_id: str, *, level: int = 1) -> Path | None:
    """Bring one crashed session, whose lock the caller holds, to rest; returns its folder among those that wait.

    None when nothing was ever recorded durably: the folder is removed. Raises `SegmentError` when a segment's
    preamble is beyond reading, `OSError` when the disk refuses; the session stays where it is then.
    """
    files, paths = store.files, segment_paths(store.files, session.path)
    if not paths:
        files.remove_tree(session.path)
        return None
    work = _Recovery(files, level)
    try:
        for path in paths:
            work.read(path)
        work.drain(_journal(files, session.path / JOURNAL, boot_id))
        work.seal()
    finally:
        work.close()
    return store.retire_folder(session.path)


def _journal(files: FileSystem, path: Path, boot_id: str) -> list[Left]:
    try:
        return list(left_behind(files.read(path), boot_id))
    except FileNotFoundError:
        return []


class _Recovery:
    """The segments of one session while it is being recovered, and what sealing it needs to know."""

    def __init__(self, files: FileSystem, level: int) -> None:
        self._files, self._level = files, level
        self._segments: list[SegmentFile] = []
        self._schemas: dict[int, Schema] = {}
        self._last_block: Block | None = None
        self._installation_block: Block | None = None
        self._installation: Mapping[str, Any] | None = None
        self._last_time: int | None = None
        self._clock: int | None = None

    def read(self, path: Path) -> None:
        """Pass 1, for one segment."""
        segment, blocks = SegmentFile.reopen(self._files, path, self._level)
        self._segments.append(segment)
        if blocks:
            self._last_block = blocks[-1]
        for block in blocks:
            self._clock = block.header.clock
            if block.header.counts[SCHEMA_COUNTER]:
                raw_records(block, self._schemas)
            if block.header.counts[counter(Kind.INSTALLATION)]:
                self._installation_block = block

    def drain(self, halves: list[Left]) -> None:
        """Pass 2. A half that does not hold whole records gives those before the place where it stops."""
        segment = self._segments[-1]
        if segment.sealed and any(half.first >= segment.writer.next for half in halves):
            segment = self._following(segment)
        for half in halves:
            if half.first < segment.writer.next:
                continue
            raw, records = _whole_records(half.raw)
            if records:
                segment.writer.next = half.first
                segment.block(raw, self._count(records), self._offset())
                self._note(records)

    def seal(self) -> None:
        """Pass 3."""
        self._last_signs_of_life()
        for segment in self._segments:
            if segment.sealed:
                segment.sync()
                continue
            last = segment is self._segments[-1]
            ended = self._last_time if self._last_time is not None else segment.writer.description.started_monotonic
            segment.seal(
                SealReason.CRASHED if last else SealReason.ABANDONED,
                ended + self._offset(),
                ended,
                self._installation if last else None,
            )

    def close(self) -> None:
        """Let go of the files."""
        for segment in self._segments:
            segment.close()

    def _following(self, sealed: SegmentFile) -> SegmentFile:
        """A segment to go on in after one that was rotated just before the crash."""
        before = sealed.writer.description
        fields = {name: getattr(before, name) for name in before.__slots__}
        preamble = type(before)(**{**fields, "index": before.index + 1, "first": sealed.writer.next})
        segment = SegmentFile.create(self._files, sealed.path.parent, preamble, self._level)
        self._segments.append(segment)
        write_schemas(segment, self._schemas, self._offset())
        return segment

    def _count(self, records: list[list[Any]]) -> list[int]:
        counts = [0] * len(COUNTERS)
        for raw in records:
            if raw[0] == Kind.SCHEMA:
                schema = schema_of(raw)
                self._schemas[schema.number] = schema
            count_raw(raw, counts, self._schemas)
        return counts

    def _note(self, records: list[list[Any]]) -> None:
        self._last_time = records[-1][1]
        for raw in records:
            if raw[0] == Kind.INSTALLATION:
                self._installation = {"id": str(raw[2]), "properties": raw[3]}

    def _offset(self) -> int:
        """Wall clock minus monotonic clock, as last seen."""
        if self._clock is not None:
            return self._clock
        first = self._segments[0].writer.description
        return first.started_wall - first.started_monotonic

    def _last_signs_of_life(self) -> None:
        """From blocks, where the journal held nothing newer."""
        wanted = []
        if self._installation is None and self._installation_block is not None:
            wanted.append(self._installation_block)
        if self._last_time is None and self._last_block is not None:
            wanted.append(self._last_block)
        for block in wanted:
            newest, known = self._last_time, self._installation
            self._note(list(unpack(decompress(block))))
            self._last_time = self._last_time if block is self._last_block else newest
            self._installation = self._installation if known is None else known


def _whole_records(raw: bytes) -> tuple[bytes, list[list[Any]]]:
    """The records at the start of `raw` that are whole, as bytes and unpacked."""
    records: list[list[Any]] = []
    end = 0
    unpacker = msgpack.Unpacker(max_buffer_size=max(len(raw), 1), strict_map_key=False, unicode_errors="replace")
    unpacker.feed(raw)
    try:
        for record in unpacker:
            if not isinstance(record, list) or len(record) < SHORTEST_RECORD or not isinstance(record[0], int):
                break
            records.append(record)
            end = unpacker.tell()
    except (ValueError, SegmentError):
        pass  # what follows is no record: the copy that the crash cut off, or a page that never reached the disk
    return raw[:end], records


def write_schemas(segment: SegmentFile, schemas: Mapping[int, Schema], clock: int) -> None:
    """Repeat the declarations made so far at the head of a new segment, as a block without sequence numbers."""
    if not schemas:
        return
    packed = [(Kind.SCHEMA, 0, each.name, list(each.fields), each.number, each.kind) for each in schemas.values()]
    counts = [0] * len(COUNTERS)
    counts[SCHEMA_COUNTER] = len(packed)
    segment.block(b"".join(map(msgpack.packb, packed)), counts, clock)

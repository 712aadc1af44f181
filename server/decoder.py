"""Segments to rows, in a process of its own: ``python -m mailboat.server.decoder``.

What comes from agents is decoded here and nowhere else in bulk: a bomb can cost this process its bounded memory, never
the server; and the server's event loop never waits for an interpreter lock held by a decoder. The process ends when its
standard input does, so it never outlives the server.

The talk, in frames of a big-endian 32-bit length and a msgpack map (``decoding`` is the other end)::

    > {"begin": folder, "keys": [text, ...]}      a batch begins; rows go to FOLDER/TABLE.json and TABLE.txt; private
                                                  keys for what is sealed
    > {"segment": {...}}                          `Task`; then its bytes from `offset` on, in any number of
    > {"bytes": ...}                              pieces, then
    > {"end": true}
    < {"decoded": {...}}                          `Outcome`; or {"refused": reason}, when the disk takes no rows
    > {"finish": true}
    < {"finished": [table, ...]}                  the files are written and closed

Bytes need not be the whole segment: a task goes on where an earlier one ended.
"""

from __future__ import annotations

import gc
import os
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgpack
import msgspec

from mailboat.protocol.errors import KeyMissing, SegmentError
from mailboat.protocol.limits import MIB
from mailboat.protocol.reader import Block, Legible, SegmentReader, decompress, legible
from mailboat.protocol.records import SCHEMA_COUNTER, Schema
from mailboat.protocol.sealing import Keyring, PrivateKey, Unlock, unlocks_only
from mailboat.server.analytics_schema import BETWEEN
from mailboat.server.memory import keep_memory
from mailboat.server.rows import Lines, Rows, encode_rows, rows_at_once, rows_of, those

FRAME: Final = struct.Struct(">I")
MAX_RAW: Final = 128 * MIB
"""Decompressed bytes of one segment taken in one batch: the rest follows in later ones, so that a segment which expands
a thousand times delays the others but does not stop them."""
MAX_ROWS: Final = 64 * MIB
"""Bytes of rows in one batch, beyond which the rest follows in later ones: the engine keeps the rows of a transaction
in its memory (`ServerConfig.analytics_memory`). A batch of records as applications make them has some 10 MiB."""
MAX_GAPS: Final = 1000
"""Gaps told of one segment in one batch; a segment of nothing but damage has no more to say."""
MAX_SCHEMAS: Final = 4096
"""Declarations remembered of one segment; an application has a few dozen emitters."""
MAX_MEMORY: Final = 2048 * MIB
"""Address space of the decoder: a block of 4 MiB of empty maps takes 300 MiB as objects."""
NICENESS: Final = 5
"""Receiving comes first."""

_ARRAY: Final = struct.Struct(">BI")
_ARRAY_TAG: Final = 0xDD
"""An array of up to 2^32 values in msgpack; its elements follow."""
_array: Final = msgspec.msgpack.Decoder(list[list[Any]])

Range = tuple[int, int]
"""Sequence numbers from the first up to, not including, the second."""


@dataclass(frozen=True, slots=True)
class Task:
    """What to decode: bytes from `offset` on of the segment that has `number` in its batch.

    `next` and `schemas` are as the `Outcome` before left them. `present` are the session's records that other segments
    have brought already: a segment that an agent had to abandon is repeated in part by the one after it. `complete`
    says that the segment will not grow. `session_id` and `index` are what a sealed segment's blocks must be of.
    """

    number: int
    offset: int = 0
    next: int = 0
    schemas: tuple[Schema, ...] = ()
    present: tuple[Range, ...] = ()
    complete: bool = False
    session_id: str = ""
    index: int = 0

    def to_wire(self) -> dict[str, Any]:
        """The task as a map of plain values."""
        schemas = [[each.number, each.kind, each.name, list(each.fields)] for each in self.schemas]
        return {
            "number": self.number,
            "offset": self.offset,
            "next": self.next,
            "schemas": schemas,
            "present": [list(each) for each in self.present],
            "complete": self.complete,
            "session_id": self.session_id,
            "index": self.index,
        }

    @classmethod
    def from_wire(cls, values: dict[str, Any]) -> Task:
        """What `to_wire` made."""
        return cls(
            number=values["number"],
            offset=values["offset"],
            next=values["next"],
            schemas=schemas_from(values["schemas"]),
            present=tuple((first, end) for first, end in values["present"]),
            complete=values["complete"],
            session_id=values["session_id"],
            index=values["index"],
        )


@dataclass(slots=True)
class Outcome:
    """What became of a task.

    Everything up to byte `consumed` is in the rows or among the `gaps` (offset, length, reason, first, records).
    `next`, `schemas` are for the task that goes on there. `loaded` are the sequence numbers that got rows, `records`
    their count; `claimed` counts those that the blocks' headers spoke of, `read` those of them that could be read.
    `more` tells that a bound on decompressed bytes or rows ended the task early. `info` is the session's description,
    when the preamble was among the bytes. `locked` says for want of which key the task ended at `consumed`; empty when
    none was wanting.
    """

    number: int
    consumed: int
    next: int
    schemas: tuple[Schema, ...] = ()
    loaded: list[Range] = field(default_factory=list)
    records: int = 0
    claimed: int = 0
    read: int = 0
    gaps: list[tuple[int, int, str, int, int | None]] = field(default_factory=list)
    more: bool = False
    info: dict[str, Any] | None = None
    locked: str = ""

    @property
    def cut_short(self) -> bool:
        """Whether the task ended before its bytes did."""
        return self.more or bool(self.locked)

    def to_wire(self) -> dict[str, Any]:
        """The outcome as a map of plain values."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {**values, "schemas": [[each.number, each.kind, each.name, list(each.fields)] for each in self.schemas]}

    @classmethod
    def from_wire(cls, values: dict[str, Any]) -> Outcome:
        """What `to_wire` made."""
        return cls(
            **{
                **values,
                "schemas": schemas_from(values["schemas"]),
                "loaded": [(first, end) for first, end in values["loaded"]],
                "gaps": [(gap[0], gap[1], gap[2], gap[3], gap[4]) for gap in values["gaps"]],
            }
        )


def schemas_from(values: list[list[Any]]) -> tuple[Schema, ...]:
    """Declarations from their plain form ``[number, kind, name, fields]``."""
    return tuple(Schema(number, kind, name, tuple(fields)) for number, kind, name, fields in values)


def files_of(folder: Path, table: str) -> tuple[Path, Path]:
    """The files of a table in the folder of a batch: its lines, and its texts."""
    return folder / f"{table}.json", folder / f"{table}.txt"


class Files:
    """The files of one batch: two per table, made when it gets its first row; `size` are the bytes in them."""

    def __init__(self, folder: Path) -> None:
        self.size = 0
        self._folder = folder
        self._files: dict[str, _Table] = {}

    def write(self, table: str, lines: Iterable[Lines]) -> None:
        """Append lines, and their texts, to a table's files."""
        files = self._files.get(table)
        if files is None:
            lines_file, texts_file = files_of(self._folder, table)
            files = self._files[table] = _Table(lines_file.open("wb"), texts_file.open("wb"))
        for line, text in lines:
            files.lines.writelines((b'{"i":%d,' % files.count, memoryview(line)[1:], b"\n"))
            files.texts.write(BETWEEN + text if files.count else text)
            files.count += 1
            self.size += len(line) + len(text)

    def close(self) -> list[str]:
        """Close the files; returns the tables that have some."""
        tables = list(self._files)
        for files in self._files.values():
            files.lines.close()
            files.texts.close()
        self._files.clear()
        return tables


@dataclass(slots=True)
class _Table:
    lines: BinaryIO
    texts: BinaryIO
    count: int = 0


class Decoding:
    """One task under way: `feed` its bytes in order, then `finish`."""

    def __init__(self, task: Task, files: Files, keyring: Keyring | None = None) -> None:
        self._task = task
        unlock = (keyring or Keyring(())).unlock
        self._unlock: Unlock = unlocks_only(unlock, task.session_id, task.index) if task.session_id else unlock
        self._files = files
        self._reader = SegmentReader(digest=False)
        self._reader.offset = task.offset
        self._reader.next = task.next
        self._reader.schemas = {each.number: each for each in task.schemas}
        self._raw = 0
        self._outcome = Outcome(task.number, task.offset, task.next)
        self._failed: list[tuple[int, int, str, int, int | None]] = []

    def feed(self, piece: bytes) -> None:
        """Decode what `piece` completes."""
        if self._outcome.cut_short:
            return
        self._reader.feed(piece)
        self._take()

    def finish(self) -> Outcome:
        """What became of the task, all its bytes having been fed."""
        outcome, reader = self._outcome, self._reader
        if self._task.complete and not outcome.cut_short:
            end = reader.offset + reader.torn
            reader.close()
            self._take()
            if not outcome.cut_short:
                outcome.consumed, outcome.next = end, reader.next
        # Gaps beyond the last whole block are found again by the task that goes on there.
        told = [(gap.offset, gap.length, gap.reason, gap.first, gap.records) for gap in reader.gaps]
        kept = sorted(gap for gap in [*told, *self._failed] if gap[0] < outcome.consumed)
        outcome.gaps = kept[:MAX_GAPS]
        outcome.schemas = tuple(reader.schemas.values())[-MAX_SCHEMAS:]
        if reader.preamble is not None:
            outcome.info = dict(reader.preamble.info)
        return outcome

    def _take(self) -> None:
        for block in self._reader.blocks():
            # Without rows of others before it, a task takes one block at least, so that each batch brings one further.
            if (self._raw and self._raw + block.header.raw_length > MAX_RAW) or self._files.size > MAX_ROWS:
                self._outcome.more = True
                return
            self._raw += block.header.raw_length
            if not self._block(block):
                return
            self._outcome.consumed = block.end
            self._outcome.next = block.header.first + block.header.records

    def _block(self, block: Block) -> bool:
        """Take one block, or note its loss; False where it only wants a key."""
        first, end = block.header.first, block.header.first + block.header.records
        try:
            rows, lost, reason = rows_in(block, self._reader.schemas, self._unlock)
            fresh = list(_without(first, end, (*self._task.present, lost)))
            if fresh != [(first, end)]:
                rows = [those(each, lambda sequence: _within(sequence, fresh)) for each in rows]
            lines = [(each.table, encode_rows(each, self._task.number)) for each in rows if each.columns[0]]
        except KeyMissing as error:
            self._outcome.locked = str(error)
            return False
        except Exception as error:  # noqa: BLE001 - whatever a block does to its decoder, it costs that block alone
            self._outcome.claimed += end - first
            reason = str(error) if isinstance(error, SegmentError) else f"the records cannot be decoded: {error!r:.200}"
            self._failed.append((block.offset, block.end - block.offset, reason, first, block.header.records))
            return True
        self._outcome.claimed += end - first
        missing = lost[1] - lost[0]
        self._outcome.read += end - first - missing
        if missing:
            self._failed.append((block.offset, block.end - block.offset, reason, lost[0], missing))
        for table, written in lines:
            self._files.write(table, written)
        for span in fresh:
            self._outcome.records += span[1] - span[0]
            add_range(self._outcome.loaded, span)
        return True


def rows_in(block: Block, schemas: dict[int, Schema], unlock: Unlock) -> tuple[list[Rows], Range, str]:
    """The rows of a block, the numbers among its own that are lost, and for what reason (`reader.legible`).

    Declarations among its records are added to `schemas`. `SegmentError` where nothing is left.
    """
    header = block.header
    packed = b""
    if header.records and not header.counts[SCHEMA_COUNTER]:
        # Without declarations it is one array that lacks its head.
        packed = _ARRAY.pack(_ARRAY_TAG, header.records) + decompress(block, unlock)
        if (rows := rows_at_once(packed, header.first, header.clock)) is not None:
            return rows, (header.first, header.first), ""
    records = _unpacked(packed)
    found = Legible(records) if records else legible(block, schemas, unlock)
    rows = [each for first, raws in found.runs(header.first) for each in rows_of(raws, first, header.clock, schemas)]
    start = header.first + len(found.records)
    return rows, (start, start + found.lost), found.reason


def _unpacked(packed: bytes) -> list[list[Any]]:
    """As `reader.raw_records`, faster; empty where only the thorough way can tell what there is."""
    try:
        return _array.decode(packed) if packed else []
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return []  # text that is no UTF-8, or damage


def add_range(ranges: list[Range], span: Range) -> None:
    """Append a span to ascending ranges, joining it to the last when it goes on there."""
    if ranges and ranges[-1][1] == span[0]:
        ranges[-1] = (ranges[-1][0], span[1])
    elif span[0] < span[1]:
        ranges.append(span)


def _without(first: int, end: int, present: tuple[Range, ...]) -> Iterator[Range]:
    """The parts of [first, end) that are in none of the ranges, in order."""
    for low, high in sorted(present):
        if high <= first or low >= end:
            continue
        if low > first:
            yield first, low
        first = max(first, high)
    if first < end:
        yield first, end


def _within(sequence: int, ranges: list[Range]) -> bool:
    return any(first <= sequence < end for first, end in ranges)


# -- the process ---------------------------------------------------------------------------------------------------


def read_frame(stream: BinaryIO) -> dict[str, Any] | None:
    """The next frame, or None at the end of the stream (also within a frame: the other end has died)."""
    head = stream.read(FRAME.size)
    if len(head) < FRAME.size:
        return None
    length = FRAME.unpack(head)[0]
    content = stream.read(length)
    if len(content) < length:
        return None
    frame: dict[str, Any] = msgpack.unpackb(content, strict_map_key=False)
    return frame


def write_frame(stream: BinaryIO, frame: dict[str, Any]) -> None:
    """Send a frame (and flush it when it is a reply or ends a task)."""
    content = msgpack.packb(frame)
    stream.write(FRAME.pack(len(content)) + content)


class Service:
    """Answers frames, one by one."""

    def __init__(self) -> None:
        self._files: Files | None = None
        self._decoding: Decoding | None = None
        self._refused = ""
        self._keys: list[str] = []
        self._keyring = Keyring(())

    def answer(self, frame: dict[str, Any]) -> dict[str, Any] | None:
        """What to reply to a frame; None for nothing."""
        try:
            return self._answer(frame)
        except OSError as error:
            # The disk is full, say: no fault of the segment's. Told where a reply is due.
            self._refused = self._refused or str(error)
            return {"refused": self._refused} if "end" in frame or "finish" in frame else None

    def _answer(self, frame: dict[str, Any]) -> dict[str, Any] | None:
        if "begin" in frame:
            self._files, self._refused = Files(Path(frame["begin"])), ""
            self._take_keys(frame.get("keys", []))
        elif self._files is None:
            raise ValueError(f"no batch has begun, and {list(frame)} came")
        elif "segment" in frame:
            self._decoding = Decoding(Task.from_wire(frame["segment"]), self._files, self._keyring)
        elif "finish" in frame:
            finished = self._files.close()
            gc.collect()
            return self._told({"finished": finished})
        elif self._decoding is None:
            raise ValueError(f"no segment has begun, and {list(frame)} came")
        elif "bytes" in frame:
            self._decoding.feed(frame["bytes"])
        elif "end" in frame:
            decoding, self._decoding = self._decoding, None
            return self._told({"decoded": decoding.finish().to_wire()})
        return None

    def _take_keys(self, keys: list[str]) -> None:
        if keys != self._keys:
            self._keys, self._keyring = keys, Keyring(map(PrivateKey.parse, keys))

    def _told(self, reply: dict[str, Any]) -> dict[str, Any]:
        return {"refused": self._refused} if self._refused else reply


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer until the requests end."""
    service = Service()
    while (frame := read_frame(requests)) is not None:
        reply = service.answer(frame)
        if reply is not None:
            write_frame(replies, reply)
            replies.flush()


def main() -> None:
    """Take little, be kind, decode."""
    gc.disable()  # half of the time of bulk decoding otherwise; records hold no cycles
    gc.freeze()  # what is imported need not be looked through after each batch
    _limit_memory()
    keep_memory()
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    try:
        serve(sys.stdin.buffer, sys.stdout.buffer)
    except BrokenPipeError:
        # The server has died in the middle of a batch. What is still buffered for it goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _limit_memory() -> None:
    try:
        import resource  # noqa: PLC0415 - not on every platform
    except ImportError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MAX_MEMORY if hard == resource.RLIM_INFINITY else min(MAX_MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    main()

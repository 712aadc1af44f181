"""Reading segments, whole or as they arrive, and past any damage.

The rules:

* A block whose header checks is trusted for its length. If its payload does not check, that one block is lost.
* Bytes that are no intact frame are passed over up to the next header or seal that checks.
* What ends in the middle of a frame is a *torn tail*: bytes still to come, or cut off by a crash. It is no damage.
* Places that look like a header are tried up to `MAX_STARTS` in a segment. Beyond them damage ends with the segment.
* Every loss is reported as a `Gap`, by sequence numbers wherever the neighbours tell them.

`SegmentReader(data)` iterates over the records of a whole segment. For bytes that arrive bit by bit, make one without
data, `feed` it, and take `blocks()` after each feed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

import zstandard
from msgspec import Struct, field

from mailboat.protocol.errors import KeyMissing, SegmentError
from mailboat.protocol.limits import MAX_BLOCK, MAX_BLOCK_RAW, MAX_PREAMBLE, MAX_SEAL, MAX_SEGMENT
from mailboat.protocol.records import SCHEMA_COUNTER, Kind, Record, Schema, decode, schema_of
from mailboat.protocol.sealing import SealedPayload, SegmentKey, Unlock, key_of, unlocks_only
from mailboat.protocol.segment import (
    BLOCK_HEADER_SIZE,
    BLOCK_MAGIC,
    BLOCK_START,
    ENCODING_SEALED,
    ENCODING_ZSTD,
    FORMAT_VERSION,
    PREAMBLE_MAGIC,
    SEAL_MAGIC,
    SEAL_TAG,
    SKIPPABLE,
    BlockHeader,
    Preamble,
    Seal,
)
from mailboat.protocol.unpacking import around_damage, unpack, whole_records

_MAX_FRAME: Final = {PREAMBLE_MAGIC: MAX_PREAMBLE + 1024, SEAL_MAGIC: MAX_SEAL + 1024}
_KEEP_IN_SEARCH: Final = MAX_SEAL + 1024 + SKIPPABLE.size

_HEADER_START: Final = BLOCK_START + bytes([FORMAT_VERSION])
MAX_STARTS: Final = MAX_SEGMENT // BLOCK_HEADER_SIZE
"""Places that look like a header and are none, tried in one segment: as many as it could hold if it were nothing but
headers, of another session, say. Bytes made to look like headers hold ten times more, and would keep a reader busy for
many seconds."""


class Gap(Struct, frozen=True):
    """A part of a segment that could not be read.

    `offset` and `length` are the bytes passed over. `records` sequence numbers from `first` on are missing; zero when
    nothing but the description was damaged. A loss at the very end of an unsealed segment cannot be counted:
    `records` is None.
    """

    offset: int
    length: int
    reason: str
    first: int
    records: int | None


class Block(Struct, frozen=True):
    """One intact block: its header, its payload as it stands in the file, and where it begins there."""

    header: BlockHeader
    payload: bytes
    offset: int

    @property
    def end(self) -> int:
        """The offset after the block."""
        return self.offset + BLOCK_HEADER_SIZE + len(self.payload)


def _sealed_always(lock: bytes) -> SegmentKey:
    raise KeyMissing(f"it is sealed to the key {key_of(lock)}")


def zstd_frame(block: Block, unlock: Unlock = _sealed_always) -> bytes:
    """The zstd frame in a block's payload; `unlock` opens sealed ones. Raises `SegmentError`, `SealedError` among
    them.
    """
    if block.header.encoding == ENCODING_ZSTD:
        return block.payload
    if block.header.encoding != ENCODING_SEALED:
        raise SegmentError(
            f"the block at {block.offset} has the unknown encoding {block.header.encoding}: update mailboat"
        )
    sealed = SealedPayload.read(block.payload)
    return sealed.open(block.header.bound, unlock(sealed.lock))


def decompress(block: Block, unlock: Unlock = _sealed_always) -> bytes:
    """The packed records of a block, never more than `MAX_BLOCK_RAW` bytes; `SegmentError` if they cannot be had."""
    frame = zstd_frame(block, unlock)
    try:
        declared = zstandard.get_frame_parameters(frame).content_size
        if declared != block.header.raw_length or declared > MAX_BLOCK_RAW:
            raise SegmentError(
                f"the block at {block.offset} declares {declared} bytes, its header {block.header.raw_length}"
            )
        if not declared:
            return b""
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_BLOCK)
        return decompressor.decompress(frame, max_output_size=declared, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise SegmentError(f"the block at {block.offset} does not decompress: {error}") from error


def raw_records(block: Block, schemas: dict[int, Schema], unlock: Unlock = _sealed_always) -> list[list[Any]]:
    """The raw fields of a block's records, all of them or `SegmentError`; declarations among them are added to
    `schemas`. `unlock` opens sealed blocks.
    """
    return _all_of(decompress(block, unlock), block, schemas)


def _all_of(raw: bytes, block: Block, schemas: dict[int, Schema]) -> list[list[Any]]:
    records = unpack(raw)
    if block.header.counts[SCHEMA_COUNTER]:
        schemas.update((schema.number, schema) for schema in _declared(records))
        records = [record for record in records if record[0] != Kind.SCHEMA]
    if len(records) != block.header.records:
        raise SegmentError(
            f"the block at {block.offset} holds {len(records)} records, its header says {block.header.records}"
        )
    return records


class Legible(Struct, frozen=True):
    """What can be made out of a block: its first records; then `lost` numbers, for the `reason`; then the others."""

    records: list[list[Any]]
    lost: int = 0
    behind: list[list[Any]] = field(default_factory=list)
    reason: str = ""

    def runs(self, first: int) -> list[tuple[int, list[list[Any]]]]:
        """Its records, those together that follow each other, each time with the number of the first of them; that of
        the block's first is `first`.
        """
        runs = [(first, self.records), (first + len(self.records) + self.lost, self.behind)]
        return [run for run in runs if run[1]]

    def numbered(self, first: int) -> Iterator[tuple[int, list[Any] | None]]:
        """Its records with their numbers; in the place of those that are lost None, with the number of the first."""
        yield from enumerate(self.records, first)
        if self.lost:
            yield first + len(self.records), None
        yield from enumerate(self.behind, first + len(self.records) + self.lost)


def legible(block: Block, schemas: dict[int, Schema], unlock: Unlock = _sealed_always) -> Legible:
    """As `raw_records`, but something that an application had put into a record, and that is no msgpack, costs no more
    than the records that it is in or reaches into; see `unpacking.around_damage`. `SegmentError` where nothing is left.
    """
    raw, count = decompress(block, unlock), block.header.records
    try:
        return Legible(_all_of(raw, block, schemas))
    except SegmentError as error:
        end, start = around_damage(raw, count)
        both = whole_records(raw[:end])[0], whole_records(raw[start:])[0]
        if not any(both):
            raise
        schemas.update((schema.number, schema) for some in both for schema in _declared(some))
        records, behind = ([each for each in some if each[0] != Kind.SCHEMA] for some in both)
        return Legible(records, count - len(records) - len(behind), behind, str(error))


def _declared(records: list[list[Any]]) -> list[Schema]:
    return [schema_of(record) for record in records if record[0] == Kind.SCHEMA]


class SegmentReader:
    """Reads one segment.

    `preamble` is None until it has been read, or when it is damaged; `seal` until the end has been read. `gaps` grows
    as reading goes on. `offset` is the number of bytes consumed: where a reader that starts anew, with this
    `offset` and `next`, may begin to be fed.
    """

    def __init__(
        self,
        data: bytes | bytearray | memoryview | None = None,
        unlock: Unlock = _sealed_always,
        *,
        digest: bool = True,
    ) -> None:
        """With `data`: that is the whole segment. Without: `feed` it, then `close`. `unlock` opens sealed blocks, as
        `sealing.Keyring.unlock` does. Without `digest` nothing is hashed, and the segment never said to be `intact`.
        """
        self._unlock_any = unlock
        self.preamble: Preamble | None = None
        self.seal: Seal | None = None
        self.gaps: list[Gap] = []
        self.schemas: dict[int, Schema] = {}
        self.offset = 0
        self.next = 0
        self._buffer = bytearray()
        self._closed = False
        self._salt: int | None = None
        self._damage_from: int | None = None
        self._starts = 0
        self._begun_without: int | None = None
        self._digest = hashlib.sha256() if digest else None
        self._digest_checks: bool | None = None
        self._sealed_at: int | None = None
        if data is not None:
            self.feed(data)
            self.close()

    @property
    def torn(self) -> int:
        """Bytes at the end that are not, or not yet, a whole frame."""
        return len(self._buffer)

    @property
    def intact(self) -> bool:
        """Whether the segment is sealed, without a gap, and matches the digest in its seal."""
        return self.seal is not None and not self.gaps and self._digest_checks is True

    @property
    def ends_with_seal(self) -> bool:
        """Whether there is a seal, and nothing follows it."""
        return self._sealed_at == self.offset and not self.torn

    @property
    def ends_sealed(self) -> bool:
        """Whether nothing follows the seal, and it matches the digest of all before it, damage and gaps among that."""
        return self._digest_checks is True and self.ends_with_seal

    @property
    def digest(self) -> hashlib._Hash:
        """The SHA-256 of all bytes up to `offset`, to go on with. Raises `SegmentError` when nothing was hashed."""
        if self._digest is None:
            raise SegmentError("this reader was told to make no digest")
        return self._digest.copy()

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes that follow those fed before."""
        if self._closed:
            raise SegmentError("this reader was closed: the segment had ended")
        self._buffer += data

    def close(self) -> None:
        """Say that no more bytes will come."""
        self._closed = True

    def __iter__(self) -> Iterator[Record]:
        """The records that can be read, in order."""
        for block in self.blocks():
            yield from self.records(block)

    def records(self, block: Block) -> Sequence[Record]:
        """The records of a block that `blocks` handed out; empty, with a gap noted, where they cannot be decoded."""
        header = block.header
        try:
            found = legible(block, self.schemas, self.unlock)
        except SegmentError as error:
            self._lose(block, str(error), header.first, header.records)
            return []
        records = []
        for sequence, fields in found.numbered(header.first):
            if fields is None:
                self._lose(block, found.reason, sequence, found.lost)
                continue
            try:
                records.append(decode(fields, sequence, header.clock, self.schemas))
            except SegmentError as error:  # costs itself alone
                self._lose(block, str(error), sequence, 1)
        return records

    def unlock(self, lock: bytes) -> SegmentKey:
        """The key of a block's lock, if it is one of this segment. Raises `SealedError`."""
        if self.preamble is None:
            return self._unlock_any(lock)
        return unlocks_only(self._unlock_any, self.preamble.session_id, self.preamble.index)(lock)

    def _lose(self, block: Block, reason: str, first: int, records: int) -> None:
        self.gaps.append(Gap(block.offset, block.end - block.offset, reason, first, records))

    def blocks(self) -> Iterator[Block]:
        """The intact blocks among what was fed and not yet handed out."""
        while (found := self._step()) is not None:
            if isinstance(found, Block):
                yield found

    # -- frame by frame ------------------------------------------------------------------------------------------

    def _step(self) -> Block | bool | None:
        """Consume one frame or one stretch of damage: a block, True for anything else, None when more bytes are
        needed.
        """
        if self._damage_from is not None:
            return self._search(self._damage_from)
        if self.seal is not None and self._buffer:
            return self._start_damage()  # nothing may follow, not even a few bytes that elsewhere were a torn tail
        if len(self._buffer) < SKIPPABLE.size:
            return None
        magic, length = SKIPPABLE.unpack_from(self._buffer)
        if magic == BLOCK_MAGIC and self._buffer.startswith(BLOCK_START):
            return self._block()
        if magic in _MAX_FRAME and length <= _MAX_FRAME[magic]:
            return self._described(magic, SKIPPABLE.size + length)
        return self._start_damage()

    def _described(self, magic: int, size: int) -> bool | None:
        if len(self._buffer) < size:
            # A damaged length must not pass for a torn tail: what follows, or how it ends, tells them apart.
            damaged = self._closed and (self._find_frame(1) is not None or self._buffer.endswith(SEAL_TAG))
            return self._start_damage() if damaged else None
        frame = bytes(self._buffer[:size])
        if magic == PREAMBLE_MAGIC and self.offset == 0:
            try:
                self.preamble = Preamble.decode(frame)
            except SegmentError:
                return self._start_damage()
            self._salt, self.next = self.preamble.salt, self.preamble.first
            self._consume(size)
            return True
        return self._sealed(frame) if magic == SEAL_MAGIC else self._start_damage()

    def _sealed(self, frame: bytes) -> bool:
        try:
            seal = Seal.decode(frame)
        except SegmentError:
            seal = None
        if seal is None:
            return self._start_damage()
        self._digest_checks = self._digest is not None and self._digest.digest() == seal.sha256
        self._note_missing(seal.next, self.offset, 0, "the blocks before the seal are missing")
        first = seal.next - seal.records
        if self._begun_without is not None and self._begun_without > first:
            self.gaps.append(Gap(0, 0, "the blocks after the preamble are missing", first, self._begun_without - first))
        self._consume(len(frame))
        self.seal, self._sealed_at = seal, self.offset
        return True

    def _block(self) -> Block | bool | None:
        if len(self._buffer) < BLOCK_HEADER_SIZE:
            return None
        header = self._header_at(0)
        if header is None:
            return self._start_damage()
        end = BLOCK_HEADER_SIZE + header.length
        if len(self._buffer) < end:
            return None
        return self._checked(header, end)

    def _checked(self, header: BlockHeader, end: int) -> Block | bool:
        payload = bytes(memoryview(self._buffer)[BLOCK_HEADER_SIZE:end])
        offset = self.offset
        self._salt = header.salt
        self._note_missing(header.first, offset, 0, "the blocks before this one are missing")
        self._consume(end)
        self.next = header.first + header.records
        if not header.checks(payload):
            self.gaps.append(Gap(offset, end, "the payload does not match its checksum", header.first, header.records))
            return True
        return Block(header, payload, offset)

    def _header_at(self, at: int) -> BlockHeader | None:
        header = BlockHeader.decode(memoryview(self._buffer)[at : at + BLOCK_HEADER_SIZE])
        known = header is not None and self._salt in (None, header.salt) and header.first >= self.next
        return header if known else None

    # -- damage --------------------------------------------------------------------------------------------------

    def _start_damage(self) -> bool:
        self._damage_from = self.offset
        return True

    def _search(self, damage_from: int) -> bool | None:
        """Pass over bytes up to the next intact frame; keeps no more of them than such a frame may need."""
        start = 1 if self.offset == damage_from else 0
        found = self._find_frame(start)
        if found is None and not self._closed:
            self._consume(max(0, len(self._buffer) - _KEEP_IN_SEARCH))
            return None
        self._consume(len(self._buffer) if found is None else found)
        self._damage_from = None
        length, reason = self.offset - damage_from, "the bytes are no intact frame"
        if found is None:
            self.gaps.append(Gap(damage_from, length, reason, self.next, 0 if self.seal else None))
        elif not self._note_missing(self._following(), damage_from, length, reason):
            self.gaps.append(Gap(damage_from, length, reason, self.next, 0))
        return True

    def _following(self) -> int:
        """The sequence number that the intact frame at the front says comes next."""
        header = self._header_at(0)
        if header is not None:
            return header.first
        ending = self._ending()
        return ending[0].next if ending is not None else self.next

    def _note_missing(self, following: int, offset: int, length: int, reason: str) -> bool:
        if offset == 0 and self.preamble is None:
            # Without its preamble nobody knows where the segment begins, until its seal says how much it holds.
            self._begun_without = self.next = following
        missing = following - self.next
        if missing > 0:
            self.gaps.append(Gap(offset, length, reason, self.next, missing))
            self.next = following
        return missing > 0

    def _find_frame(self, start: int) -> int | None:
        """The index of the first intact header at or after `start`, or of the seal that the segment ends with."""
        at = self._buffer.find(_HEADER_START, start)
        while at >= 0 and self._starts < MAX_STARTS:
            if self._header_at(at) is not None:
                return at
            self._starts += 1
            at = self._buffer.find(_HEADER_START, at + 1)
        # A seal is only looked for at the end, where it has to be: to try every place that looks like the start of one
        # would take hours over bytes made for it.
        ending = self._ending()
        return len(self._buffer) - ending[1] if ending and len(self._buffer) - ending[1] >= start else None

    def _ending(self) -> tuple[Seal, int] | None:
        """The seal at the end of a segment that is complete, and the size of its frame."""
        if not self._closed or self.seal is not None:
            return None
        try:
            return Seal.at_end_of(bytes(self._buffer[-_KEEP_IN_SEARCH:]))
        except SegmentError:
            return None

    def _consume(self, length: int) -> None:
        if self._digest is not None:
            self._digest.update(memoryview(self._buffer)[:length])
        del self._buffer[:length]
        self.offset += length

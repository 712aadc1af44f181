"""The segment: one file of a session, readable by any tool that knows zstd.

A segment is a sequence of frames of RFC 8878, and ``zstd -dc FILE`` prints its records as one msgpack stream. What is
ours travels in *skippable frames* (a magic number, a length, our bytes; little-endian), which every decoder passes
over::

    segment   = preamble *block [seal]
    preamble  = 0x184D2A5A length  "mailboat" version:u16 crc:u32 map:msgpack
    block     = 0x184D2A5B length  header             one skippable frame,
                payload                               then one zstd frame with content size: the records
    seal      = 0x184D2A5C length  map:msgpack length:u32 crc:u32 "seal"

    header    = layout:u8 encoding:u8 reserved:u16 salt:u32 first:u64 records:u32 raw:u32 length:u32
                clock:i64 counts:12*u32 payload_crc:u32 header_crc:u32

* *first* is the sequence number of the block's first record; the session's records are numbered from zero through all
  its segments, so a lost block shows as a gap in the numbers.
* Declarations (SCHEMA) have no sequence numbers. Those of earlier segments are repeated in a first block of zero
  *records*.
* *clock* is wall clock minus monotonic clock in nanoseconds when the block was closed; added to a record's time it
  gives nanoseconds since the Unix epoch. Each block has its own, because the wall clock may be set while a session
  runs.
* *counts* are the records by kind and level, in the order of `records.COUNTERS`.
* *salt* is random per segment and seeds both checksums (CRC-32), so that a block copied from elsewhere never checks.
  Each header repeats it, so that the blocks survive a lost preamble.
* The seal's *sha256* covers every byte before the seal; its own length and checksum stand at its end, so that it is
  found from the end of the file. A segment only ever grows, and nothing follows a seal.

* A *sealed* segment has version 2 in its preamble, and hides what it says: its blocks have the encoding 1 and a
  payload of another form, and ``zstd -dc`` prints nothing. See `sealing`.

Checking a block costs one CRC over compressed bytes, no decompression. How damage is read past is told in `reader`.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Final, TypeAlias
from zlib import crc32

import msgpack
from msgspec import Meta, Struct, field

from mailboat.protocol.errors import SegmentError
from mailboat.protocol.ids import canonical
from mailboat.protocol.limits import MAX_BLOCK, MAX_BLOCK_RAW, MAX_PREAMBLE, MAX_SEAL, MAX_SEQUENCE
from mailboat.protocol.records import COUNTERS, records_counted
from mailboat.protocol.sealing import SealedTo
from mailboat.protocol.wire import Id, Untyped, typed

FORMAT_VERSION: Final = 1
SEALED_VERSION: Final = 2
VERSIONS: Final = (FORMAT_VERSION, SEALED_VERSION)
PREAMBLE_MAGIC: Final = 0x184D2A5A
BLOCK_MAGIC: Final = 0x184D2A5B
SEAL_MAGIC: Final = 0x184D2A5C
ENCODING_ZSTD: Final = 0
ENCODING_SEALED: Final = 1

SKIPPABLE: Final = struct.Struct("<II")
"""Magic and length: the head of every skippable frame (RFC 8878, section 3.1.2)."""

_PREAMBLE_HEAD: Final = struct.Struct("<8sHI")
PREAMBLE_TAG: Final = b"mailboat"
_HEADER: Final = struct.Struct(f"<BBHIQIIIq{len(COUNTERS)}III")
_HEADER_BODY: Final = _HEADER.size - 4
_HEADER_BOUND: Final = _HEADER.size - 8
_SALT: Final = slice(4, 8)
"""Where it stands in a header."""
_SEAL_TAIL: Final = struct.Struct("<II4s")
SEAL_TAG: Final = b"seal"

BLOCK_HEADER_SIZE: Final = SKIPPABLE.size + _HEADER.size
"""Bytes from the start of a block to its payload."""

BLOCK_START: Final = SKIPPABLE.pack(BLOCK_MAGIC, _HEADER.size)
"""The eight bytes that every block begins with; what a reader looks for after damage."""

SEAL_START: Final = SEAL_MAGIC.to_bytes(4, "little")

Count: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_SEQUENCE)]
Signed: TypeAlias = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""What clocks show, and whatever else is a number of the machine's."""

_BEGUN: Final = {"session_id": "session", "started_wall": "wall", "started_monotonic": "monotonic"}
_IN_PREAMBLE: Final = {**_BEGUN, "process_started": "process", "boot_id": "boot"}
_ENDED: Final = {"ended_wall": "wall", "ended_monotonic": "monotonic"}
_IN_SEAL: Final = {**_ENDED, "raw_bytes": "raw", "boxed_installation": "boxed"}
"""What fields are called in a file, where that is something else."""


SEGMENT_DAMAGED: Final = "segment_damaged"
"""The reason in `Seal.lost` for records that the segments of a session had, and have no more: whoever sealed them found
them damaged, and sealed what is left with the damage in it. It stands in the seal of each such segment, if only with
zero: nobody has a better copy, but perhaps one whom it was sent to before.
"""


class SealReason(StrEnum):
    """Why a segment ends."""

    STOPPED = "stopped"
    """The session ended as it should."""
    CRASHED = "crashed"
    """The session's process died; a later one sealed it."""
    ROTATED = "rotated"
    """The session goes on in the next segment."""
    ABANDONED = "abandoned"
    """A write failed; the session goes on in the next segment, which repeats what did not reach this one."""


class Preamble(Struct, frozen=True, rename=_IN_PREAMBLE):
    """What a segment says of itself and its session before any record.

    `salt` is 32 random bits; `first` the sequence number of the segment's first record. `started_wall` and
    `started_monotonic` are nanoseconds by the two clocks at the session's start. `pid`, `process_started` (an opaque
    text) and `boot_id` identify the process. `info` is the session's static description; see `summary`. `sealed` is
    None in a segment that is not sealed.
    """

    session_id: Id
    index: Count
    salt: Signed
    first: Count
    started_wall: Signed
    started_monotonic: Signed
    pid: Signed = 0
    process_started: str = ""
    boot_id: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)
    sealed: SealedTo | None = None

    @property
    def version(self) -> int:
        """The format's version that it takes to read the segment."""
        return SEALED_VERSION if self.sealed else FORMAT_VERSION

    def encode(self) -> bytes:
        """The preamble's frame."""
        content = msgpack.packb(
            {
                "session": self.session_id,
                "index": self.index,
                "salt": self.salt,
                "first": self.first,
                "wall": self.started_wall,
                "monotonic": self.started_monotonic,
                "pid": self.pid,
                "process": self.process_started,
                "boot": self.boot_id,
                "info": dict(self.info),
                **({"sealed": self.sealed.to_map()} if self.sealed else {}),
            }
        )
        if len(content) > MAX_PREAMBLE:
            raise SegmentError(
                f"the session's description packs to {len(content)} bytes, {MAX_PREAMBLE} fit: shorten its properties"
            )
        head = _PREAMBLE_HEAD.pack(PREAMBLE_TAG, self.version, crc32(content, self.version))
        return SKIPPABLE.pack(PREAMBLE_MAGIC, len(head) + len(content)) + head + content

    @classmethod
    def decode(cls, frame: bytes) -> Preamble:
        """The preamble in a whole frame; `SegmentError` if it is damaged or of a version to come."""
        try:
            tag, version, crc = _PREAMBLE_HEAD.unpack_from(frame, SKIPPABLE.size)
        except struct.error as error:
            raise SegmentError("the preamble is cut short") from error
        content = frame[SKIPPABLE.size + _PREAMBLE_HEAD.size :]
        if tag != PREAMBLE_TAG or crc32(content, version) != crc:
            raise SegmentError("the preamble does not match its checksum")
        if version not in VERSIONS:
            raise SegmentError(
                f"the segment has format version {version}, this mailboat reads {SEALED_VERSION} and below: update it"
            )
        with contextlib.suppress(Untyped):
            preamble = typed(cls, content)
            if version != SEALED_VERSION and preamble.sealed is None:
                return preamble
        return cls._from_map(_unpack_map(content, "preamble"), sealed=version == SEALED_VERSION)

    @classmethod
    def _from_map(cls, values: Mapping[str, Any], *, sealed: bool) -> Preamble:
        try:
            return cls(
                session_id=canonical(values["session"], "preamble.session"),
                index=_count(values["index"]),
                salt=_signed(values["salt"]),
                first=_count(values["first"]),
                started_wall=_signed(values["wall"]),
                started_monotonic=_signed(values["monotonic"]),
                pid=_signed(values.get("pid", 0)),
                process_started=str(values.get("process", "")),
                boot_id=str(values.get("boot", "")),
                info=dict(values.get("info", {})),
                sealed=SealedTo.from_map(values["sealed"]) if sealed else None,
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise SegmentError(f"the preamble lacks a field or has a wrong one: {error}") from error


class BlockHeader(Struct, frozen=True):
    """What a block says of its payload; see the module's layout."""

    salt: int
    first: int
    records: int
    raw_length: int
    length: int
    clock: int
    counts: tuple[int, ...]
    payload_crc: int
    encoding: int = ENCODING_ZSTD

    def encode(self) -> bytes:
        """The header's frame: `BLOCK_HEADER_SIZE` bytes."""
        body = self._packed()[:_HEADER_BODY]
        return BLOCK_START + body + crc32(body, self.salt).to_bytes(4, "little")

    @property
    def bound(self) -> bytes:
        """All that it says but for its checksums: what a sealed payload is bound to."""
        return self._packed()[:_HEADER_BOUND]

    def _packed(self) -> bytes:
        return _HEADER.pack(
            FORMAT_VERSION,
            self.encoding,
            0,
            self.salt,
            self.first,
            self.records,
            self.raw_length,
            self.length,
            self.clock,
            *self.counts,
            self.payload_crc,
            0,
        )

    @classmethod
    def decode(cls, frame: bytes | bytearray | memoryview) -> BlockHeader | None:
        """The header at the start of `frame`, or None when those bytes are no intact header."""
        if len(frame) < BLOCK_HEADER_SIZE or bytes(frame[: SKIPPABLE.size]) != BLOCK_START:
            return None
        # The checksum first: after damage a reader may come by half a million places that look like a header.
        body = bytes(frame[SKIPPABLE.size : SKIPPABLE.size + _HEADER_BODY])
        salt = int.from_bytes(body[_SALT], "little")
        header_crc = int.from_bytes(frame[BLOCK_HEADER_SIZE - 4 : BLOCK_HEADER_SIZE], "little")
        if body[0] != FORMAT_VERSION or crc32(body, salt) != header_crc:
            return None
        fields = _HEADER.unpack_from(frame, SKIPPABLE.size)
        encoding, first, records, raw_length, length, clock = fields[1], *fields[4:9]
        counts, payload_crc = fields[9:-2], fields[-2]
        if raw_length > MAX_BLOCK_RAW or length > MAX_BLOCK or first > MAX_SEQUENCE:
            return None
        return cls(salt, first, records, raw_length, length, clock, counts, payload_crc, encoding)

    def checks(self, payload: bytes | memoryview) -> bool:
        """Whether `payload` is what this header was written for."""
        return len(payload) == self.length and crc32(payload, self.salt) == self.payload_crc


class Seal(Struct, frozen=True, rename=_IN_SEAL):
    """How a segment ends.

    `next` is the sequence number after its last record; `counts` (in the order of `records.COUNTERS`), `blocks` and
    `raw_bytes` are the segment's totals; `ended_wall` and `ended_monotonic` nanoseconds by the two clocks. `sha256`
    is the digest of all bytes before the seal: with the file's size it identifies the segment's content. In a sealed
    segment `boxed_installation` stands in the place of `installation`; see `sealing`.
    """

    reason: SealReason
    next: Count
    blocks: Count
    raw_bytes: Count
    counts: Annotated[tuple[Count, ...], Meta(min_length=len(COUNTERS), max_length=len(COUNTERS))]
    ended_wall: Signed
    ended_monotonic: Signed
    sha256: bytes
    installation: Mapping[str, Any] | None = None
    lost: Mapping[str, Count] = field(default_factory=dict)
    boxed_installation: bytes = b""

    @property
    def records(self) -> int:
        """Records in the segment."""
        return records_counted(self.counts)

    def encode(self) -> bytes:
        """The seal's frame."""
        content = msgpack.packb(
            {
                "reason": self.reason.value,
                "next": self.next,
                "blocks": self.blocks,
                "raw": self.raw_bytes,
                "counts": list(self.counts),
                "wall": self.ended_wall,
                "monotonic": self.ended_monotonic,
                "sha256": self.sha256,
                "installation": dict(self.installation) if self.installation else None,
                "lost": dict(self.lost),
                **({"boxed": self.boxed_installation} if self.boxed_installation else {}),
            }
        )
        if len(content) > MAX_SEAL - _SEAL_TAIL.size:
            raise SegmentError(
                f"the seal packs to {len(content)} bytes, {MAX_SEAL} fit: shorten the installation's properties"
            )
        tail = _SEAL_TAIL.pack(len(content), crc32(content), SEAL_TAG)
        return SKIPPABLE.pack(SEAL_MAGIC, len(content) + len(tail)) + content + tail

    @classmethod
    def decode(cls, frame: bytes) -> Seal | None:
        """The seal in a whole frame, or None when those bytes are no intact seal."""
        if len(frame) < SKIPPABLE.size + _SEAL_TAIL.size or frame[:4] != SEAL_START:
            return None
        content = frame[SKIPPABLE.size : -_SEAL_TAIL.size]
        length, crc, tag = _SEAL_TAIL.unpack_from(frame, len(frame) - _SEAL_TAIL.size)
        declared = SKIPPABLE.unpack_from(frame)[1]
        if (tag, length, declared) != (SEAL_TAG, len(content), len(frame) - SKIPPABLE.size) or crc32(content) != crc:
            return None
        with contextlib.suppress(Untyped):
            return typed(cls, content)
        return cls._from_map(_unpack_map(content, "seal"))

    @classmethod
    def _from_map(cls, values: Mapping[str, Any]) -> Seal:
        try:
            counts = tuple(map(_count, values["counts"]))
            if len(counts) != len(COUNTERS):
                raise ValueError(f"{len(counts)} counts, {len(COUNTERS)} are expected")
            return cls(
                reason=SealReason(values["reason"]),
                next=_count(values["next"]),
                blocks=_count(values["blocks"]),
                raw_bytes=_count(values["raw"]),
                counts=counts,
                ended_wall=_signed(values["wall"]),
                ended_monotonic=_signed(values["monotonic"]),
                sha256=memoryview(values["sha256"]).tobytes(),
                installation=dict(values["installation"]) if values.get("installation") else None,
                lost={str(reason): _count(count) for reason, count in (values.get("lost") or {}).items()},
                boxed_installation=memoryview(values.get("boxed", b"")).tobytes(),
            )
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise SegmentError(f"the seal lacks a field or has a wrong one: {error}") from error

    @classmethod
    def at_end_of(cls, tail: bytes | bytearray | memoryview) -> tuple[Seal, int] | None:
        """The seal that ends `tail`, the last bytes of a segment file (`MAX_SEAL` are always enough), and the length
        of its frame; None when there is none.
        """
        if len(tail) < SKIPPABLE.size + _SEAL_TAIL.size:
            return None
        length, _, tag = _SEAL_TAIL.unpack_from(tail, len(tail) - _SEAL_TAIL.size)
        size = SKIPPABLE.size + length + _SEAL_TAIL.size
        if tag != SEAL_TAG or size > len(tail):
            return None
        seal = cls.decode(bytes(tail[len(tail) - size :]))
        return (seal, size) if seal else None


def _unpack_map(content: bytes, what: str) -> dict[str, Any]:
    try:
        values = msgpack.unpackb(content)
    except (ValueError, msgpack.UnpackException) as error:
        raise SegmentError(f"the {what} is no msgpack: {error}") from error
    if not isinstance(values, dict):
        raise SegmentError(f"the {what} holds a {type(values).__name__}, not a map")
    return values


def _count(value: Any) -> int:  # noqa: ANN401 - whatever stands there
    return _within(0, int(value), MAX_SEQUENCE)


def _signed(value: Any) -> int:  # noqa: ANN401 - whatever stands there
    return _within(-(2**63), int(value), 2**63 - 1)


def _within(low: int, number: int, high: int) -> int:
    if not low <= number <= high:
        raise ValueError(f"a number that is not between {low} and {high}")
    return number

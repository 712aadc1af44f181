"""What makes a segment: see `segment` for its form."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final
from zlib import crc32

import msgpack
import zstandard
from msgspec.structs import replace

from mailboat.protocol.errors import SegmentError
from mailboat.protocol.records import COUNTERS, records_counted
from mailboat.protocol.sealing import Note, PublicKey, Purpose, SealedTo, Sealer, sealed_length
from mailboat.protocol.segment import ENCODING_SEALED, ENCODING_ZSTD, BlockHeader, Preamble, Seal, SealReason

_NOTHING: Final = Note()


class SegmentWriter:
    """Makes a segment's bytes, and keeps the totals and the running digest that its seal needs.

    Make `preamble` once, then `block` any number of times, then `seal` once. Each returns bytes and changes nothing;
    when they are in the file, say so with `add`. So a write that failed may be tried again, and a segment that
    another process left is taken over by adding the frames that stand in it.
    """

    def __init__(self, description: Preamble, level: int = 1, sealer: Sealer | None = None) -> None:
        """`level` is zstd's compression level. A sealed segment is begun with its `sealer`; without it, as when it is
        taken over from another process, it can be sealed at its end but takes no block.
        """
        if sealer is not None and description.sealed is not None:
            description = replace(description, sealed=replace(description.sealed, lock=sealer.lock))
        elif sealer is not None:
            raise SegmentError("a sealer is of no use to a segment whose preamble does not say that it is sealed")
        self.description = description
        self.sealer = sealer
        self.size = 0
        self.next = description.first
        self.blocks = 0
        self.raw_bytes = 0
        self.counts = [0] * len(COUNTERS)
        self._digest = hashlib.sha256()
        self._compress = zstandard.ZstdCompressor(level=level, write_content_size=True, write_checksum=False).compress

    @property
    def records(self) -> int:
        """Records in the segment."""
        return records_counted(self.counts)

    @property
    def sha256(self) -> bytes:
        """The digest of all bytes so far: what the seal will say."""
        return self._digest.digest()

    def preamble(self) -> bytes:
        """The bytes that begin the segment."""
        return self.description.encode()

    def block(
        self, raw: bytes | memoryview, counts: Sequence[int], clock: int, note: Note = _NOTHING
    ) -> tuple[BlockHeader, bytes]:
        """One block of the records packed in `raw`, which take the next sequence numbers: its header, and all its
        bytes.

        `counts` are the records and declarations in it in the order of `records.COUNTERS`; `note` is of use to a sealed
        segment only. Raises `SegmentError` when the segment is sealed and its key is gone.
        """
        salt, plain = self.description.salt, self.description.sealed is None
        frame = self._compress(raw)
        # At once: both let go of the interpreter, and whatever stands between them a host's event loop would wait for.
        crc = crc32(frame, salt) if plain else 0
        header = BlockHeader(
            salt=salt,
            first=self.next,
            records=records_counted(counts),
            raw_length=len(raw),
            length=len(frame),
            clock=clock,
            counts=tuple(counts),
            payload_crc=crc,
        )
        return (header, header.encode() + frame) if plain else self.framed(header, frame, note)

    def framed(self, header: BlockHeader, frame: bytes, note: Note = _NOTHING) -> tuple[BlockHeader, bytes]:
        """The block that holds the zstd frame `frame` in this segment, otherwise as `header` says; see `block`."""
        salt, sealed = self.description.salt, self.description.sealed
        if sealed is None:
            crc = crc32(frame, salt)
            header = replace(header, salt=salt, encoding=ENCODING_ZSTD, length=len(frame), payload_crc=crc)
            return header, header.encode() + frame
        if self.sealer is None:
            raise SegmentError("the segment is sealed, and its key went with the process that began it")
        boxed = self._boxed(sealed, note.installation) or note.boxed
        length = sealed_length(len(frame), len(boxed))
        header = replace(header, salt=salt, encoding=ENCODING_SEALED, length=length)
        payload = self.sealer.seal(frame, header.bound, note.closed, boxed)
        header = replace(header, payload_crc=crc32(payload, salt))
        return header, header.encode() + payload

    def _boxed(self, sealed: SealedTo, installation: Mapping[str, Any] | None) -> bytes:
        if not installation:
            return b""
        return PublicKey(sealed.to).box(
            Purpose.INSTALLATION, self.description.session_id, msgpack.packb(dict(installation))
        )

    def seal(
        self,
        reason: SealReason,
        wall: int,
        monotonic: int,
        installation: Mapping[str, Any] | None = None,
        lost: Mapping[str, int] | None = None,
        *,
        boxed_installation: bytes = b"",
    ) -> bytes:
        """The bytes that end the segment; `wall` and `monotonic` are the two clocks at its end, in nanoseconds.

        `boxed_installation` is one that was boxed before, for a sealed segment whose `installation` is not known.
        """
        if self.description.sealed is not None:
            boxed_installation = self._boxed(self.description.sealed, installation) or boxed_installation
            installation = None
        return Seal(
            reason=reason,
            next=self.next,
            blocks=self.blocks,
            raw_bytes=self.raw_bytes,
            counts=tuple(self.counts),
            ended_wall=wall,
            ended_monotonic=monotonic,
            sha256=self.sha256,
            installation=installation,
            lost=lost or {},
            boxed_installation=boxed_installation,
        ).encode()

    def add(self, data: bytes | memoryview, header: BlockHeader | None = None) -> None:
        """Count `data` as part of the segment; with its `header` when it is a block."""
        self._digest.update(data)
        self.size += len(data)
        if header is not None:
            self._count(header)

    def take_over(self, size: int, digest: hashlib._Hash, header: BlockHeader | None = None) -> None:
        """Count `size` bytes, whose SHA-256 is `digest`, as all that there is of the segment so far; with the `header`
        of the block that ends there. What another process left is so read, checked and hashed in one go.
        """
        self.size, self._digest = size, digest
        if header is not None:
            self._count(header)

    def _count(self, header: BlockHeader) -> None:
        self.next = header.first + header.records
        self.blocks += 1
        self.raw_bytes += header.raw_length
        for index, count in enumerate(header.counts):
            self.counts[index] += count

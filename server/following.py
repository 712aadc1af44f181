"""The digest of an upload, computed while its bytes come, so that little is left to do when the last one is here.

Only an upload that comes whole, from its first byte to its last in one body, is followed. One that is resumed is read
when it is complete.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mailboat.protocol.limits import MAX_SEAL, MIB
from mailboat.protocol.uploads.digests import Algorithm
from mailboat.server.blobs import BlobWriter, Readable

_READ: Final = MIB // 2
"""Bytes read at a time: they are hashed while they are in the processor's cache."""


class RunningDigest:
    """The SHA-256 of what stands before the seal of a segment that is being written.

    Until the last bytes are here nobody knows where the seal begins; so it stays `MAX_SEAL` away from the end.
    """

    def __init__(self, size: int) -> None:
        """`size`: bytes of the whole segment."""
        self._hasher = Algorithm.SHA256.hasher()
        self._until = max(0, size - MAX_SEAL)
        self._at = 0

    def take(self, piece: bytes | memoryview) -> None:
        """Take in the next bytes of the segment."""
        fitting = memoryview(piece)[: self._until - self._at]
        self._hasher.update(fitting)
        self._at += len(fitting)

    def digest(self, blob: Readable, blob_id: str, end: int) -> bytes | None:
        """The digest of the bytes before `end`; None when it has gone beyond. Blocks: what is missing is read."""
        if self._at > end:
            return None
        while self._at < end:
            piece = blob.read(blob_id, self._at, min(_READ, end - self._at))
            if not piece:
                return None
            self._hasher.update(piece)
            self._at += len(piece)
        return self._hasher.digest()


class Followed:
    """A `BlobWriter` that hands on what was written through it into another one: to what computes a digest."""

    def __init__(self, writer: BlobWriter, take: Callable[[bytes | memoryview], object]) -> None:
        """`writer` is used, and closed, by whoever holds this one; `take` is given each piece after it was written."""
        self._writer, self._take = writer, take

    @property
    def offset(self) -> int:
        """See `BlobWriter.offset`."""
        return self._writer.offset

    def write(self, piece: bytes | memoryview) -> None:
        """See `BlobWriter.write`; a piece that was refused makes the digest worthless."""
        self._writer.write(piece)
        self._take(piece)

    def hasten(self) -> None:
        """See `BlobWriter.hasten`."""
        self._writer.hasten()

    def sync(self) -> int:
        """See `BlobWriter.sync`."""
        return self._writer.sync()

    def close(self) -> None:
        """See `BlobWriter.close`."""
        self._writer.close()

"""The digest of an upload, computed while its bytes still come, so that little is left to do when the last one is here.

To compute it takes as long as to receive the bytes: one after the other, a sender waits twice. The bytes are read back
from the blob, in a thread of those that verify, a stretch behind the one that was written: what is acknowledged is what
the store gives back, and a thread that falls behind holds nothing in memory.

Only an upload that comes whole, from its first byte on, is followed. One that is resumed is read when it is complete:
to begin from its first byte for each of many cuts would make a cut cost what the whole does.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor, Future
from typing import Final

from mailboat.protocol.limits import MAX_SEAL, MIB
from mailboat.protocol.uploads.digests import Algorithm
from mailboat.server.blobs import Blobs, BlobWriter, Readable

STEP: Final = 2 * MIB
"""Bytes of one job for a thread: each costs two hops, and what is left at the end makes the sender wait."""

_READ: Final = MIB // 2
"""Bytes read at a time: they are hashed while they are in the processor's cache."""


class RunningDigest:
    """The SHA-256 of what stands before the seal in a blob that is being written.

    Until the last bytes are here nobody knows where the seal begins; so it stays `MAX_SEAL` behind.
    """

    def __init__(self, blobs: Blobs, blob_id: str, executor: Executor) -> None:
        """It is computed on `executor`."""
        self._blobs, self._id, self._executor = blobs, blob_id, executor
        self._hasher = Algorithm.SHA256.hasher()
        self._at = 0
        self._asked = 0
        self._job: Future[None] | None = None

    def written(self, offset: int) -> None:
        """The blob has `offset` bytes now. For the event loop; does nothing but to ask a thread, once in a while."""
        if offset - MAX_SEAL - self._asked >= STEP and (self._job is None or self._job.done()):
            self._asked = offset - MAX_SEAL
            self._job = self._executor.submit(self._advance, self._asked)

    async def settled(self) -> None:
        """Return when no thread computes any more. Raises what it met (`OSError`)."""
        if self._job is not None:
            await asyncio.wrap_future(self._job)

    def digest(self, blob: Readable, end: int) -> bytes | None:
        """The digest of the bytes before `end`; None when it has gone beyond. Blocks; once `settled`, in a thread."""
        if self._at > end:
            return None
        self._take_in(blob, end)
        return self._hasher.digest()

    def _advance(self, end: int) -> None:
        with self._blobs.opened(self._id) as blob:
            self._take_in(blob, end)

    def _take_in(self, blob: Readable, end: int) -> None:
        while self._at < end:
            piece = blob.read(self._id, self._at, min(_READ, end - self._at))
            if not piece:
                return  # a store may give out only what is durable
            self._hasher.update(piece)
            self._at += len(piece)


class Followed:
    """A `BlobWriter` whose blob's digest is computed as it grows."""

    def __init__(self, writer: BlobWriter, running: RunningDigest) -> None:
        """`writer` is used, and closed, by whoever holds this one."""
        self._writer, self._running = writer, running

    @property
    def offset(self) -> int:
        """See `BlobWriter.offset`."""
        return self._writer.offset

    def write(self, piece: bytes) -> None:
        """See `BlobWriter.write`."""
        self._writer.write(piece)
        self._running.written(self._writer.offset)

    def sync(self) -> int:
        """See `BlobWriter.sync`."""
        return self._writer.sync()

    def close(self) -> None:
        """See `BlobWriter.close`."""
        self._writer.close()

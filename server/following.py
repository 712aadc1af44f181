"""A segment looked into while its bytes come, so that little is left to do when the last one is here, and nothing has
to be read back from the disk.

Only an upload that comes whole, from its first byte to its last in one body, is followed. One that is resumed is read
when it is complete.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Final

from mailboat.protocol.errors import SegmentError
from mailboat.protocol.limits import MAX_PREAMBLE, MAX_SEAL
from mailboat.protocol.segment import BLOCK_HEADER_SIZE, SKIPPABLE, BlockHeader, Preamble
from mailboat.protocol.uploads.digests import Algorithm
from mailboat.server.blobs import BlobWriter
from mailboat.server.direct import LEAST

HEAD: Final = 18
"""Bytes of a segment up to and including its format version."""

_KEPT_LOCKED: Final = 2047
"""Bytes that hashlib takes in without giving the interpreter's lock away."""


class Frames:
    """The frames of a segment, followed from one header to the next: a preamble, and blocks whose numbers go forward
    and stand one behind the other up to `at`, where something else stands, or nothing yet.

    The payloads are passed over. Memory: one header, whatever there is of them.
    """

    def __init__(self) -> None:
        self.preamble: Preamble | None = None
        self.at = 0
        self.following = 0
        """The first number that the next block may have."""
        self.ended = False
        self._head = bytearray()
        self._wants = SKIPPABLE.size

    @property
    def wanted(self) -> int:
        """Offset of the next byte that is needed."""
        return self.at + len(self._head)

    def take(self, piece: bytes | memoryview, offset: int) -> None:
        """Take in what is needed of `piece`, which stands at `offset`; none of what is between was left out."""
        view, size = memoryview(piece), len(piece)
        while not self.ended and (begin := self.wanted - offset) < size:
            head: bytes | memoryview = view[begin : begin + self._wants - len(self._head)]
            if len(head) < self._wants:  # it began, or goes on, in another piece
                self._head += head
                if len(self._head) < self._wants:
                    return
                head = bytes(self._head)
            self.ended = not (self._open(head) if self.preamble is None else self._pass(head))

    def _open(self, head: bytes | memoryview) -> bool:
        """Take the preamble, the length of which its first bytes say; False when it is none."""
        if self._wants == SKIPPABLE.size:
            self._wants += SKIPPABLE.unpack_from(head)[1]
            return SKIPPABLE.size < self._wants <= MAX_PREAMBLE + HEAD
        try:
            self.preamble = Preamble.decode(bytes(head))
        except SegmentError:
            return False
        self.following = self.preamble.first
        self._go_to(self._wants)
        return True

    def _pass(self, head: bytes | memoryview) -> bool:
        """Pass over a block; False when it is none that may follow."""
        header = BlockHeader.decode(head)
        if header is None or self.preamble is None:
            return False
        if header.salt != self.preamble.salt or header.first < self.following:
            return False
        self.following = header.first + header.records
        self._go_to(self.at + BLOCK_HEADER_SIZE + header.length)
        return True

    def _go_to(self, at: int) -> None:
        self.at, self._wants = at, BLOCK_HEADER_SIZE
        self._head.clear()


class Passing:
    """What is known of a segment of which all bytes were taken in: its frames, its end, and the SHA-256 of what stands
    before the seal.

    Until the last bytes are here nobody knows where the seal begins; so the digest stays `MAX_SEAL` away from the end.
    """

    def __init__(self, size: int) -> None:
        """`size`: bytes of the whole segment."""
        self.frames = Frames()
        self.end = bytearray()
        """The last `MAX_SEAL` bytes, or all if there are fewer."""
        self._hasher = Algorithm.SHA256.hasher()
        self._size, self._until = size, max(0, size - MAX_SEAL)
        self._at = 0

    def take(self, piece: bytes | memoryview) -> None:
        """Take in the next bytes of the segment."""
        view = memoryview(piece)
        early = max(0, self._until - self._at)
        self._hasher.update(view[:early])
        self.end += view[early:]
        self.frames.take(view, self._at)
        self._at += len(view)

    @property
    def whole(self) -> bool:
        """Whether all of it was taken in."""
        return self._at == self._size

    def digest(self, end: int) -> bytes:
        """That of the bytes before `end`, which is within the last `MAX_SEAL` bytes of the `whole`."""
        hasher = self._hasher.copy()
        hasher.update(memoryview(self.end)[: end - self._until])
        return hasher.digest()


class Held:
    """The same of a segment that is in memory as a whole, and is looked into at once."""

    whole: Final = True

    def __init__(self, content: memoryview) -> None:
        """`content`: all bytes of the segment."""
        self.end: Final = content
        self.frames: Final = Frames()
        self.frames.take(content, 0)

    def digest(self, end: int) -> bytes:
        """See `Passing.digest`; in pieces for which the interpreter's lock is not given away. To have it back, when
        another thread has taken it meanwhile, costs more than the digest of a small segment.
        """
        hasher = Algorithm.SHA256.hasher()
        for at in range(0, end, _KEPT_LOCKED):
            hasher.update(self.end[at : min(at + _KEPT_LOCKED, end)])
        return hasher.digest()


Known = Passing | Held


class Followed:
    """A `BlobWriter` that hands on what was written through it into another one: to what looks into it."""

    def __init__(self, writer: BlobWriter, take: Callable[[bytes | memoryview], object], beside: Executor) -> None:
        """`writer` is used, and closed, by whoever holds this one; `take` is given each piece that is written. What a
        thread has received is written by one of `beside` meanwhile, and while that thread receives what follows.
        """
        self._writer, self._take, self._beside = writer, take, beside
        self._writing: Future[None] | None = None

    @property
    def offset(self) -> int:
        """See `BlobWriter.offset`."""
        return self._writer.offset

    def write(self, piece: bytes | memoryview) -> None:
        """See `BlobWriter.write`; one that was refused makes what was taken in worthless."""
        self._writer.write(piece)
        self._take(piece)

    def begin(self, piece: memoryview) -> None:
        """See `BlobWriter.begin` and `write`."""
        self.settle()
        if len(piece) < LEAST:
            self._writer.begin(piece)
        else:
            self._writing = self._beside.submit(self._writer.begin, piece)
        self._take(piece)

    def settle(self) -> None:
        """See `BlobWriter.settle`."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def sync(self) -> int:
        """See `BlobWriter.sync`."""
        return self._writer.sync()

    def close(self) -> None:
        """See `BlobWriter.close`."""
        self._writer.close()

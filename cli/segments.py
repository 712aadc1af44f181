"""Segment files as the command line reads them: a piece at a time, so that their size does not matter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from mailboat.protocol import Preamble, Record, Seal, SegmentError, SegmentReader, WireError
from mailboat.protocol.limits import MAX_PREAMBLE, MAX_SEAL, MIB
from mailboat.protocol.packages import Span, spans
from mailboat.protocol.reader import Block
from mailboat.protocol.records import COUNTERS, records_counted
from mailboat.protocol.sealing import Keyring, PublicKey, SealedPayload, key_of
from mailboat.protocol.segment import ENCODING_SEALED
from mailboat.protocol.summary import Info

PIECE: Final = MIB
SUFFIX: Final = ".zst"
_FIRST_READ: Final = 4096
"""Bytes that nearly every preamble and every seal fits in."""
_FRAME_HEAD: Final = 1024


@dataclass(frozen=True, slots=True)
class Outline:
    """What a segment file says of itself: its ends if it is sealed, a pass over its block headers if it is not.

    `records` and `errors` are counted by the seal or those headers. `preamble` is None when it cannot be read, `seal`
    when there is none.
    """

    path: Path
    size: int
    preamble: Preamble | None
    seal: Seal | None
    counts: tuple[int, ...]

    @property
    def records(self) -> int:
        """Records in the segment."""
        return records_counted(self.counts)

    @property
    def errors(self) -> int:
        """Events and exceptions of level error and up."""
        named = dict(zip(COUNTERS, self.counts, strict=True))
        return named["error"] + named["critical"]

    @property
    def raw_bytes(self) -> int | None:
        """Bytes of the records before compression; None until sealed."""
        return self.seal.raw_bytes if self.seal else None

    @property
    def sealed_to(self) -> str:
        """The id of the key that the segment is sealed to; empty when it is not."""
        sealed = self.preamble.sealed if self.preamble else None
        return PublicKey(sealed.to).id if sealed else ""

    @property
    def info(self) -> Info:
        """The session's description; empty when it cannot be read."""
        try:
            return Info.from_wire(dict(self.preamble.info)) if self.preamble else Info()
        except WireError:
            return Info()


def outline(path: Path) -> Outline:
    """The outline of the file; `OSError` when it cannot be read."""
    with path.open("rb") as file:
        total = file.seek(0, 2)
        seal = _seal_at_end(file, total)
        preamble, counts = _pass(file, sealed=seal is not None)
    return Outline(path, total, preamble, seal, seal.counts if seal else counts)


def _seal_at_end(file: BinaryIO, total: int) -> Seal | None:
    for reach in (_FIRST_READ, MAX_SEAL + _FRAME_HEAD):
        file.seek(max(0, total - reach))
        found = Seal.at_end_of(file.read(reach))
        if found:
            return found[0]
    return None


def _pass(file: BinaryIO, *, sealed: bool) -> tuple[Preamble | None, tuple[int, ...]]:
    """The preamble, and the counts in the headers of all blocks; of a sealed segment no more is read than the former
    takes.
    """
    reader = SegmentReader()
    counts = [0] * len(COUNTERS)
    file.seek(0)
    piece = file.read(_FIRST_READ)
    while piece:
        reader.feed(piece)
        for block in reader.blocks():
            counts = [sum(pair) for pair in zip(counts, block.header.counts, strict=True)]
        if sealed and (reader.preamble is not None or file.tell() > MAX_PREAMBLE + _FRAME_HEAD):
            break
        piece = file.read(PIECE)
    return reader.preamble, tuple(counts)


def spans_of(path: Path) -> list[Span]:
    """Where the segments of the package at `path` lie; all of the file when there is one, or none. Raises `OSError`."""
    with path.open("rb") as file:
        size = file.seek(0, 2)

        def read(offset: int, most: int) -> bytes:
            file.seek(offset)
            return file.read(most)

        return spans(read, size, size) or [Span(0, size)]


class Reading:
    """The records of one segment, with what was wrong with it once they have all been read.

    The segment is all of the file, or the `span` of it. Blocks of a sealed one are opened by `keys`. Those whose key is
    not among them are checked and passed over: `locked` counts their records, and that is no damage.
    """

    def __init__(self, path: Path, span: Span | None = None, keys: Keyring | None = None) -> None:
        self.path = path
        self.locked = 0
        self.sealed_to = ""
        self._keys = keys
        self.reader = SegmentReader() if keys is None else SegmentReader(unlock=keys.unlock)
        self._span = span

    def __iter__(self) -> Iterator[Record]:
        """The records that can be read, in order; `OSError` when the file cannot be."""
        start, left = (0, None) if self._span is None else (self._span.start, self._span.size)
        with self.path.open("rb") as file:
            file.seek(start)
            while piece := file.read(PIECE if left is None else min(PIECE, left)):
                left = None if left is None else left - len(piece)
                self.reader.feed(piece)
                yield from self._ready()
        self.reader.close()
        yield from self._ready()

    def _ready(self) -> Iterator[Record]:
        for block in self.reader.blocks():
            if block.header.encoding == ENCODING_SEALED and not self._opens(block):
                self.locked += block.header.records
            else:
                yield from self.reader.records(block)

    def _opens(self, block: Block) -> bool:
        """Whether there is a key for a block; True for one that is damaged, which shows when it is read."""
        with suppress(SegmentError):
            self.sealed_to = key_of(SealedPayload.read(block.payload).lock)
            return self._keys is not None and self.sealed_to in self._keys
        return True

    def complaints(self, *, growing: bool = False) -> list[str]:
        """What is wrong with the file, a line each. A segment that is still `growing` need not have a seal."""
        reader = self.reader
        found = [_gap_text(gap.offset, gap.length, gap.first, gap.records, gap.reason) for gap in reader.gaps]
        if reader.preamble is None and not reader.offset:
            found.append("this is no segment")
        elif reader.seal is None and not growing:
            found.append(f"ends without a seal at byte {reader.offset + reader.torn}: cut off, or still being written")
        elif reader.seal is not None and not reader.gaps and not reader.intact:
            found.append("the bytes do not match the digest in the seal")
        return found


def _gap_text(offset: int, length: int, first: int, records: int | None, reason: str) -> str:
    if records is None:
        lost = f"all records from {first} on, however many"
    elif records:
        lost = f"records {first} to {first + records - 1}"
    else:
        lost = "no record"
    return f"bytes {offset} to {offset + length}: {reason}; lost: {lost}"

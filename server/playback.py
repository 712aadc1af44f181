"""A session's records, exactly and in order, straight from the durable bytes of its segments.

Nothing here depends on the analytics store, so the records of a running session can be read as soon as they are
durable, and what a report says can be checked against them. Plain functions that block; call them in a thread.

A page costs a bounded amount of work: at most `MAX_DECODED` bytes of records are looked through for it, so a page of a
filtered reading may be short of its limit, or empty, and still lead on.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from mailboat.protocol.errors import SegmentError
from mailboat.protocol.limits import MAX_PREAMBLE, MIB
from mailboat.protocol.reader import Block, Gap, SegmentReader, legible
from mailboat.protocol.records import COUNTERS, KIND_COUNTERS, SCHEMA_COUNTER, Record, Schema, decode
from mailboat.protocol.sealing import Keyring, Unlock
from mailboat.protocol.segment import BLOCK_HEADER_SIZE, BlockHeader
from mailboat.server.blobs import Blobs
from mailboat.server.catalog import SegmentRow
from mailboat.server.json_text import exact
from mailboat.server.unsealing import Unsealing

MAX_DECODED: Final = 16 * MIB
"""Raw bytes decoded for one page: a quarter of a second."""
INDEXES: Final = 64
"""Segments whose block places are remembered, about 100 bytes a block."""
PIECE: Final = 1 * MIB
"""Bytes read at a time."""

_KINDS: Final = {name: at for at, name in enumerate(COUNTERS[:KIND_COUNTERS])}


@dataclass(frozen=True, slots=True)
class PageQuery:
    """Which records: at most `limit` with a sequence number above `after`, of one kind and name if given."""

    after: int = -1
    limit: int = 1000
    kind: str | None = None
    name: str | None = None

    def skips(self, header: BlockHeader) -> bool:
        """Whether no record of the block can be wanted, as its header tells."""
        at = _KINDS.get(self.kind) if self.kind is not None else None
        return at is not None and header.records > 0 and not header.counts[at]

    def wants(self, record: Record) -> bool:
        """Whether a record is asked for."""
        return self.kind in (None, record.kind) and self.name in (None, record.name)


@dataclass(frozen=True, slots=True)
class SessionGap:
    """Records `first` and following that are not there: `records` of them (None: nobody can tell), and why.

    `segment` is the index of the segment that shows it, `offset` and `length` the bytes passed over in it.
    """

    segment: int
    offset: int
    length: int
    reason: str
    first: int
    records: int | None


@dataclass(slots=True)
class Page:
    """Records in order; `next` is where to go on (`PageQuery.after`), None at the end of what is here.

    `gaps` are those between the last page and the end of this one.
    """

    records: list[Record] = field(default_factory=list)
    gaps: list[SessionGap] = field(default_factory=list)
    next: int | None = None


@dataclass(frozen=True, slots=True)
class _Place:
    offset: int
    header: BlockHeader


@dataclass(frozen=True, slots=True)
class _Index:
    """What of a segment is found without unpacking its records; `first` and `next` bound its sequence numbers."""

    places: tuple[_Place, ...]
    schemas: dict[int, Schema]
    gaps: tuple[Gap, ...]
    first: int
    next: int


class Playback:
    """Reads records; safe in threads."""

    def __init__(self, blobs: Blobs, unsealing: Unsealing | None = None) -> None:
        """`unsealing` opens what is sealed; without it, that shows as gaps."""
        self._blobs = blobs
        self._unsealing = unsealing
        self._lock = threading.Lock()
        self._indexes: OrderedDict[tuple[str, int, tuple[str, ...]], _Index] = OrderedDict()
        self._firsts: OrderedDict[str, int] = OrderedDict()

    def page(self, segments: Sequence[SegmentRow], query: PageQuery) -> Page:
        """One page of a session's records; `segments` are all its segments that have bytes.

        A record that two segments hold (one was abandoned and repeated in part) is given once.
        """
        if self._unsealing is not None:
            self._unsealing.look()
        page, left, last = Page(), MAX_DECODED, query.after
        for segment in self._from(segments, query.after):
            index = self._index(segment)
            if index is None:
                page.gaps.append(SessionGap(segment.index, 0, segment.offset, "its bytes are lost", last + 1, None))
                continue
            _note_before(page, segment, index, last)
            for place in index.places:
                end = place.header.first + place.header.records - 1
                if end <= last:
                    continue
                if left <= 0 or len(page.records) >= query.limit:
                    page.next = last
                    return _with_gaps(page, segment, index, query.after, last)
                if not query.skips(place.header):
                    left -= place.header.raw_length
                    last = self._block(page, segment, index, place, query, last)
                else:
                    last = end
                if last < end:
                    page.next = last
                    return _with_gaps(page, segment, index, query.after, last)
            last = max(last, index.next - 1)
            _with_gaps(page, segment, index, query.after, None)
        return page

    def _from(self, segments: Sequence[SegmentRow], after: int) -> Iterator[SegmentRow]:
        """The segments that may hold what follows `after`."""
        held = sorted((each for each in segments if each.offset), key=lambda each: each.index)
        for at, segment in enumerate(held):
            following = self._first(held[at + 1]) if at + 1 < len(held) else None
            if following is None or following > after + 1:
                yield segment

    def _block(self, page: Page, segment: SegmentRow, index: _Index, place: _Place, query: PageQuery, last: int) -> int:
        """Add the records of a block; the sequence number that was looked at last."""
        header = place.header
        length = BLOCK_HEADER_SIZE + header.length
        frame = self._blobs.read(segment.upload_id, place.offset, length)
        try:
            block = Block(header, frame[BLOCK_HEADER_SIZE:], place.offset)
            found = legible(block, dict(index.schemas), self._unlock(segment))
            for sequence, fields in found.numbered(header.first):
                if sequence <= last:
                    continue
                if len(page.records) >= query.limit:
                    return last
                if fields is None:
                    page.gaps.append(
                        SessionGap(segment.index, place.offset, length, found.reason, sequence, found.lost)
                    )
                    last = sequence + found.lost - 1
                    continue
                record = decode(fields, sequence, header.clock, index.schemas)
                last = sequence
                if query.wants(record):
                    page.records.append(record)
        except (SegmentError, TypeError) as error:
            # A block that cannot be unpacked whole is lost from there on, as it is for reports.
            left = header.first + header.records - (last + 1)
            page.gaps.append(SessionGap(segment.index, place.offset, length, str(error), last + 1, left))
        return header.first + header.records - 1

    # -- finding blocks ------------------------------------------------------------------------------------------

    def _index(self, segment: SegmentRow) -> _Index | None:
        """Where the blocks of a segment are; None when its bytes are lost."""
        key = (segment.upload_id, segment.offset, self._unsealing.ids if self._unsealing else ())
        with self._lock:
            known = self._indexes.get(key)
            if known is not None:
                self._indexes.move_to_end(key)
                return known
        try:
            made = self._read_index(segment)
        except FileNotFoundError:
            return None
        with self._lock:
            self._indexes[key] = made
            while len(self._indexes) > INDEXES:
                self._indexes.popitem(last=False)
        return made

    def _read_index(self, segment: SegmentRow) -> _Index:
        reader = SegmentReader()
        places: list[_Place] = []
        schemas: dict[int, Schema] = {}
        unlock = self._unlock(segment)
        for offset in range(0, segment.offset, PIECE):
            reader.feed(self._blobs.read(segment.upload_id, offset, min(PIECE, segment.offset - offset)))
            places += _places(reader, schemas, unlock)
        if segment.complete:
            reader.close()
            places += _places(reader, schemas, unlock)
        first = reader.preamble.first if reader.preamble else places[0].header.first if places else 0
        following = places[-1].header.first + places[-1].header.records if places else first
        return _Index(tuple(places), schemas, tuple(reader.gaps), first, max(following, reader.next))

    def _unlock(self, segment: SegmentRow) -> Unlock:
        if self._unsealing is None:
            return Keyring(()).unlock
        return self._unsealing.unlocks(segment.session_id, segment.index)

    def _first(self, segment: SegmentRow) -> int | None:
        """The sequence number that a segment begins with, from its preamble; None while that is not here."""
        with self._lock:
            known = self._firsts.get(segment.upload_id)
        if known is not None:
            return known
        reader = SegmentReader()
        try:
            reader.feed(self._blobs.read(segment.upload_id, 0, min(MAX_PREAMBLE + 4096, segment.offset)))
        except FileNotFoundError:
            return None
        next(reader.blocks(), None)
        if reader.preamble is None:
            return None
        with self._lock:
            self._firsts[segment.upload_id] = reader.preamble.first
            while len(self._firsts) > INDEXES * 16:
                self._firsts.popitem(last=False)
        return reader.preamble.first


def as_json(record: Record) -> dict[str, Any]:
    """A record as the API gives it: `Record.to_dict` with marks for what JSON cannot hold."""
    try:
        return {name: exact(value) for name, value in record.to_dict().items()}
    except RecursionError:
        kept = {"sequence": record.sequence, "time": record.time, "kind": record.kind, "name": exact(record.name)}
        return {**kept, "attributes": {"$cut": True}}


def _places(reader: SegmentReader, schemas: dict[int, Schema], unlock: Unlock) -> Iterator[_Place]:
    for block in reader.blocks():
        if block.header.counts[SCHEMA_COUNTER] or not block.header.records:
            with suppress(
                SegmentError, TypeError
            ):  # it is read again, and its loss told, when its records are asked for
                legible(block, schemas, unlock)
        yield _Place(block.offset, block.header)


def _note_before(page: Page, segment: SegmentRow, index: _Index, last: int) -> None:
    missing = index.first - (last + 1)
    if missing > 0:
        reason = "the records before this segment are not here"
        page.gaps.append(SessionGap(segment.index, 0, 0, reason, last + 1, missing))


def _with_gaps(page: Page, segment: SegmentRow, index: _Index, after: int, last: int | None) -> Page:
    """Add the segment's gaps that begin above `after`, and not above what was looked at last (None: its end)."""
    for gap in index.gaps:
        if gap.first > after and (last is None or gap.first <= last):
            page.gaps.append(SessionGap(segment.index, gap.offset, gap.length, gap.reason, gap.first, gap.records))
    return page

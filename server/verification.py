"""Is a complete upload the segment it should be? Answered once, before its completion is acknowledged.

What counts is whether the bytes are those that were sealed. An agent that finds its disk damaged when it recovers a
crashed session seals what is left, damage and all: then the digest is right, what is missing shows as a gap, and the
rest is loaded. Bytes that changed after they were sealed are rejected.

One case is between the two: of a session that was sent while it ran, this server may have bytes from before the disk
was damaged, and what it holds is better than what was sealed. Where a seal says that it was made over damage, nobody
has a better copy, and each block that checks vouches for itself.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from mailboat.protocol.errors import SegmentError, WireError
from mailboat.protocol.limits import KIB, MAX_SEAL, MAX_SEGMENT, MIB
from mailboat.protocol.negotiation import Reason
from mailboat.protocol.reader import SegmentReader
from mailboat.protocol.segment import (
    BLOCK_HEADER_SIZE,
    PREAMBLE_MAGIC,
    PREAMBLE_TAG,
    SEALED_VERSION,
    SEGMENT_DAMAGED,
    SKIPPABLE,
    BlockHeader,
    Preamble,
    Seal,
)
from mailboat.protocol.summary import Summary, summarise
from mailboat.protocol.uploads.digests import Algorithm
from mailboat.protocol.wire import Fields
from mailboat.server.blobs import Readable
from mailboat.server.catalog import UploadRow, Verification
from mailboat.server.decoder import MAX_GAPS
from mailboat.server.following import HEAD, Frames, Known

_READ: Final = MIB
"""Bytes read at a time: a block is at most a few MiB, and the reader holds one."""

_WINDOW: Final = 8 * KIB
"""Bytes read at a time where headers are followed: little beside a block as agents make them, and a segment of nothing
but tiny ones takes no more than some thousand reads."""


class Finding(Struct, frozen=True):
    """What an upload's bytes are. `summary` is that of the session, as far as this one segment knows it, for a
    segment that was not asked for.
    """

    verification: Verification
    session_id: str | None = None
    index: int | None = None
    sha256: str = ""
    records: int = 0
    reason: str = ""
    detail: str = ""
    summary: Summary | None = None


def verify(blobs: Readable, row: UploadRow, passing: Known | None = None) -> Finding:
    """Read the whole upload `row`, and say what it is. Blocks; for a thread. Raises `OSError` when it cannot be read.

    What is known of it already is `passing`: then nothing is read of one that is in order.

    Memory: one block and `_READ` bytes, whatever the upload's size. Checksums and the digest are checked; records are
    not decoded here.
    """
    if row.state.offset > MAX_SEGMENT:
        return _refused(row, Reason.CORRUPTED, f"{row.state.offset} bytes are more than a segment may have")
    known = passing if passing is not None and passing.whole else None
    ending = _ending(blobs, row.id, row.state.offset, known)
    sealed = None if ending is None else _sealed(blobs, row.id, *ending, known)
    over_damage = ending is not None and SEGMENT_DAMAGED in ending[0].lost
    preamble = None if sealed is None else _followed(blobs, row.id, *sealed, known)
    if sealed is not None and preamble is not None:
        return _found(row, preamble, sealed[0])
    # Anything amiss: read it block by block, to tell what it is.
    reader = _read(blobs, row.id, row.state.offset, 0 if sealed is None and not over_damage else MAX_GAPS)
    fault = (
        _newer(blobs.read(row.id, 0, HEAD))
        or _fault(reader, over_damage=over_damage)
        or _contradiction(blobs, row.id, reader)
    )
    if fault is not None:
        return _refused(row, *fault)
    if reader.preamble is None or reader.seal is None:
        raise ValueError("only a reader without fault has found something")
    return _found(row, reader.preamble, reader.seal)


def _ending(blobs: Readable, blob_id: str, size: int, known: Known | None) -> tuple[Seal, int] | None:
    """The seal at the end of a blob, and where it begins."""
    last = blobs.read(blob_id, max(0, size - MAX_SEAL), min(size, MAX_SEAL)) if known is None else known.end
    try:
        found = Seal.at_end_of(last)
    except SegmentError:
        return None
    return None if found is None else (found[0], size - found[1])


def _sealed(blobs: Readable, blob_id: str, seal: Seal, end: int, known: Known | None) -> tuple[Seal, int] | None:
    """The seal of a blob, which begins at `end`, if the bytes before it are those that were sealed, damage and all."""
    digest = digest_of(blobs, blob_id, end, Algorithm.SHA256) if known is None else known.digest(end)
    return (seal, end) if digest == seal.sha256 else None


def _followed(blobs: Readable, blob_id: str, seal: Seal, end: int, known: Known | None) -> Preamble | None:
    """The preamble of a segment whose frames follow one another up to its `seal`, at `end`; None when anything at all
    is amiss.

    The digest vouches for every byte before the seal, so the blocks' own checksums need not be computed as well, which
    would cost a third more; the headers are followed from the first to the last, so that nothing stands between them.
    Numbers may be missing between blocks: of records that were lost before they came into one.
    """
    frames = _frames(blobs, blob_id, end) if known is None else known.frames
    return frames.preamble if frames.at == end and frames.following <= seal.next else None


def _frames(blobs: Readable, blob_id: str, end: int) -> Frames:
    """The frames of a blob before `end`."""
    frames = Frames()
    while not frames.ended and frames.wanted < end:
        offset = frames.wanted
        window = blobs.read(blob_id, offset, min(_WINDOW, end - offset))
        if not window:
            break
        frames.take(window, offset)
    return frames


def digest_of(blobs: Readable, blob_id: str, size: int, algorithm: Algorithm, start: int = 0) -> bytes:
    """The digest of a blob's bytes from `start` to before `size`. Blocks; for a thread."""
    hasher = algorithm.hasher()
    for offset in range(start, size, _READ):
        hasher.update(blobs.read(blob_id, offset, min(_READ, size - offset)))
    return hasher.digest()


def whole_frames(blobs: Readable, blob_id: str, size: int) -> int:
    """The offset up to which the first `size` bytes of a blob are whole frames that check, without a gap."""
    reader = _read(blobs, blob_id, size)
    return reader.gaps[0].offset if reader.gaps else reader.offset


def _read(blobs: Readable, blob_id: str, size: int, most: int = 0) -> SegmentReader:
    """Read up to the first damage, or past so many places of it as `most`, which are as many as can be shown: there may
    be hundreds of thousands.
    """
    reader = SegmentReader()
    for offset in range(0, size, _READ):
        reader.feed(blobs.read(blob_id, offset, min(_READ, size - offset)))
        _pass_over(reader)
        if len(reader.gaps) > most:
            return reader
    reader.close()
    _pass_over(reader)
    return reader


def _pass_over(reader: SegmentReader) -> None:
    for _ in reader.blocks():
        pass


def _newer(head: bytes) -> tuple[Reason, str] | None:
    """Whether a segment's first bytes say that it has a format version to come."""
    ours = len(head) == HEAD and SKIPPABLE.unpack_from(head)[0] == PREAMBLE_MAGIC and head[8:16] == PREAMBLE_TAG
    version = int.from_bytes(head[16:18], "little")
    if not ours or version <= SEALED_VERSION:
        return None
    return Reason.UNSUPPORTED_VERSION, f"the segment has format version {version}, this server reads {SEALED_VERSION}"


def _fault(reader: SegmentReader, *, over_damage: bool) -> tuple[Reason, str] | None:
    """What is amiss with a segment, of whose seal is known whether it says that it was made `over_damage`."""
    if reader.preamble is None:
        return Reason.CORRUPTED, "the bytes do not begin with an intact preamble: they are no segment"
    told = reader.ends_sealed or (over_damage and reader.ends_with_seal)
    if reader.gaps and (not told or len(reader.gaps) > MAX_GAPS):
        gap = reader.gaps[0]
        return Reason.CORRUPTED, f"damaged at byte {gap.offset}: {gap.reason}"
    if reader.seal is None:
        return Reason.CORRUPTED, "the segment is not sealed"
    if not told:
        return Reason.CORRUPTED, "the bytes do not match the digest in the seal"
    if reader.next > reader.seal.next and not over_damage:
        return Reason.CORRUPTED, "the seal ends before the last record"
    return None


def _contradiction(blobs: Readable, blob_id: str, reader: SegmentReader) -> tuple[Reason, str] | None:
    """A block among what reading passed over as damage that is intact, and whose numbers go back: no agent seals that,
    and no damage makes it.
    """
    for gap in reader.gaps:
        header = BlockHeader.decode(blobs.read(blob_id, gap.offset, BLOCK_HEADER_SIZE))
        if header is not None and reader.preamble and header.salt == reader.preamble.salt and header.first < gap.first:
            return Reason.CORRUPTED, f"the block at byte {gap.offset} goes back to record {header.first}"
    return None


def _found(row: UploadRow, preamble: Preamble, seal: Seal) -> Finding:
    if row.session_id is None:
        return _stranger(row, preamble, seal)
    if (preamble.session_id, preamble.index) != (row.session_id, row.index):
        what = f"segment {preamble.index} of session {preamble.session_id}"
        return _refused(row, Reason.CORRUPTED, f"the upload holds {what}, not segment {row.index} of {row.session_id}")
    return _verified(preamble, seal, None)


def _stranger(row: UploadRow, preamble: Preamble, seal: Seal) -> Finding:
    """A segment that no negotiation asked for: taken when it belongs to the key's product."""
    try:
        made = summarise([(preamble, seal, row.state.offset)])
        # Held to what an offer may say: whatever else is stored as a summary, no list can read it any more.
        summary = Summary.read(Fields(made.to_wire(), "summary"))
    except (WireError, SegmentError) as error:
        return _refused(row, Reason.CORRUPTED, str(error))
    if summary.info.product != row.product:
        return _refused(row, Reason.UNKNOWN_PRODUCT, f"a segment of product {summary.info.product!r:.100}")
    return _verified(preamble, seal, summary)


def _verified(preamble: Preamble, seal: Seal, summary: Summary | None) -> Finding:
    return Finding(
        Verification.VERIFIED,
        session_id=preamble.session_id,
        index=preamble.index,
        sha256=seal.sha256.hex(),
        records=seal.records,
        summary=summary,
    )


def _refused(row: UploadRow, reason: Reason, detail: str) -> Finding:
    """Bytes promised as a segment are rejected with their session; others are merely no segment."""
    asked = row.session_id is not None
    verification = Verification.REJECTED if asked else Verification.QUARANTINED
    return Finding(verification, row.session_id, row.index, reason=reason.value, detail=detail)

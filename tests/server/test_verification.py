"""Segments whose seal is right about their bytes, whatever those are: what an agent seals over the damage that it found
is taken, gaps and all; what no agent seals is not.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from typing import Any
from zlib import crc32

import pytest
from msgspec.structs import replace

from mailboat.protocol.limits import MAX_PREAMBLE, MAX_SEQUENCE
from mailboat.protocol.reader import SegmentReader
from mailboat.protocol.records import COUNTERS
from mailboat.protocol.segment import (
    BLOCK_HEADER_SIZE,
    PREAMBLE_MAGIC,
    SEGMENT_DAMAGED,
    SKIPPABLE,
    BlockHeader,
    Seal,
)
from mailboat.protocol.uploads.state import Phase, UploadState
from mailboat.server.catalog import UploadRow, Verification
from mailboat.server.decoder import MAX_GAPS
from mailboat.server.following import Frames, Held, Passing
from mailboat.server.verification import Finding, verify
from testkit.segments import SESSION, Segment, feature
from testkit.serverkit import PRODUCT, fresh_session_id


class Blob:
    def __init__(self, content: bytes) -> None:
        self.content = content
        self.reads = 0

    def read(self, _: str, offset: int, length: int) -> bytes:
        self.reads += 1
        return self.content[offset : offset + length]


def found(content: bytes, *, followed: bool = False) -> Finding:
    """What the server finds, having looked into the bytes as they came or not."""
    return verify(Blob(content), row_of(content), passed(content, 1000) if followed else None)


def row_of(content: bytes) -> UploadRow:
    return UploadRow(UploadState(fresh_session_id(), len(content), len(content), Phase.COMPLETE), PRODUCT, SESSION, 0)


def passed(content: bytes, length: int) -> Passing:
    """What is known of it when it has come in pieces of `length`."""
    passing = Passing(len(content))
    for at in range(0, len(content), length):
        passing.take(content[at : at + length])
    return passing


class Sealing(Segment):
    """A segment that is sealed as it is, whatever stands in it."""

    def between(self, content: bytes) -> None:
        """Append bytes that are no block of the writer's."""
        self._keep(content)

    def named(self, name: str, first: int | None = None) -> None:
        """Append a block of one record, which is to have the number `first`."""
        if first is not None:
            self.writer.next = first
        self.block([feature(name)])

    def lost(self, at: int) -> None:
        """Append a block of one record, one byte of which is wrong."""
        number = self.writer.next
        self.between(flipped(Segment(first=number).block([feature("lost")]), at))
        self.writer.next = number + 1


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def over(fill: Callable[[Sealing], object]) -> bytes:
    """A segment of what `fill` appends between two blocks of one record each."""
    made = Sealing()
    made.named("first")
    fill(made)
    made.named("last")
    return made.seal()


def many(places: int) -> Callable[[Sealing], None]:
    def fill(made: Sealing) -> None:
        for _ in range(places):
            made.between(b"x")
            made.named("between")

    return fill


TAKEN: Mapping[str, tuple[bytes, int]] = {
    "nothing": (over(lambda made: made.named("second")), 0),
    "a hole": (over(lambda made: made.named("far", 3)), 2),
    "the largest hole": (over(lambda made: made.named("far", MAX_SEQUENCE - 2)), MAX_SEQUENCE - 3),
    "a damaged header": (over(lambda made: made.lost(20)), 1),
    "a damaged payload": (over(lambda made: made.lost(BLOCK_HEADER_SIZE + 5)), 1),
    "a damaged length": (over(lambda made: made.lost(36)), 1),
    "bytes that are no frame": (over(lambda made: made.between(random.Random(1).randbytes(5000))), 0),
    "as many places as are shown": (over(many(MAX_GAPS)), 0),
}


@pytest.mark.parametrize("followed", [False, True])
@pytest.mark.parametrize("what", TAKEN)
def test_what_was_sealed_over_damage_is_taken_and_its_gaps_are_told(what: str, followed: bool) -> None:
    content, missing = TAKEN[what]
    finding = found(content, followed=followed)
    assert finding.verification is Verification.VERIFIED, finding
    reader = SegmentReader(content)
    names = [record.name for record in reader]
    assert (names[0], names[-1], len(names)) == ("first", "last", finding.records)
    assert sum(gap.records or 0 for gap in reader.gaps) == missing
    assert bool(reader.gaps) == (what != "nothing")


def resealed(content: bytes, **said: Any) -> bytes:  # noqa: ANN401 - what the seal is to say
    """The segment with a seal that says something else; by itself, the digest of what stands before it."""
    ending = Seal.at_end_of(content)
    assert ending is not None
    before = content[: -ending[1]]
    return before + replace(ending[0], **({"sha256": hashlib.sha256(before).digest()} | said)).encode()


def twice(made: Sealing) -> None:
    made.lost(BLOCK_HEADER_SIZE + 5)
    made.named("again", 1)


HOLE = TAKEN["a hole"][0]
BETTER = {"sha256": bytes(32), "lost": {SEGMENT_DAMAGED: 0}}
"""What a seal says that was made over damage which is not in the bytes that are here, or not this one."""

OVER_DAMAGE: Mapping[str, tuple[bytes, int]] = {
    "that is not here": (resealed(over(lambda made: made.named("second")), **BETTER), 0),
    "a part of which is here": (resealed(over(lambda made: made.lost(20)), **BETTER), 1),
    "that ends before the last record": (resealed(over(lambda made: made.named("second")), **BETTER, next=2), 0),
}


@pytest.mark.parametrize("followed", [False, True])
@pytest.mark.parametrize("what", OVER_DAMAGE)
def test_better_bytes_than_were_sealed_over_damage_are_taken_block_by_block(what: str, followed: bool) -> None:
    """They came while the session ran; see `e2e/test_delivered_damage`."""
    content, missing = OVER_DAMAGE[what]
    finding = found(content, followed=followed)
    assert finding.verification is Verification.VERIFIED, finding
    assert finding.sha256 == bytes(32).hex(), "by which its agent knows it"
    reader = SegmentReader(content)
    names = [record.name for record in reader]
    assert (names[0], names[-1]) == ("first", "last")
    assert sum(gap.records or 0 for gap in reader.gaps) == missing


REFUSED: Mapping[str, tuple[bytes, str]] = {
    "a number once more": (over(lambda made: made.named("again", 0)), "goes back to record 0"),
    "the number of a damaged block once more": (over(twice), "goes back to record 1"),
    "a number beyond all": (over(lambda made: made.named("far", MAX_SEQUENCE + 1)), "damaged at byte"),
    "a seal that ends before the last record": (resealed(HOLE, next=4), "ends before the last record"),
    "more places than are shown": (over(many(MAX_GAPS + 1)), "damaged at byte"),
    "a damaged preamble": (resealed(flipped(HOLE, 40)), "intact preamble"),
    "a hole, and a byte changed after it was sealed": (flipped(HOLE, len(HOLE) // 2), "damaged at byte"),
    "a hole, and a byte behind the seal": (HOLE + b"x", "damaged at byte"),
    "a hole, and another digest": (resealed(HOLE, sha256=bytes(32)), "damaged at byte"),
    "a hole, and no seal": (HOLE[:-5], "damaged at byte"),
    "over damage, a byte behind the seal": (resealed(HOLE, **BETTER) + b"x", "damaged at byte"),
    "over damage, a damaged preamble": (resealed(flipped(HOLE, 40), **BETTER), "intact preamble"),
    "over damage, a number once more": (resealed(over(twice), **BETTER), "goes back to record 1"),
    "over damage, more places than are shown": (resealed(over(many(MAX_GAPS + 1)), **BETTER), "damaged at byte"),
}


@pytest.mark.parametrize("followed", [False, True])
@pytest.mark.parametrize("what", REFUSED)
def test_what_no_agent_seals_is_refused(what: str, followed: bool) -> None:
    content, why = REFUSED[what]
    finding = found(content, followed=followed)
    assert (finding.verification, finding.reason) == (Verification.REJECTED, "corrupted"), finding
    assert why in finding.detail


def test_a_segment_of_nothing_but_tiny_blocks_takes_few_reads() -> None:
    """One read a block would keep a thread busy for ten seconds, with 64 MiB of them."""
    made = Sealing()
    empty = BlockHeader(7, 0, 0, 0, 0, 0, (0,) * len(COUNTERS), crc32(b"", 7)).encode()
    made.between(empty * 5000)
    content = made.seal()
    blob = Blob(content)
    assert verify(blob, row_of(content)).verification is Verification.VERIFIED
    assert len(content) > 5000 * BLOCK_HEADER_SIZE
    assert blob.reads < 100


@pytest.mark.parametrize("length", [1, 7, 100, 1 << 20])
def test_one_that_was_followed_is_not_read_again(length: int) -> None:
    content = TAKEN["a hole"][0]
    blob = Blob(content)
    assert verify(blob, row_of(content), passed(content, length)).verification is Verification.VERIFIED
    assert blob.reads == 0


def test_one_that_is_in_memory_is_not_read_either() -> None:
    content = TAKEN["a hole"][0]
    blob = Blob(content)
    assert verify(blob, row_of(content), Held(memoryview(content))).verification is Verification.VERIFIED
    assert blob.reads == 0


@pytest.mark.parametrize("what", [*TAKEN, *OVER_DAMAGE, *REFUSED])
def test_to_have_it_in_memory_changes_nothing(what: str) -> None:
    content = {**TAKEN, **OVER_DAMAGE, **REFUSED}[what][0]
    assert verify(Blob(content), row_of(content), Held(memoryview(content))) == found(content)


def test_one_of_which_not_all_was_followed_is_read() -> None:
    content = TAKEN["a hole"][0]
    passing = Passing(len(content))
    passing.take(content[:-1])
    assert not passing.whole
    blob = Blob(content)
    assert verify(blob, row_of(content), passing).verification is Verification.VERIFIED
    assert blob.reads > 0


@pytest.mark.parametrize("length", [1, 5, 8, 9, 300, 1 << 20])
@pytest.mark.parametrize("what", [*TAKEN, *OVER_DAMAGE, *REFUSED])
def test_how_it_was_cut_into_pieces_changes_nothing(what: str, length: int) -> None:
    content = {**TAKEN, **OVER_DAMAGE, **REFUSED}[what][0]
    finding = verify(Blob(content), row_of(content), passed(content, length))
    assert finding == found(content)


@pytest.mark.parametrize("size", [0, 7, MAX_PREAMBLE + 11, 0xFFFF_FFFF])
def test_a_first_frame_of_no_preamble_s_length_ends_it(size: int) -> None:
    frames = Frames()
    frames.take(SKIPPABLE.pack(PREAMBLE_MAGIC, size) + bytes(MAX_PREAMBLE + 100), 0)
    assert (frames.ended, frames.preamble, frames.at) == (True, None, 0)


def test_a_blob_that_is_shorter_than_was_announced_is_refused() -> None:
    content = TAKEN["nothing"][0]
    assert verify(Blob(content[:-1]), row_of(content)).verification is Verification.REJECTED

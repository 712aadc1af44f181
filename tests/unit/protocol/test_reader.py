"""The reader, past any damage: at every byte a segment is cut, at every bit that is flipped, however it is fed."""

from __future__ import annotations

import random
from functools import cache
from zlib import crc32

import msgpack
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mailboat.protocol import reader as reader_module
from mailboat.protocol.errors import SegmentError
from mailboat.protocol.limits import MAX_BLOCK_RAW, MAX_SEAL, MAX_SEQUENCE
from mailboat.protocol.reader import Block, Gap, SegmentReader, decompress
from mailboat.protocol.records import COUNTERS, Kind, Record
from mailboat.protocol.segment import BLOCK_HEADER_SIZE, BLOCK_START, SEAL_MAGIC, SKIPPABLE, BlockHeader, Seal
from mailboat.protocol.summary import Info
from mailboat.protocol.unpacking import unpack, whole_records
from testkit.segments import CLOCK, Raw, Segment, event, feature, pack, positional, schema

BLOCKS = 12
PER_BLOCK = 2


@cache
def segment() -> Segment:
    """Twelve small blocks; small, because there is a test for each of its bits."""
    made = Segment(info=Info(), first=100)
    for block in range(BLOCKS):
        made.block([[1, block, "f", {}], [1, block, "g", {}]])
    return made


@cache
def sealed() -> bytes:
    made = Segment(info=Info(), first=100)
    for block in range(BLOCKS):
        made.block([[1, block, "f", {}], [1, block, "g", {}]])
    return made.seal()


EVERY = set(range(100, 100 + BLOCKS * PER_BLOCK))


def sequences(reader: SegmentReader) -> list[int]:
    """By the headers of the intact blocks, which spares decoding what the checksums have vouched for."""
    blocks = list(reader.blocks())
    return [block.header.first + at for block in blocks for at in range(block.header.records)]


def told_missing(gaps: list[Gap]) -> set[int]:
    return {gap.first + at for gap in gaps for at in range(gap.records or 0)}


def test_a_whole_segment_reads_back() -> None:
    reader = SegmentReader(sealed())
    records = list(reader)
    assert [record.sequence for record in records] == sorted(EVERY)
    assert {record.time for record in records} == {(CLOCK + block) / 1e9 for block in range(BLOCKS)}
    assert (reader.intact, reader.gaps, reader.torn, reader.offset) == (True, [], 0, len(sealed()))
    assert reader.preamble is not None
    assert reader.seal is not None


def test_cut_at_every_byte_every_complete_block_is_kept_and_nothing_is_called_lost() -> None:
    data, ends = sealed(), segment().ends
    for cut in range(len(data) + 1):
        reader = SegmentReader(data[:cut])
        kept = sequences(reader)
        assert kept == list(range(100, 100 + PER_BLOCK * sum(end <= cut for end in ends))), cut
        assert reader.gaps == [], cut
        assert reader.intact == (cut == len(data)), cut
        assert reader.offset + reader.torn == cut


@pytest.mark.parametrize("bit", range(8))
def test_every_bit_flipped_costs_one_block_at_most_and_is_reported(bit: int) -> None:
    data = sealed()
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << bit
        reader = SegmentReader(damaged)
        kept = sequences(reader)
        assert len(kept) >= len(EVERY) - PER_BLOCK, at
        assert kept == sorted(set(kept)), at
        assert set(kept) <= EVERY, at
        assert told_missing(reader.gaps) == EVERY - set(kept), at
        assert reader.gaps, at
        assert not reader.intact, at


@pytest.mark.parametrize("length", [1, 7, 8, 100])
def test_bytes_behind_the_seal_are_no_torn_tail(length: int) -> None:
    """Nothing ever follows a seal; as a torn tail, fewer bytes than a frame's head would pass for bytes to come."""
    data = sealed() + sealed()[-length:]
    reader = SegmentReader(data)
    assert sequences(reader) == sorted(EVERY)
    assert reader.gaps == [Gap(len(sealed()), length, "the bytes are no intact frame", max(EVERY) + 1, 0)]
    assert (reader.intact, reader.ends_sealed, reader.torn) == (False, False, 0)


@pytest.mark.parametrize("bit", [0, 7])
def test_every_bit_flipped_in_an_unsealed_segment_costs_one_block_at_most(bit: int) -> None:
    """Without a seal nobody knows how many records stood behind a damage at the end: then `records` is None."""
    data, ends = segment().data, segment().ends
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << bit
        reader = SegmentReader(damaged)
        kept = sequences(reader)
        assert len(kept) >= len(EVERY) - PER_BLOCK, at
        missing = EVERY - set(kept)
        if at < ends[-2]:
            assert told_missing(reader.gaps) == missing, at
            assert reader.gaps, at
        else:
            assert missing <= told_missing(reader.gaps) or reader.torn or reader.gaps[-1].records is None, at


def drained(reader: SegmentReader) -> list[Block]:
    return list(reader.blocks())


def outcome(reader: SegmentReader, blocks: list[Block]) -> tuple[object, ...]:
    return blocks, reader.gaps, reader.seal, reader.preamble, reader.intact, reader.offset, reader.torn, reader.next


def fed_in(data: bytes, pieces: list[int]) -> tuple[object, ...]:
    reader, blocks, at = SegmentReader(), [], 0
    for piece in pieces:
        reader.feed(data[at : at + piece])
        blocks += drained(reader)
        at += piece
    reader.feed(data[at:])
    blocks += drained(reader)
    reader.close()
    blocks += drained(reader)
    return outcome(reader, blocks)


def fed_whole(data: bytes) -> tuple[object, ...]:
    reader = SegmentReader(data)
    return outcome(reader, drained(reader))


def test_fed_byte_by_byte_is_fed_whole() -> None:
    assert fed_in(sealed(), [1] * len(sealed())) == fed_whole(sealed())


@given(st.data())
def test_damaged_and_fed_in_any_pieces_is_fed_whole(data: st.DataObject) -> None:
    content = bytearray(sealed())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=6)):
        content[at] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(content)))
    junk = data.draw(st.sampled_from([b"", b"junk", BLOCK_START, sealed()[:300]]))
    content[cut:cut] = junk
    pieces = data.draw(st.lists(st.integers(0, 400), max_size=20))
    assert fed_in(bytes(content), pieces) == fed_whole(bytes(content))


@pytest.mark.parametrize("junk", [b"j", b"junk that follows", sealed(), BLOCK_START * 9, b"\0" * 70_000])
def test_whatever_follows_a_seal_is_a_gap_and_no_record(junk: bytes) -> None:
    reader = SegmentReader(sealed() + junk)
    assert sequences(reader) == sorted(EVERY)
    assert reader.seal is not None
    assert not reader.intact or reader.torn == len(junk) < SKIPPABLE.size
    if len(junk) >= SKIPPABLE.size:
        assert [(gap.offset, gap.length, gap.records) for gap in reader.gaps] == [(len(sealed()), len(junk), 0)]


def without(blocks: set[int]) -> bytes:
    made = segment()
    starts = [made.ends[0] - (made.ends[1] - made.ends[0]), *made.ends]
    frames = [made.data[start:end] for start, end in zip(starts, made.ends, strict=False)]
    head = made.data[: starts[0]]
    rest = [frame for at, frame in enumerate(frames) if at not in blocks]
    return head + b"".join(rest) + sealed()[made.ends[-1] :]


@pytest.mark.parametrize("gone", [{0}, {5}, {3, 4, 5}, {11}, {0, 11}, set(range(12))])
def test_blocks_that_are_gone_are_reported_by_number(gone: set[int]) -> None:
    reader = SegmentReader(without(gone))
    kept = sequences(reader)
    assert told_missing(reader.gaps) == EVERY - set(kept)
    assert len(kept) == PER_BLOCK * (BLOCKS - len(gone))
    assert not reader.intact


def test_a_block_that_stands_twice_is_read_once() -> None:
    made = segment()
    frame = made.data[made.ends[3] : made.ends[4]]
    reader = SegmentReader(made.data[: made.ends[4]] + frame + made.data[made.ends[4] :])
    assert sequences(reader) == sorted(EVERY)
    assert [(gap.length, gap.records) for gap in reader.gaps] == [(len(frame), 0)]


def test_a_block_of_another_segment_is_no_block_of_this_one() -> None:
    made, other = segment(), Segment(info=Info(), first=100 + 2 * PER_BLOCK, salt=8)
    foreign = other.block([[1, 0, "forged", {}]] * PER_BLOCK)
    reader = SegmentReader(made.data[: made.ends[1]] + foreign + made.data[made.ends[2] :])
    names = [record.name for record in reader]
    assert "forged" not in names
    assert len(names) == PER_BLOCK * (BLOCKS - 1)
    assert told_missing(reader.gaps) == {104, 105}


@pytest.mark.parametrize("lost", [0, 1, 4])
def test_blocks_survive_a_lost_preamble(lost: int) -> None:
    """Where the segment begins is then told by the seal alone, and what came before it is not called missing."""
    ends = segment().ends
    start = [ends[0] - (ends[1] - ends[0]), *ends][lost]
    reader = SegmentReader(b"\xff" * start + sealed()[start:])
    kept = sequences(reader)
    assert kept == sorted(EVERY)[PER_BLOCK * lost :]
    assert told_missing(reader.gaps) == EVERY - set(kept)
    assert reader.preamble is None
    assert not reader.intact


def test_noise_of_many_kinds_between_blocks_costs_no_block(seed: int) -> None:
    chance, made = random.Random(seed), segment()
    for _ in range(60):
        cut = chance.choice([0, *made.ends])
        kinds = [chance.randbytes(chance.randrange(1, 3000)), bytes(chance.randrange(1, 3000)), BLOCK_START, b"seal"]
        reader = SegmentReader(sealed()[:cut] + chance.choice(kinds) + sealed()[cut:])
        assert sequences(reader) == sorted(EVERY)
        assert reader.gaps
        assert told_missing(reader.gaps) == set()


@given(st.binary(max_size=2000))
def test_noise_is_no_segment_and_no_fault(noise: bytes) -> None:
    reader = SegmentReader(noise)
    assert list(reader) == []
    assert not reader.intact
    assert reader.offset + reader.torn == len(noise)


def test_a_search_among_a_million_starts_of_seals_ends_soon() -> None:
    """Each looks like a frame of 64 KiB that may check: tried one by one they would cost hours."""
    start = SKIPPABLE.pack(SEAL_MAGIC, MAX_SEAL)
    data = b"\xff" + start * 250_000
    reader = SegmentReader(data)
    assert list(reader.blocks()) == []
    assert [gap.length for gap in reader.gaps] == [len(data)]


def test_no_more_is_kept_of_endless_junk_than_a_frame_may_need() -> None:
    reader = SegmentReader()
    for _ in range(40):
        reader.feed(b"\xaa" * 100_000)
        assert list(reader.blocks()) == []
        assert reader.torn < 2 * MAX_SEAL
    reader.close()
    assert list(reader.blocks()) == []
    assert [(gap.offset, gap.length, gap.records) for gap in reader.gaps] == [(0, 4_000_000, None)]


def test_nothing_may_be_fed_to_a_reader_that_was_closed() -> None:
    with pytest.raises(SegmentError, match="closed"):
        SegmentReader(sealed()).feed(b"x")


def test_a_seal_that_does_not_match_the_bytes_before_it() -> None:
    """Damage that no checksum of a frame covers cannot be: but a seal may be of other bytes."""
    made = Segment(info=Info())
    made.writer.add(b"what is not in the file")
    reader = SegmentReader(made.seal())
    assert (list(reader), reader.gaps, reader.intact) == ([], [], False)
    assert reader.seal is not None


def test_a_reader_may_begin_anew_where_another_has_stopped() -> None:
    made = segment()
    first = SegmentReader()
    first.feed(made.data[: made.ends[6] + 5])
    before = sequences(first)
    second = SegmentReader()
    second.offset, second.next = first.offset, first.next
    second.feed(made.data[first.offset :])
    assert before + sequences(second) == sorted(EVERY)
    assert second.gaps == []


# -- what is in a block ----------------------------------------------------------------------------------------------


def records_of(*blocks: list[Raw | bytes], counts: list[int] | None = None) -> tuple[list[Record], list[Gap]]:
    made = Segment(info=Info())
    for records in blocks:
        made.block(records, counts)
    reader = SegmentReader(made.seal())
    return list(reader), reader.gaps


def test_declarations_apply_from_where_they_stand_on() -> None:
    records, gaps = records_of([positional(0, 1)], [schema(0, "order", "user"), positional(0, 2)], [positional(0, 3)])
    assert gaps == []
    assert [(record.name, dict(record.attributes)) for record in records] == [
        ("0", {}),
        ("order", {"user": 2}),
        ("order", {"user": 3}),
    ]


def test_a_record_that_cannot_be_decoded_costs_itself_alone() -> None:
    records, gaps = records_of([feature("a"), [1, 0, "b", "no map"], feature("c")])
    assert [(record.sequence, record.name) for record in records] == [(0, "a"), (2, "c")]
    assert [(gap.first, gap.records) for gap in gaps] == [(1, 1)]


@pytest.mark.parametrize("key", [(1, 2), ((1,), "x"), (), (("a", (None,)),)])
def test_a_key_that_is_a_list_becomes_text(key: tuple[object, ...]) -> None:
    """A dict with tuples for keys packs as it stands, and must not cost its block."""
    records, gaps = records_of([feature("a"), feature("b", m={key: 1, "k": 2}), feature("c")])
    assert gaps == []
    assert [record.name for record in records] == ["a", "b", "c"]
    assert list(records[1].attributes["m"].values()) == [1, 2]
    assert all(isinstance(each, str) for each in records[1].attributes["m"])


@pytest.mark.parametrize(
    "raw",
    [
        b"\xc1",
        pack("text"),
        pack([1, 2]),
        pack(["one", 2, "x"]),
        pack(feature())[:-1],
        pack({}),
        b"\x91" * 3000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
    ],
)
def test_a_block_of_no_records_is_a_gap(raw: bytes) -> None:
    for before in (0, 1):
        content = pack(feature()) * before + raw
        with pytest.raises(SegmentError):
            list(unpack(content))
        records, gaps = records_of([content], counts=[3, *[0] * (len(COUNTERS) - 1)])
        assert len(records) == before
        assert [(gap.first, gap.records) for gap in gaps] == [(before, 3 - before)]


@given(st.lists(st.binary(max_size=40), max_size=5), st.binary(max_size=40))
def test_whole_records_are_those_before_the_first_that_is_none(names: list[bytes], junk: bytes) -> None:
    packed = [pack([1, 2, name, {}]) for name in names]
    good = b"".join(packed)
    records, end = whole_records(good + junk)
    assert records[: len(names)] == [[1, 2, name, {}] for name in names]
    assert end >= len(good)
    assert list(unpack((good + junk)[:end])) == records
    assert whole_records(good[:-1])[0] == [[1, 2, name, {}] for name in names[:-1]]


def test_a_reader_that_was_told_to_make_no_digest_has_none_to_go_on_with() -> None:
    with pytest.raises(SegmentError, match="no digest"):
        _ = SegmentReader(b"", digest=False).digest


def test_a_date_beyond_the_calendar_is_told_as_a_number() -> None:
    """No agent writes one, but what is read is what somebody else wrote."""
    beyond = msgpack.Timestamp(300_000_000_000, 5)
    within = msgpack.Timestamp(1_790_000_000, 0)
    record = [int(Kind.FEATURE), 0, "a", {"far": beyond, "list": [within]}]
    ((*_, attributes),) = unpack(pack(record))
    assert attributes == {"far": 300_000_000_000 * 10**9 + 5, "list": ["2026-09-21T14:13:20Z"]}


def test_a_header_that_counts_other_records_than_there_are_is_a_gap() -> None:
    records, gaps = records_of([pack(feature("a"))], counts=[5, *[0] * (len(COUNTERS) - 1)])
    assert records == []
    assert "1 records, its header says 5" in gaps[0].reason


def block(payload: bytes, raw_length: int = 10, encoding: int = 0) -> Block:
    return Block(BlockHeader(1, 0, 1, raw_length, len(payload), 0, (0,) * len(COUNTERS), 0, encoding), payload, 0)


def test_decompressing_never_takes_more_memory_than_a_block_may_have() -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(256 * 1024 * 1024))
    with pytest.raises(SegmentError, match="declares"):
        decompress(block(bomb, raw_length=MAX_BLOCK_RAW))
    endless = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    unsized = endless.compress(bytes(1000)) + endless.flush()
    with pytest.raises(SegmentError, match="declares"):
        decompress(block(unsized, raw_length=1000))


def test_decompressing_allocates_no_window() -> None:
    """It asks for a gibibyte; a frame that is decompressed in one go into a buffer of known size needs none."""
    frame = zstandard.compress(b"x" * 1000)
    assert frame[4] >> 5 & 1, "a frame of a single segment, which has no window: the bytes below would be wrong"
    wide = frame[:4] + bytes([frame[4] & ~(1 << 5), 30 - 10 << 3]) + frame[5:]
    assert zstandard.get_frame_parameters(wide).window_size == 2**30
    assert decompress(block(wide, raw_length=1000)) == b"x" * 1000


def test_a_payload_of_more_than_one_frame_is_refused() -> None:
    """Else ``zstd -dc`` would print what our reader does not see."""
    one = zstandard.compress(b"0123456789")
    with pytest.raises(SegmentError, match="does not decompress"):
        decompress(block(one + zstandard.compress(b"more"), raw_length=10))


@pytest.mark.parametrize("payload", [b"", b"junk", zstandard.compress(b"0123456789")[:-2]])
def test_a_payload_that_is_no_frame_is_refused(payload: bytes) -> None:
    with pytest.raises(SegmentError):
        decompress(block(payload))


def test_an_encoding_to_come_is_refused_with_what_to_do() -> None:
    with pytest.raises(SegmentError, match="unknown encoding 7: update mailboat"):
        decompress(block(zstandard.compress(b"0123456789"), encoding=7))


def test_an_empty_block_holds_nothing() -> None:
    records, gaps = records_of([], [event("a")])
    assert [record.sequence for record in records] == [0]
    assert gaps == []


def test_a_header_that_claims_more_than_a_block_may_hold_is_none() -> None:
    made = Segment()
    raw = made.block([feature()])
    header = BlockHeader.decode(raw)
    assert header is not None
    assert BlockHeader.decode(replace(header, raw_length=MAX_BLOCK_RAW).encode()) is not None
    assert BlockHeader.decode(replace(header, raw_length=MAX_BLOCK_RAW + 1).encode()) is None
    assert BlockHeader.decode(replace(header, first=MAX_SEQUENCE).encode()) is not None
    assert BlockHeader.decode(replace(header, first=MAX_SEQUENCE + 1).encode()) is None


def test_a_seal_with_a_wrong_map_among_damage_is_damage() -> None:
    packed = msgpack.packb({"reason": "bored"})
    tail = len(packed).to_bytes(4, "little") + crc32(packed).to_bytes(4, "little") + b"seal"
    frame = SKIPPABLE.pack(SEAL_MAGIC, len(packed) + len(tail)) + packed + tail
    for junk in (b"", b"\xff" * 20):
        reader = SegmentReader(segment().data + junk + frame)
        assert sequences(reader) == sorted(EVERY)
        assert reader.seal is None
        assert [gap.length for gap in reader.gaps] == [len(junk + frame)]
    with pytest.raises(SegmentError):
        Seal.decode(frame)
    assert len(BLOCK_START) == SKIPPABLE.size < BLOCK_HEADER_SIZE


@pytest.mark.parametrize("places", [30, 31, 1000])
def test_of_places_made_to_look_like_a_header_only_so_many_are_tried(
    monkeypatch: pytest.MonkeyPatch, places: int
) -> None:
    """A stranger's segment must not keep a reader busy; what the seal says of it is told all the same."""
    monkeypatch.setattr(reader_module, "MAX_STARTS", 30)
    tries: list[int] = []
    header_at = SegmentReader._header_at

    def counting(self: SegmentReader, at: int) -> BlockHeader | None:
        tries.append(at)
        return header_at(self, at)

    monkeypatch.setattr(SegmentReader, "_header_at", counting)
    made = Segment()
    made.block([feature("before")])
    made._keep((BLOCK_START + b"\x01") * places + BLOCK_START * 500 + bytes(BLOCK_HEADER_SIZE))
    made.block([feature("behind")])
    content = made.seal()
    reader = SegmentReader(content, digest=False)
    names = [record.name for record in reader]
    # The first of them is where the damage begins, and found to be no header before anything is looked for.
    assert names == (["before", "behind"] if places <= 30 else ["before"])
    assert len(tries) < 30 + 10, "those, and once for each frame that follows another"
    assert reader.seal is not None
    assert sum(gap.records or 0 for gap in reader.gaps) == 2 - len(names)


def test_without_a_digest_the_same_is_read_and_nothing_called_intact() -> None:
    hashed, unhashed = SegmentReader(sealed()), SegmentReader(sealed(), digest=False)
    assert list(unhashed) == list(hashed)
    assert (unhashed.seal, unhashed.gaps) == (hashed.seal, [])
    assert hashed.intact
    assert not unhashed.intact

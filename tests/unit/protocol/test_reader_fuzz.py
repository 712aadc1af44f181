"""The reader fed with segments that were changed at random, and with such as were made to deceive: it never raises,
never gives a block that was not written, accounts for every byte, and says of every record whether it is there.
"""

from __future__ import annotations

import random
from functools import cache
from zlib import crc32

import pytest

from mailboat.protocol.limits import MAX_BLOCK_RAW
from mailboat.protocol.reader import Block, SegmentReader
from mailboat.protocol.records import COUNTERS
from mailboat.protocol.segment import _HEADER, BLOCK_HEADER_SIZE, BLOCK_START, SKIPPABLE
from mailboat.protocol.summary import Info
from testkit.segments import Segment, event, feature, positional, schema

FIRST = 100


@cache
def segments() -> list[tuple[bytes, dict[bytes, int]]]:
    """Whole segments, sealed and not; of each the bytes of its blocks, and how many records are in them."""
    return [built(blocks, seal=seal) for blocks in (0, 1, 7) for seal in (True, False)]


def built(blocks: int, *, seal: bool) -> tuple[bytes, dict[bytes, int]]:
    made, known = Segment(info=Info(), first=FIRST), {}
    for number in range(blocks):
        frame = made.block([schema(number, f"s{number}", "a"), positional(number, 1), feature("f"), event("e", 40)])
        known[frame] = 3
    return (made.seal() if seal else made.data), known


def changed(data: bytes, chance: random.Random, other: bytes) -> bytes:
    """As damage, or a bad copy, would change it."""
    at, length = chance.randrange(len(data)), chance.choice([1, 1, 2, 8, 50, 300])
    start = chance.randrange(len(other))
    flipped = bytes([data[at] ^ (1 << chance.randrange(8))])
    between, after = chance.choice(
        [
            (flipped, at + 1),
            (flipped, at + 1),
            (b"", at + length),
            (chance.randbytes(length), at),
            (data[max(0, at - length) : at], at),
            (bytes(length), at + length),
            (other[start : start + length * 4], at),
            (b"", len(data)),
        ]
    )
    return data[:at] + between + data[after:]


def read(data: bytes, chance: random.Random) -> tuple[SegmentReader, list[Block]]:
    """Fed in pieces, blocks and records taken as they come."""
    reader, blocks, at = SegmentReader(), list[Block](), 0
    while at < len(data):
        size = chance.choice([1, 7, 100, 5000])
        reader.feed(data[at : at + size])
        at += size
        blocks += reader.blocks()
    reader.close()
    blocks += reader.blocks()
    return reader, blocks


def check(data: bytes, reader: SegmentReader, blocks: list[Block]) -> None:
    assert reader.offset + reader.torn == len(data)
    sequences = [block.header.first + at for block in blocks for at in range(block.header.records)]
    assert sequences == sorted(set(sequences))
    missing = {gap.first + at for gap in reader.gaps for at in range(min(gap.records or 0, 10_000))}
    assert not missing & set(sequences), "said to be lost, and given"
    for gap in reader.gaps:
        assert 0 <= gap.offset <= gap.offset + gap.length <= len(data)
    at_once = SegmentReader(data)
    assert list(at_once.blocks()) == blocks, "fed at once it tells the same"
    assert at_once.gaps == reader.gaps


def fuzz(seeds: range) -> None:
    whole = 0
    for seed in seeds:
        chance = random.Random(seed)
        data, known = chance.choice(segments())
        original = data
        for _ in range(chance.choice([1, 1, 1, 2, 5])):
            if data:
                data = changed(data, chance, chance.choice(segments())[0])
        try:
            reader, blocks = read(data, chance)
            check(data, reader, blocks)
            for block in blocks:
                frame = data[block.offset : block.end]
                of_another = any(frame in others for _, others in segments())
                assert frame in known or of_another, "a block that nobody has written"
                assert len(reader.records(block)) == block.header.records
            assert not reader.intact or data == original or data in {each for each, _ in segments()}
            whole += len(blocks)
        except BaseException as error:
            error.add_note(f"the seed was {seed}")
            raise
    assert whole > len(seeds), "nothing was ever read"


def deceive(seed: int) -> bytes:
    """Headers whose checksums are right, and nothing else need be."""
    chance = random.Random(seed)
    made = Segment(info=Info(), first=FIRST)
    data = bytearray(made.data)
    for _ in range(chance.randrange(1, 6)):
        payload = chance.randbytes(chance.choice([0, 1, 30, 500]))
        salt = chance.choice([7, 7, 7, 8])
        numbers = [chance.choice([0, 1, 3, 100, 10**6, 2**32 - 1]) for _ in range(4)]
        fields = [
            *(1, chance.choice([0, 0, 1, 9]), chance.choice([0, 65535]), salt, chance.choice([0, FIRST, 2**64 - 1])),
            *(numbers[0], min(numbers[1], MAX_BLOCK_RAW), chance.choice([len(payload), numbers[2] % 5000])),
            *(chance.choice([0, -(2**63), 2**63 - 1]), *([numbers[3]] * len(COUNTERS)), crc32(payload, salt)),
        ]
        body = _HEADER.pack(*fields, 0)[:-4]
        data += BLOCK_START + body + crc32(body, salt).to_bytes(4, "little") + payload
        assert len(BLOCK_START) + len(body) + 4 == BLOCK_HEADER_SIZE
    if chance.random() < 0.3:
        data += SKIPPABLE.pack(0x184D2A5C, chance.choice([0, 8, 2**32 - 1])) + b"seal"
    return bytes(data)


def fuzz_deceived(seeds: range) -> None:
    refused = 0
    for seed in seeds:
        chance, data = random.Random(seed), deceive(seed)
        try:
            reader, blocks = read(data, chance)
            assert reader.offset + reader.torn == len(data)
            for block in blocks:
                before = len(reader.gaps)
                records = reader.records(block)
                assert len(records) == block.header.records or len(reader.gaps) > before
                refused += len(reader.gaps) - before
        except BaseException as error:
            error.add_note(f"the seed was {seed}")
            raise
    assert refused > len(seeds) // 10


def test_ten_thousand_changed_segments() -> None:
    fuzz(range(8_000))


def test_two_thousand_that_were_made_to_deceive() -> None:
    fuzz_deceived(range(2_000))


@pytest.mark.soak
@pytest.mark.parametrize("part", range(100))
def test_soak_changed_segments(part: int) -> None:
    fuzz(range(10_000 + part * 80_000, 10_000 + (part + 1) * 80_000))


@pytest.mark.soak
@pytest.mark.parametrize("part", range(100))
def test_soak_segments_made_to_deceive(part: int) -> None:
    fuzz_deceived(range(10_000 + part * 20_000, 10_000 + (part + 1) * 20_000))

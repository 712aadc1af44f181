"""Segments as bytes: what is written is read back, the layout is as documented, and any tool for zstd reads it."""

from __future__ import annotations

import hashlib
import shutil
import struct
import subprocess
from pathlib import Path
from zlib import crc32

import msgpack
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mailboat.protocol.errors import SegmentError
from mailboat.protocol.limits import MAX_BLOCK, MAX_BLOCK_RAW, MAX_SEAL, MAX_SEQUENCE
from mailboat.protocol.records import COUNTERS
from mailboat.protocol.segment import (
    BLOCK_HEADER_SIZE,
    BLOCK_MAGIC,
    PREAMBLE_MAGIC,
    SEAL_MAGIC,
    SKIPPABLE,
    BlockHeader,
    Preamble,
    Seal,
    SealReason,
)
from mailboat.protocol.segment_writer import SegmentWriter
from testkit.segments import CLOCK, SESSION, Segment, feature, pack, schema

U32 = st.integers(0, 2**32 - 1)
COUNT = st.integers(0, MAX_SEQUENCE)
I64 = st.integers(-(2**63), 2**63 - 1)
COUNTS = st.lists(U32, min_size=len(COUNTERS), max_size=len(COUNTERS)).map(tuple)
PLAIN = st.none() | st.booleans() | I64 | st.text() | st.floats(allow_nan=False)

preambles = st.builds(
    Preamble,
    session_id=st.uuids().map(str),
    index=U32,
    salt=U32,
    first=COUNT,
    started_wall=I64,
    started_monotonic=I64,
    pid=U32,
    process_started=st.text(),
    boot_id=st.text(),
    info=st.dictionaries(st.text(), PLAIN, max_size=5),
)
headers = st.builds(
    BlockHeader,
    salt=U32,
    first=COUNT,
    records=U32,
    raw_length=st.integers(0, MAX_BLOCK_RAW),
    length=st.integers(0, MAX_BLOCK),
    clock=I64,
    counts=COUNTS,
    payload_crc=U32,
    encoding=st.integers(0, 255),
)
seals = st.builds(
    Seal,
    reason=st.sampled_from(SealReason),
    next=COUNT,
    blocks=U32,
    raw_bytes=COUNT,
    counts=COUNTS,
    ended_wall=I64,
    ended_monotonic=I64,
    sha256=st.binary(min_size=32, max_size=32),
    installation=st.none() | st.dictionaries(st.text(), PLAIN, min_size=1, max_size=5),
    lost=st.dictionaries(st.text(), U32, max_size=4),
)


@given(preambles)
def test_a_preamble_reads_back(preamble: Preamble) -> None:
    assert Preamble.decode(preamble.encode()) == preamble


@given(headers)
def test_a_header_reads_back(header: BlockHeader) -> None:
    frame = header.encode()
    assert len(frame) == BLOCK_HEADER_SIZE
    assert BlockHeader.decode(frame) == header
    assert BlockHeader.decode(memoryview(frame + b"payload")) == header


@given(seals)
def test_a_seal_reads_back_from_its_frame_and_from_the_end_of_a_file(seal: Seal) -> None:
    frame = seal.encode()
    assert Seal.decode(frame) == seal
    assert Seal.at_end_of(b"what stands before it" + frame) == (seal, len(frame))


@given(preambles, st.data())
def test_a_preamble_with_any_bit_flipped_is_refused(preamble: Preamble, data: st.DataObject) -> None:
    frame = bytearray(preamble.encode())
    bit = data.draw(st.integers(SKIPPABLE.size * 8, len(frame) * 8 - 1))
    frame[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SegmentError):
        Preamble.decode(bytes(frame))


@given(headers, st.data())
def test_a_header_with_any_bit_flipped_is_none(header: BlockHeader, data: st.DataObject) -> None:
    frame = bytearray(header.encode())
    bit = data.draw(st.integers(0, len(frame) * 8 - 1))
    frame[bit // 8] ^= 1 << bit % 8
    assert BlockHeader.decode(frame) is None


@given(seals, st.data())
def test_a_seal_with_any_bit_flipped_or_cut_is_none(seal: Seal, data: st.DataObject) -> None:
    frame = bytearray(seal.encode())
    bit = data.draw(st.integers(0, len(frame) * 8 - 1))
    frame[bit // 8] ^= 1 << bit % 8
    assert Seal.decode(bytes(frame)) is None
    assert Seal.at_end_of(bytes(frame)) is None
    cut = seal.encode()[: data.draw(st.integers(0, len(frame) - 1))]
    assert Seal.decode(cut) is None
    assert Seal.at_end_of(cut) is None


def preamble_with(**changes: object) -> bytes:
    """A preamble whose checksum is right, whatever it says."""
    fields = {"session": SESSION, "index": 0, "salt": 1, "first": 0, "wall": 1, "monotonic": 1}
    content = msgpack.packb({**fields, **changes})
    head = struct.pack("<8sHI", b"mailboat", 1, crc32(content, 1))
    return SKIPPABLE.pack(PREAMBLE_MAGIC, len(head) + len(content)) + head + content


def test_fields_that_came_later_have_defaults() -> None:
    decoded = Preamble.decode(preamble_with(unknown="later"))
    assert (decoded.pid, decoded.process_started, decoded.boot_id, dict(decoded.info)) == (0, "", "", {})


@pytest.mark.parametrize(
    "changes",
    [
        {"session": "../../etc/passwd"},
        {"session": None},
        {"session": SESSION.upper()},
        {"index": "x"},
        {"index": None},
        {"salt": float("inf")},
        {"first": float("nan")},
        {"info": 5},
        {"wall": []},
        {"index": -1},
        {"index": "9" * 4000},
        {"first": MAX_SEQUENCE + 1},
        {"wall": 2**63},
        {"monotonic": "-" + "9" * 4000},
        {"pid": 1e300},
    ],
)
def test_a_preamble_with_impossible_fields_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="preamble"):  # SegmentError or, for the id, WireError
        Preamble.decode(preamble_with(**changes))


@pytest.mark.parametrize("cut", [0, 3, 7, 8, 15, 21, 22, 40])
def test_a_preamble_cut_short_is_refused(cut: int) -> None:
    with pytest.raises(SegmentError):
        Preamble.decode(preamble_with()[:cut])


def test_a_version_to_come_is_refused_with_what_to_do() -> None:
    frame = preamble_with()
    content = frame[22:]
    frame = frame[:16] + struct.pack("<HI", 3, crc32(content, 3)) + content
    with pytest.raises(SegmentError, match=r"format version 3.*update"):
        Preamble.decode(frame)


def seal_with(content: object) -> bytes:
    packed = msgpack.packb(content)
    tail = len(packed).to_bytes(4, "little") + crc32(packed).to_bytes(4, "little") + b"seal"
    return SKIPPABLE.pack(SEAL_MAGIC, len(packed) + len(tail)) + packed + tail


SAID = {"reason": "stopped", "next": 1, "blocks": 1, "raw": 1, "counts": [0] * 12, "wall": 1, "monotonic": 1}


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"reason": "bored"},
        *({**SAID, "sha256": size} for size in (1, 2**40, 2**62)),  # the size of what Python would make of it
        *({**SAID, "sha256": b"", "next": number} for number in (-1, MAX_SEQUENCE + 1, 2**64 - 1, "9" * 4000)),
        {**SAID, "sha256": b"", "counts": [MAX_SEQUENCE + 1, *[0] * 11]},
        {**SAID, "sha256": b"", "counts": [0] * 11 + [-1]},
        {**SAID, "sha256": b"", "lost": {"full": 2**63}},
        {**SAID, "sha256": b"", "wall": 1e308},
        {**SAID, "sha256": b"", "installation": "x"},
        {"reason": "stopped", "next": 1, "blocks": 1, "raw": 1, "counts": [1], "wall": 1, "monotonic": 1},
        {"reason": "stopped", "next": float("inf"), "blocks": 1, "raw": 1, "counts": [0] * 12, "wall": 1},
        {
            "reason": "stopped",
            "next": 1,
            "blocks": 1,
            "raw": 1,
            "counts": [0] * 12,
            "wall": 1,
            "monotonic": 1,
            "sha256": b"",
            "lost": 5,
        },
    ],
)
def test_a_seal_with_impossible_fields_is_an_error(content: object) -> None:
    with pytest.raises(SegmentError, match="seal"):
        Seal.decode(seal_with(content))


def test_descriptions_that_are_too_large_are_refused_at_once() -> None:
    preamble = Preamble.decode(preamble_with())
    with pytest.raises(SegmentError, match="shorten its properties"):
        replace(preamble, info={"x": "y" * 70_000}).encode()
    seal = Seal(SealReason.STOPPED, 0, 0, 0, (0,) * len(COUNTERS), 0, 0, b"", {"properties": "y" * MAX_SEAL})
    with pytest.raises(SegmentError, match="shorten the installation's properties"):
        seal.encode()


def test_the_documented_layout() -> None:
    made = Segment()
    start = len(made.data)
    frame = made.block([feature("a"), feature("b")])
    end = len(made.data)
    whole = made.seal()
    magic, length = SKIPPABLE.unpack_from(whole)
    assert (magic, length) == (PREAMBLE_MAGIC, start - 8)
    magic, length = SKIPPABLE.unpack_from(frame)
    assert (magic, length) == (BLOCK_MAGIC, BLOCK_HEADER_SIZE - 8)
    assert zstandard.get_frame_parameters(frame[BLOCK_HEADER_SIZE:]).content_size == len(pack(feature("a"))) * 2
    magic, length = SKIPPABLE.unpack_from(whole, end)
    assert (magic, length) == (SEAL_MAGIC, len(whole) - end - 8)
    assert whole.endswith(b"seal")
    found = Seal.at_end_of(whole)
    assert found is not None
    assert found[0].sha256 == hashlib.sha256(whole[:end]).digest()
    assert (found[0].records, found[0].next, found[0].blocks) == (2, 2, 1)


def test_writing_changes_nothing_until_the_bytes_are_said_to_be_in_the_file() -> None:
    writer = SegmentWriter(Preamble.decode(preamble_with()))
    counts = [2, *[0] * (len(COUNTERS) - 1)]
    first, again = (writer.block(pack(feature("a")) * 2, counts, CLOCK) for _ in range(2))
    assert first == again
    assert (writer.size, writer.next, writer.records, writer.blocks) == (0, 0, 0, 0)
    writer.add(first[1], first[0])
    assert (writer.size, writer.next, writer.records, writer.blocks) == (len(first[1]), 2, 2, 1)
    assert writer.sha256 == hashlib.sha256(first[1]).digest()


def test_declarations_take_no_sequence_numbers() -> None:
    made = Segment(first=40)
    made.block([schema(0, "a", "b"), feature(), schema(1, "c")])
    made.block([schema(2, "d")])
    assert (made.writer.next, made.writer.records) == (41, 1)


@given(st.lists(st.binary(max_size=300), max_size=6), st.integers(1, 3))
def test_a_block_checks_for_its_own_payload_and_salt_alone(raws: list[bytes], level: int) -> None:
    writer = SegmentWriter(Preamble.decode(preamble_with(salt=99)), level)
    for raw in raws:
        header, frame = writer.block(raw, [0] * len(COUNTERS), CLOCK)
        payload = frame[BLOCK_HEADER_SIZE:]
        assert header.checks(payload)
        assert not header.checks(payload + b"\0")
        assert not header.checks(payload[:-1])
        assert not replace(header, salt=98).checks(payload)
        assert zstandard.decompress(payload) == raw


def test_the_real_zstd_prints_the_very_stream_of_records(tmp_path: Path) -> None:
    """A segment is a standard .zst file, sealed or not, and through damage to what is ours alone."""
    tool = shutil.which("zstd")
    if tool is None:
        pytest.skip("NO zstd ON THIS MACHINE: that segments are standard .zst files goes unchecked here")
    made, stream = Segment(), b""
    for block in range(12):
        records = [schema(block, "s", "x"), *(feature(f"f.{block}", n=n, text="é" * n) for n in range(20))]
        made.block(records)
        stream += b"".join(map(pack, records))
    path = tmp_path / "000000.zst"
    for content in (made.data, made.seal()):
        path.write_bytes(content)
        done = subprocess.run([tool, "-dc", str(path)], capture_output=True, check=True)
        assert done.stdout == stream
        assert subprocess.run([tool, "-tq", str(path)], check=False).returncode == 0


@pytest.mark.parametrize(("content", "reason"), [(b"\xc1", "no msgpack"), (b"\x91\x01", "holds a list, not a map")])
def test_a_description_that_is_no_map_is_refused_though_its_checksum_is_right(content: bytes, reason: str) -> None:
    head = struct.pack("<8sHI", b"mailboat", 1, crc32(content, 1))
    with pytest.raises(SegmentError, match=reason):
        Preamble.decode(SKIPPABLE.pack(PREAMBLE_MAGIC, len(head) + len(content)) + head + content)
    tail = struct.pack("<II4s", len(content), crc32(content), b"seal")
    with pytest.raises(SegmentError, match=reason):
        Seal.decode(SKIPPABLE.pack(SEAL_MAGIC, len(content) + len(tail)) + content + tail)

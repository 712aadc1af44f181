"""Sealed segments: nothing is told without the key, and what was changed, cut or moved costs one block at most."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from zlib import crc32

import msgpack
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from nacl.public import PublicKey as NaclKey
from nacl.public import SealedBox

from mailboat.protocol import Info, Preamble, SealReason, SegmentReader, SegmentWriter
from mailboat.protocol.errors import ConfigError, SealedError, SegmentError
from mailboat.protocol.limits import MAX_BLOCK, MAX_BLOCK_RAW
from mailboat.protocol.reader import Block, decompress, zstd_frame
from mailboat.protocol.records import COUNTERS
from mailboat.protocol.sealing import (
    ID_BYTES,
    LOCK_BYTES,
    Keyring,
    Note,
    PrivateKey,
    PublicKey,
    Purpose,
    SealedPayload,
    Sealer,
    SegmentKey,
    key_of,
    sealed_length,
)
from mailboat.protocol.segment import BLOCK_HEADER_SIZE, ENCODING_SEALED, BlockHeader
from testkit.sealed import KEYS, OTHER, PRIVATE, SECRET, SealedSegment, sealed_writer
from testkit.segments import CLOCK, SESSION, Segment, feature

BLOCKS, PER_BLOCK, FIRST = 6, 2, 100
EVERY = set(range(FIRST, FIRST + BLOCKS * PER_BLOCK))
ELSEWHERE = "018f0000-0000-7000-8000-000000000002"


@cache
def segment() -> SealedSegment:
    made = SealedSegment(first=FIRST)
    for block in range(BLOCKS):
        made.block([feature(f"{SECRET}.{block}"), feature("g")], Note(block))
    return made


@cache
def sealed() -> bytes:
    made = segment()
    return made.data + made.writer.seal(SealReason.STOPPED, CLOCK, 0, {"id": SECRET})


def kept(reader: SegmentReader) -> set[int]:
    return {record.sequence for record in reader}


def told(reader: SegmentReader) -> set[int]:
    return {gap.first + at for gap in reader.gaps for at in range(gap.records or 0)}


def frames() -> list[bytes]:
    made = segment()
    starts = [made.ends[0] - (made.ends[1] - made.ends[0]), *made.ends]
    return [made.data[: starts[0]], *(made.data[a:b] for a, b in zip(starts, made.ends, strict=False))]


# -- what is told ----------------------------------------------------------------------------------------------------


def test_the_holder_of_the_key_reads_what_was_written() -> None:
    reader = SegmentReader(sealed(), KEYS.unlock)
    names = [record.name for record in reader]
    assert names == [name for block in range(BLOCKS) for name in (f"{SECRET}.{block}", "g")]
    assert (reader.intact, reader.gaps) == (True, [])
    assert reader.preamble is not None
    assert reader.preamble.version == 2


def test_without_the_key_nothing_is_told_but_numbers() -> None:
    assert SECRET.encode() not in sealed()
    reader = SegmentReader(sealed())
    blocks = list(reader.blocks())
    assert sum(block.header.records for block in blocks) == len(EVERY)
    assert reader.intact, "structure, checksums and digest are checked without the key"
    for block in blocks:
        assert reader.records(block) == []
    assert told(reader) == EVERY
    assert all(f"sealed to the key {PRIVATE.public.id}" in gap.reason for gap in reader.gaps)


def test_any_tool_for_zstd_passes_over_it(tmp_path: Path) -> None:
    assert zstandard.ZstdDecompressor().stream_reader(sealed(), read_across_frames=True).read() == b""
    tool = shutil.which("zstd")
    if tool is not None:
        path = tmp_path / "sealed.zst"
        path.write_bytes(sealed())
        done = subprocess.run([tool, "-dc", path], capture_output=True, check=True)
        assert (done.stdout, done.stderr) == (b"", b"")


def test_equal_blocks_and_equal_segments_do_not_look_equal() -> None:
    one, other = SealedSegment(), SealedSegment()
    assert one.writer.sealer is not None
    assert other.writer.sealer is not None
    assert one.writer.sealer.key.secret != other.writer.sealer.key.secret
    again = [one.writer.block(b"x" * 50, [0] * len(COUNTERS), 0)[1] for _ in range(3)]
    assert len({block[-66:] for block in again}) == 3, "a write that is made again takes another nonce"


def test_the_key_of_another_server_opens_nothing() -> None:
    reader = SegmentReader(sealed(), Keyring([OTHER]).unlock)
    assert kept(reader) == set()
    assert told(reader) == EVERY
    assert "which is not here" in reader.gaps[0].reason


def test_a_server_with_several_keys_opens_what_is_sealed_to_any(seed: int) -> None:
    keys = [OTHER, PrivateKey(random.Random(seed).randbytes(32)), PRIVATE]
    assert kept(SegmentReader(sealed(), Keyring(keys).unlock)) == EVERY
    assert PRIVATE.public.id in Keyring(keys)
    assert PRIVATE.public.id not in Keyring([OTHER])


# -- damage ----------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_of_any_byte_costs_one_block_at_most_and_is_reported() -> None:
    data = sealed()
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        reader = SegmentReader(damaged, KEYS.unlock)
        found = kept(reader)
        assert len(found) >= len(EVERY) - PER_BLOCK, at
        assert told(reader) == EVERY - found, at
        assert reader.gaps, at


def test_a_block_changed_by_somebody_who_mends_the_checksums_is_refused() -> None:
    """CRC-32 is for accidents; what is hidden, and what its header says of it, is held by the cipher."""
    head, *blocks = frames()
    victim, tail = blocks[2], sealed()[segment().ends[-1] :]
    header = BlockHeader.decode(victim)
    assert header is not None
    payload = victim[BLOCK_HEADER_SIZE:]
    for at in range(8, len(payload)):
        changed = bytearray(payload)
        changed[at] ^= 1
        mended = replace(header, payload_crc=crc32(changed, header.salt)).encode() + changed
        reader = SegmentReader(b"".join([head, *blocks[:2], mended, *blocks[3:], tail]), KEYS.unlock)
        assert kept(reader) == EVERY - {FIRST + 4, FIRST + 5}, at
        assert told(reader) == {FIRST + 4, FIRST + 5}, at
    for lie in ({"clock": 1}, {"raw_length": 1}, {"counts": (0, 2, *[0] * (len(COUNTERS) - 2))}, {"encoding": 7}):
        mended = replace(header, **lie).encode() + payload
        reader = SegmentReader(b"".join([head, *blocks[:2], mended, *blocks[3:], tail]), KEYS.unlock)
        assert kept(reader) == EVERY - {FIRST + 4, FIRST + 5}


def test_a_block_cut_short_with_its_checksums_mended_is_refused() -> None:
    head, *blocks = frames()
    header = BlockHeader.decode(blocks[2])
    assert header is not None
    payload = blocks[2][BLOCK_HEADER_SIZE:]
    for length in range(len(payload)):
        cut = payload[:length]
        mended = replace(header, length=length, payload_crc=crc32(cut, header.salt)).encode() + cut
        reader = SegmentReader(b"".join([head, *blocks[:2], mended, *blocks[3:]]), KEYS.unlock)
        assert kept(reader) == EVERY - {FIRST + 4, FIRST + 5}, length


def test_blocks_in_another_order_are_refused_or_stand_where_they_say() -> None:
    head, *blocks = frames()
    swapped = [blocks[0], blocks[2], blocks[1], *blocks[3:]]
    reader = SegmentReader(b"".join([head, *swapped]), KEYS.unlock)
    assert kept(reader) == EVERY - {FIRST + 2, FIRST + 3}
    assert told(reader) == {FIRST + 2, FIRST + 3}
    # Renumbered so that the order looks right, with checksums mended:
    for at, first in ((2, FIRST + 2), (1, FIRST + 4)):
        header = BlockHeader.decode(blocks[at])
        assert header is not None
        renumbered = replace(header, first=first).encode() + blocks[at][BLOCK_HEADER_SIZE:]
        place = (first - FIRST) // PER_BLOCK
        reader = SegmentReader(b"".join([head, *blocks[:place], renumbered, *blocks[place + 1 :]]), KEYS.unlock)
        assert kept(reader) == EVERY - {first, first + 1}


@pytest.mark.parametrize(("session_id", "index"), [(SESSION, 1), (ELSEWHERE, 0)])
def test_a_block_of_another_segment_is_refused(session_id: str, index: int) -> None:
    """Of the same session or another one, of the same server, at the same place, with the same salt."""
    foreign = SealedSegment(session_id, index, first=FIRST)
    theirs = foreign.block([feature("forged"), feature("forged")])
    head, *blocks = frames()
    reader = SegmentReader(b"".join([head, theirs, *blocks[1:]]), KEYS.unlock)
    names = [record.name for record in reader]
    assert "forged" not in names
    assert len(names) == len(EVERY) - PER_BLOCK
    assert told(reader) == {FIRST, FIRST + 1}
    assert "belongs to segment" in reader.gaps[0].reason


def test_a_preamble_made_to_speak_for_another_session_opens_nothing() -> None:
    head, *blocks = frames()
    preamble = Preamble.decode(head)
    posed = replace(preamble, session_id=ELSEWHERE).encode()
    reader = SegmentReader(b"".join([posed, *blocks]), KEYS.unlock)
    assert kept(reader) == set()
    assert told(reader) == EVERY


def test_a_lost_preamble_costs_no_block() -> None:
    head, *blocks = frames()
    assert kept(SegmentReader(b"\xff" * len(head) + b"".join(blocks), KEYS.unlock)) == EVERY


def test_a_repeated_block_is_sealed_anew() -> None:
    """As when a segment is abandoned: the next one takes over what may not be on the disk."""
    reader = SegmentReader(sealed())
    first, second = segment().writer, sealed_writer(index=1, first=FIRST)
    assert first.sealer is not None
    data = second.preamble()
    for block in reader.blocks():
        frame = zstd_frame(block, first.sealer.unlock)
        note = SealedPayload.read(block.payload)
        header, made = second.framed(block.header, frame, Note(note.closed, boxed=note.note))
        second.add(made, header)
        data += made
    assert kept(SegmentReader(data, KEYS.unlock)) == EVERY


# -- writing ---------------------------------------------------------------------------------------------------------


def test_a_block_tells_when_it_was_made_and_boxes_the_installation() -> None:
    made = SealedSegment()
    data = made.block([feature()], Note(77, {"id": "inst-42", "properties": {"plan": SECRET}}))
    payload = SealedPayload.read(data[BLOCK_HEADER_SIZE:])
    assert payload.closed == 77
    assert SECRET.encode() not in data
    opened = msgpack.unpackb(KEYS.open(payload.note, Purpose.INSTALLATION, SESSION))
    assert opened == {"id": "inst-42", "properties": {"plan": SECRET}}
    assert kept(SegmentReader(made.data, KEYS.unlock)) == {0}


@pytest.mark.parametrize("given", [{"id": SECRET}, None])
def test_the_seal_boxes_the_installation(given: dict[str, object] | None) -> None:
    writer = sealed_writer()
    box = PRIVATE.public.box(Purpose.INSTALLATION, SESSION, msgpack.packb({"id": "boxed before"}))
    frame = writer.seal(SealReason.STOPPED, 0, 0, given, boxed_installation=box)
    reader = SegmentReader(writer.preamble() + frame)
    list(reader.blocks())
    assert SECRET.encode() not in frame
    assert reader.seal is not None
    assert reader.seal.installation is None
    found = msgpack.unpackb(KEYS.open(reader.seal.boxed_installation, Purpose.INSTALLATION, SESSION))
    assert found == {"id": SECRET if given else "boxed before"}


def test_a_segment_taken_over_takes_no_block_but_a_seal() -> None:
    writer = SegmentWriter(Preamble.decode(sealed_writer().preamble()))
    with pytest.raises(SegmentError, match="its key went with the process"):
        writer.block(b"x", [0] * len(COUNTERS), 0)
    assert writer.seal(SealReason.CRASHED, 0, 0)


def test_a_sealer_needs_a_preamble_that_says_so() -> None:
    with pytest.raises(SegmentError, match="of no use"):
        SegmentWriter(Preamble(SESSION, 0, 1, 0, 0, 0), 1, Sealer(PRIVATE.public, SESSION, 0, os.urandom))


def test_the_largest_block_is_still_one() -> None:
    """Records that do not compress, with the largest note."""
    writer = sealed_writer()
    raw = random.Random(1).randbytes(MAX_BLOCK_RAW)
    note = Note(0, {"id": "x" * 1024, "properties": {str(at): "y" * 1000 for at in range(16)}})
    header, data = writer.block(raw, [1, *[0] * (len(COUNTERS) - 1)], 0, note)
    assert header.length <= MAX_BLOCK
    assert BlockHeader.decode(data) == header
    assert decompress(Block(header, data[BLOCK_HEADER_SIZE:], 0), KEYS.unlock) == raw


def test_a_segment_that_is_not_sealed_is_written_as_ever() -> None:
    """Byte for byte version 1: what older readers read."""
    plain = Segment(info=Info())
    plain.block([feature()])
    data = plain.seal()
    assert data[16:18] == b"\x01\0"
    reader = SegmentReader(data)
    assert [record.name for record in reader] == ["import.csv"]
    assert reader.preamble is not None
    assert (reader.preamble.version, reader.preamble.sealed) == (1, None)
    assert b"sealed" not in data
    assert b"boxed" not in data


# -- keys and boxes --------------------------------------------------------------------------------------------------


def test_keys_are_read_back_from_their_text() -> None:
    public = PRIVATE.public
    assert public.text.startswith("mbs_")
    assert PRIVATE.text.startswith("mbx_")
    assert PublicKey.parse(public.text) == public
    assert PrivateKey.parse(PRIVATE.text) == PRIVATE
    assert len(bytes.fromhex(public.id)) == ID_BYTES


@given(st.integers(0, 51), st.characters(codec="ascii", min_codepoint=33))
def test_a_mistyped_key_is_refused(at: int, typed: str) -> None:
    text = PRIVATE.public.text
    mistyped = text[:at] + typed + text[at + 1 :]
    if mistyped != text:
        with pytest.raises(ConfigError, match="mistyped"):
            PublicKey.parse(mistyped)


@pytest.mark.parametrize("text", ["", "mbs_", "mbs_AAAA", "mbs_ü", PRIVATE.text, PRIVATE.public.text + "=", "mbk_x"])
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no public key"):
        PublicKey.parse(text)


def test_a_wrong_private_key_is_not_repeated_in_the_error() -> None:
    with pytest.raises(ConfigError) as caught:
        PrivateKey.parse(PRIVATE.text[:-2])
    assert PRIVATE.text[4:30] not in str(caught.value)
    assert str(list(PRIVATE.raw))[1:20] not in repr(PRIVATE)
    assert repr(PRIVATE.raw) not in repr(PRIVATE)
    assert "secret" not in repr(SegmentKey(SESSION, 0, b"secret"))


@given(st.binary(max_size=200))
def test_noise_is_no_box(noise: bytes) -> None:
    for box in (noise, bytes.fromhex(PRIVATE.public.id) + noise):
        with pytest.raises(SealedError):
            KEYS.open(box, Purpose.INFO, SESSION)
        with pytest.raises(SealedError):
            KEYS.unlock(box)


def boxed(content: bytes) -> bytes:
    """A box whose content does not begin as it should."""
    return bytes.fromhex(PRIVATE.public.id) + SealedBox(NaclKey(PRIVATE.public.raw)).encrypt(content)


def test_a_box_is_good_for_one_use_and_one_session() -> None:
    box = PRIVATE.public.box(Purpose.INFO, SESSION, b"content")
    assert KEYS.open(box, Purpose.INFO, SESSION) == KEYS.open(box, Purpose.INFO, None) == b"content"
    for purpose, session_id in ((Purpose.INSTALLATION, SESSION), (Purpose.INFO, ELSEWHERE), (Purpose.KEY, None)):
        with pytest.raises(SealedError, match="another use"):
            KEYS.open(box, purpose, session_id)
    with pytest.raises(SealedError, match="less than it must"):
        KEYS.open(boxed(b"short"), Purpose.INFO, SESSION)
    with pytest.raises(SealedError, match="does not hold a key"):
        KEYS.unlock(PRIVATE.public.box(Purpose.KEY, SESSION, b"short"))


def test_a_lock_has_its_length_and_is_opened_once() -> None:
    sealer = Sealer(PRIVATE.public, SESSION, 3, os.urandom)
    assert len(sealer.lock) == LOCK_BYTES
    assert key_of(sealer.lock) == PRIVATE.public.id
    assert KEYS.unlock(sealer.lock) == SegmentKey(SESSION, 3, sealer.key.secret)
    assert KEYS.unlock(sealer.lock) is KEYS.unlock(sealer.lock)
    assert sealer.unlock(sealer.lock) is sealer.key
    with pytest.raises(SealedError, match="another segment"):
        sealer.unlock(Sealer(PRIVATE.public, SESSION, 4, os.urandom).lock)


def test_a_keyring_forgets_rather_than_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailboat.protocol.sealing._MAX_UNLOCKED", 2)
    keys = Keyring([PRIVATE])
    locks = [Sealer(PRIVATE.public, SESSION, index, os.urandom).lock for index in range(5)]
    assert [keys.unlock(lock).index for lock in locks] == [0, 1, 2, 3, 4]
    assert len(keys._unlocked) <= 2


@given(st.binary(max_size=400))
def test_noise_is_no_sealed_payload(noise: bytes) -> None:
    header = BlockHeader(1, 0, 1, 10, len(noise), 0, (1, *[0] * (len(COUNTERS) - 1)), 0, ENCODING_SEALED)
    with pytest.raises(SealedError):
        decompress(Block(header, noise, 0), KEYS.unlock)


def test_the_length_is_known_before() -> None:
    sealer = Sealer(PRIVATE.public, SESSION, 0, os.urandom)
    assert len(sealer.seal(b"x" * 100, b"bound", 0, b"y" * 30)) == sealed_length(100, 30)


@pytest.mark.parametrize(
    "sealed_to",
    [{}, {"to": b"short", "lock": b"", "info": b""}, {"to": "text" * 8, "lock": b"", "info": b""}, {"to": 7}, 7, None],
)
def test_a_sealed_preamble_that_does_not_say_how_is_refused(sealed_to: object) -> None:
    frame = sealed_writer().preamble()
    values = msgpack.unpackb(frame[22:]) | {"sealed": sealed_to}
    content = msgpack.packb(values)
    head = b"mailboat" + (2).to_bytes(2, "little") + crc32(content, 2).to_bytes(4, "little")
    with pytest.raises(SegmentError, match="lacks a field or has a wrong one"):
        Preamble.decode(frame[:8] + head + content)


def test_nothing_is_imported_that_is_not_used() -> None:
    program = "import sys, mailboat.agent, mailboat.protocol.disclosure; print('nacl' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_without_the_library_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nacl.public", None)
    with pytest.raises(ConfigError, match=r"pip install 'mailboat\[seal\]'"):
        Keyring([PRIVATE])
    assert "anything" not in Keyring([])
    with pytest.raises(SealedError, match="not here"):
        Keyring([]).open(PRIVATE.raw, Purpose.INFO, None)

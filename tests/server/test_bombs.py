"""Small requests that would become large: the server refuses them, and its memory stays bounded while it does."""

from __future__ import annotations

import asyncio
import re
import struct
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
import zstandard
from msgspec.structs import replace

from mailboat.protocol import wire
from mailboat.protocol.limits import MAX_CONTAINERS, MAX_NEGOTIATION, MAX_NEGOTIATION_WIRE, MIB
from mailboat.protocol.segment import BLOCK_HEADER_SIZE, BlockHeader
from mailboat.protocol.uploads.state import Phase, UploadState
from mailboat.server.catalog import UploadRow, Verification
from mailboat.server.keys import create_key
from mailboat.server.verification import verify, whole_frames
from testkit.segments import Segment, feature
from testkit.serverkit import PRODUCT, ServerProcess, Wire, fresh_session_id, make_segment, wired

AT_ONCE = 4
GROWTH = 600 * MIB
"""What all of them together may take at the worst moment, beside a server that has been at work."""


def frame_of_window(exponent: int, content: bytes) -> bytes:
    """A zstd frame that asks for a window of 2 to the `exponent`, with its content in one raw block."""
    descriptor = (exponent - 10) << 3
    block = struct.pack("<I", len(content) << 3 | 1)[:3]
    return b"\x28\xb5\x2f\xfd\x00" + bytes([descriptor]) + block + content


def of_zeros(size: int) -> bytes:
    press = zstandard.ZstdCompressor(level=3).compressobj()
    return b"".join(press.compress(bytes(MIB)) for _ in range(size // MIB)) + press.flush()


def message(offers: bytes) -> bytes:
    """A msgpack message whose `offers` are these bytes."""
    return b"\x83\xa1v\x01\xa5agent\xa0\xa6offers" + offers


def lists(count: int, each: bytes) -> bytes:
    return b"\xdd" + struct.pack(">I", count) + each * count


JSON, MSGPACK = wire.JSON_MEDIA_TYPE, wire.MSGPACK_MEDIA_TYPE
NESTED = lists(1000, lists(8000, b"\x80"))

BOMBS: Mapping[str, tuple[bytes, str, bool]] = {
    "30,000 times larger than sent": (of_zeros(2048 * MIB), MSGPACK, True),
    **{f"a window of 2^{each}": (frame_of_window(each, b"x" * 100), MSGPACK, True) for each in range(27, 32)},
    "a window of 2^41": (frame_of_window(41, b"x" * 100), MSGPACK, True),
    "depth": (b"\x91" * 1_000_000 + b"\xc0", MSGPACK, False),
    "depth in JSON": (b"[" * 1_000_000, JSON, False),
    "a list of 2^32": (message(b"\xdd\xff\xff\xff\xff"), MSGPACK, False),
    "a map of 2^32": (message(b"\xdf\xff\xff\xff\xff"), MSGPACK, False),
    "a text of 2^32": (message(b"\xdb\xff\xff\xff\xff"), MSGPACK, False),
    "empty maps": (message(lists(MAX_NEGOTIATION - 100, b"\x80")), MSGPACK, True),
    "empty lists": (message(lists(MAX_NEGOTIATION - 100, b"\x90")), MSGPACK, True),
    "empty maps in lists": (message(NESTED), MSGPACK, True),
    "empty maps in JSON": (b'{"v":1,"agent":"","offers":[' + b"{}," * 2_600_000 + b"{}]}", JSON, True),
    "empty lists in JSON": (b'{"v":1,"agent":"","offers":[' + b"[]," * 2_600_000 + b"[]]}", JSON, True),
    "short texts": (message(lists(2_700_000, b"\xa2\xc3\xa9")), MSGPACK, True),
    "too large as sent": (bytes(MAX_NEGOTIATION_WIRE + 1), MSGPACK, False),
}


@pytest.fixture
async def apart(tmp_path: Path) -> AsyncIterator[tuple[ServerProcess, Wire]]:
    """A server in a process of its own, that has been at work."""
    key = await asyncio.to_thread(create_key, tmp_path / "data", PRODUCT)
    server = await ServerProcess.start(tmp_path / "data")
    async with wired(server.url, key) as client:
        data = make_segment(fresh_session_id())
        path = await client.upload_of(data)
        assert (await client.append(path, data, 0, complete=True)).complete
        yield server, client
    assert await server.stop() == 0


def peak(server: ServerProcess) -> int:
    """The most memory that the server has had at once, in bytes."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


async def throw(client: Wire, bomb: tuple[bytes, str, bool]) -> int:
    body, media_type, compressed = bomb
    headers = {"Content_Type": media_type}
    if compressed:
        headers["Content_Encoding"] = "zstd"
    return (await client.ask("POST", "/v1/negotiate", data=body, **headers)).status


def packed(bomb: tuple[bytes, str, bool]) -> tuple[bytes, str, bool]:
    body, media_type, compressed = bomb
    is_frame = body[:4] == b"\x28\xb5\x2f\xfd"
    return (body if is_frame or not compressed else wire.compress(body), media_type, compressed)


@pytest.mark.skipif(sys.platform != "linux", reason="a process tells its peak of memory in /proc")
async def test_bombs_cost_their_senders_a_refusal_and_the_server_little(
    apart: tuple[ServerProcess, Wire],
) -> None:
    server, client = apart
    before = await asyncio.to_thread(peak, server)
    for name, bomb in BOMBS.items():
        made = await asyncio.to_thread(packed, bomb)
        statuses = await asyncio.gather(*(throw(client, made) for _ in range(AT_ONCE)))
        assert set(statuses) <= {400, 413}, name
        grown = await asyncio.to_thread(peak, server) - before
        assert grown < GROWTH, f"{name}: {grown // MIB} MiB"
    assert (await client.ask("GET", "/v1/status")).status == 200
    data = make_segment(fresh_session_id())
    path = await client.upload_of(data)
    assert (await client.append(path, data, 0, complete=True)).complete


def test_a_segment_is_read_up_to_its_first_damage() -> None:
    """Each kept as a gap, all of them together would take twice what the segment does."""
    made = Segment()
    head, block = made.data, made.block([feature()])
    read = []

    class Blob:
        def read(self, _: str, offset: int, length: int) -> bytes:
            read.append(length)
            return content[offset : offset + length]

    header, payload = BlockHeader.decode(block), block[BLOCK_HEADER_SIZE:]
    assert header is not None
    damaged = (replace(header, first=at, payload_crc=0).encode() for at in range(1, 8 * MIB // len(block)))
    content = head + block + b"".join(each + payload for each in damaged)
    row = UploadRow(UploadState(fresh_session_id(), len(content), len(content), Phase.COMPLETE), PRODUCT)
    found = verify(Blob(), row)
    assert (found.verification, found.reason) == (Verification.QUARANTINED, "corrupted")
    assert f"damaged at byte {len(head) + len(block)}" in found.detail
    assert whole_frames(Blob(), row.id, len(content)) == len(head) + len(block)
    assert sum(read) < 3 * MIB


def test_the_bound_on_containers_leaves_room_for_the_largest_honest_message() -> None:
    """Of nothing but segments, as many as there are bytes for, each with the shortest values."""
    segment = wire.encode({"index": 0, "size": 0, "records": 0, "sealed": False, "sha256": ""}, MSGPACK)
    assert MAX_NEGOTIATION // len(segment) < MAX_CONTAINERS


async def test_huge_headers_are_refused(apart: tuple[ServerProcess, Wire]) -> None:
    """One that is too long, and too many of them."""
    server, client = apart
    names = ("Upload-Metadata", "Authorization", "X-Noise", "Upload-Offset", "Cookie")
    for head in (each for name in names for each in (f"{name}: {'x' * 1_000_000}\r\n", f"{name}: x\r\n" * 5_000)):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(f"POST /v1/uploads HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
        async with asyncio.timeout(20):
            assert (await reader.readline()).split()[1] == b"400"
        writer.close()
    assert (await client.ask("GET", "/v1/status")).status == 200

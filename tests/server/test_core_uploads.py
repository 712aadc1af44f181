"""Uploads to a real server: whole, in parts, cut anywhere, taken over, refused."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from mailboat.server import ServerConfig
from mailboat.server.catalog import Role, Verification
from mailboat.server.context import CATALOG, COUNTERS
from mailboat.server.keys import create_key
from mailboat.server.serving import RunningServer, running
from mailboat.server.turns import TURNS
from testkit.serverkit import (
    PRODUCT,
    RawAppend,
    Wire,
    blob_path,
    eventually,
    fresh_session_id,
    make_segment,
    summary_of,
    wired,
)

KIB = 1024


def stored(server: RunningServer, path: str) -> bytes:
    """The server's copy."""
    return blob_path(server.app, path).read_bytes()


def idle(server: RunningServer) -> bool:
    return server.app[TURNS].transfers == 0


async def verification(server: RunningServer, path: str) -> Verification:
    row = await server.app[CATALOG].upload(path.rpartition("/")[2])
    assert row is not None
    return row.verification


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def test_a_whole_segment_in_one_append(server: RunningServer, client: Wire) -> None:
    data = make_segment(fresh_session_id(), size=3_000_000)
    path = await client.upload_of(data)
    answer = await client.append(path, data, 0, complete=True)
    assert (answer.status, answer.offset, answer.complete) == (204, len(data), True)
    assert stored(server, path) == data
    assert await verification(server, path) is Verification.VERIFIED


async def test_a_body_of_unknown_length_is_taken(server: RunningServer, client: Wire) -> None:
    data = make_segment(fresh_session_id(), size=300_000)
    path = await client.upload_of(data)
    answer = await client.append(path, pieces(data, 7_001), 0, complete=True)
    assert (answer.status, answer.offset, answer.complete) == (204, len(data), True)
    assert stored(server, path) == data


async def test_a_live_segment_grows_in_appends(server: RunningServer, client: Wire) -> None:
    data = make_segment(fresh_session_id(), size=50_000)
    path = await client.upload_of(data)
    middle = len(data) // 3
    first = await client.append(path, data[:middle], 0, complete=False)
    assert (first.status, first.offset, first.complete) == (204, middle, False)
    assert await verification(server, path) is Verification.PENDING
    found = await client.ask("HEAD", path)
    assert (found.status, found.offset, found.complete) == (204, middle, False)
    last = await client.append(path, data[middle:], middle, complete=True)
    assert (last.offset, last.complete) == (len(data), True)
    assert stored(server, path) == data


async def test_a_segment_that_arrived_is_completed_by_an_empty_append(server: RunningServer, client: Wire) -> None:
    data = make_segment(fresh_session_id())
    path = await client.upload_of(data)
    await client.append(path, data, 0, complete=False)
    answer = await client.append(path, None, len(data), complete=True)
    assert (answer.status, answer.complete) == (204, True)
    assert await verification(server, path) is Verification.VERIFIED


@pytest.mark.parametrize("offset", [0, 99, 101, 4_000])
async def test_an_append_elsewhere_is_told_the_offset(client: Wire, offset: int) -> None:
    data = make_segment(fresh_session_id())
    path = await client.upload_of(data)
    await client.append(path, data[:100], 0, complete=False)
    answer = await client.append(path, data[100:], offset, complete=True)
    assert (answer.status, answer.offset, answer.complete) == (409, 100, False)
    assert (await client.append(path, data[100:], 100, complete=True)).complete


# -- cut bodies --------------------------------------------------------------------------------------------------------


async def test_every_byte_of_a_cut_body_is_kept(server: RunningServer, client: Wire) -> None:
    data = make_segment(fresh_session_id(), size=1_000_000)
    path = await client.upload_of(data)
    sent = 0
    for size in (1, 10, 4_096, 65_536, 200_000, 300_001):
        cut = await RawAppend.begin(client, path, len(data) - sent, sent)
        await cut.send(data[sent : sent + size])
        await cut.close()
        sent += size
        await eventually(lambda: idle(server) and server.app[COUNTERS]["bytes_received"] == sent)  # noqa: B023
        assert (await client.ask("HEAD", path)).offset == sent
    assert (await client.append(path, data[sent:], sent, complete=True)).complete
    assert stored(server, path) == data


async def test_a_segment_cut_every_64_kib_is_sent_once(server: RunningServer, client: Wire) -> None:
    data = make_segment(fresh_session_id(), size=16 * KIB * KIB)
    path = await client.upload_of(data)
    sent = 0
    offset = 0
    while offset < len(data):
        cut = await RawAppend.begin(client, path, len(data) - offset, offset)
        piece = data[offset : offset + 64 * KIB]
        await cut.send(piece)
        sent += len(piece)
        await cut.close()
        await eventually(lambda: idle(server) and server.app[COUNTERS]["bytes_received"] == sent)  # noqa: B023
        offset = (await client.ask("HEAD", path)).offset
    answer = await client.append(path, None, offset, complete=True)
    assert answer.complete or (await client.ask("HEAD", path)).complete
    assert stored(server, path) == data
    assert sent == len(data)


async def test_a_body_cut_at_every_kib_is_kept_up_to_there(server: RunningServer, client: Wire) -> None:
    data = random.randbytes(40 * KIB)
    for at in range(KIB, len(data), KIB):
        made = await client.ask("POST", "/v1/uploads", Upload_Complete="?0", Upload_Length=str(len(data)))
        path, before = made.headers["Location"], server.app[COUNTERS]["bytes_received"]
        cut = await RawAppend.begin(client, path, len(data))
        await cut.send(data[:at])
        await cut.close()
        await eventually(lambda: server.app[COUNTERS]["bytes_received"] == before + at)  # noqa: B023
        assert (await client.ask("HEAD", path)).offset == at
        assert (await client.append(path, data[at:], at, complete=True)).complete
        assert stored(server, path) == data


async def test_a_reset_connection_loses_nothing_that_was_announced(
    server: RunningServer, client: Wire, seed: int
) -> None:
    chance = random.Random(seed)
    data = make_segment(fresh_session_id(), size=1_000_000)
    path = await client.upload_of(data)
    offset = 0
    for _ in range(20):
        cut = await RawAppend.begin(client, path, len(data) - offset, offset)
        await cut.send(data[offset : offset + chance.randrange(1, 40_000)])
        cut.abort()
        answer = await client.ask("HEAD", path)
        assert offset <= answer.offset < len(data)
        offset = answer.offset
    # The last of the dead requests may be read only after our question: then the offset has moved on once more.
    while not (answer := await client.append(path, data[offset:], offset, complete=True)).complete:
        assert answer.status == 409
        assert answer.offset > offset
        offset = answer.offset
    assert stored(server, path) == data


# -- the newest request wins -------------------------------------------------------------------------------------------


async def stalled(server: RunningServer, client: Wire, path: str, data: bytes, size: int) -> RawAppend:
    """An append of all of `data` that stops after `size` bytes, every one of them taken."""
    append = await RawAppend.begin(client, path, len(data))
    await append.send(data[:size])
    blob = blob_path(server.app, path)
    await eventually(lambda: blob.exists() and blob.stat().st_size == size)
    return append


async def test_a_query_ends_a_stalled_append_and_tells_its_bytes(server: RunningServer, client: Wire) -> None:
    data = make_segment(fresh_session_id(), size=100_000)
    path = await client.upload_of(data)
    older = await stalled(server, client, path, data, 30_000)
    async with asyncio.timeout(10):
        answer = await client.ask("HEAD", path)
        assert (answer.status, answer.offset, answer.complete) == (204, 30_000, False)
        assert await older.status() == 409
        await older.ended()
    await older.close()
    assert (await client.append(path, data[30_000:], 30_000, complete=True)).complete
    assert stored(server, path) == data


async def test_a_newer_append_takes_over(server: RunningServer, client: Wire) -> None:
    data = make_segment(fresh_session_id(), size=100_000)
    path = await client.upload_of(data)
    older = await stalled(server, client, path, data, 30_000)
    async with asyncio.timeout(10):
        answer = await client.append(path, data[30_000:], 30_000, complete=True)
    assert (answer.status, answer.complete) == (204, True)
    await older.close()
    assert stored(server, path) == data


async def test_who_takes_over_finds_the_bytes_that_had_arrived(server: RunningServer, client: Wire) -> None:
    data = make_segment(fresh_session_id(), size=200_000)
    path = await client.upload_of(data)
    older = await stalled(server, client, path, data, 30_000)
    older.writer.write(data[30_000:130_000])
    assert older.writer.transport.get_write_buffer_size() == 0  # the kernel has them, and the server has read none
    async with server.app[TURNS].take(path.rpartition("/")[2]):
        assert stored(server, path) == data[:130_000]
    await older.close()


async def test_what_an_older_append_sends_later_is_not_written(server: RunningServer, client: Wire) -> None:
    data = make_segment(fresh_session_id(), size=100_000)
    path = await client.upload_of(data)
    older = await stalled(server, client, path, data, 30_000)
    offset = (await client.ask("HEAD", path)).offset
    older.writer.write(b"\0" * 50_000)
    assert (await client.append(path, data[offset:], offset, complete=True)).complete
    older.writer.write(b"\0" * 10_000)
    await older.close()
    assert stored(server, path) == data


async def test_nobody_else_ends_an_append(config: ServerConfig, server: RunningServer, client: Wire) -> None:
    data = make_segment(fresh_session_id(), size=100_000)
    path = await client.upload_of(data)
    append = await stalled(server, client, path, data, 30_000)
    other = await asyncio.to_thread(create_key, config.data, "Other")
    async with wired(server.url, other) as stranger:
        for method in ("HEAD", "DELETE"):
            assert (await stranger.ask(method, path)).status == 404
    assert (await client.ask("OPTIONS", path)).status == 204
    assert (await client.ask("PATCH", path, data=b"x")).status == 415
    assert (await client.ask("POST", path, Upload_Complete="?1")).status == 405
    await append.send(data[30_000:])
    assert await append.status() == 204
    await append.close()
    assert (await client.ask("HEAD", path)).complete
    assert stored(server, path) == data


async def test_a_cancelled_upload_stays_gone(server: RunningServer, client: Wire) -> None:
    data = make_segment(fresh_session_id(), size=100_000)
    path = await client.upload_of(data)
    older = await stalled(server, client, path, data, 30_000)
    assert (await client.ask("DELETE", path)).status == 204
    assert not blob_path(server.app, path).exists()
    older.writer.write(data[30_000:])
    await older.close()
    assert (await client.ask("HEAD", path)).status == 410
    assert (await client.append(path, data, 0, complete=True)).status == 410
    fresh = await client.upload_of(data)
    assert fresh != path
    assert (await client.append(fresh, data, 0, complete=True)).complete


async def test_a_crowd_on_one_upload_leaves_it_whole(server: RunningServer, client: Wire, seed: int) -> None:
    chance = random.Random(seed)
    data = make_segment(fresh_session_id(), size=300_000)
    path = await client.upload_of(data)

    async def one() -> None:
        for _ in range(8):
            answer = await client.ask("HEAD", path)
            if answer.complete:
                return
            end = min(len(data), answer.offset + chance.randrange(1, 60_000))
            await client.append(path, data[answer.offset : end], answer.offset, complete=end == len(data))

    await asyncio.gather(*(one() for _ in range(6)))
    answer = await client.ask("HEAD", path)
    if not answer.complete:
        assert (await client.append(path, data[answer.offset :], answer.offset, complete=True)).complete
    assert stored(server, path) == data
    assert idle(server)


async def test_a_sender_of_next_to_nothing_is_cut_and_its_bytes_kept(config: ServerConfig, key: str) -> None:
    data = make_segment(fresh_session_id(), size=100_000)
    patient = replace(config, body_timeout=0.2, min_body_bytes=1)
    async with running(patient) as server, wired(server.url, key) as client:
        path = await client.upload_of(data)
        slow = await RawAppend.begin(client, path, len(data))
        await slow.send(data[:500])
        async with asyncio.timeout(20):
            assert await slow.status() == 204
            await slow.ended()
        await slow.close()
        assert (await client.ask("HEAD", path)).offset == 500
        assert server.app[COUNTERS]["transfers_ended_tooslow"] == 1


# -- what is no segment ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["noise", "flipped", "unsealed", "trailing", "another", "empty"])
async def test_a_damaged_segment_is_answered_kept_and_rejected(
    server: RunningServer, client: Wire, damage: str
) -> None:
    data = make_segment(fresh_session_id())
    path = await client.upload_of(data)
    flipped = bytearray(data)
    flipped[1_000] ^= 1
    sent = {
        "noise": random.randbytes(5_000),
        "flipped": bytes(flipped),
        "unsealed": data[:-10],
        "trailing": data + b"x",
        "another": make_segment(fresh_session_id()),
        "empty": b"",
    }[damage]
    answer = await client.append(path, sent, 0, complete=True)
    assert (answer.status, answer.offset, answer.complete) == (204, len(sent), True)
    assert stored(server, path) == sent
    assert await verification(server, path) is Verification.REJECTED
    (decision,) = await client.negotiate(summary_of(data))
    assert (decision.verdict, decision.reason) == ("reject", "corrupted")


async def test_a_segment_of_a_format_to_come_says_so(client: Wire) -> None:
    data = make_segment(fresh_session_id())
    path = await client.upload_of(data)
    later = data[:16] + (999).to_bytes(2, "little") + data[18:]
    await client.append(path, later, 0, complete=True)
    (decision,) = await client.negotiate(summary_of(data))
    assert (decision.verdict, decision.reason) == ("reject", "unsupported_version")


# -- uploads that nobody negotiated ------------------------------------------------------------------------------------


async def test_a_file_of_anybody_is_kept_apart(server: RunningServer, client: Wire) -> None:
    made = await client.ask("POST", "/v1/uploads", data=b"any file", Upload_Complete="?1")
    assert made.status == 201
    path = made.headers["Location"]
    assert stored(server, path) == b"any file"
    assert await verification(server, path) is Verification.QUARANTINED


async def test_an_upload_is_made_first_and_filled_later(server: RunningServer, client: Wire) -> None:
    made = await client.ask("POST", "/v1/uploads", Upload_Complete="?0", Upload_Length="5")
    assert (made.status, made.complete) == (201, False)
    path = made.headers["Location"]
    assert (await client.append(path, b"123456", 0, complete=True)).status == 400
    assert (await client.append(path, b"123", 0, complete=False)).offset == 3
    assert (await client.append(path, b"45", 3, complete=True)).complete
    assert stored(server, path) == b"12345"


async def test_a_segment_that_nobody_asked_for_is_taken(server: RunningServer, client: Wire) -> None:
    session_id = fresh_session_id()
    data = make_segment(session_id)
    made = await client.ask("POST", "/v1/uploads", data=data, Upload_Complete="?1")
    assert (made.status, made.complete) == (201, True)
    (decision,) = await client.negotiate(summary_of(data))
    assert decision.verdict == "have"
    row = await server.app[CATALOG].session(PRODUCT, session_id)
    assert row is not None
    assert row.delivered


async def test_the_same_segment_by_two_ways_counts_once(server: RunningServer, client: Wire) -> None:
    data = make_segment(fresh_session_id())
    path = await client.upload_of(data)
    await client.append(path, data, 0, complete=True)
    made = await client.ask("POST", "/v1/uploads", data=data, Upload_Complete="?1")
    assert await verification(server, made.headers["Location"]) is Verification.IMPORTED
    assert len(await server.app[CATALOG].segments_to_load()) == 1


async def test_a_segment_of_another_product_is_kept_apart(server: RunningServer, client: Wire) -> None:
    data = make_segment(fresh_session_id(), product="Other")
    made = await client.ask("POST", "/v1/uploads", data=data, Upload_Complete="?1")
    assert made.status == 201
    assert await verification(server, made.headers["Location"]) is Verification.QUARANTINED


async def test_options_tell_what_is_supported(client: Wire) -> None:
    answer = await client.ask("OPTIONS", "/v1/uploads")
    assert answer.status == 204
    assert "max-size=" in answer.headers["Upload-Limit"]
    assert answer.headers["Accept-Patch"] == "application/partial-upload, application/offset+octet-stream"


# -- refusals ----------------------------------------------------------------------------------------------------------


async def test_too_large_an_upload_is_refused_before_and_cut_while_it_comes(config: ServerConfig, key: str) -> None:
    small = replace(config, max_upload_bytes=1_000)
    async with running(small) as server, wired(server.url, key) as client:
        assert (await client.ask("POST", "/v1/uploads", data=b"x" * 1_001, Upload_Complete="?1")).status == 413
        streamed = await client.ask("POST", "/v1/uploads", data=pieces(b"x" * 1_001, 100), Upload_Complete="?1")
        assert streamed.status == 413
        assert (await client.ask("POST", "/v1/uploads", data=b"x" * 1_000, Upload_Complete="?1")).status == 201
        assert all(path.stat().st_size <= 1_000 for path in files(config.data / "segments"))


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_a_nearly_full_disk_begins_no_upload_and_goes_on_with_those_begun(config: ServerConfig, key: str) -> None:
    data = make_segment(fresh_session_id())
    async with running(config) as server, wired(server.url, key) as client:
        path = await client.upload_of(data)
    nearly = replace(config, min_free_bytes=2 * shutil.disk_usage(config.data).free)
    async with running(nearly) as server, wired(server.url, key) as client:
        assert (await client.ask("POST", "/v1/uploads", data=b"x", Upload_Complete="?1")).status == 507
        (decision,) = await client.negotiate(summary_of(make_segment(fresh_session_id())))
        assert decision.verdict == "later"
        assert decision.after > 0
        assert (await client.append(path, data, 0, complete=True)).complete


@pytest.mark.parametrize("name", ["nothing", "..%2f..%2fcatalog.sqlite", "01A2000F-192D-79F3-BE31-1E20A873A4FC"])
async def test_an_id_that_is_none_is_not_found(client: Wire, name: str) -> None:
    path = f"/v1/uploads/{name}"
    for method in ("HEAD", "DELETE"):
        assert (await client.ask(method, path)).status == 404
    assert (await client.append(path, b"x", 0, complete=False)).status == 404


async def test_a_key_reaches_the_uploads_of_its_product_only(
    config: ServerConfig, server: RunningServer, client: Wire
) -> None:
    data = make_segment(fresh_session_id())
    path = await client.upload_of(data)
    await client.append(path, data[:100], 0, complete=False)
    other = await asyncio.to_thread(create_key, config.data, "Other")
    reader = await asyncio.to_thread(create_key, config.data, PRODUCT, Role.READER)
    async with wired(server.url, other) as stranger, wired(server.url, reader) as onlooker:
        for who, status in ((stranger, 404), (onlooker, 403)):
            assert (await who.ask("HEAD", path)).status == status
            assert (await who.ask("DELETE", path)).status == status
            assert (await who.append(path, data[100:], 100, complete=True)).status == status
    assert (await client.append(path, data[100:], 100, complete=True)).complete


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("PATCH", {}, 415),
        ("PATCH", {"Content_Type": "application/partial-upload"}, 400),
        ("PATCH", {"Content_Type": "application/partial-upload", "Upload_Offset": "-1", "Upload_Complete": "?1"}, 400),
        ("PATCH", {"Content_Type": "application/partial-upload", "Upload_Offset": "0", "Upload_Complete": "yes"}, 400),
        ("TRACE", {}, 405),
        ("MKCOL", {}, 405),
    ],
)
async def test_a_bad_request_is_told_so(client: Wire, method: str, headers: dict[str, str], status: int) -> None:
    path = await client.upload_of(make_segment(fresh_session_id()))
    answer = await client.ask(method, path, data=b"x" if method == "PATCH" else None, **headers)
    assert answer.status == status
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    assert answer.headers["Mailboat-Version"]

"""Uploads by tus to a real server, and digests in both dialects: on disk, across kills, made of parts."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mailboat.protocol.uploads.state import Phase
from mailboat.server import ServerConfig
from mailboat.server.blobs import LocalBlobs
from mailboat.server.catalog import UploadRow, Verification
from mailboat.server.context import CATALOG, COUNTERS
from mailboat.server.keys import create_key
from mailboat.server.serving import RunningServer, running
from testkit.serverkit import (
    PRODUCT,
    Answer,
    Body,
    ServerProcess,
    Wire,
    blob_path,
    eventually,
    fresh_session_id,
    make_segment,
    wired,
)

PLACE = "/v1/uploads"
OCTETS = "application/offset+octet-stream"


class Tus:
    """A tus client by hand."""

    def __init__(self, client: Wire) -> None:
        self.client = client

    async def ask(self, method: str, path: str, *, data: Body = None, **headers: str) -> Answer:
        return await self.client.ask(method, path, data=data, **{"Tus_Resumable": "1.0.0"} | headers)

    async def made(self, length: int | None, **headers: str) -> str:
        """The path of a new upload."""
        said = {"Upload_Defer_Length": "1"} if length is None else {"Upload_Length": str(length)}
        answer = await self.ask("POST", PLACE, data=None, **said, **headers)
        assert answer.status == 201, answer
        return self.path(answer)

    def path(self, made: Answer) -> str:
        location = made.headers["Location"]
        assert location.startswith(f"{self.client.url}{PLACE}/"), "aiotus needs it absolute"
        return location.removeprefix(self.client.url)

    async def send(self, path: str, data: Body, offset: int, **headers: str) -> Answer:
        return await self.ask("PATCH", path, data=data, Content_Type=OCTETS, Upload_Offset=str(offset), **headers)

    async def offset(self, path: str) -> int:
        return (await self.ask("HEAD", path)).offset


@pytest.fixture
def tus(client: Wire) -> Tus:
    return Tus(client)


async def row_of(server: RunningServer, path: str) -> UploadRow:
    row = await server.app[CATALOG].upload(path.rpartition("/")[2])
    assert row is not None
    return row


def blob(server: RunningServer, path: str) -> Path:
    """The file of an upload's bytes."""
    return blob_path(server.app, path)


def stored(server: RunningServer, path: str) -> bytes:
    return blob(server, path).read_bytes()


async def written(file: Path, size: int) -> None:
    """Wait until `file` has so many bytes."""
    await eventually(lambda: file.exists() and file.stat().st_size == size)


def checksum(data: bytes, name: str = "sha1") -> str:
    return f"{name} {base64.b64encode(hashlib.new(name, data).digest()).decode()}"


def digest_field(data: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


async def trickled(data: bytes, gate: asyncio.Event) -> AsyncIterator[bytes]:
    yield data
    await gate.wait()


# -- one upload --------------------------------------------------------------------------------------------------------


async def test_a_segment_comes_in_parts_and_is_verified(server: RunningServer, tus: Tus) -> None:
    data = make_segment(fresh_session_id(), size=300_000)
    path = await tus.made(len(data), Upload_Metadata="filename YQ==")
    assert (await tus.send(path, data[:100_000], 0)).offset == 100_000
    head = await tus.ask("HEAD", path)
    assert (head.status, head.offset, head.headers["Upload-Length"]) == (200, 100_000, str(len(data)))
    assert (head.headers["Upload-Metadata"], head.headers["Cache-Control"]) == ("filename YQ==", "no-store")
    assert (await tus.send(path, data[100_000:], 100_000)).offset == len(data)
    assert stored(server, path) == data
    assert (await row_of(server, path)).verification is Verification.VERIFIED


async def test_anything_else_is_taken_too_and_kept_apart(server: RunningServer, tus: Tus) -> None:
    path = await tus.made(5)
    assert (await tus.send(path, b"hello", 0)).status == 204
    assert (await row_of(server, path)).verification is Verification.QUARANTINED


async def test_a_creation_with_upload_tells_its_offset(server: RunningServer, tus: Tus) -> None:
    answer = await tus.ask("POST", PLACE + "/", data=b"hello", Upload_Length="9", Content_Type=OCTETS)
    assert (answer.status, answer.offset) == (201, 5)
    assert stored(server, tus.path(answer)) == b"hello"


async def test_options_need_no_version_and_the_place_takes_creations_only(tus: Tus) -> None:
    answer = await tus.client.ask("OPTIONS", PLACE)
    assert (answer.status, answer.headers["Tus-Version"]) == (204, "1.0.0")
    assert int(answer.headers["Tus-Max-Size"]) > 0
    assert "Upload-Limit" in answer.headers
    assert (await tus.send(PLACE, b"x", 0)).status == 405
    assert (await tus.ask("DELETE", PLACE)).status == 405


async def test_every_answer_bears_the_version_even_those_of_no_dialect(server: RunningServer, tus: Tus) -> None:
    path = await tus.made(5)
    async with wired(server.url, "no key") as stranger:
        refused = await Tus(stranger).ask("HEAD", path)
    made = await tus.ask("POST", path, Upload_Length="1")
    answers = [refused, made, await tus.ask("HEAD", f"{PLACE}/x"), await tus.ask("GET", "/no")]
    assert [answer.status for answer in answers] == [401, 405, 404, 404]
    assert [answer.headers["Tus-Resumable"] for answer in answers] == ["1.0.0"] * 4


async def test_another_version_is_refused(tus: Tus) -> None:
    path = await tus.made(5)
    answer = await tus.client.ask("HEAD", path, Tus_Resumable="0.2.2")
    assert (answer.status, answer.headers["Tus-Version"]) == (412, "1.0.0")


async def test_the_method_may_be_told_by_a_header(server: RunningServer, tus: Tus) -> None:
    path = await tus.made(9)
    headers = {"Content_Type": OCTETS, "Upload_Offset": "0", "X_HTTP_Method_Override": "PATCH"}
    assert (await tus.ask("POST", path, data=b"hello", **headers)).offset == 5
    assert (await tus.ask("POST", path, X_HTTP_Method_Override="DELETE")).status == 204
    assert (await tus.ask("HEAD", path)).status == 410


async def test_location_is_what_the_client_asked_by(tus: Tus) -> None:
    answer = await tus.ask("POST", PLACE, Upload_Length="1", X_Forwarded_Proto="https", Host="uploads.example")
    assert answer.headers["Location"].startswith(f"https://uploads.example{PLACE}/")
    answer = await tus.ask("POST", PLACE, Upload_Length="1", X_Forwarded_Proto="javascript")
    assert answer.headers["Location"].startswith("http://")


async def test_both_dialects_on_one_upload(server: RunningServer, client: Wire, tus: Tus) -> None:
    path = await tus.made(9)
    await tus.send(path, b"12345", 0)
    head = await client.ask("HEAD", path, Upload_Draft_Interop_Version="9")
    assert (head.status, head.offset, head.complete) == (204, 5, False)
    assert (await client.append(path, b"67", 5, complete=False)).offset == 7
    assert (await tus.send(path, b"89", 7)).offset == 9
    assert stored(server, path) == b"123456789"
    assert (await row_of(server, path)).state.complete


async def test_a_head_ends_a_stalled_append_and_its_bytes_are_kept(server: RunningServer, tus: Tus) -> None:
    path, gate = await tus.made(10), asyncio.Event()
    stalled = asyncio.create_task(tus.send(path, trickled(b"hello", gate), 0))
    await written(blob(server, path), 5)
    assert await tus.offset(path) == 5
    gate.set()
    await asyncio.gather(stalled, return_exceptions=True)
    assert (await tus.send(path, b"world", 5)).offset == 10


# -- digests -----------------------------------------------------------------------------------------------------------


async def test_a_body_is_held_to_its_checksum(server: RunningServer, tus: Tus) -> None:
    path = await tus.made(10)
    wrong = await tus.send(path, b"hello", 0, Upload_Checksum=checksum(b"hellO", "sha256"))
    assert (wrong.status, wrong.offset) == (460, 0)
    assert stored(server, path) == b""
    assert (await tus.send(path, b"hello", 0, Upload_Checksum=checksum(b"hello", "md5"))).offset == 5
    assert (await tus.send(path, b"world", 5)).offset == 10
    assert stored(server, path) == b"helloworld"


async def test_a_body_under_a_digest_that_is_cut_is_dropped_whole(server: RunningServer, tus: Tus) -> None:
    path, gate = await tus.made(10), asyncio.Event()
    await tus.send(path, b"he", 0)
    body = trickled(b"llo", gate)
    stalled = asyncio.create_task(tus.send(path, body, 2, Upload_Checksum=checksum(b"lloworld")))
    await written(blob(server, path), 5)
    assert await tus.offset(path) == 2
    gate.set()
    await asyncio.gather(stalled, return_exceptions=True)
    assert stored(server, path) == b"he"
    assert list(blob(server, path).parent.iterdir()) == [blob(server, path)]


async def chunked(
    tus: Tus, path: str, body: bytes, trailers: str, *, step: int = 10_000, next_one: bytes = b""
) -> bytes:
    """A PATCH in chunks, with trailers after it, over a socket; all that the server says until it closes."""
    host, _, port = tus.client.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = [
        f"PATCH {path} HTTP/1.1",
        f"Host: {host}",
        f"Authorization: Bearer {tus.client.key}",
        "Tus-Resumable: 1.0.0",
        f"Content-Type: {OCTETS}",
        "Upload-Offset: 0",
        "Transfer-Encoding: chunked",
        "Trailer: Upload-Checksum",
    ]
    message = "\r\n".join([*head, "", ""]).encode()
    message += b"%x\r\n%s\r\n0\r\n%s\r\n" % (len(body), body, trailers.encode())
    for at in range(0, len(message), step):
        writer.write(message[at : at + step])
        await writer.drain()
    writer.write(next_one)
    said = await reader.read()
    writer.close()
    await writer.wait_closed()
    return said


@pytest.mark.parametrize("step", [10_000, 7])
@pytest.mark.parametrize("name", ["sha1", "sha256", "sha512", "md5"])
async def test_a_checksum_may_follow_the_body(server: RunningServer, tus: Tus, name: str, step: int) -> None:
    body = b"0\r\nUpload-Checksum: sha1 AAAA\r\n\r\nnot a trailer yet"
    path = await tus.made(len(body))
    wrong = await chunked(tus, path, body, f"Upload-Checksum: {checksum(b'other', name)}\r\n", step=step)
    assert wrong.startswith(b"HTTP/1.1 460 ")
    assert await tus.offset(path) == 0
    for trailers in ("", "Expires: never\r\n", "Upload-Checksum: crc32 AAAA\r\n"):
        assert (await chunked(tus, path, body, trailers, step=step)).startswith(b"HTTP/1.1 400 ")
        assert (await tus.offset(path), stored(server, path)) == (0, b"")
    right = f"X-First: 1\r\nupload-checksum:{checksum(body, name)}\r\nX-Last: 2\r\n"
    assert (await chunked(tus, path, body, right, step=step)).startswith(b"HTTP/1.1 204 ")
    assert stored(server, path) == body


async def test_trailers_are_never_those_of_the_next_request(server: RunningServer, tus: Tus) -> None:
    """Aiohttp's parser would take them for its head: the connection is closed instead."""
    path = await tus.made(5)
    trailers = f"Upload-Checksum: {checksum(b'hello')}\r\nAuthorization: Bearer {tus.client.key}\r\n"
    following = f"HEAD {path} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\n\r\n".encode()
    said = await chunked(tus, path, b"hello", trailers)
    assert said.count(b"HTTP/1.1 ") == 1
    assert b"\r\nConnection: close\r\n" in said
    said = await chunked(tus, path, b"hello", trailers, next_one=following)
    assert said.count(b"HTTP/1.1 ") == 1
    assert b" 200 " not in said


async def test_content_digest_does_the_same_for_the_draft(server: RunningServer, client: Wire) -> None:
    data = make_segment(fresh_session_id())
    path = await client.upload_of(data)
    headers = {"Content_Type": "application/partial-upload", "Upload_Offset": "0", "Upload_Complete": "?1"}
    wrong = await client.ask("PATCH", path, data=data, Content_Digest=digest_field(b"other"), **headers)
    assert (wrong.status, wrong.offset) == (400, 0)
    right = await client.ask("PATCH", path, data=data, Content_Digest=digest_field(data), **headers)
    assert (right.status, right.complete) == (204, True)
    assert (await row_of(server, path)).verification is Verification.VERIFIED


async def test_repr_digest_holds_the_whole_upload(server: RunningServer, client: Wire) -> None:
    for declared, status, phase in ((b"hello", 204, Phase.COMPLETE), (b"hellO", 400, Phase.INVALID)):
        made = await client.ask("POST", PLACE, Upload_Complete="?0", Repr_Digest=digest_field(declared))
        path = made.headers["Location"]
        await client.append(path, b"hel", 0, complete=False)
        assert (await client.append(path, b"lo", 3, complete=True)).status == status
        assert (await row_of(server, path)).state.phase is phase


async def test_the_digest_that_was_wanted_is_told_and_told_again_after_a_restart(
    config: ServerConfig, key: str
) -> None:
    async with running(config) as server, wired(server.url, key) as client:
        made = await client.ask("POST", PLACE, Upload_Complete="?0", Want_Repr_Digest="sha-256=5, crc32c=9")
        path = made.headers["Location"]
        assert "Repr-Digest" not in (await client.append(path, b"hel", 0, complete=False)).headers
    async with running(config) as server, wired(server.url, key) as client:
        done = await client.append(path, b"lo", 3, complete=True)
    assert (done.status, done.headers["Repr-Digest"]) == (204, digest_field(b"hello"))
    async with running(config) as server, wired(server.url, key) as client:
        assert (await client.ask("HEAD", path)).headers["Repr-Digest"] == digest_field(b"hello")


# -- made of parts -----------------------------------------------------------------------------------------------------


async def test_a_segment_in_parallel_parts(server: RunningServer, tus: Tus) -> None:
    data = make_segment(fresh_session_id(), size=200_000)
    halves = (data[:90_000], data[90_000:])
    paths = [await tus.made(len(half), Upload_Concat="partial") for half in halves]
    await asyncio.gather(*(tus.send(path, half, 0) for path, half in zip(paths, halves, strict=True)))
    assert [(await row_of(server, path)).verification for path in paths] == [Verification.PENDING] * 2
    made = await tus.ask("POST", PLACE, Upload_Concat=f"final;{' '.join(paths)}")
    assert (made.status, made.offset) == (201, len(data))
    path = tus.path(made)
    assert stored(server, path) == data
    assert (await row_of(server, path)).verification is Verification.VERIFIED
    assert (await tus.send(path, b"x", len(data))).status == 403


async def test_parts_still_under_way_complete_it_when_the_last_one_does(server: RunningServer, tus: Tus) -> None:
    paths = [await tus.made(5, Upload_Concat="partial"), await tus.made(None, Upload_Concat="partial")]
    final = tus.path(await tus.ask("POST", PLACE, Upload_Concat=f"final;{paths[1]} {server.url}{paths[0]}"))
    await tus.send(paths[0], b"hello", 0)
    head = await tus.ask("HEAD", final)
    assert ("Upload-Offset" in head.headers, "Upload-Length" in head.headers) == (False, False)
    await tus.send(paths[1], b"12", 0, Upload_Length="2")
    row = await row_of(server, final)
    assert (row.state.phase, row.verification) == (Phase.COMPLETE, Verification.QUARANTINED)
    assert stored(server, final) == b"12hello"
    assert (await tus.ask("HEAD", final)).headers["Upload-Offset"] == "7"


async def test_what_another_part_has_completed_meanwhile_is_left_alone(
    server: RunningServer, tus: Tus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two parts complete at the same time, and both see that the whole is not."""
    data, catalog = make_segment(fresh_session_id(), size=20_000), server.app[CATALOG]
    asked = catalog.made_of

    async def as_both_see_it(part_id: str) -> tuple[UploadRow, ...]:
        return await asked(part_id) * 2

    monkeypatch.setattr(catalog, "made_of", as_both_see_it)
    paths = [await tus.made(10_000, Upload_Concat="partial"), await tus.made(None, Upload_Concat="partial")]
    final = tus.path(await tus.ask("POST", PLACE, Upload_Concat=f"final;{' '.join(paths)}"))
    await tus.send(paths[0], data[:10_000], 0)
    await tus.send(paths[1], data[10_000:], 0, Upload_Length=str(len(data) - 10_000))
    row = await row_of(server, final)
    assert (row.verification, row.state.expires) == (Verification.VERIFIED, None)
    assert row.session_id is not None
    assert stored(server, final) == data
    assert server.app[COUNTERS]["uploads_joined"] == 1


async def test_parts_of_another_product_are_nobody_s(server: RunningServer, tus: Tus, config: ServerConfig) -> None:
    theirs = await asyncio.to_thread(create_key, config.data, "Other product")
    async with wired(server.url, theirs) as other:
        part = await Tus(other).made(0, Upload_Concat="partial")
    answer = await tus.ask("POST", PLACE, Upload_Concat=f"final;{part}")
    assert answer.status == 400
    assert (await tus.ask("POST", PLACE, Upload_Concat="final;../../x")).status == 400


async def test_a_part_whose_bytes_are_lost_loses_the_whole(server: RunningServer, tus: Tus) -> None:
    part = await tus.made(5, Upload_Concat="partial")
    await tus.send(part, b"hello", 0)
    blob(server, part).unlink()
    assert (await tus.ask("POST", PLACE, Upload_Concat=f"final;{part}")).status == 410
    assert server.app[COUNTERS]["uploads_lost"] == 1
    short = await tus.made(5, Upload_Concat="partial")
    await tus.send(short, b"hello", 0)
    blob(server, short).write_bytes(b"hell")
    assert (await tus.ask("POST", PLACE, Upload_Concat=f"final;{short}")).status == 410


async def test_a_copy_that_fails_is_made_when_asked_for(server: RunningServer, tus: Tus) -> None:
    part = await tus.made(5, Upload_Concat="partial")
    final = tus.path(await tus.ask("POST", PLACE, Upload_Concat=f"final;{part}"))
    obstacle = blob(server, final)
    obstacle.mkdir(parents=True)  # so that the copy cannot be written
    assert (await tus.send(part, b"hello", 0)).status == 204
    assert server.app[COUNTERS]["uploads_join_failed"] == 1
    obstacle.rmdir()
    assert await tus.offset(final) == 5
    assert stored(server, final) == b"hello"


# -- kill -9 -----------------------------------------------------------------------------------------------------------


async def eventually_on_disk(data: Path, path: str, size: int) -> None:
    await written(LocalBlobs(data / "segments").path(path.rpartition("/")[2]), size)


@pytest.mark.parametrize("declared", [None, b"lloworld"])
async def test_bytes_written_when_the_server_was_killed(tmp_path: Path, declared: bytes | None) -> None:
    """They count, unless they came under a digest that was never checked."""
    data = tmp_path / "data"
    key = create_key(data, PRODUCT)
    process = await ServerProcess.start(data)
    async with wired(process.url, key) as client:
        tus, gate = Tus(client), asyncio.Event()
        path = await tus.made(10)
        await tus.send(path, b"he", 0)
        headers = {} if declared is None else {"Upload_Checksum": checksum(declared)}
        stalled = asyncio.create_task(tus.send(path, trickled(b"llo", gate), 2, **headers))
        await eventually_on_disk(data, path, 5)
        await process.kill()
        gate.set()
        await asyncio.gather(stalled, return_exceptions=True)
    process = await ServerProcess.start(data)
    async with wired(process.url, key) as client:
        tus = Tus(client)
        offset = await tus.offset(path)
        assert offset == (5 if declared is None else 2)
        assert (await tus.send(path, b"helloworld"[offset:], offset)).offset == 10
        assert (await tus.ask("HEAD", path)).headers["Upload-Length"] == "10"
    await process.stop()


async def test_an_upload_killed_between_its_last_byte_and_its_completion(tmp_path: Path) -> None:
    data = tmp_path / "data"
    key = create_key(data, PRODUCT)
    segment = make_segment(fresh_session_id())
    process = await ServerProcess.start(data)
    async with wired(process.url, key) as client:
        tus, gate = Tus(client), asyncio.Event()
        path = await tus.made(len(segment))
        stalled = asyncio.create_task(tus.send(path, trickled(segment, gate), 0))
        await eventually_on_disk(data, path, len(segment))
        await process.kill()
        gate.set()
        await asyncio.gather(stalled, return_exceptions=True)
    process = await ServerProcess.start(data)
    async with wired(process.url, key) as client:
        assert await Tus(client).offset(path) == len(segment)
        head = await client.ask("HEAD", path, Upload_Draft_Interop_Version="9")
        assert head.complete
    await process.stop()

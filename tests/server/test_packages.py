"""Sessions carried by hand: their segments become what they would have become, had the agent sent them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mailboat.protocol import Preamble, SealReason, SegmentWriter
from mailboat.protocol.records import COUNTERS
from mailboat.protocol.summary import Info
from mailboat.server import ServerConfig
from mailboat.server.app import create_app
from mailboat.server.blobs import LocalBlobs
from mailboat.server.catalog import SessionRow, UploadRow, Verification
from mailboat.server.completion import IMPORTED_AGE
from mailboat.server.context import BLOBS, CATALOG
from mailboat.server.expiry import sweep
from mailboat.server.serving import RunningServer, running
from testkit.serverkit import PRODUCT, Wire, fresh_session_id, make_segment, summary_of, wired


def session_of(session_id: str, number: int) -> list[bytes]:
    """A session's segments: as `make_segment` makes them, but the session goes on after each but the last."""
    segments = []
    for index in range(number):
        wall = 1_000_000_000 * 1_800_000_000
        info = Info(product=PRODUCT, application="importer", version="2.4.1").to_wire()
        writer = SegmentWriter(Preamble(session_id, index, index, index * 2, wall, 1_000, info=info))
        content = bytearray(writer.preamble())
        writer.add(bytes(content))
        counts = [2, *[0] * (len(COUNTERS) - 1)]
        header, frame = writer.block(b"\x93\x02\x01\xa1x" * 2, counts, wall)
        writer.add(frame, header)
        reason = SealReason.STOPPED if index == number - 1 else SealReason.ROTATED
        segments.append(bytes(content + frame + writer.seal(reason, wall, 2_000)))
    return segments


@pytest.fixture
async def server(config: ServerConfig, key: str) -> RunningServer:  # type: ignore[misc]
    """A server in the time of these sessions."""
    async with running(config, create_app(config, clock=lambda: 1_800_000_100.0)) as started:
        yield started


async def sent(client: Wire, body: bytes) -> str:
    made = await client.ask("POST", "/v1/uploads", data=body, Upload_Complete="?1")
    assert (made.status, made.complete, made.offset) == (201, True, len(body))
    return made.headers["Location"].rpartition("/")[2]


async def row_of(server: RunningServer, upload_id: str) -> UploadRow:
    row = await server.app[CATALOG].upload(upload_id)
    assert row is not None
    return row


async def held(server: RunningServer, session_id: str) -> SessionRow:
    row = await server.app[CATALOG].session(PRODUCT, session_id)
    assert row is not None
    return row


def bytes_of(server: RunningServer, row: SessionRow) -> list[bytes]:
    blobs = server.app[BLOBS]
    return [blobs.read(each.upload_id, 0, each.offset) for each in row.segments]


async def quarantined(server: RunningServer) -> list[UploadRow]:
    return list(await server.app[CATALOG].quarantined(None, None, 100))


async def test_a_package_becomes_its_sessions(server: RunningServer, client: Wire) -> None:
    ids = [fresh_session_id(), fresh_session_id()]
    one, two = session_of(ids[0], 3), session_of(ids[1], 1)
    package = await row_of(server, await sent(client, b"".join([*one, *two])))
    assert (package.verification, package.detail) == (Verification.IMPORTED, "a package of 4 segments")
    for session_id, segments in zip(ids, (one, two), strict=True):
        row = await held(server, session_id)
        assert bytes_of(server, row) == segments
        assert row.summary == summary_of(*segments)
        assert row.delivered
        (decision,) = await client.negotiate(summary_of(*segments))
        assert decision.verdict == "have"
    assert len(await server.app[CATALOG].segments_to_load()) == 4
    assert await quarantined(server) == []


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
async def test_segments_that_come_one_by_one_become_one_session(
    server: RunningServer, client: Wire, order: tuple[int, ...]
) -> None:
    session_id = fresh_session_id()
    segments = session_of(session_id, 3)
    for index in order:
        await sent(client, segments[index])
    row = await held(server, session_id)
    assert row.summary == summary_of(*segments)
    assert row.delivered


async def test_what_was_half_sent_is_completed_by_hand(server: RunningServer, client: Wire) -> None:
    session_id = fresh_session_id()
    segments = session_of(session_id, 2)
    path = await client.upload_of(*segments)
    await client.append(path, segments[0][:50], 0, complete=False)
    await sent(client, b"".join(segments))
    assert bytes_of(server, await held(server, session_id)) == segments
    # The agent, when it comes back, finds its upload gone, asks, and hears that nothing is missing.
    assert (await client.append(path, segments[0][50:], 50, complete=True)).status == 410
    (decision,) = await client.negotiate(summary_of(*segments))
    assert decision.verdict == "have"


async def test_a_package_sent_twice_counts_once(server: RunningServer, client: Wire) -> None:
    session_id = fresh_session_id()
    segments = session_of(session_id, 2)
    first = await sent(client, b"".join(segments))
    before = await held(server, session_id)
    await sent(client, b"".join(segments))
    assert (await held(server, session_id)).segments == before.segments
    assert await quarantined(server) == []
    assert (await row_of(server, first)).verification is Verification.IMPORTED


async def test_a_damaged_segment_costs_itself_alone(server: RunningServer, client: Wire) -> None:
    session_id, other = fresh_session_id(), fresh_session_id()
    good, bad = session_of(session_id, 1)[0], bytearray(make_segment(other))
    bad[-200] ^= 1
    await sent(client, good + bytes(bad) + b"noise")
    assert bytes_of(server, await held(server, session_id)) == [good]
    found = await quarantined(server)
    assert [server.app[BLOBS].read(row.id, 0, row.state.offset) for row in found] == [bytes(bad), b"noise"]
    assert {row.reason for row in found} == {"corrupted"}


async def test_a_segment_with_other_content_is_kept_apart(server: RunningServer, client: Wire) -> None:
    session_id = fresh_session_id()
    (segment,) = session_of(session_id, 1)
    await sent(client, segment)
    other = make_segment(session_id, wall=1_800_000_000.0)
    await sent(client, other)
    assert bytes_of(server, await held(server, session_id)) == [segment]
    assert [row.detail for row in await quarantined(server)] == ["that segment is here, with other content"]


async def test_too_many_segments_are_kept_apart_together(
    server: RunningServer, client: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailboat.server.completion.MAX_PACKAGE", 3)
    (segment,) = session_of(fresh_session_id(), 1)
    await sent(client, segment * 4)
    (row,) = await quarantined(server)
    assert "more than 3 segments" in row.detail


async def test_a_package_goes_when_its_segments_are_here(config: ServerConfig, key: str) -> None:
    now = 1_800_000_100.0
    app = create_app(replace(config, sweep_interval=1e9), clock=lambda: now)
    async with running(config, app) as server, wired(server.url, key) as client:
        session_id = fresh_session_id()
        segments = session_of(session_id, 2)
        upload = await sent(client, b"".join(segments))
        assert (await client.ask("HEAD", f"/v1/uploads/{upload}")).complete
        now += IMPORTED_AGE
        assert await sweep(app) == 1
        assert app[BLOBS].size(upload) == 0
        assert bytes_of(server, await held(server, session_id)) == segments


async def test_a_package_whose_import_was_cut_short_is_imported_when_asked_again(
    config: ServerConfig, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The disk refuses the second segment; the client, told so, asks again as it would after a kill.
    session_id = fresh_session_id()
    segments = session_of(session_id, 3)
    app = create_app(config, clock=lambda: 1_800_000_100.0)
    package = b"".join(segments)
    async with running(config, app) as server, wired(server.url, key) as client:
        made = await client.ask("POST", "/v1/uploads", Upload_Complete="?0", Upload_Length=str(len(package)))
        path = made.headers["Location"]
        append, calls = LocalBlobs.append, []

        def refused(self: LocalBlobs, blob_id: str, offset: int) -> object:
            calls.append(blob_id)
            if len(calls) == 3:  # the package itself, its first segment, its second
                raise OSError(5, "the disk refuses")
            return append(self, blob_id, offset)

        monkeypatch.setattr(LocalBlobs, "append", refused)
        assert (await client.append(path, package, 0, complete=True)).status == 503
        found = await client.ask("HEAD", path)
        assert (found.status, found.offset, found.complete) == (204, 0, False) or found.offset == len(package)
        answer = await client.append(path, package[found.offset :], found.offset, complete=True)
        assert answer.complete
        assert bytes_of(server, await held(server, session_id)) == segments
        assert (await held(server, session_id)).delivered
        assert await quarantined(server) == []

"""What is no segment: answered as any upload, kept apart with its reason, shown to those who may read."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from aiohttp import web
from yarl import URL

from mailboat.protocol.packages import Span
from mailboat.server import ServerConfig, completion, streaming, verification
from mailboat.server.catalog import CatalogError, Role, UploadRow
from mailboat.server.context import CATALOG, COUNTERS
from mailboat.server.folder import FolderInUse
from mailboat.server.ingest import INGEST, LOADER
from mailboat.server.keys import create_key
from mailboat.server.policy import month_of
from mailboat.server.quarantine import NotThere, list_offline, save_offline, show_offline
from mailboat.server.serving import RunningServer, running
from mailboat.server.upkeep import check_folder, drop_quarantined, replay_quarantined
from testkit.serverkit import PRODUCT, Wire, blob_path, eventually, fresh_session_id, make_segment, summary_of, wired


@pytest.fixture
async def person(config: ServerConfig, server: RunningServer) -> AsyncIterator[Wire]:
    """A reader of the product."""
    async with wired(server.url, await asyncio.to_thread(create_key, config.data, PRODUCT, Role.READER)) as made:
        yield made


async def sent(client: Wire, body: bytes) -> str:
    """The id of a complete upload."""
    made = await client.ask("POST", "/v1/uploads", data=body, Upload_Complete="?1")
    assert made.status == 201
    return made.headers["Location"].rpartition("/")[2]


async def shown(person: Wire, query: str = "") -> dict[str, Any]:
    answer = await person.ask("GET", f"/api/v1/quarantine{query}")
    assert answer.status == 200, answer
    document: dict[str, Any] = json.loads(answer.body)
    return document


async def test_it_is_shown_with_its_reason_and_what_the_client_said_of_it(client: Wire, person: Wire) -> None:
    name, odd = (base64.b64encode(each).decode() for each in ("Zürich.pdf".encode(), b"\xff"))
    made = await client.ask(
        "POST",
        "/v1/uploads",
        data=b"%PDF",
        Tus_Resumable="1.0.0",
        Upload_Length="4",
        Content_Type="application/offset+octet-stream",
        Upload_Metadata=f"filename {name},odd {odd}",
    )
    assert made.status == 201
    damaged = bytearray(make_segment(fresh_session_id()))
    damaged[1_000] ^= 1
    await sent(client, bytes(damaged))
    await sent(client, make_segment(fresh_session_id(), product="Another product"))
    whole = await sent(client, make_segment(fresh_session_id()))
    uploads = (await shown(person))["uploads"]
    assert [(each["size"], each["reason"], each["dialect"]) for each in uploads] == [
        (4, "corrupted", "tus-1.0.0"),
        (len(damaged), "corrupted", "rufh-9"),
        (uploads[2]["size"], "unknown_product", "rufh-9"),
    ]
    assert "no segment" in uploads[0]["detail"]
    assert "damaged at byte" in uploads[1]["detail"]
    assert "Another product" in uploads[2]["detail"]
    assert uploads[0]["metadata"] == {"filename": "Zürich.pdf", "odd": "\N{REPLACEMENT CHARACTER}"}
    assert whole not in {each["upload"] for each in uploads}


async def test_pages_show_each_once(client: Wire, person: Wire) -> None:
    ids = [await sent(client, b"%d" % number) for number in range(5)]
    found, cursor = [], ""
    while True:
        page = await shown(person, f"?limit=2{cursor}")
        found += [each["upload"] for each in page["uploads"]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert found == sorted(ids)


async def test_its_bytes_are_given_back_and_are_no_page_of_the_servers(client: Wire, person: Wire) -> None:
    body = b"<script>alert(1)</script>" + random.randbytes(3_000_000)
    upload = await sent(client, body)
    answer = await person.ask("GET", f"/api/v1/quarantine/{upload}/content")
    assert (answer.status, answer.body) == (200, body)
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Disposition"].startswith("attachment")
    empty = await sent(client, b"")
    answer = await person.ask("GET", f"/api/v1/quarantine/{empty}/content")
    assert (answer.status, answer.body) == (200, b"")


async def test_a_head_gets_no_byte_of_strangers(client: Wire, person: Wire) -> None:
    """They would be the next answer on the connection, which a proxy may share among many."""
    forged = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nowned"
    upload = await sent(client, forged)
    reader, writer = await _connected(person)
    writer.write(_asking(person, "HEAD", upload) + b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answers = await reader.read()
    assert f"Content-Length: {len(forged)}".encode() in answers
    assert answers.count(b"HTTP/1.1 200 OK") == 2
    assert b"owned" not in answers
    writer.close()


async def test_one_who_goes_away_is_no_failure_of_the_storage(
    client: Wire, person: Wire, server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    upload = await sent(client, bytes(20_000_000))
    before = asyncio.all_tasks()
    reader, writer = await _connected(person)
    writer.write(_asking(person, "GET", upload))
    assert await reader.read(1000)
    writer.transport.abort()
    await eventually(lambda: asyncio.all_tasks() <= before)
    assert [each.message for each in caplog.records if each.levelname == "ERROR"] == []
    assert (server.app[COUNTERS]["problems_unavailable"], server.app[COUNTERS]["answers_cut"]) == (0, 1)


async def test_one_who_takes_nothing_is_cut_off(
    client: Wire, person: Wire, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "GRACE", 0.0)
    monkeypatch.setattr(streaming, "SLOWEST", 200_000_000)
    upload = await sent(client, bytes(20_000_000))
    reader, writer = await _connected(person)
    writer.write(_asking(person, "GET", upload))
    await eventually(lambda: server.app[COUNTERS]["answers_cut"] == 1)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(20_000_000)
    writer.close()


def _asking(person: Wire, method: str, upload: str) -> bytes:
    path = f"/api/v1/quarantine/{upload}/content"
    return f"{method} {path} HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {person.key}\r\n\r\n".encode()


async def _connected(person: Wire) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    url = URL(person.url)
    return await asyncio.open_connection(url.host, url.port)


async def test_who_may_see_it(config: ServerConfig, server: RunningServer, client: Wire, person: Wire) -> None:
    upload = await sent(client, b"ours")
    content = f"/api/v1/quarantine/{upload}/content"
    for path in ("/api/v1/quarantine", content):
        assert (await client.ask("GET", path)).status == 403  # an agent's key sends
    other = await asyncio.to_thread(create_key, config.data, "Other", Role.READER)
    async with wired(server.url, other) as neighbour:
        assert (await shown(neighbour))["uploads"] == []
        assert (await neighbour.ask("GET", content)).status == 404
        assert (await neighbour.ask("GET", f"/api/v1/quarantine?product={PRODUCT}")).status == 403
    admin = await asyncio.to_thread(create_key, config.data, None, Role.ADMIN)
    async with wired(server.url, admin) as everybody:
        assert [each["upload"] for each in (await shown(everybody))["uploads"]] == [upload]
        assert (await shown(everybody, "?product=Other"))["uploads"] == []
        assert (await everybody.ask("GET", content)).body == b"ours"


async def test_only_what_is_in_quarantine_is_given_out(client: Wire, person: Wire) -> None:
    segment = await sent(client, make_segment(fresh_session_id()))
    begun = await client.ask("POST", "/v1/uploads", data=b"x", Upload_Complete="?0")
    gone = await sent(client, b"gone")
    await client.ask("DELETE", f"/v1/uploads/{gone}")
    for upload in (segment, begun.headers["Location"].rpartition("/")[2], gone, "none", "..%2F..%2Fcatalog.sqlite"):
        assert (await person.ask("GET", f"/api/v1/quarantine/{upload}/content")).status == 404
    assert (await shown(person))["uploads"] == []
    assert (await person.ask("GET", "/api/v1/quarantine?cursor=x")).status == 400
    assert (await person.ask("GET", "/api/v1/quarantine?colour=red")).status == 400


async def test_a_lost_file_is_told_as_a_failure_of_the_server(
    client: Wire, person: Wire, server: RunningServer, config: ServerConfig
) -> None:
    upload = await sent(client, b"soon lost")
    (path,) = config.data.glob(f"**/{upload}")
    path.unlink()
    assert (await person.ask("GET", f"/api/v1/quarantine/{upload}/content")).status == 503


async def test_a_program_on_the_servers_machine_sees_the_same(client: Wire, person: Wire, config: ServerConfig) -> None:
    upload = await sent(client, b"ours")
    assert await asyncio.to_thread(list_offline, config.data) == (await shown(person))["uploads"]
    assert await asyncio.to_thread(list_offline, config.data, "Other") == []
    target = config.data.parent / "saved"
    assert await asyncio.to_thread(save_offline, config.data, upload, target) == 4
    assert target.read_bytes() == b"ours"
    with pytest.raises(FileExistsError):
        await asyncio.to_thread(save_offline, config.data, upload, target)
    with pytest.raises(CatalogError, match="nothing of this id"):
        await asyncio.to_thread(save_offline, config.data, fresh_session_id(), target)
    with pytest.raises(CatalogError, match="no mailboat server's data"):
        await asyncio.to_thread(list_offline, config.data / "nowhere")


# -- tried again -------------------------------------------------------------------------------------------------------


@pytest.fixture
async def admin(config: ServerConfig, server: RunningServer) -> AsyncIterator[Wire]:
    async with wired(server.url, await asyncio.to_thread(create_key, config.data, None, Role.ADMIN)) as made:
        yield made


@pytest.fixture
def yesterdays() -> Iterator[Callable[[], None]]:
    """A server that does not read the segments of today yet; the call updates it."""
    patch = pytest.MonkeyPatch()
    patch.setattr(verification, "SEALED_VERSION", 0)
    patch.setattr(verification, "_followed", lambda *_: None)
    yield patch.undo
    patch.undo()


def segment_of(session_id: str) -> bytes:
    """A segment of five records."""
    data = make_segment(session_id, size=5000)
    assert summary_of(data).records == 5
    return data


async def asked(admin: Wire, method: str, path: str) -> dict[str, Any]:
    answer = await admin.ask(method, f"/api/v1/quarantine/{path}")
    assert answer.status == 200, answer
    document: dict[str, Any] = json.loads(answer.body)
    return document


async def loaded(server: RunningServer, session_id: str) -> list[int]:
    """The records of the session that can be asked about, and the rows that there are of it."""
    await server.app[INGEST].settled()
    holdings = await asyncio.to_thread(lambda: list(server.app[LOADER].analytics.holdings()))
    return [number for each in holdings if each.session_id == session_id for number in (each.noted, each.rows)]


async def test_a_segment_of_tomorrow_is_taken_after_the_update(
    server: RunningServer, client: Wire, person: Wire, admin: Wire, yesterdays: Callable[[], None]
) -> None:
    session_id = fresh_session_id()
    data = segment_of(session_id)
    upload = (await client.upload_of(data)).rpartition("/")[2]
    assert (await client.append(f"/v1/uploads/{upload}", data, 0, complete=True)).status == 204
    (decision,) = await client.negotiate(summary_of(data))
    assert (decision.verdict, decision.reason) == ("reject", "unsupported_version")
    (listed,) = (await shown(person))["uploads"]
    assert (listed["upload"], listed["verification"], listed["session"]) == (upload, "rejected", session_id)
    assert await asked(person, "GET", upload) == listed
    used = await server.app[CATALOG].usage(PRODUCT, month_of(listed["created"]))
    again = await asked(admin, "POST", f"{upload}/replay")
    assert (again["verification"], again["reason"]) == ("rejected", "unsupported_version"), "nothing has changed"
    yesterdays()
    async with server.app[INGEST]._in_round:
        both = await asyncio.gather(*(asked(admin, "POST", f"{upload}/replay") for _ in range(2)))
        assert [each["verification"] for each in both] == ["verified", "verified"]
        answer = await person.ask("GET", f"/api/v1/sessions/{session_id}")
        assert json.loads(answer.body)["segments"][0]["loaded"] == 0
    assert await loaded(server, session_id) == [5, 5]
    assert (await asked(admin, "POST", f"{upload}/replay"))["verification"] == "verified"
    assert await loaded(server, session_id) == [5, 5]
    assert (await shown(person))["uploads"] == []
    (decision,) = await client.negotiate(summary_of(data))
    assert decision.verdict == "have"
    assert await server.app[CATALOG].usage(PRODUCT, month_of(listed["created"])) == used


async def test_a_stranger_of_tomorrow_is_taken_after_the_update(
    server: RunningServer, client: Wire, admin: Wire, yesterdays: Callable[[], None]
) -> None:
    session_id = fresh_session_id()
    upload = await sent(client, segment_of(session_id))
    assert (await asked(admin, "POST", f"{upload}/replay"))["verification"] == "quarantined"
    yesterdays()
    found = await asked(admin, "POST", f"{upload}/replay")
    assert (found["verification"], found["session"], found["reason"]) == ("verified", session_id, "")
    assert await loaded(server, session_id) == [5, 5]


async def test_what_is_still_none_stays_with_the_reason_of_today(
    client: Wire, person: Wire, admin: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completion, "MAX_PACKAGE", 1)
    segment, other = (segment_of(fresh_session_id()) for _ in range(2))
    upload = await sent(client, segment + other)
    (listed,) = (await shown(person))["uploads"]
    assert "more than 1 segments" in listed["detail"]
    monkeypatch.setattr(completion, "MAX_PACKAGE", 0)
    assert "more than 0 segments" in (await asked(admin, "POST", f"{upload}/replay"))["detail"]


async def test_a_package_that_was_half_taken_is_taken_whole(
    server: RunningServer, client: Wire, admin: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in between, what it holds is not there twice."""
    ids = [fresh_session_id() for _ in range(3)]
    imports = completion._import

    async def dying(app: web.Application, package: UploadRow, span: Span) -> None:
        await imports(app, package, span)
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(completion, "MAX_PACKAGE", 1)
        upload = await sent(client, b"".join(map(segment_of, ids)))
    with monkeypatch.context() as patch:
        patch.setattr(completion, "_import", dying)
        assert (await admin.ask("POST", f"/api/v1/quarantine/{upload}/replay")).status == 500
    assert (await asked(admin, "GET", upload))["verification"] == "quarantined"
    assert (await asked(admin, "POST", f"{upload}/replay"))["verification"] == "imported"
    assert [await loaded(server, each) for each in ids] == [[5, 5]] * 3


async def test_what_is_dropped_is_gone(server: RunningServer, client: Wire, admin: Wire, config: ServerConfig) -> None:
    stranger, noise = await sent(client, b"no segment"), make_segment(fresh_session_id())
    spoilt = (await client.upload_of(noise)).rpartition("/")[2]
    await client.append(f"/v1/uploads/{spoilt}", noise[:-1] + b"x", 0, complete=True)
    for upload in (stranger, spoilt):
        assert blob_path(server.app, upload).exists()
        assert (await admin.ask("DELETE", f"/api/v1/quarantine/{upload}")).status == 204
        assert not blob_path(server.app, upload).exists()
        for method, path in (("GET", upload), ("POST", f"{upload}/replay"), ("DELETE", upload)):
            assert (await admin.ask(method, f"/api/v1/quarantine/{path}")).status == 404
    assert (await shown(admin))["uploads"] == []
    (decision,) = await client.negotiate(summary_of(noise))
    assert decision.verdict == "reject", "what the agent was told stays as it was"
    assert (await asyncio.to_thread(check_folder, config.data)).faults == []


async def test_only_an_admin_tries_again_or_drops(client: Wire, person: Wire) -> None:
    upload = await sent(client, b"no segment")
    for who in (client, person):
        assert (await who.ask("POST", f"/api/v1/quarantine/{upload}/replay")).status == 403
        assert (await who.ask("DELETE", f"/api/v1/quarantine/{upload}")).status == 403
    assert [each["upload"] for each in (await shown(person))["uploads"]] == [upload]


async def test_a_command_does_the_same_while_the_server_does_not_run(
    config: ServerConfig, yesterdays: Callable[[], None]
) -> None:
    session_id = fresh_session_id()
    key = await asyncio.to_thread(create_key, config.data, PRODUCT)
    async with running(config) as server, wired(server.url, key) as client:
        good, bad = await sent(client, segment_of(session_id)), await sent(client, b"no segment")
        with pytest.raises(FolderInUse):
            await asyncio.to_thread(replay_quarantined, config.data, [good])
    yesterdays()
    found = await asyncio.to_thread(replay_quarantined, config.data, [good, bad])
    assert [each["verification"] for each in found] == ["verified", "quarantined"]
    assert (await asyncio.to_thread(show_offline, config.data, bad))["reason"] == "corrupted"
    await asyncio.to_thread(drop_quarantined, config.data, [bad])
    for act in (replay_quarantined, drop_quarantined):
        with pytest.raises(NotThere):
            await asyncio.to_thread(act, config.data, [bad])
    assert await asyncio.to_thread(list_offline, config.data) == []
    async with running(config) as server:
        assert await loaded(server, session_id) == [5, 5]
    assert (await asyncio.to_thread(check_folder, config.data)).faults == []

"""What is no segment: answered as any upload, kept apart with its reason, shown to those who may read."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mailboat.server import ServerConfig
from mailboat.server.catalog import CatalogError, Role
from mailboat.server.keys import create_key
from mailboat.server.quarantine import list_offline, save_offline
from mailboat.server.serving import RunningServer
from testkit.serverkit import PRODUCT, Wire, fresh_session_id, make_segment, wired


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

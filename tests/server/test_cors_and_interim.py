"""What is off unless it is configured: pages of other origins, and interim answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from mailboat.protocol.errors import ConfigError
from mailboat.server import ServerConfig, interim
from mailboat.server.context import CATALOG, COUNTERS
from mailboat.server.serving import RunningServer, running
from testkit.serverkit import (
    Answer,
    Wire,
    blob_path,
    eventually,
    fresh_session_id,
    make_segment,
    summary_of,
    wired,
)

PAGE = "https://app.example.com"


@asynccontextmanager
async def serving(config: ServerConfig, key: str) -> AsyncIterator[Wire]:
    async with running(config) as server, wired(server.url, key) as client:
        yield client


async def preflight(client: Wire, origin: str) -> Answer:
    """What a browser asks before a page's request."""
    return await client.ask(
        "OPTIONS",
        "/v1/uploads",
        Origin=origin,
        Access_Control_Request_Method="PATCH",
        Access_Control_Request_Headers="authorization,tus-resumable",
    )


def listed(text: str) -> set[str]:
    return {each.strip().lower() for each in text.split(",")}


# -- pages of other origins --------------------------------------------------------------------------------------------


async def test_an_origin_that_is_named_may_upload(config: ServerConfig, key: str) -> None:
    async with serving(replace(config, cors_origins=(PAGE,)), key) as client:
        stranger = replace(client, key="none")
        asked = await preflight(stranger, PAGE)
        assert (asked.status, asked.headers["Access-Control-Allow-Origin"]) == (204, PAGE)
        assert {"patch", "head", "delete", "post"} <= listed(asked.headers["Access-Control-Allow-Methods"])
        allowed = listed(asked.headers["Access-Control-Allow-Headers"])
        assert {"authorization", "tus-resumable", "upload-offset", "upload-complete", "upload-checksum"} <= allowed
        made = await client.ask("POST", "/v1/uploads", data=b"x", Upload_Complete="?1", Origin=PAGE)
        assert (made.status, made.headers["Access-Control-Allow-Origin"]) == (201, PAGE)
        assert {"location", "upload-offset", "upload-complete"} <= listed(made.headers["Access-Control-Expose-Headers"])
        assert "Origin" in made.headers["Vary"]
        refused = await stranger.ask("POST", "/v1/uploads", data=b"x", Upload_Complete="?1", Origin=PAGE)
        assert (refused.status, refused.headers["Access-Control-Allow-Origin"]) == (401, PAGE)  # readable, errors too


@pytest.mark.parametrize("allowed", [(), (PAGE,)])
async def test_no_other_origin_may(config: ServerConfig, key: str, allowed: tuple[str, ...]) -> None:
    async with serving(replace(config, cors_origins=allowed), key) as client:
        for origin in ("https://evil.example.com", "http://app.example.com", PAGE + ".evil.example", "null"):
            asked = await preflight(replace(client, key="none"), origin)
            assert asked.status == 401
            made = await client.ask("POST", "/v1/uploads", data=b"x", Upload_Complete="?1", Origin=origin)
            assert made.status == 201
            for answer in (asked, made):
                assert not any(name.lower().startswith("access-control-") for name in answer.headers)


async def test_all_origins_may_where_that_is_said(config: ServerConfig, key: str) -> None:
    async with serving(replace(config, cors_origins=("*",)), key) as client:
        made = await client.ask("POST", "/v1/uploads", data=b"x", Upload_Complete="?1", Origin="https://any.example")
        assert made.headers["Access-Control-Allow-Origin"] == "*"
        assert "Access-Control-Allow-Credentials" not in made.headers
        same = await client.ask("POST", "/v1/uploads", data=b"x", Upload_Complete="?1")
        assert "Access-Control-Allow-Origin" not in same.headers


@pytest.mark.parametrize("origin", ["app.example.com", "https://a.example/", "ftp://a.example", "", "https://a b"])
def test_what_is_no_origin_is_refused(config: ServerConfig, origin: str) -> None:
    with pytest.raises(ConfigError, match="cors_origins"):
        replace(config, cors_origins=(origin,))


# -- interim answers ---------------------------------------------------------------------------------------------------


async def heads(client: Wire, *fields: str, version: str = "1.1", body: bytes = b"12345") -> list[str]:
    """Make an upload over a plain socket: the heads of all answers, interim ones included.

    The body follows only when something was answered, where that is to be expected: else with the head.
    """
    host, _, port = client.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    lines = [f"POST /v1/uploads HTTP/{version}", f"Host: {host}", f"Authorization: Bearer {client.key}"]
    lines += [f"Content-Length: {len(body)}", "Connection: close", *fields, "", ""]
    writer.write("\r\n".join(lines).encode() + body)
    received = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    return [each for each in received.split("\r\n\r\n") if each.startswith("HTTP/")]


DRAFT = ("Upload-Complete: ?1", "Upload-Draft-Interop-Version: 9")


async def test_a_creation_is_told_its_resource_while_its_body_comes(config: ServerConfig, key: str) -> None:
    async with serving(replace(config, interim_answers=True), key) as client:
        host, _, port = client.url.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        lines = ["POST /v1/uploads HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {key}", "Content-Length: 5"]
        writer.write("\r\n".join([*lines, *DRAFT, "", ""]).encode() + b"123")
        interim = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert interim.startswith("HTTP/1.1 104 Upload Resumption Supported\r\n")
        fields = dict(line.split(": ", 1) for line in interim.splitlines()[1:] if line)
        assert fields["Upload-Draft-Interop-Version"] == "9"
        assert "max-age=" in fields["Upload-Limit"]
        # The resource is there: the connection may go now, and what came is kept.
        writer.close()
        await writer.wait_closed()
        path, offset = fields["Location"], 0
        async with asyncio.timeout(20):
            while offset < 3:
                offset = (await client.ask("HEAD", path)).offset
        assert (await client.append(path, b"45", offset, complete=True)).complete


async def test_the_final_answer_follows_as_if_there_had_been_none(config: ServerConfig, key: str) -> None:
    async with running(replace(config, interim_answers=True)) as server, wired(server.url, key) as client:
        interim, final = await heads(client, *DRAFT)
        assert interim.startswith("HTTP/1.1 104 ")
        assert final.startswith("HTTP/1.1 201 ")
        assert server.app[COUNTERS]["interim_answers"] == 1
        location = next(line for line in interim.splitlines() if line.startswith("Location: "))
        assert location in final


@pytest.mark.parametrize(
    ("fields", "version"),
    [
        (("Upload-Complete: ?1",), "1.1"),  # a client that states no interop version
        (("Upload-Complete: ?1", "Upload-Draft-Interop-Version: 77"), "1.1"),  # ... or none of ours
        (DRAFT, "1.0"),
        (
            (
                "Tus-Resumable: 1.0.0",
                "Upload-Length: 5",
                "Content-Type: application/offset+octet-stream",
                "Upload-Draft-Interop-Version: 9",
            ),
            "1.1",
        ),
    ],
)
async def test_who_may_not_expect_one_gets_none(
    config: ServerConfig, key: str, fields: tuple[str, ...], version: str
) -> None:
    async with serving(replace(config, interim_answers=True), key) as client:
        (final,) = await heads(client, *fields, version=version)
        assert " 201 " in final.splitlines()[0]


async def test_without_a_body_there_is_nothing_to_wait_for(config: ServerConfig, key: str) -> None:
    async with serving(replace(config, interim_answers=True), key) as client:
        assert len(await heads(client, *DRAFT, body=b"")) == 1


async def test_they_are_off_unless_configured(config: ServerConfig, key: str) -> None:
    async with serving(config, key) as client:
        (final,) = await heads(client, *DRAFT)
        assert final.startswith("HTTP/1.1 201 ")


# -- progress ----------------------------------------------------------------------------------------------------------


PATCH = ("Content-Type: application/partial-upload", "Upload-Offset: 0", *DRAFT)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is told as often as there is any."""
    monkeypatch.setattr(interim, "EVERY", 0.005)


class Sender:
    """A request over a socket of its own, whose body is sent piece by piece."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def begin(cls, client: Wire, request: str, length: int, *fields: str) -> Sender:
        host, _, port = client.url.removeprefix("http://").rpartition(":")
        sender = cls(*await asyncio.open_connection(host, int(port)))
        lines = [f"{request} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {client.key}"]
        sender.writer.write("\r\n".join([*lines, f"Content-Length: {length}", *fields, "", ""]).encode())
        return sender

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and fields of the next answer."""
        async with asyncio.timeout(20):
            first, *rest = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        return int(first.split()[1]), dict(line.split(": ", 1) for line in rest if line)

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


async def kept(server: RunningServer, path: str) -> int:
    """The offset that a power failure now would leave."""
    row = await server.app[CATALOG].upload(path.rpartition("/")[2])
    assert row is not None
    return row.state.offset


@pytest.mark.usefixtures("often")
async def test_a_long_append_is_told_how_much_of_it_is_durable(config: ServerConfig, key: str) -> None:
    data = make_segment(fresh_session_id(), size=300_000)
    async with running(replace(config, interim_answers=True)) as server, wired(server.url, key) as client:
        path = await client.upload_of(data)
        sender = await Sender.begin(client, f"PATCH {path}", len(data), *PATCH)
        told, at = 0, 0
        for end in (100_000, 200_000):
            sender.writer.write(data[at:end])
            while told < end:  # a piece may come in several
                status, fields = await sender.head()
                assert (status, fields["Upload-Draft-Interop-Version"]) == (104, "9")
                assert told < int(fields["Upload-Offset"]) <= end
                told = int(fields["Upload-Offset"])
                assert await kept(server, path) == told
            at = end
        sender.writer.write(data[at:])
        status, fields = await sender.head()
        while status == 104:
            told, (status, fields) = int(fields["Upload-Offset"]), await sender.head()
        assert (status, fields["Upload-Offset"], fields["Upload-Complete"]) == (204, str(len(data)), "?1")
        await sender.close()
        assert blob_path(server.app, path).read_bytes() == data
        (decision,) = await client.negotiate(summary_of(data))
        assert decision.verdict == "have"


@pytest.mark.usefixtures("often")
async def test_a_creation_is_told_where_it_is_and_then_how_far(config: ServerConfig, key: str) -> None:
    async with serving(replace(config, interim_answers=True), key) as client:
        sender = await Sender.begin(client, "POST /v1/uploads", 5, *DRAFT)
        status, first = await sender.head()
        assert (status, "Upload-Offset" in first) == (104, False)
        sender.writer.write(b"123")
        status, second = await sender.head()
        assert (status, second["Upload-Offset"]) == (104, "3")
        assert second.get("Location", first["Location"]) == first["Location"]
        await sender.close()  # what was told is a promise: it is there, and is gone on with
        assert (await client.ask("HEAD", first["Location"])).offset == 3
        assert (await client.append(first["Location"], b"45", 3, complete=True)).complete


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(
    ("on", "fields"),
    [
        (False, PATCH),
        (True, (*PATCH[:3],)),  # no interop version stated
        (True, (*PATCH[:3], "Upload-Draft-Interop-Version: 4")),  # of a draft that does not know it
        (True, (*PATCH, f"Content-Digest: sha-256=:{'A' * 43}=:")),  # nothing of it counts before its end
        (
            True,
            (
                "Tus-Resumable: 1.0.0",
                "Upload-Offset: 0",
                "Content-Type: application/offset+octet-stream",
                "Upload-Draft-Interop-Version: 9",
            ),
        ),
    ],
)
async def test_progress_is_told_to_nobody_else(
    config: ServerConfig, key: str, on: bool, fields: tuple[str, ...]
) -> None:
    data = make_segment(fresh_session_id(), size=50_000)
    async with running(replace(config, interim_answers=on)) as server, wired(server.url, key) as client:
        path = await client.upload_of(data)
        sender = await Sender.begin(client, f"PATCH {path}", len(data), *fields)
        sender.writer.write(data[:40_000])
        blob = blob_path(server.app, path)
        await eventually(lambda: blob.exists() and blob.stat().st_size == 40_000)
        for _ in range(20):  # more time than one account takes
            assert (await client.ask("OPTIONS", path)).status == 204
        sender.writer.write(data[40_000:])
        status, _ = await sender.head()
        assert status in (204, 400)
        assert server.app[COUNTERS]["interim_answers"] == 0
        await sender.close()


@pytest.mark.usefixtures("often")
async def test_a_newer_request_wins_while_progress_is_told(config: ServerConfig, key: str) -> None:
    data = make_segment(fresh_session_id(), size=300_000)
    async with running(replace(config, interim_answers=True)) as server, wired(server.url, key) as client:
        path = await client.upload_of(data)
        sender = await Sender.begin(client, f"PATCH {path}", len(data), *PATCH)
        sender.writer.write(data[:100_000])
        await sender.head()
        offset = (await client.ask("HEAD", path)).offset
        assert offset == 100_000
        assert (await client.append(path, data[offset:], offset, complete=True)).complete
        await sender.close()
        assert blob_path(server.app, path).read_bytes() == data

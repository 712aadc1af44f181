"""Who may ask what, what a bad request is told, and what the log does not tell."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from blockbuster import BlockingError

from mailboat.protocol import ConfigError
from mailboat.server import ServerConfig
from mailboat.server.access_log import harmless
from mailboat.server.allowance import Rates
from mailboat.server.app import create_app
from mailboat.server.catalog import Role
from mailboat.server.context import CATALOG, COUNTERS
from mailboat.server.keys import PREFIX, create_key, digest_of
from mailboat.server.serving import RunningServer, running
from testkit.serverkit import (
    PRODUCT,
    RawAppend,
    ServerProcess,
    Wire,
    blob_path,
    eventually,
    fresh_session_id,
    make_segment,
    wired,
)

NOBODY = "01a2000f-192d-79f3-be31-1e20a873a4fc"
ENDPOINTS = [
    ("POST", "/v1/negotiate"),
    ("OPTIONS", "/v1/uploads"),
    ("POST", "/v1/uploads"),
    ("HEAD", f"/v1/uploads/{NOBODY}"),
    ("PATCH", f"/v1/uploads/{NOBODY}"),
    ("DELETE", f"/v1/uploads/{NOBODY}"),
    ("GET", "/api/v1/sessions"),
    ("GET", "/api/v1/overview"),
    ("GET", "/metrics"),
    ("GET", "/nothing"),
]


@pytest.mark.parametrize("given", ["mbk_wrong", "", "x", "mbk_" + "x" * 5_000, "Bearer"])
async def test_nothing_is_told_to_a_stranger(server: RunningServer, given: str) -> None:
    async with wired(server.url, given) as stranger:
        for method, path in ENDPOINTS:
            answer = await stranger.ask(method, path)
            assert answer.status == 401, (method, path)
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
            assert answer.headers["Content-Type"].startswith("application/problem+json")
            assert answer.headers["Mailboat-Version"]
            if method != "HEAD":
                assert json.loads(answer.body)["code"] == "unauthorised"


async def test_the_status_is_for_anybody(server: RunningServer) -> None:
    async with wired(server.url, "") as stranger:
        answer = await stranger.ask("GET", "/v1/status")
    assert answer.status == 200
    assert json.loads(answer.body)["service"] == "mailboat"
    assert json.loads(answer.body)["version"] == answer.headers["Mailboat-Version"]


async def test_a_reader_does_not_send(config: ServerConfig, server: RunningServer) -> None:
    key = await asyncio.to_thread(create_key, config.data, PRODUCT, Role.READER)
    async with wired(server.url, key) as reader:
        for method, path in ENDPOINTS[:6]:
            assert (await reader.ask(method, path)).status == 403


async def test_a_key_made_while_the_server_runs_works_at_once(config: ServerConfig, server: RunningServer) -> None:
    key = await asyncio.to_thread(create_key, config.data, "Made later")
    async with wired(server.url, key) as client:
        assert (await client.ask("OPTIONS", "/v1/uploads")).status == 204


async def test_a_revoked_key_ends(config: ServerConfig, key: str) -> None:
    async with running(replace(config, key_cache=0.0)) as server, wired(server.url, key) as client:
        assert (await client.ask("OPTIONS", "/v1/uploads")).status == 204
        catalog = server.app[CATALOG]
        (row,) = await catalog.keys()
        assert await catalog.revoke_key(row.id, 1.0)
        assert not await catalog.revoke_key(row.id, 2.0)
        assert (await client.ask("OPTIONS", "/v1/uploads")).status == 401


def test_a_key_is_kept_as_a_digest_only(config: ServerConfig) -> None:
    key = create_key(config.data, PRODUCT)
    assert key.startswith(PREFIX)
    content = b"".join(path.read_bytes() for path in config.data.iterdir() if path.is_file())
    assert digest_of(key) in content
    assert key.encode() not in content
    assert key[len(PREFIX) :].encode() not in content


@pytest.mark.parametrize("product", [None, "", " ", "x" * 201, " padded"])
def test_an_agents_key_needs_a_product(config: ServerConfig, product: str | None) -> None:
    with pytest.raises(ConfigError, match="product="):
        create_key(config.data, product)


async def test_making_keys_on_the_event_loop_is_noticed(config: ServerConfig, server: RunningServer) -> None:
    """The guard that the other tests here rely on is armed."""
    with pytest.raises(BlockingError):
        create_key(config.data, PRODUCT)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1/negotiate", 405, "method_not_allowed"),
        ("DELETE", "/v1/status", 405, "method_not_allowed"),
        ("PATCH", "/v1/uploads", 405, "method_not_allowed"),
        ("POST", "/v1/uploads", 400, "bad_request"),
        ("GET", "/v1/uploads/%00", 404, "not_found"),
    ],
)
async def test_a_problem_is_a_document(client: Wire, method: str, path: str, status: int, code: str) -> None:
    answer = await client.ask(method, path)
    assert answer.status == status
    assert answer.headers["Content-Type"].partition(";")[0] == "application/problem+json"
    document = json.loads(answer.body)
    assert (document["status"], document["code"]) == (status, code)
    if status == 405:
        assert answer.headers["Allow"]


async def test_a_failure_of_the_server_is_counted_and_tells_nothing(
    config: ServerConfig, server: RunningServer, client: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    path = await client.upload_of(make_segment(fresh_session_id()))
    await server.app[CATALOG].close()
    answer = await client.ask("HEAD", path)
    assert answer.status == 503
    answer = await client.append(path, b"secret text", 0, complete=True)
    assert answer.status == 503
    assert str(config.data).encode() not in answer.body
    assert server.app[COUNTERS]["problems_unavailable"] == 2
    assert "catalog" in caplog.text


async def test_who_goes_away_before_the_answer_is_no_failure_of_the_server(
    config: ServerConfig, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(config)

    async def leave(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        raise ConnectionResetError("Cannot write to closing transport")

    app.router.add_get("/v1/leave", leave)
    async with running(config, app) as server, wired(server.url, key) as client:
        with pytest.raises(aiohttp.ClientError):
            await client.ask("GET", "/v1/leave")
        await eventually(lambda: app[COUNTERS]["answers_cut"] >= 1)
        assert (await client.ask("GET", "/v1/status")).status == 200
    assert app[COUNTERS]["problems_unavailable"] == 0
    assert [each.message for each in caplog.records if each.levelname == "ERROR"] == []


async def test_the_access_log_holds_no_key(
    server: RunningServer, client: Wire, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="aiohttp.access"):
        await client.ask("GET", f"/nothing/{key}?key={key}")
        await client.ask("OPTIONS", "/v1/uploads")
    assert "/v1/uploads" in caplog.text
    assert "/nothing/mbk_..." in caplog.text
    assert "key-" in caplog.text
    assert key not in caplog.text
    assert key[len(PREFIX) :] not in caplog.text


def test_a_log_line_stays_a_line() -> None:
    assert harmless("/a\r\nb\x1b[31m") == "/a??b?[31m"
    assert len(harmless("x" * 10_000)) == 200


async def test_a_request_that_is_no_http_harms_nobody(server: RunningServer, client: Wire) -> None:
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    for noise in (
        b"\0\xff\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/uploads HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(noise)
        assert (await reader.readline()).split()[1] == b"400"
        writer.close()
        await writer.wait_closed()
    assert (await client.ask("GET", "/v1/status")).status == 200


async def test_headers_without_end_are_refused(server: RunningServer) -> None:
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /v1/status HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n")
    assert (await reader.readline()).split()[1] == b"400"
    writer.close()


@pytest.mark.parametrize(
    "sent", [b"", b"GET /v1/sta", b"GET /v1/status HTTP/1.1\r\nHost: x\r\nX-Slow: "], ids=["nothing", "line", "headers"]
)
async def test_who_sends_no_whole_head_is_not_waited_for(config: ServerConfig, key: str, sent: bytes) -> None:
    """Whatever it trickles meanwhile; and nobody else is kept waiting."""
    async with running(replace(config, keepalive_timeout=0.3)) as server, wired(server.url, key) as client:
        host, _, port = server.url.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(sent)

        async def trickle() -> None:
            while True:
                writer.write(b"x" if sent else b"")
                await asyncio.sleep(0.02)

        trickling = asyncio.create_task(trickle())
        try:
            assert (await client.ask("GET", "/v1/status")).status == 200
            async with asyncio.timeout(20):
                try:
                    assert await reader.read() == b""
                except ConnectionResetError:
                    assert sent  # the server has closed, and one more byte came after that
        finally:
            trickling.cancel()
            writer.close()


async def test_a_key_asks_so_often_and_no_more(config: ServerConfig, key: str) -> None:
    """And no other key is held back by it."""
    other = await asyncio.to_thread(create_key, config.data, PRODUCT, Role.READER)
    async with running(replace(config, max_requests=1.0)) as server, wired(server.url, key) as client:
        answers = [await client.ask("OPTIONS", "/v1/uploads") for _ in range(30)]
        held = [answer for answer in answers if answer.status == 429]
        assert held
        assert {answer.status for answer in answers} == {204, 429}
        assert {answer.headers["Retry-After"] for answer in held} == {"1"}
        assert json.loads((await client.ask("GET", "/v1/negotiate")).body)["code"] == "too_many_requests"
        async with wired(server.url, other) as reader:
            assert (await reader.ask("GET", "/api/v1/products")).status == 200


def test_an_allowance_is_filled_again_as_time_passes() -> None:
    rates = Rates(rate=2.0, burst=3.0)
    assert [rates.wait("a", 100.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert rates.wait("a", 100.0) == 0.5
    assert rates.wait("a", 100.25) == 0.25
    assert rates.wait("b", 100.25) == 0.0
    assert [rates.wait("a", 100.5), rates.wait("a", 100.5)] == [0.0, 0.5]
    assert [rates.wait("a", 1e6) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


async def test_no_browser_runs_anything_of_an_answer(server: RunningServer, config: ServerConfig, key: str) -> None:
    """Nor is anybody let in by what browsers send along by themselves: there are no cookies."""
    token = await asyncio.to_thread(create_key, config.data, None, Role.ADMIN)
    async with wired(server.url, token) as admin:
        for path in (
            "/",
            "/api/v1/overview",
            "/api/v1/openapi.json",
            "/metrics",
            "/api/v1/nothing",
            "/api/v1/export/event",
        ):
            answer = await admin.ask("GET", path)
            assert answer.headers["X-Content-Type-Options"] == "nosniff", path
            rules = answer.headers["Content-Security-Policy"].split("; ")
            assert {"default-src 'none'", "frame-ancestors 'none'", "sandbox"} == set(rules), path
            assert "Set-Cookie" not in answer.headers, path
    async with wired(server.url, "") as stranger:
        cookie = f"Authorization=Bearer {token}; key={token}"
        assert (await stranger.ask("GET", "/api/v1/overview", Cookie=cookie)).status == 401


@pytest.mark.parametrize("first", ["serve", "keys"])
async def test_the_folder_is_for_its_owner_only(tmp_path: Path, first: str) -> None:
    """Also where somebody has made it before, open to all; whether the server or a command was in it first."""
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    if first == "keys":
        await asyncio.to_thread(create_key, data, PRODUCT)
    server = await ServerProcess.start(data)
    key = await asyncio.to_thread(create_key, data, PRODUCT)
    async with wired(server.url, key) as client:
        segment = make_segment(fresh_session_id())
        path = await client.upload_of(segment)
        assert (await client.append(path, segment, 0, complete=True)).complete
    assert await server.stop() == 0
    modes = await asyncio.to_thread(lambda: {path.name: path.stat().st_mode & 0o077 for path in data.rglob("*")})
    assert {name for name, mode in modes.items() if mode} == set()
    assert len(modes) > 3


async def test_a_broken_chunk_keeps_what_came_before(server: RunningServer, client: Wire) -> None:
    data = make_segment(fresh_session_id())
    path = await client.upload_of(data)
    append = await RawAppend.begin(client, path, -1)
    await append.send(b"%x\r\n" % 500 + data[:500] + b"\r\n")
    blob = blob_path(server.app, path)
    await eventually(lambda: blob.exists() and blob.stat().st_size == 500)
    await append.send(b"this is no chunk\r\n")
    assert (await client.ask("HEAD", path)).offset == 500
    async with asyncio.timeout(10):
        await append.ended()
    await append.close()
    assert (await client.append(path, data[500:], 500, complete=True)).complete


@pytest.mark.parametrize(
    ("name", "value"), [("port", -1), ("port", 70_000), ("body_timeout", 0), ("first_product", ""), ("key_cache", -1)]
)
def test_an_impossible_setting_is_named(config: ServerConfig, name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        replace(config, **{name: value})  # type: ignore[arg-type]

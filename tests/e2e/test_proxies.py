"""The proxies of `docs/deployment.md`, configured as it says: bytes reach the server as they come, what is cut goes on
at the very byte, and nothing is answered by the proxy in the server's place.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import trustme
from yarl import URL

from mailboat.protocol.limits import KIB, MIB
from mailboat.server import ServerConfig
from mailboat.server.keys import create_key
from mailboat.server.serving import running
from testkit.serverkit import PARTIAL, PRODUCT, Wire, fresh_session_id, make_segment, summary_of

PAGE = Path(__file__).parents[2] / "docs" / "deployment.md"
NAME = "localhost"


def documented(heading: str) -> str:
    """The first block of configuration under a heading of the page."""
    section = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = section.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("    "))
    rest = (number for number, line in enumerate(lines) if number > first and line and not line.startswith("    "))
    return textwrap.dedent("\n".join(lines[first : next(rest, None)]))


def nginx(folder: Path, port: int, upstream: str, *, certificate: Path, key: Path) -> list[str]:
    site = documented("nginx")
    for ours, there in {
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "collect.example.com": NAME,
        "/etc/ssl/collect.pem": str(certificate),
        "/etc/ssl/collect.key": str(key),
        "127.0.0.1:8787": upstream,
    }.items():
        assert ours in site, f"the page has no {ours!r} any more: change it here, too"
        site = site.replace(ours, there)
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    whole = f"daemon off; pid {folder}/pid; error_log stderr; events {{}} http {{ access_log off; {paths} {site} }}"
    (folder / "nginx.conf").write_text(whole)
    return ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]


def caddy(folder: Path, port: int, upstream: str, *, certificate: Path, key: Path) -> list[str]:
    site = documented("Caddy")
    for ours, there in {
        "collect.example.com {": f"https://{NAME}:{port} {{\n    bind 127.0.0.1\n    tls {certificate} {key}",
        "127.0.0.1:8787": upstream,
    }.items():
        assert ours in site, f"the page has no {ours!r} any more: change it here, too"
        site = site.replace(ours, there)
    (folder / "Caddyfile").write_text(f"{{\n admin off\n auto_https disable_redirects\n skip_install_trust\n}}\n{site}")
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


PROXIES = {"nginx": nginx, "caddy": caddy}


@pytest.fixture(params=PROXIES)
async def proxied(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Wire, ssl.SSLContext]]:
    """A client of a server behind a proxy."""
    if shutil.which(request.param) is None:
        pytest.skip(
            f"{request.param} is not installed: what the page says of it was NOT tried (apt install {request.param})"
        )
    authority = trustme.CA()
    certified = authority.issue_cert(NAME)
    certificate, private = tmp_path / "cert.pem", tmp_path / "key.pem"
    certified.private_key_pem.write_to_path(private)
    for blob in certified.cert_chain_pems:
        blob.write_to_path(certificate, append=True)
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = ServerConfig(data=tmp_path / "data", port=0)
    api_key = await asyncio.to_thread(create_key, config.data, PRODUCT)
    async with running(config) as server:
        upstream = URL(server.url).authority
        command = PROXIES[request.param](tmp_path, port, upstream, certificate=certificate, key=private)
        with (tmp_path / "proxy.log").open("wb") as log:
            home = {"HOME": str(tmp_path), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin"}
            process = await asyncio.create_subprocess_exec(*command, stderr=log, stdout=log, env=home)
        try:
            async with aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=trusted), auto_decompress=False
            ) as http:
                client = Wire(f"https://{NAME}:{port}", http, api_key)
                await _up(client, process, tmp_path / "proxy.log")
                yield client, trusted
        finally:
            process.terminate()
            await process.wait()


async def _up(client: Wire, process: asyncio.subprocess.Process, log: Path) -> None:
    async with asyncio.timeout(30):
        while True:
            assert process.returncode is None, f"the proxy has ended: see {log}"
            try:
                assert (await client.ask("GET", "/v1/status")).status == 200
            except aiohttp.ClientConnectionError:
                await asyncio.wait([asyncio.ensure_future(process.wait())], timeout=0.05)
            else:
                return


async def test_it_passes_all_on_as_it_comes(proxied: tuple[Wire, ssl.SSLContext]) -> None:
    client, trusted = proxied
    data = make_segment(fresh_session_id(), size=3 * MIB)
    path = await client.upload_of(data)
    assert (await client.ask("HEAD", path)).headers["Upload-Complete"] == "?0"
    cut = MIB + 300 * KIB
    writer = await _begun(client, trusted, path, data, cut)
    async with asyncio.timeout(20):  # a look ends the transfer, so what has come by then is what the proxy passed on
        while (await client.ask("HEAD", path)).offset == 0:
            writer.transport.abort()
            writer = await _begun(client, trusted, path, data, cut)
    writer.transport.abort()
    held = (await client.ask("HEAD", path)).offset
    assert 0 < held <= cut
    wrong = await client.append(path, data[held:], held + 1, complete=True)
    assert (wrong.status, wrong.headers["Upload-Offset"]) == (409, str(held))
    assert (await client.append(path, data[held:], held, complete=True)).complete
    (decision,) = await client.negotiate(summary_of(data))
    assert decision.verdict == "have"


async def test_it_takes_large_bodies_and_leaves_refusals_to_the_server(
    proxied: tuple[Wire, ssl.SSLContext],
) -> None:
    client, _ = proxied
    whole = await client.ask("POST", "/v1/uploads", data=bytes(40 * MIB), Upload_Complete="?1")
    assert whole.status == 201
    refused = await client.ask("POST", "/v1/uploads", data=bytes(65 * MIB), Upload_Complete="?1")
    assert (refused.status, refused.headers["Content-Type"]) == (413, "application/problem+json")
    made = await client.ask("POST", "/v1/uploads", Tus_Resumable="1.0.0", Upload_Length="10")
    assert made.headers["Location"].startswith(f"{client.url}/v1/uploads/"), "it must be reachable from outside"


async def _begun(client: Wire, trusted: ssl.SSLContext, path: str, data: bytes, sent: int) -> asyncio.StreamWriter:
    """An append of all of `data`, of which so many bytes were sent."""
    _, writer = await asyncio.open_connection("127.0.0.1", URL(client.url).port, ssl=trusted, server_hostname=NAME)
    writer.write(
        f"PATCH {path} HTTP/1.1\r\nHost: {URL(client.url).authority}\r\nAuthorization: Bearer {client.key}\r\n"
        f"Content-Type: {PARTIAL}\r\nUpload-Draft-Interop-Version: 8\r\nUpload-Offset: 0\r\nUpload-Complete: ?1\r\n"
        f"Content-Length: {len(data)}\r\n\r\n".encode()
    )
    writer.write(data[:sent])
    await writer.drain()
    return writer

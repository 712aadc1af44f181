"""The agent's HTTP: one session for all requests, and its failures as values.

What every request has in common: the key goes into ``Authorization`` and nowhere else, redirects are not followed
(the key would go along), no total time limit (a long upload is no error) but one on silence, and no answer is read
beyond a bound.
"""

from __future__ import annotations

import asyncio
import ssl as tls
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import aiohttp
from yarl import URL

from mailboat.protocol.limits import MAX_REPLY

CONNECT_TIMEOUT: Final = 10.0
"""Seconds to have a connection: a name that does not resolve and a host that drops packets look alike."""

SILENCE_TIMEOUT: Final = 60.0
"""Seconds without a byte from the server, once it has the whole request."""

TRANSPORT_FAILURES: Final = (aiohttp.ClientError, OSError, asyncio.TimeoutError)
"""What an attempt may raise when there is no (whole) answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: its status, header fields (names in lower case) and body up to the bound."""

    status: int
    headers: dict[str, str]
    body: bytes


class Http:
    """Requests to one server. Made within a running loop; `close` it."""

    def __init__(self, server: str, api_key: str, user_agent: str, ssl: tls.SSLContext | bool = True) -> None:  # noqa: FBT001, FBT002
        """`ssl`: as in aiohttp: True for the system's certificates, or a context of the application's own."""
        self._base = URL(server.rstrip("/"))
        self._headers = {"User-Agent": user_agent}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, sock_read=SILENCE_TIMEOUT)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=ssl, limit=16, ttl_dns_cache=30),
            timeout=timeout,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        """End all connections."""
        await self._session.close()

    def url(self, path: str) -> str | None:
        """The URL of `path` at the server; None for a URL of another origin, to which the key must not go."""
        if path.startswith("/") and not path.startswith("//"):
            return str(self._base) + path
        url = URL(path)
        return path if url.is_absolute() and url.origin() == self._base.origin() else None

    async def request(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        body: bytes | AsyncIterator[bytes] | None = None,
        limit: int = MAX_REPLY,
    ) -> Answer:
        """Send a request and read its answer. Raises one of `TRANSPORT_FAILURES` when there is none."""
        async with self._open(method, url, headers, body) as response:
            content = await _read(response, limit)
            return Answer(response.status, {name.lower(): value for name, value in response.headers.items()}, content)

    @asynccontextmanager
    async def _open(
        self, method: str, url: str, headers: dict[str, str], body: bytes | AsyncIterator[bytes] | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        async with self._session.request(
            method, URL(url, encoded=True), headers={**self._headers, **headers}, data=body, allow_redirects=False
        ) as response:
            yield response


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    content = bytearray()
    async for part in response.content.iter_any():
        content += part
        if len(content) > limit:
            response.close()
            break
    return bytes(content[:limit])

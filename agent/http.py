"""The agent's HTTP: one session for all requests, and its failures as values.

What every request has in common: the key goes into ``Authorization`` and nowhere else, redirects are not followed
(the key would go along), no total time limit (a long upload is no error) but one on silence, no answer is read beyond a
bound, and no URL leaves the server that was configured.
"""

from __future__ import annotations

import asyncio
import ssl as tls
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final
from urllib.parse import unquote, urlsplit

import aiohttp
from msgspec import Struct
from yarl import URL

from mailboat.agent.report import one_line
from mailboat.agent.stretch import Stretch, StretchPayload
from mailboat.protocol.addresses import resolve
from mailboat.protocol.limits import MAX_REPLY

CONNECT_TIMEOUT: Final = 10.0
"""Seconds to have a connection: a name that does not resolve and a host that drops packets look alike."""

SILENCE_TIMEOUT: Final = 60.0
"""Seconds in which nothing moves: nothing of a body is taken (a piece is `limits.UPLOAD_WRITE` at most, so a line of
9 KB/s is fast enough), no answer begins after the last one, no answer ends after it began."""

CONNECTIONS: Final = 40
"""Connections at a time: for as many uploads as can be configured, going and waiting for their answer (`flights`), and
the negotiations beside them."""

TRANSPORT_FAILURES: Final = (aiohttp.ClientError, OSError, asyncio.TimeoutError, UnicodeError)
"""What an attempt may raise when there is no (whole) answer; the last for a name that cannot be looked up."""

Body = AsyncGenerator[bytes | memoryview, None]


class Answer(Struct, frozen=True):
    """A whole answer: its status, header fields (names in lower case) and body up to the bound."""

    status: int
    headers: dict[str, str]
    body: bytes


class Http:
    """Requests to one server. Made within a running loop; `close` it."""

    def __init__(self, server: str, api_key: str, user_agent: str, ssl: tls.SSLContext | bool = True) -> None:  # noqa: FBT001, FBT002
        """`ssl`: as in aiohttp: True for the system's certificates, or a context of the application's own."""
        self._base = str(URL(server.rstrip("/")))
        self._headers = {"User-Agent": user_agent}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=ssl, limit=CONNECTIONS, ttl_dns_cache=30),
            timeout=timeout,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        """End all connections; whatever is under way fails."""
        await self._session.close()

    def url(self, path: str) -> str | None:
        """The URL of `path` at the server, which may have given a whole URL; None for one that is malformed, of another
        origin or above the configured address: the key must not go there.
        """
        within_server = path.startswith("/") and not path.startswith("//")
        url = resolve(self._base + "/", self._base + path if within_server else path)
        if url is None:
            return None
        place = urlsplit(url).path
        climbs = ".." in unquote(place).split("/")
        return url if place.startswith(urlsplit(self._base).path.rstrip("/") + "/") and not climbs else None

    async def request(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        body: bytes | Body | Stretch | None = None,
        limit: int = MAX_REPLY,
    ) -> Answer:
        """Send a request and read its answer, of which at most `limit` bytes. Raises one of `TRANSPORT_FAILURES` when
        there is none.
        """
        try:
            return await self._request(method, url, {**self._headers, **headers}, body, limit)
        except TimeoutError as error:
            raise TimeoutError(str(error) or f"nothing was heard of the server for {SILENCE_TIMEOUT:g} s") from error
        except RuntimeError as error:
            if not self._session.closed:
                raise
            raise aiohttp.ClientConnectionError("the agent has closed its connections") from error

    async def _request(
        self, method: str, url: str, headers: dict[str, str], body: bytes | Body | Stretch | None, limit: int
    ) -> Answer:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(SILENCE_TIMEOUT) as silence:

            def alive() -> None:
                silence.reschedule(loop.time() + SILENCE_TIMEOUT)

            data: bytes | Body | StretchPayload | None
            match body:
                case None | bytes():
                    data = body
                case Stretch():
                    data = StretchPayload(body, alive)
                case _:
                    data = _watched(body, alive)
            async with self._session.request(
                method, URL(url, encoded=True), headers=headers, data=data, allow_redirects=False
            ) as response:
                alive()
                content = await _read(response, limit)
                return Answer(response.status, {name.lower(): text for name, text in response.headers.items()}, content)


async def _watched(body: Body, alive: Callable[[], None]) -> Body:
    """`body`, telling each time a piece was taken."""
    async with aclosing(body) as pieces:
        async for piece in pieces:
            yield piece
            alive()


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    content = bytearray()
    async for part in response.content.iter_any():
        content += part
        if len(content) > limit:
            response.close()
            break
    return bytes(content[:limit])


def told(error: BaseException) -> str:
    """Why there is no answer, in one line for people."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return one_line(f"no connection: {error}")
    if isinstance(error, TimeoutError):
        return one_line(str(error))
    return one_line(f"the connection was lost: {type(error).__name__}: {error}".rstrip(": "))

"""What tests of the server share: sessions to send, and a client that speaks the wire by hand."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import msgpack
from aiohttp import web
from msgspec.structs import replace

from mailboat.protocol import Info, Preamble, SealReason, SegmentReader, SegmentWriter, Summary, wire
from mailboat.protocol.ids import ENTROPY_BYTES, new_id
from mailboat.protocol.negotiation import Decision, Reply, Request
from mailboat.protocol.records import COUNTERS, Kind
from mailboat.protocol.summary import summarise
from mailboat.server.blobs import LocalBlobs
from mailboat.server.context import BLOBS
from testkit.patience import TELL_WHEN_ASKED, Patience

PRODUCT = "Acme Studio"
AGENT = "mailboat-python/0.1.0"
PARTIAL = "application/partial-upload"

Body = bytes | AsyncIterator[bytes] | None


def fresh_session_id() -> str:
    return new_id(time.time_ns() // 1_000_000, os.urandom(ENTROPY_BYTES))


def make_segment(
    session_id: str,
    *,
    index: int = 0,
    size: int = 4096,
    product: str = PRODUCT,
    wall: float | None = None,
    first: int = 0,
) -> bytes:
    """A sealed segment of about `size` bytes that do not compress, as an agent would write it."""
    now = int((time.time() if wall is None else wall) * 1e9)
    info = Info(product=product, application="importer", version="2.4.1", host="here").to_wire()
    writer = SegmentWriter(Preamble(session_id, index, random.getrandbits(32), first, now, 1_000, info=info))
    content = bytearray(_added(writer, writer.preamble()))
    while len(content) < size:
        raws = [
            msgpack.packb([Kind.FEATURE, 2_000 + number, "import.csv", {"noise": random.randbytes(900)}])
            for number in range(max(1, min(256, (size - len(content)) // 1000)))
        ]
        counts = [0] * len(COUNTERS)
        counts[Kind.FEATURE - 1] = len(raws)
        header, frame = writer.block(b"".join(raws), counts, now)
        writer.add(frame, header)
        content += frame
    content += writer.seal(SealReason.STOPPED, now, 1_000_000_000)
    return bytes(content)


def _added(writer: SegmentWriter, frame: bytes) -> bytes:
    writer.add(frame)
    return frame


def summary_of(*segments: bytes) -> Summary:
    """The summary of an ended session, from all of its segments."""
    parts = []
    for data in segments:
        reader = SegmentReader(data)
        for _ in reader.blocks():
            pass
        assert reader.preamble is not None
        assert reader.seal is not None
        parts.append((reader.preamble, reader.seal, len(data)))
    return summarise(parts)


def blob_path(app: web.Application, upload: str) -> Path:
    """The file of an upload's bytes (by its id or path), on a server that keeps them in local files."""
    blobs = app[BLOBS]
    assert isinstance(blobs, LocalBlobs)
    return blobs.path(upload.rpartition("/")[2])


async def eventually(condition: Callable[[], bool], within: float = 20.0) -> None:
    """Wait until `condition` holds; a condition of the server in this process, looked at between its steps."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - the server under test has no event for tests
            await asyncio.sleep(0.002)


def of_product(summary: Summary, product: str) -> Summary:
    return replace(summary, info=replace(summary.info, product=product))


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, read whole."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def offset(self) -> int:
        return int(self.headers["Upload-Offset"])

    @property
    def complete(self) -> bool:
        return {"?0": False, "?1": True}[self.headers["Upload-Complete"]]


@dataclass
class Wire:
    """A client with one key."""

    url: str
    http: aiohttp.ClientSession
    key: str
    headers: dict[str, str] = field(default_factory=dict)

    async def ask(self, method: str, path: str, *, data: Body = None, **headers: str) -> Answer:
        """One request; header names are given with underscores."""
        sent = {
            "Authorization": f"Bearer {self.key}",
            **{name.replace("_", "-"): text for name, text in headers.items()},
        }
        body = io.BytesIO(data) if isinstance(data, bytes) else data
        async with self.http.request(method, self.url + path, data=body, headers=sent) as response:
            return Answer(response.status, dict(response.headers), await response.read())

    async def negotiate(self, *offers: Summary, sent: float = 0.0) -> tuple[Decision, ...]:
        """Offer sessions as an agent does: msgpack, compressed, both ways."""
        body = wire.compress(Request(AGENT, offers, sent).encode())
        answer = await self.ask(
            "POST",
            "/v1/negotiate",
            data=body,
            Content_Type=wire.MSGPACK_MEDIA_TYPE,
            Content_Encoding="zstd",
            Accept_Encoding="zstd",
        )
        assert answer.status == 200, answer
        assert answer.headers["Content-Encoding"] == "zstd"
        return Reply.decode(wire.decompress(answer.body)).decisions

    async def upload_of(self, *segments: bytes) -> str:
        """Offer the session of these segments; the path of the first one's upload."""
        (decision,) = await self.negotiate(summary_of(*segments))
        assert decision.verdict == "send", decision
        return decision.segments[0].url

    async def append(self, path: str, data: Body, offset: int, *, complete: bool) -> Answer:
        return await self.ask(
            "PATCH",
            path,
            data=data,
            Content_Type=PARTIAL,
            Upload_Offset=str(offset),
            Upload_Complete="?1" if complete else "?0",
        )


@asynccontextmanager
async def wired(url: str, key: str) -> AsyncIterator[Wire]:
    """A client of the server at `url`; it takes answers as they come."""
    async with aiohttp.ClientSession(auto_decompress=False, skip_auto_headers=["Content-Type"]) as http:
        yield Wire(url, http, key)


class RawAppend:
    """A PATCH over a socket of its own, sent as far as one likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def begin(
        cls, client: Wire, path: str, length: int, offset: int = 0, *, complete: bool = True, version: int | None = None
    ) -> RawAppend:
        """Send the head of a PATCH whose body has `length` bytes (-1: a chunked one); `version` is the interop one."""
        host, _, port = client.url.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = [
            f"PATCH {path} HTTP/1.1",
            f"Host: {host}",
            f"Authorization: Bearer {client.key}",
            f"Content-Type: {PARTIAL}",
            f"Content-Length: {length}" if length >= 0 else "Transfer-Encoding: chunked",
            f"Upload-Offset: {offset}",
            f"Upload-Complete: ?{int(complete)}",
            *([] if version is None else [f"Upload-Draft-Interop-Version: {version}"]),
        ]
        writer.write("\r\n".join([*head, "", ""]).encode())
        await writer.drain()
        return cls(reader, writer)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def status(self) -> int:
        """The status of the answer, once it comes."""
        return int((await self.reader.readline()).split()[1])

    async def ended(self) -> None:
        """Wait until the server closes."""
        await self.reader.read()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):  # the server was first
            await self.writer.wait_closed()

    def abort(self) -> None:
        """End with a reset, as a machine does that was switched off and on."""
        self.writer.transport.abort()


@dataclass
class ServerProcess:
    """``mailboat serve`` in a process of its own, to be killed."""

    data: Path
    port: int
    process: asyncio.subprocess.Process
    lines: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @classmethod
    async def start(cls, data: Path, port: int = 0) -> ServerProcess:
        """Start it, and wait until it listens. What it logs goes into a file beside `data`."""
        program = TELL_WHEN_ASKED + (
            "import sys; from pathlib import Path; from mailboat.server.config import ServerConfig; "
            "from mailboat.server.serving import run; "
            "sys.exit(run(ServerConfig(data=Path(sys.argv[1]), port=int(sys.argv[2])), "
            "echo=lambda line: print(line, flush=True)))"
        )
        log = _log_beside(data)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                program,
                str(data),
                str(port),
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
            )
        assert process.stdout is not None
        lines: list[str] = []
        with Patience(process.pid) as patience:
            while line := (await process.stdout.readline()).decode().strip():
                lines.append(line)
                if line.startswith("listening on "):
                    return cls(data, int(line.rpartition(":")[2]), process, lines)
        patience.check(log.read_text)
        status = await process.wait()
        raise AssertionError(f"the server did not start: {lines}, exit status {status}; {log.read_text()[-2000:]}")

    async def kill(self) -> None:
        """Kill it with -9."""
        self.process.kill()
        await self._gone()

    async def stop(self) -> int:
        """Ask it to stop, and wait; its exit status."""
        self.process.terminate()
        await self._gone()
        assert self.process.returncode is not None
        return self.process.returncode

    async def _gone(self) -> None:
        assert self.process.stdout is not None
        with Patience(self.process.pid) as patience:
            self.lines += (await self.process.stdout.read()).decode().splitlines()
            await self.process.wait()
        patience.check(_log_beside(self.data).read_text)


def _log_beside(data: Path) -> Path:
    """Where a server of that folder logs."""
    return data.with_name(f"{data.name}.log")

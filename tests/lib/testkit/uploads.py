"""An upload server in memory: the core and the dialect as an adapter would drive them, without sockets.

It keeps to the four steps of `mailboat.protocol.uploads.decisions`, one call a step, so that a test can stop between
any two. What a transfer received is durable only once it was recorded; `restart` loses the rest, as a power cut would.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from mailboat.protocol.uploads import rufh
from mailboat.protocol.uploads.decisions import (
    Accepted,
    BodyEnd,
    Refused,
    decide_append,
    decide_cancel,
    decide_create,
    decide_query,
    finish_append,
    record_bytes,
)
from mailboat.protocol.uploads.rufh_server import (
    HttpAnswer,
    answer,
    answer_options,
    answer_unknown,
    read_request,
    request_version,
)
from mailboat.protocol.uploads.state import UploadState
from mailboat.protocol.uploads.values import Append, Cancel, Create, Discover, Limits

PLACE = "/v1/uploads"


@dataclass
class Upload:
    state: UploadState
    blob: bytearray = field(default_factory=bytearray)


class Transfer:
    """A request whose body is still coming."""

    def __init__(self, server: MemoryServer, accepted: Accepted, version: rufh.Version, *, created: bool) -> None:
        self._server = server
        self._accepted = accepted
        self._version = version
        self._created = created
        self._received = bytearray()
        self._overrun = False
        self.over = False

    @property
    def upload(self) -> Upload:
        return self._server.uploads[self._accepted.state.id]

    def feed(self, body: bytes) -> None:
        room = self._accepted.max_bytes
        self._received += body
        if room is not None and len(self._received) > room:
            del self._received[room:]
            self._overrun = True

    def record(self) -> bool:
        """Make what came so far durable; False when a newer request took over."""
        offset = self._accepted.from_offset + len(self._received)
        recorded = record_bytes(self.upload.state, self._accepted, offset=offset)
        if isinstance(recorded, Refused):
            return False
        self._write()
        self.upload.state = recorded
        return True

    def end(self, end: BodyEnd = BodyEnd.WHOLE) -> HttpAnswer:
        self.over = True
        if self._overrun:
            end = BodyEnd.OVERRUN
        now = self._server.now
        offset = self._accepted.from_offset + len(self._received)
        verdict = finish_append(self.upload.state, self._accepted, offset=offset, end=end, now=now)
        if verdict.state is not None and verdict.state is not self.upload.state:
            self._write()
            self.upload.state = verdict.state
        location = f"{PLACE}/{self.upload.state.id}" if self._created else None
        return answer(verdict, version=self._version, now=now, location=location)

    def _write(self) -> None:
        blob, start = self.upload.blob, self._accepted.from_offset
        assert len(blob) >= start
        blob[start : start + len(self._received)] = self._received


class MemoryServer:
    """A server of uploads at `PLACE`; `now` is its wall clock."""

    def __init__(self, limits: Limits | None = None, now: float = 1_800_000_000.0) -> None:
        self.limits = limits if limits is not None else Limits()
        self.now = now
        self.uploads: dict[str, Upload] = {}
        self.transfers: dict[str, Transfer] = {}
        self.polite = True
        """Whether an older transfer ends itself for a newer request; if not, only the epoch keeps it out."""

    def begin(self, method: str, path: str, headers: Mapping[str, str]) -> Transfer | HttpAnswer:
        """Take a request up to its body: the answer, where the body does not matter any more."""
        upload = self.uploads.get(path.removeprefix(f"{PLACE}/"))
        stored = rufh.version_by_tag(upload.state.dialect) if upload is not None else None
        default = stored if stored is not None else rufh.CURRENT
        version = request_version(headers, default=default)
        request = read_request(method, headers, default=default)
        if isinstance(request, Refused):
            return answer(request, version=version, now=self.now)
        if isinstance(request, Discover):
            return answer_options(self.limits, version=version, upload=path != PLACE)
        if isinstance(request, Create):
            return self._create(request, version)
        if upload is None:
            return answer_unknown(version=version)
        self._supersede(upload)
        if isinstance(request, Append):
            return self._append(upload, request, version)
        decide = decide_cancel if isinstance(request, Cancel) else decide_query
        verdict = decide(upload.state, now=self.now)
        assert verdict.state is not None
        upload.state = verdict.state
        return answer(verdict, version=version, now=self.now)

    def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> HttpAnswer:
        """Take a whole request; `Content-Length` is added unless the body is announced as chunked."""
        lower = {name.lower() for name in headers}
        if not lower & {"transfer-encoding", "content-length"}:
            headers = {**headers, "Content-Length": str(len(body))}
        begun = self.begin(method, path, headers)
        if isinstance(begun, HttpAnswer):
            return begun
        begun.feed(body)
        return begun.end()

    def restart(self) -> None:
        """Lose what is not durable, and every connection."""
        self.transfers.clear()

    def _supersede(self, upload: Upload) -> None:
        older = self.transfers.pop(upload.state.id, None)
        if older is not None and not older.over and self.polite:
            older.end(BodyEnd.CUT)

    def _create(self, request: Create, version: rufh.Version) -> Transfer | HttpAnswer:
        upload_id = f"0190a000-0000-7000-8000-{len(self.uploads):012x}"
        verdict = decide_create(request, upload_id=upload_id, limits=self.limits, now=self.now, dialect=version.tag)
        if isinstance(verdict, Refused):
            return answer(verdict, version=version, now=self.now)
        self.uploads[upload_id] = Upload(verdict.state)
        return self._transfer(verdict, version, created=True)

    def _append(self, upload: Upload, request: Append, version: rufh.Version) -> Transfer | HttpAnswer:
        verdict = decide_append(upload.state, request, now=self.now)
        assert verdict.state is not None
        upload.state = verdict.state
        if isinstance(verdict, Refused):
            return answer(verdict, version=version, now=self.now)
        return self._transfer(verdict, version, created=False)

    def _transfer(self, accepted: Accepted, version: rufh.Version, *, created: bool) -> Transfer:
        transfer = Transfer(self, accepted, version, created=created)
        self.transfers[accepted.state.id] = transfer
        return transfer


# -- requests as tests write them ------------------------------------------------------------------------------------

REGISTRY = "https://iana.org/assignments/http-problem-types"


def patch(offset: int | str, *, complete: str = "?0", **fields: str) -> dict[str, str]:
    """The header fields of an append; further ones by name, with underscores for hyphens."""
    headers = {
        "Content-Type": rufh.PARTIAL_UPLOAD,
        "Upload-Offset": str(offset),
        "Upload-Complete": complete,
        "Upload-Draft-Interop-Version": "9",
    }
    return headers | named(fields)


def named(fields: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in fields.items()}


def made(server: MemoryServer | None = None, body: bytes = b"", **fields: str) -> tuple[MemoryServer, str]:
    """A server and the URL of an upload on it that holds `body`."""
    server = server or MemoryServer()
    created = server.handle("POST", PLACE, {"Upload-Complete": "?0"} | named(fields), body)
    assert created.status == 201
    return server, created.headers["Location"]


def head(server: MemoryServer, url: str) -> HttpAnswer:
    return server.handle("HEAD", url, {"Upload-Draft-Interop-Version": "9"})


def stored(server: MemoryServer, url: str) -> bytes:
    return bytes(server.uploads[url.removeprefix(f"{PLACE}/")].blob)


def problem(reply: HttpAnswer) -> str:
    """The type of the problem document that `reply` must be."""
    assert reply.headers["Content-Type"] == "application/problem+json"
    document = json.loads(reply.body)
    assert document["status"] == reply.status
    kind = document["type"]
    assert isinstance(kind, str)
    return kind

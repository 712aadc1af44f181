"""An upload server in memory: the core and the dialects as an adapter would drive them, without sockets.

It keeps to the four steps of `mailboat.protocol.uploads.decisions`, one call a step, so that a test can stop between
any two. What a transfer received is durable only once it was recorded; `restart` loses the rest, as a power cut would.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from mailboat.protocol.uploads import rufh, tus
from mailboat.protocol.uploads.decisions import (
    Accepted,
    Appended,
    BodyEnd,
    Cancelled,
    Found,
    Refused,
    check_whole,
    decide_append,
    decide_cancel,
    decide_create,
    decide_query,
    finish_append,
    record_bytes,
    whole_digests,
)
from mailboat.protocol.uploads.detect import ServerDialect, answer_options, detect
from mailboat.protocol.uploads.joining import decide_join, decide_joining
from mailboat.protocol.uploads.messages import HttpAnswer
from mailboat.protocol.uploads.state import UploadState
from mailboat.protocol.uploads.values import Append, Cancel, Create, Discover, Join, Limits, Query

PLACE = "/v1/uploads"


@dataclass
class Upload:
    state: UploadState
    blob: bytearray = field(default_factory=bytearray)


class Transfer:
    """A request whose body is still coming."""

    def __init__(self, server: MemoryServer, accepted: Accepted, dialect: ServerDialect, *, created: bool) -> None:
        self._server = server
        self._accepted = accepted
        self._dialect = dialect
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

    def end(self, end: BodyEnd = BodyEnd.WHOLE, trailers: Mapping[str, str] | None = None) -> HttpAnswer:
        self.over = True
        if self._overrun:
            end = BodyEnd.OVERRUN
        now = self._server.now
        offset = self._accepted.from_offset + len(self._received)
        follows = self._dialect.read_trailers(trailers or {}) if self._accepted.tentative else None
        accepted = self._accepted if follows is None else self._accepted.told(follows)
        declared = accepted.request.digest
        digest = None
        if declared is not None:
            hasher = declared.algorithm.hasher()
            hasher.update(bytes(self._received))
            digest = hasher.digest()
        verdict = finish_append(self.upload.state, accepted, offset=offset, end=end, now=now, digest=digest)
        if verdict.state is not None and verdict.state is not self.upload.state:
            if verdict.state.offset > self._accepted.from_offset:
                self._write()
            verdict = self._server.checked(self.upload, verdict)
            assert verdict.state is not None
            self.upload.state = verdict.state
        location = f"{PLACE}/{self.upload.state.id}" if self._created else None
        return self._dialect.answer(verdict, now=now, location=location)

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
        dialect = detect(headers, upload.state.dialect if upload is not None else "")
        request = dialect.read(method, headers)
        if isinstance(request, Refused):
            return dialect.answer(request, now=self.now)
        if isinstance(request, Discover):
            return answer_options(self.limits, upload=path != PLACE)
        if isinstance(request, Create | Join):
            return self._create(request, dialect) if isinstance(request, Create) else self._join(request, dialect)
        if upload is None:
            return dialect.answer_unknown()
        self._supersede(upload)
        if isinstance(request, Append):
            return self._append(upload, request, dialect)
        return dialect.answer(self._bodiless(upload, request), now=self.now)

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

    def checked(self, upload: Upload, verdict: Appended | Refused) -> Appended | Refused:
        """`verdict`, unless it completes the upload, and that has not the digest declared of the whole; with the
        digest that is wanted of it.
        """
        state = verdict.state
        if state is None or not state.complete:
            return verdict
        digests = {}
        for algorithm in whole_digests(state):
            hasher = algorithm.hasher()
            hasher.update(bytes(upload.blob))
            digests[algorithm] = hasher.digest()
        held = check_whole(state, digests)
        return held if isinstance(held, Refused) else replace(verdict, state=held)

    def _bodiless(self, upload: Upload, request: Query | Cancel) -> Found | Cancelled | Refused:
        verdict: Found | Cancelled | Refused
        if isinstance(request, Cancel):
            verdict = decide_cancel(upload.state, now=self.now)
        else:
            self._joined(upload)
            verdict = decide_query(upload.state, request, now=self.now)
        assert verdict.state is not None
        upload.state = verdict.state
        return verdict

    def _joined(self, upload: Upload) -> None:
        ids = upload.state.creation.parts
        if not ids or upload.state.complete:
            return
        held = decide_joining(upload.state, [self.uploads[each].state for each in ids], now=self.now)
        state = held.state if isinstance(held, Refused) else held
        assert state is not None
        if state.complete:
            upload.blob = bytearray(b"".join(self.uploads[each].blob for each in ids))
        upload.state = state

    def _fresh_id(self) -> str:
        return f"0190a000-0000-7000-8000-{len(self.uploads):012x}"

    def _join(self, request: Join, dialect: ServerDialect) -> HttpAnswer:
        found = [self.uploads.get(url.rpartition("/")[2]) for url in request.parts]
        parts = [None if each is None else each.state for each in found]
        verdict = decide_join(
            request, parts, upload_id=self._fresh_id(), limits=self.limits, now=self.now, dialect=dialect.tag
        )
        if isinstance(verdict, Refused):
            return dialect.answer(verdict, now=self.now)
        upload = self.uploads[verdict.state.id] = Upload(verdict.state)
        self._joined(upload)
        return dialect.answer(Appended(upload.state), now=self.now, location=f"{PLACE}/{upload.state.id}")

    def _create(self, request: Create, dialect: ServerDialect) -> Transfer | HttpAnswer:
        upload_id = self._fresh_id()
        verdict = decide_create(request, upload_id=upload_id, limits=self.limits, now=self.now, dialect=dialect.tag)
        if isinstance(verdict, Refused):
            return dialect.answer(verdict, now=self.now)
        self.uploads[upload_id] = Upload(verdict.state)
        return self._transfer(verdict, dialect, created=True)

    def _append(self, upload: Upload, request: Append, dialect: ServerDialect) -> Transfer | HttpAnswer:
        verdict = decide_append(upload.state, request, now=self.now)
        assert verdict.state is not None
        upload.state = verdict.state
        if isinstance(verdict, Refused):
            return dialect.answer(verdict, now=self.now)
        return self._transfer(verdict, dialect, created=False)

    def _transfer(self, accepted: Accepted, dialect: ServerDialect, *, created: bool) -> Transfer:
        transfer = Transfer(self, accepted, dialect, created=created)
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


TUS = {"Tus-Resumable": "1.0.0"}


def tus_patch(offset: int | str, **fields: str) -> dict[str, str]:
    """The header fields of an append in tus."""
    return TUS | {"Content-Type": tus.OFFSET_OCTET_STREAM, "Upload-Offset": str(offset)} | named(fields)


def tus_made(server: MemoryServer | None = None, length: int | None = 10, **fields: str) -> tuple[MemoryServer, str]:
    """A server and the URL of an empty upload on it, made by tus."""
    server = server or MemoryServer()
    said = {"Upload-Defer-Length": "1"} if length is None else {"Upload-Length": str(length)}
    created = server.handle("POST", PLACE, TUS | said | named(fields))
    assert created.status == 201, created
    return server, created.headers["Location"]


def tus_head(server: MemoryServer, url: str) -> HttpAnswer:
    return server.handle("HEAD", url, TUS)


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

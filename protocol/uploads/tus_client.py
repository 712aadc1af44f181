"""tus on the client's side: from the core's requests to HTTP requests, and from HTTP answers to replies.

For any tus 1.0.0 server with the extension `creation`. A file that still grows needs `creation-defer-length`, to cancel
needs `termination`; where a server lacks them, its refusal says so. An append may carry a checksum: its owner, who has
the bytes, puts a `Digest` into the task before it is rendered (`client.request(replace(task, digest=...))`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from mailboat.protocol.errors import PROBLEM_MEDIA_TYPE
from mailboat.protocol.uploads import tus
from mailboat.protocol.uploads.http_dates import parse_http_date
from mailboat.protocol.uploads.messages import digits, folded, media_type
from mailboat.protocol.uploads.replies import MAX_DETAIL, HttpRequest, Meaning, Reply, meaning_of, problem_of
from mailboat.protocol.uploads.values import Append, Create, Limits, Query, Request

_CREATED: Final = 201


class TusDialect:
    """Translates for a client; `metadata` goes with the creation, as texts by key."""

    def __init__(self, metadata: Mapping[str, str] | None = None) -> None:
        """Raises `ValueError` for metadata that cannot be written."""
        self._metadata = tus.serialise_metadata(metadata or {})

    def render(self, request: Request, *, target: str, resource: str | None) -> HttpRequest:
        """The HTTP request for `request`; it needs `resource` unless it is a creation."""
        headers = {tus.TUS_RESUMABLE: tus.VERSION}
        match request:
            case Create():
                return HttpRequest("POST", target, headers | self._creation(request))
            case Append():
                return HttpRequest("PATCH", resource or target, headers | _append(request))
            case Query():
                return HttpRequest("HEAD", resource or target, headers)
            case _:
                return HttpRequest("DELETE", resource or target, headers | {"Content-Length": "0"})

    def read(self, request: Request, status: int, headers: Mapping[str, str], body: bytes) -> Reply:
        """What the answer to `request` says. Never raises, whatever the answer holds."""
        fields = folded(headers)
        text = fields.get(tus.UPLOAD_OFFSET.lower())
        offset = None if text is None else digits(text)
        location = fields.get("location")
        ours = tus.TUS_RESUMABLE.lower() in fields
        match request:
            case Create():
                ours = ours and status == _CREATED and location is not None
            case Query() | Append():
                ours = ours and offset is not None
            case _:
                pass
        problem, detail = ("", "") if meaning_of(status) is Meaning.SUCCESS else _explanation(fields, body)
        if isinstance(request, Create) and ours and text is None:
            offset = 0  # "the new resource has an implicit offset of 0" (tus, Creation)
        return Reply(
            status,
            ours,
            garbled=text is not None and offset is None,
            offset=offset,
            length=digits(fields.get(tus.UPLOAD_LENGTH.lower(), "")),
            complete=_complete(request, fields, offset) if meaning_of(status) is Meaning.SUCCESS else None,
            limits=_limits(fields),
            location=location,
            problem=problem or None,
            detail=detail,
        )

    def _creation(self, request: Create) -> dict[str, str]:
        headers = {"Content-Length": str(request.content_length or 0)}
        if request.length is None:
            headers[tus.UPLOAD_DEFER_LENGTH] = "1"
        else:
            headers[tus.UPLOAD_LENGTH] = str(request.length)
        if self._metadata:
            headers[tus.UPLOAD_METADATA] = self._metadata
        return headers


def _append(request: Append) -> dict[str, str]:
    headers = {"Content-Type": tus.OFFSET_OCTET_STREAM, tus.UPLOAD_OFFSET: str(request.offset)}
    if request.content_length is not None:
        headers["Content-Length"] = str(request.content_length)
    if request.length is not None and not request.length_known:
        # Only where the length was deferred, and only once: @tus/server refuses it otherwise.
        headers[tus.UPLOAD_LENGTH] = str(request.length)
    if request.digest is not None:
        headers[tus.UPLOAD_CHECKSUM] = tus.serialise_checksum(request.digest)
    return headers


def _complete(request: Request, fields: Mapping[str, str], offset: int | None) -> bool | None:
    """Whether the upload is complete: when its offset is its length, as the request or the answer tells that."""
    length = digits(fields.get(tus.UPLOAD_LENGTH.lower(), ""))
    if length is None and isinstance(request, Create | Append):
        length = request.length
    return None if offset is None or length is None else offset == length


def _limits(fields: Mapping[str, str]) -> Limits | None:
    """The lifetime left, by the server's own clock; None when it tells none that can be read."""
    expires, date = fields.get(tus.UPLOAD_EXPIRES.lower()), fields.get("date")
    if expires is None or date is None:
        return None
    # Years of two digits are the only thing that the third argument is for.
    until, told = parse_http_date(expires.strip(" "), 0.0), parse_http_date(date.strip(" "), 0.0)
    return None if until is None or told is None else Limits(max_age=max(0, int(until - told)))


def _explanation(fields: Mapping[str, str], body: bytes) -> tuple[str, str]:
    if media_type(fields) == PROBLEM_MEDIA_TYPE:
        return problem_of(fields, body)
    if media_type(fields) == "text/plain":
        return "", body[: 4 * MAX_DETAIL].decode("utf-8", "replace").strip()[:MAX_DETAIL]
    return "", ""


class Offering(Struct, frozen=True):
    """What a tus server says that it offers (tus, OPTIONS)."""

    versions: tuple[str, ...] = ()
    extensions: frozenset[str] = frozenset()
    max_size: int | None = None

    @property
    def usable(self) -> bool:
        """Whether uploads can be made there, in the version that is spoken here."""
        return tus.VERSION in self.versions and "creation" in self.extensions

    @property
    def deferred(self) -> bool:
        """Whether an upload's length may be told later: what a file that still grows needs."""
        return "creation-defer-length" in self.extensions


def discovery(target: str) -> HttpRequest:
    """The question what is offered where uploads are made. It states no version (tus, OPTIONS)."""
    return HttpRequest("OPTIONS", target, {})


def read_discovery(headers: Mapping[str, str]) -> Offering | None:
    """What the answer to `discovery` tells; None when no tus server has given it."""
    fields = folded(headers)
    versions = fields.get(tus.TUS_VERSION.lower(), fields.get(tus.TUS_RESUMABLE.lower()))
    if versions is None:
        return None
    extensions = _listed(fields.get(tus.TUS_EXTENSION.lower(), ""))
    return Offering(_listed(versions), frozenset(extensions), digits(fields.get(tus.TUS_MAX_SIZE.lower(), "")))


def _listed(text: str) -> tuple[str, ...]:
    return tuple(each.strip(" \t") for each in text.split(",") if each.strip(" \t"))

"""RUFH on the client's side: from the core's requests to HTTP requests, and from HTTP answers to replies.

Creations are "careful" (RUFH 11.2): they carry no bytes, because the alternative depends on interim answers (104),
which many HTTP libraries and proxies cannot handle.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from mailboat.protocol.uploads import rufh
from mailboat.protocol.uploads.fields import serialise_boolean, serialise_integer
from mailboat.protocol.uploads.messages import folded, media_type
from mailboat.protocol.uploads.replies import Complaint, HttpRequest, Meaning, Reply, meaning_of, problem_of
from mailboat.protocol.uploads.rufh import CURRENT, Version
from mailboat.protocol.uploads.values import Append, Create, Limits, Query, Request

_COMPLAINTS: Final[Mapping[str, Complaint]] = MappingProxyType(
    {rufh.COMPLETED_UPLOAD: Complaint.COMPLETED, rufh.INCONSISTENT_LENGTH: Complaint.INCONSISTENT_LENGTH}
)
_CREATED: Final = 201


class RufhDialect:
    """Translates for a client that speaks `version`."""

    def __init__(self, version: Version = CURRENT) -> None:
        self._version = version

    def render(self, request: Request, *, target: str, resource: str | None) -> HttpRequest:
        """The HTTP request for `request`; it needs `resource` unless it is a creation."""
        headers = {rufh.INTEROP_VERSION: str(self._version.number)}
        match request:
            case Create():
                headers |= self._statements(request)
                return HttpRequest("POST", target, headers)
            case Append():
                headers |= {"Content-Type": rufh.PARTIAL_UPLOAD, rufh.UPLOAD_OFFSET: serialise_integer(request.offset)}
                headers |= self._statements(request)
                return HttpRequest("PATCH", resource or target, headers)
            case Query():
                return HttpRequest("HEAD", resource or target, headers)
            case _:
                return HttpRequest("DELETE", resource or target, headers)

    def read(self, request: Request, status: int, headers: Mapping[str, str], body: bytes) -> Reply:
        """What the answer to `request` says. Never raises, whatever the answer holds."""
        fields = folded(headers)
        offset = rufh.integer_field(fields, rufh.UPLOAD_OFFSET)
        complete = rufh.complete_field(fields, self._version)
        limits = _limits(fields)
        location = fields.get("location")
        match request:
            case Create():
                ours = location is not None and (status == _CREATED or complete is not None or limits is not None)
            case Query():
                ours = offset is not None
            case Append():
                ours = offset is not None or complete is not None
            case _:
                ours = media_type(fields) != "text/html"  # any success will do, but not a portal's page
        # A success may tell nothing of the body; a refusal should explain itself.
        problem, detail = ("", "") if meaning_of(status) is Meaning.SUCCESS else problem_of(fields, body)
        return Reply(
            status,
            ours,
            garbled=(offset is None and rufh.UPLOAD_OFFSET.lower() in fields)
            or (complete is None and self._version.complete_field.lower() in fields),
            offset=offset,
            complete=complete,
            limits=limits,
            location=location,
            complaint=_COMPLAINTS.get(problem),
            problem=problem or None,
            detail=detail,
        )

    def _statements(self, request: Create | Append) -> dict[str, str]:
        version = self._version
        headers = {version.complete_field: serialise_boolean(request.complete is not version.negated)}
        if request.length is not None:
            headers[rufh.UPLOAD_LENGTH] = serialise_integer(request.length)
        if request.content_length is not None:
            headers["Content-Length"] = str(request.content_length)
        if request.digest is not None:
            headers[rufh.CONTENT_DIGEST] = rufh.serialise_digest(request.digest)
        if request.whole is not None:
            headers[rufh.REPR_DIGEST] = rufh.serialise_digest(request.whole)
        if isinstance(request, Create) and request.wanted is not None:
            headers[rufh.WANT_REPR_DIGEST] = rufh.serialise_wanted(request.wanted)
        return headers


def _limits(fields: Mapping[str, str]) -> Limits | None:
    """The limits an answer tells; None when it tells none, or unreadable ones, which are to be ignored."""
    text = fields.get(rufh.UPLOAD_LIMIT.lower())
    members = None if text is None else rufh.limit_members(text)
    if members is None:
        return None
    return Limits(
        max_size=members.get("max-size"),
        min_size=members.get("min-size"),
        max_append_size=members.get("max-append-size"),
        min_append_size=members.get("min-append-size"),
        max_age=members.get("max-age", members.get("expires")),
    )

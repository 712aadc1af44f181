"""RUFH on the server's side: from HTTP requests to the core's values, and from its verdicts to HTTP answers.

Interim answers (104) are never made here: clients exist that take one for the final answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from mailboat.protocol.errors import PROBLEM_MEDIA_TYPE, Problem
from mailboat.protocol.uploads import rufh
from mailboat.protocol.uploads.decisions import Appended, Cancelled, Found, Refusal, Refused
from mailboat.protocol.uploads.fields import MAX_INTEGER, serialise_boolean, serialise_dictionary, serialise_integer
from mailboat.protocol.uploads.rufh import CURRENT, Version
from mailboat.protocol.uploads.state import UploadState
from mailboat.protocol.uploads.values import Append, Cancel, Create, Discover, Limits, Query

_DIGITS: Final = re.compile(r"[0-9]{1,15}")

# A creation is "any request that can carry content" (RUFH 4.2.1); PATCH is taken by appends. GET is answered as HEAD is
# (4.3.2): what is uploaded is never shown through the upload's own resource.
_METHODS: Final = ("OPTIONS", "POST", "PUT", "HEAD", "GET", "PATCH", "DELETE")
_ALLOW_CREATION: Final = "OPTIONS, POST"
_ALLOW_UPLOAD: Final = "OPTIONS, HEAD, GET, PATCH, DELETE"

_NO_STORE: Final = {"Cache-Control": "no-store"}


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """An HTTP answer: status, header fields, body (a problem document or nothing)."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def read_request(
    method: str, headers: Mapping[str, str], *, default: Version = CURRENT
) -> Create | Append | Query | Cancel | Discover | Refused:
    """The core's request for an HTTP request; `Refused` (400, 405, 415) where it is none. Never raises.

    `headers` may be any mapping, with names in any case; fields that came more than once are joined. `default` is the
    version of the upload in question, for a request that does not tell its own.
    """
    fields = rufh.folded(headers)
    version = rufh.version_of(fields, default)
    match method:
        case "POST" | "PUT":
            return _read_create(fields, version)
        case "PATCH":
            return _read_append(fields, version)
        case "HEAD" | "GET":
            return Query()
        case "DELETE":
            return Cancel()
        case "OPTIONS":
            return Discover()
        case _:
            return Refused(Refusal.METHOD_NOT_ALLOWED, f"uploads know no method {method[:20]!r}")


def request_version(headers: Mapping[str, str], *, default: Version = CURRENT) -> Version:
    """The interop version of an HTTP request; `default` (the upload's own) where it does not tell."""
    return rufh.version_of(rufh.folded(headers), default)


def answer(
    verdict: Appended | Found | Cancelled | Refused,
    *,
    version: Version = CURRENT,
    now: float,
    location: str | None = None,
) -> HttpAnswer:
    """The HTTP answer for `verdict`; `location` is the upload's URL where a creation is answered.

    `now`: wall-clock seconds, for the lifetime left.
    """
    match verdict:
        case Appended(state):
            headers = _standing(state, version, now)
            if location is None:
                return HttpAnswer(204, headers)
            return HttpAnswer(201, {"Location": location, **headers})
        case Found(state):
            return HttpAnswer(204, {**_standing(state, version, now), **_NO_STORE})
        case Cancelled():
            return HttpAnswer(204)
        case _:
            return _refusal(verdict, version, now)


def answer_options(limits: Limits, *, version: Version = CURRENT, upload: bool = False) -> HttpAnswer:
    """The answer to OPTIONS (RUFH 4.1.4): what is supported, within which `limits`.

    `upload`: asked of one upload rather than of the place where uploads are made.
    """
    headers = {"Allow": _ALLOW_UPLOAD if upload else _ALLOW_CREATION, "Accept-Patch": rufh.PARTIAL_UPLOAD}
    headers.update(_limit_field(_limit_members(limits, limits.max_age, version)))
    return HttpAnswer(204, headers)


def answer_unknown(*, version: Version = CURRENT) -> HttpAnswer:
    """The answer for an upload that nobody knows: 404."""
    return _refusal(Refused(Refusal.UNKNOWN, "there is no upload of this id"), version, 0.0)


def _read_create(fields: Mapping[str, str], version: Version) -> Create | Refused:
    complete = rufh.complete_field(fields, version)
    if complete is None:
        return _unreadable(fields, version.complete_field, "?0 or ?1")
    size = _content_length(fields)
    if isinstance(size, Refused):
        return size
    length = rufh.integer_field(fields, rufh.UPLOAD_LENGTH)
    return Create(complete, length, size, version.completes_at_length)


def _read_append(fields: Mapping[str, str], version: Version) -> Append | Refused:
    media_type = rufh.media_type(fields)
    if version.typed_appends and media_type != rufh.PARTIAL_UPLOAD:
        detail = f"an append has the media type {rufh.PARTIAL_UPLOAD}, not {media_type[:80]!r}"
        return Refused(Refusal.UNSUPPORTED_MEDIA_TYPE, detail)
    offset = rufh.integer_field(fields, rufh.UPLOAD_OFFSET)
    if offset is None:
        return _unreadable(fields, rufh.UPLOAD_OFFSET, "a non-negative integer")
    complete = rufh.complete_field(fields, version)
    if complete is None:
        return _unreadable(fields, version.complete_field, "?0 or ?1")
    size = _content_length(fields)
    if isinstance(size, Refused):
        return size
    length = rufh.integer_field(fields, rufh.UPLOAD_LENGTH)
    return Append(offset, complete, length, size, version.completes_at_length)


def _content_length(fields: Mapping[str, str]) -> int | Refused | None:
    """Bytes in the body, None when chunked: a message with neither field has no body (RFC 9112, 6.3)."""
    if "transfer-encoding" in fields:
        return None
    text = fields.get("content-length", "0").strip(" \t")
    if not _DIGITS.fullmatch(text):
        return _unreadable(fields, "Content-Length", f"an integer up to {MAX_INTEGER}")
    return int(text)


def _unreadable(fields: Mapping[str, str], name: str, wanted: str) -> Refused:
    given = fields.get(name.lower())
    found = "it is missing" if given is None else f"not {given[:80]!r}"
    return Refused(Refusal.MALFORMED, f"{name} must be {wanted}; {found}")


def _refusal(refused: Refused, version: Version, now: float) -> HttpAnswer:
    code, kind = rufh.problem_of(refused.refusal, version)
    extra: dict[str, int | str] = {"title": rufh.TITLES[kind]} if kind in rufh.TITLES else {}
    headers = {"Content-Type": PROBLEM_MEDIA_TYPE, **_NO_STORE}
    state = refused.state
    if refused.limits is not None:
        headers.update(_limit_field(_limit_members(refused.limits, refused.limits.max_age, version)))
    if state is not None and not state.gone:
        # "?0" in a refusal says: this answer is about the upload, not from what processes it when complete (4.2.1)
        headers[version.complete_field] = serialise_boolean(version.negated)
        headers[rufh.UPLOAD_OFFSET] = serialise_integer(state.offset)
        headers.update(_limits_of(state, version, now))
    if refused.refusal is Refusal.MISMATCHING_OFFSET and state is not None and refused.provided is not None:
        extra |= {"expected-offset": state.offset, "provided-offset": refused.provided}
    if refused.refusal is Refusal.UNSUPPORTED_MEDIA_TYPE:
        headers["Accept-Patch"] = rufh.PARTIAL_UPLOAD
    if refused.refusal is Refusal.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_METHODS)
    return HttpAnswer(code.status, headers, Problem(code, refused.detail, kind, extra).to_json())


def _standing(state: UploadState, version: Version, now: float) -> dict[str, str]:
    """The fields that tell where an upload stands (RUFH 4.3.2)."""
    headers = {
        rufh.UPLOAD_OFFSET: serialise_integer(state.offset),
        version.complete_field: serialise_boolean(state.complete is not version.negated),
    }
    if state.length is not None:
        headers[rufh.UPLOAD_LENGTH] = serialise_integer(state.length)
    headers.update(_limits_of(state, version, now))
    return headers


def _limits_of(state: UploadState, version: Version, now: float) -> dict[str, str]:
    left = None if state.expires is None else max(int(state.expires - now), 0)
    return _limit_field(_limit_members(state.limits, left, version))


def _limit_field(members: Mapping[str, int]) -> dict[str, str]:
    return {rufh.UPLOAD_LIMIT: serialise_dictionary(members)} if members else {}


def _limit_members(limits: Limits, seconds_left: int | None, version: Version) -> dict[str, int]:
    members = {
        "max-size": limits.max_size,
        "min-size": limits.min_size,
        "max-append-size": limits.max_append_size,
        "min-append-size": limits.min_append_size,
        version.age_limit: seconds_left,
    }
    return {key: value for key, value in members.items() if value is not None}

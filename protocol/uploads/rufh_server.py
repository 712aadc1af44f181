"""RUFH on the server's side: from HTTP requests to the core's values, and from its verdicts to HTTP answers.

Interim answers (104) are made only for a client that states its interop version, and for an adapter that asks for
them: HTTP libraries exist that take one for the final answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from msgspec import Struct

from mailboat.protocol.errors import PROBLEM_MEDIA_TYPE, Code, Problem
from mailboat.protocol.uploads import rufh
from mailboat.protocol.uploads.decisions import Appended, Cancelled, Found, Refusal, Refused
from mailboat.protocol.uploads.digests import Digest
from mailboat.protocol.uploads.fields import serialise_boolean, serialise_dictionary, serialise_integer
from mailboat.protocol.uploads.messages import HttpAnswer, Unreadable, content_length, folded, media_type
from mailboat.protocol.uploads.rufh import CURRENT, Version
from mailboat.protocol.uploads.state import UploadState
from mailboat.protocol.uploads.values import Append, Cancel, Create, Discover, Limits, Query

# A creation is "any request that can carry content" (RUFH 4.2.1); PATCH is taken by appends. GET is answered as HEAD is
# (4.3.2): what is uploaded is never shown through the upload's own resource.
_METHODS: Final = ("OPTIONS", "POST", "PUT", "HEAD", "GET", "PATCH", "DELETE")
_ALLOW_CREATION: Final = "OPTIONS, POST"
_ALLOW_UPLOAD: Final = "OPTIONS, HEAD, GET, PATCH, DELETE"

_NO_STORE: Final = {"Cache-Control": "no-store"}
_RESUMPTION_SUPPORTED: Final = 104

# Refusal -> code (and with it the status) and registered problem type. RUFH 4.1.4 (413), 4.4.2 (409, 400), 7 (types);
# RFC 5789, 2.2 (415). The text leaves 400 or 410 for a late completion; 400 is what its registry entry recommends.
_PROBLEMS: Final[Mapping[Refusal, tuple[Code, str]]] = MappingProxyType(
    {
        Refusal.MALFORMED: (Code.BAD_REQUEST, rufh.BLANK),
        Refusal.UNSUPPORTED_MEDIA_TYPE: (Code.UNSUPPORTED_MEDIA_TYPE, rufh.BLANK),
        Refusal.METHOD_NOT_ALLOWED: (Code.METHOD_NOT_ALLOWED, rufh.BLANK),
        Refusal.UNKNOWN: (Code.NOT_FOUND, rufh.BLANK),
        Refusal.GONE: (Code.GONE, rufh.BLANK),
        Refusal.COMPLETED: (Code.BAD_REQUEST, rufh.COMPLETED_UPLOAD),
        Refusal.COMPLETED_EXTENDED: (Code.BAD_REQUEST, rufh.COMPLETED_UPLOAD),
        Refusal.MISMATCHING_OFFSET: (Code.CONFLICT, rufh.MISMATCHING_OFFSET),
        Refusal.INCONSISTENT_LENGTH: (Code.BAD_REQUEST, rufh.INCONSISTENT_LENGTH),
        Refusal.TOO_LARGE: (Code.TOO_LARGE, rufh.BLANK),
        Refusal.TOO_SMALL: (Code.BAD_REQUEST, rufh.BLANK),
        Refusal.APPEND_TOO_LARGE: (Code.TOO_LARGE, rufh.BLANK),
        Refusal.APPEND_TOO_SMALL: (Code.BAD_REQUEST, rufh.BLANK),
        Refusal.SUPERSEDED: (Code.CONFLICT, rufh.BLANK),
        Refusal.UNSUPPORTED_VERSION: (Code.UNSUPPORTED_VERSION, rufh.BLANK),
        Refusal.UNKNOWN_ALGORITHM: (Code.BAD_REQUEST, rufh.BLANK),
        Refusal.MISMATCHING_DIGEST: (Code.BAD_REQUEST, rufh.MISMATCHING_DIGEST),
        Refusal.MADE_OF_PARTS: (Code.FORBIDDEN, rufh.BLANK),
        Refusal.UNUSABLE_PART: (Code.BAD_REQUEST, rufh.BLANK),
    }
)


def _problem_of(refusal: Refusal, version: Version) -> tuple[Code, str]:
    """The code and the problem type with which `version` reports `refusal`."""
    if refusal is Refusal.COMPLETED_EXTENDED and version.extending_is_inconsistent:
        return _PROBLEMS[Refusal.INCONSISTENT_LENGTH]
    return _PROBLEMS[refusal]


def read_request(
    method: str, headers: Mapping[str, str], *, default: Version = CURRENT
) -> Create | Append | Query | Cancel | Discover | Refused:
    """The core's request for an HTTP request; `Refused` (400, 405, 415) where it is none. Never raises.

    `headers` may be any mapping, with names in any case; fields that came more than once are joined. `default` is the
    version of the upload in question, for a request that does not tell its own.
    """
    fields = folded(headers)
    version = rufh.version_of(fields, default)
    try:
        return _read(method, fields, version)
    except Unreadable as error:
        return Refused(Refusal.MALFORMED, str(error))


def _read(
    method: str, fields: Mapping[str, str], version: Version
) -> Create | Append | Query | Cancel | Discover | Refused:
    match method:
        case "POST" | "PUT":
            return _read_create(fields, version)
        case "PATCH":
            return _read_append(fields, version)
        case "HEAD" | "GET":
            return Query(version.completes_at_length)
        case "DELETE":
            return Cancel()
        case "OPTIONS":
            return Discover()
        case _:
            return Refused(Refusal.METHOD_NOT_ALLOWED, f"uploads know no method {method[:20]!r}")


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


def announce(
    state: UploadState, headers: Mapping[str, str], *, version: Version = CURRENT, location: str, now: float
) -> HttpAnswer | None:
    """The interim answer that tells where a creation's upload is (RUFH 5), None for a client that may not expect it.

    While it is a draft, the status is a provisional one: it is sent only to who states the very interop version that
    it is meant in (RUFH, appendix on draft versions).
    """
    return _interim({"Location": location, **_limits_of(state, version, now)}, headers, version)


def progress(state: UploadState, headers: Mapping[str, str], *, version: Version = CURRENT) -> HttpAnswer | None:
    """The interim answer that tells how far a body has been taken (RUFH 5), None as for `announce`. It is a promise as
    in any other answer: `state` has to be stored.
    """
    if not version.tells_progress:
        return None
    return _interim({rufh.UPLOAD_OFFSET: serialise_integer(state.offset)}, headers, version)


def _interim(told: Mapping[str, str], headers: Mapping[str, str], version: Version) -> HttpAnswer | None:
    if rufh.integer_field(folded(headers), rufh.INTEROP_VERSION) != version.number:
        return None
    return HttpAnswer(_RESUMPTION_SUPPORTED, {rufh.INTEROP_VERSION: serialise_integer(version.number), **told})


def _read_create(fields: Mapping[str, str], version: Version) -> Create:
    return Create(
        _complete(fields, version),
        rufh.integer_field(fields, rufh.UPLOAD_LENGTH),
        content_length(fields),
        version.completes_at_length,
        digest=rufh.digest_field(fields, rufh.CONTENT_DIGEST),
        whole=rufh.digest_field(fields, rufh.REPR_DIGEST),
        wanted=rufh.wanted_algorithm(fields),
    )


def _read_append(fields: Mapping[str, str], version: Version) -> Append | Refused:
    given = media_type(fields)
    if version.typed_appends and given != rufh.PARTIAL_UPLOAD:
        detail = f"an append has the media type {rufh.PARTIAL_UPLOAD}, not {given[:80]!r}"
        return Refused(Refusal.UNSUPPORTED_MEDIA_TYPE, detail)
    offset = rufh.integer_field(fields, rufh.UPLOAD_OFFSET)
    if offset is None:
        raise Unreadable(fields, rufh.UPLOAD_OFFSET, "a non-negative integer")
    return Append(
        offset,
        _complete(fields, version),
        rufh.integer_field(fields, rufh.UPLOAD_LENGTH),
        content_length(fields),
        version.completes_at_length,
        digest=rufh.digest_field(fields, rufh.CONTENT_DIGEST),
        whole=rufh.digest_field(fields, rufh.REPR_DIGEST),
    )


def _complete(fields: Mapping[str, str], version: Version) -> bool:
    complete = rufh.complete_field(fields, version)
    if complete is None:
        raise Unreadable(fields, version.complete_field, "?0 or ?1")
    return complete


def _refusal(refused: Refused, version: Version, now: float) -> HttpAnswer:
    code, kind = _problem_of(refused.refusal, version)
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
    if state.creation.computed is not None:
        headers[rufh.REPR_DIGEST] = rufh.serialise_digest(state.creation.computed)
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


class RufhServer(Struct, frozen=True):
    """The functions above for one interop version: a `detect.ServerDialect`."""

    version: Version = CURRENT

    @property
    def tag(self) -> str:
        """See `ServerDialect.tag`."""
        return self.version.tag

    @property
    def absolute(self) -> bool:
        """See `ServerDialect.absolute`."""
        return False

    def read(self, method: str, headers: Mapping[str, str]) -> Create | Append | Query | Cancel | Discover | Refused:
        """See `read_request`; the version has been detected, so it is the default."""
        return read_request(method, headers, default=self.version)

    def answer(
        self, verdict: Appended | Found | Cancelled | Refused, *, now: float, location: str | None = None
    ) -> HttpAnswer:
        """See `answer`."""
        return answer(verdict, version=self.version, now=now, location=location)

    def answer_options(self, limits: Limits, *, upload: bool = False) -> HttpAnswer:
        """See `answer_options`."""
        return answer_options(limits, version=self.version, upload=upload)

    def answer_unknown(self) -> HttpAnswer:
        """See `answer_unknown`."""
        return answer_unknown(version=self.version)

    def read_trailers(self, trailers: Mapping[str, str]) -> Digest | None:  # noqa: ARG002 - of all dialects
        """See `ServerDialect.read_trailers`: the draft's digests come before the body, others are ignored."""
        return None

    def announce(
        self, state: UploadState, headers: Mapping[str, str], *, location: str, now: float
    ) -> HttpAnswer | None:
        """See `announce`."""
        return announce(state, headers, version=self.version, location=location, now=now)

    def progress(self, state: UploadState, headers: Mapping[str, str]) -> HttpAnswer | None:
        """See `progress`."""
        return progress(state, headers, version=self.version)

"""tus on the server's side: from HTTP requests to the core's values, and from its verdicts to HTTP answers.

An upload is complete as soon as its offset reaches its length: this dialect has no word for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mailboat.protocol.errors import PROBLEM_MEDIA_TYPE, Problem
from mailboat.protocol.uploads import tus
from mailboat.protocol.uploads.decisions import Appended, Cancelled, Found, Refusal, Refused
from mailboat.protocol.uploads.digests import Digest
from mailboat.protocol.uploads.http_dates import format_http_date
from mailboat.protocol.uploads.messages import (
    MAX_LENGTH,
    HttpAnswer,
    Unreadable,
    content_length,
    digits,
    folded,
    media_type,
)
from mailboat.protocol.uploads.state import UploadState
from mailboat.protocol.uploads.values import Append, Asked, Cancel, Create, Discover, Join, Limits, Notes, Query

_NUMBER: Final = f"an integer up to {MAX_LENGTH}"
_COMPLETED: Final = (Refusal.COMPLETED, Refusal.COMPLETED_EXTENDED)
_FINAL: Final = "final;"
_PARTIAL: Final = "partial"


class TusServer:
    """The dialect of a server: a `detect.ServerDialect`. It has no state."""

    @property
    def tag(self) -> str:
        """See `ServerDialect.tag`."""
        return tus.TAG

    @property
    def absolute(self) -> bool:
        """See `ServerDialect.absolute`: the specification allows a relative Location, aiotus does not resolve it."""
        return True

    def read(self, method: str, headers: Mapping[str, str]) -> Asked | Refused:
        """The core's request for an HTTP request; `Refused` (400, 405, 412, 415) where it is none. Never raises.

        `headers` as in `folded`. The method that `X-HTTP-Method-Override` names takes the place of `method`.
        """
        fields = folded(headers)
        method = fields.get(tus.METHOD_OVERRIDE.lower(), method).strip(" ").upper()
        if method == "OPTIONS":
            return Discover()
        if fields.get(tus.TUS_RESUMABLE.lower(), "").strip(" ") != tus.VERSION:
            given = fields.get(tus.TUS_RESUMABLE.lower())
            said = "does not state its version" if given is None else f"speaks version {given[:40]!r}"
            return Refused(Refusal.UNSUPPORTED_VERSION, f"the request {said} of tus; {tus.VERSION} is spoken here")
        try:
            return _read(method, fields)
        except Unreadable as error:
            return Refused(Refusal.MALFORMED, str(error))
        except tus.UnknownAlgorithm as error:
            return Refused(Refusal.UNKNOWN_ALGORITHM, str(error))

    def answer(
        self,
        verdict: Appended | Found | Cancelled | Refused,
        *,
        now: float,  # noqa: ARG002 - of all dialects; this one tells lifetimes as dates
        location: str | None = None,
    ) -> HttpAnswer:
        """The HTTP answer for `verdict`; `location` is the upload's URL where a creation is answered."""
        match verdict:
            case Appended(state):
                created = {} if location is None else {"Location": location}
                return _answer(204 if location is None else 201, {**created, **_standing(state)})
            case Found(state):
                return _answer(200, {**_standing(state), **_told(state), "Cache-Control": "no-store"})
            case Cancelled():
                return _answer(204, {})
            case Refused(Refusal.COMPLETED, _, state, provided) if state is not None and provided == state.offset:
                # Nothing, appended where the upload ends: what was asked is so already.
                return _answer(204, _standing(state))
            case _:
                return _refusal(verdict)

    def answer_options(self, limits: Limits, *, upload: bool = False) -> HttpAnswer:
        """The answer to OPTIONS (tus, OPTIONS): what is supported; the same for an `upload` as for all."""
        headers = {
            "Allow": "OPTIONS, HEAD, PATCH, DELETE" if upload else "OPTIONS, POST",
            tus.TUS_VERSION: tus.VERSION,
            tus.TUS_EXTENSION: ",".join(tus.EXTENSIONS),
            tus.TUS_CHECKSUM_ALGORITHM: ",".join(tus.ALGORITHMS),
        }
        if limits.max_size is not None:
            headers[tus.TUS_MAX_SIZE] = str(limits.max_size)
        return _answer(204, headers)

    def answer_unknown(self) -> HttpAnswer:
        """The answer for an upload that nobody knows: 404."""
        return _refusal(Refused(Refusal.UNKNOWN, "there is no upload of this id"))

    def read_trailers(self, trailers: Mapping[str, str]) -> Digest | None:
        """See `ServerDialect.read_trailers`."""
        try:
            return tus.parse_checksum(trailers.get(tus.UPLOAD_CHECKSUM.lower(), ""))
        except tus.UnknownAlgorithm:
            return None

    def announce(
        self,
        state: UploadState,  # noqa: ARG002 - of all dialects; this one has no interim answers
        headers: Mapping[str, str],  # noqa: ARG002
        *,
        location: str,  # noqa: ARG002
        now: float,  # noqa: ARG002
    ) -> HttpAnswer | None:
        """See `ServerDialect.announce`: none."""
        return None

    def progress(
        self,
        state: UploadState,  # noqa: ARG002 - as above
        headers: Mapping[str, str],  # noqa: ARG002
    ) -> HttpAnswer | None:
        """See `ServerDialect.progress`: none."""
        return None


# -- reading -----------------------------------------------------------------------------------------------------------


def _read(method: str, fields: Mapping[str, str]) -> Asked | Refused:
    match method:
        case "POST":
            return _read_creation(fields)
        case "PATCH":
            return _read_append(fields)
        case "HEAD":
            return Query(completes_at_length=True)
        case "DELETE":
            return Cancel()
        case _:
            return Refused(Refusal.METHOD_NOT_ALLOWED, f"tus knows no method {method[:20]!r}")


def _read_creation(fields: Mapping[str, str]) -> Create | Join | Refused:
    concat = fields.get(tus.UPLOAD_CONCAT.lower())
    size = content_length(fields)
    notes = _notes(fields)
    if concat is not None and concat.startswith(_FINAL):
        return _read_join(fields, concat, size, notes)
    if concat not in (None, _PARTIAL):
        raise Unreadable(fields, tus.UPLOAD_CONCAT, "'partial' or 'final;' and URLs")
    if size != 0 and media_type(fields) != tus.OFFSET_OCTET_STREAM:
        return _wrong_media_type(fields)
    length = _length(fields)
    deferred = fields.get(tus.UPLOAD_DEFER_LENGTH.lower())
    if deferred not in (None, "1"):
        raise Unreadable(fields, tus.UPLOAD_DEFER_LENGTH, "1")
    if (length is None) == (deferred is None):
        detail = f"a creation has either {tus.UPLOAD_LENGTH} or {tus.UPLOAD_DEFER_LENGTH}: 1"
        return Refused(Refusal.MALFORMED, detail)
    return Create(
        complete=False,
        length=length,
        content_length=size,
        completes_at_length=True,
        digest=_checksum(fields),
        digest_follows=_checksum_follows(fields),
        partial=concat is not None,
        notes=notes,
    )


def _read_join(fields: Mapping[str, str], concat: str, size: int | None, notes: Notes) -> Join | Refused:
    if size != 0 or tus.UPLOAD_LENGTH.lower() in fields:
        return Refused(Refusal.MALFORMED, f"a final upload has neither a body nor {tus.UPLOAD_LENGTH}")
    return Join(tuple(concat.removeprefix(_FINAL).split()), notes)


def _read_append(fields: Mapping[str, str]) -> Append | Refused:
    if media_type(fields) != tus.OFFSET_OCTET_STREAM:
        return _wrong_media_type(fields)
    offset = digits(fields.get(tus.UPLOAD_OFFSET.lower(), ""))
    if offset is None:
        raise Unreadable(fields, tus.UPLOAD_OFFSET, _NUMBER)
    return Append(
        offset,
        complete=False,
        length=_length(fields),
        content_length=content_length(fields),
        completes_at_length=True,
        digest=_checksum(fields),
        digest_follows=_checksum_follows(fields),
    )


def _wrong_media_type(fields: Mapping[str, str]) -> Refused:
    detail = f"bytes have the media type {tus.OFFSET_OCTET_STREAM}, not {media_type(fields)[:80]!r}"
    return Refused(Refusal.UNSUPPORTED_MEDIA_TYPE, detail)


def _length(fields: Mapping[str, str]) -> int | None:
    text = fields.get(tus.UPLOAD_LENGTH.lower())
    length = None if text is None else digits(text)
    if text is not None and length is None:
        raise Unreadable(fields, tus.UPLOAD_LENGTH, _NUMBER)
    return length


def _checksum(fields: Mapping[str, str]) -> Digest | None:
    text = fields.get(tus.UPLOAD_CHECKSUM.lower())
    digest = None if text is None else tus.parse_checksum(text)
    if text is not None and digest is None:
        raise Unreadable(fields, tus.UPLOAD_CHECKSUM, "an algorithm and a digest of its size in Base64")
    return digest


def _checksum_follows(fields: Mapping[str, str]) -> bool:
    """Whether the checksum is announced as a trailer, and there is none in the head (tus, Checksum)."""
    trailers = fields.get("trailer", "").lower()
    announced = tus.UPLOAD_CHECKSUM.lower() in (name.strip(" \t") for name in trailers.split(","))
    if announced and "transfer-encoding" not in fields:
        raise Unreadable(fields, tus.UPLOAD_CHECKSUM, "in the head, or after a chunked body: no other has trailers")
    return announced and tus.UPLOAD_CHECKSUM.lower() not in fields


def _notes(fields: Mapping[str, str]) -> Notes:
    """The fields of a creation that HEAD repeats: as they came, once they are known to be harmless."""
    notes = []
    metadata = fields.get(tus.UPLOAD_METADATA.lower())
    if metadata is not None and tus.parse_metadata(metadata) is None:
        raise Unreadable(fields, tus.UPLOAD_METADATA, f"keys and values in Base64, up to {tus.MAX_METADATA} characters")
    if metadata:
        notes.append((tus.UPLOAD_METADATA, metadata))
    concat = fields.get(tus.UPLOAD_CONCAT.lower())
    if concat is not None:
        if len(concat) > tus.MAX_CONCAT or not concat.isascii() or not concat.isprintable():
            raise Unreadable(fields, tus.UPLOAD_CONCAT, f"printable, and up to {tus.MAX_CONCAT} characters")
        notes.append((tus.UPLOAD_CONCAT, concat))
    return tuple(notes)


# -- answering ---------------------------------------------------------------------------------------------------------


def _answer(status: int, headers: dict[str, str], body: bytes = b"") -> HttpAnswer:
    return HttpAnswer(status, {tus.TUS_RESUMABLE: tus.VERSION, **headers}, body)


def _standing(state: UploadState) -> dict[str, str]:
    """What every answer about an upload tells."""
    headers = {}
    if state.complete or not state.creation.parts:
        # not of a final upload that is not made yet (tus, Concatenation)
        headers[tus.UPLOAD_OFFSET] = str(state.offset)
    if state.expires is not None and not state.complete:
        headers[tus.UPLOAD_EXPIRES] = format_http_date(state.expires)
    return headers


def _told(state: UploadState) -> dict[str, str]:
    """What HEAD tells on top of that."""
    headers = dict(state.creation.notes)
    if state.length is not None:
        headers[tus.UPLOAD_LENGTH] = str(state.length)
    elif not state.creation.parts:
        headers[tus.UPLOAD_DEFER_LENGTH] = "1"
    return headers


def _refusal(refused: Refused) -> HttpAnswer:
    refusal, state = refused.refusal, refused.state
    if refusal in _COMPLETED and state is not None and refused.provided != state.offset:
        refusal = Refusal.MISMATCHING_OFFSET  # "If the offsets do not match": whatever else is wrong (tus, PATCH)
    code = tus.CODES[refusal]
    headers = {"Content-Type": PROBLEM_MEDIA_TYPE, "Cache-Control": "no-store"}
    if state is not None and not state.gone:
        headers.update(_standing(state))
    if refusal is Refusal.UNSUPPORTED_VERSION:
        headers[tus.TUS_VERSION] = tus.VERSION
    if refusal is Refusal.TOO_LARGE and refused.limits is not None and refused.limits.max_size is not None:
        headers[tus.TUS_MAX_SIZE] = str(refused.limits.max_size)
    if refusal is Refusal.METHOD_NOT_ALLOWED:
        headers["Allow"] = "OPTIONS, POST, HEAD, PATCH, DELETE"
    return _answer(code.status, headers, Problem(code, refused.detail).to_json())

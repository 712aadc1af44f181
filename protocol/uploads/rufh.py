"""Resumable Uploads for HTTP (RUFH), draft-ietf-httpbis-resumable-upload: names, and the drafts' differences.

"RUFH 4.1.1" in this package means that section of draft -12, of July 2026 (interop version 9), unless a draft is named.
The draft's interop version changes when something breaks; a client states its own in `Upload-Draft-Interop-Version`.
What later drafts only relax is done the way that both understand: an offset is always told with `Upload-Complete`,
though since -13 it need not be, and a reader does not insist on it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from msgspec import Struct

from mailboat.protocol.uploads.digests import Algorithm, Digest
from mailboat.protocol.uploads.fields import FieldError, parse_boolean, parse_dictionary, parse_integer
from mailboat.protocol.uploads.messages import media_type

UPLOAD_OFFSET: Final = "Upload-Offset"
UPLOAD_COMPLETE: Final = "Upload-Complete"
UPLOAD_INCOMPLETE: Final = "Upload-Incomplete"
UPLOAD_LENGTH: Final = "Upload-Length"
UPLOAD_LIMIT: Final = "Upload-Limit"
INTEROP_VERSION: Final = "Upload-Draft-Interop-Version"
PARTIAL_UPLOAD: Final = "application/partial-upload"
CONTENT_DIGEST: Final = "Content-Digest"
REPR_DIGEST: Final = "Repr-Digest"
WANT_REPR_DIGEST: Final = "Want-Repr-Digest"

_REGISTRY: Final = "https://iana.org/assignments/http-problem-types"
MISMATCHING_OFFSET: Final = f"{_REGISTRY}#mismatching-upload-offset"
COMPLETED_UPLOAD: Final = f"{_REGISTRY}#completed-upload"
INCONSISTENT_LENGTH: Final = f"{_REGISTRY}#inconsistent-upload-length"
MISMATCHING_DIGEST: Final = f"{_REGISTRY}#digest-mismatching-values"
BLANK: Final = "about:blank"
TITLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        MISMATCHING_OFFSET: "Mismatching Upload Offset",
        COMPLETED_UPLOAD: "Upload Is Completed",
        INCONSISTENT_LENGTH: "Inconsistent Upload Length Values",
        MISMATCHING_DIGEST: "Mismatching Digest Values",
    }
)
"""Problem types and their registered titles (RUFH 14.4; the last of draft-ietf-httpapi-digest-fields-problem-types)."""


class Version(Struct, frozen=True):
    """One interop version, as its difference from the others.

    `complete_field`: the field that tells completeness; `negated`: it tells incompleteness instead.
    `typed_appends`: an append must have the media type `PARTIAL_UPLOAD`. `completes_at_length`: an upload whose offset
    reaches its length is complete without being told. `age_limit`: name of the lifetime in `Upload-Limit`.
    `extending_is_inconsistent`: bytes for a complete upload are reported as a contradicting length. `tells_progress`:
    interim answers may tell how far a body has been taken.
    """

    number: int
    complete_field: str = UPLOAD_COMPLETE
    negated: bool = False
    typed_appends: bool = True
    completes_at_length: bool = False
    age_limit: str = "max-age"
    extending_is_inconsistent: bool = False
    tells_progress: bool = True

    @property
    def tag(self) -> str:
        """The name under which an upload remembers the dialect it was made in."""
        return f"rufh-{self.number}"


VERSIONS: Final[Mapping[int, Version]] = MappingProxyType(
    {
        version.number: version
        for version in (
            # drafts -01; the field was renamed and turned around in -02
            Version(
                3,
                complete_field=UPLOAD_INCOMPLETE,
                negated=True,
                typed_appends=False,
                completes_at_length=True,
                age_limit="expires",
                tells_progress=False,
            ),
            # -02
            Version(4, typed_appends=False, completes_at_length=True, age_limit="expires", tells_progress=False),
            # -03: another status than 204 for an offset is allowed; progress is told
            Version(5, typed_appends=False, completes_at_length=True, age_limit="expires"),
            # -04, -05: the media type, limits and problem types
            Version(6, completes_at_length=True, age_limit="expires"),
            # -06 to -08: completeness is only what the client says; `expires` is now `max-age`
            Version(7),
            # -09 to -11: limits must be announced, and kept to by clients
            Version(8),
            # since -12: bytes for a complete upload are an inconsistent length
            Version(9, extending_is_inconsistent=True),
        )
    }
)
CURRENT: Final = VERSIONS[9]


def version_by_tag(tag: str) -> Version | None:
    """The version with this `Version.tag`, None for a tag of another dialect."""
    return next((version for version in VERSIONS.values() if version.tag == tag), None)


def version_of(fields: Mapping[str, str], default: Version = CURRENT) -> Version:
    """The interop version that a request, given as `folded` fields, speaks.

    The number it states, if it is one of ours. Without it (as it will be with the RFC itself) or with an unknown one:
    version 3 where the old field tells, else `default`: the version of the upload, where that is known.
    """
    stated = integer_field(fields, INTEROP_VERSION)
    if stated is not None and stated in VERSIONS:
        return VERSIONS[stated]
    return VERSIONS[3] if UPLOAD_INCOMPLETE.lower() in fields else default


def speaks_rufh(fields: Mapping[str, str]) -> bool:
    """Whether a request, given as `folded` fields, shows that it is meant in this dialect."""
    names = (UPLOAD_COMPLETE, UPLOAD_INCOMPLETE, INTEROP_VERSION)
    return any(name.lower() in fields for name in names) or media_type(fields) == PARTIAL_UPLOAD


def integer_field(fields: Mapping[str, str], name: str) -> int | None:
    """The value of an Integer field, None when absent or unreadable: such a field is to be ignored (RUFH 4.1.1)."""
    text = fields.get(name.lower())
    if text is None:
        return None
    try:
        return parse_integer(text)
    except FieldError:
        return None


def complete_field(fields: Mapping[str, str], version: Version) -> bool | None:
    """What the completeness field of `version` says, None when absent or unreadable (RUFH 4.1.2)."""
    text = fields.get(version.complete_field.lower())
    if text is None:
        return None
    try:
        return parse_boolean(text) is not version.negated
    except FieldError:
        return None


def limit_members(text: str) -> dict[str, int] | None:
    """The members of `Upload-Limit` that are defined; None when the whole field is to be ignored (RUFH 4.1.4).

    Unknown members are left out; a known one of another type than a non-negative integer spoils the field.
    """
    known = ("max-size", "min-size", "max-append-size", "min-append-size", "max-age", "expires")
    try:
        members = parse_dictionary(text)
    except FieldError:
        return None
    limits: dict[str, int] = {}
    for key in known:
        value = members.get(key)
        if value is None:
            continue
        if type(value) is not int or value < 0:
            return None
        limits[key] = value
    return limits


# In order of preference where a request declares several: one that holds is enough.
_ALGORITHMS: Final = {"sha-512": Algorithm.SHA512, "sha-256": Algorithm.SHA256}
_MOST_WANTED: Final = 10


def serialise_digest(digest: Digest) -> str:
    """`digest` as `Content-Digest` or `Repr-Digest`; raises `FieldError` for an algorithm that those have not."""
    for key, algorithm in _ALGORITHMS.items():
        if algorithm is digest.algorithm:
            return f"{key}=:{base64.b64encode(digest.value).decode('ascii')}:"
    raise FieldError(f"digest fields know no {digest.algorithm.label}")


def digest_field(fields: Mapping[str, str], name: str) -> Digest | None:
    """The digest that `Content-Digest` or `Repr-Digest` declares (RFC 9530, 2 and 3), None when it declares none.

    What cannot be read, or is of an algorithm that nobody should rely on any more (RFC 9530, 5), is as if it were
    absent: a recipient may ignore any digest.
    """
    members = _members(fields, name)
    for key, algorithm in _ALGORITHMS.items():
        value = members.get(key)
        if isinstance(value, bytes) and len(value) == algorithm.size:
            return Digest(algorithm, value)
    return None


def serialise_wanted(algorithm: Algorithm) -> str:
    """`algorithm`, and no other, as `Want-Repr-Digest`; raises `FieldError` for one that digest fields have not."""
    for key, known in _ALGORITHMS.items():
        if known is algorithm:
            return f"{key}={_MOST_WANTED}"
    raise FieldError(f"digest fields know no {algorithm.label}")


def wanted_algorithm(fields: Mapping[str, str]) -> Algorithm | None:
    """The algorithm that `Want-Repr-Digest` prefers of those that are computed here (RFC 9530, 4), None when none is.

    A weight is an integer from 1 to 10, the greater the better, and 0 says that the algorithm is not wanted; of equals
    ours is the first in `_ALGORITHMS`. What cannot be read is as if it were absent: to tell a digest is no duty.
    """
    members = _members(fields, WANT_REPR_DIGEST)
    weights = {algorithm: members.get(key) for key, algorithm in _ALGORITHMS.items()}
    sound = {each: weight for each, weight in weights.items() if type(weight) is int and 0 < weight <= _MOST_WANTED}
    return max(sound, key=lambda each: sound[each], default=None)


def _members(fields: Mapping[str, str], name: str) -> Mapping[str, object]:
    """The members of a dictionary field; none where it is absent, or cannot be read."""
    try:
        return parse_dictionary(fields.get(name.lower(), ""))
    except FieldError:
        return {}

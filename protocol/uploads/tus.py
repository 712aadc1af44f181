"""tus 1.0.0, the public protocol of resumable uploads: names, and how its fields are read and written.

"tus, Creation" in this package means that section of the specification of 2016-03-25 (https://tus.io). Built are the
core and the extensions in `EXTENSIONS`.

With `checksum-trailer`, the checksum follows the body as a trailer of the chunked coding. A request that announces it
so and does not bring it is refused, and nothing of it kept, so that nobody takes bytes for checked that were not.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from mailboat.protocol.errors import Code
from mailboat.protocol.uploads.decisions import Refusal
from mailboat.protocol.uploads.digests import BY_LABEL, Algorithm, Digest

TUS_RESUMABLE: Final = "Tus-Resumable"
TUS_VERSION: Final = "Tus-Version"
TUS_EXTENSION: Final = "Tus-Extension"
TUS_MAX_SIZE: Final = "Tus-Max-Size"
TUS_CHECKSUM_ALGORITHM: Final = "Tus-Checksum-Algorithm"
UPLOAD_OFFSET: Final = "Upload-Offset"
UPLOAD_LENGTH: Final = "Upload-Length"
UPLOAD_DEFER_LENGTH: Final = "Upload-Defer-Length"
UPLOAD_METADATA: Final = "Upload-Metadata"
UPLOAD_CONCAT: Final = "Upload-Concat"
UPLOAD_CHECKSUM: Final = "Upload-Checksum"
UPLOAD_EXPIRES: Final = "Upload-Expires"
METHOD_OVERRIDE: Final = "X-HTTP-Method-Override"
OFFSET_OCTET_STREAM: Final = "application/offset+octet-stream"

VERSION: Final = "1.0.0"
TAG: Final = "tus-1.0.0"
"""The name under which an upload remembers that it was made in this dialect."""

EXTENSIONS: Final = (
    "creation",
    "creation-with-upload",
    "creation-defer-length",
    "expiration",
    "checksum",
    "checksum-trailer",
    "termination",
    "concatenation",
    "concatenation-unfinished",
)
ALGORITHMS: Final = tuple(algorithm.label for algorithm in Algorithm)

MAX_METADATA: Final = 8 * 1024
"""Characters of Upload-Metadata: it is kept, and told in every answer to HEAD, where clients bound their headers."""
MAX_CONCAT: Final = 8 * 1024
"""Characters of Upload-Concat, for the same reason: room for a hundred URLs."""

# Refusal -> code, and with it the status. tus, PATCH (409, 415, 404), Creation (413, 400), Expiration (410), Checksum
# (460, 400), Concatenation (403); what it leaves open is as in RUFH.
CODES: Final[Mapping[Refusal, Code]] = MappingProxyType(
    {
        Refusal.MALFORMED: Code.BAD_REQUEST,
        Refusal.UNSUPPORTED_MEDIA_TYPE: Code.UNSUPPORTED_MEDIA_TYPE,
        Refusal.METHOD_NOT_ALLOWED: Code.METHOD_NOT_ALLOWED,
        Refusal.UNKNOWN: Code.NOT_FOUND,
        Refusal.GONE: Code.GONE,
        Refusal.COMPLETED: Code.BAD_REQUEST,
        Refusal.COMPLETED_EXTENDED: Code.BAD_REQUEST,
        Refusal.MISMATCHING_OFFSET: Code.CONFLICT,
        Refusal.INCONSISTENT_LENGTH: Code.BAD_REQUEST,
        Refusal.TOO_LARGE: Code.TOO_LARGE,
        Refusal.TOO_SMALL: Code.BAD_REQUEST,
        Refusal.APPEND_TOO_LARGE: Code.TOO_LARGE,
        Refusal.APPEND_TOO_SMALL: Code.BAD_REQUEST,
        Refusal.SUPERSEDED: Code.CONFLICT,
        Refusal.UNSUPPORTED_VERSION: Code.UNSUPPORTED_VERSION,
        Refusal.UNKNOWN_ALGORITHM: Code.BAD_REQUEST,
        Refusal.MISMATCHING_DIGEST: Code.CHECKSUM_MISMATCH,
        Refusal.MADE_OF_PARTS: Code.FORBIDDEN,
        Refusal.UNUSABLE_PART: Code.BAD_REQUEST,
    }
)


class UnknownAlgorithm(ValueError):
    """A checksum of an algorithm that is not computed here."""


def speaks_tus(fields: Mapping[str, str]) -> bool:
    """Whether a request, given as `folded` fields, shows that it is meant in this dialect."""
    return TUS_RESUMABLE.lower() in fields


def parse_metadata(text: str) -> dict[str, bytes] | None:
    """The pairs that `Upload-Metadata` holds, in their order; None when it is malformed (tus, Upload-Metadata).

    An empty field holds none: the specification wants at least one, but tuspy sends it so.
    """
    if len(text) > MAX_METADATA or not text.isascii() or not text.isprintable():
        return None
    pairs: dict[str, bytes] = {}
    for pair in text.split(",") if text.strip(" ") else ():
        key, _, value = pair.strip(" ").partition(" ")
        content = decoded(value)
        if not key or key in pairs or content is None:
            return None
        pairs[key] = content
    return pairs


def serialise_metadata(pairs: Mapping[str, str]) -> str:
    """`pairs` as `Upload-Metadata`; raises `ValueError` for a key that cannot be written."""
    for key in pairs:
        if not key or not key.isascii() or not key.isprintable() or set(key) & set(" ,"):
            raise ValueError(f"{key!r:.80} is no key of Upload-Metadata: it takes ASCII without blanks and commas")
    return ",".join(f"{key} {encoded(value.encode())}".rstrip(" ") for key, value in pairs.items())


def parse_checksum(text: str) -> Digest | None:
    """The digest that `Upload-Checksum` declares; None when it is malformed, `UnknownAlgorithm` for another one."""
    label, _, value = text.strip(" ").partition(" ")
    content = decoded(value)
    if not label or not content:
        return None
    algorithm = BY_LABEL.get(label)
    if algorithm is None:
        raise UnknownAlgorithm(f"checksums are taken of {', '.join(ALGORITHMS)}, not {label[:40]!r}")
    return Digest(algorithm, content) if len(content) == algorithm.size else None


def serialise_checksum(digest: Digest) -> str:
    """`digest` as `Upload-Checksum`."""
    return f"{digest.algorithm.label} {encoded(digest.value)}"


def encoded(content: bytes) -> str:
    """`content` in Base64."""
    return base64.b64encode(content).decode("ascii")


def decoded(text: str) -> bytes | None:
    """What `text` is the Base64 of; None when it is none."""
    try:
        return base64.b64decode(text.strip(" "), validate=True)
    except ValueError:
        return None

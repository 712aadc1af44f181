"""Every error that mailboat raises, and every refusal that its server states.

The tree::

    MailboatError
    ├── ConfigError (ValueError)      a setting is unknown or impossible
    ├── StoreError (OSError)          the store folder cannot be used
    ├── SegmentError (ValueError)     bytes are no segment, or a damaged one
    │   └── SealedError               they are sealed, and do not open
    │       └── KeyMissing            because the key is not at hand
    ├── WireError (ValueError)        a message of the peer does not keep to the protocol
    └── DeliveryError                 the server cannot be used as asked
        ├── Unauthorised              it refuses the key
        └── NotMailboat               what answers there is no mailboat server

The first four mean misuse, damage or a broken peer. What may happen on any ordinary day (a lost connection,
a busy server, a declined session) is never an exception but a value: see ``uploads`` and ``negotiation``.

A server states refusals as problem documents (RFC 9457) whose ``code`` comes from `Code`, and from nowhere else:
codes are stable, titles may be reworded.
"""

from __future__ import annotations

import json
from enum import Enum
from typing import Any

from msgspec import Struct, field

PROBLEM_MEDIA_TYPE = "application/problem+json"


class MailboatError(Exception):
    """The root: catching it catches everything that mailboat itself raises."""


class ConfigError(MailboatError, ValueError):
    """A setting is unknown or impossible; the message names the field, its value and what would do."""


class StoreError(MailboatError, OSError):
    """The store folder cannot be used; the message names the folder, the reason and what to do."""


class SegmentError(MailboatError, ValueError):
    """Bytes that should be a segment are none, or are damaged beyond reading."""


class SealedError(SegmentError):
    """Sealed bytes do not open: the key is not at hand, or they are not what was sealed. Contains no content."""


class KeyMissing(SealedError):
    """Sealed bytes do not open for want of the key; whoever has it can open them."""


class WireError(MailboatError, ValueError):
    """A message does not keep to the protocol; the message names the place inside it, such as
    ``offers[3].summary.id``.
    """


class DeliveryError(MailboatError):
    """The server cannot be used as it was asked; nothing local is lost by it."""


class Unauthorised(DeliveryError):
    """The server refuses the key (401, 403)."""


class NotMailboat(DeliveryError):
    """Something answered, but it is no mailboat server: a captive portal, a proxy's page, another service."""


class Code(Enum):
    """The stable codes: ``(code, HTTP status, title)``."""

    BAD_REQUEST = ("bad_request", 400, "The request cannot be understood")
    UNAUTHORISED = ("unauthorised", 401, "A valid key is needed")
    FORBIDDEN = ("forbidden", 403, "This key may not do that")
    NOT_FOUND = ("not_found", 404, "There is no such resource")
    METHOD_NOT_ALLOWED = ("method_not_allowed", 405, "This resource does not take that method")
    CONFLICT = ("conflict", 409, "The resource is in another state")
    GONE = ("gone", 410, "The resource is no more")
    UNSUPPORTED_VERSION = ("unsupported_version", 412, "This version of the protocol is not spoken here")
    TOO_LARGE = ("too_large", 413, "The request is larger than the server takes")
    UNSUPPORTED_MEDIA_TYPE = ("unsupported_media_type", 415, "The body has a type the server does not read")
    CORRUPTED = ("corrupted", 422, "The bytes received are no intact segment")
    TOO_MANY_REQUESTS = ("too_many_requests", 429, "Too many requests")
    CHECKSUM_MISMATCH = ("checksum_mismatch", 460, "The bytes received do not have the checksum they came with")
    INTERNAL = ("internal", 500, "The server failed")
    UNAVAILABLE = ("unavailable", 503, "The server cannot take requests now")
    STORAGE_FULL = ("storage_full", 507, "The server's disk is full")

    def __init__(self, code: str, status: int, title: str) -> None:
        self.code = code
        self.status = status
        self.title = title


class Problem(Struct, frozen=True):
    """A refusal as a problem document (RFC 9457).

    `type` is a URI when a public registry defines one (the upload dialects do), else ``about:blank``; `extra` holds the
    members that such a type defines.
    """

    code: Code
    detail: str
    type: str = "about:blank"
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> int:
        """The HTTP status that goes with the code."""
        return self.code.status

    def to_json(self) -> bytes:
        """The document as UTF-8 JSON, to be sent as `PROBLEM_MEDIA_TYPE`."""
        document = {
            "type": self.type,
            "title": self.code.title,
            "status": self.status,
            "code": self.code.code,
            "detail": self.detail,
            **self.extra,
        }
        return json.dumps(document).encode()

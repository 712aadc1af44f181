"""Answers to a client as parsed values, and the one table of what their status codes mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final, Protocol

from msgspec import Struct

from mailboat.protocol.errors import PROBLEM_MEDIA_TYPE
from mailboat.protocol.uploads.messages import media_type
from mailboat.protocol.uploads.values import Limits, Request


class Meaning(Enum):
    """What a status code says about a request on an upload."""

    SUCCESS = "success"
    RETRY = "retry"
    CONFLICT = "conflict"
    GONE = "gone"
    UNAUTHORISED = "unauthorised"
    TOO_LARGE = "too large"
    REFUSED = "refused"
    NOT_OURS = "not ours"


_BY_STATUS: Final[Mapping[int, Meaning]] = MappingProxyType(
    {
        401: Meaning.UNAUTHORISED,
        403: Meaning.UNAUTHORISED,
        404: Meaning.GONE,
        407: Meaning.NOT_OURS,  # a proxy wants to know who we are
        408: Meaning.RETRY,
        409: Meaning.CONFLICT,
        410: Meaning.GONE,
        413: Meaning.TOO_LARGE,
        423: Meaning.RETRY,
        425: Meaning.RETRY,
        429: Meaning.RETRY,
        460: Meaning.RETRY,  # tus, Checksum: the bytes were damaged on their way
        511: Meaning.NOT_OURS,  # RFC 6585, 6: the network wants to be signed in to
    }
)
_BY_CLASS: Final[Mapping[int, Meaning]] = MappingProxyType(
    {
        2: Meaning.SUCCESS,
        # Nothing that carries a key follows a redirect; no server of ours sends one.
        3: Meaning.NOT_OURS,
        4: Meaning.REFUSED,
        5: Meaning.RETRY,
    }
)


def meaning_of(status: int) -> Meaning:
    """What `status` means; what HTTP does not define comes from nobody we know."""
    return _BY_STATUS.get(status) or _BY_CLASS.get(status // 100, Meaning.NOT_OURS)


class Complaint(Enum):
    """Problems of uploads that a dialect recognises by their type, whatever the status."""

    COMPLETED = "the upload is complete already"
    INCONSISTENT_LENGTH = "statements about its length contradict each other"


class Reply(Struct, frozen=True):
    """What an HTTP answer says in terms of uploads; None where it says nothing.

    `ours`: it bears the marks of an upload server, so that a success can be believed. `garbled`: a field that tells
    where the upload stands is there, but unreadable. `problem` and `detail` are of its problem document, `complaint`
    what its type means to us.
    """

    status: int
    ours: bool
    garbled: bool = False
    offset: int | None = None
    length: int | None = None
    complete: bool | None = None
    limits: Limits | None = None
    location: str | None = None
    complaint: Complaint | None = None
    problem: str | None = None
    detail: str = ""

    @property
    def meaning(self) -> Meaning:
        """What its status means."""
        return meaning_of(self.status)


MAX_DETAIL: Final = 500
"""Characters kept of a server's explanation: it goes to logs and status lines."""


def problem_of(fields: Mapping[str, str], body: bytes) -> tuple[str, str]:
    """Type and detail of a problem document (RFC 9457); empty where there is none. `fields` as `folded` gives them."""
    if media_type(fields) != PROBLEM_MEDIA_TYPE:
        return "", ""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):  # cut off, no UTF-8, nested without end: the status alone has to do
        return "", ""
    if not isinstance(document, dict):
        return "", ""
    kind, detail = document.get("type"), document.get("detail", document.get("title"))
    return kind if isinstance(kind, str) else "", detail[:MAX_DETAIL] if isinstance(detail, str) else ""


class HttpRequest(Struct, frozen=True):
    """An HTTP request without its body: method, URL, header fields."""

    method: str
    url: str
    headers: dict[str, str]


class ClientDialect(Protocol):
    """What a client needs of a dialect: translation, nothing else."""

    def render(self, request: Request, *, target: str, resource: str | None) -> HttpRequest:
        """The HTTP request for `request`; `target` is where uploads are made, `resource` the upload once it is."""

    def read(self, request: Request, status: int, headers: Mapping[str, str], body: bytes) -> Reply:
        """What the answer to `request` says. Never raises, whatever the answer holds."""

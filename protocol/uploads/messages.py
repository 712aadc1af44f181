"""HTTP messages as dialects see them: fields under folded names, answers as values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from msgspec import Struct, field

MAX_LENGTH: Final = 999_999_999_999_999
"""Largest length and offset taken: fifteen digits, as in structured fields, so that every language can hold it."""

_DIGITS: Final = re.compile(r"[0-9]{1,15}")


class HttpAnswer(Struct, frozen=True):
    """An HTTP answer: status, header fields, body (a problem document or nothing)."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Unreadable(ValueError):
    """A field that a request needs is missing or cannot be read; raised and caught within a dialect."""

    def __init__(self, fields: Mapping[str, str], name: str, wanted: str) -> None:
        given = fields.get(name.lower())
        found = "it is missing" if given is None else f"not {given[:80]!r}"
        super().__init__(f"{name} must be {wanted}; {found}")


def folded(headers: Mapping[str, str]) -> dict[str, str]:
    """`headers` under lower-case names; a field that came several times is one list, as RFC 9110, 5.2 says."""
    fields: dict[str, str] = {}
    for name, value in headers.items():
        key = name.lower()
        fields[key] = f"{fields[key]}, {value}" if key in fields else value
    return fields


def media_type(fields: Mapping[str, str]) -> str:
    """The media type of the body, without parameters and in lower case; empty when none is stated."""
    return fields.get("content-type", "").partition(";")[0].strip(" \t").lower()


def digits(text: str) -> int | None:
    """The number that `text` is, of at most fifteen ASCII digits and nothing else; None for anything else."""
    text = text.strip(" \t")
    return int(text) if _DIGITS.fullmatch(text) else None


def content_length(fields: Mapping[str, str]) -> int | None:
    """Bytes in the body, None when chunked: a message with neither field has no body (RFC 9112, 6.3).

    Raises `Unreadable` for a length that is no number.
    """
    if "transfer-encoding" in fields:
        return None
    size = digits(fields.get("content-length", "0"))
    if size is None:
        raise Unreadable(fields, "Content-Length", f"an integer up to {MAX_LENGTH}")
    return size

"""Where the segments of a session are being uploaded to, on servers that do not keep that for us: a file in the
session's folder.

A tus server knows an upload by its URL alone, and tells it once. It is noted, durably, before the first byte goes
there, so that a process that comes later goes on at the very byte; and the file goes wherever the session's folder
goes. Lost, it costs another upload, never a record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from mailboat.protocol.addresses import resolve
from mailboat.protocol.limits import MIB

NAME: Final = "uploads"
"""The file in a session's folder."""

MOST: Final = 32 * MIB
"""Bytes of such a file that are read: some two hundred for each of `MAX_SEGMENTS`."""

_DIGITS: Final = 6


class Place(Struct, frozen=True):
    """The upload of one segment: its URL, and whether the server has had all of it."""

    url: str
    complete: bool = False


Places = Mapping[int, Place]
"""The uploads of a session, by the segments' numbers."""


def to_json(server: str, places: Places) -> bytes:
    """The file's content; `server` is the URL at which uploads are made."""
    uploads = {str(index): {"url": place.url, "complete": place.complete} for index, place in places.items()}
    return json.dumps({"server": server, "uploads": uploads}).encode()


def from_json(content: bytes, server: str) -> dict[int, Place]:
    """What `to_json` made for this `server`; what is damaged, of another server, or leads elsewhere is left out."""
    try:
        noted = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(noted, dict) or noted.get("server") != server or not isinstance(noted.get("uploads"), dict):
        return {}
    places = {}
    for index, each in noted["uploads"].items():
        number = index.isascii() and index.isdecimal() and len(index) <= _DIGITS
        place = _place(each, server) if number else None
        if place is not None:
            places[int(index)] = place
    return places


def _place(noted: object, server: str) -> Place | None:
    if not isinstance(noted, dict) or not isinstance(noted.get("url"), str):
        return None
    url = resolve(server, noted["url"])
    return None if url is None else Place(url, noted.get("complete") is True)

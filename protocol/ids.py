"""Identifiers: UUIDs of version 7 (RFC 9562), always in canonical text form.

An id becomes a folder name at the agent and a file name at the server, so nothing but the canonical form is let
through.
"""

from __future__ import annotations

import re
from typing import Final

from mailboat.protocol.errors import WireError

ENTROPY_BYTES: Final = 10
CANONICAL: Final = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
"""The canonical form as a regular expression."""
_CANONICAL = re.compile(CANONICAL)


def new_id(wall_ms: int, entropy: bytes) -> str:
    """A UUID of version 7 from the wall clock in milliseconds and `ENTROPY_BYTES` random bytes (RFC 9562, section 5.7).

    Ids made later sort later, at millisecond resolution.
    """
    if len(entropy) != ENTROPY_BYTES:
        raise ValueError(f"entropy has {len(entropy)} bytes, {ENTROPY_BYTES} are needed")
    raw = bytearray((wall_ms & 0xFFFF_FFFF_FFFF).to_bytes(6, "big") + entropy)
    raw[6] = 0x70 | (raw[6] & 0x0F)
    raw[8] = 0x80 | (raw[8] & 0x3F)
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def is_canonical(text: str) -> bool:
    """Whether `text` is a UUID in canonical form (lower case, hyphens), of any version."""
    return _CANONICAL.fullmatch(text) is not None


def canonical(value: object, where: str) -> str:
    """`value` itself when it is a canonical UUID; otherwise `WireError` naming `where`."""
    if isinstance(value, str) and is_canonical(value):
        return value
    raise WireError(f"{where}: expected a UUID in canonical form, got {value!r:.80}")

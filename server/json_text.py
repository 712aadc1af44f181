"""Values from agents as JSON: whatever they are, and exactly where it matters.

JSON has no bytes, no numbers that are not finite, and no keys but texts. `encode` makes the best of them (base64, null,
text); `exact` marks them, so that a record can be given back as it was::

    bytes            {"$bytes": "base64"}
    nan, inf, -inf   {"$float": "nan"}
    extension types  {"$ext": [code, "base64"]}
"""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Sequence
from typing import Any, Final

import msgpack
import msgspec

UNSUITED: Final = (TypeError, ValueError, RecursionError, msgspec.MsgspecError)
"""What encoding raises for a key or a value that JSON has no form for."""

_encoder: Final = msgspec.json.Encoder(enc_hook=str)


def encode(value: object) -> bytes:
    """The value as UTF-8 JSON on one line; never fails but for values that nest deeper than any agent's."""
    try:
        return _encoder.encode(value)
    except UNSUITED:
        # Rare: a map's null key, say, or half a surrogate pair, which JSON may hold and UTF-8 may not.
        return _encoder.encode(plain(value))


def encode_lines(values: Sequence[object]) -> bytes:
    """Each of the values as `encode` has it, with line feeds between them: in JSON text there is none."""
    try:
        return _encoder.encode_lines(values)[:-1]
    except UNSUITED:
        return b"\n".join(map(encode, values))


def plain(value: object) -> object:
    """The value with every key a text, and texts for what JSON has no form for."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, dict):
        return {text(str(key)): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value if value is None or isinstance(value, int | float | bytes) else text(str(value))


def exact(value: object) -> Any:  # noqa: ANN401, PLR0911 - a value of any shape, a return for each
    """The value with marks in place of what JSON cannot hold."""
    if isinstance(value, str):
        return text(value)
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, dict):
        return {text(str(key)): exact(each) for key, each in value.items()}
    if isinstance(value, msgpack.ExtType):
        return {"$ext": [value.code, b64encode(value.data).decode()]}
    if isinstance(value, list | tuple):
        return [exact(each) for each in value]
    return {"$bytes": b64encode(value).decode()} if isinstance(value, bytes) else text(str(value))


def text(value: str) -> str:
    """The text, with question marks in place of what UTF-8 cannot hold."""
    return value if value.isascii() else value.encode("utf-8", "replace").decode()

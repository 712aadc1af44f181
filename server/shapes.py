"""Shapes of JSON, as JSON Schema (draft 2020-12, the dialect of OpenAPI 3.1): the words in which `answers` says them.

An object has exactly the members that its shape lists, all of them always: a reader need not ask whether one is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

Shape = Mapping[str, Any]

ANYTHING: Final[Shape] = {}
TEXT: Final[Shape] = {"type": "string"}
WHOLE: Final[Shape] = {"type": "integer"}
COUNT: Final[Shape] = {"type": "integer", "minimum": 0}
NUMBER: Final[Shape] = {"type": "number"}
FLAG: Final[Shape] = {"type": "boolean"}
ID: Final[Shape] = {"type": "string", "format": "uuid"}
TIME: Final[Shape] = {"type": "number", "description": "Unix seconds"}
SECONDS: Final[Shape] = {"type": "number", "description": "seconds"}
SHARE: Final[Shape] = {"type": "number", "minimum": 0, "maximum": 1}
DAY: Final[Shape] = {"type": "string", "format": "date", "description": "a day, in UTC"}


def told(shape: Shape, description: str) -> Shape:
    """`shape` with a description."""
    return {**shape, "description": description}


def maybe(shape: Shape) -> Shape:
    """`shape`, or null where nothing is known."""
    return {"anyOf": [shape, {"type": "null"}]}


def one_of(*texts: str) -> Shape:
    """One of these texts."""
    return {"type": "string", "enum": list(texts)}


def some(shape: Shape) -> Shape:
    """A list of `shape`."""
    return {"type": "array", "items": shape}


def by_name(shape: Shape) -> Shape:
    """A map from any text to `shape`."""
    return {"type": "object", "additionalProperties": shape}


def made_of(members: Mapping[str, Shape], optional: Mapping[str, Shape] | None = None) -> Shape:
    """An object with exactly these members; those in `optional` may be absent."""
    return {
        "type": "object",
        "properties": {**members, **(optional or {})},
        "required": list(members),
        "additionalProperties": False,
    }

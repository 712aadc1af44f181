"""What somebody has said of a group of exceptions, as the catalog keeps it."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class Standing(StrEnum):
    """How a group of exceptions stands; the values are stored and do not change."""

    NEW = "new"
    """Nobody has looked at it."""
    OPEN = "open"
    RESOLVED = "resolved"
    IGNORED = "ignored"


class TriageRow(Struct, frozen=True):
    """What somebody has said of a group of exceptions; `version` is the application's in which it is resolved, empty
    where they have named none.
    """

    product: str
    group: str
    standing: Standing
    version: str = ""
    changed: float = 0.0

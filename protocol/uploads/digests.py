"""Digests that a client declares, of one request's body or of a whole upload, whatever the dialect writes them as.

A body under a digest is taken whole or not at all: what was cut could not be checked, and would be kept as if it had
been.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from enum import Enum
from typing import Protocol

from msgspec import Struct


class Hasher(Protocol):
    """What computes a digest, piece by piece."""

    def update(self, piece: bytes | memoryview, /) -> None:
        """Take in the next bytes."""

    def digest(self) -> bytes:
        """The digest of the bytes so far."""

    def copy(self) -> Hasher:
        """Another one that has taken in the same bytes."""


class Algorithm(Enum):
    """The algorithms taken: ``(name, bytes of a digest)``. The names are stored in catalogs: they do not change.

    SHA-1 because tus requires it, MD5 because clients send it: they find bytes damaged on the way, not an attacker.
    """

    SHA256 = ("sha256", 32)
    SHA512 = ("sha512", 64)
    SHA1 = ("sha1", 20)
    MD5 = ("md5", 16)

    def __init__(self, label: str, size: int) -> None:
        self.label = label
        self.size = size

    def hasher(self) -> Hasher:
        """A fresh hasher."""
        make: Callable[..., Hasher] = getattr(hashlib, self.label)
        return make(usedforsecurity=False)


BY_LABEL = {algorithm.label: algorithm for algorithm in Algorithm}


class Digest(Struct, frozen=True):
    """What a client says the digest of some bytes is; `value` has the algorithm's size."""

    algorithm: Algorithm
    value: bytes

    def __str__(self) -> str:
        return f"{self.algorithm.label} {self.value.hex()}"

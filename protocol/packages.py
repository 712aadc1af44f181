"""Packages: sealed segments one after the other in one file, to carry sessions by hand.

A package needs no format of its own. Each segment says where it ends, so a file of several can be taken apart again,
and since each is a sequence of zstd frames, so is the package: ``zstd -dc FILE`` prints the records of all of them. The
segments may be of one session or of several, in any order. One segment is a package of one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from mailboat.protocol.limits import MIB
from mailboat.protocol.segment import (
    BLOCK_HEADER_SIZE,
    BLOCK_MAGIC,
    PREAMBLE_MAGIC,
    PREAMBLE_TAG,
    SEAL_MAGIC,
    SKIPPABLE,
    BlockHeader,
)

Read = Callable[[int, int], bytes]
"""Gives at most so many bytes (second) from an offset (first) on; fewer only at the end."""

_PREAMBLE: Final = re.compile(re.escape(PREAMBLE_MAGIC.to_bytes(4, "little")) + b".{4}" + PREAMBLE_TAG, re.DOTALL)
_PREAMBLE_LENGTH: Final = SKIPPABLE.size + len(PREAMBLE_TAG)
_WINDOW: Final = MIB

_HEADS: Final = (PREAMBLE_MAGIC, SEAL_MAGIC)


class Span(Struct, frozen=True):
    """Where one segment of a package lies: its bytes from `start` to before `end`."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """Bytes of the segment."""
        return self.end - self.start


def spans(read: Read, size: int, most: int) -> list[Span] | None:
    """Where the segments lie in `size` bytes; None when there are more than `most`.

    Only the frames' heads are read, from the first to the last; where those cannot be followed, all that comes until
    the next preamble. Every byte is in some span: noise makes one of its own, and is for a reader of segments to judge.
    Never raises but what `read` does.
    """
    found: list[Span] = []
    start = at = 0
    while at < size:
        magic, end = _frame(read, at)
        if magic == PREAMBLE_MAGIC and at > start:
            found.append(Span(start, at))  # the one before is not sealed, and ends all the same
            start = at
        if len(found) > most:
            return None
        at = end if end is not None and end <= size else _next_preamble(read, at + 1, size)
        if magic == SEAL_MAGIC:
            found.append(Span(start, at))
            start = at
    if start < size:
        found.append(Span(start, size))
    return None if len(found) > most else found


def _next_preamble(read: Read, at: int, size: int) -> int:
    """Where the next preamble begins at or after `at`; `size` if there is none."""
    while at < size:
        found = _PREAMBLE.search(read(at, _WINDOW + _PREAMBLE_LENGTH - 1))
        if found is not None:
            return at + found.start()
        at += _WINDOW
    return size


def _frame(read: Read, at: int) -> tuple[int, int | None]:
    """The magic of the frame at an offset, and where it ends; None where that cannot be told."""
    head = read(at, BLOCK_HEADER_SIZE)
    if len(head) < SKIPPABLE.size:
        return 0, None
    magic, length = SKIPPABLE.unpack_from(head)
    if magic in _HEADS:
        return magic, at + SKIPPABLE.size + length
    header = BlockHeader.decode(head) if magic == BLOCK_MAGIC else None
    return magic, None if header is None else at + BLOCK_HEADER_SIZE + header.length

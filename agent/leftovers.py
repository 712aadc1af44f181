"""What a dead process's journal holds, read from the bytes of its file."""

from __future__ import annotations

from collections.abc import Callable
from zlib import crc32

from msgspec import Struct

from mailboat.agent.journal_layout import (
    CHECKPOINT,
    DURABLE_AT,
    HEAD,
    HEAD_CRC,
    HEAD_SIZE,
    LEAVING_AT,
    LOST,
    LOST_AT,
    MAGIC,
    MAX_HALVES,
    PASSING_AT,
    VERSION,
    WORDS,
    descriptor,
)
from mailboat.protocol.errors import SegmentError
from mailboat.protocol.limits import MAX_SEQUENCE


class Left(Struct, frozen=True):
    """What a journal left behind in one half: packed records, the first of which has the sequence number `first`.

    Halves were filled in the order of their `generation`.
    """

    generation: int
    first: int
    raw: bytes


class LeftBehind(Struct, frozen=True):
    """What a dead process's journal holds: `halves` in the order in which they were filled, and how many records were
    `lost` by place (see `recorder.Lost`). `in_order`: it was `Journal.note_leaving` that came last.
    """

    halves: tuple[Left, ...] = ()
    lost: tuple[int, ...] = ()
    in_order: bool = False


def left_behind(content: bytes, *, same_boot: Callable[[str], bool]) -> LeftBehind:
    """What is to be had from a dead process's journal file; nothing if it never became a journal.

    `same_boot` tells of the boot id under which the journal was written whether the machine has run on since (`end`
    counts) or not (checkpoints do). Damage costs at most the half that it belongs to. Raises `SegmentError` for a
    journal of a version to come.
    """
    if len(content) < HEAD_SIZE:
        return LeftBehind()
    magic, version, half_size, boot = HEAD.unpack_from(content)
    (crc,) = HEAD_CRC.unpack_from(content, HEAD.size)
    if magic != MAGIC and crc32(HEAD.pack(MAGIC, VERSION, half_size, boot)) != crc:
        return LeftBehind()
    if version != VERSION and crc32(content[: HEAD.size]) == crc:  # it means to say so; else it is damaged
        raise SegmentError(f"the journal has version {version}, this mailboat reads {VERSION}: update it")
    running_on = same_boot(boot.rstrip(b"\0").decode(errors="replace"))
    found = (_left(content, index, running_on=running_on) for index in range(MAX_HALVES))
    halves = sorted((left for left in found if left is not None), key=lambda left: left.generation)
    return LeftBehind(tuple(halves), LOST.unpack_from(content, LOST_AT), in_order=bool(content[LEAVING_AT]))


def _left(content: bytes, index: int, *, running_on: bool) -> Left | None:
    at = descriptor(index)
    generation, first, offset, size, end = WORDS.unpack_from(content, at)
    if not size or offset < HEAD_SIZE or offset + size > len(content) or first > MAX_SEQUENCE:
        return None
    if running_on and end <= size:
        return Left(generation, first, content[offset : offset + end]) if generation and end else None
    vouched = (_vouched(content, at + place, offset, size) for place in (*DURABLE_AT, *PASSING_AT))
    sound = (found for found in vouched if found and (not running_on or found.generation == generation))
    return max(sound, key=lambda found: (found.generation, len(found.raw)), default=None)


def _vouched(content: bytes, at: int, offset: int, size: int) -> Left | None:
    generation, first, end, data_crc, crc = CHECKPOINT.unpack_from(content, at)
    body = content[at : at + CHECKPOINT.size - 4]
    if not generation or end > size or crc32(body) != crc:
        return None
    raw = content[offset : offset + end]
    if crc32(raw, generation & 0xFFFF_FFFF) != data_crc:
        return None
    return Left(generation, first, raw)

"""What a dead process's journal holds, read from the bytes of its file, damage and all.

An unfinished record stands behind the `end` of its half, and is nobody's: its call never returned. What is no record
before that is damage. Checkpoints tell in which stretch it is, and only that one is lost; behind the last of them
records carry no checksum, and reading goes on at the next bytes that can only be the beginning of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from zlib import crc32

from msgspec import Struct
from msgspec.structs import replace

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
    UNCOUNTED,
    VERSION,
    WORDS,
    descriptor,
)
from mailboat.protocol.errors import SegmentError
from mailboat.protocol.limits import MAX_SEQUENCE
from mailboat.protocol.unpacking import numbered, whole_pieces, whole_records


class Left(Struct, frozen=True):
    """What a journal left behind in one half: packed records, the first of which has the sequence number `first`.

    Halves were filled in the order of their `generation`.
    """

    generation: int
    first: int
    raw: bytes
    damaged: int = 0
    """So many of its records, at least, are not among them, because the journal is damaged."""


class _Words(Struct, frozen=True):
    """The words of a descriptor."""

    generation: int
    first: int
    offset: int
    size: int
    end: int

    def possible(self, length: int) -> bool:
        """Whether they can be true, but for `end`, in a file of `length` bytes."""
        placed = self.offset >= HEAD_SIZE and self.offset + self.size <= length
        aligned = not (self.offset % HEAD_SIZE or self.size % HEAD_SIZE)
        return placed and aligned and self.size > 0 and self.first & ~UNCOUNTED <= MAX_SEQUENCE


class _Mark(Struct, frozen=True):
    """A checkpoint, and whether it was to be synced."""

    generation: int
    first: int
    end: int
    data_crc: int
    durable: bool


class LeftBehind(Struct, frozen=True):
    """What a dead process's journal holds: `halves` in the order in which they were filled, and how many records were
    `lost` by place (see `intake.Lost`). `in_order`: it was `Journal.note_leaving` that came last.
    """

    halves: tuple[Left, ...] = ()
    lost: tuple[int, ...] = ()
    in_order: bool = False


def left_behind(content: bytes, *, same_boot: Callable[[str], bool]) -> LeftBehind:
    """What is to be had from a dead process's journal file; nothing if it never became a journal.

    `same_boot` tells of the boot id under which the journal was written whether the machine has run on since (`end`
    counts) or not (checkpoints do). Damage costs at most the half that it belongs to, and is told. Raises
    `SegmentError` for a journal of a version to come.
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
    certain = crc32(content[: HEAD.size]) == crc
    marks = [_marks(content, index) for index in range(MAX_HALVES)]
    settled = max((generation for each in marks for generation in _proven(each)), default=0)
    found = (
        _left(content, index, each, settled, running_on=running_on, certain=certain) for index, each in enumerate(marks)
    )
    halves = _counted(sorted((left for left in found if left is not None), key=lambda left: left.generation))
    lost = tuple(count if count <= MAX_SEQUENCE else 0 for count in LOST.unpack_from(content, LOST_AT))
    return LeftBehind(tuple(halves), lost, in_order=bool(content[LEAVING_AT]))


def _counted(halves: Iterable[Left]) -> Iterator[Left]:
    """The halves with the numbers of their first records. The process may have died before it had counted the one that
    was filled before: then that is done here, as far as it is whole.
    """
    before: Left | None = None
    for half in halves:
        if half.first & UNCOUNTED:
            first = half.first & ~UNCOUNTED
            if before is not None and before.generation and not before.damaged:
                first = max(first, before.first + numbered(whole_records(before.raw)[0]))
            half = replace(half, first=first)  # noqa: PLW2901 - the same half
        yield half
        before = half


def _left(
    content: bytes, index: int, marks: list[_Mark], settled: int, *, running_on: bool, certain: bool
) -> Left | None:
    """What is left of one half. `certain`: the head of the journal, which names the machine's run, is not damaged."""
    words = _Words(*WORDS.unpack_from(content, descriptor(index)))
    if not (words.offset or words.size):
        return None
    if not words.possible(len(content)):
        return _unknown(words, marks, running_on=running_on)
    raw = content[words.offset : words.offset + words.size]
    if running_on:
        return _as_it_ended(raw, words, marks)
    left = _as_vouched(raw, marks, settled)
    if (certain and words.generation >= settled) or not words.generation or words.end > words.size:
        return left
    # It had ended before something was synced, or the machine has run on after all: then `end` counts.
    left = left or Left(words.generation, words.first, b"")
    behind = raw[len(left.raw) : words.end]
    return replace(left, damaged=_records_in(behind)) if behind and not left.damaged else left


def _unknown(words: _Words, marks: list[_Mark], *, running_on: bool) -> Left | None:
    """Of a half that nobody can find any more, that there was one."""
    newest = max(marks, key=lambda mark: (mark.generation, mark.end), default=None)
    if newest is not None:
        return Left(newest.generation, newest.first, b"", damaged=1)
    return Left(words.generation, MAX_SEQUENCE, b"", damaged=1) if running_on and words.generation else None


def _as_it_ended(raw: bytes, words: _Words, marks: list[_Mark]) -> Left | None:
    """The machine has run on: all up to `end` is there, and anything else is damage."""
    if not words.generation:
        # It is free, so a block has its records; if none has, it is not free.
        return Left(0, words.first, b"", damaged=_records_in(raw[: words.end])) if words.end <= words.size else None
    of_this = sorted((mark for mark in marks if mark.generation == words.generation), key=lambda mark: mark.end)
    vouched = of_this[-1].end if of_this else 0
    kept, damaged, _ = _stretches(raw, words.generation, of_this, vouched)
    if not vouched <= words.end <= words.size:
        return Left(words.generation, words.first, kept, damaged + 1)
    tail, breaks = whole_pieces(raw[vouched : words.end])
    return Left(words.generation, words.first, kept + tail, damaged + breaks) if words.end else None


def _as_vouched(raw: bytes, marks: list[_Mark], settled: int) -> Left | None:
    """The machine has not run on: nothing but checkpoints proves what is there. Those of the newest use that proves
    anything; an earlier one is in the segment.

    What only the last durable checkpoint vouches for may never have reached the disk. What the one before it vouches
    for, and is not there, is damage, and so it is with all of halves that had ended before one that is `settled`.
    """
    for generation in sorted({mark.generation for mark in marks}, reverse=True):
        of_this = sorted((mark for mark in marks if mark.generation == generation), key=lambda mark: mark.end)
        durable = [mark.end for mark in of_this if mark.durable]
        promised = max(durable, default=0) if generation < settled else _proven(of_this).get(generation, 0)
        kept, damaged, first = _stretches(raw, generation, of_this, promised)
        if kept or damaged:
            return Left(generation, first, kept, damaged)
    return None


def _proven(marks: list[_Mark]) -> dict[int, int]:
    """The uses of a half of which something was synced for certain, and how much: since the next checkpoint takes the
    other place only then, the older of two.
    """
    durable = [mark for mark in marks if mark.durable]
    if len(durable) < len(DURABLE_AT) or durable[0].generation != durable[1].generation:
        return {}
    return {durable[0].generation: min(mark.end for mark in durable)}


def _stretches(raw: bytes, generation: int, marks: list[_Mark], promised: int) -> tuple[bytes, int, int]:
    """What checkpoints prove, stretch by stretch between one and the next, so that damage costs the stretch that it is
    in; how many records of what was `promised` are lost by it; and the first one's number. Ends where something is
    missing that was not promised.
    """
    kept, damaged, at, crc, first = list[bytes](), 0, 0, generation & 0xFFFF_FFFF, 0
    for mark in marks:
        stretch = raw[at : mark.end]
        if len(stretch) == mark.end - at and crc32(stretch, crc) == mark.data_crc:
            kept.append(stretch)
        elif mark.end <= promised:
            damaged += _records_in(stretch)
        else:
            break
        at, crc, first = mark.end, mark.data_crc, mark.first
    return b"".join(kept), damaged, first


def _records_in(damaged: bytes) -> int:
    """How many records there were, at least."""
    records, end = whole_records(damaged)
    return numbered(records) + (end < len(damaged))


def _marks(content: bytes, index: int) -> list[_Mark]:
    """The checkpoints of a half that are intact."""
    marks = []
    for place in (*DURABLE_AT, *PASSING_AT):
        at = descriptor(index) + place
        generation, first, end, data_crc, crc = CHECKPOINT.unpack_from(content, at)
        if generation and crc32(content[at : at + CHECKPOINT.size - 4]) == crc:
            marks.append(_Mark(generation, first, end, data_crc, place in DURABLE_AT))
    return marks

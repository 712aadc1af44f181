"""What lies in the folder of an ended session, read from its segments: they are the only truth."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from mailboat.agent.files import FileSystem, Place
from mailboat.agent.host import boot_id, is_same_boot
from mailboat.agent.journal_place import read_journal
from mailboat.agent.leftovers import left_behind
from mailboat.agent.segment_file import DAMAGED, SUFFIX, names_segment
from mailboat.protocol.errors import SegmentError, WireError
from mailboat.protocol.limits import KIB, MAX_PREAMBLE, MAX_SEAL
from mailboat.protocol.reader import SegmentReader
from mailboat.protocol.records import Kind
from mailboat.protocol.segment import SKIPPABLE, Preamble, Seal
from mailboat.protocol.summary import Info, Summary, summarise
from mailboat.protocol.unpacking import whole_records

_FIRST_READ: Final = 4096
_SMALL: Final = 32 * KIB
"""A segment below this is read at once: one call costs less than three."""
_MOST_DESCRIPTIONS: Final = 64
MOST_COUNTS: Final = 512
"""Different ones that are remembered at a time."""


class Waiting(Struct, frozen=True, gc=False):
    """An ended session that waits for the server, in a folder of its id below `home`."""

    home: Path
    summary: Summary

    @property
    def path(self) -> Path:
        """Its folder. It is put together when it is asked for: of ten thousand that wait, few are looked into."""
        return self.home / self.summary.session_id


class Descriptions:
    """Sessions of one application have nearly all of their description in common, and those that recorded little have
    the same counts: each of them is kept once.
    """

    def __init__(self) -> None:
        """Knows none yet."""
        self._encode = msgspec.msgpack.Encoder().encode
        self._known: dict[bytes, Info] = {}
        self._counts: dict[tuple[int, ...], tuple[int, ...]] = {}

    def shared(self, summary: Summary, session_id: str) -> Summary:
        """`summary` with the description and counts that others have, and this very text as its id. Raises
        `SegmentError` if it is that of another session.
        """
        if summary.session_id != session_id:
            raise SegmentError(f"what lies in the folder of session {session_id} is {summary.session_id}")
        packed = self._encode(summary.info)  # by which, unlike by equality, True differs from 1
        if len(self._known) >= _MOST_DESCRIPTIONS:
            self._known.clear()
        if len(self._counts) >= MOST_COUNTS:
            self._counts.clear()
        return replace(
            summary,
            session_id=session_id,
            info=self._known.setdefault(packed, summary.info),
            counts=self._counts.setdefault(summary.counts, summary.counts),
        )


def read_summary(files: FileSystem, path: Place, names: Sequence[str] | None = None) -> Summary:
    """The summary of an ended session from its segments; `SegmentError` when one cannot be read. `names` are those
    in its folder, where they are known.
    """
    segments = filter(names_segment, files.names(path) if names is None else names)
    parts = [_ends_of(files, f"{path}{os.sep}{name}", name) for name in segments]
    if not parts:
        raise SegmentError(f"{path} holds no segment")
    return summarise(parts)


def counts_of(files: FileSystem, path: Path) -> tuple[int, Mapping[str, int]]:
    """Records and losses of an ended session; none of one that cannot be read."""
    try:
        summary = read_summary(files, path)
    except (OSError, SegmentError, WireError):
        return 0, {}
    return summary.records, summary.lost


def legible_records(files: FileSystem, path: Path) -> int:
    """How many records can be made out of a session that cannot be read: those that blocks say they hold, in segments
    that were set aside, too, and what the journal holds beyond them.
    """
    legible = after = 0
    for name in files.names(path):
        if not name.endswith((SUFFIX, DAMAGED)):
            continue
        try:
            for block in SegmentReader(files.read(path / name), digest=False).blocks():
                if block.header.first >= after:  # else it is one that an abandoned segment held, too
                    legible += block.header.records
                    after = block.header.first + block.header.records
        except (OSError, SegmentError):
            continue  # nothing of this one
    return legible + _legible_in_journal(files, path, after)


def _legible_in_journal(files: FileSystem, path: Path, after: int) -> int:
    """Records in the journal's halves that no block holds, damaged or not: a half is in a block as a whole or not."""
    try:
        left = left_behind(read_journal(files, path), same_boot=lambda written: is_same_boot(written, boot_id()))
    except (OSError, SegmentError):
        return 0
    halves = [half for half in left.halves if half.first >= after]
    raws = [raw for half in halves for raw in whole_records(half.raw)[0] if raw[0] != Kind.SCHEMA]
    return len(raws) + sum(half.damaged for half in halves)


def _ends_of(files: FileSystem, path: str, name: str) -> tuple[Preamble, Seal, int]:
    """Preamble, seal and size of a sealed segment, without reading what is in between."""
    head = files.read_range(path, 0, _SMALL)
    size = len(head) if len(head) < _SMALL else files.size(path)
    tail = head if len(head) < _SMALL else files.read_range(path, max(0, size - _FIRST_READ), _FIRST_READ)
    sealed = Seal.at_end_of(tail[-_FIRST_READ:])
    if sealed is None:
        sealed = Seal.at_end_of(files.read_range(path, max(0, size - MAX_SEAL), MAX_SEAL))
    if sealed is None:
        raise SegmentError(f"{name} has no intact seal")
    return _preamble_in(head[:_FIRST_READ], files, path, name), sealed[0], size


def read_preamble(files: FileSystem, path: Path) -> Preamble:
    """The preamble of a segment file; `SegmentError` when it is damaged."""
    return _preamble_in(files.read_range(path, 0, _FIRST_READ), files, path, path.name)


def _preamble_in(head: bytes, files: FileSystem, path: Place, name: str) -> Preamble:
    """The preamble that begins with `head`, at most `_FIRST_READ` bytes of the file."""
    if len(head) < SKIPPABLE.size:
        raise SegmentError(f"{name} is cut before its preamble")
    length = SKIPPABLE.size + SKIPPABLE.unpack_from(head)[1]
    if length > len(head):
        head = files.read_range(path, 0, min(length, MAX_PREAMBLE + _FIRST_READ))
    return Preamble.decode(head[:length])

"""Recovery: what a dead process left in ``live/`` becomes a sealed session that waits.

In named passes, each of which may be cut short by another crash and is then done again from the beginning:

1. *read*: every segment block by block (checksums only, no decompression);
2. *drain*: the journal's records that no block holds yet are appended as blocks;
3. *conclude*: the last words of a process that died of a fatal signal become the session's last record;
4. *seal*: unsealed segments get a seal, the last one with reason ``crashed`` (or ``stopped``, if the journal says that
   the process was leaving in order) and the time of the session's last record;
5. *retire*: the session moves to ``waiting/`` and its journal is deleted.

The journal's halves are told from the segment's blocks by sequence numbers: a half becomes one block, so it is either
in the segment as a whole or not at all, and a crash between append and release doubles nothing.

A session that is sealed to its server is recovered without any key: nobody here can read its blocks, or add to its
segments. What the journal holds goes into a segment of its own, sealed with a new key; the rest is taken from what
blocks say in the clear (see `mailboat.protocol.sealing`) and from the declarations beside the journal (see
`journal_place`).

Nothing that a record, a block or a segment holds stops the recovery of the rest: what cannot be read is kept as it is,
and shows as a gap.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import msgpack
from msgspec.structs import replace

from mailboat.agent.ended import read_preamble
from mailboat.agent.files import FileSystem
from mailboat.agent.host import is_same_boot
from mailboat.agent.intake import Lost
from mailboat.agent.journal_place import read_declared, read_journal
from mailboat.agent.last_words import record_of
from mailboat.agent.leftovers import Left, LeftBehind, left_behind
from mailboat.agent.log import log
from mailboat.agent.segment_file import DAMAGED, SegmentFile, has_set_aside, segment_paths, set_aside
from mailboat.agent.store import SessionFolder, Store
from mailboat.protocol.errors import ConfigError, SegmentError
from mailboat.protocol.limits import JOURNAL_GROWTH
from mailboat.protocol.reader import Block, SegmentReader, decompress, legible
from mailboat.protocol.records import (
    COUNTERS,
    SCHEMA_COUNTER,
    Kind,
    Schema,
    count_raw,
    counter,
    records_counted,
    schema_of,
)
from mailboat.protocol.sealing import Entropy, Note, SealedPayload, require_library
from mailboat.protocol.segment import ENCODING_SEALED, SEGMENT_DAMAGED, Preamble, SealReason
from mailboat.protocol.summary import cut_properties, cut_text
from mailboat.protocol.unpacking import around_damage, numbered, unpack, whole_pieces, whole_records

_RECORD_BYTES: Final = 8
"""Bytes that a record takes at least: an array of its kind, its time and its name."""

_ENDINGS: Final = (SealReason.STOPPED, SealReason.CRASHED)
"""Seals after which nothing of a session can follow."""

DAMAGED_JOURNAL: Final = "journal_damaged"
"""Under which reason a session's records are lost that a damaged part of its journal held."""

_NEVER: Final = 2**62
"""Nanoseconds of a clock that no machine has seen: a damaged time, which with another added would fit into no seal."""

_PROPERTIES: Final = 3
"""Where an INSTALLATION record holds its map."""


def recover(
    store: Store, session: SessionFolder, boot_id: str, *, level: int = 1, entropy: Entropy = os.urandom
) -> Path | None:
    """Bring one crashed session, whose lock the caller holds, to rest; returns its folder among those that wait.

    None when nothing was ever recorded: the folder is removed. `entropy` is for keys, if the session is sealed. Raises
    `SegmentError` when no segment's preamble can be read, `OSError` when the disk refuses, `ConfigError` when it takes
    a library that is not installed; the session stays where it is then, and may be recovered again.
    """
    files, paths = store.files, segment_paths(store.files, session.path)
    store.hope_again(session.path)
    left = _journal(files, session.path, boot_id)
    if not paths and not left.halves and not has_set_aside(files, session.path):
        files.remove_tree(session.path)
        return None
    work = _Recovery(files, level, entropy)
    try:
        work.read(paths, left.halves)
        work.count_set_aside(session.path)
        if work.sealed:
            require_library(f"session {session.path.name} is sealed")
            work.learn(left.halves, read_declared(files, session.path))
        work.drain(left.halves)
        died = work.conclude(session.path)
        work.seal(SealReason.STOPPED if left.in_order and not died else SealReason.CRASHED, work.lost(left))
    finally:
        work.close()
    return store.retire_folder(session.path)


def bring_to_rest(store: Store, session: SessionFolder, boot_id: str) -> SegmentError | OSError | ConfigError | None:
    """`recover` one crashed session and let go of its lock, so that one which cannot be recovered stops no other.

    Returns why it could not be: `SegmentError` when it cannot be read; it waits then, marked, for the sender to count
    it and put it aside (`Store.set_aside`). `OSError` when the disk refuses, `ConfigError` when a library is missing,
    and it stays. Raises `OSError` when it cannot be marked either.
    """
    try:
        store.reserve.backing(lambda: recover(store, session, boot_id))
    except SegmentError as error:
        store.give_up(session.path, str(error))
        return error
    except (OSError, ConfigError) as error:
        return error
    finally:
        store.files.close(session.lock_fd)
    return None


def _journal(files: FileSystem, session: Path, boot_id: str) -> LeftBehind:
    content = read_journal(files, session)
    return left_behind(content, same_boot=lambda written_under: is_same_boot(written_under, boot_id))


class _Recovery:
    """The segments of one session while it is being recovered, and what sealing it needs to know."""

    def __init__(self, files: FileSystem, level: int, entropy: Entropy) -> None:
        self._files, self._level, self._entropy = files, level, entropy
        self._segments: list[SegmentFile] = []
        self._schemas: dict[int, Schema] = {}
        self._last_block: Block | None = None
        self._installation_block: Block | None = None
        self._installation: Mapping[str, Any] | None = None
        self._last_time: int | None = None
        self._clock: int | None = None
        self._closed: int | None = None
        self._boxed = b""
        self._lengths: dict[int, int] = {}
        self._damaged = 0
        """Records that are lost with damaged parts of the journal, at least."""
        self._missing: list[range] = []
        """Numbers of those that are lost with damaged parts of segments, as far as the next one tells."""

    @property
    def sealed(self) -> bool:
        """Whether the session is sealed to its server."""
        return any(segment.writer.description.sealed is not None for segment in self._segments)

    # -- 1. read -------------------------------------------------------------------------------------------------

    def read(self, paths: list[Path], halves: Sequence[Left]) -> None:
        """Read the segments in order. One that was abandoned is cut back to where the next one begins, and the last one
        to where damage begins which the journal's `halves` make good: its last block never reached the disk as a whole.
        """
        preambles = [(path, preamble) for path in paths if (preamble := self._preamble(path)) is not None]
        if not preambles:
            raise SegmentError("no segment has an intact preamble")
        following = [*(preamble.first for _, preamble in preambles[1:]), None]

        def in_journal(first: int, end: int) -> bool:
            return any(first <= half.first < end for half in halves if half.raw)

        for (path, _), before in zip(preambles, following, strict=True):
            elsewhere = in_journal if before is None else None
            segment = SegmentFile.reopen(
                self._files, path, self._level, before=before, elsewhere=elsewhere, look=self._look_at
            )
            self._note_missing(segment)
            self._segments.append(segment)

    def _note_missing(self, segment: SegmentFile) -> None:
        """Note what the next of the segments lacks, and what is missing before it."""
        before = self._segments[-1] if self._segments else None
        end = before.writer.next if before is not None else 0
        first = segment.writer.description.first
        if before is not None and before.damage.at_end:
            first = next((number for number in self._lengths if number >= end), first)
        self._missing += [range(end, first), *segment.damage.missing]

    def count_set_aside(self, folder: Path) -> None:
        """Count the records of segments that were set aside, behind the last one that is read: what no later segment's
        beginning tells of.
        """
        behind = self._segments[-1].writer.description.first
        for name in self._files.names(folder):
            if name.endswith(DAMAGED):
                for block in SegmentReader(self._files.read(folder / name), digest=False).blocks():
                    first = block.header.first
                    if first >= behind and first not in self._lengths and not self._is_missing(first):
                        self._missing.append(range(first, first + block.header.records))

    def _is_missing(self, number: int) -> bool:
        return any(number in numbers for numbers in self._missing)

    def _preamble(self, path: Path) -> Preamble | None:
        """The segment's preamble; without one, what was only just being made is removed, what is damaged set aside."""
        try:
            return read_preamble(self._files, path)
        except SegmentError as error:
            reader = SegmentReader(self._files.read(path), digest=False)
            if any(reader.blocks()) or reader.gaps:
                log.warning("%s of session %s is set aside: %s", path.name, path.parent.name, error)
                set_aside(self._files, path)
            else:
                self._files.remove(path)
            return None

    def _look_at(self, block: Block) -> None:
        self._clock = block.header.clock
        if block.header.records:
            self._last_block = block
            self._lengths[block.header.first] = block.header.raw_length
        if block.header.encoding == ENCODING_SEALED:
            with contextlib.suppress(SegmentError):  # it will show as a gap
                told = SealedPayload.read(block.payload)
                self._closed, self._boxed = told.closed, told.note or self._boxed
            return
        if block.header.counts[SCHEMA_COUNTER]:
            with contextlib.suppress(SegmentError):  # it will show as a gap
                legible(block, self._schemas)
        if block.header.counts[counter(Kind.INSTALLATION)]:
            self._installation_block = block

    # -- 2. drain ------------------------------------------------------------------------------------------------

    def learn(self, halves: Iterable[Left], declared: Iterable[list[Any]]) -> None:
        """Take the declarations of a sealed session, those in its blocks among them, from what is in memory."""
        for records in (declared, *(whole_records(half.raw)[0] for half in halves)):
            self._schemas.update((schema.number, schema) for schema in _schemas(records))

    def drain(self, halves: Sequence[Left]) -> None:
        """Append what no block holds yet. Of a half that does not hold whole records alone, those that are whole.

        Halves became blocks in the order in which they were filled: once one is missing, so are all after it.
        """
        missing = False
        self._note_missing_at_end(halves)
        for half, following in zip_longest(halves, halves[1:]):
            in_segment = not missing and half.first < self._next
            if in_segment and half.first in self._lengths and not half.damaged:
                continue
            if not half.generation and self._is_missing(half.first):
                continue  # its block was damaged, and is counted
            records, end = whole_records(half.raw)
            mended = _mended(half, end, records, following)
            if mended is not half:
                half, (records, end) = mended, whole_records(mended.raw)  # noqa: PLW2901 - the same, but for that
            declared = {schema.number: schema for schema in _schemas(records)}
            counts = self._count(records, declared)
            self._count_damaged(half, end, records_counted(counts), following, in_segment=in_segment)
            if in_segment or (not records_counted(counts) and declared.items() <= self._schemas.items()):
                continue
            self._schemas.update(declared)
            if records_counted(counts):
                missing = True
                self._note(records)
            named = self._installation if counts[counter(Kind.INSTALLATION)] else None
            note = Note(self._last_time or 0, named)
            self._open_segment().block(half.raw[:end], counts, self._offset, max(half.first, self._next), note)

    def _note_missing_at_end(self, halves: Sequence[Left]) -> None:
        """Where the last segment ends in damage, the first half that no block holds tells how much that is, or else
        those that are free, and were in such blocks. No number of them is given again: somebody may have them.
        """
        last = self._segments[-1]
        behind = [half for half in halves if half.first >= self._next]
        following = next((half.first for half in behind if half.generation), None)
        if following is None:
            following = max((half.first + half.damaged for half in behind), default=self._next)
        if last.damage.at_end and following - self._next <= JOURNAL_GROWTH:
            self._missing.append(range(self._next, following))
            last.writer.next = following

    def _count_damaged(self, half: Left, end: int, kept: int, following: Left | None, *, in_segment: bool) -> None:
        """Count what is lost of a half of which `kept` records, `end` bytes, are to be had; the same in each recovery.

        A block that begins with its first record was made of it by the writer, before it was damaged, or by an earlier
        recovery of it as it is now: then it is as long. Where there is no such block though others follow, the number
        is wrong by which the half would be found, and nobody can tell where its records belong.
        """
        written = self._lengths.get(half.first)
        if written is not None and written != end:
            return
        if in_segment and written is None:
            self._damaged += kept
        if half.damaged:
            missing = following.first - half.first - kept if following is not None else -1
            self._damaged += missing if 0 <= missing <= JOURNAL_GROWTH else half.damaged

    @property
    def _next(self) -> int:
        return self._segments[-1].writer.next

    def _open_segment(self) -> SegmentFile:
        """The last segment, or one after it if it has ended, or takes no blocks of ours."""
        last = self._segments[-1]
        if last.ending is None and not last.locked:
            if not last.writer.blocks and last.writer.description.index:
                last.declare(self._schemas.values(), self._offset)  # the crash came between its preamble and these
            return last
        before = last.writer.description
        salt = crc32(before.index.to_bytes(4, "little"), before.salt)
        preamble = replace(before, index=before.index + 1, first=last.writer.next, salt=salt)
        segment = SegmentFile.create(self._files, last.path.parent, preamble, self._level, self._entropy)
        self._segments.append(segment)
        segment.declare(self._schemas.values(), self._offset)
        return segment

    def _count(self, records: Iterable[list[Any]], declared: Mapping[int, Schema]) -> list[int]:
        counts, schemas = [0] * len(COUNTERS), {**self._schemas, **declared}
        for raw in records:
            count_raw(raw, counts, schemas)
        return counts

    def _note(self, records: Iterable[list[Any]]) -> None:
        """Remember the newest time and installation among `records`, which are newer than those noted before."""
        times = [raw[1] for raw in records if raw[0] != Kind.SCHEMA and isinstance(raw[1], int) and raw[1] < _NEVER]
        self._last_time = max(times, default=self._last_time)
        for raw in records:
            if raw[0] == Kind.INSTALLATION:
                properties = raw[3] if len(raw) > _PROPERTIES and isinstance(raw[_PROPERTIES], dict) else {}
                self._installation = {"id": cut_text(raw[2]), "properties": cut_properties(properties)}

    @property
    def _offset(self) -> int:
        """Wall clock minus monotonic clock, as last seen."""
        if self._clock is not None:
            return self._clock
        first = self._segments[0].writer.description
        return first.started_wall - first.started_monotonic

    # -- 3. conclude ---------------------------------------------------------------------------------------------

    def conclude(self, folder: Path) -> bool:
        """Append the last words that are in the session's `folder`, unless an earlier recovery has; whether there are
        any.
        """
        last_words = record_of(self._files, folder, self._offset)
        if last_words is None:
            return False
        self._look_back()
        last_words[1] = max(last_words[1], self._last_time or 0)  # a file's time is a few milliseconds coarse
        packed = msgpack.packb(last_words)
        if self._segments[-1].ending not in _ENDINGS and not self._ends_with(packed):
            self._open_segment().block(packed, self._count([last_words], {}), self._offset, self._next)
            self._note([last_words])
        return True

    def _ends_with(self, packed: bytes) -> bool:
        try:
            return self._last_block is not None and decompress(self._last_block).endswith(packed)
        except SegmentError:
            return False  # it will show as a gap

    # -- 4. seal -------------------------------------------------------------------------------------------------

    def seal(self, ending: SealReason, lost: Mapping[str, int]) -> None:
        """Seal what is not sealed yet, the last one with the reason `ending`. Nothing follows where the session, or an
        earlier recovery of it, had ended.
        """
        self._look_back()
        last = self._segments[-1]
        if last.ending not in (None, *_ENDINGS) or (last.ending is None and not last.locked):
            last = self._open_segment()
        for segment in self._segments:
            if segment.ending is not None:
                segment.sync()
                continue
            ended = self._last_time if self._last_time is not None else segment.writer.description.started_monotonic
            going_on = SealReason.ROTATED if segment.locked else SealReason.ABANDONED
            reason, final = (ending, True) if segment is last else (going_on, False)
            named, boxed = (self._installation, self._boxed) if final else (None, b"")
            over_damage = {SEGMENT_DAMAGED: sum(map(len, segment.damage.missing))} if segment.damage.anywhere else {}
            told = {**over_damage, **(lost if final else {})}
            segment.seal(reason, ended + self._offset, ended, named, told, boxed)

    def _look_back(self) -> None:
        """Find the last signs of life in blocks, where the journal held nothing newer."""
        newest, installation = self._last_time, self._installation
        for block in (self._installation_block, self._last_block):
            if block is not None:
                with contextlib.suppress(SegmentError):  # it will show as a gap
                    self._note(unpack(decompress(block)))
        self._last_time = self._closed if self._last_time is None else self._last_time
        self._last_time = self._last_time if newest is None else newest
        self._installation = self._installation if installation is None else installation

    def lost(self, left: LeftBehind) -> dict[str, int]:
        """What the dead process counted as lost, by reason, and what its journal and its segments have lost since."""
        counted = {reason.value: count for reason, count in zip(Lost, left.lost, strict=False) if count}
        # What it knew to be deleted is missing, too, and must not count twice.
        missing = max(0, sum(map(len, self._missing)) - counted.get(Lost.DELETED.value, 0))
        since = {DAMAGED_JOURNAL: self._damaged, SEGMENT_DAMAGED: missing}
        return counted | {reason: count for reason, count in since.items() if count}

    def close(self) -> None:
        """Let go of the files."""
        for segment in self._segments:
            segment.close()


def _mended(half: Left, end: int, records: list[list[Any]], following: Left | None) -> Left:
    """The half without what is no record, of which there are some up to `end`: an application may have put that into
    one, as it stands. How many there should be is known where another half follows.
    """
    found = numbered(records)
    count = following.first - half.first if following is not None else -1
    whole = end == len(half.raw)
    if half.damaged or not 0 < count <= len(half.raw) // _RECORD_BYTES:  # or the number that follows is damaged
        if whole:
            return half
        raw, breaks = whole_pieces(half.raw)
        return replace(half, raw=raw, damaged=half.damaged + breaks)
    if whole and found == count:
        return half
    before, behind = around_damage(half.raw, count)
    return replace(half, raw=half.raw[:before] + half.raw[behind:], damaged=1)


def _schemas(records: Iterable[list[Any]]) -> Iterator[Schema]:
    for raw in records:
        if raw[0] == Kind.SCHEMA:
            with contextlib.suppress(SegmentError):  # positional records of its number are read without names
                yield schema_of(raw)

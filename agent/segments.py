"""The segments of the running session: the one to append to, its rotation, and what becomes of it when its file fails.

A segment whose file fails is *abandoned*: the session goes on in another one, which repeats whatever of the old one
may not be on the disk. The old one is cut back to what is, so that no record stands in both. The other one gets its
name when it is whole and synced: if the process dies before, recovery finds the old one as it was.

Where somebody has *deleted* the session's folder, or files in it, they are made anew: the segment that is written, byte
for byte, from its open file, so that what was uploaded of it goes on where it stands. Those that had ended before are
open no more: what they held is lost, and so is a segment that cannot be read back. `forgo` is told of their records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from mailboat.agent.clocks import Clocks
from mailboat.agent.log import log
from mailboat.agent.segment_file import SegmentFile, cut_to, segment_name, segment_paths, set_aside
from mailboat.agent.store import WAITING, SessionFolder, Store
from mailboat.protocol.errors import SegmentError
from mailboat.protocol.reader import Block
from mailboat.protocol.records import Schema
from mailboat.protocol.segment import SealReason
from mailboat.protocol.summary import SegmentState

PATIENCE: Final = 1.0
"""Seconds between attempts to replace a segment whose file has failed: each reads it back."""

Begin = Callable[[], tuple[SessionFolder, SegmentFile]]


class Limits(Struct, frozen=True):
    """When a segment is ended: beyond `size` bytes or `age` seconds. `level` is zstd's."""

    size: int
    age: float
    level: int


class _Abandoned(Struct, frozen=True):
    """A segment that is to be sealed at the end; what stands behind its first `size` bytes is repeated elsewhere."""

    index: int
    path: Path
    size: int


class _Ended(Struct, frozen=True):
    """A segment that nothing is appended to any more: its bytes, and its records in the order of `records.COUNTERS`."""

    size: int
    counts: Sequence[int]


class Segments:
    """Written by one thread. Methods raise `OSError` when the disk refuses, and may be called again then."""

    def __init__(
        self,
        store: Store,
        begin: Begin,
        limits: Limits,
        clocks: Clocks,
        refused: Callable[[Exception], None],
        forgo: Callable[[Sequence[int]], None],
    ) -> None:
        """`begin` makes the session's folder and first segment; it is called until it succeeds, unless `adopt` was
        given what it makes. `refused` is told why a file is abandoned, though the session goes on; `forgo` how many
        records are lost with segments that somebody has deleted, in the order of `records.COUNTERS`.
        """
        self._store, self._begin, self._limits, self._clocks = store, begin, limits, clocks
        self._segment: SegmentFile | None = None
        self._abandoned: list[_Abandoned] = []
        self._index = 0
        self._begun = clocks.monotonic()
        self._patience_until = clocks.now()
        self._obstacle: tuple[object, ...] = ("a segment that was deleted cannot be written again just now",)
        self._refused, self._forgo = refused, forgo
        self.astray = False
        """Whether something was deleted that is not made anew yet."""
        self._earlier: dict[int, _Ended] = {}
        self._earlier_size = 0
        self._ended = False
        self.session: SessionFolder | None = None
        self.folder: Path | None = None
        self.states: tuple[SegmentState, ...] = ()
        self.schemas: Sequence[Schema] = ()
        """The declarations made so far, which every segment repeats."""

    def adopt(self, session: SessionFolder, segment: SegmentFile) -> None:
        """Use a session that was begun already."""
        self.session, self._segment, self.folder = session, segment, session.path
        self._index = segment.writer.description.index
        self._begun = self._clocks.monotonic()

    def ready(self) -> SegmentFile:
        """The segment to append to, begun if there is none, another one if it is large, old or has failed."""
        if self._segment is None:
            self.adopt(*self._begin())
        segment = self._segment
        assert segment is not None  # noqa: S101 - adopted above
        if self._is_due(segment):
            self.look()  # once it is closed, nothing of it can be had any more
        if self.astray:
            segment = self._make_anew(segment)
        if segment.failed:
            return self._abandon(segment)
        if self._is_due(segment):
            if segment.ending is None:
                self._seal(segment, SealReason.ROTATED)
            made = self._follow(segment, segment.writer.next)
            segment.close()
            self._leave(segment, segment.writer.size, segment.writer.counts)
            self._segment = segment = made
        return segment

    def _is_due(self, segment: SegmentFile) -> bool:
        """Whether another one is to follow."""
        age = (self._clocks.monotonic() - self._begun) / 1e9
        return segment.ending is not None or segment.writer.size >= self._limits.size or age >= self._limits.age

    @property
    def size(self) -> int:
        """Bytes of them all."""
        return self._earlier_size + (self._segment.writer.size if self._segment is not None else 0)

    def _leave(self, segment: SegmentFile, size: int, counts: Sequence[int]) -> None:
        """Nothing is appended to a segment any more, which holds so much."""
        self._earlier[segment.writer.description.index] = _Ended(size, counts)
        self._earlier_size += size

    def look(self) -> bool:
        """Whether somebody has deleted the session's folder, its lock or the file of the segment that is written. It is
        made anew by whatever next needs it. Raises `OSError` when that cannot be told.
        """
        session, segment = self.session, self._segment
        if session is not None and segment is not None and not self.astray:
            self.astray = not (self._store.holds(session) and segment.in_place)
        return self.astray

    def unsettle(self) -> None:
        """There is another file in the session's folder, whose name must survive the machine with the next `sync`."""
        assert self._segment is not None  # noqa: S101 - the folder came with it
        self._segment.placed = False

    def sync(self) -> None:
        """Return when all that was appended is on the disk."""
        segment = self._segment
        if segment is None:
            return
        if self.astray:
            segment = self._make_anew(segment)
        try:
            segment.sync()
        except OSError as error:
            self._refused(error)
            segment = self._abandon(segment)
        if not segment.placed:
            self._store.settle(segment.path.parent)
            segment.placed = True
        self._publish(segment)

    def end(self, reason: SealReason, installation: Mapping[str, Any] | None, lost: Mapping[str, int]) -> None:
        """Seal the last segment and whatever was abandoned, and move the session to those that wait."""
        if self._is_live():
            self.look()
        if not self._ended:
            segment = self.ready()
            self._count_missing()  # now: nobody could do so after the seal
            self._seal(segment, reason, installation, lost)
            self._ended = True
        elif self.astray and self._segment is not None:
            self._make_anew(self._segment)
        while self._abandoned:
            self._seal_abandoned(self._abandoned[-1])
            self._abandoned.pop()
        assert self.session is not None  # noqa: S101 - `ready` saw to it
        self._remove_strays(self.session.path)
        self.folder = self._store.retire(self.session)
        self.session = None

    def close(self) -> None:
        """Let go of the segment's file."""
        if self._segment is not None:
            self._segment.close()

    def unlock(self) -> None:
        """Let go of the session."""
        session, self.session = self.session, None
        if session is not None:
            self._store.files.close(session.lock_fd)

    def _is_live(self) -> bool:
        """Whether the session stands where it ran: a `retire` that was cut short may have moved it already."""
        return self.session is None or not self._store.holds(self.session, WAITING)

    def give_up(self) -> None:
        """The end: where what was deleted could not be made anew, what was in it is lost. Raises `OSError` when nobody
        can tell what that is; all of it is counted then.
        """
        segment = self._segment
        if segment is not None and (self.astray or (self._is_live() and self.look())):
            self._leave(segment, segment.writer.size, segment.writer.counts)
            try:
                self._count_missing()
            except OSError:
                self._lose(list(self._earlier))
                raise

    def _make_anew(self, segment: SegmentFile) -> SegmentFile:
        """Make anew what somebody has deleted; returns the segment to append to, another one if this is lost."""
        assert self.session is not None  # noqa: S101 - it came with the segment
        self._store.hold_again(self.session)
        if not segment.in_place:
            self._be_patient(*self._obstacle)
            try:
                segment.write_again()
            except SegmentError as error:
                self._refused(error)
                segment = self._begin_another(segment)
            except OSError as error:
                self._obstacle = error.args
                raise
            self._patience_until = self._clocks.now()
        self._count_missing()
        self.astray = segment.placed = False
        log.warning("files of session %s were deleted, and are made anew", self.session.path.name)
        return segment

    def _begin_another(self, lost: SegmentFile) -> SegmentFile:
        """Go on in another segment, nothing of this one being to be had."""
        made = self._follow(lost, lost.writer.next)
        self._segment = made
        self._leave(lost, lost.writer.size, lost.writer.counts)
        lost.close()
        return made

    def _count_missing(self) -> None:
        """Count what is lost with earlier segments that are not there any more."""
        assert self.session is not None  # noqa: S101 - it came with the first of them
        there = set(self._store.files.names(self.session.path)) if self._earlier else set()
        self._lose([index for index in self._earlier if segment_name(index) not in there])

    def _lose(self, indexes: Sequence[int]) -> None:
        names = {segment_name(index) for index in indexes}
        self._abandoned = [each for each in self._abandoned if each.path.name not in names]
        self.states = tuple(state for state in self.states if state.index not in indexes)
        for ended in map(self._earlier.pop, indexes):
            self._earlier_size -= ended.size
            self._forgo(ended.counts)

    def _be_patient(self, *why: object) -> None:
        """Return if it is time to read a segment back, perhaps in vain. Raises an `OSError` that says `why` if not."""
        if self._clocks.now() < self._patience_until:
            raise OSError(*why)
        self._patience_until = self._clocks.now() + PATIENCE

    def _follow(self, before: SegmentFile, first: int, *, unfinished: bool = False) -> SegmentFile:
        """Make the segment after `before`, which begins with the record `first`; none is left if that fails.

        An index is never tried twice: its file may be there, and refuse to go.
        """
        self._index += 1
        salt = int.from_bytes(self._clocks.entropy(4), "little")
        description = replace(before.writer.description, index=self._index, first=first, salt=salt)
        files, folder, level, entropy = self._store.files, before.path.parent, self._limits.level, self._clocks.entropy
        made = SegmentFile.create(files, folder, description, level, entropy, unfinished=unfinished)
        try:
            made.declare(self.schemas, self._clocks.offset)
        except BaseException:
            made.discard()
            raise
        self._begun = self._clocks.monotonic()
        return made

    def _abandon(self, segment: SegmentFile) -> SegmentFile:
        """Go on in another segment, with what of this one is not known to be on the disk."""
        self._be_patient(f"{segment.path.name} has failed, and cannot be replaced just now")
        repeated = segment.unsynced()
        first = repeated[0].header.first if repeated else segment.writer.next
        made = self._follow(segment, first, unfinished=True)
        try:
            for block in repeated:
                made.repeat(block, segment)
            made.writer.next = max(made.writer.next, segment.writer.next)
            made.sync()
            made.finish()
        except BaseException:
            made.discard()
            raise
        log.warning("%s of session %s is abandoned", segment.path.name, segment.path.parent.name)
        self._segment, self._patience_until = made, self._clocks.now()
        self._cut_off(segment, repeated)
        return made

    def _cut_off(self, segment: SegmentFile, repeated: Sequence[Block]) -> None:
        """Remove from an abandoned segment what is repeated; what cannot be removed now, sealing it will."""
        try:
            if not segment.synced:
                segment.discard()
                return
            segment.cut_to_synced()
        except OSError as error:
            self._refused(error)
        elsewhere = map(sum, zip(*(block.header.counts for block in repeated), strict=True)) if repeated else repeat(0)
        self._leave(segment, segment.synced, [a - b for a, b in zip(segment.writer.counts, elsewhere, strict=False)])
        self._abandoned.append(_Abandoned(segment.writer.description.index, segment.path, segment.synced))

    def _seal(
        self,
        segment: SegmentFile,
        reason: SealReason,
        installation: Mapping[str, Any] | None = None,
        lost: Mapping[str, int] | None = None,
    ) -> None:
        segment.seal(reason, self._clocks.wall(), self._clocks.monotonic(), installation, lost)
        self._publish(segment)

    def _seal_abandoned(self, abandoned: _Abandoned) -> None:
        files = self._store.files
        if not abandoned.size:
            files.remove(abandoned.path)
            del self._earlier[abandoned.index]
            return
        cut_to(files, abandoned.path, abandoned.size)  # nothing behind is to be trusted, though it may look well
        try:
            segment = SegmentFile.reopen(files, abandoned.path, self._limits.level)
        except SegmentError as error:
            log.warning("%s of session %s is set aside: %s", abandoned.path.name, abandoned.path.parent.name, error)
            set_aside(files, abandoned.path)
            del self._earlier[abandoned.index]  # it shows as a gap, and is not lost once more for want of its name
            return
        try:
            self._seal(segment, SealReason.ABANDONED)
        finally:
            segment.close()

    def _remove_strays(self, folder: Path) -> None:
        """Remove segments that could not be begun, nor removed at that time: nobody could read the session. Unfinished
        ones go when it is retired.
        """
        known = {segment_name(state.index) for state in self.states}
        for path in segment_paths(self._store.files, folder):
            if path.name not in known:
                self._store.files.remove(path)

    def _publish(self, segment: SegmentFile) -> None:
        state = segment.state
        self.states = (*(known for known in self.states if known.index != state.index), state)

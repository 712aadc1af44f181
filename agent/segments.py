"""The segments of the running session: the one to append to, its rotation, and what becomes of it when its file fails.

A segment whose file fails is *abandoned*: the session goes on in another one, which repeats whatever of the old one
may not be on the disk. The old one is cut back to what is, so that no record stands in both. The other one gets its
name when it is whole and synced: if the process dies before, recovery finds the old one as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from mailboat.agent.clocks import Clocks
from mailboat.agent.log import log
from mailboat.agent.segment_file import SegmentFile, cut_to, segment_name, segment_paths, set_aside
from mailboat.agent.store import SessionFolder, Store
from mailboat.protocol.errors import SegmentError
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

    path: Path
    size: int


class Segments:
    """Written by one thread. Methods raise `OSError` when the disk refuses, and may be called again then."""

    def __init__(
        self, store: Store, begin: Begin, limits: Limits, clocks: Clocks, refused: Callable[[Exception], None]
    ) -> None:
        """`begin` makes the session's folder and first segment; it is called until it succeeds, unless `adopt` was
        given what it makes. `refused` is told why a file is abandoned, though the session goes on.
        """
        self._store, self._begin, self._limits, self._clocks = store, begin, limits, clocks
        self._segment: SegmentFile | None = None
        self._abandoned: list[_Abandoned] = []
        self._index = 0
        self._begun = clocks.monotonic()
        self._patience_until = clocks.now()
        self._refused = refused
        self._ended = False
        self._ended_size = 0
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
        if segment.failed:
            return self._abandon(segment)
        age = (self._clocks.monotonic() - self._begun) / 1e9
        if segment.ending is not None or segment.writer.size >= self._limits.size or age >= self._limits.age:
            if segment.ending is None:
                self._seal(segment, SealReason.ROTATED)
            made = self._follow(segment, segment.writer.next)
            segment.close()
            self._ended_size += segment.writer.size
            self._segment = segment = made
        return segment

    @property
    def size(self) -> int:
        """Bytes of them all."""
        return self._ended_size + (self._segment.writer.size if self._segment is not None else 0)

    def unsettle(self) -> None:
        """There is another file in the session's folder, whose name must survive the machine with the next `sync`."""
        assert self._segment is not None  # noqa: S101 - the folder came with it
        self._segment.placed = False

    def sync(self) -> None:
        """Return when all that was appended is on the disk."""
        segment = self._segment
        if segment is None:
            return
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
        if not self._ended:
            self._seal(self.ready(), reason, installation, lost)
            self._ended = True
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
        if self._clocks.now() < self._patience_until:
            raise OSError(f"{segment.path.name} has failed, and cannot be replaced just now")
        self._patience_until = self._clocks.now() + PATIENCE
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
        self._ended_size += segment.synced
        self._cut_off(segment)
        return made

    def _cut_off(self, segment: SegmentFile) -> None:
        """Remove from an abandoned segment what is repeated; what cannot be removed now, sealing it will."""
        try:
            if not segment.synced:
                segment.discard()
                return
            segment.cut_to_synced()
        except OSError as error:
            self._refused(error)
        self._abandoned.append(_Abandoned(segment.path, segment.synced))

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
            return
        cut_to(files, abandoned.path, abandoned.size)  # nothing behind is to be trusted, though it may look well
        try:
            segment = SegmentFile.reopen(files, abandoned.path, self._limits.level)
        except SegmentError as error:
            log.warning("%s of session %s is set aside: %s", abandoned.path.name, abandoned.path.parent.name, error)
            set_aside(files, abandoned.path)
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

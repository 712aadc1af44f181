"""One segment on disk: the bytes that `protocol.segment` makes, appended with one call each, synced when due.

Only what is synced is ever offered to a server (`state`): a segment that shrank because the machine lost its power
must not fall behind what was uploaded of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mailboat.agent.files import FileSystem
from mailboat.protocol.errors import SegmentError
from mailboat.protocol.reader import Block, SegmentReader
from mailboat.protocol.segment import BlockHeader, Preamble, SealReason, SegmentWriter
from mailboat.protocol.summary import SegmentState

SUFFIX: Final = ".zst"


def segment_name(index: int) -> str:
    """The file name of a session's segment."""
    return f"{index:06d}{SUFFIX}"


def segment_paths(files: FileSystem, folder: Path) -> list[Path]:
    """The segments in a session's folder, in order."""
    return [folder / name for name in files.names(folder) if re.fullmatch(rf"\d{{6}}\{SUFFIX}", name)]


class SegmentFile:
    """A segment that is being written. Not synchronised: one thread uses it. Make one with `create` or `reopen`."""

    def __init__(self, files: FileSystem, path: Path, fd: int, writer: SegmentWriter) -> None:
        """`writer` has been told of everything that the file behind `fd` holds."""
        self._files = files
        self._fd = fd
        self.path = path
        self.writer = writer
        self.synced = 0
        self.sealed = ""

    @classmethod
    def create(cls, files: FileSystem, folder: Path, preamble: Preamble, level: int) -> SegmentFile:
        """Begin a segment in a new file. Raises `OSError`; no file is left then."""
        path = folder / segment_name(preamble.index)
        fd = files.create(path)
        made = cls(files, path, fd, SegmentWriter(preamble, level))
        try:
            made._append(made.writer.preamble())
        except OSError:
            made.close()
            files.remove(path)
            raise
        return made

    @classmethod
    def reopen(cls, files: FileSystem, path: Path, level: int) -> tuple[SegmentFile, list[Block]]:
        """Go on with a segment that a dead process left; returns its intact blocks with it.

        A torn tail is cut off; damage in the middle stays as it is. Raises `SegmentError` when its preamble cannot be
        read, `OSError` when the file cannot.
        """
        content = files.read(path)
        reader = SegmentReader(content)
        blocks = list(reader.blocks())
        if reader.preamble is None:
            raise SegmentError(f"{path.name} has no intact preamble")
        writer = SegmentWriter(reader.preamble, level)
        view, at = memoryview(content), 0
        for block in blocks:
            writer.add(view[at : block.offset])
            writer.add(view[block.offset : block.end], block.header)
            at = block.end
        seal = reader.seal
        if seal is None:
            writer.add(view[at : reader.offset])
            writer.next = max(writer.next, reader.next)
        made = cls(files, path, files.open(path), writer)
        if seal is not None:
            made.sealed, writer.size = seal.sha256.hex(), reader.offset
        files.truncate(made._fd, writer.size)
        return made, blocks

    @property
    def state(self) -> SegmentState:
        """The segment as it may be offered: what is synced of it."""
        index, synced = self.writer.description.index, self.synced
        return SegmentState(index, synced, self.writer.records, bool(self.sealed), self.sealed)

    def block(self, raw: bytes | memoryview, counts: Sequence[int], clock: int) -> None:
        """Append one block. Raises `OSError`; the file is as before then, or, if that cannot be had either,
        `SegmentError`.
        """
        header, data = self.writer.block(raw, counts, clock)
        self._append(data, header)

    def seal(
        self,
        reason: SealReason,
        wall: int,
        monotonic: int,
        installation: Mapping[str, Any] | None = None,
        lost: Mapping[str, int] | None = None,
    ) -> None:
        """Append the seal and sync the file. Raises as `block` does."""
        digest = self.writer.sha256
        self._append(self.writer.seal(reason, wall, monotonic, installation, lost))
        self.sealed = digest.hex()
        self.sync()

    def sync(self) -> None:
        """Return when all that was appended is on the disk.

        Raises `OSError`. The kernel may then have dropped what it could not write and call the next try a success, so
        the file must not be trusted further: go on in another segment.
        """
        if self.synced != self.writer.size:
            self._files.sync(self._fd)
            self.synced = self.writer.size

    def close(self) -> None:
        """Let go of the file."""
        self._files.close(self._fd)

    def _append(self, data: bytes, header: BlockHeader | None = None) -> None:
        try:
            self._files.append(self._fd, data)
        except OSError as error:
            self._cut_back(error)
            raise
        self.writer.add(data, header)

    def _cut_back(self, cause: OSError) -> None:
        """Remove what a failed write left behind the last whole frame."""
        try:
            self._files.truncate(self._fd, self.writer.size)
        except OSError as error:
            raise SegmentError(f"{self.path.name} ends in a piece of a block: {cause}, and then: {error}") from error

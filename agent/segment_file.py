"""One segment on disk: the bytes that `protocol.segment` makes, appended with one call each, synced when due.

Only what is synced is ever offered to a server (`state`): a segment that shrank because the machine lost its power
must not fall behind what was uploaded of it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgpack
from msgspec import Struct

from mailboat.agent.files import FileSystem
from mailboat.protocol.errors import SegmentError
from mailboat.protocol.limits import KIB
from mailboat.protocol.reader import Block, Gap, SegmentReader, zstd_frame
from mailboat.protocol.records import COUNTERS, SCHEMA_COUNTER, Schema, raw_of
from mailboat.protocol.sealing import Entropy, Note, PublicKey, SealedPayload, Sealer
from mailboat.protocol.segment import SKIPPABLE, BlockHeader, Preamble, SealReason
from mailboat.protocol.segment_writer import SegmentWriter
from mailboat.protocol.summary import SegmentState

SUFFIX: Final = ".zst"
_DIGITS: Final = 6
DAMAGED: Final = ".damaged"
UNFINISHED: Final = ".part"
"""How the name of a segment ends that is of no account before it is whole; see `SegmentFile.create`."""
_PIECE: Final = 256 * KIB
"""Bytes read at once: the processor's cache still holds the piece, and what the block has before it, when the block is
checked and hashed."""
_DECLARED_AT_ONCE: Final = 16
"""Each may have 64 names of a KiB: so many fit a block."""


def segment_name(index: int) -> str:
    """The file name of a session's segment."""
    return f"{index:0{_DIGITS}d}{SUFFIX}"


def segment_paths(files: FileSystem, folder: Path) -> list[Path]:
    """The segments in a session's folder, in order."""
    return segments_among(folder, files.names(folder))


def segments_among(folder: Path, names: Iterable[str]) -> list[Path]:
    """The segments in a session's folder that holds these `names`, in order of them."""
    return [folder / name for name in names if names_segment(name)]


def names_segment(name: str) -> bool:
    """Whether a file of this name in a session's folder is a segment."""
    number = name.removesuffix(SUFFIX)
    return len(name) - len(number) == len(SUFFIX) and len(number) == _DIGITS and number.isdecimal()


def _blocks(files: FileSystem, path: Path, reader: SegmentReader) -> Iterator[Block]:
    """The intact blocks of a file, which `reader` reads piece by piece up to its end. Raises `OSError`."""
    at = 0
    while piece := files.read_range(path, at, _PIECE):
        at += len(piece)
        reader.feed(piece)
        yield from reader.blocks()
    reader.close()
    yield from reader.blocks()


def _without_blocks(files: FileSystem, path: Path, preamble: Preamble, level: int) -> SegmentWriter:
    """The writer of a segment of whose file the preamble alone is kept. Raises `OSError`."""
    writer = SegmentWriter(preamble, level)
    _, length = SKIPPABLE.unpack(files.read_range(path, 0, SKIPPABLE.size))
    writer.add(files.read_range(path, 0, SKIPPABLE.size + length))
    return writer


def cut_to(files: FileSystem, path: Path, size: int) -> None:
    """Cut a file to `size` bytes. Raises `OSError`."""
    fd = files.open(path)
    try:
        files.truncate(fd, size)
    finally:
        files.close(fd)


def set_aside(files: FileSystem, path: Path) -> None:
    """Rename a segment that cannot be read, so that it stops no other; its records show as a gap. Raises `OSError`."""
    files.rename(path, path.with_name(path.name + DAMAGED))


def has_set_aside(files: FileSystem, folder: Path) -> bool:
    """Whether a session's folder holds segments that were set aside."""
    return any(name.endswith(DAMAGED) for name in files.names(folder))


class Damage(Struct, frozen=True):
    """What of a segment that another process left cannot be read, though it stands in the file.

    `missing` are the numbers of records between blocks that are there; with `at_end`, others may be behind the last.
    `anywhere`: there is some, if only where no record was.
    """

    missing: tuple[range, ...] = ()
    at_end: bool = False
    anywhere: bool = False

    @classmethod
    def told_by(cls, gaps: Iterable[Gap], size: int) -> Damage:
        """That among the first `size` bytes; numbers that are missing though no byte is were lost before."""
        within = [gap for gap in gaps if gap.length and gap.offset < size]
        missing = tuple(range(gap.first, gap.first + gap.records) for gap in within if gap.records)
        return cls(missing, any(gap.records is None for gap in within), bool(within))


class SegmentFile:
    """A segment that is being written. Not synchronised: one thread uses it. Make one with `create` or `reopen`."""

    def __init__(self, files: FileSystem, path: Path, fd: int, writer: SegmentWriter) -> None:
        """`writer` has been told of everything that the file behind `fd` holds."""
        self._files = files
        self._fd: int | None = fd
        self._torn = False
        self.path = path
        self.writer = writer
        self.synced = 0
        """Bytes of it that are on the disk for certain."""
        self.placed = False
        """Whether its folders are synced, for the writer's use."""
        self.failed = False
        """Whether the file must not be trusted further: a sync has failed (the kernel may have dropped what it could
        not write, and call the next try a success), or what a failed write left could not be cut off. What is not
        `synced` is to be repeated in another segment.
        """
        self.ending: SealReason | None = None
        """Why it was sealed; None as long as it is not."""
        self.sha256 = ""
        """What its seal says of all before it, in hexadecimal digits."""
        self.damage = Damage()

    @classmethod
    def create(
        cls,
        files: FileSystem,
        folder: Path,
        preamble: Preamble,
        level: int,
        entropy: Entropy = os.urandom,
        *,
        unfinished: bool = False,
    ) -> SegmentFile:
        """Begin a segment in a new file; one that is to be sealed gets a key of its own, made of `entropy`. Raises
        `OSError`; no file is left then.

        An `unfinished` one is not the session's before `finish`: the process may die in between.
        """
        path = folder / (segment_name(preamble.index) + (UNFINISHED if unfinished else ""))
        sealed, sealer = preamble.sealed, None
        if sealed is not None:
            sealer = Sealer(PublicKey(sealed.to), preamble.session_id, preamble.index, entropy)
        fd = files.create(path)
        made = cls(files, path, fd, SegmentWriter(preamble, level, sealer))
        try:
            made._append(made.writer.preamble())
        except BaseException:
            made.discard()
            raise
        return made

    @classmethod
    def reopen(
        cls,
        files: FileSystem,
        path: Path,
        level: int,
        *,
        before: int | None = None,
        elsewhere: Callable[[int, int], bool] | None = None,
        look: Callable[[Block], None] | None = None,
    ) -> SegmentFile:
        """Go on with a segment that was left unsealed (or not). `look` is shown each intact block of it, in order; no
        more than a few of them are in memory at a time.

        A torn tail is cut off, and so are the blocks from the sequence number `before` on: the next segment repeats
        them. Damage stays as it is, unless it is at the end and `elsewhere` says of the records lost by it (from the
        first one on, up to the following one) that they are to be had. A seal that does not match the bytes before it
        was never synced, and is cut off, too.

        Raises `SegmentError` when its preamble cannot be read, `OSError` when the file cannot.
        """
        reader, repeated = SegmentReader(), False
        writer: SegmentWriter | None = None
        for block in _blocks(files, path, reader):
            repeated = before is not None and block.header.first >= before
            if repeated or reader.preamble is None:
                break
            writer = writer or SegmentWriter(reader.preamble, level)
            writer.take_over(reader.offset, reader.digest, block.header)
            if look is not None:
                look(block)
        if reader.preamble is None:
            raise SegmentError(f"{path.name} has no intact preamble")
        writer = writer or _without_blocks(files, path, reader.preamble, level)
        sealed = reader.ends_sealed and not repeated
        if sealed or not (repeated or reader.seal or (elsewhere and elsewhere(writer.next, reader.next))):
            writer.take_over(reader.offset, reader.digest)
            writer.next = max(writer.next, reader.next)
        made = cls(files, path, files.open(path), writer)
        made.damage = Damage.told_by(reader.gaps, writer.size)
        if sealed and reader.seal is not None:
            made.sha256, made.ending = reader.seal.sha256.hex(), reader.seal.reason
        try:
            files.truncate(made._descriptor, writer.size)
        except OSError:
            made.close()
            raise
        return made

    @property
    def state(self) -> SegmentState:
        """The segment as it may be offered: what is synced of it."""
        index, synced = self.writer.description.index, self.synced
        return SegmentState(index, synced, self.writer.records, self.ending is not None, self.sha256)

    @property
    def locked(self) -> bool:
        """Whether it takes no more blocks, because it is sealed to a server and its key went with another process."""
        return self.writer.description.sealed is not None and self.writer.sealer is None

    def block(
        self,
        raw: bytes | memoryview,
        counts: Sequence[int],
        clock: int,
        first: int | None = None,
        note: Note | None = None,
    ) -> None:
        """Append one block, whose records begin at `first` (None: those before it are followed without a gap). `note`
        is what it says in the clear if it is sealed.

        Raises `OSError`; the file is as before then, or will be made so before the next append.
        """
        if first is not None:
            self.writer.next = max(self.writer.next, first)
        header, data = self.writer.block(raw, counts, clock, note or Note())
        self._append(data, header)

    def repeat(self, block: Block, origin: SegmentFile) -> None:
        """Append a block that stands in `origin`, another segment that this process began. Raises as `block` does."""
        sealer, note = origin.writer.sealer, Note()
        if sealer is None:
            frame = block.payload
        else:
            frame, sealed = zstd_frame(block, sealer.unlock), SealedPayload.read(block.payload)
            note = Note(sealed.closed, boxed=sealed.note)
        header, data = self.writer.framed(block.header, frame, note)
        self._append(data, header)

    def declare(self, schemas: Iterable[Schema], clock: int) -> None:
        """Repeat declarations that earlier segments hold; they take no sequence numbers. Raises as `block` does."""
        packed = [msgpack.packb(raw_of(each)) for each in schemas]
        for at in range(0, len(packed), _DECLARED_AT_ONCE):
            some = packed[at : at + _DECLARED_AT_ONCE]
            counts = [0] * len(COUNTERS)
            counts[SCHEMA_COUNTER] = len(some)
            self.block(b"".join(some), counts, clock)

    def seal(
        self,
        reason: SealReason,
        wall: int,
        monotonic: int,
        installation: Mapping[str, Any] | None = None,
        lost: Mapping[str, int] | None = None,
        boxed_installation: bytes = b"",
    ) -> None:
        """Append the seal and sync the file; see `SegmentWriter.seal`. Raises `OSError`."""
        digest = self.writer.sha256
        self._append(
            self.writer.seal(reason, wall, monotonic, installation, lost, boxed_installation=boxed_installation)
        )
        self.sync()
        self.sha256, self.ending = digest.hex(), reason

    def sync(self) -> None:
        """Return when all that was appended is on the disk. Raises `OSError`; the segment has `failed` then."""
        if self.failed:
            raise OSError(f"{self.path.name} has failed before")
        if self.synced != self.writer.size:
            try:
                self._files.sync(self._descriptor)
            except OSError:
                self.failed = True
                raise
            self.synced = self.writer.size

    def finish(self) -> None:
        """Make an unfinished segment, which was synced, one of the session's. Raises `OSError`."""
        path = self.path.with_name(segment_name(self.writer.description.index))
        self._files.rename(self.path, path)
        self.path = path

    @property
    def in_place(self) -> bool:
        """Whether its name still leads to its file: nobody has deleted it. Raises `OSError`."""
        return self._files.same_file(self._descriptor, self.path)

    def write_again(self) -> None:
        """Write the same bytes into a new file of its name, and go on in that one, synced: somebody has deleted the
        other, whose content can be had as long as it is open.

        Raises `OSError` when the disk refuses, `SegmentError` when what is read is not what was written; nothing has
        changed then.
        """
        part = self.path.with_name(self.path.name + UNFINISHED)
        self._files.remove(part)
        fd = self._files.create(part)
        try:
            self._copy_to(fd)
            self._files.sync(fd)
            self._files.rename(part, self.path)
        except BaseException:
            self._files.close(fd)
            self._files.remove(part)
            raise
        deleted, self._fd = self._descriptor, fd
        self.synced, self.placed, self.failed, self._torn = self.writer.size, False, False, False
        self._files.close(deleted)

    def _copy_to(self, fd: int) -> None:
        digest, size = hashlib.sha256(), self.writer.size
        for at in range(0, size, _PIECE):
            try:
                piece = self._files.read_open(self._descriptor, at, min(_PIECE, size - at))
            except OSError as error:
                raise SegmentError(f"{self.path.name} was deleted, and cannot be read any more: {error}") from error
            digest.update(piece)
            self._files.append(fd, piece)
        if digest.digest() != self.writer.sha256:
            raise SegmentError(f"{self.path.name} was deleted, and is not what was written")

    def unsynced(self) -> list[Block]:
        """The intact blocks that may not be on the disk, as far as they can be read back. Raises `OSError`."""
        content = self._files.read_range(self.path, 0, self.writer.size)
        reader = SegmentReader(content[: self.writer.size], digest=False)
        return [block for block in reader.blocks() if block.offset >= self.synced]

    def cut_to_synced(self) -> None:
        """Remove what another segment repeats, and let go of the file. Raises `OSError`."""
        try:
            self._files.truncate(self._descriptor, self.synced)
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the file."""
        fd, self._fd = self._fd, None
        if fd is not None:
            self._files.close(fd)

    def discard(self) -> None:
        """Let go of the file and remove it. Raises `OSError`."""
        self.close()
        self._files.remove(self.path)

    @property
    def _descriptor(self) -> int:
        if self._fd is None:
            raise OSError(f"{self.path.name} was closed")
        return self._fd

    def _append(self, data: bytes, header: BlockHeader | None = None) -> None:
        if self.failed:
            raise OSError(f"{self.path.name} has failed before")
        if self._torn:
            self._cut_back()
        self._torn = True
        try:
            self._files.append(self._descriptor, data)
        except OSError:
            self._cut_back()
            raise
        self.writer.add(data, header)
        self._torn = False

    def _cut_back(self) -> None:
        """Remove what a failed write left behind the last whole frame; where that fails, the file has."""
        try:
            self._files.truncate(self._descriptor, self.writer.size)
        except OSError:
            self.failed = True
            raise
        self._torn = False

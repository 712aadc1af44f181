"""Segment bytes: one file for each upload, and packs of small ones that came together, behind a narrow interface.

A blob is named by its upload's id, which must be a canonical UUID (`ids.canonical`) and so can never lead out of the
folder; files are spread over 256 folders by the last two digits of the id (the first ones are its time).

All functions are plain, safe in any thread, and may block: call them off the event loop. The one exception is
`BlobWriter.write`, which copies into the page cache and is meant to be called inline (an executor call for each piece
costs a quarter of the throughput). A blob only ever grows while it is written; a `sync` that failed is never trusted to
a second try on the same descriptor, so the writer is of no more use then.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from mailboat.protocol.errors import StoreError
from mailboat.protocol.ids import is_canonical
from mailboat.protocol.limits import MIB
from mailboat.server.direct import Direct, Output
from mailboat.server.packs import Packs, is_packed, sync_folder
from mailboat.server.writeback import begin_writing

PACKS_FOLDER: Final = "packs"

_FOLDER_MODE: Final = 0o700
_FILE_MODE: Final = 0o600

_CLOEXEC: Final = getattr(os, "O_CLOEXEC", 0)
_BINARY: Final = getattr(os, "O_BINARY", 0)

_WORTH_WRITING: Final = 2 * MIB
"""Bytes that are sent to the disk together, ahead of a sync."""

sync_data: Final = getattr(os, "fdatasync", os.fsync)
"""Make a file's bytes and its size durable; fsync where there is no fdatasync (macOS, Windows)."""


class BlobLost(StoreError):
    """A blob holds fewer bytes than were announced as durable: somebody removed or cut the file."""


class BlobWriter(Protocol):
    """Appends to one blob. `offset` is where the next byte goes, `durable` what a `sync` has made durable."""

    @property
    def offset(self) -> int:
        """Bytes written so far, from the blob's start."""

    def write(self, piece: bytes | memoryview) -> None:
        """Append a piece, whose memory is the caller's again on return; `OSError` when the disk refuses, after which
        `offset` tells what of it was kept.
        """

    def begin(self, piece: memoryview) -> None:
        """Append a piece, from a thread that has other memory to go on with: it may be on its way yet on return, and
        its memory is the caller's again when the next `begin`, or `settle`, has returned. Nothing else is written
        meanwhile. `OSError` when the disk refuses this one, or has refused the one before; none of this one is kept
        then. What was written is on its way to the disk where that is worth a call, so that a `sync` has little to
        wait for.
        """

    def settle(self) -> None:
        """Wait until all that was begun is written; `OSError` when the disk has refused some of it."""

    def sync(self) -> int:
        """Make all bytes written so far durable; returns that offset. May run in a thread while `write` goes on: then
        it is about what was written before it began.
        """

    def close(self) -> None:
        """Release the file; nothing happens the second time. Waits for a `sync` that is under way."""


class Readable(Protocol):
    """What `Blobs` gives to those who read."""

    def read(self, blob_id: str, offset: int, length: int, /) -> bytes:
        """See `Blobs.read`."""


class Blobs(Protocol):
    """What the server asks of a blob store."""

    def append(self, blob_id: str, offset: int) -> BlobWriter:
        """Go on writing at `offset`, making the blob when `offset` is zero and it is not there; bytes beyond `offset`
        (of a transfer whose end was never announced) are cut off. `BlobLost` when it holds less.
        """

    def put(self, contents: Sequence[bytes | memoryview]) -> tuple[str, ...]:
        """Keep whole small blobs (up to `limits.MAX_RIDER` bytes), all of them durable on return; their ids, which are
        of the store's choosing. They take no more bytes. Raises `OSError`; nothing was kept then.
        """

    def append_tentatively(self, blob_id: str, offset: int) -> BlobWriter:
        """`append`, of bytes that are not to be trusted before `confirm`, a kill in between included."""

    def confirm(self, blob_id: str) -> None:
        """Say that the blob holds nothing tentative any more: it was checked, or cut off."""

    def tentative(self, blob_id: str) -> bool:
        """Whether what was written last was tentative, and never confirmed."""

    def join(self, blob_id: str, parts: Sequence[str]) -> int:
        """Make the blob out of others, durably; returns its size. `BlobLost` when one of them is not there."""

    def read(self, blob_id: str, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset` on; fewer only at the blob's end. `FileNotFoundError` if it is lost."""

    def opened(self, blob_id: str) -> AbstractContextManager[Readable]:
        """The one blob to be read, and read again: cheaper so. `FileNotFoundError` if it is lost."""

    def size(self, blob_id: str) -> int:
        """Bytes in the blob, durable or not; zero when it is not there."""

    def settle(self, blob_id: str, size: int) -> None:
        """Cut the blob to `size` bytes, and make those durable."""

    def remove(self, blob_id: str) -> None:
        """Delete the blob, if it is there."""

    def ids(self) -> Iterator[str]:
        """Names of all blobs but packed ones, in no order; one that comes or goes meanwhile may be among them."""

    def lay_aside(self, blob_id: str) -> str:
        """Move a blob out of the store, to where people can look at it; tells where. `FileNotFoundError`."""

    def free(self) -> int:
        """Bytes that may still be stored."""


class LocalBlobs:
    """`Blobs` in a local folder."""

    def __init__(self, folder: Path, *, direct: bool = True) -> None:
        """`folder` is made when it is not there; without `direct` all of it goes through the page cache."""
        self._folder = folder
        self._named: set[Path] = set()  # the subfolders whose own names are known to be durable
        self._direct = Direct(wanted=direct)
        folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        sync_folder(folder.parent)
        self.packs = Packs(folder / PACKS_FOLDER, sync_data, lambda: time.time_ns() // 1_000_000)

    def append(self, blob_id: str, offset: int) -> LocalBlobWriter:
        """See `Blobs.append`."""
        path = self.path(blob_id)
        if offset == 0 and path.parent not in self._named:
            path.parent.mkdir(mode=_FOLDER_MODE, exist_ok=True)
        flags = os.O_WRONLY | _CLOEXEC | _BINARY | (os.O_CREAT if offset == 0 else 0)
        try:
            fd = os.open(path, flags, _FILE_MODE)
        except FileNotFoundError as error:
            raise BlobLost(f"{path}: {offset} bytes were announced, and the file is gone") from error
        try:
            size = os.fstat(fd).st_size
            if size < offset:
                raise BlobLost(f"{path}: {offset} bytes were announced, the file has {size}")
            if size > offset:
                os.ftruncate(fd, offset)
            _mark(path).unlink(missing_ok=True)
        except BaseException:
            os.close(fd)
            raise
        # A name has to last as soon as the bytes have to, and no sooner: a body does not wait for it.
        make_name_last = partial(self._make_names_last, path.parent) if offset == 0 else None
        return LocalBlobWriter(fd, offset, self._direct, make_name_last)

    def _make_names_last(self, folder: Path) -> None:
        """Make the names in `folder` durable, and its own."""
        sync_folder(folder)
        if folder not in self._named:
            sync_folder(self._folder)
            self._named.add(folder)

    def put(self, contents: Sequence[bytes | memoryview]) -> tuple[str, ...]:
        """See `Blobs.put`."""
        return self.packs.put(contents)

    def append_tentatively(self, blob_id: str, offset: int) -> LocalBlobWriter:
        """See `Blobs.append_tentatively`."""
        writer = self.append(blob_id, offset)
        try:
            # A file beside the blob, not made durable: it has to outlive this process, no more. After power loss
            # nothing beyond the announced offset is trusted anyway.
            _mark(self.path(blob_id)).touch(_FILE_MODE)
        except BaseException:
            writer.close()
            raise
        return writer

    def confirm(self, blob_id: str) -> None:
        """See `Blobs.confirm`."""
        _mark(self.path(blob_id)).unlink(missing_ok=True)

    def tentative(self, blob_id: str) -> bool:
        """See `Blobs.tentative`."""
        return _mark(self.path(blob_id)).exists()

    def join(self, blob_id: str, parts: Sequence[str]) -> int:
        """See `Blobs.join`."""
        writer = self.append(blob_id, 0)
        try:
            for part in parts:
                try:
                    with self.path(part).open("rb") as source:
                        while piece := source.read(MIB):
                            writer.write(piece)
                except FileNotFoundError as error:
                    raise BlobLost(f"{self.path(part)}: the file of a part is gone") from error
            return writer.sync()
        finally:
            writer.close()

    def read(self, blob_id: str, offset: int, length: int) -> bytes:
        """See `Blobs.read`."""
        if self._in_pack(blob_id):
            return self.packs.read(blob_id, offset, length)
        with self.path(blob_id).open("rb") as file:
            file.seek(offset)
            return file.read(length)

    @contextmanager
    def opened(self, blob_id: str) -> Iterator[Readable]:
        """See `Blobs.opened`."""
        if self._in_pack(blob_id):
            yield self
            return
        fd = os.open(self.path(blob_id), os.O_RDONLY | _CLOEXEC | _BINARY)
        try:
            yield _Opened(fd)
        finally:
            os.close(fd)

    def path(self, blob_id: str) -> Path:
        """Where the blob is, or would be; `ValueError` for what is no id."""
        if not is_canonical(blob_id):
            raise ValueError(f"{blob_id!r:.80} is no canonical UUID, so it names no blob")
        return self._folder / blob_id[-2:] / blob_id

    def size(self, blob_id: str) -> int:
        """See `Blobs.size`."""
        if self._in_pack(blob_id):
            return self.packs.size(blob_id)
        try:
            return self.path(blob_id).stat().st_size
        except FileNotFoundError:
            return 0

    def settle(self, blob_id: str, size: int) -> None:
        """See `Blobs.settle`."""
        fd = os.open(self.path(blob_id), os.O_WRONLY | _CLOEXEC | _BINARY)
        try:
            if os.fstat(fd).st_size > size:
                os.ftruncate(fd, size)
            os.fsync(fd)
        finally:
            os.close(fd)
        self._make_names_last(self.path(blob_id).parent)

    def remove(self, blob_id: str) -> None:
        """See `Blobs.remove`."""
        if self._in_pack(blob_id):
            self.packs.remove(blob_id)
        self.path(blob_id).unlink(missing_ok=True)
        self.confirm(blob_id)

    def _in_pack(self, blob_id: str) -> bool:
        """Whether the blob lies in a pack; a backup makes files of those, too."""
        return is_packed(blob_id) and self.packs.has(blob_id)

    def ids(self) -> Iterator[str]:
        """See `Blobs.ids`."""
        for folder in sorted(self._folder.iterdir()):
            if folder.is_dir():
                yield from (path.name for path in folder.iterdir() if is_canonical(path.name))

    def lay_aside(self, blob_id: str) -> str:
        """See `Blobs.lay_aside`."""
        aside = self._folder.with_name(f"{self._folder.name}-aside")
        aside.mkdir(mode=_FOLDER_MODE, exist_ok=True)
        target = aside / blob_id
        self.path(blob_id).replace(target)
        self.confirm(blob_id)
        sync_folder(aside)
        return str(target)

    def free(self) -> int:
        """See `Blobs.free`."""
        return shutil.disk_usage(self._folder).free


class _Opened:
    """One file, by its descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, _: str, offset: int, length: int, /) -> bytes:
        """See `Blobs.read`."""
        os.lseek(self._fd, offset, os.SEEK_SET)
        return os.read(self._fd, length)


class LocalBlobWriter:
    """`BlobWriter` on one file descriptor."""

    def __init__(self, fd: int, offset: int, direct: Direct, make_name_last: Callable[[], None] | None = None) -> None:
        """`fd` becomes this writer's own; the file is `offset` bytes long, in a folder of which `direct` is known.
        `make_name_last` makes the file's name durable; None where it is.
        """
        self._fd = fd
        self._output = Output(fd, direct)
        self._in_use = threading.Lock()  # a descriptor that is closed while it is synced may be another file by then
        self.offset = offset
        self._hastened = offset
        self._make_name_last = make_name_last

    def write(self, piece: bytes | memoryview) -> None:
        """See `BlobWriter.write`."""
        left = memoryview(piece)
        while left:
            written = self._output.write(left, self.offset)
            self.offset += written
            left = left[written:]

    def begin(self, piece: memoryview) -> None:
        """See `BlobWriter.begin`."""
        self.write(piece)
        written = self.offset - self._hastened
        if written >= _WORTH_WRITING:
            begin_writing(self._fd, self._hastened, written)
            self._hastened += written

    def settle(self) -> None:
        """See `BlobWriter.settle`."""

    def sync(self) -> int:
        """See `BlobWriter.sync`."""
        with self._in_use:
            offset = self.offset
            sync_data(self._fd)
            if self._make_name_last is not None:
                self._make_name_last()
                self._make_name_last = None
        return offset

    def close(self) -> None:
        """See `BlobWriter.close`."""
        with self._in_use:
            if self._fd >= 0:
                fd, self._fd = self._fd, -1
                os.close(fd)


def _mark(path: Path) -> Path:
    """What stands beside a blob as long as it ends with something tentative."""
    return path.with_name(f"{path.name}.tentative")

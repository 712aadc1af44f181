"""Small blobs that came together, packed: many in one file, so that a flush keeps all of them at once.

A pack is a file that only grows, up to `PACK_BYTES`; each start of the server, and each failure of the disk, begins
another one. Where a blob lies is told by its own id, so there is no index that could be lost or disagree. The id is a
UUID of version 8 (RFC 9562, section 5.8), whose free bits are, from the front::

    48 bits   the pack: the milliseconds of the clock when it was begun, and the name of its file
    26 bits   the blob's place in it
    17 bits   its size
    31 bits   zero

So ids sort by pack and place, and what a catalog still knows of a pack is one range of ids.

A blob that is removed is overwritten with zeros at once, durably; its room is given back with the whole pack, when
nothing is known of it any more (`sweep`). Packs are of one time, and so is what retention removes.

All functions block, and may be called in any thread.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from mailboat.protocol.limits import MAX_RIDER, MIB

PACK_BYTES: Final = 64 * MIB
"""Size of a pack beyond which another one is begun: three thousand blobs of 20 KB. It must fit `_PLACE_BITS`."""

YOUNG: Final = 3_600_000
"""Milliseconds for which a pack is left alone: whoever put blobs there may not have noted them yet."""

_PLACE_BITS: Final = 26
_SIZE_BITS: Final = 17
_SPARE_BITS: Final = 74 - _PLACE_BITS - _SIZE_BITS
_LOW_BITS: Final = 62
_VERSION: Final = "8"
_VERSION_AT: Final = 14
_SUFFIX: Final = ".pack"
_NAME: Final = re.compile("[0-9a-f]{12}")
_FLAGS: Final = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class Place(NamedTuple):
    """Where a blob lies."""

    pack: int
    offset: int
    size: int


def is_packed(blob_id: str) -> bool:
    """Whether this id, a canonical UUID, is one of ours: all others are of version 7."""
    return blob_id[_VERSION_AT : _VERSION_AT + 1] == _VERSION


def id_of(place: Place) -> str:
    """The id of the blob that lies there."""
    free = (place.offset << _SIZE_BITS | place.size) << _SPARE_BITS
    pack, low = f"{place.pack:012x}", f"{0x2 << _LOW_BITS | free & (1 << _LOW_BITS) - 1:016x}"
    return f"{pack[:8]}-{pack[8:]}-{_VERSION}{free >> _LOW_BITS:03x}-{low[:4]}-{low[4:]}"


def place_of(blob_id: str) -> Place:
    """Where the blob of this id lies, or would."""
    number = int(blob_id.replace("-", ""), 16)
    free = ((number >> 64 & 0xFFF) << _LOW_BITS | number & (1 << _LOW_BITS) - 1) >> _SPARE_BITS
    return Place(number >> 80, free >> _SIZE_BITS, free & (1 << _SIZE_BITS) - 1)


class Packs:
    """The packs in one folder. One process at a time uses it."""

    def __init__(self, folder: Path, sync_data: Callable[[int], None], clock_ms: Callable[[], int]) -> None:
        """`folder` is made with the first pack; `sync_data` makes a file's bytes durable; `clock_ms` names packs."""
        self._folder = folder
        self._sync_data = sync_data
        self._clock_ms = clock_ms
        self._writing = threading.Lock()
        self._pack: _Pack | None = None

    def put(self, contents: Sequence[bytes | memoryview]) -> tuple[str, ...]:
        """Keep these blobs, durably; their ids. Whoever puts at the same time shares the flush. Raises `OSError`, and
        nothing is kept then.
        """
        if any(not 0 < len(content) <= MAX_RIDER for content in contents):
            raise ValueError(f"a packed blob has 1 to {MAX_RIDER} bytes")
        whole = b"".join(contents)
        with self._writing:
            pack = self._with_room(len(whole))
            at = pack.write(whole)
        pack.sync(at + len(whole))
        ids = []
        for content in contents:
            ids.append(id_of(Place(pack.number, at, len(content))))
            at += len(content)
        return tuple(ids)

    def read(self, blob_id: str, offset: int, length: int) -> bytes:
        """See `Blobs.read`."""
        place = place_of(blob_id)
        with self._path(place.pack).open("rb", buffering=0) as file:
            file.seek(place.offset + offset)
            return file.read(max(0, min(length, place.size - offset)))

    def size(self, blob_id: str) -> int:
        """See `Blobs.size`."""
        place = place_of(blob_id)
        try:
            end = self._path(place.pack).stat().st_size
        except FileNotFoundError:
            return 0
        return max(0, min(place.size, end - place.offset))

    def has(self, blob_id: str) -> bool:
        """Whether the pack is here that the blob was put into."""
        return self._path(place_of(blob_id).pack).exists()

    def remove(self, blob_id: str) -> None:
        """Overwrite what is there of the blob, durably. Raises `OSError`; it is to be removed again then."""
        place = place_of(blob_id)
        try:
            fd = os.open(self._path(place.pack), os.O_WRONLY | _FLAGS)
        except FileNotFoundError:
            return
        try:
            left = min(place.size, os.fstat(fd).st_size - place.offset)  # of a pack that was cut, not beyond its end
            if left <= 0:
                return
            os.lseek(fd, place.offset, os.SEEK_SET)
            while left > 0:
                left -= os.write(fd, bytes(left))
            self._sync_data(fd)
        finally:
            os.close(fd)

    def old(self) -> tuple[int, ...]:
        """The packs to which nothing is added any more, oldest first."""
        before = self._clock_ms() - YOUNG
        paths = [path for path in self._folder.glob(f"*{_SUFFIX}") if _NAME.fullmatch(path.stem)]
        # What was written to it last may not have been noted yet, however long ago it was begun.
        known = [path.stem for path in paths if path.stat().st_mtime_ns < before * 1_000_000]
        with self._writing:
            used = self._pack.number if self._pack is not None else None
        return tuple(sorted(number for name in known if (number := int(name, 16)) < before and number != used))

    def discard(self, number: int) -> None:
        """Delete a pack of which nothing is known any more."""
        self._path(number).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:012x}{_SUFFIX}"

    def _with_room(self, size: int) -> _Pack:
        """The pack to write to."""
        if self._pack is None or self._pack.failed or self._pack.end + size > PACK_BYTES:
            before, self._pack = self._pack, None
            if before is not None:
                before.close()
            self._pack = self._begun(before)
        return self._pack

    def _begun(self, before: _Pack | None) -> _Pack:
        if not self._folder.exists():
            self._folder.mkdir(mode=0o700)
            sync_folder(self._folder.parent)
        number = max(self._clock_ms(), 0 if before is None else before.number + 1)
        while self._path(number).exists():  # the clock was set back
            number += 1
        fd = os.open(self._path(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
        try:
            sync_folder(self._folder)
        except BaseException:
            os.close(fd)
            raise
        return _Pack(number, fd, self._sync_data)


class _Pack:
    """The file that is written to; `end` is where the next blob goes."""

    def __init__(self, number: int, fd: int, sync_data: Callable[[int], None]) -> None:
        self.number = number
        self.end = 0
        self.failed = False
        self._fd = fd
        self._sync_data = sync_data
        self._durable = 0
        self._syncing = threading.Lock()

    def write(self, content: bytes) -> int:
        """Append; where that is. One thread at a time."""
        at, left = self.end, memoryview(content)
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError:
            self.failed = True
            raise
        self.end += len(content)
        return at

    def sync(self, end: int) -> None:
        """Return when all before `end` is durable; one flush serves all that wait for it."""
        with self._syncing:
            if self._durable >= end:
                return
            if self.failed:
                raise OSError("the disk has refused what was written together with this")
            upto = self.end
            try:
                self._sync_data(self._fd)
            except OSError:
                self.failed = True  # what of it is on the disk nobody knows; it is not tried again
                raise
            self._durable = upto

    def close(self) -> None:
        """Let go of the file once those that wait have their flush."""
        try:
            if not self.failed:
                self.sync(self.end)
        finally:
            with self._syncing:
                self.failed = True
                os.close(self._fd)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable (a file whose name is lost is lost)."""
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows has no such descriptor, and keeps names with the file's own flush
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | _FLAGS)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

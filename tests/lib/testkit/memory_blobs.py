"""Segment bytes in this process's memory, kept the way an object store keeps them: each append is an object of its own
that is there as a whole once it was synced, and joined when it is read.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mailboat.protocol.ids import is_canonical
from mailboat.server.blobs import BlobLost, Readable
from testkit.serverkit import fresh_session_id


@dataclass
class MemoryBlobs:
    """`Blobs` in dictionaries; `folder` is what a server names, and is not used."""

    folder: Path | None = None
    _objects: dict[str, dict[int, bytes]] = field(default_factory=dict)
    _tentative: set[str] = field(default_factory=set)
    _aside: dict[str, bytes] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def append(self, blob_id: str, offset: int) -> MemoryWriter:
        with self._lock:
            _checked(blob_id)
            if offset and self.size(blob_id) < offset:
                raise BlobLost(f"{blob_id}: {offset} bytes were announced, {self.size(blob_id)} are here")
            self._cut(blob_id, offset)
            self._tentative.discard(blob_id)
            return MemoryWriter(self, blob_id, offset)

    def append_tentatively(self, blob_id: str, offset: int) -> MemoryWriter:
        writer = self.append(blob_id, offset)
        self._tentative.add(blob_id)
        return writer

    def confirm(self, blob_id: str) -> None:
        self._tentative.discard(blob_id)

    def tentative(self, blob_id: str) -> bool:
        return blob_id in self._tentative

    def join(self, blob_id: str, parts: Sequence[str]) -> int:
        with self._lock:
            writer = self.append(blob_id, 0)
            for part in parts:
                if part not in self._objects:
                    raise BlobLost(f"{part} is gone")
                writer.write(self._whole(part))
            return writer.sync()

    def read(self, blob_id: str, offset: int, length: int) -> bytes:
        with self._lock:
            if blob_id not in self._objects:
                raise FileNotFoundError(blob_id)
            return self._whole(blob_id)[offset : offset + length]

    @contextmanager
    def opened(self, blob_id: str) -> Iterator[Readable]:
        if blob_id not in self._objects:
            raise FileNotFoundError(blob_id)
        yield self

    def size(self, blob_id: str) -> int:
        with self._lock:
            return sum(map(len, self._objects.get(blob_id, {}).values()))

    def settle(self, blob_id: str, size: int) -> None:
        with self._lock:
            if blob_id not in self._objects:
                raise FileNotFoundError(blob_id)
            self._cut(blob_id, size)

    def remove(self, blob_id: str) -> None:
        with self._lock:
            self._objects.pop(blob_id, None)
            self._tentative.discard(blob_id)

    def ids(self) -> Iterator[str]:
        yield from list(self._objects)

    def lay_aside(self, blob_id: str) -> str:
        with self._lock:
            if blob_id not in self._objects:
                raise FileNotFoundError(blob_id)
            self._aside[blob_id] = self._whole(blob_id)
            self.remove(blob_id)
            return f"memory:{blob_id}"

    def free(self) -> int:
        return 2**40

    def put(self, contents: Sequence[bytes | memoryview]) -> tuple[str, ...]:
        names = tuple(fresh_session_id() for _ in contents)
        for name, content in zip(names, contents, strict=True):
            self.put_object(name, 0, bytes(content))
        return names

    def put_object(self, blob_id: str, offset: int, content: bytes) -> None:
        """Put one object, whole."""
        with self._lock:
            self._objects.setdefault(blob_id, {})[offset] = content

    def _whole(self, blob_id: str) -> bytes:
        objects = self._objects.get(blob_id, {})
        return b"".join(objects[offset] for offset in sorted(objects))

    def _cut(self, blob_id: str, size: int) -> None:
        kept = {at: content[: size - at] for at, content in self._objects.get(blob_id, {}).items() if at < size}
        self._objects[blob_id] = kept


class MemoryWriter:
    """`BlobWriter`; what was not synced when it is closed stays, as in a page cache."""

    def __init__(self, blobs: MemoryBlobs, blob_id: str, offset: int) -> None:
        self._blobs = blobs
        self._id = blob_id
        self._start = offset
        self._content = bytearray()

    @property
    def offset(self) -> int:
        return self._start + len(self._content)

    def write(self, piece: bytes | memoryview) -> None:
        self._content += piece
        self._blobs.put_object(self._id, self._start, bytes(self._content))

    def begin(self, piece: memoryview) -> None:
        self.write(piece)

    def settle(self) -> None:
        """Nothing to be done."""

    def sync(self) -> int:
        return self.offset

    def close(self) -> None:
        """Nothing to be done."""


def _checked(blob_id: str) -> None:
    if not is_canonical(blob_id):
        raise ValueError(f"{blob_id!r:.80} is no canonical UUID, so it names no blob")

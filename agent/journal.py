"""The journal: where a record is kept before it is part of a block, and where it outlives the process.

A live session has one journal file, mapped into memory. Storing to the mapping is a memory copy, yet the kernel owns
the pages from then on: the death of the process, ``kill -9`` included, loses nothing.

Layout (native byte order; a journal never leaves its machine)::

    head    magic:8s version:u32 half_size:u32 boot_id:64s, then 64 descriptors of 512 bytes; 64 KiB in all
    half    records packed one after the other, from the half's offset in the file on

    descriptor   generation:u64 first:u64 offset:u64 size:u64 end:u64, and at byte 64 and 192 one checkpoint each
    checkpoint   generation:u64 first:u64 end:u32 data_crc:u32 crc:u32

There are two halves to begin with. One takes records; when it is full, or a flush is due, the next free one takes
over and the writer makes a block of it. While the writer is behind a burst, more halves are added
(`limits.JOURNAL_GROWTH`); a record larger than a half gets a half to itself.

Two promises, two proofs:

* *The process dies.* ``end`` is stored after the record was copied, and says up to where the half holds whole
  records. Nothing else is needed, since the kernel keeps stores in order.
* *The machine dies.* Pages reached the disk in any order, so ``end`` proves nothing. A checkpoint (taken by the
  writer's thread before each sync) holds a checksum of the half's content so far, and is itself checksummed; two of
  them take turns, so a torn one leaves the other. Only what a checkpoint vouches for is recovered after a reboot.

`generation` is zero for a free half and grows with each use, so that nothing of an earlier use is ever taken for a
record.
"""

from __future__ import annotations

import mmap
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final
from zlib import crc32

from mailboat.agent.files import FileSystem
from mailboat.protocol.limits import JOURNAL_GROWTH, MEMORY_FALLBACK, MIN_JOURNAL

MAGIC: Final = b"mbjournl"
VERSION: Final = 1
HEAD_SIZE: Final = 64 * 1024
"""Also the granule of offsets: the largest that any platform asks for (Windows)."""

_HEAD: Final = struct.Struct("=8sII64s")
_DESCRIPTOR_AT: Final = 512
_DESCRIPTOR_SIZE: Final = 512
_MAX_HALVES: Final = 64
_WORDS: Final = struct.Struct("=QQQQQ")
_CHECKPOINT: Final = struct.Struct("=QQIII")
_CHECKPOINTS_AT: Final = (64, 192)
_GENERATION, _FIRST, _OFFSET, _SIZE, _END = range(5)


@dataclass(slots=True, eq=False)
class Half:
    """One stretch of the journal. `end`, once it was closed, is where its records end; `counts` are those records by
    kind.
    """

    index: int
    size: int
    memory: mmap.mmap
    words: memoryview
    file_backed: bool
    first: int = 0
    end: int = 0
    generation: int = 0
    checkpoints: int = 0
    vouched: int = 0
    counts: list[int] = field(default_factory=list)

    def close(self) -> int:
        """Refuse any further record, in one step that no other thread can come between; returns where the records
        end.
        """
        rest = self.memory.read()
        self.end = self.size - len(rest)
        return self.end

    def content(self) -> memoryview:
        """The records of a closed half. Release the view before the half is used again."""
        return memoryview(self.memory)[: self.end]


class Journal:
    """The halves of one session.

    Not synchronised: `advance` and `dedicate` are called under the recorder's lock, `release` and `checkpoint` by the
    writer's thread alone; the free list in between is a deque, whose ends are atomic.
    """

    def __init__(self, files: FileSystem, fd: int | None, size: int, boot_id: str) -> None:
        """A journal in the empty file `fd`, or in plain memory when that is None; `size` bytes for the first two
        halves.

        Raises `OSError` when the file's blocks cannot be allocated or mapped; nothing is left mapped then.
        """
        self._files = files
        self.fd = fd
        self.half_size = max(size, MIN_JOURNAL) // 2 // HEAD_SIZE * HEAD_SIZE
        self._file_end = HEAD_SIZE
        self._generation = 0
        self._free: deque[Half] = deque()
        self.halves: list[Half] = []
        self.refused: OSError | None = None
        if fd is not None:
            files.allocate(fd, 0, HEAD_SIZE + 2 * self.half_size)
            self._head = files.map(fd, 0, HEAD_SIZE)
        else:
            self._head = mmap.mmap(-1, HEAD_SIZE)
        _HEAD.pack_into(self._head, 0, MAGIC, VERSION, self.half_size, boot_id.encode()[:64])
        for _ in range(2):
            self._free.append(self._add(self.half_size))
        self.active = self._activate(self._free.popleft(), first=0)

    @property
    def crash_proof(self) -> bool:
        """Whether every half is in the file."""
        return self.fd is not None and all(half.file_backed for half in self.halves)

    @property
    def growth(self) -> int:
        """Bytes of halves beyond the first two."""
        return sum(half.size for half in self.halves[2:])

    # -- under the recorder's lock -------------------------------------------------------------------------------

    def advance(self, needed: int, following: int) -> Half | None:
        """Close the active half and let another take over that has room for `needed` bytes; returns the closed one.

        `following` is the sequence number of the next record. None, and nothing is closed, when there is no free half
        and none can be added: the disk refuses or the growth is used up (`refused` tells the disk's reason).
        """
        successor = self._take(needed)
        if successor is None:
            return None
        closed = self.active
        closed.close()
        self.active = self._activate(successor, following)
        return closed

    def restart(self, first: int) -> None:
        """Correct the sequence number at which the active half, still empty, begins."""
        self.active.first = self.active.words[_FIRST] = first

    def _take(self, needed: int) -> Half | None:
        self.refused = None
        for _ in range(len(self._free)):
            half = self._free.popleft()
            if half.size >= needed:
                return half
            self._free.append(half)
        size = max(self.half_size, -(-needed // HEAD_SIZE) * HEAD_SIZE)
        if len(self.halves) >= _MAX_HALVES or self.growth + size > JOURNAL_GROWTH:
            return None
        try:
            return self._add(size)
        except OSError as error:
            self.refused = error
            return None

    def _activate(self, half: Half, first: int) -> Half:
        self._generation += 1
        half.generation, half.first, half.end = self._generation, first, 0
        half.checkpoints = half.vouched = 0
        half.words[_GENERATION] = 0
        half.words[_FIRST] = first
        half.words[_END] = 0
        half.memory.seek(0)
        half.words[_GENERATION] = half.generation
        return half

    def _add(self, size: int) -> Half:
        index, offset = len(self.halves), self._file_end
        memory, in_file = self._memory(offset, size)
        self._file_end += size
        at = _DESCRIPTOR_AT + index * _DESCRIPTOR_SIZE
        words = memoryview(self._head)[at : at + _WORDS.size].cast("Q")
        words[_OFFSET], words[_SIZE] = (offset, size) if in_file else (0, 0)
        half = Half(index, size, memory, words, in_file)
        self.halves.append(half)
        return half

    def _memory(self, offset: int, size: int) -> tuple[mmap.mmap, bool]:
        if self.fd is not None:
            try:
                self._files.allocate(self.fd, offset, size)
                return self._files.map(self.fd, offset, size), True
            except OSError as error:
                self.refused = error
        in_memory = sum(half.size for half in self.halves if not half.file_backed)
        if in_memory + size > MEMORY_FALLBACK:
            raise OSError(f"{in_memory} bytes are kept in memory already")
        return mmap.mmap(-1, size), False

    # -- by the writer's thread ----------------------------------------------------------------------------------

    def release(self, half: Half) -> None:
        """Take back a closed half whose records are in the segment."""
        half.words[_GENERATION] = 0
        if half.file_backed:
            self._free.appendleft(half)  # the one used last is the one that is still in the processor's cache
        else:
            self._free.append(half)

    def checkpoint(self) -> bool:
        """Vouch for what each half holds now, so that the next `sync` makes it survive the machine; False if nothing
        is new.
        """
        fresh = False
        for half in self.halves:
            end = half.end or half.words[_END]
            if half.words[_GENERATION] and end > half.vouched:
                self._vouch(half, end)
                fresh = True
        return fresh

    def _vouch(self, half: Half, end: int) -> None:
        with memoryview(half.memory) as content, content[:end] as records:
            crc = crc32(records, half.generation & 0xFFFF_FFFF)
        body = _CHECKPOINT.pack(half.generation, half.first, end, crc, 0)[:-4]
        at = _DESCRIPTOR_AT + half.index * _DESCRIPTOR_SIZE + _CHECKPOINTS_AT[half.checkpoints % 2]
        self._head[at : at + _CHECKPOINT.size] = body + crc32(body).to_bytes(4, _NATIVE)
        half.checkpoints += 1
        half.vouched = end

    def sync(self) -> None:
        """Return when everything stored is on the disk. Raises `OSError`."""
        if self.fd is not None:
            for half in self.halves:
                if half.file_backed:
                    half.memory.flush()
            self._head.flush()
            self._files.sync(self.fd)

    def unmap(self) -> None:
        """Let go of the mappings; the journal is of no more use."""
        for half in self.halves:
            half.words.release()
            half.memory.close()
        self._head.close()


@dataclass(frozen=True, slots=True)
class Left:
    """What a journal left behind in one half: packed records, the first of which has the sequence number `first`."""

    first: int
    raw: bytes


def left_behind(content: bytes, boot_id: str) -> Iterator[Left]:
    """The halves of a dead process's journal file, in the order of their records; nothing for a file that is no
    journal.

    `boot_id` is that of the machine now: it tells whether the machine has run on since (`end` counts) or not
    (checkpoints do).
    """
    if len(content) < HEAD_SIZE:
        return
    magic, version, _, written_under = _HEAD.unpack_from(content)
    if magic != MAGIC or version != VERSION:
        return
    same_boot = bool(boot_id) and written_under.rstrip(b"\0") == boot_id.encode()[:64]
    found = (_left(content, index, same_boot=same_boot) for index in range(_MAX_HALVES))
    yield from sorted((left for left in found if left is not None), key=lambda left: left.first)


def _left(content: bytes, index: int, *, same_boot: bool) -> Left | None:
    at = _DESCRIPTOR_AT + index * _DESCRIPTOR_SIZE
    generation, first, offset, size, end = _WORDS.unpack_from(content, at)
    if not size or offset + size > len(content):
        return None
    if same_boot:
        return Left(first, content[offset : offset + end]) if generation and end <= size else None
    vouched = (_vouched(content, at + place, offset, size) for place in _CHECKPOINTS_AT)
    return max((found for found in vouched if found), key=lambda found: found[0], default=(0, None))[1]


def _vouched(content: bytes, at: int, offset: int, size: int) -> tuple[tuple[int, int], Left] | None:
    generation, first, end, data_crc, crc = _CHECKPOINT.unpack_from(content, at)
    body = content[at : at + _CHECKPOINT.size - 4]
    if not generation or end > size or crc32(body) != crc:
        return None
    raw = content[offset : offset + end]
    if crc32(raw, generation & 0xFFFF_FFFF) != data_crc:
        return None
    return (generation, end), Left(first, raw)


_NATIVE: Final = "little" if struct.pack("=H", 1) == b"\x01\x00" else "big"

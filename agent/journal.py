"""The journal: where a record is kept before it is part of a block, and where it outlives the process.

A live session has one journal file, mapped into memory. Storing to the mapping is a memory copy, yet the kernel owns
the pages from then on: the death of the process, ``kill -9`` included, loses nothing.

There are two halves to begin with. One takes records; when it is full, or a flush is due, the next free one takes
over and the writer makes a block of it. While the writer is behind a burst, more halves are added
(`limits.JOURNAL_GROWTH`) and given back after it; a record larger than a half gets a half to itself.

Two promises, two proofs:

* *The process dies.* ``end`` is stored after the record was copied, and says up to where the half holds whole
  records. Nothing else is needed, since the kernel keeps stores in order.
* *The machine dies.* Pages reached the disk in any order, so ``end`` proves nothing. A checkpoint (taken by the
  writer's thread) holds a checksum of the half's content so far, and is itself checksummed. Only what a checkpoint
  vouches for is recovered after a reboot. The *durable* ones precede a sync and take turns, so that the last one whose
  sync succeeded is never written over; the *passing* ones cost no sync, and are for a machine that was shut down in
  order after the process was killed.

`generation` is zero for a free half and grows with each use, so that nothing of an earlier use is ever taken for a
record.
"""

from __future__ import annotations

import contextlib
import mmap
from collections import deque
from typing import Final
from zlib import crc32

from msgspec import Struct, field

from mailboat.agent.files import FileSystem, settled
from mailboat.agent.journal_layout import (
    CHECKPOINT,
    DURABLE_AT,
    END,
    FIRST,
    GENERATION,
    HEAD,
    HEAD_CRC,
    HEAD_SIZE,
    LEAVING_AT,
    LOST,
    LOST_AT,
    LOST_PLACES,
    MAGIC,
    MAX_HALVES,
    NATIVE,
    OFFSET,
    PASSING_AT,
    SIZE,
    UNCOUNTED,
    VERSION,
    WORDS,
    descriptor,
)
from mailboat.protocol.limits import JOURNAL_GROWTH, MEMORY_FALLBACK, MIN_JOURNAL

_ADDED: Final = JOURNAL_GROWTH // MAX_HALVES
"""Least size of a half that is added to the file: so large that however small the first two are, the descriptors last
for all of the growth.
"""


def _words(head: mmap.mmap, index: int) -> memoryview:
    """The descriptor of a half, as numbers."""
    at = descriptor(index)
    return memoryview(head)[at : at + WORDS.size].cast("Q")


class Half(Struct, eq=False):
    """One stretch of the journal, at `offset` in the file (zero: in plain memory).

    `counts` are its records in the order of `records.COUNTERS`, told by the recorder when it closes the half.
    `durable` is how much of it a checkpoint vouches for that has been synced.
    """

    index: int
    size: int
    offset: int
    memory: mmap.mmap
    head: mmap.mmap
    words: memoryview
    generation: int = 0
    reserved: bool = False
    counts: list[int] = field(default_factory=list)
    durable: int = 0
    checkpoints: int = 0
    _passed: int = 0
    _passing: int = 0
    _checked: int = 0
    _crc: int = 0
    _claimed: int = 0

    def __post_init__(self) -> None:
        """Enter it into its descriptor."""
        self.words[GENERATION] = 0
        self.words[OFFSET], self.words[SIZE] = (self.offset, self.size) if self.file_backed else (0, 0)

    @property
    def file_backed(self) -> bool:
        """Whether it outlives the process."""
        return self.offset > 0

    @property
    def in_use(self) -> bool:
        """Whether it is active, or closed and not yet in the segment."""
        return bool(self.words[GENERATION])

    @property
    def first(self) -> int:
        """The sequence number of its first record."""
        return int(self.words[FIRST]) & ~UNCOUNTED

    @property
    def end(self) -> int:
        """Where its records end."""
        return int(self.words[END])

    def begin(self, generation: int, first: int) -> None:
        """Make it the half number `generation`; it holds nothing yet. `first` may be `UNCOUNTED`.

        `words` become another object: by it a recording call tells whether the half is still what it was.
        """
        self.words = words = self.words[:]
        words[GENERATION] = 0
        self.generation = generation
        self.durable = self.checkpoints = 0
        self._passed = self._passing = self._claimed = 0
        self._checked, self._crc = 0, generation & 0xFFFF_FFFF
        words[END] = 0  # first: what it held has another number
        words[FIRST] = first
        self.memory.seek(0)
        words[GENERATION] = generation

    def end_here(self) -> None:
        """It takes no more records: its end is where it stands, whoever did not come to say so."""
        self.words[END] = self.memory.tell()

    def content(self) -> memoryview:
        """Its records. Release the view before the half is used again."""
        return memoryview(self.memory)[: self.end]

    def leave(self) -> None:
        """Leave the descriptor to another half."""
        self.words[GENERATION] = self.words[SIZE] = self.words[OFFSET] = 0

    def close(self) -> None:
        """Let go of the mapping. What another thread still reads goes with the last view of it."""
        with contextlib.suppress(BufferError):
            self.memory.close()

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def vouch(self, head: mmap.mmap, *, durable: bool) -> bool:
        """Take a checkpoint of what it holds now; False if nothing is new."""
        # In one go: between two calls another thread may make a free half an active one.
        generation, end = self.words[GENERATION], self.words[END]
        if not generation or end <= (self.durable if durable else max(self._passed, self.durable)):
            return False
        if end > self._checked:
            with memoryview(self.memory) as memory, memory[self._checked : end] as fresh:
                self._crc = crc32(fresh, self._crc)
            self._checked = end
        if durable:
            place, self._claimed = DURABLE_AT[self.checkpoints % 2], end
        else:
            place, self._passed = PASSING_AT[self._passing % 2], end
            self._passing += 1
        body = CHECKPOINT.pack(self.generation, self.words[FIRST], end, self._crc, 0)[:-4]
        at = descriptor(self.index) + place
        head[at : at + CHECKPOINT.size] = body + crc32(body).to_bytes(4, NATIVE)
        return True

    def synced(self) -> None:
        """The last durable checkpoint is on the disk, and with it what it vouches for."""
        if self._claimed > self.durable:
            self.durable = self._claimed
            self.checkpoints += 1

    def renumber(self, first: int) -> None:
        """The half before it has been counted: its first sequence number is this. What vouched for another no longer
        does.
        """
        if first != self.words[FIRST]:
            self.words[FIRST] = first
            self._passed = self._claimed = 0


class Journal:
    """The halves of one session.

    Not synchronised: `reserve`, `give_back`, `taken`, `attach`, `detach`, `surplus`, `count_lost` and `note_leaving`
    are called under the recorder's lock, `release`, `checkpoint` and `sync` by the writer's thread alone; what that
    thread gives back goes through a deque, whose ends are atomic. `active` is set by the recorder, together with its
    calls.
    """

    def __init__(self, files: FileSystem, fd: int | None, size: int, boot_id: str, *, volatile: bool = False) -> None:
        """A journal in the empty file `fd`, or in plain memory when that is None; `size` bytes for the first two
        halves. The descriptor is the journal's own from here on. A `volatile` file outlives the process and not the
        machine: a sync of it promises nothing.

        Raises `OSError` when the file's blocks cannot be allocated or mapped; nothing is left mapped then, and `fd`
        is the caller's.
        """
        self._files = files
        self.fd: int | None = None
        self.volatile = volatile
        self.half_size = max(size, MIN_JOURNAL) // 2 // HEAD_SIZE * HEAD_SIZE
        self.halves: list[Half] = []
        self.refused: OSError | None = None
        self.confined = False
        """Whether its file must not grow: the store or its disk is full. It goes on in memory."""
        self.distrusted = False
        """A sync of it has failed: the disk may have dropped what it was to keep, so it vouches for nothing more."""
        self._boot = boot_id.encode()[:64]
        self._spares: list[Half] = []
        self._released: deque[Half] = deque()
        self._vacant = deque(range(MAX_HALVES))
        self._gaps: list[tuple[int, int]] = []
        self._generation = 0
        self._file_end = HEAD_SIZE
        self._head = mmap.mmap(-1, HEAD_SIZE)
        if fd is not None:
            self.attach(fd)
        self._begin_head()
        try:
            for _ in range(2):
                self._add(self.half_size, must_be_in_file=fd is not None)
        except OSError:
            self.fd = None
            self.close()
            raise
        self.active = self._spares.pop()
        self._begin(self.active, 0)

    @property
    def crash_proof(self) -> bool:
        """Whether every half is in the file."""
        return self.fd is not None and all(half.file_backed for half in self.halves)

    @property
    def exposed(self) -> bool:
        """Whether records go to plain memory though there is a file."""
        return self.fd is not None and not self.active.file_backed

    def exposure(self, before: str) -> str:
        """Why some of it is in plain memory, as the disk has put it last, or else `before`; empty where it is all in
        the file.
        """
        refused = self.refused
        if self.crash_proof:
            return ""
        return f"{type(refused).__name__}: {refused}" if refused is not None else before

    def attach(self, fd: int) -> None:
        """Keep halves in the empty file `fd` from now on; those that are in memory are given back once they are free.

        Raises `OSError`; nothing has changed then.
        """
        self._files.allocate(fd, 0, HEAD_SIZE)
        head = self._files.map(fd, 0, HEAD_SIZE)
        kept = self._head[LOST_AT : LOST_AT + LOST.size]
        self._head, self.fd = head, fd
        self._begin_head()
        head[LOST_AT : LOST_AT + LOST.size] = kept

    def detach(self) -> None:
        """Somebody has deleted the file: what is in its halves is as in memory from now on, until another `attach`.
        Raises `OSError` as the file is closed; that is done all the same.
        """
        fd, self.fd = self.fd, None
        for half in self.halves:
            half.offset = 0
        self._gaps, self._file_end, self.distrusted = [], HEAD_SIZE, False
        if fd is not None:
            self._files.close(fd)

    def _begin_head(self) -> None:
        head = HEAD.pack(MAGIC, VERSION, self.half_size, self._boot)
        self._head[: HEAD.size + HEAD_CRC.size] = head + HEAD_CRC.pack(crc32(head))

    # -- under the recorder's lock -------------------------------------------------------------------------------

    def reserve(self, needed: int, following: int) -> Half | None:
        """An empty half that has room for `needed` bytes, and that nobody else will be given; the first record in it
        will have the sequence number `following`.

        None when there is no free one and none can be added: the disk refuses or the growth is used up (`refused`
        tells the disk's reason).
        """
        self.refused = None
        while self._released:
            self._spares.append(self._released.popleft())
        half = self._chosen(needed) or self._added(needed)
        if half is not None:
            self._begin(half, following | UNCOUNTED)
        return half

    def _chosen(self, needed: int) -> Half | None:
        for half in reversed(self._spares):  # the one used last is the one that is still in the processor's cache
            if self.fd is not None and not half.file_backed:
                continue  # the file first; this one goes with the next look at what is surplus
            if half.size >= needed and not half.words[GENERATION] and not half.reserved:
                half.reserved = True  # with the line before one step: no signal handler can get it, too
                return half
        return None

    def _added(self, needed: int) -> Half | None:
        least = self.half_size if self.fd is None else max(self.half_size, _ADDED)
        size = max(least, -(-needed // HEAD_SIZE) * HEAD_SIZE)
        growth = sum(half.size for half in self.halves) - 2 * self.half_size
        if not self._vacant or growth + size > JOURNAL_GROWTH:
            return None
        try:
            return self._add(size, reserved=True)
        except OSError as error:
            self.refused = error
            return None

    def _begin(self, half: Half, following: int) -> None:
        self._generation += 1
        half.begin(self._generation, following)

    def taken(self, half: Half) -> None:
        """A reserved half has become active. May be said twice."""
        if half in self._spares:
            self._spares.remove(half)
        half.reserved = False

    def give_back(self, half: Half) -> None:
        """A reserved half is not needed after all."""
        half.words[GENERATION] = 0
        half.reserved = False

    def free_reserved(self) -> None:
        """Take back whatever is reserved, or fell between two lists: an exception from outside has ended those who
        wanted it.
        """
        known = {*self._spares, *self._released}
        self._spares += [half for half in self.halves if not half.in_use and half not in known]
        for half in self._spares:
            if half.reserved:
                self.give_back(half)

    def surplus(self) -> list[Half]:
        """Free halves that are of no more use, taken out of the journal: `close` them, the lock is not needed.

        Those are the ones that a burst has added, and those in memory once the file can be used.
        """
        given_back = []
        while self._released:
            self._spares.append(self._released.popleft())
        for half in sorted(self._spares, key=lambda half: (half.file_backed, -half.offset)):
            useless = self.fd is not None and not half.file_backed
            if not useless and len(self.halves) <= 2:  # noqa: PLR2004 - two halves are what a journal consists of
                break
            if half.reserved or half.in_use:
                continue
            half.leave()
            self._spares = [spare for spare in self._spares if spare is not half]
            self.halves.remove(half)
            self._vacant.append(half.index)
            if half.file_backed:
                self._gaps.append((half.offset, half.size))
            given_back.append(half)
        return given_back

    def _add(self, size: int, *, must_be_in_file: bool = False, reserved: bool = False) -> Half:
        memory, offset = self._memory(size, must_be_in_file=must_be_in_file)
        index = self._vacant.popleft()
        half = Half(index, size, offset, memory, self._head, _words(self._head, index), reserved=reserved)
        self.halves.append(half)
        self._spares.append(half)
        return half

    def _memory(self, size: int, *, must_be_in_file: bool) -> tuple[mmap.mmap, int]:
        """Memory for a half, and its offset in the file; zero if it is not in the file."""
        if self.fd is not None and not self.confined:
            try:
                return self._in_file(self.fd, size)
            except OSError as error:
                if must_be_in_file:
                    raise
                self.refused = error
        in_memory = sum(half.size for half in self.halves if not half.file_backed)
        if in_memory + size > MEMORY_FALLBACK:
            raise OSError(f"{in_memory} bytes are kept in memory already")
        return mmap.mmap(-1, size), 0

    def _in_file(self, fd: int, size: int) -> tuple[mmap.mmap, int]:
        for offset, length in self._gaps:
            if length == size:
                self._gaps.remove((offset, length))  # from here on it is nobody else's, whoever comes meanwhile
                return self._files.map(fd, offset, size), offset
        offset = self._file_end
        self._file_end += size
        try:
            self._files.allocate(fd, offset, size)
            return self._files.map(fd, offset, size), offset
        except OSError:
            if self._file_end == offset + size:
                self._file_end = offset
            raise

    def count_lost(self, place: int, records: int) -> None:
        """Remember that so many records could not be kept, in a way that outlives the process."""
        at = LOST_AT + LOST_PLACES[place]
        count = int.from_bytes(self._head[at : at + 8], NATIVE) + records
        self._head[at : at + 8] = count.to_bytes(8, NATIVE)

    def note_leaving(self) -> None:
        """Remember that the process is about to end in order, though nobody has stopped the session: no crash then."""
        self._head[LEAVING_AT] = 1

    # -- by the writer's thread ----------------------------------------------------------------------------------

    def release(self, half: Half) -> None:
        """Take back a closed half whose records are in the segment."""
        half.words[GENERATION] = 0
        self._released.append(half)

    def checkpoint(self, *, durable: bool) -> bool:
        """Vouch for what each half holds now; False if nothing is new. A `sync` must follow a durable one."""
        fresh = [half.vouch(self._head, durable=durable) for half in list(self.halves) if half.file_backed]
        return any(fresh)

    def sync(self) -> None:
        """Return when everything stored is on the disk. Raises `OSError`; the journal is then `distrusted`."""
        if self.fd is None:
            return
        halves = [half for half in list(self.halves) if half.file_backed]
        try:
            for half in halves:
                settled(half.memory)
            settled(self._head)
            self._files.sync(self.fd)
        except OSError:
            self.distrusted = True
            raise
        for half in halves:
            half.synced()

    # -- the end -------------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """In a forked child: let go of what is the parent's, without writing to it."""
        for half in self.halves:
            half.words.release()
            half.close()
        with contextlib.suppress(BufferError):
            self._head.close()

    def close(self) -> None:
        """Let go of the mappings and the file; the journal is of no more use."""
        self.forget()
        fd, self.fd = self.fd, None
        if fd is not None:
            self._files.close(fd)

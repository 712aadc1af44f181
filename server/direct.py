"""Large pieces on their way to the disk past the page cache, where the system can do that (Linux, O_DIRECT).

To copy a large body into the page cache, and to have the kernel bring it to the disk from there, takes as much
processor time as to receive it. The disk may read it from the memory that it was received into, if that and the place
in the file begin at a page, and whole pages are written: so a piece is written in up to three parts, and what is before
its first whole page and behind its last one goes through the page cache as ever. No page is written both ways, for a
file is only appended to.

It makes nothing durable that is not synced: the disk has a cache of its own, and the file's size and blocks are to be
noted. After a kill what was written is there, as it is in the page cache, and the file is no longer than that.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import mmap
import os
import sys
from typing import Final

from mailboat.protocol.limits import KIB, MIB

PAGE: Final = mmap.PAGESIZE
"""Bytes; each file system's blocks are as large or smaller."""

LARGE_PAGE: Final = 2 * MIB
"""Bytes of one as most systems have them; where they are larger, memory is as good as with small ones."""

LEAST: Final = 128 * KIB
"""Bytes of whole pages below which the way to the disk and back is not worth it: they go with others, in a sync."""

_UNABLE: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP})
"""What a file system says that does no such thing, with the flag or with the first write."""

_LOG: Final = logging.getLogger("mailboat.server")


def paged(size: int) -> memoryview:
    """Memory of `size` bytes that begins at a page, a large one where the system has those (Linux): what lies in one
    goes to the disk in one request, and what is scattered in hundreds of small pages in several.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return memoryview(mmap.mmap(-1, size))
    memory = mmap.mmap(-1, size + LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # none of it is used yet
    with contextlib.suppress(OSError):  # a kernel without them: EINVAL
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = memoryview(memory)
    start = -_address(whole) % LARGE_PAGE  # kernels before 6.7 put it anywhere
    return whole[start : start + size]


class Direct:
    """Whether the files of one folder can be written so. It is tried, and given up for good when it is refused."""

    def __init__(self, *, wanted: bool = True) -> None:
        """It is not even tried where it is not `wanted`."""
        self.able = wanted and sys.platform == "linux"

    def refused(self, error: OSError) -> None:
        """A file system of another kind, which has no more to say about it."""
        if self.able:
            self.able = False
            _LOG.info("files are written through the page cache: %s", error)


class Output:
    """An open file, written where one says."""

    def __init__(self, fd: int, direct: Direct) -> None:
        """`fd` stays its owner's."""
        self._fd, self._direct = fd, direct
        self._past_cache = False

    def write(self, piece: memoryview, offset: int) -> int:
        """Write some of `piece` at `offset`, which is the end of the file; returns how much. Raises `OSError`."""
        before, whole = _pages(piece, offset) if self._direct.able else (len(piece), 0)
        if before or not whole:
            self._go_past_cache(past=False)
            return os.pwrite(self._fd, piece[: before or len(piece)], offset)
        try:
            self._go_past_cache(past=True)
            return os.pwrite(self._fd, piece[:whole], offset)
        except OSError as error:
            if error.errno not in _UNABLE:
                os.ftruncate(self._fd, offset)  # what a write that failed has brought there is unknown
                raise
            self._direct.refused(error)
        return self.write(piece, offset)

    def _go_past_cache(self, *, past: bool) -> None:
        if past != self._past_cache:
            import fcntl  # noqa: PLC0415 - Windows has none, and never comes here

            flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | os.O_DIRECT if past else flags & ~os.O_DIRECT)
            self._past_cache = past


def _pages(piece: memoryview, offset: int) -> tuple[int, int]:
    """Bytes of `piece` that go before its whole pages, and those of the whole pages; (all, 0) where it has few of them,
    or does not lie in memory as it will in the file at `offset`.
    """
    before = -offset % PAGE
    whole = (len(piece) - before) // PAGE * PAGE
    if whole < LEAST or piece.readonly or (_address(piece) + before) % PAGE:
        return len(piece), 0
    return before, whole


def _address(piece: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(piece))

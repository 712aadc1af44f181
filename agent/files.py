"""The file system as the agent uses it: one narrow port, so that a test can put a failing disk behind it.

Whatever changes a file goes through it; past it are read the configuration, what the system says of itself, and the
segments that are uploaded.

Every call may raise `OSError`; callers decide what that means for the records at hand. All calls block: they are
made on the writer's thread and the store's. A recording call makes some where it adds a half to the journal
(`allocate`, `map`), and where it is the first of a forked child, whose session it begins; the event loop closes the
file for last words, and makes no other.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from mailboat.agent.descriptors import DESCRIPTORS

if sys.platform == "win32":
    import portalocker
else:
    import fcntl  # it is what portalocker calls, which takes as long to import as a quarter of the agent

FOLDER_MODE: Final = 0o700
FILE_MODE: Final = 0o600
_STANDARD: Final = 2
"""The highest descriptor of a standard stream."""
Place: TypeAlias = Path | str
"""Where something lies; a text where there may be thousands, for to put a `Path` together takes as long as to open the
file."""
TEMPORARY: Final = ".tmp"
"""How the name of a file ends that is to take the place of another one."""


class FileSystem(Protocol):
    """What the agent needs of a file system. Descriptors are plain integers, as in `os`."""

    def make_folder(self, path: Path) -> None:
        """Make a folder (and those above it) that only its owner may enter; fine if it exists."""

    def create(self, path: Path) -> int:
        """Create a file that must not exist yet, for reading and writing; returns its descriptor."""

    def open(self, path: Path) -> int:
        """Open an existing file for reading and writing; returns its descriptor."""

    def close(self, fd: int) -> None:
        """Close a descriptor."""

    def append(self, fd: int, data: bytes | memoryview) -> None:
        """Write all of `data` at the file's position with one call; a short write raises."""

    def seek_end(self, fd: int) -> int:
        """Set the position to the end; returns the file's size."""

    def truncate(self, fd: int, size: int) -> None:
        """Cut the file to `size` bytes and set the position there."""

    def sync(self, fd: int) -> None:
        """Return when the file's data is on the disk, with what was stored to mappings of it and `settled`."""

    def sync_folder(self, path: Path) -> None:
        """Return when the folder's entries are on the disk."""

    def allocate(self, fd: int, offset: int, length: int) -> None:
        """Make sure that a range of the file has blocks of its own, so that storing to its mapping cannot fail."""

    def map(self, fd: int, offset: int, length: int) -> mmap.mmap:
        """Map a range of the file, shared with the file."""

    def lock(self, fd: int) -> bool:
        """Take the file's lock without waiting; False when another process has it. Closing the descriptor frees it."""

    def same_file(self, fd: int, path: Path) -> bool:
        """Whether `path` still names the file behind `fd`: it does not when that was deleted or moved, or a folder that
        leads to it.
        """

    def read_open(self, fd: int, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset` on of an open file, whatever became of its name; its position stays."""

    def read(self, path: Place) -> bytes:
        """The whole content of a file."""

    def read_range(self, path: Place, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset` on."""

    def replace_content(self, path: Path, content: bytes) -> None:
        """Give a file new content, durably and all or nothing (temporary file, sync, rename, sync of the folder)."""

    def size(self, path: Place) -> int:
        """A file's size."""

    def modified(self, path: Path) -> int:
        """When a file was last written: nanoseconds since the Unix epoch."""

    def names(self, folder: Place) -> Sequence[str]:
        """The names in a folder, sorted; none if it does not exist."""

    def rename(self, source: Place, target: Place) -> None:
        """Move a file or folder within the store; a file takes the place of one that has the name already."""

    def remove(self, path: Path) -> None:
        """Delete a file; fine if it does not exist."""

    def remove_tree(self, path: Path) -> None:
        """Delete a folder and all in it; fine if it does not exist."""

    def room(self, path: Path) -> tuple[int, int]:
        """Bytes that may still be written on the disk that holds `path`, and the disk's size."""


class OsFileSystem:
    """The real file system."""

    def make_folder(self, path: Path) -> None:
        """See `FileSystem`."""
        try:
            _make(path)
        except FileNotFoundError:
            if path.parent == path:
                raise
            self.make_folder(path.parent)  # `parents` would make them as the umask has it, for anybody perhaps
            _make(path)

    def create(self, path: Path) -> int:
        """See `FileSystem`."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY | _NO_FOLLOW
        return DESCRIPTORS.opened(lambda: _beyond_standard(os.open(path, flags, FILE_MODE)))

    def open(self, path: Path) -> int:
        """See `FileSystem`."""
        return DESCRIPTORS.opened(lambda: _beyond_standard(os.open(path, os.O_RDWR | _BINARY | _NO_FOLLOW)))

    def close(self, fd: int) -> None:
        """See `FileSystem`."""
        DESCRIPTORS.close(fd)

    def append(self, fd: int, data: bytes | memoryview) -> None:
        """See `FileSystem`."""
        written = os.write(fd, data)
        if written != len(data):
            raise OSError(f"short write: {written} of {len(data)} bytes")

    def seek_end(self, fd: int) -> int:
        """See `FileSystem`."""
        return os.lseek(fd, 0, os.SEEK_END)

    def truncate(self, fd: int, size: int) -> None:
        """See `FileSystem`."""
        os.ftruncate(fd, size)
        os.lseek(fd, size, os.SEEK_SET)

    def sync(self, fd: int) -> None:
        """See `FileSystem`."""
        _fdatasync(fd)

    def sync_folder(self, path: Path) -> None:
        """See `FileSystem`."""
        if os.name == "nt":
            return  # a folder cannot be opened there; NTFS journals its entries
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        """See `FileSystem`."""
        try:
            _fallocate(fd, offset, length)
        except OSError as error:
            if error.errno not in _NOT_OFFERED:
                raise
            self._write_zeros(fd, offset + length - self.seek_end(fd))

    def _write_zeros(self, fd: int, length: int) -> None:
        """Extend the file: what it holds has blocks already, and must stay as it is."""
        while length > 0:
            zeros = bytes(min(length, _ZEROS))
            self.append(fd, zeros)
            length -= len(zeros)

    def map(self, fd: int, offset: int, length: int) -> mmap.mmap:
        """See `FileSystem`."""
        return mmap.mmap(fd, length, offset=offset)

    def lock(self, fd: int) -> bool:
        """See `FileSystem`."""
        if sys.platform == "win32":
            try:
                portalocker.lock(fd, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING)
            except portalocker.LockException:
                return False
        else:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # held elsewhere, or a disk without locks
                return False
        return True

    def same_file(self, fd: int, path: Path) -> bool:
        """See `FileSystem`."""
        try:
            return os.path.samestat(os.fstat(fd), path.stat())
        except OSError as error:
            if error.errno not in _GONE:
                raise
            return False

    def read_open(self, fd: int, offset: int, length: int) -> bytes:
        """See `FileSystem`."""
        position = os.lseek(fd, 0, os.SEEK_CUR)
        try:
            os.lseek(fd, offset, os.SEEK_SET)
            return _read(fd, length)
        finally:
            os.lseek(fd, position, os.SEEK_SET)

    def read(self, path: Place) -> bytes:
        """See `FileSystem`. Without a file object, which costs more than to read a small file."""
        fd = os.open(path, os.O_RDONLY | _BINARY)
        try:
            size = os.fstat(fd).st_size
            content = os.read(fd, min(size + 1, _PIECE))
            # One byte more would have been taken: where none came, this is all, without asking once more.
            return content if len(content) == size else content + _read(fd, sys.maxsize)
        finally:
            os.close(fd)

    def read_range(self, path: Place, offset: int, length: int) -> bytes:
        """See `FileSystem`."""
        fd = os.open(path, os.O_RDONLY | _BINARY)
        try:
            if offset:
                os.lseek(fd, offset, os.SEEK_SET)
            return _read(fd, length)
        finally:
            os.close(fd)

    def replace_content(self, path: Path, content: bytes) -> None:
        """See `FileSystem`."""
        temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
        self.remove(temporary)
        try:
            fd = self.create(temporary)
            try:
                self.append(fd, content)
                self.sync(fd)
            finally:
                self.close(fd)
            self.rename(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):  # the next attempt of this process removes it
                self.remove(temporary)
            raise
        self.sync_folder(path.parent)

    def size(self, path: Place) -> int:
        """See `FileSystem`."""
        return os.stat(path).st_size

    def modified(self, path: Path) -> int:
        """See `FileSystem`."""
        return path.stat().st_mtime_ns

    def names(self, folder: Place) -> Sequence[str]:
        """See `FileSystem`."""
        try:
            return sorted(os.listdir(folder))
        except FileNotFoundError:
            return ()

    def rename(self, source: Place, target: Place) -> None:
        """See `FileSystem`."""
        os.replace(source, target)

    def remove(self, path: Path) -> None:
        """See `FileSystem`."""
        with contextlib.suppress(FileNotFoundError):
            path.unlink()

    def remove_tree(self, path: Path) -> None:
        """See `FileSystem`."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)

    def room(self, path: Path) -> tuple[int, int]:
        """See `FileSystem`."""
        usage = shutil.disk_usage(path)
        return usage.free, usage.total


def _make(path: Path) -> None:
    try:
        path.mkdir(mode=FOLDER_MODE)
    except OSError:  # whatever a system says of one that is there
        if not os.path.isdir(path):
            raise
    else:
        path.chmod(FOLDER_MODE)  # a umask may have taken its owner's own rights


def _beyond_standard(fd: int) -> int:
    """`fd`, or a copy in its place where it is that of a standard stream which the host has closed: whatever prints to
    that one would write into the file.
    """
    if fd > _STANDARD or sys.platform == "win32":
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _STANDARD + 1)
    finally:
        os.close(fd)


def _read(fd: int, length: int) -> bytes:
    """Up to so many bytes, from where it stands."""
    pieces: list[bytes] = []
    while length > 0 and (piece := os.read(fd, min(length, _PIECE))):
        pieces.append(piece)
        length -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


_PIECE: Final = 1 << 24
"""Bytes of one read: a system takes no more than 2 GiB at once."""
_BINARY: Final = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_FOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
_fdatasync = getattr(os, "fdatasync", os.fsync)


def _tracked(_memory: mmap.mmap) -> None:
    """What is stored to a mapping is the file's at once."""


settled: Final[Callable[[mmap.mmap], None]] = _tracked if sys.platform == "linux" else mmap.mmap.flush
"""Make what was stored to a mapping part of its file, so that a `sync` of that covers it.

Linux knows the pages by themselves (since 2.6.19 its ``msync`` is a sync of the whole file, mm/msync.c, and nothing
else), and Python makes that call with the interpreter's lock held: no thread of the host could run until the disk had
answered, once for each mapping.
"""


def _no_fallocate(_fd: int, _offset: int, _length: int) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


_fallocate = getattr(os, "posix_fallocate", _no_fallocate)
_NOT_OFFERED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS})
"""How a system says that it cannot give a file blocks without writing to it."""
_ZEROS: Final = 256 * 1024
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})
"""How a system says that there is no such file any more, the last one of an open file on a network's disk."""

"""Where the journal of a session is: on the disk with its segments, or, if it is sealed, in memory.

A journal holds records as they are, and a disk that has held them tells of them to whoever takes it, deleted or not. So
that of a sealed session is a file in a folder with no disk behind it (``/dev/shm``), in the care of the kernel: it
outlives the process, as any journal does, and not the machine. `writer` makes up for that: what such a journal holds is
in the segment, and synced, within ``save_interval``.

In the session's folder only `JOURNAL_AT` stands, which says where the journal is. Beside the journal are the session's
declarations: a recovery cannot read those in sealed blocks, and without them the fields of later records have no names.

Where there is no such folder (or it is not ours alone), the journal is in the process's own memory, and dies with it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

import msgpack

from mailboat.agent.files import FileSystem
from mailboat.agent.log import log
from mailboat.protocol.records import Schema, raw_of
from mailboat.protocol.unpacking import whole_records

JOURNAL: Final = "journal"
JOURNAL_AT: Final = "journal.at"
SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - within, only a folder that is ours alone is used
_MOUNTS: Final = Path("/proc/self/mounts")
_WITHOUT_DISK: Final = frozenset({"tmpfs", "ramfs"})
_JOURNAL_SUFFIX, _DECLARED_SUFFIX = ".journal", ".declared"
_OTHERS: Final = 0o077


class JournalPlace(Protocol):
    """Where a session's journal is made. All calls may raise `OSError`."""

    volatile: bool
    """Whether it goes with the machine's power."""

    def create(self, session: Path) -> int | None:
        """A new, empty file for the journal of the session in that folder; None when there is no place for one."""

    def holds(self, session: Path, fd: int) -> bool:
        """Whether a recovery would find the journal behind `fd`: nobody has deleted it, or what leads to it."""

    def declare(self, session: Path, schemas: Iterable[Schema]) -> None:
        """Keep all declarations made so far, if a recovery could not read them in the segments."""


class OnDisk:
    """In the session's folder."""

    volatile = False

    def __init__(self, files: FileSystem) -> None:
        self._files = files

    def create(self, session: Path) -> int | None:
        """See `JournalPlace`."""
        self._files.remove(session / JOURNAL)
        return self._files.create(session / JOURNAL)

    def holds(self, session: Path, fd: int) -> bool:
        """See `JournalPlace`."""
        return self._files.same_file(fd, session / JOURNAL)

    def declare(self, session: Path, schemas: Iterable[Schema]) -> None:
        """They are in the segments."""


class InMemory:
    """In `folder`, which no disk is behind, or nowhere when that is None or cannot be used."""

    volatile = True

    def __init__(self, files: FileSystem, folder: Path | None) -> None:
        self._files = files
        self._folder = folder
        self._told = False

    def create(self, session: Path) -> int | None:
        """See `JournalPlace`. Where it is to be is noted first, so that no journal is ever forgotten."""
        folder = self._usable()
        if folder is None:
            return None
        self.remove(session)
        journal = _with_suffix(folder / session.name, _JOURNAL_SUFFIX)
        self._files.remove(journal)  # the note of it was deleted
        fd = self._files.create(session / JOURNAL_AT)
        try:
            self._files.append(fd, os.fsencode(folder / session.name))
        finally:
            self._files.close(fd)
        return self._files.create(journal)

    def holds(self, session: Path, fd: int) -> bool:
        """See `JournalPlace`."""
        place = _place(self._files, session)
        return place is not None and self._files.same_file(fd, _with_suffix(place, _JOURNAL_SUFFIX))

    def declare(self, session: Path, schemas: Iterable[Schema]) -> None:
        """See `JournalPlace`."""
        place = _place(self._files, session)
        if place is not None:
            packed = [msgpack.packb(raw_of(each)) for each in schemas]
            self._files.replace_content(_with_suffix(place, _DECLARED_SUFFIX), b"".join(packed))

    def remove(self, session: Path) -> None:
        """Remove what an earlier try has left. Raises `OSError`."""
        remove(self._files, session)

    def _usable(self) -> Path | None:
        folder = self._folder
        if folder is not None:
            self._files.make_folder(folder)
            if is_private(folder):
                return folder
        if not self._told:
            self._told = True
            log.warning(
                "a sealed session's journal is kept in the process's memory, and lost with it: %s",
                "there is no folder in memory here" if folder is None else f"{folder} is not this user's alone",
            )
        return None


def memory_folder(configured: Path | None) -> Path | None:
    """The folder for journals that must not reach a disk: `configured`, else one of this user in ``/dev/shm``, if that
    is in memory; None where there is none.
    """
    if configured is not None:
        return configured.absolute()
    try:
        mounts = [line.split() for line in _MOUNTS.read_text("utf-8", "replace").splitlines()]
    except OSError:
        return None  # not Linux
    in_memory = any(mount[1:2] == [str(SHARED_MEMORY)] and mount[2] in _WITHOUT_DISK for mount in mounts)
    return SHARED_MEMORY / f"mailboat-{os.getuid()}" if in_memory else None


def is_private(folder: Path) -> bool:
    """Whether nobody but this user can put anything into the folder. Raises `OSError` when it cannot be looked at."""
    if os.name == "nt":
        return True
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & _OTHERS


# -- what a dead process has left --------------------------------------------------------------------------------------


def read_journal(files: FileSystem, session: Path) -> bytes:
    """The journal of the session in that folder, wherever it is; empty when there is none. Raises `OSError`."""
    with contextlib.suppress(FileNotFoundError):
        return files.read(session / JOURNAL)
    return _read(files, session, _JOURNAL_SUFFIX)


def read_declared(files: FileSystem, session: Path) -> list[list[object]]:
    """The declarations kept beside a journal in memory, as raw records. Raises `OSError`."""
    return whole_records(_read(files, session, _DECLARED_SUFFIX))[0]


def _read(files: FileSystem, session: Path, suffix: str) -> bytes:
    place = _place(files, session)
    if place is None:
        return b""
    try:
        # Someone else may have taken the folder's name, after the machine was started anew.
        return files.read(_with_suffix(place, suffix)) if is_private(place.parent) else b""
    except FileNotFoundError:
        return b""


def remove(files: FileSystem, session: Path) -> None:
    """Delete a journal that is in memory, and the note of its place; fine if there is none. Raises `OSError`."""
    place = _place(files, session)
    if place is not None:
        for suffix in (_JOURNAL_SUFFIX, _DECLARED_SUFFIX):
            files.remove(_with_suffix(place, suffix))
        files.remove(session / JOURNAL_AT)


def _place(files: FileSystem, session: Path) -> Path | None:
    """Where the session's journal is in memory, but for its suffix; None when it is not."""
    try:
        noted = Path(os.fsdecode(files.read(session / JOURNAL_AT)))
    except FileNotFoundError:
        return None
    # A note that was cut off by a crash names a place where there is nothing; one for another session is none.
    return noted if noted.is_absolute() and noted.name == session.name else None


def _with_suffix(place: Path, suffix: str) -> Path:
    return place.with_name(place.name + suffix)

"""A file system that holds its process to the table *Who writes what* of ARCHITECTURE.md: who may write which file,
under which lock, and what must have been synced or counted before something moves.

Each one is a process of its own: what it has locked, another one has not. Nothing is waited for, as with `Unsynced`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

from mailboat.agent import ledger, store
from mailboat.agent.files import TEMPORARY, Place
from mailboat.agent.journal_place import JOURNAL, JOURNAL_AT
from mailboat.agent.ledger import RETURNED
from mailboat.agent.locks import LOCK
from mailboat.agent.segment_file import SUFFIX, UNFINISHED
from mailboat.agent.store import LIVE, NEW, QUARANTINED, SENDER_LOCK, SENT, WAITING, folder_name
from testkit.disk import Unsynced

OF_A_SESSION: Final = frozenset({NEW, LIVE})
"""Folders in which a session has its lock."""
LEFT_OVER: Final = frozenset({JOURNAL, JOURNAL_AT, store.LAST_WORDS, LOCK, store.RECEIPT})
"""What whoever looks into a session that waits may remove."""


class Trespass(BaseException):
    """Something was written by who may not, or moved before its time. No fault that the code under test may handle."""


class Guarded(Unsynced):
    """What one process does in a store in `root`, that of rigs if not said otherwise; what lies elsewhere is not looked
    at.
    """

    def __init__(self, root: Path, product: str = "product", application: str = "application") -> None:
        self.folder = root / folder_name(product) / folder_name(application)
        self._paths: dict[int, Path] = {}
        self._locked: set[int] = set()
        self._unsynced: set[tuple[int, int]] = set()
        self._made: set[Path] = set()

    # -- what is looked at ---------------------------------------------------------------------------------------

    def _holds(self, lock: Path) -> bool:
        try:
            found = lock.stat()
        except FileNotFoundError:
            return False
        return any(os.path.samestat(os.fstat(fd), found) for fd in tuple(self._locked))

    def _parts(self, path: Place) -> tuple[str, ...]:
        path = Path(path)
        return path.relative_to(self.folder).parts if path.is_relative_to(self.folder) else ()

    def _may_write(self, path: Place) -> None:
        match self._parts(path):
            case (place, session, name) if place in OF_A_SESSION:
                if name != LOCK and not self._holds(self.folder / place / session / LOCK):
                    raise Trespass(f"{path} is written without the lock of its session")
            case (place, _, *_) if place in (WAITING, SENT, QUARANTINED):
                self._must_send(path)
            case (name,) if name.startswith(ledger.FILE_NAME):
                self._must_send(path)

    def _must_send(self, path: Place) -> None:
        if not self._holds(self.folder / SENDER_LOCK):
            raise Trespass(f"{path} is written by a process that is not the sender")

    def _must_be_counted(self, session: str, *, returned: bool = False) -> None:
        file = self.folder / ledger.FILE_NAME
        noted = json.loads(file.read_bytes())["moves"].get(session) if file.exists() else None
        if noted is None or (noted == RETURNED) is not returned:
            raise Trespass(f"session {session} moves before the ledger says so, which has {noted}")

    def _may_move(self, source: Place, target: Place) -> None:
        match self._parts(source), self._parts(target):
            case ((place, session), _) if place in OF_A_SESSION:
                if not self._holds(Path(source) / LOCK):
                    raise Trespass(f"{source} is moved without its lock")
                if place == LIVE:
                    self._must_be_synced(Path(source))
                elif not any(Path(source).glob(f"*{SUFFIX}")):
                    raise Trespass(f"{source} has no segment yet, and is shown")
            case ((place, session), (other, *_)) if WAITING in (place, other):
                self._must_send(source)
                self._must_be_counted(session, returned=other == WAITING)
            case _:
                self._may_write(source)
                self._may_write(target)

    def _must_be_synced(self, session: Path) -> None:
        if (session / store.REASON).exists():
            return  # it cannot be read, and stays as it is
        for path in session.glob(f"*{SUFFIX}"):
            found = path.stat()
            if (found.st_dev, found.st_ino) in self._unsynced:
                raise Trespass(f"{path} is not synced, and its session ends")

    # -- the port ------------------------------------------------------------------------------------------------

    def make_folder(self, path: Path) -> None:
        self._made.add(path)
        super().make_folder(path)

    def create(self, path: Path) -> int:
        self._may_write(path)
        fd = super().create(path)
        self._paths[fd] = path
        return fd

    def open(self, path: Path) -> int:
        fd = super().open(path)
        self._paths[fd] = path
        return fd

    def close(self, fd: int) -> None:
        super().close(fd)
        self._locked.discard(fd)
        self._paths.pop(fd, None)

    def lock(self, fd: int) -> bool:
        if super().lock(fd):
            self._locked.add(fd)
            return True
        return False

    def append(self, fd: int, data: bytes | memoryview) -> None:
        self._write(fd)
        super().append(fd, data)

    def truncate(self, fd: int, size: int) -> None:
        self._write(fd)
        super().truncate(fd, size)

    def _write(self, fd: int) -> None:
        self._may_write(self._now(fd))
        found = os.fstat(fd)
        self._unsynced.add((found.st_dev, found.st_ino))

    def _now(self, fd: int) -> Path:
        """Where the file is by now, whose folder may have been moved since."""
        told = Path(f"/proc/self/fd/{fd}")
        return told.readlink() if told.exists() else self._paths[fd]

    def sync(self, fd: int) -> None:
        found = os.fstat(fd)
        self._unsynced.discard((found.st_dev, found.st_ino))

    def rename(self, source: Place, target: Place) -> None:
        if str(source).endswith(TEMPORARY):
            found = Path(source).stat()
            if (found.st_dev, found.st_ino) in self._unsynced:
                raise Trespass(f"{target} is replaced by what is not synced")
        self._may_move(source, target)
        super().rename(source, target)

    def remove(self, path: Path) -> None:
        if self._parts(path)[:1] == (LIVE,) and path.name == LOCK and not self._holds(path):
            raise Trespass(f"{path} is removed, and its session lives")
        left_over = path.name in LEFT_OVER or path.name.endswith(UNFINISHED)
        if path.exists() and not (left_over and self._parts(path)[:1] == (WAITING,)):
            self._may_write(path)
        super().remove(path)

    def remove_tree(self, path: Path) -> None:
        match self._parts(path):
            case (place, _) if place in OF_A_SESSION and path.exists():
                if not (self._holds(path / LOCK) or (place == NEW and path in self._made)):
                    raise Trespass(f"{path} is deleted without its lock")
            case (place, session) if path.exists():
                self._must_send(path)
                if place == WAITING:
                    self._must_be_counted(session)
        super().remove_tree(path)

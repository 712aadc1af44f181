"""The reserve: room set aside on the disk for what must still be written when there is none left.

On a full disk a session can end only if its last blocks and its seal are written, and a session that the server has
answered for can go only once the ledger says so, in a new file. A small file is kept for that. It is deleted when the
disk refuses such a write, which is then done again; and made anew as soon as the disk has room: by that, too, it is
noticed that there is some.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from mailboat.agent.files import FileSystem
from mailboat.protocol.limits import RESERVE

FILE_NAME: Final = "reserve"
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

T = TypeVar("T")


class Reserve:
    """Of the store at `folder`; all processes that use it share it. Methods block."""

    def __init__(self, files: FileSystem, folder: Path) -> None:
        """Nothing is touched before `keep`."""
        self._files, self._path = files, folder / FILE_NAME

    def keep(self) -> bool:
        """Have it; False when the disk has no room for it. Raises `OSError` when the store cannot be used otherwise."""
        if self._size() == RESERVE:
            return True
        self._files.remove(self._path)
        try:
            fd = self._files.create(self._path)
        except FileExistsError:
            return True  # another process was faster
        try:
            self._files.allocate(fd, 0, RESERVE)
        except OSError as error:
            self._files.remove(self._path)
            if error.errno not in NO_ROOM:
                raise
            return False
        finally:
            self._files.close(fd)
        return True

    def _size(self) -> int | None:
        try:
            return self._files.size(self._path)
        except FileNotFoundError:
            return None

    def spend(self, error: Exception | None) -> bool:
        """Give its room back, if `error` says that there is none: then what was refused may be done again."""
        if not isinstance(error, OSError) or error.errno not in NO_ROOM:
            return False
        with contextlib.suppress(OSError):  # there is another error to be told
            if self._size():
                self._files.remove(self._path)
                return True
        return False

    def backing(self, call: Callable[[], T]) -> T:
        """`call`, which may be done again, and is, with the reserve spent on it, where there was no room."""
        try:
            return call()
        except OSError as error:
            if not self.spend(error):
                raise
        return call()

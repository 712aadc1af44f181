"""Last words: what a process writes that dies of a fatal signal (SIGSEGV, SIGFPE, SIGABRT, SIGBUS, SIGILL).

No Python runs then, so nothing can be recorded. But the interpreter's `faulthandler` can still write where each thread
was, to a file that is open already: here one in the session's folder. Recovery makes an event of it, the last record
of the crashed session. Then the process dies as it would have: with its signal, and a core dump if there is one.

There is one such place in a process. Where the host (or ``-X faulthandler``) uses it, it is left alone.
"""

from __future__ import annotations

import faulthandler
import weakref
from pathlib import Path
from typing import Any, Final

from mailboat.agent.files import FileSystem
from mailboat.agent.store import LAST_WORDS
from mailboat.protocol.limits import MAX_LAST_WORDS, MAX_PROPERTY_TEXT
from mailboat.protocol.records import Kind, Level

EVENT: Final = "process.died"
"""The name of the event that recovery makes of them."""

_FATAL: Final = "Fatal Python error: "


class _Place:
    """What `faulthandler` is given to write to. It holds the only reference: once this is gone, somebody else has taken
    its place, or switched it off.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def flush(self) -> None:
        """Nothing is ever buffered."""


class LastWords:
    """The file for the last words of one session; made on the store's thread, used on the one that listens."""

    def __init__(self, files: FileSystem, fd: int) -> None:
        """Use `prepare`."""
        self._files, self._fd = files, fd
        self._place: weakref.ref[_Place] | None = None

    @classmethod
    def prepare(cls, files: FileSystem, folder: Path) -> LastWords | None:
        """Make the file in a session's folder; None where it cannot be had, or the host has something of its own."""
        if faulthandler.is_enabled():
            return None
        try:
            return cls(files, files.create(folder / LAST_WORDS))
        except OSError:
            return None  # the session goes without, as it does without a journal: the writer tells why

    @property
    def listening(self) -> bool:
        """Whether they would be written here."""
        return self._place is not None and self._place() is not None and faulthandler.is_enabled()

    def listen(self) -> None:
        """Have them written here from now on. To be called on the main thread, whose overflowing stack shows then, too.

        Nothing happens where somebody was faster.
        """
        if faulthandler.is_enabled():
            return
        place = _Place(self._fd)
        self._place = weakref.ref(place)
        faulthandler.enable(place, all_threads=True)

    def end(self) -> None:
        """Have them written no more, unless somebody else has taken the place; close the file."""
        self.forget()
        try:
            self._files.close(self._fd)
        except OSError:
            return  # as good as closed: in a forked child it is, and nothing was written through it

    def forget(self) -> None:
        """In a forked child, whose copy of the file is closed already, as in `end`: its number is free for others."""
        if self.listening:
            faulthandler.disable()
        self._place = None


def record_of(files: FileSystem, folder: Path, clock: int) -> list[Any] | None:
    """The raw record of the last words that a dead process has left in its session's folder; None if it has not.

    `clock` is wall clock minus monotonic clock, nanoseconds. The same file gives the same record each time. Raises
    `OSError` when it is there and cannot be read.
    """
    path = folder / LAST_WORDS
    try:
        text = files.read_range(path, 0, MAX_LAST_WORDS).decode(errors="replace").strip("\0 \r\n")
        time = files.modified(path) - clock
    except FileNotFoundError:
        return None
    if not text:
        return None
    message = text.partition("\n")[0].removeprefix(_FATAL).strip()[:MAX_PROPERTY_TEXT]
    return [Kind.EVENT, time, EVENT, {"last_words": text}, Level.CRITICAL, message]

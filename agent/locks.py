"""Locks on files: a live session's is held by its process for life, the sender's by whoever sends for a store."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from mailboat.agent.ended import read_preamble
from mailboat.agent.files import FileSystem
from mailboat.agent.host import is_running
from mailboat.agent.log import log
from mailboat.agent.segment_file import segment_paths
from mailboat.protocol.errors import SegmentError, StoreError

LOCK: Final = "lock"
"""The file in a live session's folder that its process holds locked."""


def take_lock(files: FileSystem, path: Path) -> int | None:
    """The descriptor of a lock file, held; None while another process holds it, or has just deleted it. Raises
    `OSError`.
    """
    try:
        fd = files.create(path)
    except FileExistsError:
        fd = files.open(path)
    try:
        taken = files.lock(fd) and files.same_file(fd, path)
    except BaseException:
        files.close(fd)
        raise
    if not taken:
        files.close(fd)
        return None
    return fd


def lock_again(files: FileSystem, session: Path, fd: int) -> int:
    """Make the folder of a live session of this process again, with its lock held: somebody has deleted the one behind
    `fd`, which is closed. Returns the new one. Raises `OSError`; `fd` is as it was then.

    Before its lock is held, another process may find the folder, take it for what a crash has left, and remove it.
    """
    files.make_folder(session)
    taken = take_lock(files, session / LOCK)
    if taken is None:
        raise StoreError(f"the folder of session {session.name}, which was deleted, is in another process's hands")
    files.close(fd)
    return taken


def lock_of_the_dead(files: FileSystem, session: Path) -> int | None:
    """The lock of a dead process's session, taken; None when that process lives, or another one was faster. Raises
    `OSError`.
    """
    fd = _lock_file(files, session)
    if fd is None:
        return None
    try:
        if files.lock(fd) and files.same_file(fd, session / LOCK):
            return fd
    except BaseException:
        files.close(fd)
        raise
    files.close(fd)
    return None


def _lock_file(files: FileSystem, session: Path) -> int | None:
    """The lock file, made anew where a crash has left none; None when the folder is gone, or the session's process
    lives, though its lock was deleted.
    """
    try:
        return files.open(session / LOCK)
    except NotADirectoryError:
        return None
    except FileNotFoundError:
        pass
    if _is_lived_in(files, session):
        log.warning("the lock of session %s is gone, but its process lives: nobody takes it up", session.name)
        return None
    try:
        return files.create(session / LOCK)
    except (FileNotFoundError, FileExistsError):
        return None


def _is_lived_in(files: FileSystem, session: Path) -> bool:
    """Whether the process that the session's first readable segment names lives, as far as the system tells."""
    for segment in segment_paths(files, session):
        with contextlib.suppress(SegmentError):
            preamble = read_preamble(files, segment)
            return is_running(preamble.pid, preamble.process_started, preamble.boot_id)
    return False

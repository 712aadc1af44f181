"""A server's data folder: what lies where, and the lock that makes it one process's own."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import portalocker

from mailboat.protocol.errors import ConfigError, StoreError

CATALOG_FILE: Final = "catalog.sqlite"
BLOBS_FOLDER: Final = "segments"
LOCK_FILE: Final = "lock"


class FolderInUse(StoreError):
    """Another process uses the data folder."""


def hold(data: Path) -> portalocker.Lock:
    """The data folder, made if need be, and held until the lock is released: one process for each folder, or offsets
    would mean nothing. Blocks shortly; for a thread. `FolderInUse` when another process holds it.
    """
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = portalocker.Lock(data / LOCK_FILE, "a", timeout=0, fail_when_locked=True)
    try:
        lock.acquire()
    except portalocker.LockException as error:
        raise FolderInUse(f"{data}: another mailboat server uses this folder; stop it first") from error
    return lock


def has_catalog(data: Path) -> bool:
    """Whether `data` is a server's folder."""
    return (data / CATALOG_FILE).is_file()


def served(data: Path) -> None:
    """`ConfigError` unless `data` is a server's folder."""
    if not has_catalog(data):
        raise ConfigError(f"{data}: there is no server's data here (no {CATALOG_FILE}); name the folder it serves from")

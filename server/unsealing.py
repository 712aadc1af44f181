"""What this server opens sealed sessions with: private keys in its data folder.

::

    DATA/sealing/KEYID.key      0600, in a folder of 0700: one private key as text (``mbx_...``)

A key is made by a command, while the server runs or not; the server looks for new ones whenever it loads segments, or
is asked for a session's records. There may be several: agents keep sealing to an older key until they are told the
newer one, and every box names its own. What is sealed to a key that is not here is kept as it came, shown as a gap that
names the key, and loaded once the key is here. A private key is never logged, and goes to no other process than the
decoder, through a pipe.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from aiohttp import web
from msgspec.structs import replace

from mailboat.protocol.disclosure import opened
from mailboat.protocol.errors import ConfigError, SealedError, WireError
from mailboat.protocol.sealing import (
    KEY_BYTES,
    Keyring,
    PrivateKey,
    PublicKey,
    SegmentKey,
    Unlock,
    require_library,
    unlocks_only,
)
from mailboat.protocol.summary import Summary
from mailboat.server.catalog import SessionRow

FOLDER: Final = "sealing"
SUFFIX: Final = ".key"

_log = logging.getLogger("mailboat.server")


def public_key(data: Path, *, fresh: bool = False) -> PublicKey:
    """The public key that agents of the server in folder `data` are given: of its newest pair, or of one made now
    (always, if `fresh`). Blocks.

    Raises `ConfigError` when the library is missing or a key cannot be read, `OSError` when the disk refuses.
    """
    require_library("a server that opens what is sealed")
    known = sorted(_paths(data), key=lambda path: path.stat().st_mtime_ns)
    if known and not fresh:
        return _read(known[-1]).public
    made = PrivateKey(secrets.token_bytes(KEY_BYTES))
    _keep(data / FOLDER, made)
    return made.public


def _keep(folder: Path, key: PrivateKey) -> None:
    """Write a private key, durably, readable for this user alone from the first byte on."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{key.public.id}{SUFFIX}"
    unfinished = path.with_suffix(".new")
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123 - the mode
        file.write(f"{key.text}\n")
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    for each in (folder, folder.parent):
        fd = os.open(each, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _paths(data: Path) -> list[Path]:
    return sorted((data / FOLDER).glob(f"*{SUFFIX}"))


def _read(path: Path) -> PrivateKey:
    try:
        return PrivateKey.parse(path.read_text().strip())
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


class Unsealing:
    """The keys as they were last read. `refresh` blocks; everything may be called in any thread."""

    def __init__(self, data: Path) -> None:
        """Reads nothing yet."""
        self._data = data
        self._seen: tuple[tuple[str, int], ...] = ()
        self._keyring = Keyring(())
        self.private: tuple[str, ...] = ()
        """The keys as text, for the decoder."""
        self.ids: tuple[str, ...] = ()
        self.unread = 0
        """Keys, or boxes of sessions, that could not be read."""

    def refresh(self) -> None:
        """Read the keys if there are others than before; one that cannot be read is told and left out.

        Raises `ConfigError` when there are keys and the library that they take is not installed.
        """
        paths = _paths(self._data)
        seen = tuple((path.name, path.stat().st_mtime_ns) for path in paths)
        if seen == self._seen:
            return
        keys = list(self._readable(paths))
        self._keyring = Keyring(keys)
        self.private, self.ids = tuple(key.text for key in keys), tuple(sorted(key.public.id for key in keys))
        self._seen = seen

    def look(self) -> None:
        """As `refresh`, for whoever goes on with the keys that there are."""
        try:
            self.refresh()
        except ConfigError as error:
            self.unread += 1
            _log.warning("private keys cannot be used: %s", error)

    def _readable(self, paths: Iterable[Path]) -> Iterable[PrivateKey]:
        for path in paths:
            try:
                yield _read(path)
            except (ConfigError, OSError, UnicodeDecodeError) as error:
                self.unread += 1
                _log.warning("a private key cannot be read: %s", error)

    def unlock(self, lock: bytes) -> SegmentKey:
        """See `Unlock`."""
        return self._keyring.unlock(lock)

    def unlocks(self, session_id: str, index: int) -> Unlock:
        """What opens blocks of one segment, and no others."""
        return unlocks_only(self.unlock, session_id, index)

    def summary(self, summary: Summary) -> Summary:
        """The summary, open; as it is where it is not sealed, or cannot be opened."""
        if not summary.boxed_info and not summary.boxed_installation:
            return summary
        try:
            return opened(summary, self._keyring)
        except (SealedError, WireError):
            self.unread += 1
            return summary

    def row(self, row: SessionRow) -> SessionRow:
        """A session as the catalog has it, open."""
        summary = self.summary(row.summary)
        return row if summary is row.summary else replace(row, summary=summary)


UNSEALING: Final = web.AppKey("unsealing", Unsealing)

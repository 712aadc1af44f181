"""Backup of a server's folder while it serves, and the way back.

A backup is a folder laid out as the server's own, without the analytics store, which is made again from the rest:

    catalog.sqlite    a snapshot of one moment
    segments/         of each upload in it the bytes that were announced at that moment, no more and no fewer
    sealing/          the private keys that open sealed sessions: without them a backup of those is noise
    backup.json       written last: what there is, and the digest of the catalog; without it the backup is none

The snapshot comes first. What it announces is durable in the blobs and does not change any more, whatever is appended
meanwhile; only the end of an upload or of a session takes bytes away, and then that is what the backup says of it, too.

Blocks; for commands, not for an event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from mailboat.protocol import __version__
from mailboat.protocol.errors import ConfigError, StoreError
from mailboat.protocol.limits import MIB
from mailboat.protocol.uploads.state import Event
from mailboat.server.blobs import Blobs, LocalBlobs
from mailboat.server.catalog import Catalog, UploadRow
from mailboat.server.check import PAGE, is_kept
from mailboat.server.folder import BLOBS_FOLDER, CATALOG_FILE, served
from mailboat.server.sqlite_catalog import SqliteCatalog
from mailboat.server.sqlite_engine import snapshot
from mailboat.server.unsealing import FOLDER as SEALING_FOLDER
from mailboat.server.unsealing import SUFFIX as SEALING_SUFFIX

MANIFEST_FILE: Final = "backup.json"
FORMAT: Final = 1

Tell = Callable[[str], object]


class BackupError(StoreError):
    """The backup cannot be made or used; the message says why. What was there before is untouched."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup holds. `lost` are uploads whose bytes were not to be had: the server's folder is damaged."""

    format: int
    mailboat: str
    made: float
    catalog_sha256: str
    segments: int
    bytes: int
    lost: tuple[str, ...] = ()


def back_up(data: Path, target: Path) -> Manifest:
    """Back the server's folder `data` up to `target`, a folder that is empty or not there yet.

    Raises `ConfigError` when one of the two is not what it should be, `StoreError` and `OSError` when it fails.
    """
    served(data)
    _take_empty(target)
    snapshot(data / CATALOG_FILE, target / CATALOG_FILE)
    _copy_keys(data, target)
    source, copies = LocalBlobs(data / BLOBS_FOLDER), LocalBlobs(target / BLOBS_FOLDER)
    segments, size, lost = asyncio.run(_copy_all(data / CATALOG_FILE, target / CATALOG_FILE, source, copies))
    digest = _digest(target / CATALOG_FILE)
    manifest = Manifest(FORMAT, __version__, time.time(), digest, segments, size, lost)
    _write_durably(target / MANIFEST_FILE, json.dumps(asdict(manifest), indent=1).encode())
    return manifest


def restore(source: Path, data: Path) -> Manifest:
    """Lay the backup `source` out as the server's folder `data`, which is empty or not there yet.

    `served(data)` holds only once all of it is there. Raises as `back_up` does.
    """
    manifest = read_manifest(source)
    if _digest(source / CATALOG_FILE) != manifest.catalog_sha256:
        raise BackupError(f"{source / CATALOG_FILE} is not the file that was backed up: its digest differs")
    _take_empty(data)
    if (source / BLOBS_FOLDER).is_dir():
        shutil.copytree(source / BLOBS_FOLDER, data / BLOBS_FOLDER, copy_function=_copy_durably)
    _copy_keys(source, data)
    coming = data / f"{CATALOG_FILE}.coming"
    _copy_durably(source / CATALOG_FILE, coming)
    coming.replace(data / CATALOG_FILE)
    _sync_folders(data)
    return manifest


def read_manifest(source: Path) -> Manifest:
    """What the backup `source` holds; `ConfigError` when it is none, or none that was finished."""
    file = source / MANIFEST_FILE
    try:
        said: Any = json.loads(file.read_bytes())
        if said["format"] != FORMAT:
            raise BackupError(f"{file} has format {said['format']!r:.20}, this mailboat knows {FORMAT}: update it")
        return Manifest(**{**said, "lost": tuple(said["lost"])})
    except FileNotFoundError as error:
        raise ConfigError(f"{source}: there is no finished backup here (no {MANIFEST_FILE})") from error
    except (ValueError, TypeError, KeyError) as error:
        raise BackupError(f"{file} cannot be read: {error}") from error


# -- segments ----------------------------------------------------------------------------------------------------------


async def _copy_all(live_file: Path, copy_file: Path, source: Blobs, copies: Blobs) -> tuple[int, int, tuple[str, ...]]:
    """Copy what the snapshot speaks of: how many uploads, how many bytes, and which were not to be had."""
    live, copy = SqliteCatalog(live_file), SqliteCatalog(copy_file)
    await live.open()
    await copy.open()
    segments, size, after = 0, 0, ""
    lost: list[str] = []
    try:
        while rows := await copy.all_uploads(after, PAGE):
            after = rows[-1].id
            for row in rows:
                if not is_kept(row):
                    continue
                if await asyncio.to_thread(_copied, source, copies, row):
                    segments, size = segments + 1, size + row.state.offset
                elif not await _ended(live, copy, row):
                    lost.append(row.id)
    finally:
        await live.close()
        await copy.close()
    return segments, size, tuple(lost)


def _copied(source: Blobs, copies: Blobs, row: UploadRow) -> bool:
    """Copy an upload's announced bytes, durably; False when they are not all there."""
    writer = copies.append(row.id, 0)
    try:
        while writer.offset < row.state.offset:
            try:
                piece = source.read(row.id, writer.offset, min(MIB, row.state.offset - writer.offset))
            except FileNotFoundError:
                piece = b""
            if not piece:
                copies.remove(row.id)
                return False
            writer.write(piece)
        writer.sync()
        return True
    finally:
        writer.close()


async def _ended(live: Catalog, copy: Catalog, row: UploadRow) -> bool:
    """Whether the upload, or its session, has ended since the snapshot; then it has in the copy, too."""
    now = await live.upload(row.id)
    if now is not None and is_kept(now):
        return False
    session = None if row.session_id is None else await copy.session(row.product, row.session_id)
    if now is None and session is not None:
        await copy.strike(await copy.remove_sessions([session], row.updated))
    else:
        await copy.store(row.state.after(Event.EXPIRE), row.updated)
    return True


# -- files -------------------------------------------------------------------------------------------------------------


def _take_empty(folder: Path) -> None:
    """Make `folder`; `ConfigError` when there is something in it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ConfigError(f"{folder}: an empty folder is needed, or one that is not there yet; it has something in it")


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise BackupError(f"{file} is not there: the backup is not whole") from error


def _write_durably(file: Path, content: bytes) -> None:
    coming = file.with_name(f"{file.name}.coming")
    fd = os.open(coming, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(fd, "wb") as stream:  # noqa: PTH123 - with its mode from the start
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    coming.replace(file)
    _sync_folders(file.parent)


def _copy_durably(source: str | Path, target: str | Path) -> str:
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    with Path(source).open("rb") as reading, open(fd, "wb") as writing:  # noqa: PTH123 - with its mode from the start
        shutil.copyfileobj(reading, writing, MIB)
        writing.flush()
        os.fsync(writing.fileno())
    return str(target)


def _copy_keys(source: Path, target: Path) -> None:
    """Copy private keys with their times: the newest is the one that agents are given."""
    for key in sorted((source / SEALING_FOLDER).glob(f"*{SEALING_SUFFIX}")):
        (target / SEALING_FOLDER).mkdir(mode=0o700, exist_ok=True)
        copied = Path(_copy_durably(key, target / SEALING_FOLDER / key.name))
        made = key.stat().st_mtime_ns
        os.utime(copied, ns=(made, made))


def _sync_folders(root: Path) -> None:
    """Make the names in a folder and in all below it durable."""
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows keeps names with the file's own flush
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

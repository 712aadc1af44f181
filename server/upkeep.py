"""Looking after a server's folder from outside: checking it, putting right what can be put right without loss.

Blocks; for commands, not for an event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web

from mailboat.server import quarantine
from mailboat.server.analytics import Analytics
from mailboat.server.analytics_file import move_aside
from mailboat.server.analytics_store import AnalyticsError
from mailboat.server.app import create_store
from mailboat.server.blobs import LocalBlobs
from mailboat.server.check import ANALYTICS_KINDS, Fault, Findings, Kind, check
from mailboat.server.config import ServerConfig
from mailboat.server.folder import BLOBS_FOLDER, CATALOG_FILE, FolderInUse, hold, served
from mailboat.server.loader import ANALYTICS_FILE
from mailboat.server.sqlite_catalog import SqliteCatalog

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Repair:
    """What was done about faults: `done` in sentences, and the faults that are `left`."""

    done: tuple[str, ...]
    left: tuple[Fault, ...]


def check_folder(data: Path, *, deep: bool = True) -> Findings:
    """Check the server's folder `data`, whose server may be running: its analytics store is left out then.

    Raises `ConfigError` when it is no server's folder, `StoreError` when it cannot be read at all.
    """
    served(data)
    blobs = LocalBlobs(data / BLOBS_FOLDER)
    try:
        lock = hold(data)
    except FolderInUse:
        findings = asyncio.run(_check(data, blobs, None, deep=deep))
        findings.notes.append("the server is running, so its analytics store was not looked into")
        return findings
    with lock:
        file = data / ANALYTICS_FILE
        if not file.exists():
            findings = asyncio.run(_check(data, blobs, None, deep=deep))
            findings.notes.append("there is no analytics store: the next start makes it")
            return findings
        try:
            store = Analytics(file, make=False)
        except AnalyticsError as error:
            findings = asyncio.run(_check(data, blobs, None, deep=deep))
            findings.add(Kind.RECORDS_MISSING, ANALYTICS_FILE, str(error))
            return findings
        try:
            return asyncio.run(_check(data, blobs, store, deep=deep))
        finally:
            store.close()


def repair_folder(data: Path, findings: Findings) -> Repair:
    """Put right what of these findings can be without loss, on a folder whose server does not run.

    Unknown blobs are laid aside; an analytics store that does not agree is moved aside, to be begun anew by the next
    start. Raises `FolderInUse` while the server runs.
    """
    served(data)
    done: list[str] = []
    left: list[Fault] = []
    with hold(data):
        blobs = LocalBlobs(data / BLOBS_FOLDER)
        for fault in findings.faults:
            if fault.kind is Kind.UNKNOWN_BLOB:
                done.append(f"{fault.subject}: laid aside as {blobs.lay_aside(fault.subject)}")
            elif fault.kind not in ANALYTICS_KINDS:
                left.append(fault)
        if any(fault.kind in ANALYTICS_KINDS for fault in findings.faults):
            move_aside(data / ANALYTICS_FILE)
            done.append(f"{ANALYTICS_FILE}: moved aside; the next start loads everything anew")
    return Repair(tuple(done), tuple(left))


async def _check(data: Path, blobs: LocalBlobs, store: Analytics | None, *, deep: bool) -> Findings:
    catalog = SqliteCatalog(data / CATALOG_FILE)
    await catalog.open()
    try:
        return await check(catalog, blobs, store, deep=deep)
    finally:
        await catalog.close()


def replay_quarantined(data: Path, upload_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Look anew into these uploads in quarantine (`quarantine.replay`); what they are then, as `quarantine.described`.
    What is well is loaded by the server's next start.

    Raises `FolderInUse` while the server runs (its API does this then), `NotThere` for one that is not in quarantine;
    what came before it is done.
    """

    async def act(app: web.Application) -> list[dict[str, Any]]:
        return [quarantine.described(await quarantine.replay(app, upload_id)) for upload_id in upload_ids]

    return _at_rest(data, act)


def drop_quarantined(data: Path, upload_ids: Sequence[str]) -> None:
    """Do away with the bytes of these uploads in quarantine; raises as `replay_quarantined`."""

    async def act(app: web.Application) -> None:
        for upload_id in upload_ids:
            await quarantine.drop(app, upload_id)

    _at_rest(data, act)


def _at_rest(data: Path, act: Callable[[web.Application], Awaitable[T]]) -> T:
    served(data)

    async def run() -> T:
        runner = web.AppRunner(create_store(ServerConfig(data=data)), handle_signals=False)
        try:
            await runner.setup()
            return await act(runner.app)
        finally:
            await runner.cleanup()

    return asyncio.run(run())

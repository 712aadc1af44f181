"""Looking after a server's folder from outside: checking it, putting right what can be put right without loss.

Blocks; for commands, not for an event loop.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from mailboat.server.analytics import Analytics, move_aside
from mailboat.server.analytics_store import AnalyticsError
from mailboat.server.blobs import LocalBlobs
from mailboat.server.check import ANALYTICS_KINDS, Fault, Findings, Kind, check
from mailboat.server.folder import BLOBS_FOLDER, CATALOG_FILE, FolderInUse, hold, served
from mailboat.server.loader import ANALYTICS_FILE
from mailboat.server.sqlite_catalog import SqliteCatalog


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

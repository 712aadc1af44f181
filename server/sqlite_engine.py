"""SQLite for asyncio: one writer thread that commits for many, a few reader threads, nothing blocking the loop.

Every commit is a flush of the disk (``synchronous=FULL``: a write that was acknowledged survives power loss), and
costs the same for one change as for a hundred. So the writer takes whatever is waiting, runs it in one transaction,
each job in a savepoint of its own, and wakes all of them after the one commit. While it flushes, the next group
gathers. A job that is alone needs no savepoint: within one, SQLite first copies every page that it changes.

Readers see what was committed when they begin (WAL), and never wait for the writer.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from mailboat.server.catalog import CatalogError

T = TypeVar("T")

MAX_GROUP: Final = 512
"""Jobs in one commit: bounds how long the first of them waits for the others to run."""

BUSY_TIMEOUT: Final = 10.0
"""Seconds to wait for another process that writes (``mailboat keys create`` while the server runs)."""

_CACHE_KIB: Final = 16 * 1024
"""Pages that the writer keeps: ids and times scatter over the indexes, and with the usual 2 MiB pages are written and
read again within one transaction of a few hundred sessions.
"""

_CHECKPOINT_PAGES: Final = 4000
"""Pages of the log before they are brought into the file, with two more flushes: 16 MiB, which several full requests
write; with the usual 1000 about every other one of them paid for that.
"""

READERS: Final = 2
"""Reader threads: SQL of this size is bound by the interpreter, so more would only contend for it."""


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection set up as this module promises; transactions are begun and ended explicitly."""
    _make(path)
    try:
        db = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise _failed(path, error) from error
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        if read_only:
            db.execute("PRAGMA query_only = ON")
        else:
            db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    except sqlite3.Error as error:
        db.close()
        raise _failed(path, error) from error
    return db


def _failed(path: Path, error: sqlite3.Error) -> CatalogError:
    """What SQLite says of the file; and what is to be done where the file itself is at fault, not the machine."""
    damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
    advice = (
        "; this is no catalog, or a damaged one: bring back a backup (`mailboat server restore`)" if damaged else ""
    )
    return CatalogError(f"{path}: {error}{advice}")


def _make(path: Path) -> None:
    """Have the file, for its owner only, also in a folder that is open to others: SQLite would leave it to the umask.
    What it puts beside the file has the file's mode.

    One that is there is not opened: to close it again would take away the locks that this process holds on it.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise CatalogError(f"{path}: {error.strerror or error}") from error


def snapshot(source: Path, target: Path) -> None:
    """Copy the database as it stands to the new file `target`, whole and durable, while others read and write it.

    In one step, since a copy in several begins anew with each change. Raises `CatalogError`.
    """
    db = connect(source)
    try:
        _make(target)
        copy = sqlite3.connect(target, isolation_level=None)
        try:
            copy.execute("PRAGMA synchronous = FULL")
            db.backup(copy)
        finally:
            copy.close()
    except sqlite3.Error as error:
        raise CatalogError(f"{target}: {error}") from error
    finally:
        db.close()


def faults(db: sqlite3.Connection) -> tuple[str, ...]:
    """What SQLite finds wrong with the file: pages, indexes, and rows that point nowhere."""
    found = [text for (text,) in db.execute("PRAGMA integrity_check").fetchall() if text != "ok"]
    broken = db.execute("PRAGMA foreign_key_check").fetchall()
    return (*found, *(f"row {row} of table {table} points to no row of {parent}" for table, row, parent, _ in broken))


@dataclass(frozen=True, slots=True)
class _Job:
    """One change: what to run, and whom to tell."""

    run: Callable[[sqlite3.Connection], Any]
    done: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


Outcome = tuple[_Job, Any, BaseException | None]


class Engine:
    """One SQLite file. `open` first, `close` last; `write` and `read` between, from the event loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._readers: ThreadPoolExecutor | None = None
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._here = threading.Lock()
        self.commits = 0

    async def open(self, prepare: Callable[[sqlite3.Connection], None]) -> None:
        """Start the threads; `prepare` runs first, on the writer's connection. Raises `CatalogError`."""
        db = await asyncio.to_thread(self._prepared, prepare)
        self._writer = threading.Thread(target=self._write_all, args=(db,), name="mailboat-catalog", daemon=True)
        self._writer.start()
        self._readers = ThreadPoolExecutor(READERS, "mailboat-catalog-reader")

    async def close(self) -> None:
        """Run what was asked for, then end the threads; nothing happens the second time."""
        writer, self._writer = self._writer, None
        readers, self._readers = self._readers, None
        if writer is None or readers is None:
            return
        self._jobs.put(None)
        await asyncio.to_thread(readers.shutdown)
        with self._here:
            for db in self._connections:
                db.close()
        await asyncio.to_thread(writer.join)

    async def write(self, run: Callable[[sqlite3.Connection], T]) -> T:
        """What `run` returns, once its changes are durable; with an exception of its own nothing of it was changed.

        Raises `CatalogError` when SQLite fails.
        """
        if self._writer is None:
            raise CatalogError("the catalog is not open")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._jobs.put(_Job(run, done, loop))
        return await done

    async def read(self, run: Callable[[sqlite3.Connection], T]) -> T:
        """What `run` returns, in one consistent view. Raises `CatalogError` when SQLite fails."""
        if self._readers is None:
            raise CatalogError("the catalog is not open")
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, run)

    def read_here(self, run: Callable[[sqlite3.Connection], T]) -> T:
        """`read`, in a thread of the caller's, which waits for it: where a change of threads would cost more than what
        is read. One at a time.
        """
        with self._here:
            if self._readers is None:
                raise CatalogError("the catalog is not open")
            return self._read(run)

    # -- in the threads ------------------------------------------------------------------------------------------

    def _prepared(self, prepare: Callable[[sqlite3.Connection], None]) -> sqlite3.Connection:
        db = connect(self._path)
        try:
            prepare(db)
        except sqlite3.Error as error:
            db.close()
            raise _failed(self._path, error) from error
        except BaseException:
            db.close()
            raise
        return db

    def _read(self, run: Callable[[sqlite3.Connection], T]) -> T:
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            db = self._local.db = connect(self._path, read_only=True)
            self._connections.append(db)
        try:
            db.execute("BEGIN")
            try:
                return run(db)
            finally:
                db.execute("COMMIT")
        except sqlite3.Error as error:
            raise CatalogError(f"{self._path}: {error}") from error

    def _write_all(self, db: sqlite3.Connection) -> None:
        running = True
        while running:
            group = [self._jobs.get()]
            while len(group) < MAX_GROUP and not self._jobs.empty():
                group.append(self._jobs.get())
            running = None not in group
            jobs = [job for job in group if job is not None]
            if jobs:
                _tell(self._commit(db, jobs))
        db.close()

    def _commit(self, db: sqlite3.Connection, jobs: list[_Job]) -> list[Outcome]:
        try:
            db.execute("BEGIN IMMEDIATE")
            outcomes = [_run(db, job, alone=len(jobs) == 1) for job in jobs]
            if db.in_transaction:  # a job that was alone and failed has ended it
                db.execute("COMMIT")
                self.commits += 1
            return outcomes
        except sqlite3.Error as error:
            # A full or failing disk undoes the whole transaction, whichever statement met it.
            failure = CatalogError(f"{self._path}: {error}")
            failure.__cause__ = error
            if db.in_transaction:
                db.execute("ROLLBACK")
            return [(job, None, failure) for job in jobs]


def _run(db: sqlite3.Connection, job: _Job, *, alone: bool) -> Outcome:
    """Run one job; what it raises is its own, unless SQLite has given up the transaction. One that is `alone` in it
    takes the transaction with it when it fails.
    """
    if not alone:
        db.execute("SAVEPOINT job")
    try:
        result = job.run(db)
    except Exception as error:
        if not db.in_transaction:
            raise sqlite3.OperationalError(str(error)) from error
        if alone:
            db.execute("ROLLBACK")
        else:
            db.execute("ROLLBACK TO job")
            db.execute("RELEASE job")
        failure = CatalogError(str(error)) if isinstance(error, sqlite3.Error) else error
        return job, None, failure
    if not alone:
        db.execute("RELEASE job")
    return job, result, None


def _tell(outcomes: list[Outcome]) -> None:
    """Wake those who wait, with one call into each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Outcome]] = {}
    for outcome in outcomes:
        by_loop.setdefault(outcome[0].loop, []).append(outcome)
    for loop, told in by_loop.items():
        if not loop.is_closed():  # its tasks are gone, so nobody is left who could be told
            loop.call_soon_threadsafe(_resolve, told)


def _resolve(outcomes: list[Outcome]) -> None:
    for job, result, error in outcomes:
        if job.done.done():
            continue  # whoever asked was cancelled meanwhile; the change stands
        if error is None:
            job.done.set_result(result)
        else:
            job.done.set_exception(error)

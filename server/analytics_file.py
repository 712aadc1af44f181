"""The analytics store's DuckDB file: opening it, and writing to it in transactions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import duckdb

from mailboat.protocol.limits import MIB
from mailboat.server.analytics_schema import LAYOUT, TABLES, VIEWS
from mailboat.server.analytics_store import AnalyticsError, OutOfMemory, RowsRefused

THREAD_MEMORY: Final = 128 * MIB
"""Memory of the engine for each of its threads: of 32 MiB each reads rows, and it needs as much again to write them."""

CHECKPOINT: Final = 256 * MIB
"""Bytes of its log that the engine writes before it moves them into the file. With its own default of 16 MiB loading
takes twice as long; a log of this size costs a second or two at the start after a crash."""


_OPTIMIZED: Final = "PRAGMA enable_optimizer"


class Commits:
    """Counts the commits of the thread that writes, for those that read: between two of them nothing changes."""

    def __init__(self) -> None:
        self._begun = self._ended = 0

    def ended(self) -> int | None:
        """How many there were; None while one is under way."""
        ended = self._ended
        return ended if ended == self._begun else None

    @contextmanager
    def one(self) -> Iterator[None]:
        """Around a commit, however it ends."""
        self._begun += 1
        try:
            yield
        finally:
            self._ended += 1


class Transaction:
    """All or nothing; tells the rows' fault from the machine's."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, commits: Commits) -> None:
        self._connection = connection
        self._commits = commits

    def __enter__(self) -> None:
        self._connection.begin()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                with self._commits.one():
                    self._connection.commit()
            else:
                self._connection.rollback()
                self._connection.execute(_OPTIMIZED)  # see `as_written`
        except duckdb.Error as failure:
            raise _refusal(failure) from failure
        # These are about values (a number out of range, a line that is no JSON); the others about the machine.
        if isinstance(error, duckdb.DataError | duckdb.InvalidInputException):
            raise RowsRefused(f"the analytics store does not take the rows: {error}") from error
        if isinstance(error, duckdb.Error):
            raise _refusal(error) from error


@contextmanager
def as_written(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Within a `Transaction`, have statements carried out as they are written, one join after the other.

    Of what the optimizer knows of rows in two files it makes a plan that takes a fifth longer, and a third of a
    millisecond to think of it. Where a statement fails, no other one is taken before the transaction's end, which then
    turns the optimizer on again.
    """
    connection.execute("PRAGMA disable_optimizer")
    yield
    connection.execute(_OPTIMIZED)


def _refusal(error: duckdb.Error) -> AnalyticsError:
    kind = OutOfMemory if isinstance(error, duckdb.OutOfMemoryException) else AnalyticsError
    return kind(f"the analytics file cannot be written: {error}")


# -- opening -------------------------------------------------------------------------------------------------------


def _settings(path: Path, memory: int) -> dict[str, str | bool | int | float | list[str]]:
    return {
        "memory_limit": f"{memory // MIB}MiB",
        "temp_directory": str(path.with_name(f"{path.name}.tmp")),
        "checkpoint_threshold": f"{CHECKPOINT // MIB}MiB",
        # Of a file made anew: moving the log into it takes two thirds of the time. No older engine opens it.
        "storage_compatibility_version": "latest",
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "preserve_insertion_order": False,
    }


def _connect(path: Path, memory: int) -> duckdb.DuckDBPyConnection:
    """Open the file, with an engine of all processors but one, that of the thread which asks, as far as `memory` goes.

    While that thread waits for others it spins on the interpreter's lock. With two processors, loading alone takes
    nearly twice the processor time if the engine has both, at the cost of the decoder and of the event loop.
    """
    connection = duckdb.connect(path, config=_settings(path, memory))
    row = connection.execute("SELECT current_setting('threads')").fetchone()
    processors = int(row[0]) if row else 1
    connection.execute(f"SET threads = {max(1, min(processors - 1, memory // THREAD_MEMORY))}")
    return connection


def open_existing(path: Path, memory: int) -> duckdb.DuckDBPyConnection:
    """Open the file with so many bytes of memory for the engine. `AnalyticsError` where it is none of ours."""
    if not path.exists():
        raise AnalyticsError(f"{path} is not there")
    try:
        connection = _connect(path, memory)
        layout = _layout(connection)
    except duckdb.Error as error:
        raise AnalyticsError(f"{path} cannot be opened: {error}") from error
    if layout is None:
        _make_tables(connection)  # killed before it had made them
    elif layout != LAYOUT:
        connection.close()
        raise AnalyticsError(f"{path} has layout {layout}, this mailboat knows {LAYOUT}")
    return connection


def open_or_make(path: Path, memory: int) -> duckdb.DuckDBPyConnection:
    """The same, but begin it anew where it is not there, and where it is none of ours, which is kept aside."""
    try:
        connection = _connect(path, memory)
        if _layout(connection) in (None, LAYOUT):
            _make_tables(connection)
            return connection
        connection.close()
    except duckdb.Error as error:
        if "lock" in str(error).lower() or not path.exists():
            raise AnalyticsError(f"{path} cannot be opened: {error}") from error
    # Damaged, or of another layout. Everything in it can be made again, so it is kept only to be looked at.
    move_aside(path)
    try:
        connection = _connect(path, memory)
        _make_tables(connection)
    except duckdb.Error as error:
        raise AnalyticsError(f"{path} cannot be made: {error}") from error
    return connection


def _layout(connection: duckdb.DuckDBPyConnection) -> int | None:
    """The layout of the tables, None when there are none."""
    if not connection.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'state'").fetchone():
        return None
    row = connection.execute("SELECT layout FROM state").fetchone()
    return int(row[0]) if row else 0


def _make_tables(connection: duckdb.DuckDBPyConnection) -> None:
    connection.begin()
    for name, columns in TABLES.items():
        connection.execute(f"CREATE TABLE IF NOT EXISTS {name} ({columns})")
    for name, query in VIEWS.items():
        connection.execute(f"CREATE VIEW IF NOT EXISTS {name} AS {query}")
    connection.execute("INSERT INTO state SELECT $layout, 0, 0, 0, 0 WHERE NOT EXISTS (FROM state)", {"layout": LAYOUT})
    connection.commit()


def move_aside(path: Path) -> None:
    """Keep the file of a store to be looked at (``NAME.old``); the next opening begins it anew."""
    for suffix in ("", ".wal"):
        file = path.with_name(path.name + suffix)
        if file.exists():
            file.replace(path.with_name(f"{path.name}{suffix}.old"))

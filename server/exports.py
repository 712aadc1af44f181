"""Tables of the analytics store as Parquet files, for questions that are asked elsewhere.

A file is written by the engine beside the store, sent, and removed; it is bounded in rows and time, and one is made at
a time, so that exports do not keep reports from being answered.
"""

# ruff: noqa: S608 - names of tables from `EXPORTED` and fragments of this package; values are always bound

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

from aiohttp import web

from mailboat.protocol.errors import Code
from mailboat.protocol.limits import MIB
from mailboat.server.analytics_schema import OWN_COLUMNS
from mailboat.server.context import CONFIG, ProblemError, run_in_worker
from mailboat.server.ingest import REPORTS
from mailboat.server.operations import Asked, Operation, add_operations
from mailboat.server.parameters import SCOPE, Parameter, refused, whole
from mailboat.server.reports import Answer, Question, Scope, TooSlow
from mailboat.server.streaming import send
from mailboat.server.sums import RECORD_TABLES

PARQUET: Final = "application/vnd.apache.parquet"
EXPORTED: Final = ("session", *RECORD_TABLES)
FOLDER: Final = "exports"

MAX_ROWS: Final = 5_000_000
"""Rows of one file: a few hundred MB; longer periods are asked for in parts."""

_ONE: Final = web.AppKey("one_export", asyncio.Semaphore)


async def export(asked: Asked) -> web.StreamResponse:
    """The rows of a table in a period as a Parquet file: `session`, or the records of one kind.

    At most `limit` rows, in no particular order; a file with exactly so many may not have them all.
    """
    table, scope = asked.request.match_info["table"], asked.scope()
    if table not in EXPORTED:
        raise refused("table", f"expected one of {', '.join(EXPORTED)}, got {table!r:.80}")
    limit = asked.given.whole("limit", MAX_ROWS, 1, MAX_ROWS)
    async with asked.app[_ONE]:
        path = asked.app[CONFIG].data / FOLDER / f"{uuid.uuid4()}.parquet"
        await run_in_worker(asked.app, partial(path.parent.mkdir, parents=True, exist_ok=True))
        try:
            await asked.app[REPORTS].ask(partial(_write, table, scope, limit, path))
            return await _send(asked, table, path)
        except TooSlow as error:
            raise ProblemError(Code.UNAVAILABLE, str(error)) from error
        finally:
            await run_in_worker(asked.app, partial(path.unlink, missing_ok=True))


def _write(table: str, scope: Scope, limit: int, path: Path, question: Question) -> Answer:
    time = "started" if table == "session" else "time"
    columns = "*" if table == "session" else f"* EXCLUDE ({', '.join(OWN_COLUMNS)})"
    question.write_parquet(f"SELECT {columns} FROM {table} WHERE {scope.where(time)} LIMIT {limit}", scope.values, path)
    return {}


async def _send(asked: Asked, table: str, path: Path) -> web.StreamResponse:
    size = (await run_in_worker(asked.app, path.stat)).st_size
    response = web.StreamResponse(headers={"Content-Type": PARQUET, "Cache-Control": "no-store"})
    response.headers["Content-Disposition"] = f'attachment; filename="{table}.parquet"'
    with await run_in_worker(asked.app, _open, path) as file:
        return await send(asked.request, response, size, _pieces(asked.app, file))


async def _pieces(app: web.Application, file: BinaryIO) -> AsyncIterator[bytes]:
    while piece := await run_in_worker(app, file.read, MIB):
        yield piece


def _open(path: Path) -> BinaryIO:
    return path.open("rb")


async def _folder(app: web.Application) -> AsyncIterator[None]:
    """What a kill has left of earlier exports goes; one export is made at a time."""
    app[_ONE] = asyncio.Semaphore(1)
    await run_in_worker(app, partial(shutil.rmtree, app[CONFIG].data / FOLDER, ignore_errors=True))
    yield


def add_routes(app: web.Application) -> None:
    """Add the route; the threads must be there before."""
    app.cleanup_ctx.append(_folder)
    limit = Parameter("limit", whole(1, MAX_ROWS, MAX_ROWS), "Rows at most")
    add_operations(app, (Operation("GET", "/api/v1/export/{table}", export, PARQUET, (*SCOPE, limit)),))

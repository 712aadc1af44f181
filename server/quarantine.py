"""What was uploaded and is no segment, or not the intact one that it should be: kept, with the reason, for people to
look at, to try again, or to do away with. What is of no session goes after `quarantine_max_age`, a rejected segment
with its session.

To try again (`replay`) is for afterwards: this server has been updated and reads more, the plan has changed, the
decoder had been killed. The upload is then looked into as if it had just come, and loaded if it is well; what agents
were told, and have in their accounts, stays as it was.

The API does all of that. `list_offline` and `save_offline` do their part for commands on the server's own machine,
while it runs or not, and `upkeep` the rest on a folder whose server does not run.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from mailboat.protocol.errors import Code
from mailboat.protocol.ids import is_canonical
from mailboat.protocol.limits import MIB
from mailboat.protocol.uploads import tus
from mailboat.protocol.uploads.state import Event
from mailboat.server import sqlite_expiry, sqlite_uploads
from mailboat.server.blobs import LocalBlobs
from mailboat.server.catalog import CatalogError, Role, UploadRow, Verification
from mailboat.server.catalog_schema import bring_up_to_date
from mailboat.server.completion import reconsider
from mailboat.server.context import BLOBS, CATALOG, CLOCK, COUNTERS, ProblemError, notify_ingest, run_in_worker
from mailboat.server.folder import BLOBS_FOLDER, CATALOG_FILE
from mailboat.server.operations import Asked, Operation, add_operations, answered
from mailboat.server.parameters import CURSOR, LIMIT, PRODUCT, refused
from mailboat.server.shapes import COUNT, ID, TEXT, TIME, by_name, made_of, maybe, one_of, some
from mailboat.server.sqlite_engine import connect
from mailboat.server.streaming import send
from mailboat.server.turns import TURNS

_NO_STORE: Final = {"Cache-Control": "no-store"}
_AT_ONCE: Final = 500


class NotThere(CatalogError):
    """Nothing of this id is in quarantine."""

    def __init__(self, upload_id: str) -> None:
        """The id that was asked for."""
        super().__init__(f"{upload_id}: nothing of this id is in quarantine")


async def list_quarantined(asked: Asked) -> web.StreamResponse:
    """What was uploaded and is no segment, or no intact one; the oldest first."""
    product, after, limit = asked.product(), asked.given.text("cursor"), asked.given.limit()
    if after is not None and not is_canonical(after):
        raise refused("cursor", "it was not handed out here")
    rows = await asked.app[CATALOG].quarantined(product, after, limit + 1)
    page = rows[:limit]
    return answered({"uploads": [described(row) for row in page], "next": page[-1].id if len(rows) > limit else None})


async def show_quarantined(asked: Asked) -> web.StreamResponse:
    """One upload in quarantine."""
    return answered(described(await _asked_for(asked)))


async def replay_quarantined(asked: Asked) -> web.StreamResponse:
    """Look into an upload in quarantine as if it had just come: it is loaded if it is well by now, and stays with its
    reason of today if it is not. One that is well already is left as it is.
    """
    row = await _asked_for(asked, settled=True)
    try:
        return answered(described(await replay(asked.app, row.id)))
    except NotThere as error:  # it went meanwhile
        raise ProblemError(Code.NOT_FOUND, str(error)) from error


async def drop_quarantined(asked: Asked) -> web.StreamResponse:
    """Do away with the bytes of an upload in quarantine."""
    row = await _asked_for(asked)
    try:
        await drop(asked.app, row.id)
    except NotThere as error:
        raise ProblemError(Code.NOT_FOUND, str(error)) from error
    return web.Response(status=204)


async def _asked_for(asked: Asked, *, settled: bool = False) -> UploadRow:
    """The upload in quarantine (with `settled`, also one that was) that the path names, if the key reaches it."""
    upload_id = asked.request.match_info["id"]
    row = await asked.app[CATALOG].upload(upload_id) if is_canonical(upload_id) else None
    found = row is not None and (_held(row) or (settled and _settled(row)))
    if row is None or not found or not asked.principal.reaches(row.product):
        raise ProblemError(Code.NOT_FOUND, f"id: nothing of the id {upload_id[:80]!r} is in quarantine here")
    return row


async def show_content(asked: Asked) -> web.StreamResponse:
    """The bytes of an upload in quarantine, as they came."""
    app, row = asked.app, await _asked_for(asked)
    first = await _piece(app, row, 0)  # before anything is said: it may be lost
    response = web.StreamResponse(headers={**_NO_STORE, "Content-Type": "application/octet-stream"})
    response.headers["Content-Disposition"] = f'attachment; filename="{row.id}"'
    return await send(asked.request, response, row.state.offset, _pieces(app, row, first))


async def _pieces(app: web.Application, row: UploadRow, first: bytes) -> AsyncIterator[bytes]:
    yield first
    for offset in range(MIB, row.state.offset, MIB):
        yield await _piece(app, row, offset)


async def _piece(app: web.Application, row: UploadRow, offset: int) -> bytes:
    size = min(MIB, row.state.offset - offset)
    return await run_in_worker(app, app[BLOBS].read, row.id, offset, size) if size else b""


# -- again, or no more -------------------------------------------------------------------------------------------------


async def replay(app: web.Application, upload_id: str) -> UploadRow:
    """Look anew into an upload in quarantine; what it is then. One that has come out of it is left alone, so to ask
    twice does it once. Raises `NotThere`, and `OSError` when its bytes cannot be read.
    """
    async with app[TURNS].take(upload_id):
        row = await app[CATALOG].upload(upload_id)
        if row is not None and _held(row):
            await reconsider(app, row)
            app[COUNTERS]["quarantine_replayed"] += 1
            notify_ingest(app)
            row = await app[CATALOG].upload(upload_id)
        if row is None or not (_held(row) or _settled(row)):
            raise NotThere(upload_id)
        return row


async def drop(app: web.Application, upload_id: str) -> None:
    """Do away with the bytes of an upload in quarantine. Raises `NotThere`, and `OSError` when the disk refuses.

    It is noted first: bytes that a kill leaves behind go with the row.
    """
    async with app[TURNS].take(upload_id):
        row = await app[CATALOG].upload(upload_id)
        if row is None or not _held(row):
            raise NotThere(upload_id)
        if await app[CATALOG].store(row.state.after(Event.EXPIRE).fenced(), app[CLOCK]()):
            await run_in_worker(app, app[BLOBS].remove, upload_id)
            app[COUNTERS]["quarantine_dropped"] += 1


# -- on the server's own machine ---------------------------------------------------------------------------------------


def list_offline(data: Path, product: str | None = None) -> list[dict[str, Any]]:
    """All that is in quarantine in a server's folder `data`, as `described`; the server may be running.

    Blocks; not for an event loop. `CatalogError` when there is no catalog, or it cannot be read.
    """
    with _catalog(data) as db:
        found: list[UploadRow] = []
        while rows := sqlite_expiry.quarantined(db, product, found[-1].id if found else None, _AT_ONCE):
            found += rows
    return [described(row) for row in found]


def show_offline(data: Path, upload_id: str) -> dict[str, Any]:
    """What is known of one upload in quarantine, under the terms of `list_offline`; `NotThere` when it is not there."""
    with _catalog(data) as db:
        return described(_of_id(db, upload_id))


def save_offline(data: Path, upload_id: str, target: Path) -> int:
    """Copy the bytes of an upload in quarantine to the file `target`; how many they are.

    Blocks; not for an event loop. `CatalogError` as `list_offline`, and when nothing of that id is in quarantine;
    `OSError` when `target` cannot be written.
    """
    with _catalog(data) as db:
        row = _of_id(db, upload_id)
    blobs = LocalBlobs(data / BLOBS_FOLDER)
    with target.open("xb") as file:
        for offset in range(0, row.state.offset, MIB):
            file.write(blobs.read(row.id, offset, min(MIB, row.state.offset - offset)))
    return row.state.offset


def _of_id(db: sqlite3.Connection, upload_id: str) -> UploadRow:
    row = sqlite_uploads.upload(db, upload_id)
    if row is None or not _held(row):
        raise NotThere(upload_id)
    return row


@contextmanager
def _catalog(data: Path) -> Iterator[sqlite3.Connection]:
    """The catalog of a server that may be running, brought up to date."""
    file = data / CATALOG_FILE
    if not file.is_file():
        raise CatalogError(f"{data}: there is no mailboat server's data here ({CATALOG_FILE} is missing)")
    db = connect(file)
    try:
        bring_up_to_date(db)
        yield db
    except sqlite3.Error as error:
        raise CatalogError(f"{file}: {error}") from error
    finally:
        db.close()


def described(row: UploadRow) -> dict[str, Any]:
    """One upload in quarantine, as lists show it; times in Unix seconds."""
    notes = dict(row.state.creation.notes)
    metadata = tus.parse_metadata(notes.get(tus.UPLOAD_METADATA, "")) or {}
    return {
        "upload": row.id,
        "product": row.product,
        "size": row.state.offset,
        "verification": row.verification.value,
        "reason": row.reason,
        "detail": row.detail,
        "session": row.session_id,
        "segment": row.index,
        "dialect": row.state.dialect,
        "metadata": {key: value.decode("utf-8", "replace") for key, value in metadata.items()},
        "created": row.created,
        "completed": row.updated,
    }


def _held(row: UploadRow) -> bool:
    return row.verification in (Verification.QUARANTINED, Verification.REJECTED) and row.state.complete


def _settled(row: UploadRow) -> bool:
    """Whether it is well, and so has nothing to do with quarantine any more."""
    return row.verification in (Verification.VERIFIED, Verification.IMPORTED)


# -- the operations ------------------------------------------------------------------------------------------------

_UPLOAD: Final = made_of(
    {
        "upload": ID,
        "product": TEXT,
        "size": COUNT,
        "verification": one_of(*Verification),
        "reason": TEXT,
        "detail": TEXT,
        "session": maybe(ID),
        "segment": maybe(COUNT),
        "dialect": TEXT,
        "metadata": by_name(TEXT),
        "created": TIME,
        "completed": TIME,
    }
)

_OPERATIONS: Final = (
    Operation(
        "GET",
        "/api/v1/quarantine",
        list_quarantined,
        made_of({"uploads": some(_UPLOAD), "next": maybe(ID)}),
        (PRODUCT, LIMIT, CURSOR),
    ),
    Operation("GET", "/api/v1/quarantine/{id}", show_quarantined, _UPLOAD, refusals=(404,)),
    Operation("POST", "/api/v1/quarantine/{id}/replay", replay_quarantined, _UPLOAD, role=Role.ADMIN, refusals=(404,)),
    Operation(
        "DELETE", "/api/v1/quarantine/{id}", drop_quarantined, None, role=Role.ADMIN, refusals=(404,), status=204
    ),
    Operation("GET", "/api/v1/quarantine/{id}/content", show_content, "application/octet-stream", refusals=(404,)),
)


def add_routes(app: web.Application) -> None:
    """Add the routes."""
    add_operations(app, _OPERATIONS)

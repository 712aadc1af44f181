"""What was uploaded and is no segment: kept for a while, with the reason, for people to look at.

The API lists it and gives the bytes as they came; `list_offline` and `save_offline` do the same for a program on the
server's own machine.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from mailboat.protocol.errors import Code
from mailboat.protocol.ids import is_canonical
from mailboat.protocol.limits import MIB
from mailboat.protocol.uploads import tus
from mailboat.server import sqlite_expiry, sqlite_uploads
from mailboat.server.blobs import LocalBlobs
from mailboat.server.catalog import CatalogError, UploadRow, Verification
from mailboat.server.catalog_schema import bring_up_to_date
from mailboat.server.context import BLOBS, CATALOG, ProblemError, run_in_worker
from mailboat.server.folder import BLOBS_FOLDER, CATALOG_FILE
from mailboat.server.operations import Asked, Operation, add_operations, answered
from mailboat.server.parameters import CURSOR, LIMIT, PRODUCT, refused
from mailboat.server.shapes import COUNT, ID, TEXT, TIME, by_name, made_of, maybe, some
from mailboat.server.sqlite_engine import connect

_NO_STORE: Final = {"Cache-Control": "no-store"}
# Bytes of strangers, never to be taken for a page of this server's.
_INERT: Final = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'; sandbox"}
_AT_ONCE: Final = 500


async def list_quarantined(asked: Asked) -> web.StreamResponse:
    """What was uploaded and is no segment, the oldest first."""
    product, after, limit = asked.product(), asked.given.text("cursor"), asked.given.limit()
    if after is not None and not is_canonical(after):
        raise refused("cursor", "it was not handed out here")
    rows = await asked.app[CATALOG].quarantined(product, after, limit + 1)
    page = rows[:limit]
    return answered({"uploads": [described(row) for row in page], "next": page[-1].id if len(rows) > limit else None})


async def show_content(asked: Asked) -> web.StreamResponse:
    """The bytes of an upload in quarantine, as they came."""
    app, principal = asked.app, asked.principal
    upload_id = asked.request.match_info["id"]
    row = await app[CATALOG].upload(upload_id) if is_canonical(upload_id) else None
    if row is None or not principal.reaches(row.product) or not _held(row):
        raise ProblemError(Code.NOT_FOUND, f"id: nothing of the id {upload_id[:80]!r} is in quarantine here")
    first = await _piece(app, row, 0)
    response = web.StreamResponse(headers={**_INERT, **_NO_STORE, "Content-Type": "application/octet-stream"})
    response.headers["Content-Disposition"] = f'attachment; filename="{row.id}"'
    response.content_length = row.state.offset
    await response.prepare(asked.request)
    await response.write(first)
    for offset in range(MIB, row.state.offset, MIB):
        await response.write(await _piece(app, row, offset))
    await response.write_eof()
    return response


async def _piece(app: web.Application, row: UploadRow, offset: int) -> bytes:
    size = min(MIB, row.state.offset - offset)
    return await run_in_worker(app, app[BLOBS].read, row.id, offset, size) if size else b""


def list_offline(data: Path, product: str | None = None) -> list[dict[str, Any]]:
    """All that is in quarantine in a server's folder `data`, as `described`; the server may be running.

    Blocks; not for an event loop. `CatalogError` when there is no catalog, or it cannot be read.
    """
    with _catalog(data) as db:
        found: list[UploadRow] = []
        while rows := sqlite_expiry.quarantined(db, product, found[-1].id if found else None, _AT_ONCE):
            found += rows
    return [described(row) for row in found]


def save_offline(data: Path, upload_id: str, target: Path) -> int:
    """Copy the bytes of an upload in quarantine to the file `target`; how many they are.

    Blocks; not for an event loop. `CatalogError` as `list_offline`, and when nothing of that id is in quarantine;
    `OSError` when `target` cannot be written.
    """
    with _catalog(data) as db:
        row = sqlite_uploads.upload(db, upload_id)
    if row is None or not _held(row):
        raise CatalogError(f"{upload_id}: nothing of this id is in quarantine in {data}")
    blobs = LocalBlobs(data / BLOBS_FOLDER)
    with target.open("xb") as file:
        for offset in range(0, row.state.offset, MIB):
            file.write(blobs.read(row.id, offset, min(MIB, row.state.offset - offset)))
    return row.state.offset


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
        "reason": row.reason,
        "detail": row.detail,
        "dialect": row.state.dialect,
        "metadata": {key: value.decode("utf-8", "replace") for key, value in metadata.items()},
        "created": row.created,
        "completed": row.updated,
    }


def _held(row: UploadRow) -> bool:
    return row.verification is Verification.QUARANTINED and row.state.complete


# -- the operations ------------------------------------------------------------------------------------------------

_UPLOAD: Final = made_of(
    {
        "upload": ID,
        "product": TEXT,
        "size": COUNT,
        "reason": TEXT,
        "detail": TEXT,
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
    Operation("GET", "/api/v1/quarantine/{id}/content", show_content, "application/octet-stream", refusals=(404,)),
)


def add_routes(app: web.Application) -> None:
    """Add the routes."""
    add_operations(app, _OPERATIONS)
